"""What the memory decides without a database: how a text is cut, summarised, and how importance fades."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.memory.items import summary as summary_module
from workers.memory.items.chunking import OVERLAP_CHARACTERS, PIECE_CHARACTERS, cut, titled
from workers.memory.items.drafts import time_of
from workers.memory.items.lifecycle import DAY_S, PASS_S, Aged, age
from workers.memory.items.summary import LENGTH_DAMPING, LOOKED_AT_CHARACTERS, summarise

# Chunks ---------------------------------------------------------------------------------------------------------

# Blocks of every kind that a boundary may fall into, repeated until they are long.
BLOCKS = st.sampled_from(
    [
        "word ",
        "Sentence. ",
        "\n\n",
        "\n",
        "\r\n\r\n",
        " " * 300,
        "x" * 400,
        "中" * 90,
        "e\u0301" * 80,
        "🙂",
        "\0",
        "a? b! ",
    ]
)
TEXTS = st.lists(BLOCKS | st.text(max_size=60), max_size=40).map("".join)


@given(TEXTS)
def test_pieces_are_exact_ranges_that_hold_every_visible_character(text: str) -> None:
    """None is empty or too long, each moves on, and what is between them is white space."""
    pieces = cut(text)

    covered = 0
    for before, piece in zip([None, *pieces], pieces, strict=False):
        assert piece.text == text[piece.start : piece.end]
        assert piece.text == piece.text.strip() != ""
        assert len(piece.text) <= PIECE_CHARACTERS
        if before is not None:
            assert before.start < piece.start and before.end < piece.end
        assert text[covered : piece.start].strip() == ""
        covered = piece.end
    assert text[covered:].strip() == ""


def test_a_short_text_is_one_piece_and_white_space_none() -> None:
    """The usual memory is found whole."""
    assert cut("  tea with honey\n") == [("tea with honey", 2, 16)]
    assert cut("") == cut(" \n\t ") == []


def test_a_long_text_is_cut_at_paragraphs_where_there_are_some() -> None:
    """Pieces then repeat nothing."""
    paragraphs = [f"{letter * 5} and more. " * 35 for letter in "abc"]
    pieces = cut("\n\n".join(paragraphs))

    assert [piece.text for piece in pieces] == [paragraph.strip() for paragraph in paragraphs]


def test_within_a_paragraph_a_piece_ends_with_a_sentence_and_the_next_repeats_the_last_ones() -> None:
    """No sentence is torn, and what belongs together stands together once."""
    sentences = [f"This is sentence number {number} of many." for number in range(80)]
    pieces = cut(" ".join(sentences))

    assert len(pieces) > 2
    for before, piece in pairwise(pieces):
        assert piece.text.startswith("This") and before.text.endswith("many.")
        assert 0 < before.end - piece.start <= OVERLAP_CHARACTERS


def test_a_text_without_any_boundary_is_cut_between_characters() -> None:
    """A letter keeps its accents."""
    for piece in cut("e\u0301" * 2_000):
        assert piece.text.startswith("e")


def test_texts_in_other_scripts_are_cut_shorter() -> None:
    """Their letters are tokens of their own to the encoder."""
    assert max(len(piece.text) for piece in cut("中" * 5_000)) == PIECE_CHARACTERS // 4
    assert max(len(piece.text) for piece in cut("ä" * 5_000)) == PIECE_CHARACTERS


def test_a_title_stands_before_the_first_piece_and_changes_no_range() -> None:
    """A document without visible content is found by its title alone."""
    pieces = cut("About bees. " * 200)
    assert titled(pieces, " Honey ") == [(f"Honey\n{pieces[0].text}", 0, pieces[0].end), *pieces[1:]]
    assert titled([], "Honey") == [("Honey", 0, 0)]
    assert titled(pieces, " ") == pieces


# Summaries ------------------------------------------------------------------------------------------------------


def test_a_summary_takes_the_sentences_that_others_echo_in_their_order() -> None:
    """What is said once and shares no word with the rest is left out."""
    text = (
        "The garden needs water in the summer. Someone rang. Roses in the garden need water twice. "
        "It was late! In summer the roses suffer first."
    )
    assert summarise([text], 80) == "Roses in the garden need water twice. In summer the roses suffer first."


@given(st.lists(TEXTS, max_size=4), st.integers(20, 400))
def test_a_summary_is_bounded_deterministic_and_made_of_words_of_its_texts(texts: list[str], most: int) -> None:
    """Empty only where there is nothing to say."""
    summary = summarise(texts, most)

    assert len(summary) <= most
    assert summary == summarise(texts, most)
    assert bool(summary) == any(text.strip() for text in texts)
    said = " ".join("".join(texts).split())
    assert all(word.rstrip("\u2026") in said for word in summary.split())


def test_a_sentence_that_is_too_long_is_cut_at_a_word() -> None:
    """With an ellipsis that says so."""
    assert summarise(["one two three four five"], 12) == "one two\u2026"


def test_a_dot_ends_a_sentence_before_white_space_alone() -> None:
    """Numbers and names hold dots; other marks end one wherever they stand."""
    text = "It weighs 3.5 kg at example.org... Take it!Now?He said \u201cno.\u201d Yes\u3002So be it."
    sentences = [
        "It weighs 3.5 kg at example.org...",
        "Take it!",
        "Now?",
        "He said \u201cno.\u201d",
        "Yes\u3002",
        "So be it.",
    ]
    assert summarise([text], 1_000) == " ".join(sentences)


@given(
    st.lists(
        st.lists(st.sampled_from(["roses", "garden", "water", "summer", "an", "boiler"]), min_size=1), max_size=30
    ),
    st.integers(20, 200),
)
def test_the_most_central_sentence_is_taken_each_time(sentences: list[list[str]], most: int) -> None:
    """As if all that are left were compared anew after each, the earlier one of two that are as central."""
    texts = list(dict.fromkeys(f"{' '.join(words)}." for words in sentences))
    words = {text: {word for word in text[:-1].split() if len(word) >= 4} for text in texts}
    uses = Counter(word for text in texts for word in words[text])
    waiting, taken, left = list(texts), list[str](), most
    while waiting:
        best = max(
            waiting, key=lambda text: sum(uses[word] for word in words[text]) / (len(words[text]) + LENGTH_DAMPING)
        )
        waiting.remove(best)
        if len(best) <= left:
            taken.append(best)
            left -= len(best) + 1
            for word in words[best]:
                uses[word] = 0

    summary = summarise([" ".join(texts)], most)

    if taken:
        assert summary == " ".join(text for text in texts if text in taken)


@pytest.mark.parametrize("text", ["{}.5 ", "{}! ", "stone{} wall{} house{}. ", "water{} and bread. "])
def test_many_sentences_cost_little_more_than_reading_them(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Each is looked at once and once more for each word that has been said meanwhile, not once for each one chosen."""
    looked_at = 0
    centrality = summary_module._centrality

    def count(*arguments: Any) -> float:
        nonlocal looked_at
        looked_at += 1
        return centrality(*arguments)

    monkeypatch.setattr(summary_module, "_centrality", count)
    long = "".join(text.format(number, number, number) for number in range(LOOKED_AT_CHARACTERS))
    summarise([long], 1_000)

    assert 0 < looked_at < LOOKED_AT_CHARACTERS


