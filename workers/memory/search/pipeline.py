"""Answers `memory.search`: words and meaning at the same time, then what stands beside them, then the ranking.

    query --> understand --+--> full-text index  --(words, names)----+
                           |                                         +--> seeds --> neighbours --> rows --> rank
                           +--> encoder --> vector index --(meaning)-+

The words are looked up while the query is encoded. All SQL of a query runs in two calls to a reader: TextIndex and
Weighing. What a signal is worth is in ranking.py; which chunks a filter lets through in candidates.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from bus.metrics import Figures
from bus.settings import SearchSettings
from schemas.bodies.search import Filters, Search, SearchHit, SearchReply, Understood
from schemas.errors import BadRequest, BusError
from schemas.metrics import MEMORY_SEARCH_SECONDS, MEMORY_SEARCHES
from workers.memory.items import writing
from workers.memory.outcome import Outcome
from workers.memory.records import Records
from workers.memory.search import candidates
from workers.memory.search.query import Query, Tokenizer, understand
from workers.memory.search.text_index import Found, TextIndex
from workers.memory.search.weighing import FILTERED_TIMES, Case, Weighing, find_evidence
from workers.memory.text import check_texts
from workers.memory.vectors.encoder import Encoder
from workers.memory.vectors.index import VectorIndex

log = logging.getLogger("olympus.memory")

# Chunks without a vector that a reply counts, at most.
WAITING_MAX: Final = 1_000

# Chunks asked of the vector index where those that fulfil the filters are not among the nearest. It takes 30 ms.
FAR_NEAREST: Final = 10_000

_NOTHING_FOUND: Final = Found([], [], {}, {}, 0.0, [])


class _Dense(NamedTuple):
    """Chunk -> cosine of the nearest; why there are none, empty otherwise."""

    cosines: dict[int, float]
    degraded: str


class Searcher:
    """Search over everything the memory holds.

    `encoder` and `index` answer None while there is none; search then goes on without meaning and says so. They are
    asked at every search, so what appears later is used. Searches are counted in `figures`.
    """

    def __init__(
        self,
        records: Records,
        encoder: Callable[[], Encoder | None],
        index: Callable[[], VectorIndex | None],
        settings: SearchSettings,
        figures: Figures | None = None,
    ) -> None:
        self._records = records
        self._encoder = encoder
        self._index = index
        self._settings = settings
        self._tokenizer = Tokenizer()
        self._text_index = TextIndex(settings.postings)
        figures = figures or Figures()
        self._searches = figures.counter(MEMORY_SEARCHES)
        for outcome in ("found", "empty"):
            self._searches.add(outcome, by=0)
        self._search_s = figures.histogram(MEMORY_SEARCH_SECONDS)

    async def search(self, request: Search) -> SearchReply:
        """The best hits, none below the floor. Raises BadRequest for an empty query."""
        began = time.perf_counter()
        check_texts(request)
        has_filters = request.filters != Filters()
        if not request.query.strip() and not (request.mode == "symbolic" and has_filters):
            raise BadRequest("query is empty: give at least one word, or filters with mode 'symbolic'", field="query")
        now = self._records.now()
        reference = now if request.now is None else request.now
        limit = max(self._settings.nearest, request.k) * (FILTERED_TIMES if has_filters else 1)
        nearest = asyncio.ensure_future(self._nearest(request, limit))
        try:
            # The encoder gets the query first: what the reader's thread does meanwhile costs no time.
            await asyncio.sleep(0)
            query, found, only, evidence = await self._records.read(
                lambda connection: self._find(connection, request, reference, now)
            )
            dense = await nearest
        finally:
            nearest.cancel()
        if only is not None and dense.cosines and len(only & dense.cosines.keys()) < min(request.k, len(only)):
            dense = await self._nearest(request, FAR_NEAREST)
        case = Case(request, query, found, dense.cosines, only, evidence, reference, now)
        # One state of the database, so that what was found is still there when it is shown.
        hits, waiting = await self._records.read_whole(lambda connection: self._weigh(connection, case))
        if request.touch and hits:
            await self._touch(request.ns, hits)
        took_s = time.perf_counter() - began
        self._searches.add("found" if hits else "empty")
        self._search_s.observe(took_s)
        return SearchReply(
            hits=hits,
            mode=request.mode,
            took_ms=took_s * 1000,
            degraded=dense.degraded,
            waiting=waiting,
            understood=_understood(query, found) if request.explain else None,
        )

    async def _nearest(self, request: Search, limit: int) -> _Dense:
        """The chunks nearest in meaning."""
        if request.mode in ("text", "symbolic"):
            return _Dense({}, "")
        encoder, index = self._encoder(), self._index()
        if encoder is None or index is None:
            return _Dense({}, "no search by meaning: there is no encoder")
        try:
            (vector,) = await encoder.encode([request.query], is_query=True)
            found = await index.search(vector, ns=request.ns, kinds=request.filters.kinds, limit=limit)
        except BusError as error:
            log.warning("search without meaning", extra={"action": "memory.search.degraded", "reason": error.message})
            return _Dense({}, f"no search by meaning: {error.message}")
        return _Dense(dict(found), "")

    def _find(
        self, connection: sqlite3.Connection, request: Search, reference: float, now: float
    ) -> tuple[Query, Found, frozenset[int] | None, list[int]]:
        """All that is known without the vector: the fields `query`, `found`, `only` and `evidence` of a Case."""
        query = understand(request.query, reference, self._tokenizer)
        asked = candidates.condition(request.ns, request.filters, now)
        candidates.prepare(connection, request.filters)
        only = candidates.allowed(connection, asked) if asked.is_filter else None
        match request.mode:
            case "dense":
                found = _NOTHING_FOUND
            case "symbolic":
                # Names and phrases are evidence; the other words are not looked for.
                symbols = [term for term in query.terms if term.is_name or " " in term.match]
                found = self._text_index.find(connection, request.ns, symbols)
            case _:
                found = self._text_index.find(connection, request.ns, query.terms)
        return query, found, only, find_evidence(connection, request, query, found, only)

    def _weigh(self, connection: sqlite3.Connection, case: Case) -> tuple[list[SearchHit], int]:
        """The hits, and how many chunks wait for their vector."""
        candidates.prepare(connection, case.request.filters)
        hits = Weighing(connection, case, self._settings, self._tokenizer).hits()
        return hits, candidates.waiting(connection, WAITING_MAX)

    async def _touch(self, ns: str, hits: list[SearchHit]) -> None:
        """Count the access to the memories among the hits."""
        ids = sorted({hit.id for hit in hits if hit.kind == "memory"})

        def count(connection: sqlite3.Connection, now: float) -> Outcome:
            writing.touch(connection, ns, ids, now)
            return Outcome(None, [])

        if ids:
            await self._records.write(count)


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
