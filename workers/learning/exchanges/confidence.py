"""How sure a model was of an answer, beside what is usual for it; pure."""

from __future__ import annotations

import bisect
from collections import deque
from typing import Final

# Answers that say what is usual, and how many it takes.
_LATEST: Final = 500
_ENOUGH: Final = 30

# Answers between two looks at the median and the spread: a look takes 150 microseconds, and they hardly move.
_LOOK_EVERY: Final = 20

# From the median absolute deviation to a standard deviation, for normal data.
_TO_SIGMA: Final = 1.4826

# Least spread believed, in nats per token: a model that always says the same would find everything else remarkable.
_SPREAD_MIN: Final = 0.02

# Where a deviation begins to count, and where it counts fully; in between in a straight line, so that 3.5 counts half.
# Source of 3.5: Iglewicz & Hoaglin, "How to Detect and Handle Outliers", 1993, section 3.5.
_BEGINS: Final = 2.0
_FULL: Final = 5.0

# The lowest of many tokens is low by chance; it counts half of what the mean does.
_MIN_SHARE: Final = 0.5


class Usual:
    """What is usual lately of one number."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []
        self._median = self._spread = 0.0
        self._added = _LOOK_EVERY

    def add(self, value: float) -> None:
        """Count one more; the oldest goes."""
        self._latest.append(value)
        bisect.insort(self._sorted, value)
        self._added += 1
        if len(self._latest) > _LATEST:
            gone = self._latest.popleft()
            del self._sorted[bisect.bisect_left(self._sorted, gone)]

    def below(self, value: float) -> float:
        """By how many robust standard deviations `value` is below the median; 0 while too little is known.

        (median - value) / (1.4826 * median absolute deviation).
        """
        if len(self._sorted) < _ENOUGH:
            return 0.0
        if self._added >= _LOOK_EVERY:
            self._added = 0
            median = self._median = self._sorted[len(self._sorted) // 2]
            deviations = sorted([abs(each - median) for each in self._sorted])
            self._spread = max(_TO_SIGMA * deviations[len(deviations) // 2], _SPREAD_MIN)
        return (self._median - value) / self._spread


class Confidence:
    """The answers of one model: mean and lowest log-probability of their tokens."""

    def __init__(self) -> None:
        self._means = Usual()
        self._lowest = Usual()

    def add(self, mean_logprob: float, min_logprob: float | None) -> None:
        """Count one answer towards what is usual."""
        self._means.add(mean_logprob)
        if min_logprob is not None:
            self._lowest.add(min_logprob)

    def doubt(self, mean_logprob: float, min_logprob: float | None) -> float:
        """How unusually unsure an answer was, 0..1. Judged before it is counted."""
        doubt = _strength(self._means.below(mean_logprob))
        if min_logprob is not None:
            doubt = max(doubt, _MIN_SHARE * _strength(self._lowest.below(min_logprob)))
        return doubt


def _strength(deviation: float) -> float:
    return min(max((deviation - _BEGINS) / (_FULL - _BEGINS), 0.0), 1.0)
