"""`data/memory_store.db` of the MemoryManager (7110), whose memories have whole numbers as ids.

What has the type `experience` becomes an experience, for the ExperienceTracker; everything else a memory called
`mem-legacy-<number>`, which is how workers/gateway/legacy/agents/memory_manager.py knows it.
"""

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
from migrate_parts.times import default_epoch, epoch
from migrate_parts.unified import memory, relation
from schemas.bodies.upkeep import NewRecord
from workers.gateway.legacy.agents.experiences import EXPERIENCE, OLD_ID, TRACKER, WORDLESS
from workers.gateway.legacy.agents.memory_manager import TAG

_ENTRY: Final = (
    "memory_id",
    "content",
    "memory_type",
    "importance_score",
    "access_count",
    "last_accessed",
    "created_at",
    "expires_at",
    "metadata",
)
_NS: Final = "experience"


def stores(root: Path) -> list[Store]:
    """The store, where the project has one."""
    return [_store(found) for found in find(root, "data/memory_store.db", "memory_store.db")]


def _store(found: Found) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return database.count("memory_entries") + database.count("memory_relationships")

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            categories = _categories(database)
            types = {
                one["memory_id"]: one["memory_type"]
                for one in database.rows("memory_entries", "memory_id", "memory_type")
            }
            for one in database.rows("memory_entries", *_ENTRY):
                make = partial(_entry, one, categories.get(one["memory_id"], {}), database.written_at)
                yield row("memory_entries", one["memory_id"], make)
            yield from _relations(database, types)

    return Store(found.name, found.path, total, rows)


def _categories(database: Database) -> dict[Any, dict[str, Any]]:
    """The categories of each memory, with how far it belongs to them."""
    names = {one["category_id"]: text(one["name"]) for one in database.rows("memory_categories", "category_id", "name")}
    found: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
    for one in database.rows("memory_category_assignments", "memory_id", "category_id", "relevance_score"):
        if names.get(one["category_id"]):
            found[one["memory_id"]][names[one["category_id"]]] = unit(one["relevance_score"], 1.0)
    return found


def _entry(one: dict[str, Any], categories: dict[str, Any], written_at: float) -> Becomes:
    created_at = default_epoch(one["created_at"]) or written_at
    accessed_at = default_epoch(one["last_accessed"])
    expires_at = epoch(one["expires_at"])
    if expires_at is not None and expires_at <= time.time():
        return f"it has expired, on {one['expires_at']}"
    metadata = {**packed(one["metadata"], dict), OLD_ID: one["memory_id"]}
    if categories:
        metadata["legacy_categories"] = categories
    importance, accesses = unit(one["importance_score"], 0.5), whole(one["access_count"])
    if one["memory_type"] != EXPERIENCE:
        return memory(
            id=f"mem-legacy-{one['memory_id']}",
            content=one["content"],
            type=one["memory_type"],
            importance=importance,
            access_count=accesses,
            created_at=created_at,
            last_accessed_at=accessed_at,
            expires_at=expires_at,
            tags=[TAG, *categories],
            metadata=metadata,
        )
    data = {
        "exp_id": f"exp-legacy-{one['memory_id']}",
        "agent": TRACKER,
        "action": one["content"] or WORDLESS,
        "outcome": "",
        "importance": importance,
        "at": created_at,
        "created_at": created_at,
        "context": metadata,
        "tags": list(categories),
        "expires_at": expires_at,
        "access_count": accesses,
        "last_accessed_at": accessed_at,
    }
    return NewRecord(kind="experience", ns=_NS, data=data)


def _relations(database: Database, types: dict[Any, Any]) -> Iterator[Row]:
    wanted = (
        "relationship_id",
        "source_memory_id",
        "target_memory_id",
        "relationship_type",
        "strength",
        "created_at",
    )
    for one in database.rows("memory_relationships", *wanted):

        def becomes(one: dict[str, Any] = one) -> Becomes:
            ends = (one["source_memory_id"], one["target_memory_id"])
            for end in ends:
                if end not in types:
                    return f"the memory {end!r} does not exist"
                if types[end] == EXPERIENCE:
                    return f"{end} is an experience, and those have no relations"
            at = default_epoch(one["created_at"]) or database.written_at
            source_id, target_id = (f"mem-legacy-{end}" for end in ends)
            return relation(source_id, target_id, one["relationship_type"], one["strength"], at)

        yield row("memory_relationships", one["relationship_id"], becomes)
