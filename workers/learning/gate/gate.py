"""`learning.evaluate`, `.gate.show` and `.gate.power`: asks both sides everything that counts, and keeps the verdict.

The candidate and what it is compared with answer the same items, greedily: the dataset's held-out rows (target), what the
model knew before (retention: rows that curation set aside, and the suites of `retention.py`), and the held-out rows of
every earlier adapter that was put to work. What is right is decided in `scoring.py`, what passes in `verdict.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from bus.client import Client
from bus.records import Records
from bus.settings import Settings
from bus.worker import Call
from schemas.bodies.learning_data import DatasetInfo
from schemas.bodies.learning_gate import (
    GateItem,
    GateResult,
    GateShow,
    GateShown,
    LearningEvaluate,
    PowerShow,
    PowerStatement,
)
from schemas.bodies.model import ModelInfo
from schemas.envelope import new_id
from schemas.errors import BadRequest, BusError, Conflict, NotFound
from workers.learning.gate.answering import Answering, OnProgress
from workers.learning.gate.asking import Answer, Asking, Side
from workers.learning.gate.items import Item, Promoted, Rows, at_most, item_of, question_key
from workers.learning.gate.kept import Judgement, Kept
from workers.learning.gate.pairs import Pair
from workers.learning.gate.retention import RetentionSuites
from workers.learning.gate.scoring import score
from workers.learning.gate.statement import statement
from workers.learning.gate.verdict import Terms, decide

log = logging.getLogger("olympus.learning")

# Items asked of the target and the retention set, at most, and of each earlier adapter's. With 2,000 a loss of a point is
# seen; more would cost time that a better adapter needs.
_SET_MAX: Final = 2_000
_EARLIER_MAX: Final = 300

# Seconds an event waits for the broker.
_TELL_S: Final = 1.0

# Characters kept of a question, a reference and an answer, for people to read.
_SHOWN_CHARACTERS: Final = 4_096


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be judged: an adapter that is attached to `model`, on a frozen version of a dataset.

    against: the adapter to compare with, "" for the model alone, None for what serves now. is_attempt: it may let the adapter
    pass, and counts as an attempt on this set.
    """

    model: str
    adapter: str
    dataset: str
    version: int | None = None
    against: str | None = None
    job_id: str = ""
    is_attempt: bool = True


# The adapter of a job. Raises NotFound, and Conflict where it has none yet.
JobOf = Callable[[str], Awaitable[Judged]]


class _Sets(msgspec.Struct, frozen=True):
    """Everything that is asked. gone: earlier sets that are no longer there."""

    info: DatasetInfo
    target: list[Item]
    retention: list[Item]
    earlier: dict[str, list[Item]]
    gone: list[str]

    def named(self) -> dict[str, list[Item]]:
        return {"target": self.target, "retention": self.retention, **self.earlier}


