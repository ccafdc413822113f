"""The broker goes and comes back, in good order or not: every request ends, and what was acknowledged stays."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest

from broker.server import Broker
from bus.client import Client
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.memory import KvEntry, KvGet
from schemas.errors import NoWorker, Retryable, WorkerLost
from tests.conftest import settings_of


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Peers that come back quickly."""
    return msgspec.structs.replace(
        settings, bus=msgspec.structs.replace(settings.bus, reconnect_max_s=0.2, heartbeat_s=0.3)
    )


async def _entry(request: KvGet, call: Call) -> KvEntry:
    await asyncio.sleep(0.002)
    return KvEntry(key=request.key, value=1, ns="kv", version=1, created_at=0.0, updated_at=0.0)


class Jobs:
    """Counts how often each job ran."""

    def __init__(self) -> None:
        self.ran: Counter[int] = Counter()

    async def __call__(self, request: int, call: Call) -> int:
        self.ran[request] += 1
        await asyncio.sleep(0.002)
        return request


async def crash(broker: Broker) -> None:
    """End a broker as kill -9 does, as far as its peers can tell: every connection breaks, nothing is said."""
    for server in broker._servers:
        server.close()
    for port in broker._ports:
        for connection in list(port.connections):
            connection.abort("crashed by the test")
    for task in broker._tasks:
        task.cancel()
    await asyncio.gather(*broker._tasks, return_exceptions=True)
    await broker._control.worker.stop(drain_s=0)
    broker.event_log.close()
    broker.dead_letters.close()


