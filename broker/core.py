"""The broker's decisions: `handle(event, now) -> effects`. It knows no socket, clock, disk or thread; see design.md."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Any, Final

import msgspec

from broker.queues import Priority
from broker.registry import Registry, Route, Worker, WorkerState
from broker.traces import Ended, EndedRequests, kept_header
from bus.deadlines import DeadlineWheel
from bus.settings import BrokerSettings
from schemas import catalog, subjects
from schemas.bodies import control
from schemas.envelope import REPLIES, Kind, Message, encode, with_headers
from schemas.errors import (
    BY_CODE,
    BusError,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    NoWorker,
    Overloaded,
    WorkerLost,
)

Peer = Hashable

# A worker is believed for this many heartbeats without hearing it.
LEASE_BEATS: Final = 3

# How long requests wait for a service whose last worker was lost, counted from the loss: a supervisor restarts a
# worker in 0.3 to 2 s (measured with kill -9), after five quick deaths it has given up.
GRACE_S: Final = 5.0

# How long a request, or the reply to it, is kept for a native client that lost its connection and comes back.
RESUME_S: Final = 5.0

# Replies kept for such clients, bytes in all; past it the oldest goes.
PARKED_MAX_BYTES: Final = 64 * 1024 * 1024

# Full jitter (AWS architecture blog, "Exponential backoff and jitter"): wait uniform(0, base * 2**attempt) seconds.
_RETRY_BASE_S: Final = 0.05

# Looking for similar names takes a millisecond; a flood of unknown subjects must not be able to ask for more than this.
_HINT_EVERY_S: Final = 0.02

# Longest deadline taken at its word; a later one is cut to it, so that a wrong clock cannot pin memory for ever.
_MAX_DEADLINE_S: Final = 24 * 3600.0


# Of a flood of requests that go well, those that took so long are remembered each, seconds.
_SLOW_S: Final = 0.1


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where a reply goes: a peer, for plain peers the form its bytes must have (None for native), and who that is.

    owner: name of the key of an encrypted connection, empty on this machine; no other may take up what it left.
    """

    peer: Peer
    form: Any = None
    name: str = ""
    owner: str = ""


_INTERACTIVE: Final = Priority.INTERACTIVE
_BATCH: Final = Priority.BATCH
_PARTIAL: Final = Kind.PARTIAL
_ERROR: Final = Kind.ERROR


# Events ---------------------------------------------------------------------------------------------------------


class RequestReceived(msgspec.Struct, gc=False):
    """A client asks."""

    origin: Origin
    message: Message


class ReplyReceived(msgspec.Struct, gc=False):
    """A worker answered: partial, final or error."""

    peer: Peer
    message: Message


class CancelReceived(msgspec.Struct, gc=False):
    """A client takes a request back. owner: as of an Origin."""

    peer: Peer
    id: bytes
    owner: str = ""


class ReadyReceived(msgspec.Struct, gc=False):
    """A worker registers."""

    peer: Peer
    ready: control.Ready


class HeartbeatReceived(msgspec.Struct, gc=False):
    """A worker lives. `beat` is None where what it says of itself cannot be read."""

    peer: Peer
    beat: control.Heartbeat | None


class CreditReceived(msgspec.Struct, gc=False):
    """A worker changes its capacity."""

    peer: Peer
    capacity: int


class ByeReceived(msgspec.Struct, gc=False):
    """A worker drains."""

    peer: Peer


class PeerLost(msgspec.Struct, gc=False):
    """A connection is gone."""

    peer: Peer
    reason: str


class Tick(msgspec.Struct, gc=False):
    """Time passed. `epoch_offset` is the wall clock minus the clock of `now`, in seconds."""

    epoch_offset: float


Event = (
    RequestReceived
    | ReplyReceived
    | CancelReceived
    | ReadyReceived
    | HeartbeatReceived
    | CreditReceived
    | ByeReceived
    | PeerLost
    | Tick
)


# Effects --------------------------------------------------------------------------------------------------------


class Deliver(msgspec.Struct, gc=False):
    """Send these native frames to a worker."""

    peer: Peer
    frames: list[Any]


class Answer(msgspec.Struct, gc=False):
    """Send a worker's reply to whoever asked."""

    origin: Origin
    message: Message


class Fail(msgspec.Struct, gc=False):
    """Answer a request with an error of the broker's own."""

    origin: Origin
    id: bytes
    error: BusError


class Emit(msgspec.Struct, gc=False):
    """Publish an event of the broker's own."""

    subject: str
    body: Any


class Bury(msgspec.Struct, gc=False):
    """Keep a request that no attempt could finish."""

    letter: control.DeadLetter
    message: Message


class Disconnect(msgspec.Struct, gc=False):
    """Close a peer's connection."""

    peer: Peer
    reason: str


Effect = Deliver | Answer | Fail | Emit | Bury | Disconnect


class Counters(msgspec.Struct):
    """Since the broker started; names as in `schemas.bodies.control.BrokerStats`."""

    requests: int = 0
    replies: int = 0
    partials: int = 0
    cancelled: int = 0
    expired: int = 0
    overloaded: int = 0
    unserved: int = 0
    redispatched: int = 0
    worker_lost: int = 0
    dead_letters: int = 0