# Life cycle -----------------------------------------------------------------------------------------------------


def by_the_hour(tier: str, importance: float, hours: int) -> tuple[str, float]:
    """The rule as it is written down, pass by pass, for a memory made on the hour."""
    for hour in range(1, hours + 1):
        if tier == "long":
            break
        rate = {"short": 0.1, "medium": 0.05}[tier]
        importance = min(1.0, max(0.0, importance * (1 - rate * hour / 24)))
        if tier == "short" and importance < 0.4:
            tier = "medium"
        elif tier == "medium" and importance < 0.2:
            tier = "long"
    return tier, importance


@pytest.mark.parametrize("tier", ["short", "medium", "long"])
@pytest.mark.parametrize("importance", [1.0, 0.5, 0.39, 0.1, 0.0])
def test_hourly_passes_multiply_by_one_minus_rate_times_age(tier: str, importance: float) -> None:
    """The numbers of the rule, whether the passes were made one by one or all at once."""
    start = 100 * PASS_S
    now_tier, now_importance = tier, importance
    for hour in range(1, 60):
        aged = age(
            now_tier,
            now_importance,
            created_at=start,
            since=start + (hour - 1) * PASS_S,
            until=start + hour * PASS_S,
        )
        now_tier, now_importance = aged.tier, aged.importance
        at_once = age(tier, importance, created_at=start, since=start, until=start + hour * PASS_S)
        assert (at_once.tier, at_once.importance) == (now_tier, now_importance)
        assert (now_tier, now_importance) == pytest.approx(by_the_hour(tier, importance, hour))


@given(
    tier=st.sampled_from(["short", "medium", "long"]),
    importance=st.floats(0, 1),
    created_at=st.floats(0, 1e9),
    times=st.lists(st.floats(0, 40 * DAY_S), max_size=5).map(sorted),
)
def test_ageing_in_steps_is_ageing_at_once(tier: str, importance: float, created_at: float, times: list[float]) -> None:
    """However often and whenever the service looks, the outcome is the same; importance stays within its range."""
    steps = Aged(tier, importance)
    since = created_at
    for delay in times:
        left_short = steps.left_short
        steps = age(steps.tier, steps.importance, created_at=created_at, since=since, until=created_at + delay)
        steps = steps._replace(left_short=steps.left_short or left_short)
        since = created_at + delay

    assert steps == age(tier, importance, created_at=created_at, since=created_at, until=since)
    assert 0 <= steps.importance <= importance


def test_a_clock_set_back_ages_nothing() -> None:
    """Neither before the last pass nor before the creation."""
    assert age("short", 0.9, created_at=9e8, since=1e9, until=1e9 - DAY_S) == ("short", 0.9, False)
    assert age("short", 0.9, created_at=2e9, since=1e9, until=1.5e9) == ("short", 0.9, False)


def test_a_long_pause_ends_in_the_long_tier_and_takes_no_time() -> None:
    """A thousand years are no more passes than some weeks."""
    aged = age("short", 1.0, created_at=0.0, since=0.0, until=1_000 * 365 * DAY_S)

    assert (aged.tier, aged.left_short) == ("long", True)


# Times ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"time": 12}, 12.0),
        ({"timestamp": 12.5}, 12.5),
        ({"time": "1970-01-02"}, DAY_S),
        ({"time": "1970-01-02T00:00:00Z"}, DAY_S),
        ({"time": "1970-01-02 01:00:00+01:00"}, DAY_S),
        ({"time": "yesterday", "timestamp": 3}, 3.0),
        ({"time": True}, None),
        ({"time": -1}, None),
        ({"time": 1e300}, None),
        ({"time": float("nan")}, None),
        ({"time": 10**400}, None),
        ({"time": "9999-12-31T23:59:59-23:59"}, None),
        ({"time": "0001-01-01T00:00:00+23:59"}, None),
        ({"time": ["1970-01-02"]}, None),
        ({}, None),
    ],
)
def test_the_time_of_a_memory_is_read_from_its_metadata(metadata: dict[str, object], expected: float | None) -> None:
    """Epoch seconds or ISO 8601, UTC where no zone is named; anything else says nothing."""
    assert time_of(metadata) == expected
