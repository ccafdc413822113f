"""A wheel of deadlines: constant cost to add and remove, however many there are, and no timer handle each."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

# A deadline fires at most this late. Finer slots would only add wake-ups: callers hold their own deadline too.
SLOT_S: Final = 0.05


class DeadlineWheel(Generic[KeyT]):
    """Keys by the slot in which their deadline falls. Deadlines are seconds on whatever clock `expire` is asked with."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: dict[int, dict[KeyT, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._slots)

    def add(self, deadline: float, key: KeyT) -> None:
        """Watch `key`."""
        slot = int(deadline / SLOT_S)
        keys = self._slots.get(slot)
        if keys is None:
            self._slots[slot] = {key: None}
        else:
            keys[key] = None

    def remove(self, deadline: float, key: KeyT) -> None:
        """Stop watching `key`, which was added with this `deadline`; nothing happens when it is not there."""
        slot = int(deadline / SLOT_S)
        keys = self._slots.get(slot)
        if keys is not None:
            keys.pop(key, None)
            if not keys:
                del self._slots[slot]

    def expire(self, now: float) -> list[KeyT]:
        """Take out and return every key whose slot has passed, earliest first."""
        current = int(now / SLOT_S)
        due = sorted(slot for slot in self._slots if slot < current)
        return [key for slot in due for key in self._slots.pop(slot)]
