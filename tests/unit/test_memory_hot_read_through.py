"""Copies of records: an invalidation wins against whatever is under way."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from schemas.errors import Internal
from workers.memory.hot.read_through import RETRY_INTERVAL_S, ReadThrough


class Record(msgspec.Struct):
    """Something that is copied."""

    version: int


class Tier:
    """Copies in a map; every request waits for `gate` before it takes effect, or fails while `is_failing`."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self.held: dict[str, bytes] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_failing = False
        self._chance = chance

    async def get(self, space: str, key: str) -> bytes | None:
        await self._take_time()
        found = self.held.get(key)
        await self._take_time()
        return found

    async def set(self, space: str, key: str, value: bytes, *, ttl_s: float | None) -> None:
        # Once sent it is carried out, whether or not the caller still waits.
        await asyncio.shield(asyncio.create_task(self._set(key, value)))

    async def _set(self, key: str, value: bytes) -> None:
        await self._take_time()
        self.held[key] = value
        await self._take_time()

    async def delete(self, space: str, key: str) -> bool:
        await self._take_time()
        return self.held.pop(key, None) is not None

    async def delete_prefix(self, space: str, prefix: str) -> int:
        await self._take_time()
        gone = [key for key in self.held if key.startswith(prefix)]
        for key in gone:
            del self.held[key]
        return len(gone)

    async def _take_time(self) -> None:
        await self.gate.wait()
        if self._chance is not None:
            for _ in range(self._chance.randrange(4)):
                await asyncio.sleep(0)
        if self.is_failing:
            raise Internal("out of order")


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Records:
    """What is copied, with the number of loads."""

    def __init__(self) -> None:
        self.version = 1
        self.loads = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self) -> Record:
        self.loads += 1
        found = Record(self.version)
        await self.gate.wait()
        return found


def copies_on(tier: Tier, **options: Any) -> ReadThrough[Record]:
    """Copies of Record."""
    return ReadThrough(tier, "sessions", "record", Record, ttl_s=60, **options)  # type: ignore[arg-type]


