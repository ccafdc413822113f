"""`memory_hub.db` and `embeddings_metadata.json` of the first unified memory service, and `memory.db` of MemoryFusionHub."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from migrate_parts.figures import text, unit
from migrate_parts.moving import Becomes, Row, Store, row
from migrate_parts.reasoning_files import kept
from migrate_parts.stores import Database, Found, UnusableStore, find, opened, packed, packed_or_text, read_json
from migrate_parts.times import default_epoch, epoch
from migrate_parts.unified import memory
from schemas.bodies.upkeep import NewRecord

_DOCUMENT: Final = ("id", "namespace", "doc_id", "title", "content", "metadata", "created_at", "updated_at")
_SESSION: Final = ("id", "namespace", "session_id", "user_id", "data", "expires_at", "created_at", "updated_at")
_EXPERIENCE: Final = (
    "id",
    "namespace",
    "experience_id",
    "category",
    "context",
    "outcome",
    "learning",
    "confidence_score",
    "created_at",
)
_FUSION: Final = ("memory_items", "session_data", "knowledge_records", "memory_events")

# Namespaces of what names none, as the old service had them.
_EMBEDDINGS_NS: Final = "unified_memory_reasoning"

# Seconds: a session without an end ends far away.
_LONGEST_S: Final = 10 * 366 * 86_400.0


def stores(root: Path) -> list[Store]:
    """The stores that the project has."""
    hubs = find(root, "memory_hub.db", "data/memory_hub.db")
    lists = find(root, "embeddings_metadata.json", "data/embeddings_metadata.json")
    fusion = find(
        root, "memory.db", "data/memory.db", "memory_fusion_hub/memory.db", "memory_fusion_hub/data/memory.db"
    )
    return [
        *(_database(found, _hub_rows, ("documents", "sessions", "experiences")) for found in hubs),
        *(_embeddings(found) for found in lists),
        *(_database(found, _fusion_rows, _FUSION) for found in fusion if _is_fusion(found)),
    ]


def _database(found: Found, read: Any, tables: tuple[str, ...]) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return sum(database.count(table) for table in tables)

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            yield from read(database)

    return Store(found.name, found.path, total, rows)


def _is_fusion(found: Found) -> bool:
    """False for another database of that name, as ours."""
    try:
        with opened(found.path) as database:
            return any(database.columns(table) for table in _FUSION)
    except UnusableStore:
        # It tells why when it is read.
        return True


# The unified service


def _hub_rows(database: Database) -> Iterator[Row]:
    written_at = database.written_at
    for one in database.rows("documents", *_DOCUMENT):
        yield row("documents", _name(one, "doc_id"), partial(_document, one, written_at))
    for one in database.rows("sessions", *_SESSION):
        yield row("sessions", _name(one, "session_id"), partial(_session, one, written_at))
    for one in database.rows("experiences", *_EXPERIENCE):
        yield row("experiences", _name(one, "experience_id"), partial(_experience, one, written_at))


def _name(one: dict[str, Any], key: str) -> str:
    return f"{one['namespace']}/{one[key]}"


def _document(one: dict[str, Any], written_at: float) -> Becomes:
    created_at = default_epoch(one["created_at"]) or written_at
    data = {
        "doc_id": one["doc_id"],
        "title": text(one["title"])[:1024],
        "content": one["content"],
        "version": 1,
        "created_at": created_at,
        "updated_at": default_epoch(one["updated_at"]) or created_at,
        "at": created_at,
        "metadata": packed(one["metadata"], dict),
    }
    return NewRecord(kind="document", ns=one["namespace"], data=data)


def _session(one: dict[str, Any], written_at: float) -> Becomes:
    created_at = default_epoch(one["created_at"]) or written_at
    expires_at = epoch(one["expires_at"])
    if expires_at is not None and expires_at <= time.time():
        return f"it has expired, on {one['expires_at']}"
    data = {
        "session_id": one["session_id"],
        "user_id": one["user_id"],
        "type": "conversation",
        "state": "open",
        "created_at": created_at,
        "last_used_at": default_epoch(one["updated_at"]) or created_at,
        "expires_at": expires_at,
        "ttl_s": _LONGEST_S if expires_at is None else max(expires_at - created_at, 1.0),
        "metadata": packed_or_text(one["data"], "data"),
    }
    return NewRecord(kind="session", ns=one["namespace"], data=data)


def _experience(one: dict[str, Any], written_at: float) -> Becomes:
    created_at = default_epoch(one["created_at"]) or written_at
    more = {name: one[name] for name in ("category", "learning") if one[name]}
    data = {
        "exp_id": one["experience_id"],
        "agent": "MemoryHub",
        "action": one["context"],
        "outcome": text(one["outcome"]),
        "importance": unit(one["confidence_score"], 0.0),
        "at": created_at,
        "created_at": created_at,
        "context": more,
    }
    return NewRecord(kind="experience", ns=one["namespace"], data=data)


# Its embeddings: their texts, for the vectors are made anew


def _embeddings(found: Found) -> Store:
    def rows() -> Iterator[Row]:
        documents, written_at = _documents_beside(found.path), found.path.stat().st_mtime
        for number, one in enumerate(_list(found.path)):
            if isinstance(one, dict) and _is_gone(one, documents):
                continue
            key = one.get("id", number) if isinstance(one, dict) else number
            yield row("embeddings", key, partial(_embedding, one, number, written_at))

    return Store(found.name, found.path, lambda: len(_list(found.path)), rows)


def _list(path: Path) -> list[Any]:
    content = read_json(path)
    if isinstance(content, dict):
        content = content.get("embeddings", content.get("metadata", []))
    if not isinstance(content, list):
        raise UnusableStore(f"{path}: holds {type(content).__name__} where an array is expected")
    return content


def _documents_beside(path: Path) -> set[tuple[Any, Any]]:
    database = path.with_name("memory_hub.db")
    if not database.is_file():
        return set()
    try:
        with opened(database) as hub:
            return {(one["namespace"], one["doc_id"]) for one in hub.rows("documents", "namespace", "doc_id")}
    except UnusableStore:
        return set()


def _is_gone(one: dict[str, Any], documents: set[tuple[Any, Any]]) -> bool:
    """True for what was deleted, and for the vector of a document, which ours gets by itself."""
    metadata = one.get("metadata")
    is_deleted = isinstance(metadata, dict) and bool(metadata.get("_deleted"))
    return is_deleted or (str(one.get("namespace")), str(one.get("doc_id"))) in documents


def _embedding(one: Any, number: int, written_at: float) -> Becomes:
    if not isinstance(one, dict):
        return f"is {type(one).__name__}, no object"
    about = {name: one[name] for name in ("doc_id", "category") if one.get(name)}
    return memory(
        id=text(one.get("id")) or f"embedding-legacy-{number}",
        content=one.get("content"),
        type="general",
        tier="long",
        created_at=default_epoch(one.get("created_at")) or written_at,
        metadata={**packed(one.get("metadata"), dict), **about},
        ns=text(one.get("namespace")) or _EMBEDDINGS_NS,
    )


# MemoryFusionHub: items that MemoryClient answers for


def _fusion_rows(database: Database) -> Iterator[Row]:
    taken: set[Any] = set()
    for table in _FUSION:
        for one in database.rows(table, "key", "data", "created_at", "updated_at"):
            yield row(table, one["key"], partial(_item, one, one["key"] in taken, database.written_at))
            taken.add(one["key"])


def _item(one: dict[str, Any], is_taken: bool, written_at: float) -> Becomes:
    if is_taken:
        return "another item has its key"
    item = json.loads(one["data"]) if isinstance(one["data"], str) else one["data"]
    if not isinstance(item, dict):
        return f"data holds {type(item).__name__} where an object is expected"
    ends_at = epoch(item.get("expiry_timestamp"), is_utc=True)
    if ends_at is not None and ends_at <= time.time():
        return f"it has expired, on {item['expiry_timestamp']}"
    at = default_epoch(one["updated_at"]) or default_epoch(one["created_at"])
    record = kept("fusion", one["key"], {**item, "key": one["key"]}, at, written_at)
    return (
        record if ends_at is None else NewRecord(kind="kv", ns=record.ns, data={**record.data, "expires_at": ends_at})
    )
