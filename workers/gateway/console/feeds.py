"""What is told to those who watch: one subscription for everybody with the same patterns, each event written once.

A feed goes at its own pace, so that a storm of events costs the gateway little; what it leaves out the broker counts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from bus.client import Client
from bus.subscription import Missed, ReceivedEvent
from bus.watching import TraceJoiner
from schemas.bodies.control import Trace
from schemas.errors import BusError, Internal
from schemas.values import as_json
from workers.gateway.console.sight import REQUESTS, scope_of

log = logging.getLogger("olympus.rest")

# Bytes of a body that is shown whole; what is larger is told by its size. A page shows a few lines of each.
MAX_BODY_BYTES: Final = 32 * 1024

# Events taken at a stretch, and seconds until the next: at most 5,000/s. One takes 13 us to write and 1.5 us for each
# reader (CPython 3.11, 2.5 GHz), so with one reader that is some 7 % of a core, and with more readers the rest is longer.
_STRETCH: Final = 100
_REST_S: Final = 0.02
_READERS_PER_REST: Final = 10

_TRACES: Final = "bus.trace.>"


class Item(NamedTuple):
    """One thing told, as it is written to whoever may see it. namespaces: see `sight.Sight.shows`."""

    subject: str
    scope: str
    namespaces: tuple[str, ...] | None
    seq: int
    text: bytes


Kind = Literal["events", "requests"]


class Listener(Protocol):
    """Somebody who watches; nothing here waits for them."""

    def take(self, item: Item) -> None: ...

    def miss(self, kind: Kind, missed: Missed) -> None: ...

    def link(self, broken: str | None) -> None:
        """The broker is away, and why; None: it is back."""

    def fail(self, error: BusError) -> None:
        """Nothing more comes."""


Make = Callable[[ReceivedEvent], Item | None]


def written(name: str, value: Any) -> bytes:
    """One server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), as_json(value))


def item_of(event: ReceivedEvent) -> Item:
    """An event as it is shown."""
    raw = event.raw
    told: dict[str, Any] = {
        "seq": event.seq,
        "at": event.at,
        "subject": event.subject,
        "source": event.source,
        "id": event.id,
        "body": None,
        "body_bytes": len(raw),
    }
    scope = scope_of(event.subject)
    body = None
    if len(raw) > MAX_BODY_BYTES:
        told["cut"] = True
    else:
        body = told["body"] = event.body
    if isinstance(body, bytes):
        told["encoding"] = "base64"
    # Of a body that is left out nobody knows which namespaces it is about.
    namespaces = namespaces_of(body) if scope.startswith("memory:") else None
    try:
        text = written("event", told)
    except (TypeError, ValueError, OverflowError, RecursionError):
        # What somebody made up may be nothing that JSON can say.
        told |= {"body": base64.b64encode(raw).decode("ascii"), "encoding": "base64"}
        text = written("event", told)
    return Item(event.subject, scope, namespaces, event.seq, text)


def namespaces_of(body: Any) -> tuple[str, ...]:
    """The namespaces that an event of the memory names; empty where it names none, and so is about all."""
    if not isinstance(body, dict):
        return ()
    named: list[str] = []
    for key, value in body.items():
        if key == "ns" or (isinstance(key, str) and key.endswith("_ns")):
            named += value if isinstance(value, list) else [value]
    return tuple(map(str, named))


class Requests:
    """Makes one item of the steps of each request."""

    def __init__(self) -> None:
        self._joiner = TraceJoiner()

    def __call__(self, event: ReceivedEvent) -> Item | None:
        """The request that this step ended, if any."""
        if event.missed is not None:
            # What was asked before the gap may have been answered in it.
            self._joiner.unanswered()
        try:
            exchange = self._joiner.feed(msgspec.convert(event.body, Trace))
        except msgspec.ValidationError:
            # Anybody on the bus can publish under this subject.
            return None
        if exchange is None:
            return None
        return Item(exchange.subject, REQUESTS, None, event.seq, written("request", exchange))


class Feed:
    """The events of some patterns, for all who listen to them."""

    def __init__(self, client: Client, patterns: tuple[str, ...], kind: Kind, make: Make) -> None:
        self.listeners: set[Listener] = set()
        self._kind = kind
        self._make = make
        self._subscription = client.subscribe(*patterns, on_link=self._on_link)
        self._pump: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe. Raises BrokerUnreachable, ConnectionError."""
        await self._subscription.__aenter__()
        self._pump = asyncio.get_running_loop().create_task(self._run(), name=f"console {self._kind}")

    async def close(self) -> None:
        """Unsubscribe."""
        if self._pump is not None:
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pump
        await self._subscription.close()

    @property
    def is_over(self) -> bool:
        """True once nothing more comes."""
        return self._pump is not None and self._pump.done()

    async def _run(self) -> None:
        try:
            await self._tell()
            error: BusError = Internal("the subscription ended")
        except Exception as failure:
            log.error("a feed of the console failed", exc_info=failure, extra={"action": "console.failed"})
            error = Internal(f"the feed failed: {type(failure).__name__}", kind=type(failure).__name__)
        await self._subscription.close()
        for listener in tuple(self.listeners):
            listener.fail(error)

    async def _tell(self) -> None:
        taken = 0
        async for event in self._subscription:
            item = self._make(event)
            for listener in self.listeners:
                if event.missed is not None:
                    listener.miss(self._kind, event.missed)
                if item is not None:
                    listener.take(item)
            taken += 1
            if taken >= _STRETCH:
                taken = 0
                await asyncio.sleep(_REST_S * (1 + len(self.listeners) / _READERS_PER_REST))

    def _on_link(self, broken: str | None) -> None:
        for listener in self.listeners:
            listener.link(broken)


class Feeds:
    """Those that run; each ends with its last listener."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._feeds: dict[tuple[Kind, tuple[str, ...]], Feed] = {}
        self._starting = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def events(self, patterns: tuple[str, ...], listener: Listener) -> None:
        """Tell `listener` the events of `patterns`. Raises as `Feed.start`."""
        await self._join("events", tuple(sorted(set(patterns))), item_of, listener)

    async def requests(self, listener: Listener) -> None:
        """Tell `listener` every request that ends. The broker traces them as long as anybody listens. Raises as above."""
        await self._join("requests", (_TRACES,), Requests(), listener)

    async def _join(self, kind: Kind, patterns: tuple[str, ...], make: Make, listener: Listener) -> None:
        async with self._starting:
            feed = self._feeds.get((kind, patterns))
            if feed is None or feed.is_over:
                feed = Feed(self._client, patterns, kind, make)
                try:
                    await feed.start()
                except BaseException:
                    await feed.close()
                    raise
                self._feeds[kind, patterns] = feed
            feed.listeners.add(listener)

    def leave(self, listener: Listener) -> None:
        """Tell `listener` nothing more."""
        for key, feed in list(self._feeds.items()):
            feed.listeners.discard(listener)
            if not feed.listeners:
                del self._feeds[key]
                closing = asyncio.get_running_loop().create_task(feed.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End them all."""
        for feed in list(self._feeds.values()):
            await feed.close()
        self._feeds.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)
