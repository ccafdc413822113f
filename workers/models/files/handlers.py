"""Binds the operations on model files to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import model as bodies
from schemas.bodies import model_files
from workers.models.files.files import Files


def register(worker: Worker, files: Files) -> None:
    """Make `worker` answer the operations of this part."""

    @worker.handles("model.list")
    async def list_models(request: bodies.ModelList, call: Call) -> bodies.Models:
        return await files.list_models(request)

    @worker.handles("model.show")
    async def show(request: bodies.ModelShow, call: Call) -> bodies.ModelInfo:
        return await files.show(request)

    @worker.handles("model.rescan")
    async def rescan(request: model_files.ModelRescan, call: Call) -> bodies.Models:
        return await files.rescan(request)

    @worker.handles("model.alias")
    async def alias(request: model_files.ModelAlias, call: Call) -> bodies.ModelInfo:
        return await files.alias(request)

    @worker.handles("model.import")
    async def import_model(request: model_files.ModelImport, call: Call) -> bodies.ModelInfo:
        return await files.import_model(request, call)

    @worker.handles("model.delete")
    async def delete(request: model_files.ModelDelete, call: Call) -> model_files.ModelDeleted:
        return await files.delete(request)

    @worker.handles("model.verify")
    async def verify(request: model_files.ModelVerify, call: Call) -> model_files.ModelVerified:
        return await files.verify(request, call)
