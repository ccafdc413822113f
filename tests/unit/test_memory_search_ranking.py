"""What each signal gives a hit, and the floors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from types import MappingProxyType

import pytest
from msgspec.structs import replace
from pyroaring import BitMap64

from bus.settings import SearchSettings
from workers.memory.search.query import Tokenizer, understand
from workers.memory.search.ranking import (
    Neighbours,
    Ranked,
    Relevance,
    Row,
    above_floor,
    narrow,
    rank,
    with_relation,
)
from workers.memory.search.text_index import Found

NOW = 1_700_000_000.0
DAY_S = 86_400.0
SETTINGS = SearchSettings()
TOKENIZER = Tokenizer()


def found(query: str, masks: dict[int, int], *, speakers: list[str] | None = None, missing: float = 0.0) -> Found:
    """Every word of the query as rare as the next, held by the chunks as `masks` says."""
    terms = understand(query, NOW, TOKENIZER).terms
    answer = Found(speakers or [])
    answer.missing = missing
    for bit, term in enumerate(terms):
        answer.add(term, 1.0, BitMap64(chunk for chunk in masks if masks[chunk] >> bit & 1))
    return answer


def row(chunk: int, text: str = "", *, at: float = NOW, follows_question: bool = False, **fields: object) -> Row:
    values: dict[str, object] = {"speaker": None, "importance": None, "tags": (), "speaker_words": frozenset()}
    return Row(
        id=chunk,
        kind="memory",
        source_id=f"m{chunk}",
        stream=None,
        start=0,
        end=len(text),
        text=text,
        at=at,
        follows_question=follows_question,
        **{**values, **fields},  # type: ignore[arg-type]
    )


def chain(*chunks: int) -> Neighbours:
    neighbours = Neighbours()
    neighbours.add(chunks)
    return neighbours


def ranked(
    query: str,
    rows: list[Row],
    relevance: Relevance,
    neighbours: Neighbours | None = None,
    tags: Mapping[str, frozenset[str]] = MappingProxyType({}),
) -> list[Ranked]:
    return rank(
        rows,
        query=understand(query, NOW, TOKENIZER),
        relevance=relevance,
        neighbours=neighbours or Neighbours(),
        settings=SETTINGS,
        reference=NOW,
        tags=tags,
    )


def test_word_of_a_neighbour_counts_less_with_each_place() -> None:
    """And no further than two."""
    relevance = Relevance(SETTINGS, found("rhubarb", {1: 1}), {})
    neighbours = chain(1, 2, 3, 4)

    assert [relevance.window(chunk, neighbours)[0] for chunk in (1, 2, 3, 4)] == [1.0, 0.5, 0.25, 0.0]


def test_without_meaning_counts_and_length_decide_between_equals() -> None:
    """As in BM25; with meaning to go by they count nothing."""
    filler = "and other things of the garden that nobody asked for " * 8
    rows = [row(1, f"leak {filler}"), row(2, f"leak, leak and again a leak {filler}"), row(3, f"leak {filler * 3}")]
    masks = {1: 1, 2: 1, 3: 1}

    by_words = ranked("leak", rows, Relevance(SETTINGS, found("leak", masks), {}))
    by_meaning = ranked("leak", rows, Relevance(SETTINGS, found("leak", masks), {1: 0.5, 2: 0.5, 3: 0.5}))

    assert [hit.row.id for hit in by_words] == [2, 1, 3]
    assert len({hit.score for hit in by_meaning}) == 1


def test_word_counts_once_however_many_hold_it() -> None:
    """A chunk and both its neighbours with the word cover it no more than the chunk alone."""
    relevance = Relevance(SETTINGS, found("rhubarb soup", {1: 1, 2: 1, 3: 1}), {})

    assert relevance.window(2, chain(1, 2, 3))[0] == pytest.approx(0.5)


def test_words_of_the_question_before_count_for_its_answer() -> None:
    """As much as its own."""
    relevance = Relevance(SETTINGS, found("rhubarb soup", {1: 3}), {})

    assert relevance.window(2, chain(1, 2), follows_question=True)[0] == 1.0
    assert relevance.window(2, chain(1, 2))[0] == 0.5


def test_meaning_is_averaged_over_the_window() -> None:
    """With the weights of the words; what is not among the nearest is a little further than the last."""
    relevance = Relevance(SETTINGS, found("x", {}), {1: 0.8, 9: 0.35})

    assert relevance.window(1, chain(1, 2))[1] == pytest.approx((0.8 + 0.5 * 0.3) / 1.5)
    assert relevance.window(9, Neighbours())[1] == 0.35


def test_seeds_are_the_best_by_words_and_meaning_and_the_newest_of_equals() -> None:
    """Those that are allowed."""
    relevance = Relevance(SETTINGS, found("rhubarb soup", {1: 3, 2: 1, 3: 1}), {4: 0.5, 5: 0.2})

    assert relevance.seeds(3) == [1, 4, 3]
    assert relevance.seeds(3, {2, 5}) == [2, 5]


def test_narrowing_keeps_the_best_windows() -> None:
    """A chunk between two good ones is better than one that has a word of its own."""
    relevance = Relevance(SETTINGS, found("rhubarb soup bowl", {1: 3, 3: 4, 7: 1}), {})

    assert set(narrow(relevance, chain(1, 2, 3), [1, 2, 3, 7], SETTINGS, 3)) == {1, 2, 3}


def test_speaker_who_is_named_and_time_that_is_named_raise_a_hit() -> None:
    """And the shares say so."""
    relevance = Relevance(SETTINGS, found("rhubarb", {1: 1, 2: 1, 3: 1}, speakers=["ada"]), {})
    rows = [
        row(1, speaker="Ada", speaker_words=frozenset({"ada"})),
        row(2, at=NOW - DAY_S),
        row(3, "the rhubarb came up yesterday", at=NOW - 90 * DAY_S),
    ]

    best = ranked("What did Ada say of rhubarb yesterday?", rows, relevance)
    shares = {hit.row.id: hit.shares for hit in best}

    assert shares[1]["speaker"] == SETTINGS.speaker_weight
    assert shares[2]["time"] == SETTINGS.time_weight
    assert shares[3]["time"] < 0.01
    assert best[-1].row.id == 3


def test_time_that_a_chunk_speaks_of_counts_like_its_own() -> None:
    """Resolved against when it was said."""
    relevance = Relevance(SETTINGS, found("rhubarb", {1: 1}), {})
    said = row(1, "the rhubarb comes up in three months", at=NOW - 91 * DAY_S)

    (hit,) = ranked("How is the rhubarb this week?", [said], relevance)

    assert hit.notes["time"] == "in three months"
    assert hit.shares["time"] > SETTINGS.time_weight / 2


def test_chunk_with_a_time_is_raised_where_the_query_asks_when() -> None:
    """It is the likelier answer."""
    relevance = Relevance(SETTINGS, found("leak", {1: 1, 2: 1}), {})

    best = ranked("When did it leak?", [row(2, "a leak"), row(1, "a leak last Monday")], relevance)

    assert best[0].row.id == 1
    assert best[0].shares["dated"] == SETTINGS.dated_weight


def test_tag_importance_and_recency_break_ties() -> None:
    """Each by its weight."""
    relevance = Relevance(SETTINGS, found("garden", {}), {})
    rows = [
        row(1, at=NOW - 365 * DAY_S),
        row(2),
        row(3, importance=1.0),
        row(4, tags=["Garden"]),
    ]

    best = ranked("garden", rows, relevance, tags={"Garden": frozenset({"garden"})})

    assert [hit.row.id for hit in best] == [4, 3, 2, 1]


def test_score_is_the_sum_of_its_shares() -> None:
    """So that explain explains it."""
    relevance = Relevance(SETTINGS, found("garden", {1: 1}), {1: 0.4})

    (hit,) = ranked("garden", [row(1, tags=["garden"])], relevance, tags={"garden": frozenset({"garden"})})

    assert hit.score == pytest.approx(sum(hit.shares.values()))
    assert hit.shares["text"] == SETTINGS.text_weight
    assert hit.shares["dense"] == pytest.approx(0.4 * SETTINGS.dense_weight)


def test_best_of_several_relations_counts() -> None:
    """In proportion to its strength and to the score of the hit it leads from."""
    relevance = Relevance(SETTINGS, found("garden", {1: 1}), {})
    leader, follower = ranked("garden", [row(1), row(2)], relevance)

    weak = with_relation(follower, SETTINGS, 0.5, leader, "about")
    strong = with_relation(weak, SETTINGS, 1.0, leader, "part_of")

    assert weak.shares["relation"] == pytest.approx(SETTINGS.relation_weight * 0.5 * leader.score)
    assert strong.notes["relation"] == "part_of m1"
    assert with_relation(strong, SETTINGS, 0.5, leader, "about") == strong


def floored(masks: dict[int, int], dense: dict[int, float], *, missing: float = 0.0) -> list[int]:
    """The chunks above the floor; the query has four words."""
    relevance = Relevance(SETTINGS, found("one two three four", masks, missing=missing), dense)
    rows = [row(chunk) for chunk in {*masks, *dense}]
    return sorted(hit.row.id for hit in above_floor(ranked("one two three four", rows, relevance), relevance, SETTINGS))


def test_nothing_passes_where_no_chunk_has_enough_words_or_meaning() -> None:
    """A hopeless query finds nothing."""
    assert floored({1: 1, 2: 2}, {1: 0.2, 3: 0.3}) == []


def test_enough_words_or_enough_meaning_pass() -> None:
    """Either is enough, and brings along what has half as much."""
    assert floored({1: 3, 2: 1}, {3: 0.05, 4: 0.2}) == [1, 2, 4]
    assert floored({1: 0}, {2: 0.34, 3: 0.1}) == [2]


def test_words_that_nothing_holds_count_against_a_hit() -> None:
    """One common word of a query about something else is not enough."""
    assert floored({1: 3}, {9: 0.0}, missing=0.0) == [1]
    assert floored({1: 3}, {9: 0.0}, missing=12.0) == []


def test_half_as_many_words_do_where_there_is_no_meaning() -> None:
    """Without an encoder words are all there is."""
    assert floored({1: 1}, {}) == [1]
    assert floored({1: 1}, {2: 0.0}) == []


def test_strays_stay_behind() -> None:
    """Hits with less than a part of the best one's score."""
    relevance = Relevance(SETTINGS, found("rhubarb soup", {1: 3}), {1: 0.9, 2: 0.5, 3: 0.17})
    hits = ranked("rhubarb soup", [row(1), row(2), row(3)], relevance)

    assert [hit.row.id for hit in above_floor(hits, relevance, replace(SETTINGS, stray_floor=0.3))] == [1, 2]
    assert [hit.row.id for hit in above_floor(hits, relevance, replace(SETTINGS, stray_floor=0.0))] == [1, 2, 3]


