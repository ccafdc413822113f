"""The hot tier on a file of its own: alone where no Redis is configured, and what takes over while Redis is away."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

from schemas.errors import BusError, Internal
from workers.memory.clock import Now
from workers.memory.hot import entries
from workers.memory.hot.hot_file import HotFile, close_file, move_aside, open_file
from workers.memory.hot.tier import (
    MAX_VALUE_BYTES,
    Entry,
    Size,
    Space,
    SpaceStats,
    Tally,
    TierState,
    check_size,
    family_of,
    key_bytes,
    prefix_bytes,
    ttl_ms,
)
from workers.memory.sqlite_errors import explain, is_damaged

log = logging.getLogger("olympus.memory")

T = TypeVar("T")

# Values up to this many bytes are read in the event loop (6 microseconds, against 70 through the thread); copying a
# longer one out of its pages would hold up everybody else.
READ_HERE_MAX_BYTES: Final = 64 * 1024

# Writes committed together, at most.
MAX_BATCH: Final = 128

# Seconds between two looks for expired entries, which nobody sees meanwhile.
UPKEEP_INTERVAL_S: Final = 1.0

# Seconds during which reads of an entry count as one use: eviction need not know better, and a use is a write.
USE_PRECISION_S: Final = 60.0


class _Waiting(NamedTuple):
    function: Callable[[sqlite3.Connection], Any]
    is_synced: bool
    answer: asyncio.Future[Any]


class SqliteTier:
    """A `HotTier` on the file at `path`. `open` makes one.

    Reads of small values happen in the event loop, everything else in the writer's thread, where whatever waits is
    committed together. A write is visible to every read that begins after it returned.
    """

    def __init__(self, path: Path, file: HotFile, *, max_bytes: int, now: Now) -> None:
        self._path = path
        self._file = file
        self._max_bytes = max_bytes
        self._now = now
        self._tally = Tally()
        self._families: set[str] = set()
        self._used: set[int] = set()
        self._waiting: list[_Waiting] = []
        self._committing: asyncio.Task[None] | None = None
        self._is_closed = False

    @classmethod
    async def open(cls, path: Path, *, max_bytes: int, now: Now, usual_families: Sequence[str] = ()) -> Self:
        """The tier at `path`, made where it is not. Raises UnusableDatabase where no file can be made.

        `usual_families` are taken for the known ones when a damaged file took what it knew with it.
        """
        file = await open_file(path)
        tier = cls(path, file, max_bytes=max_bytes, now=now)
        try:
            if file.was_remade:
                await file.writer.run(partial(_begin_again, families=usual_families))
            tier._families = set(await tier._write(entries.families))
        except BaseException:
            await tier.close()
            raise
        return tier

    async def close(self) -> None:
        """Finish the writes already handed in, then close the file."""
        self._is_closed = True
        if self._committing is not None:
            await self._committing
        await close_file(self._file)

    # Reads ------------------------------------------------------------------------------------------------------

    async def get(self, space: Space, key: str) -> bytes | None:
        """The value, None when absent."""
        found = await self._find(space, key)
        return None if found is None else found.value

    async def look(self, space: Space, key: str) -> Entry | None:
        """The value with the time it has left."""
        found = await self._find(space, key)
        return None if found is None else entries.entry(found, self._now())

    async def measure(self, space: Space, *prefixes: str) -> Size:
        """What is stored under any of the prefixes."""
        packed, now = [prefix_bytes(prefix) for prefix in prefixes], self._now()
        return await self._write(lambda connection: entries.measure(connection, space, packed, now))

    async def stats(self, space: Space, *prefixes: str) -> SpaceStats:
        """What is stored under the prefixes, with the hits and misses of the whole space."""
        return self._tally.stats(space, await self.measure(space, *prefixes))

    def state(self) -> TierState:
        """Always as configured, as far as this tier knows."""
        return TierState("sqlite", None)

    def families(self) -> list[str]:
        """What the keys written to the cache start with, each up to its first colon."""
        return sorted(self._families)

    # Writes -----------------------------------------------------------------------------------------------------

    async def set(self, space: Space, key: str, value: bytes, *, ttl_s: float | None) -> None:
        """Store the value, whatever was there. Raises TooLarge."""
        packed, now, ends = key_bytes(key), self._now(), self._ends(ttl_s)
        check_size(value, min(MAX_VALUE_BYTES, self._max_bytes // 2))
        family = family_of(key)
        is_new_family = space == "cache" and family not in self._families

        def write(connection: sqlite3.Connection) -> None:
            entries.put(connection, space, packed, value, now=now, expires_at=ends)
            if is_new_family:
                entries.add_family(connection, family)
            evicted = entries.evict(connection, self._max_bytes)
            if evicted:
                log.debug("hot tier evicted", extra={"action": "memory.hot.evicted", "entries": evicted})

        await self._write(write)
        if is_new_family:
            self._families.add(family)

    async def delete(self, space: Space, key: str) -> bool:
        """Remove the key; True when it was there."""
        packed, now = key_bytes(key), self._now()
        return await self._write(lambda connection: entries.remove(connection, space, packed, now=now))

    async def delete_prefix(self, space: Space, *prefixes: str) -> int:
        """Remove every key that starts with one of them; how many those were."""
        packed, now = [prefix_bytes(prefix) for prefix in prefixes], self._now()
        return await self._write(lambda connection: entries.remove_prefixes(connection, space, packed, now))

    async def increment(self, space: Space, key: str, *, ttl_s: float | None) -> int:
        """Add one and return the sum; `ttl_s` holds for a key that starts here. Raises Conflict."""
        packed, now, ends = key_bytes(key), self._now(), self._ends(ttl_s)
        return await self._write(
            lambda connection: entries.increment(connection, space, packed, now=now, expires_at=ends)
        )

    async def touch(self, space: Space, key: str, *, ttl_s: float) -> bool:
        """Give the key `ttl_s` from now; False when it is absent."""
        packed, now, ends = key_bytes(key), self._now(), self._ends(ttl_s)
        return await self._write(lambda connection: entries.touch(connection, space, packed, now=now, expires_at=ends))

    # For the tier that stands before this one -------------------------------------------------------------------

    async def remember_family(self, key: str) -> None:
        """Keep on disk what `key` starts with, so that it can be dropped from Redis one day. Free when it is known."""
        family = family_of(key)
        if family not in self._families:
            await self._write(partial(entries.add_family, prefix=family), is_synced=True)
            self._families.add(family)

    async def begin_outage(self) -> None:
        """Keep on disk that no Redis has what is written from now on."""
        await self._write(entries.begin_outage, is_synced=True)

    async def end_outage(self, server: str, generation: str) -> None:
        """That process of a Redis has everything, under that generation."""
        await self._write(partial(entries.end_outage, server=server, generation=generation))

    async def generation_at(self, server: str) -> str | None:
        """The generation of that process; None where it missed something, in this process of ours or one before it."""
        return await self._write(partial(entries.generation_at, server=server))

    async def newest_id(self) -> int:
        """The id of the newest row, all earlier writes considered."""
        return await self._write(entries.newest_id)

    async def rows_between(
        self, space: Space, last_id: int, up_to: int, *, max_rows: int, max_bytes: int
    ) -> list[entries.Row]:
        """The next rows to hand over: behind `last_id`, up to and with `up_to`."""
        now = self._now()
        return await self._write(
            lambda connection: entries.rows_between(
                connection, space, last_id, up_to, now, max_rows=max_rows, max_bytes=max_bytes
            )
        )

    async def remove_rows(self, ids: Sequence[int]) -> None:
        """Remove rows that were handed over, and no later ones of the same keys."""
        await self._write(lambda connection: entries.remove_rows(connection, ids))

    # Upkeep -----------------------------------------------------------------------------------------------------

    async def tend_forever(self) -> None:
        """Remove what has expired and note what was used, until cancelled."""
        while True:
            await asyncio.sleep(UPKEEP_INTERVAL_S)
            try:
                await self.sweep()
            except BusError as error:
                log.warning("hot tier not swept", extra={"action": "memory.hot.failed", "reason": error.message})

    async def sweep(self) -> None:
        """Remove what has expired. Costs one look when nothing has."""
        used, self._used = self._used, set()
        now = self._now()
        if used:
            await self._write(lambda connection: entries.mark_used(connection, used, now))
        while await self._read(lambda connection: entries.has_expired(connection, now)):
            await self._write(lambda connection: entries.sweep(connection, now))

    # How it is done ---------------------------------------------------------------------------------------------

    async def _find(self, space: Space, key: str) -> entries.Found | None:
        packed, now = key_bytes(key), self._now()
        found = await self._read(partial(entries.find, space=space, key=packed, now=now, max_bytes=READ_HERE_MAX_BYTES))
        if found is not None and found.value is None:
            found = await self._write(
                partial(entries.find, space=space, key=packed, now=now, max_bytes=MAX_VALUE_BYTES)
            )
        self._counted(space, found, now)
        return found

    def _counted(self, space: Space, found: entries.Found | None, now: float) -> None:
        self._tally.count(space, found is not None)
        if found is not None and now - found.used_at > USE_PRECISION_S:
            self._used.add(found.id)

    def _ends(self, ttl_s: float | None) -> float:
        return math.inf if ttl_s is None else self._now() + ttl_ms(ttl_s) / 1000

    async def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return function(self._file.reader)
        except sqlite3.Error:
            # Locked, or damaged: the writer's thread waits for the one and repairs the other.
            return await self._write(function)

    async def _write(self, function: Callable[[sqlite3.Connection], T], *, is_synced: bool = False) -> T:
        """What `function` returns once it is committed; `is_synced`: and safe from the power."""
        if self._is_closed:
            raise Internal("the hot tier is closed")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(function, is_synced, answer))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_waiting(), name="memory hot writer")
        return await answer

    async def _commit_waiting(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                batch = [waiting for waiting in taken if not waiting.answer.done()]
                if batch:
                    await self._commit(batch)
        finally:
            self._committing = None

    async def _commit(self, batch: list[_Waiting]) -> None:
        functions = [waiting.function for waiting in batch]
        is_synced = any(waiting.is_synced for waiting in batch)
        try:
            outcomes = await self._run(partial(_run_batch, functions=functions, is_synced=is_synced))
        except Exception as error:  # noqa: BLE001 - every waiter is told, and the next batch is tried
            outcomes = [explain(error, self._path) if isinstance(error, sqlite3.Error) else error] * len(batch)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(outcome, Exception):
                waiting.answer.set_exception(outcome)
            else:
                waiting.answer.set_result(outcome)

    async def _run(self, run: Callable[[sqlite3.Connection], list[Any]]) -> list[Any]:
        try:
            return await self._file.writer.run(run)
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            reason = str(error)
        await close_file(self._file)
        move_aside(self._path, reason)
        self._file = await open_file(self._path)
        await self._file.writer.run(partial(_begin_again, families=sorted(self._families)))
        return await self._file.writer.run(run)


def _run_batch(
    connection: sqlite3.Connection, *, functions: list[Callable[[sqlite3.Connection], Any]], is_synced: bool
) -> list[Any]:
    """What each function returned or, refusing before it wrote anything, raised; all are committed or none."""
    connection.execute(f"PRAGMA synchronous = {'FULL' if is_synced else 'NORMAL'}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        outcomes = [_outcome(function, connection) for function in functions]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return outcomes


def _outcome(function: Callable[[sqlite3.Connection], Any], connection: sqlite3.Connection) -> Any:
    try:
        return function(connection)
    except BusError as error:
        return error


def _begin_again(connection: sqlite3.Connection, *, families: Sequence[str]) -> None:
    """What a file made anew has to know: under what a Redis may hold what it knows nothing of."""
    connection.execute("BEGIN IMMEDIATE")
    for family in families:
        entries.add_family(connection, family)
    connection.execute("COMMIT")
