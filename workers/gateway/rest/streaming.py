"""A reply in pieces: as server-sent events or as lines of JSON, each as soon as it came over the bus."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, Literal, NamedTuple

from bus.client import Stream
from schemas.errors import BusError
from workers.gateway.rest.response import Response, problem_body

Form = Literal["sse", "ndjson"]

_MEDIA_TYPES: Final[dict[Form, str]] = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}

# Seconds without an event after which a comment is sent, so that proxies keep the connection: WHATWG HTML, section 9.2.7.
HEARTBEAT_S: Final = 15.0

# Seconds the head waits for the first piece, so that a request that fails at once gets the status of its error.
_FIRST_S: Final = 1.0


class Event(NamedTuple):
    """One piece; data is JSON."""

    name: Literal["partial", "final", "error"]
    data: bytes


def form_of(accept: str | None) -> Form | None:
    """How a caller wants pieces; None for whoever wants one reply."""
    for part in (accept or "").lower().split(","):
        kind = part.partition(";")[0].strip()
        for form, media_type in _MEDIA_TYPES.items():
            if kind == media_type:
                return form
    return None


async def streamed(stream: Stream, form: Form) -> Response:
    """The response that carries a stream. Raises the error that the request ended with before its first piece."""
    pieces = _Pieces(stream, form)
    try:
        await pieces.begin()
    except BaseException:
        await pieces.aclose()
        raise
    # Proxies that gather a response before they pass it on would keep every piece back.
    headers = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
    return Response(body=pieces, media_type=_MEDIA_TYPES[form], headers=headers)


class _Pieces:
    """Bytes of a streamed body. Ends after the final event or an error."""

    def __init__(self, stream: Stream, form: Form) -> None:
        self._stream = stream
        self._form = form
        self._waiting: asyncio.Task[Event] | None = None
        self._first: Event | None = None
        self._is_over = False

    async def begin(self) -> None:
        """Send the request and wait a little for its first piece."""
        await self._stream.__aenter__()
        self._first = await self._next(_FIRST_S)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        try:
            first, self._first = self._first, None
            event = first or await self._next(HEARTBEAT_S)
            while event is None and self._form == "ndjson":
                event = await self._next(HEARTBEAT_S)
        except BusError as error:
            event = Event("error", problem_body(error))
        if event is None:
            return b": waiting\n\n"
        self._is_over = event.name != "partial"
        return _written(event, self._form)

    async def _next(self, within_s: float) -> Event | None:
        """The next event; None when it does not come in time. Raises the error the request ended with."""
        waiting = self._waiting = self._waiting or asyncio.ensure_future(self._take())
        done, _ = await asyncio.wait({waiting}, timeout=within_s)
        if not done:
            return None
        self._waiting = None
        return waiting.result()

    async def _take(self) -> Event:
        try:
            return Event("partial", await self._stream.__anext__())
        except StopAsyncIteration:
            return Event("final", self._stream.final)

    async def aclose(self) -> None:
        """Take the request back, if it still runs."""
        self._is_over = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, BusError):
                await waiting
        self._stream.cancel()


def _written(event: Event, form: Form) -> bytes:
    # A line break can only be white space between values: within a text JSON writes it as \n.
    data = event.data.replace(b"\r", b" ").replace(b"\n", b" ")
    name = event.name.encode()
    if form == "ndjson":
        return b'{"event":"%b","data":%b}\n' % (name, data)
    return b"event: %b\ndata: %b\n\n" % (name, data)
