"""Stored contexts: the state of an ongoing piece of work, with versions and a time to live."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from schemas.bodies import sessions as bodies
from schemas.errors import Conflict, NotFound
from workers.memory import applied
from workers.memory.items.floors import floor, raise_floor
from workers.memory.outcome import Event, Outcome
from workers.memory.records import Records
from workers.memory.sessions.sessions import METADATA_BYTES
from workers.memory.text import check_texts
from workers.memory.values import pack, unpack

_PUT: Final = "memory.context.put"

# Contexts removed in one transaction.
BATCH_ROWS: Final = 500

# What a reply carries beside the values of a context, bytes. Generous.
CONTEXT_OVERHEAD_BYTES: Final = 4_096

_COLUMNS: Final = (
    "context_id, ns, version, created_at, updated_at, data, system_prompt, session_id, user_id, metadata, expires_at"
)


class Contexts:
    """Stored contexts. Every method takes the operation's request; a write happens once for its request id."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def put(self, request: bodies.ContextPut, request_id: bytes) -> bodies.Context:
        """Write a context. Raises Conflict where its version is another than `if_version`, TooLarge, BadRequest."""
        check_texts(request)
        beside_bytes = CONTEXT_OVERHEAD_BYTES + METADATA_BYTES + len(request.system_prompt.encode())
        data = pack(request.data, max_bytes=max(1, self._records.max_body_bytes - beside_bytes), field="data")
        metadata = pack(request.metadata, max_bytes=METADATA_BYTES, field="metadata")

        def write(connection: sqlite3.Connection, now: float) -> Outcome:
            # Only the id is kept, as a context may be large and is often written: the same request again gets it as it
            # is by then.
            if applied.find_reply(connection, _PUT, request_id) is not None:
                return Outcome(_read(connection, request.ns, request.context_id, now), [])
            outcome = _put(connection, request, data, metadata, now)
            applied.store_reply(connection, _PUT, request_id, b"", now)
            return outcome

        context: bodies.Context = await self._records.write(write)
        return context

    async def get(self, request: bodies.ContextGet) -> bodies.Context:
        """One context. Raises NotFound."""
        check_texts(request)
        now = self._records.now()
        return await self._records.read(lambda connection: _read(connection, request.ns, request.context_id, now))

    async def find(self, ns: str, context_id: str) -> bodies.Context | None:
        """One context, None where there is none."""
        now = self._records.now()
        return await self._records.read(lambda connection: _find(connection, ns, context_id, now))

    async def delete(self, request: bodies.ContextDelete, request_id: bytes) -> bodies.ContextDeleted:
        """Delete a context; one that is not there is no error."""
        check_texts(request)
        return await self._records.write_once(
            "memory.context.delete",
            request_id,
            bodies.ContextDeleted,
            lambda connection, now: _delete(connection, request, now),
        )

    async def listing(self, request: bodies.ContextList) -> bodies.Contexts:
        """A page of contexts in the order of their ids."""
        check_texts(request)
        now = self._records.now()
        return await self._records.read(lambda connection: _list(connection, request, now, self._records.page_bytes))

    async def sweep(self, now: float) -> None:
        """Remove expired contexts. Costs one read when there are none."""
        while await self._records.read(lambda connection: _has_expired(connection, now)):
            await self._records.write(lambda connection, _: _expire(connection, now))


def _put(
    connection: sqlite3.Connection, request: bodies.ContextPut, data: bytes, metadata: bytes, now: float
) -> Outcome:
    known = _find(connection, request.ns, request.context_id, now)
    version = known.version if known is not None else 0
    if request.if_version is not None and request.if_version != version:
        raise Conflict(
            f"context {request.context_id!r} is at version {version}, if_version is {request.if_version}",
            context_id=request.context_id,
            version=version,
        )
    # Not read back: a time to live below the clock's resolution has passed already.
    context = bodies.Context(
        context_id=request.context_id,
        ns=request.ns,
        version=1 + (version or _floor(connection, request.ns, request.context_id)),
        created_at=known.created_at if known is not None else now,
        updated_at=now,
        data=request.data,
        system_prompt=request.system_prompt,
        session_id=request.session_id,
        user_id=request.user_id,
        metadata=request.metadata,
        expires_at=None if request.ttl_s is None else now + request.ttl_s,
    )
    connection.execute(
        f"INSERT OR REPLACE INTO contexts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            context.context_id,
            context.ns,
            context.version,
            context.created_at,
            context.updated_at,
            data,
            context.system_prompt,
            context.session_id,
            context.user_id,
            metadata,
            context.expires_at,
        ),
    )
    return Outcome(context, [_event(request.ns, request.context_id, "put", context.version, now)])


