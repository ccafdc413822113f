"""Backups of the database in a folder beside it: made while it serves, checked, never overwritten."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from bus import sqlite_copy
from schemas.bodies.upkeep import BackedUp, MemoryBackup
from schemas.errors import BusError, Conflict, Internal
from workers.memory import applied
from workers.memory.migrations import version_of
from workers.memory.outcome import Outcome
from workers.memory.records import Records
from workers.memory.sqlite_errors import explain
from workers.memory.upkeep.reporting import Report, Tell, told

SUFFIX: Final = ".db"

_OPERATION: Final = "memory.backup"

# Bytes hashed between two reports.
_HASHED_BYTES: Final = 8 * 1024 * 1024

# SQLite calls back after so many instructions of its virtual machine; a check of 100 MB takes some ten million.
_CHECK_STEP: Final = 1_000_000


def folder_beside(database: Path) -> Path:
    """Where the backups of a database lie."""
    return database.parent / "backups"


class Backups:
    """Makes backups of one database. Its methods raise the errors of `schemas.errors`."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.folder = folder_beside(records.database.path)

    async def backup(self, request: MemoryBackup, request_id: bytes, tell: Tell) -> BackedUp:
        """Copy what the database holds now. Raises Conflict for a name that exists, Internal for a full disk."""
        stored = await self._records.read(lambda connection: applied.find_reply(connection, _OPERATION, request_id))
        if stored is not None:
            return msgspec.msgpack.decode(stored, type=BackedUp)
        if request.name is None:
            target = unused(self.folder, stamp(self._records.now()))
        else:
            target = self.folder / f"{request.name.removesuffix(SUFFIX)}{SUFFIX}"
        source = self._records.database.path
        reply = await told(lambda report: asyncio.to_thread(make_backup, source, target, report), tell)
        return await self._records.write_once(_OPERATION, request_id, BackedUp, lambda *_: Outcome(reply, []))


def make_backup(source: Path, target: Path, report: Report) -> BackedUp:
    """Copy the database at `source` to `target`, check the copy, and make it durable.

    Raises Conflict where `target` exists, Internal where the disk does not take it or the copy is damaged.
    """
    began_at = time.monotonic()
    if target.exists():
        raise _taken(target)
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = sqlite_copy.begin(target)
        try:
            with closing(sqlite3.connect(source, isolation_level=None)) as connection:
                sqlite_copy.copy_into(connection, partial, on_pages=lambda done, total: report("copy", done, total))
            version = check(partial, report)
            digest = sha256_of(partial, report)
            sqlite_copy.finish(partial, target, may_replace=False)
        finally:
            sqlite_copy.discard(partial)
    except FileExistsError:
        raise _taken(target) from None
    except sqlite3.Error as error:
        raise explain(error, target) from error
    except OSError as error:
        raise not_written(target, error) from error
    return BackedUp(
        path=str(target),
        size_bytes=target.stat().st_size,
        sha256=digest,
        schema_version=version,
        took_s=time.monotonic() - began_at,
    )


def check(path: Path, report: Report) -> int:
    """The schema version of the database at `path`. Raises Internal where SQLite finds damage in it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        found = first_damage(connection, report)
        if found is not None:
            raise Internal(f"the copy is damaged, and so may the database be: {found}", path=str(path))
        return version_of(connection, path)


def first_damage(connection: sqlite3.Connection, report: Report) -> str | None:
    """What SQLite's own check finds first; None for a sound database. Raises sqlite3.Error, and what `report` raises."""
    raised: list[BaseException] = []

    def look() -> int:
        try:
            report("check", 0, 0)
        except BaseException as error:  # noqa: BLE001 - SQLite swallows it; it is raised again below
            raised.append(error)
            return 1
        return 0

    connection.set_progress_handler(look, _CHECK_STEP)
    try:
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error:
        if raised:
            raise raised[0] from None
        raise
    finally:
        connection.set_progress_handler(None, 0)
    return None if found == "ok" else str(found)


def sha256_of(path: Path, report: Report) -> str:
    """The file's SHA-256 in hexadecimal."""
    total = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASHED_BYTES):
            digest.update(block)
            report("checksum", file.tell(), total)
    return digest.hexdigest()


def stamp(at: float) -> str:
    """An instant as a file name: 20260730T121314Z."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")


def unused(folder: Path, stem: str) -> Path:
    """A path in `folder` that nothing has yet, named `stem` or, where that is taken, with a number."""
    path, number = folder / f"{stem}{SUFFIX}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{SUFFIX}"
    return path


def not_written(path: Path, error: OSError) -> BusError:
    """The error for a file that the disk did not take."""
    return Internal(f"{path} could not be written: {error.strerror or error}", path=str(path))


def _taken(path: Path) -> Conflict:
    return Conflict(f"there is a backup {path.name} already; choose another name", path=str(path))
