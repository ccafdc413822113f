"""How good a hit is: scores of words and meaning over an item and its neighbours, and the evidence beside them.

Pure: numbers in, numbers out; knows no SQL, no encoder and no clock. The score of a hit is the sum of its shares:

    text        text_weight * coverage: the part of the query's words, by rarity, that the chunk holds. A word that only
                a neighbour holds counts neighbour_near (next to it), neighbour_far (one further) or, where the chunk
                answers the question it follows, neighbour_asked
    dense       dense_weight * cosine, averaged over the same window with the same weights
    speaker     speaker_weight where the query names who said it
    time        time_weight * how well the chunk's time, or a time it speaks of, fits the one in the query
    dated       dated_weight where the query asks when, and the chunk speaks of a time
    tag         tag_weight where all words of a tag are words of the query
    relation    relation_weight * strength of the relation * score of the better hit it leads from
    recency     recency_weight * 0.5 ** (age / recency_half_life_s)
    importance  importance_weight * importance

Coverage and cosine are between 0 and 1 whatever the collection, so their sum needs no normalising by what else was
found, and a floor under them means the same everywhere. Rank fusion and min-max normalisation found less; counts of a
word in a chunk and the chunk's length add something only where there is no meaning to go by, and count only there
(docs/search.md has the figures).
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from copy import copy
from itertools import islice, pairwise
from typing import Final, NamedTuple

from bus.settings import SearchSettings
from workers.memory.search.query import Query
from workers.memory.search.text_index import Found
from workers.memory.search.times import Span, closeness, find_times, has_time

# A chunk that is not among the nearest is taken to be this much further than the last of them, in cosine.
UNKNOWN_BELOW_LAST: Final = 0.05

# Seconds of distance from a time in the query at which its evidence halves. Things are told days after they happened.
TIME_SLACK_S: Final = 4 * 86_400.0

# Chunks, best first, in which times are looked for, and how much of each: 130 characters take 20 microseconds to look
# through, and 70 more where they hold a time.
READ_FOR_TIMES: Final = 20
READ_CHARACTERS: Final = 400

# How much a word counts that a chunk holds several times, and how much the chunk's length takes from it, where there is
# no meaning to go by: k1 and b of BM25 (Robertson and Zaragoza, 2009, section 3.4.2).
SATURATION: Final = 0.9
LENGTH_SHARE: Final = 0.5

# Characters on average at least: that one short text is twice as long as another says nothing.
MEAN_CHARACTERS_MIN: Final = 100.0

_WORD: Final = re.compile(r"\w+")

# Importance of what has none of its own: the middle, like a memory's default.
DEFAULT_IMPORTANCE: Final = 0.5


class Row(NamedTuple):
    """A chunk as ranking sees it. `follows_question`: the chunk before it in its stream asks something.

    title, type, metadata (msgpack): what a hit shows besides, read along because a second query would cost more; metadata
    is None where it is too long for that.
    """

    id: int
    kind: str
    source_id: str
    stream: str | None
    start: int
    end: int
    text: str
    speaker: str | None
    at: float
    importance: float | None
    tags: Sequence[str]
    speaker_words: frozenset[str]
    follows_question: bool = False
    title: str | None = None
    type: str | None = None
    metadata: bytes | None = None


class Ranked(NamedTuple):
    """A candidate with its shares by signal; the score is their sum. notes: what a signal saw, where there is more to say.

    The floors are held against the others: the part of the query's topics, by rarity, that its window and its tags hold,
    of all that it has; the part that its tags hold; its own cosine, 0 where it is not among the nearest; and the cosine of
    its window.
    """

    row: Row
    score: float
    shares: dict[str, float]
    notes: dict[str, str]
    covered: float
    tagged: float
    cosine: float
    meaning: float


class Neighbours:
    """Which chunk comes before and after which in a stream, as far as it is known."""

    def __init__(self) -> None:
        self.before: dict[int, int] = {}
        self.after: dict[int, int] = {}

    def add(self, chain: Sequence[int]) -> None:
        """Chunks that follow one another."""
        for first, second in pairwise(chain):
            self.before[second] = first
            self.after[first] = second


class Relevance:
    """Words and meaning: what the full-text index and the vector index say of a chunk and of its neighbours."""

    def __init__(self, settings: SearchSettings, found: Found, dense: Mapping[int, float]) -> None:
        """dense: chunk id -> cosine of the nearest."""
        self.found = found
        self._settings = settings
        self._total = sum(found.weights) or 1.0
        self._coverages: dict[int, float] = {0: 0.0}
        self._topics = sum(1 << bit for bit, term in enumerate(found.terms) if term.is_topic)
        self._all_topics = self.coverage_of(self._topics) * self._total + found.missing or 1.0
        # How many -> so many of all chunks, the best by words. Shared, like the coverages, by those that know more.
        self._best: dict[int, list[int]] = {}
        self._know(dense)

    def knowing(self, dense: Mapping[int, float]) -> Relevance:
        """The same words with another meaning; what was worked out of the words is not worked out again."""
        other = copy(self)
        other._know(dense)
        return other

    def _know(self, dense: Mapping[int, float]) -> None:
        self.dense = dense
        self._unknown = min(dense.values()) - UNKNOWN_BELOW_LAST if dense else 0.0

    def topics_in(self, mask: int) -> float:
        """The part of the query's topics, by rarity, that are in `mask`; of all of them."""
        return self.coverage_of(mask & self._topics) * self._total / self._all_topics

    def topics_with(self, mask: int, stems: Container[str], query: Query) -> float:
        """The part of the query's topics, by rarity, that are in `mask` or have one of the stems; of all of them."""
        found = self.found
        missing = {term.stem for term in query.terms if term.is_topic and term.label not in found.speakers}
        for bit, term in enumerate(found.terms):
            missing.discard(term.stem)
            if term.stem in stems:
                mask |= 1 << bit
        # What no text holds is equally rare, so each of these topics has the same part of their weight.
        part = sum(stem in stems for stem in missing) / len(missing) if missing else 0.0
        return self.topics_in(mask) + part * found.missing / self._all_topics

    def coverage_of(self, mask: int) -> float:
        """The part of the query's words, by rarity, that are in `mask`; of those that anything holds."""
        coverage = self._coverages.get(mask)
        if coverage is None:
            weights = self.found.weights
            coverage = sum(weight for bit, weight in enumerate(weights) if mask >> bit & 1) / self._total
            self._coverages[mask] = coverage
        return coverage

    def emphasis(self, row: Row, mean_characters: float) -> float:
        """What BM25 would add to the coverage of the row's own words, or take from it, for their counts and its length.

        A word is counted where a word of the text begins like its stem.
        """
        mask = self.found.mask(row.id)
        text = f" {row.text.lower()}"
        length = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * len(row.text) / mean_characters)
        added = 0.0
        for bit, (term, weight) in enumerate(zip(self.found.terms, self.found.weights, strict=True)):
            if mask >> bit & 1:
                times = max(1, text.count(f" {term.stem}"))
                added += weight * (times * (SATURATION + 1) / (times + length) - 1)
        return added / self._total

    def seeds(self, count: int, allowed: Container[int] | None = None) -> list[int]:
        """The chunks that are best by themselves."""
        settings = self._settings
        candidates = set(self._best_by_words(count, allowed))
        candidates.update(self.dense if allowed is None else (chunk for chunk in self.dense if chunk in allowed))

        masks = self.found.masks(candidates)
        text_shares = {mask: settings.text_weight * self.coverage_of(mask) for mask in {0, *masks.values()}}
        cosine, unknown, weight = self.dense.get, self._unknown, settings.dense_weight
        alone = [(text_shares[masks.get(chunk, 0)] + weight * cosine(chunk, unknown), chunk) for chunk in candidates]
        return [chunk for _, chunk in heapq.nlargest(count, alone)]

    def _best_by_words(self, count: int, allowed: Container[int] | None) -> list[int]:
        if allowed is None and (known := self._best.get(count)) is not None:
            return known
        groups = self.found.groups()
        # Chunks with the same words and no vector among the nearest are equal: the newest of them will do. So only
        # the few different sets of words are scored, not each of many thousand chunks.
        chosen: list[int] = []
        for mask in sorted(groups, key=self.coverage_of, reverse=True):
            group = groups[mask] if allowed is None else (chunk for chunk in groups[mask] if chunk in allowed)
            chosen += islice(group, count - len(chosen))
            if len(chosen) >= count:
                break
        if allowed is None:
            self._best[count] = chosen
        return chosen

    def window(self, chunk: int, neighbours: Neighbours, *, follows_question: bool = False) -> tuple[float, float, int]:
        """Coverage over the chunk's window; cosine averaged over it, never below 0; and the terms it holds."""
        # Runs some hundred times in a query, so its look-ups are spelled out: half the time of a loop over a list.
        settings = self._settings
        near_weight, far_weight = settings.neighbour_near, settings.neighbour_far
        mask_of, cosine_of, unknown = self.found.mask, self.dense.get, self._unknown
        own = mask_of(chunk)
        asked = near = far = 0
        total, weights = cosine_of(chunk, unknown), 1.0
        first = neighbours.before.get(chunk)
        if first is not None:
            if follows_question:
                asked = mask_of(first)
            else:
                near = mask_of(first)
            total += near_weight * cosine_of(first, unknown)
            weights += near_weight
            second = neighbours.before.get(first)
            if second is not None:
                far = mask_of(second)
                total += far_weight * cosine_of(second, unknown)
                weights += far_weight
        first = neighbours.after.get(chunk)
        if first is not None:
            near |= mask_of(first)
            total += near_weight * cosine_of(first, unknown)
            weights += near_weight
            second = neighbours.after.get(first)
            if second is not None:
                far |= mask_of(second)
                total += far_weight * cosine_of(second, unknown)
                weights += far_weight
        coverage = self.coverage_of(own)
        if asked & ~own:
            coverage += settings.neighbour_asked * self.coverage_of(asked & ~own)
            own |= asked
        if near & ~own:
            coverage += near_weight * self.coverage_of(near & ~own)
            own |= near
        if far & ~own:
            coverage += far_weight * self.coverage_of(far & ~own)
        return coverage, max(0.0, total / weights), own | far


