"""Puts the memory together: every part on the same records, and the work that goes on beside the requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from bus.client import Client
from bus.metrics import Figures, by_label, only
from bus.settings import Settings
from bus.worker import Worker
from schemas.bodies.control import ErrorReport
from schemas.errors import BusError
from schemas.metrics import MEMORY_CACHE, MEMORY_HOT_AWAY, MEMORY_SUGGESTIONS, SIGN_INS
from workers.memory import applied, handlers
from workers.memory.accounts import handlers as account_handlers
from workers.memory.accounts.accounts import Accounts
from workers.memory.event_outbox import EventOutbox
from workers.memory.hot import handlers as cache_handlers
from workers.memory.hot.cache import Cache
from workers.memory.hot.kept import LOOKED_TO_S, QUERY_VECTORS_S, Kept
from workers.memory.hot.opening import open_hot_tier
from workers.memory.hot.tier import HotTier
from workers.memory.items import handlers as item_handlers
from workers.memory.items.documents import Documents
from workers.memory.items.experiences import Experiences
from workers.memory.items.memories import Memories
from workers.memory.outcome import Event, Outcome
from workers.memory.records import Records
from workers.memory.search import handlers as search_handlers
from workers.memory.search.pipeline import Searcher
from workers.memory.sessions import handlers as session_handlers
from workers.memory.sessions.parts import SessionParts
from workers.memory.sessions.tokens import BusTokenCounter
from workers.memory.store import MemoryStore
from workers.memory.upkeep import handlers as upkeep_handlers
from workers.memory.upkeep.gauges import Gauges
from workers.memory.upkeep.stats import Around
from workers.memory.upkeep.upkeep import Upkeep
from workers.memory.vectors import handlers as vector_handlers
from workers.memory.vectors.vectors import Vectors

log = logging.getLogger("olympus.memory")

# Seconds between two looks for what has expired; nobody sees it in between, only its events wait for the look.
SWEEP_INTERVAL_S: Final = 1.0

Sweep = Callable[[float], Awaitable[None]]


class Hub:
    """Every part of the memory, open. `register` binds their operations, `upkeep` is what has to run beside them."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        records: Records,
        tier: HotTier,
        vectors: Vectors,
        figures: Figures,
    ) -> None:
        memory = settings.memory
        self._settings = settings
        self._records = records
        self._tier = tier
        self._vectors = vectors
        self._events = EventOutbox(records, client)
        counter = BusTokenCounter(client.request)
        self._store = MemoryStore(records, counter)
        self._memories = Memories(records)
        self._documents = Documents(records)
        self._experiences = Experiences(records)
        self._searcher = Searcher(records, vectors.encoder, vectors.index, settings.search, figures)
        self._marks = Kept(tier, "sessions", ttl_s=LOOKED_TO_S)
        self._talk = SessionParts(
            records,
            memory,
            self._store,
            self._searcher,
            counter,
            vectors.loaded_encoder,
            self._marks,
        )
        self._cache = Cache(tier, max_body_bytes=settings.bus.max_body_bytes)
        self._accounts = Accounts(records, tier, settings)
        self._upkeep = Upkeep(
            records,
            home=settings.home_path,
            around=self._around,
            on_replaced=(vectors.forget, self._forget),
        )
        self._gauges = Gauges(records, figures)
        figures.read(MEMORY_CACHE, lambda: by_label(self._cache.reads().items()))
        figures.read(MEMORY_HOT_AWAY, lambda: only(tier.state().degraded is not None))
        figures.read(MEMORY_SUGGESTIONS, lambda: only(self._talk.monitor.made))
        figures.read(SIGN_INS, lambda: by_label(self._accounts.sign_ins.items()))

    async def open(self) -> None:
        """What has to be done before the first request."""
        await self._accounts.open()
        # With the wall clock set back since, what had expired at the last write must not come back. What was deleted
        # is hidden whatever the clock says, and a large removal must not hold up the start.
        await self._sweep(
            await self._records.newest_time(),
            self._store.expire,
            self._memories.expire,
            self._experiences.sweep,
            self._talk.expire,
            self._sweep_accounts,
        )
        await self._records.write(lambda connection, now: Outcome(applied.date_back(connection, now), []))

    async def close(self) -> None:
        """End what runs in threads of its own."""
        self._accounts.close()
        await self._events.tidy()
        await self._marks.settle()

    def committed(self, events: Sequence[Event]) -> None:
        """A batch of writes was committed."""
        self._events.wake()
        self._vectors.wake()

    def register(self, worker: Worker) -> None:
        """Make `worker` answer every operation of the memory."""
        handlers.register(worker, self._store)
        item_handlers.register(worker, self._memories, self._documents, self._experiences)
        search_handlers.register(worker, self._searcher)
        session_handlers.register(worker, self._talk)
        cache_handlers.register(worker, self._cache)
        upkeep_handlers.register(worker, self._upkeep)
        vector_handlers.register(worker, self._vectors)
        account_handlers.register(worker, self._accounts)
        worker.degraded_by(self.degraded)

    def upkeep(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What goes on beside the requests, by name; each runs until cancelled."""
        return {
            "events": self._events.publish_forever(),
            "sweep": self._sweep_forever(),
            "life cycle": self._memories.cycle_forever(self._settings.memory.cycle_interval_s),
            "monitor": self._talk.monitor.watch_forever(),
            "hot tier": self._tier.tend_forever(),
            "vectors": self._vectors.tend_forever(),
            "gauges": self._gauges.count_forever(),
        }

    def degraded(self) -> dict[str, str]:
        """What does not work now, and why, by the part: database, encoder, vectors, redis."""
        reasons = {
            "database": self._records.database.problem,
            **self._vectors.degraded,
            "redis": self._tier.state().degraded,
        }
        return {name: reason for name, reason in reasons.items() if reason}

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            await self._sweep(
                self._records.now(),
                self._store.sweep,
                self._memories.sweep,
                self._experiences.sweep,
                self._talk.sweep,
                self._sweep_accounts,
            )

    async def _sweep(self, now: float, *sweeps: Sweep) -> None:
        for sweep in sweeps:
            try:
                await sweep(now)
            except BusError as error:
                # Tried again at the next turn.
                log.warning("sweep failed", extra={"action": "memory.sweep.failed", "reason": error.message})

    async def _around(self) -> Around:
        vectors = await self._vectors.state()
        hot_tier = self._tier.state()
        return Around(
            vectors=vectors.count,
            encoder=vectors.encoder,
            encoder_state=vectors.encoder_state,
            vector_engine=vectors.engine,
            hot_tier=hot_tier.engine,
            degraded=list(self.degraded().values()),
        )

    async def _forget(self) -> None:
        """Drop what was remembered of a database that was replaced."""
        self._events.begin_anew()
        self._searcher.forget()
        self._accounts.on_revoked()
        await self._tier.delete_prefix("sessions", "")

    async def _sweep_accounts(self, _: float) -> None:
        # Their clock is their own: it never falls behind a sign-in, whatever happened to the wall clock.
        await self._accounts.sweep()


@asynccontextmanager
async def open_hub(settings: Settings, client: Client, figures: Figures) -> AsyncIterator[Hub]:
    """The memory, open and ready to be registered; it counts in `figures`. Raises UnusableDatabase, SettingsError."""
    parts: list[Hub] = []

    def on_committed(events: Sequence[Event]) -> None:
        for hub in parts:
            hub.committed(events)

    async with AsyncExitStack() as stack:
        records = await Records.open(
            settings.path(settings.memory.path),
            readers=settings.memory.readers,
            on_committed=on_committed,
            max_body_bytes=settings.bus.max_body_bytes,
            max_batch=settings.memory.writes_per_commit,
            figures=figures,
        )
        stack.push_async_callback(records.close)
        tier = await open_hot_tier(settings, now=records.now, on_lost=Warnings(client).add)
        stack.push_async_callback(tier.close)
        queries = Kept(tier, "knowledge", ttl_s=QUERY_VECTORS_S)
        stack.push_async_callback(queries.settle)
        vectors = await Vectors.open(settings, records, queries, figures)
        stack.push_async_callback(vectors.close)
        hub = Hub(settings, client, records, tier, vectors, figures)
        parts.append(hub)
        await hub.open()
        stack.push_async_callback(hub.close)
        yield hub


class Warnings:
    """Says on the bus that something does not work as configured; best effort, the log has it too."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sending: set[asyncio.Task[None]] = set()

    def add(self, message: str) -> None:
        """Publish `message` as a warning of this service."""
        task = asyncio.get_running_loop().create_task(self._send(message))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, message: str) -> None:
        report = ErrorReport(service="memory", severity="warning", kind="Degraded", message=message, at=time.time())
        try:
            await self._client.publish("error.memory.warning", report)
        except BusError as error:
            log.warning(
                "warning not published", extra={"action": "memory.warning.unpublished", "reason": error.message}
            )
