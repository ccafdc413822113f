"""Intervals and quantiles against tables and published examples, and what must hold of any of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.models.trials.statistics import (
    incomplete_beta,
    mean_interval,
    paired_difference,
    quantile,
    ratio_interval,
    student,
    t_quantile,
    wilson,
)

UNIT = (0.0, 1.0)


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [
        (0.975, 1, 12.706205),
        (0.975, 2, 4.302653),
        (0.95, 5, 2.015048),
        (0.975, 9, 2.262157),
        (0.995, 3, 5.840909),
        (0.975, 30, 2.042272),
        (0.9995, 120, 3.373454),
        (0.975, 1_000_000, 1.959966),
    ],
)
def test_quantiles_of_students_t_are_those_of_the_tables(probability: float, freedom: int, value: float) -> None:
    """Six digits, from one degree of freedom to as good as normal."""
    assert t_quantile(probability, freedom) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("a", "b", "x", "value"), [(1, 1, 0.3, 0.3), (2, 3, 0.5, 0.6875), (0.5, 0.5, 0.5, 0.5)])
def test_the_incomplete_beta_function_has_its_closed_values(a: float, b: float, x: float, value: float) -> None:
    """Where it is a polynomial or symmetric; outside 0..1 it is 0 or 1."""
    assert incomplete_beta(a, b, x) == pytest.approx(value, abs=1e-12)
    assert (incomplete_beta(a, b, 0.0), incomplete_beta(a, b, 1.0)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_newcombes_table(successes: int, n: int, low: float, high: float) -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    interval = wilson(successes, n, 0.95)

    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_students_interval_of_known_values() -> None:
    """Ten values, mean 5.5, standard error 0.957427."""
    interval = student([float(n) for n in range(1, 11)], 0.95, bounds=None)

    assert (interval.mean, interval.low, interval.high) == (5.5, pytest.approx(3.334149), pytest.approx(7.665851))


def test_a_mean_of_zeros_and_ones_gets_wilsons_interval_and_others_students() -> None:
    """One case alone has no interval: it is all that is possible."""
    assert mean_interval([0.0, 1.0, 1.0], 0.95, bounds=UNIT).method == "Wilson"
    assert mean_interval([0.0, 0.5, 1.0], 0.95, bounds=UNIT).method == "Student t"
    assert mean_interval([0.5], 0.95, bounds=UNIT)[1:3] == UNIT
    assert mean_interval([7.0], 0.95, bounds=None)[1:3] == (7.0, 7.0)


def test_a_ratio_weighs_long_texts_more() -> None:
    """Equal ratios have no spread; the estimate is that of all together."""
    same = ratio_interval([2.0, 20.0], [1.0, 10.0], 0.95)
    mixed = ratio_interval([1.0, 30.0], [1.0, 10.0], 0.95)

    assert (same.mean, same.low, same.high) == (2.0, 2.0, 2.0)
    assert mixed.mean == pytest.approx(31 / 11)
    assert mixed.low < 2.0 < 3.0 < mixed.high


def test_a_paired_difference_of_marks_is_agresti_and_mins() -> None:
    """Forty pairs, 12 won and 4 lost: (8 / 42) -+ 1.96 sqrt(17 - 64 / 42) / 42; twice all right is not certainly equal."""
    first = [1.0] * 12 + [0.0] * 4 + [1.0] * 24
    second = [0.0] * 12 + [1.0] * 4 + [1.0] * 24
    interval = paired_difference(first, second, 0.95, bounds=UNIT)
    half = 1.959964 * math.sqrt(17 - 64 / 42) / 42

    assert interval.mean == 0.2
    assert (interval.low, interval.high) == (pytest.approx(8 / 42 - half), pytest.approx(8 / 42 + half))
    assert paired_difference([1.0] * 10, [1.0] * 10, 0.95, bounds=UNIT).high > 0.1


def test_a_paired_difference_of_other_scores_is_students() -> None:
    """What is common to a pair does not widen the interval."""
    first = [0.1, 0.5, 0.9, 0.3]
    interval = paired_difference([x + 0.05 for x in first], first, 0.95, bounds=UNIT)

    assert interval.method == "paired Student t"
    assert interval.low == pytest.approx(0.05)
    assert interval.high == pytest.approx(0.05)


def test_a_quantile_is_a_value_that_occurs() -> None:
    """The nearest rank."""
    values = [float(n) for n in range(1, 21)]

    assert (quantile(values, 0.5), quantile(values, 0.95), quantile(values, 1.0)) == (10.0, 19.0, 20.0)
    assert quantile([3.0], 0.5) == 3.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.5, 0.999))
def test_an_interval_holds_its_mean_and_stays_within_bounds(values: list[float], confidence: float) -> None:
    """Whatever the values; a higher confidence is never narrower."""
    interval = mean_interval(values, confidence, bounds=UNIT)
    wider = mean_interval(values, (1 + confidence) / 2, bounds=UNIT)

    assert 0 <= interval.low <= interval.mean + 1e-12
    assert interval.mean - 1e-12 <= interval.high <= 1
    assert wider.low <= interval.low + 1e-12
    assert wider.high >= interval.high - 1e-12
