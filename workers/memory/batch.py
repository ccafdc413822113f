"""One transaction for many writes: each happens once per request id, and one that fails leaves the others alone.

Runs in the writer's thread. What every write needs besides its own statements (has its id been seen, keep its reply,
keep its events) is done for the whole batch in a few statements: each statement costs the interpreter's lock twice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from workers.memory import applied
from workers.memory.outcome import Outcome, Write

_encode: Final = msgspec.msgpack.Encoder().encode

# Rows of one INSERT statement; what is left over goes in one by one.
_ROWS_AT_ONCE: Final = 16


class Once(NamedTuple):
    """What makes a write happen once: the request's id, and how the reply kept under it is read again."""

    operation: str
    request_id: bytes
    reply_type: Any


class Job(NamedTuple):
    """A write that waits for its turn."""

    write: Write
    once: Once | None


class _NotTogether(Exception):
    """A write of the batch failed: the batch is rolled back and run again, each write in a savepoint."""


def run(connection: sqlite3.Connection, jobs: Sequence[Job], now: float) -> list[Outcome | Exception]:
    """What each job did, or raised, after the commit. Raises what made the whole transaction fail; nothing is stored then.

    A job whose request id was applied before answers what it answered then and changes nothing.
    """
    try:
        return _run(connection, jobs, now, _together)
    except _NotTogether:
        return _run(connection, jobs, now, _apart)


_Do = Callable[[sqlite3.Connection, Write, float], Outcome | Exception]


def _run(connection: sqlite3.Connection, jobs: Sequence[Job], now: float, do: _Do) -> list[Outcome | Exception]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        outcomes = _run_all(connection, jobs, now, do)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return outcomes


def _run_all(connection: sqlite3.Connection, jobs: Sequence[Job], now: float, do: _Do) -> list[Outcome | Exception]:
    known = applied.find_replies(connection, [job.once.request_id for job in jobs if job.once is not None])
    outcomes: list[Outcome | Exception] = []
    replies: list[tuple[bytes, str, bytes, float]] = []
    events: list[tuple[str, bytes]] = []
    for write, once in jobs:
        stored = None if once is None else known.get(once.request_id)
        if once is not None and stored is not None:
            outcomes.append(_again(stored, once))
            continue
        outcome = do(connection, write, now)
        if isinstance(outcome, Outcome):
            request_id = None
            if once is not None:
                reply = _encode(outcome.reply)
                # The same id twice in one batch is found here as it would be in the table.
                known[once.request_id] = applied.Applied(once.operation, reply)
                replies.append((once.request_id, once.operation, reply, now))
                request_id = once.request_id.hex()
            events += [(event.subject, _encode(_caused_by(event.body, request_id))) for event in outcome.events]
        outcomes.append(outcome)
    _insert(connection, "applied_requests (request_id, operation, reply, applied_at)", replies)
    _insert(connection, "events_outbox (subject, body)", events)
    return outcomes


def _together(connection: sqlite3.Connection, write: Write, now: float) -> Outcome:
    try:
        return write(connection, now)
    except Exception as error:
        # A full disk or a failed device makes SQLite give up the whole transaction: running it again would not help.
        if not connection.in_transaction:
            raise
        raise _NotTogether from error


def _apart(connection: sqlite3.Connection, write: Write, now: float) -> Outcome | Exception:
    connection.execute("SAVEPOINT one_write")
    try:
        outcome = write(connection, now)
    except Exception as error:  # goes to this write's caller, whatever it is
        if not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO one_write")
        connection.execute("RELEASE one_write")
        return error
    connection.execute("RELEASE one_write")
    return outcome


def _again(stored: applied.Applied, once: Once) -> Outcome | Exception:
    if stored.operation != once.operation:
        return applied.used_for_another(once.request_id, stored.operation)
    return Outcome(msgspec.msgpack.decode(stored.reply, type=once.reply_type), [])


def _caused_by(body: msgspec.Struct, request_id: str | None) -> msgspec.Struct:
    if request_id is None or not hasattr(body, "request_id"):
        return body
    return msgspec.structs.replace(body, request_id=request_id)


def _insert(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if not rows:
        return
    one = f"({', '.join('?' * len(rows[0]))})"
    whole = len(rows) - len(rows) % _ROWS_AT_ONCE
    many = f"INSERT INTO {into} VALUES {', '.join([one] * _ROWS_AT_ONCE)}"
    for start in range(0, whole, _ROWS_AT_ONCE):
        connection.execute(many, _flat(rows[start : start + _ROWS_AT_ONCE]))
    if whole < len(rows):
        connection.executemany(f"INSERT INTO {into} VALUES {one}", rows[whole:])


def _flat(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [value for row in rows for value in row]
