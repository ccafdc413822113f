"""Redis of the replaced system: who registered, and what users kept under `/kv`. All else there is cache, and is left.

Only SCAN, TYPE, GET, HGETALL and TTL are sent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from migrate_parts.figures import number, text
from migrate_parts.moving import Becomes, Row, Store, row
from migrate_parts.reasoning_files import kept
from migrate_parts.stores import UnusableStore
from migrate_parts.times import epoch
from schemas.bodies.upkeep import NewRecord
from workers.gateway.legacy.agents.directory import FIELDS, REGISTERED

_REGISTRY: Final = "service_registry:"

# Prefixes of the unified service's keys, and the namespaces that they stand for.
_NAMESPACES: Final = {
    "mc": "memory_client",
    "sm": "session_memory",
    "kb": "knowledge_base",
    "mo": "memory_orchestrator",
    "umr": "unified_memory_reasoning",
    "cm": "context_manager",
    "et": "experience_tracker",
}

# What the service itself kept there, for a while.
_OWN: Final = ("sm:session_activity:",)

# Its databases: caches and keys, sessions, knowledge. The fourth holds signed-in users, whose time is over.
_DATABASES: Final = (0, 1, 2)

_SCANNED: Final = 1_000
_TIMEOUT_S: Final = 10.0


def stores(url: str) -> list[Store]:
    """The server at `url` (redis://, rediss://, unix://). Raises UnusableStore where the package redis is missing."""
    try:
        import redis
    except ImportError:
        raise UnusableStore("--redis needs the package redis: pip install redis") from None

    def clients() -> Iterator[tuple[int, Any]]:
        for database in _DATABASES:
            try:
                pool = redis.ConnectionPool.from_url(url, socket_timeout=_TIMEOUT_S)
            except (ValueError, redis.RedisError) as error:
                raise UnusableStore(f"redis: {error}") from error
            # Whatever database the address names.
            pool.connection_kwargs["db"] = database
            with redis.Redis.from_pool(pool) as client:
                yield database, client

    def rows() -> Iterator[Row]:
        try:
            for database, client in clients():
                # Sorted: the order of a scan is another one each time.
                for key in sorted(set(client.scan_iter(count=_SCANNED))):
                    name = key.decode("utf-8", "replace")
                    found = _row(database, name, key, client)
                    if found is not None:
                        yield found
        except redis.RedisError as error:
            raise UnusableStore(f"redis: {error}") from error

    return [Store("redis", None, lambda: 0, rows)]


def _row(database: int, name: str, key: bytes, client: Any) -> Row | None:
    """What a key becomes; None for what is left behind."""
    prefix, _, rest = name.partition(":")
    if database == 0 and name.startswith(_REGISTRY) and rest:
        return row("service_registry", rest, partial(_registered, rest, key, client))
    if prefix in _NAMESPACES and rest and not name.startswith(_OWN):
        return row(f"{prefix} (database {database})", rest, partial(_entry, _NAMESPACES[prefix], rest, key, client))
    return None


def _registered(name: str, key: bytes, client: Any) -> Becomes:
    value = _value(key, client)
    endpoint = json.loads(value) if isinstance(value, str) else value
    if not isinstance(endpoint, dict):
        return f"holds {type(endpoint).__name__} where an object is expected"
    given = {field: endpoint[field] for field in FIELDS if endpoint.get(field) is not None}
    if endpoint.get("ip") and "host" not in given:
        given["host"] = endpoint["ip"]
    for port in ("port", "health_check_port"):
        if port in given:
            given[port] = int(number(given[port], 0))
    seen_at = epoch(endpoint.get("last_registered"))
    record = {
        **FIELDS,
        **given,
        "name": name,
        "status": text(endpoint.get("status")) or "HEALTHY",
        "location": text(endpoint.get("location")),
        "last_registered": seen_at or 0.0,
    }
    return kept(REGISTERED, name, record, seen_at, time.time())


def _entry(ns: str, name: str, key: bytes, client: Any) -> Becomes:
    value = _value(key, client)
    if value is None:
        return f"is a {client.type(key).decode()}, and no text"
    left_s = client.ttl(key)
    now = time.time()
    ends_at = now + left_s if left_s >= 0 else None
    data = {"key": name, "value": value, "version": 1, "created_at": now, "updated_at": now, "expires_at": ends_at}
    return NewRecord(kind="kv", ns=ns, data=data)


def _value(key: bytes, client: Any) -> Any:
    """The text or the fields of a key; None for what is neither."""
    match client.type(key):
        case b"string":
            return _text(client.get(key) or b"")
        case b"hash":
            return {_text(field): _text(value) for field, value in client.hgetall(key).items()}
        case _:
            return None


def _text(value: bytes) -> str:
    """Raises UnicodeDecodeError, a ValueError, for what is no text."""
    return value.decode("utf-8")
