"""How a notification reads: a headline and a few lines for people, and the bodies that Slack, ntfy and programs take. Pure."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final, Literal

import msgspec

from schemas.bodies.control import Severity
from workers.errors.notices import Notice

Format = Literal["json", "slack", "ntfy"]

# Characters of a headline and of a message; ntfy takes 4,096 bytes, a desktop shows less.
_HEADLINE_MAX: Final = 120
_MESSAGE_MAX: Final = 1_000

# 1 to 5 of ntfy (docs.ntfy.sh/publish, "Message priority").
_PRIORITY: Final[dict[Severity, str]] = {"debug": "1", "info": "2", "warning": "3", "error": "4", "critical": "5"}


class Post(msgspec.Struct, frozen=True):
    """What is posted: a body and its headers."""

    body: bytes
    headers: dict[str, str]


def headline(notice: Notice) -> str:
    """One line that says what happened."""
    group = notice.group
    if group is None:
        return f"Olympus: {notice.more} more notifications were held back in the last minute"
    what = "; ".join(part for part in (_line(group.kind), _line(group.message)) if part) or "an error"
    how = {"reopened": " came again", "worse": " became worse", "again": " goes on"}.get(notice.occasion, "")
    return _cut(f"{group.severity} in {_line(group.service)}{how}: {what}", _HEADLINE_MAX)


def text(notice: Notice) -> str:
    """The lines below the headline."""
    group = notice.group
    if group is None:
        return "olympus errors lists them"
    more = f"{notice.more} more since the last notification" if notice.more else ""
    lines = (
        _cut(group.message, _MESSAGE_MAX),
        f"where: {_line(group.where)}" if group.where else "",
        f"on: {_line(group.subject)}" if group.subject else "",
        more,
        f"olympus errors show {group.fingerprint[:8]}",
    )
    return "\n".join(line for line in lines if line)


def post(notice: Notice, form: Format) -> Post:
    """The notification as a webhook gets it."""
    if form == "slack":
        # Characters that Slack reads as its own (api.slack.com/reference/surfaces/formatting, "Escaping text").
        whole = f"{headline(notice)}\n{text(notice)}".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return Post(msgspec.json.encode({"text": whole}), {"Content-Type": "application/json"})
    if form == "ntfy":
        severity = notice.group.severity if notice.group else "error"
        return Post(
            text(notice).encode("utf-8", "replace"),
            {
                "Content-Type": "text/plain; charset=utf-8",
                "Title": _header(headline(notice)),
                "Priority": _PRIORITY[severity],
            },
        )
    group: dict[str, Any] = msgspec.to_builtins(notice.group) if notice.group is not None else {}
    if group:
        group["message"] = _cut(group["message"], _MESSAGE_MAX)
    body = {"headline": headline(notice), "occasion": notice.occasion, "more": notice.more, **group}
    return Post(msgspec.json.encode(body), {"Content-Type": "application/json"})


def _header(line: str) -> str:
    """As a header's value: what is not ASCII encoded by RFC 2047, which ntfy decodes."""
    return line if line.isascii() else f"=?UTF-8?B?{b64encode(line.encode('utf-8', 'replace')).decode()}?="


def _line(words: str) -> str:
    return "".join(one if one.isprintable() else " " for one in " ".join(words.split()))


def _cut(words: str, limit: int) -> str:
    return words if len(words) <= limit else f"{words[: limit - 1]}…"
