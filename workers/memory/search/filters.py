"""Which chunks a search's filters let through. SQL; knows no ranking."""

from __future__ import annotations

import json
import math
import random
import sqlite3
import time
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from schemas.bodies.search import Filters
from workers.memory import metadata_filter

# Chunks that fulfil the filters, at most, that are put in a set and ranked exactly. With more of them the best
# candidates without the filters mostly hold enough that fulfil them; where they do not, the words are looked up again.
ALLOWED_MAX: Final = 5_000

# Chunks that fulfil them, at most, the newest, in which words are looked up where too few of those candidates do.
FULFILLING_MAX: Final = 50_000

# Chunks looked at, at random, to see how many fulfil the filters, at least; how many times ALLOWED_MAX that must be for
# them not to be counted exactly; and how many of those looked at must fulfil them, so that chance makes no narrow filter
# a broad one. To find 5,000 of many takes 50 ms at 100,000 chunks. What was seen is remembered for so many seconds.
BREADTH_SAMPLE: Final = 256
BROAD: Final = 1.5
BROAD_MATCHES: Final = 30
KEEP_S: Final = 60.0
KEPT_MAX: Final = 1_024

# A memory's pieces stand at its sequence, and a turn's at its number (chunks.py): a memory is found by that in three
# quarters of the time that it takes by its id.
SOURCES: Final = (
    " LEFT JOIN memories m ON c.kind = 'memory' AND m.sequence = CAST(c.position AS INTEGER) AND m.id = c.source_id"
    " LEFT JOIN knowledge_base d ON c.kind = 'document' AND d.ns = c.ns AND d.doc_id = c.source_id"
    " LEFT JOIN facts f ON c.kind = 'fact' AND f.ns = c.ns AND f.key = c.source_id"
    " LEFT JOIN turns t ON c.kind = 'turn' AND t.ns = c.ns AND t.session_id = c.stream"
    " AND t.number = CAST(c.position AS INTEGER)"
)

# Chunks that are known by id, as one value: a statement that stays the same is prepared once, which is a third of its
# time. CROSS JOIN keeps SQLite from walking the index by namespace instead, all of 100,000 entries for a hundred chunks.
KNOWN: Final = "json_each(?) known CROSS JOIN chunks c ON c.id = known.value"


class Condition(NamedTuple):
    """What a chunk must fulfil, as SQL over the tables of `SOURCES`, with its values.

    among, among_values: a statement that finds, by an index, the ids of all chunks that can fulfil it; "" where there is
    none.
    """

    where: str
    values: list[Any]
    is_filter: bool
    among: str = ""
    among_values: Sequence[Any] = ()


def condition(ns: str, filters: Filters, now: float) -> Condition:
    """What the namespace, the filters and the present (epoch seconds: what has expired is gone) ask of a chunk."""
    # A fact of a time below zero is being forgotten: see workers.memory.facts.
    parts = ["c.ns = ?", "(m.expires_at IS NULL OR m.expires_at > ?)", "(f.updated_at IS NULL OR f.updated_at >= 0)"]
    of_all = len(parts)
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
    return Condition(" AND ".join(parts), values, len(parts) > of_all, *_among(ns, filters))


def _among(ns: str, filters: Filters) -> tuple[str, Sequence[Any]]:
    """A statement that finds the ids by an index, for the filters on what the tables beside `chunks` hold."""
    chunks_of = (
        "SELECT x.id FROM {table} y CROSS JOIN chunks x ON x.ns = y.ns AND x.kind = '{kind}' AND x.source_id = y.{id}"
        " WHERE y.ns = ? AND {which}"
    )

    def of_memories(which: str, table: str = "memories") -> str:
        return chunks_of.format(table=table, kind="memory", id="id", which=which)

    if filters.parent_id is not None:
        return of_memories("y.parent_id = ?"), (ns, filters.parent_id)
    if filters.tags:
        documents = chunks_of.format(table="document_tags", kind="document", id="doc_id", which="y.tag = ?")
        memories = of_memories("y.tag = ?", "memory_tags")
        return f"{memories} UNION ALL {documents}", (ns, filters.tags[0], ns, filters.tags[0])
    if filters.type is not None:
        facts = chunks_of.format(table="facts", kind="fact", id="key", which="y.category = ?")
        return f"{of_memories('y.type = ?')} UNION ALL {facts}", (ns, filters.type, ns, filters.type)
    return "", ()


