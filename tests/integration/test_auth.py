"""Signing in, tokens, rights and trust, as callers of a real broker and the memory service's accounts see them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from broker.server import Broker
from bus.cli import app, exits
from bus.cli.session import renewed
from bus.client import Client
from bus.settings import Settings
from bus.tokens import local_token_path
from bus.worker import Call, Worker
from schemas.bodies.accounts import (
    KeyRotate,
    Login,
    Logout,
    PasswordChange,
    Refresh,
    Register,
    TokenIssue,
    Tokens,
    TrustGet,
    TrustRecord,
    UserAdd,
    UserDelete,
    UserList,
    UserUpdate,
    Verify,
)
from schemas.bodies.memory import KvGet, KvSet, KvVersion
from schemas.envelope import new_id
from schemas.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    NotFound,
    QuotaExceeded,
    Unauthenticated,
    Unprocessable,
)
from workers.errors.audit import AuditLog
from workers.memory.accounts.accounts import Accounts
from workers.memory.accounts.handlers import register as register_accounts
from workers.memory.clock import Now
from workers.memory.event_outbox import EventOutbox
from workers.memory.handlers import register as register_store
from workers.memory.hot.sqlite_tier import SqliteTier
from workers.memory.outcome import Event
from workers.memory.records import Records
from workers.memory.store import MemoryStore

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

PASSWORD = "correct horse"


class House:
    """A running memory service with a client of its own, which is nobody, and the secret of its home."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self.settings = settings
        self.client = client
        self.admin = {"token": local_token_path(settings).read_text()}

    async def add(self, name: str, **more: Any) -> Tokens:
        """Add a user and sign in."""
        await self.ask("auth.user.add", UserAdd(user_id=name, password=PASSWORD, **more), self.admin["token"])
        return await self.sign_in(name)

    async def sign_in(self, name: str, password: str = PASSWORD, **headers: str) -> Tokens:
        """The tokens of a user."""
        tokens: Tokens = await self.client.request(
            "auth.login", Login(user_id=name, password=password), headers=headers
        )
        return tokens

    async def ask(self, subject: str, body: Any, token: str = "") -> Any:
        """One request with a token; without one it says so, or the process's own would be put in."""
        return await self.client.request(subject, body, headers={"token": token})

    async def reason(self, token: str) -> str:
        """Why a token is not valid, "" when it is."""
        return (await self.client.request("auth.verify", Verify(token=token))).reason


@asynccontextmanager
async def house(settings: Settings, *, now: Now | None = None, **auth: Any) -> AsyncIterator[House]:
    """The memory service with auth on, and what else is set of it."""
    changed = msgspec.structs.replace(
        settings, auth=msgspec.structs.replace(settings.auth, **{"required": True, **auth})
    )
    async with accounts(changed, now) as worker:
        await worker.start(10)
        try:
            async with Client(changed) as client:
                yield House(changed, client)
        finally:
            await worker.stop(drain_s=0)


@asynccontextmanager
async def accounts(settings: Settings, now: Now | None) -> AsyncIterator[Worker]:
    """The key-value store and the accounts on one worker, not started."""
    outboxes: list[EventOutbox] = []

    def wake(events: Sequence[Event]) -> None:
        for outbox in outboxes:
            outbox.wake()

    records = await Records.open(
        settings.path(settings.memory.path),
        readers=2,
        on_committed=wake,
        max_body_bytes=settings.bus.max_body_bytes,
        now=now,
    )
    tier = await SqliteTier.open(settings.path("memory", "hot.db"), max_bytes=2**20, now=records.now)
    worker = Worker("memory", settings)
    outboxes.append(EventOutbox(records, worker.client))
    kept = Accounts(records, tier, settings)
    await kept.open()
    register_store(worker, MemoryStore(records))
    register_accounts(worker, kept)
    publishing = asyncio.create_task(outboxes[0].publish_forever())
    try:
        yield worker
    finally:
        publishing.cancel()
        kept.close()
        await tier.close()
        await records.close()


# Rights ---------------------------------------------------------------------------------------------------------


async def test_a_request_without_a_token_is_refused_and_one_of_its_owner_is_served(serve_broker: Serve) -> None:
    """Scope and namespace are those of the user; operations that need nobody pass."""
    async with serve_broker() as settings, house(settings) as here:
        tokens = await here.add("ada")
        write = KvSet(key="k", value=1, ns="user.ada")

        with pytest.raises(Unauthenticated) as missing:
            await here.ask("memory.kv.set", write)
        assert missing.value.details == {"scope": "memory:write", "reason": "missing"}
        assert (await here.ask("memory.kv.set", write, tokens.access_token)).version == 1
        assert (await here.client.request("bus.ping", {})).version
        assert tokens.namespaces == ["user.ada", "user.ada.*"]


async def test_a_token_for_another_namespace_is_forbidden(serve_broker: Serve) -> None:
    """The error names the namespace and those that are the caller's; every field that names one counts."""
    async with serve_broker() as settings, house(settings) as here:
        token = (await here.add("ada")).access_token
        await here.add("adam")

        for ns in ("user.adam", "kv", "user.ada2", "user"):
            with pytest.raises(Forbidden) as forbidden:
                await here.ask("memory.kv.get", KvGet(key="k", ns=ns), token)
            assert forbidden.value.details == {"ns": ns, "user_id": "ada", "namespaces": ["user.ada", "user.ada.*"]}
        with pytest.raises(NotFound):
            await here.ask("memory.kv.get", KvGet(key="k", ns="user.ada.notes"), token)