def tagged(*stems: str) -> tuple[float, float]:
    """What a chunk with a tag of these stems has of the topics, with its text ("one") and by its tags alone.

    The query has four words. No text holds the last two, which are three times as rare.
    """
    query = "apple berry cherry damson"
    relevance = Relevance(SETTINGS, found("apple berry", {1: 1}, missing=6.0), {})
    (hit,) = ranked(query, [row(1, tags=["t"])], relevance, tags={"t": frozenset(stems)})
    return round(hit.covered, 9), round(hit.tagged, 9)


def test_topics_in_tags_are_covered_by_their_rarity() -> None:
    """Those that no text holds too; a topic in both counts once."""
    assert tagged("appl") == (1 / 8, 1 / 8)
    assert tagged("berri") == (2 / 8, 1 / 8)
    assert tagged("damson") == (4 / 8, 3 / 8)
    assert tagged("appl", "berri", "cherri", "damson") == (1.0, 1.0)


def test_chunk_with_enough_in_its_tags_is_no_stray() -> None:
    """However far its text is from the best."""
    relevance = Relevance(SETTINGS, found("rhubarb soup", {1: 3, 2: 0, 3: 0}), {1: 0.9, 2: 0.17, 3: 0.17})
    rows = [row(1), row(2, tags=["Rhubarb"]), row(3, tags=["other"])]
    hits = ranked("rhubarb soup", rows, relevance, tags={"Rhubarb": frozenset({"rhubarb"})})

    assert [hit.row.id for hit in above_floor(hits, relevance, SETTINGS)] == [1, 2]


def test_floors_of_zero_let_everything_pass() -> None:
    """They can be switched off."""
    settings = replace(SETTINGS, text_floor=0.0, dense_floor=0.0, stray_floor=0.0)
    relevance = Relevance(settings, found("one", {}), {})
    hits = ranked("one", [row(chunk) for chunk, _ in zip(count(1), range(3), strict=False)], relevance)

    assert len(above_floor(hits, relevance, settings)) == 3
