"""Binds `model.quantize` and `model.export` to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies.model_files import ModelConverted, ModelExport, ModelQuantize
from workers.models.convert.conversions import Conversions


def register(worker: Worker, conversions: Conversions) -> None:
    """Make `worker` answer the operations of this part."""

    @worker.handles("model.quantize")
    async def quantize(request: ModelQuantize, call: Call) -> ModelConverted:
        return await conversions.quantize(request, call)

    @worker.handles("model.export")
    async def export(request: ModelExport, call: Call) -> ModelConverted:
        return await conversions.export(request, call)
