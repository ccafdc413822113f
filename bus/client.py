"""The asyncio client: request, stream, publish, subscribe, each with a deadline and through broken connections."""

from __future__ import annotations

import abc
import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Final, Literal, Self

import msgspec
import tenacity

from bus.channel import Channel
from bus.context import current
from bus.deadlines import SLOT_S, DeadlineWheel
from bus.gather import gather
from bus.settings import Settings
from bus.subscription import OnLink, Reader, Subscription
from bus.tokens import token_source
from bus.transport import Dial, Link, Role, dialer
from schemas import catalog, subjects
from schemas.envelope import Buffer, Headers, Kind, Message, decode, encode, encode_any, encode_raw, new_id
from schemas.errors import (
    BadRequest,
    BusError,
    Cancelled,
    DeadlineExceeded,
    ErrorBody,
    Internal,
    Overloaded,
    TooLarge,
    WorkerLost,
    from_body,
)
from schemas.limits import ID_BYTES

# How often an idempotent request is sent in all when its connection breaks or its queue is full.
_ATTEMPTS: Final = 3

# The broker answers at the deadline itself; the client waits this much longer before it gives up on the broker.
_BROKER_SLACK_S: Final = 0.25

# Subjects remembered per client; bounded because a program may address any number of instances.
_CALLED_MAX: Final = 1000

log = logging.getLogger("olympus.bus")

_PARTIAL: Final = Kind.PARTIAL
_ERROR: Final = Kind.ERROR

_decode_error = msgspec.msgpack.Decoder(ErrorBody).decode
_decode_error_json = msgspec.json.Decoder(ErrorBody).decode

Priority = Literal["interactive", "batch"]
Decode = Callable[[Buffer], Any]


class BrokerUnreachable(DeadlineExceeded):
    """No connection to the broker came about before the deadline. Never on the wire."""


class _Replies:
    """Decoders of one type in both encodings."""

    __slots__ = ("from_json", "from_msgpack")

    def __init__(self, kind: Any) -> None:
        self.from_msgpack: Decode = msgspec.msgpack.Decoder(kind).decode
        self.from_json: Decode = msgspec.json.Decoder(kind).decode

    def of(self, message: Message) -> Any:
        try:
            if message.headers is None or message.encoding == "msgpack":
                return self.from_msgpack(message.body)
            return self.from_json(message.body_bytes())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Internal(f"the reply does not fit its operation: {error}") from error


class _JsonReplies(_Replies):
    """Replies as JSON text, as they came."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(Any)

    def of(self, message: Message) -> bytes:
        if message.encoding == "json":
            return bytes(message.body_bytes())
        return msgspec.json.encode(super().of(message))


_ANY: Final = _Replies(Any)
_JSON: Final = _JsonReplies()
_by_type: dict[Any, _Replies] = {}


def _replies(kind: Any) -> _Replies:
    known = _by_type.get(kind)
    if known is None:
        known = _by_type[kind] = _Replies(kind)
    return known


class JsonText(bytes):
    """A request's body that is JSON text already; the worker decodes it, and says what is wrong with it."""


class _Called:
    """What the client must know of a subject: how to read its replies, and whether it may be asked twice."""

    __slots__ = ("as_json", "final", "is_idempotent", "partial", "untyped")

    def __init__(self, final: _Replies, partial: _Replies, *, is_idempotent: bool) -> None:
        self.final = final
        self.partial = partial
        self.is_idempotent = is_idempotent
        is_root = final is not _ANY and final is not _JSON
        self.untyped = _Called(_ANY, _ANY, is_idempotent=is_idempotent) if is_root else self
        self.as_json = _Called(_JSON, _JSON, is_idempotent=is_idempotent) if final is not _JSON else self

    def gathered(self, final: Any, partials: list[Message]) -> Any:
        """The final reply with what only its partial replies said."""
        return gather(final, [self.partial.of(part) for part in partials]) if partials else final


