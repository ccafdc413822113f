"""Trials on a real bus: a real broker, the parts on a worker, and a worker that answers as models do, word for word."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from bus.client import Client
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies import model as models
from schemas.errors import (
    BadRequest,
    BusError,
    Conflict,
    NotFound,
    TooLarge,
    Unprocessable,
    Unsupported,
    WorkerLost,
)
from workers.models.records import model_records
from workers.models.trials import results, scoring
from workers.models.trials.handlers import Trials, register

Serve = Callable[..., AbstractAsyncContextManager[Settings]]
WAIT_S = 20.0


@dataclass
class FakeModels:
    """Answers every model.* operation that trials ask, by rule; `good` knows its sums, `bad` says nonsense."""

    worker: Worker
    cannot: set[str] = field(default_factory=set)
    hold: asyncio.Event | None = None
    asked: list[Any] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=lambda: {"good": "1" * 64, "bad": "2" * 64, "judge": "3" * 64})
    judge: Callable[[str], str] = lambda question: "Mark: 10"
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        for name in ("list", "show", "load", "tokenize", "generate", "chat", "score", "embed"):
            self.worker.handle(f"model.{name}", getattr(self, name))

    def entry(self, name: str) -> models.ModelInfo:
        if name not in self.sha256:
            raise NotFound(f"no model {name!r}")
        return models.ModelInfo(
            name=name,
            family="test",
            format="gguf",
            quantisation="F32",
            parameters=1,
            size_bytes=1,
            context_tokens=4_096,
            state="available",
            sha256=self.sha256[name],
        )

    async def list(self, request: models.ModelList, call: Call) -> models.Models:
        return models.Models(models=[self.entry(name) for name in self.sha256])

    async def show(self, request: models.ModelShow, call: Call) -> models.ModelInfo:
        return self.entry(request.model)

    async def load(self, request: models.ModelLoad, call: Call) -> models.ModelState:
        self.entry(request.model)
        return models.ModelState(
            model=request.model, state="loaded", took_s=0.25, pid=os.getpid(), context_tokens=4_096
        )

    async def tokenize(self, request: models.ModelTokenize, call: Call) -> models.TokenCounts:
        """A token for every four characters of a word."""
        return models.TokenCounts(model=str(request.model), counts=[count(text) for text in request.texts])

    async def generate(self, request: models.Generate, call: Call) -> models.Generation:
        return await self._answer(request, call, request.prompt)

    async def chat(self, request: models.Chat, call: Call) -> models.Generation:
        return await self._answer(request, call, request.messages[-1].content)

    async def _answer(self, request: Any, call: Call, prompt: str) -> models.Generation:
        self.asked.append(request)
        self.arrived.set()
        if self.hold is not None:
            await self.hold.wait()
        self.entry(request.model)
        if "generate" in self.cannot:
            raise Unprocessable("this model is broken")
        if request.model == "judge":
            text = self.judge(prompt)
        elif request.model == "bad":
            text = "I do not know"
        elif "?" in prompt:
            text = str(eval(prompt.partition("?")[0]))  # noqa: S307 - sums that the test wrote
        else:
            text = "a" * 60 if prompt == "long" else "a b c d"
        pieces = text.split(" ")[: request.max_tokens]
        for index, piece in enumerate(pieces):
            await call.partial(models.GenerationPart(text=piece if not index else f" {piece}", token_ids=[index]))
        return models.Generation(
            model=request.model,
            text=" ".join(pieces),
            token_ids=list(range(len(pieces))),
            finish_reason="stop",
            usage=models.Usage(prompt_tokens=count(prompt), completion_tokens=len(pieces)),
            timings=models.Timings(prompt_s=0.1, generate_s=0.1, first_token_s=0.1, tokens_per_s=10.0),
        )

    async def score(self, request: models.Score, call: Call) -> models.Scores:
        if "score" in self.cannot:
            raise Unsupported("this backend gives no log-probabilities")
        per_token = -1.0 if request.model == "good" else -2.0
        tokens = [count(text) for text in request.texts]
        return models.Scores(model=str(request.model), logprobs=[per_token * n for n in tokens], tokens=tokens)

    async def embed(self, request: models.Embed, call: Call) -> models.Embeddings:
        if "embed" in self.cannot:
            raise Unsupported("no model here can embed")
        vectors = [struct.pack("<2f", float(len(text)), 1.0) for text in request.texts]
        return models.Embeddings(
            model=request.model or "embedder",
            dimension=2,
            vectors=vectors,
            usage=models.Usage(prompt_tokens=1, completion_tokens=0),
        )


def count(text: str) -> int:
    return sum(-(-len(word) // 4) for word in text.split())


class House:
    """A broker with trials and models on it."""

    def __init__(self, settings: Settings, client: Client, trials: Trials, fake: FakeModels) -> None:
        self.settings = settings
        self.client = client
        self.trials = trials
        self.models = fake

    async def ask(self, subject: str, **fields: Any) -> Any:
        return await self.client.request(subject, fields, timeout_s=WAIT_S)

    async def parts(self, subject: str, **fields: Any) -> tuple[list[Any], Any]:
        async with self.client.stream(subject, fields, timeout_s=WAIT_S) as parts:
            pieces = [part async for part in parts]
        return pieces, parts.final

    def suite(self, name: str, rules: dict[str, Any], *cases: dict[str, Any]) -> None:
        folder = self.settings.path(self.settings.models.suites)
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(json.dumps(line) for line in (rules, *cases)) + "\n")


@asynccontextmanager
async def trials_on(settings: Settings) -> AsyncIterator[Trials]:
    worker = Worker("model", settings, instance="trials")
    records = model_records(settings.path("models.db"))
    await records.open()
    trials = Trials(settings, worker, records)
    register(worker, trials)
    try:
        await trials.start()
        await worker.start(WAIT_S)
        yield trials
    finally:
        await trials.stop()
        await worker.stop(drain_s=0)
        await records.close()


@asynccontextmanager
async def house_of(serve_broker: Serve) -> AsyncIterator[House]:
    async with serve_broker() as settings:
        fake = FakeModels(Worker("model", settings, instance="models"))
        await fake.worker.start(WAIT_S)
        try:
            async with trials_on(settings) as trials, Client(settings, name="test") as client:
                yield House(settings, client, trials, fake)
        finally:
            if fake.hold is not None:
                fake.hold.set()
            await fake.worker.stop(drain_s=0)


SUMS = [{"id": f"sum-{n}", "prompt": f"{n} + {n}?", "expect": str(2 * n)} for n in range(1, 21)]


# Compare ------------------------------------------------------------------------------------------------------------


async def test_two_models_answer_side_by_side_and_the_better_one_is_picked(serve_broker: Serve) -> None:
    """Parts come with the model's index, the final has what each cost, and the pick is kept."""
    async with house_of(serve_broker) as house:
        parts, final = await house.parts(
            "model.compare", models=["good", "bad"], messages=[{"role": "user", "content": "2 + 2?"}]
        )
        picked = await house.ask("model.compare.pick", comparison_id=final.comparison_id, model="good", note="short")
        kept = await house.ask("model.compare.get", comparison_id=final.comparison_id)

    assert [answer.text for answer in final.answers] == ["4", "I do not know"]
    assert "".join(part.text for part in parts if part.index == 1) == "I do not know"
    assert {(part.index, part.model) for part in parts} == {(0, "good"), (1, "bad")}
    ended = {part.index: part.ended for part in parts if part.ended is not None}
    assert {index: one.usage for index, one in ended.items()} == dict(enumerate(one.usage for one in final.answers))
    assert final.answers[1].usage.completion_tokens == 4
    assert final.answers[0].timings.first_token_s == 0.1
    assert (picked, kept.picked, kept.note) == (kept, "good", "short")
    assert kept.messages[0].content == "2 + 2?"
    assert kept.answers == final.answers


