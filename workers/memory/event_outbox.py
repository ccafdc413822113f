"""Brings the events of committed writes to the bus, in the order of their commits, each at least once.

The events lie in the table `events_outbox`, written with what caused them, until the broker has read them. So none is
lost when this process dies between a commit and its event; the last ones before a crash may be published again.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from schemas.errors import BusError, Retryable
from workers.memory.outcome import Outcome
from workers.memory.records import Records

log = logging.getLogger("olympus.memory")

# Events read, published and confirmed together.
PAGE_EVENTS: Final = 512

# Events kept while the broker is away, at most: about 200 MB. The oldest go first, counted and logged.
WAITING_MAX: Final = 1_000_000

# Seconds before a failed publication is tried again.
RETRY_S: Final = 0.5

# Seconds without a write after which the rows of published events are deleted; sooner, the next write takes them along.
TIDY_S: Final = 1.0


class Publisher(Protocol):
    """The client that publishes: `bus.client.Client`, or the worker's own."""

    async def publish(self, subject: str, body: Any = None) -> None:
        """Publish one event."""

    async def flush(self) -> None:
        """Return once the broker has read every event."""


class _Waiting(NamedTuple):
    sequence: int
    subject: str
    body: bytes


class EventOutbox:
    """Publishes what lies in the outbox. `wake` after commits; `publish_forever` does the work."""

    def __init__(self, records: Records, publisher: Publisher) -> None:
        self._records = records
        self._publisher = publisher
        self._woken = asyncio.Event()
        self._published = 0
        self._tidied = 0

    def wake(self) -> None:
        """There is something new."""
        self._woken.set()

    def begin_anew(self) -> None:
        """The database was replaced: its events are numbered otherwise."""
        self._published = self._tidied = 0
        self._woken.set()

    async def publish_forever(self) -> None:
        """Publish until cancelled; without a broker the events wait on disk."""
        self._woken.set()
        while True:
            try:
                async with asyncio.timeout(TIDY_S if self._published > self._tidied else None):
                    await self._woken.wait()
            except TimeoutError:
                await self._guarded(self.tidy)
                continue
            self._woken.clear()
            while not await self._guarded(self._publish_page):
                pass

    async def tidy(self) -> bool:
        """Delete the rows of events that are on the bus."""
        published = self._published
        if published > self._tidied:
            await self._records.write(lambda connection, now: _delete_up_to(connection, published))
            self._tidied = published
        return True

    async def _publish_page(self) -> bool:
        """True when nothing waits any more."""
        published = self._published
        page = await self._records.read(lambda connection: _page(connection, published))
        for event in page:
            await self._publisher.publish(event.subject, msgspec.Raw(event.body))
        if page:
            await self._publisher.flush()
            self._published = page[-1].sequence
        if self._published - self._tidied >= PAGE_EVENTS:
            await self.tidy()
        return len(page) < PAGE_EVENTS

    async def _guarded(self, step: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return await step()
        except (Retryable, ConnectionError) as error:
            log.warning("events wait for the broker", extra={"action": "memory.events.waiting", "reason": str(error)})
        except BusError as error:
            log.warning("events cannot be read", extra={"action": "memory.events.failed", "reason": error.message})
        await asyncio.sleep(RETRY_S)
        dropped = await self._drop_oldest()
        if dropped:
            log.warning("events dropped", extra={"action": "memory.events.dropped", "count": dropped})
        return False

    async def _drop_oldest(self) -> int:
        try:
            dropped: int = await self._records.write(lambda connection, now: _drop_beyond(connection, WAITING_MAX))
        except BusError:
            # The disk is full or gone: said above, and said again at the next turn.
            return 0
        return dropped


def _page(connection: sqlite3.Connection, after: int) -> list[_Waiting]:
    rows = connection.execute(
        "SELECT sequence, subject, body FROM events_outbox WHERE sequence > ? ORDER BY sequence LIMIT ?",
        (after, PAGE_EVENTS),
    )
    return [_Waiting(*row) for row in rows]


def _delete_up_to(connection: sqlite3.Connection, sequence: int) -> Outcome:
    cursor = connection.execute("DELETE FROM events_outbox WHERE sequence <= ?", (sequence,))
    return Outcome(cursor.rowcount, [])


def _drop_beyond(connection: sqlite3.Connection, limit: int) -> Outcome:
    cursor = connection.execute(
        "DELETE FROM events_outbox WHERE sequence <= (SELECT max(sequence) FROM events_outbox) - ?", (limit,)
    )
    return Outcome(cursor.rowcount, [])