async def test_a_scope_that_the_user_lacks_is_forbidden(serve_broker: Serve) -> None:
    """Reading does not allow writing, and nobody but an admin touches users."""
    async with serve_broker() as settings, house(settings) as here:
        token = (await here.add("ada", scopes=["memory:read"], namespaces=["*"])).access_token

        with pytest.raises(Forbidden) as forbidden:
            await here.ask("memory.kv.set", KvSet(key="k", value=1), token)
        assert forbidden.value.details == {"scope": "memory:write", "user_id": "ada"}
        with pytest.raises(Forbidden):
            await here.ask("auth.user.list", UserList(), token)
        with pytest.raises(NotFound):
            await here.ask("memory.kv.get", KvGet(key="k"), token)


async def test_another_worker_asks_who_a_token_belongs_to(serve_broker: Serve) -> None:
    """A service without accounts of its own obeys the same rights, and hears at once of a sign-out."""
    async with serve_broker() as settings, house(settings) as here:
        token = (await here.add("ada", scopes=["model:read"])).access_token
        other = Worker("model", here.settings, instance="other")

        async def models(request: Any, call: Call) -> Any:
            assert call.caller is not None
            return {"models": [], "user": call.caller.user_id}

        other.handle("model.list", models)
        other.handle("model.load", models)
        await other.start(10)
        try:
            reply = await here.client.request("model.list", {}, headers={"token": token}, raw=True)
            assert reply["user"] == "ada"
            with pytest.raises(Forbidden, match="model:write"):
                await here.ask("model.load", {"id": "m"}, token)
            with pytest.raises(Unauthenticated, match="forged"):
                await here.ask("model.list", {}, "x.y.z")

            async with here.client.subscribe("auth.revoked") as revoked:
                await here.client.request("auth.logout", Logout(token=token))
                async with asyncio.timeout(10):
                    event = await anext(aiter(revoked))
            assert event.body == {"user_id": "ada", "reason": "signed out"}
            async with asyncio.timeout(10):
                while True:
                    try:
                        await here.ask("model.list", {}, token)
                    except Unauthenticated as error:
                        assert error.details == {"reason": "revoked"}
                        break
        finally:
            await other.stop(drain_s=0)


async def test_the_brokers_own_operations_obey_too(settings: Settings) -> None:
    """Dead letters and the event log are not for everybody; `bus.ping` is."""
    required = msgspec.structs.replace(settings, auth=msgspec.structs.replace(settings.auth, required=True))
    broker = Broker(required)
    ports = await broker.start()
    ported = {f"{name}_port": port for name, port in ports._asdict().items()}
    try:
        async with house(
            msgspec.structs.replace(required, bus=msgspec.structs.replace(required.bus, **ported))
        ) as here:
            token = (await here.add("ada")).access_token
            with pytest.raises(Unauthenticated):
                await here.ask("deadletter.list", {})
            with pytest.raises(Forbidden):
                await here.ask("deadletter.list", {}, token)
            assert (await here.ask("deadletter.list", {}, here.admin["token"])).total == 0
    finally:
        await broker.stop()


# Tokens ---------------------------------------------------------------------------------------------------------


async def test_forged_wrong_algorithm_and_mangled_tokens_say_nothing_but_forged(serve_broker: Serve) -> None:
    """Another's key, no signature, the public key taken for an HMAC secret, another issuer: all the same."""
    async with serve_broker() as settings, house(settings) as here:
        good = (await here.add("ada")).access_token
        claims = jwt.decode(good, options={"verify_signature": False})
        kid = jwt.get_unverified_header(good)["kid"]
        private = load_pem_private_key(settings.path("auth", "keys", f"{kid}.pem").read_bytes(), None)
        assert isinstance(private, Ed25519PrivateKey)
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        head, body, signature = good.split(".")
        forged = {
            "another key": jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", headers={"kid": kid}),
            "an unknown key": jwt.encode(claims, private, "EdDSA", headers={"kid": "000009-aaaaaaaa"}),
            "a key outside": jwt.encode(claims, private, "EdDSA", headers={"kid": "../../etc/passwd"}),
            "no key": jwt.encode(claims, private, "EdDSA"),
            "no signature": jwt.encode(claims, "", "none", headers={"kid": kid}),
            "the public key as a secret": jwt.encode(claims, public, "HS256", headers={"kid": kid}),
            "another issuer": jwt.encode({**claims, "iss": "other"}, private, "EdDSA", headers={"kid": kid}),
            "another audience": jwt.encode({**claims, "aud": "other"}, private, "EdDSA", headers={"kid": kid}),
            "no expiry": jwt.encode(
                {k: v for k, v in claims.items() if k != "exp"}, private, "EdDSA", headers={"kid": kid}
            ),
            "an expiry in words": jwt.encode({**claims, "exp": "never"}, private, "EdDSA", headers={"kid": kid}),
            "cut": good[:-4],
            "another body": f"{head}.{body[:-2]}AA.{signature}",
            "nothing like it": "abc",
            "dots": "...",
            "brackets": base64.urlsafe_b64encode(b"[" * 4000).decode().rstrip("=") + "..",
        }

        assert {name: await here.reason(token) for name, token in forged.items()} == dict.fromkeys(forged, "forged")
        assert await here.reason(good) == ""


async def test_an_access_token_expires_and_is_renewed_by_its_refresh_token(serve_broker: Serve) -> None:
    """Short access, rotating refresh: each refresh token is good once."""
    async with serve_broker() as settings, house(settings, access_ttl_s=1) as here:
        first = await here.add("ada")
        async with asyncio.timeout(10):
            while await here.reason(first.access_token) != "expired":
                await asyncio.sleep(0.05)
        with pytest.raises(Unauthenticated, match="expired"):
            await here.ask("memory.kv.get", KvGet(key="k", ns="user.ada"), first.access_token)

        second = await here.client.request("auth.refresh", Refresh(refresh_token=first.refresh_token))

        assert await here.reason(second.access_token) == ""
        assert second.refresh_token != first.refresh_token
        assert first.refresh_token.encode() not in settings.path(settings.memory.path).read_bytes()


