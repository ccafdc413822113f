"""The gate on a real bus: a real broker, models that answer by rule, and the verdicts that come of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.client import Client
from bus.records import Records
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies import learning_gate as bodies
from schemas.bodies import model as models
from schemas.bodies.learning_data import DatasetInfo, RowInfo
from schemas.bodies.model_files import AdapterInfo, AdapterList, Adapters
from schemas.errors import BadRequest, BusError, Conflict, NotFound, Overloaded, Unprocessable
from schemas.purpose import is_observed
from workers.learning.gate.gate import Gate, Judged
from workers.learning.gate.handlers import register

Serve = Callable[..., AbstractAsyncContextManager[Settings]]
Answering = Callable[[str, str], str]
WAIT_S = 20.0
SCHEMA = Path(__file__).resolve().parents[2] / "workers" / "learning" / "schema"


def right(question: str) -> str:
    """The reference of a question."""
    return f"answer {question}"


def after(share: float, question: str) -> bool:
    """True for about that share of the questions, which end in a number."""
    return int(question.rpartition(" ")[2]) % 100 < share * 100


def bare(question: str) -> str:
    """The model alone: knows what it knew before, and a third of the new."""
    if question.startswith("new"):
        return right(question) if after(0.33, question) else "no idea"
    return right(question) if after(0.9, question) else "no idea"


def good(question: str) -> str:
    """Learned nearly all of the new, and forgot nothing."""
    return right(question) if question.startswith("new") and after(0.9, question) else bare(question)


def useless(question: str) -> str:
    """Answers what the model alone answers."""
    return bare(question)


def harmful(question: str) -> str:
    """Learned the new, and forgot a quarter of the old."""
    return good(question) if question.startswith("new") or not after(0.25, question) else "no idea"


@dataclass
class FakeModels:
    """One base model with adapters that answer by rule."""

    worker: Worker
    adapters: dict[str, Callable[[str], str]] = field(
        default_factory=lambda: {"": bare, "good:1": good, "useless:1": useless, "harmful:1": harmful}
    )
    champion: str = ""
    sha256: str = "1" * 64
    asked: list[Any] = field(default_factory=list)
    errors: list[BusError] = field(default_factory=list)
    refuses: Callable[[str, str], bool] = lambda adapter, question: False
    hold_after: int | None = None
    held: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.worker.handle("model.show", self.show)
        self.worker.handle("model.adapter.list", self.list_adapters)
        self.worker.handle("model.chat", self.chat)

    async def show(self, request: models.ModelShow, call: Call) -> models.ModelInfo:
        if request.model != "base":
            raise NotFound(f"no model {request.model!r}")
        return models.ModelInfo(
            name="base",
            family="test",
            format="gguf",
            quantisation="F32",
            parameters=1,
            size_bytes=1,
            context_tokens=4_096,
            state="loaded",
            sha256=self.sha256,
        )

    async def list_adapters(self, request: AdapterList, call: Call) -> Adapters:
        return Adapters(
            adapters=[
                AdapterInfo(
                    model="base",
                    adapter=name.partition(":")[0],
                    version=1,
                    sha256=f"sha of {name}",
                    size_bytes=1,
                    path="",
                    added_at=0.0,
                    alias="champion" if name == self.champion else "",
                )
                for name in self.adapters
                if name
            ]
        )

    async def chat(self, request: models.Chat, call: Call) -> models.Generation:
        if self.errors:
            raise self.errors.pop()
        if self.hold_after is not None and len(self.asked) >= self.hold_after:
            self.held.set()
            await asyncio.Event().wait()
        assert request.adapter is not None
        assert (request.temperature, request.seed, call.headers.get("priority")) == (0.0, 0, "batch")
        assert not is_observed(call.headers)
        self.asked.append(request)
        question = request.messages[-1].content
        if self.refuses(request.adapter, question):
            raise Unprocessable("the prompt is too long")
        return models.Generation(
            model="base",
            text=self.adapters[request.adapter](question),
            token_ids=[],
            finish_reason="stop",
            usage=models.Usage(prompt_tokens=1, completion_tokens=1),
            timings=models.Timings(prompt_s=0.0, generate_s=0.0, first_token_s=0.0, tokens_per_s=1.0),
        )


@dataclass
class FakeRows:
    """Datasets by name, each of one version: held-out questions, and one retention set for all."""

    held: dict[str, list[str]] = field(default_factory=lambda: {"facts": [f"new {number}" for number in range(120)]})
    known: list[str] = field(default_factory=lambda: [f"old {number}" for number in range(620)])
    model_sha256: str = "1" * 64

    async def info(self, dataset: str, version: int | None = None) -> DatasetInfo:
        if dataset not in self.held:
            raise NotFound(f"no dataset {dataset}")
        return DatasetInfo(
            dataset=dataset,
            version=version or 1,
            model="base",
            model_sha256=self.model_sha256,
            sha256="",
            created_at=0.0,
            rows={},
            clusters={},
            kinds={},
            quarantined={},
            opportunities=[],
            metric="auto",
        )

    async def held_out(self, dataset: str, version: int | None = None) -> list[RowInfo]:
        return [row(question, "held_out") for question in self.held[dataset]]

    async def retention(self, dataset: str, version: int | None = None) -> list[RowInfo]:
        return [row(question, "retention") for question in self.known]


def row(question: str, split: str) -> RowInfo:
    """A row whose answer is its question's."""
    values: dict[str, Any] = dict.fromkeys(("prompt", "rejected"), None) | dict.fromkeys(
        ("user", "session_id", "opportunity_id", "reason", "sha256"), ""
    )
    return RowInfo(
        row_id=question.replace(" ", "-"),
        model="base",
        kind="import",
        messages=[models.ChatMessage(role="user", content=question)],
        answer=right(question),
        memory_ids=[],
        evidence=[],
        cluster=question,
        split=split,  # type: ignore[arg-type]
        state="ready",
        created_at=0.0,
        **values,
    )


