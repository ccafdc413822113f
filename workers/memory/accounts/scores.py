"""Trust scores and outcomes: the statements behind `trust.*`, each inside a transaction that its caller owns."""

from __future__ import annotations

import sqlite3
from typing import Final

from schemas.bodies.accounts import (
    TrustChanged,
    TrustGet,
    TrustList,
    TrustOutcome,
    TrustPage,
    TrustRecord,
    TrustScore,
)
from workers.memory.accounts.trust import NOTHING, Evidence, posterior, with_outcome
from workers.memory.outcome import Event, Outcome

# Outcomes kept of each one reported on; forgetting leaves the last fifty or so with any say.
HISTORY_MAX: Final = 1_000

_COLUMNS: Final = "user_id, successes, failures, outcomes, succeeded, updated_at"


def record(connection: sqlite3.Connection, request: TrustRecord, reported_by: str, now: float) -> Outcome:
    """Take in one outcome; the reply is the score after it."""
    before = _row(connection, request.user_id)
    evidence = with_outcome(_evidence(before), is_success=request.success, weight=request.weight, now=now)
    outcomes, succeeded = (before[3], before[4]) if before is not None else (0, 0)
    row = (
        request.user_id,
        evidence.successes,
        evidence.failures,
        outcomes + 1,
        succeeded + int(request.success),
        evidence.at,
    )
    connection.execute(f"INSERT OR REPLACE INTO trust_scores ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", row)
    connection.execute(
        "INSERT INTO trust_outcomes (user_id, success, weight, response_time_s, note, reported_by, at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            request.user_id,
            request.success,
            request.weight,
            request.response_time_s,
            request.note,
            reported_by,
            now,
        ),
    )
    connection.execute(
        "DELETE FROM trust_outcomes WHERE user_id = ? AND sequence <="
        " (SELECT sequence FROM trust_outcomes WHERE user_id = ? ORDER BY sequence DESC LIMIT 1 OFFSET ?)",
        (request.user_id, request.user_id, HISTORY_MAX),
    )
    score = _score(row, now)
    changed = TrustChanged(
        user_id=score.user_id,
        success=request.success,
        score=score.score,
        mean=score.mean,
        upper=score.upper,
        outcomes=score.outcomes,
    )
    return Outcome(score, [Event("trust.changed", changed)])


def get(connection: sqlite3.Connection, request: TrustGet, now: float) -> TrustScore:
    """The score with its newest outcomes; that of the prior for somebody never reported on."""
    row = _row(connection, request.user_id) or (request.user_id, 0.0, 0.0, 0, 0, None)
    rows = connection.execute(
        "SELECT success, weight, response_time_s, note, reported_by, at FROM trust_outcomes"
        " WHERE user_id = ? ORDER BY sequence DESC LIMIT ?",
        (request.user_id, request.history),
    )
    history = [
        TrustOutcome(
            success=bool(success),
            weight=weight,
            response_time_s=response_time_s,
            note=note,
            reported_by=reported_by,
            at=at,
        )
        for success, weight, response_time_s, note, reported_by, at in rows
    ]
    return _score(row, now, history)


def list_scores(connection: sqlite3.Connection, request: TrustList, now: float) -> TrustPage:
    """A page of scores by name, without their history."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM trust_scores WHERE user_id > ? ORDER BY user_id LIMIT ?",
        (request.after or "", request.limit + 1),
    ).fetchall()
    scores = [_score(row, now) for row in rows[: request.limit]]
    return TrustPage(scores=scores, next_after=scores[-1].user_id if len(rows) > request.limit else None)


def forget(connection: sqlite3.Connection, user_id: str) -> None:
    """Forget the score and every outcome of somebody: whoever has the name next begins anew."""
    connection.execute("DELETE FROM trust_scores WHERE user_id = ?", (user_id,))
    connection.execute("DELETE FROM trust_outcomes WHERE user_id = ?", (user_id,))


def lower_bound(connection: sqlite3.Connection, user: str, now: float) -> float:
    """The score alone."""
    return posterior(_evidence(_row(connection, user)), now).lower


_Row = tuple[str, float, float, int, int, float | None]


def _row(connection: sqlite3.Connection, user_id: str) -> _Row | None:
    row: _Row | None = connection.execute(
        f"SELECT {_COLUMNS} FROM trust_scores WHERE user_id = ?", (user_id,)
    ).fetchone()
    return row


def _evidence(row: _Row | None) -> Evidence:
    return NOTHING if row is None or row[5] is None else Evidence(row[1], row[2], row[5])


def _score(row: _Row, now: float, history: list[TrustOutcome] | None = None) -> TrustScore:
    known = posterior(_evidence(row), now)
    return TrustScore(
        user_id=row[0],
        score=known.lower,
        mean=known.mean,
        upper=known.upper,
        outcomes=row[3],
        successes=row[4],
        updated_at=row[5],
        history=history or [],
    )
