"""Typed relations between memories: made, taken back, followed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

from schemas.bodies.items import (
    Linked,
    Memory,
    MemoryLink,
    MemoryRelated,
    MemoryUnlink,
    RelatedMemories,
    RelatedMemory,
    Relation,
    Unlinked,
)
from workers.memory.items import rows
from workers.memory.items.removal import expire_if_due
from workers.memory.outcome import Outcome, changed

# The near end and the far end of a relation, by direction.
_ENDS: Final = {
    "out": (("source_id", "target_id"),),
    "in": (("target_id", "source_id"),),
    "both": (("source_id", "target_id"), ("target_id", "source_id")),
}


class _Step(NamedTuple):
    relation: Relation
    far_id: str
    depth: int


def link(connection: sqlite3.Connection, request: MemoryLink, now: float) -> Outcome:
    """Relate two memories, or change the strength of their relation."""
    # What hung on an expired memory went with it; a relation made now belongs to whatever gets the id next.
    events = expire_if_due(connection, request.ns, {request.source_id, request.target_id}, now)
    place = (request.ns, request.source_id, request.kind, request.target_id)
    before = connection.execute(
        "SELECT created_at FROM relations WHERE ns = ? AND source_id = ? AND kind = ? AND target_id = ?", place
    ).fetchone()
    connection.execute(
        "INSERT INTO relations (ns, source_id, kind, target_id, strength, created_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET strength = excluded.strength",
        (*place, request.strength, now),
    )
    relation = Relation(
        source_id=request.source_id,
        target_id=request.target_id,
        kind=request.kind,
        strength=request.strength,
        created_at=now if before is None else before[0],
    )
    events.append(changed(request.ns, request.source_id, "link"))
    return Outcome(Linked(relation=relation, is_new=before is None), events)


def unlink(connection: sqlite3.Connection, request: MemoryUnlink, now: float) -> Outcome:
    """Take back the relation of one kind, or all from one memory to the other."""
    events = expire_if_due(connection, request.ns, {request.source_id, request.target_id}, now)
    cursor = connection.execute(
        "DELETE FROM relations WHERE ns = ? AND source_id = ? AND target_id = ? AND (? IS NULL OR kind = ?)",
        (request.ns, request.source_id, request.target_id, request.kind, request.kind),
    )
    if cursor.rowcount:
        events.append(changed(request.ns, request.source_id, "unlink"))
    return Outcome(Unlinked(removed=cursor.rowcount), events)


def related(connection: sqlite3.Connection, request: MemoryRelated, now: float, page_bytes: int) -> RelatedMemories:
    """A page of relations, nearest first; empty for an unknown memory."""
    page: rows.Page[RelatedMemory] = rows.Page(request.limit, page_bytes)
    for step in islice(_steps(connection, request, now), request.after, None):
        row = _row(connection, request.ns, step.far_id, now)
        size_bytes = rows.OVERHEAD_BYTES if row is None else rows.OVERHEAD_BYTES + rows.bytes_of(row)
        if not page.has_room_for(size_bytes):
            return RelatedMemories(related=page.items, next_after=request.after + len(page.items))
        memory: Memory | None = None if row is None else rows.memory(row)
        page.add(RelatedMemory(relation=step.relation, depth=step.depth, memory=memory), size_bytes)
    return RelatedMemories(related=page.items)


def _steps(connection: sqlite3.Connection, request: MemoryRelated, now: float) -> Iterator[_Step]:
    """Every relation within `depth` steps, each once; every memory is followed once, so circles end."""
    if _is_expired(connection, request.ns, request.id, now):
        return
    followed = {request.id}
    seen: set[tuple[str, str, str]] = set()
    layer = [request.id]
    for depth in range(1, request.depth + 1):
        next_layer: list[str] = []
        for near_id in layer:
            for relation, far_id in _relations(connection, request, near_id, now):
                name = (relation.source_id, relation.kind, relation.target_id)
                if name in seen:
                    continue
                seen.add(name)
                yield _Step(relation, far_id, depth)
                if far_id not in followed:
                    followed.add(far_id)
                    next_layer.append(far_id)
        layer = next_layer


def _relations(
    connection: sqlite3.Connection, request: MemoryRelated, near_id: str, now: float
) -> list[tuple[Relation, str]]:
    """The relations at one memory, strongest first, without those to what has expired."""
    found: list[tuple[Relation, str]] = []
    for near, far in _ENDS[request.direction]:
        cursor = connection.execute(
            f"SELECT source_id, target_id, kind, strength, relations.created_at, {far} FROM relations"
            f" LEFT JOIN memories ON memories.ns = relations.ns AND memories.id = relations.{far}"
            f" WHERE relations.ns = ? AND relations.{near} = ? AND (? IS NULL OR kind = ?) AND {rows.IS_LIVE}",
            (request.ns, near_id, request.kind, request.kind, now),
        )
        for source_id, target_id, kind, strength, created_at, far_id in cursor:
            relation = Relation(
                source_id=source_id, target_id=target_id, kind=kind, strength=strength, created_at=created_at
            )
            found.append((relation, far_id))
    found.sort(key=_by_strength)
    return found


def _by_strength(found: tuple[Relation, str]) -> tuple[float, float, str, str, str]:
    relation, _ = found
    return -relation.strength, relation.created_at, relation.kind, relation.source_id, relation.target_id


def _is_expired(connection: sqlite3.Connection, ns: str, memory_id: str, now: float) -> bool:
    row = connection.execute("SELECT expires_at FROM memories WHERE ns = ? AND id = ?", (ns, memory_id)).fetchone()
    return row is not None and row[0] is not None and row[0] <= now


def _row(connection: sqlite3.Connection, ns: str, memory_id: str, now: float) -> tuple[Any, ...] | None:
    row: tuple[Any, ...] | None = connection.execute(
        f"SELECT {rows.COLUMNS} FROM memories WHERE ns = ? AND id = ? AND {rows.IS_LIVE}", (ns, memory_id, now)
    ).fetchone()
    return row
