"""Which request the code that runs now works for: set by the worker runtime, read by the client and by log lines.

What a handler starts (tasks, `asyncio.to_thread`) inherits it; code outside of handlers has none.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

import msgspec

from bus import traceparent as trace_context
from schemas.envelope import Headers


class Asked(msgspec.Struct, gc=False):
    """A request that is being served. id: 16 bytes. Its headers of that name as they came, whatever they are."""

    id: bytes
    traceparent: Any = None
    tracestate: Any = None

    @property
    def trace(self) -> str:
        """The trace it belongs to, 32 hex digits: of its `traceparent`, else its own id."""
        parsed = None if self.traceparent is None else trace_context.parse(self.traceparent)
        return parsed.trace if parsed is not None else self.id.hex()

    def passed_on(self, headers: Headers | None) -> Headers:
        """`headers` of a request that this one leads to, with its place in the trace unless they name one."""
        if headers and "traceparent" in headers:
            return headers
        found: Headers = dict(headers) if headers else {}
        found["traceparent"] = trace_context.written(self.trace, self.id[:8].hex())
        # What stands beside a header that is none is not read either (section 4.3).
        if self.tracestate is not None and trace_context.parse(self.traceparent) is not None:
            if (state := trace_context.passable_state(self.tracestate)) is not None:
                found.setdefault("tracestate", state)
        return found


def asked_by(id: bytes, headers: Headers | None) -> Asked:
    """The request with that id and those headers."""
    if headers is None:
        return Asked(id)
    return Asked(id, headers.get("traceparent"), headers.get("tracestate"))


# None outside of handlers.
current: Final[ContextVar[Asked | None]] = ContextVar("olympus_request", default=None)
