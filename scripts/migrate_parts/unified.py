"""`data/unified_memory.db` of the MemoryOrchestratorService: memories, their relations and groups."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from migrate_parts.figures import text, unit, whole
from migrate_parts.moving import Becomes, Row, Store, row
from migrate_parts.stores import Database, Found, find, opened, packed
from migrate_parts.times import epoch
from schemas.bodies.upkeep import NewRecord
from workers.gateway.legacy.agents.memories import KEPT, KEYS, NS

_TABLES: Final = ("memories", "memory_relationships", "context_groups")
_TIERS: Final = ("short", "medium", "long")


def stores(root: Path) -> list[Store]:
    """The store, where the project has one."""
    return [_store(found) for found in find(root, "data/unified_memory.db")]


def _store(found: Found) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return sum(database.count(table) for table in _TABLES)

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            known = {one["memory_id"] for one in database.rows("memories", "memory_id")}
            for one in database.rows("memories", *KEYS):
                yield row("memories", one["memory_id"], partial(memory_record, one, known, database.written_at))
            yield from _relations(database, known)
            yield from _groups(database, known)

    return Store(found.name, found.path, total, rows)


def memory_record(one: dict[str, Any], known: set[Any], written_at: float) -> NewRecord:
    """A row of 13 columns as a record of memory. Raises ValueError for a JSON column that does not read.

    written_at: epoch seconds that stand for a time the row lacks, the same in every run.
    """
    metadata = dict(packed(one["metadata"], dict))
    if relationships := packed(one["relationships"], dict):
        metadata[KEPT] = {"relationships": relationships}
    parent_id = one["parent_id"] or None
    if parent_id is not None and parent_id not in known:
        # The old store never checked; what hangs on nothing is kept, and says so.
        metadata["legacy.parent_id"] = parent_id
        parent_id = None
    return memory(
        id=one["memory_id"],
        content=one["content"],
        type=one["memory_type"],
        tier=one["memory_tier"],
        importance=unit(one["importance"], 0.5),
        access_count=whole(one["access_count"]),
        created_at=epoch(one["created_at"]) or written_at,
        last_accessed_at=epoch(one["last_accessed_at"]),
        parent_id=parent_id,
        # expires_at was stored and never enforced: a past one would drop the memory now.
        tags=packed(one["tags"], list),
        metadata=metadata,
    )


def memory(
    *,
    id: Any,
    content: Any,
    type: Any,
    created_at: float,
    tier: Any = "long",
    importance: float = 0.5,
    access_count: int = 0,
    last_accessed_at: float | None = None,
    expires_at: float | None = None,
    parent_id: str | None = None,
    speaker: str | None = None,
    tags: list[Any] | None = None,
    metadata: dict[str, Any] | None = None,
    ns: str = NS,
) -> NewRecord:
    """A memory; `tier` is brought to one that there is."""
    data = {
        "id": id,
        "content": content,
        "type": text(type)[:64] or "general",
        "tier": tier if tier in _TIERS else "short",
        "importance": importance,
        "access_count": access_count,
        "created_at": created_at,
        "updated_at": created_at,
        "last_accessed_at": created_at if last_accessed_at is None else last_accessed_at,
        # It ages from now on: the old life cycle has aged it so far.
        "decayed_at": time.time(),
        "at": created_at,
        "version": 1,
        "parent_id": parent_id,
        "expires_at": expires_at,
        "speaker": speaker,
        "tags": list(dict.fromkeys(str(tag)[:256] for tag in tags or () if tag))[:256],
        "metadata": metadata or {},
    }
    return NewRecord(kind="memory", ns=ns, data=data)


def relation(source_id: str, target_id: str, kind: Any, strength: Any, created_at: float) -> NewRecord:
    """A relation between two memories."""
    data = {
        "source_id": source_id,
        "target_id": target_id,
        "kind": text(kind)[:64] or "related",
        "strength": unit(strength, 1.0),
        "created_at": created_at,
    }
    return NewRecord(kind="relation", ns=NS, data=data)


def group(group_id: int, name: Any, description: Any, created_at: float, members: list[str]) -> NewRecord:
    """A group with the memories in it."""
    data = {
        "group_id": group_id,
        "name": name,
        "description": text(description),
        "created_at": created_at,
        "members": [{"memory_id": memory_id} for memory_id in dict.fromkeys(members)],
    }
    return NewRecord(kind="group", ns=NS, data=data)


def _relations(database: Database, known: set[Any]) -> Iterator[Row]:
    wanted = ("id", "source_memory_id", "target_memory_id", "relationship_type", "strength", "created_at")
    for one in database.rows("memory_relationships", *wanted):

        def becomes(one: dict[str, Any] = one) -> Becomes:
            ends = (one["source_memory_id"], one["target_memory_id"])
            for end in ends:
                if end not in known:
                    return f"the memory {end!r} does not exist"
            at = epoch(one["created_at"]) or database.written_at
            return relation(*ends, one["relationship_type"], one["strength"], at)

        yield row("memory_relationships", one["id"], becomes)


def _groups(database: Database, known: set[Any]) -> Iterator[Row]:
    members: defaultdict[Any, list[str]] = defaultdict(list)
    groups = {one["id"] for one in database.rows("context_groups", "id")}
    for one in database.rows("memory_group_mappings", "id", "memory_id", "group_id"):
        if one["memory_id"] not in known:
            yield Row("memory_group_mappings", str(one["id"]), f"the memory {one['memory_id']!r} does not exist")
        elif one["group_id"] not in groups:
            yield Row("memory_group_mappings", str(one["id"]), f"the group {one['group_id']!r} does not exist")
        else:
            members[one["group_id"]].append(one["memory_id"])
    for one in database.rows("context_groups", "id", "name", "description", "created_at"):
        at = epoch(one["created_at"]) or database.written_at
        yield row(
            "context_groups",
            one["id"],
            partial(group, one["id"], one["name"], one["description"], at, members[one["id"]]),
        )
