"""The error service on a real bus: what it takes in, keeps through every end, and says of what it cannot do."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.server import Broker
from bus.client import Client
from bus.settings import Settings, child_environment
from schemas.bodies.control import DeadLetter, ErrorReport, WorkerList
from schemas.bodies.errors import (
    ErrorAcknowledge,
    ErrorForget,
    ErrorGroup,
    ErrorGroupEvent,
    ErrorList,
    ErrorMute,
    ErrorReported,
    ErrorShow,
    ErrorStats,
    ErrorStatsReply,
    ErrorWhole,
    ReportError,
)
from schemas.errors import BadRequest, BusError, NotFound
from tests.conftest import Serve, settings_of
from workers.errors.service import ErrorService

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 20.0
STACK = 'Traceback (most recent call last):\n  File "/opt/o/workers/memory/store.py", line 12, in get\nKeyError: 1\n'


def with_errors(settings: Settings, **errors: Any) -> Settings:
    return msgspec.structs.replace(settings, errors=msgspec.structs.replace(settings.errors, **errors))


@asynccontextmanager
async def serving(settings: Settings, **errors: Any) -> AsyncIterator[Client]:
    """The service in this process, with `settings.errors` changed, and a client."""
    service = ErrorService(with_errors(settings, **errors))
    await service.start()
    try:
        async with Client(settings, name="test") as client:
            yield client
    finally:
        await service.stop()


@contextmanager
def process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m workers.errors` on the bus of `settings`."""
    ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    overrides = {"home": settings.home, **{f"bus.{name}": str(getattr(settings.bus, name)) for name in ports}}
    started = subprocess.Popen(
        [sys.executable, "-P", "-m", "workers.errors"], env=child_environment(None, overrides, PYTHONPATH=str(ROOT))
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait(WAIT_S)


async def until(found: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What `found` gives once that is something; fails with `what` was missing."""
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    value = await found()
                except BusError:
                    value = None
                if value:
                    return value
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"within {WAIT_S} s: {what}")


async def stats(client: Client) -> ErrorStatsReply:
    reply: ErrorStatsReply = await client.request("error.stats", ErrorStats(over_s=86_400), timeout_s=5)
    return reply


async def counted(client: Client, count: int) -> ErrorStatsReply:
    """Wait until so many errors were counted."""

    async def are() -> ErrorStatsReply | None:
        now = await stats(client)
        return now if now.count + now.missed >= count else None

    reply: ErrorStatsReply = await until(are, f"{count} errors counted")
    return reply


async def groups(client: Client, **query: Any) -> list[ErrorGroup]:
    page = await client.request("error.list", ErrorList(**query), timeout_s=5)
    found: list[ErrorGroup] = page.groups
    return found


def report(message: str = "no row 1", **more: Any) -> ErrorReport:
    plain = {"service": "memory", "severity": "error", "kind": "KeyError", "message": message, "at": time.time()}
    return ErrorReport(**{**plain, **more})


async def publish(client: Client, count: int, first: int = 0) -> None:
    """Like errors as fast as they go out; back when the broker has read them."""
    for number in range(first, first + count):
        await client.publish("error.memory.error", report(f"no row {number}"))
        if number % 500 == 0:
            await asyncio.sleep(0)
    await client.flush()


# Intake


async def test_errors_are_put_together_kept_and_shown(serve_broker: Serve) -> None:
    """Like ones in one group, with the newest reports whole; another kind is another group."""
    async with serve_broker() as settings, serving(settings) as client:
        for number in range(12):
            await client.publish("error.memory.error", report(f"no row {number}", traceback=STACK, instance="pc-1"))
        await client.publish("error.model.critical", report("no memory", service="model", severity="critical", count=5))
        await client.flush()
        told = await counted(client, 17)

        found = {group.service: group for group in await groups(client)}
        assert (found["memory"].count, found["model"].count) == (12, 5)
        assert found["memory"].where == "workers/memory/store.py:12 get"
        assert found["memory"].instances == ["pc-1"]
        assert [each.service for each in told.services] == ["memory", "model"]
        assert (told.by_severity["error"], told.by_severity["critical"], told.open_groups) == (12, 5, 2)
        # Both while they wait for the file and from it.
        for _ in range(2):
            whole: ErrorWhole = await client.request(
                "error.show", ErrorShow(fingerprint=found["memory"].fingerprint[:8])
            )
            assert [each.message for each in whole.reports] == [f"no row {number}" for number in range(11, 1, -1)]
            assert sum(whole.hours) == 12
            await client.request("error.mute", ErrorMute(fingerprint=found["model"].fingerprint, for_s=0))


async def test_an_agent_reports_by_a_request_and_followers_see_it(serve_broker: Serve) -> None:
    """The answer is the group's fingerprint, and whether it is the first of it."""
    async with serve_broker() as settings, serving(settings) as client:
        async with client.subscribe("error.*.*") as events:
            first: ErrorReported = await client.request(
                "error.report", ReportError(service="my stove", message="hot 1")
            )
            event = await asyncio.wait_for(anext(events), WAIT_S)
        await counted(client, 1)
        second: ErrorReported = await client.request("error.report", ReportError(service="my stove", message="hot 2"))

        assert event.subject == "error.my-stove.error"
        assert (first.is_new, second.is_new) == (True, False)
        assert first.fingerprint == second.fingerprint == (await groups(client))[0].fingerprint


async def test_an_agent_can_report_after_the_broker_was_started_anew(settings: Settings) -> None:
    """What the service itself published over the broken connection is not the agent's matter."""
    first = Broker(settings)
    await first.start()
    known = settings_of(first)
    try:
        async with serving(known) as client:
            async with client.subscribe("error.opened") as opened:
                await client.request("error.report", ReportError(service="stove", message="hot"))
                await asyncio.wait_for(anext(opened), WAIT_S)
            await first.stop()
            first = Broker(known)
            await first.start()

            await until(lambda: client.request("error.list", {}), "the service is back")
            again: ErrorReported = await client.request("error.report", ReportError(service="stove", message="hot"))

            assert not again.is_new
    finally:
        await first.stop()


async def test_a_group_that_opens_and_one_that_comes_again_are_events(serve_broker: Serve) -> None:
    """What is counted further is none."""
    async with (
        serve_broker() as settings,
        serving(settings) as client,
        client.subscribe("error.opened", "error.reopened") as events,
    ):
        await publish(client, 3)
        opened = await asyncio.wait_for(anext(events), WAIT_S)
        named = msgspec.convert(opened.body, ErrorGroupEvent).group.fingerprint
        await counted(client, 3)
        await client.request("error.acknowledge", ErrorAcknowledge(fingerprint=named[:4], note="seen"))
        await publish(client, 1)
        reopened = await asyncio.wait_for(anext(events), WAIT_S)

        assert (opened.subject, reopened.subject) == ("error.opened", "error.reopened")
        group = msgspec.convert(reopened.body, ErrorGroupEvent).group
        assert (group.fingerprint, group.state, group.count, group.note) == (named, "open", 4, "seen")


async def test_whatever_is_published_below_error_is_counted(serve_broker: Serve) -> None:
    """Bytes, JSON, nothing, dead letters that are none; the service goes on."""
    letter = DeadLetter(id="ab" * 16, subject="memory.kv.get", reason="worker_lost", message="gone", attempts=3, at=1.0)
    bodies = (b"\xff\xfe\x00", b"{broken", None, 7, [1, 2], "text", {"error": "boom"}, {"count": -1, "message": "x"})
    async with serve_broker() as settings, serving(settings) as client:
        for body in bodies:
            await client.publish("error.stove.warning", body)
        await client.publish("error.x")
        await client.publish("error.a.b.c.d.critical", "deep")
        await client.publish("error.deadletter", letter)
        await client.publish("error.deadletter", {"no": "letter"})
        await client.publish("error.opened", b"\x00")
        await client.flush()
        told = await counted(client, len(bodies) + 4)

        assert told.count == len(bodies) + 4
        dead = [group for group in await groups(client, state=None) if group.kind == "dead letter"]
        assert {group.service for group in dead} == {"memory", "broker"}
        assert {group.severity for group in await groups(client, service="a")} == {"critical"}


async def test_wrong_requests_are_told_what_is_wrong(serve_broker: Serve) -> None:
    """Fields by name."""
    async with serve_broker() as settings, serving(settings) as client:
        with pytest.raises(NotFound, match="no group of errors"):
            await client.request("error.show", ErrorShow(fingerprint="abcdef"))
        with pytest.raises(BadRequest, match="fingerprint"):
            await client.request("error.show", {"fingerprint": "xyz!"})
        with pytest.raises(BadRequest, match="either a fingerprint or a service"):
            await client.request("error.acknowledge", ErrorAcknowledge())
        with pytest.raises(BadRequest, match="either a fingerprint or unseen_s"):
            await client.request("error.forget", ErrorForget())
        with pytest.raises(BadRequest, match="for_s"):
            await client.request("error.mute", {"fingerprint": "abcd", "for_s": -1})
        with pytest.raises(BadRequest, match="severity"):
            await client.request("error.report", {"service": "s", "message": "m", "severity": "bad"})


# Ends and faults


async def test_a_service_that_is_killed_counts_every_error_once(serve_broker: Serve) -> None:
    """SIGKILL in the middle; errors come while it is away; what people said stays."""
    async with serve_broker() as settings, Client(settings, name="test") as client:
        with process(settings) as first:
            await until(lambda: stats(client), "the service is there")
            await publish(client, 200)
            await counted(client, 200)
            named = (await groups(client))[0].fingerprint
            await client.request("error.mute", ErrorMute(fingerprint=named, for_s=3600, note="known"))
            publishing = asyncio.create_task(publish(client, 5_000, 200))
            await counted(client, 201)
            os.kill(first.pid, signal.SIGKILL)
            await asyncio.to_thread(first.wait)
            await publishing
        await publish(client, 300, 5_200)

        with process(settings) as second:
            told = await counted(client, 5_500)
            muted = (await groups(client, state="muted"))[0]
            second.terminate()
            assert await asyncio.to_thread(second.wait, WAIT_S) == 0

    assert (told.count, told.missed) == (5_500, 0)
    assert (muted.fingerprint, muted.note, muted.count) == (named, "known", 5_500)
    file = settings.path("errors/errors.db")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


async def test_a_storm_that_is_too_fast_is_counted_from_the_log(serve_broker: Serve) -> None:
    """The broker drops most of 20,000 errors for a reader that does not keep up; not one is missing in the end."""
    async with serve_broker(subscriber_max_bytes=4_096) as settings, serving(settings) as client:
        await publish(client, 20_000)
        told = await counted(client, 20_000)
        dropped = sum(each.dropped for each in (await client.request("bus.stats")).subscribers)

        assert (told.count, told.missed, told.groups) == (20_000, 0, 1)
        assert dropped > 0


async def test_what_no_log_holds_is_said_to_be_missed(serve_broker: Serve) -> None:
    """Counted and missed together are what was published."""
    broker = {"subscriber_max_bytes": 4_096, "log_subjects": ("memory.>",)}
    async with serve_broker(**broker) as settings, serving(settings) as client:
        await publish(client, 5_000)

        async def all_told() -> ErrorStatsReply | None:
            # The end of the storm is known with the next error.
            await client.publish("error.memory.error", report())
            now = await stats(client)
            return now if now.missed and now.count + now.missed >= 5_000 else None

        told = await until(all_told, "what was missed is told")

        assert told.missed > 0
        assert told.count < 5_000


async def degraded(client: Client) -> dict[str, str]:
    """What the service says with its heartbeats."""
    reply: WorkerList = await client.request("bus.workers", {"service": "error"})
    return reply.workers[0].degraded if reply.workers else {}


@pytest.mark.parametrize("fault", ["corrupt", "folder", "newer"])
async def test_an_unusable_file_is_said_and_taken_up_once_it_can_be_used(serve_broker: Serve, fault: str) -> None:
    """It counts in memory meanwhile; nothing is lost and nothing counted twice."""
    async with serve_broker() as settings, Client(settings, name="test") as client:
        async with serving(settings):
            await publish(client, 10)
            await counted(client, 10)
        file = settings.path("errors/errors.db")
        good = file.with_name("good.db")
        file.rename(good)
        if fault == "corrupt":
            file.write_bytes(b"SQLite format 3\0" + b"\xa5" * 8_192)
        elif fault == "folder":
            file.mkdir()
        else:
            with sqlite3.connect(file) as connection:
                connection.execute("pragma user_version = 99")
            connection.close()

        async with serving(settings):
            await publish(client, 5, 10)
            await counted(client, 15)
            named = (await groups(client))[0].fingerprint
            await client.request("error.acknowledge", ErrorAcknowledge(fingerprint=named, note="in memory"))
            reason = (await until(lambda: degraded(client), "it says so"))["errors database"]
            assert str(file) in reason
            assert any(reason in each for each in (await stats(client)).degraded)

            if file.is_dir():
                file.rmdir()
            good.replace(file)
            await until(lambda: repaired(client), "it is taken up")
            told = await counted(client, 15)

        assert told.count == 15
        assert rows(file) == 1


async def repaired(client: Client) -> bool:
    return not (await stats(client)).degraded


def rows(file: Path) -> int:
    """Groups in the file."""
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute("select count(*) from groups").fetchone()[0])
    finally:
        connection.close()


async def test_a_full_disk_is_said_and_what_waited_is_written_later(serve_broker: Serve) -> None:
    """SQLite is told that it may not grow, as on a full disk."""
    async with serve_broker() as settings, Client(settings, name="test") as client:
        service = ErrorService(settings)
        await service.start()
        try:
            await publish(client, 1)
            await counted(client, 1)
            open_file = service._ledger._store._open

            def full() -> Any:
                kept = open_file()
                pages = service._ledger._store._opened().execute("pragma page_count").fetchone()[0]
                service._ledger._store._opened().execute(f"pragma max_page_count = {pages}")
                return kept

            service._ledger._store._open = full  # type: ignore[method-assign]
            service._ledger._store._opened().execute("pragma max_page_count = 1")
            for number in range(40):
                await client.publish("error.memory.error", report("x" * 8_000, kind=f"kind {number}"))
            await client.flush()
            assert (await counted(client, 41)).count == 41
            assert "is full" in (await until(lambda: degraded(client), "it says so"))["errors database"]

            service._ledger._store._open = open_file  # type: ignore[method-assign]
            await until(lambda: repaired(client), "it is written")
        finally:
            await service.stop()

        assert rows(settings.path("errors/errors.db")) == 41


async def test_what_was_there_before_the_first_start_is_counted_and_opens_nothing(serve_broker: Serve) -> None:
    """Nobody is told of a week of errors when the service is new; after that it goes on where it ended."""
    async with serve_broker() as settings, Client(settings, name="test") as client:
        await publish(client, 7)
        async with client.subscribe("error.opened") as events, serving(settings):
            assert (await counted(client, 7)).count == 7
            await client.publish("error.model.error", report("new", service="model"))
            event = await asyncio.wait_for(anext(events), WAIT_S)

        assert msgspec.convert(event.body, ErrorGroupEvent).group.service == "model"
