"""Means and differences of outcomes within 0..1 whose certainty holds however often one looks; knows no test and no unit.

The evidence against "the mean is m" is a wealth K(m) that begins at 1 and, were m true, is not expected to grow. By
Ville's inequality it ever reaches 1/alpha with a chance of alpha at most, so the m with K(m) < 1/alpha are a confidence
sequence: intervals that all hold at once, at every moment (Waudby-Smith and Ramdas, J. R. Statist. Soc. B 86 (2024),
arXiv:2010.09686).

K is a mixture that needs three sums only. Its first part is the likelihood ratio of Bernoulli outcomes with a Beta(1/2,
1/2) prior on the mean (Robbins, Ann. Math. Statist. 41 (1970)); it also holds for any outcome within 0..1, since the
ratio is convex in the outcome. Outcomes that are not only 0 and 1 get half of the mixture from the empirical-Bernstein
supermartingale exp(l (S - n m) - psi(l) V), psi(l) = -log(1 - l) - l, for several l of either sign (Howard, Ramdas,
McAuliffe, Sekhon, Ann. Statist. 49 (2021), Theorem 4): it is the sharper one where outcomes vary little.

The evidence against "b's mean is a's mean + d" is the least product K_a(m) K_b(m + d) over all m. log K is convex and
least at the observed mean, so the product is convex too, its minimum lies between the means, and intervals are found by
halving. Ends are rounded outwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

import msgspec

Kind = Literal["binary", "bounded"]
_Claim = Callable[[float], bool]

# Bets of the empirical-Bernstein part: 2^-0.5, 2^-1.5, ... The smallest is right for some 10^6 outcomes.
_BETS: Final[tuple[float, ...]] = tuple(2.0 ** -(0.5 + step) for step in range(10))
_PRICES: Final = tuple(-math.log1p(-bet) - bet for bet in _BETS)
_LOG_BETS: Final = math.log(len(_BETS))

# Means nearer to 0 or 1 count as this far away: there the evidence may be infinite, which a rounding error must not make.
_EDGE: Final = 1e-12

# Halvings of an interval no wider than 2, so that its ends are good to 2^-17.
_HALVINGS: Final = 18

# Steps of the golden section: the minimum is flat, so its value is good to the square of 0.618^24.
_SECTIONS: Final = 24
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


class Outcomes(msgspec.Struct, frozen=True):
    """Sums over the outcomes of one variant, in the order in which they came.

    surprise: sum of squared distances of each from the mean of those before it (and one half).
    """

    kind: Kind
    n: int = 0
    total: float = 0.0
    surprise: float = 0.0

    @property
    def mean(self) -> float:
        """Of no outcomes: one half."""
        return min(max(self.total / self.n, 0.0), 1.0) if self.n else 0.5

    def plus(self, value: float) -> Outcomes:
        """These and one more, within 0..1."""
        expected = (0.5 + self.total) / (self.n + 1)
        return Outcomes(
            self.kind, self.n + 1, self.total + value, self.surprise + (value - expected) * (value - expected)
        )

    def log_wealth(self, mean: float) -> float:
        """log K(mean): the evidence against a mean within 0..1, 0 for none."""
        likelihood = self._log_likelihood_ratio(mean)
        if self.kind == "binary" or self.n == 0:
            return likelihood
        return _log_sum(likelihood, self._log_bernstein(mean)) - math.log(2)

    def _log_likelihood_ratio(self, mean: float) -> float:
        # Sums of fractions may be off by a rounding error.
        hits, misses = max(self.total, 0.0), max(self.n - self.total, 0.0)
        near = min(max(mean, _EDGE), 1 - _EDGE)
        log_mixed = math.lgamma(hits + 0.5) + math.lgamma(misses + 0.5) - math.lgamma(self.n + 1) - math.log(math.pi)
        return log_mixed - hits * math.log(near) - misses * math.log1p(-near)

    def _log_bernstein(self, mean: float) -> float:
        excess = abs(self.total - self.n * mean)
        # cosh(x) = e^x (1 + e^-2x) / 2: a bet of either sign.
        terms = [
            bet * excess - price * self.surprise + math.log1p(math.exp(-2 * bet * excess)) - math.log(2)
            for bet, price in zip(_BETS, _PRICES, strict=True)
        ]
        top = max(terms)
        return top + math.log(sum(math.exp(term - top) for term in terms)) - _LOG_BETS


def mean_interval(outcomes: Outcomes, alpha: float) -> tuple[float, float]:
    """The means that the outcomes do not speak against: a confidence sequence at level 1 - alpha."""
    limit = -math.log(alpha)

    def is_out(mean: float) -> bool:
        return outcomes.log_wealth(mean) >= limit

    return _end(outcomes.mean, 0.0, is_out), _end(outcomes.mean, 1.0, is_out)


def difference_interval(first: Outcomes, second: Outcomes, alpha: float) -> tuple[float, float]:
    """The same for second's mean - first's mean."""

    def is_out(difference: float) -> bool:
        return excludes(first, second, difference, alpha)

    middle = second.mean - first.mean
    return _end(middle, -1.0, is_out), _end(middle, 1.0, is_out)


def excludes(first: Outcomes, second: Outcomes, difference: float, alpha: float) -> bool:
    """True when it is certain, at level 1 - alpha, that second's mean - first's mean is not `difference`."""
    limit = -math.log(alpha)
    low, high = _bracket(first, second, difference)
    middle = _middle(first, second, difference, low, high)
    # Any mean gives an upper bound of the evidence: mostly this is enough to say no.
    if first.log_wealth(middle) + second.log_wealth(middle + difference) < limit:
        return False
    return log_evidence(first, second, difference) >= limit


def log_evidence(first: Outcomes, second: Outcomes, difference: float) -> float:
    """Logarithm of the evidence against second's mean - first's mean being `difference`, which lies within -1..1.

    exp(-log_evidence) is a p-value that is valid at every moment.
    """

    def wealth(mean: float) -> float:
        return first.log_wealth(mean) + second.log_wealth(mean + difference)

    low, high = _bracket(first, second, difference)
    ends = min(wealth(low), wealth(high), wealth(_middle(first, second, difference, low, high)))
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = wealth(left), wealth(right)
    for _ in range(_SECTIONS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = wealth(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = wealth(right)
    return min(ends, at_left, at_right)


def p_value(first: Outcomes, second: Outcomes, comparisons: int) -> float:
    """Of "no difference", valid at any time, Bonferroni-corrected for that many comparisons."""
    return min(1.0, comparisons * math.exp(-max(log_evidence(first, second, 0.0), 0.0)))


def _bracket(first: Outcomes, second: Outcomes, difference: float) -> tuple[float, float]:
    """Where the mean of `first` lies that makes `difference` likeliest: between what either says of it."""
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)
    ends = sorted((first.mean, second.mean - difference))
    return min(max(ends[0], low), high), min(max(ends[1], low), high)


def _middle(first: Outcomes, second: Outcomes, difference: float, low: float, high: float) -> float:
    """The mean of both together: near the least evidence, and for 0, 1 and no difference exactly there."""
    n = first.n + second.n
    if n == 0:
        return (low + high) / 2
    return min(max((first.total + second.total - second.n * difference) / n, low), high)


def _end(inside: float, outside: float, is_out: _Claim) -> float:
    """The end of an interval that holds `inside` and reaches towards `outside` at most."""
    if not is_out(outside):
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if is_out(middle) else (middle, outside)
    return outside


def _log_sum(first: float, second: float) -> float:
    top = max(first, second)
    return top + math.log(math.exp(first - top) + math.exp(second - top))
