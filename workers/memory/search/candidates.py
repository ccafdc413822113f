"""Finds chunks by what stands in them besides words and meaning: times, tags, relations. SQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from workers.memory.search.times import Span

# Chunks that one piece of evidence alone (a time, the tags, the speakers) brings in, at most, the newest first: beside
# words and meaning, and where there is nothing else.
EVIDENCE_CHUNKS: Final = 20
EVIDENCE_CHUNKS_ALONE: Final = 200

# Tags that hold a word of a query, at most, that are looked at: each takes 4 microseconds, and a namespace may have a tag
# of its own for each memory.
TAGS_MAX: Final = 256

# Memories or documents with a tag, for each chunk that it brings in, among which the newest are looked for. Of a tag that
# more have, words and meaning have to choose.
TAGGED_TIMES: Final = 10

# The first chunk of what has this kind and id, in the namespace ?1. It need not begin with the first character: white
# space before it belongs to no chunk.
_FIRST_CHUNK: Final = (
    "(SELECT c.id FROM chunks c WHERE c.ns = ?1 AND c.kind = {} AND c.source_id = {} ORDER BY c.start LIMIT 1)"
)


def in_time(connection: sqlite3.Connection, ns: str, span: Span, limit: int) -> list[int]:
    """The newest chunks of a stretch of time."""
    rows = connection.execute(
        "SELECT id FROM chunks WHERE ns = ? AND at >= ? AND at < ? ORDER BY at DESC LIMIT ?",
        (ns, span.since, span.until, limit),
    )
    return [chunk for (chunk,) in rows]


def tags_with(connection: sqlite3.Connection, ns: str, words: Iterable[str], spelled: Iterable[str]) -> list[str]:
    """The tags of the namespace that are spelled so, and those in which one of the words stands, in any form.

    words: quoted FTS5 strings. Of more than TAGS_MAX tags in which they stand, the newest.
    """
    rows = connection.execute(
        "SELECT tag FROM tags WHERE ns = ? AND tag IN (SELECT value FROM json_each(?)) UNION SELECT tag FROM"
        " (SELECT t.tag FROM tags_text x CROSS JOIN tags t ON t.id = x.rowid WHERE x.tags_text MATCH ?"
        " ORDER BY x.rowid DESC LIMIT ?)",
        (ns, json.dumps(list(spelled)), f'scope:"{ns.encode().hex()}" AND tag:({" OR ".join(words)})', TAGS_MAX),
    )
    return [tag for (tag,) in rows]


def tagged(connection: sqlite3.Connection, ns: str, tags: Collection[str], limit: int) -> list[int]:
    """The first chunk of each memory and document with one of the tags, the newest first."""
    first_chunk = _FIRST_CHUNK.format("g.kind", "g.id")
    having = "SELECT DISTINCT {} AS id FROM {} WHERE ns = ?1 AND tag IN (SELECT value FROM json_each(?2)) LIMIT ?3"
    rows = connection.execute(
        f"SELECT {first_chunk} AS chunk FROM"
        f" (SELECT 'memory' AS kind, id FROM ({having.format('id', 'memory_tags')})"
        f" UNION ALL SELECT 'document', id FROM ({having.format('doc_id', 'document_tags')})) g"
        " ORDER BY chunk DESC LIMIT ?4",
        (ns, json.dumps(sorted(tags)), TAGGED_TIMES * limit, limit),
    )
    return [chunk for (chunk,) in rows if chunk is not None]


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
    """The first chunk of each memory, wherever in its content that begins."""
    first_chunk = _FIRST_CHUNK.format("'memory'", "known.value")
    rows = connection.execute(
        f"SELECT {first_chunk} FROM json_each(?2) known",
        (ns, json.dumps(sorted(memory_ids))),
    )
    return [chunk for (chunk,) in rows if chunk is not None]


def waiting(connection: sqlite3.Connection, limit: int) -> int:
    """Chunks without a vector, counted up to `limit`."""
    rows = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM chunks WHERE vector_model IS NULL LIMIT ?)", (limit,)
    )
    count: int = rows.fetchone()[0]
    return count
