"""The second half of a search: what was found by words and by meaning, with what stands beside it, made into hits.

Runs as one function in a reader's thread, on one snapshot of the database.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Container
from typing import Final, NamedTuple

from bus.settings import SearchSettings
from schemas.bodies.search import Search, SearchHit, Signal
from workers.memory.search import candidates
from workers.memory.search.query import Query, Tokenizer
from workers.memory.search.ranking import (
    Neighbours,
    Ranked,
    Relevance,
    above_floor,
    narrow,
    order,
    rank,
    with_evidence,
    with_relation,
)
from workers.memory.search.text_index import Found, said_by
from workers.memory.values import unpack

# Candidates are this many times as many where filters will leave some of them out.
FILTERED_TIMES: Final = 4

# The best hits whose relations are followed, and relations followed of them all.
LEADERS: Final = 10
RELATIONS_MAX: Final = 50

# A signal that gave less is not shown: with three digits it would read 0.
SHOWN_SHARE_MIN: Final = 0.0005


class Case(NamedTuple):
    """One search and what is known of it so far.

    reference: the time at which the query is asked; now: the present, for what has expired; epoch seconds. only: the
    chunks that fulfil the filters, None where there are no filters or too many such chunks. evidence: see `find_evidence`.
    """

    request: Search
    query: Query
    found: Found
    cosines: dict[int, float]
    only: frozenset[int] | None
    evidence: list[int]
    reference: float
    now: float


def find_evidence(
    connection: sqlite3.Connection, request: Search, query: Query, found: Found, only: frozenset[int] | None
) -> list[int]:
    """Chunks that the query's times, tags and speakers bring in whatever their words and meaning; of `only` unless None."""
    if request.mode in ("dense", "text"):
        return []
    has_topic = _has_topic(request, query, found)
    limit = candidates.EVIDENCE_CHUNKS if has_topic else candidates.EVIDENCE_CHUNKS_ALONE
    chunks: list[int] = []
    for span in query.times:
        if math.isfinite(span.since) and math.isfinite(span.until):
            chunks += candidates.in_time(connection, request.ns, span, limit)
    words = {word for term in query.terms for word in (term.label, term.stem)}
    if words:
        chunks += candidates.tagged(connection, request.ns, words, limit)
    if found.speakers and not has_topic:
        chunks += said_by(connection, request.ns, found.speakers, limit)
    return [chunk for chunk in dict.fromkeys(chunks) if only is None or chunk in only]


def _has_topic(request: Search, query: Query, found: Found) -> bool:
    if request.mode == "symbolic":
        return False
    return any(term.is_topic and term.label not in found.speakers for term in query.terms)


