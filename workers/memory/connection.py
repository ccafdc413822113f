"""One SQLite connection in a thread of its own, to which whole functions are sent."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite
import tenacity

from workers.memory.sqlite_errors import is_busy

T = TypeVar("T")

# Milliseconds SQLite itself waits for another process's lock before it reports SQLITE_BUSY.
BUSY_TIMEOUT_MS: Final = 1_000

# Seconds after which a caller is told that the database is locked.
BUSY_GIVE_UP_S: Final = 10.0

# Seconds between two interrupts of what nobody waits for any more. One between two statements of a function hits none.
INTERRUPT_EVERY_S: Final = 0.02

# Pages (of 4 KiB) in the log before they are folded back into the file. At the usual 1,000 a service under load folds
# the same pages back several times a second; with this many it writes a sixth more a second (scripts/bench_memory.py).
CHECKPOINT_PAGES: Final = 8_192


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that also runs a function in its thread.

    The public methods move one statement per hop into the thread. A request of several statements, and above all a
    batch of writes with its commit, must cost one hop; the thread runs any callable, so `run` hands it the function.
    """

    def __init__(self, path: Path, *, cache_kib: int, is_reader: bool = False) -> None:
        super().__init__(partial(connect, path, cache_kib=cache_kib, is_reader=is_reader), iter_chunk_size=64)
        self._stopping: asyncio.Future[Any] | None = None

    def stop(self) -> asyncio.Future[Any] | None:
        """End the thread once its queue is empty; `close` waits for that."""
        self._stopping = super().stop()
        return self._stopping

    async def close(self) -> None:
        """Close the connection and end its thread, also of a connection that could not be opened.

        There the library stops the thread without waiting, and it would speak to an event loop that is closed.
        """
        await super().close()
        if self._stopping is not None:
            await self._stopping

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` returns, run in the connection's thread; run again while the database is locked.

        So it must have no effect besides a transaction that it rolls back when it raises.
        """
        try:
            return await self._hop(function)
        except sqlite3.Error as error:
            if not is_busy(error):
                raise
        # Only now, because tenacity costs as much as the hop itself.
        return await _retrying_while_busy()(self._hop, function)

    async def give_up(self) -> None:
        """Cut short what runs in the thread, and return once it has ended; for a connection that only reads.

        A function ends at its next statement that lasts; one that runs no statement ends when it is done.
        """
        if self._connection is None:
            return
        ended = asyncio.ensure_future(self._hop(lambda _: None))
        while not ended.done():
            await self.interrupt()
            await asyncio.wait({ended}, timeout=INTERRUPT_EVERY_S)
        # The COMMIT of a read transaction may have been cut short as well: the next reading must not begin in it.
        await self._hop(_leave_transaction)

    async def _hop(self, function: Callable[[sqlite3.Connection], T]) -> T:
        result: T = await self._execute(function, self._conn)  # type: ignore[no-untyped-call]
        return result


def _leave_transaction(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _retrying_while_busy() -> tenacity.AsyncRetrying:
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_busy),
        wait=tenacity.wait_random_exponential(multiplier=0.01, max=0.5),
        stop=tenacity.stop_after_delay(BUSY_GIVE_UP_S),
        reraise=True,
    )


def connect(path: Path, *, cache_kib: int, is_reader: bool) -> sqlite3.Connection:
    """A connection to `path` set up as all of ours are. Raises sqlite3.Error."""
    # isolation_level None: transactions begin and end where we say, never by themselves.
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        _configure(connection, cache_kib, is_reader)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _configure(connection: sqlite3.Connection, cache_kib: int, is_reader: bool) -> None:
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    # FULL syncs the log at every commit. NORMAL loses acknowledged writes with the power.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    # Read on macOS only, where a plain fsync stops at the drive's own cache.
    connection.execute("PRAGMA fullfsync = ON")
    if is_reader:
        connection.execute("PRAGMA query_only = ON")
