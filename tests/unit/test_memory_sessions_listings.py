"""Listings read what they show and little more, however much lies beside it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.bodies import sessions as bodies
from tests.sessions_bench import Bench, bench
from workers.memory.outcome import Outcome

# Rows of each table that no listing below asks for.
BESIDE = 5_000

# Steps of SQLite's machine that a listing of a handful may take; a walk through everything takes ten thousands.
FEW_STEPS = 1_000


async def fill(at: Bench) -> None:
    """Three of Ada's and one that is open, among thousands of others that were used later."""

    def write(connection: sqlite3.Connection, now: float) -> Outcome:
        for table, name, others in (
            ("sessions", "session_id", {"type": "chat", "metadata": b"\x80"}),
            ("contexts", "context_id", {"version": 1, "data": b"\xc0", "system_prompt": "", "metadata": b"\x80"}),
            (
                "suggestions",
                "suggestion_id",
                {"kind": "related", "text": "t", "reason": "r", "confidence": 1.0, "evidence": b"\x90"},
            ),
        ):
            rows = [
                {"ns": "session", name: f"{number:05}", "user_id": "ada" if number < 3 else "bob", **others}
                for number in range(BESIDE)
            ]
            for number, row in enumerate(rows):
                if table == "sessions":
                    row |= {"state": "open" if number == 2 else "expired", "last_used_at": float(number)}
                    row |= {"created_at": 0.0, "expires_at": now + 10 if number == 2 else 1.0}
                elif table == "contexts":
                    row |= {"created_at": 0.0, "updated_at": 0.0}
                else:
                    row |= {"fingerprint": b"%d" % number, "made_at": float(number), "session_id": row["user_id"]}
            places = ", ".join(f":{column}" for column in rows[0])
            connection.executemany(f"INSERT INTO {table} ({', '.join(rows[0])}) VALUES ({places})", rows)
        return Outcome(None, [])

    await at.records.write(write)


def sessions(**fields: Any) -> Callable[[Bench], Any]:
    return lambda at: at.sessions.listing(bodies.SessionList(**fields))


def contexts(**fields: Any) -> Callable[[Bench], Any]:
    return lambda at: at.contexts.listing(bodies.ContextList(**fields))


def suggestions(**fields: Any) -> Callable[[Bench], Any]:
    return lambda at: at.parts.monitor.listing(bodies.SuggestList(**fields))


@pytest.mark.parametrize(
    ("listing", "ids"),
    [
        (sessions(user_id="ada"), ["00002", "00001", "00000"]),
        (sessions(user_id="ada", state="expired"), ["00001", "00000"]),
        (sessions(user_id="ada", state="closed"), []),
        (sessions(state="open"), ["00002"]),
        (sessions(state="closed"), []),
        (contexts(ns="session", user_id="ada"), ["00000", "00001", "00002"]),
        (suggestions(user_id="ada"), ["00002", "00001", "00000"]),
        (suggestions(session_id="ada"), ["00002", "00001", "00000"]),
        (suggestions(user_id="bob", session_id="ada"), []),
    ],
)
async def test_a_listing_does_not_go_through_what_it_does_not_show(
    tmp_path: Path, listing: Callable[[Bench], Any], ids: list[str]
) -> None:
    """Few rows of many cost the steps of few, counted by SQLite itself."""
    async with bench(tmp_path) as at:
        await fill(at)
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        for reader in at.records.database._readers:
            await reader.run(lambda connection: connection.set_progress_handler(count, 1))

        found = await listing(at)

        (shown,) = (getattr(found, name) for name in ("sessions", "contexts", "suggestions") if hasattr(found, name))
        named = [getattr(one, f"{type(one).__name__.lower()}_id") for one in shown]
        assert named == ids
        assert 0 < steps < FEW_STEPS
