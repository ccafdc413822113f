"""Writes memories: add, change, reinforce, promote, and the count of accesses.

Each function runs inside a transaction that its caller owns. Removal is in `removal`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from schemas.bodies.items import (
    MemoriesAdded,
    MemoryAdded,
    MemoryPromote,
    MemoryReinforce,
    MemoryUpdate,
)
from schemas.errors import BadRequest, Conflict, Unprocessable
from workers.memory import chunks
from workers.memory.chunks import Source
from workers.memory.items import rows
from workers.memory.items.drafts import Draft, Revision, check_size
from workers.memory.items.floors import floor
from workers.memory.items.lifecycle import NEXT_TIER, RESTING
from workers.memory.items.removal import expire_if_due
from workers.memory.outcome import Event, Outcome, changed
from workers.memory.sessions import suggestions
from workers.memory.values import pack

_WRITTEN: Final = (
    "type, tier, importance, access_count, created_at, updated_at, last_accessed_at, decayed_at, at, version,"
    " parent_id, expires_at, speaker, tags, metadata, content"
)
_SLOTS: Final = ", ".join("?" * len(_WRITTEN.split(", ")))
_INSERT: Final = f"INSERT INTO memories ({_WRITTEN}, ns, id) VALUES ({_SLOTS}, ?, ?)"
_OVERWRITE: Final = f"UPDATE memories SET ({_WRITTEN}) = ({_SLOTS}) WHERE ns = ? AND id = ?"


class Added(NamedTuple):
    """A memory that was written, and whether its id was free."""

    draft: Draft
    sequence: int
    version: int
    is_new: bool


def add(connection: sqlite3.Connection, ns: str, draft: Draft, now: float) -> Outcome:
    """Write one memory. Raises Conflict for an id that exists, Unprocessable for a parent that lies below it."""
    added, events = write_all(connection, ns, [draft], now)
    ttl_s = draft.request.ttl_s
    reply = MemoryAdded(
        id=draft.id,
        ns=ns,
        version=added[0].version,
        created_at=now,
        expires_at=None if ttl_s is None else now + ttl_s,
    )
    return Outcome(reply, events)


def add_many(connection: sqlite3.Connection, ns: str, drafts: Sequence[Draft], now: float) -> Outcome:
    """Write all memories or none. Raises as `add`."""
    _, events = write_all(connection, ns, drafts, now)
    return Outcome(MemoriesAdded(ids=[draft.id for draft in drafts], ns=ns), events)


def write_all(
    connection: sqlite3.Connection, ns: str, drafts: Sequence[Draft], now: float, action: str = "add"
) -> tuple[list[Added], list[Event]]:
    """Write memories; the events say `action`, or "update" where one was overwritten. Raises as `add`."""
    events: list[Event] = []
    added = [_add_one(connection, ns, draft, now, events) for draft in drafts]
    _write_tags(connection, [(ns, tag, draft.id) for draft in drafts for tag in draft.tags])
    chunks.put_new(connection, [_source(ns, one, now) for one in added])
    events += [changed(ns, one.draft.id, action if one.is_new else "update", one.version) for one in added]
    return added, events


def update(connection: sqlite3.Connection, revision: Revision, now: float, max_bytes: int) -> list[Event]:
    """Change the fields that are given. Raises NotFound, Conflict, BadRequest, TooLarge, Unprocessable."""
    request = revision.request
    before = rows.read(connection, request.ns, request.id, now)
    if request.if_version is not None and request.if_version != before.version:
        raise Conflict(
            f"memory {request.id!r} is at version {before.version}, the request asked for version {request.if_version}",
            version=before.version,
            if_version=request.if_version,
            ns=request.ns,
            id=request.id,
        )
    if request.parent_id is not None:
        refuse_cycle(connection, request.ns, request.id, request.parent_id, now)
    changes = _changes(request, before, now)
    after = msgspec.structs.replace(before, **changes)
    metadata = pack(after.metadata, max_bytes=max_bytes, field="metadata")
    tags_text = rows.encode_tags(after.tags)
    texts = (after.ns, after.id, after.content, after.type, after.parent_id, after.speaker, tags_text)
    check_size(texts, len(metadata), max_bytes)
    connection.execute(
        "UPDATE memories SET type = ?, tier = ?, importance = ?, updated_at = ?, at = ?, version = ?, parent_id = ?,"
        " expires_at = ?, speaker = ?, tags = ?, metadata = ?, content = ? WHERE sequence = ?",
        (
            after.type,
            after.tier,
            after.importance,
            now,
            after.at,
            before.version + 1,
            after.parent_id,
            after.expires_at,
            after.speaker,
            tags_text,
            metadata,
            after.content,
            before.sequence,
        ),
    )
    if request.importance is not None or (before.tier == RESTING and after.tier != RESTING):
        # The new importance is that of now, and so is that of a memory which rested: passes of the life cycle before
        # have nothing to say about it.
        connection.execute("UPDATE memories SET decayed_at = ? WHERE sequence = ?", (now, before.sequence))
    if request.tags is not None:
        connection.execute("DELETE FROM memory_tags WHERE ns = ? AND id = ?", (request.ns, request.id))
        _write_tags(connection, [(request.ns, tag, request.id) for tag in after.tags])
    if before.content != after.content:
        suggestions.forget_source(connection, request.ns, "memory", request.id)
    found_by = ("content", "speaker", "at", "parent_id")
    if any(getattr(before, field) != getattr(after, field) for field in found_by):
        pieces = revision.pieces
        if pieces is None:
            pieces = chunks.pieces_of(connection, ns=request.ns, kind="memory", source_id=request.id)
        chunks.remove(connection, ns=request.ns, kind="memory", source_id=request.id)
        chunks.put_new(
            connection,
            [
                Source(
                    ns=request.ns,
                    kind="memory",
                    source_id=request.id,
                    pieces=pieces,
                    at=after.at,
                    stream=after.parent_id,
                    position=before.sequence,
                    speaker=after.speaker,
                )
            ],
        )
    return [changed(request.ns, request.id, "update", before.version + 1)]


def touch(connection: sqlite3.Connection, ns: str, ids: Iterable[str], now: float) -> None:
    """Count an access of each memory that exists."""
    connection.executemany(
        "UPDATE memories SET access_count = access_count + 1, last_accessed_at = ?"
        f" WHERE ns = ? AND id = ? AND {rows.IS_LIVE}",
        [(now, ns, memory_id, now) for memory_id in ids],
    )


def reinforce(connection: sqlite3.Connection, request: MemoryReinforce, now: float) -> list[Event]:
    """Multiply the importance, up to 1. Raises NotFound."""
    return _change(
        connection,
        request,
        now,
        "reinforce",
        "importance = min(1.0, importance * ?), access_count = access_count + 1, last_accessed_at = ?",
        (request.factor, now),
    )


def promote(connection: sqlite3.Connection, request: MemoryPromote, now: float) -> list[Event]:
    """Set the tier, or move one up. Raises NotFound."""
    if request.tier is not None:
        # A memory that rested until now owes nothing for the passes meanwhile.
        rested = f"decayed_at = CASE tier WHEN '{RESTING}' THEN ? ELSE decayed_at END"
        return _change(connection, request, now, "promote", f"tier = ?, {rested}", (request.tier, now))
    cases = " ".join(f"WHEN '{tier}' THEN '{above}'" for tier, above in NEXT_TIER.items())
    return _change(connection, request, now, "promote", f"tier = CASE tier {cases} ELSE tier END", ())


def _change(
    connection: sqlite3.Connection,
    request: MemoryReinforce | MemoryPromote,
    now: float,
    action: str,
    setting: str,
    values: tuple[Any, ...],
) -> list[Event]:
    found = rows.find(connection, request.ns, request.id, now)
    if found is None:
        raise rows.not_found(request.ns, request.id)
    connection.execute(
        f"UPDATE memories SET {setting}, updated_at = ?, version = version + 1 WHERE sequence = ?",
        (*values, now, found.sequence),
    )
    return [changed(request.ns, request.id, action, found.version + 1)]


def _add_one(connection: sqlite3.Connection, ns: str, draft: Draft, now: float, events: list[Event]) -> Added:
    request = draft.request
    existing = None
    version = 1
    if draft.is_id_given:
        events += expire_if_due(connection, ns, [draft.id], now)
        existing = rows.find(connection, ns, draft.id, now)
        version = (floor(connection, ns, "memory") if existing is None else existing.version) + 1
    if existing is not None and not request.replace:
        raise _exists(ns, draft.id, existing.version)
    if request.parent_id is not None:
        refuse_cycle(connection, ns, draft.id, request.parent_id, now)
    values = (*_values(draft, version, now), ns, draft.id)
    if existing is not None:
        connection.execute(_OVERWRITE, values)
        connection.execute("DELETE FROM memory_tags WHERE ns = ? AND id = ?", (ns, draft.id))
        chunks.remove(connection, ns=ns, kind="memory", source_id=draft.id)
        suggestions.forget_source(connection, ns, "memory", draft.id)
        return Added(draft, existing.sequence, version, is_new=False)
    try:
        sequence = connection.execute(_INSERT, values).lastrowid
    except sqlite3.IntegrityError as error:
        # Ids that the service makes are not looked for first: they are only met again when a request id is used again
        # after its reply was forgotten.
        raise _exists(ns, draft.id, None) from error
    assert sequence is not None
    return Added(draft, sequence, version, is_new=True)


def _values(draft: Draft, version: int, now: float) -> tuple[Any, ...]:
    request = draft.request
    return (
        request.type,
        request.tier,
        request.importance,
        0,
        now,
        now,
        now,
        now,
        now if draft.at is None else draft.at,
        version,
        request.parent_id,
        None if request.ttl_s is None else now + request.ttl_s,
        draft.speaker,
        draft.tags_text,
        draft.metadata,
        request.content,
    )


def _source(ns: str, one: Added, now: float) -> Source:
    draft = one.draft
    return Source(
        ns=ns,
        kind="memory",
        source_id=draft.id,
        pieces=draft.pieces,
        at=now if draft.at is None else draft.at,
        stream=draft.request.parent_id,
        position=one.sequence,
        speaker=draft.speaker,
    )


def _write_tags(connection: sqlite3.Connection, tags: list[tuple[str, str, str]]) -> None:
    if tags:
        connection.executemany("INSERT INTO memory_tags (ns, tag, id) VALUES (?, ?, ?)", tags)


def _exists(ns: str, memory_id: str, version: int | None) -> Conflict:
    return Conflict(
        f"memory {memory_id!r} exists already in namespace {ns!r}: add it with replace=true to overwrite it, or without"
        " an id",
        ns=ns,
        id=memory_id,
        version=version,
    )


def refuse_cycle(connection: sqlite3.Connection, ns: str, memory_id: str, parent_id: str, now: float) -> None:
    """Raise Unprocessable where `parent_id` is the memory itself or lies below it."""
    if parent_id != memory_id and not _lies_below(connection, ns, parent_id, memory_id, now):
        return
    raise Unprocessable(
        f"memory {memory_id!r} cannot have the parent {parent_id!r}, which is itself or one of its descendants",
        field="parent_id",
        ns=ns,
        id=memory_id,
        parent_id=parent_id,
    )


def _lies_below(connection: sqlite3.Connection, ns: str, lower: str, upper: str, now: float) -> bool:
    has_children = connection.execute("SELECT 1 FROM memories WHERE ns = ? AND parent_id = ? LIMIT 1", (ns, upper))
    # A new memory, by far the most frequent case, has none; walking up a deep tree each time would cost.
    if has_children.fetchone() is None:
        return False
    above = connection.execute(
        "WITH RECURSIVE above (id) AS (SELECT ? UNION SELECT memories.parent_id FROM above JOIN memories"
        f" ON memories.ns = ? AND memories.id = above.id AND memories.parent_id IS NOT NULL AND {rows.IS_LIVE})"
        " SELECT 1 FROM above WHERE id = ? LIMIT 1",
        (lower, ns, now, upper),
    )
    return above.fetchone() is not None


def _changes(request: MemoryUpdate, before: Any, now: float) -> dict[str, Any]:
    """The new values of the fields that change."""
    given = ("content", "type", "tier", "importance", "parent_id", "speaker", "at")
    changes = {field: getattr(request, field) for field in given if getattr(request, field) is not None}
    if request.tags is not None:
        changes["tags"] = list(dict.fromkeys(request.tags))
    if request.metadata is not None:
        changes["metadata"] = {**before.metadata, **request.metadata} if request.merge_metadata else request.metadata
    if request.ttl_s is not None:
        changes["expires_at"] = now + request.ttl_s
    for field in request.clear:
        if field in changes:
            given_as = "ttl_s" if field == "expires_at" else field
            raise BadRequest(f"{given_as} is given and {field} is to be cleared: choose one", field="clear")
        changes[field] = None
    return changes
