"""What a small service keeps: one SQLite file below home, used by one thread.

The schema is the SQL files of a folder, each applied once in the order of their names. A part of a service brings its
own file and its own statements; this module knows neither.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from bus.sqlite_copy import copy_database
from schemas.errors import Internal

T = TypeVar("T")

# Another process that has the file open (a backup) holds it for a moment at most.
_BUSY_MS: Final = 5_000


class UnusableRecords(Exception):
    """The file cannot be used; the message says why and what helps."""


class Records:
    """The file and its thread. `open` before the first use, `close` after the last.

    schema: folder with the SQL files. holds: what is lost with the file, for the message when it cannot be used.
    """

    def __init__(self, path: Path, schema: Path, holds: str) -> None:
        self.path = path
        self._schema = schema
        self._holds = holds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{path.stem} records")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open the file and bring its schema up to date. Raises UnusableRecords."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def close(self) -> None:
        """Finish what was asked, then close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    async def run(self, statements: Callable[[sqlite3.Connection], T]) -> T:
        """What `statements` answers, in one transaction: all of it is on disk when this returns, or nothing.

        Raises Internal when SQLite does.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, statements)

    async def empty_log(self) -> None:
        """Bring all changes into the file and cut its log to nothing, so that what was deleted is in neither.

        Raises Internal when SQLite does.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._empty_log)

    def _run(self, statements: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        if connection is None:
            raise Internal(f"{self.path} is closed")
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = statements(connection)
            except BaseException:
                # After some errors (a full disk) SQLite has rolled back by itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise Internal(f"{self.path}: {error}") from error
        return result

    def _empty_log(self) -> None:
        if self._connection is None:
            raise Internal(f"{self.path} is closed")
        try:
            # Somebody who reads meanwhile (a backup) is waited for; what they hold back goes with the next time.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise Internal(f"{self.path}: {error}") from error

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # What people ask is private.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
            # What is deleted is overwritten: somebody may have asked for it to be forgotten.
            connection.execute("PRAGMA secure_delete = ON")
            _migrate(connection, self.path, self._schema)
        except (sqlite3.Error, OSError) as error:
            self._close()
            raise UnusableRecords(
                f"{self.path} cannot be used: {error}. It holds {self._holds}. Move it away to begin with an empty one"
            ) from error
        except UnusableRecords:
            self._close()
            raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _migrate(connection: sqlite3.Connection, path: Path, schema: Path) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY)")
    done = {name for (name,) in connection.execute("SELECT name FROM migrations")}
    files = sorted(schema.glob("*.sql"))
    if unknown := done - {file.name for file in files}:
        raise UnusableRecords(
            f"{path} was written by a newer Olympus ({', '.join(sorted(unknown))} is not known here): start that one, or"
            " restore a backup made before the upgrade (olympus restore FILE --replace). Nothing was changed"
        )
    left = [file for file in files if file.name not in done]
    if left and done:
        copy_database(connection, path.with_name(f"{path.name}.v{len(done)}-backup"))
    for file in left:
        connection.executescript(
            f"BEGIN; {file.read_text(encoding='utf-8')}; INSERT INTO migrations VALUES ('{file.name}'); COMMIT;"
        )
