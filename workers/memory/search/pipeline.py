"""Answers `memory.search`: words and meaning at the same time, then what stands beside them, then the ranking.

    query --> understand --+--> full-text index  --(words, names)----+
                           |                                         +--> seeds --> neighbours --> rows --> rank
                           +--> encoder --> vector index --(meaning)-+

The words are looked up while the query is encoded. All SQL of a query runs in two calls to a reader. What a signal is
worth is in ranking.py; which chunks a filter lets through in candidates.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from bus.settings import SearchSettings
from schemas.bodies.search import Filters, Search, SearchHit, SearchReply, Signal, Understood
from schemas.errors import BadRequest, BusError
from workers.memory.database import Outcome
from workers.memory.records import Records
from workers.memory.search import candidates
from workers.memory.search.query import Query, Tokenizer, understand
from workers.memory.search.ranking import (
    Neighbours,
    Ranked,
    Relevance,
    above_floor,
    narrow,
    order,
    rank,
    with_relation,
)
from workers.memory.search.text_index import Found, TextIndex, said_by
from workers.memory.text import check_texts

if TYPE_CHECKING:
    from workers.memory.vectors.encoder import Encoder
    from workers.memory.vectors.index import VectorIndex

log = logging.getLogger("olympus.memory")

# Chunks without a vector that a reply counts, at most.
WAITING_MAX: Final = 1_000

# Candidates are this many times as many where filters will leave some of them out.
FILTERED_TIMES: Final = 4

# The best hits whose relations are followed, and relations followed of them all.
LEADERS: Final = 10
RELATIONS_MAX: Final = 50

_NOTHING_FOUND: Final = Found([], [], {}, {}, 0.0, [])


class _Dense(NamedTuple):
    """Chunk -> cosine of the nearest; why there are none, empty otherwise."""

    cosines: dict[int, float]
    degraded: str


class Searcher:
    """Search over everything the memory holds.

    `encoder` and `index` answer None while there is none; search then goes on without meaning and says so. They are
    asked at every search, so what appears later is used.
    """

    def __init__(
        self,
        records: Records,
        encoder: Callable[[], Encoder | None],
        index: Callable[[], VectorIndex | None],
        settings: SearchSettings,
    ) -> None:
        self._records = records
        self._encoder = encoder
        self._index = index
        self._settings = settings
        self._tokenizer = Tokenizer()
        self._text_index = TextIndex(settings.postings)

    async def search(self, request: Search) -> SearchReply:
        """The best hits, none below the floor. Raises BadRequest for a query without a word."""
        began = time.perf_counter()
        check_texts(request)
        has_filters = request.filters != Filters()
        if not request.query.strip() and not (request.mode == "symbolic" and has_filters):
            raise BadRequest("query is empty: give at least one word, or filters with mode 'symbolic'", field="query")
        reference = self._records.now() if request.now is None else request.now
        nearest = asyncio.ensure_future(self._nearest(request))
        try:
            # Runs before the encoder is waited for: what it costs is hidden behind the encoding.
            await asyncio.sleep(0)
            query = understand(request.query, reference, self._tokenizer)
            found = await self._records.read(lambda connection: self._find_words(connection, request, query))
            dense = await nearest
        finally:
            nearest.cancel()
        hits, waiting = await self._records.read(
            lambda connection: self._weigh(connection, request, query, found, dense, reference)
        )
        if request.touch and hits:
            await self._touch(request.ns, hits)
        return SearchReply(
            hits=hits,
            mode=request.mode,
            took_ms=(time.perf_counter() - began) * 1000,
            degraded=dense.degraded,
            waiting=waiting,
            understood=_understood(query, found) if request.explain else None,
        )

    async def _nearest(self, request: Search) -> _Dense:
        """The chunks nearest in meaning."""
        if request.mode in ("text", "symbolic") or not request.query.strip():
            return _Dense({}, "")
        encoder, index = self._encoder(), self._index()
        if encoder is None or index is None:
            return _Dense({}, "no encoder: found by words and evidence only")
        limit = max(self._settings.nearest, request.k)
        if request.filters != Filters():
            limit *= FILTERED_TIMES
        try:
            (vector,) = await encoder.encode([request.query], is_query=True)
            found = await index.search(vector, ns=request.ns, kinds=request.filters.kinds, limit=limit)
        except BusError as error:
            log.warning("search without meaning", extra={"action": "memory.search.degraded", "reason": error.message})
            return _Dense({}, f"no search by meaning: {error.message}")
        return _Dense(dict(found), "")

    def _find_words(self, connection: sqlite3.Connection, request: Search, query: Query) -> Found:
        match request.mode:
            case "dense":
                return _NOTHING_FOUND
            case "symbolic":
                # Names and phrases are evidence; the other words are not looked for.
                symbols = [term for term in query.terms if term.is_name or " " in term.match]
                return self._text_index.find(connection, request.ns, query, symbols)
        return self._text_index.find(connection, request.ns, query)

    def _weigh(
        self,
        connection: sqlite3.Connection,
        request: Search,
        query: Query,
        found: Found,
        dense: _Dense,
        reference: float,
    ) -> tuple[list[SearchHit], int]:
        """The hits, and how many chunks wait for their vector."""
        settings = self._settings
        candidates.prepare(connection, request.filters)
        asked = candidates.condition(request.ns, request.filters, self._records.now())
        relevance = Relevance(settings, found, dense.cosines)
        only = candidates.allowed(connection, asked) if asked.is_filter else None
        count = max(settings.candidates, 2 * request.k) * (FILTERED_TIMES if asked.is_filter else 1)
        seeds = dict.fromkeys(relevance.seeds(count, only))
        evidence = self._evidence(connection, request, query, found)
        if request.mode == "symbolic" and only is not None and not evidence and not seeds:
            evidence = sorted(only, reverse=True)[:count]
        seeds.update(dict.fromkeys(chunk for chunk in evidence if only is None or chunk in only))
        beside, links = candidates.neighbours(connection, request.ns, list(seeds))
        chosen = {*narrow(relevance, links, beside, settings, count), *evidence}
        rows = candidates.read_rows(connection, chosen, asked, links, self._tokenizer.name_words)
        ranked = rank(
            rows,
            query=query,
            relevance=relevance,
            neighbours=links,
            settings=settings,
            reference=reference,
        )
        needs_floor = request.mode != "symbolic" and query.is_about_words and bool(found.terms or dense.cosines)
        if needs_floor:
            ranked = above_floor(ranked, relevance, settings)
        ranked = self._with_relations(connection, request, ranked, asked, links, relevance, query, reference)
        best = [hit for hit in ranked if hit.score >= request.min_score][: request.k]
        return self._hits(connection, request, best, relevance), candidates.waiting(connection, WAITING_MAX)

    def _evidence(self, connection: sqlite3.Connection, request: Search, query: Query, found: Found) -> list[int]:
        """Chunks that the query's times, tags and speakers bring in whatever their words and meaning."""
        if request.mode in ("dense", "text"):
            return []
        is_alone = request.mode == "symbolic" or not query.is_about_words
        limit = candidates.EVIDENCE_CHUNKS_ALONE if is_alone else candidates.EVIDENCE_CHUNKS
        chunks: list[int] = []
        for span in query.times:
            if math.isfinite(span.since) and math.isfinite(span.until):
                chunks += candidates.in_time(connection, request.ns, span, limit)
        words = {word for term in query.terms for word in (term.label, term.stem)}
        if words:
            chunks += candidates.tagged(connection, request.ns, words, limit)
        if found.speakers and (is_alone or len(found.terms) <= len(found.speakers)):
            chunks += said_by(connection, request.ns, found.speakers, limit)
        return list(dict.fromkeys(chunks))

    def _with_relations(
        self,
        connection: sqlite3.Connection,
        request: Search,
        ranked: list[Ranked],
        asked: candidates.Condition,
        links: Neighbours,
        relevance: Relevance,
        query: Query,
        reference: float,
    ) -> list[Ranked]:
        """The hits with what the best of them say of the memories related to them, which may be new hits."""
        settings = self._settings
        leaders = {hit.row.source_id: hit for hit in reversed(ranked[:LEADERS]) if hit.row.kind == "memory"}
        if not leaders or not settings.relation_weight or request.mode in ("dense", "text"):
            return ranked
        relations = candidates.relations(connection, request.ns, leaders, RELATIONS_MAX)
        if not relations:
            return ranked
        known = {hit.row.source_id for hit in ranked if hit.row.kind == "memory"}
        unknown = {relation.other_id for relation in relations} - known
        if unknown:
            new = candidates.first_chunks(connection, request.ns, unknown)
            rows = candidates.read_rows(connection, new, asked, links, self._tokenizer.name_words)
            ranked = ranked + rank(
                rows,
                query=query,
                relevance=relevance,
                neighbours=links,
                settings=settings,
                reference=reference,
            )
        by_memory: dict[str, list[candidates.Relation]] = {}
        for relation in relations:
            by_memory.setdefault(relation.other_id, []).append(relation)
        related = []
        for hit in ranked:
            for relation in by_memory.get(hit.row.source_id, ()) if hit.row.kind == "memory" else ():
                hit = with_relation(hit, settings, relation.strength, leaders[relation.source_id], relation.kind)
            related.append(hit)
        return order(related)

    def _hits(
        self, connection: sqlite3.Connection, request: Search, best: list[Ranked], relevance: Relevance
    ) -> list[SearchHit]:
        details = candidates.details(connection, [hit.row.id for hit in best])
        hits = []
        for hit in best:
            row, detail = hit.row, details[hit.row.id]
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
                    title=detail.title,
                    type=detail.type,
                    tags=detail.tags,
                    metadata=detail.metadata,
                    importance=row.importance,
                    signals=_signals(hit, relevance, self._settings) if request.explain else None,
                )
            )
        return hits

    async def _touch(self, ns: str, hits: list[SearchHit]) -> None:
        """Count the access to the memories among the hits."""
        ids = sorted({hit.id for hit in hits if hit.kind == "memory"})

        def count(connection: sqlite3.Connection, now: float) -> Outcome:
            connection.executemany(
                "UPDATE memories SET access_count = access_count + 1, last_accessed_at = ? WHERE ns = ? AND id = ?",
                [(now, ns, memory) for memory in ids],
            )
            return Outcome(None, [])

        if ids:
            await self._records.write(count)


