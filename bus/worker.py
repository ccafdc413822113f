"""The worker runtime: registers handlers for operations, serves them, and leaves in good order.

Everything here runs in one event loop, which therefore also is the network thread: a handler that computes for long
does so in a thread of its own, or the worker's heartbeats stop and the broker gives its requests to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import resource
import signal
import socket
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from bus.authorize import Authorizer, Caller, check_namespaces
from bus.channel import Channel
from bus.client import Client
from bus.gather import gather
from bus.needs import in_words, missing, needs_of
from bus.reminder import Reminder
from bus.settings import Settings
from bus.transport import Dial, Link, Role, dialer
from bus.version import VERSION
from schemas import catalog, subjects
from schemas.bodies.base import SecretRequest
from schemas.bodies.control import BusServices, ErrorReport, Heartbeat, Ready, ServiceList, Welcome
from schemas.envelope import NIL, Buffer, Headers, Kind, Message, decode, encode, encode_raw
from schemas.errors import BadRequest, BusError, Cancelled, ErrorBody, Internal, NoWorker, TooLarge, WorkerLost
from schemas.limits import MAX_BODY_BYTES
from schemas.values import as_json, check_values

log = logging.getLogger("olympus.worker")

# The broker must be heard within this many heartbeats, or the connection is given up and made anew.
_LEASE_BEATS: Final = 3

# How often it is looked whether the services are there that this one waits for, seconds.
_LOOK_EVERY_S: Final = 0.5

# Of the time to leave, kept for saying so and closing.
_LEAVE_S: Final = 0.3

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

Handler = Callable[[Any, "Call"], Awaitable[Any]]


class Call:
    """One request as its handler sees it.

    id: 16 bytes, the idempotency key. subject: as the caller wrote it. headers: those of the request. caller: who asks,
    None where nobody has to sign in.
    """

    __slots__ = ("_gathered", "_message", "_streamed_on", "_worker", "caller", "headers", "id", "subject")

    def __init__(self, worker: Worker, message: Message) -> None:
        headers = message.headers
        self._worker = worker
        self._message = message
        self._streamed_on: int | None = None
        self.id = message.id
        self.subject = message.subject
        self.caller: Caller | None = None
        self.headers: Headers = headers or {}
        self._gathered: list[Any] | None = [] if headers and headers.get("gather") is True else None

    @property
    def deadline_at(self) -> float:
        """Unix epoch seconds, 0 for none."""
        return self._message.deadline_ms / 1000

    @property
    def attempt(self) -> int:
        """Starts at 1; above it the broker had to give the request to another worker."""
        attempt = self.headers.get("attempt", 1)
        return attempt if isinstance(attempt, int) else 1

    async def partial(self, body: Any) -> None:
        """Stream one piece of the reply; waits while the broker takes no more. Gathered for callers who want one reply.

        Raises WorkerLost when the broker was lost since the first piece: the caller's stream then has a hole.
        """
        if self._gathered is not None:
            self._gathered.append(body)
            return
        if self._streamed_on is None:
            self._streamed_on = self._worker._connections
        self._check_unbroken()
        self._worker._send(self._worker._frames(self, Kind.PARTIAL, body))
        await self._worker._drain()

    def whole(self, final: Any) -> Any:
        """The final reply with the gathered partial ones in it. Raises WorkerLost as `partial` does."""
        if self._streamed_on is not None:
            self._check_unbroken()
        return gather(final, self._gathered) if self._gathered else final

    def _check_unbroken(self) -> None:
        if self._streamed_on is not None and self._streamed_on != self._worker._connections:
            raise WorkerLost(f"the broker was lost while {self.subject} streamed its reply", subject=self.subject)


class _Served:
    """A handler with the decoders of its request type."""

    __slots__ = ("from_json", "from_msgpack", "function", "is_secret", "type")

    def __init__(self, function: Handler, request_type: Any) -> None:
        self.function = function
        self.type = request_type
        self.is_secret = isinstance(request_type, type) and issubclass(request_type, SecretRequest)
        self.from_msgpack = msgspec.msgpack.Decoder(request_type).decode
        self.from_json = msgspec.json.Decoder(request_type).decode

    def request(self, message: Message) -> Any:
        """The decoded body; nil and an empty body stand for an empty map. Raises BadRequest with the field's path."""
        body = message.body_bytes()
        check_values(body, message.encoding)
        try:
            if message.encoding == "json":
                return self.from_json(b"{}" if len(body) == 4 and bytes(body) == b"null" else body)
            return self.from_msgpack(_EMPTY_MAP if len(body) == 1 and bytes(body) == NIL else body)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `")
            # A path is `$.a.b[...]`, or `key` in `$.a.b` where a map's key is wrong.
            field = path.rstrip("`").rpartition("$")[2].removeprefix(".") or "body"
            where = f" (field {field!r})" if path else ""
            value = "" if self.is_secret else _shown(body, message.encoding, field)
            it_is = f", it is {value}" if value else ""
            if text.startswith("Invalid enum value"):
                text = f"Expected {_choices(self.type, field)}"
            raise BadRequest(f"{message.subject}: {text}{it_is}{where}", field=field) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"{message.subject}: body does not decode: {error}", field="body") from error


