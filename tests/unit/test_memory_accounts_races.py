"""Accounts while something else happens to the same user: a check takes a while, and the world goes on meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.accounts import Login, PasswordChange, Register, UserUpdate
from schemas.envelope import Kind, Message, new_id
from schemas.errors import Unauthenticated
from workers.memory.accounts import families, users
from workers.memory.accounts.accounts import Accounts
from workers.memory.accounts.families import Family, Trade
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

    def call(self, subject: str, id: bytes | None = None) -> Call:
        """A request of nobody in particular."""
        return Call(self._worker, Message(id or new_id(), subject, 0, None, b"\x80", Kind.REQUEST, []))

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
async def bench(settings: Settings) -> AsyncIterator[Bench]:
    """The accounts, open."""
    records = await Records.open(settings.path("memory", "memory.db"), readers=1, on_committed=lambda _: None)
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