class Gate:
    """Judges adapters. The records must be open; `promoted` and `job_of` say what the other parts know.

    decided: verdicts since it was made, by whether they let the adapter pass.
    """

    def __init__(
        self, settings: Settings, client: Client, records: Records, rows: Rows, promoted: Promoted, job_of: JobOf
    ) -> None:
        self.decided = {"passed": 0, "failed": 0}
        self._settings = settings.learning
        self._client = client
        self._kept = Kept(records)
        self._rows = rows
        self._promoted = promoted
        self._job_of = job_of
        self._asking = Asking(client)
        # Attempts on one set are counted one after the other: two at a time would both be the first.
        self._judging = asyncio.Lock()
        self._answering = Answering(self._asking, self._kept, settings.models.parallel)
        self.suites = RetentionSuites(settings)

    # Operations

    async def evaluate(self, request: LearningEvaluate, call: Call) -> GateResult:
        """Judge an adapter for a caller, with progress as partial replies.

        Raises BadRequest for neither a job nor a model with adapter and dataset, and what `decide` raises.
        """
        judged = await self._judged(request)
        return await self.decide(judged, on_progress=call.partial, evaluation_id=call.id.hex())

    async def show(self, request: GateShow) -> GateShown:
        """The verdict on a job, or of an evaluation, with its items. Raises BadRequest, NotFound."""
        if (request.job_id is None) == (request.evaluation_id is None):
            raise BadRequest("name either job_id or evaluation_id", field="job_id")
        result, items, total = await self._kept.shown(
            request.job_id, request.evaluation_id, request.only, request.limit
        )
        return GateShown(result=result, items=items, total=total)

    async def power(self, request: PowerShow) -> PowerStatement:
        """What the gate could see with a dataset's held-out rows, before anything is trained. Raises NotFound."""
        info = await self._rows.info(request.dataset, request.version)
        target = await self._target(info)
        retention = await self._retention(info, target)
        attempt = await self._kept.attempt(info.model_sha256, None, [item.item_id for item in target])
        return statement(info, target, retention, self._terms(attempt))

    # For the other parts

    async def decide(
        self, judged: Judged, *, on_progress: OnProgress | None = None, evaluation_id: str = ""
    ) -> GateResult:
        """Ask, judge, keep, and tell. Cancelled or failed, nothing is kept but the answers, so that it can go on.

        Raises NotFound for a dataset, a model or an adapter that is not there, Conflict where the model is another than the
        dataset was made for, Unprocessable where it cannot answer or a suite cannot be read, and Retryable errors.
        """
        began_at = time.monotonic()
        sets, shown = await self._sets(judged)
        candidate, before = await self._asking.sides(shown, judged.adapter, judged.against)
        _check_base(sets.info, candidate)
        answers = await self._answering.both(sets.named(), candidate, before, on_progress)
        async with self._judging:
            result = await self._judge(judged, sets, candidate, before, answers, evaluation_id, began_at)
        await self._tell(result)
        return result

    async def _judge(
        self,
        judged: Judged,
        sets: _Sets,
        candidate: Side,
        before: Side,
        answers: tuple[Mapping[str, Answer], Mapping[str, Answer]],
        evaluation_id: str,
        began_at: float,
    ) -> GateResult:
        """The verdict on both sides' answers, kept as the next attempt on its set."""
        pairs = {name: _pairs(items, answers[0], answers[1]) for name, items in sets.named().items()}
        target = [pair.item_id for pair in pairs["target"]]
        attempt = await self._kept.attempt(candidate.model_sha256, candidate.adapter_sha256, target)
        terms = self._terms(attempt)
        earlier = {name: pairs[name] for name in sets.earlier}
        verdict = await asyncio.to_thread(decide, pairs["target"], pairs["retention"], earlier, terms)
        left_out = _left_out(sets.named(), pairs)
        result = GateResult(
            evaluation_id=evaluation_id or new_id().hex(),
            job_id=judged.job_id,
            model=candidate.model,
            model_sha256=candidate.model_sha256,
            adapter=candidate.adapter,
            against=before.adapter,
            dataset=sets.info.dataset,
            version=sets.info.version,
            at=time.time(),
            verdict=verdict.verdict,
            reasons=[*verdict.reasons, *left_out, *sets.gone],
            target=verdict.target,
            retention=verdict.retention,
            earlier=verdict.earlier,
            backward_transfer=verdict.backward_transfer,
            alpha=terms.alpha,
            corrected_alpha=verdict.corrected_alpha,
            attempt=attempt,
            min_gain=terms.min_gain,
            power=verdict.power,
            detectable_gain=verdict.detectable_gain,
            metric=sets.info.metric,
            took_s=time.monotonic() - began_at,
        )
        await self._kept.keep(
            Judgement(
                result=result,
                adapter_sha256=candidate.adapter_sha256,
                is_attempt=judged.is_attempt,
                # A set too small to let anything pass has had no chance to be lucky with.
                spends=judged.is_attempt and len(target) >= terms.min_target_items,
                target=target,
                items=list(_shown_items(sets.named(), pairs, answers[0], answers[1])),
            )
        )
        self.decided["passed" if result.verdict == "passed" else "failed"] += 1
        return result

    async def verdict_of(self, job_id: str) -> GateResult | None:
        """The newest verdict on a job's adapter, but for evaluations that were no attempt."""
        return await self._kept.verdict_of(job_id)

    async def forget_rows(self, row_ids: Sequence[str]) -> int:
        """Erase questions, references and answers of rows; figures stay. Answers in how many places they were."""
        return await self._kept.forget(row_ids)

    # What is asked

    async def _judged(self, request: LearningEvaluate) -> Judged:
        against, is_attempt = request.against, request.is_attempt
        if request.job_id is not None:
            job = await self._job_of(request.job_id)
            if not job.adapter:
                raise Conflict(f"job {request.job_id} has no adapter that is attached", job_id=request.job_id)
            return msgspec.structs.replace(job, against=against, is_attempt=is_attempt)
        if request.model is None or request.adapter is None or request.dataset is None:
            raise BadRequest("name a job_id, or model, adapter and dataset", field="job_id")
        return Judged(
            model=request.model,
            adapter=request.adapter,
            dataset=request.dataset,
            version=request.version,
            against=against,
            is_attempt=is_attempt,
        )

    async def _sets(self, judged: Judged) -> tuple[_Sets, ModelInfo]:
        info = await self._rows.info(judged.dataset, judged.version)
        shown = await self._asking.show(judged.model)
        target = await self._target(info)
        retention = await self._retention(info, target)
        taken = {item.item_id for item in (*target, *retention)}
        earlier, gone = dict[str, list[Item]](), list[str]()
        # The newest first: an item that several had belongs to the one that learned it last.
        for adapter, dataset, version in reversed(await self._promoted(shown.name)):
            try:
                then = await self._rows.info(dataset, version)
                items = [item_of(row, then.metric) for row in await self._rows.held_out(dataset, version)]
            except NotFound:
                gone.append(f"what {adapter} learned cannot be checked: {dataset}, version {version}, is gone")
                continue
            fresh = at_most([item for item in items if item.item_id not in taken], _EARLIER_MAX)
            taken.update(item.item_id for item in fresh)
            if fresh:
                earlier[f"{dataset}, version {version}"] = fresh
        return _Sets(info, target, retention, earlier, gone), shown

    async def _target(self, info: DatasetInfo) -> list[Item]:
        rows = await self._rows.held_out(info.dataset, info.version)
        return at_most([item_of(row, info.metric) for row in rows], _SET_MAX)

    async def _retention(self, info: DatasetInfo, target: Sequence[Item]) -> list[Item]:
        """Rows that were set aside, and the model's suites, but for questions of the target; each question once."""
        rows = [item_of(row, "auto") for row in await self._rows.retention(info.dataset, info.version)]
        cases = await asyncio.to_thread(self.suites.cases, info.model)
        seen = {question_key(item.messages, item.prompt) for item in target}
        fresh: list[Item] = []
        for item in (*rows, *cases):
            key = question_key(item.messages, item.prompt)
            if key not in seen:
                seen.add(key)
                fresh.append(item)
        return at_most(fresh, _SET_MAX)

    def _terms(self, attempt: int) -> Terms:
        settings = self._settings
        return Terms(
            alpha=settings.alpha,
            min_gain=settings.min_gain,
            margin=settings.margin,
            min_target_items=settings.min_target_items,
            min_retention_items=settings.min_retention_items,
            attempt=attempt,
        )

    # Telling

    async def _tell(self, result: GateResult) -> None:
        """Publish it. What is kept counts: without a broker nobody waits for this."""
        subject = "learning.gate.passed" if result.verdict == "passed" else "learning.gate.failed"
        try:
            async with asyncio.timeout(_TELL_S):
                await self._client.publish(subject, result)
        except (BusError, TimeoutError) as error:
            log.warning(
                "event not published",
                extra={"action": "gate.untold", "evaluation": result.evaluation_id, "error": str(error)},
            )


