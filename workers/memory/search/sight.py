"""What one search reads of chunks: those beside others, and what ranking and a hit see of them. SQL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from workers.memory.search.filters import KNOWN, SOURCES, Condition
from workers.memory.search.ranking import Neighbours, Row

# Metadata up to this size, bytes, is read with its chunk; longer ones only for a hit.
METADATA_BYTES: Final = 4_096

_Words = Callable[[str], frozenset[str]]


class Sight:
    """What one search has read of chunks so far: nothing of it is read twice.

    links: the order of the chunks, as far as it is known. words: those of a speaker's name by which a query may name
    them.
    """

    def __init__(self, ns: str, asked: Condition, words: _Words) -> None:
        self.links = Neighbours()
        self._ns = ns
        self._asked = asked
        self._words = words
        # Those of other namespaces, and those that do not fulfil the condition, are None.
        self._chains: dict[int, list[int] | None] = {}
        self._rows: dict[int, Row | None] = {}

    def forget(self) -> None:
        """Read everything anew."""
        self.links = Neighbours()
        self._chains.clear()
        self._rows.clear()

    def look(self, connection: sqlite3.Connection, seeds: Collection[int]) -> None:
        """Read these chunks, before it is known whether they will be asked for."""
        self._own(connection, seeds)

    def beside(self, connection: sqlite3.Connection, seeds: Collection[int]) -> list[int]:
        """Those of `seeds` that are in the namespace with the chunks up to two places beside them."""
        found: dict[int, None] = {}
        for seed in self._own(connection, seeds):
            found.update(dict.fromkeys(self._chains[seed] or ()))
        return list(found)

    def rows(self, connection: sqlite3.Connection, chunks: Collection[int]) -> list[Row]:
        """The chunks that fulfil the condition, as ranking sees them."""
        self._read(connection, chunks)
        rows = [row for chunk in chunks if (row := self._rows[chunk]) is not None]
        before = self.links.before
        asking = _asking(connection, [before[row.id] for row in rows if row.id in before])
        if not asking:
            return rows
        return [row._replace(follows_question=True) if before.get(row.id) in asking else row for row in rows]

    def _own(self, connection: sqlite3.Connection, seeds: Collection[int]) -> list[int]:
        """Those of `seeds` that are in the namespace, once they and their neighbours are known."""
        unknown = [seed for seed in seeds if seed not in self._chains]
        if unknown:
            self._read(connection, unknown)
            beside_others = []
            for seed in unknown:
                row = self._rows[seed]
                is_alone = row is not None and row.stream is None
                self._chains[seed] = [seed] if is_alone else None
                if not is_alone:
                    beside_others.append(seed)
            if beside_others:
                for chain, seed in self._read_chains(connection, beside_others):
                    self._chains[seed] = chain
                    self.links.add(chain)
        return [seed for seed in seeds if self._chains[seed] is not None]

    def _read_chains(self, connection: sqlite3.Connection, seeds: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        side = (
            "CASE WHEN c.stream IS NOT NULL THEN (SELECT group_concat(id) FROM (SELECT n.id FROM chunks n"
            " WHERE n.ns = c.ns AND n.stream = c.stream AND n.position {} c.position ORDER BY n.position {} LIMIT 2)) END"
        )
        rows = connection.execute(
            f"SELECT c.id, {side.format('<', 'DESC')}, {side.format('>', 'ASC')} FROM {KNOWN} WHERE c.ns = ?",
            (json.dumps(seeds), self._ns),
        )
        for seed, before, after in rows:
            chain = [int(other) for other in reversed(before.split(","))] if before else []
            chain.append(seed)
            if after:
                chain += [int(other) for other in after.split(",")]
            yield chain, seed

    def _read(self, connection: sqlite3.Connection, chunks: Collection[int]) -> None:
        unread = [chunk for chunk in chunks if chunk not in self._rows]
        if not unread:
            return
        self._rows.update(dict.fromkeys(unread))
        rows = connection.execute(
            'SELECT c.id, c.kind, c.source_id, c.stream, c.start, c."end", c.text, c.speaker, c.at, m.importance,'
            " coalesce(m.tags, d.tags), d.title, coalesce(m.type, f.category),"
            # SQLite knows the length of a column without reading it, unless the column goes through a function first.
            f" CASE WHEN length(m.metadata) > {METADATA_BYTES} OR length(d.metadata) > {METADATA_BYTES}"
            f" OR length(t.metadata) > {METADATA_BYTES} THEN NULL ELSE coalesce(m.metadata, d.metadata, t.metadata, x'') END"
            f" FROM {KNOWN}{SOURCES} WHERE {self._asked.where}",
            (json.dumps(unread), *self._asked.values),
        )
        for id, kind, source_id, stream, start, end, text, speaker, at, importance, tags, title, type, metadata in rows:
            self._rows[id] = Row(
                id=id,
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
                speaker_words=self._words(speaker) if speaker is not None else frozenset(),
                title=title,
                type=type,
                metadata=metadata,
            )


def read_metadata(connection: sqlite3.Connection, chunk: int) -> bytes:
    """The metadata (msgpack) of what the chunk is a part of, however long; b"" where it has none."""
    row = connection.execute(
        f"SELECT coalesce(m.metadata, d.metadata, t.metadata) FROM chunks c{SOURCES} WHERE c.id = ?", (chunk,)
    ).fetchone()
    return row[0] or b"" if row is not None else b""


def _asking(connection: sqlite3.Connection, chunks: Sequence[int]) -> frozenset[int]:
    """Those of the chunks that ask something."""
    if not chunks:
        return frozenset()
    rows = connection.execute(f"SELECT c.id FROM {KNOWN} WHERE instr(c.text, '?')", (json.dumps(chunks),))
    return frozenset(chunk for (chunk,) in rows)
