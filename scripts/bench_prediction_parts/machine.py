"""The machine that traces are replayed on, and what is counted there: the same for every policy."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from bench_prediction_parts.traces import GB, Trace

# Seconds that a model answers, and is not evicted.
ANSWER_S: Final = 2.0


class Machine(NamedTuple):
    """One device and one disk: models load one after the other."""

    memory_bytes: int = 24 * GB
    bytes_per_s: float = 2.0 * GB
    # Until the first byte: a runner takes its model, the backend allocates.
    start_s: float = 0.5

    def load_s(self, size_bytes: int) -> float:
        """Seconds that a load takes."""
        return self.start_s + size_bytes / self.bytes_per_s


class Outcome(msgspec.Struct):
    """What a policy made of a trace. Requests before `begin` are served and not counted: the time to learn."""

    begin: float
    requests: int = 0
    hits: int = 0
    waited_s: float = 0.0
    refused: int = 0
    loaded_bytes: int = 0
    ahead: int = 0
    ahead_used: int = 0
    wasted_bytes: int = 0

    def served(self, at: float, waited_s: float) -> None:
        """A request that came at `at` was given to its model after `waited_s`; at once is a hit."""
        if at >= self.begin:
            self.requests += 1
            self.hits += waited_s <= 0
            self.waited_s += waited_s

    def refuse(self, at: float, waited_s: float) -> None:
        """A request was given up."""
        self.served(at, waited_s)
        self.refused += at >= self.begin

    def loaded(self, at: float, size_bytes: int) -> None:
        """A load began."""
        if at >= self.begin:
            self.loaded_bytes += size_bytes

    @property
    def hit_rate(self) -> float:
        """Part of the requests that found their model in memory."""
        return self.hits / max(self.requests, 1)

    @property
    def mean_wait_s(self) -> float:
        """Seconds a request waited for its model."""
        return self.waited_s / max(self.requests, 1)


def outcome_of(trace: Trace, learn: float) -> Outcome:
    """An empty one that counts from the part `learn` of the trace's time on."""
    return Outcome(begin=trace.requests[-1][0] * learn)
