"""The W3C Trace Context headers, `traceparent` and `tracestate`, as requests on the bus carry them; knows no request.

A trace is a request with all that it led to. https://www.w3.org/TR/trace-context/, section 3.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

# Digits of an id; capitals are none (section 3.2.2).
_HEX: Final = "0123456789abcdef"

# Characters of ours, and of what a version of the future may have; a header over that is none.
_CHARACTERS: Final = 55
_MAX_CHARACTERS: Final = 128

# Characters of a `tracestate` that is passed on; section 3.3.1.5 asks for at least so many.
_STATE_MAX_CHARACTERS: Final = 512


class TraceParent(NamedTuple):
    """trace: 32 hex digits. parent: 16, for a request of ours the first half of the id of the one that led to it."""

    trace: str
    parent: str


def parse(header: Any) -> TraceParent | None:
    """What a `traceparent` says; None for anything else, which is to be ignored (section 3.2.2).

    By hand, as a request that a handler makes asks for it: a regular expression takes four times as long.
    """
    if not isinstance(header, str) or not _CHARACTERS <= len(header) <= _MAX_CHARACTERS:
        return None
    version, trace, parent, flags, more = header[:2], header[3:35], header[36:52], header[53:55], header[55:]
    if header[2] + header[35] + header[52] != "---" or (version + trace + parent + flags).strip(_HEX):
        return None
    if version == "ff" or not trace.strip("0") or not parent.strip("0"):
        return None
    # What a version after ours adds stands behind another dash (section 3.2.4).
    if more and (version == "00" or more[0] != "-" or not more.isascii() or not more.isprintable()):
        return None
    return TraceParent(trace, parent)


def written(trace: str, parent: str) -> str:
    """The header for a request in `trace` that `parent`, 16 hex digits, led to; its flag says that it is recorded."""
    return f"00-{trace}-{parent}-01"


def passable_state(header: Any) -> str | None:
    """A `tracestate` that may be passed on, unread; None for one that is none or is long."""
    is_text = isinstance(header, str) and 0 < len(header) <= _STATE_MAX_CHARACTERS
    return header if is_text and header.isascii() and header.isprintable() else None
