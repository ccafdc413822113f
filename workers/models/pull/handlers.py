"""Binds `model.pull` to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies.model_files import ModelPull, ModelPulled
from workers.models.pull.pulls import Pulls


def register(worker: Worker, pulls: Pulls) -> None:
    """Make `worker` answer the operations of this part."""

    @worker.handles("model.pull")
    async def pull(request: ModelPull, call: Call) -> ModelPulled:
        return await pulls.pull(request, call)
