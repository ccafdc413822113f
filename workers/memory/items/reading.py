"""Reads memories without counting it: several by id, listings, and what lies under one."""

from __future__ import annotations

import re
import sqlite3
from itertools import islice
from typing import Any, Final

from schemas.bodies.items import Memories, Memory, MemoryChildren, MemoryGetMany, MemoryList
from workers.memory import metadata_filter
from workers.memory.items import rows
from workers.memory.items.removal import descendants

# The most that a listing without a limit of its own answers at once.
_NO_LIMIT: Final = 1_000_000

# Memories with a tag up to which they are looked up one by one, 2 to 3 us each; walking 100,000 takes 30 ms.
_RARE_TAG: Final = 1_000

# What LIKE does not take as it stands.
_LIKE_WORDS: Final = re.compile(r"[%_\\]")
_ESCAPED: Final = r"\\\g<0>"

_LISTED: Final = {
    "added": "sequence",
    "newest": "sequence DESC",
    "importance": "importance DESC, last_accessed_at DESC, sequence",
}
_BEYOND: Final = {"added": ">", "newest": "<"}

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
    """A page of what fulfils the filters."""
    where, values = _asked(request, now)
    metadata_filter.prepare(connection, request.metadata)
    skipped = 0
    if request.after is not None and request.sort == "importance":
        skipped = request.after
    elif request.after is not None:
        where.append(f"memories.sequence {_BEYOND[request.sort]} ?")
        values.append(request.after)
    found = connection.execute(
        f"SELECT sequence FROM {_tables(connection, request)} WHERE {' AND '.join(where)}"
        f" ORDER BY {_LISTED[request.sort]} LIMIT ? OFFSET ?",
        (*values, request.limit + 1, skipped),
    )
    sequences = [sequence for (sequence,) in found]
    page = rows.by_sequence(connection, sequences, page_bytes, request.limit)
    is_cut = len(page.items) < len(sequences)
    if request.sort == "importance":
        return Memories(memories=page.items, next_after=skipped + len(page.items) if is_cut else None)
    return Memories(memories=page.items, next_after=page.items[-1].sequence if is_cut else None)


def _tables(connection: sqlite3.Connection, request: MemoryList) -> str:
    """What is read, the first table first: the memories of a rare tag are looked up, those of a common one soon met."""
    if request.tag is None:
        return "memories"
    (tagged,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM memory_tags WHERE ns = ? AND tag = ? LIMIT ?)",
        (request.ns, request.tag, _RARE_TAG + 1),
    ).fetchone()
    return "memory_tags CROSS JOIN memories" if tagged <= _RARE_TAG else "memories CROSS JOIN memory_tags"


def _asked(request: MemoryList, now: float) -> tuple[list[str], list[Any]]:
    where = ["memories.ns = ?", rows.IS_LIVE]
    values: list[Any] = [request.ns, now]
    for field in ("type", "tier", "parent_id"):
        wanted = getattr(request, field)
        if wanted is not None:
            where.append(f"memories.{field} = ?")
            values.append(wanted)
    if request.tag is not None:
        where.append("memory_tags.ns = ? AND memory_tags.tag = ? AND memory_tags.id = memories.id")
        values += [request.ns, request.tag]
    if request.contains is not None:
        # LIKE knows the case of a to z alone. It reads 100,000 memories of 100 characters in 30 to 40 ms.
        where.append("memories.content LIKE ? ESCAPE '\\'")
        values.append(f"%{_LIKE_WORDS.sub(_ESCAPED, request.contains)}%")
    if request.metadata:
        where.append("has_metadata(memories.metadata)")
    return where, values


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
