"""Answers `memory.search`: words and meaning at the same time, then what stands beside them, then the ranking.

    query --> understand --+--> full-text index  --(words, names)----+
                           |                                         +--> seeds --> neighbours --> rows --> rank
                           +--> encoder --> vector index --(meaning)-+

The words are looked up while the query is encoded, and the best by words alone are read if there is time left. All SQL
of a query runs in two calls to a reader: TextIndex and Weighing. What a signal is worth is in ranking.py; which chunks a
filter lets through in filters.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections.abc import Callable
from typing import Final

from bus.metrics import Figures
from bus.settings import SearchSettings
from schemas.bodies.search import Filters, Search, SearchHit, SearchReply, Understood
from schemas.errors import BadRequest
from schemas.metrics import MEMORY_SEARCH_SECONDS, MEMORY_SEARCHES
from workers.memory.items import writing
from workers.memory.outcome import Outcome
from workers.memory.records import Records
from workers.memory.search import candidates
from workers.memory.search.filters import Breadth, condition, prepare
from workers.memory.search.meaning import Meaning
from workers.memory.search.query import Query, Tokenizer, understand
from workers.memory.search.ranking import Relevance
from workers.memory.search.sight import Sight
from workers.memory.search.text_index import ChosenIds, Found, TextIndex
from workers.memory.search.weighing import FILTERED_TIMES, Case, Draft, Weighing, find_evidence
from workers.memory.text import check_texts
from workers.memory.uses import noting_use
from workers.memory.vectors.encoder import Encoder
from workers.memory.vectors.index import VectorIndex
from workers.memory.vectors.unavailable import IndexBusy

log = logging.getLogger("olympus.memory")

# Chunks without a vector that a reply counts, at most.
WAITING_MAX: Final = 1_000


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
        self._breadth = Breadth()
        self._degraded = ""
        figures = figures or Figures()
        self._searches = figures.counter(MEMORY_SEARCHES)
        for outcome in ("found", "empty"):
            self._searches.add(outcome, by=0)
        self._search_s = figures.histogram(MEMORY_SEARCH_SECONDS)

    def forget(self) -> None:
        """Drop what was remembered of a database that was replaced."""
        self._text_index.forget()
        self._breadth.forget()

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
        meaning = Meaning(request, limit)
        # Begins with the next turn of the loop: until then an encoder that is loaded has the query. An error of the database
        # waits until it is encoded, or given up.
        reading = asyncio.ensure_future(
            self._records.read(lambda connection: self._find(connection, request, reference, now, meaning))
        )
        try:
            await meaning.encode(self._encoder(), self._index())
            draft = await reading
        finally:
            reading.cancel()
        if not meaning.is_index_here:
            await meaning.ask(draft.only)

        def weigh(connection: sqlite3.Connection) -> tuple[list[SearchHit], int]:
            # An index in this process is asked in the same thread: to wake another takes a quarter of the time of asking.
            return self._weigh(connection, Case(request, draft, meaning.cosines(draft.only), reference))

        # One state of the database, so that what was found is still there when it is shown.
        try:
            hits, waiting = await self._records.read_whole(weigh)
        except IndexBusy:
            # A reader must not wait for it: others need the reader.
            await meaning.ask(draft.only)
            hits, waiting = await self._records.read_whole(weigh)
        self._tell(meaning.degraded)
        if request.touch and hits:
            await self._touch(request.ns, hits)
        took_s = time.perf_counter() - began
        self._searches.add("found" if hits else "empty")
        self._search_s.observe(took_s)
        return SearchReply(
            hits=hits,
            mode=request.mode,
            took_ms=took_s * 1000,
            degraded=meaning.degraded,
            waiting=waiting,
            understood=_understood(draft.query, draft.by_words.found) if request.explain else None,
        )

    def _find(
        self,
        connection: sqlite3.Connection,
        request: Search,
        reference: float,
        now: float,
        meaning: Meaning,
    ) -> Draft:
        """All that is known without the vector."""
        query = understand(request.query, reference, self._tokenizer)
        asked = condition(request.ns, request.filters, now)
        prepare(connection, request.filters)
        only = self._breadth.allowed(connection, request.ns, request.filters, asked) if asked.is_filter else None

        def find_among(connection: sqlite3.Connection, chosen: ChosenIds | None) -> Found:
            match request.mode:
                case "dense":
                    return Found()
                case "symbolic":
                    # Names and phrases are evidence; the other words are not looked for.
                    symbols = [term for term in query.terms if term.is_name or " " in term.match]
                    return self._text_index.find(connection, request.ns, symbols, chosen)
                case _:
                    return self._text_index.find(connection, request.ns, query.terms, chosen)

        found = find_among(connection, None if only is None else ChosenIds(only))
        evidence = find_evidence(connection, request, query, found, only, self._tokenizer)
        sight = Sight(request.ns, asked, self._tokenizer.name_words)
        commits = self._records.database.commits
        by_words = Relevance(self._settings, found, {})
        if not meaning.is_encoded:
            sight.look(connection, [*by_words.seeds(self._settings.candidates, only), *evidence.chunks])
        return Draft(query, by_words, asked, only, evidence, sight, commits, find_among)

    def _weigh(self, connection: sqlite3.Connection, case: Case) -> tuple[list[SearchHit], int]:
        """The hits, and how many chunks wait for their vector."""
        prepare(connection, case.request.filters)
        if self._records.database.commits != case.draft.commits:
            # What was read ahead may be gone, and whoever removed it may have been answered.
            case.draft.sight.forget()
        hits = Weighing(connection, case, self._settings, self._records.page_bytes).hits()
        return hits, candidates.waiting(connection, WAITING_MAX)

    def _tell(self, degraded: str) -> None:
        """Log that search goes on without meaning, once for each reason."""
        if degraded and degraded != self._degraded:
            log.warning(degraded, extra={"action": "memory.search.degraded"})
        self._degraded = degraded

    async def _touch(self, ns: str, hits: list[SearchHit]) -> None:
        """Count the access to the memories among the hits."""
        ids = sorted({hit.id for hit in hits if hit.kind == "memory"})

        def count(connection: sqlite3.Connection, now: float) -> Outcome:
            writing.touch(connection, ns, ids, now)
            return Outcome(None, [])

        if ids:
            with noting_use():
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
