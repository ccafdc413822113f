"""The cache: any value, times by type, keys that other programs know, namespaces apart."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.cli import config
from bus.settings import Settings, SettingsError, load_settings
from schemas.bodies import memory as bodies
from schemas.bodies.memory import CacheDelete, CacheFlush, CacheGet, CacheSet, CacheStats
from schemas.errors import BadRequest, TooLarge
from workers.memory.clock import SteadyClock
from workers.memory.hot import opening
from workers.memory.hot.cache import Cache, decode, encode
from workers.memory.hot.sqlite_tier import SqliteTier
from workers.memory.hot.tier import MAX_VALUE_BYTES

MIB = 1024 * 1024


class Held:
    """A cache and the tier below it."""

    def __init__(self, tier: SqliteTier) -> None:
        self.tier = tier
        self.cache = Cache(tier, max_body_bytes=64 * MIB)

    async def value(self, key: str, **where: Any) -> Any:
        """What the cache has, "a miss" where it has nothing."""
        entry = await self.cache.get(CacheGet(key=key, **where))
        return entry.value if entry.hit else "a miss"


@asynccontextmanager
async def held(tmp_path: Path) -> AsyncIterator[Held]:
    """A cache on SQLite."""
    tier = await SqliteTier.open(tmp_path / "hot.db", max_bytes=256 * MIB, now=SteadyClock())
    try:
        yield Held(tier)
    finally:
        await tier.close()


# Values -------------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(max_size=50),
    st.datetimes(timezones=st.just(UTC)),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_every_value_comes_back_as_it_went(value: Any) -> None:
    """Whatever msgpack holds, with its type."""
    as_received = msgspec.msgpack.decode(msgspec.msgpack.encode(value))

    found = decode(encode(value, max_bytes=MIB))

    assert found == as_received
    assert repr(found) == repr(as_received)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists, max_leaves=9))
def test_values_that_json_can_hold_are_json_text(value: Any) -> None:
    """Other programs read the text as it is."""
    assert json.loads(encode(value, max_bytes=MIB)) == value


@pytest.mark.parametrize("value", [b"bytes", {1: 2}, math.inf, [math.nan], datetime(2026, 1, 1, tzinfo=UTC)])
def test_values_that_json_would_change_are_not_json(value: Any) -> None:
    """They are marked by a byte that starts no text."""
    assert encode(value, max_bytes=MIB)[:1] == b"\xc1"


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        (b'{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        (b'"\\u00e9"', "é"),
        (b"plain words", "plain words"),
        (b"", ""),
        (b"\xff\xfe", b"\xff\xfe"),
        (b"\xc1\x92\x01", b"\xc1\x92\x01"),
        (b"[1, Infinity]", [1, math.inf]),
        (b"[" * 20_000, "[" * 20_000),
    ],
)
def test_what_other_programs_stored_is_read(stored: bytes, value: Any) -> None:
    """JSON as Python writes it, else text, else bytes; nothing of it is an error."""
    assert decode(stored) == value


def test_text_of_too_many_values_is_refused() -> None:
    """A small text that would fill the memory of the service."""
    with pytest.raises(TooLarge):
        decode(b"[" + b"[]," * 1_100_000 + b"[]]")


@pytest.mark.parametrize("value", [None, 0, "", [], {}, False, 0.0, b""])
async def test_falsy_values_are_values(tmp_path: Path, value: Any) -> None:
    """A hit with nil is no miss."""
    async with held(tmp_path) as it:
        await it.cache.set(CacheSet(key="k", value=value))

        entry = await it.cache.get(CacheGet(key="k"))

    assert entry.hit
    assert entry.value == value


async def test_values_too_large_or_too_deep_are_refused(tmp_path: Path) -> None:
    """As everywhere in the memory."""
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    async with held(tmp_path) as it:
        with pytest.raises(TooLarge):
            await it.cache.set(CacheSet(key="k", value=b"x" * (MAX_VALUE_BYTES + 1)))
        with pytest.raises(BadRequest, match="nested 70 levels"):
            await it.cache.set(CacheSet(key="k", value=deep))
        with pytest.raises(BadRequest, match="key holds a lone surrogate"):
            await it.cache.get(CacheGet(key="\ud800"))


# Times --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ttl_s"),
    [
        ("nlu_results", 300),
        ("model_decisions", 600),
        ("context_summaries", 3600),
        ("tool_responses", 900),
        ("memory", 43_200),
        ("general", 3600),
        ("anything", 3600),
    ],
)
async def test_each_type_has_its_time(tmp_path: Path, kind: str, ttl_s: float) -> None:
    """Used only where the request names none; the reply says which, and a read what is left of it."""
    async with held(tmp_path) as it:
        stored = await it.cache.set(CacheSet(key="k", value=1, type=kind))
        entry = await it.cache.get(CacheGet(key="k", type=kind))
        other = await it.cache.set(CacheSet(key="k", value=1, type=kind, ttl_s=5))

    assert stored.ttl_s == ttl_s
    assert entry.ttl_s == pytest.approx(ttl_s, abs=2)
    assert other.ttl_s == 5


@pytest.mark.parametrize("ttl_s", [0, -1, 1e12])
def test_time_out_of_range_is_refused_before_it_reaches_the_cache(ttl_s: float) -> None:
    """The body names the field."""
    with pytest.raises(msgspec.ValidationError, match="ttl_s"):
        msgspec.convert({"key": "k", "value": 1, "ttl_s": ttl_s}, bodies.CacheSet)


# Keys and namespaces --------------------------------------------------------------------------------------------------


async def test_shared_namespace_has_the_keys_of_other_programs(tmp_path: Path) -> None:
    """`<type>:<key>`, so that both sides see each other's entries; every other namespace has keys of its own."""
    async with held(tmp_path) as it:
        await it.cache.set(CacheSet(key="7", value={"a": 1}, type="memory"))
        await it.cache.set(CacheSet(key="7", value=2, type="memory", ns="team:a"))
        await it.tier.set("cache", "tool_responses:theirs", b'"x"', ttl_s=None)

        assert await it.tier.get("cache", "memory:7") == b'{"a":1}'
        assert await it.tier.get("cache", "@team:a/memory:7") == b"2"
        assert await it.value("theirs", type="tool_responses") == "x"


