"""Bodies of the worker protocol, of `bus.*`, `deadletter.*` and of the error report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.bodies.base import Empty, Ordinal, PageSize, Reply, Request, Seconds, Whole
from schemas.limits import ID_BYTES

DependencyName = Annotated[str, Meta(min_length=1, max_length=64)]
Reason = Annotated[str, Meta(max_length=1024)]
RequestId = Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
# Up to some 30,000 years, which leaves out what is infinite.
FiniteSeconds = Annotated[float, Meta(ge=0, le=1e12)]

# Worker protocol ------------------------------------------------------------------------------------------------


class Ready(Reply, frozen=True, kw_only=True):
    """A worker's registration.

    `subjects` are exact subjects or patterns; one with `@name` is served at that instance only, one without is served
    plainly and at `@instance`. `in_flight` are the ids it still works on when it comes back to a restarted broker.
    """

    service: str
    instance: str
    subjects: Annotated[list[str], Meta(max_length=10_000)]
    capacity: Annotated[int, Meta(ge=0, le=1_000_000)]
    version: Annotated[str, Meta(max_length=255)] = ""
    host: Annotated[str, Meta(max_length=255)] = ""
    pid: int = 0
    in_flight: Annotated[list[RequestId], Meta(max_length=100_000)] = []


class Welcome(Reply, frozen=True, kw_only=True):
    """`heartbeat_s` is the beat the broker expects; `boot` is a new random text each time the broker starts."""

    boot: str
    heartbeat_s: float
    max_body_bytes: int


class Heartbeat(Reply, frozen=True, kw_only=True):
    """What a worker says of itself with every beat. Counters start at 0 with the process.

    degraded: what it does without at the moment, and why, by the name of the dependency.
    """

    in_flight: Whole = 0
    handled: Whole = 0
    failed: Whole = 0
    cancelled: Whole = 0
    rss_bytes: Whole = 0
    cpu_s: FiniteSeconds = 0.0
    loop_lag_s: FiniteSeconds = 0.0
    degraded: Annotated[dict[DependencyName, Reason], Meta(max_length=16)] = {}


class Credit(Reply, frozen=True, kw_only=True):
    """The worker's new capacity; requests in flight count against it."""

    capacity: Annotated[int, Meta(ge=0, le=1_000_000)]


# bus.* ----------------------------------------------------------------------------------------------------------


class Ping(Request, frozen=True, kw_only=True):
    payload: Any = None


class Pong(Reply, frozen=True, kw_only=True):
    payload: Any
    boot: str
    version: str
    uptime_s: float
    at: float


class BusServices(Empty, frozen=True, kw_only=True):
    pass


class BusWorkers(Request, frozen=True, kw_only=True):
    service: str | None = None


class BusStats(Empty, frozen=True, kw_only=True):
    pass


class WorkerInfo(Reply, frozen=True, kw_only=True):
    service: str
    instance: str
    subjects: list[str]
    capacity: int
    in_flight: int
    state: Literal["serving", "draining"]
    version: str
    host: str
    pid: int
    joined_at: float
    heard_s: float
    answered: int
    failed: int
    rss_bytes: int = 0
    cpu_s: float = 0.0
    loop_lag_s: float = 0.0
    degraded: dict[str, str] = {}


class WorkerList(Reply, frozen=True, kw_only=True):
    workers: list[WorkerInfo]


class ServiceInfo(Reply, frozen=True, kw_only=True):
    """Latencies run from the broker's receipt of a request to its final reply, over the last few minutes."""

    service: str
    instances: int
    capacity: int
    in_flight: int
    queued: int
    answered: int
    failed: int
    p50_s: float | None
    p99_s: float | None
    subjects: list[str]


class ServiceList(Reply, frozen=True, kw_only=True):
    services: list[ServiceInfo]


class SubscriberStats(Reply, frozen=True, kw_only=True):
    peer: str
    patterns: list[str]
    delivered: int
    dropped: int
    pending_bytes: int


class BrokerStats(Reply, frozen=True, kw_only=True):
    """Counters since the broker started, gauges now. Also the event `bus.stats`."""

    boot: str
    uptime_s: float
    requests: int
    replies: int
    partials: int
    cancelled: int
    expired: int
    overloaded: int
    unserved: int
    redispatched: int
    worker_lost: int
    dead_letters: int
    rejected_messages: int
    events: int
    events_dropped: int
    last_seq: int
    in_flight: int
    queued: int
    queued_bytes: int
    peers: int
    workers: int
    subscribers: list[SubscriberStats]
    rss_bytes: int
    cpu_s: float
    log_last_seq: int = 0
    log_bytes: int = 0
    log_lost: int = 0
    log_failed: str | None = None