def _choices(kind: Any, field: str) -> str:
    """What a field of few values may be: `one of a, b`."""
    info = msgspec.inspect.type_info(kind)
    for name, _ in _STEP.findall(field):
        info = _within(info, name)
    while isinstance(info, msgspec.inspect.Metadata | msgspec.inspect.UnionType):
        parts = [info.type] if isinstance(info, msgspec.inspect.Metadata) else info.types
        info = next(part for part in parts if not isinstance(part, msgspec.inspect.NoneType))
    return f"one of {', '.join(map(str, info.values))}" if isinstance(info, msgspec.inspect.LiteralType) else "another"


def _within(info: Any, name: str) -> Any:
    """The type of what `name` means in a value of another type: a field, or an item of a list or map."""
    inspect = msgspec.inspect
    match info:
        case inspect.Metadata(type=inner):
            return _within(inner, name)
        case inspect.UnionType(types=types):
            return _within(next(part for part in types if not isinstance(part, inspect.NoneType)), name)
        case inspect.StructType(fields=fields):
            return next(field.type for field in fields if field.encode_name == name)
        case inspect.ListType(item_type=item):
            return item
        case inspect.DictType(value_type=value):
            return value
    return info


def _shown(body: Buffer, encoding: str, field: str) -> str:
    """A field's value for an error message; empty where it is none, has parts, or its place is not told by `field`."""
    if len(body) > _SHOWN_BODY_BYTES:
        return ""
    try:
        value: Any = msgspec.json.decode(body) if encoding == "json" else msgspec.msgpack.decode(body)
        for name, index in _STEP.findall(field):
            value = value[int(index) if index else name]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, IndexError, TypeError):
        return ""
    if value is None or isinstance(value, dict | list):
        return ""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


# A name, or an index, of a path such as `messages[1].content`. Of a map's value it says only `[...]`, which is neither.
_STEP: Final = re.compile(r"([^.\[\]]+|\.\.\.)|\[(\d+)\]")

# Bodies up to which a refused value is looked up, and characters of it that are shown.
_SHOWN_BODY_BYTES: Final = 65_536
_SHOWN_CHARACTERS: Final = 60

_EMPTY_MAP: Final = b"\x80"
_REQUEST: Final = Kind.REQUEST


