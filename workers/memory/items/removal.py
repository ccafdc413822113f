"""Takes memories out of the record with all that hangs on them, for whatever reason they go."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from schemas.bodies.items import MemoryDelete, MemoryDeleted
from workers.memory import chunks
from workers.memory.items import rows
from workers.memory.items.floors import raise_floor
from workers.memory.outcome import Event, Outcome, changed
from workers.memory.sessions import suggestions
from workers.memory.values import unpack

# The kind of relation that leads from a memory to the consolidation made of it and others.
CONSOLIDATED_INTO: Final = "consolidated_into"

# What belongs to one memory and goes with it.
_BELONGINGS: Final = (
    "DELETE FROM memory_tags WHERE ns = ? AND id = ?",
    "DELETE FROM relations WHERE ns = ? AND source_id = ?",
    "DELETE FROM relations WHERE ns = ? AND target_id = ?",
    "DELETE FROM group_members WHERE ns = ? AND memory_id = ?",
    "DELETE FROM memories WHERE ns = ? AND id = ?",
)


def delete(connection: sqlite3.Connection, request: MemoryDelete, now: float) -> Outcome:
    """Delete a memory and, with `cascade`, its descendants. Raises NotFound."""
    if rows.find(connection, request.ns, request.id, now) is None:
        raise rows.not_found(request.ns, request.id)
    ids = descendants(connection, request.ns, request.id, now) if request.cascade else [request.id]
    events = remove(connection, request.ns, ids, "delete")
    return Outcome(MemoryDeleted(id=request.id, deleted=len(ids)), events)


def descendants(connection: sqlite3.Connection, ns: str, memory_id: str, now: float) -> list[str]:
    """The memory and everything below it, each once, parents first."""
    # UNION keeps each id once, so this ends whatever the parents say.
    found = connection.execute(
        "WITH RECURSIVE below (id) AS (SELECT ? UNION SELECT memories.id FROM below JOIN memories"
        f" ON memories.ns = ? AND memories.parent_id = below.id AND {rows.IS_LIVE}) SELECT id FROM below",
        (memory_id, ns, now),
    )
    return [found_id for (found_id,) in found]


def expire_if_due(connection: sqlite3.Connection, ns: str, ids: Iterable[str], now: float) -> list[Event]:
    """Remove those of `ids` whose time is over, so that nothing is written to what is gone."""
    due = [
        memory_id
        for memory_id in ids
        if connection.execute(
            "SELECT 1 FROM memories WHERE ns = ? AND id = ? AND expires_at <= ?", (ns, memory_id, now)
        ).fetchone()
    ]
    return remove(connection, ns, due, "expire") if due else []


def has_expired(connection: sqlite3.Connection, ns: str | None, now: float) -> bool:
    """True when `expire` would find something."""
    found = connection.execute(
        "SELECT 1 FROM memories WHERE expires_at <= ? AND (? IS NULL OR ns = ?) LIMIT 1", (now, ns, ns)
    )
    return found.fetchone() is not None


def count_expired(connection: sqlite3.Connection, ns: str | None, now: float) -> int:
    """How many memories wait to be removed."""
    (count,) = connection.execute(
        "SELECT count(*) FROM memories WHERE expires_at <= ? AND (? IS NULL OR ns = ?)", (now, ns, ns)
    ).fetchone()
    return int(count)


def expire(connection: sqlite3.Connection, ns: str | None, now: float, limit: int) -> Outcome:
    """Remove up to `limit` memories whose time is over, the longest first; the reply is their number."""
    due = connection.execute(
        "SELECT ns, id FROM memories WHERE expires_at <= ? AND (? IS NULL OR ns = ?) ORDER BY expires_at LIMIT ?",
        (now, ns, ns, limit),
    ).fetchall()
    by_ns: dict[str, list[str]] = {}
    for due_ns, memory_id in due:
        by_ns.setdefault(due_ns, []).append(memory_id)
    events = [event for due_ns, ids in by_ns.items() for event in remove(connection, due_ns, ids, "expire")]
    return Outcome(len(due), events)


def remove(connection: sqlite3.Connection, ns: str, ids: Sequence[str], action: str) -> list[Event]:
    """Remove memories that exist, with the consolidations that quote them; returns an event for each."""
    doomed = dict.fromkeys(ids)
    for memory_id in ids:
        doomed.update(dict.fromkeys(_consolidations(connection, ns, memory_id)))
    events = []
    highest = 0
    for memory_id in doomed:
        (version,) = connection.execute(
            "SELECT version FROM memories WHERE ns = ? AND id = ?", (ns, memory_id)
        ).fetchone()
        highest = max(highest, version)
        events.append(changed(ns, memory_id, action, version))
        chunks.remove(connection, ns=ns, kind="memory", source_id=memory_id)
        suggestions.forget_source(connection, ns, "memory", memory_id)
    for statement in _BELONGINGS:
        connection.executemany(statement, [(ns, memory_id) for memory_id in doomed])
    raise_floor(connection, ns, "memory", highest)
    return events


def _consolidations(connection: sqlite3.Connection, ns: str, memory_id: str) -> list[str]:
    """The untouched consolidations made of a memory: they say again what is to be gone."""
    found = connection.execute(
        "SELECT memories.id, memories.metadata FROM relations JOIN memories"
        " ON memories.ns = relations.ns AND memories.id = relations.target_id"
        " WHERE relations.ns = ? AND relations.source_id = ? AND relations.kind = ?"
        " AND memories.type = 'consolidated' AND memories.version = 1",
        (ns, memory_id, CONSOLIDATED_INTO),
    )
    made = ((found_id, unpack(metadata).get("consolidated_from")) for found_id, metadata in found.fetchall())
    return [found_id for found_id, sources in made if isinstance(sources, list) and memory_id in sources]
