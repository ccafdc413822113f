"""`model.evaluation.*`: results of evaluations, own and foreign, kept, listed and compared with each other."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from bus.client import Client
from bus.records import Records
from schemas.bodies.model_trials import (
    CaseResult,
    Evaluation,
    EvaluationGet,
    EvaluationList,
    EvaluationRecord,
    EvaluationReply,
    Evaluations,
    MetricScore,
)
from schemas.errors import BadRequest, BusError, Conflict, NotFound, TooLarge
from schemas.limits import MAX_BODY_BYTES
from schemas.values import require_json
from workers.models.trials.differences import difference_of
from workers.models.trials.scoring import Scored

log = logging.getLogger("olympus.models")

# Seconds an event waits for the broker.
_TELL_S: Final = 1.0

# Evaluations kept, the newest; and of how many the answers too. A thousand answers take some MB.
_KEPT: Final = 10_000
_KEPT_WITH_CASES: Final = 500

_evaluation = msgspec.json.Decoder(Evaluation).decode
_case = msgspec.json.Decoder(CaseResult).decode


class Results:
    """The evaluations of one file of records."""

    def __init__(self, client: Client, records: Records) -> None:
        self._client = client
        self._records = records

    async def start(self) -> None:
        """Mark as failed what ran when the service last ended."""

        def statements(connection: sqlite3.Connection) -> None:
            running = connection.execute("SELECT record FROM evaluations WHERE status = 'running'").fetchall()
            for (record,) in running:
                ended = msgspec.structs.replace(
                    _evaluation(record), status="failed", error="the model service ended while it ran"
                )
                _update(connection, ended)

        await self._records.run(statements)

    # What a run writes

    async def begin(self, evaluation: Evaluation) -> None:
        """Keep an evaluation that begins."""
        await self._records.run(lambda connection: _insert(connection, evaluation))

    async def add(self, evaluation_id: str, results: Sequence[tuple[int, CaseResult]]) -> None:
        """Keep results with their positions in the suite."""
        rows = [(position, msgspec.json.encode(result).decode()) for position, result in results]

        def statements(connection: sqlite3.Connection) -> None:
            (number,) = connection.execute("SELECT number FROM evaluations WHERE id = ?", (evaluation_id,)).fetchone()
            connection.executemany(
                "INSERT INTO evaluation_cases (evaluation, position, result) VALUES (?, ?, ?)",
                [(number, *row) for row in rows],
            )

        await self._records.run(statements)

    async def end(self, evaluation: Evaluation) -> None:
        """Keep how an evaluation ended, and tell it."""
        await self._records.run(lambda connection: _update(connection, evaluation))
        await self._tell(evaluation)

    async def _tell(self, evaluation: Evaluation) -> None:
        """Publish it. What is kept counts: without a broker nobody waits for this."""
        try:
            async with asyncio.timeout(_TELL_S):
                await self._client.publish("model.evaluated", evaluation)
        except (BusError, TimeoutError) as error:
            log.warning(
                "event not published",
                extra={"action": "trials.untold", "evaluation": evaluation.evaluation_id, "error": str(error)},
            )

    # Operations

    async def record(self, request: EvaluationRecord, id: bytes) -> Evaluation:
        """Keep a result that was found elsewhere; telling it twice under one id is telling it once.

        Raises Conflict for an id with another content, BadRequest for a score or an instant that is not finite.
        """
        for name, score in request.scores.items():
            if not math.isfinite(score):
                raise BadRequest(f"field 'scores[{name}]' is {score}, it must be a finite number", field="scores")
        if request.at is not None and not math.isfinite(request.at):
            raise BadRequest(f"field 'at' is {request.at}, it must be a finite number", field="at")
        evaluation = _recorded(request, request.evaluation_id or id.hex())

        def statements(connection: sqlite3.Connection) -> Evaluation | None:
            known = _find(connection, evaluation.evaluation_id)
            if known is None:
                _insert(connection, evaluation)
            elif (known.model, known.scores) != (evaluation.model, evaluation.scores):
                raise Conflict(
                    f"evaluation_id {known.evaluation_id} is another evaluation, of {known.model}",
                    evaluation_id=known.evaluation_id,
                )
            return known

        known = await self._records.run(statements)
        if known is None:
            await self._tell(evaluation)
        return known or evaluation

    async def get(self, request: EvaluationGet) -> EvaluationReply:
        """An evaluation, with its answers and compared with another one where asked for.

        Raises NotFound, and TooLarge for answers that no reply holds.
        """

        def statements(connection: sqlite3.Connection) -> EvaluationReply:
            evaluation = _known(connection, request.evaluation_id)
            cases = _cases(connection, request.evaluation_id) if request.with_cases else []
            difference = None
            if request.against is not None:
                other = _known(connection, request.against)
                ours, theirs = (_scored(connection, id) for id in (request.evaluation_id, request.against))
                difference = difference_of(evaluation, ours, other, theirs)
            return EvaluationReply(evaluation=evaluation, cases=cases, difference=difference)

        return await self._records.run(statements)

    async def list(self, request: EvaluationList) -> Evaluations:
        """Evaluations, the newest first."""
        wanted = {"model = ?": request.model, "suite = ?": request.suite}
        given = {condition: value for condition, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""

        def statements(connection: sqlite3.Connection) -> Evaluations:
            rows = connection.execute(
                f"SELECT record FROM evaluations {where} ORDER BY number DESC LIMIT ?", (*given.values(), request.limit)
            )
            return Evaluations(evaluations=[_evaluation(record) for (record,) in rows])

        return await self._records.run(statements)


def _recorded(request: EvaluationRecord, evaluation_id: str) -> Evaluation:
    require_json(request.details, "details")
    at = time.time() if request.at is None else request.at
    cycle = {"cycle_id": request.cycle_id} if request.cycle_id else {}
    return Evaluation(
        evaluation_id=evaluation_id,
        model=request.model,
        suite="",
        status="done",
        started_at=at,
        finished_at=at,
        scores=[
            MetricScore(metric=name, mean=score, low=score, high=score, n=1, method="recorded")
            for name, score in request.scores.items()
        ],
        cases=0,
        errors=0,
        suite_sha256="",
        model_sha256=None,
        adapter=None,
        seeds=[],
        confidence=0.0,
        details={**request.details, **cycle},
    )


def _insert(connection: sqlite3.Connection, evaluation: Evaluation) -> None:
    connection.execute(
        "INSERT INTO evaluations (id, model, suite, status, record) VALUES (?, ?, ?, ?, ?)",
        (
            evaluation.evaluation_id,
            evaluation.model,
            evaluation.suite,
            evaluation.status,
            msgspec.json.encode(evaluation).decode(),
        ),
    )
    connection.execute("DELETE FROM evaluations WHERE number <= (SELECT max(number) FROM evaluations) - ?", (_KEPT,))
    if evaluation.suite:
        connection.execute(
            "DELETE FROM evaluation_cases WHERE evaluation NOT IN"
            " (SELECT number FROM evaluations WHERE suite <> '' ORDER BY number DESC LIMIT ?)",
            (_KEPT_WITH_CASES,),
        )


def _update(connection: sqlite3.Connection, evaluation: Evaluation) -> None:
    connection.execute(
        "UPDATE evaluations SET status = ?, record = ? WHERE id = ?",
        (evaluation.status, msgspec.json.encode(evaluation).decode(), evaluation.evaluation_id),
    )


def _find(connection: sqlite3.Connection, evaluation_id: str) -> Evaluation | None:
    row = connection.execute("SELECT record FROM evaluations WHERE id = ?", (evaluation_id,)).fetchone()
    return None if row is None else _evaluation(row[0])


def _known(connection: sqlite3.Connection, evaluation_id: str) -> Evaluation:
    evaluation = _find(connection, evaluation_id)
    if evaluation is None:
        raise NotFound(
            f"no evaluation {evaluation_id}: the newest {_KEPT} are kept, see model.evaluation.list",
            evaluation_id=evaluation_id,
        )
    return evaluation


_OF_EVALUATION: Final = "FROM evaluation_cases WHERE evaluation = (SELECT number FROM evaluations WHERE id = ?)"


def _cases(connection: sqlite3.Connection, evaluation_id: str) -> list[CaseResult]:
    (size,) = connection.execute(
        f"SELECT coalesce(sum(length(CAST(result AS BLOB))), 0) {_OF_EVALUATION}", (evaluation_id,)
    ).fetchone()
    if size > MAX_BODY_BYTES:
        raise TooLarge(
            f"the answers of evaluation {evaluation_id} have {size} bytes, a reply at most {MAX_BODY_BYTES}",
            size_bytes=size,
            limit_bytes=MAX_BODY_BYTES,
        )
    rows = connection.execute(f"SELECT result {_OF_EVALUATION} ORDER BY position", (evaluation_id,))
    return [_case(result) for (result,) in rows]


class _Scores(msgspec.Struct, frozen=True):
    """What a comparison needs of a case; the answer, which may be long, is passed over."""

    case_id: str
    scores: dict[str, float]


_scores = msgspec.json.Decoder(_Scores).decode


def _scored(connection: sqlite3.Connection, evaluation_id: str) -> list[Scored]:
    rows = connection.execute(f"SELECT result {_OF_EVALUATION} ORDER BY position", (evaluation_id,))
    return [Scored(one.case_id, one.scores) for one in (_scores(result) for (result,) in rows)]
