"""Binds the upkeep of a memory to its operations."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import upkeep as bodies
from workers.memory.upkeep.upkeep import Upkeep


def register(worker: Worker, upkeep: Upkeep) -> None:
    """Make `worker` answer the operations of `upkeep`."""

    @worker.handles("memory.stats")
    async def stats(request: bodies.MemoryStats, call: Call) -> bodies.StatsReply:
        return await upkeep.stats()

    @worker.handles("memory.export")
    async def export(request: bodies.MemoryExport, call: Call) -> bodies.Exported:
        if call.caller is None:
            return await upkeep.export(request, call.partial)
        return await upkeep.export(request, call.partial, call.caller.may_touch)

    @worker.handles("memory.import")
    async def import_(request: bodies.MemoryImport, call: Call) -> bodies.Imported:
        return await upkeep.import_(request, call.id)

    @worker.handles("memory.backup")
    async def backup(request: bodies.MemoryBackup, call: Call) -> bodies.BackedUp:
        return await upkeep.backup(request, call.id, call.partial)

    @worker.handles("memory.restore")
    async def restore(request: bodies.MemoryRestore, call: Call) -> bodies.Restored:
        return await upkeep.restore(request, call.id, call.partial)

    @worker.handles("utils.cleanup_temp_files")
    async def cleanup_temp_files(request: bodies.Cleanup, call: Call) -> bodies.CleanedUp:
        return await upkeep.clean("temp", request)

    @worker.handles("utils.cleanup_logs")
    async def cleanup_logs(request: bodies.Cleanup, call: Call) -> bodies.CleanedUp:
        return await upkeep.clean("logs", request)

    @worker.handles("utils.cleanup_cache")
    async def cleanup_cache(request: bodies.Cleanup, call: Call) -> bodies.CleanedUp:
        return await upkeep.clean("cache", request)

    @worker.handles("utils.cleanup_system")
    async def cleanup_system(request: bodies.Cleanup, call: Call) -> bodies.CleanedSystem:
        return await upkeep.clean_all(request)
