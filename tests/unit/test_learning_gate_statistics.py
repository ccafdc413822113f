"""The gate's tests and bounds hold their levels, and see what there is to see."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.learning.gate.bounds import lower_bound, spread, upper_bound
from workers.learning.gate.multiplicity import corrected_alpha
from workers.learning.gate.pairs import Cluster, Pair, clustered, means
from workers.learning.gate.permutation import p_of_gain
from workers.learning.gate.power import detectable_gain, expected_error, independent_items, power_of


def singles(better: int, worse: int, same: int) -> list[Cluster]:
    """Clusters of one item each, whose answers turned right, turned wrong, or stayed."""
    return [Cluster(1.0, 1)] * better + [Cluster(-1.0, 1)] * worse + [Cluster(0.0, 1)] * same


def pair(item_id: str, cluster: str, before: float, after: float) -> Pair:
    """One item of a set."""
    return Pair(item_id=item_id, cluster=cluster, before=before, after=after)


def exact_p(totals: list[float]) -> float:
    """The sign-flip p by trying all signs."""
    wanted = sum(totals)
    flips = [
        sum(sign * one for sign, one in zip(signs, totals, strict=True))
        for signs in product((1, -1), repeat=len(totals))
    ]
    return sum(flip >= wanted - 1e-9 for flip in flips) / len(flips)


# Pairs --------------------------------------------------------------------------------------------------------------


def test_items_of_one_cluster_are_summed_whatever_their_order() -> None:
    """Clusters come in the order of their names, with the sum of their differences."""
    pairs = [pair("1", "b", 0.0, 1.0), pair("2", "a", 1.0, 0.5), pair("3", "b", 0.0, 0.5)]

    assert clustered(pairs) == clustered(pairs[::-1]) == [Cluster(-0.5, 1), Cluster(1.5, 2)]


def test_only_answers_that_cross_one_half_have_turned() -> None:
    """A score that changes on one side of one half is no flip."""
    figures = means([pair("1", "a", 0.2, 0.4), pair("2", "b", 0.2, 0.5), pair("3", "c", 1.0, 0.0)])

    assert (figures.better, figures.worse) == (1, 1)
    assert figures.after - figures.before == pytest.approx(-0.5 / 3)


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan, math.inf])
def test_a_score_outside_its_range_is_refused(score: float) -> None:
    """The item and the field are named."""
    with pytest.raises(ValueError, match="item 7: after is"):
        pair("7", "a", 0.0, score)


# Is there a gain ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "totals",
    [
        [1.0] * 6,
        [1.0] * 7 + [-1.0] * 2,
        [0.5, 0.25, -0.125, 1.0, 0.75, -0.5, 0.375, 0.0625],
        [2.0, -1.0, 3.0, 1.0, -2.0, 4.0, 1.0],
    ],
)
def test_drawn_flips_agree_with_all_flips(totals: list[float]) -> None:
    """The p of random sign flips is that of every sign flip, within what 10,000 draws can tell."""
    drawn = p_of_gain([Cluster(total, 1) for total in totals], 0.05)

    assert drawn == pytest.approx(exact_p(totals), abs=0.012)


def test_no_gain_is_never_significant() -> None:
    """Where the sum is zero, below it, or of nothing, p is 1."""
    assert p_of_gain([], 0.05) == 1.0
    assert p_of_gain(singles(5, 5, 5), 0.05) == 1.0
    assert p_of_gain(singles(0, 40, 5), 0.05) == 1.0


def test_one_seed_gives_one_p() -> None:
    """The test is repeatable, and another seed changes little."""
    clusters = singles(20, 11, 30)

    assert p_of_gain(clusters, 0.05, seed=3) == p_of_gain(clusters, 0.05, seed=3)
    assert p_of_gain(clusters, 0.05, seed=3) == pytest.approx(p_of_gain(clusters, 0.05, seed=4), abs=0.01)


def test_a_level_too_small_for_flips_is_met_by_a_bound_that_never_flatters() -> None:
    """A huge gain is significant even at the hundredth attempt, and the bound lies above the exact p."""
    level = corrected_alpha(0.05, 100)

    assert p_of_gain(singles(120, 0, 0), level) < level
    assert p_of_gain(singles(9, 1, 0), level) >= exact_p([1.0] * 9 + [-1.0])


def test_a_useless_adapter_is_rarely_significant() -> None:
    """Of 400 sets without any gain no more than 5 % and what chance allows are significant at 0.05."""
    rng = random.Random(11)
    found = 0
    for _ in range(400):
        totals = [rng.choice((1.0, 0.0, -1.0)) * rng.choice((1, 2, 3)) for _ in range(40)]
        found += p_of_gain([Cluster(total, 3) for total in totals], 0.05) <= 0.05

    assert 0 < found <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


# How much may have been lost ----------------------------------------------------------------------------------------


def test_bounds_surround_the_mean_and_narrow_with_more_items() -> None:
    """The interval holds the mean, and that of four times as many items is about half as wide."""
    few, many = spread(singles(12, 6, 82)), spread(singles(48, 24, 328))

    assert few.mean == pytest.approx(0.06)
    assert lower_bound(few, 0.05) < few.mean < upper_bound(few, 0.05)
    ratio = (upper_bound(few, 0.05) - lower_bound(few, 0.05)) / (upper_bound(many, 0.05) - lower_bound(many, 0.05))
    assert ratio == pytest.approx(2.0, rel=0.1)


def test_a_set_in_which_nothing_turned_does_not_prove_that_nothing_can() -> None:
    """The bound of n unchanged items is some 3 / n below zero, as the rule of three has it."""
    for items in (60, 300, 1_200):
        bound = lower_bound(spread(singles(0, 0, items)), 0.05)
        assert -5 / items < bound < -2 / items


def test_items_that_turn_together_prove_less() -> None:
    """The same flips in clusters of ten give a lower bound further down."""
    alone = spread(singles(30, 20, 250))
    together = spread([Cluster(10.0, 10)] * 3 + [Cluster(-10.0, 10)] * 2 + [Cluster(0.0, 10)] * 25)

    assert together.mean == pytest.approx(alone.mean)
    assert lower_bound(together, 0.05) < lower_bound(alone, 0.05) - 0.05


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 9)), min_size=1, max_size=40),
    st.sampled_from([0.4, 0.05, 1e-6]),
)
def test_bounds_are_always_in_order(clusters: list[tuple[float, int]], alpha: float) -> None:
    """Whatever the clusters, both ends are numbers within -1..1, and in order."""
    found = spread([Cluster(share * items, items) for share, items in clusters])

    assert -1 <= lower_bound(found, alpha) <= upper_bound(found, alpha) <= 1


def test_a_loss_of_the_margin_is_seldom_let_pass() -> None:
    """Of 1,500 sets that truly lost 3 points, a bound at 0.05 lies above -3 points in no more than about 5 %."""
    rng = random.Random(5)
    passed = 0
    for _ in range(1_500):
        draws = rng.choices((-1.0, 1.0, 0.0), cum_weights=(0.05, 0.07, 1.0), k=300)
        passed += lower_bound(spread([Cluster(one, 1) for one in draws]), 0.05) > -0.03

    assert 0 < passed / 1_500 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1_500)


# Attempts -----------------------------------------------------------------------------------------------------------


def test_all_attempts_together_never_spend_more_than_alpha() -> None:
    """The levels of a million attempts sum to less than alpha, and the first is half of it."""
    assert corrected_alpha(0.05, 1) == 0.025
    assert sum(corrected_alpha(0.05, attempt) for attempt in range(1, 1_000_000)) < 0.05


@pytest.mark.parametrize(
    ("alpha", "attempt", "named"), [(0.0, 1, "alpha is 0.0"), (1.0, 1, "alpha"), (0.05, 0, "attempt is 0")]
)
def test_a_level_that_makes_no_sense_is_refused(alpha: float, attempt: int, named: str) -> None:
    """The field is named with its value."""
    with pytest.raises(ValueError, match=named):
        corrected_alpha(alpha, attempt)


# Power --------------------------------------------------------------------------------------------------------------


def test_power_is_what_simulations_showed() -> None:
    """+10 points with 300 items 0.97 and +5 points with 600 items 0.89 at 0.05; no loss at 300 and 1,200 items."""
    assert power_of(0.1, expected_error(300, 0.1), 0.05) == pytest.approx(0.97, abs=0.01)
    assert power_of(0.05, expected_error(600, 0.05), 0.05) == pytest.approx(0.87, abs=0.03)
    assert power_of(0.03, expected_error(1_200, 0.0), 0.05) == pytest.approx(0.84, abs=0.03)


def test_clusters_are_worth_as_many_items_as_there_are_of_them() -> None:
    """Equal clusters count once each; one large cluster outweighs the others; nothing is worth nothing."""
    assert independent_items([5] * 20) == 20
    assert independent_items([1] * 20) == 20
    assert independent_items([81] + [1] * 19) < 2
    assert independent_items([]) == 0
    assert detectable_gain(0, 0.05, 0.8) == pytest.approx(1.0)
