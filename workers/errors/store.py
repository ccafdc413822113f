"""The file of the error service: groups, their newest reports, counts, and how far events were read. SQLite, one thread.

Whoever calls gets what went wrong as `StoreFailed` and may try again; nothing here decides what that means.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec

from schemas.bodies.control import ErrorReport
from workers.errors.group import Group
from workers.errors.groups import REPORTS, Tally

T = TypeVar("T")

# The form of the file. A larger number was written by a later Olympus; migrations lead from one to the next.
VERSION: Final = 1
_MIGRATIONS: Final = (
    # 0 to 1
    """
    create table groups (fingerprint text primary key, body blob not null) without rowid;
    create table reports (
        fingerprint text not null, seq integer not null, body blob not null, primary key (fingerprint, seq)
    );
    create table tallies (
        service text not null, severity text not null, body blob not null, primary key (service, severity)
    ) without rowid;
    create table progress (name text primary key, value integer not null) without rowid;
    """,
)

# Milliseconds that SQLite waits for another process's lock, a backup's for example, before a commit fails.
_BUSY_MS: Final = 1_000

_group = msgspec.msgpack.Decoder(Group)
_report = msgspec.msgpack.Decoder(ErrorReport)
_tally = msgspec.msgpack.Decoder(Tally)


class StoreFailed(Exception):
    """The file cannot be read or written at the moment; the message says why and what a person can do."""


class Kept(NamedTuple):
    """What the file holds. last_seq: of the last event that is in it; None before the first."""

    groups: list[Group]
    tallies: list[Tally]
    last_seq: int | None
    missed: int


class Batch(NamedTuple):
    """What changed since the last commit, encoded. reports: (fingerprint, sequence number, body)."""

    groups: list[tuple[str, bytes]]
    gone: list[str]
    reports: list[tuple[str, int, bytes]]
    tallies: list[tuple[str, str, bytes]]
    last_seq: int
    missed: int


class Store:
    """The file at `path`, made for this user alone. Every method runs in the one thread that owns the connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, "errors-store")
        self._connection: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        """True while there is a connection; a failure closes it."""
        return self._connection is not None

    async def open(self) -> Kept:
        """Open or make the file and read what it holds. Raises StoreFailed."""
        return await self._run(self._open)

    async def write(self, batch: Batch) -> None:
        """One transaction with all of `batch`. Raises StoreFailed; nothing of it is then written."""
        await self._run(lambda: self._write(batch))

    async def reports(self, fingerprint: str, limit: int) -> list[tuple[int, ErrorReport]]:
        """The newest reports of a group, the newest first, with their sequence numbers. Raises StoreFailed."""
        return await self._run(lambda: self._reports(fingerprint, limit))

    async def close(self) -> None:
        """Close the file and end the thread."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    # In the thread

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            # Opened anew the next time: a file that was replaced or repaired is then seen.
            self._close()
            raise StoreFailed(_why(error, self.path)) from error

    def _open(self) -> Kept:
        self._close()
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"pragma busy_timeout = {_BUSY_MS}")
            connection.execute("pragma journal_mode = wal")
            # What a person said of a group is on disk when they are answered; four commits a second cost little.
            connection.execute("pragma synchronous = full")
            self._migrate(connection)
            kept = _read(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return kept

    def _migrate(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("pragma user_version").fetchone()[0]
        if found > VERSION:
            raise StoreFailed(
                f"{self.path} was written by a later version of Olympus (form {found}, this one reads {VERSION}): update"
                " Olympus, or name another file with errors.path"
            )
        for version in range(found, VERSION):
            connection.executescript(f"begin;{_MIGRATIONS[version]};pragma user_version = {version + 1};commit;")
        # Also of a file that is there already: whether it can be written is known now, not at the first error.
        connection.execute("begin immediate")
        connection.execute("update progress set value = value where name = 'last_seq'")
        connection.execute("commit")

    def _write(self, batch: Batch) -> None:
        connection = self._opened()
        connection.execute("begin immediate")
        try:
            for fingerprint in batch.gone:
                connection.execute("delete from groups where fingerprint = ?", (fingerprint,))
                connection.execute("delete from reports where fingerprint = ?", (fingerprint,))
            connection.executemany("insert or replace into groups values (?, ?)", batch.groups)
            connection.executemany("insert or replace into reports values (?, ?, ?)", batch.reports)
            for fingerprint in {fingerprint for fingerprint, _, _ in batch.reports}:
                connection.execute(
                    "delete from reports where fingerprint = ?1 and seq <="
                    " (select seq from reports where fingerprint = ?1 order by seq desc limit 1 offset ?2)",
                    (fingerprint, REPORTS),
                )
            connection.executemany("insert or replace into tallies values (?, ?, ?)", batch.tallies)
            progress = (("last_seq", batch.last_seq), ("missed", batch.missed))
            connection.executemany("insert or replace into progress values (?, ?)", progress)
            connection.execute("commit")
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback")
            raise

    def _reports(self, fingerprint: str, limit: int) -> list[tuple[int, ErrorReport]]:
        rows: Sequence[tuple[int, bytes]] = (
            self._opened()
            .execute(
                "select seq, body from reports where fingerprint = ? order by seq desc limit ?", (fingerprint, limit)
            )
            .fetchall()
        )
        return [(seq, _report.decode(body)) for seq, body in rows]

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreFailed(f"{self.path} is not open")
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _read(connection: sqlite3.Connection) -> Kept:
    progress = dict(connection.execute("select name, value from progress").fetchall())
    return Kept(
        groups=[_group.decode(body) for (body,) in connection.execute("select body from groups")],
        tallies=[_tally.decode(body) for (body,) in connection.execute("select body from tallies")],
        last_seq=progress.get("last_seq"),
        missed=progress.get("missed", 0),
    )


def _why(error: Exception, path: Path) -> str:
    """What is wrong with the file, and what a person can do about it."""
    kept = "errors are counted in memory meanwhile and written when that works again"
    code = int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or isinstance(error, msgspec.MsgspecError):
        return f"{path} is damaged ({error}): move it aside, a new one is made at once; {kept}"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) or isinstance(error, OSError):
        reason = getattr(error, "strerror", None) or error
        return f"{path} cannot be written ({reason}): give this user access to it and its folder; {kept}"
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return f"the disk that holds {path} is full or failed ({error}); {kept}"
    return f"{path} cannot be used ({error}); {kept}"
