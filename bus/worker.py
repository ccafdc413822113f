"""The worker runtime: registers handlers for operations, serves them, and leaves in good order.

Everything here runs in one event loop, which therefore also is the network thread: a handler that computes for long
does so in a thread of its own, or the worker's heartbeats stop and the broker gives its requests to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec

from bus.audit import Auditor, actor_of, address_of, target_of
from bus.authorize import REFUSED, Authorizer, Caller, check_namespaces, refusal_of
from bus.channel import Channel
from bus.client import Client
from bus.context import asked_by, current
from bus.gather import gather
from bus.logs import configure_logging
from bus.machine import host_figures, process_figures, rss_bytes, started_at
from bus.metrics import Figures, Told, only
from bus.needs import in_words, missing, needs_of
from bus.reminder import Reminder
from bus.reports import Reports, token
from bus.settings import Settings
from bus.tally import OK, Tallies, Tally
from bus.transport import Dial, Link, Role, dialer
from bus.version import VERSION
from schemas import catalog, metrics, subjects
from schemas.bodies.base import SecretRequest
from schemas.bodies.control import BusServices, Heartbeat, Ready, ServiceList, Welcome
from schemas.bodies.telling import AuditEvent, Series
from schemas.bodies.telling import Figures as FiguresTold
from schemas.envelope import NIL, Buffer, Headers, Kind, Message, decode, encode, encode_raw, id_of
from schemas.errors import (
    BadRequest,
    BusError,
    Cancelled,
    ErrorBody,
    Forbidden,
    Internal,
    NoWorker,
    QuotaExceeded,
    TooLarge,
    Unauthenticated,
    WorkerLost,
)
from schemas.limits import MAX_BODY_BYTES
from schemas.values import as_json, check_values

log = logging.getLogger("olympus.worker")

# The broker must be heard within this many heartbeats, or the connection is given up and made anew.
_LEASE_BEATS: Final = 3

# How often it is looked whether the services are there that this one waits for, seconds.
_LOOK_EVERY_S: Final = 0.5

# Of the time to leave, kept for saying so and closing.
_LEAVE_S: Final = 0.3

# Seconds after the welcome in which the figures of a new process are told first, at most.
_FIRST_TELLING_S: Final = 1.0

# Share of the interval by which a telling may come early or late.
_JITTER: Final = 0.1

# Dependencies named in a heartbeat, at most (schemas.bodies.control.Heartbeat).
_DEGRADED_MAX: Final = 16

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

    __slots__ = ("audit", "from_json", "from_msgpack", "function", "is_secret", "subject", "tally", "type")

    def __init__(self, subject: str, function: Handler, request_type: Any, tally: Tally, *, is_secret: bool) -> None:
        self.subject = subject
        self.function = function
        self.tally = tally
        operation = catalog.lookup(subject)
        self.audit = operation.audit if operation is not None else ""
        self.type = request_type
        self.is_secret = is_secret or (isinstance(request_type, type) and issubclass(request_type, SecretRequest))
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
        self.figures = Figures()
        self.reports = Reports(service, self.instance, self.client.publish)
        self._auditor = Auditor(service, self._publish_audit)
        self._auditing: set[asyncio.Task[None]] = set()
        # Why the broker sent this worker away last; empty once it is welcome.
        self._refused = ""
        self._tallies = Tallies()
        self._refusals = self.figures.counter(metrics.REFUSALS)
        self._worst_lag_s = 0.0
        self._telling: asyncio.Task[None] | None = None
        self._add_figures()
        self._degraded: Callable[[], dict[str, str]] = dict
        self._listening: asyncio.Task[None] | None = None
        self._awaiting: asyncio.Task[None] | None = None
        self._reminder = Reminder()
        self._handlers: dict[str, _Served] = {}
        self._patterns: list[tuple[str, _Served]] = []
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
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
        tally = self._tallies.of(subject)
        served = _Served(
            subject,
            handler,
            request_type or (operation.request if operation else Any),
            tally,
            is_secret=operation is not None and operation.is_secret,
        )
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

    def degraded_by(self, read: Callable[[], dict[str, str]]) -> None:
        """Ask `read` with every heartbeat what this worker does without, and why, by the name of the dependency.

        `olympus status`, /health and the figures show it. `read` must be quick and not block.
        """
        self._degraded = read

    def degraded(self) -> dict[str, str]:
        """What this worker does without, as a heartbeat may carry it; a `read` that fails is a reason of its own."""
        try:
            reasons = {str(name)[:64]: str(reason)[:1024] for name, reason in self._degraded().items() if name}
        except Exception as error:  # noqa: BLE001 - a worker must not be lost for what it cannot say of itself
            reasons = {"itself": f"it cannot say how it is: {type(error).__name__}: {error}"[:1024]}
        return dict(list(reasons.items())[:_DEGRADED_MAX])

    # Life

    async def start(self, timeout_s: float | None = None) -> None:
        """Connect and register; returns once the broker has welcomed this worker.

        Raises TimeoutError, and BadRequest where there is nothing to serve.
        """
        if not self._handlers and not self._patterns:
            raise BadRequest(f"the worker of {self.service!r} serves nothing: register a handler before it starts")
        self._loop = asyncio.get_running_loop()
        self.reports.bind()
        self._is_serving = True
        if self.authorizer is not None:
            self._listening = self._loop.create_task(self.authorizer.listen())
        self._awaiting = self._loop.create_task(self._await_needs())
        if self.settings.bus.metrics_interval_s:
            self._telling = self._loop.create_task(self._tell_forever())
        self._channel.start()
        async with asyncio.timeout(timeout_s):
            await self._welcomed.wait()

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `leave`, then drain within `supervisor.stop_s` seconds."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.leave)
        if not logging.getLogger().handlers:
            # A program that sets up no logging of its own would tell nobody of its failures.
            configure_logging(self.settings.log)
        with self.reports.hooks():
            await self._run()

    async def _run(self) -> None:
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
        await self._tell_last()
        for task in (self._beating, self._listening, self._awaiting):
            if task is not None:
                task.cancel()
        with contextlib.suppress(TimeoutError):
            await self._channel.close()
        for task in abandoned:
            task.cancel()
        await asyncio.gather(*abandoned, return_exceptions=True)
        self._auditor.tell_due(is_last=True)
        if self._auditing:
            await asyncio.wait(list(self._auditing), timeout=_LEAVE_S)
        await self.reports.close(_LEAVE_S)
        await self.client.close()

    async def publish(self, subject: str, body: Any = None) -> None:
        """Publish one event; see `Client.publish`."""
        await self.client.publish(subject, body)

    def set_capacity(self, capacity: int) -> None:
        """Change how many requests are taken at once; 0 pauses."""
        self.capacity = capacity
        self._send(encode(Kind.CREDIT, body={"capacity": capacity}))

    @property
    def is_welcome(self) -> bool:
        """True while the broker is there and knows this worker."""
        return self._welcomed.is_set()

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
        self._refused = ""
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
        was_welcomed = self._welcomed.is_set()
        self._welcomed.clear()
        self._last_request_came.set()
        self._connections += 1
        if self.authorizer is not None:
            # What was revoked while the broker is away is not heard of.
            self.authorizer.forget()
        if self._is_serving and not self._is_draining and (was_welcomed or not self._refused):
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
            self._worst_lag_s = max(self._worst_lag_s, self._loop_lag_s)
            self._auditor.tell_due()
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
            degraded=self.degraded(),
            **self._counters,
        )

    # Figures

    def _add_figures(self) -> None:
        figures = self.figures
        figures.tell(process_figures)
        figures.tell(lambda: host_figures(self.settings.path("")))
        figures.tell(self._tallies.told)
        figures.tell(self._state_figures)
        figures.read(metrics.ERROR_REPORTS, lambda: only(self.reports.failures))
        figures.read(metrics.ERROR_REPORTS_DAMPED, lambda: only(self.reports.damped))
        for reason in REFUSED:
            self._refusals.add(reason, by=0)

    def _state_figures(self) -> Iterator[Told]:
        """Gauges of this worker."""
        yield metrics.LOOP_LAG, Series((), self._worst_lag_s)
        yield metrics.WORKER_IN_FLIGHT, Series((), len(self._tasks))
        yield metrics.WORKER_CAPACITY, Series((), self.capacity)
        for dependency in self.degraded():
            yield metrics.WORKER_DEGRADED, Series((dependency,), 1)

    def told_figures(self) -> FiguresTold:
        """Every figure of this process now."""
        return FiguresTold(
            service=self.service,
            instance=self.instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=started_at(),
            at=time.time(),
            every_s=self.settings.bus.metrics_interval_s,
            metrics=self.figures.series(),
        )

    async def tell_figures(self) -> None:
        """Publish every figure now; nothing, and without a word, while the broker is away."""
        if self._welcomed.is_set():
            with contextlib.suppress(BusError):
                await self.client.publish(f"metrics.{token(self.service)}", self.told_figures())
        # Whoever looks in between sees the same.
        self._worst_lag_s = 0.0

    async def _tell_forever(self) -> None:
        """Soon after the welcome, then at the interval; at odd times, so that a house does not tell all at once."""
        interval_s = self.settings.bus.metrics_interval_s
        await self._welcomed.wait()
        await asyncio.sleep(random.uniform(0, min(interval_s, _FIRST_TELLING_S)))
        while True:
            await self.tell_figures()
            await asyncio.sleep(interval_s * random.uniform(1 - _JITTER, 1 + _JITTER))

    async def _tell_last(self) -> None:
        if self._telling is None:
            return
        self._telling.cancel()
        if not self._welcomed.is_set():
            return
        with contextlib.suppress(TimeoutError, ConnectionError, BusError):
            async with asyncio.timeout(_LEAVE_S):
                await self.tell_figures()
                # Or the broker may hear first that this worker has left, and then that it still has figures.
                await self.client.flush()

    def _on_messages(self, messages: list[list[Buffer]]) -> None:
        loop = self._loop
        assert loop is not None
        self._heard_at = loop.time()
        # Not the loop's clock, which stands still while one turn of it lasts and counts in milliseconds.
        received_at = time.monotonic()
        for frames in messages:
            try:
                message = decode(frames)
            except (BadRequest, TooLarge) as error:
                log.warning("undecodable message", extra={"action": "worker.undecodable", "error": str(error)})
                if len(frames[0]) > 3 and frames[0][3] == _REQUEST and (id := id_of(frames)):
                    # Or it would count as in flight here for ever.
                    self._send(encode(Kind.ERROR, id, body=error.body()))
                continue
            if message.kind is _REQUEST:
                self._accept(message, loop, received_at)
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
                # It is asked again every few seconds, and says the same until a person changes something.
                if refused.message != self._refused:
                    self._refused = refused.message
                    log.warning(
                        "refused by the broker",
                        extra={"action": "worker.refused", "service": self.service, "reason": refused.message},
                    )

    def _accept(self, message: Message, loop: asyncio.AbstractEventLoop, received_at: float) -> None:
        if message.id not in self._tasks:
            self._tasks[message.id] = loop.create_task(self._serve(message, received_at))

    def _served(self, subject: str) -> _Served:
        served = self._handlers.get(subject) or self._handlers.get(subject.partition("@")[0])
        if served is None:
            served = next((one for pattern, one in self._patterns if subjects.matches(pattern, subject)), None)
        if served is None:
            raise NoWorker(f"{self.instance} does not serve {subject!r}", subject=subject)
        return served

    async def _serve(self, message: Message, received_at: float) -> None:
        call = Call(self, message)
        tally = self._tallies.unknown
        outcome = OK
        current.set(asked_by(message.id, message.headers))
        served = request = reply = None
        try:
            served = self._served(message.subject)
            tally = served.tally
            if self.authorizer is None:
                request = served.request(message)
            else:
                request = await self._authorized(self.authorizer, served, message, call)
            reply = await served.function(request, call)
            frames = self._frames(call, Kind.FINAL, call.whole(reply))
            self._counters["handled"] += 1
        except BusError as error:
            self._counters["failed"] += 1
            outcome = error.code
            frames = self._error_frames(call, error)
        except asyncio.CancelledError:
            self._counters["cancelled"] += 1
            outcome = Cancelled.code
            frames = self._error_frames(call, Cancelled("the request was cancelled"))
        except Exception as error:  # noqa: BLE001 - the dispatch: whatever a handler raises ends its request
            self._counters["failed"] += 1
            outcome = Internal.code
            frames = self._error_frames(call, self._on_failure(call, error, served))
        tally.ended(time.monotonic() - received_at, outcome)
        if served is not None and served.audit and request is not None:
            self._audit(call, served, request, reply, outcome)
        del self._tasks[message.id]
        if self._is_serving:
            self._send(frames, message.id)

    async def _authorized(self, authorizer: Authorizer, served: _Served, message: Message, call: Call) -> Any:
        """The request, of a caller who may make it; nothing of it is decoded before that is known."""
        try:
            call.caller = await authorizer.admit(message.subject, call.headers)
            request = served.request(message)
            if call.caller is not None:
                check_namespaces(call.caller, message.subject, request)
        except (Unauthenticated, Forbidden, QuotaExceeded) as error:
            self._refusals.add(refusal_of(error))
            self._auditor.tell_damped(
                "refusal",
                actor=actor_of(call.caller, call.headers, str(error.details.get("user_id", "(not signed in)"))),
                action=served.subject,
                outcome=error.code,
                reason=error.message,
                address=address_of(call.headers),
            )
            raise
        return request

    def _audit(self, call: Call, served: _Served, request: Any, reply: Any, outcome: str) -> None:
        """A line for the audit log; failures are summed up in a storm, for anybody may cause them."""
        assert served.audit
        tell = self._auditor.tell if outcome == OK else self._auditor.tell_damped
        named = getattr(reply, "user_id", "") or getattr(request, "user_id", "") if served.audit == "sign_in" else ""
        tell(
            served.audit,
            actor=actor_of(call.caller, call.headers, named),
            action=served.subject,
            target=target_of(request),
            outcome=outcome,
            address=address_of(call.headers),
            # Whoever knows the id of a request may ask for its reply once more, and these hold tokens.
            request_id="" if served.is_secret else call.id.hex(),
        )

    def _publish_audit(self, subject: str, event: AuditEvent) -> None:
        task = asyncio.get_running_loop().create_task(self._tell_audit(subject, event))
        self._auditing.add(task)
        task.add_done_callback(self._auditing.discard)

    async def _tell_audit(self, subject: str, event: AuditEvent) -> None:
        try:
            await self.client.publish(subject, event)
        except BusError as error:
            log.warning(
                "audit line not published",
                extra={"action": "worker.unaudited", "line": event.action, "error": error.message},
            )

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

    def _on_failure(self, call: Call, error: Exception, served: _Served | None) -> Internal:
        """A handler raised what it did not declare: it is counted, logged and reported, and the caller is told."""
        kind = type(error).__name__
        operation, is_secret = ("", False) if served is None else (served.subject, served.is_secret)
        message = self.reports.failed(
            error, "handler failed", subject=call.subject, operation=operation, is_secret=is_secret
        )
        return Internal(f"{self.service} failed on {call.subject}: {kind}: {message}", kind=kind)