class Weighing:
    """Makes the hits of one case. Knows no encoder and no index: what they said is in the case."""

    def __init__(
        self, connection: sqlite3.Connection, case: Case, settings: SearchSettings, tokenizer: Tokenizer
    ) -> None:
        self._connection = connection
        self._case = case
        self._settings = settings
        self._tokenizer = tokenizer
        self._relevance = Relevance(settings, case.found, case.cosines)
        self._links = Neighbours()
        self._has_others = False
        self._asked = candidates.condition(case.request.ns, case.request.filters, case.now)
        self._has_topic = _has_topic(case.request, case.query, case.found)

    def hits(self) -> list[SearchHit]:
        """The best hits."""
        request, settings = self._case.request, self._settings
        count = max(settings.candidates, 2 * request.k) * (FILTERED_TIMES if self._asked.is_filter else 1)
        ranked = self._best(count, self._case.only)
        if self._asked.is_filter and self._case.only is None and len(ranked) < 2 * request.k:
            fulfilling = candidates.fulfilling(self._connection, self._relevance.known(), self._asked)
            ranked = self._best(count, fulfilling)
        elif self._has_others:
            ranked = self._best(count, candidates.Own(self._connection, request.ns))
        if self._has_topic:
            ranked = above_floor(ranked, self._relevance, settings)
        elif request.mode in ("hybrid", "symbolic"):
            ranked = with_evidence(ranked, self._case.query, self._case.found, settings)
        if request.mode in ("hybrid", "symbolic"):
            ranked = self._with_relations(ranked)
        return self._shown([hit for hit in ranked if hit.score >= request.min_score][: request.k])

    def _best(self, count: int, allowed: Container[int] | None) -> list[Ranked]:
        """The best of the chunks in `allowed`, of what stands beside them, and of the evidence."""
        evidence = self._case.evidence
        best = self._beside([*self._seeds(count, allowed), *evidence])
        if len(best) > count:
            best = narrow(self._relevance, self._links, best, self._settings, count)
        return self._ranked({*best, *evidence})

    def _beside(self, seeds: Collection[int]) -> list[int]:
        """The seeds of this namespace and the chunks beside them."""
        distinct = list(dict.fromkeys(seeds))
        beside, self._links = candidates.neighbours(self._connection, self._case.request.ns, distinct)
        # The words of a large namespace are looked up in the whole store, and the best may be others' chunks.
        self._has_others = self._case.only is None and not set(distinct) <= set(beside)
        return beside

    def _seeds(self, count: int, allowed: Container[int] | None) -> Collection[int]:
        """The chunks that are best by themselves; all that may be hits where they are few."""
        only = self._case.only
        if self._case.request.mode == "symbolic" and self._asked.is_filter and not self._case.found.masks:
            return candidates.newest(self._connection, self._asked, count)
        return only if only is not None and len(only) <= count else self._relevance.seeds(count, allowed)

    def _ranked(self, chunks: Collection[int]) -> list[Ranked]:
        rows = candidates.read_rows(self._connection, chunks, self._asked, self._links, self._tokenizer.name_words)
        return rank(
            rows,
            query=self._case.query,
            relevance=self._relevance,
            neighbours=self._links,
            settings=self._settings,
            reference=self._case.reference,
        )

    def _with_relations(self, ranked: list[Ranked]) -> list[Ranked]:
        """The hits with what the best of them say of the memories related to them, which may be new hits."""
        ns = self._case.request.ns
        leaders = {hit.row.source_id: hit for hit in reversed(ranked[:LEADERS]) if hit.row.kind == "memory"}
        if not leaders or not self._settings.relation_weight:
            return ranked
        by_memory: dict[str, list[candidates.Relation]] = {}
        for relation in candidates.relations(self._connection, ns, leaders, RELATIONS_MAX):
            by_memory.setdefault(relation.other_id, []).append(relation)
        if not by_memory:
            return ranked
        unknown = by_memory.keys() - {hit.row.source_id for hit in ranked if hit.row.kind == "memory"}
        if unknown:
            ranked = ranked + self._ranked(candidates.first_chunks(self._connection, ns, unknown))
        related = []
        for hit in ranked:
            for relation in by_memory.get(hit.row.source_id, ()) if hit.row.kind == "memory" else ():
                leader = leaders[relation.source_id]
                hit = with_relation(hit, self._settings, relation.strength, leader, relation.kind)
            related.append(hit)
        return order(related)

    def _shown(self, best: list[Ranked]) -> list[SearchHit]:
        hits = []
        for hit in best:
            row = hit.row
            hits.append(
                SearchHit(
                    id=row.source_id,
                    kind=row.kind,
                    score=hit.score,
                    text=row.text,
                    start=row.start,
                    end=row.end,
                    at=row.at,
                    chunk=row.id,
                    speaker=row.speaker,
                    stream=row.stream,
                    title=row.title,
                    type=row.type,
                    tags=list(row.tags),
                    metadata=unpack(row.metadata) if row.metadata else {},
                    importance=row.importance,
                    signals=self._signals(hit) if self._case.request.explain else None,
                )
            )
        return hits

    def _signals(self, hit: Ranked) -> list[Signal]:
        """Which signal gave what, greatest share first."""
        mask = self._case.found.masks.get(hit.row.id, 0)
        own = [term.label for bit, term in enumerate(self._case.found.terms) if mask >> bit & 1]
        notes = {
            "text": ", ".join(own) if own else "words of its neighbours",
            "dense": f"its own cosine {hit.cosine:.3f}" if hit.cosine else "not itself among the nearest",
            **hit.notes,
        }
        return [
            Signal(
                name=name,
                share=share,
                value=share / getattr(self._settings, f"{name}_weight"),
                note=notes.get(name, ""),
            )
            for name, share in sorted(hit.shares.items(), key=lambda entry: -entry[1])
            if share >= SHOWN_SHARE_MIN
        ]
