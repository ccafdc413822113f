"""How long a server asks to be left alone; knows no socket."""

from __future__ import annotations

import datetime
import email.utils
import re
from typing import Final

_SECONDS: Final = re.compile(r"\d{1,12}", re.ASCII)


def retry_after_s(value: str | None, now: float) -> float | None:
    """Seconds a Retry-After header asks for: a number, or a date less `now` (Unix epoch seconds); None for neither.

    Source: RFC 9110, section 10.2.3.
    """
    if not value:
        return None
    if _SECONDS.fullmatch(value.strip()):
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
        if at.tzinfo is None:
            at = at.replace(tzinfo=datetime.UTC)
        return max(at.timestamp() - now, 0.0)
    except (ValueError, OverflowError):
        # Numbers of a date may be of any size.
        return None
