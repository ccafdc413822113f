"""Durations in constant memory: quantiles over the last minutes, and counts since the start as Prometheus wants them."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from schemas.metrics import DOUBLING_EXPONENTS

# Quantiles describe between one and two of these spans, so that an old incident leaves the picture.
WINDOW_S: Final = 150.0

# Four buckets for every doubling: a quantile is right within 25 %, from 1 microsecond to 2**40 (12 days).
_STEPS: Final = 4
_BUCKETS: Final = 40 * _STEPS


def _bucket(micros: int) -> int:
    if micros < _STEPS:
        return max(micros, 0)
    exponent = micros.bit_length() - 1
    return min(exponent * _STEPS + ((micros >> (exponent - 2)) & (_STEPS - 1)), _BUCKETS - 1)


# Buckets of the first milliseconds, which nearly every request takes: a look-up instead of arithmetic.
_FIRST: Final = tuple(map(_bucket, range(8192)))


def _upper_s(bucket: int) -> float:
    if bucket < _STEPS:
        return (bucket + 1) / 1e6
    exponent, step = divmod(bucket, _STEPS)
    return (2.0**exponent) * (1 + (step + 1) / _STEPS) / 1e6


class LatencyWindow:
    """Counts of durations in exponential buckets since `now`; the last spans are what was added since two marks.

    `seconds` is the sum of all durations.
    """

    __slots__ = ("_before", "_counts", "_mark", "_rotated_at", "seconds")

    def __init__(self, now: float) -> None:
        self.seconds = 0.0
        self._counts = [0] * _BUCKETS
        # Counts at the last rotation and at the one before it.
        self._mark = [0] * _BUCKETS
        self._before = [0] * _BUCKETS
        self._rotated_at = now

    def record(self, seconds: float, now: float) -> None:
        """Count one duration."""
        if now - self._rotated_at > WINDOW_S:
            self._rotate(now)
        micros = int(seconds * 1e6)
        self.seconds += seconds
        self._counts[_FIRST[micros] if 0 <= micros < 8192 else _bucket(micros)] += 1

    def counts(self) -> tuple[int, ...]:
        """Since the start: one count for each of `schemas.metrics.DOUBLINGS`, the last for what is above them."""
        starts = (0, *(exponent * _STEPS for exponent in DOUBLING_EXPONENTS), _BUCKETS)
        return tuple(sum(self._counts[low:high]) for low, high in pairwise(starts))

    def quantile(self, share: float, now: float) -> float | None:
        """Upper bound in seconds of the `share` quantile (0..1); None when nothing was recorded lately."""
        if now - self._rotated_at > WINDOW_S:
            self._rotate(now)
        counts = [count - before for count, before in zip(self._counts, self._before, strict=True)]
        rank = share * sum(counts)
        if not rank:
            return None
        seen = 0
        for bucket, count in enumerate(counts):
            seen += count
            if seen >= rank:
                return _upper_s(bucket)
        return None

    def _rotate(self, now: float) -> None:
        is_stale = now - self._rotated_at > 2 * WINDOW_S
        self._before = list(self._counts) if is_stale else self._mark
        self._mark = list(self._counts)
        self._rotated_at = now
