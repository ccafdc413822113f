"""Arithmetic of a transfer's progress: bytes, rate over the last seconds, time left. Knows no clock."""

from __future__ import annotations

from collections import deque
from typing import Final

# Seconds the rate is taken over: long enough to be calm, short enough to follow a line that slows down.
WINDOW_S: Final = 5.0

# Samples are at least this far apart, so that the window holds a bounded number of them.
_STEP_S: Final = 0.1


class Meter:
    """Counts what has come. total_bytes is None while it is not known."""

    def __init__(self, now: float) -> None:
        self.done_bytes = 0
        self.total_bytes: int | None = None
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def start_at(self, done_bytes: int, now: float) -> None:
        """Go on from `done_bytes`, which did not come just now and counts for no rate."""
        self.done_bytes = done_bytes
        self._samples = deque([(now, done_bytes)])

    def reach(self, done_bytes: int, now: float) -> None:
        """`done_bytes` are here at `now`."""
        if done_bytes < self.done_bytes:
            self.start_at(done_bytes, now)
            return
        self.done_bytes = done_bytes
        if now - self._samples[-1][0] >= _STEP_S:
            self._samples.append((now, done_bytes))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()

    def rate_bytes_per_s(self, now: float) -> float:
        """Bytes per second over the last seconds; 0 before there is anything to measure."""
        then, bytes_then = self._samples[0]
        seconds = now - then
        return (self.done_bytes - bytes_then) / seconds if seconds > 0 else 0.0

    def eta_s(self, now: float) -> float | None:
        """Seconds until all is here at the present rate; None when nothing comes or the total is not known."""
        rate = self.rate_bytes_per_s(now)
        if self.total_bytes is None or rate <= 0:
            return None
        return max(self.total_bytes - self.done_bytes, 0) / rate
