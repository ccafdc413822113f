"""Whether a model does worse than it used to, by the outcomes of live traffic; pure."""

from __future__ import annotations

import math
from typing import Final

import msgspec

# Change of the mean that is let pass.
_TOLERANCE: Final = 0.05

# Chance that a cycle of the statistic without a change reaches the threshold.
_FALSE_ALARM: Final = 1e-4

# Least share of bad outcomes believed: a model nobody has complained of yet.
_BAD_MIN: Final = 0.01

# Halvings of the interval in which the exponent of the bound is looked for.
_HALVINGS: Final = 40

# Outcomes before anything can be said.
_ENOUGH: Final = 50


class Drift(msgspec.Struct):
    """Page-Hinkley test for a fall of the mean. n, mean: of the outcomes since the last alarm.

    m_t = sum of (mean_i - x_i - d), M_t = min m_t; a fall where m_t - M_t > h. Source: Page, "Continuous inspection
    schemes", Biometrika 1954; in this form Gama et al., "A survey on concept drift adaptation", ACM CSUR 2014, section 3.2.
    The threshold h keeps the chance that a cycle without a change reaches it under p = 1e-4, by Lundberg's bound exp(-t h)
    for a walk with steps X of negative mean, where t > 0 solves E exp(t X) = 1 (Asmussen & Albrecher, "Ruin Probabilities",
    2010, chapter IV): h = ln(1/p) / t.
    """

    n: int = 0
    mean: float = 0.0
    sum: float = 0.0
    lowest: float = 0.0

    def takes(self, outcome: float) -> bool:
        """Count one outcome, 0..1; True when the mean has fallen, and then it begins anew."""
        self.n += 1
        self.mean += (outcome - self.mean) / self.n
        self.sum += self.mean - outcome - _TOLERANCE
        self.lowest = min(self.lowest, self.sum)
        if self.n < _ENOUGH or self.sum - self.lowest <= self._threshold():
            return False
        self.n, self.mean, self.sum, self.lowest = 0, 0.0, 0.0, 0.0
        return True

    def _threshold(self) -> float:
        bad = min(max(1.0 - self.mean, _BAD_MIN), 1.0 - 2.0 * _TOLERANCE)
        up, down = 1.0 - bad - _TOLERANCE, -bad - _TOLERANCE
        low, high = 0.0, math.log(1.0 / bad) / up
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            if bad * math.exp(middle * up) + (1.0 - bad) * math.exp(middle * down) > 1.0:
                high = middle
            else:
                low = middle
        return math.log(1.0 / _FALSE_ALARM) / high