async def test_a_refresh_token_used_twice_ends_the_whole_sign_in(serve_broker: Serve) -> None:
    """Owner and thief both lose it; another sign-in of the same user goes on."""
    async with serve_broker() as settings, house(settings) as here:
        first = await here.add("ada")
        other = await here.sign_in("ada")
        second = await here.client.request("auth.refresh", Refresh(refresh_token=first.refresh_token))

        with pytest.raises(Unauthenticated, match="reused"):
            await here.client.request("auth.refresh", Refresh(refresh_token=first.refresh_token))

        for token in (first.access_token, second.access_token):
            assert await here.reason(token) == "revoked"
        with pytest.raises(Unauthenticated, match="revoked"):
            await here.client.request("auth.refresh", Refresh(refresh_token=second.refresh_token))
        assert await here.reason(other.access_token) == ""


async def test_a_refresh_sent_again_by_id_is_no_theft(serve_broker: Serve) -> None:
    """A client whose reply was lost asks again under the same id and goes on with what it then gets."""
    async with serve_broker() as settings, house(settings) as here:
        tokens = await here.add("ada")
        id = new_id()
        lost = await here.client.request("auth.refresh", Refresh(refresh_token=tokens.refresh_token), id=id)
        again = await here.client.request("auth.refresh", Refresh(refresh_token=tokens.refresh_token), id=id)

        third = await here.client.request("auth.refresh", Refresh(refresh_token=again.refresh_token))
        assert await here.reason(third.access_token) == ""
        with pytest.raises(Unauthenticated, match="unknown"):
            await here.client.request("auth.refresh", Refresh(refresh_token=lost.refresh_token))


@pytest.mark.parametrize("everywhere", [False, True])
async def test_signing_out_revokes_at_once(serve_broker: Serve, everywhere: bool) -> None:
    """The access token is no good any more, although it has not expired; `everywhere` ends other sign-ins too."""
    async with serve_broker() as settings, house(settings) as here:
        tokens = await here.add("ada")
        other = await here.sign_in("ada")
        read = KvGet(key="k", ns="user.ada")
        with pytest.raises(NotFound):
            await here.ask("memory.kv.get", read, tokens.access_token)

        reply = await here.client.request("auth.logout", Logout(token=tokens.refresh_token, everywhere=everywhere))

        assert (reply.user_id, reply.sessions) == ("ada", 2 if everywhere else 1)
        with pytest.raises(Unauthenticated, match="revoked"):
            await here.ask("memory.kv.get", read, tokens.access_token)
        assert await here.reason(other.access_token) == ("revoked" if everywhere else "")
        with pytest.raises(Unauthenticated, match="unknown"):
            await here.client.request("auth.logout", Logout(token="nobody's"))


async def test_a_token_that_is_no_longer_good_signs_nobody_out_elsewhere(serve_broker: Serve) -> None:
    """Revoked, traded in or expired: it ends its own sign-in at the most, and what was issued goes on."""
    async with serve_broker() as settings, house(settings, access_ttl_s=1) as here:
        revoked = await here.add("ada")
        await here.client.request("auth.logout", Logout(token=revoked.refresh_token))
        traded = await here.sign_in("ada")
        await here.client.request("auth.refresh", Refresh(refresh_token=traded.refresh_token))
        issued = await here.ask("auth.issue", TokenIssue(user_id="ada", ttl_s=3600), here.admin["token"])
        async with asyncio.timeout(10):
            while await here.reason(traded.access_token) != "expired":
                await asyncio.sleep(0.05)

        for token, reason in (
            (revoked.refresh_token, "revoked"),
            (revoked.access_token, "expired"),
            (traded.refresh_token, "reused"),
            (traded.access_token, "expired"),
            ("nobody's", "unknown"),
        ):
            with pytest.raises(Unauthenticated, match=reason):
                await here.client.request("auth.logout", Logout(token=token, everywhere=True))
        assert await here.reason(issued.access_token) == ""
        for tokens, count in ((revoked, 0), (traded, 1)):
            reply = await here.client.request("auth.logout", Logout(token=tokens.access_token))
            assert (reply.user_id, reply.sessions) == ("ada", count)

        id = new_id()
        for _ in range(2):
            everywhere = Logout(token=issued.access_token, everywhere=True)
            assert (await here.client.request("auth.logout", everywhere, id=id)).sessions == 1
        assert await here.reason(issued.access_token) == "revoked"


async def test_a_rotated_key_verifies_on_and_a_revoked_one_does_not(serve_broker: Serve) -> None:
    """New tokens name the new key; the old key stays for its tokens unless it is dropped."""
    async with serve_broker() as settings, house(settings, algorithm="HS256") as here:
        old = await here.add("ada")
        rotated = await here.ask("auth.keys.rotate", KeyRotate(), here.admin["token"])
        new = await here.sign_in("ada")

        assert jwt.get_unverified_header(new.access_token) == {"alg": "HS256", "typ": "JWT", "kid": rotated.kid}
        assert [await here.reason(each.access_token) for each in (old, new)] == ["", ""]
        assert len(rotated.verifying) == 2

        await here.ask("auth.keys.rotate", KeyRotate(revoke=True), here.admin["token"])

        assert [await here.reason(each.access_token) for each in (old, new)] == ["forged", "forged"]
        renewed = await here.client.request("auth.refresh", Refresh(refresh_token=new.refresh_token))
        assert await here.reason(renewed.access_token) == ""