async def test_one_model_that_fails_does_not_fail_the_comparison(serve_broker: Serve) -> None:
    """Its answer says why; one after the other works the same."""
    async with house_of(serve_broker) as house:
        parts, final = await house.parts("model.compare", models=["none", "bad"], prompt="Hi", at_once=False)
        tie = await house.ask("model.compare.pick", comparison_id=final.comparison_id, model="tie")

    assert "not_found: no model 'none'" in final.answers[0].error
    assert (parts[0].index, parts[0].ended) == (0, final.answers[0])
    assert final.answers[1].text == "I do not know"
    assert [request.model for request in house.models.asked] == ["none", "bad"]
    assert tie.picked == "tie"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": ["good", "good"], "prompt": "x"}, "good is there more than once"),
        ({"models": ["good", "bad"]}, "either 'prompt' or 'messages'"),
        ({"models": ["good", "bad"], "prompt": "x", "messages": [{"role": "user"}]}, "and not both"),
        ({"models": ["good"], "prompt": "x"}, "models"),
        ({"models": ["good", "bad"], "prompt": "x", "temperature": -1}, "temperature"),
    ],
)
async def test_a_comparison_that_makes_no_sense_is_refused(serve_broker: Serve, fields: Any, message: str) -> None:
    """Before any model is asked."""
    async with house_of(serve_broker) as house:
        with pytest.raises(BadRequest, match=message):
            await house.ask("model.compare", **fields)
        assert house.models.asked == []


