"""What a service says while the broker, or another service it waits for, is not there."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator

import msgspec
import pytest

from broker.server import Broker
from bus import reminder
from bus import worker as runtime
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.control import Ready
from schemas.errors import BadRequest
from tests.conftest import Serve, settings_of

TIMEOUT_S = 10.0


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything worth saying is said at once."""
    monkeypatch.setattr(reminder, "_FIRST_S", 0.0)
    monkeypatch.setattr(runtime, "_LOOK_EVERY_S", 0.01)


class Heard(logging.Handler):
    """Log records of the worker, each waited for by its `action`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: asyncio.Queue[logging.LogRecord] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.put_nowait(record)

    async def next(self, action: str) -> dict[str, object]:
        """Fields of the next record with this action."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                fields = (await self.records.get()).__dict__
                if fields.get("action") == action:
                    return fields


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[Heard]:
    """What workers say from here on."""
    log = logging.getLogger("olympus.worker")
    caplog.set_level(logging.INFO, log.name)
    handler = Heard()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


async def answer(request: object, call: Call) -> object:
    """Anything."""
    return request


async def test_service_names_what_it_waits_for_until_it_is_there(serve_broker: Serve, heard: Heard) -> None:
    """With the machine it is expected on; it serves meanwhile."""
    async with serve_broker() as settings:
        machine = msgspec.structs.replace(settings.machine, services=("broker", "learning=broker+memory@pc2"))
        learning = Worker("learning", msgspec.structs.replace(settings, machine=machine))
        learning.handle("learning.status", answer)
        memory = Worker("memory", settings, instance="other")
        memory.handle("memory.recall", answer)
        await learning.start(TIMEOUT_S)
        try:
            assert (await heard.next("worker.waiting"))["needs"] == "memory on pc2"
            await memory.start(TIMEOUT_S)
            assert (await heard.next("worker.needs_met"))["needs"] == "broker, memory on pc2"
        finally:
            await learning.stop(0)
            await memory.stop(0)


async def test_service_says_that_it_waits_for_the_broker_and_that_it_came(settings: Settings, heard: Heard) -> None:
    """Started first, it is there when the broker comes, and again when the broker has gone and come back."""
    broker = Broker(settings)
    await broker.start()
    known = settings_of(broker)
    await broker.stop()
    service = Worker("test", known)
    service.handle("test.echo", answer)
    starting = asyncio.ensure_future(service.start(TIMEOUT_S))
    try:
        waiting = await heard.next("worker.waiting")
        assert waiting["reason"] == "Connection refused"
        assert waiting["broker"] == f"127.0.0.1:{known.bus.request_port}"
        for _ in range(2):
            broker = Broker(known)
            await broker.start()
            await heard.next("worker.connected")
            await starting
            await broker.stop()
            await heard.next("worker.waiting")
    finally:
        await service.stop(0)
        starting.cancel()


async def test_worker_that_serves_nothing_says_so_at_once(settings: Settings) -> None:
    """The broker would send it away again and again."""
    with pytest.raises(BadRequest, match="'test' serves nothing: register a handler"):
        await Worker("test", settings).start(TIMEOUT_S)


async def test_worker_that_is_sent_away_says_why_once_and_waits_longer_each_time(
    serve_broker: Serve, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may register in a way that this broker does not take; both logs stay readable."""
    waits: list[float] = []
    has_come_often = asyncio.Event()
    uniform = random.uniform

    def waiting(low: float, high: float) -> float:
        if low != high / 2:
            # The broker of this test draws the time between its figures here.
            return uniform(low, high)
        waits.append(high)
        if len(waits) >= 3:
            has_come_often.set()
        return 0.0

    monkeypatch.setattr(random, "uniform", waiting)
    async with serve_broker() as settings:
        worker = Worker("test", settings)
        worker.handle("test.echo", answer)
        monkeypatch.setattr(runtime, "Ready", lambda **fields: Ready(**{**fields, "subjects": []}))
        starting = asyncio.ensure_future(worker.start(TIMEOUT_S))
        try:
            refused = await heard.next("worker.refused")
            async with asyncio.timeout(TIMEOUT_S):
                await has_come_often.wait()
        finally:
            starting.cancel()
            await worker.stop(0)

    assert refused["reason"] == "a worker must serve at least one subject"
    assert waits[:3] == [0.02, 0.04, 0.08]
    again = [heard.records.get_nowait() for _ in range(heard.records.qsize())]
    assert not [record for record in again if record.__dict__.get("action") == "worker.refused"]
