"""Binds the operations on examples and datasets to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import learning_data as bodies
from workers.learning.curation.curation import Curation


def register(worker: Worker, curation: Curation) -> None:
    """Make `worker` answer `learning.dataset.*` and `learning.row.*`."""

    @worker.handles("learning.dataset.list")
    async def list_all(request: bodies.DatasetList, call: Call) -> bodies.Datasets:
        return await curation.list(request)

    @worker.handles("learning.dataset.show")
    async def show(request: bodies.DatasetShow, call: Call) -> bodies.DatasetShown:
        return await curation.show(request)

    @worker.handles("learning.dataset.build")
    async def build(request: bodies.DatasetBuild, call: Call) -> bodies.DatasetInfo:
        return await curation.build(request)

    @worker.handles("learning.dataset.delete")
    async def delete(request: bodies.DatasetDelete, call: Call) -> bodies.DatasetDeleted:
        return await curation.delete(request)

    @worker.handles("learning.dataset.export")
    async def export(request: bodies.DatasetExport, call: Call) -> bodies.DatasetExported:
        return await curation.export(request, call.partial)

    @worker.handles("learning.dataset.import")
    async def import_(request: bodies.DatasetImport, call: Call) -> bodies.DatasetImported:
        return await curation.import_(request)

    @worker.handles("learning.row.list")
    async def rows(request: bodies.RowList, call: Call) -> bodies.RowPage:
        return await curation.rows(request)

    @worker.handles("learning.row.edit")
    async def edit(request: bodies.RowEdit, call: Call) -> bodies.RowInfo:
        return await curation.edit(request)

    @worker.handles("learning.row.remove")
    async def remove(request: bodies.RowRemove, call: Call) -> bodies.RowInfo:
        return await curation.remove(request)

    @worker.handles("learning.row.release")
    async def release(request: bodies.RowRelease, call: Call) -> bodies.RowInfo:
        return await curation.release(request)