def narrow(
    relevance: Relevance, neighbours: Neighbours, candidates: Iterable[int], settings: SearchSettings, count: int
) -> list[int]:
    """The best candidates by words and meaning, before anything of theirs is read."""
    valued = []
    for chunk in candidates:
        coverage, meaning, _ = relevance.window(chunk, neighbours)
        valued.append((settings.text_weight * coverage + settings.dense_weight * meaning, chunk))
    return [chunk for _, chunk in heapq.nlargest(count, valued)]


def rank(
    rows: Iterable[Row],
    *,
    query: Query,
    relevance: Relevance,
    neighbours: Neighbours,
    settings: SearchSettings,
    reference: float,
    tags: Mapping[str, frozenset[str]],
) -> list[Ranked]:
    """The rows, best first, with what each signal gave.

    reference: epoch seconds at which the query is asked. tags: those that the query names, with the stems of its terms
    that each holds.
    """
    asked = frozenset(relevance.found.speakers)
    rows = list(rows)
    mean_characters = max(MEAN_CHARACTERS_MIN, sum(len(row.text) for row in rows) / max(1, len(rows)))
    ranked = []
    for row in rows:
        coverage, meaning, held = relevance.window(row.id, neighbours, follows_question=row.follows_question)
        if not relevance.dense:
            coverage += relevance.emphasis(row, mean_characters)
        shares = {
            "text": settings.text_weight * coverage,
            "dense": settings.dense_weight * meaning,
            "recency": settings.recency_weight * 0.5 ** min(60.0, (reference - row.at) / settings.recency_half_life_s)
            if row.at < reference
            else settings.recency_weight,
            "importance": settings.importance_weight
            * (DEFAULT_IMPORTANCE if row.importance is None else row.importance),
        }
        notes = {}
        if query.times:
            near = max(closeness(row.at, span, TIME_SLACK_S) * span.confidence for span in query.times)
            shares["time"] = settings.time_weight * near
            notes["time"] = "its own time"
        if asked & row.speaker_words:
            shares["speaker"] = settings.speaker_weight
            notes["speaker"] = row.speaker or ""
        covered, tagged = relevance.topics_in(held), 0.0
        named = [tag for tag in row.tags if tag in tags] if tags else ()
        if named:
            shares["tag"] = settings.tag_weight
            notes["tag"] = ", ".join(named)
            stems = {stem for tag in named for stem in tags[tag]}
            covered, tagged = relevance.topics_with(held, stems, query), relevance.topics_with(0, stems, query)
        ranked.append(
            Ranked(
                row=row,
                score=sum(shares.values()),
                shares=shares,
                notes=notes,
                covered=covered,
                tagged=tagged,
                cosine=relevance.dense.get(row.id, 0.0),
                meaning=meaning,
            )
        )
    ranked.sort(key=_order)
    if query.times or query.asks_when:
        ranked[:READ_FOR_TIMES] = [_with_times(hit, query, settings) for hit in ranked[:READ_FOR_TIMES]]
        ranked.sort(key=_order)
    return ranked