# Pure parts ---------------------------------------------------------------------------------------------------------


def _check_base(info: DatasetInfo, side: Side) -> None:
    if info.model_sha256 and info.model_sha256 != side.model_sha256:
        raise Conflict(
            f"{info.dataset}, version {info.version}, was made for {info.model} {info.model_sha256[:12]}, here is"
            f" {side.model} {side.model_sha256[:12]}: build the dataset anew",
            dataset=info.dataset,
        )


def _pairs(items: Sequence[Item], after: Mapping[str, Answer], before: Mapping[str, Answer]) -> list[Pair]:
    """Scores of both sides. What the side compared with cannot answer tells nothing; what only the candidate cannot is wrong."""
    return [
        Pair(
            item_id=item.item_id,
            cluster=item.cluster,
            before=score(item.metric, before[item.key].text, item.reference),
            after=0.0 if after[item.key].error else score(item.metric, after[item.key].text, item.reference),
        )
        for item in items
        if not before[item.key].error
    ]


def _left_out(sets: Mapping[str, Sequence[Item]], pairs: Mapping[str, Sequence[Pair]]) -> list[str]:
    return [
        f"{len(items) - len(pairs[name])} of {len(items)} items of {name} are left out: what serves now cannot answer them"
        for name, items in sets.items()
        if len(pairs[name]) < len(items)
    ]


def _shown_items(
    sets: Mapping[str, Sequence[Item]],
    pairs: Mapping[str, Sequence[Pair]],
    after: Mapping[str, Answer],
    before: Mapping[str, Answer],
) -> Iterable[GateItem]:
    for name, items in sets.items():
        by_id = {item.item_id: item for item in items}
        for pair in pairs[name]:
            item = by_id[pair.item_id]
            answer = after[item.key]
            yield GateItem(
                set=name,
                row_id=pair.item_id,
                cluster=pair.cluster,
                question=item.question[:_SHOWN_CHARACTERS],
                reference=item.reference[:_SHOWN_CHARACTERS],
                answer=(answer.error or answer.text)[:_SHOWN_CHARACTERS],
                answer_before=before[item.key].text[:_SHOWN_CHARACTERS],
                score=pair.after,
                score_before=pair.before,
            )
