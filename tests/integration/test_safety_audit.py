"""The audit log: what it takes in, that nothing is lost or counted twice, and that a changed line is found."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.testing import InMemoryBus
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.memory import KvDelete
from schemas.bodies.telling import AuditEvent, AuditList, AuditPage, AuditVerdict, AuditVerify
from schemas.errors import Forbidden, NotFound, Unauthenticated
from workers.errors.audit import AuditLog

TIMEOUT_S = 10.0


class House:
    """A bus with an audit log on it."""

    def __init__(self, bus: InMemoryBus, worker: Worker, log: AuditLog) -> None:
        self.bus = bus
        self.worker = worker
        self.log = log
        self.client = worker.client

    async def tell(self, **fields: Any) -> None:
        """Publish one line."""
        event = AuditEvent(**{"kind": "deletion", "actor": "ada", "action": "memory.forget", **fields})
        await self.client.publish(f"audit.{event.kind}", event)

    async def lines(self, count: int, **asked: Any) -> AuditPage:
        """Once there are so many."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                page: AuditPage = await self.client.request("audit.list", AuditList(**asked))
                if len(page.entries) >= count:
                    return page
                await asyncio.sleep(0.02)

    async def usable(self) -> AuditPage:
        """Once the file can be used."""
        await until(lambda: not self.log.degraded, "the file is usable")
        return await self.lines(1)

    async def verdict(self, **asked: Any) -> AuditVerdict:
        """Of a whole check."""
        found: AuditVerdict = await self.client.request("audit.verify", AuditVerify(**asked))
        return found


@asynccontextmanager
async def house_of(settings: Settings, tmp_path: Path) -> AsyncIterator[House]:
    """A bus whose log and audit lie below `tmp_path`."""
    async with InMemoryBus(settings, folder=tmp_path / "broker") as bus, audited(bus) as house:
        yield house


@asynccontextmanager
async def audited(bus: InMemoryBus) -> AsyncIterator[House]:
    """The audit log as a service of its own on a bus that is there."""
    worker = bus.worker("error")
    log = AuditLog(bus.settings, worker)
    log.handle()
    await worker.start(TIMEOUT_S)
    await log.start()
    try:
        yield House(bus, worker, log)
    finally:
        await log.stop()
        await worker.stop(0)


def change(path: Path, sql: str) -> None:
    """Do to the file what somebody with a SQLite shell would."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql)


async def until(is_true: Callable[[], bool], what: str) -> None:
    """Wait for a state that nothing tells of."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not is_true():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never: {what}")


# Keeping --------------------------------------------------------------------------------------------------------


async def test_lines_are_kept_in_order_and_found_by_what_is_asked(settings: Settings, tmp_path: Path) -> None:
    """By kind, patterns, outcome and page; the file is this user's alone."""
    async with house_of(settings, tmp_path) as house:
        for number in range(5):
            await house.tell(actor=f"user{number}", outcome="ok" if number % 2 else "forbidden")
        await house.tell(kind="sign_in", actor="ada", action="auth.login")
        whole = await house.lines(6)
        sign_ins = await house.lines(1, kind="sign_in")
        some = await house.lines(1, actor="user*", outcome="ok")
        page = await house.lines(1, before_id=whole.entries[2].id, limit=2)
        mode = house.log.path.stat().st_mode & 0o777

    assert [entry.id for entry in whole.entries] == [6, 5, 4, 3, 2, 1] and whole.total == 6 and whole.is_whole
    assert [entry.action for entry in sign_ins.entries] == ["auth.login"]
    assert [entry.actor for entry in some.entries] == ["user3", "user1"]
    assert [entry.id for entry in page.entries] == [3, 2]
    assert mode == 0o600


async def test_what_happens_while_the_service_is_away_is_written_down_later_and_once(
    settings: Settings, tmp_path: Path
) -> None:
    """From the broker's log, by number; the chain goes on where it ended."""
    async with InMemoryBus(settings, folder=tmp_path / "broker") as bus:
        async with audited(bus) as house:
            await house.tell(target="first")
            await house.lines(1)
        async with bus.client() as client:
            for number in range(3):
                event = AuditEvent(kind="deletion", actor="ada", action="memory.forget", target=f"away {number}")
                await client.publish("audit.deletion", event)
            await client.request("bus.ping")
        async with audited(bus) as house:
            await house.lines(4)
            await house.tell(target="last")
            page = await house.lines(5)
            verdict = await house.verdict()

    assert [entry.target for entry in page.entries] == ["last", "away 2", "away 1", "away 0", "first"]
    assert verdict.is_whole and verdict.checked == verdict.last_id == 5


