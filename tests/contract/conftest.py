"""One bus, two ways: in this process and over TCP; every contract test runs on both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from broker.exchange import Exchange
from broker.server import Broker
from broker.testing import InMemoryBus
from bus.client import Client
from bus.settings import Settings
from bus.worker import Call, Worker

# How long anything that must happen may take before the test says what was missing.
SOON_S = 10.0


async def soon(awaitable: Awaitable[Any], what: str) -> Any:
    """The result, or a failure that names what did not happen in time."""
    try:
        async with asyncio.timeout(SOON_S):
            return await awaitable
    except TimeoutError:
        pytest.fail(f"did not happen within {SOON_S:g} s: {what}")


class Bus:
    """A running bus of either kind, with what was opened on it closed at the end."""

    def __init__(self, exchange: Exchange, settings: Settings, memory: InMemoryBus | None) -> None:
        self.exchange = exchange
        self.settings = settings
        self._memory = memory
        self._workers: list[Worker] = []
        self._clients: list[Client] = []

    def client(self, name: str = "client") -> Client:
        """A client that is closed with the bus."""
        client = self._memory.client(name) if self._memory else Client(self.settings, name=name)
        self._clients.append(client)
        return client

    def make_worker(self, service: str, **options: Any) -> Worker:
        """A worker that is not started yet."""
        if self._memory:
            return self._memory.worker(service, **options)
        return Worker(service, self.settings, **options)

    async def serve(
        self, service: str, handlers: dict[str, Callable[[Any, Call], Awaitable[Any]]], **options: Any
    ) -> Worker:
        """A registered worker that serves `handlers`."""
        worker = self.make_worker(service, **options)
        for subject, handler in handlers.items():
            worker.handle(subject, handler)
        self._workers.append(worker)
        await worker.start(SOON_S)
        return worker

    async def vanish(self, worker: Worker) -> None:
        """Break a worker's connection without a word, for good, as kill -9 does."""
        worker._is_serving = False
        worker._channel._is_closing = True
        link = worker._channel.link
        assert link is not None
        link.abort("killed by the test")
        for task in list(worker._tasks.values()):
            task.cancel()
        await self.until(lambda: worker.instance not in self.instances(), f"{worker.instance} is gone")

    def instances(self) -> list[str]:
        """Instances the broker believes in."""
        return [info.instance for info in self.exchange.core.workers(self.exchange.clock())]

    async def until(self, is_true: Callable[[], bool], what: str) -> None:
        """Wait until the broker's own state says so."""

        async def wait() -> None:
            while not is_true():
                await asyncio.sleep(0.005)

        await soon(wait(), what)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for client in self._clients:
            await client.close()
        for worker in self._workers:
            await worker.stop(drain_s=0)


OpenBus = Callable[..., AbstractAsyncContextManager[Bus]]


@pytest.fixture(params=["in process", "tcp"])
def open_bus(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> OpenBus:
    """`async with open_bus(attempts=1) as bus:` runs a bus of either kind; keywords change broker settings."""

    @asynccontextmanager
    async def open_one(**broker_changes: Any) -> AsyncIterator[Bus]:
        changed = msgspec.structs.replace(settings, broker=msgspec.structs.replace(settings.broker, **broker_changes))
        async with AsyncExitStack() as stack:
            if request.param == "tcp":
                broker = Broker(changed)
                ports = await broker.start()
                stack.push_async_callback(broker.stop)
                ported = {f"{name}_port": port for name, port in ports._asdict().items()}
                changed = msgspec.structs.replace(changed, bus=msgspec.structs.replace(changed.bus, **ported))
                bus = Bus(broker.exchange, changed, None)
            else:
                memory = await stack.enter_async_context(InMemoryBus(changed, folder=tmp_path / "memory"))
                bus = Bus(memory.exchange, changed, memory)
            yield await stack.enter_async_context(bus)

    return open_one
