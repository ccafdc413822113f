"""Learning sessions: somebody's training, told measurement by measurement, with its trends and what to change."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from bus.records import Records
from schemas.bodies.learning_tuning import (
    Advice,
    LearningSession,
    LearningSessions,
    Measured,
    MetricTrend,
    SessionCreate,
    SessionEnd,
    SessionEvent,
    SessionGet,
    SessionsList,
    SessionUpdate,
)
from schemas.errors import NotFound
from schemas.values import require_json
from workers.learning.tuning.finite import require_finite
from workers.learning.tuning.trends import CONVERGED_ACCURACY, advice_for, phase_of, trend_of

Publish = Callable[[str, Any], Awaitable[object]]

# As LearningManager began, and by how much it slowed where a loss was worse than the last session's.
FIRST_RATE: Final = 0.01
_SLOWER: Final = 0.9

# A session nobody ended is over after a day; ended ones stay, the newest.
TIMEOUT_S: Final = 86_400.0
_KEPT: Final = 1_000

# Measurements kept per session, the newest, as ActiveLearningMonitor did: trends look at the last ten, and a reply carries
# all of them (80 KB with two metrics each).
_MEASUREMENTS: Final = 1_000

_encode = msgspec.json.encode


class _Found(msgspec.Struct, frozen=True):
    """A row of the table, column by column."""

    session_id: str
    model: str
    created_at: float
    last_active_at: float
    ended_at: float | None
    status: str
    progress: float
    phase: str
    parameters: dict[str, Any]
    metrics: dict[str, float]
    learning_rate: float


class Sessions:
    """The sessions kept in `records`; what happens to them is told to `publish`."""

    def __init__(self, records: Records, publish: Publish) -> None:
        self._records = records
        self._publish = publish

    async def create(self, request: SessionCreate) -> LearningSession:
        """Begin a session; a known id begins anew. Raises BadRequest for parameters that JSON cannot hold."""
        require_json(request.parameters, "parameters")
        session_id = request.session_id or f"session-{uuid.uuid4().hex[:12]}"
        now = time.time()
        session = await self._records.run(lambda connection: _create(connection, session_id, request, now))
        await self._tell("started", session, parameters=session.parameters)
        return session

    async def update(self, request: SessionUpdate) -> LearningSession:
        """Take in measurements. Raises NotFound, and BadRequest for one that is no finite number."""
        require_finite(request.metrics, "metrics")
        now = time.time()
        before, session = await self._records.run(lambda connection: _update(connection, request, now))
        for trend in session.trends:
            if trend.metric in request.metrics:
                await self._tell("measured", session, trend=trend)
        if session.phase != before:
            await self._tell("phase", session, old_phase=before)
        await self._tell_verdict(session, request.metrics)
        return session

    async def get(self, request: SessionGet) -> LearningSession:
        """The session, now in use. Raises NotFound."""
        now = time.time()

        def read(connection: sqlite3.Connection) -> LearningSession:
            connection.execute(
                "UPDATE learning_sessions SET last_active_at = ? WHERE session_id = ? AND ended_at IS NULL",
                (now, request.session_id),
            )
            return _session(connection, _find(connection, request.session_id))

        return await self._records.run(read)

    async def end(self, request: SessionEnd) -> LearningSession:
        """End a session; its last measurements stay. Raises NotFound."""
        now = time.time()

        def write(connection: sqlite3.Connection) -> tuple[str, LearningSession]:
            before = _find(connection, request.session_id)
            connection.execute(
                "UPDATE learning_sessions SET ended_at = coalesce(ended_at, ?), status = ?, phase = 'idle'"
                " WHERE session_id = ?",
                (now, request.status, request.session_id),
            )
            return before.phase, _session(connection, _find(connection, request.session_id))

        before, session = await self._records.run(write)
        await self._tell(
            "ended",
            session,
            old_phase=before,
            took_s=(session.ended_at or now) - session.created_at,
            values=sum(len(measured.metrics) for measured in session.history),
            trends=session.trends,
        )
        return session

    async def list(self, request: SessionsList) -> LearningSessions:
        """Sessions, the newest first."""
        return await self._records.run(lambda connection: _list(connection, request))

    async def expire(self) -> None:
        """End what nobody ended for a day."""
        limit = time.time() - TIMEOUT_S

        def read(connection: sqlite3.Connection) -> Sequence[str]:
            query = "SELECT session_id FROM learning_sessions WHERE ended_at IS NULL AND created_at < ?"
            return [session_id for (session_id,) in connection.execute(query, (limit,))]

        for session_id in await self._records.run(read):
            await self.end(SessionEnd(session_id=session_id, status="timeout"))

    async def _tell_verdict(self, session: LearningSession, metrics: dict[str, float]) -> None:
        if not session.advice:
            return
        declined = next((one for one in session.trends if one.trend == "declining" and one.metric in metrics), None)
        if metrics.get("accuracy", 0.0) >= CONVERGED_ACCURACY:
            await self._tell("converged", session, advice=session.advice)
        elif declined is not None:
            await self._tell("declined", session, trend=declined, advice=session.advice)
        else:
            stable = next((one for one in session.trends if one.trend == "stable" and one.metric in metrics), None)
            if stable is not None:
                await self._tell("stagnated", session, trend=stable, advice=session.advice)

    async def _tell(
        self,
        what: str,
        session: LearningSession,
        *,
        trend: MetricTrend | None = None,
        old_phase: str = "",
        advice: Sequence[Advice] = (),
        **more: Any,
    ) -> None:
        event = SessionEvent(
            session_id=session.session_id,
            model=session.model,
            at=time.time(),
            metric=trend.metric if trend else "",
            value=trend.latest if trend else None,
            trend=trend.trend if trend else "",
            phase=session.phase,
            old_phase=old_phase,
            status=session.status,
            advice=[*advice],
            **more,
        )
        await self._publish(f"learning.session.{what}", event)


def _find(connection: sqlite3.Connection, session_id: str) -> _Found:
    row = connection.execute(
        f"SELECT {', '.join(_Found.__struct_fields__)} FROM learning_sessions WHERE session_id = ?", (session_id,)
    ).fetchone()
    if row is None:
        raise NotFound(f"no learning session {session_id!r}", field="session_id")
    values = dict(zip(_Found.__struct_fields__, row, strict=True))
    values["parameters"] = msgspec.json.decode(values["parameters"])
    values["metrics"] = msgspec.json.decode(values["metrics"])
    return _Found(**values)


def _history(connection: sqlite3.Connection, session_id: str) -> list[Measured]:
    rows = connection.execute(
        "SELECT at, metrics FROM learning_measurements WHERE session_id = ? ORDER BY number", (session_id,)
    )
    return [Measured(at=at, metrics=msgspec.json.decode(metrics)) for at, metrics in rows]


def _trends(history: Sequence[Measured]) -> list[MetricTrend]:
    values: dict[str, list[float]] = {}
    for measured in history:
        for metric, value in measured.metrics.items():
            values.setdefault(metric, []).append(value)
    return [trend_of(metric, series) for metric, series in values.items()]


def _session(connection: sqlite3.Connection, found: _Found) -> LearningSession:
    history = _history(connection, found.session_id)
    trends = _trends(history)
    batch_size = found.parameters.get("batch_size")
    is_number = isinstance(batch_size, int | float) and not isinstance(batch_size, bool) and batch_size > 0
    return LearningSession(
        **msgspec.structs.asdict(found),
        history=history,
        trends=trends,
        advice=advice_for(trends, len(history), found.learning_rate, batch_size if is_number else None),
    )


def _create(connection: sqlite3.Connection, session_id: str, request: SessionCreate, now: float) -> LearningSession:
    rate = request.parameters.get("learning_rate")
    is_rate = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate <= 1
    connection.execute("DELETE FROM learning_sessions WHERE session_id = ?", (session_id,))
    connection.execute(
        "INSERT INTO learning_sessions VALUES (?, ?, ?, ?, NULL, 'initialized', 0.0, 'initialization', ?, ?, ?)",
        (
            session_id,
            request.model,
            now,
            now,
            _encode(request.parameters),
            _encode({}),
            float(rate) if is_rate and rate is not None else FIRST_RATE,
        ),
    )
    connection.execute(
        "DELETE FROM learning_sessions WHERE session_id IN (SELECT session_id FROM learning_sessions"
        " ORDER BY ended_at IS NULL DESC, created_at DESC LIMIT -1 OFFSET ?)",
        (_KEPT,),
    )
    return _session(connection, _find(connection, session_id))


def _update(connection: sqlite3.Connection, request: SessionUpdate, now: float) -> tuple[str, LearningSession]:
    """The phase before, and the session as it is now."""
    found = _find(connection, request.session_id)
    if request.metrics:
        _measure(connection, request, now)
    metrics = {**found.metrics, **request.metrics}
    age_s = now - found.created_at
    phase = phase_of(age_s, metrics, _trends(_history(connection, found.session_id)))
    connection.execute(
        "UPDATE learning_sessions SET last_active_at = ?, status = ?, progress = ?, metrics = ?, phase = ?,"
        " learning_rate = ? WHERE session_id = ?",
        (
            now,
            request.status if request.status is not None else found.status,
            request.progress if request.progress is not None else found.progress,
            _encode(metrics),
            phase,
            _rate(connection, found, request),
            found.session_id,
        ),
    )
    return found.phase, _session(connection, _find(connection, found.session_id))


def _measure(connection: sqlite3.Connection, request: SessionUpdate, now: float) -> None:
    (number,) = connection.execute(
        "SELECT coalesce(max(number), 0) + 1 FROM learning_measurements WHERE session_id = ?", (request.session_id,)
    ).fetchone()
    connection.execute(
        "INSERT INTO learning_measurements VALUES (?, ?, ?, ?)",
        (request.session_id, number, now, _encode(request.metrics)),
    )
    connection.execute(
        "DELETE FROM learning_measurements WHERE session_id = ? AND number <= ?",
        (request.session_id, number - _MEASUREMENTS),
    )


def _rate(connection: sqlite3.Connection, found: _Found, request: SessionUpdate) -> float:
    """The session's learning rate, lower where its loss is worse than the one the last ended session left."""
    loss = request.metrics.get("loss")
    if loss is None:
        return found.learning_rate
    row = connection.execute(
        "SELECT metrics FROM learning_sessions WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT 1"
    ).fetchone()
    last = msgspec.json.decode(row[0]).get("loss") if row is not None else None
    return found.learning_rate * _SLOWER if last is not None and loss > last else found.learning_rate


def _list(connection: sqlite3.Connection, request: SessionsList) -> LearningSessions:
    where, values = ("WHERE model = ?", (request.model,)) if request.model is not None else ("", ())
    (total,) = connection.execute(f"SELECT count(*) FROM learning_sessions {where}", values).fetchone()
    rows = connection.execute(
        f"SELECT session_id FROM learning_sessions {where} ORDER BY created_at DESC, session_id LIMIT ?",
        (*values, request.limit),
    ).fetchall()
    sessions = [_session(connection, _find(connection, session_id)) for (session_id,) in rows]
    # A list shows where they stand; the measurements come with the session.
    return LearningSessions(sessions=[msgspec.structs.replace(one, history=[]) for one in sessions], total=total)
