"""What one worker counts of the requests it answers: how many, how they ended, how long they took.

It knows nothing of messages. Every request passes here, so that counting one costs a third of a microsecond.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from bus.metrics import OTHER, Told
from schemas.bodies.telling import Series
from schemas.errors import Internal
from schemas.metrics import DURATIONS, WORKER_REQUESTS, WORKER_SECONDS

OK: Final = "ok"


class Tally:
    """Requests of one operation. `buckets` are those of WORKER_SECONDS, the last one for what is above them."""

    __slots__ = ("buckets", "failed", "ok", "seconds")

    def __init__(self) -> None:
        self.ok = 0
        # There before anything fails: a rate sees the first failure only where it saw none before.
        self.failed = {Internal.code: 0}
        self.seconds = 0.0
        self.buckets = [0] * (len(DURATIONS) + 1)

    def ended(self, seconds: float, outcome: str) -> None:
        """Count one request: OK or an error's code, after `seconds`."""
        self.seconds += seconds
        self.buckets[bisect_left(DURATIONS, seconds)] += 1
        if outcome is OK:
            self.ok += 1
        else:
            self.failed[outcome] = self.failed.get(outcome, 0) + 1


class Tallies:
    """Those of one worker: one for each operation that it registered, one for what it does not know."""

    def __init__(self) -> None:
        self._by_operation: dict[str, Tally] = {}
        self.unknown = Tally()

    def of(self, subject: str) -> Tally:
        """That of an operation, whichever instance of the service is asked."""
        return self._by_operation.setdefault(subject.partition("@")[0], Tally())

    def told(self) -> Iterator[Told]:
        """How requests ended, by operation; times only of those that were asked for."""
        for operation, tally in (*self._by_operation.items(), (OTHER, self.unknown)):
            yield WORKER_REQUESTS, Series((operation, OK), tally.ok)
            for code, count in tally.failed.items():
                yield WORKER_REQUESTS, Series((operation, code), count)
            if any(tally.buckets):
                yield WORKER_SECONDS, Series((operation,), tally.seconds, tuple(tally.buckets))
