"""Counters of the HTTP edge, by port, method, route and status, never by what a path names."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from bus import exposition
from bus.metrics import Figures, Told
from schemas import metrics
from schemas.bodies.telling import Series

MEDIA_TYPE: Final = exposition.TEXT.media_type

# Label of what no route answers, so that nobody fills the memory with made-up paths.
UNKNOWN: Final = "unknown"

# Methods that are counted under their name: RFC 9110, section 9, and PATCH.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_BUCKETS: Final = metrics.REST_SECONDS.buckets

# Port, method, route, status.
_Key = tuple[str, str, str, int]


class _Tally:
    """Requests by how long they took; the last bucket holds what is over every bound."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0

    def add(self, other: _Tally) -> None:
        """Count another's in."""
        self.seconds += other.seconds
        self.buckets = [one + more for one, more in zip(self.buckets, other.buckets, strict=True)]


class Metrics:
    """Of all ports of one edge, told with the other figures of its process. services: those the ports are named for."""

    def __init__(self, figures: Figures, connections: Callable[[], int], services: Iterable[str]) -> None:
        self._figures = figures
        self._connections = connections
        self._known: dict[_Key, _Tally] = {}
        self._abandoned = figures.counter(metrics.REST_ABANDONED)
        for service in services:
            # There before the first: a rate sees it only so.
            self._abandoned.add(service, by=0)
        self.in_flight = 0
        figures.tell(self._told)

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
        self._abandoned.add(service)

    def text(self) -> bytes:
        """Every figure of this process, as Prometheus reads it."""
        return exposition.text(self._figures.series())

    def _told(self) -> Iterator[Told]:
        merged: dict[tuple[str, str, str], _Tally] = {}
        for (*names, status), tally in self._known.items():
            api, method, route = names
            yield metrics.REST_REQUESTS, Series((api, method, route, str(status)), sum(tally.buckets))
            merged.setdefault((api, method, route), _Tally()).add(tally)
        for labels, tally in merged.items():
            yield metrics.REST_SECONDS, Series(labels, tally.seconds, tuple(tally.buckets))
        yield metrics.REST_IN_FLIGHT, Series((), self.in_flight)
        yield metrics.REST_CONNECTIONS, Series((), self._connections())
