"""The bounded queue in front of one subject: interactive before batch, first come first served within each."""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Generic, Protocol, TypeVar


class Priority(IntEnum):
    """Order of service; the value is the index of the queue."""

    INTERACTIVE = 0
    BATCH = 1


class Queued(Protocol):
    """What can wait here. An item that ends while it waits is marked and skipped later, which keeps removal cheap."""

    is_done: bool
    priority: Priority

    @property
    def size_bytes(self) -> int:
        """What it counts for against the bound in bytes."""


ItemT = TypeVar("ItemT", bound=Queued)


class SubjectQueue(Generic[ItemT]):
    """Waiting items, bounded by count and by bytes. Items marked `is_done` do not count once `forget` was called."""

    __slots__ = ("_lanes", "_waiting", "count", "max_bytes", "max_count", "size_bytes")

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._lanes: tuple[deque[ItemT], deque[ItemT]] = (deque(), deque())
        self._waiting = [0, 0]
        self.max_count = max_count
        self.max_bytes = max_bytes
        self.count = 0
        self.size_bytes = 0

    def accepts(self, size_bytes: int) -> bool:
        """True when one more item of this size stays within both bounds."""
        return self.count < self.max_count and self.size_bytes + size_bytes <= self.max_bytes

    def has(self, priority: Priority) -> bool:
        """True when an item of this priority waits."""
        return self._waiting[priority] > 0

    def append(self, item: ItemT) -> None:
        """Queue behind everything of the same priority."""
        self._lanes[item.priority].append(item)
        self._count(item, 1)

    def append_first(self, item: ItemT) -> None:
        """Queue before everything of the same priority: an item that had its turn and lost its worker."""
        self._lanes[item.priority].appendleft(item)
        self._count(item, 1)

    def pop(self, priority: Priority) -> ItemT | None:
        """The oldest waiting item of this priority."""
        lane = self._lanes[priority]
        while lane:
            item = lane.popleft()
            if not item.is_done:
                self._count(item, -1)
                if len(lane) > 2 * self._waiting[priority]:
                    self._compact(priority)
                return item
        return None

    def forget(self, item: ItemT) -> None:
        """Account for a waiting item that ended; the caller marks it done."""
        self._count(item, -1)
        if len(self._lanes[item.priority]) > 2 * self._waiting[item.priority]:
            self._compact(item.priority)

    def drain(self) -> list[ItemT]:
        """Take everything out, in order of service."""
        items = [item for lane in self._lanes for item in lane if not item.is_done]
        for lane in self._lanes:
            lane.clear()
        self._waiting = [0, 0]
        self.count = self.size_bytes = 0
        return items

    def _compact(self, priority: Priority) -> None:
        """Let ended items go once they outnumber the others, so that none stays in memory behind one that waits long."""
        lane = self._lanes[priority]
        live = [item for item in lane if not item.is_done]
        lane.clear()
        lane.extend(live)

    def _count(self, item: ItemT, sign: int) -> None:
        self._waiting[item.priority] += sign
        self.count += sign
        self.size_bytes += sign * item.size_bytes