async def test_what_cannot_be_read_and_what_is_too_long_is_kept_as_that(settings: Settings, tmp_path: Path) -> None:
    """A hostile publisher neither ends the log nor fills it with a book."""
    async with house_of(settings, tmp_path) as house:
        await house.client.publish("audit.deletion", {"kind": "no such kind"})
        await house.client.publish("audit.whatever", b"\xc1")
        await house.tell(reason="x" * 100_000, actor="\x1b[31mred\n")
        page = await house.lines(3)

    assert [entry.actor for entry in page.entries][1:] == ["(unreadable)", "(unreadable)"]
    assert len(page.entries[0].reason) == 512


async def test_file_that_cannot_be_used_is_said_and_taken_up_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost meanwhile: what waited is written when it can be."""
    monkeypatch.setattr("workers.errors.audit.RETRY_S", 0.05)
    settings.path("errors").mkdir(parents=True)
    blocking = settings.path("errors", "audit.db")
    blocking.mkdir()
    async with house_of(settings, tmp_path) as house:
        await until(lambda: "audit log" in house.log.degraded, "the trouble is told")
        await house.tell(target="meanwhile")
        blocking.rmdir()
        page = await house.usable()
        assert not house.log.degraded

    assert [entry.target for entry in page.entries] == ["meanwhile"]


# The chain ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "id", "why"),
    [
        ("update lines set body = replace(body, 'ada', 'eve') where id = 4", 4, "it was changed"),
        ("delete from lines where id = 4", 5, "the 1 lines before it are gone"),
        ("delete from lines where id <= 4", 5, "the 4 lines before it are gone"),
        ("update lines set hash = 'ab' where id = 4", 4, "it was changed"),
        ("update anchor set hash = 'ab'", 1, "it was changed"),
        ("update lines set kind = 'export' where id = 4", 4, "kind or outcome that it is found by"),
        ("update lines set at = 0 where id = 4", 4, "the time"),
        ("insert into lines select 11, at, kind, outcome, body, hash from lines where id = 10", 11, "it was changed"),
    ],
)
async def test_changed_line_is_found(settings: Settings, tmp_path: Path, sql: str, id: int, why: str) -> None:
    """At once by a check, and by the service itself at its next start, which says so of every page."""
    async with InMemoryBus(settings, folder=tmp_path / "broker") as bus:
        async with audited(bus) as house:
            for number in range(10):
                await house.tell(target=str(number))
            await house.lines(10)
            change(house.log.path, sql)
            verdict = await house.verdict()
        async with audited(bus) as house:
            await until(lambda: "audit chain" in house.log.degraded, "the trouble is told")
            page = await house.lines(1)

    assert not verdict.is_whole and verdict.broken_id == id
    assert why in verdict.reason
    assert not page.is_whole


async def test_noted_line_shows_a_log_that_was_cut_off_or_rewritten(settings: Settings, tmp_path: Path) -> None:
    """Each is a whole chain by itself; only what was written down elsewhere tells."""
    async with house_of(settings, tmp_path) as house:
        for number in range(5):
            await house.tell(target=str(number))
        await house.lines(5)
        noted = await house.verdict()
        same = await house.verdict(id=noted.last_id, hash=noted.last_hash)
        other = await house.verdict(id=noted.last_id, hash="0" * 64)
        change(house.log.path, "delete from lines where id = 5")
        alone = await house.verdict()
        cut = await house.verdict(id=noted.last_id, hash=noted.last_hash)

    assert noted.last_id == 5 and same.is_whole and alone.is_whole
    assert not other.is_whole and "rewritten" in other.reason
    assert not cut.is_whole and "not there any more" in cut.reason


async def test_lines_past_their_time_go_and_the_rest_stays_a_chain(settings: Settings, tmp_path: Path) -> None:
    """The hash of the last one gone is kept; a log of which nothing is left goes on with the next number."""
    async with house_of(settings, tmp_path) as house:
        for number in range(6):
            await house.tell(target=str(number))
        await house.lines(6)
        old = time.time() - house.bus.settings.errors.audit_keep_s - 60
        change(house.log.path, f"update lines set at = {old} where id <= 4")
        await house.log._run(house.log._sweep)
        page = await house.lines(2)
        verdict = await house.verdict()
        change(house.log.path, f"update lines set at = {old} where id <= 6")
        # A clock that was set ahead alone takes nothing: the newest line's own time counts.
        await house.log._run(house.log._sweep)
        assert len((await house.lines(2)).entries) == 2
        await house.tell(target="new")
        await house.lines(3)
        await house.log._run(house.log._sweep)
        last = await house.lines(1)
        after = await house.verdict()

    assert [entry.id for entry in page.entries] == [6, 5] and verdict.is_whole and verdict.checked == 2
    assert [entry.id for entry in last.entries] == [7] and after.is_whole


# What workers tell ----------------------------------------------------------------------------------------------


async def test_operations_that_are_audited_tell_who_did_what_and_how_it_ended(
    settings: Settings, tmp_path: Path
) -> None:
    """Success, a failure, and nothing of what others ask; ids alone, and a machine's key where the broker names one."""

    async def delete(request: KvDelete, call: Call) -> Any:
        if request.key == "missing":
            raise NotFound("no such key")
        return {"deleted": True}

    async def get(request: Any, call: Call) -> Any:
        return {}

    async with house_of(settings, tmp_path) as house:
        worker = house.bus.worker("memory")
        worker.handle("memory.kv.delete", delete)
        worker.handle("memory.kv.get", get)
        await worker.start(TIMEOUT_S)
        try:
            await house.client.request("memory.kv.get", {"key": "a"}, raw=True)
            headers: dict[str, Any] = {"source": "http 192.0.2.7", "via": "pc2"}
            await house.client.request("memory.kv.delete", {"key": "a"}, raw=True, headers=headers)
            with pytest.raises(NotFound):
                await house.client.request("memory.kv.delete", {"key": "missing"}, raw=True)
            page = await house.lines(2)
        finally:
            await worker.stop(0)

    failed, done = page.entries
    assert page.total == 2
    assert (done.kind, done.actor, done.action, done.outcome) == ("deletion", "pc2", "memory.kv.delete", "ok")
    assert done.target == "ns=kv key=a" and done.address == "http 192.0.2.7" and done.service == "memory"
    assert len(done.request_id) == 32
    assert (failed.actor, failed.outcome, failed.target) == ("local", "not_found", "ns=kv key=missing")


