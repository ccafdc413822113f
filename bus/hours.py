"""Hours of the day as people write them: `22:00-06:00,12:00-13:00`. It knows no setting, no date and no time zone."""

from __future__ import annotations

from typing import Final, NamedTuple

_MINUTES_A_DAY: Final = 24 * 60


class Hours(NamedTuple):
    """From `start` on until before `end`, minutes after midnight; it goes over midnight where `end` is not the later."""

    start: int
    end: int


def parse_hours(text: str) -> tuple[Hours, ...]:
    """`"22:00-06:00"` -> `(Hours(1320, 360),)`; empty text is no window at all. Raises ValueError naming the window."""
    return tuple(_parse(window) for window in text.split(",") if text)


def _parse(window: str) -> Hours:
    start, dash, end = window.strip().partition("-")
    try:
        hours = Hours(_minute(start), _minute(end) if dash else -1)
    except ValueError:
        hours = Hours(-1, -1)
    if not (0 <= hours.start < _MINUTES_A_DAY and 0 <= hours.end <= _MINUTES_A_DAY):
        raise ValueError(f"{window[:40]!r} are no hours; allowed: 00:00-24:00, as 22:00-06:00")
    if hours.start == hours.end:
        raise ValueError(f"{window[:40]!r} begins when it ends; for the whole day write 00:00-24:00")
    return hours


def _minute(text: str) -> int:
    """Minutes after midnight of `HH:MM`, 1440 for 24:00. Raises ValueError."""
    hour, _, minute = text.partition(":")
    if len(hour) != 2 or len(minute) != 2 or not (hour + minute).isdecimal() or not (hour + minute).isascii():
        raise ValueError(text)
    if int(minute) > 59:
        raise ValueError(text)
    return int(hour) * 60 + int(minute)
