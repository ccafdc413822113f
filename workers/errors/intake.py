"""Follows `error.>`: as events come, from the log where some were lost or the service was away, each one once.

The broker numbers events. What is dealt with is remembered by its number, together with the counts; after a restart,
also after one that nobody expected, reading goes on from there. A storm that is faster than this process is dropped by
the broker for this subscriber alone, and read from the log a page at a time; what the log does not hold is counted as
missed. Knows nothing of what a report means.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from typing import Final

from bus.client import Client
from bus.reminder import Reminder
from bus.subscription import ReceivedEvent
from schemas.bodies.control import BrokerStats, BusStats, ErrorReport, EventsPage, EventsRead, LoggedEvent
from schemas.errors import BusError, Unsupported
from workers.errors import reading
from workers.errors.ledger import Ledger

log = logging.getLogger("olympus.errors")

PATTERN: Final = "error.>"

# Events of one read of the log: a piece that is dealt with in some 0.2 s, in batches of 200 between which others have
# their turn.
_PAGE: Final = 5_000

# Seconds that one page may take; the broker first writes what waits to be written.
_PAGE_S: Final = 30.0

# Live events dealt with before others have their turn: some 10 ms.
_TURN: Final = 250

# Seconds after which it is looked whether the end of a storm was lost; seconds until a failed read is tried again.
_CATCH_UP_S: Final = 3.0
_RETRY_S: Final = 1.0

OnReport = Callable[[ErrorReport, int, float, bool], None]


class _Renumbered(Exception):
    """The broker counts its events anew."""


class Intake:
    """Hands every report to `on_report(report, seq, at, is_old)`, in order.

    is_old: it came before this service first ran, so that nobody is to be told of it now. following: set once it hears
    of every event from then on.
    """

    def __init__(self, client: Client, ledger: Ledger, on_report: OnReport) -> None:
        self._client = client
        self._ledger = ledger
        self._on_report = on_report
        self._quiet_until = 0
        self._told_until = 0
        self._came = 0
        self._log_lost = 0
        self._reminder = Reminder()
        self._is_restart_wanted = asyncio.Event()
        self.following = asyncio.Event()
        self.failure = ""

    def begin_again(self) -> None:
        """The ledger has been taken up: read on from where it ends. What was told before is not told again."""
        self._quiet_until = max(self._quiet_until, self._told_until)
        self._is_restart_wanted.set()

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            self._is_restart_wanted.clear()
            following = asyncio.ensure_future(self._follow_once())
            restart = asyncio.ensure_future(self._is_restart_wanted.wait())
            try:
                await asyncio.wait({following, restart}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (following, restart):
                    task.cancel()
                ended = await asyncio.gather(following, restart, return_exceptions=True)
            if self._is_restart_wanted.is_set():
                continue
            error = ended[0]
            # Also after a fault in this program: a service that no longer hears of errors would look well.
            is_fault = not isinstance(error, BusError | OSError | _Renumbered)
            self.failure = f"errors are not followed: {error}"
            if is_fault or self._reminder.is_due(str(error), time.monotonic()):
                log.warning(
                    "not following errors",
                    exc_info=error if is_fault and isinstance(error, Exception) else None,
                    extra={"action": "errors.not_following", "error": str(error)},
                )
            await asyncio.sleep(_RETRY_S)

    async def _follow_once(self) -> None:
        await self._check_numbers()
        subscription = self._client.subscribe(PATTERN, reader=self._read_log, after_seq=self._ledger.last_seq or 0)
        async with subscription as events:
            self.following.set()
            self.failure = ""
            self._reminder.clear()
            catching_up = asyncio.ensure_future(self._look_for_the_end(subscription.catch_up))
            try:
                async for event in events:
                    self._take_live(event)
                    if self._came % _TURN == 0:
                        await asyncio.sleep(0)
            finally:
                catching_up.cancel()
                await asyncio.gather(catching_up, return_exceptions=True)
        raise ConnectionError("the subscription has ended")

    async def _check_numbers(self) -> None:
        """Whether the numbers go on from those that are known; of what was there before the first start nobody is told."""
        stats: BrokerStats = await self._client.request("bus.stats", BusStats())
        self._log_lost = stats.log_lost
        if self._ledger.last_seq is None:
            self._quiet_until = max(self._quiet_until, stats.last_seq)
            self._ledger.passed(0)
        elif stats.last_seq < self._ledger.last_seq:
            log.warning(
                "the broker counts its events anew",
                extra={"action": "errors.renumbered", "known": self._ledger.last_seq, "last": stats.last_seq},
            )
            self._quiet_until = self._told_until = 0
            self._ledger.passed(0)

    async def _look_for_the_end(self, catch_up: Callable[[], None]) -> None:
        """Of the last events of a storm that were lost nobody tells, because no event follows."""
        seen = self._came
        while True:
            await asyncio.sleep(_CATCH_UP_S)
            if self._came != seen:
                seen = self._came
                catch_up()

    def _take_live(self, event: ReceivedEvent) -> None:
        if event.seq <= self._last_seq:
            return
        self._take(event, event.raw)

    def _take(self, event: ReceivedEvent | LoggedEvent, raw: bytes | None) -> None:
        self._came += 1
        try:
            report = reading.read(event.subject, event.at, lambda: event.body, raw)
            if report is None:
                self._ledger.passed(event.seq)
            else:
                self._on_report(report, event.seq, event.at, event.seq <= self._quiet_until)
        except Exception:  # an event that cannot be dealt with would otherwise be read again after every restart
            log.exception("event not counted", extra={"action": "errors.not_counted", "seq": event.seq})
            self._ledger.miss(1)
            self._ledger.passed(event.seq)
        self._told_until = max(self._told_until, event.seq)

    @property
    def _last_seq(self) -> int:
        return self._ledger.last_seq or 0

    # From the log

    async def _read_log(self, pattern: str, first_seq: int, last_seq: int | None) -> list[LoggedEvent]:
        """Deal with the events between two numbers, both inclusive; nothing is left for the subscription."""
        first_seq = max(first_seq, self._last_seq + 1)
        if last_seq is not None and last_seq < first_seq:
            return []
        while True:
            try:
                await self._read_pages(pattern, first_seq, last_seq)
            except Unsupported:
                self._miss(first_seq, last_seq)
                self.failure = "the bus keeps no log of events: errors are lost while this service is away"
                return []
            except BusError as error:
                self.failure = f"the log of events cannot be read: {error.message}"
                await asyncio.sleep(_RETRY_S)
                first_seq = max(first_seq, self._last_seq + 1)
                continue
            self.failure = ""
            return []

    async def _check_log(self) -> int:
        """Events that the log lost since the last look. Raises _Renumbered where the broker knows less than was read."""
        stats: BrokerStats = await self._client.request("bus.stats", BusStats())
        if stats.last_seq < self._last_seq:
            raise _Renumbered("the broker counts its events anew")
        lost, self._log_lost = stats.log_lost - self._log_lost, stats.log_lost
        return max(lost, 0)

    async def _read_pages(self, pattern: str, first_seq: int, last_seq: int | None) -> None:
        lost = await self._check_log()
        next_seq: int | None = first_seq
        found = 0
        while next_seq is not None:
            query = EventsRead(subject=pattern, from_seq=next_seq, to_seq=last_seq, limit=_PAGE)
            async with self._client.stream("bus.events.read", query, timeout_s=_PAGE_S) as batches:
                async for batch in batches:
                    found += len(batch.events)
                    self._take_logged(batch.events)
                    await asyncio.sleep(0)
                page: EventsPage = batches.final
            next_seq = page.next_seq
        if not 0 < page.oldest_seq <= first_seq or page.last_seq < (last_seq or 0):
            lost = sys.maxsize
        self._miss(first_seq, last_seq, found, lost)

    def _take_logged(self, events: list[LoggedEvent]) -> None:
        for event in events:
            if event.seq > self._last_seq:
                self._take(event, None)

    def _miss(self, first_seq: int, last_seq: int | None, found: int = 0, lost: int = sys.maxsize) -> None:
        """Count what the log did not hold: at most, because other events are numbered among these."""
        if last_seq is not None:
            self._ledger.miss(min(max(last_seq - first_seq + 1 - found, 0), lost))
