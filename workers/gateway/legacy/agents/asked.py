"""How the learning agents read requests and wrote times, and how their free texts become ids of ours."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any, Final

from workers.gateway.legacy.agent import Fields, Refused

# schemas.bodies.learning.LearningId.
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_NO_ID: Final = re.compile(r"[^A-Za-z0-9_.:-]+")


def given(ask: Fields, name: str) -> Any:
    """A field that must be there. Raises Refused with its name in quotes, as a Python dictionary names a missing key."""
    if name not in ask:
        raise Refused(f"'{name}'")
    return ask[name]


def learning_id(text: str) -> str:
    """`text` where it is an id of ours, else one made of it: the same text always makes the same id."""
    if _ID.fullmatch(text):
        return text
    readable = _NO_ID.sub("-", text)[:60].strip("-._:") or "id"
    return f"{readable}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}"


def iso(at: float | None) -> str | None:
    """Epoch seconds as local time without a zone."""
    return None if at is None else datetime.fromtimestamp(at).isoformat()


def iso_utc(at: float) -> str:
    """Epoch seconds as UTC without a zone."""
    return datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat()


def is_number(value: object) -> bool:
    """True for numbers that JSON knows."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
