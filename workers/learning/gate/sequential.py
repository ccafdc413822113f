"""Statements about pairs of outcomes that hold however often one looks: has it become worse, and by how much.

Is the new side worse? A wealth begins at 1; each pair it bets a share l on "the new one was worse": it is multiplied by
1 + l x with x = old - new - tolerance. If the new side is in truth no more than `tolerance` worse, it is not expected to
grow, and by Ville's inequality it ever reaches 1 / alpha with a chance of alpha at most: looking after each pair costs
nothing (Shafer, J. R. Statist. Soc. A 184 (2021); Waudby-Smith and Ramdas, J. R. Statist. Soc. B 86 (2024)). The evidence is
the mean wealth of several fixed l, which is such a wealth again.

How many pairs it takes is known beforehand. One l among K reaches K / alpha after at most (log(K / alpha) + log(1 + l)) / g
pairs on average, g = E log(1 + l x) (Wald's identity, Ann. Math. Statist. 15 (1944); the step past the limit is at most
log(1 + l)), and the mean has then reached 1 / alpha. The promise is for a side that is worse from its first pair on: bets
lost while it was not must be won back, so that a drop after 500 good pairs takes two to three times as many.

For showing, a confidence sequence of a mean: the empirical-Bernstein supermartingale exp(l (S - n m) - psi(l) V) with
psi(l) = -log(1 - l) - l, over several l of either sign (Howard, Ramdas, McAuliffe, Sekhon, Ann. Statist. 49 (2021),
theorem 4). Knows no adapter and no request.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

from workers.learning.gate.power import DISAGREEMENT

# Shares that are bet. The best one is about drop / disagreement; between two of these it costs a tenth more pairs.
_BETS: Final = (0.05, 0.1, 0.2, 0.4, 0.8)

# Bets of the confidence sequence: 2^-0.5, 2^-1.5, ... The smallest is right for some 10^5 outcomes.
_SHOWN_BETS: Final = tuple(2.0 ** -(0.5 + step) for step in range(8))
_PRICES: Final = tuple(-math.log1p(-bet) - bet for bet in _SHOWN_BETS)

# Halvings of an interval within 0..1, so that its ends are good to 2^-18.
_HALVINGS: Final = 18

# A wealth beyond exp(700) is no float.
_LOG_MAX: Final = 700.0


class Outcomes(msgspec.Struct, frozen=True):
    """Sums over outcomes within 0..1, in the order in which they came.

    surprise: sum of squared distances of each from the mean of those before it (and one half).
    """

    n: int = 0
    total: float = 0.0
    surprise: float = 0.0

    @property
    def mean(self) -> float:
        """Of no outcomes: one half."""
        return min(max(self.total / self.n, 0.0), 1.0) if self.n else 0.5

    def plus(self, value: float) -> Outcomes:
        """These and one more. Raises ValueError for one outside 0..1."""
        _check(value, "an outcome")
        distance = value - (0.5 + self.total) / (self.n + 1)
        return Outcomes(self.n + 1, self.total + value, self.surprise + distance * distance)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Means that the outcomes do not speak against: it holds the true one at all times at once, but for alpha."""
        return _end(self, 0.0, alpha), _end(self, 1.0, alpha)

    def log_evidence(self, mean: float) -> float:
        """Logarithm of the evidence against the mean being this."""
        excess = abs(self.total - self.n * mean)
        terms = [
            # cosh(x) = e^x (1 + e^-2x) / 2: a bet of either sign.
            bet * excess - price * self.surprise + math.log1p(math.exp(-2 * bet * excess)) - math.log(2)
            for bet, price in zip(_SHOWN_BETS, _PRICES, strict=True)
        ]
        return _log_mean(terms)


class Watching(msgspec.Struct, frozen=True):
    """Pairs so far. log_wealths: of each bet. differences: (new - old + 1) / 2 of each pair. `begin` makes the first."""

    tolerance: float
    log_wealths: tuple[float, ...]
    differences: Outcomes = Outcomes()

    @property
    def pairs(self) -> int:
        return self.differences.n

    @property
    def mean_difference(self) -> float:
        """Mean of new - old; 0 of no pairs."""
        return 2 * self.differences.mean - 1

    @property
    def evidence(self) -> float:
        """E-value that the new side is worse by more than the tolerance: 1 at first."""
        return math.exp(min(_log_mean(self.log_wealths), _LOG_MAX))

    def plus(self, new: float, old: float) -> Watching:
        """With one more pair of outcomes. Raises ValueError for one outside 0..1."""
        _check(new, "the new side's outcome")
        _check(old, "the old side's outcome")
        return Watching(
            self.tolerance,
            tuple(
                wealth + math.log1p(share * (old - new - self.tolerance))
                for wealth, share in zip(self.log_wealths, _shares(self.tolerance), strict=True)
            ),
            self.differences.plus((new - old + 1) / 2),
        )


def begin(tolerance: float = 0.0) -> Watching:
    """No pairs yet. tolerance: by how much the new side may be worse, 0 to below 1. Raises ValueError."""
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}, it must be at least 0 and below 1")
    return Watching(tolerance, (0.0,) * len(_BETS))


def is_worse(watching: Watching, alpha: float) -> bool:
    """True when the new side is worse by more than the tolerance, wrongly with a chance of alpha at most, ever."""
    return watching.evidence >= 1 / alpha


def interval(watching: Watching, alpha: float) -> tuple[float, float]:
    """Confidence sequence of the mean of new - old, within -1..1."""
    low, high = watching.differences.interval(alpha)
    return 2 * low - 1, 2 * high - 1


def promised_pairs(
    drop: float, *, alpha: float, disagreement: float = DISAGREEMENT, tolerance: float = 0.0
) -> int | None:
    """Pairs after which a drop is found, on average at most; None where the mathematics promises nothing.

    drop: of the mean. disagreement: share of pairs that differ without any drop, half of them either way. It holds for
    independent outcomes that are right or wrong.
    """
    won = min(disagreement / 2, max((1 - drop) / 2, 0.0))
    lost = min(won + drop, 1.0)
    promises = [
        (math.log(len(_BETS) / alpha) + math.log1p(share * (1 - tolerance))) / growth
        for share in _shares(tolerance)
        if (
            growth := lost * math.log1p(share * (1 - tolerance))
            + won * math.log1p(-share * (1 + tolerance))
            + (1 - lost - won) * math.log1p(-share * tolerance)
        )
        > 0
    ]
    return math.ceil(min(promises)) if promises else None


def _shares(tolerance: float) -> tuple[float, ...]:
    """Bets that cannot lose everything: x is at least -(1 + tolerance)."""
    return tuple(bet / (1 + tolerance) for bet in _BETS)


def _end(outcomes: Outcomes, outside: float, alpha: float) -> float:
    """The end of the interval that holds the mean and reaches towards `outside` at most; rounded outwards."""
    limit, inside = -math.log(alpha), outcomes.mean
    if outcomes.log_evidence(outside) < limit:
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if outcomes.log_evidence(middle) >= limit:
            outside = middle
        else:
            inside = middle
    return outside


def _log_mean(logs: Iterable[float]) -> float:
    values = list(logs)
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values) / len(values))


def _check(value: float, name: str) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}, it must be within 0..1")