async def test_what_had_expired_stays_so_after_a_restart_with_the_clock_set_back(serve_broker: Serve) -> None:
    """Time goes on where the last sign-in left it."""
    async with serve_broker() as settings:
        async with house(settings, access_ttl_s=1) as here:
            token = (await here.add("ada")).access_token
            async with asyncio.timeout(10):
                while await here.reason(token) != "expired":
                    await asyncio.sleep(0.05)
            await here.sign_in("ada")
        async with house(settings, now=lambda: time.time() - 86_400, access_ttl_s=1) as here:
            assert await here.reason(token) == "expired"
            assert await here.reason((await here.sign_in("ada")).access_token) == ""


async def test_an_issued_token_serves_a_process_through_its_settings(serve_broker: Serve) -> None:
    """`bus.token` goes with every request that brings none."""
    async with serve_broker() as settings, house(settings) as here:
        await here.add("agent")
        issued = await here.ask("auth.issue", TokenIssue(user_id="agent", ttl_s=3600), here.admin["token"])
        assert (issued.refresh_token, round(issued.expires_in_s)) == ("", 3600)

        bus = msgspec.structs.replace(here.settings.bus, token=issued.access_token)
        async with Client(msgspec.structs.replace(here.settings, bus=bus)) as agent:
            reply = await agent.request("memory.kv.set", KvSet(key="k", value=1, ns="user.agent"))
            assert isinstance(reply, KvVersion)
            with pytest.raises(Unauthenticated):
                await agent.request("memory.kv.get", KvGet(key="k", ns="user.agent"), headers={"token": ""})
            async with agent.stream("memory.kv.get", KvGet(key="k", ns="user.agent")) as pieces:
                assert [piece async for piece in pieces] == []
            assert pieces.final.value == 1


# Users ----------------------------------------------------------------------------------------------------------


async def test_only_an_admin_adds_users_and_the_first_one_is_whoever_owns_the_home(serve_broker: Serve) -> None:
    """Also where nobody else has to sign in; the secret lies in a file of the owner alone."""
    async with serve_broker() as settings, house(settings, required=False) as here:
        with pytest.raises(Unauthenticated, match="takes the token of an admin"):
            await here.ask("auth.user.add", UserAdd(user_id="eve", password=PASSWORD))
        with pytest.raises(Unauthenticated):
            await here.ask("auth.user.add", UserAdd(user_id="eve", password=PASSWORD), "0" * 43)
        assert local_token_path(settings).stat().st_mode & 0o777 == 0o600
        assert local_token_path(settings).parent.stat().st_mode & 0o777 == 0o700

        boss = await here.add("boss", admin=True)
        assert (boss.scopes, boss.namespaces) == (["admin"], ["*"])
        await here.ask("auth.user.add", UserAdd(user_id="ada", password=PASSWORD), boss.access_token)
        with pytest.raises(Forbidden):
            ada = await here.sign_in("ada")
            await here.ask("auth.user.add", UserAdd(user_id="eve", password=PASSWORD), ada.access_token)
        with pytest.raises(Conflict):
            await here.ask("auth.user.add", UserAdd(user_id="ada", password=PASSWORD), boss.access_token)
        listed = await here.ask("auth.user.list", UserList(), boss.access_token)
        assert [(user.user_id, user.sessions) for user in listed.users] == [("ada", 1), ("boss", 1)]


async def test_the_secret_of_the_home_is_new_at_each_start_and_worthless_once_others_may_write_it(
    serve_broker: Serve,
) -> None:
    """An old copy opens nothing."""
    async with serve_broker() as settings:
        async with house(settings) as here:
            before = here.admin["token"]
        async with house(settings) as here:
            assert before != here.admin["token"]
            with pytest.raises(Unauthenticated):
                await here.ask("auth.user.list", UserList(), before)
            assert (await here.ask("auth.user.list", UserList(), here.admin["token"])).users == []
            local_token_path(settings).chmod(0o622)
            local_token_path(settings).write_text("planted")
            with pytest.raises(Unauthenticated):
                await here.ask("auth.user.list", UserList(), "planted")


async def test_signing_up_is_for_houses_that_allow_it(serve_broker: Serve) -> None:
    """Where nobody has to sign in anybody may; otherwise the setting decides, and rights are never chosen."""
    async with serve_broker() as settings:
        for auth, is_open in (({"required": False}, True), ({}, False), ({"allow_register": True}, True)):
            async with house(settings, **auth) as here:
                name = f"user{len(auth)}{int(auth.get('required', True))}"
                ask = here.client.request("auth.register", Register(user_id=name, password=PASSWORD))
                if is_open:
                    assert (await ask).namespaces == [f"user.{name}", f"user.{name}.*"]
                    assert "admin" not in (await here.sign_in(name)).scopes
                else:
                    with pytest.raises(Forbidden, match=r"auth\.allow_register"):
                        await ask
        async with house(settings, required=False) as here:
            with pytest.raises(Forbidden, match="reserved"):
                await here.client.request("auth.register", Register(user_id="local", password=PASSWORD))


async def test_disabling_a_new_password_and_deleting_end_every_sign_in(serve_broker: Serve) -> None:
    """At once, and a disabled user is told no more than a stranger."""
    async with serve_broker() as settings, house(settings) as here:
        admin = here.admin["token"]
        tokens = await here.add("ada")
        shown = await here.ask("auth.user.update", UserUpdate(user_id="ada", disabled=True), admin)
        assert (shown.disabled, shown.sessions) == (True, 0)
        assert await here.reason(tokens.access_token) == "revoked"
        with pytest.raises(Unauthenticated, match="user name or password is wrong"):
            await here.sign_in("ada")

        await here.ask("auth.user.update", UserUpdate(user_id="ada", disabled=False), admin)
        tokens = await here.sign_in("ada")
        change = PasswordChange(user_id="ada", password=PASSWORD, new_password="battery staple")
        await here.client.request("auth.password", change)
        assert await here.reason(tokens.access_token) == "revoked"
        with pytest.raises(Unauthenticated):
            await here.sign_in("ada")

        tokens = await here.sign_in("ada", "battery staple")
        assert (await here.ask("auth.user.delete", UserDelete(user_id="ada"), admin)).deleted
        assert await here.reason(tokens.access_token) == "revoked"
        await here.add("ada", take_over=True)
        assert await here.reason(tokens.access_token) == "revoked"
        with pytest.raises(NotFound):
            await here.ask("auth.user.update", UserUpdate(user_id="nobody", disabled=True), admin)


