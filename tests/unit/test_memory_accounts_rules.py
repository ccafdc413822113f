"""Rights, waits, keys and the process's own token, without a bus."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from bus.authorize import KNOWN_S, LOCAL, Authorizer, Caller, check_namespaces
from bus.client import Client
from bus.settings import Settings, SettingsError, load_settings
from bus.tokens import LocalToken, local_token_path, token_source
from schemas import catalog
from schemas.bodies.accounts import Login, TokenState
from schemas.bodies.items import MemoryDecay
from schemas.bodies.memory import KvGet
from schemas.bodies.sessions import ContextBuild, ToolSchemas
from schemas.bodies.upkeep import MemoryStats
from schemas.errors import Forbidden, Internal, NoWorker, Unauthenticated
from workers.memory.accounts import access_tokens
from workers.memory.accounts.access_tokens import BadToken
from workers.memory.accounts.keys import KeyRing
from workers.memory.accounts.slowdown import FREE_PER_USER, LONGEST_WAIT_S, wait_after

ADA = Caller("ada", ("memory:read", "trust:*"), ("user.ada", "user.ada.*"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home of this test's own where everybody has to sign in."""
    return load_settings(overrides={"home": str(tmp_path / "home"), "auth.required": True})


def plant(settings: Settings, text: str, mode: int = 0o600) -> None:
    """Write the secret of the home."""
    path = local_token_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


# Rights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "is_allowed"),
    [
        ("memory:read", True),
        ("memory:write", False),
        ("memory:admin", False),
        ("trust:write", True),
        ("trustee:write", False),
        ("auth:admin", False),
    ],
)
def test_a_scope_is_held_itself_or_by_its_whole_service(scope: str, is_allowed: bool) -> None:
    """Writing is not reading, and reading is not writing; `admin` is everything."""
    assert ADA.may(scope) is is_allowed
    assert LOCAL.may(scope)


@pytest.mark.parametrize(
    ("ns", "is_allowed"),
    [("user.ada", True), ("user.ada.notes", True), ("user.adam", False), ("user", False), ("kv", False), ("", False)],
)
def test_a_namespace_is_named_or_begins_as_a_pattern_does(ns: str, is_allowed: bool) -> None:
    """A longer name is not below it."""
    assert ADA.may_touch(ns) is is_allowed
    assert LOCAL.may_touch(ns)


@pytest.mark.parametrize(
    ("subject", "request_", "words"),
    [
        ("memory.kv.get", KvGet(key="k"), "'kv'"),
        ("memory.context.build", ContextBuild(ns="user.ada", session_ns="session", facts_ns=None), "'session'"),
        (
            "memory.context.build",
            ContextBuild(ns="user.ada", session_ns="user.ada", search_ns=("user.ada", "kb"), facts_ns=None),
            "'kb'",
        ),
        (
            "memory.context.build",
            ContextBuild(ns="user.ada", session_ns="user.ada", search_ns=(), facts_ns="user"),
            "'user'",
        ),
        ("memory.decay", MemoryDecay(), "every namespace"),
        ("memory.stats", MemoryStats(), "every namespace"),
    ],
)
def test_every_field_that_names_a_namespace_counts(subject: str, request_: Any, words: str) -> None:
    """And a memory operation that names none reaches all."""
    with pytest.raises(Forbidden, match=words):
        check_namespaces(ADA, subject, request_)
    check_namespaces(LOCAL, subject, request_)


def test_what_names_only_ones_own_namespaces_or_none_at_all_passes() -> None:
    """Nil leaves a part out; the tool schemas are the same for everybody; other services know no namespaces."""
    own = ContextBuild(ns="user.ada", session_ns="user.ada.s", search_ns=("user.ada",), facts_ns=None)
    check_namespaces(ADA, "memory.context.build", own)
    check_namespaces(ADA, "memory.tool.schemas", ToolSchemas())
    check_namespaces(ADA, "model.list", {})


def test_every_operation_of_the_memory_says_which_namespace_it_touches_or_is_for_all() -> None:
    """A new operation without `ns` is for callers who may touch everything: this list says which those are."""
    without = {
        subject
        for subject, operation in catalog.OPERATIONS.items()
        if operation.scope in ("memory:read", "memory:write") and "ns" not in operation.request.__struct_fields__
    }

    assert without <= {"memory.stats", "memory.tool.schemas"}


