"""CacheManager (7102): results kept for a while, by type and key, in the cache of the memory service.

Types and keys are those of the cache itself, so that programs which read Redis find what these clients put there.
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any, Final

from bus.version import VERSION
from schemas.bodies.memory import CacheDelete, CacheFlush, CacheGet, CacheSet, CacheStats
from schemas.errors import BusError, Retryable
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply
from workers.gateway.legacy.house import House

NAME: Final = "CacheManager"

# The type of memories, and how long `cache_memory` keeps one, seconds.
_MEMORY: Final = "memory"
_MEMORY_TTL_S: Final = 3600.0

# What the cache takes as a type, and characters of a key.
_TYPE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KEY_CHARACTERS: Final = 1024

# Seconds: clients give up after 5.
_TIMEOUT_S: Final = 4.5

_MISSING: Final = "Missing required parameters"


def type_of(name: str) -> str:
    """The cache type for any text: itself where it can be one, else made of its hash."""
    return name if _TYPE.fullmatch(name) else f"other-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:32]}"


def key_of(text: str) -> str:
    """The key for any text: whole prompts were keys, too."""
    if len(text) <= _KEY_CHARACTERS:
        return text
    return f"sha256-{hashlib.sha256(text.encode(errors='replace')).hexdigest()}"


async def get(ask: Fields, house: House) -> Reply:
    return await _get(house, ask.text("cache_type"), ask.text("key"))


async def put(ask: Fields, house: House) -> Reply:
    """Also what counts as nothing, 0 or an empty list, can be kept; null cannot."""
    await _put(house, ask.text("cache_type"), ask.text("key"), ask.get("value"), _ttl_s(ask, None))
    return {"status": "success", "message": "Cached"}


async def invalidate(ask: Fields, house: House) -> Reply:
    return await _drop(house, ask.text("cache_type"), ask.text("key"))


async def flush(ask: Fields, house: House) -> Reply:
    flushed = await _ask(house, "memory.cache.flush", CacheFlush(type=type_of(ask.text("cache_type"))))
    return {"status": "success", "message": f"Flushed {flushed.flushed} cache entries"}


async def get_cached_memory(ask: Fields, house: House) -> Reply:
    return await _get(house, _MEMORY, ask.text("memory_id"))


async def cache_memory(ask: Fields, house: House) -> Reply:
    await _put(house, _MEMORY, ask.text("memory_id"), ask.get("data"), _ttl_s(ask, _MEMORY_TTL_S))
    return {"status": "success", "message": "Memory cached"}


async def invalidate_memory_cache(ask: Fields, house: House) -> Reply:
    return await _drop(house, _MEMORY, ask.text("memory_id"))


async def _get(house: House, kind: str, key: str) -> Reply:
    entry = await _ask(house, "memory.cache.get", CacheGet(type=type_of(kind), key=key_of(key)))
    if not entry.hit:
        raise Refused("Cache miss", data=None)
    return {"status": "success", "data": entry.value}


async def _put(house: House, kind: str, key: str, value: Any, ttl_s: float | None) -> None:
    if value is None:
        raise Refused(_MISSING)
    await _ask(house, "memory.cache.set", CacheSet(type=type_of(kind), key=key_of(key), value=value, ttl_s=ttl_s))


async def _drop(house: House, kind: str, key: str) -> Reply:
    dropped = await _ask(house, "memory.cache.delete", CacheDelete(type=type_of(kind), key=key_of(key)))
    return {"status": "success", "message": "Invalidated" if dropped.deleted else "There was nothing to invalidate"}


async def _ask(house: House, subject: str, body: Any) -> Any:
    """A request to the cache; where nobody answers it, the failure has the words for a Redis that is down."""
    try:
        return await house.ask(subject, body, timeout_s=_TIMEOUT_S)
    except Retryable as error:
        raise Refused("Redis is not available", code=error.code, detail=error.message) from error


def _ttl_s(ask: Fields, default: float | None) -> float | None:
    if ask.get("ttl") is None:
        return default
    ttl_s = ask.number("ttl", 0.0)
    if ttl_s <= 0:
        raise Refused(f"ttl is {ttl_s:g}; allowed: seconds above 0")
    return ttl_s


async def health(house: House) -> dict[str, Any]:
    endpoint = house.endpoints.get(NAME)
    own: dict[str, Any] = {
        "redis_available": await house.is_up("memory"),
        "name": NAME,
        "version": VERSION,
        "port": endpoint.port if endpoint else AGENT.ports[0],
        "health_port": endpoint.health_port if endpoint else AGENT.health_ports[0],
        "error_reporting": True,
        "redis_info": {},
    }
    try:
        stats = await house.ask("memory.cache.stats", CacheStats(), timeout_s=_TIMEOUT_S)
    except BusError as error:
        return {**own, "status": "degraded", "redis_available": False, "message": error.message}
    # Of the cache itself, wherever it is: its one client is the memory service.
    own["redis_info"] = {
        "memory_used": f"{stats.size_bytes / 1024:.2f}K",
        "clients_connected": 1,
        "uptime": int(time.time() - house.started_at),
    }
    return own


AGENT = Agent(
    name=NAME,
    service="memory",
    kind="cache",
    ports=(7102,),
    health_ports=(8102,),
    actions={
        "get": Action(get, required=("cache_type", "key"), missing=_MISSING),
        "put": Action(put, required=("cache_type", "key"), missing=_MISSING),
        "invalidate": Action(invalidate, required=("cache_type", "key"), missing=_MISSING),
        "flush": Action(flush, required=("cache_type",), missing=_MISSING),
        "get_cached_memory": Action(get_cached_memory, required=("memory_id",), missing=_MISSING),
        "cache_memory": Action(cache_memory, required=("memory_id",), missing=_MISSING),
        "invalidate_memory_cache": Action(invalidate_memory_cache, required=("memory_id",), missing=_MISSING),
    },
    health=health,
)
