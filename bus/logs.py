"""Log lines on stderr: a constant message and its fields, as text for people or as JSON for machines.

log = logging.getLogger("olympus.broker")
log.info("worker joined", extra={"action": "worker.joined", "service": "memory", "instance": "pc-1-4711"})

2026-01-31 12:00:00.123 info  broker  worker joined  action=worker.joined service=memory instance=pc-1-4711

Within a handler every line also has `request` and `trace`. Writing a line never raises and never waits: what has no
room, on the disk or in a pipe that nobody reads, is dropped and counted, and a storm of one and the same line is damped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from datetime import datetime
from types import TracebackType
from typing import Any, Final, TextIO

import msgspec

from bus.context import current
from bus.damper import Damper, Like
from bus.redaction import redacted, shown
from bus.settings import LogSettings
from bus.tracebacks import capture

ROOT: Final = "olympus"

# What every LogRecord has; the rest of its attributes came with `extra`. `message` and `asctime` are set by formatters.
_STANDARD: Final = frozenset(
    {*logging.LogRecord("", 0, "", 0, "", (), None).__dict__, "message", "asctime", "taskName"}
)

# Of one and the same line, how many pass in a window before the others are only counted; the first window, and the
# longest one while the storm goes on, seconds. At worst one line is then written some 30,000 times a day.
_BURST: Final = 20
_WINDOW_S: Final = 1.0
_WINDOW_MAX_S: Final = 60.0

# Different lines told apart; our own are constant and some hundreds.
_LINES_MAX: Final = 1_024

# Characters of a message or a field.
_TEXT_MAX: Final = 8_192

# What a pipe takes without making the writer wait once it is ready for any (pipe(7): PIPE_BUF on Linux).
_PIPE_BYTES: Final = 4_096

# What waits for a reader that is slow, bytes; what comes past it is dropped.
_BACKLOG_BYTES: Final = 1_048_576

# What is waited for such a reader when the process ends, seconds.
_FLUSH_S: Final = 0.5


class Counts:
    """Lines of this process, by level, and how many of them were not written."""

    def __init__(self) -> None:
        self.by_level = dict.fromkeys(("debug", "info", "warning", "error", "critical"), 0)
        self.dropped = 0


counts: Final = Counts()


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send the lines of this process to `stream` (stderr); a second call replaces the first.

    Libraries speak from warning upwards, whatever the level: their debug lines would print every message.
    """
    handler = LineHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(ROOT).setLevel(settings.level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _on_crash


def _on_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Nobody caught it: the process ends, and this is its last line."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger(ROOT).critical("the process failed", exc_info=error, extra={"action": "process.failed"})


class LineHandler(logging.Handler):
    """Writes lines to a stream that may be full, slow or gone; `stream` is None where a process has no stderr."""

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._damper = Damper(burst=_BURST, window_s=_WINDOW_S, window_max_s=_WINDOW_MAX_S, kinds_max=_LINES_MAX)
        self._timer: threading.Timer | None = None
        self._sink = Sink(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of `record`, or count it."""
        level = record.levelname.lower()
        counts.by_level[level] = counts.by_level.get(level, 0) + 1
        if record.levelno > logging.DEBUG:
            like = self._damper.take((record.name, record.msg if type(record.msg) is str else "", level), self._clock())
            if like.left_out:
                counts.dropped += 1
                like.sample = record.name, record.msg, record.levelno
                self._await_end()
                return
        self._write(record)

    def flush(self) -> None:
        """Wait a moment for a slow reader."""
        self._sink.flush(_FLUSH_S)

    def close(self) -> None:
        """Tell what was left out, and stop."""
        self.acquire()
        try:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._tell(self._damper.rest())
        finally:
            self.release()
        self._sink.flush(_FLUSH_S)
        super().close()

    def _write(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a field's text is anybody's code; the line is told without it
            line = f"{record.levelname.lower()} {record.name} {record.msg!r:.200} (cannot be told: {error!r:.200})"
        if self._sink.lost:
            lost = _line_of("olympus.log", "log lines lost", logging.WARNING, action="log.lost", count=self._sink.lost)
            if self._sink.write(Context().run(self.format, lost), lines=0):
                self._sink.lost = 0
        self._sink.write(line)

    def _await_end(self) -> None:
        """See to it that the number is told also where no further line comes."""
        if self._timer is None:
            at = self._damper.next_due(self._clock())
            if at is not None:
                self._timer = threading.Timer(max(at - self._clock(), 0.01), self._on_timer)
                self._timer.daemon = True
                self._timer.start()

    def _on_timer(self) -> None:
        self.acquire()
        try:
            if self._timer is not None:
                self._timer = None
                self._tell(self._damper.due(self._clock()))
                self._await_end()
        finally:
            self.release()

    def _tell(self, left_out: list[tuple[Like, int]]) -> None:
        for like, count in left_out:
            name, message, level = like.sample
            record = _line_of(name, "like lines left out", level, action="log.left_out", line=message, count=count)
            # Of no request, whoever's line it was that brought this about.
            Context().run(self._write, record)


class Sink:
    """Where lines go. `write` returns at once, and says whether the line was written or waits for its reader.

    lost: lines that were neither, since somebody last set it to 0.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.lost = 0
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._is_file = self._descriptor is not None and stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._is_midline = False
        self._lock = threading.Lock()
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._drainer: threading.Thread | None = None

    def write(self, line: str, lines: int = 1) -> bool:
        """Write `line` and a line feed. False where it is dropped; it then counts as so many lines lost."""
        try:
            if self._descriptor is None:
                return self._write_text(f"{line}\n")
            data = f"{line}\n".encode("utf-8", "backslashreplace")
            with self._lock:
                if self._drainer is None:
                    data = self._write_now(self._descriptor, data)
                return not data or self._keep(self._descriptor, data, lines)
        except (OSError, ValueError):
            # The disk is full, the reader gone, or the stream closed.
            self._drop(lines)
            return False

    def flush(self, timeout_s: float) -> None:
        """Wait for a slow reader, at most so long."""
        drainer = self._drainer
        if drainer is not None and drainer is not threading.current_thread():
            drainer.join(timeout_s)

    def _write_text(self, text: str) -> bool:
        if self._stream is None:
            raise ValueError("no stream")
        self._stream.write(text)
        self._stream.flush()
        return True

    def _write_now(self, descriptor: int, data: bytes) -> bytes:
        """What is left of `data` once the reader takes no more without waiting."""
        if self._is_midline:
            data = b"\n" + data
        while data and (self._is_file or _is_ready(descriptor, 0)):
            try:
                written = os.write(descriptor, data if self._is_file else data[:_PIPE_BYTES])
            except BlockingIOError:
                break
            self._is_midline = data[written - 1 : written] != b"\n"
            data = data[written:]
        return data

    def _keep(self, descriptor: int, data: bytes, lines: int) -> bool:
        if self._backlog_bytes + len(data) > _BACKLOG_BYTES:
            self._drop(lines)
            return False
        self._is_midline = False
        self._backlog.append(data)
        self._backlog_bytes += len(data)
        if self._drainer is None:
            self._drainer = threading.Thread(target=self._drain, args=(descriptor,), name="log", daemon=True)
            self._drainer.start()
        return True

    def _drain(self, descriptor: int) -> None:
        """Wait for the reader, in a thread of its own, until nothing is left."""
        while True:
            if not _is_ready(descriptor, 1_000):
                continue
            with self._lock:
                data = self._backlog[0]
            try:
                written = os.write(descriptor, data[:_PIPE_BYTES])
            except BlockingIOError:
                continue
            except OSError:
                with self._lock:
                    self._drop(len(self._backlog))
                    self._backlog.clear()
                    self._backlog_bytes = 0
                    self._drainer = None
                return
            with self._lock:
                self._backlog_bytes -= written
                if written < len(data):
                    self._backlog[0] = data[written:]
                else:
                    self._backlog.popleft()
                if not self._backlog:
                    self._drainer = None
                    return

    def _drop(self, lines: int) -> None:
        self.lost += lines
        counts.dropped += lines


def _descriptor(stream: TextIO | None) -> int | None:
    """Of a stream that is a file, a pipe or a terminal."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno() if stream is not None else None
        if descriptor is not None:
            os.fstat(descriptor)
            return descriptor
    return None


def _is_ready(descriptor: int, wait_ms: int) -> bool:
    """True where a write goes on at once, were it with an error."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(wait_ms))


def _line_of(name: str, message: str, level: int, **fields: Any) -> logging.LogRecord:
    return logging.getLogger(name).makeRecord(name, level, "", 0, message, (), None, extra=fields)


class TextFormatter(logging.Formatter):
    """One line: local time, level, source, message, `key=value` fields; a traceback follows on its own lines.

    `trace` is left away where it is the request's own id, and so found by the same search.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        at = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        fields = fields_of(record)
        if fields.get("trace") == fields.get("request"):
            fields.pop("trace", None)
        parts = [f"{at} {record.levelname.lower():<8} {_source(record)}  {_message(record)}"]
        parts += [f"{name}={_text(value)}" for name, value in fields.items()]
        line = f"{parts[0]}  {' '.join(parts[1:])}" if len(parts) > 1 else parts[0]
        trace = _traceback(record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at (epoch seconds), level, source, message, the fields, and traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        line: dict[str, Any] = {
            **fields_of(record),
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "source": _source(record),
            "message": _message(record),
        }
        trace = _traceback(record)
        if trace:
            line["traceback"] = trace
        try:
            return msgspec.json.encode(line).decode()
        except (UnicodeEncodeError, OverflowError):
            # Half a character, or a number past 64 bits; escaped as text they do no harm.
            whole = {name: ascii(value) if isinstance(value, str | int) else str(value) for name, value in line.items()}
            return msgspec.json.encode(whole).decode()


def _source(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{ROOT}.")


def _message(record: logging.LogRecord) -> str:
    return redacted(record.getMessage()[:_TEXT_MAX])


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the line of `record` was given and may show, and the request that it is written for."""
    fields = {name: _field(name, value) for name, value in record.__dict__.items() if name not in _STANDARD}
    asked = current.get()
    if asked is not None and "request" not in fields:
        fields["request"] = asked.id.hex()
        fields["trace"] = asked.trace
    return fields


def _field(name: str, value: Any) -> Any:
    value = shown(name, value)
    return f"{value[:_TEXT_MAX]}..." if isinstance(value, str) and len(value) > _TEXT_MAX else value


def _text(value: Any) -> str:
    """`value` for a `key=value` pair: quoted where it would break the line or could be taken for two pairs."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    is_plain = bool(text) and text.isprintable() and not any(character in text for character in " =\"'")
    return text if is_plain else msgspec.json.encode(text).decode()


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_text is None and record.exc_info and record.exc_info[1] is not None:
        record.exc_text = capture(record.exc_info[1]).text()
    return redacted(record.exc_text).rstrip("\n") if record.exc_text else ""