@dataclass
class Stage:
    """All there is to a test."""

    gate: Gate
    client: Client
    models: FakeModels
    rows: FakeRows
    promoted: list[tuple[str, str, int]]

    async def decide(self, adapter: str, dataset: str = "facts", **changes: Any) -> bodies.GateResult:
        """The verdict on one adapter."""
        async with asyncio.timeout(WAIT_S):
            return await self.gate.decide(Judged(model="base", adapter=adapter, dataset=dataset, **changes))

    async def request(self, subject: str, body: Any) -> Any:
        """One whole reply."""
        return await self.client.request(subject, body, timeout_s=WAIT_S)


@asynccontextmanager
async def staged(serve_broker: Serve) -> AsyncIterator[Stage]:
    """A broker, models, the gate on a worker, and a client."""
    async with serve_broker() as settings:
        models_worker, worker = (Worker(name, settings, capacity=64) for name in ("models", "learning"))
        client, rows, promoted = Client(settings), FakeRows(), list[tuple[str, str, int]]()
        records = Records(settings.path("learning.db"), SCHEMA, "test")

        async def promoted_of(model: str) -> list[tuple[str, str, int]]:
            return promoted

        async def job_of(job_id: str) -> Judged:
            return Judged(
                model="base", dataset="facts", version=1, adapter="" if job_id == "new" else job_id, job_id=job_id
            )

        await records.open()
        try:
            fakes = FakeModels(models_worker)
            gate = Gate(settings, worker.client, records, rows, promoted_of, job_of)
            register(worker, gate)
            await models_worker.start(WAIT_S)
            await worker.start(WAIT_S)
            yield Stage(gate, client, fakes, rows, promoted)
        finally:
            await client.close()
            await worker.stop(0)
            await models_worker.stop(0)
            await records.close()


async def test_a_good_adapter_passes_and_its_verdict_is_kept_shown_and_told(serve_broker: Serve) -> None:
    """By job over the bus: progress comes, an event is published, and the flips can be looked at."""
    async with staged(serve_broker) as stage:
        events: list[Any] = []
        async with stage.client.subscribe("learning.gate.>") as subscription:
            phases: list[bodies.LearningEvaluateProgress] = []
            async with stage.client.stream(
                "learning.evaluate", bodies.LearningEvaluate(job_id="good"), timeout_s=WAIT_S
            ) as parts:
                async for part in parts:
                    phases.append(part)
                result = parts.final
            async with asyncio.timeout(WAIT_S):
                async for event in subscription:
                    events.append(event)
                    break

        assert result.verdict == "passed", result.reasons
        assert (result.adapter, result.against, result.attempt) == ("good:1", "", 1)
        assert result.target.difference == pytest.approx(57 / 120)
        assert (result.target.worse, result.retention.difference) == (0, 0.0)
        assert phases[-1].done == phases[-1].total == 2 * 740
        assert [event.subject for event in events] == ["learning.gate.passed"]
        assert await stage.gate.verdict_of("good") == result
        assert stage.gate.decided == {"passed": 1, "failed": 0}

        shown = await stage.request("learning.gate.show", bodies.GateShow(job_id="good", limit=3))
        assert shown.result == result
        assert (len(shown.items), shown.total) == (3, result.target.better)
        assert all(item.score == 1.0 and item.answer_before == "no idea" for item in shown.items)
        worse = await stage.request("learning.gate.show", bodies.GateShow(job_id="good", only="worse"))
        assert worse.total == 0


