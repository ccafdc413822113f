"""Copies a database into one whole file, page by page, while others read and write it.

Knows nothing of what is in it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

# How far a copy is: pages done, pages in all. What it raises ends the copy.
OnPages = Callable[[int, int], None]

# Pages copied between two reports: 4 MiB of 4 KiB pages, some milliseconds.
PAGES_PER_STEP: Final = 1_024


def copy_database(source: sqlite3.Connection, target: Path, *, on_pages: OnPages | None = None) -> None:
    """Write what `source` holds now to `target`, for this user alone, as one file without a log beside it.

    `target` appears only when it is whole and on disk, in the place of what was there. Raises OSError, sqlite3.Error,
    and what `on_pages` raises; then nothing is left behind.
    """
    partial = begin(target)
    try:
        copy_into(source, partial, on_pages=on_pages)
        finish(partial, target)
    finally:
        discard(partial)


def begin(target: Path) -> Path:
    """An empty file for this user alone, in which the copy grows before it becomes `target`."""
    partial = target.with_name(f"{target.name}.partial")
    discard(partial)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return partial


def copy_into(source: sqlite3.Connection, partial: Path, *, on_pages: OnPages | None = None) -> None:
    """Fill `partial` with what `source` holds now."""

    def report(_status: int, remaining: int, total: int) -> None:
        if on_pages is not None:
            on_pages(total - remaining, total)

    with closing(sqlite3.connect(partial, isolation_level=None)) as copy, _Snapshot(source):
        # Nothing to roll back to: what fails is thrown away.
        copy.execute("PRAGMA journal_mode = OFF")
        source.backup(copy, pages=PAGES_PER_STEP, progress=report)
        # One file without a log beside it, so that moving it about is one step.
        copy.execute("PRAGMA journal_mode = DELETE")


def finish(partial: Path, target: Path, *, may_replace: bool = True) -> None:
    """Make the whole file `partial` durable under the name `target`.

    Raises FileExistsError where `target` exists and may not be replaced.
    """
    sync(partial)
    if may_replace:
        partial.replace(target)
    else:
        _rename_without_replacing(partial, target)
    sync_folder(target.parent)


def _rename_without_replacing(partial: Path, target: Path) -> None:
    try:
        # A link fails where a rename would replace.
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links.
        if target.exists():
            raise FileExistsError(str(target)) from None
        partial.replace(target)
    else:
        partial.unlink()


def discard(partial: Path) -> None:
    """Remove a copy that is not wanted, with what SQLite may have left beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        partial.with_name(f"{partial.name}{suffix}").unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return when the file's content is on disk."""
    _sync(path, os.O_RDWR)


def sync_folder(path: Path) -> None:
    """Return when the folder's names are on disk."""
    _sync(path, os.O_RDONLY)


class _Snapshot:
    """Holds one state of the database for the length of a block.

    Without it every commit of another connection would make the copy begin anew, and under steady writing it would
    never end (https://sqlite.org/c3ref/backup_finish.html). Where the caller has a transaction open, that is the state.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._is_ours = not connection.in_transaction

    def __enter__(self) -> None:
        if self._is_ours:
            self._connection.execute("BEGIN")
            self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()

    def __exit__(self, *_: object) -> None:
        if self._is_ours and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
