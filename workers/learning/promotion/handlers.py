"""Binds the operations of promotion to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import learning_gate as bodies
from workers.learning.promotion.promotion import Promotion


def register(worker: Worker, promotion: Promotion) -> None:
    """Make `worker` answer `learning.promote`, `.rollback`, `.adapter.list` and `.watch`."""

    @worker.handles("learning.promote")
    async def promote(request: bodies.Promote, call: Call) -> bodies.Deployment:
        return await promotion.promote_job(request)

    @worker.handles("learning.rollback")
    async def rollback(request: bodies.Rollback, call: Call) -> bodies.Deployment:
        return await promotion.rollback(request)

    @worker.handles("learning.adapter.list")
    async def list_all(request: bodies.LearnedAdapters, call: Call) -> bodies.Deployments:
        return await promotion.adapters(request)

    @worker.handles("learning.watch")
    async def watch(request: bodies.WatchShow, call: Call) -> bodies.Watches:
        return await promotion.watch(request)
