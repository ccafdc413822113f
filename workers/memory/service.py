"""Serves the store on the bus: one handler per operation, the `memory.changed.{ns}` events, and the regular sweep."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies import memory as bodies
from schemas.errors import BusError
from workers.memory.event_outbox import EventOutbox
from workers.memory.outcome import Event
from workers.memory.records import Records
from workers.memory.store import MemoryStore

log = logging.getLogger("olympus.memory")

# Seconds between two looks for expired entries; nobody sees them in between, only the `expire` events wait for it.
SWEEP_INTERVAL_S: Final = 1.0


async def serve(settings: Settings) -> None:
    """Open the memory, serve until told to stop, close it. Raises UnusableDatabase."""
    async with service(settings) as worker:
        await worker.run()


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[Worker]:
    """The worker, able to serve but not started, with its memory open and its upkeep running. Raises UnusableDatabase."""
    listeners: list[Callable[[], None]] = []

    def on_committed(events: Sequence[Event]) -> None:
        for listener in listeners:
            listener()

    records = await Records.open(
        settings.path(settings.memory.path),
        readers=settings.memory.readers,
        on_committed=on_committed,
        max_body_bytes=settings.bus.max_body_bytes,
        max_batch=settings.memory.writes_per_commit,
    )
    worker = Worker("memory", settings, capacity=settings.memory.capacity)
    store = MemoryStore(records)
    register(worker, store)
    outbox = EventOutbox(records, worker.client)
    listeners.append(outbox.wake)
    try:
        await store.sweep(await records.newest_time())
        # A group, so that upkeep which fails unexpectedly ends the process, loudly, and its supervisor starts a new one.
        async with asyncio.TaskGroup() as tasks:
            upkeep = [
                tasks.create_task(outbox.publish_forever(), name="memory events"),
                tasks.create_task(sweep_forever(records, store), name="memory sweep"),
            ]
            yield worker
            for task in upkeep:
                task.cancel()
        await outbox.tidy()
    finally:
        await records.close()


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


async def sweep_forever(records: Records, store: MemoryStore) -> None:
    """Remove what has expired, until cancelled. A sweep that fails is logged and tried again at the next turn."""
    while True:
        await asyncio.sleep(SWEEP_INTERVAL_S)
        try:
            await store.sweep(records.now())
        except BusError as error:
            log.warning("sweep failed", extra={"action": "memory.sweep.failed", "reason": error.message})