def with_relation(hit: Ranked, settings: SearchSettings, strength: float, leader: Ranked, kind: str) -> Ranked:
    """The hit with what it gains from being related to a better one; of several relations the best counts."""
    share = settings.relation_weight * strength * leader.score
    if share <= hit.shares.get("relation", 0.0):
        return hit
    return _with(hit, {"relation": share}, {"relation": f"{kind} {leader.row.source_id}"})


def order(hits: list[Ranked]) -> list[Ranked]:
    """Best first; of equals the newer chunk first."""
    return sorted(hits, key=_order)


def above_floor(hits: list[Ranked], relevance: Relevance, settings: SearchSettings) -> list[Ranked]:
    """The hits that have something to do with the query; none where not one of them has enough.

    A query is answered where some chunk holds `text_floor` of its words or is at `dense_floor` in meaning. Then the hits
    with half as much, neighbours counted, go with it: answers often say little by themselves. Strays stay behind, but not
    those with enough of the words in their tags: somebody has said what they are about, whatever their text scores.
    """
    # By words alone half must do for the query too: what only the meaning tells is not known.
    text_floor = settings.text_floor if relevance.dense else settings.text_floor / 2
    if not any(hit.covered >= text_floor or hit.cosine >= settings.dense_floor for hit in hits):
        return []
    least = settings.stray_floor * hits[0].score
    return [
        hit
        for hit in hits
        if (hit.score >= least or hit.tagged >= text_floor)
        and (
            hit.covered >= text_floor / 2
            or hit.cosine >= settings.dense_floor / 2
            or hit.meaning >= settings.dense_floor / 2
        )
    ]


