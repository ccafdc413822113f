"""Keeps what is asked and answered in live traffic for a while, and tells what became of it; asks no model.

A storm of answers never slows those who answer: events wait in a queue of bounded size here, and what does not fit is
dropped, counted and told in the log.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec

from bus.client import Client
from bus.records import Records
from bus.settings import LearningSettings
from bus.subscription import ReceivedEvent
from schemas.bodies.learning import AnswerEvent, Exchange, ExchangeDelete, ExchangeList
from schemas.bodies.learning import Exchanges as ExchangePage
from schemas.errors import BusError, Internal
from workers.learning.exchanges import kept
from workers.learning.exchanges.kept import Outcome, Usuals

log = logging.getLogger("olympus.learning")

# Bytes of events that wait to be written. A burst of 10,000 short answers is some 10 MB.
_WAITING_BYTES: Final = 32 * 2**20

# Events of one transaction; one takes some 0.2 ms, and whoever wants the records waits as long.
_BATCH: Final = 128

# Seconds between two tellings of what was dropped, and between two looks at what is old.
_TELL_S: Final = 10.0
_UPKEEP_S: Final = 30.0

# Answers whose silence is noted in one transaction.
_SILENT: Final = 500

# Seconds between two attempts to subscribe.
_RETRY_S: Final = 1.0

# Seconds that feedback waits for an answer that is on its way here: the reply may overtake the event.
_ON_ITS_WAY_S: Final = 1.0

_DAY_S: Final = 86_400.0

_decode = msgspec.msgpack.Decoder(AnswerEvent).decode


class Exchanges:
    """`start` when the records are open. `on_kept` is called after answers were written and outcomes settled.

    taken, dropped: exchanges kept and lost since it started. problem: why the last ones were not kept, "" when they were.
    """

    def __init__(self, settings: LearningSettings, records: Records, client: Client) -> None:
        self.on_kept: Callable[[], None] = lambda: None
        self._settings = settings
        self._records = records
        self._client = client
        self._usuals = Usuals()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._wakes = asyncio.Event()
        self._written = asyncio.Condition()
        self._is_writing = False
        self.taken = self.dropped = self._told = 0
        self.problem = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Learn again what is usual, and begin to listen."""
        self._usuals = await self._records.run(kept.relearn)
        work: list[Callable[[], Awaitable[None]]] = [self._write, self._keep_up]
        if self._settings.observe:
            work.append(self._listen)
        self._tasks = [asyncio.ensure_future(each()) for each in work]

    async def stop(self) -> None:
        """Write what has come, and end."""
        for task in self._tasks[1:]:
            task.cancel()
        await self.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tell_dropped()

    # Operations -----------------------------------------------------------------------------------------------------

    async def list_all(self, request: ExchangeList) -> ExchangePage:
        """What is kept, the newest first."""
        await self.flush()
        found, total = await self._records.run(lambda c: kept.listed(c, request))
        return ExchangePage(exchanges=found, total=total)

    async def matching(self, request: ExchangeDelete) -> list[str]:
        """Ids of the exchanges that a request to delete means."""
        await self.flush()
        return await self._records.run(lambda c: kept.matching(c, request))

    async def delete(self, reply_ids: list[str]) -> None:
        """Forget exchanges with their outcomes."""
        await self._records.run(lambda c: kept.delete(c, reply_ids))

    # For the others -------------------------------------------------------------------------------------------------

    async def find(self, reply_id: str) -> Exchange | None:
        """An exchange; one that is on its way here is waited for, a second at most."""
        give_up_at = time.monotonic() + _ON_ITS_WAY_S
        while True:
            await self.flush()
            found = await self._records.run(lambda c: kept.find(c, reply_id))
            left_s = give_up_at - time.monotonic()
            if found is not None or left_s <= 0 or not self._settings.observe:
                return found
            async with self._written:
                try:
                    async with asyncio.timeout(left_s):
                        await self._written.wait()
                except TimeoutError:
                    return None

    async def known(self, reply_ids: list[str]) -> dict[str, Exchange]:
        """Those of the exchanges that are still kept, by id."""

        def all_of(connection: sqlite3.Connection) -> dict[str, Exchange]:
            found = (kept.find(connection, reply_id) for reply_id in reply_ids)
            return {one.reply_id: one for one in found if one is not None}

        return await self._records.run(all_of)

    async def judge(self, reply_id: str, outcome: float, outcome_from: str) -> None:
        """Note what a person said of an answer: over whatever was thought before."""
        await self._records.run(lambda c: kept.settle(c, reply_id, outcome, outcome_from, time.time()))
        self.on_kept()

    async def outcomes(self, model: str, after: int, limit: int = 1_000) -> list[Outcome]:
        """Outcomes of a model that became known after number `after`, in that order."""
        where = "model = ? AND number > ? ORDER BY number"
        return await self._records.run(lambda c: kept.outcomes(c, where, (model, after), limit))

    async def outcomes_before(self, model: str, number: int, adapter: str, limit: int) -> list[Outcome]:
        """The newest `limit` outcomes of one adapter ("" for the bare model) up to `number`, the oldest first."""
        where = "model = ? AND adapter = ? AND number <= ? ORDER BY number DESC"
        found = await self._records.run(lambda c: kept.outcomes(c, where, (model, adapter, number), limit))
        return found[::-1]

    async def newest(self, model: str) -> int:
        """Number of the newest outcome, 0 for none."""
        where = "model = ? ORDER BY number DESC"
        found = await self._records.run(lambda c: kept.outcomes(c, where, (model,), 1))
        return found[0].number if found else 0

    async def all_outcomes(self, after: int, limit: int = 1_000) -> list[Outcome]:
        """Outcomes of every model that became known after number `after`, in that order."""
        return await self._records.run(lambda c: kept.outcomes(c, "number > ? ORDER BY number", (after,), limit))

    async def good(self, model: str, limit: int) -> list[Exchange]:
        """Answers that somebody rated as good, the newest first."""
        return await self._records.run(lambda c: kept.good(c, model, limit))

    async def unrated(self, model: str, limit: int) -> list[Exchange]:
        """Answers about which nothing was noticed and nobody said anything in time, the newest first."""
        return await self._records.run(lambda c: kept.unrated(c, model, limit))

    async def unnoticed(self, limit: int) -> list[Exchange]:
        """Exchanges about which something was noticed that is no evidence yet, the oldest first."""
        return await self._records.run(lambda c: kept.unnoticed(c, limit))

    async def mark_noticed(self, exchanges: list[Exchange]) -> None:
        """What was noticed about these has become evidence."""
        await self._records.run(lambda c: kept.mark_noticed(c, exchanges))

    async def flush(self) -> None:
        """Return when everything that had come by now is written."""
        async with self._written:
            await self._written.wait_for(lambda: not self._waiting and not self._is_writing)

    # Listening and writing ------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.subscribe("model.answered") as events:
                    async for event in events:
                        self._take(event)
            except (BusError, ConnectionError) as error:
                log.warning("not listening", extra={"action": "learning.unsubscribed", "error": str(error)})
            await asyncio.sleep(_RETRY_S)

    def _take(self, event: ReceivedEvent) -> None:
        raw = event.raw
        if event.missed is not None:
            self.dropped += 1
        if self._waiting_bytes + len(raw) > _WAITING_BYTES:
            self.dropped += 1
            return
        self._waiting.append(raw)
        self._waiting_bytes += len(raw)
        self._wakes.set()

    async def _write(self) -> None:
        while True:
            await self._wakes.wait()
            self._wakes.clear()
            while self._waiting:
                self._is_writing = True
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                self._waiting_bytes -= sum(map(len, batch))
                try:
                    self.taken += await self._records.run(partial(_take_in, self._usuals, batch))
                    self.problem = ""
                except Internal as error:
                    self.dropped += len(batch)
                    self.problem = f"exchanges cannot be kept: {error.message}"
                    log.error("exchanges not kept", extra={"action": "learning.unkept", "error": str(error)})
                finally:
                    self._is_writing = False
                    async with self._written:
                        self._written.notify_all()
            self.on_kept()

    async def _keep_up(self) -> None:
        """Note silence, delete what is old, tell what was dropped."""
        pause_s = min(_UPKEEP_S, max(self._settings.silence_s / 4, 0.1))
        pruned_at = told_at = 0.0
        while True:
            now = time.time()
            try:
                silent = await self._records.run(
                    lambda c, now=now: kept.settle_silent(c, now - self._settings.silence_s, now, _SILENT)  # type: ignore[misc]
                )
                if silent:
                    self.on_kept()
                if now - pruned_at >= _UPKEEP_S:
                    pruned_at = now
                    await self._prune(now)
            except Internal as error:
                silent = 0
                log.error("no upkeep of exchanges", extra={"action": "learning.upkeep", "error": str(error)})
            if now - told_at >= _TELL_S:
                told_at = now
                self._tell_dropped()
            if silent < _SILENT:
                await asyncio.sleep(pause_s)

    async def _prune(self, now: float) -> None:
        settings = self._settings
        days = max(settings.keep_days, settings.watch_days)
        await self._records.run(
            lambda c: kept.prune(
                c,
                before=now - settings.keep_days * _DAY_S,
                keep=settings.keep_exchanges,
                outcomes_before=now - days * _DAY_S,
            )
        )

    def _tell_dropped(self) -> None:
        if self.dropped > self._told:
            more = self.dropped - self._told
            self._told = self.dropped
            log.warning("exchanges dropped", extra={"action": "learning.dropped", "count": more, "all": self.dropped})


def _take_in(usuals: Usuals, batch: list[bytes], connection: sqlite3.Connection) -> int:
    events = []
    now = time.time()
    for raw in batch:
        try:
            events.append(_checked(_decode(raw), now))
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            # Anybody may publish under any subject.
            log.warning("no answer", extra={"action": "learning.undecodable", "error": str(error)})
    return kept.take_in(connection, usuals, events)


def _checked(event: AnswerEvent, now: float) -> AnswerEvent:
    """The event, at the latest of now: one of the future would never be too old. Raises ValueError for no number."""
    for field in ("at", "mean_logprob", "min_logprob"):
        value = getattr(event, field)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{field} is {value}, it must be a finite number")
    return event if event.at <= now else msgspec.structs.replace(event, at=now)