async def test_what_a_deleted_user_stored_is_nobodys_by_the_name_alone(serve_broker: Serve) -> None:
    """Nobody signs up as that user, and an admin who adds one says so; the trust is gone with the user."""
    async with serve_broker() as settings, house(settings, allow_register=True) as here:
        admin = here.admin["token"]
        token = (await here.add("ada")).access_token
        await here.ask("memory.kv.set", KvSet(key="k", value="secret", ns="user.ada"), token)
        await here.ask("trust.record", TrustRecord(user_id="ada", success=True, note="a note"), admin)
        await here.ask("auth.user.delete", UserDelete(user_id="ada"), admin)

        await here.add("bob")
        await here.ask("auth.user.delete", UserDelete(user_id="bob"), admin)

        score = await here.ask("trust.get", TrustGet(user_id="ada"), admin)
        assert (score.outcomes, score.history) == (0, [])
        # Bob kept nothing in the memory; what other services keep of him goes by the name, too.
        for name in ("ada", "bob"):
            with pytest.raises(Conflict, match=f"'{name}' is not free") as refused:
                await here.client.request("auth.register", Register(user_id=name, password=PASSWORD))
            assert refused.value.details == {"field": "user_id", "user_id": name}
        with pytest.raises(Conflict, match="take_over has to be true") as refused:
            await here.ask("auth.user.add", UserAdd(user_id="ada", password=PASSWORD), admin)
        assert refused.value.details["field"] == "take_over"
        assert refused.value.details["deleted_at"] == pytest.approx(time.time(), abs=60)

        id = new_id()
        again = UserAdd(user_id="ada", password=PASSWORD, take_over=True)
        for _ in range(2):
            added = await here.client.request("auth.user.add", again, headers={"token": admin}, id=id)
        assert added.user_id == "ada"
        token = (await here.sign_in("ada")).access_token
        assert (await here.ask("memory.kv.get", KvGet(key="k", ns="user.ada"), token)).value == "secret"
        with pytest.raises(Conflict, match="there is a user 'ada' already"):
            await here.ask("auth.user.add", again, admin)


@pytest.mark.parametrize(
    ("ns", "is_free"),
    [("user.ada", False), ("user.ada.notes", False), ("user.adam", True), ("user.ada-2", True), ("user", True)],
)
async def test_nobody_signs_up_under_a_name_that_something_is_stored_by(
    serve_broker: Serve, ns: str, is_free: bool
) -> None:
    """Also where no user is known to have had it; an admin who adds that user says that it is to have what is there."""
    async with serve_broker() as settings, house(settings, allow_register=True) as here:
        admin = here.admin["token"]
        await here.ask("memory.kv.set", KvSet(key="k", value=1, ns=ns), admin)
        asked = here.client.request("auth.register", Register(user_id="ada", password=PASSWORD))
        if is_free:
            assert (await asked).user_id == "ada"
        else:
            with pytest.raises(Conflict, match="what somebody stored goes by it"):
                await asked
            with pytest.raises(Conflict, match="something is stored in the namespaces of 'ada'") as refused:
                await here.add("ada")
            assert refused.value.details == {"field": "take_over", "user_id": "ada"}
            await here.add("ada", take_over=True)


async def test_rights_taken_away_are_gone_from_tokens_already_given(serve_broker: Serve) -> None:
    """A token never says more than its user may now."""
    async with serve_broker() as settings, house(settings) as here:
        token = (await here.add("ada")).access_token
        write = KvSet(key="k", value=1, ns="user.ada")
        await here.ask("memory.kv.set", write, token)

        change = UserUpdate(user_id="ada", scopes=["memory:read"])
        await here.ask("auth.user.update", change, here.admin["token"])

        with pytest.raises(Forbidden, match="memory:write"):
            await here.ask("memory.kv.set", write, token)


# Wrong passwords ------------------------------------------------------------------------------------------------


async def test_a_wrong_password_and_an_unknown_user_look_the_same(serve_broker: Serve) -> None:
    """Words, details and the work done; an event tells whoever watches."""
    async with (
        serve_broker() as settings,
        house(settings) as here,
        here.client.subscribe("auth.failed") as failed,
    ):
        await here.add("ada")
        errors = []
        for name in ("ada", "nobody"):
            with pytest.raises(Unauthenticated) as caught:
                await here.sign_in(name, "wrong password")
            errors.append((caught.value.message, caught.value.details))
        assert errors[0] == errors[1] == ("user name or password is wrong", {"reason": "wrong"})
        async with asyncio.timeout(10):
            heard = [(await anext(aiter(failed))).body for _ in range(2)]
        assert [(body["user_id"], body["source"]) for body in heard] == [("ada", "bus"), ("nobody", "bus")]