async def a_moment() -> None:
    """Let everything that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_second_read_takes_the_copy() -> None:
    """And a dropped one is loaded again."""
    records, copies = Records(), copies_on(Tier())

    assert await copies.get("a", records.load) == Record(1)
    assert await copies.get("a", records.load) == Record(1)
    assert records.loads == 1

    records.version = 2
    copies.drop("a")
    assert await copies.get("a", records.load) == Record(2)
    await copies.settle()
    assert await copies.get("a", records.load) == Record(2)


async def test_nothing_is_kept_of_what_is_not_there() -> None:
    """Nobody invalidates an absence."""
    copies: ReadThrough[Record | None] = ReadThrough(Tier(), "sessions", "r", Record, ttl_s=1)  # type: ignore[arg-type]

    async def nothing() -> None:
        return None

    records = Records()
    assert await copies.get("a", nothing) is None
    assert await copies.get("a", records.load) == Record(1)


async def test_load_that_began_before_an_invalidation_is_not_kept() -> None:
    """The slow reader gets what it loaded; nobody after it does."""
    tier, records = Tier(), Records()
    copies = copies_on(tier)
    records.gate.clear()
    slow = asyncio.create_task(copies.get("a", records.load))
    await a_moment()

    records.version = 2
    await copies.drop("a")
    records.gate.set()

    assert await slow == Record(1)
    await copies.settle()
    assert tier.held == {}
    assert await copies.get("a", records.load) == Record(2)


async def test_copy_that_is_just_being_stored_does_not_outlive_an_invalidation() -> None:
    """The removal waits for its turn behind the store, and nobody reads the copy in between."""
    tier, records = Tier(), Records()
    copies = copies_on(tier)
    records.gate.clear()
    slow = asyncio.create_task(copies.get("a", records.load))
    await a_moment()
    tier.gate.clear()
    records.gate.set()
    await a_moment()

    records.version = 2
    copies.drop("a")
    tier.gate.set()

    assert (await slow, await copies.get("a", records.load)) == (Record(1), Record(2))
    await copies.settle()
    assert await copies.get("a", records.load) == Record(2)


async def test_caller_that_gives_up_while_its_copy_is_stored_leaves_nothing_behind() -> None:
    """The store goes on without it, and an invalidation still waits for that."""
    tier, records = Tier(), Records()
    copies = copies_on(tier)
    records.gate.clear()
    caller = asyncio.create_task(copies.get("a", records.load))
    await a_moment()
    tier.gate.clear()
    records.gate.set()
    await a_moment()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    records.version = 2
    copies.drop("a")
    tier.gate.set()
    await copies.settle()

    assert tier.held == {}
    assert await copies.get("a", records.load) == Record(2)


async def test_failed_load_reaches_its_caller_and_the_next_one_loads() -> None:
    """Nothing is kept of it."""
    copies, records = copies_on(Tier()), Records()

    async def fail() -> Record:
        raise Internal("no records")

    with pytest.raises(Internal, match="no records"):
        await copies.get("a", fail)
    assert await copies.get("a", records.load) == Record(1)


async def test_failing_tier_costs_no_answer() -> None:
    """Reads go to the records."""
    tier, records = Tier(), Records()
    copies = copies_on(tier)
    tier.is_failing = True

    assert [await copies.get("a", records.load) for _ in range(3)] == [Record(1)] * 3
    assert records.loads == 3


@pytest.mark.parametrize("drops_all", [False, True])
async def test_copy_that_could_not_be_removed_is_never_read(drops_all: bool) -> None:
    """Until all were removed together, which is tried again after a while."""
    clock, tier, records = Clock(), Tier(), Records()
    copies = copies_on(tier, now=clock)
    await copies.get("a", records.load)
    tier.is_failing = True
    records.version = 2
    await (copies.drop_all() if drops_all else copies.drop("a"))
    tier.is_failing = False

    assert await copies.get("a", records.load) == Record(2)
    assert tier.held
    clock.now += RETRY_INTERVAL_S
    tier.is_failing = True
    assert await copies.get("a", records.load) == Record(2)
    tier.is_failing = False
    assert await copies.get("a", records.load) == Record(2)
    clock.now += RETRY_INTERVAL_S
    assert await copies.get("a", records.load) == Record(2)
    loads = records.loads
    assert await copies.get("a", records.load) == Record(2)
    assert records.loads == loads


async def test_copy_of_another_shape_is_loaded_again() -> None:
    """A newer program has another idea of the record."""
    tier, records = Tier(), Records()
    tier.held["record:a"] = msgspec.msgpack.encode({"other": 1})

    assert await copies_on(tier).get("a", records.load) == Record(1)


async def test_drop_all_leaves_copies_of_other_records_alone() -> None:
    """Everything under the own name goes, also what is being loaded."""
    tier, records = Tier(), Records()
    tier.held["other:a"] = b"x"
    copies = copies_on(tier)
    await copies.get("a", records.load)
    records.gate.clear()
    slow = asyncio.create_task(copies.get("b", records.load))
    await a_moment()

    records.version = 2
    copies.drop_all()
    records.gate.set()
    await slow
    await copies.settle()

    assert tier.held == {"other:a": b"x"}
    assert await copies.get("a", records.load) == Record(2)


@pytest.mark.parametrize("seed", range(20))
async def test_no_read_is_older_than_the_last_change_before_it(seed: int) -> None:
    """Reads, changes, failures and callers that give up, in any order."""
    chance = random.Random(seed)
    clock, tier = Clock(), Tier(chance)
    copies = copies_on(tier, now=clock)
    versions = dict.fromkeys("ab", 0)
    loads = reads = 0

    async def read(key: str) -> None:
        nonlocal loads, reads

        async def load() -> Record:
            nonlocal loads
            loads += 1
            found = Record(versions[key])
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            return found

        oldest = versions[key]
        assert (await copies.get(key, load)).version >= oldest
        reads += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(1_500):
            key = chance.choice("ab")
            task = tasks.create_task(read(key))
            if chance.random() < 0.1:
                task.cancel()
            if chance.random() < 0.05:
                versions[key] += 1
                copies.drop(key)
            if chance.random() < 0.01:
                versions = {key: version + 1 for key, version in versions.items()}
                copies.drop_all()
            if chance.random() < 0.01:
                tier.is_failing = not tier.is_failing
            if chance.random() < 0.02:
                clock.now += RETRY_INTERVAL_S
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
    await copies.settle()

    assert 0 < loads < reads
    assert copies._busy == {}
