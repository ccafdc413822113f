"""Means with confidence intervals, quantiles and paired differences; knows no model and no suite.

Everything is deterministic: no resampling. Sources: E. B. Wilson, JASA 22 (1927), for shares; Student's t for means;
W. G. Cochran, Sampling Techniques, 3rd ed. (1977), section 6.4, for ratios; A. Agresti and Y. Min, Statistics in
Medicine 24 (2005), for differences of paired shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import Final, NamedTuple

# Of the incomplete beta function: relative size of the last term, and terms at most (some hundred suffice at 10^6).
_EPSILON: Final = 1e-14
_TERMS_MAX: Final = 10_000

# What a fraction's denominator is kept away from zero by (Lentz's method).
_TINY: Final = 1e-300


class Interval(NamedTuple):
    """mean within low..high, of n values; `method` names the interval."""

    mean: float
    low: float
    high: float
    n: int
    method: str


def mean_interval(values: Sequence[float], confidence: float, *, bounds: tuple[float, float] | None) -> Interval:
    """Interval of the mean of independent values, at least one: Wilson's where all are 0 or 1, else Student's.

    bounds: what a value can be at least and at most; the interval does not leave them.
    """
    if all(value in (0.0, 1.0) for value in values) and bounds == (0.0, 1.0):
        return wilson(int(sum(values)), len(values), confidence)
    return student(values, confidence, bounds=bounds)


def wilson(successes: int, n: int, confidence: float) -> Interval:
    """Wilson's score interval of a share, n >= 1."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    spread = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula is exact, and rounding must not hide it.
    low = 0.0 if successes == 0 else max(centre - half, 0.0)
    high = 1.0 if successes == n else min(centre + half, 1.0)
    return Interval(share, low, high, n, "Wilson")


def student(values: Sequence[float], confidence: float, *, bounds: tuple[float, float] | None) -> Interval:
    """Student's interval of a mean. One value alone has none: then it is `bounds`, or the value where there are none."""
    mean = fmean(values)
    if len(values) == 1:
        low, high = bounds or (mean, mean)
        return Interval(mean, low, high, 1, "one case: unknown")
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, *_within(mean - half, mean + half, bounds), len(values), "Student t")


def ratio_interval(totals: Sequence[float], sizes: Sequence[float], confidence: float) -> Interval:
    """Interval of sum(totals) / sum(sizes) over independent pairs, sizes above 0: Cochran's ratio estimator."""
    n = len(totals)
    ratio = sum(totals) / sum(sizes)
    if n == 1:
        return Interval(ratio, ratio, ratio, 1, "one case: unknown")
    residuals = [total - ratio * size for total, size in zip(totals, sizes, strict=True)]
    error = math.sqrt(n / (n - 1) * sum(residual * residual for residual in residuals)) / sum(sizes)
    half = t_quantile((1 + confidence) / 2, n - 1) * error
    return Interval(ratio, ratio - half, ratio + half, n, "ratio, Student t")


def paired_difference(
    first: Sequence[float], second: Sequence[float], confidence: float, *, bounds: tuple[float, float] | None
) -> Interval:
    """Interval of mean(first - second), value by value: Agresti-Min's where all are 0 or 1, else Student's."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if bounds == (0.0, 1.0) and all(value in (0.0, 1.0) for value in (*first, *second)):
        return _agresti_min(differences, confidence)
    reach = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    interval = student(differences, confidence, bounds=reach)
    return interval._replace(method=f"paired {interval.method}" if interval.n > 1 else interval.method)


def _agresti_min(differences: Sequence[float], confidence: float) -> Interval:
    """Wald's interval after half a case was added to each of the four outcomes of a pair; its centre is the estimate's."""
    n = len(differences)
    won, lost = differences.count(1.0), differences.count(-1.0)
    total = n + 2
    shift = (won - lost) / total
    error = math.sqrt((won + lost + 1) - (won - lost) ** 2 / total) / total
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return Interval((won - lost) / n, max(shift - half, -1.0), min(shift + half, 1.0), n, "paired, Agresti-Min")


def _within(low: float, high: float, bounds: tuple[float, float] | None) -> tuple[float, float]:
    return (low, high) if bounds is None else (max(low, bounds[0]), min(high, bounds[1]))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value that at least `share` of them do not exceed. `ordered` ascends, not empty."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def t_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t with `freedom` degrees stays below with `probability`, which lies within 0.5..1."""
    low, high = 0.0, 2.0
    while t_probability(high, freedom) < probability and high < 1e12:
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_probability(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_probability(value: float, freedom: int) -> float:
    """Chance that Student's t with `freedom` degrees is below `value`, which is not negative."""
    tail = incomplete_beta(freedom / 2, 0.5, freedom / (freedom + value * value))
    return 1 - tail / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (NIST DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _fraction(a, b, x))


def _fraction(a: float, b: float, x: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)) of DLMF 8.17.22, by Lentz's method."""
    value, numerator, denominator = 1.0, 1.0, 0.0
    for index in range(1, _TERMS_MAX):
        half = index // 2
        if index % 2:
            step = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            step = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        denominator = 1 / _not_zero(1 + step * denominator)
        numerator = _not_zero(1 + step / numerator)
        change = numerator * denominator
        value *= change
        if abs(change - 1) < _EPSILON:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
