"""Binds the operations on adapters to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import model_files as bodies
from workers.models.adapters.registry import AdapterRegistry


def register(worker: Worker, adapters: AdapterRegistry) -> None:
    """Make `worker` answer `model.adapter.*`."""

    @worker.handles("model.adapter.list")
    async def list_all(request: bodies.AdapterList, call: Call) -> bodies.Adapters:
        return await adapters.list(request)

    @worker.handles("model.adapter.attach")
    async def attach(request: bodies.AdapterAttach, call: Call) -> bodies.AdapterInfo:
        return await adapters.attach(request)

    @worker.handles("model.adapter.detach")
    async def detach(request: bodies.AdapterDetach, call: Call) -> bodies.AdapterInfo:
        return await adapters.detach(request)

    @worker.handles("model.adapter.promote")
    async def promote(request: bodies.AdapterPromote, call: Call) -> bodies.AdapterState:
        return await adapters.promote(request)

    @worker.handles("model.adapter.rollback")
    async def rollback(request: bodies.AdapterRollback, call: Call) -> bodies.AdapterState:
        return await adapters.rollback(request)
