"""One writer at a time for each key: what reads a record, changes it and writes it back takes a turn."""

from __future__ import annotations

import asyncio
import weakref


class Turns:
    """Locks by key, each kept only as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def of(self, key: str) -> asyncio.Lock:
        """The lock of a key: `async with turns.of(key): ...`."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