async def test_only_a_compared_model_can_be_picked(serve_broker: Serve) -> None:
    """The error lists them; an unknown comparison is not found."""
    async with house_of(serve_broker) as house:
        final = await house.ask("model.compare", models=["good", "bad"], prompt="Hi")
        with pytest.raises(BadRequest, match="'other', this comparison has: good, bad, tie"):
            await house.ask("model.compare.pick", comparison_id=final.comparison_id, model="other")
        with pytest.raises(NotFound, match="no comparison nothing"):
            await house.ask("model.compare.get", comparison_id="nothing")


# Evaluation ---------------------------------------------------------------------------------------------------------


async def test_a_suite_is_run_marked_and_kept(serve_broker: Serve) -> None:
    """Progress, scores with intervals, what it was run on, the event, and every answer afterwards."""
    async with house_of(serve_broker) as house, house.client.subscribe("model.evaluated") as events:
        rules = {"metrics": ["exact_match", "regex", "json", "similarity", "perplexity"]}
        house.suite("sums/small", rules, *[{**case, "pattern": "^[0-9]+$"} for case in SUMS])
        parts, done = await house.parts("model.evaluate", model="good", suite="sums/small", seeds=[1, 2])
        event = await asyncio.wait_for(anext(events), WAIT_S)
        reply = await house.ask("model.evaluation.get", evaluation_id=done.evaluation_id, with_cases=True)
        listed = await house.ask("model.evaluation.list", model="good", suite="sums/small")

    scores = {score.metric: score for score in done.scores}
    assert (done.status, done.cases, done.errors, done.seeds) == ("done", 40, 0, [1, 2])
    assert (done.model_sha256, len(done.suite_sha256)) == ("1" * 64, 64)
    assert (scores["exact_match"].mean, scores["exact_match"].n, scores["exact_match"].method) == (1.0, 20, "Wilson")
    assert (scores["exact_match"].low, scores["exact_match"].high) == (pytest.approx(0.8389, abs=1e-4), 1.0)
    assert scores["perplexity"].mean == pytest.approx(2.71828, abs=1e-4)
    assert scores["similarity"].mean == pytest.approx(1.0)
    assert done.details == {"embedder": "embedder"}
    assert done.usage.completion_tokens == 40
    assert done.latency.max_s > 0
    assert (parts[0].done, parts[0].total) == (0, 40)
    assert (parts[-1].done, parts[-1].means["exact_match"]) == (40, 1.0)
    assert event.body["evaluation_id"] == done.evaluation_id
    assert reply.evaluation == done
    assert [(case.case_id, case.seed) for case in reply.cases] == [
        (case["id"], seed) for seed in (1, 2) for case in SUMS
    ]
    assert reply.cases[0].answer == "2"
    assert "perplexity" not in reply.cases[20].scores
    assert [one.evaluation_id for one in listed.evaluations] == [done.evaluation_id]


