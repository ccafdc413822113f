"""What a tap shows: which subjects, and requests joined with their replies; knows no socket and no clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from schemas import subjects
from schemas.bodies.control import Trace

# Noise unless asked for: what is hidden, and how a pattern starts that asks for it.
_HIDDEN: Final = (("bus.stats", "bus."), ("bus.trace.*", "bus.trace."), ("metrics.*", "metrics."))

# Requests remembered while their reply is awaited; past that the oldest is given up as unanswered.
MAX_PENDING: Final = 10_000


class Exchange(msgspec.Struct, kw_only=True):
    """One request with its reply.

    `outcome` is "ok", an error code, "cancelled", or "unanswered" while no reply was seen. Of a request that was
    under way when the tap started only the reply is known: its `request_bytes` is None.
    """

    id: str
    subject: str
    at: float
    outcome: str = "unanswered"
    took_s: float | None = None
    request_bytes: int | None = None
    reply_bytes: int = 0
    partials: int = 0
    worker: str = ""
    attempt: int = 1


class TraceJoiner:
    """Feed it traces in order; it gives back each exchange once, when it ends."""

    def __init__(self) -> None:
        self._pending: dict[str, Exchange] = {}

    def feed(self, trace: Trace) -> Exchange | None:
        """The exchange that this trace completes, or one given up for want of room; None while all go on."""
        exchange = self._pending.get(trace.id)
        if exchange is None:
            if trace.phase == "cancel" or trace.code == "cancelled":
                return None
            exchange = Exchange(id=trace.id, subject=trace.subject, at=trace.at)
            self._pending[trace.id] = exchange
        exchange.worker = trace.worker or exchange.worker
        exchange.attempt = max(trace.attempt, exchange.attempt)
        match trace.phase:
            case "request":
                exchange.request_bytes = trace.body_bytes
            case "partial":
                exchange.partials += 1
                exchange.reply_bytes += trace.body_bytes
            case "final" | "error" | "cancel":
                return self._end(exchange, trace)
        return self._oldest_past_limit()

    def unanswered(self) -> list[Exchange]:
        """What still waits for its reply, oldest first; forgets it."""
        left = list(self._pending.values())
        self._pending.clear()
        return left

    def _end(self, exchange: Exchange, trace: Trace) -> Exchange:
        del self._pending[exchange.id]
        exchange.outcome = {"final": "ok", "cancel": "cancelled"}.get(trace.phase) or trace.code or "error"
        exchange.reply_bytes += trace.body_bytes
        exchange.took_s = trace.took_s
        if exchange.took_s is None and exchange.request_bytes is not None:
            exchange.took_s = max(0.0, trace.at - exchange.at)
        return exchange

    def _oldest_past_limit(self) -> Exchange | None:
        if len(self._pending) <= MAX_PENDING:
            return None
        return self._pending.pop(next(iter(self._pending)))


def subject_filter(patterns: Sequence[str], ignored: Sequence[str]) -> Callable[[str], bool]:
    """A predicate: the subject falls under a pattern and is neither ignored nor noise that nobody asked for."""
    hidden = [noise for noise, asked in _HIDDEN if not any(pattern.startswith(asked) for pattern in patterns)]
    refused = [subjects.matcher(pattern) for pattern in (*ignored, *hidden)]
    wanted = [subjects.matcher(pattern) for pattern in patterns]

    def is_wanted(subject: str) -> bool:
        return any(match(subject) for match in wanted) and not any(match(subject) for match in refused)

    return is_wanted