class Pending(msgspec.Struct, gc=False, eq=False):
    """One request between its receipt and its end.

    States: waiting (in a route's queue), parked until `retry_at` after a loss, in flight (`worker` is set), held (sent
    again to a restarted broker, until a worker claims it, or new to one whose workers are not back yet), done. `origin` is None while its client is away or was
    answered before the worker finished; `is_answered` tells the two apart.
    """

    id: bytes
    origin: Origin | None
    message: Message
    deadline: float
    received_at: float
    priority: Priority
    caller: str = ""
    attempt: int = 0
    route: Route | None = None
    worker: Worker | None = None
    retry_at: float | None = None
    left_at: float | None = None
    streamed: bool = False
    is_done: bool = False
    is_answered: bool = False
    is_new: bool = False
    left_by: str = ""
    dispatched_at: float | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the request."""
        return self.message.size_bytes

    @property
    def is_idempotent(self) -> bool:
        """True when the operation may run twice under one id."""
        operation = catalog.lookup(self.message.subject)
        return operation is not None and operation.is_idempotent


class Core:
    """All state of the broker's routing.

    Until `starting_until` the workers of an earlier life of this broker are on their way back, and requests for
    operations nobody serves yet wait for them. `jitter` returns a uniform number in [0, 1). `is_traced` makes it emit `bus.trace.*` events for every message.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        boot: str,
        heartbeat_s: float,
        max_body_bytes: int,
        starting_until: float = float("-inf"),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._starting_until = starting_until
        self._jitter = jitter
        self._lease_s = LEASE_BEATS * heartbeat_s
        self._epoch_offset = 0.0
        self._pending: dict[bytes, Pending] = {}
        self._deadlines: DeadlineWheel[bytes] = DeadlineWheel()
        self._retries: dict[bytes, Pending] = {}
        self._away: dict[bytes, Pending] = {}
        self._held: dict[bytes, Pending] = {}
        self._claims: dict[bytes, Worker] = {}
        # Until when, the reply, and whose it is; None for a reply to a request of this broker's earlier life.
        self._parked: dict[bytes, tuple[float, Message, str | None]] = {}
        self._parked_bytes = 0
        self._deserted: dict[Route, None] = {}
        self._welcome = control.Welcome(boot=boot, heartbeat_s=heartbeat_s, max_body_bytes=max_body_bytes)
        self.registry = Registry(settings.queue_max_requests, settings.queue_max_bytes)
        self.counters = Counters()
        self.ended = EndedRequests(settings.traces_max)
        self._remembers = settings.traces_max > 0
        self._hinted_at = float("-inf")
        self.is_traced = False
        # Set when the broker itself leaves: then workers are not lost.
        self.is_stopping = False
        self._handlers: dict[type, Callable[[Any, float, list[Effect]], None]] = {
            RequestReceived: self._on_request,
            ReplyReceived: self._on_reply,
            CancelReceived: self._on_cancel,
            ReadyReceived: self._on_ready,
            HeartbeatReceived: self._on_heartbeat,
            CreditReceived: self._on_credit,
            ByeReceived: self._on_bye,
            PeerLost: self._on_peer_lost,
            Tick: self._on_tick,
        }

    def handle(self, event: Event, now: float, effects: list[Effect] | None = None) -> list[Effect]:
        """What follows from one event at `now` (seconds of a monotonic clock), in the order in which to do it.

        With `effects`, what follows is appended to it: a batch of events needs one list.
        """
        if effects is None:
            effects = []
        self._handlers[type(event)](event, now, effects)
        return effects

    # Gauges

    @property
    def in_flight(self) -> int:
        """Requests that a worker holds."""
        return sum(len(worker.in_flight) for worker in self.registry.workers.values())

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return sum(route.queue.count for route in self.registry.routes.values()) + len(self._retries)

    @property
    def queued_bytes(self) -> int:
        """Bytes of the requests that wait."""
        waiting = sum(route.queue.size_bytes for route in self.registry.routes.values())
        return waiting + sum(pending.size_bytes for pending in self._retries.values())

    def workers(self, now: float) -> list[control.WorkerInfo]:
        """Every registered instance."""
        return [
            control.WorkerInfo(
                service=worker.ready.service,
                instance=worker.ready.instance,
                subjects=worker.ready.subjects,
                capacity=worker.ready.capacity,
                in_flight=len(worker.in_flight),
                state=worker.state.value,
                version=worker.ready.version,
                host=worker.ready.host,
                pid=worker.ready.pid,
                joined_at=worker.joined_at + self._epoch_offset,
                heard_s=max(now - worker.heard_at, 0.0),
                answered=worker.answered,
                failed=worker.failed,
                rss_bytes=worker.beat.rss_bytes,
                cpu_s=worker.beat.cpu_s,
                loop_lag_s=worker.beat.loop_lag_s,
                degraded=worker.beat.degraded,
            )
            for worker in self.registry.workers.values()
        ]

    def services(self, now: float) -> list[control.ServiceInfo]:
        """Every service known since the start, also one without a worker."""
        infos = []
        for name, stats in sorted(self.registry.services.items()):
            workers = [worker for worker in self.registry.workers.values() if worker.ready.service == name]
            infos.append(
                control.ServiceInfo(
                    service=name,
                    instances=len(workers),
                    capacity=sum(worker.ready.capacity for worker in workers),
                    in_flight=sum(len(worker.in_flight) for worker in workers),
                    queued=sum(route.queue.count for route in self.registry.routes.values() if route.service == name),
                    answered=stats.answered,
                    failed=stats.failed,
                    p50_s=stats.latency.quantile(0.5, now),
                    p99_s=stats.latency.quantile(0.99, now),
                    subjects=sorted({subject for worker in workers for subject in worker.ready.subjects}),
                )
            )
        return infos

    # Requests

    def _on_request(self, event: RequestReceived, now: float, effects: list[Effect]) -> None:
        self.on_request(event.origin, event.message, now, effects)

    def on_request(self, origin: Origin, message: Message, now: float, effects: list[Effect]) -> None:
        """`handle(RequestReceived(origin, message), now, effects)` without the event: this is every second message."""
        self.counters.requests += 1
        known = self._pending.get(message.id)
        headers = message.headers
        is_resent = False
        if headers is not None:
            attempt = headers.get("attempt", 1)
            is_resent = attempt != 1 and isinstance(attempt, int) and attempt > 1
        if known is not None:
            self._on_known_id(known, origin, message, is_resent, now, effects)
            return
        if is_resent and (parked := self._parked.get(message.id)) is not None:
            if parked[2] not in (None, origin.owner):
                error = Conflict(f"id {message.id.hex()} is that of another's request", field="id")
                self._turn_away(origin, message, now, effects, error)
                return
            del self._parked[message.id]
            self._parked_bytes -= parked[1].size_bytes
            effects.append(Answer(origin, parked[1]))
            return
        deadline = now + self._settings.default_deadline_s
        if message.deadline_ms:
            deadline = min(message.deadline_ms / 1000 - self._epoch_offset, now + _MAX_DEADLINE_S)
            if deadline <= now:
                self.counters.expired += 1
                late_s = now - deadline
                self._turn_away(origin, message, now, effects, DeadlineExceeded(
                    f"the deadline passed {late_s:.3f} s before the request arrived",
                    field="deadline_ms", value=message.deadline_ms, late_s=round(late_s, 3),
                ))  # fmt: skip
                return
        priority = _BATCH if headers is not None and headers.get("priority") == "batch" else _INTERACTIVE
        pending = Pending(message.id, origin, message, deadline, now, priority, origin.name)
        if self.is_traced:
            self._trace("request", pending, effects)
        if is_resent and self._resume(pending, now, effects):
            return
        self._admit(pending, now, effects)

    def _on_known_id(
        self, known: Pending, origin: Origin, message: Message, is_resent: bool, now: float, effects: list[Effect]
    ) -> None:
        """A request under an id in flight: the same client again after a broken connection, or a mistake."""
        owner = known.left_by if known.origin is None else known.origin.owner
        is_same = known.message.subject == message.subject and owner == origin.owner
        if is_same and not known.is_answered and (is_resent or known.origin is None):
            known.origin = origin
            known.left_at = None
            self._away.pop(known.id, None)
            if known.streamed:
                self._answer_early(known, _hole(known), now, effects)
            return
        if is_same and is_resent:
            effects.append(Fail(origin, known.id, _ended_while_away(known, now)))
            return
        error = Conflict(
            f"id {known.id.hex()} is already in flight for {known.message.subject!r}; every request needs an id of its own",
            field="id",
        )  # fmt: skip
        self._turn_away(origin, message, now, effects, error)

    def _turn_away(self, origin: Origin, message: Message, now: float, effects: list[Effect], error: BusError) -> None:
        """Answer what never came to be a request of ours."""
        effects.append(Fail(origin, message.id, error))
        if self._remembers:
            header = kept_header(message.headers)
            size = len(message.body)
            self.ended.add(
                Ended(message.id, header, message.subject, origin.name, None, now, None, now, 0, error.code, size)
            )

    def _resume(self, pending: Pending, now: float, effects: list[Effect]) -> bool:
        """Take up a request that was sent to an earlier life of this broker; False when it may simply run again."""
        claimant = self._claims.get(pending.id)
        # One that does not serve this cannot have been given it.
        if claimant is not None and _serves(claimant, pending):
            del self._claims[pending.id]
            self._track(pending)
            pending.worker = claimant
            pending.route = self.registry.resolve(pending.message.subject)
            pending.attempt = 1
            claimant.in_flight[pending.id] = pending
            return True
        if pending.is_idempotent:
            route = self.registry.resolve(pending.message.subject)
            if route is not None and (route.is_served or self._is_in_grace(route, now)):
                return False
            # Its worker may be on its way back too.
        self._track(pending)
        self._held[pending.id] = pending
        pending.retry_at = now + RESUME_S
        return True

    def _admit(self, pending: Pending, now: float, effects: list[Effect]) -> None:
        route = self.registry.resolve(pending.message.subject)
        if route is None or not (route.is_served or self._is_in_grace(route, now)):
            if now < self._starting_until and catalog.lookup(pending.message.subject) is not None:
                self._track(pending)
                pending.is_new = True
                pending.retry_at = self._starting_until
                self._held[pending.id] = pending
                return
            self.counters.unserved += 1
            self._fail(pending, self._no_worker(pending.message.subject, now), now, effects)
            return
        worker = route.freest()
        if worker is not None and not route.queue.count:
            self._track(pending)
            self._dispatch(pending, route, worker, now, effects)
            return
        if not route.queue.accepts(pending.size_bytes):
            self._refuse(pending, route, now, effects)
            return
        self._track(pending)
        pending.route = route
        route.queue.append(pending)
        route.mark_backlog(pending.priority)

    def _track(self, pending: Pending) -> None:
        self._pending[pending.id] = pending
        self._deadlines.add(pending.deadline, pending.id)

    def _dispatch(self, pending: Pending, route: Route, worker: Worker, now: float, effects: list[Effect]) -> None:
        pending.route = route
        pending.worker = worker
        pending.dispatched_at = now
        pending.attempt += 1
        worker.in_flight[pending.id] = pending
        worker.change_free(-1)
        message = pending.message
        frames: list[Any] = message.frames
        if pending.attempt > 1:
            headers = {**(message.headers or {}), "attempt": pending.attempt}
            frames = with_headers(message, headers)
        effects.append(Deliver(worker.peer, frames))
        if self.is_traced:
            self._trace("dispatch", pending, effects)

    def _refuse(self, pending: Pending, route: Route, now: float, effects: list[Effect]) -> None:
        self.counters.overloaded += 1
        queue = route.queue
        route.refused += 1
        error = Overloaded(
            f"{route.key} has {queue.count} requests ({queue.size_bytes} bytes) waiting;"
            f" the limit is {queue.max_count} requests or {queue.max_bytes} bytes",
            queued=queue.count,
            queued_bytes=queue.size_bytes,
            limit=queue.max_count,
            limit_bytes=queue.max_bytes,
        )
        self._fail(pending, error, now, effects)
        if now - route.overload_told_at >= 1.0:
            route.overload_told_at = now
            body = control.ServiceOverloaded(
                subject=route.key, queued=queue.count, queued_bytes=queue.size_bytes, refused=route.refused
            )
            effects.append(Emit("bus.service.overloaded", body))

    def _no_worker(self, subject: str, now: float) -> NoWorker:
        operation = catalog.lookup(subject)
        if operation is not None:
            return NoWorker(
                f"no worker serves {subject!r}; is the {operation.service!r} service running?",
                subject=subject,
                is_known=True,
            )
        nearest = []
        if now - self._hinted_at >= _HINT_EVERY_S:
            self._hinted_at = now
            nearest = catalog.nearest(subject, self.registry.routes)
        hint = f"; did you mean {', '.join(nearest)}?" if nearest else ""
        return NoWorker(
            f"no worker serves {subject!r} and no operation has that name{hint}",
            subject=subject, is_known=False, nearest=nearest,
        )  # fmt: skip

    def _is_in_grace(self, route: Route, now: float) -> bool:
        return route.lost_at is not None and now - route.lost_at < GRACE_S

    # Replies

    def _on_reply(self, event: ReplyReceived, now: float, effects: list[Effect]) -> None:
        self.on_reply(event.peer, event.message, now, effects)

    def on_reply(self, peer: Peer, message: Message, now: float, effects: list[Effect]) -> None:
        """`handle(ReplyReceived(peer, message), now, effects)` without the event."""
        pending = self._pending.get(message.id)
        worker = self.registry.workers.get(peer)
        if worker is None:
            return
        worker.heard_at = now
        if pending is None or pending.worker is not worker:
            self._on_stray_reply(message, worker, now, effects)
            return
        if message.kind is _PARTIAL:
            self.counters.partials += 1
            pending.streamed = True
            if pending.origin is not None:
                effects.append(Answer(pending.origin, message))
            if self.is_traced:
                self._trace("partial", pending, effects, reply=message, now=now)
            return
        self.counters.replies += 1
        worker.answered += 1
        worker.stats.answered += 1
        worker.stats.latency.record(now - pending.received_at, now)
        if message.kind is _ERROR:
            worker.failed += 1
            worker.stats.failed += 1
        if pending.origin is not None:
            effects.append(Answer(pending.origin, message))
        elif not pending.is_answered:
            kept = _error_message(pending.id, _hole(pending)) if pending.streamed else message
            self._park(kept, now, pending.left_by)
        if self.is_traced and not pending.is_answered:
            self._trace("final" if message.kind is Kind.FINAL else "error", pending, effects, reply=message, now=now)
        if self._remembers and not pending.is_answered:
            if message.kind is _ERROR:
                self._remember(pending, _known_code(message), now)
            elif self.ended.room > 0 or now - pending.received_at >= _SLOW_S or _is_part(pending.message):
                self.ended.room -= 1
                self._remember(pending, "ok", now)
            else:
                self.ended.skipped += 1
        self._finish(pending)
        self._release(worker, pending, now, effects)

    def _on_stray_reply(self, message: Message, worker: Worker, now: float, effects: list[Effect]) -> None:
        """A reply nobody waits for (any more), or one from before this broker's start whose client is still to come."""
        if self._claims.get(message.id) is worker and message.kind is not Kind.PARTIAL:
            del self._claims[message.id]
            self._park(message, now, None)
            worker.change_free(1)
            self._serve_backlog(worker, now, effects)

    def _release(self, worker: Worker, pending: Pending, now: float, effects: list[Effect]) -> None:
        """Give the worker its credit back and, with it, the next waiting request."""
        worker.in_flight.pop(pending.id, None)
        worker.change_free(1)
        if worker.has_backlog:
            self._serve_backlog(worker, now, effects)

    def _serve_backlog(self, worker: Worker, now: float, effects: list[Effect]) -> None:
        if worker.state is not WorkerState.SERVING:
            return
        for priority in Priority:
            for pool in list(worker.pools):
                backlog = pool.backlog[priority]
                while worker.free > 0 and backlog:
                    route = next(iter(backlog))
                    del backlog[route]
                    pending = route.queue.pop(priority)
                    if pending is None:
                        continue
                    if route.queue.has(priority):
                        backlog[route] = None
                    assert isinstance(pending, Pending)
                    self._dispatch(pending, route, worker, now, effects)

    def _park(self, message: Message, now: float, owner: str | None) -> None:
        size = message.size_bytes
        if (earlier := self._parked.pop(message.id, None)) is not None:
            self._parked_bytes -= earlier[1].size_bytes
        if size > PARKED_MAX_BYTES:
            return
        while self._parked and self._parked_bytes + size > PARKED_MAX_BYTES:
            oldest = next(iter(self._parked))
            self._parked_bytes -= self._parked.pop(oldest)[1].size_bytes
        self._parked[message.id] = (now + RESUME_S, message, owner)
        self._parked_bytes += size

    # Ends

    def _remember(self, pending: Pending, outcome: str, now: float) -> None:
        """Once for each request, when its caller is answered, or would be. Nothing of it keeps the message alive."""
        message = pending.message
        headers = message.headers
        worker = pending.worker
        self.ended.add(
            Ended(
                pending.id,
                None if headers is None else kept_header(headers),
                message.subject,
                pending.caller,
                None if worker is None else worker.ready,
                pending.received_at,
                pending.dispatched_at,
                now,
                pending.attempt,
                outcome,
                len(message.body),
            )
        )

    def _finish(self, pending: Pending) -> None:
        """Forget a request."""
        if pending.is_done:
            return
        pending.is_done = True
        id = pending.id
        if self._pending.pop(id, None) is not None:
            self._deadlines.remove(pending.deadline, id)
        for few in (self._retries, self._away, self._held):
            if few:
                few.pop(id, None)

    def _fail(self, pending: Pending, error: BusError, now: float, effects: list[Effect]) -> None:
        """Answer with an error of our own and forget the request."""
        if pending.origin is not None:
            effects.append(Fail(pending.origin, pending.id, error))
        elif not pending.is_answered:
            self._park(_error_message(pending.id, error), now, pending.left_by)
        if self.is_traced:
            self._trace("error", pending, effects, code=error.code, now=now)
        if self._remembers:
            self._remember(pending, error.code, now)
        self._finish(pending)

    def _answer_early(self, pending: Pending, error: BusError, now: float, effects: list[Effect]) -> None:
        """Answer now; the worker still holds the request, and its credit, until it reports the end."""
        if pending.origin is not None:
            effects.append(Fail(pending.origin, pending.id, error))
        pending.origin = None
        pending.is_answered = True
        self._away.pop(pending.id, None)
        assert pending.worker is not None
        effects.append(Deliver(pending.worker.peer, encode(Kind.CANCEL, pending.id)))
        if self.is_traced:
            self._trace("error", pending, effects, code=error.code, now=now)
        if self._remembers:
            self._remember(pending, error.code, now)

    def _withdraw(self, pending: Pending) -> None:
        """Take a request that is not in flight out of wherever it waits."""
        if pending.route is not None and pending.id not in self._retries and pending.id not in self._held:
            pending.is_done = True
            pending.route.queue.forget(pending)
            pending.is_done = False

    def _on_cancel(self, event: CancelReceived, now: float, effects: list[Effect]) -> None:
        pending = self._pending.get(event.id)
        if pending is None or pending.is_answered:
            return
        if pending.origin is None:
            if pending.left_by != event.owner:
                return
            # Its caller came back only to take it back; nobody else knows the id.
            pending.is_answered = True
        elif pending.origin.peer is not event.peer:
            return
        self.counters.cancelled += 1
        self._cancel(pending, "the caller cancelled the request", now, effects)

    def _cancel(self, pending: Pending, why: str, now: float, effects: list[Effect]) -> None:
        error = Cancelled(why)
        if pending.worker is not None:
            self._answer_early(pending, error, now, effects)
            return
        self._withdraw(pending)
        self._fail(pending, error, now, effects)

    def _expire(self, pending: Pending, now: float, effects: list[Effect]) -> None:
        self.counters.expired += 1
        waited = now - pending.received_at
        if pending.worker is None:
            place = "in the queue" if pending.route is not None else "for a worker"
            self._withdraw(pending)
            error = DeadlineExceeded(
                f"{pending.message.subject} waited {waited:.3f} s {place} and its deadline passed",
                subject=pending.message.subject,
                waited_s=round(waited, 3),
            )
            self._fail(pending, error, now, effects)
            return
        if pending.is_answered:
            return
        instance = pending.worker.ready.instance
        error = DeadlineExceeded(
            f"{pending.message.subject} was not answered by {instance} within {waited:.3f} s",
            subject=pending.message.subject,
            instance=instance,
            waited_s=round(waited, 3),
        )
        self._bury(pending, error, effects)
        self._answer_early(pending, error, now, effects)

    def _bury(self, pending: Pending, error: BusError, effects: list[Effect]) -> None:
        self.counters.dead_letters += 1
        worker = pending.worker
        letter = control.DeadLetter(
            id=pending.id.hex(),
            subject=pending.message.subject,
            reason=error.code,
            message=error.message,
            attempts=pending.attempt,
            at=pending.received_at + self._epoch_offset,
            service=worker.ready.service if worker else "",
            instance=worker.ready.instance if worker else "",
            body_bytes=len(memoryview(pending.message.body_bytes())),
        )
        effects.append(Bury(letter, pending.message))
        effects.append(Emit("error.deadletter", letter))

    # Workers

    def _on_ready(self, event: ReadyReceived, now: float, effects: list[Effect]) -> None:
        ready = event.ready
        if not ready.subjects:
            effects.append(Disconnect(event.peer, "a worker must serve at least one subject"))
            return
        previous = self.registry.workers.get(event.peer)
        if previous is not None:
            self._lose(previous, "registered again", now, effects)
        worker = self.registry.join(event.peer, ready, now)
        for id in ready.in_flight:
            self._claim(id, worker, now, effects)
        effects.append(Deliver(event.peer, encode(Kind.WELCOME, body=self._welcome)))
        effects.append(self._worker_event("joined", worker, "registered"))
        for route in [route for route in self._deserted if route.is_served]:
            del self._deserted[route]
        self._serve_backlog(worker, now, effects)
        for pending in sorted((held for held in self._held.values() if _may_run(held)), key=_priority):
            served = self.registry.resolve(pending.message.subject)
            if served is not None and served.is_served:
                self._unhold(pending, now, effects)

    def _claim(self, id: bytes, worker: Worker, now: float, effects: list[Effect]) -> None:
        """The worker still works on a request of an earlier life of this broker."""
        held = self._held.get(id)
        if held is not None and not _serves(worker, held):
            return
        self._held.pop(id, None)
        if held is None:
            if id not in self._pending:
                if (earlier := self._claims.pop(id, None)) is not None:
                    earlier.change_free(1)
                    self._serve_backlog(earlier, now, effects)
                self._claims[id] = worker
                worker.change_free(-1)
            return
        held.worker = worker
        held.route = self.registry.resolve(held.message.subject)
        held.retry_at = None
        held.attempt = 1
        worker.in_flight[id] = held
        worker.change_free(-1)

    def _on_heartbeat(self, event: HeartbeatReceived, now: float, effects: list[Effect]) -> None:
        worker = self.registry.workers.get(event.peer)
        if worker is None:
            effects.append(Disconnect(event.peer, "heartbeat before ready"))
            return
        worker.heard_at = now
        if event.beat is not None:
            worker.beat = event.beat
        effects.append(Deliver(event.peer, encode(Kind.HEARTBEAT)))

    def _on_credit(self, event: CreditReceived, now: float, effects: list[Effect]) -> None:
        worker = self.registry.workers.get(event.peer)
        if worker is None:
            effects.append(Disconnect(event.peer, "credit before ready"))
            return
        worker.heard_at = now
        change = event.capacity - worker.ready.capacity
        worker.ready = msgspec.structs.replace(worker.ready, capacity=event.capacity)
        worker.change_free(change)
        self._serve_backlog(worker, now, effects)

    def _on_bye(self, event: ByeReceived, now: float, effects: list[Effect]) -> None:
        worker = self.registry.workers.get(event.peer)
        if worker is None or worker.state is WorkerState.DRAINING:
            return
        # Tells the worker that every request it will still get is before this.
        effects.append(Deliver(event.peer, encode(Kind.BYE)))
        worker.state = WorkerState.DRAINING
        self._desert(self.registry.leave(worker, now, is_lost=False), now, effects)

    def _on_peer_lost(self, event: PeerLost, now: float, effects: list[Effect]) -> None:
        worker = self.registry.workers.get(event.peer)
        if worker is not None:
            self._lose(worker, event.reason, now, effects)
        for pending in [one for one in self._pending.values() if one.origin and one.origin.peer is event.peer]:
            assert pending.origin is not None
            if pending.origin.form is not None:
                pending.origin = None
                pending.is_answered = True
                if self._remembers:
                    self._remember(pending, Cancelled.code, now)
                if pending.worker is None:
                    self._withdraw(pending)
                    self._finish(pending)
                else:
                    effects.append(Deliver(pending.worker.peer, encode(Kind.CANCEL, pending.id)))
                continue
            pending.left_by = pending.origin.owner
            pending.origin = None
            pending.left_at = now
            self._away[pending.id] = pending

    def _lose(self, worker: Worker, reason: str, now: float, effects: list[Effect]) -> None:
        """A worker's connection or lease ended."""
        del self.registry.workers[worker.peer]
        is_orderly = self.is_stopping or (worker.state is WorkerState.DRAINING and not worker.in_flight)
        if worker.state is WorkerState.SERVING:
            worker.state = WorkerState.DRAINING
            self._desert(self.registry.leave(worker, now, is_lost=True), now, effects)
        if not is_orderly:
            worker.stats.lost += 1
        effects.append(self._worker_event("left" if is_orderly else "lost", worker, reason))
        for id in [id for id, claimant in self._claims.items() if claimant is worker]:
            del self._claims[id]
        for pending in list(worker.in_flight.values()):
            assert isinstance(pending, Pending)
            self._lose_attempt(pending, worker, now, effects)
        worker.in_flight.clear()

    def _lose_attempt(self, pending: Pending, worker: Worker, now: float, effects: list[Effect]) -> None:
        if pending.is_answered:
            self._finish(pending)
            return
        can_retry = pending.is_idempotent and not pending.streamed
        if can_retry and pending.attempt < self._settings.attempts:
            self.counters.redispatched += 1
            pending.worker = None
            pending.retry_at = now + self._jitter() * _RETRY_BASE_S * 2**pending.attempt
            self._retries[pending.id] = pending
            return
        self.counters.worker_lost += 1
        instance = worker.ready.instance
        if pending.streamed:
            why = "part of the reply had already been sent"
        elif not pending.is_idempotent:
            why = "the operation is not idempotent, so it was not tried again"
        else:
            why = f"{pending.attempt} attempts were made"
        error = WorkerLost(
            f"{instance} was lost while it worked on {pending.message.subject}; {why}",
            subject=pending.message.subject,
            instance=instance,
            attempts=pending.attempt,
        )
        self._bury(pending, error, effects)
        self._fail(pending, error, now, effects)

    def _desert(self, routes: list[Route], now: float, effects: list[Effect]) -> None:
        """What waits in routes that lost their last worker goes elsewhere, waits out the grace, or is answered."""
        waiting: list[Any] = []
        for route in routes:
            if route.lost_at is not None and not route.is_instance:
                self._deserted[route] = None
                continue
            waiting += route.queue.drain()
            self.registry.drop(route)
        for pending in sorted(waiting, key=_priority):
            self._reroute(pending, now, effects)

    def _unhold(self, pending: Pending, now: float, effects: list[Effect]) -> None:
        """No worker claimed it, and it may run again."""
        del self._held[pending.id]
        pending.retry_at = None
        self._reroute(pending, now, effects)

    def _reroute(self, pending: Pending, now: float, effects: list[Effect]) -> None:
        self._pending.pop(pending.id, None)
        self._deadlines.remove(pending.deadline, pending.id)
        pending.route = None
        self._admit(pending, now, effects)

    # Time

    def _on_tick(self, event: Tick, now: float, effects: list[Effect]) -> None:
        self._epoch_offset = event.epoch_offset
        self.ended.settle()
        for id in self._deadlines.expire(now):
            pending = self._pending.get(id)
            if pending is not None:
                self._expire(pending, now, effects)
        for worker in [w for w in self.registry.workers.values() if now - w.heard_at > self._lease_s]:
            reason = f"silent for {now - worker.heard_at:.1f} s"
            effects.append(Disconnect(worker.peer, reason))
            self._lose(worker, reason, now, effects)
        due = [p for p in self._retries.values() if p.retry_at is not None and p.retry_at <= now]
        for pending in sorted(due, key=_priority):
            self._retry(pending, now, effects)
        for pending in [p for p in self._held.values() if p.retry_at is not None and p.retry_at <= now]:
            if _may_run(pending):
                self._unhold(pending, now, effects)
                continue
            error = WorkerLost(
                f"{pending.message.subject} was sent before the connection broke and no worker still works on it;"
                " it may or may not have had its effect",
                subject=pending.message.subject,
            )
            self._fail(pending, error, now, effects)
        for pending in [p for p in self._away.values() if p.left_at is not None and now - p.left_at > RESUME_S]:
            self.counters.cancelled += 1
            pending.is_answered = True
            self._away.pop(pending.id, None)
            self._cancel(pending, "the caller went away", now, effects)
        while self._parked:
            id, (until, message, _) = next(iter(self._parked.items()))
            if until > now:
                break
            del self._parked[id]
            self._parked_bytes -= message.size_bytes
        waiting: list[Any] = []
        for route in [route for route in self._deserted if not self._is_in_grace(route, now)]:
            del self._deserted[route]
            route.lost_at = None
            waiting += route.queue.drain()
            self.registry.drop(route)
        for pending in sorted(waiting, key=_priority):
            self._reroute(pending, now, effects)

    def _retry(self, pending: Pending, now: float, effects: list[Effect]) -> None:
        """Give a request whose worker was lost to another, before those that never had a turn."""
        del self._retries[pending.id]
        pending.retry_at = None
        route = self.registry.resolve(pending.message.subject)
        if route is None or not (route.is_served or self._is_in_grace(route, now)):
            self.counters.worker_lost += 1
            error = WorkerLost(
                f"the worker was lost while it worked on {pending.message.subject} and no other serves it",
                subject=pending.message.subject,
                attempts=pending.attempt,
            )
            self._bury(pending, error, effects)
            self._fail(pending, error, now, effects)
            return
        worker = route.freest()
        if worker is not None:
            self._dispatch(pending, route, worker, now, effects)
            return
        pending.route = route
        route.queue.append_first(pending)
        route.mark_backlog(pending.priority)

    # Telling

    @staticmethod
    def _worker_event(what: str, worker: Worker, reason: str) -> Emit:
        ready = worker.ready
        body = control.WorkerEvent(
            service=ready.service, instance=ready.instance, reason=reason, host=ready.host, pid=ready.pid
        )
        return Emit(f"bus.worker.{what}", body)

    def _trace(
        self,
        phase: str,
        pending: Pending,
        effects: list[Effect],
        *,
        reply: Message | None = None,
        code: str = "",
        now: float | None = None,
    ) -> None:
        # An error of our own has no body that anybody sent.
        message = pending.message if phase in ("request", "dispatch") else reply
        if reply is not None and reply.kind is Kind.ERROR:
            code = _error_code(reply)
        body = control.Trace(
            phase=phase,  # type: ignore[arg-type]
            id=pending.id.hex(),
            subject=pending.message.subject,
            at=(now if now is not None else pending.received_at) + self._epoch_offset,
            body_bytes=len(memoryview(message.body_bytes())) if message else 0,
            worker=pending.worker.ready.instance if pending.worker else "",
            took_s=None if now is None else now - pending.received_at,
            code=code,
            attempt=max(pending.attempt, 1),
        )
        effects.append(Emit(f"bus.trace.{phase}", body))