def test_operations_that_take_passwords_or_tokens_are_marked_and_show_none() -> None:
    """The marker is the body's base class; its repr shows no field."""
    secret = {subject for subject, operation in catalog.OPERATIONS.items() if operation.is_secret}
    words = ("password", "token")
    named = {
        subject
        for subject, operation in catalog.OPERATIONS.items()
        if any(
            field.endswith(words)
            for body in (operation.request, operation.reply)
            for field in getattr(body, "__struct_fields__", ())
        )
    }

    assert named <= secret
    assert repr(Login(user_id="ada", password="open sesame")) == "Login(...)"


# Whose token ----------------------------------------------------------------------------------------------------


class Accounts:
    """Answers for tokens and counts how often it was asked."""

    def __init__(self, **state: Any) -> None:
        self.state = TokenState(**{"valid": True, "user_id": "ada", "scopes": ["memory:read"], **state})
        self.asked = 0

    async def verify(self, token: str) -> TokenState:
        """The state as it was when asked, some turns of the loop later."""
        self.asked += 1
        state = self.state
        for _ in range(5):
            await asyncio.sleep(0)
        return state


def authorizer(settings: Settings, accounts: Accounts, clock: list[float]) -> Authorizer:
    """One that asks `accounts`, at the time that `clock` holds."""
    made = Authorizer(settings, Client(settings), now=lambda: clock[0])
    made.verify_with(accounts.verify)
    return made


async def test_a_token_is_asked_about_once_and_believed_until_it_expires(settings: Settings) -> None:
    """For half a minute at most, however long it is good; many requests at once ask once."""
    accounts, clock = Accounts(expires_in_s=10.0), [0.0]
    asking = authorizer(settings, accounts, clock)

    await asyncio.gather(*(asking.whose("t") for _ in range(5)))
    clock[0] = 9.9
    await asking.whose("t")
    assert accounts.asked == 1

    clock[0] = 10.1
    accounts.state = TokenState(valid=True, user_id="ada", expires_in_s=3600.0)
    await asking.whose("t")
    clock[0] += KNOWN_S + 0.1
    await asking.whose("t")
    assert accounts.asked == 3


async def test_a_revocation_is_believed_at_once_also_when_the_answer_is_under_way(settings: Settings) -> None:
    """An answer from before the revocation is used for its request alone."""
    accounts = Accounts(expires_in_s=3600.0)
    asking = authorizer(settings, accounts, [0.0])
    under_way = asyncio.ensure_future(asking.whose("t"))
    while not accounts.asked:
        await asyncio.sleep(0)
    asking.forget()
    before, accounts.state = accounts.state, TokenState(valid=False, reason="revoked")

    with pytest.raises(Unauthenticated, match="revoked"):
        await asking.whose("t")

    accounts.state = before
    assert (await under_way).user_id == "ada"
    asked = accounts.asked
    await asking.whose("t")
    assert accounts.asked == asked + 1


async def test_what_is_no_token_is_refused_without_asking(settings: Settings) -> None:
    """Missing, empty and of a wrong type."""
    accounts = Accounts()
    asking = authorizer(settings, accounts, [0.0])

    for headers in ({}, {"token": ""}, {"token": 7}, {"token": None}):
        with pytest.raises(Unauthenticated) as missing:
            await asking.admit("memory.kv.get", headers)
        assert missing.value.details["reason"] == "missing"
    assert accounts.asked == 0
    assert await asking.admit("auth.login", {}) is None
    assert await asking.admit("bus.ping", {"token": "forged"}) is None
    with pytest.raises(Unauthenticated):
        await asking.admit("something.of.our.own", {})


async def test_when_nobody_can_say_whose_a_token_is_the_caller_may_try_again(settings: Settings) -> None:
    """A memory service that is away is no reason to call a token forged."""

    class Away:
        async def request(self, subject: str, body: Any, **options: Any) -> Any:
            raise NoWorker("no worker serves 'auth.verify'")

    with pytest.raises(NoWorker, match="cannot be checked now"):
        await Authorizer(settings, Away()).whose("t")  # type: ignore[arg-type]


