"""The hot tier where a Redis is configured: Redis while it can be reached, the SQLite tier at once while it cannot.

             request fails or takes too long                      probe answers
    joined -----------------------------------> outage begins ----------------> hand-over ---> joined
              every request goes to SQLite        what may be old in Redis is dropped, what SQLite took is carried over

What must never be read after an outage is a value that was replaced or deleted during it. Each space has its rule:

    sessions, knowledge   Keys carry a generation that is new after each outage, so that nothing of before is reached;
                          what SQLite took meanwhile is carried over. Without an outage it outlives our process.
    cache                 Keys are those that other programs use, so they carry no generation. The first parts of all
                          keys ever written (families) are kept on disk; after an outage everything under them is
                          dropped from Redis, and what was cached meanwhile is carried over.
    auth                  Counters and marks that must not be forgotten. Every write also goes to SQLite, which therefore
                          always has them all and is read first, whatever a full Redis evicts. A new generation in Redis
                          is filled from there; where the file is lost Redis still has them.

SQLite keeps on disk which process of a server has everything. Whatever else answers was away, for ever or for a while.
Requests given up on may still lie in the server's buffers: their connections are ended before anything is handed over.
A server that was restarted may have loaded an old state: RedisTier notices, and that is an outage too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Self, TypeVar

import tenacity

from schemas.errors import BusError
from workers.memory.clock import Now
from workers.memory.hot.redis_tier import RedisTier
from workers.memory.hot.sqlite_tier import SqliteTier
from workers.memory.hot.tier import (
    MAX_KEY_BYTES,
    SPACES,
    Entry,
    OnLost,
    Size,
    Space,
    Spaces,
    SpaceStats,
    Tally,
    TierState,
    TierUnavailable,
    key_bytes,
)

log = logging.getLogger("olympus.memory")

T = TypeVar("T")

# Seconds between two attempts to reach a lost server: the first, and the longest.
PROBE_FIRST_S: Final = 0.1
PROBE_MAX_S: Final = 5.0

# Seconds between two looks whether a server that nobody asks for anything still answers.
IDLE_CHECK_S: Final = 5.0

# Seconds the start of the service waits for Redis, carrying over what was left by the last outage included.
START_S: Final = 3.0

# One step of a hand-over: rows, and about this many bytes, which have to arrive within the time of one request.
STEP_ROWS: Final = 500
STEP_BYTES: Final = 1024 * 1024

# What stands before the generation in the three databases where keys carry one.
OWN_PREFIX: Final = "olympus:"

# Bytes put before a key, at most: the prefix, the generation, two colons.
PLACE_BYTES: Final = 32

# The space of which SQLite always has everything, and those that are carried over as a whole.
MIRRORED: Final[Space] = "auth"
MOVED: Final[tuple[Space, ...]] = ("cache", "sessions", "knowledge")

# Makes a RedisTier whose connections have the given name.
Connect = Callable[[str], Awaitable[RedisTier]]

# One operation, on whichever tier and under whichever key it is told.
Act = Callable[[Spaces, str], Awaitable[T]]

# What a caller hears of a write that went to both tiers.
Merge = Callable[[T, T], T]

# What stands before the keys of each space in Redis.
Prefixes = dict[Space, str]


class _Moving:
    """A hand-over under way: what stands before the keys of each space, and what SQLite lost since it began."""

    def __init__(self, prefixes: Prefixes) -> None:
        self.prefixes = prefixes
        self.mirrored_to = 0
        self.removed: set[tuple[Space, str]] = set()
        self.has_lost_prefix = False


class FailoverTier:
    """A `HotTier` that prefers Redis. `open` makes one; `tend_forever` has to run beside it.

    After Redis was lost writes wait for `tend_forever` to keep that on disk, about a millisecond.
    """

    def __init__(self, local: SqliteTier, connect: Connect, *, on_lost: OnLost, now: Now) -> None:
        self._local = local
        self._connect = connect
        self._on_lost = on_lost
        self._now = now
        self._tally = Tally()
        self._name = f"olympus-hot-{secrets.token_hex(4)}-"
        self._redis: RedisTier | None = None
        self._lost: RedisTier | None = None
        self._reason = "not reached yet"
        self._prefixes = _prefixes(_new_generation())
        self._attempt = 0
        self._moving: _Moving | None = None
        self._may_write = asyncio.Event()
        self._mirroring = asyncio.Lock()
        self._has_changed = asyncio.Event()

    @classmethod
    async def open(cls, local: SqliteTier, connect: Connect, *, on_lost: OnLost, now: Now) -> Self:
        """The tier, on Redis where it answers within START_S, else on SQLite until it does.

        Closes `local` when it fails, which it does for an address that is none (ValueError).
        """
        tier = cls(local, connect, on_lost=on_lost, now=now)
        try:
            async with asyncio.timeout(START_S):
                await tier._join()
        except (TimeoutError, TierUnavailable) as error:
            tier._reason = str(error) or f"not joined within {START_S:g} s"
            await tier._begin_outage()
        except BaseException:
            await tier.close()
            raise
        return tier

    def state(self) -> TierState:
        """Where the entries are now, and why not on Redis."""
        if self._redis is not None:
            return TierState("redis", None)
        return TierState("sqlite", f"Redis cannot be used: {self._reason}")

    async def close(self) -> None:
        """Close both tiers; whoever still writes hears that SQLite's is closed."""
        redis, self._redis = self._redis, None
        for tier in (redis, self._lost, self._local):
            if tier is not None:
                await tier.close()
        self._may_write.set()

    # Reads ------------------------------------------------------------------------------------------------------

    async def get(self, space: Space, key: str) -> bytes | None:
        """The value, None when absent."""
        value = await self._read(space, key, lambda tier, at: tier.get(space, at))
        self._tally.count(space, value is not None)
        return value

    async def look(self, space: Space, key: str) -> Entry | None:
        """The value with the time it has left."""
        entry = await self._read(space, key, lambda tier, at: tier.look(space, at))
        self._tally.count(space, entry is not None)
        return entry

    async def measure(self, space: Space, *prefixes: str) -> Size:
        """What is stored under any of the prefixes."""
        if space == MIRRORED:
            return await self._local.measure(space, *prefixes)
        try:
            return await self._ask_redis(
                lambda redis: redis.measure(space, *(self._at_redis(space, prefix) for prefix in prefixes))
            )
        except _Away:
            return await self._local.measure(space, *prefixes)

    async def stats(self, space: Space, *prefixes: str) -> SpaceStats:
        """What is stored under the prefixes, with the hits and misses of the whole space."""
        return self._tally.stats(space, await self.measure(space, *prefixes))

    def families(self) -> list[str]:
        """What the keys written to the cache start with, each up to its first colon."""
        return self._local.families()

    # Writes -----------------------------------------------------------------------------------------------------

    async def set(self, space: Space, key: str, value: bytes, *, ttl_s: float | None) -> None:
        """Store the value, whatever was there. Raises TooLarge."""
        await self._write(space, key, lambda tier, at: tier.set(space, at, value, ttl_s=ttl_s), _nothing)

    async def delete(self, space: Space, key: str) -> bool:
        """Remove the key; True when it was there."""
        return await self._write(space, key, lambda tier, at: tier.delete(space, at), _either, removes=True)

    async def delete_prefix(self, space: Space, *prefixes: str) -> int:
        """Remove every key that starts with one of them; how many those were.

        Of the cache, which shares its database with other programs, an empty prefix means every known family.
        """
        if space == "cache" and "" in prefixes:
            prefixes = tuple(self._local.families())
        return sum([await self._delete_prefix(space, prefix) for prefix in prefixes])

    async def increment(self, space: Space, key: str, *, ttl_s: float | None) -> int:
        """Add one and return the sum; `ttl_s` holds for a key that starts here. Raises Conflict."""
        return await self._write(space, key, lambda tier, at: tier.increment(space, at, ttl_s=ttl_s), max)

    async def touch(self, space: Space, key: str, *, ttl_s: float) -> bool:
        """Give the key `ttl_s` from now; False when it is absent."""
        return await self._write(space, key, lambda tier, at: tier.touch(space, at, ttl_s=ttl_s), _either)

    async def _delete_prefix(self, space: Space, prefix: str) -> int:
        return await self._write(
            space, prefix, lambda tier, at: tier.delete_prefix(space, at), max, removes=True, is_prefix=True
        )

    # Which tier is asked ----------------------------------------------------------------------------------------

    async def _ask_redis(self, ask: Callable[[RedisTier], Awaitable[T]]) -> T:
        """What Redis answers. Raises _Away when it is away, which this call may be the first to notice."""
        while (redis := self._redis) is not None:
            try:
                return await ask(redis)
            except TierUnavailable as error:
                self._lose(redis, str(error))
        raise _Away

    async def _read(self, space: Space, key: str, act: Act[T | None]) -> T | None:
        _check_key(key)
        if space == MIRRORED and (mirrored := await act(self._local, key)) is not None:
            return mirrored
        try:
            return await self._ask_redis(lambda redis: act(redis, self._at_redis(space, key)))
        except _Away:
            return await act(self._local, key)

    async def _write(
        self, space: Space, key: str, act: Act[T], merge: Merge[T], *, removes: bool = False, is_prefix: bool = False
    ) -> T:
        if key or not is_prefix:
            _check_key(key)
        if space == MIRRORED:
            # In turn, or two at once could be first in one tier each.
            async with self._mirroring:
                return await self._write_both(key, act, merge, removes=removes, is_prefix=is_prefix)
        if space == "cache":
            await self._local.remember_family(key)
        while True:
            try:
                return await self._ask_redis(lambda redis: act(redis, self._at_redis(space, key)))
            except _Away:
                await self._may_write.wait()
            # From here to the local write's place in its queue nothing else runs: a hand-over sees all of it or none.
            if self._redis is None and self._may_write.is_set():
                self._note(space, key, removes=removes, is_prefix=is_prefix)
                return await act(self._local, key)

    async def _write_both(self, key: str, act: Act[T], merge: Merge[T], *, removes: bool, is_prefix: bool) -> T:
        while not self._may_write.is_set():
            await self._may_write.wait()
        redis = self._redis
        if redis is None:
            self._note(MIRRORED, key, removes=removes, is_prefix=is_prefix)
        mine = await act(self._local, key)
        # A server lost or joined since then was or will be filled from what has just been written.
        if redis is None or redis is not self._redis:
            return mine
        try:
            return merge(mine, await act(redis, self._at_redis(MIRRORED, key)))
        except TierUnavailable as error:
            self._lose(redis, str(error))
            return mine

    def _at_redis(self, space: Space, key: str) -> str:
        return self._prefixes[space] + key

    def _note(self, space: Space, key: str, *, removes: bool, is_prefix: bool) -> None:
        """Tell a hand-over that is under way what it cannot see in SQLite: what is no longer there."""
        if self._moving is None:
            return
        if is_prefix:
            self._moving.has_lost_prefix = True
        elif removes:
            self._moving.removed.add((space, key))
        else:
            self._moving.removed.discard((space, key))

    def _lose(self, redis: RedisTier, reason: str) -> None:
        """Redis could not do what it was asked; everything goes to SQLite from now on."""
        if redis is not self._redis:
            return
        self._redis, self._lost = None, redis
        self._reason = reason
        self._may_write.clear()
        self._has_changed.set()

    # Losing and joining -----------------------------------------------------------------------------------------

    async def tend_forever(self) -> None:
        """Join Redis again whenever it was lost, and keep both tiers tidy, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._local.tend_forever(), name="memory hot sweep")
            tasks.create_task(self._stay_joined(), name="memory hot tier")

    async def _stay_joined(self) -> None:
        while True:
            if self._redis is None:
                await self._sit_out()
            await self._tidy()
            await self._until_lost()

    async def _begin_outage(self) -> None:
        """Keep the loss on disk and tell it; from then on SQLite takes writes."""
        try:
            await self._local.begin_outage()
        except BusError as error:
            log.warning("outage not kept on disk", extra={"action": "memory.hot.failed", "reason": error.message})
        self._may_write.set()
        log.warning("redis lost", extra={"action": "memory.hot.lost", "reason": self._reason})
        self._on_lost(f"hot tier is on SQLite: {self.state().degraded}")

    async def _sit_out(self) -> None:
        began = self._now()
        if self._lost is not None:
            await self._begin_outage()
            await self._lost.close()
            self._lost = None
        await self._joining()(self._join)
        log.info("redis joined", extra={"action": "memory.hot.joined", "away_s": self._now() - began})

    def _joining(self) -> tenacity.AsyncRetrying:
        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((TierUnavailable, BusError)),
            wait=tenacity.wait_random_exponential(multiplier=PROBE_FIRST_S, max=PROBE_MAX_S),
            before_sleep=self._keep_reason,
        )

    def _keep_reason(self, attempt: tenacity.RetryCallState) -> None:
        if attempt.outcome is not None:
            self._reason = str(attempt.outcome.exception())

    async def _join(self) -> None:
        """Make Redis the tier in use. Raises TierUnavailable."""
        self._attempt += 1
        name = f"{self._name}{self._attempt}"
        redis = await self._connect(name)
        try:
            await redis.end_connections(self._name, but=name)
            await self._hand_over(redis)
        except BaseException:
            await redis.close()
            raise
        finally:
            self._moving = None

    async def _hand_over(self, redis: RedisTier) -> None:
        kept = await self._local.generation_at(redis.server)
        if kept is None:
            await redis.delete_prefix("cache", *self._local.families())
        generation = kept or _new_generation()
        moving = self._moving = _Moving(_prefixes(generation))
        # What is there now goes while SQLite still serves; the rest, which came meanwhile, while nobody writes.
        await self._move(redis, moving, up_to=await self._local.newest_id())
        self._may_write.clear()
        try:
            await self._move(redis, moving, up_to=await self._local.newest_id())
            if moving.has_lost_prefix:
                raise TierUnavailable("entries were dropped by prefix during the hand-over, which begins again")
            for space, key in moving.removed:
                await redis.delete(space, moving.prefixes[space] + key)
            await self._local.end_outage(redis.server, generation)
            self._redis, self._prefixes = redis, moving.prefixes
        finally:
            self._may_write.set()

    async def _move(self, redis: RedisTier, moving: _Moving, *, up_to: int) -> None:
        """Bring the rows of SQLite up to that id to Redis: most go over, mirrored ones are copied."""
        for space in MOVED:
            while rows := await self._local.rows_between(space, 0, up_to, max_rows=STEP_ROWS, max_bytes=STEP_BYTES):
                await redis.set_rows(space, rows, prefix=moving.prefixes[space])
                await self._local.remove_rows([row.id for row in rows])
        while rows := await self._local.rows_between(
            MIRRORED, moving.mirrored_to, up_to, max_rows=STEP_ROWS, max_bytes=STEP_BYTES
        ):
            await redis.set_rows(MIRRORED, rows, prefix=moving.prefixes[MIRRORED])
            moving.mirrored_to = rows[-1].id

    async def _tidy(self) -> None:
        """Remove from Redis what no generation in use can reach."""
        try:
            for space in SPACES:
                if self._prefixes[space]:
                    await self._ask_redis(partial(self._keep_current, space))
        except (_Away, BusError) as error:
            log.info("hot tier not tidied", extra={"action": "memory.hot.failed", "reason": str(error)})

    async def _keep_current(self, space: Space, redis: RedisTier) -> None:
        await redis.keep_only(space, OWN_PREFIX, self._at_redis(space, ""))

    async def _until_lost(self) -> None:
        while self._redis is not None:
            self._has_changed.clear()
            try:
                async with asyncio.timeout(IDLE_CHECK_S):
                    await self._has_changed.wait()
            except TimeoutError:
                with contextlib.suppress(_Away):
                    await self._ask_redis(lambda redis: redis.check())


class _Away(Exception):
    """Redis is not in use."""


def _check_key(key: str) -> None:
    """Raises BadRequest for a key that would be none or too long with what is put before it."""
    key_bytes(key, limit_bytes=MAX_KEY_BYTES - PLACE_BYTES)


def _prefixes(generation: str) -> Prefixes:
    """Everything of the mirrored space is brought anew each time, so its own generation is, too."""
    kept, mirrored = f"{OWN_PREFIX}{generation}:", f"{OWN_PREFIX}{_new_generation()}:"
    return {"cache": "", "sessions": kept, "knowledge": kept, "auth": mirrored}


def _new_generation() -> str:
    return secrets.token_hex(6)


def _either(mine: bool, other: bool) -> bool:
    return mine or other


def _nothing(mine: None, other: None) -> None:
    return None
