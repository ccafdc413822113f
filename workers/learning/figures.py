"""What the learning service tells of itself, and what it does without. Reads what its parts count; counts nothing itself."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from functools import partial
from typing import Final, get_args

from bus.metrics import Figures, Labels, by_label, only
from bus.records import Records
from schemas.bodies.learning import OpportunityState
from schemas.bodies.learning_jobs import JobState
from schemas.errors import BusError
from schemas.metrics import (
    LEARNING_EXCHANGES,
    LEARNING_EXCHANGES_DROPPED,
    LEARNING_GATES,
    LEARNING_JOBS,
    LEARNING_LOSS,
    LEARNING_OPPORTUNITIES,
    LEARNING_PROGRESS,
    LEARNING_PROMOTIONS,
    LEARNING_ROLLBACKS,
    LEARNING_TOKENS,
    LEARNING_TRAININGS,
    LEARNING_WATCHED,
    Metric,
)
from workers.learning.exchanges.exchanges import Exchanges
from workers.learning.gate.gate import Gate
from workers.learning.jobs.training import Training
from workers.learning.promotion.promotion import Promotion

log = logging.getLogger("olympus.learning")

# Seconds between two counts of what the records hold; one takes some tenths of a millisecond.
EVERY_S: Final = 15.0

_Counts = dict[Metric, dict[Labels, float]]


class LearningFigures:
    """Tells `figures` what the parts did, and as long as `count_forever` runs what `records` hold."""

    def __init__(
        self,
        figures: Figures,
        records: Records,
        *,
        exchanges: Exchanges,
        training: Training,
        gate: Gate,
        promotion: Promotion,
    ) -> None:
        self._records = records
        self._exchanges = exchanges
        self._training = training
        self._counts: _Counts = {}
        tally = training.tally
        figures.read(LEARNING_EXCHANGES, lambda: only(exchanges.taken))
        figures.read(LEARNING_EXCHANGES_DROPPED, lambda: only(exchanges.dropped))
        figures.read(LEARNING_TRAININGS, lambda: by_label(tally.ended.items()))
        figures.read(LEARNING_TOKENS, lambda: only(tally.tokens))
        figures.read(LEARNING_PROGRESS, self._progress)
        figures.read(LEARNING_LOSS, self._loss)
        figures.read(LEARNING_GATES, lambda: by_label(gate.decided.items()))
        figures.read(LEARNING_PROMOTIONS, lambda: only(promotion.promotions))
        figures.read(LEARNING_ROLLBACKS, lambda: only(promotion.rollbacks))
        for metric in (LEARNING_OPPORTUNITIES, LEARNING_JOBS, LEARNING_WATCHED):
            figures.read(metric, partial(self._count_of, metric))

    async def count_forever(self) -> None:
        """Count what the records hold every few seconds until cancelled."""
        while True:
            try:
                self._counts = await self._records.run(_count)
            except BusError as error:
                log.warning("not counted", extra={"action": "learning.uncounted", "error": str(error)})
            await asyncio.sleep(EVERY_S)

    def degraded(self) -> dict[str, str]:
        """What this service does without, and why: its records, the resource service, what jobs wait for."""
        reasons = {"records": self._exchanges.problem, **self._training.problems()}
        return {name: reason for name, reason in reasons.items() if reason}

    def _count_of(self, metric: Metric) -> dict[Labels, float]:
        return self._counts.get(metric, {})

    def _progress(self) -> dict[Labels, float]:
        progress = self._training.progress()
        return only(progress.step / progress.steps) if progress is not None and progress.steps else {}

    def _loss(self) -> dict[Labels, float]:
        progress = self._training.progress()
        return only(progress.loss) if progress is not None and progress.loss is not None else {}


def _count(connection: sqlite3.Connection) -> _Counts:
    def by_state(table: str, states: tuple[str, ...]) -> dict[Labels, float]:
        found = dict(connection.execute(f"SELECT state, count(*) FROM {table} GROUP BY state"))
        return {(state,): found.get(state, 0) for state in states}

    (watched,) = connection.execute("SELECT count(*) FROM watches WHERE state = 'watching'").fetchone()
    return {
        LEARNING_OPPORTUNITIES: by_state("opportunities", get_args(OpportunityState)),
        LEARNING_JOBS: by_state("training_jobs", get_args(JobState)),
        LEARNING_WATCHED: only(watched),
    }
