"""What a job keeps: its row, its log, its curve, what survives a cancelled or failed writing, and the schedule in force."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.settings import LearningSettings
from schemas.bodies.learning_jobs import CurvePoint, JobInfo, ScheduleSet, TrainingStart
from schemas.errors import BadRequest, Internal
from workers.learning.jobs.book import Book, Kept, thinned
from workers.learning.jobs.live import Live, entry_of
from workers.learning.jobs.run import clear, stop_rules
from workers.learning.jobs.timetable import in_force, merged
from workers.learning.records import learning_records


def job(job_id: str = "j1", **changes: Any) -> Kept:
    given: dict[str, Any] = {
        "job_id": job_id,
        "model": "m",
        "dataset": "d",
        "version": 1,
        "state": "queued",
        "reason": "",
        "priority": 3,
        "created_at": 1.0,
        "started_at": None,
        "finished_at": None,
        "spent_s": 0.0,
        "attempts": 0,
        "rung": 0,
        "device": "",
        "config": {},
        "progress": None,
        "adapter": "",
        "adapter_path": "",
        "verdict": "",
        "opportunities": [],
        "promote": "auto",
    }
    return Kept(info=JobInfo(**{**given, **changes}), request=TrainingStart(dataset="d"), dataset_sha256="s")


def point(step: int, **fields: float) -> CurvePoint:
    return CurvePoint(step=step, at=1.0, loss=fields.get("loss"), eval_loss=fields.get("eval_loss"), learning_rate=None)


@asynccontextmanager
async def kept_in(folder: Path) -> AsyncIterator[Book]:
    records = learning_records(folder / "learning.db")
    await records.open()
    try:
        yield Book(records)
    finally:
        await records.close()


async def nobody(subject: str, body: Any) -> None:
    return None


async def test_jobs_are_found_by_state_model_and_content(tmp_path: Path) -> None:
    """Final jobs are not unfinished; the newest comes first; the same rows are found again."""
    async with kept_in(tmp_path) as book:
        for name, state in (("a", "queued"), ("b", "promoted"), ("c", "evaluating")):
            await book.add(job(name, state=state), entry_of("created", "", {}))

        assert [kept.info.job_id for kept in await book.unfinished()] == ["a", "c"]
        assert [kept.info.job_id for kept in await book.newest()] == ["c", "b", "a"]
        assert [kept.info.job_id for kept in await book.newest(state="promoted")] == ["b"]
        assert await book.newest(model="other") == []
        found = await book.ended_with("m", "s")
        assert found is not None and found.info.job_id == "c"
        assert await book.ended_with("m", "t") is None
        assert await book.get("d") is None


async def test_a_curve_that_goes_on_from_a_checkpoint_has_no_points_of_the_lost_steps(tmp_path: Path) -> None:
    """What was drawn after the checkpoint goes; a step's loss and evaluation are one point."""
    async with kept_in(tmp_path) as book:
        await book.add(job(), entry_of("created", "", {}))
        await book.save(job(), [], [point(step, loss=1.0) for step in range(1, 8)])
        await book.save(job(), [], [point(6, loss=2.0), point(6, eval_loss=3.0)], restart=4)

        curve = await book.curve("j1")
        assert [one.step for one in curve] == [1, 2, 3, 4, 6]
        assert (curve[-1].loss, curve[-1].eval_loss) == (2.0, 3.0)


async def test_a_long_curve_is_thinned_but_keeps_its_ends_and_evaluations(tmp_path: Path) -> None:
    """Ten thousand steps are a few thousand points, the evaluations among them all."""
    async with kept_in(tmp_path) as book:
        await book.add(job(), entry_of("created", "", {}))
        for begin in range(1, 10_001, 500):
            points = [point(step, loss=1.0) for step in range(begin, begin + 500)]
            await book.save(job(), [], [*points, point(begin + 1, eval_loss=0.5)])

        curve = await book.curve("j1")
        assert len(curve) <= 4_000
        assert (curve[0].step, curve[-1].step) == (1, 10_000)
        assert sum(one.eval_loss is not None for one in curve) == 20


