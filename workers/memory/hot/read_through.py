"""Copies of records in a hot tier, so that a read need not go to the records; the copy always loses.

    copies = ReadThrough(tier, "sessions", "session", Session, ttl_s=600)
    session = await copies.get(session_id, lambda: records.read(...))

    def on_committed(events): ...            for each record that the commit changed:
        copies.drop(session_id)              from here on nobody reads what was before

An invalidation wins against every load that began before it, also against one whose copy is just being stored. It
belongs where commits are announced: a request that is cancelled while its write is under way does not come back to
invalidate anything. A copy that cannot be removed, because the tier itself fails, makes all copies untrusted until they
could be removed together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Final, Generic, TypeVar

import msgspec

from schemas.errors import BusError
from workers.memory.clock import Now, SteadyClock
from workers.memory.hot.tier import HotTier, Space

log = logging.getLogger("olympus.memory")

T = TypeVar("T")

# Seconds between two attempts to remove all copies after one could not be removed.
RETRY_INTERVAL_S: Final = 1.0


class _Busy:
    """A key that is being loaded, stored or removed: how often it was invalidated since, and how many are at it."""

    def __init__(self) -> None:
        self.invalidations = 0
        self.removals = 0
        self.users = 0
        self.turn = asyncio.Lock()


class ReadThrough(Generic[T]):
    """Copies of records of one type, under `name` in one space of the tier.

    `record` is the type, as msgspec decodes it. Nobody else may write under `name` in that space. `load` functions read
    the committed records.
    """

    def __init__(
        self, tier: HotTier, space: Space, name: str, record: type[T], *, ttl_s: float, now: Now | None = None
    ) -> None:
        self._tier = tier
        self._space = space
        self._prefix = f"{name}:"
        self._ttl_s = ttl_s
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder = msgspec.msgpack.Decoder(record)
        self._now = now or SteadyClock()
        self._busy: dict[str, _Busy] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._removals_of_all = 0
        self._untrusted_until: float | None = None

    async def get(self, key: str, load: Callable[[], Awaitable[T]]) -> T:
        """The copy of `key`, or what `load` returns, of which a copy is kept unless it is None.

        Raises what `load` raises. Errors of the tier are logged: they cost time, never the answer.
        """
        copy = await self._copy(key)
        if copy is not None:
            return copy
        busy = self._enter(key)
        try:
            invalidations = busy.invalidations
            record = await load()
            if record is not None and self._untrusted_until is None:
                # A task of its own: a caller that gives up must not leave a copy half stored behind an invalidation.
                await asyncio.shield(self._start(self._store(key, record, self._enter(key), invalidations)))
            return record
        finally:
            self._leave(key, busy)

    def drop(self, key: str) -> asyncio.Task[None]:
        """Nobody reads a copy of `key` that was loaded before this call; the task ends when it is removed, too."""
        busy = self._enter(key)
        busy.invalidations += 1
        busy.removals += 1
        return self._start(self._remove(key, busy))

    def drop_all(self) -> asyncio.Task[None]:
        """As `drop`, for every key."""
        for busy in self._busy.values():
            busy.invalidations += 1
        self._removals_of_all += 1
        return self._start(self._remove_all(list(self._busy.values())))

    async def settle(self) -> None:
        """Wait for everything that is being stored or removed."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def _copy(self, key: str) -> T | None:
        busy = self._busy.get(key)
        if self._removals_of_all or (busy is not None and busy.removals):
            return None
        if self._untrusted_until is not None and not await self._is_trusted_again():
            return None
        try:
            stored = await self._tier.get(self._space, self._prefix + key)
            return None if stored is None else self._decoder.decode(stored)
        except BusError as error:
            log.warning("copy not read", extra={"action": "memory.hot.failed", "reason": error.message})
        except msgspec.MsgspecError:
            # Written by a program with another idea of the record.
            log.debug("copy not understood", extra={"action": "memory.hot.outdated", "name": self._prefix})
        return None

    async def _store(self, key: str, record: T, busy: _Busy, invalidations: int) -> None:
        try:
            async with busy.turn:
                if busy.invalidations == invalidations:
                    await self._tier.set(self._space, self._prefix + key, self._encode(record), ttl_s=self._ttl_s)
        except BusError as error:
            log.warning("copy not kept", extra={"action": "memory.hot.failed", "reason": error.message})
        finally:
            self._leave(key, busy)

    async def _remove(self, key: str, busy: _Busy) -> None:
        try:
            async with busy.turn:
                await self._tier.delete(self._space, self._prefix + key)
        except BusError as error:
            self._distrust(error)
        finally:
            busy.removals -= 1
            self._leave(key, busy)

    async def _remove_all(self, others: list[_Busy]) -> None:
        try:
            await self._remove_after(others)
        except BusError as error:
            self._distrust(error)
        finally:
            self._removals_of_all -= 1

    async def _remove_after(self, others: Iterable[_Busy]) -> None:
        """Remove every copy once those who were just storing one have done so."""
        for busy in others:
            async with busy.turn:
                pass
        await self._tier.delete_prefix(self._space, self._prefix)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _enter(self, key: str) -> _Busy:
        busy = self._busy.setdefault(key, _Busy())
        busy.users += 1
        return busy

    def _leave(self, key: str, busy: _Busy) -> None:
        busy.users -= 1
        if not busy.users:
            del self._busy[key]

    def _distrust(self, error: BusError) -> None:
        self._untrusted_until = self._now() + RETRY_INTERVAL_S
        log.warning("copies not trusted", extra={"action": "memory.hot.failed", "reason": error.message})

    async def _is_trusted_again(self) -> bool:
        assert self._untrusted_until is not None
        if self._now() < self._untrusted_until:
            return False
        self._untrusted_until = self._now() + RETRY_INTERVAL_S
        try:
            await self._remove_after(list(self._busy.values()))
        except BusError:
            return False
        self._untrusted_until = None
        return True
