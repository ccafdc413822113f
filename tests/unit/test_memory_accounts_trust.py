"""Trust: the Beta posterior against known values, forgetting, and the rates that follow from it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.ratelimit import BURST_S, TokenBucket, rate_of
from workers.memory.accounts.trust import (
    HALF_LIFE_S,
    NOTHING,
    Evidence,
    aged,
    beta_below,
    beta_quantile,
    posterior,
    with_outcome,
)


def after(outcomes: str, now: float = 0.0) -> Evidence:
    """The evidence of outcomes written as letters: s for a success, f for a failure."""
    evidence = NOTHING
    for outcome in outcomes:
        evidence = with_outcome(evidence, is_success=outcome == "s", weight=1.0, now=now)
    return evidence


@pytest.mark.parametrize(
    ("a", "b", "x", "below"),
    [
        # Closed forms: x ** a for b = 1, the arcsine law for 1/2 and 1/2, a binomial sum for whole parameters.
        (10, 1, 0.9, 0.9**10),
        (1, 10, 0.1, 1 - 0.9**10),
        (0.5, 0.5, 0.25, 2 / math.pi * math.asin(math.sqrt(0.25))),
        (2, 3, 0.4, sum(math.comb(4, k) * 0.4**k * 0.6 ** (4 - k) for k in range(2, 5))),
        (30, 70, 0.35, sum(math.comb(99, k) * 0.35**k * 0.65 ** (99 - k) for k in range(30, 100))),
        (1, 1, 0.3, 0.3),
    ],
)
def test_the_incomplete_beta_function_has_its_known_values(a: float, b: float, x: float, below: float) -> None:
    """Where a closed form says what it must be."""
    assert beta_below(a, b, x) == pytest.approx(below, abs=1e-12)


@pytest.mark.parametrize(("a", "b", "p"), [(2, 1, 0.05), (51, 1, 0.05), (1, 51, 0.95), (1, 1, 0.5)])
def test_quantiles_have_their_known_values(a: float, b: float, p: float) -> None:
    """With a parameter of 1 the distribution inverts by hand."""
    known = p ** (1 / a) if b == 1 else 1 - (1 - p) ** (1 / b)

    assert beta_quantile(a, b, p) == pytest.approx(known, abs=1e-10)


@given(a=st.floats(1, 3_000), b=st.floats(1, 3_000), p=st.floats(0.001, 0.999))
def test_a_quantile_is_where_that_much_lies_below(a: float, b: float, p: float) -> None:
    """The two functions undo each other, wherever they are asked."""
    x = beta_quantile(a, b, p)

    assert 0 < x < 1
    assert beta_below(a, b, x) == pytest.approx(p, abs=1e-7)
    assert beta_below(a, b, x) + beta_below(b, a, 1 - x) == pytest.approx(1, abs=1e-9)


def test_a_newcomer_with_one_success_is_not_trusted_yet() -> None:
    """One success proves little, and nothing at all proves less."""
    assert posterior(NOTHING, 0.0).lower == pytest.approx(0.05)
    assert posterior(NOTHING, 0.0).mean == 0.5
    assert posterior(after("s"), 0.0).lower == pytest.approx(0.2236, abs=1e-4)


def test_a_veteran_gone_bad_falls_below_one_half_within_22_failures() -> None:
    """Forgetting makes the past count for less than what happens now."""
    evidence = after("s" * 100)
    assert posterior(evidence, 0.0).lower > 0.9

    failures = 0
    while posterior(evidence, 0.0).lower >= 0.5:
        evidence = with_outcome(evidence, is_success=False, weight=1.0, now=0.0)
        failures += 1

    assert 15 <= failures <= 22


def test_time_leads_back_to_the_prior() -> None:
    """After a half-life an outcome counts half; a clock that goes back forgets nothing and gives nothing."""
    evidence = after("ssss", now=1_000.0)

    half = aged(evidence, 1_000.0 + HALF_LIFE_S)

    assert half.successes == pytest.approx(evidence.successes / 2)
    assert aged(evidence, 0.0) == evidence
    assert posterior(evidence, 1e12).mean == pytest.approx(0.5)


@given(st.text("sf", max_size=60), st.floats(0.1, 10))
def test_an_outcome_moves_the_score_its_own_way(outcomes: str, weight: float) -> None:
    """A failure never raises the mean, a success never lowers it, and the bounds enclose it."""
    before = posterior(after(outcomes), 0.0)
    better = posterior(with_outcome(after(outcomes), is_success=True, weight=weight, now=0.0), 0.0)
    worse = posterior(with_outcome(after(outcomes), is_success=False, weight=weight, now=0.0), 0.0)

    assert worse.mean <= before.mean + 1e-9 <= better.mean + 2e-9
    assert before.lower < before.mean < before.upper


def test_the_rate_grows_with_the_score_between_its_bounds() -> None:
    """Straight from the lowest to the highest, and never past them."""
    assert [rate_of(score, 10, 110) for score in (-1, 0, 0.5, 1, 2)] == [10, 10, 60, 110, 110]


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    """What is refused is told how long to wait, and waiting that long is enough."""
    bucket = TokenBucket(0.0)
    rate = 10.0
    assert [bucket.take(rate, 0.0) for _ in range(int(rate * BURST_S))] == [0.0] * int(rate * BURST_S)

    wait_s = bucket.take(rate, 0.0)

    assert wait_s == pytest.approx(0.1)
    assert bucket.take(rate, wait_s) == 0.0
    assert bucket.take(rate, wait_s) > 0
    assert bucket.take(rate, -100.0) > 0


def test_a_bucket_never_fills_past_its_burst_and_a_slow_one_gives_one_at_least() -> None:
    """An hour of rest buys no flood."""
    bucket = TokenBucket(0.0)
    given_out = sum(bucket.take(5.0, 3600.0) == 0.0 for _ in range(100))
    slow = TokenBucket(0.0)

    assert given_out == 10
    assert slow.take(0.1, 0.0) == 0.0
    assert slow.take(0.1, 0.0) == pytest.approx(10.0)
