"""Serves the store on the bus: one handler per operation, the `memory.changed.{ns}` events, and the regular sweep."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies import memory as bodies
from schemas.errors import BusError, Retryable
from workers.memory.store import MemoryStore

log = logging.getLogger("olympus.memory")

# Seconds between two looks for expired entries; nobody sees them in between, only the `expire` events wait for it.
SWEEP_INTERVAL_S: Final = 1.0

# Committed changes not yet handed to the bus, at most. Past that events are dropped and counted: a bus that is away
# must not fill this process's memory, and the writes themselves are safe.
EVENTS_WAITING_MAX: Final = 100_000

_NOT_IN_TOKEN: Final = re.compile(r"[^A-Za-z0-9_-]")


async def serve(settings: Settings) -> None:
    """Open the store, serve until told to stop, close it. Raises UnusableDatabase."""
    async with service(settings) as worker:
        await worker.run()


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[Worker]:
    """The worker, able to serve but not started, with its store open and its upkeep running. Raises UnusableDatabase."""
    events = ChangeEvents()
    store = await MemoryStore.open(
        settings.path(settings.memory.path),
        readers=settings.memory.readers,
        on_committed=events.add,
        max_body_bytes=settings.bus.max_body_bytes,
    )
    worker = Worker("memory", settings, capacity=settings.memory.capacity)
    register(worker, store)
    try:
        # A group, so that upkeep which fails unexpectedly ends the process, loudly, and its supervisor starts a new one.
        async with asyncio.TaskGroup() as tasks:
            upkeep = [
                tasks.create_task(events.publish_forever(worker), name="memory events"),
                tasks.create_task(sweep_forever(store), name="memory sweep"),
            ]
            yield worker
            for task in upkeep:
                task.cancel()
    finally:
        await store.close()


def register(worker: Worker, store: MemoryStore) -> None:
    """Make `worker` answer every operation of the store."""

    @worker.handles("memory.kv.get")
    async def kv_get(request: bodies.KvGet, call: Call) -> bodies.KvEntry:
        return await store.kv_get(request)

    @worker.handles("memory.kv.set")
    async def kv_set(request: bodies.KvSet, call: Call) -> bodies.KvVersion:
        return await store.kv_set(request, call.id)

    @worker.handles("memory.kv.delete")
    async def kv_delete(request: bodies.KvDelete, call: Call) -> bodies.KvDeleted:
        return await store.kv_delete(request, call.id)

    @worker.handles("memory.kv.list")
    async def kv_list(request: bodies.KvList, call: Call) -> bodies.KvPage:
        return await store.kv_list(request)

    @worker.handles("memory.remember")
    async def remember(request: bodies.Remember, call: Call) -> bodies.Fact:
        return await store.remember(request, call.id)

    @worker.handles("memory.recall")
    async def recall(request: bodies.Recall, call: Call) -> bodies.Fact:
        return await store.recall(request, call.id)

    @worker.handles("memory.find")
    async def find(request: bodies.Find, call: Call) -> bodies.FactPage:
        return await store.find(request)

    @worker.handles("memory.forget")
    async def forget(request: bodies.Forget, call: Call) -> bodies.Forgotten:
        return await store.forget(request, call.id)

    @worker.handles("memory.all")
    async def all_facts(request: bodies.AllFacts, call: Call) -> bodies.FactPage:
        return await store.all(request)

    @worker.handles("memory.prompt")
    async def prompt(request: bodies.Prompt, call: Call) -> bodies.PromptAddition:
        return await store.prompt(request)


class ChangeEvents:
    """Committed changes on their way to the bus, in the order of their commits."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[bodies.Changed] = asyncio.Queue(EVENTS_WAITING_MAX)
        self._dropped = 0

    def add(self, changes: Sequence[bodies.Changed]) -> None:
        """Take in what a batch changed."""
        for change in changes:
            if self._waiting.full():
                self._dropped += 1
            else:
                self._waiting.put_nowait(change)

    async def publish_forever(self, worker: Worker) -> None:
        """Publish changes as they come, until cancelled; without a broker they wait."""
        while True:
            change = await self._waiting.get()
            while not await self._is_published(worker, change):
                pass
            if self._dropped:
                log.warning("events dropped", extra={"action": "memory.events.dropped", "count": self._dropped})
                self._dropped = 0

    async def _is_published(self, worker: Worker, change: bodies.Changed) -> bool:
        try:
            await worker.publish(event_subject(change.ns), change)
        except Retryable as error:  # after `bus.timeout_s` without a broker
            log.warning("events wait for the broker", extra={"action": "memory.events.waiting", "reason": str(error)})
            return False
        return True


def event_subject(ns: str) -> str:
    """`memory.changed.{ns}` with `_` for each character of the namespace that a subject token cannot hold."""
    return f"memory.changed.{_NOT_IN_TOKEN.sub('_', ns)}"


async def sweep_forever(store: MemoryStore) -> None:
    """Remove what has expired, until cancelled. A sweep that fails is logged and tried again at the next turn."""
    while True:
        await asyncio.sleep(SWEEP_INTERVAL_S)
        try:
            await store.sweep()
        except BusError as error:
            log.warning("sweep failed", extra={"action": "memory.sweep.failed", "reason": error.message})