async def test_two_models_are_compared_case_by_case(serve_broker: Serve) -> None:
    """The paired difference has an interval; a suite that changed in between is said not to be comparable."""
    async with house_of(serve_broker) as house:
        house.suite("sums", {"metrics": ["exact_match", "perplexity"]}, *SUMS)
        good = await house.ask("model.evaluate", model="good", suite="sums")
        bad = await house.ask("model.evaluate", model="bad", suite="sums")
        house.suite("sums", {"metrics": ["exact_match"]}, *SUMS[:5])
        changed = await house.ask("model.evaluate", model="good", suite="sums")
        recorded = await house.ask("model.evaluation.record", model="good", scores={"exact_match": 1})
        asked = [
            (await house.ask("model.evaluation.get", evaluation_id=good.evaluation_id, against=other.evaluation_id))
            for other in (bad, changed, recorded)
        ]

    fair, other_questions, unknown = (reply.difference for reply in asked)
    exact, perplexity = fair.metrics
    assert fair.is_comparable
    assert (exact.difference, exact.n) == (1.0, 20)
    assert 0.7 < exact.low < 0.95
    assert (perplexity.difference, perplexity.low) == (-1.0, -1.0)
    assert "nats per token" in perplexity.method
    assert not other_questions.is_comparable
    assert "differ in their sha256" in other_questions.reasons[0]
    assert "was recorded" in unknown.reasons[0]


async def test_a_case_that_failed_tells_its_question_and_the_right_answer(serve_broker: Serve) -> None:
    """As it was asked, so that it can be learned; one that was passed does not."""
    async with house_of(serve_broker) as house:
        house.suite("sums", {"metrics": ["exact_match"]}, *SUMS)
        cases = []
        for model in ("good", "bad"):
            done = await house.ask("model.evaluate", model=model, suite="sums")
            reply = await house.ask("model.evaluation.get", evaluation_id=done.evaluation_id, with_cases=True)
            cases.append(sorted(reply.cases, key=lambda case: case.case_id))

    passed, failed = cases
    assert {(case.expected, case.prompt, tuple(case.messages)) for case in passed} == {("", None, ())}
    known = {case["id"]: case for case in SUMS}
    for case in failed:
        asked = case.prompt if case.prompt is not None else case.messages[-1].content
        assert (asked, case.expected) == (known[case.case_id]["prompt"], known[case.case_id]["expect"])


