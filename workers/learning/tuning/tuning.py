"""What a training begins with, learned from how the earlier ones ended, and the sessions of the trainings themselves."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from bus.records import Records
from schemas.bodies.learning_tuning import (
    LearningRate,
    RateGet,
    SessionCreate,
    SessionEnd,
    SessionUpdate,
)
from schemas.errors import NotFound
from workers.learning.tuning.rates import FORMULA, JobOutcome, choose, first_rate
from workers.learning.tuning.sessions import Sessions

# Ends of jobs that the choice rests on: older ones were made with another model of the data.
_REMEMBERED: Final = 50

_decode = msgspec.json.Decoder(JobOutcome).decode


class Tuning:
    """Chooses learning rates.

    default: the model a request means that names none. width_of: hidden size of a model, 0 where nobody knows.
    """

    def __init__(
        self, records: Records, sessions: Sessions, default: str, width_of: Callable[[str], Awaitable[int]]
    ) -> None:
        self._records = records
        self._sessions = sessions
        self._default = default
        self._width_of = width_of

    async def rate(self, request: RateGet) -> LearningRate:
        """What the next training of the model begins with."""
        model = request.model or self._default

        def read(connection: sqlite3.Connection) -> list[JobOutcome]:
            rows = connection.execute(
                "SELECT outcome FROM tuning_outcomes WHERE model = ? ORDER BY at DESC LIMIT ?", (model, _REMEMBERED)
            ).fetchall()
            return [_decode(outcome) for (outcome,) in reversed(rows)]

        outcomes = await self._records.run(read)
        chosen = choose(outcomes, first_rate(await self._width_of(model)))
        return LearningRate(
            model=model,
            learning_rate=chosen.learning_rate,
            epochs=chosen.epochs,
            reason=chosen.reason,
            formula=FORMULA,
            evidence=[outcome.job_id for outcome in outcomes],
        )

    async def learned(self, outcome: JobOutcome) -> None:
        """Remember how a job ended; a second word on it replaces the first."""
        await self._records.run(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO tuning_outcomes VALUES (?, ?, ?, ?)",
                (outcome.job_id, outcome.model, time.time(), msgspec.json.encode(outcome)),
            )
        )

    async def follow(self, job_id: str, model: str, *, progress: float, metrics: Mapping[str, float]) -> None:
        """A training got on; the first word of it begins its session."""
        update = SessionUpdate(session_id=job_id, status="running", progress=progress, metrics=dict(metrics))
        try:
            await self._sessions.update(update)
        except NotFound:
            await self._sessions.create(SessionCreate(session_id=job_id, model=model))
            await self._sessions.update(update)

    async def followed(self, job_id: str, status: str) -> None:
        """A training ended; one that nobody followed has no session."""
        try:
            await self._sessions.end(SessionEnd(session_id=job_id, status=status))
        except NotFound:
            return
