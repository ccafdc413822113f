"""One hot tier, three ways: on SQLite, on a real redis-server, and on SQLite while that server cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from bus.settings import load_settings
from schemas.errors import BadRequest, Conflict, Internal, TooLarge
from tests.redis_process import RedisProcess, values_of
from workers.memory.clock import SteadyClock
from workers.memory.hot.opening import open_hot_tier
from workers.memory.hot.tier import MAX_KEY_BYTES, MAX_TTL_S, MAX_VALUE_BYTES, SPACES, HotTier, Space

OpenTier = Callable[[], AbstractAsyncContextManager[HotTier]]

in_every_space = pytest.mark.parametrize("space", SPACES)


@asynccontextmanager
async def opened(home: Path, redis_url: str) -> AsyncIterator[HotTier]:
    """A tier with its upkeep running."""
    settings = load_settings(overrides={"home": str(home), "memory.redis_url": redis_url})
    tier = await open_hot_tier(settings, now=SteadyClock(), on_lost=lambda reason: None)
    tending = asyncio.create_task(tier.tend_forever())
    try:
        yield tier
    finally:
        tending.cancel()
        with suppress(asyncio.CancelledError):
            await tending
        await tier.close()


@pytest.fixture(params=["sqlite", "redis", "redis away"])
def open_tier(request: pytest.FixtureRequest, tmp_path: Path) -> OpenTier:
    """`async with open_tier() as tier:` opens a tier of each kind in turn."""

    @asynccontextmanager
    async def open_it() -> AsyncIterator[HotTier]:
        if request.param == "sqlite":
            async with opened(tmp_path, "") as tier:
                assert tier.state() == ("sqlite", None)
                yield tier
            return
        pytest.importorskip("redis")
        with RedisProcess() as server:
            if request.param == "redis away":
                server.kill()
            async with opened(tmp_path, server.url) as tier:
                is_away = request.param == "redis away"
                assert (tier.state().engine, tier.state().degraded is not None) == (
                    "sqlite" if is_away else "redis",
                    is_away,
                )
                yield tier

    return open_it


@in_every_space
async def test_value_is_read_as_it_was_written(open_tier: OpenTier, space: Space) -> None:
    """Any bytes come back, empty ones too, and what was not written is absent."""
    async with open_tier() as tier:
        for number, value in enumerate([b"", b"x", bytes(range(256)), b"a" * 300_000]):
            await tier.set(space, f"some:{number}", value, ttl_s=None)

            assert await tier.get(space, f"some:{number}") == value

        assert await tier.get(space, "some:other") is None


async def test_spaces_are_apart(open_tier: OpenTier) -> None:
    """One key means four entries."""
    async with open_tier() as tier:
        for space in SPACES:
            await tier.set(space, "same", space.encode(), ttl_s=60)

        assert [await tier.get(space, "same") for space in SPACES] == [space.encode() for space in SPACES]
        assert await tier.delete("sessions", "same")
        assert await tier.get("sessions", "same") is None
        assert await tier.get("cache", "same") == b"cache"


@in_every_space
async def test_later_write_replaces_value_and_time(open_tier: OpenTier, space: Space) -> None:
    """A write without an end makes an entry that had one permanent."""
    async with open_tier() as tier:
        await tier.set(space, "k", b"1", ttl_s=60)
        first = await tier.look(space, "k")
        await tier.set(space, "k", b"2", ttl_s=None)
        second = await tier.look(space, "k")

    assert first is not None
    assert first.value == b"1"
    assert first.ttl_s == pytest.approx(60, abs=5)
    assert second == (b"2", None)


@in_every_space
async def test_expired_entry_is_absent_to_every_operation(open_tier: OpenTier, space: Space) -> None:
    """Whatever asks for it finds nothing once its time is over, and can start anew."""
    async with open_tier() as tier:
        await tier.set(space, "k:lasting", b"7", ttl_s=60)
        for name in ("look", "delete", "touch", "count", "get"):
            await tier.set(space, f"k:{name}", b"7", ttl_s=0.03)
        # Written last, so that all others have expired too.
        await until_absent(tier, space, "k:get")

        assert await values_of(tier, space, ["k:get", "k:lasting"]) == [None, b"7"]
        assert await tier.look(space, "k:look") is None
        assert not await tier.delete(space, "k:delete")
        assert not await tier.touch(space, "k:touch", ttl_s=60)
        assert await tier.increment(space, "k:count", ttl_s=60) == 1


async def until_absent(tier: HotTier, space: Space, key: str) -> None:
    """Wait for an entry to expire."""
    async with asyncio.timeout(10):
        while await tier.get(space, key) is not None:
            await asyncio.sleep(0.005)


@in_every_space
async def test_increment_counts_every_caller_once(open_tier: OpenTier, space: Space) -> None:
    """Fifty at once get fifty different sums."""
    async with open_tier() as tier:
        sums = await asyncio.gather(*(tier.increment(space, "count", ttl_s=60) for _ in range(50)))

        assert sorted(sums) == list(range(1, 51))
        assert await tier.get(space, "count") == b"50"


@in_every_space
async def test_increment_sets_the_time_of_a_new_count_only(open_tier: OpenTier, space: Space) -> None:
    """A window that moved with each count would never end."""
    async with open_tier() as tier:
        await tier.increment(space, "count", ttl_s=100)
        await tier.increment(space, "count", ttl_s=5_000)
        entry = await tier.look(space, "count")

    assert entry is not None
    assert entry.ttl_s is not None
    assert entry.ttl_s <= 100


@in_every_space
async def test_increment_refuses_what_is_no_number(open_tier: OpenTier, space: Space) -> None:
    """The value stays as it was."""
    async with open_tier() as tier:
        await tier.set(space, "text", b"1.5", ttl_s=60)

        with pytest.raises(Conflict, match="not a whole number"):
            await tier.increment(space, "text", ttl_s=60)
        assert await tier.get(space, "text") == b"1.5"


@in_every_space
async def test_touch_moves_the_end(open_tier: OpenTier, space: Space) -> None:
    """The value stays, and what is not there is not made."""
    async with open_tier() as tier:
        await tier.set(space, "k", b"1", ttl_s=10)

        assert await tier.touch(space, "k", ttl_s=500)
        assert not await tier.touch(space, "other", ttl_s=500)

        entry = await tier.look(space, "k")
        assert entry is not None
        assert entry.value == b"1"
        assert entry.ttl_s == pytest.approx(500, abs=5)


HOSTILE = [
    "*",
    "a*b",
    "a?b",
    "[a-z]",
    "[^a]",
    "a\\",
    "\\*",
    "a\x00b",
    "a\nb",
    "%",
    "_",
    "é",
    "\U0010ffff",
    "'; --",
    "{x}",
]


@in_every_space
@pytest.mark.parametrize("text", HOSTILE)
async def test_no_character_of_a_key_or_prefix_is_special(open_tier: OpenTier, space: Space, text: str) -> None:
    """A prefix removes exactly the keys that start with it."""
    others = ["a", "ab", "azb", "axb", "b", "\\", "abc", "a\\b", "f", text[:-1] + "~"]
    async with open_tier() as tier:
        for key in [text, f"{text}1", f"{text}:2", *others]:
            await tier.set(space, f"p{key}", key.encode(), ttl_s=60)
        spared = [key for key in others if not key.startswith(text)]
        removed = {text, f"{text}1", f"{text}:2", *others} - set(spared)

        assert await tier.get(space, f"p{text}") == text.encode()
        assert await tier.delete_prefix(space, f"p{text}") == len(removed)
        assert await values_of(tier, space, [f"p{key}" for key in removed]) == [None] * len(removed)
        assert await values_of(tier, space, [f"p{key}" for key in spared]) == [key.encode() for key in spared]


@in_every_space
async def test_prefix_of_many_keys_removes_them_all(open_tier: OpenTier, space: Space) -> None:
    """More keys than one step of a scan sees, and more than one prefix."""
    async with open_tier() as tier:
        await asyncio.gather(*(tier.set(space, f"{n % 3}:{n}", b"v", ttl_s=60) for n in range(2_000)))

        assert await tier.delete_prefix(space, "0:", "1:") == 1_334
        assert (await tier.measure(space, "0:", "1:")).keys == 0
        assert (await tier.measure(space, "2:")).keys == 666
        assert await tier.delete_prefix(space) == 0


@in_every_space
async def test_size_and_reads_are_counted(open_tier: OpenTier, space: Space) -> None:
    """Entries, their bytes, and the reads that found something or nothing."""
    async with open_tier() as tier:
        await tier.set(space, "a:1", b"x" * 100, ttl_s=60)
        await tier.set(space, "a:2", b"x" * 50, ttl_s=60)
        await tier.set(space, "b:1", b"x", ttl_s=60)
        await tier.get(space, "a:1")
        await values_of(tier, space, ["a:1", "a:3"])
        await tier.look(space, "c")

        stats = await tier.stats(space, "a:")

    assert (stats.keys, stats.hits, stats.misses) == (2, 2, 2)
    # Redis counts the generation before a key too.
    assert 156 <= stats.size_bytes <= 156 + 2 * 30


@in_every_space
@pytest.mark.parametrize(
    ("key", "ttl_s", "said"),
    [
        ("", 1.0, "0 bytes"),
        ("x" * (MAX_KEY_BYTES + 1), 1.0, f"{MAX_KEY_BYTES + 1} bytes, allowed are 1 to"),
        ("a\ud800", 1.0, "lone surrogate at character 1"),
        ("k", 0.0, "above 0 to"),
        ("k", -1.0, "ttl_s = -1"),
        ("k", MAX_TTL_S * 2, f"above 0 to {MAX_TTL_S:.0f} seconds"),
        ("k", float("nan"), "above 0 to"),
        ("k", float("inf"), "above 0 to"),
    ],
)
async def test_wrong_keys_and_times_are_refused(
    open_tier: OpenTier, space: Space, key: str, ttl_s: float, said: str
) -> None:
    """The message names what is wrong and what is allowed, and nothing is stored."""
    async with open_tier() as tier:
        for attempt in (
            tier.set(space, key, b"v", ttl_s=ttl_s),
            tier.increment(space, key, ttl_s=ttl_s),
            tier.touch(space, key, ttl_s=ttl_s),
        ):
            with pytest.raises(BadRequest, match=said):
                await attempt

        assert await tier.get(space, "k") is None


async def test_largest_value_fits_and_a_larger_one_is_refused(open_tier: OpenTier) -> None:
    """The message names both sizes."""
    async with open_tier() as tier:
        await tier.set("cache", "k:1", b"x" * MAX_VALUE_BYTES, ttl_s=60)
        found = await tier.get("cache", "k:1")
        assert found is not None
        assert len(found) == MAX_VALUE_BYTES

        with pytest.raises(TooLarge, match=f"{MAX_VALUE_BYTES + 1} bytes, the hot tier takes {MAX_VALUE_BYTES}"):
            await tier.set("cache", "k:1", b"x" * (MAX_VALUE_BYTES + 1), ttl_s=60)


async def test_families_are_the_first_parts_of_cached_keys(open_tier: OpenTier) -> None:
    """They stay known when the entries are gone."""
    async with open_tier() as tier:
        for key in ("one:a", "one:b", "two:c:d", "@ns/three:e"):
            await tier.set("cache", key, b"v", ttl_s=60)
        await tier.set("sessions", "other:x", b"v", ttl_s=60)
        await tier.delete("cache", "two:c:d")

        assert tier.families() == ["@ns/three:", "one:", "two:"]


async def test_caller_that_gives_up_leaves_the_tier_usable(open_tier: OpenTier) -> None:
    """Cancelled requests take nobody else's answer."""
    async with open_tier() as tier:
        await tier.set("cache", "k:0", b"0", ttl_s=60)
        for number in range(30):
            task = asyncio.create_task(tier.set("cache", f"k:{number}", b"%d" % number, ttl_s=60))
            for _ in range(number % 6):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        for number in range(30):
            await tier.set("cache", f"k:{number}", b"%d" % number, ttl_s=60)
        assert await values_of(tier, "cache", [f"k:{n}" for n in range(30)]) == [b"%d" % n for n in range(30)]


@pytest.mark.parametrize("is_redis", [False, True])
async def test_every_space_outlives_the_process(tmp_path: Path, is_redis: bool) -> None:
    """A restart alone costs nothing that was kept."""
    if is_redis:
        pytest.importorskip("redis")
    with RedisProcess() if is_redis else nullcontext() as server:
        url = server.url if server is not None else ""
        async with opened(tmp_path, url) as tier:
            for space in SPACES:
                await tier.set(space, "k:1", b"v", ttl_s=60)
        async with opened(tmp_path, url) as tier:
            assert tier.state().engine == ("redis" if is_redis else "sqlite")
            assert [await tier.get(space, "k:1") for space in SPACES] == [b"v"] * len(SPACES)


async def test_use_after_close_is_an_error(open_tier: OpenTier) -> None:
    """Nobody waits for ever."""
    async with open_tier() as tier:
        pass

    for space in SPACES:
        with pytest.raises(Internal, match="closed"):
            async with asyncio.timeout(5):
                await tier.set(space, "k", b"v", ttl_s=60)
