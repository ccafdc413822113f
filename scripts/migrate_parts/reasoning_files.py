"""JSON files of the UnifiedMemoryReasoningAgent: sessions, error patterns and twins.

They become what workers/gateway/legacy/agents/reasoning.py keeps; the memories and notes that some copies hold become
memories.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from migrate_parts.figures import text, whole
from migrate_parts.moving import Becomes, Row, Store, row
from migrate_parts.stores import Found, UnusableStore, find, read_object
from migrate_parts.times import epoch
from migrate_parts.unified import memory
from schemas.bodies.upkeep import NewRecord

# One shape under three names; several folders the agent was started in.
_SESSIONS: Final = ("memory_store.json", "contextual_memory_store.json", "context_store.json")
_PATTERNS: Final = "error_patterns.json"
_TWINS: Final = "digital_twin_store.json"

_Read = Callable[[Path], Iterator[Row]]


def stores(root: Path) -> list[Store]:
    """The files that the project has. A session that two files hold is that of the first."""
    found = []
    for names, read in ((_SESSIONS, _sessions), ((_PATTERNS,), _patterns), ((_TWINS,), _twins)):
        files = find(root, *(f"{folder}{name}" for name in names for folder in ("", "data/", "agents/")))
        found += [_store(file, [earlier.path for earlier in files[:at]], read) for at, file in enumerate(files)]
    return found


def _store(found: Found, earlier: list[Path], read: _Read) -> Store:
    def rows() -> Iterator[Row]:
        taken = {(one.table, one.key): (one, path) for path in earlier for one in _readable(read, path)}
        for one in read(found.path):
            other = taken.get((one.table, one.key))
            if other is not None and not isinstance(one.becomes, str) and other[0].becomes != one.becomes:
                one = one._replace(becomes=f"{other[1]} has another one of this name, which goes first")
            yield one

    return Store(found.name, found.path, lambda: sum(1 for _ in read(found.path)), rows)


def _readable(read: _Read, path: Path) -> list[Row]:
    """The rows of a file; none where it cannot be read, which its own store tells."""
    try:
        return list(read(path))
    except UnusableStore:
        return []


def kept(what: str, key: str, value: Any, at: float | None, written_at: float) -> NewRecord:
    """A record as workers/gateway/legacy/kept.py keeps it."""
    moment = written_at if at is None else at
    data = {"key": key, "value": value, "version": 1, "created_at": moment, "updated_at": moment}
    return NewRecord(kind="kv", ns=f"legacy.{what}", data=data)


# Sessions


def _sessions(path: Path) -> Iterator[Row]:
    content, written_at = read_object(path), path.stat().st_mtime
    sessions, summaries = _mapping(path, content, "sessions"), _mapping(path, content, "summaries")
    for session_id in dict.fromkeys([*sessions, *summaries]):
        interactions = sessions.get(session_id) or []
        if isinstance(interactions, list):
            for number, one in enumerate(interactions):
                if not isinstance(one, dict):
                    yield Row("interactions", f"{session_id}/{number}", f"is {type(one).__name__}, no object")
        make = partial(_session, session_id, interactions, summaries.get(session_id) or {}, written_at)
        yield row("sessions", session_id, make)
    for memory_id, one in _mapping(path, content, "memories").items():
        yield row("memories", memory_id, partial(_memory, memory_id, one, written_at))
    notes = content.get("notes") or []
    if not isinstance(notes, list):
        raise UnusableStore(f"{path}: notes holds {type(notes).__name__} where an array is expected")
    for number, one in enumerate(notes):
        yield row("notes", number, partial(_note, one, written_at))


def _mapping(path: Path, content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name) or {}
    if not isinstance(value, dict):
        raise UnusableStore(f"{path}: {name} holds {type(value).__name__} where an object is expected")
    return value


def _session(session_id: str, interactions: Any, summary: Any, written_at: float) -> Becomes:
    if not isinstance(interactions, list):
        return f"its interactions are {type(interactions).__name__}, no array"
    if not isinstance(summary, dict):
        return f"its summary is {type(summary).__name__}, no object"
    session: dict[str, Any] = {"interactions": [one for one in interactions if isinstance(one, dict)]}
    if summary:
        errors = summary.get("errors_encountered") or []
        # A text is an error without a type; what is neither cannot be told as one.
        told = [
            one if isinstance(one, dict) else {"type": "other", "message": text(one)}
            for one in (errors if isinstance(errors, list) else [errors])
        ]
        session["summary"] = {**summary, "errors_encountered": told}
    times = [epoch(one.get("timestamp")) for one in session["interactions"][:1]]
    times.append(epoch(summary.get("last_updated")))
    return kept("umra.sessions", session_id, session, max((at for at in times if at), default=None), written_at)


def _memory(memory_id: str, one: Any, written_at: float) -> Becomes:
    fields = one if isinstance(one, dict) else {"content": one}
    rest = {key: value for key, value in fields.items() if key not in ("content", "timestamp")}
    return memory(
        id=f"umra-{memory_id}",
        content=_content(fields.get("content")),
        type="context",
        created_at=epoch(fields.get("timestamp")) or written_at,
        tags=["umra"],
        metadata={"legacy_memory_id": memory_id, **rest},
    )


def _note(one: Any, written_at: float) -> Becomes:
    if not isinstance(one, dict):
        return f"is {type(one).__name__}, no object"
    rest = {key: value for key, value in one.items() if key not in ("note", "timestamp")}
    return memory(
        # They have no ids: the same note is the same memory.
        id=f"umra-note-{hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:16]}",
        content=_content(one.get("note")),
        type="note",
        created_at=epoch(one.get("timestamp")) or written_at,
        tags=["umra", text(one.get("tag"))],
        metadata=rest,
    )


def _content(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value) if value is not None else ""


# Error patterns


def _patterns(path: Path) -> Iterator[Row]:
    content, written_at = read_object(path), path.stat().st_mtime
    for order, (error_type, one) in enumerate(_mapping(path, content, "patterns").items()):
        yield row("patterns", error_type, partial(_pattern, error_type, one, order, written_at))
    history = content.get("history") or []
    for number, one in enumerate(history if isinstance(history, list) else [history]):
        yield row("history", number, partial(_history, number, one, written_at))


def _pattern(error_type: str, one: Any, order: int, written_at: float) -> Becomes:
    if not isinstance(one, dict) or not one.get("pattern"):
        return "has no pattern"
    last_seen = epoch(one.get("last_seen"))
    record = {
        "pattern": text(one["pattern"]),
        "solution": one.get("solution"),
        "last_seen": last_seen or written_at,
        "occurrence_count": whole(one.get("occurrence_count")),
        # They are tried in the order in which they stand in the file, before any that come now.
        "order": order,
    }
    return kept("umra.patterns", error_type, record, last_seen, written_at)


def _history(number: int, one: Any, written_at: float) -> Becomes:
    if not isinstance(one, dict):
        return f"is {type(one).__name__}, no object"
    return kept("umra.pattern_history", f"{number:08d}", one, epoch(one.get("timestamp")), written_at)


# Twins


def _twins(path: Path) -> Iterator[Row]:
    content, written_at = read_object(path), path.stat().st_mtime
    for user_id, twin in content.items():
        yield row("twins", user_id, partial(_twin, user_id, twin, written_at))


def _twin(user_id: str, twin: Any, written_at: float) -> Becomes:
    if not isinstance(twin, dict):
        return f"is {type(twin).__name__}, no object"
    return kept("twins", user_id, twin, None, written_at)
