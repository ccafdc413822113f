"""What a write answers and announces."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from schemas.bodies.memory import Changed

_NOT_IN_TOKEN: Final = re.compile(r"[^A-Za-z0-9_-]")


class Event(NamedTuple):
    """Something that subscribers hear once the write that caused it is committed."""

    subject: str
    body: msgspec.Struct


class Outcome(NamedTuple):
    """What a write did: its reply, and its events, which are stored with it until they are on the bus."""

    reply: Any
    events: list[Event]


# Runs in the writer's thread, inside a transaction that it must leave open; it may be rolled back and run again. The
# number is the time, epoch seconds.
Write = Callable[[sqlite3.Connection, float], Outcome]


def changed(ns: str, key: str, action: str, version: int | None = None, *, request_id: bytes | None = None) -> Event:
    """The event `memory.changed.{ns}`, with `_` for each character that a subject token cannot hold.

    request_id: of the request that caused it, where the write does not carry that itself.
    """
    subject = f"memory.changed.{_NOT_IN_TOKEN.sub('_', ns)}"
    named = None if request_id is None else request_id.hex()
    return Event(subject, Changed(ns=ns, key=key, action=action, version=version, request_id=named))
