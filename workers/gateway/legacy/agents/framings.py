"""How the old agents framed the errors they published: one rule that reads all of them, and one form that goes out.

Source: the framings that docs/legacy-errors.md lists.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec

from schemas.bodies.control import ErrorReport, Severity

_SEVERITIES: Final[dict[str, Severity]] = {
    "debug": "debug",
    "info": "info",
    "low": "info",
    "warning": "warning",
    "warn": "warning",
    "medium": "warning",
    "error": "error",
    "high": "error",
    "critical": "critical",
    "fatal": "critical",
}

# One variant of the publishers puts its machine before its name.
_MACHINES: Final = ("MainPC", "PC2")

# Text kept of one report, characters; the event log is no place for more.
_MESSAGE_CHARACTERS: Final = 4_096
_NAME_CHARACTERS: Final = 64


def parse(frames: list[bytes]) -> ErrorReport:
    """What a publisher said, whatever its framing. Raises ValueError for what says nothing at all."""
    texts = [frame.decode("utf-8", "replace") for frame in frames]
    if len(texts) > 1:
        topic, body = texts[0].rstrip(":"), texts[1]
    else:
        text = texts[0]
        start = text.find("{")
        topic, body = (text[:start].rstrip(": "), text[start:]) if start >= 0 else (text, "")
    if not topic and not body:
        raise ValueError("an empty message")
    fields = _fields(body)
    if fields is None:
        return _of_text(topic if not body else f"{topic}:{body}")
    return from_fields(fields)


def from_fields(fields: dict[str, Any]) -> ErrorReport:
    """An error as any of the old reports told it, as ours."""
    data = fields.get("error_data") if isinstance(fields.get("error_data"), dict) else {}
    assert isinstance(data, dict)
    agent = _first(fields, "agent", "source", "agent_id", "agent_name", "source_agent") or "unknown"
    details = fields.get("details", data.get("details"))
    message = _first(fields, "message", "reason", "error_message") or _text(details) or "no message"
    severity = str(_first(fields, "severity") or data.get("severity") or "error").lower()
    given = fields.get("context")
    context: dict[str, Any] = dict(given) if isinstance(given, dict) else {} if given is None else {"context": given}
    machine, _, name_there = str(agent).partition(".")
    if machine in _MACHINES and name_there:
        agent, context["source_machine"] = name_there, machine
    for name in ("details", "port", "category", "source_machine", "machine_context", "error_id"):
        value = fields.get(name, data.get(name))
        if value is not None:
            context[name] = value
    return ErrorReport(
        service=str(agent)[:_NAME_CHARACTERS],
        severity=_SEVERITIES.get(severity, "error"),
        kind=str(_first(fields, "error_type", "type") or data.get("error_type") or "Error")[:_NAME_CHARACTERS],
        message=str(message)[:_MESSAGE_CHARACTERS],
        traceback=str(fields.get("stack_trace") or ""),
        at=epoch(fields.get("timestamp")),
        context=context,
    )


def to_legacy(report: ErrorReport) -> dict[str, Any]:
    """The one form that subscribers get, as the body of the topic `ERROR:`."""
    return {
        "timestamp": report.at,
        "agent": report.service,
        "error_type": report.kind,
        "message": report.message,
        "severity": report.severity,
        "context": report.context,
    }


def plain(report: ErrorReport) -> ErrorReport:
    """A report without what JSON can hold and the bus cannot: half characters, and numbers past 64 bits."""
    return msgspec.structs.replace(
        report,
        service=_whole(report.service),
        kind=_whole(report.kind),
        message=_whole(report.message),
        traceback=_whole(report.traceback),
        context={"json": json.dumps(report.context, default=str)} if report.context else {},
    )


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def subject_of(report: ErrorReport) -> str:
    """The event it becomes: `error.{service}.{severity}`, the name brought into one token."""
    token = "".join(char if (char.isalnum() and char.isascii()) or char in "-_" else "-" for char in report.service)
    return f"error.{token.lower() or 'unknown'}.{report.severity}"


def epoch(value: Any) -> float:
    """Epoch seconds of a number or an ISO text, which without a zone is local; now for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e11:
        return float(value)
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
            return (moment.astimezone(UTC) if moment.tzinfo else moment).timestamp()
        except (ValueError, OverflowError, OSError):
            pass
    return time.time()


def _fields(body: str) -> dict[str, Any] | None:
    if not body:
        return None
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _of_text(text: str) -> ErrorReport:
    """`ERROR:Agent:error_type:free text`."""
    parts = text.split(":", 3)
    has_topic = len(parts) > 2 and parts[0].upper().endswith("ERROR")
    return ErrorReport(
        service=(parts[1].strip() if has_topic else "unknown")[:_NAME_CHARACTERS] or "unknown",
        severity="error",
        kind=(parts[2].strip() if has_topic else "Error")[:_NAME_CHARACTERS] or "Error",
        message=(parts[3].strip() if len(parts) > 3 and has_topic else text.strip())[:_MESSAGE_CHARACTERS],
        at=time.time(),
    )


def _first(fields: dict[str, Any], *names: str) -> Any:
    return next((fields[name] for name in names if fields.get(name) not in (None, "")), None)


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, default=str)
