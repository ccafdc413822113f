"""How often something happened, by minute, hour and day: small enough to keep for every group. Pure.

Minutes reach two hours back, hours two weeks, days ten years. A count over a span is of all the buckets that it touches,
so of up to a minute, an hour or a day more than the span.
"""

from __future__ import annotations

from typing import Final

import msgspec

MINUTE_S: Final = 60.0
HOUR_S: Final = 3_600.0
DAY_S: Final = 86_400.0

# Buckets of each sort that are kept.
_MINUTES: Final = 121
_HOURS: Final = 14 * 24 + 1
_DAYS: Final = 3_661

# What one bucket counts to; above it sums would not fit into what SQLite and JSON carry.
_MAX: Final = 2**53


class Counts(msgspec.Struct, array_like=True):
    """Counts by the number of the minute, hour and day since the epoch."""

    minutes: dict[int, int] = {}
    hours: dict[int, int] = {}
    days: dict[int, int] = {}

    def add(self, at: float, count: int) -> None:
        """Count `count` at `at`, epoch seconds."""
        _add(self.minutes, int(at // MINUTE_S), count, _MINUTES)
        _add(self.hours, int(at // HOUR_S), count, _HOURS)
        _add(self.days, int(at // DAY_S), count, _DAYS)

    def over(self, span_s: float, now: float) -> int:
        """How many in the last `span_s` seconds, as exactly as that is kept."""
        if span_s <= (_MINUTES - 1) * MINUTE_S:
            return _since(self.minutes, (now - span_s) // MINUTE_S)
        if span_s <= (_HOURS - 1) * HOUR_S:
            return _since(self.hours, (now - span_s) // HOUR_S)
        return _since(self.days, (now - span_s) // DAY_S)

    def per_minute(self, now: float) -> float:
        """Of the last ten minutes, the one that runs among them."""
        return round(_since(self.minutes, now // MINUTE_S - 9) / 10, 3)

    def last_hours(self, now: float) -> list[int]:
        """Of the last 24 hours, the one that runs last."""
        newest = int(now // HOUR_S)
        return [self.hours.get(hour, 0) for hour in range(newest - 23, newest + 1)]


def _add(buckets: dict[int, int], bucket: int, count: int, keep: int) -> None:
    held = buckets.get(bucket)
    if held is not None:
        buckets[bucket] = min(held + count, _MAX)
        return
    # What lies ahead comes from a clock that has gone back since.
    for other in [other for other in buckets if not bucket - keep < other <= bucket + 1]:
        del buckets[other]
    buckets[bucket] = min(count, _MAX)


def _since(buckets: dict[int, int], first: float) -> int:
    return min(sum(count for bucket, count in buckets.items() if bucket >= first), _MAX)
