"""The headers of W3C Trace Context: what counts as one, and what a request that a handler makes carries."""

from __future__ import annotations

from typing import Any

import pytest

from bus import traceparent
from bus.context import asked_by

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ID = bytes(range(16))


@pytest.mark.parametrize(
    "header",
    [
        f"00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-00",
        f"00-{TRACE}-{PARENT}-ff",
        f"cc-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like",
    ],
)
def test_a_header_of_this_version_or_a_later_one_is_read(header: str) -> None:
    """Examples of the specification: flags may be any, and a later version may say more behind a dash."""
    assert traceparent.parse(header) == (TRACE, PARENT)


@pytest.mark.parametrize(
    "header",
    [
        None,
        1,
        b"00-" + TRACE.encode() + b"-" + PARENT.encode() + b"-01",
        "",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"0-{TRACE}-{PARENT}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01\n",
        f" 00-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01.what",
        f"cc-{TRACE}-{PARENT}-01-{'x' * 200}",
        f"00_{TRACE}_{PARENT}_01",
        f"00-{TRACE[:-1]}\u0661-{PARENT}-01",
    ],
)
def test_what_is_no_header_is_none(header: Any) -> None:
    """Wrong lengths, letters, version, zeros and types are all ignored."""
    assert traceparent.parse(header) is None


def test_a_request_of_a_handler_joins_the_trace_of_its_own() -> None:
    """The trace is kept, the parent is the handler's request; where that came without one, its id begins the trace."""
    below = asked_by(ID, {"traceparent": f"00-{TRACE}-{PARENT}-01"}).passed_on({"priority": "batch"})
    first = asked_by(ID, None).passed_on(None)

    assert below == {"priority": "batch", "traceparent": f"00-{TRACE}-{ID[:8].hex()}-01"}
    assert first == {"traceparent": f"00-{ID.hex()}-{ID[:8].hex()}-01"}


def test_a_bad_header_is_not_passed_on() -> None:
    """The handler's request then begins a trace, and its tracestate goes with the header."""
    asked = asked_by(ID, {"traceparent": "00-nonsense", "tracestate": "a=1"})

    assert asked.passed_on(None) == {"traceparent": f"00-{ID.hex()}-{ID[:8].hex()}-01"}


def test_a_caller_that_names_its_own_trace_has_its_way() -> None:
    """Also inside a handler."""
    own = {"traceparent": f"00-{'c' * 32}-{PARENT}-01"}

    assert asked_by(ID, {"traceparent": f"00-{TRACE}-{PARENT}-01"}).passed_on(own) == own


@pytest.mark.parametrize(
    ("state", "is_passed"), [("rojo=00f067aa0ba902b7", True), ("x" * 513, False), ("a=\n", False), (7, False)]
)
def test_tracestate_is_passed_on_unread_where_it_is_small_text(state: Any, is_passed: bool) -> None:
    """What cannot be a header of anybody is dropped."""
    found = asked_by(ID, {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": state}).passed_on(None)

    assert found.get("tracestate") == (state if is_passed else None)
