"""Promotion on a model service that is a fake: what is put to work, taken back, and settled after a kill at each stage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from bus.client import Client
from bus.settings import Settings
from schemas.bodies.learning_gate import Deployment, LearnedAdapters, Promote, Rollback, WatchShow
from schemas.bodies.model import ModelInfo
from schemas.bodies.model_files import AdapterInfo
from schemas.errors import BadRequest, Conflict, Internal, NotFound, NoWorker, Unprocessable
from tests.learning_promotion import MODEL, Job, Others, learning_records, verdict
from workers.learning.promotion.equality import Equality
from workers.learning.promotion.promotion import Promotion
from workers.learning.training.training import Nest


def is_folder(path: str) -> bool:
    return Path(path).is_dir()


class Killed(BaseException):
    """kill -9 of the learning service."""


class FakeServed:
    """A model service with champions, a canary and attached adapters. killed: dies "before VERB" or "after VERB"."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self.attached: dict[str, str] = {}
        self.champions: list[str] = []
        self.canary: tuple[str, float] | None = None
        self.killed = ""
        self.failure: Exception | None = None

    def _may(self, when: str) -> None:
        if self.killed == when:
            self.killed = ""
            raise Killed(when)

    async def model(self, name: str) -> ModelInfo:
        if name not in (MODEL, "alias"):
            raise NotFound(f"no model {name}")
        return ModelInfo(
            name=MODEL,
            family="llama",
            format="gguf",
            quantisation="F16",
            parameters=1,
            size_bytes=1,
            context_tokens=1,
            state="loaded",
            sha256="a" * 64,
        )

    async def adapters(self, model: str) -> list[AdapterInfo]:
        return [self._info(name) for name in self.attached]

    def _info(self, name: str) -> AdapterInfo:
        alias, share = self.attached[name], 0.0
        if self.champions and self.champions[-1] == name:
            alias, share = "champion", 1.0 - (self.canary[1] if self.canary else 0.0)
        if self.canary and self.canary[0] == name:
            alias, share = "canary", self.canary[1]
        return AdapterInfo(
            model=MODEL,
            adapter=name,
            version=1,
            sha256="",
            size_bytes=1,
            path=str(self.files / name),
            added_at=0.0,
            alias=alias,
            is_attached=True,
            share=share,
        )

    async def attach(self, model: str, adapter: str, path: str, note: str, *, is_challenger: bool) -> AdapterInfo:
        self._may("before attach")
        if not is_folder(path):
            raise Unprocessable(f"{path} is no folder")
        self.attached[adapter] = "challenger" if is_challenger else ""
        (self.files / adapter).touch()
        self._may("after attach")
        return self._info(adapter)

    async def detach(self, model: str, adapter: str, *, forget: bool) -> None:
        if adapter not in self.attached:
            raise NotFound(adapter)
        if adapter == (self.canary or ("",))[0] or (forget and adapter in self.champions):
            raise Conflict(adapter)
        del self.attached[adapter]

    async def promote(self, model: str, adapter: str, version: int, share: float, reason: str) -> None:
        self._may("before promote")
        if self.failure is not None:
            raise self.failure
        if share < 1:
            self.canary = adapter, share
        else:
            self.canary = None
            self.champions.append(adapter)
        self._may("after promote")

    async def roll_back(self, model: str, adapter: str, reason: str) -> None:
        self._may("before rollback")
        newest = self.canary[0] if self.canary else (self.champions or [""])[-1]
        if newest != adapter:
            raise Conflict(f"{newest} is the newest")
        if self.canary:
            self.canary = None
        else:
            self.champions.pop()
        self._may("after rollback")


