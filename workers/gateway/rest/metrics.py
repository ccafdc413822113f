"""Counters of the HTTP edge as Prometheus text, by service, method, route and status, never by what a path names."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

MEDIA_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

# Seconds. From a value read over the bus (about a millisecond) to a generation of minutes.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

# Label of what no route answers, so that nobody fills the memory with made-up paths.
UNKNOWN: Final = "unknown"

# Methods that are counted under their name: RFC 9110, section 9, and PATCH.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


# Service, method, route, status.
_Key = tuple[str, str, str, int]


class _Tally:
    """Requests by how long they took; the last bucket holds what is over every bound."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0


class _Requests:
    """Makes metrics of tallies when they are asked for: counting there costs a request three times as much."""

    def __init__(self, known: dict[_Key, _Tally]) -> None:
        self._known = known

    def collect(self) -> Iterator[Metric]:
        """Answers by status, and their times."""
        labels = ["service", "method", "route"]
        counted = CounterMetricFamily("rest_requests", "Requests answered.", labels=[*labels, "status"])
        timed = HistogramMetricFamily(
            "rest_request_seconds", "From a request's head to the end of its answer.", labels=labels
        )
        merged: dict[tuple[str, str, str], _Tally] = {}
        for (*named, status), tally in self._known.items():
            counted.add_metric([*named, str(status)], sum(tally.buckets))
            whole = merged.setdefault((named[0], named[1], named[2]), _Tally())
            whole.seconds += tally.seconds
            whole.buckets = [one + more for one, more in zip(whole.buckets, tally.buckets, strict=True)]
        for names, tally in merged.items():
            bounds = [*(f"{bound:g}" for bound in _BUCKETS), "+Inf"]
            timed.add_metric(names, list(zip(bounds, accumulate(tally.buckets), strict=True)), tally.seconds)
        yield counted
        yield timed


class Metrics:
    """Of all ports of one edge."""

    def __init__(self, connections: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._known: dict[_Key, _Tally] = {}
        self._registry.register(_Requests(self._known))
        self._in_flight = Gauge("rest_requests_in_flight", "Requests being answered.", registry=self._registry)
        self._abandoned = Counter(
            "rest_requests_abandoned", "Requests whose caller hung up first.", ["service"], registry=self._registry
        )
        open_now = Gauge("rest_connections", "Open connections.", registry=self._registry)
        open_now.set_function(connections)
        self.in_flight = 0

    def answered(self, service: str, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        tally = self._known.get((service, method, route, status))
        if tally is None:
            method = method if method in _METHODS else UNKNOWN
            tally = self._known.setdefault((service, method, route, status), _Tally())
        tally.seconds += seconds
        tally.buckets[bisect_left(_BUCKETS, seconds)] += 1

    def abandoned(self, service: str) -> None:
        """Count one request whose caller hung up."""
        self._abandoned.labels(service).inc()

    def text(self) -> bytes:
        """All of it."""
        self._in_flight.set(self.in_flight)
        return generate_latest(self._registry)