async def test_refused_callers_are_told_summed_up(settings: Settings, tmp_path: Path) -> None:
    """Two hundred requests without a token, and as many of somebody who may not: four lines, and all are counted."""
    needed = msgspec.structs.replace(settings, auth=msgspec.structs.replace(settings.auth, required=True))

    async def delete(request: KvDelete, call: Call) -> Any:
        raise AssertionError("nobody may")

    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        worker = Worker("memory", needed, dial=house.bus.dial("memory"))
        worker.handle("memory.kv.delete", delete)
        assert worker.authorizer is not None

        async def verify(token: str) -> Any:
            from schemas.bodies.accounts import TokenState

            return TokenState(valid=True, user_id="eve", scopes=["memory:read"], namespaces=["*"], expires_in_s=60)

        worker.authorizer.verify_with(verify)
        await worker.start(TIMEOUT_S)

        async def refused(headers: dict[str, Any]) -> None:
            with pytest.raises((Forbidden, Unauthenticated)):
                await house.client.request("memory.kv.delete", {"key": "a"}, raw=True, headers=headers)

        for headers in ({}, {"token": "x"}):
            await asyncio.gather(*(refused(headers) for _ in range(200)))
        await house.lines(2)
        await worker.stop(0)
        page = await house.lines(4)

    assert {(entry.actor, entry.outcome) for entry in page.entries} == {
        ("(not signed in)", "unauthenticated"),
        ("eve", "forbidden"),
    }
    assert sum(entry.count for entry in page.entries) == 400 and page.total == 4


async def test_storm_of_lines_is_kept_whole_and_in_order(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than wait in memory and more than a page, half of them while the service is away."""
    monkeypatch.setattr("workers.errors.audit._WAITING_MAX", 200)
    monkeypatch.setattr("workers.errors.audit._PAGE", 300)
    async with InMemoryBus(settings, folder=tmp_path / "broker") as bus:
        async with audited(bus) as house:
            await house.tell(target="0")
            await house.lines(1)
        async with bus.client() as client:
            for number in range(1, 1_000):
                event = AuditEvent(kind="deletion", actor="ada", action="memory.forget", target=str(number))
                await client.publish("audit.deletion", event)
            await client.request("bus.ping")
        async with audited(bus) as house:
            for number in range(1_000, 2_000):
                await house.tell(target=str(number))
            await house.lines(1, actor="ada", before_id=2_001, since_at=0)
            async with asyncio.timeout(TIMEOUT_S):
                while (await house.verdict()).last_id < 2_000:
                    await asyncio.sleep(0.05)
            page = await house.lines(500, limit=1_000)
            verdict = await house.verdict()

    assert verdict.is_whole and verdict.checked == 2_000
    assert [entry.target for entry in page.entries] == [str(n) for n in range(1_999, 1_999 - len(page.entries), -1)]
