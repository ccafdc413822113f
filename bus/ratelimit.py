"""How many requests a caller may make: a token bucket whose rate grows with the trust in the caller. Pure."""

from __future__ import annotations

from typing import Final

# Seconds' worth of requests that may come at once.
BURST_S: Final = 2.0


def rate_of(score: float, lowest_per_s: float, highest_per_s: float) -> float:
    """Requests per second for a trust score from 0 to 1: the lowest rate for 0, the highest for 1, straight between."""
    return lowest_per_s + min(max(score, 0.0), 1.0) * (highest_per_s - lowest_per_s)


class TokenBucket:
    """Fills with `rate_per_s` up to BURST_S seconds' worth, one request at least, and gives one per request.

    Source: the leaky bucket as a meter, ITU-T I.371, annex A. A clock that stands still or goes back adds nothing.
    """

    __slots__ = ("_at", "_left")

    def __init__(self, now: float) -> None:
        self._at = now
        self._left = float("inf")

    def take(self, rate_per_s: float, now: float) -> float:
        """0.0 and the request counts; or the seconds until one may be made, and nothing has changed."""
        most = max(rate_per_s * BURST_S, 1.0)
        self._left = min(most, self._left + max(now - self._at, 0.0) * rate_per_s)
        self._at = max(now, self._at)
        if self._left < 1.0:
            return (1.0 - self._left) / rate_per_s
        self._left -= 1.0
        return 0.0
