"""The service `error`: what failed anywhere on the bus, put together, counted, kept, told to people; and the audit log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Final

import msgspec

from bus.metrics import by_label, only
from bus.serving import serve_until_told
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas import catalog
from schemas.bodies.control import ErrorReport
from schemas.bodies.errors import (
    ErrorAcknowledge,
    ErrorForget,
    ErrorGroup,
    ErrorGroupEvent,
    ErrorList,
    ErrorMute,
    ErrorPage,
    ErrorReported,
    ErrorsChanged,
    ErrorShow,
    ErrorStats,
    ErrorStatsReply,
    ErrorWhole,
    ReportError,
)
from schemas.errors import BadRequest, BusError
from schemas.metrics import ERROR_GROUPS, ERRORS, ERRORS_MISSED
from workers.errors import fingerprint, reading
from workers.errors.audit import AuditLog
from workers.errors.intake import Intake
from workers.errors.ledger import Ledger, now
from workers.errors.notices import Notice, Notices
from workers.errors.telling import Channel, channels

log = logging.getLogger("olympus.errors")

# Seconds between looks for notifications that waited for their time.
_TICK_S: Final = 1.0

# Seconds that a start waits until errors are followed.
_FOLLOWING_S: Final = 5.0

# Events `error.opened` and `error.reopened` that wait to be published, and seconds between two of them: a flood of new
# groups publishes no flood.
_EVENTS_MAX: Final = 500
_EVENTS_EVERY_S: Final = 0.02

# Characters of a reason, and the number of them, that a heartbeat carries.
_REASON_MAX: Final = 1_024
_REASONS_MAX: Final = 16
_NAME_MAX: Final = 64


class ErrorService:
    """The subjects `error.*` and `audit.*` on one worker, and the reading of `error.>`."""

    def __init__(self, settings: Settings) -> None:
        errors = settings.errors
        self.worker = Worker("error", settings)
        self._ledger = Ledger(
            settings.path(errors.path),
            groups_max=errors.groups_max,
            keep_s=errors.keep_s,
            known_services={operation.service for operation in catalog.OPERATIONS.values()} | {"broker", "unknown"},
            on_taken_up=self._on_taken_up,
        )
        self._intake = Intake(self.worker.client, self._ledger, self._on_report)
        self._notices = Notices(errors.notify_severity, errors.notify_every_s)
        self._channels: list[Channel] = channels(errors, self.worker.figures)
        self._events: asyncio.Queue[tuple[str, ErrorGroupEvent]] = asyncio.Queue(_EVENTS_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self._ended: dict[str, str] = {}
        self._errors = self.worker.figures.counter(ERRORS)
        self.worker.figures.read(
            ERROR_GROUPS, lambda: by_label((state, count) for state, count in self._ledger.groups.states(now()).items())
        )
        self.worker.figures.read(ERRORS_MISSED, lambda: only(self._ledger.missed))
        self.worker.degraded_by(self.degraded)
        self._audit = AuditLog(settings, self.worker)
        self._audit.handle()
        self.worker.handle("error.report", self.report)
        self.worker.handle("error.list", self.list)
        self.worker.handle("error.show", self.show)
        self.worker.handle("error.stats", self.stats)
        self.worker.handle("error.acknowledge", self.acknowledge)
        self.worker.handle("error.mute", self.mute)
        self.worker.handle("error.forget", self.forget)

    async def start(self) -> None:
        """Take up what is kept, register, follow errors."""
        await self._ledger.open()
        await self.worker.start()
        await self._audit.start()
        for channel in self._channels:
            channel.start()
        jobs = {"follow": self._intake.follow(), "publish": self._publish(), "tell": self._tell_what_waited()}
        self._tasks = [asyncio.create_task(job, name=f"errors: {name}") for name, job in jobs.items()]
        for task in self._tasks:
            task.add_done_callback(self._on_end)
        # Operations are served also where it cannot follow yet, which is then said in the log.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._intake.following.wait(), _FOLLOWING_S)

    async def stop(self) -> None:
        """Leave; what is counted is written first."""
        await self.worker.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.stop()
        await self._audit.stop()
        await self._ledger.close()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._ended[task.get_name()[:_NAME_MAX]] = f"it ended: {type(error).__name__}: {error}"
            log.critical("part of the service ended", exc_info=error, extra={"action": "errors.ended"})

    def degraded(self) -> dict[str, str]:
        """What does not work, and why."""
        found = {"errors database": self._ledger.failure, "event log": self._intake.failure}
        found |= self._ended | self._audit.degraded
        found |= {channel.name[:_NAME_MAX]: channel.failure for channel in self._channels if channel.failure}
        told = [(name, reason[:_REASON_MAX]) for name, reason in found.items() if reason]
        return dict(told[:_REASONS_MAX])

    # Operations

    async def report(self, request: ReportError, call: Call) -> ErrorReported:
        """Publish an error; answered when the broker has read it."""
        report = reading.trimmed(
            ErrorReport(
                service=request.service,
                severity=request.severity,
                kind=request.kind,
                message=request.message,
                traceback=request.traceback,
                subject=request.subject,
                request_id=call.id.hex(),
                at=time.time() if request.at is None else request.at,
                context=request.context,
            ),
            time.time(),
        )
        named = fingerprint.of(report.service, report.kind, report.message, report.traceback)
        is_new = named not in self._ledger.groups
        # Whether events of this process were lost before, with a broker that has ended, does not concern this caller.
        with contextlib.suppress(ConnectionError):
            await self.worker.client.flush()
        await self.worker.publish(f"error.{_token(report.service)}.{report.severity}", report)
        await self.worker.client.flush()
        return ErrorReported(fingerprint=named, is_new=is_new)

    async def list(self, request: ErrorList, call: Call) -> ErrorPage:
        """Groups, the one seen last first."""
        return self._ledger.groups.list(request, now())

    async def show(self, request: ErrorShow, call: Call) -> ErrorWhole:
        """One group with its newest reports."""
        group = self._ledger.groups.find(request.fingerprint)
        reports = await self._ledger.reports(group.fingerprint, request.limit)
        present = now()
        return ErrorWhole(group=group.told(present), reports=reports, hours=group.counts.last_hours(present.wall))

    async def stats(self, request: ErrorStats, call: Call) -> ErrorStatsReply:
        """Counts, what was missed, what does not work."""
        counted = self._ledger.groups.stats(request.over_s, now())
        degraded = [f"{name}: {reason}" for name, reason in self.degraded().items()]
        return msgspec.structs.replace(counted, missed=self._ledger.missed, degraded=degraded)

    async def acknowledge(self, request: ErrorAcknowledge, call: Call) -> ErrorsChanged:
        """They were seen; answered when that is on disk."""
        if (request.fingerprint is None) == (request.service is None):
            raise BadRequest("name either a fingerprint or a service whose errors were seen", field="fingerprint")
        groups, by = self._ledger.groups, _who(call)
        if request.fingerprint is not None:
            changed = groups.acknowledge(request.fingerprint, by, request.note, now())
        else:
            changed = groups.acknowledge_all(request.service or "", by, request.note, now())
        await self._ledger.settle()
        return ErrorsChanged(changed=changed)

    async def mute(self, request: ErrorMute, call: Call) -> ErrorGroup:
        """Count a group without listing or telling it, for a time; answered when that is on disk."""
        told = self._ledger.groups.mute(request.fingerprint, request.for_s, request.note, now())
        await self._ledger.settle()
        return told

    async def forget(self, request: ErrorForget, call: Call) -> ErrorsChanged:
        """Delete groups; answered when they are gone from the disk."""
        if (request.fingerprint is None) == (request.unseen_s is None):
            raise BadRequest("name either a fingerprint or unseen_s, the seconds without an error", field="fingerprint")
        groups = self._ledger.groups
        if request.fingerprint is not None:
            changed = groups.forget(request.fingerprint)
        else:
            changed = groups.forget_unseen(request.unseen_s or 0.0, now())
        await self._ledger.settle()
        return ErrorsChanged(changed=changed)

    # Reports as they come

    def _on_taken_up(self) -> None:
        self._intake.begin_again()

    def _on_report(self, report: ErrorReport, seq: int, at: float, is_old: bool) -> None:
        noted = self._ledger.note(report, seq, at)
        group = noted.group
        self._errors.add(noted.reporter, report.severity, by=report.count)
        is_worth_telling = self._notices.wants(group.severity, group.kind, noted.change)
        if is_old or not (noted.change or is_worth_telling):
            return
        present = now()
        told = group.told(present)
        if noted.change in ("opened", "reopened") and not self._events.full():
            self._events.put_nowait((f"error.{noted.change}", ErrorGroupEvent(group=told)))
        if is_worth_telling:
            self._tell(self._notices.on_change(told, noted.change, present.steady))

    def _tell(self, notice: Notice | None) -> None:
        if notice is not None:
            for channel in self._channels:
                channel.put(notice)

    async def _publish(self) -> None:
        """In order, 50 a second at most; one that nobody can take is logged."""
        while True:
            subject, event = await self._events.get()
            try:
                await self.worker.publish(subject, event)
            except BusError as error:
                log.warning("event not published", extra={"action": "errors.unpublished", "error": str(error)})
            await asyncio.sleep(_EVENTS_EVERY_S)

    async def _tell_what_waited(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            present = now()
            for named in self._notices.due(present.steady):
                known = self._ledger.groups.get(named)
                told = known.told(present) if known is not None else None
                self._tell(self._notices.on_due(told, named, present.steady))
            self._tell(self._notices.held_back(present.steady))


def _who(call: Call) -> str:
    return call.caller.user_id if call.caller is not None else ""


def _token(service: str) -> str:
    """A service's name as one token of a subject."""
    return "".join(one if one.isascii() and (one.isalnum() or one in "_-") else "-" for one in service)


async def serve(settings: Settings) -> None:
    """Run the service until SIGTERM or SIGINT."""
    await serve_until_told(ErrorService(settings), log)