async def test_guessing_is_slowed_down_and_the_owner_is_not(serve_broker: Serve) -> None:
    """After a few wrong ones the right one has to wait too; from where the owner signed in before, it does not."""
    async with serve_broker() as settings, house(settings) as here:
        await here.add("ada")
        await here.sign_in("ada", source="phone")
        for _ in range(4):
            with pytest.raises(Unauthenticated):
                await here.sign_in("ada", "wrong password", source="attic")

        with pytest.raises(QuotaExceeded) as slowed:
            await here.sign_in("ada", source="attic")
        assert 0 < slowed.value.details["retry_after_s"] <= 1
        with pytest.raises(QuotaExceeded):
            await here.sign_in("ada", source="cellar")
        await here.sign_in("ada", source="phone")
        shown = (await here.ask("auth.user.list", UserList(), here.admin["token"])).users[0]
        assert shown.failed_sign_ins == 0


async def test_many_guesses_at_once_gain_nothing(serve_broker: Serve) -> None:
    """They are counted before they are checked."""
    async with serve_broker() as settings, house(settings) as here:
        await here.add("ada")
        guesses = [here.sign_in("ada", f"guess number {index}", source="attic") for index in range(20)]

        kinds = [type(error) for error in await asyncio.gather(*guesses, return_exceptions=True)]

        assert set(kinds) == {Unauthenticated, QuotaExceeded}
        assert kinds.count(Unauthenticated) <= 5


@pytest.mark.parametrize(
    ("subject", "body", "field"),
    [
        ("auth.register", {"user_id": "ada", "password": "short"}, "password"),
        ("auth.register", {"user_id": "a.b", "password": PASSWORD}, "user_id"),
        ("auth.register", {"user_id": "ada\n", "password": PASSWORD}, "user_id"),
        ("auth.register", {"user_id": "../ada", "password": PASSWORD}, "user_id"),
        ("auth.register", {"user_id": "ada", "password": PASSWORD, "scopes": ["admin"]}, "scopes"),
        ("auth.login", {"user_id": "ada", "password": 7}, "password"),
        ("auth.verify", {"token": ""}, "token"),
        ("auth.user.add", {"user_id": "ada", "password": PASSWORD, "scopes": ["root"]}, "scopes"),
        ("auth.user.add", {"user_id": "ada", "password": PASSWORD, "namespaces": ["a*b"]}, "namespaces"),
        ("trust.record", {"user_id": "m", "success": True, "weight": 0}, "weight"),
        ("trust.record", {"user_id": "m", "success": True, "response_time_s": -1}, "response_time_s"),
    ],
)
async def test_bad_requests_name_the_field(serve_broker: Serve, subject: str, body: dict[str, Any], field: str) -> None:
    """And repeat nothing of a password."""
    async with serve_broker() as settings, house(settings, required=False) as here:
        with pytest.raises(BadRequest, match=field) as caught:
            await here.client.request(subject, body)

        assert str(body.get("password")) not in caught.value.message


# Trust ----------------------------------------------------------------------------------------------------------


async def test_outcomes_make_a_score_with_its_uncertainty_and_history(serve_broker: Serve) -> None:
    """Newest first, with what a formula of one's own needs; each report is an event and counts once."""
    async with (
        serve_broker() as settings,
        house(settings, required=False) as here,
        here.client.subscribe("trust.changed") as changed,
    ):
        unknown = await here.client.request("trust.get", TrustGet(user_id="model-1"))
        assert (round(unknown.score, 3), unknown.mean, unknown.outcomes, unknown.history) == (0.05, 0.5, 0, [])

        id = new_id()
        for _ in range(2):
            first = await here.client.request(
                "trust.record", TrustRecord(user_id="model-1", success=True, response_time_s=1.0), id=id
            )
        await here.client.request("trust.record", TrustRecord(user_id="model-1", success=False, note="wrong answer"))

        assert (round(first.score, 2), first.outcomes) == (0.22, 1)
        score = await here.client.request("trust.get", TrustGet(user_id="model-1"))
        assert (score.outcomes, score.successes) == (2, 1)
        assert score.score < score.mean < score.upper
        assert [(one.success, one.response_time_s, one.note) for one in score.history] == [
            (False, None, "wrong answer"),
            (True, 1.0, ""),
        ]
        async with asyncio.timeout(10):
            heard = [(await anext(aiter(changed))).body for _ in range(2)]
        assert [(body["user_id"], body["success"], body["outcomes"]) for body in heard] == [
            ("model-1", True, 1),
            ("model-1", False, 2),
        ]
        page = await here.client.request("trust.list", {"limit": 1})
        assert ([one.user_id for one in page.scores], page.next_after) == (["model-1"], None)


async def test_nobody_reports_on_themselves(serve_broker: Serve) -> None:
    """Others do, and the report names them."""
    async with serve_broker() as settings, house(settings) as here:
        ada = (await here.add("ada", scopes=["trust:*"])).access_token
        with pytest.raises(Forbidden, match="themselves"):
            await here.ask("trust.record", TrustRecord(user_id="ada", success=True), ada)

        await here.ask("trust.record", TrustRecord(user_id="bob", success=True), ada)

        score = await here.ask("trust.get", TrustGet(user_id="bob"), ada)
        assert [one.reported_by for one in score.history] == ["ada"]


async def test_requests_are_limited_by_trust(serve_broker: Serve) -> None:
    """A caller past the rate is told when to come back; an admin is not limited."""
    async with serve_broker() as settings, house(settings, rate_min_per_s=0.5, rate_max_per_s=1) as here:
        token = (await here.add("ada")).access_token
        boss = (await here.add("boss", admin=True)).access_token
        read = KvGet(key="k", ns="user.ada")
        with pytest.raises(NotFound):
            await here.ask("memory.kv.get", read, token)

        with pytest.raises(QuotaExceeded) as limited:
            await here.ask("memory.kv.get", read, token)
        assert 1.0 < limited.value.details["retry_after_s"] <= 2.0
        for _ in range(5):
            with pytest.raises(NotFound):
                await here.ask("memory.kv.get", read, boss)


