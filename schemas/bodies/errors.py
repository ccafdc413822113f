"""Bodies of `error.*`: reports, the groups of like errors that they fall into, and what people say of a group."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.bodies.base import PageSize, PositiveSeconds, Reply, Request, Seconds
from schemas.bodies.control import ErrorReport, Severity

State = Literal["open", "acknowledged", "muted"]
AnyState = Literal["open", "acknowledged", "muted", "any"]
Fingerprint = Annotated[str, Meta(pattern=r"^[0-9a-f]{4,32}$(?!\n)")]


class ReportError(Request, frozen=True, kw_only=True):
    """An error that an agent tells of, in its own words; it becomes the event `error.{service}.{severity}`."""

    service: Annotated[str, Meta(min_length=1, max_length=64)]
    message: Annotated[str, Meta(min_length=1, max_length=65_536)]
    severity: Severity = "error"
    kind: Annotated[str, Meta(max_length=256)] = ""
    traceback: Annotated[str, Meta(max_length=262_144)] = ""
    subject: Annotated[str, Meta(max_length=255)] = ""
    context: dict[str, Any] = {}
    at: Seconds | None = None


class ErrorReported(Reply, frozen=True, kw_only=True):
    """`is_new`: nothing like it was known."""

    fingerprint: str
    is_new: bool


class ErrorGroup(Reply, frozen=True, kw_only=True):
    """Errors that are alike: of one service, kind and place, with messages that differ in numbers and names at most.

    message: of the newest. count: of all since `first_at`. per_minute: over the last ten minutes. reopened_at: when it
    came again after it was acknowledged.
    """

    fingerprint: str
    service: str
    severity: Severity
    kind: str
    message: str
    subject: str = ""
    where: str = ""
    state: State
    count: int
    per_minute: float
    first_at: float
    last_at: float
    instances: list[str] = []
    acknowledged_at: float | None = None
    acknowledged_by: str = ""
    note: str = ""
    muted_until_at: float | None = None
    reopened_at: float | None = None


class ErrorList(Request, frozen=True, kw_only=True):
    """Groups, the newest first. `text` is looked for in kind and message; `severity` is the least.

    state: no state is `any`, too; HTTP has no other word for it.
    """

    service: str | None = None
    severity: Severity | None = None
    state: AnyState | None = "open"
    text: Annotated[str, Meta(max_length=1024)] = ""
    since_at: Seconds | None = None
    limit: PageSize = 100
    before_at: Seconds | None = None


class ErrorPage(Reply, frozen=True, kw_only=True):
    groups: list[ErrorGroup]
    total: int


class ErrorShow(Request, frozen=True, kw_only=True):
    """One group by its fingerprint or the start of it, with its newest reports."""

    fingerprint: Fingerprint
    limit: Annotated[int, Meta(ge=1, le=100)] = 10


class ErrorWhole(Reply, frozen=True, kw_only=True):
    """`reports` are the newest first; `hours` the counts of the last 24 hours, the newest last."""

    group: ErrorGroup
    reports: list[ErrorReport]
    hours: list[int]


class ErrorStats(Request, frozen=True, kw_only=True):
    """Counts over the last `over_s` seconds."""

    over_s: PositiveSeconds = 3600.0


class ServiceErrors(Reply, frozen=True, kw_only=True):
    service: str
    count: int
    per_minute: float
    open_groups: int
    worst: Severity
    last_at: float


class ErrorStatsReply(Reply, frozen=True, kw_only=True):
    """`missed`: error events that this service lost before it could read them. `degraded`: what does not work."""

    services: list[ServiceErrors]
    count: int
    groups: int
    open_groups: int
    muted_groups: int
    by_severity: dict[str, int]
    missed: int = 0
    degraded: list[str] = []


class ErrorAcknowledge(Request, frozen=True, kw_only=True):
    """It was seen: gone from the list until it happens again. Without a fingerprint: all of a service's."""

    fingerprint: Fingerprint | None = None
    service: str | None = None
    note: Annotated[str, Meta(max_length=4096)] = ""


class ErrorMute(Request, frozen=True, kw_only=True):
    """Counted, and neither listed nor told, for `for_s` seconds; 0 ends it."""

    fingerprint: Fingerprint
    for_s: Annotated[float, Meta(ge=0, le=10 * 366 * 86_400)]
    note: Annotated[str, Meta(max_length=4096)] = ""


class ErrorForget(Request, frozen=True, kw_only=True):
    """Delete groups: one, or those that were not seen for `unseen_s` seconds."""

    fingerprint: Fingerprint | None = None
    unseen_s: Seconds | None = None


class ErrorsChanged(Reply, frozen=True, kw_only=True):
    changed: int


class ErrorGroupEvent(Reply, frozen=True, kw_only=True):
    """Events `error.opened` and `error.reopened`: what is worth telling a person."""

    group: ErrorGroup
