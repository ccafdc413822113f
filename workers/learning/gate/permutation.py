"""The paired sign-flip test over clusters: is there a gain at all; knows no margin and no verdict."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

from workers.learning.gate.pairs import Cluster

# Sums of clusters are rounded to a grid, so that equal ones can be flipped together: to at most so many steps from zero.
# 64 steps of 1/64 of an item hold sums of answers right or wrong exactly. Fewer than 8 would hide small differences.
_STEPS_MAX: Final = 64
_STEPS_MIN: Final = 8

# Flips drawn: enough to tell a p of alpha from its double. Draws of random bits in all, one for each size and flip: 0.3 s.
_FLIPS_MIN: Final = 9_999
_PER_ALPHA: Final = 20
_DRAWS_MAX: Final = 3_000_000


def p_of_gain(clusters: Sequence[Cluster], alpha: float, *, seed: int = 0) -> float:
    """Chance of a sum of differences at least this large, did it not matter which side an answer came from.

    Under that hypothesis each cluster's sum could as well have had the other sign (Fisher, The Design of Experiments,
    1935, section 21; by clusters, since items of one fact are not independent). The p is (hits + 1) / (flips + 1) over
    random flips, which holds its level exactly (Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010), 39). alpha is
    what it will be held against: where it is too small for flips to resolve (an attempt past the thirtieth), the answer is
    Hoeffding's bound exp(-T^2 / (2 sum s^2)), J. Am. Stat. Assoc. 58 (1963), theorem 2, which is never below the exact p.
    """
    flips = max(_FLIPS_MIN, math.ceil(_PER_ALPHA / alpha))
    finest = min(_DRAWS_MAX // flips, _STEPS_MAX)
    steps = _stepped(clusters, max(finest, _STEPS_MIN))
    total = sum(steps)
    sizes = Counter(abs(step) for step in steps if step)
    if total <= 0:
        # More than half of all flips reach it.
        return 1.0
    if finest < _STEPS_MIN:
        return math.exp(-total * total / (2 * sum(size * size * count for size, count in sizes.items())))
    return (_hits(sizes, total, flips, random.Random(seed)) + 1) / (flips + 1)


def _stepped(clusters: Sequence[Cluster], finest: int) -> list[int]:
    """Sums as whole steps of a grid, at most `finest` from zero, rounded alike on both sides of it."""
    largest = max((abs(cluster.total) for cluster in clusters), default=0.0)
    unit = 1 / _STEPS_MAX
    while largest > finest * unit:
        unit *= 2
    return [int(math.copysign(math.floor(abs(cluster.total) / unit + 0.5), cluster.total)) for cluster in clusters]


def _hits(sizes: Counter[int], total: int, flips: int, generator: random.Random) -> int:
    """How many random flips of signs sum to `total` or more. Of n equal sizes, as many stay positive as n bits are set."""
    sums = [0] * flips
    for size, count in sorted(sizes.items()):
        twice, bits, all_negative = 2 * size, generator.getrandbits, size * count
        sums = [before + twice * bits(count).bit_count() - all_negative for before in sums]
    return sum(one >= total for one in sums)
