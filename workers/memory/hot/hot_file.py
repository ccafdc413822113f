"""The file of the SQLite tier: opened, made anew when it is damaged or of another version, never a reason not to start."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

from workers.memory.connection import Connection, connect
from workers.memory.database import READER_CACHE_KIB, WRITER_CACHE_KIB
from workers.memory.hot import entries
from workers.memory.sqlite_errors import UnusableDatabase, is_damaged, refusal

log = logging.getLogger("olympus.memory")

# Bytes the write-ahead log is cut back to after a checkpoint.
LOG_KEPT_BYTES: Final = 16 * 1024 * 1024

# What SQLite keeps beside the file.
_COMPANIONS: Final = ("", "-wal", "-shm")


class HotFile(NamedTuple):
    """An open file: `writer` in a thread of its own, `reader` for look-ups in the event loop.

    was_remade: what it held before was damaged or of another version, and is gone.
    """

    writer: Connection
    reader: sqlite3.Connection
    was_remade: bool


async def open_file(path: Path) -> HotFile:
    """Open the file at `path`, or a new one in its place where it is damaged. Raises UnusableDatabase."""
    try:
        return await _open(path, was_remade=False)
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise refusal(error, path) from error
        reason = str(error)
    move_aside(path, reason)
    try:
        return await _open(path, was_remade=True)
    except sqlite3.Error as error:
        raise refusal(error, path) from error


async def close_file(file: HotFile) -> None:
    """Close both connections and end the thread."""
    file.reader.close()
    await file.writer.close()


def move_aside(path: Path, reason: str) -> None:
    """Rename the file to NAME.damaged, for whoever wants to look at it, and say so. Raises UnusableDatabase."""
    log.warning(
        "hot tier made anew: its file was damaged; only copies and counters are lost",
        extra={"action": "memory.hot.remade", "file": path.name, "reason": reason},
    )
    try:
        for companion in _COMPANIONS:
            old = path.with_name(f"{path.name}{companion}")
            if old.exists():
                old.replace(path.with_name(f"{path.name}.damaged{companion}"))
    except OSError as error:
        raise UnusableDatabase(
            f"{path} is damaged and cannot be renamed ({error.strerror}): give this user write access to {path.parent}"
        ) from error


async def _open(path: Path, *, was_remade: bool) -> HotFile:
    _make_file(path)
    writer = Connection(path, cache_kib=WRITER_CACHE_KIB)
    try:
        await writer
        has_been_of_another_version = await writer.run(_prepare)
        reader = connect(path, cache_kib=READER_CACHE_KIB, is_reader=True)
        # A look-up that would wait for a lock goes to the thread instead.
        reader.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        await writer.close()
        raise
    return HotFile(writer, reader, was_remade or has_been_of_another_version)


def _make_file(path: Path) -> None:
    """Create the file and its folder for this user alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError as error:
        raise UnusableDatabase(
            f"{path} cannot be opened for writing ({error.strerror}): give this user write access to it and to its folder"
        ) from error


def _prepare(connection: sqlite3.Connection) -> bool:
    """Make the tables where they are not; True when those of another version were there."""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _Damaged(found)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA journal_size_limit = {LOG_KEPT_BYTES}")
    # Nothing durable lives here: the power may take the last commits, and WAL keeps the file whole.
    connection.execute("PRAGMA synchronous = NORMAL")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == entries.SCHEMA_VERSION:
        return False
    for (name,) in connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ).fetchall():
        connection.execute(f'DROP TABLE "{name}"')
    entries.create(connection)
    return bool(version)


class _Damaged(sqlite3.DatabaseError):
    """What `quick_check` found, as SQLite itself reports a damaged page."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    sqlite_errorname = "SQLITE_CORRUPT"