# Secrets --------------------------------------------------------------------------------------------------------


async def test_a_password_never_becomes_part_of_a_dead_letter(serve_broker: Serve) -> None:
    """A sign-in that no worker finished is kept without body and token, and cannot be sent again."""
    async with serve_broker(attempts=1) as settings:
        stuck = Worker("memory", settings, instance="stuck")

        async def hang(request: Login, call: Call) -> None:
            await asyncio.Event().wait()

        stuck.handle("auth.login", hang)
        await stuck.start(10)
        async with Client(settings) as client, client.subscribe("error.deadletter") as buried:
            with pytest.raises(DeadlineExceeded):
                await client.request(
                    "auth.login",
                    Login(user_id="ada", password="open sesame"),
                    timeout_s=0.3,
                    headers={"token": "a token", "source": "phone"},
                )
            async with asyncio.timeout(10):
                id = (await anext(aiter(buried))).body["id"]
            shown = await client.request("deadletter.show", {"id": id})
            assert (shown.body, shown.headers) == (None, {"source": "phone"})
            with pytest.raises(Unprocessable, match="was not kept"):
                await client.request("deadletter.redrive", {"id": id})
        await stuck.stop(drain_s=0)
    kept = b"".join(path.read_bytes() for path in settings.path("broker").rglob("*") if path.is_file())
    assert b"auth.login" in kept
    assert b"open sesame" not in kept
    assert b"a token" not in kept


# The command ----------------------------------------------------------------------------------------------------


