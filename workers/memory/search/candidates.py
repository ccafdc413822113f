"""Reads what search needs of chunks: neighbours, those that filters and evidence choose, and what a hit shows. SQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from typing import Any, Final, NamedTuple

from schemas.bodies.search import Filters
from workers.memory import metadata_filter
from workers.memory.search.ranking import Neighbours, Row
from workers.memory.search.times import Span

# Chunks that one piece of evidence alone (a time, the tags, the speakers) brings in, at most, the newest first: beside
# words and meaning, and where there is nothing else.
EVIDENCE_CHUNKS: Final = 20
EVIDENCE_CHUNKS_ALONE: Final = 200

# Chunks that fulfil the filters, at most, that are put in a set and ranked exactly. With more of them the best
# candidates without the filters mostly hold enough that fulfil them; where they do not, all candidates are asked.
ALLOWED_MAX: Final = 5_000

_SOURCES: Final = (
    " LEFT JOIN memories m ON c.kind = 'memory' AND m.ns = c.ns AND m.id = c.source_id"
    " LEFT JOIN knowledge_base d ON c.kind = 'document' AND d.ns = c.ns AND d.doc_id = c.source_id"
    " LEFT JOIN facts f ON c.kind = 'fact' AND f.ns = c.ns AND f.key = c.source_id"
    " LEFT JOIN turns t ON c.kind = 'turn' AND t.ns = c.ns AND t.session_id = c.stream"
    " AND t.number = CAST(c.position AS INTEGER)"
)

# Chunks that are known by id, as one value: a statement that stays the same is prepared once, which is a third of its
# time. CROSS JOIN keeps SQLite from walking the index by namespace instead, all of 100,000 entries for a hundred chunks.
_KNOWN: Final = "json_each(?) known CROSS JOIN chunks c ON c.id = known.value"

_Words = Callable[[str], frozenset[str]]


class Condition(NamedTuple):
    """What a chunk must fulfil, as SQL over the tables of `_SOURCES`, with its values."""

    where: str
    values: list[Any]
    is_filter: bool


def condition(ns: str, filters: Filters, now: float) -> Condition:
    """What the namespace, the filters and the present (epoch seconds: what has expired is gone) ask of a chunk."""
    parts = ["c.ns = ?", "(m.expires_at IS NULL OR m.expires_at > ?)"]
    values: list[Any] = [ns, now]

    def add(part: str, *more: Any) -> None:
        parts.append(part)
        values.extend(more)

    if filters.kinds is not None:
        add("c.kind IN (SELECT value FROM json_each(?))", json.dumps(filters.kinds))
    if filters.type is not None:
        add("coalesce(m.type, f.category) = ?", filters.type)
    if filters.tier is not None:
        add("m.tier = ?", filters.tier)
    for tag in filters.tags:
        add(
            "EXISTS (SELECT 1 FROM json_each(coalesce(m.tags, d.tags, '[]')) WHERE value = ?)",
            tag,
        )
    if filters.since is not None:
        add("c.at >= ?", filters.since)
    if filters.until is not None:
        add("c.at < ?", filters.until)
    if filters.session_id is not None:
        add("c.stream = ?", filters.session_id)
    if filters.not_session_id is not None:
        add("c.kind = 'turn' AND c.stream <> ?", filters.not_session_id)
    if filters.user_id is not None:
        add(
            "c.kind = 'turn' AND c.stream IN (SELECT session_id FROM sessions WHERE ns = ? AND user_id = ?)",
            ns,
            filters.user_id,
        )
    if filters.parent_id is not None:
        add("m.parent_id = ?", filters.parent_id)
    if filters.speaker is not None:
        add("c.speaker = ? COLLATE NOCASE", filters.speaker)
    if filters.min_importance is not None:
        add("m.importance >= ?", filters.min_importance)
    if filters.metadata:
        add("has_metadata(coalesce(m.metadata, d.metadata, t.metadata))")
    return Condition(" AND ".join(parts), values, len(parts) > 2)


def prepare(connection: sqlite3.Connection, filters: Filters) -> None:
    """Give the connection the function that `condition` asks metadata with."""
    metadata_filter.prepare(connection, filters.metadata)


def allowed(connection: sqlite3.Connection, asked: Condition) -> frozenset[int] | None:
    """The chunks that fulfil the condition; None where they are more than ALLOWED_MAX."""
    chunks = newest(connection, asked, ALLOWED_MAX + 1)
    return None if len(chunks) > ALLOWED_MAX else frozenset(chunks)


def fulfilling(connection: sqlite3.Connection, chunks: Iterable[int], asked: Condition) -> frozenset[int]:
    """Those of `chunks` that fulfil the condition."""
    rows = connection.execute(
        f"SELECT c.id FROM {_KNOWN}{_SOURCES} WHERE {asked.where}", (json.dumps(list(chunks)), *asked.values)
    )
    return frozenset(chunk for (chunk,) in rows)


class Own(Container[int]):
    """The chunks of a namespace. Each is looked up when it is asked for, in some microseconds."""

    def __init__(self, connection: sqlite3.Connection, ns: str) -> None:
        self._connection = connection
        self._ns = ns

    def __contains__(self, chunk: object) -> bool:
        found = self._connection.execute("SELECT 1 FROM chunks WHERE id = ? AND ns = ?", (chunk, self._ns))
        return found.fetchone() is not None


def newest(connection: sqlite3.Connection, asked: Condition, limit: int) -> list[int]:
    """The newest chunks that fulfil the condition."""
    rows = connection.execute(
        f"SELECT c.id FROM chunks c{_SOURCES} WHERE {asked.where} ORDER BY c.id DESC LIMIT ?", (*asked.values, limit)
    )
    return [chunk for (chunk,) in rows]


def in_time(connection: sqlite3.Connection, ns: str, span: Span, limit: int) -> list[int]:
    """The newest chunks of a stretch of time."""
    rows = connection.execute(
        "SELECT id FROM chunks WHERE ns = ? AND at >= ? AND at < ? ORDER BY at DESC LIMIT ?",
        (ns, span.since, span.until, limit),
    )
    return [chunk for (chunk,) in rows]


def tagged(connection: sqlite3.Connection, ns: str, tags: Collection[str], limit: int) -> list[int]:
    """The chunks of memories with one of the tags."""
    rows = connection.execute(
        "SELECT c.id FROM memory_tags g JOIN chunks c ON c.ns = g.ns AND c.kind = 'memory' AND c.source_id = g.id"
        " WHERE g.ns = ? AND g.tag IN (SELECT value FROM json_each(?)) LIMIT ?",
        (ns, json.dumps(sorted(tags)), limit),
    )
    return [chunk for (chunk,) in rows]


def neighbours(connection: sqlite3.Connection, ns: str, seeds: Sequence[int]) -> tuple[list[int], Neighbours]:
    """Those of `seeds` that are in the namespace with the chunks up to two places beside them, and their order."""
    side = (
        "CASE WHEN c.stream IS NOT NULL THEN (SELECT group_concat(id) FROM (SELECT n.id FROM chunks n WHERE n.ns = c.ns"
        " AND n.stream = c.stream AND n.position {} c.position ORDER BY n.position {} LIMIT 2)) END"
    )
    rows = connection.execute(
        f"SELECT c.id, {side.format('<', 'DESC')}, {side.format('>', 'ASC')} FROM {_KNOWN} WHERE c.ns = ?",
        (json.dumps(seeds), ns),
    )
    links = Neighbours()
    found: dict[int, None] = {}
    for chunk, before, after in rows:
        chain = [chunk]
        if before:
            chain[:0] = [int(other) for other in reversed(before.split(","))]
        if after:
            chain += [int(other) for other in after.split(",")]
        links.add(chain)
        found.update(dict.fromkeys(chain))
    return list(found), links


def read_rows(
    connection: sqlite3.Connection, chunks: Collection[int], asked: Condition, links: Neighbours, words: _Words
) -> list[Row]:
    """The chunks that fulfil the condition, as ranking sees them. words: those of a
    speaker's name by which a query may name them."""
    before = [links.before[chunk] for chunk in chunks if chunk in links.before]
    asking = {
        chunk
        for (chunk,) in connection.execute(f"SELECT c.id FROM {_KNOWN} WHERE instr(c.text, '?')", (json.dumps(before),))
    }
    rows = connection.execute(
        'SELECT c.id, c.kind, c.source_id, c.stream, c.start, c."end", c.text, c.speaker, c.at, m.importance,'
        " coalesce(m.tags, d.tags), d.title, coalesce(m.type, f.category), coalesce(m.metadata, d.metadata, t.metadata)"
        f" FROM {_KNOWN}{_SOURCES} WHERE {asked.where}",
        (json.dumps(list(chunks)), *asked.values),
    )
    return [
        Row(
            id=chunk,
            kind=kind,
            source_id=source_id,
            stream=stream,
            start=start,
            end=end,
            text=text,
            speaker=speaker,
            at=at,
            importance=importance,
            tags=json.loads(tags) if tags and tags != "[]" else (),
            speaker_words=words(speaker) if speaker is not None else frozenset(),
            follows_question=links.before.get(chunk) in asking,
            title=title,
            type=type,
            metadata=metadata,
        )
        for chunk, kind, source_id, stream, start, end, text, speaker, at, importance, tags, title, type, metadata in rows
    ]


