"""What other parts of the memory keep in the hot tier for themselves: found again or not, never a reason to fail."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from schemas.errors import BusError
from workers.memory.hot.tier import HotTier, Space

log = logging.getLogger("olympus.memory")

# Seconds for which the vector of a query is kept. It depends on model and text alone, so only room ends it sooner.
QUERY_VECTORS_S: Final = 30 * 86_400.0

# Seconds for which it is kept how far a session was looked at: as long as it is likely to go on.
LOOKED_TO_S: Final = 30 * 86_400.0

# Seconds in which the tier takes what is being stored while the service stops. Where a Redis goes away just then, nobody
# moves the writes to SQLite any more, and they would wait for ever.
SETTLE_S: Final = 2.0


class Kept:
    """Values in one space of the tier, for `ttl_s` seconds each. They must be right whenever they are found."""

    def __init__(self, tier: HotTier, space: Space, *, ttl_s: float) -> None:
        self._tier = tier
        self._space: Space = space
        self._ttl_s = ttl_s
        self._storing: set[asyncio.Task[None]] = set()

    async def get(self, key: str) -> bytes | None:
        """What was set, None when it is not there or cannot be read."""
        try:
            return await self._tier.get(self._space, key)
        except BusError as error:
            log.warning("kept value not read", extra={"action": "memory.hot.failed", "reason": error.message})
        return None

    async def set(self, key: str, value: bytes) -> None:
        """Begin to store the value; nobody waits until that is done."""
        task = asyncio.create_task(self._store(key, value), name="memory hot keep")
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def settle(self) -> None:
        """Wait for what is being stored, SETTLE_S at most; what takes longer is not kept."""
        if not self._storing:
            return
        _, late = await asyncio.wait(self._storing, timeout=SETTLE_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _store(self, key: str, value: bytes) -> None:
        try:
            await self._tier.set(self._space, key, value, ttl_s=self._ttl_s)
        except BusError as error:
            log.warning("value not kept", extra={"action": "memory.hot.failed", "reason": error.message})
