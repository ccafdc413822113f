"""The hot tier's file: time, size, damage, and what has to survive a crash."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from schemas.errors import Internal, TooLarge
from tests.redis_process import values_of
from workers.memory.hot import entries, hot_file
from workers.memory.hot.sqlite_tier import USE_PRECISION_S, SqliteTier
from workers.memory.hot.tier import SPACES
from workers.memory.sqlite_errors import UnusableDatabase

MIB = 1024 * 1024


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The tier's time."""
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The tier's file, not there yet."""
    return tmp_path / "memory" / "hot.db"


@asynccontextmanager
async def opened(path: Path, clock: Clock, max_bytes: int = 256 * MIB, **options: object) -> AsyncIterator[SqliteTier]:
    """A tier that is closed at the end."""
    tier = await SqliteTier.open(path, max_bytes=max_bytes, now=clock, **options)  # type: ignore[arg-type]
    try:
        yield tier
    finally:
        await tier.close()


def rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    """What another connection reads."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def overwrite(path: Path, start: int, content: bytes) -> None:
    """Put bytes into a file, made where it is not."""
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


# Time ---------------------------------------------------------------------------------------------------------------


async def test_entry_is_invisible_the_moment_it_expires_and_swept_later(path: Path, clock: Clock) -> None:
    """The row may still be there, nobody sees it."""
    async with opened(path, clock) as tier:
        for space in SPACES:
            await tier.set(space, "k:1", b"v", ttl_s=10)
            await tier.set(space, "k:2", b"v", ttl_s=None)
        clock.now += 10

        assert [await tier.get(space, "k:1") for space in SPACES] == [None] * 4
        assert [(await tier.measure(space, "k:")).keys for space in SPACES] == [1] * 4
        assert rows(path, "SELECT count(*) FROM entries") == [(8,)]
        await tier.sweep()
        assert rows(path, "SELECT count(*) FROM entries") == [(4,)]


async def test_sweep_removes_any_number_of_expired_entries(path: Path, clock: Clock) -> None:
    """More than one step of it."""
    async with opened(path, clock) as tier:
        await asyncio.gather(*(tier.set("cache", f"k:{n}", b"v", ttl_s=1) for n in range(entries.STEP_ROWS * 2 + 1)))
        clock.now += 2
        await tier.sweep()

        assert rows(path, "SELECT count(*) FROM entries") == [(0,)]
        assert rows(path, "SELECT sum(keys), sum(bytes) FROM totals") == [(0, 0)]


# Size ---------------------------------------------------------------------------------------------------------------


async def test_cap_holds_and_what_was_unused_longest_goes_first(path: Path, clock: Clock) -> None:
    """Entries that are read stay; the totals that decide it are exact."""
    async with opened(path, clock, max_bytes=MIB) as tier:
        for number in range(10):
            await tier.set("cache", f"read:{number}", b"x" * 1_000, ttl_s=None)
        for number in range(2_000):
            clock.now += USE_PRECISION_S / 10
            await tier.set("knowledge", f"n:{number}", b"x" * 1_000, ttl_s=None)
            if number % 50 == 0:
                assert await tier.get("cache", "read:3") is not None
                await tier.sweep()

        kept = await values_of(tier, "cache", [f"read:{number}" for number in range(10)])
        assert [number for number, value in enumerate(kept) if value] == [3]
        assert await tier.get("knowledge", "n:1999") is not None
        assert await tier.get("knowledge", "n:0") is None
        ((count, size),) = rows(path, "SELECT count(*), sum(size) FROM entries")
        assert rows(path, "SELECT sum(keys), sum(bytes) FROM totals") == [(count, size)]
        assert 0.9 * MIB < size + count * entries.ROW_OVERHEAD_BYTES <= MIB


async def test_flood_of_cached_values_pushes_out_no_count(path: Path, clock: Clock) -> None:
    """The counters of sign-in go last, however old they are."""
    async with opened(path, clock, max_bytes=MIB) as tier:
        await tier.increment("auth", "failures", ttl_s=None)
        for number in range(2_000):
            clock.now += 100
            await tier.set("cache", f"n:{number}", b"x" * 1_000, ttl_s=None)

        assert await tier.get("auth", "failures") == b"1"


async def test_value_too_large_for_the_cap_is_refused(path: Path, clock: Clock) -> None:
    """It would push out everything else."""
    async with opened(path, clock, max_bytes=MIB) as tier:
        with pytest.raises(TooLarge, match=f"the hot tier takes {MIB // 2}"):
            await tier.set("cache", "k", b"x" * (MIB // 2 + 1), ttl_s=None)


# Damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"no database at all" * 1_000, b"SQLite format 3\x00" + b"\xff" * 8_176])
async def test_damaged_file_is_moved_aside_and_made_anew(
    path: Path, clock: Clock, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The service starts, says so, and keeps the file for whoever wants to look."""
    overwrite(path, 0, content)

    with caplog.at_level(logging.WARNING, "olympus.memory"):
        async with opened(path, clock, usual_families=["nlu_results:"]) as tier:
            await tier.set("cache", "k:1", b"v", ttl_s=None)
            assert await tier.get("cache", "k:1") == b"v"
            assert tier.families() == ["k:", "nlu_results:"]
            # What a Redis holds is unknown to it now.
            assert await tier.generation_at("a server") is None

    assert path.with_name("hot.db.damaged").read_bytes() == content
    assert "made anew" in caplog.text