async def test_answers_that_no_reply_holds_are_refused_before_they_are_read(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both numbers are told; figures and comparisons need no answers, and are there."""
    async with house_of(serve_broker) as house:
        house.suite("sums", {"metrics": ["exact_match"]}, *SUMS)
        one = await house.ask("model.evaluate", model="good", suite="sums")
        two = await house.ask("model.evaluate", model="bad", suite="sums")
        monkeypatch.setattr(results, "MAX_BODY_BYTES", 500)
        asked = {"evaluation_id": one.evaluation_id, "against": two.evaluation_id}
        with pytest.raises(TooLarge, match="a reply at most 500"):
            await house.ask("model.evaluation.get", **asked, with_cases=True)
        reply = await house.ask("model.evaluation.get", **asked)

    assert reply.difference.metrics[0].difference == 1.0


async def test_a_metric_nobody_can_measure_is_said_so_and_the_others_count(serve_broker: Serve) -> None:
    """Unsupported is stated per metric."""
    async with house_of(serve_broker) as house:
        house.models.cannot = {"score", "embed"}
        house.suite("all", {"metrics": ["exact_match", "similarity", "perplexity"]}, *SUMS)
        done = await house.ask("model.evaluate", model="good", suite="all")

    assert [(score.metric, score.mean) for score in done.scores] == [("exact_match", 1.0)]
    assert done.details["skipped"] == {
        "similarity": "unsupported: no model here can embed",
        "perplexity": "unsupported: this backend gives no log-probabilities",
    }
    assert done.errors == 0


async def test_a_judge_marks_answers_and_its_nonsense_is_an_error_of_the_case(serve_broker: Serve) -> None:
    """Marks of 1..10 become 0..1; a reply without a mark counts as an error, not as 0."""
    async with house_of(serve_broker) as house:
        house.suite("judged", {"metrics": ["judge"], "judge": {"model": "judge"}}, *SUMS[:4])
        house.models.judge = lambda question: "no idea" if "1 + 1?" in question else "Mark: 5.5/10"
        done = await house.ask("model.evaluate", model="bad", suite="judged")
        with pytest.raises(NotFound, match="no model 'nobody'; there are: bad, good, judge"):
            await house.ask("model.evaluate", model="bad", suite="judged", judge="nobody")

    assert (done.scores[0].mean, done.scores[0].n, done.errors) == (0.5, 3, 1)
    assert (done.details["judge"], done.details["judge_sha256"]) == ("judge", "3" * 64)


async def test_a_judge_who_prefers_the_first_place_decides_nothing(serve_broker: Serve) -> None:
    """Each pair is shown in both orders."""
    async with house_of(serve_broker) as house:
        house.suite("pairs", {"metrics": ["judge"], "judge": {"model": "judge", "is_pairwise": True}}, *SUMS[:4])
        house.models.judge = lambda question: "A"
        partial = await house.ask("model.evaluate", model="bad", suite="pairs")
        house.models.judge = lambda question: "B" if "Answer B:\nI do not know" in question else "A"
        fond = await house.ask("model.evaluate", model="bad", suite="pairs")

    assert partial.scores[0].mean == 0.5
    assert fond.scores[0].mean == 1.0


async def test_leaving_the_stream_cancels_the_evaluation(serve_broker: Serve) -> None:
    """It is kept as cancelled with what it had, and told."""
    async with house_of(serve_broker) as house, house.client.subscribe("model.evaluated") as events:
        house.suite("sums", {"metrics": ["exact_match"]}, *SUMS)
        house.models.hold = asyncio.Event()
        async with house.client.stream("model.evaluate", {"model": "good", "suite": "sums"}, timeout_s=WAIT_S) as parts:
            first = await anext(aiter(parts))
            await asyncio.wait_for(house.models.arrived.wait(), WAIT_S)
        event = await asyncio.wait_for(anext(events), WAIT_S)
        kept = await house.ask("model.evaluation.get", evaluation_id=first.evaluation_id)

    assert event.body["status"] == "cancelled"
    assert (kept.evaluation.status, kept.evaluation.cases) == ("cancelled", 0)


async def test_the_end_of_the_service_fails_what_runs_and_its_start_what_it_could_not_note(
    serve_broker: Serve,
) -> None:
    """Nothing stays "running" for ever."""
    async with serve_broker() as settings, Client(settings, name="test") as client:
        fake = FakeModels(Worker("model", settings, instance="models"))
        fake.hold = asyncio.Event()
        await fake.worker.start(WAIT_S)
        async with trials_on(settings) as trials:
            House(settings, client, trials, fake).suite("sums", {"metrics": ["exact_match"]}, *SUMS)
            asking = asyncio.create_task(
                client.request("model.evaluate", {"model": "good", "suite": "sums"}, timeout_s=WAIT_S)
            )
            await asyncio.wait_for(fake.arrived.wait(), WAIT_S)
            await asyncio.wait_for(trials.stop(), WAIT_S)
            with pytest.raises(WorkerLost, match="left while the trial ran"):
                await asking
            (ended,) = (await client.request("model.evaluation.list", {})).evaluations
            await trials.results.begin(msgspec.structs.replace(ended, evaluation_id="killed", status="running"))
        async with trials_on(settings):
            listed = await client.request("model.evaluation.list", {})
        fake.hold.set()
        await fake.worker.stop(drain_s=0)

    assert (ended.status, ended.error) == ("failed", "the model service ended while it ran")
    assert [one.status for one in listed.evaluations] == ["failed", "failed"]


async def test_a_model_that_answers_nothing_is_given_up(serve_broker: Serve) -> None:
    """Twenty cases are not asked when ten in a row fail."""
    async with house_of(serve_broker) as house:
        house.models.cannot = {"generate"}
        house.suite("sums", {"metrics": ["exact_match"]}, *SUMS)
        done = await house.ask("model.evaluate", model="good", suite="sums")

    assert done.status == "failed"
    assert "this model is broken" in done.error
    assert 10 <= done.errors < 20


async def test_a_suite_of_which_nothing_can_be_measured_fails(serve_broker: Serve) -> None:
    """An evaluation without a score is not a success; the reason is in its error."""
    async with house_of(serve_broker) as house:
        house.models.cannot = {"score"}
        house.suite("texts", {"metrics": ["perplexity"]}, {"id": "1", "text": "some text"})
        done = await house.ask("model.evaluate", model="good", suite="texts")

    assert (done.status, done.scores, done.errors) == ("failed", [], 0)
    assert done.error == "no case could be marked; perplexity: unsupported: this backend gives no log-probabilities"


async def test_an_evaluation_that_fails_unexpectedly_is_kept_as_failed(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not look as if it were running until the next start."""

    def broken(*arguments: object) -> float:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(scoring, "exact", broken)
    async with house_of(serve_broker) as house:
        house.suite("sums", {"metrics": ["exact_match"]}, *SUMS[:2])
        with pytest.raises(BusError):
            await house.ask("model.evaluate", model="good", suite="sums")
        (kept,) = (await house.ask("model.evaluation.list")).evaluations

    assert (kept.status, kept.error) == ("failed", "an error of the model service, which its log tells")


async def test_a_confidence_that_no_interval_has_is_refused(serve_broker: Serve) -> None:
    """Before anything runs: 1 has no quantile, and next to it arithmetic ends."""
    async with house_of(serve_broker) as house:
        house.suite("sums", {"metrics": ["exact_match"]}, *SUMS[:2])
        for confidence in (0.1, 0.9999999999999999):
            with pytest.raises(BusError, match="confidence"):
                await house.ask("model.evaluate", model="good", suite="sums", confidence=confidence)


async def test_a_pattern_that_never_ends_costs_its_case_only(serve_broker: Serve) -> None:
    """The search is stopped from outside; the service goes on, and so does the suite."""
    async with house_of(serve_broker) as house:
        endless = {"id": "endless", "prompt": "long", "pattern": "^(a+)+b$"}
        house.trials.evaluating.matcher.limit_s = 0.2
        house.suite("patterns", {"metrics": ["regex"]}, {"id": "fine", "prompt": "Hi", "pattern": "a b"}, endless)
        done = await house.ask("model.evaluate", model="good", suite="patterns")

    assert (done.scores[0].mean, done.scores[0].n, done.errors) == (1.0, 1, 1)


async def test_what_is_not_there_is_named_with_what_is(serve_broker: Serve) -> None:
    """Suites, metrics, models; and a suite path that leaves its folder."""
    async with house_of(serve_broker) as house:
        house.suite("sums", {"metrics": ["exact_match"]}, *SUMS)
        house.settings.path("secret.jsonl").write_text("{}")
        wrong: list[tuple[dict[str, Any], type[BusError], str]] = [
            ({"model": "good", "suite": "nothing"}, NotFound, "there are: demo, demo-perplexity, sums"),
            ({"model": "nobody", "suite": "sums"}, NotFound, "no model 'nobody'; there are: bad, good, judge"),
            (
                {"model": "good", "suite": "sums", "metrics": ["bleu"]},
                BadRequest,
                "'bleu' is none; .* has: exact_match",
            ),
            ({"model": "good", "suite": "sums", "metrics": ["json"]}, BadRequest, "'json' has no such metric"),
            ({"model": "good", "suite": "../secret"}, BadRequest, "a path below the suites folder"),
            ({"model": "good", "suite": "sums", "seeds": [3, 3]}, BadRequest, "'seeds' names one twice"),
        ]
        for fields, kind, message in wrong:
            with pytest.raises(kind, match=message):
                await house.ask("model.evaluate", **fields)
        listed = await house.ask("model.evaluation.list")

    assert listed.evaluations == []


async def test_foreign_results_and_measurements_are_kept_once(serve_broker: Serve) -> None:
    """Telling twice under one id is telling once; saying something else under it is a conflict."""
    async with house_of(serve_broker) as house:
        told = {"model": "m", "scores": {"trust": 0.5}, "cycle_id": "c-1", "evaluation_id": "e-1", "at": 5.0}
        first = await house.ask("model.evaluation.record", **told)
        again = await house.ask("model.evaluation.record", **told)
        with pytest.raises(Conflict, match="e-1 is another evaluation"):
            await house.ask("model.evaluation.record", **{**told, "scores": {"trust": 0.7}})
        measured = {"agent": "a", "metric": "latency", "value": 1.5, "metric_id": "m-1", "at": 10.0}
        for _ in range(2):
            assert (await house.ask("model.metric.record", **measured)).metric_id == "m-1"
        await house.ask("model.metric.record", agent="b", metric="latency", value=2.0, at=20.0)
        with pytest.raises(Conflict, match=r"m-1 is latency = 1\.5 of a already"):
            await house.ask("model.metric.record", **{**measured, "value": 9.0})
        for wrong in ({"value": float("nan")}, {"value": 1.0, "at": float("nan")}):
            with pytest.raises(BadRequest, match="must be a finite number"):
                await house.ask("model.metric.record", agent="a", metric="latency", **wrong)
        with pytest.raises(BadRequest, match="field 'at' is inf"):
            await house.ask("model.evaluation.record", model="m", scores={"trust": 0.5}, at=float("inf"))
        everything = await house.ask("model.metric.list")
        of_a = await house.ask("model.metric.list", agent="a", since=5.0, until=15.0)

    assert first == again
    assert (first.details, first.scores[0].mean) == ({"cycle_id": "c-1"}, 0.5)
    assert [one.at for one in everything.metrics] == [20.0, 10.0]
    assert [one.metric_id for one in of_a.metrics] == ["m-1"]


# Benchmark ----------------------------------------------------------------------------------------------------------


async def test_a_benchmark_asks_exact_prompts_that_begin_differently(serve_broker: Serve) -> None:
    """Every length with every concurrency; the warm-up is asked too and not counted."""
    async with house_of(serve_broker) as house:
        rows, final = await house.parts(
            "model.benchmark", model="good", prompt_tokens=[16, 50], output_tokens=3, concurrency=[1, 2], requests=4
        )
        prompts = [request.prompt for request in house.models.asked]

    assert rows == final.rows
    assert [(row.prompt_tokens, row.concurrency) for row in rows] == [(16, 1), (16, 2), (50, 1), (50, 2)]
    assert [count(prompt) for prompt in prompts] == [16] * 11 + [50] * 11
    assert len(set(prompts)) == 22
    assert all(row.errors == 0 and row.tokens_per_s > 0 and row.memory_bytes for row in rows)
    assert all(row.first_token.p50_s <= row.whole.max_s for row in rows)
    assert final.load_s == 0.25


async def test_a_benchmark_may_ask_one_prompt_and_counts_errors(serve_broker: Serve) -> None:
    """A row of errors has no rates; what cannot fit the window is refused with both numbers."""
    async with house_of(serve_broker) as house:
        await house.ask("model.benchmark", model="good", prompt_tokens=[8], requests=3, same_prompt=True)
        asked = {request.prompt for request in house.models.asked}
        house.models.cannot = {"generate"}
        broken = await house.ask("model.benchmark", model="good", prompt_tokens=[8], concurrency=[2], requests=3)
        with pytest.raises(BadRequest, match="need 4101, the window of good has 4096"):
            await house.ask("model.benchmark", model="good", prompt_tokens=[4_096], output_tokens=5)
        with pytest.raises(NotFound, match="there are: bad, good, judge"):
            await house.ask("model.benchmark", model="nobody")

    assert len(asked) == 1
    assert (broken.rows[0].errors, broken.rows[0].tokens_per_s) == (3, 0.0)


# A/B tests ----------------------------------------------------------------------------------------------------------

VARIANTS = [{"name": "A", "model": "good"}, {"name": "B", "model": "bad", "adapter": "tuned"}]


async def test_units_keep_their_variant_through_restarts_and_the_end_of_the_test(serve_broker: Serve) -> None:
    """Only a new unit is refused by a test that has ended."""
    async with serve_broker() as settings, Client(settings, name="test") as client:

        async def ask(subject: str, **fields: Any) -> Any:
            return await client.request(f"model.abtest.{subject}", fields, timeout_s=WAIT_S)

        async with trials_on(settings):
            test = await ask("start", name="t", variants=VARIANTS)
            before = {f"u{n}": (await ask("assign", test_id=test.test_id, unit=f"u{n}")).variant for n in range(40)}
            with pytest.raises(Conflict, match="runs already"):
                await ask("start", name="t", variants=VARIANTS)
        async with trials_on(settings):
            stopped = await ask("stop", test_id=test.test_id)
            after = {unit: await ask("assign", test_id=test.test_id, unit=unit) for unit in before}
            with pytest.raises(Conflict, match="takes no new units"):
                await ask("assign", test_id=test.test_id, unit="late")
            again = await ask("start", name="t", variants=VARIANTS)
            listed = await ask("list")

    assert {unit: one.variant for unit, one in after.items()} == before
    assert set(before.values()) == {"A", "B"}
    assert {one.adapter for one in after.values() if one.variant == "B"} == {"tuned"}
    assert (stopped.status, stopped.winner) == ("stopped", None)
    assert [one.test_id for one in listed.tests] == [again.test_id, test.test_id]


async def test_a_clear_difference_ends_the_test_with_a_winner(serve_broker: Serve) -> None:
    """Outcomes count once per id and unit; the test stops by itself and says why."""
    async with house_of(serve_broker) as house:
        test = await house.ask("model.abtest.start", name="t", variants=VARIANTS)
        result, told = test, 0
        while result.status == "running" and told < 200:
            unit = f"u{told}"
            told += 1
            variant = (await house.ask("model.abtest.assign", test_id=test.test_id, unit=unit)).variant
            outcome = {"test_id": test.test_id, "unit": unit, "value": float(variant == "B"), "outcome_id": unit}
            result = await house.ask("model.abtest.record", **outcome)
            assert await house.ask("model.abtest.record", **outcome) == result
        with pytest.raises(Conflict, match="was told before"):
            await house.ask("model.abtest.record", **{**outcome, "value": 1 - outcome["value"]})
        more = await house.ask("model.abtest.record", test_id=test.test_id, unit="u0", value=0.0)

    assert test.verdict == "no outcomes yet"
    assert (result.status, result.winner) == ("stopped", "B")
    assert result.verdict == "B is better than A: certain at level 0.95"
    assert told < 40
    assert result.differences[0].low > 0
    assert result.differences[0].p_value < 0.05
    assert sum(variant.units for variant in more.variants) == told
    assert sum(variant.outcomes for variant in more.variants) == told + 1


async def test_outcomes_that_make_no_sense_are_refused(serve_broker: Serve) -> None:
    """Unknown tests and units, values of the wrong kind, variants twice."""
    async with house_of(serve_broker) as house:
        test = await house.ask("model.abtest.start", name="t", variants=VARIANTS)
        with pytest.raises(NotFound, match=f"running: {test.test_id} \\(t\\)"):
            await house.ask("model.abtest.result", test_id="nothing")
        with pytest.raises(NotFound, match=r"ask model\.abtest\.assign first"):
            await house.ask("model.abtest.record", test_id=test.test_id, unit="u", value=1.0)
        with pytest.raises(BadRequest, match="is 0 or 1"):
            await house.ask("model.abtest.record", test_id=test.test_id, unit="u", value=0.5)
        with pytest.raises(BadRequest, match="A is there more than once"):
            await house.ask("model.abtest.start", name="s", variants=[VARIANTS[0], VARIANTS[0]])


# With the demo model ------------------------------------------------------------------------------------------------


async def test_the_demo_model_passes_the_suite_that_ships_with_it(serve_broker: Serve) -> None:
    """The whole service: word for word right, and its own answers likely."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from workers.models.service import ModelService

    async with serve_broker() as settings, Client(settings, name="test") as client:
        service = ModelService(settings)
        await service.start()
        try:
            exact, likely = [
                await client.request("model.evaluate", {"model": "olympus-demo", "suite": suite}, timeout_s=WAIT_S)
                for suite in ("demo", "demo-perplexity")
            ]
        finally:
            await service.stop()

    assert (exact.status, exact.errors, exact.scores[0].mean) == ("done", 0, 1.0)
    assert (likely.status, likely.errors) == ("done", 0)
    assert 1.0 <= likely.scores[0].mean < 1.2
