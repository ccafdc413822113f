"""The requests that ended last, for `bus.trace.read`: a ring of fixed size; it knows no message and keeps none alive."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from bus import traceparent
from schemas.bodies.control import Ready
from schemas.bodies.telling import Span, Spans, TraceRead

# Requests looked at in one turn of the loop, so that it is back within some milliseconds: one that is looked at and left
# out takes 0.5 microseconds, one that is told 2 (measured on the machine of docs/benchmarks.md).
_TURN: Final = 500

# Requests that went well and are remembered between two calls of `settle`, 50 ms: 2,000 a second. More at once is a flood
# in which nobody looks for one, and at 30,000 a second remembering each took 6 % of the broker's time.
_ROOM: Final = 100

# Characters of a `traceparent` that is kept: a header of 8 KiB that is none must not fill the ring.
_HEADER_MAX: Final = 128


class Ended(msgspec.Struct, gc=False):
    """One request that has ended. Times are those of the core's clock; `traceparent` is the header as it came, if any.

    ready: what its worker registered with, None where none had it. outcome: ok or an error's code.
    """

    id: bytes
    traceparent: Any
    subject: str
    caller: str
    ready: Ready | None
    received_at: float
    dispatched_at: float | None
    ended_at: float
    attempts: int
    outcome: str
    body_bytes: int


class EndedRequests:
    """Numbered from 1 in the order of their ends; at most `max_count` are kept, the newest. 300 to 500 bytes each.

    `add` is for the way of every request, 30 ns: what it takes gets its number and its place in `settle`, to be called
    every 50 ms; everything that reads calls it. room: requests that may be added until then, where nothing is special
    about them; it may be below 0. skipped: those that were not added for want of room.
    """

    def __init__(self, max_count: int) -> None:
        self._max_count = max_count
        self._ring: list[Ended] = []
        self._fresh: list[Ended] = []
        self.add: Final = self._fresh.append
        self.last_number = 0
        self.room = _ROOM
        self.skipped = 0

    def settle(self) -> None:
        """Number what was added; the oldest make room for it."""
        fresh, most = self._fresh, self._max_count
        self.room = _ROOM
        if not fresh:
            return
        for begin in range(0, len(fresh), most):
            part = fresh[begin : begin + most]
            at = self.last_number % most
            first = part[: most - at]
            # While the ring is not full, `at` is its end.
            self._ring[at : at + len(first)] = first
            self._ring[: len(part) - len(first)] = part[len(first) :]
            self.last_number += len(part)
        fresh.clear()

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def first_number(self) -> int:
        """The number of the oldest that is kept; above `last_number` where none is."""
        return self.last_number - len(self._ring) + 1

    def get(self, number: int) -> Ended | None:
        """One by its number; None once it is forgotten."""
        if not self.first_number <= number <= self.last_number:
            return None
        return self._ring[(number - 1) % self._max_count]


def kept_header(headers: dict[str, Any] | None) -> str | None:
    """The `traceparent` among a request's headers, where it can be one."""
    header = headers.get("traceparent") if headers is not None else None
    return header if type(header) is str and len(header) <= _HEADER_MAX else None


async def read(ended: EndedRequests, request: TraceRead, *, boot: str, epoch_offset: float) -> Spans:
    """What a request asks for, oldest first; the loop has a turn now and then. Requests that end meanwhile may be in it.

    epoch_offset: Unix epoch seconds minus the core's clock.
    """
    ended.settle()
    last = ended.last_number
    spans: list[Span] = []
    for looked, number in enumerate(_numbers(ended, request, last)):
        if looked % _TURN == _TURN - 1:
            await asyncio.sleep(0)
        one = ended.get(number)
        if one is None or (request.id and not _is_of(one, request.id)):
            continue
        spans.append(span_of(number, one, epoch_offset))
        if len(spans) == request.limit:
            break
    if request.after is None:
        spans.reverse()
    oldest = ended.get(ended.first_number)
    return Spans(
        spans=spans,
        remembered=len(ended),
        oldest_at=None if oldest is None else oldest.ended_at + epoch_offset,
        last_number=last,
        skipped=ended.skipped,
        boot=boot,
    )


def _numbers(ended: EndedRequests, request: TraceRead, last: int) -> Iterator[int]:
    """From where a reader left off, in order; else from the newest backwards."""
    if request.after is not None:
        return iter(range(max(request.after + 1, ended.first_number), last + 1))
    return iter(range(last, ended.first_number - 1, -1))


def _is_of(one: Ended, start: str) -> bool:
    """True for the request with an id that begins so, and for every request of a trace that does."""
    if one.id.hex().startswith(start):
        return True
    if one.traceparent is None or one.traceparent[3 : 3 + len(start)] != start:
        return False
    parsed = traceparent.parse(one.traceparent)
    return parsed is not None and parsed.trace.startswith(start)


def span_of(number: int, one: Ended, epoch_offset: float) -> Span:
    """A request as it is told."""
    parsed = traceparent.parse(one.traceparent)
    ready, dispatched_at = one.ready, one.dispatched_at
    return Span(
        number=number,
        id=one.id.hex(),
        trace=parsed.trace if parsed else one.id.hex(),
        parent=parsed.parent if parsed else "",
        subject=one.subject,
        caller=one.caller,
        worker=ready.instance if ready else "",
        service=ready.service if ready else "",
        received_at=one.received_at + epoch_offset,
        dispatched_at=None if dispatched_at is None else dispatched_at + epoch_offset,
        ended_at=one.ended_at + epoch_offset,
        attempts=one.attempts,
        outcome=one.outcome,
        body_bytes=one.body_bytes,
    )
