"""Times in texts, resolved against a reference."""

from __future__ import annotations

import math
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.memory.search import times
from workers.memory.search.times import Span, closeness, find_times, has_time

# A Friday.
REFERENCE = datetime.fromisoformat("2024-05-17T15:30").timestamp()


def days(text: str) -> list[tuple[str, str]]:
    """The stretches of time that `text` speaks of, as days; "-" for an open end."""

    def day(moment: float) -> str:
        return f"{datetime.fromtimestamp(moment):%Y-%m-%d}" if math.isfinite(moment) else "-"

    return [(day(span.since), day(span.until)) for span in find_times(text, REFERENCE)]


@pytest.mark.parametrize(
    ("text", "since", "until"),
    [
        ("2024-05-03", "2024-05-03", "2024-05-04"),
        ("on 3 May 2024", "2024-05-03", "2024-05-04"),
        ("May 3rd, 2024", "2024-05-03", "2024-05-04"),
        ("the 3rd of May", "2024-05-03", "2024-05-04"),
        ("30 June", "2023-06-30", "2023-07-01"),
        ("in May 2023", "2023-05-01", "2023-06-01"),
        ("in May", "2024-05-01", "2024-06-01"),
        ("in June", "2023-06-01", "2023-07-01"),
        ("last May", "2023-05-01", "2023-06-01"),
        ("next June", "2024-06-01", "2024-07-01"),
        ("late May 2024", "2024-05-21", "2024-06-01"),
        ("mid-May 2023", "2023-05-11", "2023-05-21"),
        ("the first week of May 2023", "2023-05-01", "2023-05-08"),
        ("the last week of May 2023", "2023-05-25", "2023-06-01"),
        ("the end of 2023", "2023-09-01", "2024-01-01"),
        ("in 2023", "2023-01-01", "2024-01-01"),
        ("summer 2023", "2023-06-01", "2023-09-01"),
        ("last winter", "2023-12-01", "2024-03-01"),
        ("last spring", "2023-03-01", "2023-06-01"),
        ("next autumn", "2024-09-01", "2024-12-01"),
        ("this summer", "2024-06-01", "2024-09-01"),
        ("today", "2024-05-17", "2024-05-18"),
        ("last night", "2024-05-16", "2024-05-17"),
        ("yesterday morning", "2024-05-16", "2024-05-17"),
        ("the day before yesterday", "2024-05-15", "2024-05-16"),
        ("the day after tomorrow", "2024-05-19", "2024-05-20"),
        ("tomorrow evening", "2024-05-18", "2024-05-19"),
        ("two days ago", "2024-05-15", "2024-05-16"),
        ("a week ago", "2024-05-06", "2024-05-15"),
        ("3 months ago", "2024-02-01", "2024-03-01"),
        ("a few years ago", "2019-01-01", "2023-01-01"),
        ("a couple of months back", "2024-01-01", "2024-05-01"),
        ("two decades ago", "2002-01-01", "2007-01-01"),
        ("in three weeks", "2024-06-03", "2024-06-12"),
        ("two weeks from now", "2024-05-27", "2024-06-05"),
        ("last week", "2024-05-06", "2024-05-13"),
        ("this week", "2024-05-13", "2024-05-20"),
        ("next month", "2024-06-01", "2024-07-01"),
        ("last year", "2023-01-01", "2024-01-01"),
        ("last weekend", "2024-05-11", "2024-05-13"),
        ("last Friday", "2024-05-10", "2024-05-11"),
        ("next Monday", "2024-05-20", "2024-05-21"),
        ("this Wednesday", "2024-05-15", "2024-05-16"),
        ("on Friday", "2024-05-17", "2024-05-18"),
        ("on Saturday", "2024-05-11", "2024-05-12"),
        ("the past 3 days", "2024-05-14", "2024-05-17"),
        ("the last few weeks", "2024-04-22", "2024-05-17"),
        ("recently", "2024-05-03", "2024-05-17"),
        ("before May 2023", "-", "2023-05-01"),
        ("after May 2023", "2023-06-01", "-"),
        ("until May 2023", "-", "2023-06-01"),
        ("since March", "2024-03-01", "2024-05-17"),
        ("between May 2023 and July 2023", "2023-05-01", "2023-08-01"),
        ("from 3 May 2023 to 5 May 2023", "2023-05-03", "2023-05-06"),
    ],
)
def test_words_of_a_time_mean_their_days(text: str, since: str, until: str) -> None:
    """Days begin at midnight here, and `until` is the first day that no longer belongs."""
    assert days(f"What happened {text}?") == [(since, until)]


@pytest.mark.parametrize(
    "text", ["", "I may go", "they march on", "fall down", "the 3 of us", "spring water", "second"]
)
def test_words_that_only_look_like_a_time_mean_none(text: str) -> None:
    """Month names and seasons are also other words."""
    assert days(text) == []


def test_impossible_day_leaves_the_month() -> None:
    """There is no 31 February, but somebody spoke of a February."""
    assert days("on 31 February 2023") == [("2023-02-01", "2023-03-01")]


def test_several_times_come_in_the_order_of_the_text() -> None:
    """Each with the characters that say it."""
    text = "Yesterday we planned what to do in June 2024."

    spans = find_times(text, REFERENCE)

    assert [text[span.start : span.end] for span in spans] == ["Yesterday", "June 2024"]


def test_reference_beyond_the_calendar_resolves_nothing() -> None:
    """A clock that is set to nonsense stops no search."""
    assert find_times("yesterday", 1e18) == []
    assert find_times("ten decades ago", 0.0) is not None


@given(st.text(max_size=200), st.floats(-1e13, 1e13))
def test_any_text_at_any_time_is_read(text: str, reference: float) -> None:
    """Nothing in a text can break the reading, and every span lies in it."""
    for span in find_times(text + " 2024-13-45 99 May 0 days ago in 9999 years", reference):
        assert span.since < span.until
        assert 0 <= span.start < span.end


def test_closeness_is_one_inside_and_halves_with_the_slack() -> None:
    """On both sides alike."""
    span = Span(100.0, 200.0, 0, 1, 1.0)

    assert closeness(100.0, span, 10.0) == closeness(199.0, span, 10.0) == 1.0
    assert closeness(90.0, span, 10.0) == closeness(210.0, span, 10.0) == 0.5
    assert closeness(1e12, span, 10.0) < 1e-17


def test_a_text_without_times_is_told_at_once() -> None:
    """The cheap look agrees with the thorough one where it says no."""
    assert has_time("we met last week")
    assert not has_time("we met at the market and it was nice")


@given(
    st.lists(
        st.sampled_from(
            "yesterday today last night this morning afternoon ago back before now earlier in within the next two of days"
            " hours weekend month year decade from past previous coming few couple Friday SUNDAY spring Winter 1999 2024"
            " january Sept. may july recently Lately birthday week's \u017feptember wee\u212a".split()
        ),
        max_size=8,
    )
)
def test_what_is_looked_for_first_stands_in_every_time(words: list[str]) -> None:
    """The quick look lets nothing slip that the pattern finds, in any capitals."""
    text = " ".join(words)

    assert not times._HINT.search(text) or times._may_have_time(text)
