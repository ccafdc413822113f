"""`model.evaluate`: runs a suite on a model, a few cases at a time, and keeps what came of it; marks nothing itself."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.client import Client
from bus.settings import Settings
from bus.worker import Call
from schemas.bodies.model import Chat, ChatMessage, Generate, Generation, LatencyFigures, ModelInfo, Score, Usage
from schemas.bodies.model_trials import CaseResult, Evaluate, EvaluateProgress, Evaluation, MetricScore
from schemas.errors import BadRequest, BusError, NotFound, NoWorker, Unprocessable, Unsupported
from workers.models.trials import scoring
from workers.models.trials.asking import Asking, added
from workers.models.trials.json_schema import UnusableSchema
from workers.models.trials.matcher_process import MatcherProcess
from workers.models.trials.results import Results
from workers.models.trials.running import Running, all_or_first_error
from workers.models.trials.scoring import NoMark, NoNumber, Scored
from workers.models.trials.statistics import quantile
from workers.models.trials.suites import METRICS, SHIPPED, Case, Suite, find_suite, read_suite

# Evaluations that run at once; later ones wait. They share the models with everybody else.
_AT_ONCE: Final = 2

# Runs of cases one evaluation may have: cases times seeds. Each is kept.
_RUNS_MAX: Final = 200_000

# Errors without a single answer after which it is given up: then it is the model, not the cases.
_GIVE_UP: Final = 10

# Results written in one transaction.
_BATCH: Final = 32

# Seconds between progress messages.
_PROGRESS_S: Final = 0.25

# Characters kept of an answer.
_ANSWER_CHARACTERS: Final = 65_536

# Metrics that mark each answer from 0, wrong, to 1, and the mark below which it is one to learn from.
_MARKED: Final = frozenset({"exact_match", "contains", "regex", "judge"})
_PASS: Final = 0.5

# Characters of a question with its answer that are kept with the result of a case that failed.
_QUESTION_CHARACTERS: Final = 16_384

# Answers whose latency counts: the last ones.
_LATENCIES: Final = 1_000

# A metric's own failure of these kinds concerns every case: nobody here can do it.
_CANNOT: Final = (Unsupported, NoWorker, NotFound)


class Evaluating:
    """Runs suites with the models on the bus."""

    def __init__(self, settings: Settings, client: Client, results: Results, running: Running) -> None:
        self._folders = [settings.path(settings.models.suites), SHIPPED]
        self._parallel = settings.models.parallel
        self._client = client
        self._results = results
        self._running = running
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self.matcher = MatcherProcess()

    async def evaluate(self, request: Evaluate, call: Call) -> Evaluation:
        """Run a suite; the final reply is the whole result, whatever became of it.

        A caller who leaves ends it as "cancelled", the service's end as "failed". Raises NotFound for a suite or a model
        that is not there, BadRequest for a metric the suite has not and for a judge that is missing, Unprocessable for a
        broken suite or model.
        """
        with self._running.entered():
            suite = await asyncio.to_thread(_read, self._folders, request.suite)
            metrics = _chosen(request, suite)
            cases = suite.cases[: request.limit or None]
            _check_size(request, cases)
            asking = Asking(self._client, call, "batch")
            shown = await asking.show(request.model)
            if shown.state == "unusable":
                raise Unprocessable(f"{request.model} cannot be loaded: {shown.error}", model=request.model)
            judge = await self._judge(request, suite, metrics, asking)
            run = _Run(request, suite, metrics, asking, self.matcher, judge.name if judge else None)
            evaluation = _begun(call.id.hex(), request, suite, shown, judge)
            await self._results.begin(evaluation)
            return await self._carry_out(run, evaluation, cases, call)

    async def stop(self) -> None:
        """End the process that this part may have started."""
        await self.matcher.stop()

    async def _judge(self, request: Evaluate, suite: Suite, metrics: Sequence[str], asking: Asking) -> ModelInfo | None:
        if "judge" not in metrics:
            return None
        name = request.judge or suite.rules.judge.model
        if name is None:
            raise BadRequest(f"suite {suite.name} asks for a judge: name one in 'judge'", field="judge")
        return await asking.show(name)

    async def _carry_out(self, run: _Run, evaluation: Evaluation, cases: Sequence[Case], call: Call) -> Evaluation:
        """Run it and keep how it ended, whatever ends it."""
        status, reason = "failed", "an error of the model service, which its log tells"
        try:
            await self._tell(run, evaluation, len(cases), call)
            async with self._turns:
                await self._run_all(run, evaluation, cases, call)
            reason = run.failure()
            status = "failed" if reason else "done"
        except asyncio.CancelledError:
            if self._running.is_leaving:
                reason = "the model service ended while it ran"
            else:
                status, reason = "cancelled", "the caller left or its deadline passed"
            raise
        except BusError as error:
            reason = f"{error.code}: {error.message}"
            raise
        finally:
            ended = run.ended(evaluation, status, reason)
            await self._results.end(ended)
        return ended

    async def _run_all(self, run: _Run, evaluation: Evaluation, cases: Sequence[Case], call: Call) -> None:
        """Every case with every seed, `models.parallel` at a time, results written as they come."""
        waiting = iter([(position, case, seed) for position, (seed, case) in enumerate(_runs(evaluation.seeds, cases))])
        unwritten: list[tuple[int, CaseResult]] = []
        told_at = time.monotonic()

        async def work() -> None:
            nonlocal told_at
            for position, case, seed in waiting:
                if run.gave_up:
                    return
                unwritten.append((position, await run.result(case, seed)))
                if len(unwritten) >= _BATCH:
                    batch = unwritten[:]
                    unwritten.clear()
                    await self._results.add(evaluation.evaluation_id, batch)
                if time.monotonic() - told_at >= _PROGRESS_S:
                    told_at = time.monotonic()
                    await self._tell(run, evaluation, len(cases), call)

        try:
            await all_or_first_error([work() for _ in range(self._parallel)])
        finally:
            if unwritten:
                await self._results.add(evaluation.evaluation_id, unwritten)
        await self._tell(run, evaluation, len(cases), call)

    async def _tell(self, run: _Run, evaluation: Evaluation, cases: int, call: Call) -> None:
        progress = EvaluateProgress(
            evaluation_id=evaluation.evaluation_id,
            done=len(run.results),
            total=cases * len(evaluation.seeds),
            errors=run.errors,
            means=run.means(),
        )
        await call.partial(progress)


class _Run:
    """One evaluation as it runs: what was answered, and what it was worth."""

    def __init__(
        self,
        request: Evaluate,
        suite: Suite,
        metrics: Sequence[str],
        asking: Asking,
        matcher: MatcherProcess,
        judge: str | None,
    ) -> None:
        self._request = request
        self._suite = suite
        self._metrics = metrics
        self._asking = asking
        self._matcher = matcher
        self._judge = judge
        self.results: list[Scored] = []
        self.errors = 0
        self.gave_up = ""
        self._last_error = ""
        self._sums = dict.fromkeys(metrics, (0.0, 0))
        self._skipped: dict[str, str] = {}
        self._usage: Usage | None = None
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._embedder: str | None = None
        self._adapter: str | None = None

    async def result(self, case: Case, seed: int) -> CaseResult:
        """Ask and mark one case. Its failure is its result; only the end of the deadline is raised."""
        self._asking.left_s()
        answer, scores, error = "", dict[str, float](), ""
        try:
            if any(metric != "perplexity" and case.fits_metric(metric) for metric in self._metrics):
                answer = await self._answer(case, seed)
            for metric in self._metrics:
                if case.fits_metric(metric) and metric not in self._skipped:
                    scores.update(await self._scores(metric, case, answer, seed))
        except (BusError, NoMark, NoNumber, UnusableSchema) as failure:
            code = f"{failure.code}: " if isinstance(failure, BusError) else ""
            error = f"{code}{failure}"
        self._count(Scored(case.id, scores), error)
        result = CaseResult(case_id=case.id, seed=seed, answer=answer[:_ANSWER_CHARACTERS], scores=scores, error=error)
        is_told = _has_failed(scores) and not error
        return _with_question(result, self._question(case, seed), case.best) if is_told else result

    def means(self) -> dict[str, float]:
        """Of each metric so far."""
        return {metric: total / count for metric, (total, count) in self._sums.items() if count}

    def failure(self) -> str:
        """Why it says nothing, when it was carried out; empty when it does say something."""
        if self.gave_up or any(count for _, count in self._sums.values()):
            return self.gave_up
        skipped = "; ".join(f"{metric}: {reason}" for metric, reason in self._skipped.items())
        return f"no case could be marked; {skipped or self._last_error}"

    def ended(self, evaluation: Evaluation, status: str, error: str) -> Evaluation:
        """The evaluation with everything that is known at its end."""
        found = {m: scoring.summary(self.results, m, evaluation.confidence) for m in self._metrics}
        details = {**evaluation.details, "embedder": self._embedder, "skipped": self._skipped}
        ordered = sorted(self._latencies)
        changes: dict[str, Any] = {
            "status": status,
            "error": error,
            "finished_at": time.time(),
            "scores": [
                MetricScore(
                    metric=metric,
                    mean=interval.mean,
                    low=interval.low,
                    high=interval.high,
                    n=interval.n,
                    method=interval.method,
                )
                for metric, interval in found.items()
                if interval is not None
            ],
            "cases": len(self.results),
            "errors": self.errors,
            "usage": self._usage,
            "adapter": self._adapter or evaluation.adapter,
            "details": {name: value for name, value in details.items() if value},
        }
        if ordered:
            changes["latency"] = LatencyFigures(
                p50_s=quantile(ordered, 0.5), p95_s=quantile(ordered, 0.95), max_s=ordered[-1]
            )
        return msgspec.structs.replace(evaluation, **changes)

    def _count(self, scored: Scored, error: str) -> None:
        self.results.append(scored)
        for metric, (total, count) in self._sums.items():
            if metric in scored.scores:
                self._sums[metric] = (total + scored.scores[metric], count + 1)
        if error:
            self.errors += 1
            self._last_error = error
            if self.errors == len(self.results) >= _GIVE_UP:
                self.gave_up = f"given up after {_GIVE_UP} errors without an answer; the last: {error}"

    # Asking

    async def _answer(self, case: Case, seed: int) -> str:
        began_at = time.monotonic()
        generation = await self._asking.answer(self._question(case, seed))
        self._latencies.append(time.monotonic() - began_at)
        self._usage = added(self._usage, generation.usage)
        self._adapter = generation.adapter or self._adapter
        return generation.text

    def _question(self, case: Case, seed: int) -> Generate | Chat:
        rules = self._suite.rules
        options: dict[str, Any] = {
            "model": self._request.model,
            "max_tokens": rules.max_tokens,
            "temperature": rules.temperature,
            "stop": rules.stop,
            "seed": seed,
            "adapter": self._request.adapter,
        }
        if not rules.as_chat:
            return Generate(prompt=f"{rules.system or ''}{case.prompt}", **options)
        system = [ChatMessage(role="system", content=rules.system)] if rules.system else []
        asked = case.messages or [ChatMessage(role="user", content=case.prompt or "")]
        return Chat(messages=[*system, *asked], **options)

    # Marking

    async def _scores(self, metric: str, case: Case, answer: str, seed: int) -> dict[str, float]:
        rules = self._suite.rules
        match metric:
            case "exact_match":
                return {metric: scoring.exact(answer, case, rules)}
            case "contains":
                return {metric: scoring.contains(answer, case, rules)}
            case "json":
                return {metric: scoring.is_json(answer, case, rules)}
            case "regex":
                found = await self._matcher.is_in(case.pattern or "", answer[:_ANSWER_CHARACTERS])
                return {metric: float(found)}
            case "judge":
                return {metric: await self._judged(case, answer)}
        try:
            if metric == "similarity":
                return {metric: await self._similarity(case, answer)}
            # Perplexity takes no part in sampling: one seed tells all.
            return await self._perplexity(case) if seed == self._request.seeds[0] else {}
        except _CANNOT as error:
            self._skipped[metric] = f"{error.code}: {error.message}"
            return {}

    async def _perplexity(self, case: Case) -> dict[str, float]:
        body = Score(
            texts=[case.text or case.best],
            prompts=[case.prompt or ""],
            model=self._request.model,
            adapter=self._request.adapter,
        )
        scores = await self._asking.score(body)
        if not scores.tokens[0]:
            raise Unprocessable("the text has no tokens, so it has no perplexity")
        return {
            "perplexity": scoring.perplexity(scores.logprobs[0], scores.tokens[0]),
            scoring.TOKENS: float(scores.tokens[0]),
        }

    async def _similarity(self, case: Case, answer: str) -> float:
        self._embedder, vectors = await self._asking.vectors(
            self._embedder or self._suite.rules.embedder, [answer or " ", case.best]
        )
        return scoring.cosine(*vectors)

    async def _judged(self, case: Case, answer: str) -> float:
        rules = self._suite.rules.judge
        if not rules.is_pairwise:
            return scoring.mark_of(await self._ask_judge(scoring.judge_question(case, answer, rules)), rules.scale)
        as_first = scoring.choice_of(await self._ask_judge(scoring.judge_pair(case, answer, case.best, rules)))
        as_second = scoring.choice_of(await self._ask_judge(scoring.judge_pair(case, case.best, answer, rules)))
        return (as_first + 1 - as_second) / 2

    async def _ask_judge(self, question: str) -> str:
        body = Chat(
            model=self._judge,
            messages=[ChatMessage(role="user", content=question)],
            temperature=0.0,
            seed=0,
            max_tokens=self._suite.rules.judge.max_tokens,
        )
        reply: Generation = await self._asking.answer(body)
        return reply.text


def _read(folders: list[Path], name: str) -> Suite:
    return read_suite(find_suite(folders, name), name)


def _runs(seeds: Sequence[int], cases: Sequence[Case]) -> list[tuple[int, Case]]:
    return [(seed, case) for seed in seeds for case in cases]


def _chosen(request: Evaluate, suite: Suite) -> list[str]:
    """The metrics that are asked for, in the suite's order. Raises BadRequest."""
    unknown = [metric for metric in request.metrics if metric not in suite.rules.metrics]
    if unknown:
        why = "has no such metric" if unknown[0] in METRICS else "is none"
        raise BadRequest(
            f"field 'metrics': {unknown[0]!r} {why}; suite {suite.name} has: {', '.join(suite.rules.metrics)}",
            field="metrics",
        )
    return [metric for metric in suite.rules.metrics if not request.metrics or metric in request.metrics]