def _floor(connection: sqlite3.Connection, ns: str, context_id: str) -> int:
    """The version that a new context starts above: no version once seen fits another context of the same name."""
    row = connection.execute(
        "SELECT version FROM contexts WHERE ns = ? AND context_id = ?", (ns, context_id)
    ).fetchone()
    # One that expired and was not swept yet is replaced, and its version goes with it.
    return max(floor(connection, ns, "context"), row[0] if row is not None else 0)


def _delete(connection: sqlite3.Connection, request: bodies.ContextDelete, now: float) -> Outcome:
    known = _find(connection, request.ns, request.context_id, now)
    reply = bodies.ContextDeleted(context_id=request.context_id, ns=request.ns, deleted=known is not None)
    if known is None:
        return Outcome(reply, [])
    raise_floor(connection, request.ns, "context", known.version)
    connection.execute("DELETE FROM contexts WHERE ns = ? AND context_id = ?", (request.ns, request.context_id))
    return Outcome(reply, [_event(request.ns, request.context_id, "delete", known.version, now)])


def _find(connection: sqlite3.Connection, ns: str, context_id: str, now: float) -> bodies.Context | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM contexts WHERE ns = ? AND context_id = ? AND (expires_at IS NULL OR expires_at > ?)",
        (ns, context_id, now),
    ).fetchone()
    return None if row is None else _context(row)


def _read(connection: sqlite3.Connection, ns: str, context_id: str, now: float) -> bodies.Context:
    context = _find(connection, ns, context_id, now)
    if context is None:
        raise NotFound(f"there is no context {context_id!r} in namespace {ns!r}", ns=ns, context_id=context_id)
    return context


def _list(connection: sqlite3.Connection, request: bodies.ContextList, now: float, page_bytes: int) -> bodies.Contexts:
    # Only conditions that are asked for: SQLite finds no index for those that may not count.
    of_user = "" if request.user_id is None else " AND user_id = :user_id"
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM contexts WHERE ns = :ns{of_user} AND context_id > :after"
        " AND (expires_at IS NULL OR expires_at > :now) ORDER BY context_id LIMIT :limit",
        {
            "ns": request.ns,
            "user_id": request.user_id,
            "after": request.after or "",
            "now": now,
            "limit": request.limit + 1,
        },
    )
    found: list[bodies.Context] = []
    size_bytes = 0
    for row in rows:
        size_bytes += CONTEXT_OVERHEAD_BYTES + len(row[5]) + len(row[6].encode()) + len(row[9])
        if len(found) == request.limit or (found and size_bytes > page_bytes):
            return bodies.Contexts(contexts=found, next_after=found[-1].context_id)
        found.append(_context(row))
    return bodies.Contexts(contexts=found)


def _has_expired(connection: sqlite3.Connection, now: float) -> bool:
    return connection.execute("SELECT 1 FROM contexts WHERE expires_at <= ? LIMIT 1", (now,)).fetchone() is not None


def _expire(connection: sqlite3.Connection, now: float) -> Outcome:
    rows = connection.execute(
        "SELECT ns, context_id, version FROM contexts WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",
        (now, BATCH_ROWS),
    ).fetchall()
    for ns, _, version in rows:
        raise_floor(connection, ns, "context", version)
    connection.executemany(
        "DELETE FROM contexts WHERE ns = ? AND context_id = ?", [(ns, context_id) for ns, context_id, _ in rows]
    )
    return Outcome(len(rows), [_event(ns, context_id, "expire", version, now) for ns, context_id, version in rows])


def _event(ns: str, context_id: str, action: str, version: int, now: float) -> Event:
    body = bodies.ContextEvent(context_id=context_id, ns=ns, action=action, version=version, at=now)
    return Event("memory.context.changed", body)


def _context(row: tuple[Any, ...]) -> bodies.Context:
    (context_id, ns, version, created_at, updated_at, data, system_prompt, session_id, user_id, metadata, expires) = row
    return bodies.Context(
        context_id=context_id,
        ns=ns,
        version=version,
        created_at=created_at,
        updated_at=updated_at,
        data=unpack(data),
        system_prompt=system_prompt,
        session_id=session_id,
        user_id=user_id,
        metadata=unpack(metadata),
        expires_at=expires,
    )
