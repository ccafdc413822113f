"""The database file: one writer that commits whole groups of writes at once, and a few readers beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

from bus.metrics import Figures, only
from schemas.errors import Internal
from schemas.metrics import MEMORY_COMMIT_SECONDS, MEMORY_COMMITS, MEMORY_WRITES, MEMORY_WRITES_WAITING
from workers.memory.batch import Job, Once, run
from workers.memory.clock import Now
from workers.memory.connection import Connection, connect
from workers.memory.migrations import Migration, find_damage, is_checked_at_start, load_migrations, prepare
from workers.memory.outcome import Event, Outcome, Write
from workers.memory.sqlite_errors import (
    UnusableDatabase,
    explain,
    is_busy,
    is_damaged,
    is_of_the_file,
    primary_code,
    refusal,
)

log = logging.getLogger("olympus.memory")

T = TypeVar("T")

# Writes committed together, at most, unless the settings say otherwise. A sync costs the same for one and for many; a
# longer batch would only let the first of them wait for the last.
MAX_BATCH: Final = 128

# Page caches, KiB. The writer touches more pages per transaction than a reader does per request.
WRITER_CACHE_KIB: Final = 8_192
READER_CACHE_KIB: Final = 2_048

# Bytes of a value, at most, that a look-up in the event loop reads: unpacking 64 KiB takes a fraction of a millisecond, 15
# MB a tenth of a second.
HERE_MAX_BYTES: Final = 65_536

# Seconds after opening until a file too large for a check at start is checked: the rest of the start has the disk first.
CHECK_AFTER_S: Final = 10.0

OnCommitted = Callable[[Sequence[Event]], None]


class _Waiting(NamedTuple):
    job: Job
    answer: asyncio.Future[Any]


class Database:
    """Reads and durable writes on one SQLite file. `open` makes one; `close` ends its threads.

    A write that fails leaves its neighbours in the batch alone. Nobody is answered before the commit they were part of has returned. `on_committed` is called after each batch with its
    events, whether or not the caller still waits.

    A file that is too large to be checked at start is checked while it serves.
    """

    def __init__(
        self, path: Path, writer: Connection, now: Now, on_committed: OnCommitted, max_batch: int, figures: Figures
    ) -> None:
        self.path = path
        self._refused = ""
        self._damage = ""
        self._checking: asyncio.Task[None] | None = None
        # How often anything was committed; counted before anybody is answered.
        self.commits = 0
        self._max_batch = max_batch
        self._writer = writer
        self._now = now
        self._on_committed = on_committed
        self._readers: list[Connection] = []
        self._idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        self._freeing: set[asyncio.Task[None]] = set()
        self._waiting: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._is_closed = False
        self._committing: asyncio.Task[None] | None = None
        self._here: sqlite3.Connection | None = None
        # Kept because asyncio.get_running_loop() costs a system call in Python 3.11.
        self._loop = asyncio.get_running_loop()
        self._commits = figures.counter(MEMORY_COMMITS)
        self._writes = figures.counter(MEMORY_WRITES)
        self._commit_s = figures.histogram(MEMORY_COMMIT_SECONDS)
        figures.read(MEMORY_WRITES_WAITING, lambda: only(self._waiting.qsize()))

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        readers: int,
        now: Now,
        on_committed: OnCommitted,
        max_batch: int = MAX_BATCH,
        migrations: Sequence[Migration] | None = None,
        figures: Figures | None = None,
    ) -> Self:
        """The database at `path`, created or migrated as needed; counts in `figures`. Raises UnusableDatabase."""
        _make_file(path)
        writer = Connection(path, cache_kib=WRITER_CACHE_KIB)
        database = cls(path, writer, now, on_committed, max_batch, figures or Figures())
        try:
            # Asked before the migrations, which may make a small file a large one.
            is_checked = is_checked_at_start(path)
            await writer
            await writer.run(lambda connection: prepare(connection, path, migrations or load_migrations()))
            for _ in range(readers):
                reader = Connection(path, cache_kib=READER_CACHE_KIB, is_reader=True)
                database._readers.append(reader)
                await reader
                database._idle.put_nowait(reader)
            database._here = connect(path, cache_kib=READER_CACHE_KIB, is_reader=True)
            database._here.execute("PRAGMA busy_timeout = 0")
            # Past it SQLite says SQLITE_TOOBIG before it has read the value.
            database._here.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, HERE_MAX_BYTES)
        except sqlite3.Error as error:
            await database.close()
            raise refusal(error, path) from error
        except BaseException:
            await database.close()
            raise
        database._committing = asyncio.create_task(database._commit_forever(), name="memory writer")
        if not is_checked:
            database._checking = asyncio.create_task(database._check(), name="memory check")
        return database

    async def close(self) -> None:
        """Finish the writes already handed in, then close every connection."""
        self._is_closed = True
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        if self._committing is not None:
            self._waiting.put_nowait(None)
            await self._committing
        self._end_snapshot()
        if self._here is not None:
            self._here.close()
            self._here = None
        await asyncio.gather(*self._freeing)
        # The writer last: whoever closes last folds the log back into the file.
        for connection in (*self._readers, self._writer):
            await connection.close()

    @property
    def problem(self) -> str:
        """Why the disk did not take what was last written, "" when it did; damage once met is told until `replaced`."""
        return self._damage or self._refused

    @property
    def has_idle_reader(self) -> bool:
        """Nobody would wait longer for a `read` that is begun now."""
        return not self._idle.empty()

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` reads, on a connection that sees everything committed so far."""
        reader = await self._idle.get()
        is_given_up = False
        try:
            return await reader.run(function)
        except sqlite3.Error as error:
            self._note_unreadable(error)
            raise explain(error, self.path) from error
        except asyncio.CancelledError:
            is_given_up = True
            raise
        finally:
            if is_given_up:
                # Its thread is still at it, and whoever took this reader now would wait for that.
                freeing = asyncio.create_task(self._free_again(reader), name="memory reader")
                self._freeing.add(freeing)
                freeing.add_done_callback(self._freeing.discard)
            else:
                self._idle.put_nowait(reader)

    async def _free_again(self, reader: Connection) -> None:
        await reader.give_up()
        self._idle.put_nowait(reader)

    async def read_here(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` reads, run in the event loop: for the look-up of one row, a few microseconds.

        Handing it to a thread and back would cost ten times as much. Where SQLite would have to wait for a lock, or the
        row holds more than HERE_MAX_BYTES, it goes to a thread after all.
        """
        if self._here is not None:
            try:
                return function(self._snapshot(self._here))
            except sqlite3.Error as error:
                if not is_busy(error) and primary_code(error) != sqlite3.SQLITE_TOOBIG:
                    self._note_unreadable(error)
                    raise explain(error, self.path) from error
        return await self.read(function)

    def _snapshot(self, here: sqlite3.Connection) -> sqlite3.Connection:
        # One read transaction for all look-ups of one turn of the loop: opening one costs more than the look-up.
        if not here.in_transaction:
            here.execute("BEGIN")
            self._loop.call_soon(self._end_snapshot)
        return here

    def _end_snapshot(self) -> None:
        if self._here is not None and self._here.in_transaction:
            self._here.execute("COMMIT")

    async def write(self, write: Write, once: Once | None = None) -> Any:
        """The reply of `write` once it is on disk; what it raised where it failed, and then nothing of it is stored.

        With `once` it happens once per request id. A caller that gives up while the write waits in the queue takes it
        back; once begun it is carried through. `write` may be run twice, the first time rolled back.
        """
        if self._is_closed:
            raise Internal("the memory service is stopping; nothing was written")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.put_nowait(_Waiting(Job(write, once), answer))
        return await answer

    async def exclusively(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` does in the writer's thread, between two batches and outside any transaction."""
        try:
            result = await self._writer.run(function)
        except sqlite3.Error as error:
            raise explain(error, self.path) from error
        # Whoever looks from here on must see what was done.
        self.commits += 1
        self._end_snapshot()
        return result

    async def replaced(self) -> None:
        """The content is another now: nothing is told of the old one any more, and the new one is checked."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        self._damage = self._refused = ""
        if not self._is_closed:
            self._checking = asyncio.create_task(self._check(), name="memory check")

    async def _commit_forever(self) -> None:
        is_open = True
        while is_open:
            entries = [await self._waiting.get()]
            while len(entries) < self._max_batch and not self._waiting.empty():
                entries.append(self._waiting.get_nowait())
            is_open = None not in entries
            batch = [entry for entry in entries if entry is not None and not entry.answer.done()]
            if batch:
                await self._commit(batch)

    async def _commit(self, batch: list[_Waiting]) -> None:
        jobs = [entry.job for entry in batch]
        began = time.perf_counter()
        try:
            outcomes = await self._writer.run(partial(run, jobs=jobs, now=self._now()))
        except Exception as error:  # noqa: BLE001 - every waiter is told, and the writer goes on with the next batch
            self._note_problem(error)
            for entry in batch:
                _fail(entry, error, self.path)
            return
        self.commits += 1
        self._commits.add()
        self._writes.add(by=len(batch))
        self._commit_s.observe(time.perf_counter() - began)
        # Whoever is answered now must see the write, also in this turn of the loop.
        self._end_snapshot()
        self._on_committed([event for outcome in outcomes if isinstance(outcome, Outcome) for event in outcome.events])
        for entry, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._note_problem(outcome)
                _fail(entry, outcome, self.path)
            else:
                self._note_success()
                if not entry.answer.done():
                    entry.answer.set_result(outcome.reply)

    async def _check(self) -> None:
        """Look for damage once, on a connection of its own, so that no reading waits for it.

        It reads one state of the file, so the log grows by what is written meanwhile.
        """
        await asyncio.sleep(CHECK_AFTER_S)
        checker = Connection(self.path, cache_kib=READER_CACHE_KIB, is_reader=True)
        try:
            await checker
            damage = await checker.run(find_damage)
        except sqlite3.Error as error:
            self._note_unreadable(error)
        except asyncio.CancelledError:
            # Closing would wait for the rest of the check.
            await checker.give_up()
            raise
        else:
            if damage:
                self._note_damage(damage)
        finally:
            await checker.close()

    def _note_problem(self, error: Exception) -> None:
        """What SQLite says of the disk and the file is of concern to everybody; what it says of one write is not."""
        if isinstance(error, sqlite3.Error) and is_of_the_file(error):
            if is_damaged(error):
                self._note_damage(str(error))
                return
            reason = explain(error, self.path).message
            if reason != self._refused:
                log.error("database failed", extra={"action": "memory.database.failed", "reason": reason})
            self._refused = reason

    def _note_success(self) -> None:
        if self._refused:
            log.info("database works again", extra={"action": "memory.database.recovered"})
        self._refused = ""

    def _note_unreadable(self, error: sqlite3.Error) -> None:
        """As `_note_problem`, of a reading; a lock that it met in vain says nothing of the next one."""
        if is_damaged(error) or primary_code(error) == sqlite3.SQLITE_IOERR:
            self._note_problem(error)

    def _note_damage(self, damage: str) -> None:
        # What is damaged stays so whatever is written elsewhere in the file.
        if not self._damage:
            self._damage = (
                f"{self.path.name} is damaged ({damage}): stop the service and restore a backup with"
                " `olympus memory restore`"
            )
            log.error("database damaged", extra={"action": "memory.database.damaged", "reason": damage})


def _fail(entry: _Waiting, error: Exception, path: Path) -> None:
    if entry.answer.done():
        return
    if isinstance(error, sqlite3.Error):
        explained = explain(error, path)
        explained.__cause__ = error
        entry.answer.set_exception(explained)
    else:
        entry.answer.set_exception(error)


def _make_file(path: Path) -> None:
    """Create the file and its folder for this user alone: what people tell a memory is private."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise UnusableDatabase(
            f"{path} cannot be opened for writing ({error.strerror}): give this user write access to it and to its"
            " folder, or name another file with memory.path"
        ) from error
