"""Time that never goes back while the process runs, whatever happens to the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable

Now = Callable[[], float]


class SteadyClock:
    """Epoch seconds: the wall clock, or the time since its highest reading where it was set back.

    Without this an entry that has expired would come back when the wall clock is corrected. Time goes on at the
    monotonic pace meanwhile, so entries with a time to live still expire.
    """

    def __init__(self, wall: Now = time.time, monotonic: Now = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._latest = wall()
        self._latest_monotonic = monotonic()

    def __call__(self) -> float:
        """The time now, never below an earlier answer."""
        monotonic = self._monotonic()
        self._latest = max(self._wall(), self._latest + monotonic - self._latest_monotonic)
        self._latest_monotonic = monotonic
        return self._latest
