"""Trainings as a service on a real bus: the parts around a job follow a script, the last test trains the shipped model."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bus.client import Client
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies import learning_jobs as bodies
from schemas.bodies import model as models
from schemas.bodies import resource
from schemas.bodies.learning_data import DatasetInfo
from schemas.bodies.learning_gate import GateResult, PowerStatement
from schemas.bodies.learning_tuning import LearningRate
from schemas.errors import BadRequest, BusError, Conflict, NotFound, NoWorker, QuotaExceeded, Unprocessable
from tests.training_rows import BASE, rows, write_rows
from workers.learning.curation.drafts import TrainFile
from workers.learning.jobs import run as runs
from workers.learning.jobs.handlers import register
from workers.learning.jobs.leasing import Held, Leases, Wanted
from workers.learning.jobs.training import Training
from workers.learning.records import learning_records
from workers.learning.training import messages, spec
from workers.learning.training.training import Ended, Nest
from workers.resources.service import ResourceService

Serve = Callable[..., AbstractAsyncContextManager[Settings]]
WAIT_S = 40.0


class Script:
    """The parts around a job. What they are to answer is set by tests; what they were asked is kept."""

    def __init__(self) -> None:
        self.verdict = "passed"
        self.problem = ""
        self.weights = str(BASE)
        self.sha256 = "a" * 64
        self.groups: list[list[Any]] = []
        self.marks: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.learned: list[Any] = []
        self.is_enough = True
        self.prepare_error: BusError | None = None
        self.gate_hold: asyncio.Event | None = None
        self.promote_hold: asyncio.Event | None = None
        self.in_promotion = asyncio.Event()
        self.in_gate = asyncio.Event()
        self.mark_hold: tuple[str, asyncio.Event] | None = None
        self.in_mark = asyncio.Event()
        self.deployment = "canary"
        self.result: GateResult | None = None

    # curation

    async def info(self, dataset: str, version: int | None = None) -> DatasetInfo:
        if dataset not in ("facts", "learned-olympus-demo", "opp-1"):
            raise NotFound(f"no dataset {dataset}")
        return DatasetInfo(
            dataset=dataset,
            version=version or 1,
            model="olympus-demo",
            model_sha256="a" * 64,
            sha256=str(len(self.groups)) * 64,
            created_at=1.0,
            rows={},
            clusters={},
            kinds={},
            quarantined={},
            opportunities=["opp-1"],
            metric="exact",
        )

    async def build(self, request: Any) -> DatasetInfo:
        self.asked.append("build")
        return await self.info(request.dataset)

    async def check(self, dataset: str, version: int) -> str:
        return self.problem

    async def write_train(self, dataset: str, version: int, path: Path) -> TrainFile:
        await asyncio.to_thread(write_rows, path.parent, rows(12))
        return TrainFile(rows=12, preferences=0, sha256="", size_bytes=1)

    # gate

    async def power(self, request: Any) -> PowerStatement:
        return PowerStatement(
            dataset=request.dataset,
            version=1,
            target_items=9,
            target_clusters=9,
            retention_items=9,
            retention_clusters=9,
            power=0.9,
            detectable_gain=0.1,
            min_gain=0.1,
            attempt=1,
            corrected_alpha=0.05,
            is_enough=self.is_enough,
            words="a gain of 10 points would be seen",
        )

    async def verdict_of(self, job_id: str) -> GateResult | None:
        return self.result

    async def decide(self, judged: Any, *, on_progress: Any = None) -> GateResult:
        self.asked.append("decide")
        self.in_gate.set()
        if self.gate_hold is not None:
            await self.gate_hold.wait()
        self.result = GateResult(
            evaluation_id="e1",
            job_id=judged.job_id,
            model=judged.model,
            model_sha256="",
            adapter=judged.adapter,
            against="",
            dataset=judged.dataset,
            version=judged.version,
            at=1.0,
            verdict=self.verdict,  # type: ignore[arg-type]
            reasons=["because of the figures"],
            target=None,
            retention=None,
            earlier=[],
            backward_transfer=None,
            alpha=0.05,
            corrected_alpha=0.05,
            attempt=1,
            min_gain=0.1,
            power=0.9,
            detectable_gain=0.1,
            metric="exact",
            took_s=0.1,
        )
        return self.result

    # promotion

    async def previous(self, model: str, adapter: str | None) -> None:
        return None

    async def prepare(self, trained: Any) -> Any:
        self.asked.append("prepare")
        if self.prepare_error is not None:
            raise self.prepare_error
        return SimpleNamespace(adapter="facts-0123", words="equal to what was trained")

    async def promote(self, trained: Any) -> Any:
        self.asked.append("promote")
        self.in_promotion.set()
        if self.promote_hold is not None:
            await self.promote_hold.wait()
        return SimpleNamespace(adapter="facts-0123", state=self.deployment, share=0.5, reason="too loud")

    async def discard(self, trained: Any) -> None:
        self.asked.append("discard")

    # tuning

    async def rate(self, request: Any) -> LearningRate:
        return LearningRate(
            model="olympus-demo", learning_rate=1e-3, epochs=2.0, reason="a first try", formula="", evidence=[]
        )

    async def learned_(self, outcome: Any) -> None:
        self.learned.append(outcome)

    async def follow(self, job_id: str, model: str, *, progress: float, metrics: Any) -> None:
        return None

    async def followed(self, job_id: str, status: str) -> None:
        self.asked.append(f"followed {status}")

    # opportunities

    async def get(self, opportunity_id: str) -> Any:
        return SimpleNamespace(opportunity_id=opportunity_id, model="olympus-demo")

    async def together(self, min_examples: int) -> list[list[Any]]:
        return self.groups

    async def mark(self, opportunity_ids: Any, state: str, *, job_id: str, reason: str) -> None:
        self.marks.append((state, reason))
        if self.mark_hold is not None and self.mark_hold[0] == state:
            self.in_mark.set()
            await self.mark_hold[1].wait()

    async def note_cost(self, model: str, examples: int, took_s: float) -> None:
        self.asked.append("note_cost")


class FakeTrainer:
    """Stands for the trainer: six steps, a checkpoint after each, and an end as `ends` says."""

    ends: list[str] = []
    hold: asyncio.Event | None = None
    birth: asyncio.Event | None = None
    specs: list[spec.TrainSpec] = []
    at_step: asyncio.Event

    def __init__(self, nest: Nest | None, on_message: Callable[[Any], None]) -> None:
        self._say = on_message
        self._stopping = asyncio.Event()
        self.pid: int | None = None

    async def run(self, wanted: spec.TrainSpec, folder: Path) -> Ended:
        FakeTrainer.specs.append(wanted)
        if self.birth is not None:
            self.at_step.set()
            await self.birth.wait()
        self.pid = 1
        self._say(
            messages.Planned(
                micro_batch=4,
                accumulation=1,
                processes=1,
                max_length=128,
                activation_checkpointing=False,
                peak_bytes=1,
                budget_bytes=None,
                steps=6,
                from_step=0,
                learning_rate=1e-3,
                trainable_parameters=10,
            )
        )
        for step in range(1, 7):
            self._say(
                messages.Progress(
                    step=step,
                    steps=6,
                    epoch=0.1,
                    loss=2.0 / step,
                    learning_rate=1e-3,
                    grad_norm=1.0,
                    tokens_per_s=10.0,
                    tokens=5,
                    eta_s=1.0,
                    memory_bytes=1,
                    seq_length=8,
                    micro_batch=4,
                    accumulation=1,
                )
            )
            self.at_step.set()
            if step == 3 and self.hold is not None:
                held = asyncio.ensure_future(self.hold.wait())
                stopping = asyncio.ensure_future(self._stopping.wait())
                await asyncio.wait({held, stopping}, return_when=asyncio.FIRST_COMPLETED)
                held.cancel()
                stopping.cancel()
            if self._stopping.is_set():
                return self._ended("stopped", wanted)
        how = FakeTrainer.ends.pop(0) if FakeTrainer.ends else "finished"
        if how != "finished":
            return self._ended(how, wanted)
        (folder / "adapter").mkdir(exist_ok=True)
        done = messages.Finished(
            step=6,
            steps=6,
            why="steps",
            adapter=str(folder / "adapter"),
            sha256="b" * 64,
            base_sha256="c" * 64,
            loss=0.3,
            best_step=None,
            best_loss=None,
            took_s=1.0,
        )
        self._say(done)
        return self._ended("finished", wanted, done)

    def _ended(self, how: Any, wanted: spec.TrainSpec, finished: messages.Finished | None = None) -> Ended:
        kind = {"failed": "loss", "device": "device"}.get(how, "")
        return Ended(
            how="failed" if how == "device" else how,
            reason="because",
            kind=kind,
            finished=finished,
            checkpoint=None,
            exit_status=0,
            spec=wanted,
        )

    def stop(self) -> None:
        self._stopping.set()

    def kill(self) -> None:
        self._stopping.set()


@pytest.fixture
def fake_trainer(monkeypatch: pytest.MonkeyPatch) -> type[FakeTrainer]:
    """Trainings end at once."""
    monkeypatch.setattr(runs, "TrainingRun", FakeTrainer)
    FakeTrainer.ends, FakeTrainer.hold, FakeTrainer.specs, FakeTrainer.at_step = [], None, [], asyncio.Event()
    FakeTrainer.birth = None
    return FakeTrainer


class House:
    """A running service with everything around it."""

    def __init__(self, training: Training, client: Client, script: Script) -> None:
        self.training = training
        self.client = client
        self.script = script

    async def ask(self, verb: str, body: Any) -> Any:
        return await self.client.request(f"learning.{verb}", body, timeout_s=WAIT_S)

    async def start(self, job_id: str = "j1", **fields: Any) -> Any:
        given = {"dataset": "facts", "job_id": job_id, "wait": True, **fields}
        return await self.ask("training.start", bodies.TrainingStart(**given))

    async def status(self, job_id: str = "j1") -> bodies.JobInfo:
        found: bodies.JobInfo = await self.ask("training.status", bodies.TrainingStatus(job_id=job_id))
        return found

    async def until(self, is_so: Callable[[bodies.JobInfo], bool], job_id: str = "j1") -> bodies.JobInfo:
        async with asyncio.timeout(WAIT_S):
            while not is_so(info := await self.status(job_id)):
                await asyncio.sleep(0.02)
        return info


class SharedNest(Nest):
    """Outlives the services of a test, so that its imports are paid once."""

    async def close(self) -> None:
        return None

    async def end(self) -> None:
        await super().close()


@asynccontextmanager
async def house(
    settings: Settings,
    script: Script,
    *,
    lease: Callable[[Any], Awaitable[Any]] | None = None,
    nest: Nest | None = None,
) -> AsyncIterator[House]:
    """The jobs on a worker, with a model service and, where `lease` answers, a resource service."""
    records = learning_records(settings.path("learning.db"))
    await records.open()
    worker = Worker("learning", settings)
    others = Worker("others", settings)

    async def show(request: models.ModelShow, call: Call) -> models.ModelInfo:
        return models.ModelInfo(
            name="olympus-demo",
            family="llama",
            format="gguf",
            quantisation="F16",
            parameters=1,
            size_bytes=1,
            context_tokens=256,
            state="loaded",
            sha256=script.sha256,
            weights=script.weights,
        )

    others.handle("model.show", show)
    if lease is not None:

        async def acquire(request: resource.LeaseAcquire, call: Call) -> Any:
            return await lease(request)

        async def release(request: resource.LeaseRelease, call: Call) -> resource.LeaseReleased:
            script.asked.append("release")
            return resource.LeaseReleased(lease_id=request.lease_id, was_held=True)

        others.handle("resource.lease.acquire", acquire)
        others.handle("resource.lease.release", release)
    await others.start()
    tuner = SimpleNamespace(rate=script.rate, learned=script.learned_, follow=script.follow, followed=script.followed)
    training = Training(
        settings,
        worker.client,
        records,
        curation=script,
        gate=script,
        promotion=script,
        tuning=tuner,
        opportunities=script,
        nest=nest or Nest(),
    )
    register(worker, training)
    await worker.start()
    await training.start()
    try:
        async with Client(settings) as client:
            yield House(training, client, script)
    finally:
        await training.stop(3.0)
        await worker.stop(0.2)
        await others.stop(0.2)
        await records.close()


def cold(settings: Settings, **changes: Any) -> Settings:
    """Without a warm trainer and without waiting for silence."""
    learning = msgspec.structs.replace(settings.learning, warm_s=0.0, idle_s=0.0, **changes)
    return msgspec.structs.replace(settings, learning=learning)


async def test_a_job_goes_from_its_dataset_to_a_promoted_adapter(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """Each phase is in the log, the curve is kept, the events are told, and rows and checkpoints are gone at the end."""
    async with serve_broker() as settings, house(cold(settings), Script()) as home, Client(settings) as listener:
        async with listener.subscribe("learning.training.>") as events:
            info = await home.start()

            assert (info.state, info.verdict, info.adapter) == ("promoted", "passed", "facts-0123")
            assert home.training.tally.ended == {"finished": 1, "failed": 0, "stopped": 0}
            assert (home.training.tally.tokens, home.training.progress()) == (30, None)
            assert info.power == "a gain of 10 points would be seen"
            assert info.config["learning_rate"] == 1e-3 and info.attempts == 1
            shown = await home.ask("training.log", bodies.TrainingLog(job_id="j1", points=3))
            said = [entry.event for entry in shown.entries]
            assert [event for event in said if event in ("created", "planned", "trained", "verdict", "promoted")] == [
                "created",
                "planned",
                "trained",
                "verdict",
                "promoted",
            ]
            assert [entry.number for entry in shown.entries] == list(range(1, len(said) + 1))
            assert [point.step for point in shown.points] == [1, 3, 6]
            assert home.script.marks == [("training", ""), ("learned", info.reason)]
            heard = set()
            async with asyncio.timeout(WAIT_S):
                async for event in events:
                    heard.add(event.subject.rsplit(".", 1)[1])
                    if {"started", "finished", "progress"} <= heard:
                        break
        assert not (settings.path("learning", "jobs", "j1") / "train.jsonl").exists()


async def test_starting_twice_is_one_job_and_another_content_is_refused(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """The same id means the same job, even when both come at once; with other fields it is a conflict."""
    async with serve_broker() as settings, house(cold(settings), Script()) as home:
        both = await asyncio.gather(home.start(), home.start())

        assert both[0].job_id == both[1].job_id == "j1"
        assert len(fake_trainer.specs) == 1
        with pytest.raises(Conflict, match="another one"):
            await home.start(seed=7)
        for wrong in (
            {"dataset": None},
            {"opportunity_id": "opp-1"},
            {"model": "other"},
            {"batch_size": 3, "processes": 2},
        ):
            with pytest.raises(BadRequest):
                await home.start("j2", **wrong)
        with pytest.raises(NotFound):
            await home.start("j2", dataset="unknown")
        with pytest.raises(NotFound):
            await home.status("j2")


async def test_an_opportunity_becomes_a_dataset_first(serve_broker: Serve, fake_trainer: type[FakeTrainer]) -> None:
    """Its rows are frozen under its name before the job is acknowledged."""
    async with serve_broker() as settings, house(cold(settings), Script()) as home:
        info = await home.start(dataset=None, opportunity_id="opp-1")

        assert (info.dataset, info.state) == ("opp-1", "promoted")


async def test_a_refused_adapter_is_discarded_and_its_reason_kept(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """The gate's first reason is the job's; what was opened by evidence is open again; it cannot be resumed."""
    script = Script()
    script.verdict = "refused"
    async with serve_broker() as settings, house(cold(settings), script) as home:
        info = await home.start()

        assert (info.state, info.reason) == ("refused", "because of the figures")
        assert "discard" in script.asked and "promote" not in script.asked
        assert script.marks[-1] == ("open", "because of the figures")
        assert script.learned[0].result.verdict == "refused"
        with pytest.raises(Conflict, match="nothing to resume"):
            await home.ask("training.resume", bodies.TrainingResume(job_id="j1"))


async def test_an_adapter_that_is_not_to_be_promoted_unasked_waits(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """With promote "ask" it stays attached; when somebody promotes it the job says so."""
    async with serve_broker() as settings, house(cold(settings), Script()) as home:
        info = await home.start(promote="ask")
        assert info.state == "passed" and "promote" not in home.script.asked and "discard" not in home.script.asked

        await home.training.promoted("j1")
        assert (await home.status()).state == "promoted"


async def test_a_stopped_job_is_resumed(serve_broker: Serve, fake_trainer: type[FakeTrainer]) -> None:
    """Stopped in mid-training it says why, and resumed it comes to its end."""
    fake_trainer.hold = asyncio.Event()
    async with serve_broker() as settings, house(cold(settings), Script()) as home:
        await home.start(wait=False)
        await fake_trainer.at_step.wait()
        await home.until(lambda info: info.state == "training")
        await home.ask("training.stop", bodies.TrainingStop(job_id="j1", reason="lunch"))
        info = await home.until(lambda info: info.state == "stopped")
        assert info.reason == "lunch" and info.spent_s > 0

        fake_trainer.hold.set()
        await home.ask("training.resume", bodies.TrainingResume(job_id="j1"))
        assert (await home.until(lambda info: info.state == "promoted")).attempts == 2


async def test_what_fails_for_good_says_so_and_what_was_lost_is_tried_again(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """A loss that is no number is a failure, told to tuning; a lost process is waited for, with the reason shown."""
    fake_trainer.ends = ["failed", "lost"]
    async with serve_broker() as settings, house(cold(settings), Script()) as home:
        failed = await home.start()
        assert (failed.state, failed.reason) == ("failed", "because")
        assert home.script.learned[0].failure == "loss"

        await home.start("j2", wait=False)
        lost = await home.until(lambda info: info.state == "queued" and "next try" in info.reason, "j2")
        assert lost.reason.startswith("because; the next try is in")
        await home.ask("training.stop", bodies.TrainingStop(job_id="j2"))
        assert (await home.status("j2")).state == "stopped"


async def test_a_job_is_stopped_while_its_process_is_only_coming_up(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """The warm parent may import for seconds: nobody waits for that to stop what has not begun."""
    fake_trainer.birth = asyncio.Event()
    async with serve_broker() as settings, house(cold(settings), Script()) as home:
        await home.start(wait=False)
        await asyncio.wait_for(fake_trainer.at_step.wait(), WAIT_S)
        await home.ask("training.stop", bodies.TrainingStop(job_id="j1", reason="a mistake"))
        assert (await home.until(lambda info: info.state == "stopped")).reason == "a mistake"


async def test_a_job_that_is_stopped_in_its_last_moment_ends_as_it_did(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """Its run is over and is being written down: there is nothing to halt any more, and nothing breaks."""
    script = Script()
    script.mark_hold = "learned", asyncio.Event()
    async with serve_broker() as settings, house(cold(settings), script) as home:
        await home.start(wait=False)
        await asyncio.wait_for(script.in_mark.wait(), WAIT_S)
        stopping = asyncio.create_task(home.training.stop_training(bodies.TrainingStop(job_id="j1", reason="too late")))
        await asyncio.sleep(0)
        script.mark_hold[1].set()
        await stopping
        await home.until(lambda info: info.state == "promoted")
        assert (await home.start("j2", seed=1)).state == "promoted"


async def test_a_job_whose_asker_goes_away_is_trained_all_the_same(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """Once it is on disk it is scheduled, also where the request is cancelled in the middle."""
    script = Script()
    script.mark_hold = "training", asyncio.Event()
    async with serve_broker() as settings, house(cold(settings), script) as home:

        async def tell(part: Any) -> None:
            raise AssertionError(part)

        request = bodies.TrainingStart(dataset="facts", job_id="j1")
        asking = asyncio.create_task(home.training.start_training(request, b"", tell))
        await asyncio.wait_for(script.in_mark.wait(), WAIT_S)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        script.mark_hold[1].set()
        await home.until(lambda info: info.state == "promoted")


async def test_a_device_that_others_keep_for_long_is_waited_for(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """Its lock will come free some day; a job that waited in vain is not spoilt."""
    fake_trainer.ends = ["device"]
    async with serve_broker() as settings, house(cold(settings), Script()) as home:
        await home.start(wait=False)
        waiting = await home.until(lambda info: info.state == "waiting")
        assert waiting.reason.startswith("because; the next try is in")


async def test_what_was_taken_back_before_its_job_was_written_down_is_not_called_promoted(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """The job says so, and what it was to learn is open again."""
    script = Script()
    script.deployment = "rolled_back"
    async with serve_broker() as settings, house(cold(settings), script) as home:
        info = await home.start()
    assert (info.state, info.reason) == ("passed", "it was promoted and taken back: too loud")
    assert [state for state, _ in script.marks] == ["training", "open"]


async def test_what_the_house_asks_itself_keeps_no_training_waiting(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """The gate's own questions are nobody's; a person's question delays the next training."""
    async with serve_broker() as settings:
        patient = msgspec.structs.replace(
            cold(settings), learning=msgspec.structs.replace(cold(settings).learning, idle_s=300.0)
        )
        async with house(patient, Script()) as home, home.client.subscribe("model.usage") as events:

            async def ask(purpose: str) -> None:
                usage = models.Usage(prompt_tokens=1, completion_tokens=1)
                timings = models.Timings(prompt_s=0.0, generate_s=0.0, first_token_s=0.0, tokens_per_s=0.0)
                event = models.UsageEvent(
                    model="m", operation="chat", usage=usage, timings=timings, finish_reason="stop", purpose=purpose
                )
                await home.client.publish("model.usage", event)
                await asyncio.wait_for(anext(aiter(events)), WAIT_S)

            await ask("learning")
            assert (await home.start()).state == "promoted"
            await ask("")
            async with asyncio.timeout(WAIT_S):
                while (await home.ask("schedule.get", bodies.ScheduleGet())).is_open:
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": ""}, "set weights"),
        ({"sha256": "d" * 64}, "another content"),
        ({"problem": "2 rows were forgotten"}, "2 rows were forgotten"),
        ({"weights": "/nowhere"}, "is no folder"),
        ({"prepare_error": Unprocessable("the logits differ")}, "the logits differ"),
    ],
)
async def test_what_cannot_be_trained_fails_with_what_is_needed(
    serve_broker: Serve, fake_trainer: type[FakeTrainer], changes: dict[str, Any], words: str
) -> None:
    """A base without weights or with another content, forgotten rows, an adapter that does not convert."""
    script = Script()
    for name, value in changes.items():
        setattr(script, name, value)
    async with serve_broker() as settings, house(cold(settings), script) as home:
        info = await home.start()

        assert info.state == "failed" and words in info.reason


