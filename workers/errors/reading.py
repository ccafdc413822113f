"""What an event on `error.>` says, whoever published it and in whatever shape. Pure: never raises.

error.{service}.{severity}   an ErrorReport, or anything else of which a report is made
error.deadletter             a request that became a dead letter: a group of its own kind
error.opened, .reopened      said by this service itself: nothing to count
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, get_args

import msgspec

from bus.redaction import redacted, shown
from schemas.bodies.control import DeadLetter, ErrorReport, Severity

# Kind of the groups of dead letters.
DEAD_LETTER: Final = "dead letter"

DEAD_LETTERS: Final = "error.deadletter"
OWN_EVENTS: Final = frozenset({"error.opened", "error.reopened"})

SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)

# Characters kept of a report; a whole one is shown on a screen, and ten of each group are kept.
_MESSAGE_MAX: Final = 8_192
_TRACEBACK_MAX: Final = 16_384
_NAME_MAX: Final = 256
_SERVICE_MAX: Final = 64

# Epoch seconds, in the year 5138: what a date can still be made of.
_AT_MAX: Final = 1e11

# The kernel's own limit is 2**22; what is larger comes from nowhere, and may not fit into a message.
_PID_MAX: Final = 2**31

# Bytes of a report's context.
_CONTEXT_MAX: Final = 16_384

# Failures that one report may stand for: above it counts would no longer fit into what SQLite and JSON carry.
COUNT_MAX: Final = 2**53

# Names that others give to the parts of an error.
_MESSAGES: Final = ("message", "error_message", "msg", "reason", "detail", "details", "error", "description", "text")
_KINDS: Final = ("kind", "error_type", "exception", "type", "name", "code")
_TRACEBACKS: Final = ("traceback", "stack_trace", "stacktrace", "stack")

_report = msgspec.msgpack.Decoder(ErrorReport)

# A traceback takes up to 1 ms; in a storm it is the same again and again.
_redacted_traceback = lru_cache(256)(redacted)


def rank(severity: Severity) -> int:
    """0 for debug to 4 for critical."""
    return SEVERITIES.index(severity)


def read(subject: str, at: float, body: Callable[[], Any], raw: bytes | None = None) -> ErrorReport | None:
    """The report in an event, None for one of ours.

    at: when the broker took it in. body: its decoded body, asked for where it is needed. raw: its bytes, where known.
    """
    if subject in OWN_EVENTS:
        return None
    report = _dead_letter(body()) if subject == DEAD_LETTERS else _declared(raw, body)
    return trimmed(report or _made(subject, body()), at)


def trimmed(report: ErrorReport, at: float) -> ErrorReport:
    """A report that can be kept: of bounded length, with nothing in it that cannot be sent on or is a secret."""
    message = redacted(report.message[:_MESSAGE_MAX])
    traceback = _redacted_traceback(report.traceback[-_TRACEBACK_MAX:])
    context = report.context and _context(report.context)
    if (
        message == report.message
        and traceback == report.traceback
        and max(len(report.kind), len(report.subject), len(report.request_id), len(report.instance), len(report.host))
        <= _NAME_MAX
        and 0 < report.at < _AT_MAX
        and 0 <= report.pid <= _PID_MAX
        and context is report.context
    ):
        return report
    return msgspec.structs.replace(
        report,
        message=message,
        traceback=traceback,
        kind=report.kind[:_NAME_MAX],
        subject=report.subject[:_NAME_MAX],
        request_id=report.request_id[:_NAME_MAX],
        instance=report.instance[:_NAME_MAX],
        host=report.host[:_NAME_MAX],
        at=report.at if 0 < report.at < _AT_MAX else at,
        pid=report.pid if 0 <= report.pid <= _PID_MAX else 0,
        context=context,
    )


def _context(context: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(msgspec.msgpack.encode(context))
        if size > _CONTEXT_MAX:
            return {"omitted": f"it has {size} bytes, {_CONTEXT_MAX} are kept"}
        without_secrets = {name: shown(name, value) for name, value in context.items()}
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return {"omitted": f"it cannot be sent on: {error}"}
    return context if without_secrets == context else without_secrets


def _declared(raw: bytes | None, body: Callable[[], Any]) -> ErrorReport | None:
    if raw is not None:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _report.decode(raw)
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(body(), ErrorReport)
    return None


def _dead_letter(body: Any) -> ErrorReport | None:
    try:
        letter = msgspec.convert(body, DeadLetter)
    except msgspec.ValidationError:
        return None
    attempts = "1 attempt" if letter.attempts == 1 else f"{letter.attempts} attempts"
    return ErrorReport(
        service=(letter.service or letter.subject.partition(".")[0] or "broker")[:_SERVICE_MAX],
        severity="error",
        kind=DEAD_LETTER,
        message=f"{letter.subject}: {letter.reason} after {attempts}: {letter.message}",
        subject=letter.subject,
        request_id=letter.id,
        instance=letter.instance,
        at=letter.at,
        context={"dead_letter": letter.id, "body_bytes": letter.body_bytes},
    )


def _made(subject: str, body: Any) -> ErrorReport:
    """A report of what is none: service and severity as the subject says, the rest where it can be found."""
    tokens = subject.split(".")[1:]
    last = tokens[-1] if tokens else ""
    fields: Mapping[Any, Any] = body if isinstance(body, Mapping) else {}
    told = fields.get("severity")
    severity: Severity = next((one for one in SEVERITIES if one in (told, last)), "error")
    if isinstance(told, str) and told.lower() in SEVERITIES:
        severity = next(one for one in SEVERITIES if one == told.lower())
    service = _text_of(fields.get("service")) or (tokens[0] if tokens else "") or "unknown"
    return ErrorReport(
        service="broker" if subject == DEAD_LETTERS else service[:_SERVICE_MAX],
        severity=severity,
        kind=DEAD_LETTER if subject == DEAD_LETTERS else _first(fields, _KINDS),
        message=_first(fields, _MESSAGES) or _text(body) or "(no text)",
        traceback=_first(fields, _TRACEBACKS),
        subject=_text_of(fields.get("subject")),
        instance=_text_of(fields.get("instance")),
        host=_text_of(fields.get("host")),
    )


def _first(fields: Mapping[Any, Any], names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := _text_of(fields.get(name)))), "")


def _text_of(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _text(body: Any) -> str:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body[:_MESSAGE_MAX]).decode("utf-8", "replace").strip()
    if isinstance(body, str):
        return body.strip()
    # Whatever it is, as a person would see it; of what has parts, a part.
    return "" if body is None else repr(body)[:_MESSAGE_MAX]
