"""Numbers and texts of old rows, brought into the ranges that ours have. A column may hold anything, whatever it says."""

from __future__ import annotations

import math
from typing import Any, Final

# Whole numbers reach this far in a message.
_WHOLE_MAX: Final = 2**53


def number(value: Any, default: float) -> float:
    """A finite number, also one in a text; `default` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return default
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return default
    return found if math.isfinite(found) else default


def unit(value: Any, default: float) -> float:
    """A number brought into 0 to 1."""
    return min(max(number(value, default), 0.0), 1.0)


def whole(value: Any) -> int:
    """A number as a count, 0 or more."""
    return int(min(max(number(value, 0.0), 0.0), _WHOLE_MAX))


def text(value: Any) -> str:
    """A text as it is, nothing for None, any other value as Python writes it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else str(value)


def truth(value: Any) -> bool:
    """A BOOLEAN of SQLite: a number other than 0, or a word for yes."""
    if isinstance(value, str):
        return value.strip().lower() in ("1", "true", "t", "yes")
    return bool(value)
