"""The operations `memory.cache.*`: values of any shape, for a while, by type and key. Knows no bus and no engine.

Entries of the namespace `cache` have the keys and the form that other programs read and write in database 0 of Redis,
`<type>:<key>` and JSON text; other namespaces are `@<namespace>/<type>:<key>`.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

import msgspec

from schemas.bodies.memory import (
    CacheDelete,
    CacheDeleted,
    CacheEntry,
    CacheFigures,
    CacheFlush,
    CacheFlushed,
    CacheGet,
    CacheSet,
    CacheStats,
    CacheStored,
)
from schemas.values import check_values
from workers.memory.hot.tier import MAX_VALUE_BYTES, HotTier
from workers.memory.text import check_texts
from workers.memory.values import pack, unpack

# Seconds a result of each type is kept when the request names no time; the types and times of the old cache agent.
TTL_BY_TYPE_S: Final = {
    "nlu_results": 300.0,
    "model_decisions": 600.0,
    "context_summaries": 3600.0,
    "tool_responses": 900.0,
    "memory": 43_200.0,
}
OTHER_TTL_S: Final = 3600.0

# The namespace that shares its keys with programs which use Redis themselves.
SHARED_NS: Final = "cache"

# Before a value that JSON cannot hold; the one byte that begins neither msgpack nor UTF-8 text.
_IS_MSGPACK: Final = b"\xc1"


class Cache:
    """One method per operation, on the tier; hits and misses are counted by namespace."""

    def __init__(self, tier: HotTier, *, max_body_bytes: int) -> None:
        self._tier = tier
        self._max_value_bytes = min(MAX_VALUE_BYTES, max_body_bytes // 2)
        self._hits: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()

    def reads(self) -> dict[str, int]:
        """Reads that found their value, and that did not, since the service started: by `hit` and `miss`."""
        return {"hit": self._hits.total(), "miss": self._misses.total()}

    async def get(self, request: CacheGet) -> CacheEntry:
        """The value, or a miss."""
        check_texts(request)
        entry = await self._tier.look("cache", _key(request))
        if entry is None:
            self._misses[request.ns] += 1
            return CacheEntry(key=request.key, type=request.type, ns=request.ns, hit=False)
        self._hits[request.ns] += 1
        value = decode(entry.value)
        return CacheEntry(key=request.key, type=request.type, ns=request.ns, hit=True, value=value, ttl_s=entry.ttl_s)

    async def set(self, request: CacheSet) -> CacheStored:
        """Store the value for `ttl_s`, or the time of its type. Raises BadRequest, TooLarge."""
        check_texts(request)
        ttl_s = TTL_BY_TYPE_S.get(request.type, OTHER_TTL_S) if request.ttl_s is None else request.ttl_s
        value = encode(request.value, max_bytes=self._max_value_bytes)
        await self._tier.set("cache", _key(request), value, ttl_s=ttl_s)
        return CacheStored(key=request.key, type=request.type, ns=request.ns, ttl_s=ttl_s)

    async def delete(self, request: CacheDelete) -> CacheDeleted:
        """Drop one value; no error where there is none."""
        check_texts(request)
        deleted = await self._tier.delete("cache", _key(request))
        return CacheDeleted(key=request.key, type=request.type, ns=request.ns, deleted=deleted)

    async def flush(self, request: CacheFlush) -> CacheFlushed:
        """Drop everything of one type, or of the whole namespace."""
        prefixes = [_prefix(request.ns, request.type)] if request.type else self._whole(request.ns)
        return CacheFlushed(flushed=await self._tier.delete_prefix("cache", *prefixes))

    async def stats(self, request: CacheStats) -> CacheFigures:
        """What the namespace holds, counted entry by entry, and its reads since the service started."""
        stats = await self._tier.stats("cache", *self._whole(request.ns))
        return CacheFigures(
            ns=request.ns,
            entries=stats.keys,
            size_bytes=stats.size_bytes,
            hits=self._hits[request.ns],
            misses=self._misses[request.ns],
            tier=self._tier.state().engine,
        )

    def _whole(self, ns: str) -> list[str]:
        if ns != SHARED_NS:
            return [f"@{ns}/"]
        # In the shared database stand other programs' keys too: ours are those of types that were ever written here.
        types = {f"{kind}:" for kind in TTL_BY_TYPE_S}
        return sorted(types | {family for family in self._tier.families() if _is_shared_type(family)})


def encode(value: Any, *, max_bytes: int) -> bytes:
    """JSON text where it holds the value exactly, else marked msgpack. Raises BadRequest, TooLarge."""
    packed = pack(value, max_bytes=max_bytes)
    try:
        text = msgspec.json.encode(value)
        # JSON has no bytes, no infinity, no keys but text: what does not come back as it went has to be msgpack.
        if len(text) <= max_bytes and msgspec.json.decode(text) == unpack(packed):
            return text
    except (TypeError, msgspec.MsgspecError, RecursionError):
        pass
    return _IS_MSGPACK + packed


def decode(stored: bytes) -> Any:
    """The value behind stored bytes, also those of other programs: JSON, else text, else the bytes themselves.

    Raises TooLarge for what would become too many values.
    """
    check_values(stored, "json")
    try:
        return unpack(stored[1:]) if stored.startswith(_IS_MSGPACK) else msgspec.json.decode(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        text = stored.decode()
    except UnicodeDecodeError:
        return stored
    try:
        # Python's own encoder writes NaN and Infinity, which JSON does not know.
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _prefix(ns: str, kind: str) -> str:
    return f"{kind}:" if ns == SHARED_NS else f"@{ns}/{kind}:"


def _key(request: CacheGet | CacheSet | CacheDelete) -> str:
    return _prefix(request.ns, request.type) + request.key


def _is_shared_type(family: str) -> bool:
    return family.endswith(":") and not family.startswith("@")
