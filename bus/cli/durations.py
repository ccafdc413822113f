"""Times as people type them: durations such as `90s` and `2h`, and instants such as `10m` ago or an ISO time."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime
from typing import Final

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")


def duration(text: str) -> float:
    """Seconds in `90s`, `2h`, `1h30m`, `250ms` or a bare number; an argparse type."""
    try:
        seconds = float(text)
    except ValueError:
        parts = _PART.findall(text)
        if not parts or "".join(map("".join, parts)) != text:
            raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 10m, 2h or 1d") from None
        seconds = sum(float(count) * _UNITS_S[unit] for count, unit in parts)
    if not 0 < seconds < 1e10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration above 0")
    return seconds


def amount(text: str) -> float:
    """As duration, where 0 means none."""
    return 0.0 if text in ("0", "0s") else duration(text)


def instant(text: str) -> float:
    """Unix epoch seconds of an ISO time (local unless it names a zone), or of a duration ago; an argparse type."""
    try:
        return time.time() - duration(text)
    except argparse.ArgumentTypeError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a duration such as 10m nor an ISO time such as 2026-07-01T12:30"
        ) from None
