"""Exactly-once writes: the reply of every write is stored under its request id, in the write's own transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

from schemas.errors import Conflict

# Seconds a reply is kept. A request is dispatched again within its deadline, a minute by default.
KEEP_S: Final = 3600.0

# Ids looked up in one statement, and the sizes of statement that are used.
_IDS_AT_ONCE: Final = 128
_SLOTS: Final = (1, 8, 32, _IDS_AT_ONCE)

# Rows removed in one transaction: about as long as a batch of writes takes.
PRUNE_ROWS: Final = 2_000


class Applied(NamedTuple):
    """A write done before: which operation it was, and its reply as msgpack."""

    operation: str
    reply: bytes


def find_replies(connection: sqlite3.Connection, request_ids: Sequence[bytes]) -> dict[bytes, Applied]:
    """Those of `request_ids` that were applied before."""
    found: dict[bytes, Applied] = {}
    for start in range(0, len(request_ids), _IDS_AT_ONCE):
        asked = request_ids[start : start + _IDS_AT_ONCE]
        # Always the same few statements, so that they stay prepared: what is missing is filled up with nothing.
        slots = next(size for size in _SLOTS if size >= len(asked))
        rows = connection.execute(
            f"SELECT request_id, operation, reply FROM applied_requests WHERE request_id IN ({', '.join('?' * slots)})",
            (*asked, *(None for _ in range(slots - len(asked)))),
        )
        found.update((request_id, Applied(operation, reply)) for request_id, operation, reply in rows)
    return found


def find_reply(connection: sqlite3.Connection, operation: str, request_id: bytes) -> bytes | None:
    """The stored reply, None for an id not seen. Raises Conflict for an id that another operation used."""
    stored = find_replies(connection, [request_id]).get(request_id)
    if stored is None:
        return None
    if stored.operation != operation:
        raise used_for_another(request_id, stored.operation)
    return stored.reply


def used_for_another(request_id: bytes, operation: str) -> Conflict:
    """The error for an id that `operation` has used up."""
    return Conflict(
        f"request id {request_id.hex()} was already used for {operation}: every request needs an id of its own",
        request_id=request_id.hex(),
        operation=operation,
    )


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


def date_back(connection: sqlite3.Connection, now: float) -> int:
    """Take what was applied later than now, by a clock that has been set back since, for applied now; returns how many.

    Otherwise `prune`, which goes from the oldest on, would stand still until that time, and the table would grow.
    """
    if latest_applied_at(connection) <= now:
        return 0
    return connection.execute("UPDATE applied_requests SET applied_at = ?1 WHERE applied_at > ?1", (now,)).rowcount


def has_outdated(connection: sqlite3.Connection, now: float) -> bool:
    """True when `prune` would find something."""
    row = connection.execute("SELECT applied_at FROM applied_requests ORDER BY sequence LIMIT 1").fetchone()
    return row is not None and row[0] < now - KEEP_S


def prune(connection: sqlite3.Connection, now: float) -> int:
    """Forget the oldest replies past their time, PRUNE_ROWS at most; returns their number."""
    oldest = "SELECT sequence, applied_at FROM applied_requests ORDER BY sequence LIMIT ?"
    cursor = connection.execute(
        f"DELETE FROM applied_requests WHERE sequence IN (SELECT sequence FROM ({oldest}) WHERE applied_at < ?)",
        (PRUNE_ROWS, now - KEEP_S),
    )
    return cursor.rowcount
