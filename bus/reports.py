"""Failures nobody declared, told on the bus and in the log: the first of a kind whole and at once, a storm as numbers.

A failure is counted in a few microseconds, without making any text; its traceback becomes text once the request has
been answered. Of each kind (type, places in the code, operation) at most one report a second goes out, later ones with
`count`, the failures that they stand for; the sum of all counts is the number of failures. While the broker is away they
are counted further, and told when it is back.

Of a service process (`Reports.hooks`) these are failures too: an exception that is logged as an error (`log.exception`,
`log.error(..., exc_info=error)`), which is how code outside of handlers reports one, and what nobody catches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context
from typing import Any, Final

import msgspec

from bus.context import Asked, current
from bus.damper import Damper, Like
from bus.logs import fields_of
from bus.redaction import redacted, shown
from bus.tracebacks import Captured, capture, message_of
from schemas.bodies.control import ErrorReport, Severity
from schemas.errors import BusError, DeadlineExceeded

# Reports and log lines of failures in any one second, of all kinds together. Each costs some 0.1 ms.
REPORTS_PER_S: Final = 20

# Kinds that wait for the broker, at most; what comes past them is counted under one.
_UNSENT_MAX: Final = 512

# Until it is tried again to send what the broker could not take, seconds.
_RETRY_S: Final = 2.0

# Parts of what tells kinds apart, two of each frame: a stack of more is most likely one that calls itself.
_KEY_PARTS: Final = 100

# Instead of the message, where it may quote what must not be told.
UNTOLD: Final = "(not told, for the request holds secrets)"

_LEVELS: Final = {
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

# Fields of a log line that a report has a place of its own for.
_TOLD_APART: Final = frozenset({"request", "trace"})

Publish = Callable[[str, ErrorReport], Awaitable[None]]


class _Sample(msgspec.Struct, gc=False):
    """What is told of a kind: the place from its first failure, the rest from the newest since it was first told."""

    kind: str
    line: str
    severity: Severity
    captured: Captured
    message: str
    subject: str
    asked: Asked | None
    at: float
    fields: dict[str, Any]
    is_logged: bool
    is_told: bool = False


class Reports:
    """Of one worker. `publish` sends one event.

    failures: all of them. damped: those that went out as a number in the report of another.
    """

    def __init__(self, service: str, instance: str, publish: Publish) -> None:
        self.failures = 0
        self.damped = 0
        self._service = service
        self._instance = instance
        self._publish = publish
        self._log = logging.getLogger(f"olympus.{service}")
        self._damper = Damper(per_s=REPORTS_PER_S)
        self._new: list[Like] = []
        self._unsent: dict[Like, int] = {}
        self._sending: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def bind(self) -> None:
        """Report from the running loop from now on, and send what was counted before."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._send_soon()

    def failed(
        self,
        error: BaseException,
        line: str,
        *,
        severity: Severity = "error",
        subject: str = "",
        operation: str = "",
        is_secret: bool = False,
        fields: dict[str, Any] | None = None,
        is_logged: bool = False,
    ) -> str:
        """Count one failure, to be told soon; returns its message, which holds no secret. In the loop's thread only.

        line: the constant message of its log line. operation: what `subject` was served as. is_secret: its own message
        and those that led to it are not told. is_logged: its line has been written.
        """
        message = UNTOLD if is_secret else redacted(message_of(error))
        self.failures += 1
        now = time.monotonic()
        like = self._damper.take(_key(error, line, operation), now)
        sample = like.sample
        if sample is None or like is self._damper.others:
            captured = capture(error, with_messages=not is_secret)
            kind = type(error).__name__
            told = dict(fields or {})
            if like is self._damper.others:
                told["note"] = "the count is of kinds too many to be told apart"
            asked = current.get()
            like.sample = _Sample(kind, line, severity, captured, message, subject, asked, time.time(), told, is_logged)
        elif sample.is_told:
            sample.message = message
            sample.asked = current.get()
            sample.at = time.time()
        if not like.left_out:
            self._new.append(like)
            if self._loop is None:
                self._tell_new()
            elif len(self._new) == 1:
                # After this turn of the loop: the answer to the request goes first.
                self._loop.call_soon(self._tell_new, context=Context())
        elif self._timer is None:
            self._arm(now)
        return message

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Report what is logged with its exception, and what nobody catches in tasks, callbacks and threads."""
        loop = asyncio.get_running_loop()
        before_loop, before_threads = loop.get_exception_handler(), threading.excepthook
        listener = _Listener(self)
        self.bind()
        loop.set_exception_handler(self._on_uncaught)
        threading.excepthook = self._on_thread_ended
        logging.getLogger().addHandler(listener)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(listener)
            threading.excepthook = before_threads
            loop.set_exception_handler(before_loop)

    def logged(self, record: logging.LogRecord, error: BaseException) -> None:
        """Report what a log line told; from any thread."""
        loop = self._loop
        assert loop is not None
        fields = {name: value for name, value in fields_of(record).items() if name not in _TOLD_APART}
        severity: Severity = "critical" if record.levelno >= logging.CRITICAL else "error"

        def take() -> None:
            self.failed(error, str(record.msg), severity=severity, fields=fields, is_logged=True)

        if threading.get_ident() == self._thread:
            take()
            return
        with contextlib.suppress(RuntimeError):
            # Raised once the loop is closed, and with it the bus: the line has been written all the same.
            loop.call_soon_threadsafe(take)

    async def close(self, timeout_s: float) -> None:
        """Tell what is still counted; at most `timeout_s`."""
        self._tell_new()
        for like, count in self._damper.rest():
            self._tell(like, count)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unsent:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await (self._sending or asyncio.ensure_future(self._send()))
        if self._unsent:
            self._log.warning(
                "left with errors unreported",
                extra={"action": "worker.unreported", "service": self._service, "count": sum(self._unsent.values())},
            )

    # Telling

    def _tell_new(self) -> None:
        new, self._new = self._new, []
        for like in new:
            self._tell(like, 1)

    def _on_timer(self) -> None:
        self._timer = None
        now = time.monotonic()
        for like, count in self._damper.due(now):
            self._tell(like, count)
        self._arm(now)

    def _arm(self, now: float) -> None:
        """Look again when something is due."""
        at = self._damper.next_due(now)
        if at is not None and self._loop is not None:
            self._timer = self._loop.call_later(at - now + 0.001, self._on_timer, context=Context())

    def _tell(self, like: Like, count: int) -> None:
        self._write_line(like.sample, count)
        if like not in self._unsent and len(self._unsent) >= _UNSENT_MAX:
            self._damper.others.sample = like.sample
            like = self._damper.others
        self._unsent[like] = self._unsent.get(like, 0) + count
        self._send_soon()

    def _write_line(self, sample: _Sample, count: int) -> None:
        """The first of a kind with its traceback; a number tells how many of later ones a line stands for."""
        is_first, sample.is_told = not sample.is_told, True
        level = _LEVELS[sample.severity]
        if sample.is_logged or not self._log.isEnabledFor(level):
            return
        fields = {"action": "worker.failed", "service": self._service, **sample.fields}
        if sample.subject:
            fields["subject"] = sample.subject
        if sample.asked is not None:
            fields["request"] = sample.asked.id.hex()
            fields["trace"] = sample.asked.trace
        if not is_first or count > 1:
            fields |= {"kind": sample.kind, "error": sample.message, "count": count}
        record = self._log.makeRecord(self._log.name, level, __file__, 0, sample.line, (), None, extra=fields)
        if is_first:
            record.exc_text = sample.captured.text()
        self._log.handle(record)

    def _send_soon(self) -> None:
        if self._unsent and self._sending is None and self._loop is not None:
            self._sending = self._loop.create_task(self._send(), context=Context())

    async def _send(self) -> None:
        try:
            while self._unsent:
                like, count = next(iter(self._unsent.items()))
                report = self._report_of(like.sample, count)
                try:
                    await self._publish(f"error.{token(self._service)}.{report.severity}", report)
                except DeadlineExceeded as error:
                    # That the broker is away is said elsewhere.
                    self._log.debug("errors wait", extra={"action": "worker.unreported", "error": str(error)})
                    assert self._loop is not None
                    self._loop.call_later(_RETRY_S, self._send_soon, context=Context())
                    return
                except BusError as error:
                    self._log.warning(
                        "error report not published", extra={"action": "worker.unreported", "error": str(error)}
                    )
                else:
                    self.damped += count - 1
                self._unsent[like] -= count
                if not self._unsent[like]:
                    del self._unsent[like]
        finally:
            self._sending = None

    def _report_of(self, sample: _Sample, count: int) -> ErrorReport:
        fields = {name: shown(name, value) for name, value in sample.fields.items()}
        if sample.asked is not None:
            fields["trace"] = sample.asked.trace
        return ErrorReport(
            service=self._service,
            severity=sample.severity,
            kind=sample.kind,
            message=sample.message,
            traceback=redacted(sample.captured.text()),
            subject=sample.subject,
            request_id=sample.asked.id.hex() if sample.asked is not None else "",
            instance=self._instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            at=sample.at,
            context=fields,
            count=count,
        )

    # What nobody caught

    def _on_uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None:
            self._log.error("the event loop complains", extra={"action": "worker.loop", "error": context["message"]})
        else:
            self._log.error("failed in the background", exc_info=error, extra={"action": "worker.uncaught"})

    def _on_thread_ended(self, ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
            name = ended.thread.name if ended.thread is not None else ""
            self._log.error(
                "a thread failed", exc_info=ended.exc_value, extra={"action": "worker.uncaught", "thread_ended": name}
            )


class _Listener(logging.Handler):
    """Hears of every line that was logged as an error with its exception."""

    def __init__(self, reports: Reports) -> None:
        super().__init__(logging.ERROR)
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._reports.logged(record, record.exc_info[1])


def token(service: str) -> str:
    """A service name as one subject token."""
    return service.replace(".", "-")


def _key(error: BaseException, line: str, operation: str) -> tuple[Any, ...]:
    """What tells kinds of failures apart. Code is named by its address, which a kind's sample keeps from being reused."""
    key: list[Any] = [type(error), type(error.__cause__), line, operation]
    trace = error.__traceback__
    while trace is not None and len(key) < _KEY_PARTS:
        key.append(id(trace.tb_frame.f_code))
        key.append(trace.tb_lasti)
        trace = trace.tb_next
    return tuple(key)
