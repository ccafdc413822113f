"""Certainty that holds however often one looks: false alarms under continuous peeking, power, and the sums behind it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.models.trials import sequential
from workers.models.trials import verdict as verdicts
from workers.models.trials.assignment import variant_of
from workers.models.trials.sequential import Kind, Outcomes, difference_interval, excludes, log_evidence, mean_interval

Draw = Callable[[random.Random], float]


def bernoulli(mean: float) -> Draw:
    return lambda source: float(source.random() < mean)


def uniform(low: float, high: float) -> Draw:
    return lambda source: source.uniform(low, high)


def outcomes_of(kind: Kind, values: list[float]) -> Outcomes:
    outcomes = Outcomes(kind)
    for value in values:
        outcomes = outcomes.plus(value)
    return outcomes


def stopped_at(kind: Kind, first: Draw, second: Draw, *, units: int, seed: int, alpha: float = 0.05) -> int | None:
    """After how many units a test that is looked at after every single one calls a difference."""
    source = random.Random(seed)
    sums = [Outcomes(kind), Outcomes(kind)]
    for unit in range(units):
        index = int(source.random() < 0.5)
        sums[index] = sums[index].plus((first, second)[index](source))
        if excludes(sums[0], sums[1], 0.0, alpha):
            return unit + 1
    return None


@pytest.mark.parametrize(
    ("kind", "draw"),
    [
        ("binary", bernoulli(0.5)),
        ("binary", bernoulli(0.05)),
        ("bounded", uniform(0.0, 1.0)),
        ("bounded", uniform(0.45, 0.55)),
        ("bounded", bernoulli(0.5)),
    ],
)
def test_looking_after_every_outcome_does_not_raise_the_rate_of_false_alarms(kind: Kind, draw: Draw) -> None:
    """Two variants that are the same, 150 tests of 400 units: at alpha 0.2 at most a fifth of them may call a winner.

    A fixed-sample test at this alpha, looked at as often, calls one in well over half of them.
    """
    alarms = sum(stopped_at(kind, draw, draw, units=400, seed=seed, alpha=0.2) is not None for seed in range(150))

    assert alarms / 150 <= 0.2


@pytest.mark.parametrize(
    ("kind", "first", "second", "units"),
    [
        ("binary", bernoulli(0.3), bernoulli(0.5), 700),
        ("binary", bernoulli(0.5), bernoulli(0.9), 150),
        ("bounded", uniform(0.0, 0.8), uniform(0.2, 1.0), 500),
    ],
)
def test_a_difference_is_found_in_reasonable_time(kind: Kind, first: Draw, second: Draw, units: int) -> None:
    """Nine in ten tests find it within some three times what a single look with that power needs."""
    found = [stopped_at(kind, first, second, units=units, seed=seed) is not None for seed in range(40)]

    assert sum(found) >= 36


@pytest.mark.parametrize(
    ("kind", "draw", "mean"), [("binary", bernoulli(0.2), 0.2), ("bounded", uniform(0.3, 0.5), 0.4)]
)
def test_the_interval_of_a_mean_holds_at_every_moment(kind: Kind, draw: Draw, mean: float) -> None:
    """100 runs of 300 outcomes at alpha 0.2: the true mean leaves the interval, ever, in at most a fifth of them."""
    missed = 0
    for seed in range(100):
        source, outcomes = random.Random(seed), Outcomes(kind)
        for _ in range(300):
            outcomes = outcomes.plus(draw(source))
            if outcomes.log_wealth(mean) >= -math.log(0.2):
                missed += 1
                break

    assert missed <= 20


def test_outcomes_that_vary_little_are_known_better() -> None:
    """The empirical-Bernstein part: a narrow distribution gives a narrow interval, which 0 and 1 would not."""
    source = random.Random(1)
    values = [source.uniform(0.48, 0.52) for _ in range(2_000)]
    low, high = mean_interval(outcomes_of("bounded", values), 0.05)
    coin_low, coin_high = mean_interval(outcomes_of("binary", [1.0, 0.0] * 1_000), 0.05)

    assert (high - low) * 5 < coin_high - coin_low


def test_the_evidence_of_binary_outcomes_is_the_mixture_ratio() -> None:
    """Three hits of four against 1/2: B(3.5, 1.5) / B(0.5, 0.5) * 2^4 = 0.625."""
    assert math.exp(outcomes_of("binary", [1, 1, 0, 1]).log_wealth(0.5)) == pytest.approx(0.625)
    assert Outcomes("binary").log_wealth(0.3) == pytest.approx(0.0)
    assert outcomes_of("binary", [1.0]).log_wealth(0.0) > 20


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["binary", "bounded"]),
    st.lists(st.sampled_from([0.0, 1.0]), max_size=60),
    st.lists(st.sampled_from([0.0, 1.0]), max_size=60),
)
def test_intervals_hold_what_was_observed_and_agree_with_the_evidence(
    kind: Kind, first: list[float], second: list[float]
) -> None:
    """Whatever came: ends within bounds, the observed difference inside, and outside what is excluded."""
    a, b = outcomes_of(kind, first), outcomes_of(kind, second)
    low, high = difference_interval(a, b, 0.05)

    assert -1 <= low <= b.mean - a.mean <= high <= 1
    assert excludes(a, b, 0.0, 0.05) == (log_evidence(a, b, 0.0) >= -math.log(0.05))
    if low > 0 or high < 0:
        assert excludes(a, b, 0.0, 0.05)
    assert sequential.p_value(a, b, 3) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=40), st.lists(st.floats(0, 1), max_size=40), st.floats(-1, 1))
def test_no_mean_speaks_less_than_the_least_evidence(
    first: list[float], second: list[float], difference: float
) -> None:
    """The golden section finds the minimum that a grid finds."""
    a, b = outcomes_of("bounded", first), outcomes_of("bounded", second)
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)
    grid = [low + (high - low) * step / 50 for step in range(51)]
    least = min(a.log_wealth(mean) + b.log_wealth(min(max(mean + difference, 0.0), 1.0)) for mean in grid)

    assert log_evidence(a, b, difference) <= least + 1e-6


# Verdicts -----------------------------------------------------------------------------------------------------------


def many(hits: int, misses: int) -> Outcomes:
    return outcomes_of("binary", [1.0] * hits + [0.0] * misses)


def test_a_variant_wins_when_it_beats_every_other_one() -> None:
    """With a second-best that cannot be told from the best there is no winner yet, and the words say what is certain."""
    terms = verdicts.Terms(("A", "B", "C"), 0.05, 0.0)
    open_test = [many(20, 180), many(100, 100), many(105, 95)]
    decided = [many(20, 180), many(100, 100), many(190, 10)]

    assert verdicts.ending(terms, open_test) is None
    assert verdicts.words(terms, open_test) == (
        "certain at level 0.95: B is better than A; C is better than A; no winner so far"
    )
    assert verdicts.ending(terms, decided) == ("C", "C is better than A and B: certain at level 0.95")


def test_a_test_without_a_difference_that_matters_ends_without_a_winner() -> None:
    """Only with a smallest difference agreed on beforehand."""
    alike = [many(1_000, 1_000), many(1_001, 999)]

    assert verdicts.ending(verdicts.Terms(("A", "B"), 0.05, 0.0), alike) is None
    end = verdicts.ending(verdicts.Terms(("A", "B"), 0.05, 0.1), alike)
    assert end == (None, "no two variants differ by 0.1 or more: certain at level 0.95")
    assert verdicts.ending(verdicts.Terms(("A", "B"), 0.05, 0.01), alike) is None


def test_words_of_a_test_that_has_just_begun() -> None:
    """What is missing is named."""
    terms = verdicts.Terms(("A", "B", "C"), 0.05, 0.0)

    assert verdicts.words(terms, [many(0, 0)] * 3) == "no outcomes yet"
    assert verdicts.words(terms, [many(1, 0), many(0, 0), many(0, 0)]) == (
        "nothing is certain yet; no outcomes of B and C yet; no winner so far"
    )


# Assignment ---------------------------------------------------------------------------------------------------------


def test_shares_follow_the_weights() -> None:
    """Of 20,000 units a quarter and three quarters, within five standard deviations."""
    second = sum(variant_of("test", f"unit {n}", [1.0, 3.0]) for n in range(20_000))

    assert abs(second - 15_000) < 5 * math.sqrt(20_000 * 0.75 * 0.25)


def test_two_tests_assign_independently() -> None:
    """Who is in the first half of one test is not so in the next."""
    same = sum(variant_of("one", f"u{n}", [1, 1]) == variant_of("two", f"u{n}", [1, 1]) for n in range(10_000))

    assert abs(same - 5_000) < 5 * math.sqrt(10_000 * 0.25)


@given(st.text(max_size=40), st.lists(st.floats(0.001, 1_000), min_size=2, max_size=8))
def test_a_unit_always_gets_the_same_variant(unit: str, weights: list[float]) -> None:
    """Any text names a unit."""
    index = variant_of("test", unit, weights)

    assert 0 <= index < len(weights)
    assert index == variant_of("test", unit, weights)
