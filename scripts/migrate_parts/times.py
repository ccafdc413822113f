"""The four forms in which the old stores wrote a time, read as epoch seconds."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

# Times reach this far, epoch seconds, as in every request of ours.
_FAR_S = 1e11


def epoch(value: Any, *, is_utc: bool = False) -> float | None:
    """A number as it is; ISO text with `T` or a space, local where it names no zone, or UTC with `is_utc`.

    None for what is absent, empty, no time, or before 1970.
    """
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) and 0 <= value <= _FAR_S else None
    text = str(value).strip()
    if not text:
        return None
    try:
        return epoch(float(text))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if moment.tzinfo is None and is_utc:
            moment = moment.replace(tzinfo=UTC)
        return epoch(moment.timestamp())
    except (ValueError, OverflowError, OSError):
        return None


def default_epoch(value: Any) -> float | None:
    """As `epoch` for a column whose default is CURRENT_TIMESTAMP: `YYYY-MM-DD HH:MM:SS` there is UTC."""
    is_default = isinstance(value, str) and len(value.strip()) == 19 and "T" not in value
    return epoch(value, is_utc=is_default)
