"""Groups in memory and their file together: what changed is written a few times a second, and kept while it cannot be.

Knows neither the bus nor people. A file that cannot be opened at the start is tried again; once it opens, what it holds
counts, and the events after its last one are to be read again (`on_taken_up`), so that each counts once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import msgspec

from bus.reminder import Reminder
from schemas.bodies.control import ErrorReport
from workers.errors.group import Now
from workers.errors.groups import REPORTS, Groups, Noted
from workers.errors.store import Batch, Kept, Store, StoreFailed

log = logging.getLogger("olympus.errors")

# Seconds between commits: a storm of 50,000 a second is some rows four times a second.
COMMIT_S: Final = 0.25

# Seconds until a file that failed is tried again.
RETRY_S: Final = 2.0

# Seconds between looks for groups that are too old.
_SWEEP_S: Final = 600.0

# Whole reports that wait for the file, at most; while it fails the oldest group's go first.
_WAITING_MAX: Final = 2_000

_encode = msgspec.msgpack.Encoder().encode


def now() -> Now:
    """The present. The steady clock goes on while the machine sleeps, where the system has such a one."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return Now(time.time(), time.clock_gettime(clock))


class Ledger:
    """What is known of errors. `last_seq`: of the last event that is in it, None where none ever was."""

    def __init__(
        self,
        path: Path,
        *,
        groups_max: int,
        keep_s: float,
        known_services: Collection[str],
        on_taken_up: Callable[[], None],
    ) -> None:
        self._store = Store(path)
        self._groups_max = groups_max
        self._keep_s = keep_s
        self._known_services = known_services
        self._on_taken_up = on_taken_up
        self._waiting: OrderedDict[str, deque[tuple[int, ErrorReport]]] = OrderedDict()
        self._waiting_count = 0
        self._was_taken_up = False
        self._is_changed = False
        self._is_closing = False
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._reminder = Reminder()
        self.groups = Groups(groups_max, known_services)
        self.last_seq: int | None = None
        self.missed = 0
        self.failure = ""

    async def open(self) -> None:
        """Take up what the file holds, or begin in memory where it cannot be used, and go on writing."""
        await self._attempt()
        self._task = asyncio.create_task(self._keep_writing(), name="errors writer")
        self._task.add_done_callback(self._on_end)

    async def close(self) -> None:
        """Write what waits, once, and end."""
        self._is_closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.failure = f"nothing is written any more: {type(error).__name__}: {error}"
            log.critical("errors writer ended", exc_info=error, extra={"action": "errors.writer_ended"})

    def note(self, report: ErrorReport, seq: int, at: float) -> Noted:
        """Count the report of event `seq`, which the broker took in at `at`."""
        noted = self.groups.note(report, at, now())
        named = noted.group.fingerprint
        held = self._waiting.get(named)
        if held is None:
            held = self._waiting[named] = deque()
        held.append((seq, report))
        self._waiting_count += 1
        if len(held) > REPORTS:
            held.popleft()
            self._waiting_count -= 1
        while self._waiting_count > _WAITING_MAX:
            self._waiting_count -= len(self._waiting.popitem(last=False)[1])
        self.passed(seq)
        return noted

    def passed(self, seq: int) -> None:
        """Event `seq` is dealt with."""
        self.last_seq = seq
        self._is_changed = True

    def miss(self, count: int) -> None:
        """So many events were lost."""
        self.missed += count
        self._is_changed = True

    async def reports(self, named: str, limit: int) -> list[ErrorReport]:
        """The newest reports of a group, the newest first."""
        found = dict(self._waiting.get(named, ()))
        if self._store.is_open:
            # What the file cannot tell now is told by `failure`.
            with contextlib.suppress(StoreFailed):
                found |= dict(await self._store.reports(named, limit))
        return [report for _, report in sorted(found.items(), reverse=True)][:limit]

    async def settle(self) -> None:
        """Write what people said, before they are answered; while the file fails it is kept in memory."""
        self._is_changed = True
        if not self.failure:
            await self._write()

    # Writing

    async def _keep_writing(self) -> None:
        swept_at = 0.0
        while not self._is_closing:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), RETRY_S if self.failure else COMMIT_S)
            if time.monotonic() - swept_at > _SWEEP_S:
                swept_at = time.monotonic()
                if self.groups.forget_unseen(self._keep_s, now(), spare_muted=True):
                    self._is_changed = True
            if self.failure:
                await self._attempt()
            if self._is_changed and not self.failure:
                await self._write()
        # What came during the last commit.
        if self._is_changed and not self.failure:
            await self._write()

    async def _attempt(self) -> None:
        """Open the file. What it held before it first could be opened counts; later, what is in memory."""
        try:
            kept = await self._store.open()
        except StoreFailed as error:
            self._fail(error)
            return
        if self._was_taken_up:
            self._check_same(kept)
        else:
            self._was_taken_up = True
            self._take_up(kept)
        had_failed, self.failure = bool(self.failure), ""
        # A disk that is full lets a file be opened: only what can be written to is usable.
        await self._write()
        if not self.failure:
            self._reminder.clear()
            if had_failed:
                log.info("file of errors is usable again", extra={"action": "errors.file_usable"})

    def _take_up(self, kept: Kept) -> None:
        meanwhile = list(self.groups)
        self.groups = Groups(self._groups_max, self._known_services)
        oldest = now().wall - self._keep_s
        self.groups.restore(kept.groups, [tally for tally in kept.tallies if tally.last_at >= oldest], now())
        self.groups.take_marks(meanwhile, now())
        had_begun = self.last_seq is not None
        self.last_seq, self.missed = kept.last_seq, kept.missed
        self._waiting, self._waiting_count = OrderedDict(), 0
        if had_begun:
            self._on_taken_up()

    def _check_same(self, kept: Kept) -> None:
        """Where the file is not the one that was written last, all of it is written anew."""
        there = {group.fingerprint for group in kept.groups}
        if any(named not in there and named not in self.groups.changed for named in self.groups.names()):
            self.groups.change_everything()

    async def _write(self) -> None:
        async with self._writing:
            batch, restore = self._batch()
            try:
                await self._store.write(batch)
            except StoreFailed as error:
                restore()
                self._fail(error)

    def _batch(self) -> tuple[Batch, Callable[[], None]]:
        """What there is to write, and how to take that back."""
        groups = self.groups
        changed, gone, tallied, waiting = groups.changed, groups.gone, groups.tallied, self._waiting
        groups.changed, groups.gone, groups.tallied = {}, set(), {}
        self._waiting, self._waiting_count = OrderedDict(), 0
        self._is_changed = False
        batch = Batch(
            groups=[(named, _encode(group)) for named, group in changed.items()],
            gone=list(gone),
            reports=[
                (named, seq, _encode(report))
                for named, held in waiting.items()
                if named in groups
                for seq, report in held
            ],
            tallies=[(tally.service, tally.severity, _encode(tally)) for tally in tallied.values()],
            last_seq=self.last_seq or 0,
            missed=self.missed,
        )

        def restore() -> None:
            if groups is not self.groups:
                return
            groups.changed = {named: group for named, group in changed.items() if named in groups} | groups.changed
            groups.gone |= {named for named in gone if named not in groups}
            groups.tallied = tallied | groups.tallied
            for named, held in self._waiting.items():
                waiting[named] = deque([*waiting.get(named, ()), *held], REPORTS)
            self._waiting = waiting
            self._waiting_count = sum(map(len, waiting.values()))
            self._is_changed = True

        return batch, restore

    def _fail(self, error: StoreFailed) -> None:
        self.failure = str(error)
        if self._reminder.is_due(self.failure, time.monotonic()):
            log.error("file of errors not usable", extra={"action": "errors.file_failed", "error": self.failure})