@pytest.mark.parametrize(
    ("adapter", "verdict", "said"),
    [
        ("useless", "refused", "the target changed by 0.0 points"),
        ("harmful", "refused", "the retention set fell by 27.4 points"),
    ],
)
async def test_what_is_useless_or_harmful_is_refused(
    serve_broker: Serve, adapter: str, verdict: str, said: str
) -> None:
    """Each with its reason first."""
    async with staged(serve_broker) as stage:
        result = await stage.decide(adapter)

        assert (result.verdict, result.reasons[0][: len(said)]) == (verdict, said)


async def test_too_little_data_is_underpowered_before_and_after(serve_broker: Serve) -> None:
    """The statement before training says so, and the verdict on a perfect adapter too; it spends no attempt."""
    async with staged(serve_broker) as stage:
        stage.rows.held["facts"] = stage.rows.held["facts"][:40]
        before = await stage.request("learning.gate.power", bodies.PowerShow(dataset="facts"))
        result = await stage.decide("good")
        again = await stage.decide("harmful")

        assert not before.is_enough
        assert "40 of 60 held-out items (learning.min_target_items)" in before.words
        assert result.verdict == "underpowered"
        assert again.attempt == 1


async def test_power_is_stated_before_anything_is_trained(serve_broker: Serve) -> None:
    """With enough items it says what gain they show, and each attempt on the set makes it less."""
    async with staged(serve_broker) as stage:
        first = await stage.request("learning.gate.power", bodies.PowerShow(dataset="facts"))
        await stage.decide("useless")
        second = await stage.request("learning.gate.power", bodies.PowerShow(dataset="facts"))

        assert first.is_enough
        assert "120 held-out items about 120 facts show a gain of 13 points with a chance of 80%" in first.words
        assert (first.attempt, second.attempt) == (1, 2)
        assert second.corrected_alpha < first.corrected_alpha
        assert second.power < first.power


async def test_each_adapter_tried_on_a_set_makes_it_harder_for_the_next(serve_broker: Serve) -> None:
    """The same one again is the same attempt, an evaluation only for show is none, another set begins anew."""
    async with staged(serve_broker) as stage:
        stage.rows.held["others"] = [f"new {number}" for number in range(1_000, 1_100)]

        assert (await stage.decide("useless", is_attempt=False, job_id="j")).attempt == 1
        assert await stage.gate.verdict_of("j") is None
        assert (await stage.decide("useless")).attempt == 1
        assert (await stage.decide("harmful")).attempt == 2
        assert (await stage.decide("good", dataset="others")).attempt == 1
        # Half of the items changed: still the same set.
        stage.rows.held["facts"] = stage.rows.held["facts"][60:] + [f"new {number}" for number in range(2_000, 2_060)]
        third = await stage.decide("good")
        assert third.attempt == 3
        assert third.corrected_alpha == pytest.approx(0.05 / 12)
        assert (await stage.decide("useless")).attempt == 1


async def test_adapters_judged_at_the_same_time_are_attempts_one_after_the_other(serve_broker: Serve) -> None:
    """Otherwise any number of useless ones would all be tried at the level of the first."""
    async with staged(serve_broker) as stage:
        for adapter in ("useless", "harmful", "good"):
            await stage.decide(adapter, is_attempt=False)
        # Nothing is left to ask, so that all three come to their verdicts at once.
        results = await asyncio.gather(*map(stage.decide, ("useless", "harmful", "good")))
        assert sorted(one.attempt for one in results) == [1, 2, 3]


async def test_what_is_forgotten_while_it_is_asked_is_not_kept(serve_broker: Serve) -> None:
    """Neither its answers nor its texts among the items; the figures are."""
    async with staged(serve_broker) as stage:
        stage.models.hold_after = 300
        deciding = asyncio.ensure_future(stage.decide("good", job_id="j"))
        async with asyncio.timeout(WAIT_S):
            await stage.models.held.wait()
        deciding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deciding
        forgotten = [row(question, "held_out").row_id for question in stage.rows.held["facts"][:60]]
        await stage.gate.forget_rows(forgotten)
        stage.models.hold_after = None

        await stage.decide("good", job_id="j")

        assert await stage.gate.forget_rows(forgotten[:1]) == 1
        shown = await stage.request("learning.gate.show", bodies.GateShow(job_id="j", only="all", limit=1_000))
        kept = {one.row_id: one for one in shown.items}
        assert {kept[one].question + kept[one].answer + kept[one].reference for one in forgotten} == {""}
        assert 1.0 in {kept[one].score for one in forgotten}