@pytest.mark.parametrize("how", ["stopped", "crashed"])
async def test_no_request_hangs_or_is_lost_over_a_restart_under_load(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Idempotent requests are all answered; of the others each is answered or `worker_lost`, and none ran twice."""
    monkeypatch.setattr("broker.core.RESUME_S", 1.0)
    broker = Broker(settings)
    await broker.start()
    fixed = settings_of(broker)
    jobs = Jobs()
    worker = Worker("test", fixed, instance="one", capacity=16)
    worker.handle("memory.kv.get", _entry)
    worker.handle("test.job", jobs)
    await worker.start(10)
    async with Client(fixed) as client:

        async def ask(index: int) -> Any:
            if index % 2:
                return await client.request("test.job", index, timeout_s=25)
            return (await client.request("memory.kv.get", KvGet(key=str(index)), timeout_s=25)).key

        load: list[asyncio.Task[Any]] = []
        for start in (0, 500, 1_000):
            load += [asyncio.create_task(ask(index)) for index in range(start, start + 500)]
            async with asyncio.timeout(10):
                await asyncio.wait(load[start:], return_when=asyncio.FIRST_COMPLETED)
                await (broker.stop() if how == "stopped" else crash(broker))
                broker = Broker(fixed)
                await broker.start()
                while len(broker.exchange.core.registry.workers) < 2:
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(40):
            ends = await asyncio.gather(*load, return_exceptions=True)

    await worker.stop()
    await broker.stop()
    for index, end in enumerate(ends):
        if index % 2:
            assert end == index or isinstance(end, WorkerLost), (index, end)
        else:
            assert end == str(index), (index, end)
    assert max(jobs.ran.values()) == 1


async def test_request_in_flight_over_a_crash_is_answered_by_the_worker_that_still_works_on_it(
    settings: Settings,
) -> None:
    """The worker comes back with the ids it works on, the client sends again by id, and the job runs once."""
    gate = asyncio.Event()
    calls: list[int] = []

    async def slow(request: int, call: Call) -> int:
        calls.append(request)
        await gate.wait()
        return request

    broker = Broker(settings)
    await broker.start()
    fixed = settings_of(broker)
    worker = Worker("test", fixed, instance="one", capacity=1)
    worker.handle("test.slow", slow)
    await worker.start(10)
    async with Client(fixed) as client:
        asking = asyncio.create_task(client.request("test.slow", 7))
        async with asyncio.timeout(10):
            while not calls:
                await asyncio.sleep(0.01)
        await crash(broker)
        broker = Broker(fixed)
        await broker.start()
        async with asyncio.timeout(10):
            while not broker.exchange.core.in_flight:
                await asyncio.sleep(0.01)
        gate.set()

        assert await asyncio.wait_for(asking, 10) == 7
    assert calls == [7]
    await worker.stop()
    await broker.stop()


async def test_worker_that_comes_back_busy_gets_no_more_than_it_can_take(settings: Settings) -> None:
    """What it still works on counts against its capacity, whoever asked for it."""
    gate = asyncio.Event()
    most = now = 0

    async def slow(request: int, call: Call) -> int:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await gate.wait()
        now -= 1
        return request

    broker = Broker(settings)
    await broker.start()
    fixed = settings_of(broker)
    worker = Worker("test", fixed, instance="one", capacity=1)
    worker.handle("test.slow", slow)
    await worker.start(10)
    async with Client(fixed) as gone:
        asking = asyncio.create_task(gone.request("test.slow", 1))
        async with asyncio.timeout(10):
            while not now:
                await asyncio.sleep(0.01)
        await crash(broker)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    broker = Broker(fixed)
    await broker.start()
    async with Client(fixed) as client:
        async with asyncio.timeout(10):
            while len(broker.exchange.core.registry.workers) < 2:
                await asyncio.sleep(0.01)
        second = asyncio.create_task(client.request("test.slow", 2))
        async with asyncio.timeout(10):
            while not broker.exchange.core.queued:
                await asyncio.sleep(0.01)
        gate.set()
        assert await asyncio.wait_for(second, 10) == 2
    assert most == 1
    await worker.stop()
    await broker.stop()


async def test_stream_over_a_crash_ends_in_worker_lost(settings: Settings) -> None:
    """A stream with a hole is never passed off as whole."""
    gate = asyncio.Event()

    async def count(request: Any, call: Call) -> str:
        await call.partial(1)
        await gate.wait()
        await call.partial(2)
        return "done"

    broker = Broker(settings)
    await broker.start()
    fixed = settings_of(broker)
    worker = Worker("test", fixed, instance="one")
    worker.handle("test.count", count)
    await worker.start(10)
    got = []
    async with Client(fixed) as client:
        with pytest.raises(Retryable):
            async with client.stream("test.count", timeout_s=20) as stream:
                async for part in stream:
                    got.append(part)
                    await crash(broker)
                    broker = Broker(fixed)
                    await broker.start()
                    gate.set()
    assert got == [1]
    await worker.stop()
    await broker.stop()


async def _is_back(client: Client) -> bool:
    """False while the publisher still holds the broken connection."""
    try:
        await client.flush()
    except ConnectionError:
        return False
    return True


@pytest.mark.parametrize("how", ["stopped", "crashed"])
async def test_sequence_numbers_and_the_log_go_on_after_a_restart(settings: Settings, how: str) -> None:
    """No number is given twice, logged events stay, and a subscriber that reads back misses none of them."""
    broker = Broker(settings)
    await broker.start()
    fixed = settings_of(broker)
    heard = []
    async with Client(fixed, name="publisher") as client, Client(fixed) as other:
        async with other.subscribe("memory.>", read_back=True) as events:
            for round in range(3):
                await client.publish("memory.changed.kv", {"round": round})
                async with asyncio.timeout(10):
                    heard.append(await anext(events))
                if round < 2:
                    await (broker.stop() if how == "stopped" else crash(broker))
                    broker = Broker(fixed)
                    await broker.start()
                    async with asyncio.timeout(10):
                        while not any(s.patterns for s in broker.exchange.hub.subscribers.values()):
                            await asyncio.sleep(0.01)
                    async with asyncio.timeout(10):
                        while not await _is_back(client):
                            await asyncio.sleep(0.01)
        page = await client.request("bus.events.read", {"subject": "memory.>"})
    await broker.stop()

    assert [event.body["round"] for event in heard] == [0, 1, 2]
    numbers = [event.seq for event in heard]
    assert numbers == sorted(set(numbers))
    assert [event.seq for event in page.events] == numbers


async def test_requests_made_at_the_moment_of_the_loss_do_not_hang(settings: Settings) -> None:
    """A request begun in the very turn in which the connection breaks waits for the next connection, and gets it."""
    broker = Broker(settings)
    await broker.start()
    fixed = settings_of(broker)
    async with Client(fixed) as client:
        for _ in range(20):
            await client.request("bus.ping", {})
            link = client._requests.link
            assert link is not None
            asking: list[asyncio.Task[Any]] = []
            lost = client._requests.on_close

            def on_close(connection: Any, reason: str, lost: Any = lost, asking: Any = asking) -> None:
                lost(connection, reason)
                asking.append(asyncio.ensure_future(client.request("bus.ping", {}, timeout_s=10)))

            client._requests.on_close = on_close  # type: ignore[method-assign]
            link.abort("cut by the test")
            async with asyncio.timeout(10):
                while not asking:
                    await asyncio.sleep(0)
                client._requests.on_close = lost  # type: ignore[method-assign]
                await asking[0]
    await broker.stop()


async def test_a_fresh_request_waits_for_the_workers_of_a_restarted_broker(settings: Settings) -> None:
    """Who asks for the first time just after a restart is not refused because the worker is still on its way back."""
    broker = Broker(settings)
    await broker.start()
    fixed = settings_of(broker)
    await crash(broker)
    broker = Broker(fixed)
    await broker.start()
    async with Client(fixed) as client:
        asking = asyncio.create_task(client.request("memory.kv.get", KvGet(key="a"), timeout_s=20))
        while not broker.exchange.core._held:
            await asyncio.sleep(0.01)
        worker = Worker("test", fixed, instance="late")
        worker.handle("memory.kv.get", _entry)
        await worker.start(10)

        assert (await asking).key == "a"

    await worker.stop()
    await broker.stop()


async def test_a_restarted_broker_refuses_what_nobody_came_back_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait after a restart ends, and names of no operation do not wait at all."""
    monkeypatch.setattr("broker.exchange.GRACE_S", 0.2)
    broker = Broker(settings)
    await broker.start()
    fixed = settings_of(broker)
    await crash(broker)
    broker = Broker(fixed)
    await broker.start()
    async with Client(fixed) as client:
        with pytest.raises(NoWorker):
            await client.request("memory.kv.get", KvGet(key="a"), timeout_s=20)
        with pytest.raises(NoWorker):
            await client.request("test.job", 1, timeout_s=20)
        assert not broker.exchange.core._held

    await broker.stop()
