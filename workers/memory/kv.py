"""Key-value entries: the statements behind `memory.kv.*`, each inside a transaction that its caller owns.

An entry's version starts at 1 and grows by one per write. When an entry goes (deleted or expired) its version is kept
as the floor of its namespace, and whatever is created there later starts above it: a version once seen can never fit
a later incarnation of its key, and no tombstone per key is needed.
"""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

from schemas.bodies.memory import KvDelete, KvDeleted, KvEntry, KvGet, KvList, KvPage, KvSet, KvVersion
from schemas.errors import Conflict, NotFound
from workers.memory.outcome import Event, Outcome, changed
from workers.memory.text import end_of_prefix
from workers.memory.values import unpack

# What a reply carries beside key and value: field names, times, version, envelope. Generous.
ENTRY_OVERHEAD_BYTES: Final = 512

_COLUMNS: Final = "key, version, created_at, updated_at, expires_at"
_IS_LIVE: Final = "(expires_at IS NULL OR expires_at > ?)"


class _Existing(NamedTuple):
    version: int
    created_at: float


def get_entry(connection: sqlite3.Connection, request: KvGet, now: float) -> KvEntry:
    """The entry, unless it has expired. Raises NotFound."""
    row = connection.execute(
        f"SELECT {_COLUMNS}, value FROM kv WHERE ns = ? AND key = ? AND {_IS_LIVE}", (request.ns, request.key, now)
    ).fetchone()
    if row is None:
        raise NotFound(f"no entry {request.key!r} in namespace {request.ns!r}", ns=request.ns, key=request.key)
    return _entry(request.ns, row)


def set_entry(connection: sqlite3.Connection, request: KvSet, packed: bytes, now: float) -> Outcome:
    """Write the entry; a write without `ttl_s` makes it permanent. Raises Conflict where `if_version` does not fit."""
    events: list[Event] = []
    existing = _existing(connection, request.ns, request.key, now, events)
    _require_version(request, existing)
    expires_at = None if request.ttl_s is None else now + request.ttl_s
    if existing is None:
        created_at, version = now, floor(connection, request.ns) + 1
        connection.execute(
            "INSERT INTO kv (ns, key, version, created_at, updated_at, expires_at, value) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (request.ns, request.key, version, now, now, expires_at, packed),
        )
    else:
        created_at, version = existing.created_at, existing.version + 1
        connection.execute(
            "UPDATE kv SET version = ?, updated_at = ?, expires_at = ?, value = ? WHERE ns = ? AND key = ?",
            (version, now, expires_at, packed, request.ns, request.key),
        )
    events.append(changed(request.ns, request.key, "set", version))
    reply = KvVersion(
        key=request.key,
        ns=request.ns,
        version=version,
        created_at=created_at,
        updated_at=now,
        expires_at=expires_at,
    )
    return Outcome(reply, events)


def delete_entry(connection: sqlite3.Connection, request: KvDelete, now: float) -> Outcome:
    """Delete the entry if it is there. Raises Conflict where `if_version` does not fit."""
    events: list[Event] = []
    existing = _existing(connection, request.ns, request.key, now, events)
    _require_version(request, existing)
    if existing is not None:
        _remove(connection, request.ns, request.key, existing.version)
        events.append(changed(request.ns, request.key, "delete", existing.version))
    return Outcome(KvDeleted(key=request.key, ns=request.ns, deleted=existing is not None), events)


def list_entries(connection: sqlite3.Connection, request: KvList, now: float, page_bytes: int) -> KvPage:
    """A page in key order: at most `limit` entries and, past its first entry, at most `page_bytes` of them."""
    # A range of keys and not LIKE: `%` and `_` mean themselves, and the index answers.
    where = ["ns = ?", _IS_LIVE]
    values: list[str | float] = [request.ns, now]
    # One lower bound, the higher one: SQLite would seek to either and filter the rest.
    if request.after is not None and request.after >= request.prefix:
        where.append("key > ?")
        values.append(request.after)
    else:
        where.append("key >= ?")
        values.append(request.prefix)
    end = end_of_prefix(request.prefix)
    if end is not None:
        where.append("key < ?")
        values.append(end)
    value = "NULL" if request.keys_only else "value"
    rows = connection.execute(
        f"SELECT {_COLUMNS}, {value} FROM kv WHERE {' AND '.join(where)} ORDER BY key LIMIT ?",
        (*values, request.limit + 1),
    )
    entries: list[KvEntry] = []
    size_bytes = 0
    for row in rows:
        size_bytes += ENTRY_OVERHEAD_BYTES + len(row[0].encode()) + len(row[-1] or b"")
        if len(entries) == request.limit or (entries and size_bytes > page_bytes):
            return KvPage(entries=entries, next_after=entries[-1].key)
        entries.append(_entry(request.ns, row))
    return KvPage(entries=entries)


def has_expired(connection: sqlite3.Connection, now: float) -> bool:
    """True when `expire_entries` would find something."""
    return connection.execute("SELECT 1 FROM kv WHERE expires_at <= ? LIMIT 1", (now,)).fetchone() is not None


def expire_entries(connection: sqlite3.Connection, now: float, limit: int) -> Outcome:
    """Remove up to `limit` expired entries, the longest expired first; the reply is their number."""
    rows = connection.execute(
        "SELECT ns, key, version FROM kv WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (now, limit)
    ).fetchall()
    for ns, key, version in rows:
        _remove(connection, ns, key, version)
    return Outcome(len(rows), [changed(ns, key, "expire", version) for ns, key, version in rows])


def _existing(connection: sqlite3.Connection, ns: str, key: str, now: float, events: list[Event]) -> _Existing | None:
    row = connection.execute(
        "SELECT version, created_at, expires_at FROM kv WHERE ns = ? AND key = ?", (ns, key)
    ).fetchone()
    if row is None:
        return None
    version, created_at, expires_at = row
    if expires_at is not None and expires_at <= now:
        _remove(connection, ns, key, version)
        events.append(changed(ns, key, "expire", version))
        return None
    return _Existing(version, created_at)


def _require_version(request: KvSet | KvDelete, existing: _Existing | None) -> None:
    actual = existing.version if existing is not None else 0
    if request.if_version is None or request.if_version == actual:
        return
    state = f"is at version {actual}" if actual else "does not exist"
    wanted = f"version {request.if_version}" if request.if_version else "no entry"
    raise Conflict(
        f"entry {request.key!r} in namespace {request.ns!r} {state}, the request asked for {wanted}",
        version=actual,
        if_version=request.if_version,
        ns=request.ns,
        key=request.key,
    )


def _remove(connection: sqlite3.Connection, ns: str, key: str, version: int) -> None:
    connection.execute("DELETE FROM kv WHERE ns = ? AND key = ?", (ns, key))
    connection.execute(
        "INSERT INTO kv_floors (ns, version) VALUES (?, ?)"
        " ON CONFLICT (ns) DO UPDATE SET version = max(version, excluded.version)",
        (ns, version),
    )


def floor(connection: sqlite3.Connection, ns: str) -> int:
    """The highest version of an entry that is gone from the namespace; new ones start above it. 0 where none is."""
    row = connection.execute("SELECT version FROM kv_floors WHERE ns = ?", (ns,)).fetchone()
    return row[0] if row is not None else 0


def _entry(ns: str, row: tuple[str, int, float, float, float | None, bytes | None]) -> KvEntry:
    key, version, created_at, updated_at, expires_at, packed = row
    return KvEntry(
        key=key,
        value=None if packed is None else unpack(packed),
        ns=ns,
        version=version,
        created_at=created_at,
        updated_at=updated_at,
        expires_at=expires_at,
    )
