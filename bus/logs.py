"""Log lines on stderr: a constant message and its fields, as text for people or as JSON for machines.

log = logging.getLogger("olympus.broker")
log.info("worker joined", extra={"action": "worker.joined", "service": "memory", "instance": "pc-1-4711"})

2026-01-31 12:00:00.123 info  broker  worker joined  action=worker.joined service=memory instance=pc-1-4711
"""

from __future__ import annotations

import logging
import sys
from datetime import datetime
from typing import Any, Final, TextIO

import msgspec

from bus.settings import LogSettings

ROOT: Final = "olympus"

# What every LogRecord has; the rest of its attributes came with `extra`. `message` and `asctime` are set by formatters.
_STANDARD: Final = frozenset(
    {*logging.LogRecord("", 0, "", 0, "", (), None).__dict__, "message", "asctime", "taskName"}
)


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send the lines of this process to `stream` (stderr); a second call replaces the first.

    Libraries speak from warning upwards, whatever the level: their debug lines would print every message.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(ROOT).setLevel(settings.level.upper())
    logging.captureWarnings(True)


class TextFormatter(logging.Formatter):
    """One line: local time, level, source, message, `key=value` fields; a traceback follows on its own lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        at = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        parts = [f"{at} {record.levelname.lower():<8} {_source(record)}  {record.getMessage()}"]
        parts += [f"{name}={_text(value)}" for name, value in _fields(record).items()]
        line = f"{parts[0]}  {' '.join(parts[1:])}" if len(parts) > 1 else parts[0]
        trace = _traceback(self, record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at (epoch seconds), level, source, message, the fields, and traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        line: dict[str, Any] = {
            **_fields(record),
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "source": _source(record),
            "message": record.getMessage(),
        }
        trace = _traceback(self, record)
        if trace:
            line["traceback"] = trace
        return msgspec.json.encode(line, enc_hook=str).decode()


def _source(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{ROOT}.")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


def _text(value: Any) -> str:
    """`value` for a `key=value` pair: quoted where it would break the line or could be taken for two pairs."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    is_plain = bool(text) and text.isprintable() and not any(character in text for character in " =\"'")
    return text if is_plain else msgspec.json.encode(text).decode()


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_info and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    return record.exc_text or ""
