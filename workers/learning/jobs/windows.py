"""Whether an instant lies in the hours and on the days of a schedule. Pure: clock and time zone are given.

Hours are those of the clock on the wall. Where it is set forward, an hour that does not exist is never open; where it is
set back, an hour that comes twice is open twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta, tzinfo
from typing import Final, NamedTuple

from bus.hours import Hours

WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_MINUTE_S: Final = 60

# Every window begins anew within a week; one more day where a change of the clocks swallows its beginning.
_DAYS_AHEAD: Final = 9


class Windows(NamedTuple):
    """hours: when it is open, none for always. days: on which a window begins, none for all."""

    hours: tuple[Hours, ...] = ()
    days: frozenset[str] = frozenset()

    def is_open(self, at: float, zone: tzinfo | None) -> bool:
        """Whether training may run at `at` (epoch seconds); zone None is the machine's own."""
        local = datetime.fromtimestamp(at, zone)
        minute = local.hour * 60 + local.minute
        today, yesterday = self._has(local.date()), self._has(local.date() - timedelta(days=1))
        if not self.hours:
            return today
        return any(
            today and start <= minute < end
            if start < end
            else (today and minute >= start) or (yesterday and minute < end)
            for start, end in self.hours
        )

    def opens_at(self, at: float, zone: tzinfo | None) -> float | None:
        """The next instant, `at` itself or later, at which it is open; None when there is none within nine days."""
        if self.is_open(at, zone):
            return at
        return min(
            (start for start in self._starts(at, zone) if start > at and self.is_open(start, zone)), default=None
        )

    def _starts(self, at: float, zone: tzinfo | None) -> Iterator[float]:
        """Instants near which windows begin."""
        today = datetime.fromtimestamp(at, zone).date()
        for day in (today + timedelta(days=ahead) for ahead in range(_DAYS_AHEAD)):
            if self._has(day):
                for minute in {hours.start for hours in self.hours} or {0}:
                    yield from _instants(day, minute, zone)

    def _has(self, day: date) -> bool:
        return not self.days or WEEKDAYS[day.weekday()] in self.days


def local_day(at: float, zone: tzinfo | None) -> str:
    """The day of an instant on the wall's calendar: `2026-03-29`."""
    return datetime.fromtimestamp(at, zone).date().isoformat()


def day_ends_at(at: float, zone: tzinfo | None) -> float:
    """The instant at which the local day of `at` is over."""
    tomorrow = datetime.fromtimestamp(at, zone).date() + timedelta(days=1)
    return next(_instants(tomorrow, 0, zone))


def _instants(day: date, minute: int, zone: tzinfo | None) -> Iterator[float]:
    """When the wall shows that minute: once, twice, or, where it is skipped, every minute around the skipping."""
    local = datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=zone)
    first, second = local.timestamp(), local.replace(fold=1).timestamp()
    if second >= first:
        yield first
        if second > first:
            yield second
        return
    # PEP 495: of a time that is skipped, fold 1 gives the earlier instant and fold 0 the later one.
    instant = second
    while instant <= first:
        if datetime.fromtimestamp(instant, zone).date() >= day:
            yield instant
        instant += _MINUTE_S
