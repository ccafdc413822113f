"""Accounts: one method per operation of `auth.*` and `trust.*`. Knows no bus beyond what a call says of its caller."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

import msgspec

from bus.authorize import LOCAL, Caller
from bus.private_file import write_private
from bus.ratelimit import rate_of
from bus.settings import Settings
from bus.tokens import LocalToken, local_token_path
from bus.worker import Call
from schemas.bodies import accounts as bodies
from schemas.errors import Forbidden, QuotaExceeded, Unauthenticated
from workers.memory import applied
from workers.memory.accounts import access_tokens, families, scores, users
from workers.memory.accounts.access_tokens import BadToken
from workers.memory.accounts.keys import Key, KeyRing
from workers.memory.accounts.passwords import Passwords, Turn
from workers.memory.accounts.queue import Queue
from workers.memory.accounts.slowdown import SlowDown
from workers.memory.accounts.users import Account
from workers.memory.clock import SteadyClock
from workers.memory.hot.tier import Spaces
from workers.memory.outcome import Event, Outcome
from workers.memory.records import Records
from workers.memory.text import check_texts

log = logging.getLogger("olympus.memory.accounts")

T = TypeVar("T")

# The same words for a user there is not: nobody learns names by trying.
_WRONG: Final = "user name or password is wrong"

# What every operation on users takes.
_ADMIN_SCOPE: Final = "auth:admin"

# A source further away than the bus is named by the edge that took the request in; characters of it that are kept.
_SOURCE_MAX: Final = 128

# Random bytes of a refresh token: beyond any guessing.
_REFRESH_BYTES: Final = 32

# How far the wall clock may be behind the last sign-in before it is worth a word, seconds.
_CLOCK_BEHIND_S: Final = 60.0


# Seconds between two looks for what nobody needs any more.
_SWEEP_S: Final = 3600.0


class _Standing(NamedTuple):
    """What the database says of the user behind a token."""

    account: Account | None
    family: families.Family | None
    trust: float


class Accounts:
    """Users, their tokens and trust, on the records and the hot tier of the memory. `open` before use, `close` after.

    Signing in needs argon2 and a JWT library; they are imported when the first one does, as idle memory is counted.
    """

    def __init__(self, records: Records, tier: Spaces, settings: Settings) -> None:
        self._records = records
        self._settings = settings
        self._clock = records.now
        self._keys = KeyRing(settings.path("auth", "keys"), settings.auth.algorithm)
        self._passwords = Passwords(at_once=settings.auth.sign_ins_at_once, waiting=settings.auth.sign_ins_waiting)
        # One at a time, so that strangers who sign up never take more than one place of those who sign in.
        self._sign_ups = Queue("sign-up", at_once=1, waiting=settings.auth.sign_ins_waiting)
        self._slowdown = SlowDown(tier, self._now)
        self._local = LocalToken(settings)
        self._is_prepared = False
        self._swept_at = 0.0
        self.on_revoked: Callable[[], None] = lambda: None
        # Attempts with a password, by how they ended.
        self.sign_ins = {"ok": 0, "failed": 0, "slowed": 0}

    async def open(self) -> None:
        """Take up the time where the last sign-in left it, and write the secret of this home anew.

        With the wall clock set back since, what had expired must not be good again.
        """
        latest = await self._records.read(families.newest)
        behind_s = latest - self._records.now()
        if behind_s > _CLOCK_BEHIND_S:
            log.warning(
                "the clock is behind the last sign-in",
                extra={"action": "memory.auth.clock", "behind_s": round(behind_s)},
            )
        self._clock = SteadyClock(wall=lambda: max(self._records.now(), latest))
        try:
            write_private(local_token_path(self._settings), secrets.token_urlsafe(32).encode())
        except OSError as error:
            log.error(
                "the local admin's secret cannot be written",
                extra={"action": "memory.auth.unwritable", "reason": str(error)},
            )

    def close(self) -> None:
        """End the threads that check passwords."""
        self._passwords.close()

    async def sweep(self) -> None:
        """Forget what ended long ago, and keys that no token needs any more. Cheap: it looks once in a while only."""
        now = self._now()
        if now - self._swept_at < _SWEEP_S:
            return
        self._swept_at = now
        traded_s = self._settings.auth.refresh_ttl_s
        await self._records.write(lambda connection, _: families.prune(connection, now, traded_s=traded_s))
        kids = await self._records.read(lambda connection: families.kids_in_use(connection, now))
        await asyncio.to_thread(self._keys.keep, kids)

    # Signing in -------------------------------------------------------------------------------------------------

    async def register(self, request: bodies.Register, call: Call) -> bodies.User:
        """Sign oneself up.

        Raises Forbidden where that is not allowed, Conflict where the name is not free, QuotaExceeded, Overloaded,
        DeadlineExceeded.
        """
        auth = self._settings.auth
        if auth.required and not auth.allow_register:
            raise Forbidden("nobody can sign up here (auth.allow_register is off): ask an admin for a user")
        # The same request again is no further sign-up.
        answered = await self._answered(call, bodies.User)
        if answered is not None:
            return answered
        # Where nobody has to sign in there is nothing to win by a name, and all clients of an edge are one source.
        source = _source_of(call) if auth.required else None
        if source is not None:
            await self._slowdown.check_sign_up(source)
        async with self._sign_ups.turn(call.deadline_at):
            if source is not None:
                # Those before it in the queue have counted meanwhile.
                await self._slowdown.check_sign_up(source)
                await self._slowdown.begin_sign_up(source)
            return await self._add(
                call, request, users.USER_SCOPES, users.own_namespaces(request.user_id), users.check_sign_up
            )

    async def login(self, request: bodies.Login, call: Call) -> bodies.Tokens:
        """Trade name and password for tokens. Raises Unauthenticated, QuotaExceeded, Overloaded, DeadlineExceeded."""
        source = _source_of(call)
        async with self._turn_for(request.user_id, source, call) as turn:
            account = await self._checked(turn, request.user_id, request.password, source)
        now = self._now()
        key = await self._signing_key()
        refresh_token = secrets.token_urlsafe(_REFRESH_BYTES)
        family = families.Family(
            secrets.token_hex(12), account.name, now + self._settings.auth.refresh_ttl_s, is_revoked=False
        )

        def write(connection: sqlite3.Connection, _: float) -> Outcome:
            current = _still(connection, account)
            families.begin(connection, family, key.kid, _hash(refresh_token), now)
            families.note(connection, account.name, source, "ok", now)
            return Outcome(current, [])

        account = await self._records.write(write)
        return self._tokens(key, account, family, refresh_token, self._settings.auth.access_ttl_s)

    async def refresh(self, request: bodies.Refresh, call: Call) -> bodies.Tokens:
        """Trade a refresh token for a new pair. Raises Unauthenticated; a token used twice ends its sign-in."""
        now = self._now()
        key = await self._signing_key()
        refresh_token = secrets.token_urlsafe(_REFRESH_BYTES)
        trade = families.Trade(
            old_hash=_hash(request.refresh_token),
            new_hash=_hash(refresh_token),
            request_id=call.id,
            expires_at=now + self._settings.auth.refresh_ttl_s,
            kid=key.kid,
        )
        source = _source_of(call)
        done: families.Refreshed = await self._records.write(
            lambda connection, _: families.refresh(connection, trade, source, now)
        )
        if done.problem == "reused":
            self.on_revoked()
        family = done.family
        if family is None:
            raise Unauthenticated(f"the refresh token is not accepted: {done.problem}", reason=done.problem)
        account = await self._records.read(lambda connection: users.find(connection, family.user))
        if account is None or account.is_disabled:
            raise Unauthenticated("the refresh token is not accepted: revoked", reason="revoked")
        return self._tokens(key, account, family, refresh_token, self._settings.auth.access_ttl_s)

    async def logout(self, request: bodies.Logout, call: Call) -> bodies.LoggedOut:
        """End the sign-in of a token, or all of its user.

        Raises Unauthenticated for a token of nobody; for all sign-ins also for one that is no longer good, or what
        leaked and was taken back would still sign its owner out.
        """
        now = self._now()
        if request.everywhere:
            return await self._logout_everywhere(request.token, call, now)
        family = await self._family_of(request.token)
        if family is None:
            raise _not_accepted("unknown")

        def write(connection: sqlite3.Connection, _: float) -> Outcome:
            events = families.revoke(connection, family.family, "signed out", now)
            return Outcome(bodies.LoggedOut(user_id=family.user, sessions=len(events)), events)

        reply: bodies.LoggedOut = await self._records.write(write)
        self.on_revoked()
        return reply

    async def change_password(self, request: bodies.PasswordChange, call: Call) -> bodies.User:
        """Change one's own password. Raises as `login` does."""
        # The same request again: the password it names is the old one by now.
        answered = await self._answered(call, bodies.User)
        if answered is not None:
            return answered
        source = _source_of(call)
        async with self._turn_for(request.user_id, source, call) as turn:
            account = await self._checked(turn, request.user_id, request.password, source)
            password_hash = await turn.hash(request.new_password)
        return await self._update(bodies.UserUpdate(user_id=account.name), password_hash, call, checked=account)

    async def verify(self, token: str) -> bodies.TokenState:
        """Whose token it is and what it is good for, with the user's present rights."""
        local = self._local.read()
        if local and hmac.compare_digest(token.encode(errors="replace"), local.encode()):
            return _local_state()
        await self._prepare()
        now = self._now()
        try:
            claims = access_tokens.read(self._keys, token, now)
        except BadToken as error:
            return bodies.TokenState(valid=False, reason=error.reason)

        def look(connection: sqlite3.Connection) -> _Standing:
            account = users.find(connection, claims.sub)
            family = families.find(connection, claims.fam)
            return _Standing(account, family, scores.lower_bound(connection, claims.sub, now))

        account, family, trust = await self._records.read(look)
        if account is None or family is None or family.is_revoked or family.user != account.name:
            return bodies.TokenState(valid=False, reason="revoked")
        if account.is_disabled:
            return bodies.TokenState(valid=False, reason="disabled")
        scopes = [scope for scope in claims.scopes if scope in account.scopes]
        auth = self._settings.auth
        is_limited = "admin" not in scopes
        return bodies.TokenState(
            valid=True,
            user_id=account.name,
            scopes=scopes,
            namespaces=[pattern for pattern in claims.ns if pattern in account.namespaces],
            expires_in_s=claims.exp - now,
            rate_per_s=rate_of(trust, auth.rate_min_per_s, auth.rate_max_per_s) if is_limited else None,
        )

    # Administration ---------------------------------------------------------------------------------------------

    async def user_add(self, request: bodies.UserAdd, call: Call) -> bodies.User:
        """Add a user. Raises Unauthenticated and Forbidden for who is no admin, Conflict where the name is not free."""
        await self._require_admin(call)
        scopes = tuple(request.scopes) if request.scopes is not None else users.USER_SCOPES
        patterns = request.namespaces
        namespaces = tuple(patterns) if patterns is not None else users.own_namespaces(request.user_id)
        if request.admin:
            scopes, namespaces = ("admin",), ("*",)
        check = partial(users.check_added, takes_over=request.take_over)
        return await self._add(call, request, scopes, namespaces, check)

    async def user_list(self, call: Call) -> bodies.Users:
        """Every user."""
        await self._require_admin(call)
        now = self._now()
        return bodies.Users(users=await self._records.read(lambda connection: users.list_users(connection, now)))

    async def user_update(self, request: bodies.UserUpdate, call: Call) -> bodies.User:
        """Change a user. Raises NotFound."""
        await self._require_admin(call)
        password_hash = None
        if request.password is not None:
            async with self._passwords.turn(call.deadline_at) as turn:
                password_hash = await turn.hash(request.password)
        return await self._update(request, password_hash, call)

    async def user_delete(self, request: bodies.UserDelete, call: Call) -> bodies.UserDeleted:
        """Delete a user with all tokens."""
        await self._require_admin(call)
        now = self._now()
        reply = await self._records.write_once(
            "auth.user.delete",
            call.id,
            bodies.UserDeleted,
            lambda connection, _: users.delete(connection, request.user_id, now),
        )
        self.on_revoked()
        return reply

    async def issue(self, request: bodies.TokenIssue, call: Call) -> bodies.Tokens:
        """A long-lived access token for a program. Raises NotFound."""
        await self._require_admin(call)
        now = self._now()
        key = await self._signing_key()
        family = families.Family(secrets.token_hex(12), request.user_id, now + request.ttl_s, is_revoked=False)

        def write(connection: sqlite3.Connection, _: float) -> Outcome:
            users.show(connection, request.user_id, now)
            families.begin(connection, family, key.kid, None, now)
            families.note(connection, request.user_id, _source_of(call), "issued", now)
            return Outcome(users.find(connection, request.user_id), [])

        account: Account = await self._records.write(write)
        return self._tokens(key, account, family, "", request.ttl_s)

    async def rotate_keys(self, request: bodies.KeyRotate, call: Call) -> bodies.KeyRotated:
        """Sign with a new key; the old ones verify until their tokens have expired, or no more with `revoke`."""
        await self._require_admin(call)
        now = self._now()
        key = await asyncio.to_thread(self._keys.rotate)
        in_use: set[str] = set()
        if not request.revoke:
            in_use = await self._records.read(lambda connection: families.kids_in_use(connection, now))
        verifying = await asyncio.to_thread(self._keys.keep, in_use)
        if request.revoke:
            event = Event("auth.revoked", bodies.AuthRevoked(user_id="", reason="keys revoked"))
            await self._records.write(lambda connection, _: Outcome(None, [event]))
            self.on_revoked()
        return bodies.KeyRotated(kid=key.kid, algorithm=key.algorithm, verifying=verifying)

    # Trust ------------------------------------------------------------------------------------------------------

    async def trust_get(self, request: bodies.TrustGet) -> bodies.TrustScore:
        """A score with its history."""
        check_texts(request)
        now = self._now()
        return await self._records.read(lambda connection: scores.get(connection, request, now))

    async def trust_record(self, request: bodies.TrustRecord, call: Call) -> bodies.TrustScore:
        """Take in an outcome. Raises Forbidden for who reports on themselves."""
        check_texts(request)
        caller = call.caller
        if caller is not None and caller.user_id == request.user_id and not caller.is_admin:
            raise Forbidden(f"{caller.user_id} may not report on themselves", user_id=caller.user_id)
        reported_by = caller.user_id if caller is not None else ""
        now = self._now()
        return await self._records.write_once(
            "trust.record",
            call.id,
            bodies.TrustScore,
            lambda connection, _: scores.record(connection, request, reported_by, now),
        )

    async def trust_list(self, request: bodies.TrustList) -> bodies.TrustPage:
        """A page of scores."""
        check_texts(request)
        now = self._now()
        return await self._records.read(lambda connection: scores.list_scores(connection, request, now))

    def _now(self) -> float:
        return self._clock()

    # Parts ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _turn_for(self, user: str, source: str, call: Call) -> AsyncIterator[Turn]:
        """A turn to check a password, unless user or source have to wait: asked before the queue and after it."""
        await self._check_pace(user, source)
        async with self._passwords.turn(call.deadline_at) as turn:
            await self._check_pace(user, source)
            await self._slowdown.begin(user, source)
            yield turn

    async def _check_pace(self, user: str, source: str) -> None:
        try:
            await self._slowdown.check(user, source)
        except QuotaExceeded:
            self.sign_ins["slowed"] += 1
            raise

    async def _checked(self, turn: Turn, name: str, password: str, source: str) -> Account:
        """The user whose password it is. Raises Unauthenticated."""
        account = await self._records.read(lambda connection: users.find(connection, name))
        checked = await turn.check(account.password_hash if account is not None else None, password)
        if account is None or not checked.is_right or account.is_disabled:
            await self._note_failure(name, source)
            raise Unauthenticated(_WRONG, reason="wrong")
        await self._slowdown.succeeded(name, source)
        self.sign_ins["ok"] += 1
        new_hash = checked.new_hash
        if new_hash is None:
            return account
        await self._records.write(lambda connection, _: users.set_password_hash(connection, account, new_hash))
        return account._replace(password_hash=new_hash)

    async def _note_failure(self, user: str, source: str) -> None:
        self.sign_ins["failed"] += 1
        retry_after_s = await self._slowdown.failed(user, source)
        now = self._now()
        failed = bodies.AuthFailed(user_id=user, source=source, reason="wrong", retry_after_s=retry_after_s)

        def write(connection: sqlite3.Connection, _: float) -> Outcome:
            families.note(connection, user, source, "failed", now)
            return Outcome(None, [Event("auth.failed", failed)])

        await self._records.write(write)

    async def _add(
        self,
        call: Call,
        request: bodies.Register | bodies.UserAdd,
        scopes: tuple[str, ...],
        namespaces: tuple[str, ...],
        check: users.NameCheck,
    ) -> bodies.User:
        """Add a user. The name is checked before the password is hashed, which is costly, and as it is written."""
        name = request.user_id

        def look(connection: sqlite3.Connection) -> bytes | None:
            stored = applied.find_reply(connection, _subject_of(call), call.id)
            # The same request again: the name is taken by what it did.
            if stored is None:
                check(connection, name)
            return stored

        stored = await self._records.read(look)
        if stored is not None:
            return msgspec.msgpack.decode(stored, type=bodies.User)
        async with self._passwords.turn(call.deadline_at) as turn:
            password_hash = await turn.hash(request.password)
        account = Account(name, password_hash, scopes, namespaces, is_disabled=False)
        now = self._now()

        def write(connection: sqlite3.Connection, _: float) -> Outcome:
            check(connection, name)
            return users.add(connection, account, now)

        return await self._records.write_once(_subject_of(call), call.id, bodies.User, write)

    async def _answered(self, call: Call, reply_type: type[T]) -> T | None:
        """What this very request was answered before, where it comes again."""
        stored = await self._records.read(lambda connection: applied.find_reply(connection, _subject_of(call), call.id))
        return None if stored is None else msgspec.msgpack.decode(stored, type=reply_type)

    async def _logout_everywhere(self, token: str, call: Call, now: float) -> bodies.LoggedOut:
        """End every sign-in of a token's user. Raises Unauthenticated unless the token is still good."""
        await self._prepare()
        token_hash = _hash(token)
        claims: access_tokens.Claims | None = None
        try:
            claims = access_tokens.read(self._keys, token, now)
        except BadToken as error:
            # A refresh token looks like nothing that was ever signed.
            if error.reason != "forged":
                raise _not_accepted(error.reason) from error

        def write(connection: sqlite3.Connection, _: float) -> Outcome:
            if claims is not None:
                family = families.find(connection, claims.fam)
            else:
                family = families.family_of(connection, token_hash)
            if family is None:
                raise _not_accepted("unknown")
            problem = families.ended(family, now)
            if not problem and claims is None and families.is_traded(connection, token_hash):
                problem = "reused"
            if problem:
                raise _not_accepted(problem)
            count = families.revoke_all(connection, family.user, "signed out everywhere", now)
            event = Event("auth.revoked", bodies.AuthRevoked(user_id=family.user, reason="signed out everywhere"))
            return Outcome(bodies.LoggedOut(user_id=family.user, sessions=count), [event])

        # Once: the same request again finds the sign-in of its own token ended.
        reply = await self._records.write_once(_subject_of(call), call.id, bodies.LoggedOut, write)
        self.on_revoked()
        return reply

    async def _update(
        self, request: bodies.UserUpdate, password_hash: str | None, call: Call, *, checked: Account | None = None
    ) -> bodies.User:
        """Write the change; `checked`: as long as that account has the password that was checked."""
        now = self._now()

        def write(connection: sqlite3.Connection, _: float) -> Outcome:
            if checked is not None:
                _still(connection, checked)
            return users.update(connection, request, password_hash, now)

        reply = await self._records.write_once(_subject_of(call), call.id, bodies.User, write)
        if password_hash is not None:
            await self._slowdown.forgive(request.user_id)
        self.on_revoked()
        return reply

    async def _require_admin(self, call: Call) -> Caller:
        """The caller, an admin. Checked here too because it holds where nobody else has to sign in."""
        token = call.headers.get("token")
        if not isinstance(token, str) or not token:
            raise Unauthenticated(
                f"{call.subject} takes the token of an admin, or the secret in {local_token_path(self._settings)}",
                scope=_ADMIN_SCOPE,
                reason="missing",
            )
        state = await self.verify(token)
        if not state.valid:
            raise Unauthenticated(f"the token is not accepted: {state.reason}", reason=state.reason)
        caller = Caller(state.user_id, tuple(state.scopes), tuple(state.namespaces))
        if not caller.may(_ADMIN_SCOPE):
            raise Forbidden(
                f"{caller.user_id} may not use {call.subject}: it takes the scope {_ADMIN_SCOPE}",
                scope=_ADMIN_SCOPE,
                user_id=caller.user_id,
            )
        return caller

    async def _family_of(self, token: str) -> families.Family | None:
        await self._prepare()
        with suppress(BadToken):
            claims = access_tokens.read(self._keys, token, self._now(), is_expired_good=True)
            return await self._records.read(lambda connection: families.find(connection, claims.fam))
        return await self._records.read(lambda connection: families.family_of(connection, _hash(token)))

    async def _prepare(self) -> None:
        """Import what signing takes, 0.2 s the first time, outside the event loop."""
        if not self._is_prepared:
            await asyncio.to_thread(_import_jwt)
            self._is_prepared = True

    async def _signing_key(self) -> Key:
        await self._prepare()
        return await asyncio.to_thread(self._keys.signing)

    def _tokens(
        self, key: Key, account: Account, family: families.Family, refresh_token: str, ttl_s: float
    ) -> bodies.Tokens:
        now = self._now()
        claims = access_tokens.new_claims(
            account.name, family.family, account.scopes, account.namespaces, now=now, ttl_s=ttl_s
        )
        return bodies.Tokens(
            access_token=access_tokens.sign(key, claims),
            refresh_token=refresh_token,
            user_id=account.name,
            scopes=list(account.scopes),
            namespaces=list(account.namespaces),
            expires_at=claims.exp,
            expires_in_s=ttl_s,
            refresh_expires_at=family.expires_at if refresh_token else None,
        )


def _local_state() -> bodies.TokenState:
    """The secret of this home is good for as long as it stands in its file."""
    return bodies.TokenState(
        valid=True,
        user_id=LOCAL.user_id,
        scopes=list(LOCAL.scopes),
        namespaces=list(LOCAL.namespaces),
        expires_in_s=0.0,
    )


def _not_accepted(reason: str) -> Unauthenticated:
    return Unauthenticated(f"the token is not accepted: {reason}", reason=reason)


def _hash(token: str) -> bytes:
    """What is kept of a refresh token: it is random, so that a plain hash cannot be reversed."""
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _still(connection: sqlite3.Connection, account: Account) -> Account:
    """The account as it stands. Checking takes a while: raises Unauthenticated where the password was changed since."""
    current = users.as_checked(connection, account)
    if current is None:
        raise Unauthenticated(_WRONG, reason="wrong")
    return current


def _subject_of(call: Call) -> str:
    """The operation, without the instance it was addressed to."""
    return call.subject.partition("@")[0]


def _source_of(call: Call) -> str:
    source = call.headers.get("source")
    return source[:_SOURCE_MAX] if isinstance(source, str) and source else "bus"


def _import_jwt() -> None:
    import jwt  # noqa: F401
