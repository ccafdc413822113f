"""What the memory holds, in figures that stay cheap however much it is."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from schemas.bodies.upkeep import NamespaceStats, StatsReply
from workers.memory.records import Records
from workers.memory.vectors.agreement import count_unencodable

# Counts are given again for this many times the time that counting took, so that whoever asks without end costs a
# twentieth of a core. 100,000 memories are counted in 10 ms (measured on one core), so figures are a moment old.
KEPT_FOR_EACH_S: Final = 20.0

# Each is counted in an index that begins with the namespace.
TABLES: Final = {
    "kv": "kv",
    "fact": "facts",
    "document": "knowledge_base",
    "memory": "memories",
    "relation": "relations",
    "group": "context_groups",
    "experience": "experiences",
    "session": "sessions",
    "turn": "turns",
    "context": "contexts",
}


class Around(NamedTuple):
    """The parts beside the database. `degraded` says what does not work now, one sentence each."""

    vectors: int
    encoder: str
    encoder_state: str
    vector_engine: str
    hot_tier: str
    degraded: list[str]


class _Counted(NamedTuple):
    kept_until: float
    namespaces: list[NamespaceStats]
    waiting: int
    unencodable: int
    schema_version: int


class Figures:
    """Answers `memory.stats`. `around` says how the parts beside the database are."""

    def __init__(self, records: Records, around: Callable[[], Awaitable[Around]]) -> None:
        self._records = records
        self._around = around
        self._counted: _Counted | None = None

    async def stats(self) -> StatsReply:
        """Counts of a moment ago at most, the rest as it is now."""
        counted = self._counted
        if counted is None or time.monotonic() > counted.kept_until:
            counted = self._counted = await self._records.read(_count)
        around = await self._around()
        return StatsReply(
            namespaces=counted.namespaces,
            database_bytes=database_bytes(self._records.database.path),
            vectors=around.vectors,
            waiting=counted.waiting,
            encoder=around.encoder,
            encoder_state=around.encoder_state,
            vector_engine=around.vector_engine,
            hot_tier=around.hot_tier,
            schema_version=counted.schema_version,
            degraded=around.degraded,
            unencodable=counted.unencodable,
        )

    async def forget(self) -> None:
        """Count anew the next time."""
        self._counted = None


def database_bytes(path: Path) -> int:
    """Bytes of the database with the files that SQLite keeps beside it."""
    files = (path.with_name(f"{path.name}{suffix}") for suffix in ("", "-wal", "-shm"))
    return sum(file.stat().st_size for file in files if file.exists())


def _count(connection: sqlite3.Connection) -> _Counted:
    began_at = time.monotonic()
    namespaces = [stats for kind, table in TABLES.items() for stats in _by_namespace(connection, kind, table)]
    (waiting,) = connection.execute("SELECT count(*) FROM chunks WHERE vector_model IS NULL").fetchone()
    (version,) = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    now = time.monotonic()
    return _Counted(
        now + KEPT_FOR_EACH_S * (now - began_at), namespaces, waiting, count_unencodable(connection), version
    )


def _by_namespace(connection: sqlite3.Connection, kind: str, table: str) -> Sequence[NamespaceStats]:
    rows = connection.execute(f"SELECT ns, count(*) FROM {table} GROUP BY ns ORDER BY ns")
    return [NamespaceStats(ns=ns, kind=kind, count=count) for ns, count in rows]
