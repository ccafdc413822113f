"""Exactly-once writes: the reply of every write is stored under its request id, in the write's own transaction."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

import msgspec

from schemas.errors import Conflict
from workers.memory.database import Event, Outcome, Write

# Seconds a reply is kept. A request is dispatched again within its deadline, a minute by default.
KEEP_S: Final = 3600.0

# Rows removed in one transaction: about as long as a batch of writes takes.
PRUNE_ROWS: Final = 2_000


def once(operation: str, request_id: bytes, reply_type: type[Any], write: Write) -> Write:
    """`write`, made to happen once per request id: again, it answers what it answered and changes nothing.

    A write that failed left nothing behind and is tried anew.
    """

    def write_once(connection: sqlite3.Connection, now: float) -> Outcome:
        stored = find_reply(connection, operation, request_id)
        if stored is not None:
            return Outcome(msgspec.msgpack.decode(stored, type=reply_type), [])
        outcome = write(connection, now)
        store_reply(connection, operation, request_id, msgspec.msgpack.encode(outcome.reply), now)
        return Outcome(outcome.reply, [_caused_by(event, request_id) for event in outcome.events])

    return write_once


def find_reply(connection: sqlite3.Connection, operation: str, request_id: bytes) -> bytes | None:
    """The stored reply, None for an id not seen. Raises Conflict for an id that another operation used."""
    row = connection.execute(
        "SELECT operation, reply FROM applied_requests WHERE request_id = ?", (request_id,)
    ).fetchone()
    if row is None:
        return None
    if row[0] != operation:
        raise Conflict(
            f"request id {request_id.hex()} was already used for {row[0]}: every request needs an id of its own",
            request_id=request_id.hex(),
            operation=row[0],
        )
    reply: bytes = row[1]
    return reply


def store_reply(connection: sqlite3.Connection, operation: str, request_id: bytes, reply: bytes, now: float) -> None:
    """Remember that the request was applied and what it was answered."""
    connection.execute(
        "INSERT INTO applied_requests (request_id, operation, reply, applied_at) VALUES (?, ?, ?, ?)",
        (request_id, operation, reply, now),
    )


def latest_applied_at(connection: sqlite3.Connection) -> float:
    """When the last remembered write was applied; 0.0 when none is."""
    row = connection.execute("SELECT applied_at FROM applied_requests ORDER BY sequence DESC LIMIT 1").fetchone()
    return row[0] if row is not None else 0.0


def has_outdated(connection: sqlite3.Connection, now: float) -> bool:
    """True when `prune` would find something."""
    row = connection.execute("SELECT applied_at FROM applied_requests ORDER BY sequence LIMIT 1").fetchone()
    return row is not None and row[0] < now - KEEP_S


def prune(connection: sqlite3.Connection, now: float) -> Outcome:
    """Forget the oldest replies past their time, PRUNE_ROWS at most; the reply is their number."""
    oldest = "SELECT sequence, applied_at FROM applied_requests ORDER BY sequence LIMIT ?"
    cursor = connection.execute(
        f"DELETE FROM applied_requests WHERE sequence IN (SELECT sequence FROM ({oldest}) WHERE applied_at < ?)",
        (PRUNE_ROWS, now - KEEP_S),
    )
    return Outcome(cursor.rowcount, [])


def _caused_by(event: Event, request_id: bytes) -> Event:
    if not hasattr(event.body, "request_id"):
        return event
    return Event(event.subject, msgspec.structs.replace(event.body, request_id=request_id.hex()))
