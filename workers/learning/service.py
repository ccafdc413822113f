"""The learning service: answers the subjects `learning.*` on one worker, with the parts that do the work.

    detection -> curation -> jobs (-> trainer, a process of its own) -> gate -> promotion

This module makes the parts known to each other; what they do is theirs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from bus.serving import serve_until_told
from bus.settings import Settings
from bus.worker import Worker
from schemas.bodies.learning import Exchange
from schemas.errors import BusError
from workers.learning.curation import handlers as curation_handlers
from workers.learning.curation.curation import Curation
from workers.learning.detection import handlers as detection_handlers
from workers.learning.detection.detection import Detection
from workers.learning.figures import LearningFigures
from workers.learning.gate import handlers as gate_handlers
from workers.learning.gate.gate import Gate, Judged
from workers.learning.gate.items import Item
from workers.learning.jobs import handlers as jobs_handlers
from workers.learning.jobs.seams import Trained
from workers.learning.jobs.training import Training
from workers.learning.promotion import handlers as promotion_handlers
from workers.learning.promotion.promotion import Promotion
from workers.learning.promotion.seams import Earlier
from workers.learning.records import learning_records
from workers.learning.training.training import Nest
from workers.learning.tuning import handlers as tuning_handlers
from workers.learning.tuning.parameters import ParameterStore
from workers.learning.tuning.sessions import Sessions
from workers.learning.tuning.tuning import Tuning
from workers.learning.tuning.width import width_of

log = logging.getLogger("olympus.learning")

# Requests held at once; each is a read of the records or waits for a job.
CAPACITY: Final = 256

# Of the time to leave, kept for what remains to be done when trainers and requests had theirs.
_LEAVE_S: Final = 1.0

# Seconds between looks for learning sessions that nobody ended; they are over after a day.
_EXPIRE_S: Final = 600.0


class _Jobs:
    """What the parts that are made before the jobs ask of them."""

    def __init__(self) -> None:
        self.training: Training | None = None

    def _made(self) -> Training:
        assert self.training is not None, "the service makes every part before it starts one"
        return self.training

    async def job_needing(self, dataset: str, version: int) -> str:
        """Id of a job that still needs a version of a dataset, "" for none."""
        return await self._made().job_needing(dataset, version)

    async def trained(self, job_id: str) -> Trained:
        """What a job trained. Raises NotFound, Conflict."""
        return await self._made().trained(job_id)

    async def promoted(self, job_id: str) -> None:
        """Somebody promoted a job's adapter."""
        await self._made().promoted(job_id)

    async def taken_back(self, job_id: str, reason: str) -> None:
        """A job's adapter was rolled back."""
        await self._made().taken_back(job_id, reason)

    async def judged(self, job_id: str) -> Judged:
        """What the gate judges of a job. Raises NotFound, Conflict."""
        trained = await self.trained(job_id)
        return Judged(
            model=trained.model,
            adapter=trained.adapter,
            dataset=trained.dataset,
            version=trained.version,
            job_id=job_id,
        )


class LearningService:
    """The plain subjects of `learning.*` on one worker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._records = records = learning_records(settings.path("learning.db"))
        worker = self.worker = Worker("learning", settings, capacity=CAPACITY)
        client = worker.client
        jobs, nest = _Jobs(), Nest()
        self._sessions = Sessions(records, worker.publish)
        tuning = Tuning(records, self._sessions, settings.models.default, partial(width_of, client))
        self._curation = Curation(
            records,
            client,
            settings,
            job_needing=jobs.job_needing,
            good=self._good,
            unrated=self._unrated,
            cases=self._cases,
            on_erased=self._erased,
        )
        self._detection = Detection(settings, records, client, curation=self._curation, publish=worker.publish)
        self._gate = Gate(settings, client, records, self._curation, self._promoted, jobs.judged)
        self._promotion = Promotion(
            settings,
            client,
            records,
            jobs=jobs,
            verdicts=self._gate,
            rows=self._curation,
            live=self._detection.exchanges,
            publish=worker.publish,
            nest=nest,
        )
        self._training = jobs.training = Training(
            settings,
            client,
            records,
            curation=self._curation,
            gate=self._gate,
            promotion=self._promotion,
            tuning=tuning,
            opportunities=self._detection.opportunities,
            nest=nest,
        )
        detection_handlers.register(worker, self._detection)
        curation_handlers.register(worker, self._curation)
        jobs_handlers.register(worker, self._training)
        gate_handlers.register(worker, self._gate)
        promotion_handlers.register(worker, self._promotion)
        tuning_handlers.register(worker, tuning, self._sessions, ParameterStore(records))
        self._figures = LearningFigures(
            worker.figures,
            records,
            exchanges=self._detection.exchanges,
            training=self._training,
            gate=self._gate,
            promotion=self._promotion,
        )
        worker.degraded_by(self._figures.degraded)
        self._background: list[asyncio.Task[None]] = []

    # What curation asks of parts that are made after it.

    async def _good(self, model: str, limit: int) -> list[Exchange]:
        return await self._detection.exchanges.good(model, limit)

    async def _unrated(self, model: str, limit: int) -> list[Exchange]:
        return await self._detection.exchanges.unrated(model, limit)

    def _cases(self, model: str) -> list[Item]:
        return self._gate.suites.cases(model)

    async def _erased(self, row_ids: Sequence[str]) -> int:
        return await self._gate.forget_rows(row_ids)

    async def _promoted(self, model: str) -> list[Earlier]:
        return await self._promotion.promoted(model)

    async def start(self) -> None:
        """Open the records, register, and go on with what ran when it last stopped."""
        await self._records.open()
        await self._curation.start()
        await self._detection.start()
        await self._promotion.start()
        await self._training.start()
        self._background = [
            asyncio.create_task(self._expire_forever(), name="learning sessions"),
            asyncio.create_task(self._figures.count_forever(), name="learning figures"),
        ]
        await self.worker.start()

    async def stop(self) -> None:
        """Leave within `supervisor.stop_s`: a training seals a checkpoint first, while the parts it needs still work."""
        leaves_at = time.monotonic() + self._settings.supervisor.stop_s - _LEAVE_S
        await self._training.stop(leaves_at - time.monotonic())
        await self.worker.stop(leaves_at - time.monotonic())
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(self._promotion.stop(), self._detection.stop())
        await self._curation.stop()
        await self._records.close()

    async def _expire_forever(self) -> None:
        while True:
            try:
                await self._sessions.expire()
            except BusError as error:
                log.warning("sessions not ended", extra={"action": "learning.session.expire", "error": str(error)})
            await asyncio.sleep(_EXPIRE_S)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; a training that runs is stopped at a checkpoint, and goes on at the next start."""
    await serve_until_told(LearningService(settings), log)