class House:
    """Promotion with everything beside it; a second one on the same home is the service after a restart."""

    def __init__(
        self, settings: Settings, others: Others, served: FakeServed, told: list[tuple[str, Deployment]]
    ) -> None:
        self.settings, self.others, self.served, self.told = settings, others, served, told
        self.records = learning_records(settings)
        self.problem = ""
        self.compared = 0
        self.promotion = Promotion(
            settings,
            Client(settings),
            self.records,
            jobs=others,
            verdicts=others,
            rows=others,
            live=others,
            publish=self.publish,
            nest=Nest(),
        )
        self.promotion._served = served  # type: ignore[assignment]
        self.promotion._preparing._served = served  # type: ignore[assignment]
        self.promotion._preparing.compare = self.compare  # type: ignore[method-assign]

    async def publish(self, subject: str, body: Deployment) -> None:
        self.told.append((subject, body))

    async def compare(self, trained: Any, attached: AdapterInfo, quantised: bool) -> Equality:
        self.compared += 1
        if self.problem:
            raise Unprocessable(self.problem)
        return Equality(
            probes=4, difference=0.001, bare_difference=0.001, change=1.0, tolerance=0.01, problem="", words="equal"
        )

    def job(self, number: int, folder: Path, word: Literal["passed", "refused"] = "passed") -> Job:
        """A trained job with the gate's verdict."""
        path = folder / f"job-{number}"
        path.mkdir(exist_ok=True)
        (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": MODEL}))
        (path / "adapter_model.safetensors").write_bytes(bytes([number]))
        job = Job(job_id=f"job-{number}", adapter_path=str(path))
        self.others.jobs[job.job_id] = job
        self.others.verdicts[job.job_id] = verdict("", word)
        return job

    async def passed(self, number: int, folder: Path) -> Job:
        """A job whose prepared adapter the gate passed."""
        job = self.job(number, folder)
        prepared = await self.promotion.prepare(job)
        self.others.verdicts[job.job_id] = verdict(prepared.adapter)
        return job

    async def states(self) -> list[tuple[str, str]]:
        found = (await self.promotion.adapters(LearnedAdapters())).deployments
        return [(one.job_id, one.state) for one in found]


@pytest.fixture
def house(settings: Settings, tmp_path: Path) -> Any:
    """`async with house() as house:`, with settings of learning changed by keywords."""
    others, told = Others(), []  # type: ignore[var-annotated]
    (tmp_path / "files").mkdir()
    served = FakeServed(tmp_path / "files")

    @asynccontextmanager
    async def opened(**changes: Any) -> AsyncIterator[House]:
        changed = msgspec.structs.replace(settings, learning=msgspec.structs.replace(settings.learning, **changes))
        one = House(changed, others, served, told)
        await one.records.open()
        try:
            yield one
        finally:
            await one.records.close()

    return opened


async def test_an_adapter_is_named_by_its_content_and_prepared_once(house: Any, tmp_path: Path) -> None:
    """A repeated call finds it; other content has another name; a discarded one leaves nothing attached."""
    async with house() as one:
        first = await one.promotion.prepare(one.job(1, tmp_path))
        assert await one.promotion.prepare(one.job(1, tmp_path)) == first
        second = await one.promotion.prepare(one.job(2, tmp_path))
        assert first.adapter.startswith("facts-")
        assert first.adapter != second.adapter
        assert one.compared == 2
        await one.promotion.discard(one.job(1, tmp_path))
        await one.promotion.discard(one.job(1, tmp_path))
        assert list(one.served.attached) == [second.adapter]


async def test_one_that_differs_from_peft_is_detached_and_says_so(house: Any, tmp_path: Path) -> None:
    """So are those of another base, and those without a folder."""
    async with house() as one:
        one.problem = "the two differ by 0.3 nats per token"
        with pytest.raises(Unprocessable, match=r"0\.3 nats"):
            await one.promotion.prepare(one.job(1, tmp_path))
        assert one.served.attached == {}
        other = one.job(2, tmp_path)
        (Path(other.adapter_path) / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
        with pytest.raises(Unprocessable, match=rf"for the base someone/else, but {MODEL} has the base"):
            await one.promotion.prepare(other)
        with pytest.raises(Unprocessable, match=r"content bbbb.* has the base"):
            await one.promotion.prepare(one.job(3, tmp_path)._replace(base_sha256="b" * 64))
        with pytest.raises(Unprocessable, match="has now content aaaa"):
            await one.promotion.prepare(one.job(3, tmp_path)._replace(model_sha256="b" * 64))
        with pytest.raises(NotFound, match="no adapter that PEFT wrote"):
            await one.promotion.prepare(one.job(4, tmp_path)._replace(adapter_path=str(tmp_path)))


async def test_only_what_the_gate_passed_is_promoted_unless_it_is_forced(house: Any, tmp_path: Path) -> None:
    """The refusal says what the gate said; forcing needs a reason, and is written down."""
    async with house() as one:
        one.job(1, tmp_path, "refused")
        with pytest.raises(Conflict, match="says refused: no gain"):
            await one.promotion.promote_job(Promote(job_id="job-1"))
        with pytest.raises(BadRequest, match="reason"):
            await one.promotion.promote_job(Promote(job_id="job-1", is_forced=True))
        forced = await one.promotion.promote_job(Promote(job_id="job-1", is_forced=True, reason="a demonstration"))
        assert (forced.verdict, forced.is_forced, forced.state) == ("refused", True, "canary")
        one.job(2, tmp_path)
        del one.others.verdicts["job-2"]
        with pytest.raises(Conflict, match="has not seen job-2"):
            await one.promotion.promote(one.others.jobs["job-2"])
        one.others.verdicts["job-2"] = verdict("facts-0123456789ab")
        with pytest.raises(Conflict, match="evaluate it again"):
            await one.promotion.promote(one.others.jobs["job-2"])
        assert one.others.told_promoted == ["job-1"]


async def test_a_job_whose_promotion_was_cut_off_is_told_of_it_by_the_next(house: Any, tmp_path: Path) -> None:
    """Killed between the promotion and the job's own row, the second request brings the row up to date."""
    async with house() as one:
        await one.promotion.promote(await one.passed(1, tmp_path))
        await one.promotion.promote_job(Promote(job_id="job-1"))
        assert one.others.told_promoted == ["job-1"]


async def test_promotion_rollback_and_what_served_before(house: Any, tmp_path: Path) -> None:
    """Promoting twice is one promotion; a rollback brings the one before back; earlier ones are told to the gate."""
    async with house(canary_share=1.0) as one:
        for number in (1, 2):
            job = await one.passed(number, tmp_path)
            deployed = await one.promotion.promote(job)
            assert await one.promotion.promote(job) == deployed
        assert await one.states() == [("job-2", "champion"), ("job-1", "retired")]
        assert [earlier.adapter for earlier in await one.promotion.promoted(MODEL)] == one.served.champions
        back = await one.promotion.rollback(Rollback(model="alias", reason="too loud"))
        assert (back.job_id, back.state, back.reason) == ("job-2", "rolled_back", "too loud")
        assert one.others.told_taken_back == [("job-2", f"{back.adapter} was rolled back: too loud")]
        assert await one.states() == [("job-2", "rolled_back"), ("job-1", "champion")]
        assert await one.promotion.serving(MODEL) == one.served.champions[-1] == deployed.previous.split(":")[0]
        assert list(one.served.attached) == one.served.champions
        previous = await one.promotion.previous(MODEL, None)
        assert previous is not None
        assert previous.path == one.others.jobs["job-1"].adapter_path
        with pytest.raises(Conflict, match=r"was taken back \(too loud\)"):
            await one.promotion.promote_job(Promote(job_id="job-2"))
        await one.promotion.rollback(Rollback())
        with pytest.raises(Conflict, match="no learned adapter"):
            await one.promotion.rollback(Rollback())
        assert [subject for subject, _ in one.told] == ["learning.promoted"] * 2 + ["learning.rolled_back"] * 2
        assert (one.promotion.promotions, one.promotion.rollbacks) == (2, 2)


async def test_a_worse_canary_is_taken_back_and_a_good_one_becomes_the_champion(house: Any, tmp_path: Path) -> None:
    """Outcomes decide, with the reason; what the good one replaced is detached."""
    async with house(watch_pairs=20) as one:
        deployed = await one.promotion.promote(await one.passed(1, tmp_path))
        assert (deployed.state, deployed.share, deployed.previous) == ("canary", 0.5, "")
        for _ in range(15):
            one.others.settle("", 1.0)
            one.others.settle(f"{deployed.adapter}:1", 0.0)
        (watched,) = (await one.promotion.watch(WatchShow())).watches
        assert (watched.state, watched.deployment.state) == ("rolled_back", "rolled_back")
        assert "worse than the bare model" in watched.words
        assert watched.evidence >= watched.needed
        assert one.served.canary is None

        good = await one.promotion.promote(await one.passed(2, tmp_path))
        for _ in range(20):
            one.others.settle("", 0.0)
            one.others.settle(f"{good.adapter}:1", 1.0)
        (watched,) = (await one.promotion.watch(WatchShow(model=MODEL))).watches
        assert (watched.state, watched.deployment.state, watched.deployment.share) == ("kept", "champion", 1.0)
        assert (watched.new.mean, watched.pairs, one.served.canary) == (1.0, 20, None)
        assert one.served.champions == [good.adapter]


async def test_a_canary_can_be_kept_for_good_by_hand(house: Any, tmp_path: Path) -> None:
    """All of the conversations ends the watch; asked for nothing else it stays as it is, and another share is refused."""
    async with house() as one:
        canary = await one.promotion.promote(await one.passed(1, tmp_path))
        assert await one.promotion.promote_job(Promote(job_id="job-1")) == canary
        with pytest.raises(Conflict, match=r"answers 0\.5 of the conversations"):
            await one.promotion.promote_job(Promote(job_id="job-1", canary_share=0.9))
        champion = await one.promotion.promote_job(Promote(job_id="job-1", canary_share=1.0, reason="it is fine"))
        assert (champion.deployment_id, champion.state, champion.share) == (canary.deployment_id, "champion", 1.0)
        assert one.served.champions == [canary.adapter]
        assert one.served.canary is None


async def test_outcomes_before_a_restart_count_once(house: Any, tmp_path: Path) -> None:
    """Half of the pairs before, half after."""
    async with house() as one:
        deployed = await one.promotion.promote(await one.passed(1, tmp_path))
        one.others.settle("", 1.0, 1.0, 0.0)
        one.others.settle(f"{deployed.adapter}:1", 1.0)
        await one.promotion.look()
    async with house() as one:
        await one.promotion.look()
        one.others.settle(f"{deployed.adapter}:1", 1.0, 1.0)
        (watched,) = (await one.promotion.watch(WatchShow())).watches
        assert (watched.pairs, watched.old.outcomes, watched.new.outcomes) == (3, 3, 3)
        assert watched.new.mean == 1.0
        assert watched.old.mean == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "when", ["after attach", "before promote", "after promote", "before rollback", "after rollback"]
)
async def test_a_kill_at_each_stage_leaves_what_serves_and_what_is_written_alike(
    house: Any, tmp_path: Path, when: str
) -> None:
    """After the restart it is told once, and the same call again does what it should have done."""
    async with house() as one:
        one.served.killed = when
        with pytest.raises(Killed):
            job = await one.passed(1, tmp_path)
            await one.promotion.promote(job)
            await one.promotion.rollback(Rollback(reason="too loud"))
    async with house() as one:
        await one.promotion.reconcile()
        serving = "canary" if one.served.canary else ""
        expected = {"after promote": "canary", "before rollback": "rolled_back", "after rollback": "rolled_back"}
        assert await one.states() == ([("job-1", expected[when])] if when in expected else [])
        assert (serving == "canary") == (when == "after promote")
        told = [subject.rpartition(".")[2] for subject, _ in one.told]
        assert told == {"after promote": ["promoted"]}.get(
            when, ["promoted", "rolled_back"] if "rollback" in when else []
        )
        if "rollback" not in when:
            deployed = await one.promotion.promote(await one.passed(1, tmp_path))
            assert one.served.canary == (deployed.adapter, 0.5)
            assert await one.states() == [("job-1", "canary")]


async def test_an_answer_that_did_not_come_is_settled_by_what_serves(house: Any, tmp_path: Path) -> None:
    """A refusal leaves no deployment; a lost answer leaves one to settle, and the next call finds out."""
    async with house() as one:
        job = await one.passed(1, tmp_path)
        one.served.failure = Unprocessable("does not fit")
        with pytest.raises(Unprocessable):
            await one.promotion.promote(job)
        assert await one.states() == []
        one.served.failure = Internal("lost")
        with pytest.raises(Internal):
            await one.promotion.promote(job)
        one.served.failure = None
        deployed = await one.promotion.promote(job)
        assert await one.states() == [("job-1", "canary")]
        assert deployed.state == "canary"


async def test_events_that_nobody_took_are_told_later(house: Any, tmp_path: Path) -> None:
    """Once each."""
    async with house() as one:

        async def gone(subject: str, body: Deployment) -> None:
            raise NoWorker("no broker")

        one.promotion._publish = gone
        await one.promotion.promote(await one.passed(1, tmp_path))
        assert one.told == []
        one.promotion._publish = one.publish
        await one.promotion.reconcile()
        await one.promotion.reconcile()
        assert [subject for subject, _ in one.told] == ["learning.promoted"]


async def test_what_is_done_by_hand_is_written_down(house: Any, tmp_path: Path) -> None:
    """A canary made champion, an adapter taken back, one put in its place, and one whose file was deleted."""
    async with house() as one:
        first = await one.promotion.promote(await one.passed(1, tmp_path))
        await one.served.promote(MODEL, first.adapter, 1, 1.0, "")
        await one.promotion.reconcile()
        assert await one.states() == [("job-1", "champion")]

        second = await one.promotion.promote(await one.passed(2, tmp_path))
        await one.served.roll_back(MODEL, second.adapter, "")
        await one.promotion.reconcile()
        assert await one.states() == [("job-2", "rolled_back"), ("job-1", "champion")]

        (one.served.files / first.adapter).unlink()
        await one.promotion.reconcile()
        assert (one.served.files / first.adapter).exists()

        one.served.attached["tone"] = ""
        await one.served.promote(MODEL, "tone", 1, 1.0, "")
        (one.served.files / "tone").touch()
        await one.promotion.reconcile()
        (last,) = [
            found for found in (await one.promotion.adapters(LearnedAdapters())).deployments if found.job_id == "job-1"
        ]
        assert (last.state, last.reason) == ("retired", "tone:1 was put in its place by hand")


async def test_a_file_that_cannot_be_replaced_takes_its_adapter_out_of_service(house: Any, tmp_path: Path) -> None:
    """A model that cannot be loaded any more would be worse."""
    async with house() as one:
        job = await one.passed(1, tmp_path)
        deployed = await one.promotion.promote(job)
        (one.served.files / deployed.adapter).unlink()
        (tmp_path / "job-1").rename(tmp_path / "moved")
        await one.promotion.reconcile()
        (last,) = (await one.promotion.adapters(LearnedAdapters())).deployments
        assert last.state == "rolled_back"
        assert "its file was deleted" in last.reason
        assert one.served.canary is None


async def test_without_a_canary_the_outcomes_before_are_the_control(house: Any, tmp_path: Path) -> None:
    """Share 1: everything at once, and still taken back when it is worse."""
    async with house(canary_share=1.0) as one:
        one.others.settle("", *[1.0] * 30)
        deployed = await one.promotion.promote(await one.passed(1, tmp_path))
        one.others.settle(f"{deployed.adapter}:1", *[0.0] * 15)
        await one.promotion.look()
        assert await one.states() == [("job-1", "rolled_back")]
        assert one.served.champions == []


async def test_a_new_canary_takes_the_place_of_the_one_before(house: Any, tmp_path: Path) -> None:
    """Two jobs at once: one after the other, and never two canaries."""
    async with house() as one:
        jobs = [await one.passed(1, tmp_path), await one.passed(2, tmp_path)]
        first, second = await asyncio.gather(*map(one.promotion.promote, jobs))
        assert one.served.canary == (second.adapter, 0.5)
        assert await one.states() == [("job-2", "canary"), ("job-1", "retired")]
        back = await one.promotion.rollback(Rollback())
        assert back.adapter == second.adapter
        assert await one.states() == [("job-2", "rolled_back"), ("job-1", "retired")]
        assert first.adapter not in one.served.attached