def _check_size(request: Evaluate, cases: Sequence[Case]) -> None:
    if len(set(request.seeds)) < len(request.seeds):
        raise BadRequest("field 'seeds' names one twice: it would count twice", field="seeds")
    runs = len(cases) * len(request.seeds)
    if runs > _RUNS_MAX:
        raise BadRequest(
            f"{len(cases)} cases with {len(request.seeds)} seeds are {runs} runs, an evaluation has {_RUNS_MAX} at most:"
            " set 'limit'",
            field="limit",
        )


def _begun(
    evaluation_id: str, request: Evaluate, suite: Suite, shown: ModelInfo, judge: ModelInfo | None
) -> Evaluation:
    judged_by = {} if judge is None else {"judge": judge.name, "judge_sha256": judge.sha256}
    return Evaluation(
        evaluation_id=evaluation_id,
        model=request.model,
        suite=suite.name,
        status="running",
        started_at=time.time(),
        finished_at=None,
        scores=[],
        cases=0,
        errors=0,
        suite_sha256=suite.sha256,
        model_sha256=shown.sha256,
        adapter=request.adapter or None,
        seeds=request.seeds,
        confidence=request.confidence,
        details=judged_by,
    )


def _has_failed(scores: dict[str, float]) -> bool:
    """True for an answer that missed by a metric that marks from 0 to 1."""
    return any(score < _PASS for metric, score in scores.items() if metric in _MARKED)


def _with_question(result: CaseResult, asked: Generate | Chat, expected: str) -> CaseResult:
    """The result with what was asked and the right answer, so that it can be learned."""
    prompt = asked.prompt if isinstance(asked, Generate) else None
    messages = asked.messages if isinstance(asked, Chat) else []
    size = len(prompt or "") + len(expected) + sum(len(message.content) for message in messages)
    if not expected or size > _QUESTION_CHARACTERS:
        return result
    return msgspec.structs.replace(result, prompt=prompt, messages=messages, expected=expected)
