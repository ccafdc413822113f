"""The upkeep of one memory: one method per operation. Knows no bus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from schemas.bodies import upkeep as bodies
from workers.memory.records import Records
from workers.memory.upkeep import export, importing
from workers.memory.upkeep.backup import Backups
from workers.memory.upkeep.cleanup import Cleaner
from workers.memory.upkeep.reporting import Tell
from workers.memory.upkeep.restore import OnReplaced, Restores
from workers.memory.upkeep.stats import Around, Figures


class Upkeep:
    """Export, import, backup, restore, figures and clean-up.

    home: the folder whose `tmp`, `logs` and `cache` are cleaned. around: how the parts beside the database are.
    on_replaced: called after a restore, in this order, by whoever keeps copies of what is in the database.
    """

    def __init__(
        self,
        records: Records,
        *,
        home: Path,
        around: Callable[[], Awaitable[Around]],
        on_replaced: Sequence[OnReplaced] = (),
    ) -> None:
        self._records = records
        self._figures = Figures(records, around)
        self._backups = Backups(records)
        self._restores = Restores(records, (self._figures.forget, *on_replaced))
        self._cleaner = Cleaner(home, records.now)
        # One at a time: two copies of one database only get in each other's way, and in a restore's.
        self._copying = asyncio.Lock()

    async def stats(self) -> bodies.StatsReply:
        """What the memory holds."""
        return await self._figures.stats()

    async def export(
        self, request: bodies.MemoryExport, send: export.Send, may_touch: Callable[[str], bool] = lambda ns: True
    ) -> bodies.Exported:
        """Every record, handed to `send` in parts. may_touch: namespaces that the caller may read."""
        return await export.export(self._records, request, send, may_touch)

    async def import_(self, request: bodies.MemoryImport, request_id: bytes) -> bodies.Imported:
        """Records of an export, all or none. Raises BadRequest, Conflict."""
        return await importing.import_records(self._records, request, request_id)

    async def backup(self, request: bodies.MemoryBackup, request_id: bytes, tell: Tell) -> bodies.BackedUp:
        """Copy the database while it serves. Raises Conflict, Internal."""
        async with self._copying:
            return await self._backups.backup(request, request_id, tell)

    async def restore(self, request: bodies.MemoryRestore, request_id: bytes, tell: Tell) -> bodies.Restored:
        """Go back to a backup. Raises BadRequest, NotFound, Unprocessable, Internal."""
        async with self._copying:
            return await self._restores.restore(request, request_id, tell)

    async def clean(self, target: bodies.CleanupTarget, request: bodies.Cleanup) -> bodies.CleanedUp:
        """Delete old files of one folder."""
        return await self._cleaner.clean(target, request)

    async def clean_all(self, request: bodies.Cleanup) -> bodies.CleanedSystem:
        """Delete old files of all folders."""
        return await self._cleaner.clean_all(request)