def _serves(worker: Worker, pending: Pending) -> bool:
    """True when the worker registered for the request's subject."""
    return any(subjects.matches(name, pending.message.subject) for name in worker.ready.subjects)


def _may_run(held: Pending) -> bool:
    """True for a request that was never sent before, or that may run twice."""
    return held.is_new or held.is_idempotent


def _priority(pending: Pending) -> Priority:
    return pending.priority


def _hole(pending: Pending) -> WorkerLost:
    """Why a stream cannot go on after its caller's connection broke: nobody knows which pieces arrived."""
    subject = pending.message.subject
    return WorkerLost(f"the caller's connection broke while {subject} streamed its reply", subject=subject)


def _ended_while_away(pending: Pending, now: float) -> BusError:
    """What a caller that comes back hears of a request that its worker still holds and nobody waits for any more."""
    subject = pending.message.subject
    if now >= pending.deadline:
        return DeadlineExceeded(f"the deadline of {subject} passed while its caller was away", subject=subject)
    return Cancelled(f"{subject} was cancelled while its caller was away", subject=subject)


def _error_message(id: bytes, error: BusError) -> Message:
    body = error.body()
    frames = encode(Kind.ERROR, id, body=body)
    return Message(id, "", 0, None, msgspec.msgpack.encode(body), Kind.ERROR, frames)


