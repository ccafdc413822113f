"""Reads memories without counting it: several by id, listings, and what lies under one."""

from __future__ import annotations

import sqlite3
from itertools import islice
from typing import Any, Final

from schemas.bodies.items import Memories, Memory, MemoryChildren, MemoryGetMany, MemoryList
from workers.memory.items import rows
from workers.memory.items.removal import descendants

# The most that a listing without a limit of its own answers at once.
_NO_LIMIT: Final = 1_000_000

_ORDER: Final = {
    "added": "sequence",
    "created_at": "created_at",
    "at": "at",
    "importance": "importance",
    "last_accessed_at": "last_accessed_at",
}


def get_many(connection: sqlite3.Connection, request: MemoryGetMany, now: float, page_bytes: int) -> Memories:
    """The memories asked for, as far as one reply holds them."""
    ids = list(dict.fromkeys(request.ids))
    page: rows.Page[Memory] = rows.Page(len(ids), page_bytes)
    missing: list[str] = []
    for memory_id in ids:
        row = connection.execute(
            f"SELECT {rows.COLUMNS} FROM memories WHERE ns = ? AND id = ? AND {rows.IS_LIVE}",
            (request.ns, memory_id, now),
        ).fetchone()
        size_bytes = len(memory_id.encode()) if row is None else rows.bytes_of(row)
        if not page.has_room_for(size_bytes):
            return Memories(memories=page.items, missing=missing, next_after=request.ids.index(memory_id))
        if row is None:
            missing.append(memory_id)
        else:
            page.add(rows.memory(row), size_bytes)
    return Memories(memories=page.items, missing=missing)


def list_memories(connection: sqlite3.Connection, request: MemoryList, now: float, page_bytes: int) -> Memories:
    """A page in the order of adding."""
    where = ["memories.ns = ?", rows.IS_LIVE]
    values: list[Any] = [request.ns, now]
    for field in ("type", "tier", "parent_id"):
        wanted = getattr(request, field)
        if wanted is not None:
            where.append(f"memories.{field} = ?")
            values.append(wanted)
    if request.tag is not None:
        where.append("memories.id IN (SELECT id FROM memory_tags WHERE memory_tags.ns = ? AND memory_tags.tag = ?)")
        values += [request.ns, request.tag]
    if request.after is not None:
        where.append("memories.sequence > ?")
        values.append(request.after)
    found = connection.execute(
        f"SELECT sequence FROM memories WHERE {' AND '.join(where)} ORDER BY sequence LIMIT ?",
        (*values, request.limit + 1),
    )
    sequences = [sequence for (sequence,) in found]
    page = rows.by_sequence(connection, sequences, page_bytes, request.limit)
    is_cut = len(page.items) < len(sequences)
    return Memories(memories=page.items, next_after=page.items[-1].sequence if is_cut else None)


def children(connection: sqlite3.Connection, request: MemoryChildren, now: float, page_bytes: int) -> Memories:
    """A page of what lies under a memory; empty for an unknown one."""
    sequences = _below(connection, request, now) if request.recursive else _right_below(connection, request, now)
    limit = request.limit or _NO_LIMIT
    page = rows.by_sequence(connection, islice(sequences, request.after, None), page_bytes, limit)
    read = request.after + len(page.items)
    return Memories(memories=page.items, next_after=read if read < len(sequences) else None)


def _right_below(connection: sqlite3.Connection, request: MemoryChildren, now: float) -> list[int]:
    found = connection.execute(
        f"SELECT sequence FROM memories WHERE ns = ? AND parent_id = ? AND {rows.IS_LIVE} ORDER BY {_order(request)}",
        (request.ns, request.id, now),
    )
    return [sequence for (sequence,) in found]


def _below(connection: sqlite3.Connection, request: MemoryChildren, now: float) -> list[int]:
    # The memory itself comes first and is no child of its own, also where no memory has this id.
    ids = descendants(connection, request.ns, request.id, now)[1:]
    found = (
        connection.execute(
            f"SELECT {_ORDER[request.sort_field]}, sequence FROM memories WHERE ns = ? AND id = ?", (request.ns, child)
        ).fetchone()
        for child in ids
    )
    return [sequence for _, sequence in sorted(found, reverse=request.sort_order == "desc")]


def _order(request: MemoryChildren) -> str:
    return f"{_ORDER[request.sort_field]} {request.sort_order}, sequence {request.sort_order}"
