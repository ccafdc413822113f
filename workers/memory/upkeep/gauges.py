"""Counts what the memory holds, now and then, so that whoever tells of it asks no database. Knows no bus."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from bus.metrics import Figures, Labels
from schemas.errors import BusError
from schemas.metrics import (
    MEMORY_DB_BYTES,
    MEMORY_ITEMS,
    MEMORY_OUTBOX,
    MEMORY_RECORDS,
    MEMORY_SESSIONS,
    MEMORY_VECTORS,
    Metric,
)
from workers.memory.records import Records
from workers.memory.upkeep.stats import TABLES, database_bytes
from workers.memory.vectors.agreement import read_counts

log = logging.getLogger("olympus.memory")

# Seconds between two counts, and between two looks for a reader that nobody waits for.
EVERY_S: Final = 15.0
BUSY_S: Final = 1.0

# A count that takes long is made more seldom, so that all of them together take a hundredth of one reader's time.
_SELDOM: Final = 100.0

_Counts = dict[Metric, dict[Labels, float]]


class _Counted(NamedTuple):
    counts: _Counts
    took_s: float


class Gauges:
    """Tells `figures` what `records` held a moment ago, as long as `count_forever` runs."""

    def __init__(self, records: Records, figures: Figures) -> None:
        self._records = records
        self._counts: _Counts = {}
        for metric in (
            MEMORY_ITEMS,
            MEMORY_RECORDS,
            MEMORY_DB_BYTES,
            MEMORY_OUTBOX,
            MEMORY_VECTORS,
            MEMORY_SESSIONS,
        ):
            figures.read(metric, partial(self._read, metric))

    async def count_forever(self) -> None:
        """Count every few seconds until cancelled; later, where every reader is busy."""
        while True:
            wait_s = BUSY_S
            if self._records.database.has_idle_reader:
                wait_s = max(EVERY_S, _SELDOM * await self._count())
            await asyncio.sleep(wait_s)

    async def _count(self) -> float:
        """Count once; the seconds that took. What cannot be counted keeps its last value."""
        path, now = self._records.database.path, self._records.now()
        try:
            counted = await self._records.read(lambda connection: _count(connection, path, now))
        except (BusError, OSError) as error:
            log.warning("not counted", extra={"action": "memory.uncounted", "reason": str(error)})
            return 0.0
        self._counts = counted.counts
        return counted.took_s

    def _read(self, metric: Metric) -> dict[Labels, float]:
        return self._counts.get(metric, {})


def _count(connection: sqlite3.Connection, path: Path, now: float) -> _Counted:
    """Every count is one look through an index."""
    began = time.monotonic()

    def one(sql: str, *values: float) -> float:
        count: float = connection.execute(sql, values).fetchone()[0]
        return count

    tiers = dict(connection.execute("SELECT tier, count(*) FROM memories GROUP BY tier"))
    counts: _Counts = {
        MEMORY_ITEMS: {(tier,): tiers.get(tier, 0) for tier in {"short", "medium", "long", *tiers}},
        MEMORY_RECORDS: {(kind,): one(f"SELECT count(*) FROM {table}") for kind, table in TABLES.items()},
        MEMORY_DB_BYTES: {(): database_bytes(path)},
        MEMORY_OUTBOX: {(): one("SELECT count(*) FROM outbox")},
        MEMORY_VECTORS: {(): read_counts(connection).vectors},
        MEMORY_SESSIONS: {
            (): one(
                "SELECT count(*) FROM sessions WHERE state = 'open' AND (expires_at IS NULL OR expires_at > ?)", now
            )
        },
    }
    return _Counted(counts, time.monotonic() - began)