# Bytes of an error's body that is read for its code; what is larger is no error of ours.
_ERROR_BODY_MAX_BYTES: Final = 65_536


class _Code(msgspec.Struct):
    """What is read of an error's body."""

    code: str


_code_in_msgpack = msgspec.msgpack.Decoder(_Code).decode
_code_in_json = msgspec.json.Decoder(_Code).decode


def _is_part(message: Message) -> bool:
    """True for a request that belongs to a trace begun elsewhere."""
    return message.headers is not None and "traceparent" in message.headers


def _known_code(message: Message) -> str:
    """The code inside an error reply; `error` for one that is not ours to know."""
    if len(message.body) > _ERROR_BODY_MAX_BYTES:
        return "error"
    known = BY_CODE.get(_error_code(message))
    return known.code if known is not None else "error"


def _error_code(message: Message) -> str:
    """The code inside an error reply, empty when the body is not one."""
    decode = _code_in_json if message.encoding == "json" else _code_in_msgpack
    try:
        return decode(message.body_bytes()).code
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


__all__ = [
    "REPLIES", "Answer", "Bury", "ByeReceived", "CancelReceived", "Core", "Counters", "CreditReceived", "Deliver",
    "Disconnect", "Effect", "Emit", "Event", "Fail", "HeartbeatReceived", "Origin", "Peer", "PeerLost", "ReadyReceived",
    "ReplyReceived", "RequestReceived", "Tick",
]  # fmt: skip