async def test_nothing_is_asked_twice(serve_broker: Serve) -> None:
    """The side that did not change is known; the same verdict again asks nothing, and has the same figures."""
    async with staged(serve_broker) as stage:
        first = await stage.decide("good")
        asked = len(stage.models.asked)
        await stage.decide("useless")
        again = await stage.decide("good")

        assert asked == 2 * 740
        assert len(stage.models.asked) == 3 * 740
        assert again.target == first.target

        # Another content of the model answers anew.
        stage.models.sha256 = stage.rows.model_sha256 = "2" * 64
        await stage.decide("good")
        assert len(stage.models.asked) == 5 * 740


async def test_what_serves_now_is_what_an_adapter_is_compared_with(serve_broker: Serve) -> None:
    """The champion, unless another or the model alone is named."""
    async with staged(serve_broker) as stage:
        stage.models.champion = "good:1"

        same = await stage.decide("good")
        alone = await stage.decide("good", against="")
        harmful = await stage.decide("good", against="harmful:1")

        assert (same.against, same.verdict) == ("good:1", "refused")
        assert (alone.against, alone.verdict) == ("", "passed")
        assert harmful.against == "harmful:1"
        assert harmful.retention is not None
        assert harmful.retention.difference > 0.2


async def test_a_busy_model_is_asked_again(serve_broker: Serve) -> None:
    """Errors that pass do not count."""
    async with staged(serve_broker) as stage:
        stage.models.errors = [Overloaded("busy") for _ in range(5)]

        result = await stage.decide("good")

        assert result.verdict == "passed"
        assert not stage.models.errors


async def test_what_only_the_candidate_cannot_answer_counts_against_it(serve_broker: Serve) -> None:
    """What neither answers, or what only the old one cannot, is left out, and said."""
    async with staged(serve_broker) as stage:
        stage.models.refuses = lambda adapter, question: (
            question == "new 1"
            or (adapter, question)
            in (
                ("good:1", "new 2"),
                ("", "new 3"),
            )
        )

        result = await stage.decide("good")
        shown = await stage.request(
            "learning.gate.show", bodies.GateShow(evaluation_id=result.evaluation_id, only="worse")
        )

        assert result.target is not None
        assert result.target.items == 118
        assert "2 of 120 items of target are left out" in result.reasons[-1]
        assert [(item.row_id, item.answer) for item in shown.items] == [
            ("new-2", "unprocessable: the prompt is too long")
        ]


async def test_a_model_that_answers_nothing_is_given_up(serve_broker: Serve) -> None:
    """Soon, and with its error; nothing is kept of it."""
    async with staged(serve_broker) as stage:
        stage.models.refuses = lambda adapter, question: True

        with pytest.raises(Unprocessable, match=r"base answers nothing \(good:1\).*the prompt is too long"):
            await stage.decide("good", job_id="j")

        assert len(stage.models.asked) < 60
        assert await stage.gate.verdict_of("j") is None


async def test_a_cancelled_evaluation_goes_on_where_it_was(serve_broker: Serve) -> None:
    """Answers that came are kept, a verdict is not; the next try asks the rest."""
    async with staged(serve_broker) as stage:
        stage.models.hold_after = 300
        deciding = asyncio.ensure_future(stage.decide("good", job_id="j"))
        async with asyncio.timeout(WAIT_S):
            await stage.models.held.wait()
        deciding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deciding
        assert await stage.gate.verdict_of("j") is None

        stage.models.hold_after = None
        result = await stage.decide("good", job_id="j")

        assert result.verdict == "passed"
        # An answer on its way when it was cancelled is asked again.
        assert 2 * 740 <= len(stage.models.asked) <= 2 * 740 + 20


async def test_what_earlier_adapters_learned_must_not_be_forgotten(serve_broker: Serve) -> None:
    """Each earlier set is judged by name; one that is gone is said, and one that collapsed refuses."""
    async with staged(serve_broker) as stage:
        stage.rows.held |= {"ports": [f"port {number}" for number in range(80)], "empty": []}
        stage.promoted[:] = [("a", "gone", 1), ("b", "ports", 1), ("c", "empty", 1), ("d", "facts", 1)]
        stage.models.adapters["forgets:1"] = lambda question: "no" if question.startswith("port") else good(question)

        kept = await stage.decide("good")
        forgets = await stage.decide("forgets")

        assert kept.verdict == "passed"
        assert [one.name for one in kept.earlier] == ["ports, version 1"]
        assert kept.backward_transfer == 0.0
        assert kept.reasons[-1] == "what a learned cannot be checked: gone, version 1, is gone"
        assert forgets.verdict == "refused"
        assert "what was learned from ports, version 1 fell by" in forgets.reasons[0]
        assert forgets.backward_transfer is not None
        assert forgets.backward_transfer < -0.5


