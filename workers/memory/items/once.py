"""Writes that happen once per request id although their reply is too long to be kept with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from workers.memory import applied
from workers.memory.outcome import Event, Outcome
from workers.memory.records import Records

T = TypeVar("T")
Change = Callable[[sqlite3.Connection, float], Sequence[Event]]


async def once_then_read(
    records: Records, operation: str, request_id: bytes, change: Change, read: Callable[[sqlite3.Connection, float], T]
) -> T:
    """Make `change` happen once per request id, and answer what `read` finds after it, in the same transaction.

    Again, it changes nothing and answers what is found by then. Only the id is kept: a memory may be long, and the same
    one is often read.
    """

    def write(connection: sqlite3.Connection, now: float) -> Outcome:
        events: Sequence[Event] = ()
        if applied.find_reply(connection, operation, request_id) is None:
            events = change(connection, now)
            applied.store_reply(connection, operation, request_id, b"", now)
        reply = read(connection, now)
        return Outcome(reply, [_caused_by(event, request_id) for event in events])

    found: T = await records.write(write)
    return found


def _caused_by(event: Event, request_id: bytes) -> Event:
    return Event(event.subject, msgspec.structs.replace(event.body, request_id=request_id.hex()))
