"""A subscription: events in order, what was lost said in so many words, and read back from the log where wanted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from bus import zmtp
from bus.channel import Channel
from bus.transport import Dial, Link, Role
from schemas import subjects
from schemas.bodies.control import LoggedEvent
from schemas.envelope import Buffer
from schemas.values import decode_any

# Events held for a slow consumer; past it nothing more is read, TCP fills up, and the broker drops and counts.
_QUEUE_MAX: Final = 10_000

Reader = Callable[[str, int, int | None], Awaitable[list[LoggedEvent]]]
OnLink = Callable[[str | None], None]


class Missed(msgspec.Struct, frozen=True):
    """Sequence numbers, both inclusive, between which this subscriber lost events."""

    first_seq: int
    last_seq: int


class EventMeta(msgspec.Struct, frozen=True, gc=False):
    """What the broker says of an event besides its subject and body."""

    seq: int
    at: float
    source: str
    id: str
    missed: Missed | None = None


class ReceivedEvent:
    """One event. `missed` tells which events were lost just before it; `is_replayed` that it came from the log."""

    __slots__ = ("_body", "_raw", "is_replayed", "meta", "missed", "subject")

    def __init__(
        self, subject: str, meta: EventMeta, raw: Buffer | None, body: Any = None, *, is_replayed: bool = False
    ) -> None:
        self.subject = subject
        self.meta = meta
        self.missed = meta.missed
        self.is_replayed = is_replayed
        self._raw = raw
        self._body = body

    @property
    def seq(self) -> int:
        """Sequence number on this broker."""
        return self.meta.seq

    @property
    def at(self) -> float:
        """When the broker took it in, Unix epoch seconds."""
        return self.meta.at

    @property
    def source(self) -> str:
        """Name of the publisher."""
        return self.meta.source

    @property
    def id(self) -> str:
        """Identifies the event, also across a replay."""
        return self.meta.id

    @property
    def raw(self) -> bytes:
        """The body as it was published; of a replayed event, encoded anew as msgpack."""
        return msgspec.msgpack.encode(self._body) if self._raw is None else bytes(self._raw)

    @property
    def body(self) -> Any:
        """The body as builtin values, decoded on first use; bytes when it is neither JSON nor msgpack."""
        if self._body is None and self._raw is not None:
            self._body = decode_any(self._raw)
        return self._body


_decode_meta = msgspec.msgpack.Decoder(EventMeta).decode


class Subscription:
    """Use as `async with`: inside the block every matching event published from then on arrives."""

    def __init__(
        self,
        patterns: tuple[str, ...],
        *,
        dial: Dial,
        reconnect_max_s: float,
        ready: Callable[[Channel], Awaitable[Link]],
        reader: Reader | None,
        on_closed: Callable[[Subscription], None],
        after_seq: int | None = None,
        on_link: OnLink | None = None,
    ) -> None:
        self.patterns = tuple(subjects.validate_pattern(pattern) for pattern in patterns or (">",))
        # The broker takes a pattern without wildcards as a prefix, as ZeroMQ does; here it means that subject alone.
        self._has_exact = not all(map(subjects.is_pattern, self.patterns))
        self._ready_link = ready
        self._reader = reader
        self._on_closed = on_closed
        self._on_link = on_link
        self._arrived: deque[list[Buffer]] = deque()
        self._replay: deque[ReceivedEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._last_seq = after_seq
        self._was_up = False
        self._must_read_back = after_seq is not None and reader is not None
        self._is_paused = False
        self._is_closed = False
        self._channel = Channel(
            dial,
            Role.EVENTS,
            reconnect_max_s=reconnect_max_s,
            on_messages=self._on_messages,
            on_up=self._on_up,
            on_down=self._on_down,
        )

    async def __aenter__(self) -> Self:
        link = await self._ready_link(self._channel)
        await link.ping()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Unsubscribe; a pending `async for` ends."""
        if self._is_closed:
            return
        self._is_closed = True
        self._on_closed(self)
        self._wake()
        await self._channel.close()

    def catch_up(self) -> None:
        """Read back what came after the last event: of the last ones of a storm nobody says that they were lost."""
        if self._reader is not None:
            self._must_read_back = True
            self._wake()

    def __aiter__(self) -> AsyncIterator[ReceivedEvent]:
        return self

    async def __anext__(self) -> ReceivedEvent:
        while True:
            if self._must_read_back and self._last_seq is not None:
                self._must_read_back = False
                try:
                    await self._read_back(self._last_seq + 1, None)
                except BaseException:
                    self._must_read_back = True
                    raise
            if self._replay:
                event = self._replay.popleft()
            elif self._arrived:
                event = self._next_arrived()
                if event.missed is not None and self._reader is not None:
                    try:
                        await self._read_back(event.missed.first_seq, event.missed.last_seq)
                    except BaseException:
                        # Whoever goes on gets the event, and is told what is missing before it.
                        self._replay.append(event)
                        raise
                    event.missed = None
                    self._replay.append(event)
                    continue
            elif self._is_closed:
                raise StopAsyncIteration
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
                continue
            if self._last_seq is not None and event.seq <= self._last_seq:
                continue
            self._last_seq = event.seq
            return event

    def _next_arrived(self) -> ReceivedEvent:
        frames = self._arrived.popleft()
        if self._is_paused and len(self._arrived) < _QUEUE_MAX // 2 and self._channel.link is not None:
            self._is_paused = False
            self._channel.link.resume_reading()
        return ReceivedEvent(str(frames[0], "utf-8"), _decode_meta(frames[1]), frames[2])

    async def _read_back(self, first_seq: int, last_seq: int | None) -> None:
        assert self._reader is not None
        found: dict[int, LoggedEvent] = {}
        for pattern in self.patterns:
            found |= {event.seq: event for event in await self._reader(pattern, first_seq, last_seq)}
        self._replay.extend(
            ReceivedEvent(
                event.subject,
                EventMeta(event.seq, event.at, event.source, event.id),
                None,
                event.body,
                is_replayed=True,
            )
            for _, event in sorted(found.items())
        )

    def _on_up(self, link: Link) -> None:
        for pattern in self.patterns:
            link.send(zmtp.subscription(pattern.encode()))
        self._is_paused = False
        if self._was_up and self._reader is not None:
            self._must_read_back = True
            self._wake()
        if self._was_up and self._on_link is not None:
            self._on_link(None)
        self._was_up = True

    def _on_down(self, reason: str) -> None:
        if self._on_link is not None and not self._is_closed:
            self._on_link(reason)

    def _on_messages(self, messages: list[list[Buffer]]) -> None:
        for frames in messages:
            if len(frames) == 3 and (not self._has_exact or self._is_wanted(str(frames[0], "utf-8"))):
                self._arrived.append(frames)
        if len(self._arrived) > _QUEUE_MAX and not self._is_paused and self._channel.link is not None:
            self._is_paused = True
            self._channel.link.pause_reading()
        self._wake()

    def _is_wanted(self, subject: str) -> bool:
        return any(subjects.matches(pattern, subject) for pattern in self.patterns)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
