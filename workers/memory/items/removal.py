"""Takes memories out of the record with all that hangs on them, for whatever reason they go.

What is too much for one transaction goes in two steps: hidden at once, for every reader as if it had expired, and then
removed page by page by the sweep that removes what has expired.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from schemas.bodies.items import MemoryDelete, MemoryDeleted
from workers.memory import chunks
from workers.memory.items import rows
from workers.memory.items.floors import raise_floor
from workers.memory.outcome import Event, Outcome, changed
from workers.memory.sessions import suggestions
from workers.memory.values import unpack

# The kind of relation that leads from a memory to the consolidation made of it and others.
CONSOLIDATED_INTO: Final = "consolidated_into"

# Memories and their chunks, counted together, that one transaction removes at most, so that no write waits long behind
# it; a memory with more chunks goes alone.
REMOVED_AT_ONCE: Final = 500

# Stands in `expires_at` of a memory that was deleted and waits to be removed. Before every time that there is.
_DELETED: Final = -1.0

# What belongs to one memory and goes with it.
_BELONGINGS: Final = (
    "DELETE FROM memory_tags WHERE ns = ? AND id = ?",
    "DELETE FROM relations WHERE ns = ? AND source_id = ?",
    "DELETE FROM relations WHERE ns = ? AND target_id = ?",
    "DELETE FROM group_members WHERE ns = ? AND memory_id = ?",
    "DELETE FROM memories WHERE ns = ? AND id = ?",
)


class _Due(NamedTuple):
    """A memory to be removed, and the action that its event tells."""

    ns: str
    id: str
    action: str


def delete(connection: sqlite3.Connection, request: MemoryDelete, now: float) -> Outcome:
    """Delete a memory and, with `cascade`, its descendants. Raises NotFound.

    Of more than REMOVED_AT_ONCE the events come with their removal.
    """
    if rows.find(connection, request.ns, request.id, now) is None:
        raise rows.not_found(request.ns, request.id)
    ids = descendants(connection, request.ns, request.id, now) if request.cascade else [request.id]
    events: list[Event] = []
    if len(ids) == _fitting(connection, [(request.ns, memory_id) for memory_id in ids]):
        events = remove(connection, request.ns, ids, "delete")
    else:
        _hide(connection, request.ns, ids)
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
    due: dict[str, str] = {}
    for memory_id in ids:
        row = connection.execute(
            "SELECT expires_at FROM memories WHERE ns = ? AND id = ? AND expires_at <= ?", (ns, memory_id, now)
        ).fetchone()
        if row is not None:
            due[memory_id] = _action(row[0])
    return _remove(connection, ns, due) if due else []


def has_expired(connection: sqlite3.Connection, ns: str | None, now: float, *, but_deleted: bool = False) -> bool:
    """True when `expire` would find something."""
    found = connection.execute(
        "SELECT 1 FROM memories WHERE expires_at >= ? AND expires_at <= ? AND (? IS NULL OR ns = ?) LIMIT 1",
        (_earliest(but_deleted), now, ns, ns),
    )
    return found.fetchone() is not None


def count_expired(connection: sqlite3.Connection, ns: str | None, now: float) -> int:
    """How many memories wait to be removed because their time is over."""
    (count,) = connection.execute(
        "SELECT count(*) FROM memories WHERE expires_at > ? AND expires_at <= ? AND (? IS NULL OR ns = ?)",
        (_DELETED, now, ns, ns),
    ).fetchone()
    return int(count)


def expire(
    connection: sqlite3.Connection, ns: str | None, now: float, limit: int, *, but_deleted: bool = False
) -> Outcome:
    """Remove memories that were deleted, then those whose time is over, the longest first: a page of them.

    but_deleted: leave those that were deleted, which are hidden anyway. A page is at most `limit` memories and REMOVED_AT_ONCE. The reply is the number of those whose time was over.
    """
    found = connection.execute(
        "SELECT ns, id, expires_at FROM memories WHERE expires_at >= ? AND expires_at <= ? AND (? IS NULL OR ns = ?)"
        " ORDER BY expires_at LIMIT ?",
        (_earliest(but_deleted), now, ns, ns, limit),
    )
    due = [_Due(due_ns, memory_id, _action(expires_at)) for due_ns, memory_id, expires_at in found.fetchall()]
    page = due[: _fitting(connection, [(one.ns, one.id) for one in due])]
    by_ns: dict[str, dict[str, str]] = {}
    for one in page:
        by_ns.setdefault(one.ns, {})[one.id] = one.action
    events = [event for due_ns, actions in by_ns.items() for event in _remove(connection, due_ns, actions)]
    return Outcome(sum(one.action == "expire" for one in page), events)


def remove(connection: sqlite3.Connection, ns: str, ids: Sequence[str], action: str) -> list[Event]:
    """Remove memories that exist, with the consolidations that quote them; returns an event for each."""
    return _remove(connection, ns, dict.fromkeys(ids, action))


def _remove(connection: sqlite3.Connection, ns: str, actions: Mapping[str, str]) -> list[Event]:
    """`remove`, with an action for each id; a consolidation has that of the first memory it quotes."""
    doomed = dict(actions)
    for memory_id, action in actions.items():
        for consolidation in _consolidations(connection, ns, memory_id):
            doomed.setdefault(consolidation, action)
    events = []
    highest = 0
    for memory_id, action in doomed.items():
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


def _hide(connection: sqlite3.Connection, ns: str, ids: Sequence[str]) -> None:
    """Make memories and the consolidations that quote them gone for every reader, for a sweep to remove.

    A seventh of the work of removing them, some 1 s for 100,000: nothing of the search index is touched.
    """
    doomed = dict.fromkeys(ids)
    for memory_id in ids:
        doomed.update(dict.fromkeys(_consolidations(connection, ns, memory_id)))
    for memory_id in _quoted(connection, ns):
        if memory_id in doomed:
            suggestions.forget_source(connection, ns, "memory", memory_id)
    connection.executemany(
        "UPDATE memories SET expires_at = ? WHERE ns = ? AND id = ?",
        [(_DELETED, ns, memory_id) for memory_id in doomed],
    )


def _quoted(connection: sqlite3.Connection, ns: str) -> list[str]:
    """The memories of a namespace that suggestions rest on: few, where asking for each of many would take long."""
    before_id = suggestions.source_of(ns, "memory", "")
    found = connection.execute(
        "SELECT DISTINCT evidence_from FROM suggestions WHERE ns IN (?, ?) AND evidence_from IS NOT NULL",
        (ns, suggestions.SHARED_NS),
    )
    return [source.removeprefix(before_id) for (source,) in found.fetchall() if source.startswith(before_id)]


def _earliest(but_deleted: bool) -> float:
    # Times before that of the deleted, which only an import brings, are past by any clock.
    return math.nextafter(_DELETED, math.inf) if but_deleted else -math.inf


def _action(expires_at: float) -> str:
    return "delete" if expires_at == _DELETED else "expire"


def _fitting(connection: sqlite3.Connection, places: Sequence[tuple[str, str]]) -> int:
    """How many of the memories at these places (namespace and id), from the first, one transaction is to remove."""
    left = REMOVED_AT_ONCE
    for fitting, (ns, memory_id) in enumerate(places):
        (count,) = connection.execute(
            "SELECT count(*) FROM chunks WHERE ns = ? AND kind = 'memory' AND source_id = ?", (ns, memory_id)
        ).fetchone()
        left -= 1 + count
        if left < 0:
            return max(1, fitting)
    return len(places)


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