def _signals(hit: Ranked, relevance: Relevance, settings: SearchSettings) -> list[Signal]:
    """Which signal gave what, greatest share first."""
    mask = relevance.found.masks.get(hit.row.id, 0)
    own = [term.label for bit, term in enumerate(relevance.found.terms) if mask >> bit & 1]
    notes = {
        "text": ", ".join(own) if own else "words of its neighbours",
        "dense": f"its own cosine {hit.cosine:.3f}" if hit.cosine else "not itself among the nearest",
        **hit.notes,
    }
    return [
        Signal(name=name, share=share, value=share / getattr(settings, f"{name}_weight"), note=notes.get(name, ""))
        for name, share in sorted(hit.shares.items(), key=lambda entry: -entry[1])
        if share
    ]


def _understood(query: Query, found: Found) -> Understood:
    since = min((span.since for span in query.times), default=None)
    until = max((span.until for span in query.times), default=None)
    return Understood(
        terms=[term.label for term in found.terms],
        phrases=query.phrases,
        speakers=found.speakers,
        entities=[term.label for term in query.terms if term.is_name and term.label not in found.speakers],
        since=since if since is not None and math.isfinite(since) else None,
        until=until if until is not None and math.isfinite(until) else None,
        time_words=", ".join(query.text[span.start : span.end] for span in query.times),
    )