def prepare(connection: sqlite3.Connection, filters: Filters) -> None:
    """Give the connection the function that `condition` asks metadata with."""
    metadata_filter.prepare(connection, filters.metadata)


class Breadth:
    """Tells filters that many chunks fulfil, by a sample, and remembers for a while which they are. Any thread may ask."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._known: dict[bytes, tuple[bool, float]] = {}

    def allowed(
        self, connection: sqlite3.Connection, ns: str, filters: Filters, asked: Condition
    ) -> frozenset[int] | None:
        """The chunks that fulfil the condition; None where they are more than ALLOWED_MAX, or about that many."""
        key = msgspec.msgpack.encode((ns, filters))
        is_broad, until = self._known.get(key, (False, 0.0))
        now = self._monotonic()
        if now >= until:
            is_broad = _is_broad(connection, asked)
            if len(self._known) >= KEPT_MAX:
                self._known.clear()
            self._known[key] = (is_broad, now + KEEP_S)
        if is_broad:
            return None
        chunks = newest(connection, asked, ALLOWED_MAX + 1)
        return None if len(chunks) > ALLOWED_MAX else frozenset(chunks)

    def forget(self) -> None:
        """Everything may have changed."""
        self._known.clear()


def _is_broad(connection: sqlite3.Connection, asked: Condition) -> bool:
    """Whether more chunks than BROAD times ALLOWED_MAX seem to fulfil the condition."""
    total = connection.execute("SELECT max(id) FROM chunks").fetchone()[0] or 0
    broad = BROAD * ALLOWED_MAX
    if total <= ALLOWED_MAX:
        return False
    # So many that of a filter that just is broad BROAD_MATCHES are among them.
    size = min(total, max(BREADTH_SAMPLE, math.ceil(BROAD_MATCHES * total / broad)))
    (count,) = connection.execute(
        f"SELECT count(*) FROM {KNOWN}{SOURCES} WHERE {asked.where}",
        (json.dumps(random.sample(range(1, total + 1), size)), *asked.values),
    ).fetchone()
    return bool(count >= BROAD_MATCHES and total * count / size > broad)


class Own(Container[int]):
    """The chunks of a namespace. Each is looked up when it is asked for, in some microseconds."""

    def __init__(self, connection: sqlite3.Connection, ns: str) -> None:
        self._connection = connection
        self._ns = ns

    def __contains__(self, chunk: object) -> bool:
        found = self._connection.execute("SELECT 1 FROM chunks WHERE id = ? AND ns = ?", (chunk, self._ns))
        return found.fetchone() is not None


def fulfilling(connection: sqlite3.Connection, chunks: Iterable[int], asked: Condition) -> frozenset[int]:
    """Those of `chunks` that fulfil the condition."""
    rows = connection.execute(
        f"SELECT c.id FROM {KNOWN}{SOURCES} WHERE {asked.where}", (json.dumps(list(chunks)), *asked.values)
    )
    return frozenset(chunk for (chunk,) in rows)


def newest(connection: sqlite3.Connection, asked: Condition, limit: int) -> list[int]:
    """The newest chunks that fulfil the condition."""
    chunks = f"({asked.among}) known CROSS JOIN chunks c ON c.id = known.id" if asked.among else "chunks c"
    rows = connection.execute(
        f"SELECT c.id FROM {chunks}{SOURCES} WHERE {asked.where} ORDER BY c.id DESC LIMIT ?",
        (*asked.among_values, *asked.values, limit),
    )
    return [chunk for (chunk,) in rows]
