"""Trust as a Beta posterior over outcomes, with forgetting. Pure: knows no store and no clock.

Each success adds its weight to `successes`, each failure to `failures`, after what was there has been multiplied by
FORGETTING; time halves both every HALF_LIFE_S. With the prior Beta(1, 1) the probability that the next outcome is a
success is distributed as Beta(1 + successes, 1 + failures). The score is its 5 % quantile: what is as good as certain.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

# What an outcome leaves of those before it: about the last fifty count. Measured: somebody reliable who goes bad falls
# under 0.5 after 22 failures (a plain ratio of successes needs hundreds), a newcomer with one success scores 0.22.
FORGETTING: Final = 0.98

# Seconds after which an outcome counts half: two months. Nobody stays trusted, or distrusted, for what is long past.
HALF_LIFE_S: Final = 60 * 86_400.0

# Successes and failures before any outcome: every probability is equally likely (Bayes and Laplace).
PRIOR: Final = 1.0

# The quantiles reported.
LOWER: Final = 0.05
UPPER: Final = 0.95


class Evidence(NamedTuple):
    """Weighted outcomes, forgotten up to `at` (epoch seconds)."""

    successes: float
    failures: float
    at: float


class Posterior(NamedTuple):
    """How likely a success is: its mean and its 5 % and 95 % quantiles, each from 0 to 1."""

    mean: float
    lower: float
    upper: float


NOTHING: Final = Evidence(0.0, 0.0, 0.0)


def aged(evidence: Evidence, now: float) -> Evidence:
    """The evidence as it counts now. A clock that went back forgets nothing."""
    left = 0.5 ** (max(now - evidence.at, 0.0) / HALF_LIFE_S)
    return Evidence(evidence.successes * left, evidence.failures * left, max(now, evidence.at))


def with_outcome(evidence: Evidence, *, is_success: bool, weight: float, now: float) -> Evidence:
    """The evidence after one more outcome."""
    before = aged(evidence, now)
    # What weighs double also lets go of twice as much, or a heavy outcome would count beyond its weight.
    left = FORGETTING**weight
    successes, failures = before.successes * left, before.failures * left
    if is_success:
        return Evidence(successes + weight, failures, before.at)
    return Evidence(successes, failures + weight, before.at)


def posterior(evidence: Evidence, now: float) -> Posterior:
    """The distribution of the probability of success, as it is now."""
    counted = aged(evidence, now)
    a, b = PRIOR + counted.successes, PRIOR + counted.failures
    return Posterior(a / (a + b), beta_quantile(a, b, LOWER), beta_quantile(a, b, UPPER))


# The Beta distribution ------------------------------------------------------------------------------------------

# Where the continued fraction and the search for a quantile stop: far below what anybody reads of a score.
_PRECISION: Final = 1e-12

# Stands for zero in the denominators of the continued fraction.
_TINY: Final = 1e-300

# Steps of the continued fraction, at most; it takes about the square root of the larger parameter.
_STEPS: Final = 10_000


def beta_quantile(a: float, b: float, probability: float) -> float:
    """The x at which Beta(a, b) has `probability` below it; a and b above 0, x within 1e-10.

    Newton's method kept inside a bracket that each step narrows, halving it where Newton leaves it.
    """
    low, high = 0.0, 1.0
    x = a / (a + b)
    for _ in range(200):
        excess = beta_below(a, b, x) - probability
        if excess > 0:
            high = x
        else:
            low = x
        density = math.exp((a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - _log_beta(a, b)) if 0 < x < 1 else 0.0
        step = x - excess / density if density > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - x) < _PRECISION or high - low < _PRECISION:
            return following
        x = following
    return x


def beta_below(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b): how much of Beta(a, b) lies below x.

    Source: the continued fraction of DLMF 8.17.22, with the symmetry of DLMF 8.17.4 where it converges faster.
    """
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_below(b, a, 1.0 - x)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / a
    return front * _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """1 / (1 + d1 / (1 + d2 / (1 + ...))) with the d of DLMF 8.17.23.

    Evaluated from the front by Lentz's method as Thompson and Barnett modified it (J. Comput. Phys. 64, 1986).
    """
    numerator = 1.0
    denominator = 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1))
    value = denominator
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for d in (even, odd):
            denominator = 1.0 / _not_zero(1.0 + d * denominator)
            numerator = _not_zero(1.0 + d / numerator)
            change *= denominator * numerator
        value *= change
        if abs(change - 1.0) < _PRECISION:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