class Relation(NamedTuple):
    """A relation of one of the hits to another memory, in either direction."""

    source_id: str
    other_id: str
    kind: str
    strength: float


def relations(connection: sqlite3.Connection, ns: str, memory_ids: Collection[str], limit: int) -> list[Relation]:
    """Relations of the memories, the strongest first."""
    ids = json.dumps(sorted(memory_ids))
    rows = connection.execute(
        "SELECT source_id, target_id, kind, strength FROM relations WHERE ns = ?1"
        " AND source_id IN (SELECT value FROM json_each(?2))"
        " UNION ALL SELECT target_id, source_id, kind, strength FROM relations WHERE ns = ?1"
        " AND target_id IN (SELECT value FROM json_each(?2)) ORDER BY strength DESC LIMIT ?3",
        (ns, ids, limit),
    )
    return [Relation(*row) for row in rows]


def first_chunks(connection: sqlite3.Connection, ns: str, memory_ids: Collection[str]) -> list[int]:
    """The first chunk of each memory."""
    rows = connection.execute(
        "SELECT id FROM chunks WHERE ns = ? AND kind = 'memory' AND start = 0"
        " AND source_id IN (SELECT value FROM json_each(?))",
        (ns, json.dumps(sorted(memory_ids))),
    )
    return [chunk for (chunk,) in rows]


def waiting(connection: sqlite3.Connection, limit: int) -> int:
    """Chunks without a vector, counted up to `limit`."""
    rows = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM chunks WHERE vector_model IS NULL LIMIT ?)", (limit,)
    )
    count: int = rows.fetchone()[0]
    return count
