"""A queue for what is costly: a few at a time, some more wait, and whoever comes after them is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from schemas.errors import DeadlineExceeded, Overloaded

# Seconds for a turn where its caller names no deadline.
_WAIT_S: Final = 30.0


class Queue:
    """Lets `at_once` go on, and `waiting` more wait for their turn. what: one of them, as errors name it."""

    def __init__(self, what: str, *, at_once: int, waiting: int) -> None:
        self._what = what
        self._turns = asyncio.Semaphore(at_once)
        self._waiting_max = waiting
        self._waiting = 0

    @asynccontextmanager
    async def turn(self, deadline_at: float) -> AsyncIterator[None]:
        """Wait for a turn; `deadline_at` in epoch seconds, 0 for none.

        Raises Overloaded when too many wait, DeadlineExceeded when the turn does not come in time.
        """
        if self._waiting >= self._waiting_max:
            raise Overloaded(
                f"{self._waiting} {self._what}s wait, the limit is {self._waiting_max}",
                queued=self._waiting,
                limit=self._waiting_max,
            )
        self._waiting += 1
        try:
            async with asyncio.timeout(deadline_at - time.time() if deadline_at else _WAIT_S):
                await self._turns.acquire()
        except TimeoutError:
            raise DeadlineExceeded(f"the {self._what} did not get its turn before its deadline") from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()