class Terminal:
    """Runs `olympus auth ...` in a thread, against one house, and keeps what it printed."""

    def __init__(self, here: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        bus = here.settings.bus
        overrides = {
            "home": str(here.settings.home_path),
            "auth.required": "true",
            **{key: str(getattr(bus, key.partition(".")[2])) for key in PORTS},
        }
        self._flags = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.out = self.err = ""

    async def auth(self, *words: str, stdin: str = "", typed: Sequence[str] = ()) -> int:
        """The exit code; `typed` are answers to prompts of a terminal, else `stdin` is a pipe."""
        return await self.run("auth", *words, stdin=stdin, typed=typed)

    async def run(self, *words: str, stdin: str = "", typed: Sequence[str] = ()) -> int:
        """Any command of `olympus`."""
        answers = list(typed)
        pipe = io.StringIO(stdin)
        pipe.isatty = lambda: bool(typed)  # type: ignore[method-assign]
        self._monkeypatch.setattr("sys.stdin", pipe)
        self._monkeypatch.setattr("getpass.getpass", lambda prompt: answers.pop(0))
        self._capsys.readouterr()
        code = await asyncio.to_thread(app.main, [*self._flags, *words])
        self.out, self.err = self._capsys.readouterr()
        assert answers == []
        return code


PORTS = ("bus.request_port", "bus.publish_port", "bus.subscribe_port", "bus.sequenced_port")


async def test_the_first_admin_is_added_from_the_command_line_and_signs_in(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The password is asked for twice; nothing secret is printed; the session is the owner's alone."""
    async with serve_broker() as settings, house(settings) as here:
        terminal = Terminal(here, monkeypatch, capsys)
        assert await terminal.auth("add-user", "ada", "--admin", typed=["a password", "another one"]) == exits.USAGE
        assert await terminal.auth("add-user", "ada", "--admin", typed=[PASSWORD, PASSWORD]) == exits.OK
        assert "added ada: admin on *" in terminal.err

        assert await terminal.auth("login", "ada", typed=["wrong password"]) == exits.FAILED
        assert "user name or password is wrong" in terminal.err
        assert await terminal.auth("login", "ada", "--json", typed=[PASSWORD]) == exits.OK
        assert json.loads(terminal.out)["user_id"] == "ada"
        assert "token" not in terminal.out
        session = settings.path("auth", "session.json")
        assert session.stat().st_mode & 0o777 == 0o600

        assert await terminal.auth("whoami") == exits.OK
        assert terminal.out.startswith("ada: admin on *, for 1")
        assert await terminal.run("req", "memory.kv.set", "key=k", "value=1", "--json") == exits.OK
        assert await terminal.auth("logout", "--everywhere") == exits.OK
        assert not session.exists()
        assert await terminal.auth("whoami") == exits.OK
        assert terminal.out.startswith("local: admin on *")


async def test_users_are_kept_from_the_command_line(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Listing, passwords, disabling, tokens for programs, keys, deleting."""
    async with serve_broker() as settings, house(settings) as here:
        terminal = Terminal(here, monkeypatch, capsys)
        add = ("add-user", "kiosk", "--scope", "memory:read", "--ns", "user.kiosk", "--password-stdin")
        assert await terminal.auth(*add, stdin=f"{PASSWORD}\n") == exits.OK
        assert await terminal.auth("users") == exits.OK
        assert [line.split() for line in terminal.out.splitlines()] == [
            ["USER", "STATE", "SCOPES", "NAMESPACES", "SIGN-INS", "FAILED"],
            ["kiosk", "ok", "memory:read", "user.kiosk", "0", "0"],
        ]
        assert await terminal.auth("issue", "kiosk", "--for", "1h") == exits.OK
        assert await here.reason(terminal.out.strip()) == ""
        assert await terminal.auth("rotate-keys", "--revoke", "--json") == exits.OK
        assert len(json.loads(terminal.out)["verifying"]) == 1

        assert await terminal.auth("login", "kiosk", "--password-stdin", stdin=f"{PASSWORD}\n") == exits.OK
        assert await terminal.auth("passwd", "--password-stdin", stdin=f"{PASSWORD}\nanother one\n") == exits.OK
        await here.sign_in("kiosk", "another one")
        assert await terminal.auth("passwd", "kiosk", "--password-stdin", stdin="a third one\n") == exits.OK
        await here.sign_in("kiosk", "a third one")
        assert await terminal.auth("disable", "kiosk") == exits.OK
        assert await terminal.auth("login", "kiosk", "--password-stdin", stdin="a third one\n") == exits.FAILED
        assert await terminal.auth("enable", "kiosk", "--json") == exits.OK
        assert json.loads(terminal.out)["disabled"] is False
        assert await terminal.auth("login", "kiosk", "--password-stdin", stdin="a third one\n") == exits.OK
        await here.ask("auth.user.update", UserUpdate(user_id="kiosk", password=PASSWORD), here.admin["token"])
        assert await terminal.auth("logout", "--everywhere") == exits.FAILED
        assert "other sign-ins of kiosk go on" in terminal.err
        assert await terminal.auth("logout") == exits.FAILED
        assert await terminal.auth("delete-user", "kiosk") == exits.OK
        assert await terminal.auth("delete-user", "kiosk") == exits.FAILED
        assert await terminal.auth(*add, stdin=f"{PASSWORD}\n") == exits.FAILED
        assert "take_over has to be true" in terminal.err
        assert await terminal.auth(*add, "--take-over", stdin=f"{PASSWORD}\n") == exits.OK


async def test_an_expired_session_is_renewed_by_the_next_command_and_a_revoked_one_is_dropped(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several commands at once renew it once."""
    async with serve_broker() as settings, house(settings) as here:
        terminal = Terminal(here, monkeypatch, capsys)
        await here.add("ada")
        assert await terminal.auth("login", "ada", typed=[PASSWORD]) == exits.OK
        path = settings.path("auth", "session.json")
        stored = json.loads(path.read_bytes())
        path.write_text(json.dumps({**stored, "renew_at": 0}))

        sessions = await asyncio.gather(*(renewed(here.settings) for _ in range(5)))

        assert len({session.access_token for session in sessions if session is not None}) == 1
        assert json.loads(path.read_bytes())["refresh_token"] != stored["refresh_token"]
        await here.client.request("auth.logout", Logout(token=stored["access_token"]))
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "renew_at": 0}))
        assert await renewed(here.settings) is None
        assert not path.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("add-user",), "needs a NAME"),
        (("users", "ada"), "takes no NAME"),
        (("users", "--revoke"), "--revoke goes with 'auth rotate-keys' only"),
        (("login", "ada", "--for", "1h"), "--for goes with 'auth issue' only"),
        (("passwd", "ada", "--take-over"), "--take-over goes with 'auth add-user' only"),
        (("add-user", "ada", "--admin", "--ns", "*"), "leave out --scope and --ns"),
        (("add-user", "ada"), "no terminal to ask"),
        (("add-user", "ada", "--password-stdin"), "stdin must hold the password"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_sent(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says which."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    assert app.main(["auth", *words]) == exits.USAGE
    assert says in capsys.readouterr().err


async def test_sign_ins_and_changes_of_users_stand_in_the_audit_log_without_a_secret(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Good and bad ones with their address, stolen tokens, revocations; the command lists them and checks the chain."""
    async with serve_broker() as settings, house(settings) as here:
        service = Worker("error", here.settings)
        log = AuditLog(here.settings, service)
        log.handle()
        await service.start(10)
        await log.start()
        try:
            ada = await here.add("ada", admin=True)
            with pytest.raises(Unauthenticated):
                await here.sign_in("ada", "a wrong one", source="http 192.0.2.7")
            await here.client.request("auth.refresh", Refresh(refresh_token=ada.refresh_token))
            with pytest.raises(Unauthenticated):
                await here.client.request("auth.refresh", Refresh(refresh_token=ada.refresh_token))
            again = await here.sign_in("ada")
            await here.ask("auth.keys.rotate", KeyRotate(revoke=False), again.access_token)
            await here.ask("auth.user.update", UserUpdate(user_id="ada", password="yet another"), here.admin["token"])
            terminal = Terminal(here, monkeypatch, capsys)
            async with asyncio.timeout(10):
                while True:
                    assert await terminal.run("audit", "list", "--json") == exits.OK
                    lines = json.loads(terminal.out)["entries"][::-1]
                    if len(lines) >= 8:
                        break
            assert await terminal.run("audit", "list", "--kind", "sign_in", "--outcome", "unauthenticated") == exits.OK
            table = terminal.out
            assert await terminal.run("audit", "verify") == exits.OK
            noted = terminal.out.strip()
            assert await terminal.run("audit", "verify", "--noted", noted) == exits.OK
            assert await terminal.run("audit", "verify", "--noted", f"{noted[:-1]}x") == exits.USAGE
            kept = log.path.read_bytes()
        finally:
            await log.stop()
            await service.stop(0)

    told = [(line["actor"], line["action"], line["outcome"], line["address"]) for line in lines]
    assert told == [
        ("local", "auth.user.add", "ok", ""),
        ("ada", "auth.login", "ok", ""),
        ("ada", "auth.login", "unauthenticated", "http 192.0.2.7"),
        ("ada", "auth.refresh", "ok", ""),
        ("local", "auth.refresh", "unauthenticated", ""),
        ("ada", "auth.login", "ok", ""),
        ("ada", "auth.keys.rotate", "ok", ""),
        ("local", "auth.user.update", "ok", ""),
    ]
    assert "http 192.0.2.7" in table and table.count("auth.") == 2
    assert not any(line["request_id"] for line in lines if line["action"] in ("auth.login", "auth.refresh"))
    for secret in (PASSWORD, "a wrong one", "yet another", ada.refresh_token, again.access_token):
        assert secret.encode() not in kept
