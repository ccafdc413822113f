"""Puts a backup in the place of the database while it serves: readers see the old or the new, never a mix."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bus import sqlite_copy
from schemas.bodies.upkeep import MemoryRestore, Restored
from schemas.errors import BadRequest, Internal
from workers.memory import applied
from workers.memory.migrations import load_migrations
from workers.memory.outcome import Outcome, changed
from workers.memory.records import Records
from workers.memory.sqlite_errors import explain
from workers.memory.upkeep import staging
from workers.memory.upkeep.backup import SUFFIX, folder_beside, stamp, unused
from workers.memory.upkeep.reporting import Report, Tell, told

_OPERATION: Final = "memory.restore"

# Called once the content has been replaced: whoever keeps a copy of some of it drops that.
OnReplaced = Callable[[], Awaitable[None]]


class _Swapped(NamedTuple):
    kept_as: Path
    chunks: int
    namespaces: list[str]


class Restores:
    """Puts backups in the place of one database that is being served."""

    def __init__(self, records: Records, on_replaced: Sequence[OnReplaced]) -> None:
        self._records = records
        self._on_replaced = on_replaced
        self.folder = folder_beside(records.database.path)

    async def restore(self, request: MemoryRestore, request_id: bytes, tell: Tell) -> Restored:
        """Go back to a backup, after what is there has been kept as one. The same request again changes nothing.

        Writes wait meanwhile and find the restored content. Raises BadRequest, NotFound and Unprocessable for what is
        no backup of this memory, Internal from the disk; then nothing has changed.
        """
        stored = await self._records.read(lambda connection: applied.find_reply(connection, _OPERATION, request_id))
        if stored is not None:
            return msgspec.msgpack.decode(stored, type=Restored)
        present = self._records.database.path
        backup = chosen(request.path, self.folder, present)
        staged = self.folder / "restoring.partial"
        kept_as = unused(self.folder, f"before-restore-{stamp(self._records.now())}")
        try:
            await told(lambda report: asyncio.to_thread(_stage, backup, staged, report), tell)
            swapped = await told(
                lambda report: self._records.database.exclusively(
                    lambda _: _swap(staged, present, kept_as, report),
                ),
                tell,
            )
        finally:
            await asyncio.to_thread(sqlite_copy.discard, staged)
        await self._records.database.replaced()
        for drop in self._on_replaced:
            await drop()
        events = [changed(ns, "", "restore") for ns in swapped.namespaces]
        reply = Restored(path=str(backup), kept_as=str(swapped.kept_as), chunks=swapped.chunks)
        return await self._records.write_once(_OPERATION, request_id, Restored, lambda *_: Outcome(reply, events))


def chosen(path: str, folder: Path, present: Path) -> Path:
    """The backup that a request names: a file of `folder`, with or without its ending, or an absolute path.

    Raises BadRequest for a relative path that leaves the folder, and for the database itself.
    """
    if "\0" in path:
        raise BadRequest("path holds a null byte", field="path")
    named = Path(path)
    backup = named if named.is_absolute() else folder / named
    if not named.is_absolute():
        if not backup.resolve().is_relative_to(folder.resolve()):
            raise BadRequest(
                f"{path} leads out of the backups folder {folder}; name a file in it, or an absolute path", field="path"
            )
        if not backup.exists() and backup.suffix != SUFFIX:
            backup = backup.with_name(f"{backup.name}{SUFFIX}")
    if backup.exists() and present.exists() and backup.samefile(present):
        raise BadRequest(f"{path} is the database itself, not a backup of it", field="path")
    return backup


def _stage(backup: Path, staged: Path, report: Report) -> None:
    try:
        staged.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging.stage(backup, staged, load_migrations(), report)
    except OSError as error:
        raise Internal(f"{staged.parent} could not be written: {error.strerror}; nothing was changed") from error
    except sqlite3.Error as error:
        raise explain(error, staged) from error


def _swap(staged: Path, present: Path, kept_as: Path, report: Report) -> _Swapped:
    """In the writer's thread, between two commits: nothing is written between what is kept and what replaces it.

    Through a connection of its own, so that the writer's notices, like every other, that the content has changed.
    """
    try:
        with closing(sqlite3.connect(present, isolation_level=None)) as current:
            current.execute("PRAGMA synchronous = FULL")
            sqlite_copy.copy_database(current, kept_as, on_pages=lambda done, total: report("keep", done, total))
            report("compare", 0, 0)
            namespaces = staging.reconcile(staged, present)
            with closing(sqlite3.connect(staged, isolation_level=None)) as new:
                new.backup(
                    current,
                    pages=sqlite_copy.PAGES_PER_STEP,
                    progress=lambda _, remaining, total: report("replace", total - remaining, total),
                )
            # The log holds the whole database now; this folds in what no reader still needs.
            current.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            (chunks,) = current.execute("SELECT count(*) FROM chunks").fetchone()
    except OSError as error:
        raise Internal(f"{kept_as} could not be written: {error.strerror}; nothing was changed") from error
    return _Swapped(kept_as, chunks, namespaces)