class Worker:
    """Serves operations as one instance of a service.

    capacity: requests it takes at once. instance: its name, made of host and pid by default; callers may address it as
    `subject@instance`. Register handlers before `start`.
    """

    def __init__(
        self,
        service: str,
        settings: Settings | None = None,
        *,
        capacity: int = 64,
        instance: str | None = None,
        dial: Dial | None = None,
    ) -> None:
        self.service = service
        self.settings = settings or Settings()
        self.instance = instance or f"{socket.gethostname()}-{os.getpid()}"
        self.capacity = capacity
        name = f"{service}/{self.instance}"
        self._dial = dial or dialer(self.settings, name)
        self.client = Client(self.settings, name=name, dial=self._dial)
        self.authorizer = Authorizer(self.settings, self.client) if self.settings.auth.required else None
        self._listening: asyncio.Task[None] | None = None
        self._awaiting: asyncio.Task[None] | None = None
        self._reminder = Reminder()
        self._handlers: dict[str, _Served] = {}
        self._patterns: list[tuple[str, _Served]] = []
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._reporting: set[asyncio.Task[None]] = set()
        self._unsent: dict[bytes, list[Buffer]] = {}
        self._counters = {"handled": 0, "failed": 0, "cancelled": 0}
        self._max_body_bytes = MAX_BODY_BYTES
        self._heartbeat_s = self.settings.bus.heartbeat_s
        self._heard_at = 0.0
        self._loop_lag_s = 0.0
        self._beating: asyncio.Task[None] | None = None
        self._welcomed = asyncio.Event()
        self._last_request_came = asyncio.Event()
        # Kept because asyncio.get_running_loop() costs a system call in Python 3.11.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections = 0
        self._is_serving = False
        self._is_draining = False
        self._stop = asyncio.Event()
        self._channel = Channel(
            self._dial,
            Role.REQUEST,
            reconnect_max_s=self.settings.bus.reconnect_max_s,
            on_messages=self._on_messages,
            on_up=self._register,
            on_down=self._on_down,
            on_failure=self._on_unreachable,
        )

    # Registration

    def handle(self, subject: str, handler: Handler, *, request_type: Any = None) -> None:
        """Serve `subject`, which may be a pattern, or hold `@name` to be served at that instance only.

        The request type comes from the catalogue; for a subject that is not in it, from `request_type` (builtin values
        without). Raises BadRequest for a bad subject.
        """
        subjects.validate_pattern(subject)
        operation = catalog.lookup(subject)
        served = _Served(handler, request_type or (operation.request if operation else Any))
        if subjects.is_pattern(subject):
            self._patterns.append((subject, served))
        else:
            self._handlers[subject] = served

    def handles(self, subject: str, *, request_type: Any = None) -> Callable[[Handler], Handler]:
        """`handle` as a decorator."""

        def register(handler: Handler) -> Handler:
            self.handle(subject, handler, request_type=request_type)
            return handler

        return register

    # Life

    async def start(self, timeout_s: float | None = None) -> None:
        """Connect and register; returns once the broker has welcomed this worker.

        Raises TimeoutError, and BadRequest where there is nothing to serve.
        """
        if not self._handlers and not self._patterns:
            raise BadRequest(f"the worker of {self.service!r} serves nothing: register a handler before it starts")
        self._loop = asyncio.get_running_loop()
        self._is_serving = True
        if self.authorizer is not None:
            self._listening = self._loop.create_task(self.authorizer.listen())
        self._awaiting = self._loop.create_task(self._await_needs())
        self._channel.start()
        async with asyncio.timeout(timeout_s):
            await self._welcomed.wait()

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `leave`, then drain within `supervisor.stop_s` seconds."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.leave)
        waiting = asyncio.ensure_future(self._stop.wait())
        starting = asyncio.ensure_future(self.start())
        await asyncio.wait({waiting, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            log.info("ready", extra={"action": "worker.ready", "service": self.service, "instance": self.instance})
            await waiting
        starting.cancel()
        await self.stop()

    def leave(self) -> None:
        """Make `run` drain and return."""
        self._stop.set()

    async def stop(self, drain_s: float | None = None) -> None:
        """Take no new requests, finish those in flight, leave; what is not done after `drain_s` is left to the broker."""
        if drain_s is None:
            drain_s = self.settings.supervisor.stop_s - _LEAVE_S
        self._is_draining = True
        link = self._channel.link
        if link is not None and self._welcomed.is_set():
            link.send(encode(Kind.BYE))
        else:
            self._last_request_came.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(drain_s, 0)):
                # Requests may be on their way here; the broker's own BYE comes after the last of them.
                await self._last_request_came.wait()
                while self._tasks:
                    await asyncio.wait(list(self._tasks.values()))
        self._is_serving = False
        abandoned = list(self._tasks.values())
        if abandoned:
            log.warning("left with requests in flight", extra={"action": "worker.abandoned", "count": len(abandoned)})
        for task in (self._beating, self._listening, self._awaiting):
            if task is not None:
                task.cancel()
        with contextlib.suppress(TimeoutError):
            await self._channel.close()
        for task in abandoned:
            task.cancel()
        await asyncio.gather(*abandoned, return_exceptions=True)
        if self._reporting:
            await asyncio.wait(list(self._reporting), timeout=_LEAVE_S)
        await self.client.close()

    async def publish(self, subject: str, body: Any = None) -> None:
        """Publish one event; see `Client.publish`."""
        await self.client.publish(subject, body)

    def set_capacity(self, capacity: int) -> None:
        """Change how many requests are taken at once; 0 pauses."""
        self.capacity = capacity
        self._send(encode(Kind.CREDIT, body={"capacity": capacity}))

    @property
    def in_flight(self) -> int:
        """Requests being handled now."""
        return len(self._tasks)

    # Protocol

    def _register(self, link: Link) -> None:
        if self._is_draining:
            return
        self._heard_at = asyncio.get_running_loop().time()
        ready = Ready(
            service=self.service,
            instance=self.instance,
            subjects=[*self._handlers, *(pattern for pattern, _ in self._patterns)],
            capacity=self.capacity,
            version=VERSION,
            host=socket.gethostname(),
            pid=os.getpid(),
            in_flight=[*self._tasks, *self._unsent],
        )
        link.send(encode(Kind.READY, body=ready))

    def _on_welcome(self, message: Message) -> None:
        welcome = msgspec.msgpack.decode(message.body, type=Welcome)
        self._max_body_bytes = welcome.max_body_bytes
        self._heartbeat_s = welcome.heartbeat_s
        if self._beating is None or self._beating.done():
            self._beating = asyncio.get_running_loop().create_task(self._beat())
        unsent, self._unsent = self._unsent, {}
        for frames in unsent.values():
            self._send(frames)
        self._welcomed.set()
        if self._reminder.was_said:
            log.info("the broker is there", extra={"action": "worker.connected", "service": self.service})
        self._reminder.clear()

    def _on_unreachable(self, reason: str) -> None:
        bus = self.settings.bus
        if self._reminder.is_due(reason, time.monotonic()):
            where = f"{bus.host}:{bus.request_port}"
            log.warning(
                "waiting for the broker",
                extra={"action": "worker.waiting", "service": self.service, "broker": where, "reason": reason},
            )

    async def _await_needs(self) -> None:
        """Say which services this one waits for, until they are there; what takes them fails meanwhile."""
        needs = needs_of(self.settings, self.service)
        reminder = Reminder()
        while needs:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                reply: ServiceList = await self.client.request("bus.services", BusServices())
            except BusError:
                # That the broker is away is said by `_on_unreachable`.
                continue
            absent = missing(needs, {service.service for service in reply.services if service.instances})
            fields = {"service": self.service, "needs": in_words(absent or needs)}
            if not absent:
                if reminder.was_said:
                    log.info("all that it waited for is there", extra={"action": "worker.needs_met", **fields})
                return
            if reminder.is_due(fields["needs"], time.monotonic()):
                log.warning("waiting for other services", extra={"action": "worker.waiting", **fields})

    def _on_down(self, reason: str) -> None:
        self._welcomed.clear()
        self._last_request_came.set()
        self._connections += 1
        if self.authorizer is not None:
            # What was revoked while the broker is away is not heard of.
            self.authorizer.forget()
        if self._is_serving and not self._is_draining:
            log.warning(
                "lost the broker", extra={"action": "worker.disconnected", "service": self.service, "reason": reason}
            )

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            slept_at = loop.time()
            await asyncio.sleep(self._heartbeat_s)
            now = loop.time()
            self._loop_lag_s = max(now - slept_at - self._heartbeat_s, 0.0)
            link = self._channel.link
            if link is None or not self._welcomed.is_set():
                continue
            if now - self._heard_at > _LEASE_BEATS * self._heartbeat_s + self._loop_lag_s:
                link.abort(f"the broker was silent for {now - self._heard_at:.1f} s")
                continue
            link.send(encode(Kind.HEARTBEAT, body=self._heartbeat()))

    def _heartbeat(self) -> Heartbeat:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Heartbeat(
            in_flight=len(self._tasks),
            rss_bytes=rss_bytes(),
            cpu_s=usage.ru_utime + usage.ru_stime,
            loop_lag_s=self._loop_lag_s,
            **self._counters,
        )

    def _on_messages(self, messages: list[list[Buffer]]) -> None:
        loop = self._loop
        assert loop is not None
        self._heard_at = loop.time()
        for frames in messages:
            try:
                message = decode(frames)
            except (BadRequest, TooLarge) as error:
                log.warning("undecodable message", extra={"action": "worker.undecodable", "error": str(error)})
                continue
            if message.kind is _REQUEST:
                self._accept(message, loop)
            elif message.kind is Kind.CANCEL:
                task = self._tasks.get(message.id)
                if task is not None:
                    # Not at once: a task cancelled before its first step never runs, and so never answers.
                    loop.call_soon(task.cancel)
            elif message.kind is Kind.WELCOME:
                self._on_welcome(message)
            elif message.kind is Kind.BYE:
                self._last_request_came.set()
            elif message.kind is Kind.ERROR:
                # Of no request: the broker sends this worker away, or could not read what it said.
                refused = msgspec.msgpack.decode(message.body, type=ErrorBody)
                log.warning(
                    "refused by the broker",
                    extra={"action": "worker.refused", "service": self.service, "reason": refused.message},
                )

    def _accept(self, message: Message, loop: asyncio.AbstractEventLoop) -> None:
        if message.id not in self._tasks:
            self._tasks[message.id] = loop.create_task(self._serve(message))

    def _served(self, subject: str) -> _Served:
        served = self._handlers.get(subject) or self._handlers.get(subject.partition("@")[0])
        if served is None:
            served = next((one for pattern, one in self._patterns if subjects.matches(pattern, subject)), None)
        if served is None:
            raise NoWorker(f"{self.instance} does not serve {subject!r}", subject=subject)
        return served

    async def _serve(self, message: Message) -> None:
        call = Call(self, message)
        try:
            served = self._served(message.subject)
            if self.authorizer is None:
                request = served.request(message)
            else:
                request = await self._authorized(self.authorizer, served, message, call)
            reply = await served.function(request, call)
            frames = self._frames(call, Kind.FINAL, call.whole(reply))
            self._counters["handled"] += 1
        except BusError as error:
            self._counters["failed"] += 1
            frames = self._error_frames(call, error)
        except asyncio.CancelledError:
            self._counters["cancelled"] += 1
            frames = self._error_frames(call, Cancelled("the request was cancelled"))
        except Exception as error:  # noqa: BLE001 - the dispatch: whatever a handler raises ends its request
            self._counters["failed"] += 1
            frames = self._error_frames(call, self._on_failure(call, error))
        del self._tasks[message.id]
        if self._is_serving:
            self._send(frames, message.id)

    async def _authorized(self, authorizer: Authorizer, served: _Served, message: Message, call: Call) -> Any:
        """The request, of a caller who may make it; nothing of it is decoded before that is known."""
        call.caller = await authorizer.admit(message.subject, call.headers)
        request = served.request(message)
        if call.caller is not None:
            check_namespaces(call.caller, message.subject, request)
        return request

    def _frames(self, call: Call, kind: Kind, body: Any) -> list[Buffer]:
        if call.headers.get("encoding") == "json":
            frames = encode_raw(kind, call.id, "", 0, {"encoding": "json"}, as_json(body))
        else:
            frames = encode(kind, call.id, "", 0, None, body)
        if len(frames) == 2 and len(frames[1]) > self._max_body_bytes:
            raise TooLarge(
                f"the reply to {call.subject} has {len(frames[1])} bytes, the limit is {self._max_body_bytes}",
                size_bytes=len(frames[1]),
                limit_bytes=self._max_body_bytes,
            )
        return frames

    def _error_frames(self, call: Call, error: BusError) -> list[Buffer]:
        try:
            return self._frames(call, Kind.ERROR, error.body())
        except Exception as failure:  # noqa: BLE001 - whatever a handler put into the details, its caller gets an answer
            told = Internal(f"{error.code}: {error.message[:4096]} (its details cannot be sent: {failure})")
            return self._frames(call, Kind.ERROR, told.body())

    def _send(self, frames: list[Buffer], id: bytes | None = None) -> None:
        """Send, or keep a final reply until the broker is back."""
        link = self._channel.link
        if link is not None:
            link.send(frames)
        elif id is not None:
            self._unsent[id] = frames

    async def _drain(self) -> None:
        link = self._channel.link
        if link is not None:
            await link.drain()

    def _on_failure(self, call: Call, error: Exception) -> Internal:
        """A handler raised what it did not declare: log it, count it, report it on the bus."""
        kind = type(error).__name__
        log.error(
            "handler failed",
            exc_info=error,
            extra={"action": "worker.failed", "service": self.service, "subject": call.subject, "id": call.id.hex()},
        )
        report = ErrorReport(
            service=self.service,
            severity="error",
            kind=kind,
            message=str(error)[:4096],
            traceback="".join(traceback.format_exception(error))[-16_384:],
            subject=call.subject,
            request_id=call.id.hex(),
            instance=self.instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            at=time.time(),
        )
        task = asyncio.get_running_loop().create_task(self._report(report))
        self._reporting.add(task)
        task.add_done_callback(self._reporting.discard)
        return Internal(f"{self.service} failed on {call.subject}: {kind}: {error}", kind=kind)

    async def _report(self, report: ErrorReport) -> None:
        try:
            await self.client.publish(f"error.{_token(report.service)}.{report.severity}", report)
        except BusError as error:
            log.warning("error report not published", extra={"action": "worker.unreported", "error": str(error)})


def _token(service: str) -> str:
    """A service name as one subject token."""
    return service.replace(".", "-")


def rss_bytes() -> int:
    """Resident bytes of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
