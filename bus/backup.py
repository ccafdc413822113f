"""Makes one archive of a home while everything goes on: databases as they are at one moment, then the files they speak of.

Knows no archive format (bus/archive.py) and not what belongs to a home (bus/holdings.py); it brings the two together.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from bus import archive, sqlite_copy, state
from bus.archive import Entry, Head, Source
from bus.holdings import Item, holdings
from bus.settings import Settings
from bus.version import VERSION

# Another process holds a database for a moment at most.
_BUSY_S: Final = 5.0

# Told what is being done, and how much of how much.
Report = Callable[[str, int, int], None]


class BackupFailed(Exception):
    """There is nothing to back up, or a database is damaged; the message says which and what to do."""


class Made(NamedTuple):
    """files and content_bytes: what went in. gone: files deleted meanwhile. left_out: what was not taken, and why."""

    files: int
    content_bytes: int
    gone: list[str]
    left_out: dict[str, str]


def machine_of(settings: Settings) -> str:
    """The machine's name as part of a file's: lower-case letters, digits and `-`."""
    name = (settings.machine.name or socket.gethostname()).lower()
    return "".join(one if one.isascii() and one.isalnum() else "-" for one in name).strip("-") or "home"


def back_up(
    settings: Settings,
    target: BinaryIO,
    scratch: Path,
    *,
    with_models: bool = False,
    with_keys: bool = True,
    config: Path | None = None,
    report: Report = lambda what, done, total: None,
) -> Made:
    """Write everything that home holds to `target`.

    scratch: an empty folder of this user alone, for copies of databases. config: the settings file, where it lies
    elsewhere than in home. Raises BackupFailed, UnusableHome for one of a newer program, and OSError where either disk
    does not take it.
    """
    home = settings.home_path
    if not home.is_dir():
        raise BackupFailed(f"there is no home at {home}; OLYMPUS_HOME names another")
    state_format = state.check(home)
    created_at = time.time()

    def listed() -> tuple[list[Item], dict[str, str]]:
        return holdings(settings, with_models=with_models, with_keys=with_keys, config=config)

    copies = _copied([item for item in listed()[0] if _is_database(item)], scratch, report)
    # Listed again: what the databases speak of was there before they were copied.
    items, left_out = listed()
    sources = [*copies, *(source for item in items if not _is_database(item) and (source := _source(item)) is not None)]
    if not sources:
        raise BackupFailed(f"{home} holds nothing yet")
    if len(sources) > archive.FILES_MAX:
        raise BackupFailed(f"{home} holds {len(sources)} files, an archive at most {archive.FILES_MAX}")
    head = Head(
        format=archive.FORMAT,
        version=VERSION,
        state_format=state_format,
        machine=machine_of(settings),
        home=str(home),
        created_at=created_at,
        files=[source.entry for source in sources],
        left_out=left_out,
    )
    total = sum(source.entry.size_bytes for source in sources)
    sums = archive.write_archive(target, head, sources, lambda name, done: report("pack", done, total))
    taken = sum(one.size_bytes for one in sums.files.values())
    return Made(len(sums.files), taken, sums.gone, left_out)


def _is_database(item: Item) -> bool:
    return item.kind in ("memory", "database")


def _source(item: Item) -> Source | None:
    try:
        size = item.path.stat().st_size
    except FileNotFoundError:
        return None
    return Source(Entry(item.name, item.kind, size), item.path, item.group)


def _copied(items: list[Item], scratch: Path, report: Report) -> list[Source]:
    sources = []
    for number, item in enumerate(items):
        copy = scratch / f"{number}.db"
        try:
            _copy(item, copy, report)
        except sqlite3.Error as error:
            raise BackupFailed(_why_not_copied(item.path, scratch.parent, error)) from error
        sources.append(Source(Entry(item.name, item.kind, copy.stat().st_size), copy, item.group))
    return sources


def _why_not_copied(path: Path, target: Path, error: sqlite3.Error) -> str:
    # The first eight bits are the kind; what our own check raises has none.
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if kind == sqlite3.SQLITE_FULL:
        return f"{target} has no room for a copy of {path}; nothing was backed up"
    if kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        # SQLite writes beside a database with a log even to read it.
        return (
            f"{path} cannot be copied: {error}. Its disk and that of {target} need some room and write access for this"
            " user; nothing was backed up"
        )
    return (
        f"{path} cannot be copied: {error}. Where it is damaged, the service that keeps it says at its start what to do;"
        " nothing was backed up"
    )


def _copy(item: Item, copy: Path, report: Report) -> None:
    """One state of the database, whatever is written meanwhile, in one file. Raises OSError, sqlite3.Error."""
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    address = f"{item.path.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, isolation_level=None, timeout=_BUSY_S)) as source:
        sqlite_copy.copy_into(source, copy, on_pages=lambda done, total: report(f"copy {item.name}", done, total))
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        report(f"check {item.name}", 0, 0)
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
