"""What is told for the audit log: events `audit.{kind}`, refusals of one kind summed up in a storm. It keeps nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from bus.authorize import LOCAL, Caller
from schemas.bodies.telling import AuditEvent, AuditKind
from schemas.envelope import Headers

# Seconds for which further refusals like one that was told are only counted.
DAMPED_S: Final = 60.0

# Kinds of refusals counted apart, at most: whoever is refused may invent any number of names.
_KINDS_MAX: Final = 500
_OTHERS: Final = "(others)"

# Characters of what somebody else chose.
_TEXT_MAX: Final = 200

# Fields of requests that may stand in an audit line: they name things. None holds what people wrote, or a secret.
_TARGET_FIELDS: Final = (
    "user_id", "ns", "key", "id", "ids", "doc_id", "session_id", "context_id", "model", "adapter", "alias",
    "job_id", "checkpoint", "dataset", "version", "row_id", "reply_id", "group_id", "conversation_id", "fingerprint",
    "service", "subject", "path", "name", "type", "category", "older_than_s", "unseen_s", "everything", "everywhere",
    "cascade", "dry_run", "is_forced", "revoke", "admin", "scopes", "namespaces", "disabled",
)  # fmt: skip

Publish = Callable[[str, AuditEvent], None]


class Auditor:
    """Tells events of one process. `publish(subject, event)` must not block; `clock` is monotonic, `wall` Unix epoch."""

    def __init__(
        self,
        service: str,
        publish: Publish,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._publish = publish
        self._clock = clock
        self._wall = wall
        self._host = socket.gethostname()
        # Since when refusals of a kind are summed up, and how many there were since the last line of them.
        self._damped: dict[tuple[str, str, str], tuple[float, AuditEvent, int]] = {}

    def tell(self, kind: AuditKind, *, actor: str, action: str, **fields: str) -> None:
        """One line; `fields` are further texts of the event."""
        self._send(self._event(kind, actor, action, fields))

    def tell_damped(self, kind: AuditKind, *, actor: str, action: str, **fields: str) -> None:
        """One line, unless one like it (same actor, action and outcome) was told just now: then it is counted."""
        key = (actor[:_TEXT_MAX], action[:_TEXT_MAX], fields.get("outcome", ""))
        held = self._damped.get(key)
        if held is None and len(self._damped) >= _KINDS_MAX:
            actor, action, key = _OTHERS, _OTHERS, (_OTHERS, _OTHERS, "")
            held = self._damped.get(key)
        if held is None:
            event = self._event(kind, actor, action, fields)
            self._damped[key] = (self._clock() + DAMPED_S, event, 0)
            self._send(event)
        else:
            until, event, count = held
            self._damped[key] = (until, event, count + 1)

    def tell_due(self, *, is_last: bool = False) -> None:
        """Tell how many were counted; call it every few seconds, and before the process leaves with `is_last`."""
        now = self._clock()
        for key, (until, event, count) in list(self._damped.items()):
            if now < until and not is_last:
                continue
            del self._damped[key]
            if count:
                self._send(msgspec.structs.replace(event, count=count, at=self._wall()))
                if not is_last:
                    # Still going on: what follows is counted too.
                    self._damped[key] = (now + DAMPED_S, event, 0)

    def _event(self, kind: AuditKind, actor: str, action: str, fields: dict[str, str]) -> AuditEvent:
        cut: Any = {name: value[:_TEXT_MAX] for name, value in fields.items()}
        return AuditEvent(
            kind=kind,
            actor=actor[:_TEXT_MAX],
            action=action[:_TEXT_MAX],
            service=self._service,
            host=self._host,
            at=self._wall(),
            **cut,
        )

    def _send(self, event: AuditEvent) -> None:
        self._publish(f"audit.{event.kind}", event)


def actor_of(caller: Caller | None, headers: Headers, named: str = "") -> str:
    """Who asks: the user signed in (else the one `named`), and the key of the machine that the request came from."""
    user = caller.user_id if caller is not None else named
    via = headers.get("via")
    machine = via if isinstance(via, str) else ""
    return f"{user}@{machine}" if user and machine else user or machine or LOCAL.user_id


def address_of(headers: Headers) -> str:
    """Where an edge says that the request came from: `http 192.0.2.7`; empty for the bus itself."""
    source = headers.get("source")
    return source if isinstance(source, str) else ""


def target_of(request: Any) -> str:
    """The ids and names in a request, `field=value`, and nothing else of it."""
    parts = []
    for name in _TARGET_FIELDS:
        value = getattr(request, name, None)
        if value is None or value is msgspec.UNSET or value in ("", (), []):
            continue
        if isinstance(value, list | tuple):
            if not all(isinstance(one, str | int) for one in value):
                continue
            value = ",".join(map(str, value[:10])) + (f",... ({len(value)})" if len(value) > 10 else "")
        if isinstance(value, str | int | float):
            parts.append(f"{name}={value}")
    return " ".join(parts)[:_TEXT_MAX]