def test_the_secret_of_the_home_is_read_anew_when_it_changes(settings: Settings) -> None:
    """Missing it is empty; one that others may read or write is no secret."""
    local = LocalToken(settings)
    assert local.read() == ""
    plant(settings, "first\n")
    assert local.read() == "first"
    plant(settings, "second")
    assert local.read() == "second"
    for mode in (0o644, 0o620, 0o602):
        plant(settings, "planted", mode)
        assert local.read() == ""


def test_requests_carry_the_token_that_is_set_or_the_secret_of_the_home(settings: Settings) -> None:
    """Where nobody has to sign in they carry none."""
    plant(settings, "secret")
    source = token_source(settings)
    assert source is not None
    assert source() == "secret"
    given = token_source(load_settings(overrides={"bus.token": "given"}))
    assert given is not None
    assert given() == "given"
    assert token_source(Settings()) is None


def test_rates_the_wrong_way_round_are_refused() -> None:
    """The message names both."""
    with pytest.raises(SettingsError, match=r"auth\.rate_min_per_s \(20\) is above auth\.rate_max_per_s \(5\)"):
        load_settings(overrides={"auth.rate_max_per_s": 5})


# Waits ----------------------------------------------------------------------------------------------------------


def test_waits_double_from_the_fourth_wrong_password_on_up_to_the_longest() -> None:
    """Nobody waits for ever."""
    waits = [wait_after(failures, FREE_PER_USER) for failures in range(12)]

    assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert wait_after(10**9, FREE_PER_USER) == LONGEST_WAIT_S


# Keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "suffix"), [("EdDSA", ".pem"), ("HS256", ".secret")])
def test_a_key_is_made_when_first_needed_for_its_owner_alone(tmp_path: Path, algorithm: str, suffix: str) -> None:
    """It is the same at the next start."""
    folder = tmp_path / "auth" / "keys"
    keys = KeyRing(folder, algorithm)
    assert not folder.exists()

    key = keys.signing()

    path = folder / f"{key.kid}{suffix}"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert [each.name for each in folder.iterdir()] == [path.name]
    assert KeyRing(folder, algorithm).signing().kid == key.kid == keys.signing().kid


def test_another_algorithm_makes_another_key_and_the_old_one_verifies_on(tmp_path: Path) -> None:
    """Each key keeps its own algorithm, and its name leads to no other file."""
    old = KeyRing(tmp_path, "EdDSA").signing()
    keys = KeyRing(tmp_path, "HS256")
    new = keys.signing()

    assert (new.algorithm, new.kid > old.kid) == ("HS256", True)
    found = keys.find(old.kid)
    assert found is not None
    assert found.algorithm == "EdDSA"
    assert keys.find("../keys/000001") is None
    assert keys.keep({old.kid}) == [old.kid, new.kid]
    assert keys.keep(set()) == [new.kid]
    assert keys.find(old.kid) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_a_broken_key_is_told_by_its_file(tmp_path: Path) -> None:
    """Instead of signing with something else in silence."""
    (tmp_path / "000001-00000000.pem").write_text("no key")

    with pytest.raises(Internal, match=r"000001-00000000\.pem cannot be used"):
        KeyRing(tmp_path, "EdDSA").signing()


def test_a_token_is_good_from_its_beginning_to_its_end_by_the_clock_given(tmp_path: Path) -> None:
    """The wall clock has no say."""
    keys = KeyRing(tmp_path, "EdDSA")
    claims = access_tokens.new_claims("ada", "family", ("memory:read",), ("*",), now=1_000.0, ttl_s=60.0)
    token = access_tokens.sign(keys.signing(), claims)

    assert access_tokens.read(keys, token, 1_000.0) == access_tokens.read(keys, token, 1_059.9) == claims
    for now, reason in ((999.0, "not valid yet"), (1_060.0, "expired")):
        with pytest.raises(BadToken, match=reason):
            access_tokens.read(keys, token, now)
    assert access_tokens.read(keys, token, 2_000.0, is_expired_good=True) == claims