class _Outstanding(abc.ABC):
    """One request that was sent and not finished: what is needed to send it again, and where its replies go."""

    __slots__ = ("attempt", "body", "deadline", "deadline_ms", "headers", "id", "subject")

    def __init__(
        self, id: bytes, subject: str, body: Any, headers: Headers | None, timeout_s: float, now: float
    ) -> None:
        self.id = id
        self.subject = subject
        self.body = body
        self.headers = headers
        self.deadline = now + timeout_s + _BROKER_SLACK_S
        self.deadline_ms = int((time.time() + timeout_s) * 1000)
        self.attempt = 1

    def frames(self) -> list[Buffer]:
        """The request as native frames."""
        headers = self.headers
        if self.attempt > 1:
            headers = {**(headers or {}), "attempt": self.attempt}
        if type(self.body) is JsonText:
            return encode_raw(Kind.REQUEST, self.id, self.subject, self.deadline_ms, headers, self.body)
        return encode(Kind.REQUEST, self.id, self.subject, self.deadline_ms, headers, self.body)

    @abc.abstractmethod
    def take(self, reply: Message | Exception) -> None:
        """A reply came, or the reason why none will."""

    @abc.abstractmethod
    def forgets_pieces(self) -> bool:
        """Before it is sent again: drop the pieces that came, which may come again; False when they were handed out."""


class _Single(_Outstanding):
    """A request whose caller waits for the final reply."""

    __slots__ = ("partials", "reply")

    reply: asyncio.Future[Message]

    partials: list[Message] | None

    def take(self, reply: Message | Exception) -> None:
        if self.reply.done():
            return
        if not isinstance(reply, Message):
            self.reply.set_exception(reply)
        elif reply.kind is not _PARTIAL:
            self.reply.set_result(reply)
        elif self.partials is None:
            self.partials = [reply]
        else:
            self.partials.append(reply)

    def forgets_pieces(self) -> bool:
        self.partials = None
        return True


