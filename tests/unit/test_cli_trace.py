"""The tree of a trace, its waterfall, and the list of requests."""

from __future__ import annotations

from typing import Any

import pytest

from bus.cli import trace, waterfall
from bus.cli.output import columns_of
from schemas.bodies.telling import Span, Spans

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def span(key: str, begin: float, end: float, parent: str = "", **more: Any) -> Span:
    """A request of the trace whose id begins with `key`; times in milliseconds."""
    plain: dict[str, Any] = {
        "number": 1,
        "id": key.ljust(32, "0"),
        "trace": TRACE,
        "parent": parent and parent.ljust(16, "0"),
        "subject": "memory.get",
        "caller": "olympus",
        "worker": "pc-1-4711",
        "service": "memory",
        "received_at": begin / 1000,
        "dispatched_at": begin / 1000,
        "ended_at": end / 1000,
        "attempts": 1,
        "outcome": "ok",
        "body_bytes": 9,
    }
    return Span(**{**plain, **more})


def shape(roots: list[waterfall.Node]) -> list[Any]:
    """Ids in the form of the tree."""
    return [(node.span.id.rstrip("0"), shape(node.children)) for node in roots]


def test_requests_stand_below_the_one_whose_handler_made_them() -> None:
    """Whatever order they ended in; the children by the time of their receipt."""
    spans = [span("c", 30, 40, "b"), span("d", 5, 9, "a"), span("b", 10, 50, "a"), span("a", 0, 100)]

    assert shape(waterfall.tree(spans)) == [("a", [("d", []), ("b", [("c", [])])])]


def test_what_has_no_parent_here_is_a_root() -> None:
    """A parent outside of this bus, one that is forgotten, and a request that names itself or a circle."""
    spans = [
        *(span("a", 0, 1, "e"), span("b", 1, 2, "b"), span("c", 2, 3, "d"), span("d", 3, 4, "c"), span("c", 5, 6, "a")),
    ]

    found = waterfall.tree(spans)

    assert shape(found) == [("a", [("c", [])]), ("b", []), ("d", [("c", [])])]
    assert sum(1 for _ in waterfall.walk(found)) == len(spans)


def test_a_requests_own_time_is_what_none_of_its_children_covers() -> None:
    """Children side by side count once, and only for as long as the parent ran."""
    spans = [span("a", 0, 100), span("b", 10, 40, "a"), span("c", 20, 50, "a"), span("d", 90, 130, "a")]

    own = {node.span.id[0]: round(node.own_s * 1000) for node, _, _ in waterfall.walk(waterfall.tree(spans))}

    assert own == {"a": 50, "b": 30, "c": 30, "d": 40}


@pytest.mark.parametrize("width", [60, 80, 132])
def test_the_waterfall_fits_the_terminal(width: int) -> None:
    """Also with long names and a deep tree."""
    deep = [span(f"{index:016x}", index, 100 - index, f"{index - 1:016x}" if index else "") for index in range(40)]
    shown = waterfall.lines([*deep, span("f", 1, 2, "", subject="x" * 200)], width=width, asked="f")

    assert max(map(columns_of, shown)) <= width
    assert len(shown) == 4 + 3 * 41


def test_the_waterfall_tells_times_wait_outcome_and_who() -> None:
    """A bar in its place, dots for the queue, and the request that was asked for."""
    late = span("b", 50, 100, "a", dispatched_at=0.075, outcome="worker_lost", attempts=3)
    text = waterfall.lines([span("a", 0, 100), late], width=80, asked="b0000000")

    assert text[1].startswith("2 requests, 100 ms, from ")
    assert text[4].split()[:4] == ["memory.get", "0.00", "100", "50.0"]
    assert text[4].endswith(" " + "█" * 25)
    assert text[7].startswith("└ memory.get")
    assert text[7].split()[2:5] == ["50.0", "50.0", "50.0"]
    assert text[7].endswith("  " + "·" * 6 + "█" * 7)
    assert text[8].strip() == "memory pc-1-4711, asked by olympus"
    assert text[9].strip() == "worker_lost, queued 25.0 ms, 3 attempts, id b00000000000, <- asked for"


def test_a_request_that_no_worker_had_only_waited() -> None:
    """It has no full bar."""
    none = span("a", 0, 10, worker="", service="", dispatched_at=None, outcome="no_worker")
    text = "\n".join(waterfall.lines([none], width=80, asked="a"))

    assert "no worker had it" in text
    assert "·" in text
    assert "█" not in text


def test_json_has_the_tree_in_the_order_of_the_drawing() -> None:
    """With depth, offset, wait and own time in seconds."""
    found = waterfall.as_json([span("b", 50, 100, "a"), span("a", 0, 100)])

    assert (found["trace"], found["took_s"]) == (TRACE, 0.1)
    requests: Any = found["requests"]
    assert [(one["id"][0], one["depth"], one["offset_s"]) for one in requests] == [("a", 0, 0.0), ("b", 1, 0.05)]


def test_a_list_is_of_what_was_asked_for() -> None:
    """Its own readings only where they are named; the newest, or the slowest first."""
    spans = [
        span("a", 0, 10),
        span("b", 0, 30, outcome="internal"),
        span("c", 0, 20, subject="model.chat@demo"),
        span("d", 0, 99, subject="bus.trace.read"),
    ]

    def ids(pattern: str, **more: Any) -> str:
        is_wanted = trace.wanted(pattern, failed=more.pop("failed", False))
        return "".join(one.id[0] for one in trace.chosen(list(filter(is_wanted, spans)), 2, **more))

    assert ids(">", slow=False) == "bc"
    assert ids(">", slow=True) == "bc"
    assert ids(">", slow=False, failed=True) == "b"
    assert ids("model.>", slow=False) == "c"
    assert ids("bus.trace.read", slow=False) == "d"


def test_a_forgotten_request_is_told_so() -> None:
    """With how much is remembered, or that nothing is."""
    page = Spans(spans=[], remembered=20_000, oldest_at=0.0, last_number=50_000, boot="b")

    assert "the last 20,000 requests, those since" in trace.forgotten("deadbeef", page)
    nothing = Spans(spans=[], remembered=0, oldest_at=None, last_number=0, boot="b")
    assert "broker.traces_max is 0" in trace.forgotten("deadbeef", nothing)