async def test_file_damaged_while_in_use_is_made_anew(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged page costs the cache, not the service."""
    # So that pages are read from the file and not from memory.
    monkeypatch.setattr(hot_file, "WRITER_CACHE_KIB", 64)
    async with opened(path, clock) as tier:
        for number in range(300):
            await tier.set("cache", f"k:{number}", b"x" * 4_000, ttl_s=None)
    async with opened(path, clock) as tier:
        await tier.set("auth", "k", b"v", ttl_s=None)
        await tier.end_outage("a server", "g1")
        overwrite(path, 4_096, b"\xa5" * MIB)

        with caplog.at_level(logging.WARNING, "olympus.memory"):
            for number in range(300):
                await tier.set("cache", f"new:{number}", b"x" * 4_000, ttl_s=None)
                await tier.delete_prefix("cache", "k:")

        assert await tier.get("cache", "new:299") == b"x" * 4_000
        assert "k:" in tier.families()
        assert await tier.generation_at("a server") is None
    assert "made anew" in caplog.text


async def test_file_of_another_version_is_emptied(path: Path, clock: Clock) -> None:
    """A program that knows other tables must not trip over these, nor these over its own."""
    async with opened(path, clock) as tier:
        await tier.set("cache", "k:1", b"v", ttl_s=None)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.execute("CREATE TABLE other (x)")
    connection.close()

    async with opened(path, clock) as tier:
        assert await tier.get("cache", "k:1") is None
        await tier.set("cache", "k:1", b"new", ttl_s=None)
        assert await tier.get("cache", "k:1") == b"new"
    assert rows(path, "SELECT name FROM sqlite_schema WHERE name = 'other'") == []


async def test_folder_that_takes_no_file_is_a_clear_refusal(tmp_path: Path, clock: Clock) -> None:
    """The message names the file and what to do."""
    (tmp_path / "file").write_text("")

    with pytest.raises(UnusableDatabase, match=r"hot\.db cannot be opened for writing"):
        async with opened(tmp_path / "file" / "hot.db", clock):
            pass


async def test_failed_write_reaches_its_caller_and_no_one_later(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told; when there is room again the tier goes on."""

    def full(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
        raise error

    async with opened(path, clock) as tier:
        await tier.set("cache", "k:1", b"old", ttl_s=None)
        with monkeypatch.context() as patch:
            patch.setattr(entries, "put", full)
            with pytest.raises(Internal, match="disk"):
                await tier.set("cache", "k:1", b"new", ttl_s=None)

        assert await tier.get("cache", "k:1") == b"old"
        await tier.set("cache", "k:1", b"new", ttl_s=None)
        assert await tier.get("cache", "k:1") == b"new"


# What stands before it ------------------------------------------------------------------------------------------------


async def test_families_and_outage_survive_the_process(path: Path, clock: Clock) -> None:
    """They are on disk when the call returns: a second connection sees them while the first has not closed."""
    async with opened(path, clock) as tier:
        assert await tier.generation_at("a server") is None
        await tier.end_outage("a server", "g1")
        await tier.remember_family("one:key")
        assert rows(path, "SELECT prefix FROM families") == [("one:",)]
    async with opened(path, clock) as tier:
        assert tier.families() == ["one:"]
        assert await tier.generation_at("a server") == "g1"
        assert await tier.generation_at("another server") is None
        await tier.begin_outage()
        assert rows(path, "SELECT count(*) FROM joined") == [(0,)]
    async with opened(path, clock) as tier:
        assert await tier.generation_at("a server") is None


async def test_rows_handed_over_are_removed_unless_they_changed(path: Path, clock: Clock) -> None:
    """An entry written again, counted or prolonged meanwhile is another row, which stays for the next step."""
    async with opened(path, clock) as tier:
        for name in ("same", "written", "touched", "counted"):
            await tier.set("cache", name, b"1", ttl_s=50)
        clock.now += 1
        taken = await tier.rows_between("cache", 0, await tier.newest_id(), max_rows=10, max_bytes=MIB)
        await tier.set("cache", "written", b"2", ttl_s=50)
        await tier.touch("cache", "touched", ttl_s=99)
        await tier.increment("cache", "counted", ttl_s=50)
        await tier.remove_rows([row.id for row in taken])

        assert [(row.key, row.value, row.ttl_s) for row in taken] == [
            (name, b"1", 49.0) for name in ("same", "written", "touched", "counted")
        ]
        assert await values_of(tier, "cache", ["same", "written", "touched", "counted"]) == [None, b"2", b"1", b"2"]


async def test_rows_come_in_steps_of_limited_size(path: Path, clock: Clock) -> None:
    """At least one row, however large it is, and none twice."""
    async with opened(path, clock) as tier:
        for number in range(10):
            await tier.set("auth", f"{number}", b"x" * 1_000, ttl_s=None)
        newest, last, seen = await tier.newest_id(), 0, []
        while step := await tier.rows_between("auth", last, newest, max_rows=4, max_bytes=2_500):
            assert len(step) <= 3
            seen += [row.key for row in step]
            last = step[-1].id

        assert seen == [f"{number}" for number in range(10)]