class _Streamed(_Outstanding):
    """A request whose caller takes every piece."""

    __slots__ = ("arrived", "has_pieces", "waiter")

    arrived: deque[Message | Exception]
    has_pieces: bool
    waiter: asyncio.Future[None] | None

    def forgets_pieces(self) -> bool:
        return not self.has_pieces

    def take(self, reply: Message | Exception) -> None:
        self.has_pieces = True
        self.arrived.append(reply)
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Client:
    """Speaks to the bus. Connects when first used and again after a loss; requests in flight are sent again by id.

    `name` is what events published here carry as their source. A request made in a handler belongs to the trace of the
    handler's own (docs/tracing.md). `signs`: requests without a token are sent with that of
    this process, or with what `token` gives then; an edge that speaks for strangers must not. Every method belongs to one event loop.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        name: str = "client",
        dial: Dial | None = None,
        signs: bool = True,
        token: Callable[[], str] | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.name = name
        self._max_body_bytes = self.settings.bus.max_body_bytes
        # Kept because asyncio.get_running_loop() costs a system call in Python 3.11.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dial = dial or dialer(self.settings, name)
        self._token = (token or token_source(self.settings)) if signs else None
        self._outstanding: dict[bytes, _Outstanding] = {}
        self._called: dict[str, _Called] = {}
        self._deadlines: DeadlineWheel[bytes] = DeadlineWheel()
        self._sweeper: asyncio.TimerHandle | None = None
        self._subscriptions: set[Subscription] = set()
        reconnect_max_s = self.settings.bus.reconnect_max_s
        self._requests = Channel(
            self._dial,
            Role.REQUEST,
            reconnect_max_s=reconnect_max_s,
            on_messages=self._on_replies,
            on_up=self._on_up,
        )
        # Over which connection events went since the last flush, and whether some went over one before it.
        self._unread_on: Link | None = None
        self._may_have_lost = False
        self._events = Channel(
            self._dial, Role.PUBLISH, reconnect_max_s=reconnect_max_s, on_messages=lambda messages: None
        )
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what is queued, end every subscription and connection; requests in flight raise Cancelled."""
        self._is_closed = True
        for outstanding in list(self._outstanding.values()):
            self._end(outstanding)
            outstanding.take(Cancelled("the client was closed"))
        for subscription in list(self._subscriptions):
            await subscription.close()
        await self._events.close()
        await self._requests.close()
        if self._sweeper is not None:
            self._sweeper.cancel()

    @property
    def is_connected(self) -> bool:
        """True while there is a connection to the broker for requests; the first one may still have to be made."""
        link = self._requests.link
        return link is not None and link.is_open

    async def connect(self, timeout_s: float | None = None) -> None:
        """Wait for the broker. Raises BrokerUnreachable; without calling this the first request waits."""
        await self._link(self._requests, self.settings.bus.timeout_s if timeout_s is None else timeout_s)

    # Request and reply

    async def request(
        self,
        subject: str,
        body: Any = None,
        *,
        timeout_s: float | None = None,
        headers: Headers | None = None,
        priority: Priority | None = None,
        raw: bool = False,
        id: bytes | None = None,
    ) -> Any:
        """The final reply: the catalogue's Struct for its operations, builtin values for others and with `raw`.

        Partial replies are gathered into it. `id`, 16 bytes, makes a repeated write the same write. Raises the error
        the request ended with (`schemas.errors`); an idempotent operation is first tried again, within `timeout_s`,
        where the connection broke under it or its queue was full. Lost workers are the broker's to retry.
        """
        called = self._called.get(subject) or self._resolve(subject)
        if priority == "batch":
            headers = {**(headers or {}), "priority": "batch"}
        return await self._request(subject, body, timeout_s, headers, called.untyped if raw else called, id)

    async def request_json(
        self,
        subject: str,
        body: Any = None,
        *,
        timeout_s: float | None = None,
        headers: Headers | None = None,
        id: bytes | None = None,
    ) -> bytes:
        """As `request`, with the final reply as JSON text that nothing here decodes; `body` may be a `JsonText`."""
        called = self._called.get(subject) or self._resolve(subject)
        headers = {**(headers or {}), "encoding": "json", "gather": True}
        if type(body) is not JsonText:
            body = JsonText(msgspec.json.encode(body))
        reply: bytes = await self._request(subject, body, timeout_s, headers, called.as_json, id)
        return reply

    async def _request(
        self,
        subject: str,
        body: Any,
        timeout_s: float | None,
        headers: Headers | None,
        called: _Called,
        id: bytes | None,
    ) -> Any:
        if timeout_s is None:
            timeout_s = self.settings.bus.timeout_s
        if self._token is not None:
            headers = self._signed(headers)
        if (asked := current.get()) is not None:
            headers = asked.passed_on(headers)
        if id is None:
            id = new_id()
        elif len(id) != ID_BYTES:
            raise BadRequest(f"id has {len(id)} bytes, it must have {ID_BYTES}", field="id")
        began_at = time.monotonic()
        try:
            return await self._ask(id, subject, body, headers, timeout_s, called)
        except (WorkerLost, Overloaded) as error:
            if not called.is_idempotent or not _may_ask_again(error):
                raise
        left_s = max(began_at + timeout_s - time.monotonic(), 0.0)
        return await self._ask_again(id, subject, body, headers, left_s, called)

    async def _ask(
        self, id: bytes, subject: str, body: Any, headers: Headers | None, timeout_s: float, called: _Called
    ) -> Any:
        """Send one request and wait for its end."""
        loop = self._loop or self._bind()
        outstanding = _Single(id, subject, body, headers, timeout_s, loop.time())
        outstanding.reply = loop.create_future()
        outstanding.partials = None
        link = self._requests.link
        if link is None or not link.is_open:
            link = await self._link(self._requests, timeout_s)
        self._send(link, outstanding)
        try:
            reply = await outstanding.reply
        except asyncio.CancelledError:
            self._cancel(outstanding)
            raise
        if reply.kind is _ERROR:
            raise _error_of(reply)
        final = called.final.of(reply)
        return final if outstanding.partials is None else called.gathered(final, outstanding.partials)

    async def _ask_again(
        self, id: bytes, subject: str, body: Any, headers: Headers | None, left_s: float, called: _Called
    ) -> Any:
        """Under the same id: should the first attempt have had its effect after all, this is the same write."""
        loop = self._loop or self._bind()
        give_up_at = loop.time() + left_s

        async def ask() -> Any:
            return await self._ask(id, subject, body, headers, max(give_up_at - loop.time(), 0.001), called)

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_may_ask_again),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
            stop=tenacity.stop_after_attempt(_ATTEMPTS - 1) | tenacity.stop_after_delay(left_s),
            reraise=True,
        )
        await asyncio.sleep(0.05)
        return await retrying(ask)

    def _resolve(self, subject: str) -> _Called:
        """What is known of a subject, remembered: looking it up costs as much as encoding the request."""
        operation = catalog.lookup(subject)
        if operation is None:
            called = _Called(_ANY, _ANY, is_idempotent=False)
        else:
            partial = _ANY if operation.partial is None else _replies(operation.partial)
            called = _Called(_replies(operation.reply), partial, is_idempotent=operation.is_idempotent)
        if len(self._called) >= _CALLED_MAX:
            self._called.clear()
        self._called[subject] = called
        return called

    def stream(
        self,
        subject: str,
        body: Any = None,
        *,
        timeout_s: float | None = None,
        headers: Headers | None = None,
        priority: Priority | None = None,
        raw: bool = False,
        id: bytes | None = None,
    ) -> Stream:
        """The reply piece by piece: `async with client.stream(...) as parts: async for part in parts: ...`."""
        called = self._called.get(subject) or self._resolve(subject)
        if raw:
            called = called.untyped
        if timeout_s is None:
            timeout_s = self.settings.bus.timeout_s
        if priority == "batch":
            headers = {**(headers or {}), "priority": "batch"}
        return Stream(self, subject, body, self._headed(headers), timeout_s, called, id)

    def stream_json(
        self,
        subject: str,
        body: Any = None,
        *,
        timeout_s: float | None = None,
        headers: Headers | None = None,
        id: bytes | None = None,
    ) -> Stream:
        """As `stream`, with every piece and the final reply as JSON text; `body` may be a `JsonText`."""
        called = self._called.get(subject) or self._resolve(subject)
        headers = {**(headers or {}), "encoding": "json"}
        if type(body) is not JsonText:
            body = JsonText(msgspec.json.encode(body))
        if timeout_s is None:
            timeout_s = self.settings.bus.timeout_s
        return Stream(self, subject, body, self._headed(headers), timeout_s, called.as_json, id)

    def _headed(self, headers: Headers | None) -> Headers | None:
        """Headers as they are sent: with the token of this process, and the place in the trace of a handler's request."""
        headers = self._signed(headers)
        asked = current.get()
        return headers if asked is None else asked.passed_on(headers)

    def _signed(self, headers: Headers | None) -> Headers | None:
        """Headers with this process's token, unless they bring one."""
        if self._token is None or (headers and "token" in headers):
            return headers
        token = self._token()
        return {**(headers or {}), "token": token} if token else headers

    def _bind(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _send(self, link: Link, outstanding: _Outstanding) -> None:
        try:
            frames = outstanding.frames()
        except UnicodeEncodeError as error:
            # Bytes of a file name or of an argument that Python carries along as lone surrogates.
            raise BadRequest(
                f"{outstanding.subject}: the body holds a text that cannot be kept: it is no UTF-8 ({error.reason})"
            ) from error
        if len(frames) == 2 and len(frames[1]) > self._max_body_bytes:
            size, limit = len(frames[1]), self._max_body_bytes
            raise TooLarge(f"body has {size} bytes, the limit is {limit}", size_bytes=size, limit_bytes=limit)
        self._outstanding[outstanding.id] = outstanding
        self._deadlines.add(outstanding.deadline, outstanding.id)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SLOT_S, self._sweep)
        link.send(frames)

    async def _link(self, channel: Channel, timeout_s: float) -> Link:
        if self._is_closed:
            raise Cancelled("the client is closed")
        try:
            return await channel.ready(timeout_s)
        except TimeoutError:
            bus = self.settings.bus
            raise BrokerUnreachable(
                f"no connection to the broker at {bus.host}:{bus.request_port} within {timeout_s:g} s"
                f" ({channel.failure}){'' if bus.server_key else '; is it running?'}",
                host=bus.host,
                port=bus.request_port,
            ) from None

    def _end(self, outstanding: _Outstanding) -> None:
        self._outstanding.pop(outstanding.id, None)
        self._deadlines.remove(outstanding.deadline, outstanding.id)

    def _cancel(self, outstanding: _Outstanding) -> None:
        """Take a request back; nothing happens when it has ended."""
        if outstanding.id not in self._outstanding:
            return
        self._end(outstanding)
        link = self._requests.link
        if link is not None:
            link.send(encode(Kind.CANCEL, outstanding.id))

    def _on_replies(self, messages: list[list[Buffer]]) -> None:
        outstanding = self._outstanding
        for frames in messages:
            try:
                message = decode(frames)
            except (BadRequest, TooLarge) as error:
                bus = self.settings.bus
                log.warning("no broker of Olympus answers at %s:%d: %s", bus.host, bus.request_port, error.message)
                continue
            waiting = outstanding.get(message.id)
            if waiting is None:
                continue
            if message.kind is not _PARTIAL:
                del outstanding[message.id]
                self._deadlines.remove(waiting.deadline, message.id)
            waiting.take(message)

    def _on_up(self, link: Link) -> None:
        """Send again, under its old id, what has no answer: the broker joins it to what it already knows."""
        for outstanding in list(self._outstanding.values()):
            if outstanding.forgets_pieces():
                outstanding.attempt += 1
                link.send(outstanding.frames())
                continue
            self._cancel(outstanding)
            outstanding.take(
                WorkerLost(
                    f"the connection broke while {outstanding.subject} streamed its reply", subject=outstanding.subject
                )
            )

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for id in self._deadlines.expire(loop.time()):
            outstanding = self._outstanding.pop(id, None)
            if outstanding is not None:
                state = "" if self._requests.link else f"; the broker is not connected ({self._requests.failure})"
                error = DeadlineExceeded(
                    f"no answer to {outstanding.subject} before its deadline{state}", subject=outstanding.subject
                )
                outstanding.take(error)
        self._sweeper = loop.call_later(SLOT_S, self._sweep) if self._deadlines else None

    # Events

    async def publish(self, subject: str, body: Any = None, *, headers: Headers | None = None) -> None:
        """Publish one event; waits only while the connection is being made or takes no more bytes.

        Raises BadRequest for a bad subject, BrokerUnreachable. Delivery is best effort: nobody acknowledges an event.
        """
        link = self._events.link
        if link is None or not link.is_open:
            link = await self._link(self._events, self.settings.bus.timeout_s)
        subjects.validate(subject)
        if self._unread_on is not link:
            self._may_have_lost = self._may_have_lost or self._unread_on is not None
            self._unread_on = link
        frames: list[Buffer] = [subject.encode(), encode_any(body)]
        if headers:
            frames.append(msgspec.msgpack.encode(headers))
        link.send(frames)
        await link.drain()

    async def flush(self) -> None:
        """Wait until the broker has read every event published so far.

        Raises BrokerUnreachable; ConnectionError where the connection broke since the last call, so that events may be
        lost that were published over it.
        """
        link = await self._link(self._events, self.settings.bus.timeout_s)
        is_lost = self._may_have_lost or self._unread_on not in (None, link)
        self._may_have_lost, self._unread_on = False, None
        if is_lost:
            raise ConnectionError("the connection broke before the broker had read every event")
        await link.ping()

    def subscribe(
        self,
        *patterns: str,
        read_back: bool = False,
        reader: Reader | None = None,
        after_seq: int | None = None,
        on_link: OnLink | None = None,
    ) -> Subscription:
        """Events whose subject falls under any pattern: `async with client.subscribe("memory.>") as events: ...`.

        With `read_back`, events lost to slowness or a broken connection are fetched from the durable log, in order.
        after_seq: the last event that is known; what came after it is fetched first. reader: fetches in place of the
        client, one call for each pattern; it may take the events itself and return none. on_link: called in the event loop
        with the reason each time the connection breaks, and with None each time it is there again.
        Raises BadRequest for a bad pattern; entering the block raises BrokerUnreachable, ConnectionError.
        """
        subscription = Subscription(
            patterns,
            dial=self._dial,
            reconnect_max_s=self.settings.bus.reconnect_max_s,
            ready=lambda channel: self._link(channel, self.settings.bus.timeout_s),
            reader=reader or (self._read_events if read_back else None),
            after_seq=after_seq,
            on_closed=self._subscriptions.discard,
            on_link=on_link,
        )
        self._subscriptions.add(subscription)
        return subscription

    async def _read_events(self, pattern: str, first_seq: int, last_seq: int | None) -> list[Any]:
        query = {"subject": pattern, "from_seq": first_seq, "limit": 1_000_000}
        if last_seq is not None:
            query["to_seq"] = last_seq
        async with self.stream("bus.events.read", query) as batches:
            return [event async for batch in batches for event in batch.events]


