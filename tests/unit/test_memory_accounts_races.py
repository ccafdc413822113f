"""Accounts while something else happens to the same user: a check takes a while, and the world goes on meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
from argon2 import PasswordHasher

from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.accounts import Login, PasswordChange, Register, User, UserUpdate
from schemas.envelope import Headers, Kind, Message, new_id
from schemas.errors import Conflict, Overloaded, QuotaExceeded, Unauthenticated
from workers.memory.accounts import families, users
from workers.memory.accounts.accounts import Accounts
from workers.memory.accounts.families import Family, Trade
from workers.memory.accounts.queue import Queue
from workers.memory.accounts.slowdown import FREE_SIGN_UPS
from workers.memory.clock import Now
from workers.memory.hot.sqlite_tier import SqliteTier
from workers.memory.outcome import Outcome
from workers.memory.records import Records

OLD, NEW = "correct horse", "battery staple"
DAY_S = 86_400.0
START_S = 1_800_000_000.0


class Bench:
    """The accounts on one file, with one user whose password is OLD."""

    def __init__(self, settings: Settings, records: Records, accounts: Accounts) -> None:
        self.records = records
        self.accounts = accounts
        self._worker = Worker("memory", settings)

    def call(self, subject: str, id: bytes | None = None, source: str = "") -> Call:
        """A request of nobody in particular."""
        headers: Headers | None = {"source": source} if source else None
        return Call(self._worker, Message(id or new_id(), subject, 0, headers, b"\x80", Kind.REQUEST, []))

    async def sign_up(self, name: str, source: str = "", id: bytes | None = None) -> User:
        """Somebody signs up."""
        call = self.call("auth.register", id, source)
        return await self.accounts.register(Register(user_id=name, password=OLD), call)

    async def sign_in(self, password: str) -> str:
        """The refresh token."""
        return (
            await self.accounts.login(Login(user_id="ada", password=password), self.call("auth.login"))
        ).refresh_token

    async def change(self, old: str, new: str, id: bytes | None = None) -> Any:
        """Ada changes her password."""
        request = PasswordChange(user_id="ada", password=old, new_password=new)
        return await self.accounts.change_password(request, self.call("auth.password", id))

    async def ask(self, sql: str) -> Any:
        """One value."""

        def read(connection: sqlite3.Connection) -> Any:
            return connection.execute(sql).fetchone()[0]

        return await self.records.read(read)

    def change_after_the_next_check(self, **changes: Any) -> None:
        """What an admin does just after a password was found right, and before what follows from that is written."""
        slowdown = self.accounts._slowdown
        succeeded = slowdown.succeeded

        async def change(user: str, source: str) -> None:
            slowdown.succeeded = succeeded  # type: ignore[method-assign]
            await succeeded(user, source)
            password_hash = changes.pop("password_hash", None)
            update = UserUpdate(user_id=user, **changes)
            await self.records.write(lambda connection, now: users.update(connection, update, password_hash, now))

        slowdown.succeeded = change  # type: ignore[method-assign]


@asynccontextmanager
async def bench(settings: Settings, now: Now | None = None) -> AsyncIterator[Bench]:
    """The accounts, open."""
    path = settings.path("memory", "memory.db")
    records = await Records.open(path, readers=1, on_committed=lambda _: None, now=now)
    tier = await SqliteTier.open(settings.path("memory", "hot.db"), max_bytes=2**20, now=records.now)
    accounts = Accounts(records, tier, settings)
    await accounts.open()
    made = Bench(settings, records, accounts)
    try:
        await accounts.register(Register(user_id="ada", password=OLD), made.call("auth.register"))
        yield made
    finally:
        accounts.close()
        await tier.close()
        await records.close()


@pytest.mark.parametrize("changes", [{"password_hash": "$argon2id$other"}, {"disabled": True}], ids=["new", "disabled"])
async def test_a_password_changed_while_it_is_checked_signs_nobody_in(
    settings: Settings, changes: dict[str, Any]
) -> None:
    """Or the old one would be good for a month after all sign-ins were ended."""
    async with bench(settings) as at:
        at.change_after_the_next_check(**changes)
        with pytest.raises(Unauthenticated, match="user name or password is wrong"):
            await at.sign_in(OLD)
        assert await at.ask("SELECT count(*) FROM token_families") == 0


async def test_a_password_changed_meanwhile_is_not_changed_by_the_old_one(settings: Settings) -> None:
    """Who knows the old one only does not win against an admin who has just set another."""
    async with bench(settings) as at:
        at.change_after_the_next_check(password_hash="$argon2id$other")
        with pytest.raises(Unauthenticated):
            await at.change(OLD, NEW)
        assert await at.ask("SELECT password_hash FROM users") == "$argon2id$other"


async def test_newer_parameters_never_bring_an_old_password_back(settings: Settings) -> None:
    """The hash is only renewed in the place of the one that was checked."""
    async with bench(settings) as at:

        def renew(connection: sqlite3.Connection, _: float) -> Outcome:
            account = users.find(connection, "ada")
            assert account is not None
            connection.execute("UPDATE users SET password_hash = 'another'")
            return users.set_password_hash(connection, account, "the old one, renewed")

        await at.records.write(renew)
        assert await at.ask("SELECT password_hash FROM users") == "another"


async def test_a_change_of_password_sent_again_by_its_id_has_its_reply(settings: Settings) -> None:
    """The password it names is the old one by then; that is no mistake of the caller."""
    async with bench(settings) as at:
        request_id = new_id()
        first = await at.change(OLD, NEW, request_id)
        assert await at.change(OLD, NEW, request_id) == first
        assert await at.sign_in(NEW)


@pytest.fixture
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing takes no time."""
    monkeypatch.setattr("argon2.PasswordHasher", partial(PasswordHasher, time_cost=1, memory_cost=8, parallelism=1))


