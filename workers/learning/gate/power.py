"""What a set of items can show, before anything is trained on it or after; knows no items, only how many."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import Final

_NORMAL: Final = NormalDist()

# Chance with which a test should find what it looks for: the usual convention (J. Cohen, Statistical Power Analysis, 1988).
POWER: Final = 0.8

# Share of answers that turn, half of them for the worse, without any gain. With it the formula below gives the power that
# simulations showed: 0.97 for a gain of 10 points with 300 items, 0.89 for 5 points with 600, at a level of 0.05.
DISAGREEMENT: Final = 0.15

# Halvings of 0..1 in the search for a gain: good to 2^-30.
_HALVINGS: Final = 30


def independent_items(cluster_sizes: Iterable[int]) -> float:
    """How many independent items clusters of these sizes are worth, if all of one cluster turn together.

    (sum m)^2 / sum m^2: Kish's design effect 1 + (m - 1) rho (Survey Sampling, 1965, section 8.2) at its worst, rho = 1.
    """
    sizes = list(cluster_sizes)
    return sum(sizes) ** 2 / sum(size * size for size in sizes) if sizes else 0.0


def expected_error(items: float, gain: float, disagreement: float = DISAGREEMENT) -> float:
    """Standard error of the mean difference of that many independent items, answers being right or wrong.

    A share of disagreement / 2 turns wrong, that and `gain` turns right: variance disagreement + |gain| - gain^2 (the
    multinomial of McNemar's test, Psychometrika 12 (1947)).
    """
    return math.sqrt(max(min(disagreement + abs(gain), 1.0) - gain * gain, 0.0) / items) if items else math.inf


def power_of(effect: float, error: float, alpha: float) -> float:
    """Chance that a one-sided test at level alpha sees `effect`, with that standard error: Phi(effect / error - z)."""
    if error <= 0:
        return 1.0 if effect > 0 else 0.0
    return _NORMAL.cdf(effect / error - _NORMAL.inv_cdf(1 - alpha))


def seen_effect(error: float, alpha: float, power: float) -> float:
    """The effect that a test at level alpha sees with a chance of `power`, with that standard error; 1 at most."""
    return min((_NORMAL.inv_cdf(1 - alpha) + _NORMAL.inv_cdf(power)) * error, 1.0)


def detectable_gain(items: float, alpha: float, power: float) -> float:
    """The smallest gain that is seen with a chance of `power`; 1 where none is."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if power_of(middle, expected_error(items, middle), alpha) >= power:
            high = middle
        else:
            low = middle
    return high