class Stream:
    """Partial replies as they come; `final` after the last. Leaving the block early cancels the request."""

    def __init__(
        self,
        client: Client,
        subject: str,
        body: Any,
        headers: Headers | None,
        timeout_s: float,
        called: _Called,
        id: bytes | None = None,
    ) -> None:
        self._client = client
        self._id = id
        self._request = (subject, body, headers, timeout_s)
        self._called = called
        self._outstanding: _Streamed | None = None
        self._is_over = False
        self._final: Any = None

    @property
    def id(self) -> bytes:
        """The request's id, 16 bytes; raises RuntimeError before the stream has begun."""
        if self._outstanding is None:
            raise RuntimeError("the stream has not begun: use it as `async with`")
        return self._outstanding.id

    @property
    def final(self) -> Any:
        """The final reply; raises RuntimeError before the partial replies are consumed."""
        if not self._is_over:
            raise RuntimeError("the stream has not ended: iterate over it first")
        return self._final

    async def __aenter__(self) -> Self:
        subject, body, headers, timeout_s = self._request
        client = self._client
        id = self._id or new_id()
        outstanding = _Streamed(id, subject, body, headers, timeout_s, (client._loop or client._bind()).time())
        outstanding.arrived = deque()
        outstanding.has_pieces = False
        outstanding.waiter = None
        link = await client._link(client._requests, timeout_s)
        client._send(link, outstanding)
        self._outstanding = outstanding
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Take the request back; nothing happens once it has ended."""
        if self._outstanding is not None:
            self._client._cancel(self._outstanding)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._is_over:
            raise StopAsyncIteration
        outstanding = self._outstanding
        if outstanding is None:
            raise RuntimeError("the stream has not begun: use it as `async with`")
        while not outstanding.arrived:
            outstanding.waiter = (self._client._loop or self._client._bind()).create_future()
            await outstanding.waiter
        message = outstanding.arrived.popleft()
        if isinstance(message, Message):
            if message.kind is _PARTIAL:
                return self._called.partial.of(message)
            self._is_over = True
            if message.kind is Kind.ERROR:
                raise _error_of(message)
            self._final = self._called.final.of(message)
            raise StopAsyncIteration
        self._is_over = True
        raise message


def _may_ask_again(error: BaseException) -> bool:
    """True for a full queue and a broken connection; not where the broker has spent its own attempts on workers."""
    return isinstance(error, Overloaded) or (isinstance(error, WorkerLost) and "attempts" not in error.details)


def _error_of(message: Message) -> BusError:
    decode_body = _decode_error_json if message.encoding == "json" else _decode_error
    try:
        return from_body(decode_body(message.body_bytes()))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Internal(f"the error reply does not decode: {error}")
