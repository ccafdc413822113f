"""Serves the memory on the bus: opens it, registers it, keeps its upkeep running, and closes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bus.collector import spare_what_stays
from bus.settings import Settings
from bus.worker import Worker
from workers.memory.hub import open_hub


async def serve(settings: Settings) -> None:
    """Open the memory, serve until told to stop, close it. Raises UnusableDatabase, SettingsError."""
    async with service(settings) as worker:
        spare_what_stays()
        await worker.run()


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[Worker]:
    """The worker, able to serve but not started, with its memory open and its upkeep running.

    Raises UnusableDatabase, SettingsError.
    """
    worker = Worker("memory", settings, capacity=settings.memory.capacity)
    async with open_hub(settings, worker.client, worker.figures) as hub:
        hub.register(worker)
        # A group, so that upkeep which fails unexpectedly ends the process, loudly, and its supervisor starts a new one.
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work, name=f"memory {name}") for name, work in hub.upkeep().items()]
            yield worker
            for task in running:
                task.cancel()
