"""The second half of a search: what was found by words and by meaning, with what stands beside it, made into hits.

Runs as one function in a reader's thread, on one snapshot of the database.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Final, NamedTuple

from bus.settings import SearchSettings
from schemas.bodies.search import Search, SearchHit, Signal
from workers.memory.search import candidates
from workers.memory.search.filters import FULFILLING_MAX, Condition, Own, fulfilling, newest
from workers.memory.search.query import GENERIC_WORDS, STOP_WORDS, TERMS_MAX, Query, Tokenizer
from workers.memory.search.ranking import (
    Ranked,
    Relevance,
    above_floor,
    narrow,
    order,
    rank,
    speaking_of,
    with_evidence,
    with_relation,
)
from workers.memory.search.sight import Sight, read_metadata
from workers.memory.search.text_index import ChosenIds, Found, said_by
from workers.memory.values import unpack

# Candidates are this many times as many where filters will leave some of them out.
FILTERED_TIMES: Final = 4

# The best hits whose relations are followed, and relations followed of them all.
LEADERS: Final = 10
RELATIONS_MAX: Final = 50

# Words with which a query that names no topic asks for whatever there is: "anything new?", "what did we talk about?".
# Without one of them it is a remark, "I know", and all that is remembered would answer it.
_WHATEVER: Final = frozenset("all anything everything latest new news something thing things what".split())

# Words in a row of a query, at most, that are looked up as a tag spelled so.
TAG_WORDS: Final = 3

_WORD: Final = re.compile(r"\w+")

# A signal that gave less is not shown: with three digits it would read 0.
SHOWN_SHARE_MIN: Final = 0.0005


class Evidence(NamedTuple):
    """What a query names besides words and meaning.

    chunks: those that its times, tags and speakers bring in whatever their words and meaning. tags: the tags that it
    names, each with the stems of the query's terms that the tag holds.
    """

    chunks: Sequence[int]
    tags: Mapping[str, frozenset[str]]


class Draft(NamedTuple):
    """What is known of one search without its meaning.

    by_words: what the words say. asked: what a chunk must fulfil. only: the chunks that fulfil the filters, None where
    there are no filters or too many such chunks. sight: what was read of chunks meanwhile, once `commits` batches were
    committed. find_among: looks the words up in some chunks alone.
    """

    query: Query
    by_words: Relevance
    asked: Condition
    only: frozenset[int] | None
    evidence: Evidence
    sight: Sight
    commits: int
    find_among: Callable[[sqlite3.Connection, ChosenIds], Found]


class Case(NamedTuple):
    """One search and all that is known of it. cosines: chunk -> cosine of the nearest.

    reference: the time at which the query is asked, epoch seconds.
    """

    request: Search
    draft: Draft
    cosines: dict[int, float]
    reference: float


def find_evidence(
    connection: sqlite3.Connection,
    request: Search,
    query: Query,
    found: Found,
    only: frozenset[int] | None,
    tokenizer: Tokenizer,
) -> Evidence:
    """The evidence of a query; its chunks are of `only` unless that is None. Mode `text` knows tags but follows none."""
    if request.mode == "dense":
        return Evidence([], {})
    tags = _named_tags(connection, request.ns, query, tokenizer)
    if request.mode == "text":
        return Evidence([], tags)
    has_topic = _has_topic(request, query, found)
    limit = candidates.EVIDENCE_CHUNKS if has_topic else candidates.EVIDENCE_CHUNKS_ALONE
    chunks: list[int] = []
    for span in query.times:
        if math.isfinite(span.since) and math.isfinite(span.until):
            chunks += candidates.in_time(connection, request.ns, span, limit)
    if tags:
        chunks += candidates.tagged(connection, request.ns, tags, limit)
    if found.speakers and not has_topic:
        chunks += said_by(connection, request.ns, found.speakers, limit)
    return Evidence([chunk for chunk in dict.fromkeys(chunks) if only is None or chunk in only], tags)


def _named_tags(
    connection: sqlite3.Connection, ns: str, query: Query, tokenizer: Tokenizer
) -> dict[str, frozenset[str]]:
    """The tags that the query names, each with the stems of the terms that it holds.

    A tag is named where all its words are words of the query, in any form and order. Function words are left out, as in a
    query: a tag that has no others is named by none.
    """
    asked = [term for term in query.terms if term.label not in STOP_WORDS]
    words = [term for term in asked if " " not in term.match]
    if not words:
        return {}
    stems = {term.stem for term in words}
    phrases = [(term.stem, _row_of_stems(tokenizer, term.match)) for term in asked if " " in term.match]
    named = {}
    for tag in candidates.tags_with(connection, ns, [term.match for term in words], _spelled(query.text)):
        content = frozenset(word.stem for word in tokenizer.words(tag) if word.plain not in STOP_WORDS)
        if content <= stems:
            written = _row_of_stems(tokenizer, tag) if phrases else ""
            named[tag] = content.union(stem for stem, phrase in phrases if phrase in written)
    return named


def _spelled(text: str) -> set[str]:
    """The words of a query and what stands in a row of them, as somebody may have written a tag."""
    words = _WORD.findall(text)[:TERMS_MAX]
    rows = [words[at : at + length] for length in range(1, TAG_WORDS + 1) for at in range(len(words) - length + 1)]
    joined = {joint.join(row) for row in rows for joint in " -_"}
    return joined | {each.lower() for each in joined} | {word.capitalize() for word in words}


def _row_of_stems(tokenizer: Tokenizer, text: str) -> str:
    return f" {' '.join(word.stem for word in tokenizer.words(text))} "


def _has_topic(request: Search, query: Query, found: Found) -> bool:
    if request.mode == "symbolic":
        return False
    return any(term.is_topic and term.label not in found.speakers for term in query.terms)


def _asks_for_anything(query: Query) -> bool:
    """Whether a query that names no topic, time or speaker asks for whatever there is."""
    words = set(_WORD.findall(query.text.lower()))
    return bool(words & GENERIC_WORDS) and bool(words & _WHATEVER)


class Weighing:
    """Makes the hits of one case. Knows no encoder and no index: what they said is in the case."""

    def __init__(self, connection: sqlite3.Connection, case: Case, settings: SearchSettings, page_bytes: int) -> None:
        """page_bytes: where the hits end."""
        self._connection = connection
        self._page_bytes = page_bytes
        self._case = case
        self._draft = case.draft
        self._settings = settings
        self._relevance = case.draft.by_words.knowing(case.cosines)
        self._has_others = False
        self._asked = case.draft.asked
        self._has_topic = _has_topic(case.request, case.draft.query, self._found)

    @property
    def _found(self) -> Found:
        return self._relevance.found

    def hits(self) -> list[SearchHit]:
        """The best hits."""
        request, settings = self._case.request, self._settings
        count = max(settings.candidates, 2 * request.k) * (FILTERED_TIMES if self._asked.is_filter else 1)
        ranked = self._best(count, self._draft.only)
        if self._asked.is_filter and self._draft.only is None and len(ranked) < 2 * request.k:
            ranked = self._best(count, self._fulfilling())
        elif self._has_others:
            ranked = self._best(count, Own(self._connection, request.ns))
        ranked = self._answering(ranked)
        if request.mode in ("hybrid", "symbolic"):
            ranked = self._with_relations(ranked)
        return self._shown([hit for hit in ranked if hit.score >= request.min_score][: request.k])

    def _answering(self, ranked: list[Ranked]) -> list[Ranked]:
        """The hits that have enough to do with the query."""
        request, query, settings = self._case.request, self._draft.query, self._settings
        if self._has_topic:
            return above_floor(ranked, self._relevance, settings)
        if query.times or self._found.speakers:
            is_evidence = request.mode in ("hybrid", "symbolic")
            return with_evidence(ranked, query, self._found, settings) if is_evidence else ranked
        if request.mode == "symbolic" or _asks_for_anything(query):
            return ranked
        if not query.terms:
            # Not a single word: the filters alone choose.
            return ranked if self._asked.is_filter else []
        return speaking_of(ranked, query, settings)

    def _fulfilling(self) -> Collection[int]:
        """All that words and meaning say something of and that fulfils the filters."""
        # The words were looked up in what is newest, and little of that fulfils them.
        chosen = newest(self._connection, self._asked, FULFILLING_MAX)
        found = self._draft.find_among(self._connection, ChosenIds(chosen))
        self._relevance = Relevance(self._settings, found, self._case.cosines)
        return found.chunks() | fulfilling(self._connection, self._case.cosines, self._asked)

    def _best(self, count: int, allowed: Container[int] | None) -> list[Ranked]:
        """The best of the chunks in `allowed`, of what stands beside them, and of the evidence."""
        evidence = self._draft.evidence.chunks
        best = self._beside([*self._seeds(count, allowed), *evidence])
        if len(best) > count:
            best = narrow(self._relevance, self._draft.sight.links, best, self._settings, count)
        return self._ranked({*best, *evidence})

    def _beside(self, seeds: Collection[int]) -> list[int]:
        """The seeds of this namespace and the chunks beside them."""
        distinct = list(dict.fromkeys(seeds))
        beside = self._draft.sight.beside(self._connection, distinct)
        # The words of a large namespace are looked up in the whole store, and the best may be others' chunks.
        self._has_others = self._draft.only is None and not set(distinct) <= set(beside)
        return beside

    def _seeds(self, count: int, allowed: Container[int] | None) -> Collection[int]:
        """The chunks that are best by themselves; all that may be hits where they are few."""
        only = self._draft.only
        if self._case.request.mode == "symbolic" and self._asked.is_filter and not self._found.terms:
            return newest(self._connection, self._asked, count)
        return only if only is not None and len(only) <= count else self._relevance.seeds(count, allowed)

    def _ranked(self, chunks: Collection[int]) -> list[Ranked]:
        return rank(
            self._draft.sight.rows(self._connection, chunks),
            query=self._draft.query,
            relevance=self._relevance,
            neighbours=self._draft.sight.links,
            settings=self._settings,
            reference=self._case.reference,
            tags=self._draft.evidence.tags,
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
        """The hits, fewer where they would be longer than a message may be."""
        hits: list[SearchHit] = []
        left = self._page_bytes
        for hit in best:
            row = hit.row
            metadata = row.metadata
            if metadata is None:
                metadata = read_metadata(self._connection, row.id)
            left -= len(metadata) + len(row.text.encode()) + len(row.title or "") + sum(map(len, row.tags))
            if left < 0 and hits:
                break
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
                    metadata=unpack(metadata) if metadata else {},
                    importance=row.importance,
                    signals=self._signals(hit) if self._case.request.explain else None,
                )
            )
        return hits

    def _signals(self, hit: Ranked) -> list[Signal]:
        """Which signal gave what, greatest share first."""
        mask = self._found.mask(hit.row.id)
        own = [term.label for bit, term in enumerate(self._found.terms) if mask >> bit & 1]
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