async def test_namespaces_and_types_are_apart(tmp_path: Path) -> None:
    """No mixture of type, key and namespace names another's entry."""
    names = [("a", "b:c", "cache"), ("a", "b", "cache"), ("a", "b:c", "n"), ("a.b", "c", "n"), ("a", "c", "n:a")]
    async with held(tmp_path) as it:
        for number, (kind, key, ns) in enumerate(names):
            await it.cache.set(CacheSet(key=key, value=number, type=kind, ns=ns))

        found = [await it.value(key, type=kind, ns=ns) for kind, key, ns in names]
        deleted = await it.cache.delete(CacheDelete(key="b:c", type="a", ns="n"))
        again = await it.cache.delete(CacheDelete(key="b:c", type="a", ns="n"))

        assert found == list(range(len(names)))
        assert (deleted.deleted, again.deleted) == (True, False)
        assert await it.value("b:c", type="a") == 0


async def test_flush_takes_one_type_or_one_namespace(tmp_path: Path) -> None:
    """And nothing whose name only begins alike."""
    async with held(tmp_path) as it:
        for ns in ("cache", "n", "n2"):
            for kind in ("a", "ab", "nlu_results"):
                await it.cache.set(CacheSet(key="k", value=1, type=kind, ns=ns))

        assert (await it.cache.flush(CacheFlush(type="a"))).flushed == 1
        assert await it.value("k", type="ab") == 1
        assert (await it.cache.flush(CacheFlush())).flushed == 2
        assert (await it.cache.flush(CacheFlush(ns="n", type="a"))).flushed == 1
        assert (await it.cache.flush(CacheFlush(ns="n"))).flushed == 2
        assert (await it.cache.flush(CacheFlush(ns="nothing"))).flushed == 0
        assert await it.value("k", type="a", ns="n2") == 1


async def test_figures_count_the_namespace(tmp_path: Path) -> None:
    """Its entries, its bytes, its hits and its misses."""
    async with held(tmp_path) as it:
        for ns in ("cache", "n"):
            await it.cache.set(CacheSet(key="k", value="v" * 100, ns=ns))
        for key in ("k", "k", "other"):
            await it.value(key, ns="n")

        figures = await it.cache.stats(CacheStats(ns="n"))
        shared = await it.cache.stats(CacheStats())

    assert (figures.entries, figures.hits, figures.misses, figures.tier) == (1, 2, 1, "sqlite")
    assert figures.size_bytes == len("@n/general:k") + 102
    assert (shared.entries, shared.hits, shared.misses) == (1, 0, 0)


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:6379", "redis://host", "rediss://me:pw@host:1/0", "unix:///run/redis.sock", ""]
)
def test_addresses_of_a_redis_are_taken(url: str) -> None:
    """Over TCP, over TLS, over a socket, or none."""
    assert load_settings(overrides={"memory.redis_url": url}).memory.redis_url == url


@pytest.mark.parametrize(
    "url", ["127.0.0.1:6379", "http://host", "redis://", "redis://:se/cret@host", "redis://h:99999", "unix://", "x"]
)
def test_other_addresses_are_refused_without_being_shown(url: str) -> None:
    """The message names the key and what is allowed; a password in the value is nobody's business."""
    with pytest.raises(SettingsError, match=r"memory\.redis_url is not the address of a Redis; allowed:") as caught:
        load_settings(overrides={"memory.redis_url": url})

    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:p@ss@host:1/0", "redis://(hidden)@host:1/0"),
        ("unix:///s?password=x&db=1", "unix:///s?password=(hidden)&db=1"),
        ("redis://host:6379", "redis://host:6379"),
    ],
)
def test_password_in_an_address_is_not_shown(url: str, shown: str) -> None:
    """`olympus config show` is pasted into reports."""
    assert config.displayed("memory.redis_url", url) == shown


async def test_missing_package_is_named_with_the_extra_that_brings_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person knows what to install, or what to leave empty."""
    changed = msgspec.structs.replace(
        settings, memory=msgspec.structs.replace(settings.memory, redis_url="redis://127.0.0.1:1")
    )
    for name in ("workers.memory.hot.failover", "workers.memory.hot.redis_tier"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)

    with pytest.raises(SettingsError, match=r"package redis is missing: install the extra `search`"):
        await opening.open_hot_tier(changed, now=SteadyClock(), on_lost=lambda reason: None)


async def test_unknown_argument_of_an_address_is_refused(settings: Settings) -> None:
    """What the library does not know would fail at every request."""
    pytest.importorskip("redis")
    changed = msgspec.structs.replace(
        settings, memory=msgspec.structs.replace(settings.memory, redis_url="redis://127.0.0.1:1/?colour=red")
    )

    with pytest.raises(SettingsError, match="colour"):
        async with asyncio.timeout(10):
            await opening.open_hot_tier(changed, now=SteadyClock(), on_lost=lambda reason: None)