class EventsRead(Request, frozen=True, kw_only=True):
    """Durable events by sequence or by time; both ends are inclusive.

    Without `from_seq` and `since_at` the read starts at the oldest event kept.
    """

    subject: str = ">"
    from_seq: Annotated[int, Meta(ge=0)] | None = None
    to_seq: Annotated[int, Meta(ge=0)] | None = None
    since_at: Seconds | None = None
    until_at: Seconds | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_000


class LoggedEvent(Reply, frozen=True, kw_only=True):
    """One event of the log; `body` is decoded from whatever encoding its publisher used."""

    seq: int
    at: float
    subject: str
    source: str
    id: str
    body: Any


class EventBatch(Reply, frozen=True, kw_only=True):
    """A partial reply of `bus.events.read`."""

    events: list[LoggedEvent]


class EventsPage(Reply, frozen=True, kw_only=True):
    """The final reply of `bus.events.read`.

    `events` is filled only where partial replies are gathered. `next_seq` continues a read that hit its limit.
    """

    count: int
    oldest_seq: int
    last_seq: int
    next_seq: int | None = None
    events: list[LoggedEvent] = []


class WorkerEvent(Reply, frozen=True, kw_only=True):
    """Events `bus.worker.joined|left|lost`."""

    service: str
    instance: str
    reason: str
    host: str = ""
    pid: int = 0


class ServiceOverloaded(Reply, frozen=True, kw_only=True):
    """Event `bus.service.overloaded`, at most one per subject and second."""

    subject: str
    queued: int
    queued_bytes: int
    refused: int


class Trace(Reply, frozen=True, kw_only=True):
    """Event `bus.trace.{phase}`: one step of one request, published only while somebody subscribes to `bus.trace.>`.

    `id` is the request's id in hex. A reply phase names its worker, the seconds since the broker received the request,
    and for an error its code; `request` and `cancel` know none of these.
    """

    phase: Literal["request", "dispatch", "partial", "final", "error", "cancel"]
    id: str
    subject: str
    at: float
    body_bytes: int
    worker: str = ""
    took_s: float | None = None
    code: str = ""
    attempt: int = 1


# Errors and dead letters ----------------------------------------------------------------------------------------

Severity = Literal["debug", "info", "warning", "error", "critical"]


class ErrorReport(Request, frozen=True, kw_only=True):
    """Event `error.{service}.{severity}`; the runtime publishes one for every handler that raises.

    count: failures it stands for; in a storm of like ones the runtime counts those that it does not report singly.
    """

    service: Annotated[str, Meta(min_length=1, max_length=64)]
    severity: Severity
    kind: str
    message: str
    traceback: str = ""
    subject: str = ""
    request_id: str = ""
    instance: str = ""
    host: str = ""
    pid: int = 0
    at: float = 0.0
    context: dict[str, Any] = {}
    count: Ordinal = 1


class DeadLetter(Reply, frozen=True, kw_only=True):
    """A request that no attempt could finish; `reason` is the error code its caller got."""

    id: str
    subject: str
    reason: str
    message: str
    attempts: int
    at: float
    service: str = ""
    instance: str = ""
    body_bytes: int = 0
    redriven_at: float | None = None


class DeadLetterList(Request, frozen=True, kw_only=True):
    subject: str = ">"
    limit: PageSize = 100
    before_at: Seconds | None = None


class DeadLetterShow(Request, frozen=True, kw_only=True):
    id: str


class DeadLetterPage(Reply, frozen=True, kw_only=True):
    dead_letters: list[DeadLetter]
    total: int


class DeadLetterWhole(Reply, frozen=True, kw_only=True):
    dead_letter: DeadLetter
    headers: dict[str, Any]
    body: Any


class DeadLetterRedrive(Request, frozen=True, kw_only=True):
    """Sends the stored request again under its old id."""

    id: str
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0


class DeadLetterRedriven(Reply, frozen=True, kw_only=True):
    id: str
    reply: Any


class DeadLetterPurge(Request, frozen=True, kw_only=True):
    """Everything that matches; `older_than_s` 0 takes the newest too."""

    subject: str = ">"
    id: str | None = None
    older_than_s: Seconds = 0


class DeadLetterPurged(Reply, frozen=True, kw_only=True):
    purged: int
