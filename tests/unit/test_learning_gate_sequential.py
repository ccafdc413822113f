"""The watch may look after every pair: it seldom cries wolf, and finds a drop as soon as it promised."""

from __future__ import annotations

import math
import random
import statistics

import msgspec
import pytest

from workers.learning.gate.sequential import Outcomes, Watching, begin, interval, is_worse, promised_pairs


def pairs_until_found(
    rng: random.Random, drop: float, limit: int, *, alpha: float = 0.05, tolerance: float = 0.0
) -> int:
    """Pairs until a drop was found, `limit` when it was not; 15 % of the pairs differ for no reason."""
    watching = begin(tolerance)
    for count in range(1, limit):
        luck = rng.random()
        new, old = (0.0, 1.0) if luck < 0.075 + drop else (1.0, 0.0) if luck < 0.15 + drop else (1.0, 1.0)
        watching = watching.plus(new, old)
        if is_worse(watching, alpha):
            return count
    return limit


@pytest.mark.parametrize("drop", [0.1, 0.3])
def test_a_drop_is_found_within_the_promised_pairs(drop: float) -> None:
    """Over 60 runs the mean number of pairs is below the promise, and not by so much that it says nothing."""
    rng = random.Random(2)
    promised = promised_pairs(drop, alpha=0.05)
    assert promised is not None

    found = statistics.fmean(pairs_until_found(rng, drop, 20 * promised) for _ in range(60))

    assert promised / 3 < found <= promised


def test_looking_always_seldom_cries_wolf() -> None:
    """Of 150 watches over 600 pairs without a drop no more than 5 % and what chance allows are alarmed."""
    rng = random.Random(3)

    alarms = sum(pairs_until_found(rng, 0.0, 600) < 600 for _ in range(150))

    assert alarms <= 150 * 0.05 + 3 * math.sqrt(150 * 0.05 * 0.95)


def test_a_tolerated_drop_is_let_be() -> None:
    """A drop of 10 points is found, unless 15 points are tolerated; then nothing is promised of it either."""
    assert pairs_until_found(random.Random(4), 0.1, 1_500) < 1_500
    assert pairs_until_found(random.Random(4), 0.1, 1_500, tolerance=0.15) == 1_500
    assert promised_pairs(0.1, alpha=0.05, tolerance=0.15) is None
    assert promised_pairs(0.0, alpha=0.05) is None


def test_evidence_begins_at_one_and_gains_count_against_it() -> None:
    """A better new side lowers the evidence, a worse one raises it, an equal one changes nothing."""
    assert begin().evidence == pytest.approx(1.0)
    assert begin().plus(1.0, 0.0).evidence < 1 < begin().plus(0.0, 1.0).evidence
    assert begin().plus(0.5, 0.5).evidence == pytest.approx(1.0)


def test_endless_evidence_stays_a_number() -> None:
    """After thousands of lost pairs the evidence is huge and finite, and the interval far below zero."""
    watching = begin()
    for _ in range(3_000):
        watching = watching.plus(0.0, 1.0)

    assert math.isfinite(watching.evidence)
    assert is_worse(watching, 1e-9)
    low, high = interval(watching, 0.05)
    assert low == -1.0
    assert high < -0.9
    assert watching.pairs == 3_000
    assert watching.mean_difference == -1.0


def test_a_watch_goes_on_from_where_it_was_kept() -> None:
    """As JSON and back it has the same evidence, to the last bit."""
    watching = begin(0.02).plus(0.0, 1.0).plus(0.7, 0.2)

    again = msgspec.json.decode(msgspec.json.encode(watching), type=Watching)

    assert again == watching
    assert again.plus(1.0, 0.0).evidence == watching.plus(1.0, 0.0).evidence


@pytest.mark.parametrize(
    ("new", "old", "named"), [(1.5, 0.0, "new side's outcome is 1.5"), (0.0, math.nan, "old side's outcome is nan")]
)
def test_an_outcome_outside_its_range_is_refused(new: float, old: float, named: str) -> None:
    """The side and the value are named."""
    with pytest.raises(ValueError, match=named):
        begin().plus(new, old)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, math.nan])
def test_a_tolerance_that_makes_no_sense_is_refused(tolerance: float) -> None:
    """The value and the range are named."""
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        begin(tolerance)


def test_a_confidence_sequence_holds_the_mean_at_all_times() -> None:
    """Of 60 sequences of graded outcomes no more than chance allows ever leave out the true mean."""
    rng = random.Random(6)
    left_out = 0
    for _ in range(60):
        outcomes, missed = Outcomes(), False
        for count in range(1, 301):
            outcomes = outcomes.plus(min(max(rng.gauss(0.6, 0.1), 0.0), 1.0))
            if count % 10 == 0:
                low, high = outcomes.interval(0.05)
                missed = missed or not low <= 0.6 <= high
        left_out += missed

    assert left_out <= 60 * 0.05 + 3 * math.sqrt(60 * 0.05 * 0.95)
    assert high - low < 0.12


def test_nothing_seen_is_everything_possible() -> None:
    """Without outcomes the interval is the whole range."""
    assert Outcomes().interval(0.05) == (0.0, 1.0)
    assert interval(begin(), 0.05) == (-1.0, 1.0)
    assert begin().mean_difference == 0.0
