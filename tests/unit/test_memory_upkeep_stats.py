"""Figures of a memory: what is counted, and how often."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas.bodies.memory import KvSet, Remember
from schemas.bodies.upkeep import NamespaceStats
from schemas.envelope import new_id
from workers.memory.migrations import load_migrations
from workers.memory.outcome import Outcome
from workers.memory.records import Records
from workers.memory.store import MemoryStore
from workers.memory.upkeep import stats
from workers.memory.upkeep.stats import Around, Figures
from workers.memory.vectors.agreement import UNENCODABLE, note_unencodable


async def around() -> Around:
    """The parts beside the database."""
    return Around(
        vectors=7, encoder="mini", encoder_state="ready", vector_engine="edge", hot_tier="sqlite", degraded=["slow"]
    )


def _with_unencodable(connection: sqlite3.Connection) -> None:
    connection.execute(
        'INSERT INTO chunks (id, ns, kind, source_id, position, start, "end", text, at, vector_model)'
        " VALUES (7, 'user', 'memory', 'm', 0, 0, 1, 'x', 0, ?)",
        (UNENCODABLE,),
    )
    note_unencodable(connection, 7, "mini")


async def test_figures_tell_counts_sizes_and_states(tmp_path: Path) -> None:
    """Counts by namespace and kind, what waits for its vector, and what the other parts say of themselves."""
    records = await Records.open(tmp_path / "memory.db", readers=1, on_committed=lambda events: None)
    try:
        store = MemoryStore(records)
        for ns, key in (("a", "1"), ("a", "2"), ("b", "1")):
            await store.kv_set(KvSet(ns=ns, key=key, value=1), new_id())
        await store.remember(Remember(key="city", value="Porto"), new_id())
        await records.write(lambda connection, now: Outcome(_with_unencodable(connection), []))

        told = await Figures(records, around).stats()

        assert told.namespaces == [
            NamespaceStats(ns="a", kind="kv", count=2),
            NamespaceStats(ns="b", kind="kv", count=1),
            NamespaceStats(ns="user", kind="fact", count=1),
        ]
        assert (told.waiting, told.vectors, told.encoder, told.encoder_state) == (1, 7, "mini", "ready")
        assert told.unencodable == 1
        assert (told.vector_engine, told.hot_tier, told.degraded) == ("edge", "sqlite", ["slow"])
        assert told.schema_version == load_migrations()[-1].number
        assert told.database_bytes > 0
    finally:
        await records.close()


async def test_counts_are_kept_as_long_as_counting_is_dear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A screen that asks again and again does not make a large database count again and again."""
    clock = itertools.count(100.0, 0.5)
    monkeypatch.setattr(stats, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    records = await Records.open(tmp_path / "memory.db", readers=1, on_committed=lambda events: None)
    try:
        figures = Figures(records, around)
        assert (await figures.stats()).namespaces == []
        await MemoryStore(records).kv_set(KvSet(key="a", value=1), new_id())

        # Counting took 0.5 s by this clock, so it is done again after 10 s, at the twentieth look.
        looks = [len((await figures.stats()).namespaces) for _ in range(25)]
        assert looks == [0] * 20 + [1] * 5
        await MemoryStore(records).kv_set(KvSet(ns="b", key="a", value=1), new_id())
        await figures.forget()
        assert len((await figures.stats()).namespaces) == 2
    finally:
        await records.close()


async def test_counting_reads_indexes_and_no_values(tmp_path: Path) -> None:
    """However large the values are: every table is counted along an index that begins with the namespace."""
    records = await Records.open(tmp_path / "memory.db", readers=1, on_committed=lambda events: None)
    try:
        for table in stats.TABLES.values():
            plan = await records.read(
                lambda raw, table=table: raw.execute(  # type: ignore[misc]
                    f"EXPLAIN QUERY PLAN SELECT ns, count(*) FROM {table} GROUP BY ns ORDER BY ns"
                ).fetchall()
            )
            assert "TEMP B-TREE" not in str(plan), table
            assert "COVERING INDEX" in str(plan) or table == "relations", (table, plan)
    finally:
        await records.close()