def with_evidence(hits: list[Ranked], query: Query, found: Found, settings: SearchSettings) -> list[Ranked]:
    """The hits that fit what the query names, where it names no topic: its times and speakers, each of which must fit."""
    if query.times:
        least = settings.time_weight * max(span.confidence for span in query.times) / 2
        hits = [hit for hit in hits if hit.shares.get("time", 0.0) >= least]
    if found.speakers:
        hits = [hit for hit in hits if "speaker" in hit.shares]
    return hits


def speaking_of(hits: list[Ranked], query: Query, settings: SearchSettings) -> list[Ranked]:
    """The hits for a query that names nothing, such as "what was it?": it has no topic, no time and no speaker.

    Its words stand in every text, so only a text that holds all of them, one after another, answers it by words; or a tag,
    or `dense_floor` in meaning. A single such word is no reason for anything.
    """
    words = _WORD.findall(query.text)
    together = r"\W+".join(map(re.escape, words))
    literal = re.compile(rf"\b{together}\b", re.IGNORECASE) if len(words) > 1 else None
    return [
        hit
        for hit in hits
        if hit.cosine >= settings.dense_floor
        or "tag" in hit.shares
        or (literal is not None and literal.search(hit.row.text))
    ]


def _order(hit: Ranked) -> tuple[float, int]:
    return (-hit.score, -hit.row.id)


def _with(hit: Ranked, shares: dict[str, float], notes: dict[str, str]) -> Ranked:
    shares = {**hit.shares, **shares}
    return hit._replace(score=sum(shares.values()), shares=shares, notes={**hit.notes, **notes})


def _with_times(hit: Ranked, query: Query, settings: SearchSettings) -> Ranked:
    """The hit with what the times in its text tell."""
    text = hit.row.text[:READ_CHARACTERS]
    shares: dict[str, float] = {}
    notes: dict[str, str] = {}
    known = hit.shares.get("time", 0.0)
    if query.times and known < settings.time_weight * max(span.confidence for span in query.times):
        for span in find_times(text, hit.row.at):
            value = max(_overlap(span, asked) for asked in query.times)
            if settings.time_weight * value > known:
                known = shares["time"] = settings.time_weight * value
                notes["time"] = text[span.start : span.end]
    if query.asks_when and has_time(text):
        shares["dated"] = settings.dated_weight
    return _with(hit, shares, notes) if shares else hit


def _overlap(span: Span, asked: Span) -> float:
    """How sure it is that both mean a common time."""
    return span.confidence * asked.confidence if span.since < asked.until and asked.since < span.until else 0.0
