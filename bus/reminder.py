"""When it is time to say again that something is still missing: soon at first, then ever more rarely. Pure."""

from __future__ import annotations

from typing import Final

# Seconds that something may take before it is worth a line: everything on one machine has come up by then.
_FIRST_S: Final = 2.0

# Seconds between two lines about the same, at most.
_RAREST_S: Final = 300.0


class Reminder:
    """Due after 2 s, then after twice as long each time; what is new is due at once. Times are of a monotonic clock."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """It is there; the next time begins anew."""
        self.was_said = False
        self._next_at: float | None = None
        self._wait_s = _FIRST_S
        self._last = ""

    def is_due(self, what: str, now: float) -> bool:
        """True when `what`, which is the case at `now`, should be said."""
        if self._next_at is None:
            self._next_at = now + _FIRST_S
        is_new = self.was_said and what != self._last
        if now < self._next_at and not is_new:
            return False
        if is_new:
            self._wait_s = _FIRST_S
        self._next_at = now + self._wait_s
        self._wait_s = min(self._wait_s * 2, _RAREST_S)
        self._last = what
        self.was_said = True
        return True
