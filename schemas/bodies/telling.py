"""Bodies of what processes tell of themselves: figures, traces of requests, the audit log."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.bodies.base import Empty, PageSize, Reply, Request, Seconds

# Figures --------------------------------------------------------------------------------------------------------


class Series(msgspec.Struct, frozen=True, array_like=True):
    """Values of one metric with the values of its labels, in the order in which schemas.metrics declares them.

    `value` is a counter's or gauge's, and the sum of a histogram's observations; `counts` are a histogram's, one for
    each bucket (not cumulative) and the last for what is above them all.
    """

    labels: tuple[str, ...]
    value: float
    counts: tuple[int, ...] = ()


class Figures(Reply, frozen=True, kw_only=True):
    """Event `metrics.{service}`: every figure of one process, at a fixed interval. Counters start with the process."""

    service: str
    instance: str
    host: str
    pid: int
    started_at: float
    at: float
    every_s: float
    metrics: dict[str, list[Series]]


class ExporterStatus(Empty, frozen=True):
    """What the exporter holds."""


class ExporterStatusReply(Reply, frozen=True, kw_only=True):
    """address: HOST:PORT of its page, empty while another program has the port. processes: service/instance.

    refused: figures that were not taken, by why (see olympus_exporter_refused_total).
    """

    address: str
    processes: list[str]
    series: int
    refused: dict[str, int]


# Traces ---------------------------------------------------------------------------------------------------------


class TraceRead(Request, frozen=True, kw_only=True):
    """Requests that the broker remembers: of one trace or request (hex, or the start of it), else the newest.

    `after` reads forwards: those that ended after the one with this number, the oldest of them first; 0 begins with the
    oldest that is remembered.
    """

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]*$(?!\n)", max_length=32)] = ""
    after: Annotated[int, Meta(ge=0)] | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000


class Span(Reply, frozen=True, kw_only=True):
    """One request as the broker saw it; times are Unix epoch seconds.

    `trace` is 32 hex digits: of the W3C `traceparent` header that it came with, else its own id. `parent` names the
    request in whose handler it was made, by the first 16 digits of that one's id; empty for the first of a trace.
    """

    number: int
    id: str
    trace: str
    parent: str
    subject: str
    caller: str
    worker: str
    service: str
    received_at: float
    dispatched_at: float | None
    ended_at: float
    attempts: int
    outcome: str
    body_bytes: int


class Spans(Reply, frozen=True, kw_only=True):
    """Oldest first. `remembered` is how many requests the broker holds, the oldest of which ended at `oldest_at`.

    Numbers go up to `last_number` and begin again with every start of the broker, which has another `boot` then.
    skipped: requests that were not remembered, since the broker's start: of more than 2,000 a second, those that went
    well, took less than 0.1 s, and began a trace.
    """

    spans: list[Span]
    remembered: int
    oldest_at: float | None
    last_number: int
    skipped: int = 0
    boot: str


# Audit ----------------------------------------------------------------------------------------------------------

AuditKind = Literal["sign_in", "account", "refusal", "deletion", "promotion", "export", "settings"]


class AuditEvent(Reply, frozen=True, kw_only=True):
    """Event `audit.{kind}`: who did what to what, and whether it was let happen. Never holds content or secrets.

    actor: the user, or the name of the machine's key. action: an operation's subject, or what was tried. target: ids and
    names alone. outcome: ok or an error's code. count: like events that this one stands for.
    """

    kind: AuditKind
    actor: str
    action: str
    target: str = ""
    outcome: str = "ok"
    reason: str = ""
    address: str = ""
    service: str = ""
    host: str = ""
    request_id: str = ""
    at: float = 0.0
    count: int = 1


class AuditList(Request, frozen=True, kw_only=True):
    """Newest first. `actor`, `action` are patterns with `*` as in file names; `before_id` continues a read."""

    kind: AuditKind | None = None
    actor: str = "*"
    action: str = "*"
    outcome: str | None = None
    since_at: Seconds | None = None
    until_at: Seconds | None = None
    before_id: int | None = None
    limit: PageSize = 100


class AuditEntry(AuditEvent, frozen=True, kw_only=True):
    """One line of the audit log. `hash` is over this line and the hash of the line before it."""

    id: int
    hash: str


class AuditVerify(Request, frozen=True, kw_only=True):
    """Check every line against the one before it; and that line `id` still has the `hash` that was noted of it."""

    id: Annotated[int, Meta(ge=1)] | None = None
    hash: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")] = ""


class AuditVerdict(Reply, frozen=True, kw_only=True):
    """`broken_id`: the first line that does not fit, and why. `last_id`, `last_hash`: of the last line that does.

    Noted elsewhere, these two show a log that was rewritten whole or cut off at its end.
    """

    is_whole: bool
    broken_id: int | None = None
    reason: str = ""
    checked: int
    last_id: int
    last_hash: str


class AuditPage(Reply, frozen=True, kw_only=True):
    """`is_whole`: the last check of all lines, at the start of the service or by `audit.verify`, found them unchanged."""

    entries: list[AuditEntry]
    total: int
    is_whole: bool
