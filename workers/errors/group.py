"""One group of like errors: what is known of it, and its state. Pure; instants come as `Now`.

open ---acknowledge--> acknowledged ---it comes again--> open (reopened)
any  ---mute---------> muted ---time over, or mute 0---> what it was
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from schemas.bodies.control import ErrorReport, Severity
from schemas.bodies.errors import ErrorGroup, State
from workers.errors import fingerprint
from workers.errors.counts import Counts
from workers.errors.reading import COUNT_MAX, rank

# Characters of a message that stand in a group; its reports hold more.
_MESSAGE_MAX: Final = 2_048

# Names of instances that reported it lately.
_INSTANCES: Final = 8


class Now(NamedTuple):
    """The present. wall: epoch seconds, which may jump. steady: seconds of a clock that does not, also in a sleep."""

    wall: float
    steady: float


class Group(msgspec.Struct, kw_only=True, gc=False):
    """A group as it is kept.

    muted_for_s: what was asked for; after a restart no more than that is left, whatever the clock says. mute_ends:
    on the steady clock, of this process alone.
    """

    fingerprint: str
    service: str
    severity: Severity
    kind: str
    first_at: float
    last_at: float
    message: str = ""
    subject: str = ""
    where: str = ""
    count: int = 0
    counts: Counts
    instances: list[str] = []
    acknowledged_at: float | None = None
    acknowledged_by: str = ""
    note: str = ""
    muted_until_at: float | None = None
    muted_for_s: float = 0.0
    mute_ends: float | None = None
    reopened_at: float | None = None

    def take(self, report: ErrorReport, at: float) -> None:
        """Count a report that the broker took in at `at`."""
        self.count = min(self.count + report.count, COUNT_MAX)
        self.counts.add(at, report.count)
        self.last_at = max(self.last_at, at)
        self.first_at = min(self.first_at, at)
        self.message = report.message[:_MESSAGE_MAX]
        self.subject = report.subject
        if report.traceback:
            self.where = fingerprint.where(report.traceback)
        if report.instance and report.instance not in self.instances:
            self.instances = [*self.instances[-_INSTANCES + 1 :], report.instance]
        if rank(report.severity) > rank(self.severity):
            self.severity = report.severity

    def state(self, now: Now) -> State:
        """What it is now."""
        if self.is_muted(now):
            return "muted"
        return "open" if self.acknowledged_at is None else "acknowledged"

    def is_muted(self, now: Now) -> bool:
        """True until the time it was muted for is over."""
        return self.mute_ends is not None and now.steady < self.mute_ends

    @property
    def is_marked(self) -> bool:
        """True where a person has said something of it."""
        return self.mute_ends is not None or self.acknowledged_at is not None or bool(self.note)

    def acknowledge(self, by: str, note: str, now: Now) -> None:
        """It was seen."""
        self.acknowledged_at, self.acknowledged_by = now.wall, by
        self.reopened_at = None
        self.note = note or self.note

    def reopen(self, at: float) -> None:
        """It came again after it was acknowledged."""
        self.acknowledged_at, self.acknowledged_by = None, ""
        self.reopened_at = at

    def mute(self, for_s: float, note: str, now: Now) -> None:
        """Neither listed nor told for `for_s` seconds; 0 ends that."""
        self.note = note or self.note
        self.muted_for_s = for_s
        self.muted_until_at = now.wall + for_s if for_s else None
        self.mute_ends = now.steady + for_s if for_s else None

    def wake(self, now: Now) -> None:
        """Go on after a restart: a mute lasts for what the clock says is left of it, and never longer than was asked."""
        if self.muted_until_at is None:
            self.mute_ends = None
            return
        left_s = min(self.muted_until_at - now.wall, self.muted_for_s)
        if left_s <= 0:
            self.mute(0, "", now)
            return
        self.muted_until_at, self.mute_ends = now.wall + left_s, now.steady + left_s

    def told(self, now: Now) -> ErrorGroup:
        """As others see it."""
        is_muted = self.is_muted(now)
        return ErrorGroup(
            fingerprint=self.fingerprint,
            service=self.service,
            severity=self.severity,
            kind=self.kind,
            message=self.message,
            subject=self.subject,
            where=self.where,
            state=self.state(now),
            count=self.count,
            per_minute=self.counts.per_minute(now.wall),
            first_at=self.first_at,
            last_at=self.last_at,
            instances=list(self.instances),
            acknowledged_at=self.acknowledged_at,
            acknowledged_by=self.acknowledged_by,
            note=self.note,
            muted_until_at=self._muted_until(now) if is_muted else None,
            reopened_at=self.reopened_at,
        )

    def _muted_until(self, now: Now) -> float:
        # By the clock as it is now: it may have been set since.
        assert self.mute_ends is not None
        return round(now.wall + self.mute_ends - now.steady, 3)


def new(named: str, report: ErrorReport, at: float) -> Group:
    """A group with nothing counted yet."""
    return Group(
        fingerprint=named,
        service=report.service,
        severity=report.severity,
        kind=report.kind,
        first_at=at,
        last_at=at,
        counts=Counts({}, {}, {}),
    )
