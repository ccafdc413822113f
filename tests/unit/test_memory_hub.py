"""The memory put together: what its start does, and what it leaves to the sweep."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bus.client import Client
from bus.metrics import Figures
from bus.settings import Settings
from schemas.bodies.memory import Forget
from schemas.envelope import new_id
from workers.memory import facts, hub
from workers.memory.outcome import Outcome
from workers.memory.store import MemoryStore

# Seconds that a sweep gets for a handful of rows.
PATIENCE_S = 20.0

MEMORY = (
    "INSERT INTO memories (ns, id, type, tier, importance, created_at, updated_at, last_accessed_at, decayed_at, at,"
    " expires_at, metadata, content) VALUES ('memory', ?, 'note', 'short', 0.5, 1, 1, 1, 1, 1, ?, x'80', 'c')"
)
SESSION = (
    "INSERT INTO sessions (ns, session_id, user_id, type, state, created_at, last_used_at, expires_at, metadata)"
    " VALUES ('session', ?, 'ada', 'chat', ?, 1, 1, 2, x'80')"
)
LEFT = (
    "SELECT id FROM memories UNION ALL SELECT session_id || ' ' || state FROM sessions"
    " UNION ALL SELECT DISTINCT 'facts' FROM facts UNION ALL SELECT key FROM kv ORDER BY 1"
)


def opened(home: Path) -> AbstractAsyncContextManager[hub.Hub]:
    """A hub below `home`. Nothing that tells anybody runs, so it needs no bus."""
    return hub.open_hub(Settings(home=str(home)), cast("Client", SimpleNamespace(request=None)), Figures())


def leave_unfinished(connection: sqlite3.Connection, now: float) -> Outcome:
    """What a process that was killed may leave: removals that were answered and only begun, and what has expired."""
    connection.executemany(MEMORY, [("hidden", -1.0), ("past", 2.0), ("present", None)])
    connection.executemany(SESSION, [("gone", "deleting"), ("over", "open")])
    connection.execute(
        "INSERT INTO kv (ns, key, version, created_at, updated_at, expires_at, value) VALUES ('n', 'k', 1, 1, 1, 2, x'01')"
    )
    connection.executemany(
        "INSERT INTO facts (ns, key, value, category, source, created_at, updated_at)"
        " VALUES ('user', ?, 'v', 'c', 's', 1, 1)",
        [(f"k{number}",) for number in range(facts.FORGET_ROWS + 1)],
    )
    return Outcome(None, [])


async def forget_nothing_more(*_: object) -> None:
    """The process is killed once the request has been noted down."""


async def left(at: hub.Hub) -> list[str]:
    """What is stored, whoever may see it."""
    rows: list[Any] = await at._records.read(lambda connection: connection.execute(LEFT).fetchall())
    return [name for (name,) in rows]


async def test_the_start_removes_what_has_expired_and_leaves_begun_removals_to_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal of many takes long, nobody sees what is left of it, and READY must not wait for it."""
    monkeypatch.setattr(hub, "SWEEP_INTERVAL_S", 0.0)
    async with opened(tmp_path) as at:
        await at._records.write(leave_unfinished)
        with monkeypatch.context() as patch:
            patch.setattr(MemoryStore, "_forget_rest", forget_nothing_more)
            await at._store.forget(Forget(everything=True), new_id())

    async with opened(tmp_path) as at:
        assert await left(at) == ["facts", "gone deleting", "hidden", "over expired", "present"]

        sweep = asyncio.create_task(at._sweep_forever())
        async with asyncio.timeout(PATIENCE_S):
            while await left(at) != ["over expired", "present"]:
                await asyncio.sleep(0)
        sweep.cancel()
        await asyncio.gather(sweep, return_exceptions=True)