def test_a_curve_is_shown_evenly_with_both_ends() -> None:
    """As many points as asked for, never more; 0 and 1 are no special trouble."""
    points = [point(step) for step in range(100)]

    assert [one.step for one in thinned(points, 4)] == [0, 33, 66, 99]
    assert [one.step for one in thinned(points, 1)] == [99]
    assert thinned(points, 0) == []
    assert thinned(points, 200) == points


async def test_a_cancelled_writing_loses_nothing(tmp_path: Path) -> None:
    """The task that wrote is gone; the entry is on disk all the same, once."""
    async with kept_in(tmp_path) as book:
        await book.add(job(), entry_of("created", "", {}))
        live = Live(job(), book, nobody)
        live.say("one", "first")
        writing = asyncio.get_running_loop().create_task(live.save())
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        live.say("two", "second")
        await live.save()

        assert [entry.event for entry in await book.log("j1", 0, 10)] == ["created", "one", "two"]


async def test_what_the_disk_did_not_take_is_written_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk raises, keeps what was to be said in memory, and publishes nothing that is not kept."""
    told: list[str] = []

    async def tell(subject: str, body: Any) -> None:
        told.append(subject)

    async def full(*args: Any) -> None:
        raise Internal("disk full")

    async with kept_in(tmp_path) as book:
        await book.add(job(), entry_of("created", "", {}))
        live = Live(job(), book, tell)
        live.say("one", "first")
        live.announce("learning.training.failed", live.info)
        with monkeypatch.context() as patched:
            patched.setattr(book, "save", full)
            with pytest.raises(Internal):
                await live.save()
        assert told == []
        await live.save()

        assert told == ["learning.training.failed"]
        assert [entry.event for entry in await book.log("j1", 1, 10)] == ["one"]


async def test_the_seconds_of_days_are_kept_for_a_while(tmp_path: Path) -> None:
    """The last sixty days stay."""
    async with kept_in(tmp_path) as book:
        await book.keep_days({f"2026-{month:02}-{day:02}": 1.0 for month in (1, 2, 3) for day in range(1, 29)})
        await book.keep_days({"2026-03-28": 7.0})

        days = await book.days()
        assert len(days) == 60 and days["2026-03-28"] == 7.0 and "2026-01-01" not in days


def test_what_was_set_goes_before_the_settings_until_a_reset() -> None:
    """A field that was never set follows the settings; empty hours and days are values, too."""
    settings = LearningSettings(hours="22:00-06:00", budget_s=100)
    said = merged(ScheduleSet(), ScheduleSet(hours="", is_paused=True))
    said = merged(said, ScheduleSet(budget_s=5, is_paused=False))

    assert in_force(settings, ScheduleSet()).hours == "22:00-06:00"
    force = in_force(settings, said)
    assert (force.hours, force.budget_s, force.is_paused) == ("", 5, False)
    reset = in_force(settings, merged(said, ScheduleSet(is_reset=True, idle_s=9)))
    assert (reset.hours, reset.budget_s, reset.idle_s) == ("22:00-06:00", 100, 9)
    with pytest.raises(BadRequest, match="hours"):
        merged(said, ScheduleSet(hours="24:30-25:00"))


def test_of_a_job_that_is_over_the_adapter_stays(tmp_path: Path) -> None:
    """Rows, checkpoints and what killed processes met at go, and again is no error."""
    for name in ("checkpoints/step-00000001", "meeting-ab12", "adapter"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "train.jsonl").touch()

    clear(tmp_path)
    clear(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("rows", [200, 1_000, 50_000])
def test_a_large_training_sets_a_few_rows_aside(rows: int) -> None:
    """A tenth at most and a hundred at most, looked at twice an epoch; a small one sets none aside."""
    rules = stop_rules(rows, 8)

    assert rules.patience > 0
    assert rows * rules.evaluation_share <= min(rows * 0.1, 100) + 1e-6
    assert rules.evaluate_every_steps == pytest.approx(rows * (1 - rules.evaluation_share) / 16, abs=1)
    assert stop_rules(199, 8).patience == 0
