"""Events under pressure: a slow subscriber, a full disk."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from bus.client import Client
from bus.settings import Settings

Serve = Callable[..., AbstractAsyncContextManager[Settings]]


async def test_slow_subscriber_loses_its_own_events_is_told_and_slows_nobody(serve_broker: Serve) -> None:
    """The others get everything; the slow one hears which numbers it missed, and `bus.stats` counts them."""
    async with (
        serve_broker(subscriber_max_bytes=2_000_000, log_subjects=()) as settings,
        Client(settings, name="fast") as fast,
        Client(settings, name="slow") as slow,
        fast.subscribe("t.>") as quick,
        slow.subscribe("t.>") as lazy,
    ):
        link = lazy._channel.link
        assert link is not None
        link.pause_reading()
        body = bytes(100_000)
        async with asyncio.timeout(40):
            while not (await fast.request("bus.stats")).events_dropped:
                for _ in range(10):
                    await fast.publish("t.x", body)
                for _ in range(10):
                    event = await anext(quick)
                    assert event.missed is None
            link.resume_reading()
            stats = await fast.request("bus.stats")
            numbers: list[int] = []
            missed = None
            while missed is None:
                await fast.publish("t.x", b"")
                while numbers[-1:] != [(await fast.request("bus.stats")).last_seq] and missed is None:
                    try:
                        event = await asyncio.wait_for(anext(lazy), 0.2)
                    except TimeoutError:
                        break
                    numbers.append(event.seq)
                    missed = event.missed

    assert numbers == sorted(numbers)
    assert missed.first_seq <= missed.last_seq < numbers[-1]
    by_peer = {one.peer: one for one in stats.subscribers}
    assert by_peer["slow"].dropped == stats.events_dropped > 0
    assert by_peer["fast"].dropped == 0


async def test_subscriber_with_read_back_fetches_what_it_was_too_slow_for(serve_broker: Serve) -> None:
    """Events of the log come back in order, and the gap is closed before the next live one."""
    async with (
        serve_broker(subscriber_max_bytes=100_000, log_subjects=("t.>",)) as settings,
        Client(settings) as fast,
        Client(settings, name="slow") as slow,
        slow.subscribe("t.>", read_back=True) as lazy,
    ):
        link = lazy._channel.link
        assert link is not None
        link.pause_reading()
        sent = 0
        async with asyncio.timeout(40):
            while not (await fast.request("bus.stats")).events_dropped:
                for _ in range(50):
                    await fast.publish("t.x", [sent, "x" * 60_000])
                    sent += 1
                await fast.flush()
            link.resume_reading()
            got: list[Any] = []
            while len(got) < sent:
                if not lazy._arrived and not lazy._replay:
                    await fast.publish("t.x", [sent, ""])
                    sent += 1
                got.append(await anext(lazy))

    assert [event.body[0] for event in got] == list(range(len(got)))
    assert any(event.is_replayed for event in got)


async def test_full_disk_stops_the_log_and_nothing_else(
    serve_broker: Serve, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests and live events go on, `bus.stats` says why the log does not, and it resumes by itself."""
    folder = settings.path("broker") / "events"
    real = os.write
    is_full = True

    def scarce(file: int, data: Any) -> int:
        if is_full and Path(os.readlink(f"/proc/self/fd/{file}")).parent == folder:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    async with serve_broker(log_subjects=("t.>",), log_sync_s=0.0) as serving, Client(serving) as client:
        monkeypatch.setattr("broker.eventlog.os.write", scarce)
        async with client.subscribe("t.>") as events, asyncio.timeout(20):
            await client.publish("t.x", {"n": 1})
            assert (await anext(events)).body == {"n": 1}
            while (failed := (await client.request("bus.stats")).log_failed) is None:
                await asyncio.sleep(0.01)
            assert "No space left on device" in failed
            assert (await client.request("bus.events.read")).count == 0

            is_full = False
            await client.publish("t.x", {"n": 2})
            assert (await anext(events)).body == {"n": 2}
            while (await client.request("bus.stats")).log_failed is not None:
                await asyncio.sleep(0.01)
            page = await client.request("bus.events.read")

    assert [event.body for event in page.events] == [{"n": 2}]
