"""Joining requests with their replies."""

from __future__ import annotations

from typing import Any

import pytest

from bus import watching
from bus.watching import Exchange, TraceJoiner
from schemas.bodies.control import Trace


def trace(phase: Any, id: str = "a", **more: Any) -> Trace:
    """A trace of `memory.kv.get`, 10 bytes."""
    return Trace(phase=phase, id=id, **{"subject": "memory.kv.get", "at": 100.0, "body_bytes": 10, **more})


def feed(joiner: TraceJoiner, *seen: Trace) -> list[Exchange]:
    """What came of each trace, without the Nones."""
    return [exchange for each in seen if (exchange := joiner.feed(each)) is not None]


def test_a_request_is_joined_with_its_final_reply() -> None:
    """One line holds subject, time, outcome, bytes and worker."""
    joined = feed(
        TraceJoiner(),
        trace("request"),
        trace("dispatch", worker="memory/pc"),
        trace("partial", body_bytes=3),
        trace("final", body_bytes=4, took_s=0.5, worker="memory/pc"),
    )

    assert len(joined) == 1
    only = joined[0]
    assert (only.outcome, only.took_s, only.request_bytes, only.reply_bytes) == ("ok", 0.5, 10, 7)
    assert (only.partials, only.worker, only.at) == (1, "memory/pc", 100.0)


def test_an_error_is_the_outcome_by_its_code() -> None:
    """A failed request shows its code and the attempt that failed."""
    joined = feed(
        TraceJoiner(), trace("request"), trace("dispatch", attempt=2), trace("error", code="worker_lost", at=101.0)
    )

    assert (joined[0].outcome, joined[0].attempt, joined[0].took_s) == ("worker_lost", 2, 1.0)


def test_a_cancelled_request_is_shown_once() -> None:
    """The worker's own answer to the cancel does not make a second line."""
    joined = feed(TraceJoiner(), trace("request"), trace("cancel", body_bytes=0), trace("error", code="cancelled"))

    assert [exchange.outcome for exchange in joined] == ["cancelled"]


def test_a_reply_whose_request_was_before_the_tap_is_shown_alone() -> None:
    """Its request's size is unknown and says so."""
    joined = feed(TraceJoiner(), trace("final", took_s=9.0))

    assert (joined[0].request_bytes, joined[0].took_s) == (None, 9.0)


def test_what_has_no_reply_is_unanswered_at_the_end() -> None:
    """Requests still waiting are handed out once."""
    joiner = TraceJoiner()
    feed(joiner, trace("request", "a"), trace("request", "b"), trace("final", "a"))

    assert [(left.id, left.outcome) for left in joiner.unanswered()] == [("b", "unanswered")]
    assert joiner.unanswered() == []


def test_memory_stays_bounded_when_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit the oldest request is given up."""
    monkeypatch.setattr(watching, "MAX_PENDING", 2)

    joined = feed(TraceJoiner(), trace("request", "a"), trace("request", "b"), trace("request", "c"))

    assert [exchange.id for exchange in joined] == ["a"]