async def test_a_service_that_is_away_is_waited_for(serve_broker: Serve, fake_trainer: type[FakeTrainer]) -> None:
    """A trained adapter is not lost because the model service is away just then."""
    script = Script()
    script.prepare_error = NoWorker("nobody serves model.adapter.attach")
    async with serve_broker() as settings, house(cold(settings), script) as home:
        await home.start(wait=False)

        info = await home.until(lambda info: "next try" in info.reason)
        assert info.state == "queued" and "nobody serves" in info.reason


async def test_memory_held_by_others_is_named_and_lost_memory_stops_the_training(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """Refused, the job waits and says who holds it; preempted, it stops at a checkpoint and gives the memory back."""
    leases: list[resource.LeaseAcquire] = []
    is_full = True

    async def lease(request: resource.LeaseAcquire) -> resource.LeaseInfo:
        if is_full:
            raise QuotaExceeded("held by: model (big)", free_bytes=0)
        leases.append(request)
        return granted(request)

    fake_trainer.hold = asyncio.Event()
    async with serve_broker() as settings, house(cold(settings), Script(), lease=lease) as home:
        await home.start(wait=False)
        info = await home.until(lambda info: info.state == "waiting")
        assert "held by: model (big)" in info.reason

        is_full = False
        event = resource.LeaseEvent(lease=granted(resource.LeaseAcquire(service="model", lease_id="x")), reason="")
        await home.client.publish("resource.lease.released", event)
        await home.until(lambda info: info.state == "training")
        assert fake_trainer.specs[0].memory_budget_bytes == leases[0].ram_bytes > 0

        await fake_trainer.at_step.wait()
        wanted = resource.LeaseEvent(lease=granted(leases[0]), reason="", wanted_by="model (7b)")
        await home.client.publish("resource.lease.preempting", wanted)
        info = await home.until(lambda info: info.state == "queued")
        assert info.reason.startswith("model (7b) needs its memory; the next try is in")
        assert "release" in home.script.asked


async def test_the_real_books_of_memory_hold_a_training(serve_broker: Serve) -> None:
    """More than there is becomes what there is; what somebody holds is refused with who; given back it is free again."""
    gib = 1024**3
    async with serve_broker() as settings:
        resources = msgspec.structs.replace(settings.resources, devices=("gpu0=10GiB", "cpu=8GiB"))
        changed = msgspec.structs.replace(settings, resources=resources)
        service = ResourceService(changed)
        await service.start()
        try:
            async with Client(changed) as client:
                leases = Leases(client)
                first = leases.of("first", 0, 3, lambda reason: None)
                got = await first.acquire(Wanted(("gpu0",), gib, 64 * gib, 0))
                assert got is not None and 9 * gib < got <= 10 * gib

                second = leases.of("second", 0, 3, lambda reason: None)
                with pytest.raises(Held, match="training first"):
                    await second.acquire(Wanted(("gpu0",), gib, 2 * gib, 0))
                assert await second.acquire(Wanted(("cpu",), gib, 2 * gib, 0)) == 2 * gib
                await second.release()
                await first.release()
                left: resource.Leases = await client.request("resource.lease.list", resource.LeaseList())
                assert left.leases == []
        finally:
            await service.stop()


def granted(request: resource.LeaseAcquire) -> resource.LeaseInfo:
    return resource.LeaseInfo(
        lease_id=request.lease_id or "",
        service=request.service,
        device="cpu",
        vram_bytes=0,
        ram_bytes=request.ram_bytes,
        priority=3,
        purpose="",
        granted_at=0.0,
        expires_at=0.0,
        is_preemptible=True,
    )


async def test_a_service_that_ended_in_the_gate_asks_the_gate_again(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """Nothing is trained twice: the job goes on where its row on disk is."""
    script = Script()
    script.gate_hold = asyncio.Event()
    async with serve_broker() as settings:
        async with house(cold(settings), script) as home:
            await home.start(wait=False)
            await asyncio.wait_for(script.in_gate.wait(), WAIT_S)
        script.gate_hold.set()
        async with house(cold(settings), script) as home:
            await home.until(lambda info: info.state == "promoted")

    assert len(fake_trainer.specs) == 1
    assert script.asked.count("decide") == 2


@pytest.mark.parametrize("phase", ["training", "evaluating", "promoting"])
async def test_a_service_killed_in_any_phase_goes_on_from_what_is_on_disk(
    serve_broker: Serve, fake_trainer: type[FakeTrainer], tmp_path: Path, phase: str
) -> None:
    """The files as they are in mid-phase are all that a kill leaves; a service on them brings the job to its one end."""
    script, goes_on = Script(), Script()
    holds = {"training": asyncio.Event(), "evaluating": asyncio.Event(), "promoting": asyncio.Event()}
    if phase == "training":
        fake_trainer.hold = holds[phase]
    script.gate_hold = holds[phase] if phase == "evaluating" else None
    script.promote_hold = holds[phase] if phase == "promoting" else None
    async with serve_broker() as settings, house(cold(settings), script) as home:
        await home.start(wait=False)
        reached = {"training": fake_trainer.at_step, "evaluating": script.in_gate, "promoting": script.in_promotion}
        await asyncio.wait_for(reached[phase].wait(), WAIT_S)
        await asyncio.to_thread(shutil.copytree, settings.home_path, tmp_path / "killed")
        holds[phase].set()
        await home.until(lambda info: info.state == "promoted")
    goes_on.result = script.result if phase == "promoting" else None
    fake_trainer.hold = None
    async with serve_broker() as settings:
        moved = msgspec.structs.replace(settings, home=str(tmp_path / "killed"))
        async with house(cold(moved), goes_on) as home:
            info = await home.until(lambda info: info.state == "promoted")
            entries = (await home.ask("training.log", bodies.TrainingLog(job_id="j1"))).entries

    assert f"it was {phase}" in next(entry.message for entry in entries if entry.event == "restarted")
    assert info.attempts == (2 if phase == "training" else 1)
    assert goes_on.asked.count("decide") == (0 if phase == "promoting" else 1)
    assert goes_on.asked.count("promote") == 1


async def test_the_schedule_survives_and_says_what_hinders(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """What was set holds after a restart; a paused job waits with the reason; a reset goes back to the settings."""
    async with serve_broker() as settings:
        async with house(cold(settings), Script()) as home:
            with pytest.raises(BadRequest, match="25:00"):
                await home.ask("schedule.set", bodies.ScheduleSet(hours="25:00-26:00"))
            await home.ask("schedule.set", bodies.ScheduleSet(is_paused=True, budget_s=60, days=["mon"]))
            assert (await home.start(wait=False)).reason == "training is paused"
        async with house(cold(settings), Script()) as home:
            shown = await home.ask("schedule.get", bodies.ScheduleGet())
            assert (shown.is_paused, shown.budget_s, shown.days, shown.queued) == (True, 60, ["mon"], ["j1"])
            assert not shown.is_open and shown.reason == "training is paused"

            shown = await home.ask("schedule.set", bodies.ScheduleSet(is_reset=True))
            assert (shown.is_paused, shown.budget_s, shown.days) == (False, settings.learning.budget_s, [])
            await home.until(lambda info: info.state == "promoted")


async def test_opportunities_are_trained_unasked_but_the_same_rows_only_once(
    serve_broker: Serve, fake_trainer: type[FakeTrainer]
) -> None:
    """What is ready becomes one job; refused, the same data is left alone until there is more; without power none begins."""
    script = Script()
    script.verdict = "refused"
    ready = SimpleNamespace(opportunity_id="opp-1", model="olympus-demo", examples=120, last_seen_at=time.time() + 60)
    script.groups = [[ready]]
    async with serve_broker() as settings, house(cold(settings), script) as home:
        await home.training.look()
        # Somebody is still telling of it.
        assert "build" not in script.asked
        ready.last_seen_at = 0.0
        await home.training.look()
        (job,) = (await home.ask("training.list", bodies.TrainingList())).jobs
        await home.until(lambda info: info.state == "refused", job.job_id)
        async with asyncio.timeout(WAIT_S):
            # The model is busy until the job has left, a moment after it says how it ended.
            while script.asked.count("build") < 2:
                await home.training.look()
                await asyncio.sleep(0.02)
        await home.training.look()
        assert script.asked.count("build") == 2
        assert len((await home.ask("training.list", bodies.TrainingList())).jobs) == 1

        script.is_enough = False
        script.groups.append(
            [SimpleNamespace(opportunity_id="opp-2", model="olympus-demo", examples=130, last_seen_at=0.0)]
        )
        await home.training.look()
        assert len((await home.ask("training.list", bodies.TrainingList())).jobs) == 1


async def test_the_shipped_model_is_stopped_with_the_service_and_goes_on(serve_broker: Serve) -> None:
    """A real trainer seals a checkpoint when the service stops; the next service goes on from it to a whole adapter."""
    pytest.importorskip("trl", reason="training needs the packages of the extra 'learning'")
    script, nest = Script(), SharedNest()
    async with serve_broker() as settings:
        learning = msgspec.structs.replace(settings.learning, idle_s=0.0, save_s=1.0)
        changed = msgspec.structs.replace(settings, learning=learning)
        try:
            await nest.open()
            async with house(changed, script, nest=nest) as home:
                await home.start(wait=False, max_steps=40, batch_size=4, max_length=64)
                await home.until(lambda info: info.progress is not None and info.progress.step >= 3)
            async with house(changed, script, nest=nest) as home:
                (first,) = (await home.ask("checkpoint.list", bodies.CheckpointList(job_id="j1"))).checkpoints[-1:]
                info = await home.until(lambda info: info.state == "promoted")
                shown = await home.ask("training.log", bodies.TrainingLog(job_id="j1"))
        finally:
            await nest.end()
    assert first.step >= 3 and not first.problem
    assert [entry.fields["from_step"] for entry in shown.entries if entry.event == "planned"] == [0, first.step]
    steps = [point.step for point in shown.points]
    assert steps == sorted(set(steps)) and steps[-1] == 40
    assert (Path(info.adapter_path) / "adapter_model.safetensors").is_file()
    assert not list((Path(info.adapter_path).parent).glob("checkpoints/*"))