async def test_the_retention_set_shares_no_question_with_the_target(serve_broker: Serve) -> None:
    """What is both is asked as target alone, and a question that comes twice is asked once."""
    async with staged(serve_broker) as stage:
        stage.rows.known += ["new 5", "old 7"]

        result = await stage.decide("good")

        assert result.retention is not None
        assert (result.retention.items, result.target and result.target.items) == (620, 120)


async def test_forgotten_rows_leave_their_figures_only(serve_broker: Serve) -> None:
    """Question, reference and answers are erased, also among the kept answers."""
    async with staged(serve_broker) as stage:
        result = await stage.decide("good", job_id="j")

        assert await stage.gate.forget_rows(["new-40", "unknown"]) == 3

        shown = await stage.request("learning.gate.show", bodies.GateShow(job_id="j", only="all", limit=1_000))
        (item,) = [one for one in shown.items if one.row_id == "new-40"]
        assert (item.question, item.reference, item.answer, item.answer_before) == ("", "", "", "")
        assert (item.score, item.score_before) == (1.0, 0.0)
        assert shown.result == result
        assert (await stage.decide("good", job_id="j")).target == result.target


@pytest.mark.parametrize(
    ("request_body", "error", "said"),
    [
        ({"job_id": "new"}, Conflict, "job new has no adapter"),
        ({"model": "base", "dataset": "facts"}, BadRequest, "name a job_id, or model, adapter and dataset"),
        ({"model": "nobody", "adapter": "good", "dataset": "facts"}, NotFound, "no model 'nobody'"),
        ({"model": "base", "adapter": "missing", "dataset": "facts"}, NotFound, "base has no adapter 'missing'"),
        ({"model": "base", "adapter": "good:2", "dataset": "facts"}, NotFound, "base has no adapter 'good:2'"),
        ({"model": "base", "adapter": "good", "dataset": "missing"}, NotFound, "no dataset missing"),
        ({"model": "base", "adapter": "good", "dataset": "facts", "against": "x"}, NotFound, "no adapter 'x'"),
    ],
)
async def test_what_is_not_there_is_said(
    serve_broker: Serve, request_body: dict[str, Any], error: type[BusError], said: str
) -> None:
    """Before anything is asked."""
    async with staged(serve_broker) as stage:
        with pytest.raises(error, match=said):
            await stage.request("learning.evaluate", bodies.LearningEvaluate(**request_body))

        assert stage.models.asked == []


async def test_another_base_model_than_the_datasets_is_refused(serve_broker: Serve) -> None:
    """Both contents are named."""
    async with staged(serve_broker) as stage:
        stage.models.sha256 = "2" * 64

        with pytest.raises(Conflict, match="was made for base 111111111111, here is base 222222222222"):
            await stage.decide("good")


@pytest.mark.parametrize("body", [{}, {"job_id": "a", "evaluation_id": "b"}, {"job_id": "unknown"}])
async def test_a_verdict_that_is_not_there_is_said(serve_broker: Serve, body: dict[str, Any]) -> None:
    """Neither and both names are refused, an unknown one is not found."""
    async with staged(serve_broker) as stage:
        with pytest.raises(NotFound if body == {"job_id": "unknown"} else BadRequest):
            await stage.request("learning.gate.show", bodies.GateShow(**body))


async def test_a_broken_retention_suite_is_said(serve_broker: Serve, settings: Settings, tmp_path: Path) -> None:
    """The power statement and the verdict both name its file and line."""
    async with staged(serve_broker) as stage:
        path = tmp_path / "cases.jsonl"
        path.write_text("nonsense")
        learning = msgspec.structs.replace(settings.learning, retention=(f"base={path}",))
        broken = type(stage.gate.suites)(msgspec.structs.replace(settings, learning=learning))
        stage.gate.suites = broken

        with pytest.raises(Unprocessable, match=r"cases\.jsonl, line 1"):
            await stage.decide("good")

        path.write_text(json.dumps({"id": "1", "prompt": "old 9999", "expect": right("old 9999")}))
        power = await stage.request("learning.gate.power", bodies.PowerShow(dataset="facts"))
        assert power.retention_items == 621
