"""Binds the upkeep of the vectors to its operations."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import upkeep as bodies
from workers.memory.vectors.vectors import Vectors


def register(worker: Worker, vectors: Vectors) -> None:
    """Make `worker` answer `memory.verify` and `memory.rebuild`."""

    @worker.handles("memory.verify")
    async def verify(request: bodies.MemoryVerify, call: Call) -> bodies.Verified:
        return await vectors.verify(request, call.partial)

    @worker.handles("memory.rebuild")
    async def rebuild(request: bodies.MemoryRebuild, call: Call) -> bodies.Rebuilt:
        return await vectors.rebuild(call.partial)
