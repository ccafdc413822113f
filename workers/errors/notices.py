"""Whom to bother, and how rarely: which changes of groups are told to a person, and when. Pure; times are steady seconds.

A group is told when it is opened, reopened, becomes worse than it was, and for dead letters each time; at least as bad
as `severity`; at most once in `every_s` seconds, and what comes meanwhile is told together at the end of them. All
groups together are told `PER_MINUTE` times a minute, then once how many were held back.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, NamedTuple

from schemas.bodies.control import Severity
from schemas.bodies.errors import ErrorGroup
from workers.errors.groups import Change
from workers.errors.reading import DEAD_LETTER, rank

# Notifications in any minute: what a person can still read.
PER_MINUTE: Final = 20
_MINUTE_S: Final = 60.0

# Groups of which is remembered when they were told.
_REMEMBERED: Final = 10_000

Occasion = Literal["opened", "reopened", "worse", "dead letter", "again", "held back"]


class Notice(NamedTuple):
    """Something to tell. group: None for how many were held back. more: errors since it was last told, or notices held."""

    occasion: Occasion
    group: ErrorGroup | None
    more: int = 0


class _Told:
    """When a group was told, and what came since."""

    __slots__ = ("at", "count", "waits")

    def __init__(self, at: float, count: int) -> None:
        self.at = at
        self.count = count
        self.waits = False


class Notices:
    """Decides; telling is somebody else's."""

    def __init__(self, severity: Severity, every_s: float, per_minute: int = PER_MINUTE) -> None:
        self._rank = rank(severity)
        self._every_s = every_s
        self._per_minute = per_minute
        self._told: dict[str, _Told] = {}
        self._lately: deque[float] = deque()
        self._held_back = 0

    def wants(self, severity: Severity, kind: str, change: Change) -> bool:
        """True where a group that did this may be worth telling."""
        return rank(severity) >= self._rank and (change != "" or kind == DEAD_LETTER)

    def on_change(self, group: ErrorGroup, change: Change, now: float) -> Notice | None:
        """What to tell of a group for which `wants` said yes."""
        if group.state == "muted":
            return None
        told = self._told.get(group.fingerprint)
        if told is not None and now - told.at < self._every_s:
            told.waits = True
            return None
        return self._tell(change or "dead letter", group, told, now)

    def due(self, now: float) -> list[str]:
        """Groups of which something waited that may be told now; ask `on_due` with each."""
        over = [named for named, told in self._told.items() if now - told.at >= self._every_s]
        waiting = [named for named in over if self._told[named].waits]
        for named in over:
            if not self._told[named].waits:
                del self._told[named]
        return waiting

    def on_due(self, group: ErrorGroup | None, named: str, now: float) -> Notice | None:
        """What to tell of a group that waited; nothing where it is gone, muted or seen meanwhile."""
        told = self._told.pop(named, None)
        if group is None or told is None or group.state != "open":
            return None
        return self._tell("again", group, told, now)

    def held_back(self, now: float) -> Notice | None:
        """How many were held back, once one more may be told."""
        if not self._held_back or not self._may_tell(now):
            return None
        held, self._held_back = self._held_back, 0
        self._lately.append(now)
        return Notice("held back", None, held)

    def _tell(self, occasion: Occasion, group: ErrorGroup, told: _Told | None, now: float) -> Notice | None:
        if len(self._told) >= _REMEMBERED:
            self._told.pop(next(iter(self._told)))
        self._told[group.fingerprint] = _Told(now, group.count)
        # While some are held back so are all that follow: how many it was is told first.
        if not self._may_tell(now) or self._held_back:
            self._held_back += 1
            return None
        self._lately.append(now)
        return Notice(occasion, group, group.count - told.count if told is not None else 0)

    def _may_tell(self, now: float) -> bool:
        while self._lately and now - self._lately[0] >= _MINUTE_S:
            self._lately.popleft()
        return len(self._lately) < self._per_minute
