"""The damper: nothing is lost, nothing is told too often."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bus.damper import Damper

STEPS = st.lists(st.tuples(st.integers(0, 12), st.floats(0, 3)), max_size=300)


@given(STEPS, st.integers(1, 4), st.integers(1, 8))
def test_what_is_told_and_what_is_counted_add_up_to_everything(
    steps: list[tuple[int, float]], burst: int, kinds_max: int
) -> None:
    """Told one by one, told as numbers and told at the end make the number of failures, whatever the times."""
    damper = Damper(burst=burst, kinds_max=kinds_max, per_s=5)
    now, told = 0.0, 0

    for kind, pause_s in steps:
        now += pause_s
        told += sum(count for _, count in damper.due(now))
        told += not damper.take(kind, now).left_out
    told += sum(count for _, count in damper.rest())

    assert told == len(steps)
    assert damper.rest() == []
    assert damper.next_due(now) is None


@given(STEPS, st.integers(1, 6))
def test_no_second_sees_more_than_the_bound(steps: list[tuple[int, float]], per_s: int) -> None:
    """Of all kinds together at most `per_s` are told within any second."""
    damper = Damper(per_s=per_s)
    now = 0.0
    told_at: list[float] = []

    for kind, pause_s in steps:
        now += pause_s / 10
        told_at += [now for _ in damper.due(now)]
        if not damper.take(kind, now).left_out:
            told_at.append(now)

    assert all(later - earlier >= 1.0 for earlier, later in zip(told_at, told_at[per_s:], strict=False))


@given(STEPS)
def test_a_kind_is_told_once_in_a_window(steps: list[tuple[int, float]]) -> None:
    """Between two tellings of one kind lies at least a second, though it be a telling of a number."""
    damper = Damper()
    now = 0.0
    told_at: dict[object, list[float]] = {}

    for kind, pause_s in steps:
        now += pause_s / 10
        for like, _ in damper.due(now):
            told_at.setdefault(like.key, []).append(now)
        if not damper.take(kind, now).left_out:
            told_at.setdefault(kind, []).append(now)

    for times in told_at.values():
        assert all(later - earlier >= 1.0 for earlier, later in pairwise(times))


def test_windows_grow_while_the_storm_goes_on_and_shrink_after_it() -> None:
    """A storm is told after 1, 2, 4, ... seconds; after a quiet time the next failure is told at once."""
    damper = Damper(window_s=1, window_max_s=4)
    now = 0.0
    told_at = []

    while now < 20:
        told_at += [now for _ in damper.due(now)]
        damper.take("a", now)
        now += 0.125
    quiet = damper.due(60)

    assert told_at == [1.0, 3.0, 7.0, 11.0, 15.0, 19.0]
    assert len(quiet) == 1
    assert not damper.take("a", 70).left_out
    assert damper.take("a", 70.5).left_out
    assert damper.next_due(70.5) == 71


def test_kinds_past_the_limit_are_counted_as_one() -> None:
    """However many kinds there are, the memory for them is bounded, and their number is right."""
    damper = Damper(kinds_max=3)

    likes = [damper.take(number, 0.0) for number in range(100)]

    assert likes[3] is damper.others
    assert sum(count for _, count in damper.rest()) == 96
    assert len(set(map(id, likes))) == 4


def test_kinds_that_stay_away_make_room() -> None:
    """After a minute of quiet a kind is forgotten, and a new one takes its place."""
    damper = Damper(kinds_max=1)
    damper.take("old", 0.0)

    like = damper.take("new", 62.0)

    assert like.key == "new"
    assert not like.left_out
