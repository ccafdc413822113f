"""Failed cases of evaluations become examples and evidence; runs no evaluation itself."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from bus.client import Client
from bus.records import Records
from schemas.bodies.model_trials import (
    CaseResult,
    Evaluation,
    EvaluationGet,
    EvaluationList,
    EvaluationReply,
    Evaluations,
)
from schemas.errors import BusError, NotFound, TooLarge
from workers.learning.curation.drafts import Draft
from workers.learning.detection import store
from workers.learning.detection.calibration import EVALUATION
from workers.learning.detection.feedback import Curating
from workers.learning.detection.found import Found, shown
from workers.learning.detection.opportunities import Opportunities
from workers.learning.detection.topics import features_of
from workers.learning.exchanges.words import question_of, words_of

log = logging.getLogger("olympus.learning")

# Evaluations looked at after a time in which nobody listened, the newest.
_CAUGHT_UP: Final = 50

# Failed cases taken of one evaluation.
_CASES_MAX: Final = 2_000

# Examples handed in at once.
_BATCH: Final = 50

_RETRY_S: Final = 5.0
_ANSWER_S: Final = 60.0


class FailedEvaluations:
    """Follows `model.evaluated`, and catches up with what ended while nobody listened."""

    def __init__(self, records: Records, client: Client, opportunities: Opportunities, curation: Curating) -> None:
        self._records = records
        self._client = client
        self._opportunities = opportunities
        self._curation = curation
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.ensure_future(self._follow())

    async def stop(self) -> None:
        """End; an evaluation half taken is taken again next time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            try:
                async with self._client.subscribe("model.evaluated") as events:
                    await self._catch_up()
                    async for _ in events:
                        await self._catch_up()
            except (BusError, ConnectionError) as error:
                log.debug("evaluations not followed", extra={"action": "learning.evaluations", "error": str(error)})
            await asyncio.sleep(_RETRY_S)

    async def _catch_up(self) -> None:
        listed: Evaluations = await self._client.request("model.evaluation.list", EvaluationList(limit=_CAUGHT_UP))
        for evaluation in reversed(listed.evaluations):
            # What was recorded by others has no cases.
            if evaluation.status == "done" and evaluation.suite:
                await self._take(evaluation)

    async def _take(self, evaluation: Evaluation) -> None:
        name = f"evaluation {evaluation.evaluation_id}"
        if await self._records.run(lambda c: store.look(c, name)) is not None:
            return
        request = EvaluationGet(evaluation_id=evaluation.evaluation_id, with_cases=True)
        try:
            reply: EvaluationReply = await self._client.request("model.evaluation.get", request, timeout_s=_ANSWER_S)
        except (NotFound, TooLarge) as error:
            log.warning("evaluation not learned from", extra={"action": "learning.evaluation", "error": str(error)})
        else:
            # With several seeds a case fails several times and is one example.
            failed = {case.case_id: case for case in reply.cases if case.expected}
            await self._learn(evaluation, list(failed.values())[:_CASES_MAX])
        await self._records.run(lambda c: store.looked(c, name, time.time()))

    async def _learn(self, evaluation: Evaluation, cases: list[CaseResult]) -> None:
        for start in range(0, len(cases), _BATCH):
            some = cases[start : start + _BATCH]
            owners = await self._opportunities.note([_found(evaluation, case) for case in some])
            drafts = [_draft(evaluation, case, owner) for case, owner in zip(some, owners, strict=True)]
            await self._curation.add(drafts)


def _id(evaluation: Evaluation, case: CaseResult) -> str:
    return f"{evaluation.evaluation_id}/{case.case_id}"


def _found(evaluation: Evaluation, case: CaseResult) -> Found:
    question = question_of(case.messages, case.prompt)
    return Found(
        model=evaluation.model,
        kind="evaluation",
        id=_id(evaluation, case),
        at=evaluation.finished_at or evaluation.started_at,
        note=f"{evaluation.suite} {case.case_id}: {shown(question)}",
        weight=EVALUATION,
        words=features_of(words_of(case.messages, case.prompt), question),
    )


def _draft(evaluation: Evaluation, case: CaseResult, opportunity_id: str) -> Draft:
    return Draft(
        model=evaluation.model,
        kind="evaluation",
        messages=case.messages,
        prompt=case.prompt,
        answer=case.expected,
        evidence=[_id(evaluation, case)],
        opportunity_id=opportunity_id,
        source=f"suite {evaluation.suite}",
    )
