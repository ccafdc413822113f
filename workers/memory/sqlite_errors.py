"""What an SQLite failure means to a caller, and to the person who starts the service."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from schemas.errors import BusError, Internal, Overloaded, TooLarge


class UnusableDatabase(Exception):
    """The database cannot be served; the message says why and what a person can do about it."""


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code (https://sqlite.org/rescode.html); 0 where the error is not SQLite's own."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_busy(error: BaseException) -> bool:
    """True when another process holds the lock, so that trying again may succeed."""
    return isinstance(error, sqlite3.Error) and primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_damaged(error: sqlite3.Error) -> bool:
    """True when the file is no database or a broken one."""
    return primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_unwritable(error: sqlite3.Error) -> bool:
    """True when the file or its folder does not let this process write."""
    return primary_code(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


def is_of_the_file(error: sqlite3.Error) -> bool:
    """True when no other write would fare better: file or disk are damaged, full or closed to this process."""
    is_broken = primary_code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return is_broken or is_busy(error) or is_damaged(error) or is_unwritable(error)


def stops_every_write(error: BusError) -> bool:
    """True for what `explain` made of an error that no other write would fare better with."""
    return isinstance(error.__cause__, sqlite3.Error) and is_of_the_file(error.__cause__)


def explain(error: sqlite3.Error, path: Path) -> BusError:
    """The error a caller gets for `error`, which stopped a read or rolled back a write on `path`."""
    name = path.name
    reason = f"{getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}"
    if is_busy(error):
        return Overloaded(f"{name} is locked by another process; nothing was written", reason=reason)
    if is_damaged(error):
        return Internal(
            f"{name} is damaged: stop the service and restore a backup with `olympus memory restore`", reason=reason
        )
    if is_unwritable(error):
        return Internal(f"{name} cannot be written: check the permissions of the file and its folder", reason=reason)
    match primary_code(error):
        case sqlite3.SQLITE_FULL:
            return Internal(f"nothing was written: the disk that holds {name} is full", reason=reason)
        case sqlite3.SQLITE_IOERR:
            return Internal(f"nothing was written: the disk that holds {name} failed or is full", reason=reason)
        case sqlite3.SQLITE_TOOBIG:
            return TooLarge(f"the value is longer than SQLite stores in {name}", reason=reason)
    return Internal(f"the database refused the operation: {error}", reason=reason)


def refusal(error: sqlite3.Error, path: Path) -> UnusableDatabase:
    """Why the file at `path` cannot be opened and what to do about it."""
    if is_damaged(error):
        return UnusableDatabase(f"{path} is damaged or not a database ({error}).\n{how_to_restore(path)}")
    if is_unwritable(error):
        return UnusableDatabase(
            f"{path} cannot be written ({error}): give this user write access to the file and to {path.parent},"
            " or name another file with memory.path"
        )
    return UnusableDatabase(f"{path} cannot be opened: {error}")


def how_to_restore(path: Path) -> str:
    """Instructions for going back to the newest backup of the database at `path`."""
    kept = (*path.parent.glob(f"{path.name}.*-backup"), *path.parent.glob("backups/*.db"))
    backups = sorted(kept, key=lambda file: file.stat().st_mtime)
    aside = f"move {path}, {path.name}-wal and {path.name}-shm aside"
    if not backups:
        return (
            "To restore: stop the service, run `olympus memory restore /PATH/OF/A/BACKUP` (it keeps what is there now),"
            f" and start again. Without a backup, {aside}: the service then starts with an empty database, and"
            " `sqlite3 FILE .recover` reads what can still be read of the old one."
        )
    return (
        f"To restore: stop the service, run `olympus memory restore {backups[-1]}` (it keeps what is there now), and"
        f" start again. By hand: {aside}, copy {backups[-1]} to {path}."
    )