def open_to_strangers(settings: Settings) -> Settings:
    """Everybody has to sign in, and may sign up."""
    return msgspec.structs.replace(
        settings, auth=msgspec.structs.replace(settings.auth, required=True, allow_register=True)
    )


@pytest.mark.usefixtures("cheap_passwords")
async def test_where_nobody_has_to_sign_in_no_sign_up_waits(settings: Settings) -> None:
    """Anybody may do anything, and the many clients of an edge are one source."""
    async with bench(settings, now=lambda: START_S) as at:
        for number in range(FREE_SIGN_UPS + 5):
            assert (await at.sign_up(f"user{number}", "legacy")).user_id == f"user{number}"


@pytest.mark.usefixtures("cheap_passwords")
async def test_sign_ups_of_one_source_are_slowed_down(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that fail, and many at once; those of another source and the same request again are not."""
    async with bench(open_to_strangers(settings), now=lambda: START_S) as at:
        monkeypatch.setattr(at.accounts._slowdown, "_now", lambda: START_S)
        request_id = new_id()
        first = await at.sign_up("first", "attic", request_id)
        attempts = [
            at.sign_up("ada" if number % 2 else f"user{number}", "attic") for number in range(FREE_SIGN_UPS + 5)
        ]

        ended = await asyncio.gather(*attempts, return_exceptions=True)

        kinds = [type(one) for one in ended]
        assert kinds.count(User) + kinds.count(Conflict) == FREE_SIGN_UPS
        assert kinds.count(QuotaExceeded) == 5
        with pytest.raises(QuotaExceeded, match="too many sign-ups from 'attic'") as slowed:
            await at.sign_up("late", "attic")
        assert slowed.value.details["retry_after_s"] == 1
        assert (await at.sign_up("late", "cellar")).user_id == "late"
        assert await at.sign_up("first", "attic", request_id) == first


async def test_a_name_that_is_taken_costs_no_hash(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up first."""
    async with bench(settings) as at:
        monkeypatch.delattr(at.accounts._passwords.__class__, "_hash")
        with pytest.raises(Conflict, match="there is a user 'ada' already"):
            await at.sign_up("ada")


async def test_strangers_who_sign_up_leave_room_for_those_who_sign_in(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, from however many sources."""
    auth = msgspec.structs.replace(settings.auth, sign_ins_at_once=2, sign_ins_waiting=4)
    async with bench(msgspec.structs.replace(settings, auth=auth)) as at:
        begun, may_end = threading.Event(), threading.Event()
        hash_now = at.accounts._passwords._hash

        def hash_slowly(password: str) -> str:
            begun.set()
            assert may_end.wait(30)
            return hash_now(password)

        monkeypatch.setattr(at.accounts._passwords, "_hash", hash_slowly)
        signing_up = [asyncio.create_task(at.sign_up(f"user{number}", f"source{number}")) for number in range(8)]
        try:
            async with asyncio.timeout(30):
                # Those for whom there is no place left have been told, so the others have theirs.
                while not begun.is_set() or sum(task.done() for task in signing_up) < 2:
                    await asyncio.sleep(0.01)
                assert await at.sign_in(OLD)
        finally:
            may_end.set()
        ended = await asyncio.gather(*signing_up, return_exceptions=True)

        kinds = [type(one) for one in ended]
        assert (kinds.count(User), kinds.count(Overloaded)) == (5, 3)


async def test_a_queue_has_its_places_back_whatever_became_of_those_in_it() -> None:
    """Who fails or is cancelled holds none, waiting or in turn."""
    queue = Queue("sign-up", at_once=1, waiting=1)
    with pytest.raises(ValueError, match="mine"):
        async with queue.turn(0):
            raise ValueError("mine")
    async with queue.turn(0):
        waiting = asyncio.create_task(_take(queue))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1 sign-ups wait, the limit is 1"):
            await _take(queue)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await _take(queue)


async def _take(queue: Queue) -> None:
    async with queue.turn(0):
        pass


async def test_a_sign_in_that_lasts_does_not_gather_its_traded_tokens(settings: Settings) -> None:
    """They are kept for as long as they would have been good, so that until then a second use is seen."""
    async with bench(settings) as at:

        def trade(connection: sqlite3.Connection, number: int, now: float) -> str:
            trading = Trade(b"%d" % number, b"%d" % (number + 1), new_id(), now + 30 * DAY_S, "k")
            refreshed: families.Refreshed = families.refresh(connection, trading, "bus", now).reply
            return refreshed.problem

        def live(connection: sqlite3.Connection, _: float) -> Outcome:
            families.begin(connection, Family("f", "ada", START_S + 30 * DAY_S, is_revoked=False), "k", b"0", START_S)
            for day in range(100):
                assert trade(connection, day, START_S + day * DAY_S) == ""
            now = START_S + 100 * DAY_S
            families.prune(connection, now, traded_s=30 * DAY_S)
            (kept,) = connection.execute("SELECT count(*) FROM tokens").fetchone()
            assert trade(connection, 99 - 25, now) == "reused"
            return Outcome(kept, [])

        assert await at.records.write(live) == 31
