"""Which of many like things is told at once and which is only counted, so that a storm costs next to nothing. Pure.

    like = damper.take(key, now)
    if not like.left_out:
        ...                              # tell it
    for like, count in damper.due(now):
        ...                              # tell that `count` more like it came

Of each kind the first `burst` of a window pass; the others are counted, and told as one number when the window ends.
While the storm goes on, its windows get longer, up to `window_max_s`. Nothing is lost: what passed and what `due` and
`rest` give add up to what was taken. Times are of a monotonic clock, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, Final

# Kinds that nobody saw for this long are forgotten when room is needed, seconds.
_QUIET_S: Final = 60.0

# Between two searches for such kinds, seconds: a search looks at every kind.
_SWEEP_S: Final = 1.0


class Like:
    """One kind. left_out: how many of it are counted and not yet told. sample: whatever its owner keeps of it."""

    __slots__ = ("_passed", "_until", "_window_s", "key", "left_out", "sample")

    def __init__(self, key: Hashable, until: float, window_s: float) -> None:
        self.key = key
        self.left_out = 0
        self.sample: Any = None
        self._passed = 0
        self._until = until
        self._window_s = window_s


class Damper:
    """Decides per kind, and for all kinds together.

    burst: of one kind that pass in a window. kinds_max: kinds told apart; all further ones are one kind, `others`.
    per_s: passed and told in any one second by all kinds together, at most; None for no such bound.
    """

    def __init__(
        self,
        *,
        burst: int = 1,
        window_s: float = 1.0,
        window_max_s: float = 10.0,
        kinds_max: int = 256,
        per_s: int | None = None,
    ) -> None:
        self._burst = burst
        self._window_s = window_s
        self._window_max_s = window_max_s
        self._kinds_max = kinds_max
        self._likes: dict[Hashable, Like] = {}
        self._storms: dict[Like, None] = {}
        # When the last `per_s` were told; the oldest of them must lie a second back before another one is.
        self._told_at: deque[float] | None = None if per_s is None else deque([-1.0e9] * per_s, maxlen=per_s)
        self._swept_at = -1.0e9
        self.others = Like(None, -1.0e9, window_s)

    def take(self, key: Hashable, now: float) -> Like:
        """Count one more of that kind; it is to be told where the kind's `left_out` is 0."""
        like = self._likes.get(key)
        if like is None:
            like = self._admitted(key, now)
        if like.left_out:
            like.left_out += 1
            return like
        if now >= like._until:
            # The last window let everything through: whatever storm there was is over.
            like._window_s = self._window_s
            like._until = now + self._window_s
            like._passed = 0
        if like._passed < self._burst and self._may_tell(now):
            like._passed += 1
            return like
        like.left_out = 1
        self._storms[like] = None
        return like

    def due(self, now: float) -> list[tuple[Like, int]]:
        """Kinds whose window has ended, with how many were left out; they count as told."""
        told = []
        for like in list(self._storms):
            if now < like._until:
                continue
            if not self._may_tell(now):
                break
            told.append((like, like.left_out))
            del self._storms[like]
            like.left_out = 0
            like._window_s = min(like._window_s * 2, self._window_max_s)
            like._until = now + like._window_s
            like._passed = 1
        return told

    def rest(self) -> list[tuple[Like, int]]:
        """Everything that is counted and not told, at the end; no bound holds."""
        told = [(like, like.left_out) for like in self._storms]
        for like in self._storms:
            like.left_out = 0
        self._storms.clear()
        return told

    def next_due(self, now: float) -> float | None:
        """When `due` has something to give; None while nothing is left out."""
        if not self._storms:
            return None
        at = max(min(like._until for like in self._storms), now)
        return at if self._told_at is None else max(at, self._told_at[0] + 1.0)

    def _admitted(self, key: Hashable, now: float) -> Like:
        if len(self._likes) >= self._kinds_max and now - self._swept_at >= _SWEEP_S:
            self._swept_at = now
            self._likes = {k: like for k, like in self._likes.items() if like.left_out or now < like._until + _QUIET_S}
        if len(self._likes) >= self._kinds_max:
            return self.others
        like = self._likes[key] = Like(key, now + self._window_s, self._window_s)
        return like

    def _may_tell(self, now: float) -> bool:
        if self._told_at is None:
            return True
        if now - self._told_at[0] < 1.0:
            return False
        self._told_at.append(now)
        return True
