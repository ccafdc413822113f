"""Which training runs when: the rules one by one, and random lives of the core."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus.hours import parse_hours
from workers.learning.jobs.decisions import (
    GATE,
    Asked,
    AskedBack,
    Began,
    Changed,
    Effect,
    Ended,
    Event,
    Finish,
    Freed,
    Halt,
    Instant,
    Job,
    Policy,
    Queue,
    Run,
    Submitted,
    Tick,
    Withdrawn,
)
from workers.learning.jobs.scheduler import AGE_S, BUSY_S, FAILURES, Scheduler
from workers.learning.jobs.windows import Windows, local_day

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 3, 28, 12, tzinfo=BERLIN).timestamp()
OPEN = Policy(zone=BERLIN)


class Life:
    """A core with a clock that a test sets."""

    def __init__(self, policy: Policy = OPEN, wall: float = NOON) -> None:
        self.core = Scheduler(policy, {})
        self.at = Instant(wall, 1_000.0)

    def tell(self, event: Event, after_s: float = 0.0) -> list[Effect]:
        self.at = Instant(self.at.wall + after_s, self.at.steady + after_s)
        return self.core.handle(event, self.at)

    def submit(self, name: str = "a", **fields: Any) -> list[Effect]:
        given = {"priority": 3, "created_at": self.at.wall, **fields}
        return self.tell(Submitted(Job(job_id=name, **given)))

    def reason(self, name: str = "a") -> str:
        return self.core.reason(name, self.at)


def test_an_open_schedule_runs_a_job_at_once() -> None:
    """Nothing hinders it: it runs on the first device, without a reason."""
    life = Life()

    assert life.submit() == [Run("a", ("cpu",))]
    assert life.reason() == ""


def test_jobs_run_by_priority_and_then_by_age() -> None:
    """While one runs, the others queue up in order, and each says who is before it."""
    life = Life()
    life.submit("first")
    life.submit("old", priority=3, created_at=NOON - 10)
    life.submit("new", priority=3)
    life.submit("important", priority=1)

    assert life.core.queued(life.at) == ["important", "old", "new"]
    assert life.reason("new") == "job first has cpu"
    assert life.tell(Ended("first", "done")) == [Run("important", ("cpu",))]


def test_waiting_makes_a_job_more_important() -> None:
    """A job of the lowest priority goes before a new one of the highest after four levels of waiting."""
    life = Life()
    life.submit("runs")
    life.submit("low", priority=5, created_at=NOON - 4 * AGE_S - 1)
    life.submit("high", priority=1)

    assert life.tell(Ended("runs", "done")) == [Run("low", ("cpu",))]


def test_outside_its_hours_a_job_waits_and_says_until_when() -> None:
    """The reason names the next opening; at the opening the job runs; at the end of the hours it is halted."""
    life = Life(Policy(windows=Windows(parse_hours("22:00-06:00")), zone=BERLIN))

    assert life.submit() == []
    assert "2026-03-28 22:00" in life.reason()
    assert life.tell(Tick(), after_s=10 * 3_600) == [Run("a", ("cpu",))]
    # This night the clocks go forward: it has an hour less.
    assert life.tell(Tick(), after_s=7 * 3_600 - 1) == []
    (halt,) = life.tell(Tick(), after_s=1)
    assert isinstance(halt, Halt) and "outside the hours" in halt.reason
    (queue,) = life.tell(Ended("a", "stopped"), after_s=1)
    assert queue == Queue("a", "queued", halt.reason, 0)


def test_a_job_that_is_urgent_minds_neither_hours_nor_people() -> None:
    """It runs outside the hours, right after a request, and through a busy minute; the pause and the budget hold for it."""
    policy = Policy(windows=Windows(parse_hours("22:00-06:00")), idle_s=30, budget_s=100, zone=BERLIN)
    life = Life(policy)
    life.tell(Asked())

    assert life.submit(is_now=True) == [Run("a", ("cpu",))]
    for _ in range(8):
        assert life.tell(Asked(), after_s=10) == []
    life.tell(Began("a"))
    assert [type(effect) for effect in life.tell(Tick(), after_s=100)] == [Halt]


def test_a_request_to_a_model_delays_the_start() -> None:
    """Only after the seconds of silence it begins."""
    life = Life(msgspec.structs.replace(OPEN, idle_s=30))
    life.tell(Asked())

    assert life.submit() == []
    assert "a model was asked" in life.reason()
    assert life.tell(Tick(), after_s=29) == []
    assert life.tell(Tick(), after_s=1) == [Run("a", ("cpu",))]


def test_a_single_request_does_not_stop_a_training_but_a_busy_minute_does() -> None:
    """It yields once models were asked for BUSY_S without an idle moment, and goes on when they are silent again."""
    life = Life(msgspec.structs.replace(OPEN, idle_s=30))
    life.submit()
    life.tell(Began("a"))

    assert life.tell(Asked()) == []
    for _ in range(int(BUSY_S // 20) - 1):
        assert life.tell(Asked(), after_s=20) == []
    (halt,) = life.tell(Asked(), after_s=20)
    assert halt == Halt("a", "models have been in use for 60 s")
    life.tell(Ended("a", "stopped", has_progress=True), after_s=1)
    assert life.reason().startswith("models have been in use for 60 s; a model was asked")
    assert life.tell(Tick(), after_s=29) == [Run("a", ("cpu",))]


def test_memory_that_is_asked_back_stops_the_training_for_a_while() -> None:
    """The job halts with who wants it, waits so that they can take it, and tries again."""
    life = Life()
    life.submit()

    assert life.tell(AskedBack("a", "model needs the memory")) == [Halt("a", "model needs the memory")]
    life.tell(Ended("a", "stopped"))
    assert life.tell(Tick(), after_s=9) == []
    assert life.reason().startswith("model needs the memory; the next try is in 1 s")
    assert life.tell(Tick(), after_s=1) == [Run("a", ("cpu",))]


def test_refused_memory_is_tried_again_when_somebody_gives_some_back() -> None:
    """The state is waiting, with who holds it; a release is a reason to try at once."""
    life = Life()
    life.submit()

    assert life.tell(Ended("a", "refused", "held by model")) == [Queue("a", "waiting", "held by model", 0)]
    assert life.tell(Freed()) == [Run("a", ("cpu",))]


def test_a_job_without_memory_lets_smaller_ones_pass_and_is_first_when_they_end() -> None:
    """A refusal frees the device for the next in line; its end is the refused one's next chance."""
    life = Life()
    life.submit("big", priority=1)
    life.submit("small")

    assert Run("small", ("cpu",)) in life.tell(Ended("big", "refused", "held"))
    assert life.tell(Ended("small", "done"), after_s=1) == [Run("big", ("cpu",))]


@pytest.mark.parametrize("how", ["memory", "lost"])
def test_three_tries_in_a_row_without_progress_are_a_failure(how: Any) -> None:
    """Each try waits longer; one that saved a checkpoint begins the count anew."""
    life = Life()
    life.submit()
    life.tell(Ended("a", how, "out"))
    life.tell(Tick(), after_s=3_600)
    life.tell(Ended("a", how, "out", has_progress=True))
    for count in range(2, FAILURES):
        life.tell(Tick(), after_s=3_600)
        assert life.tell(Ended("a", how, "out")) == [Queue("a", "queued", "out", count)]
    life.tell(Tick(), after_s=3_600)

    assert life.tell(Ended("a", how, "out")) == [Finish("a", "failed", "out (3 tries in a row)")]


def test_a_job_that_used_up_its_own_seconds_stops_for_good() -> None:
    """Its own budget ends it; the day's budget only lets it wait."""
    life = Life()
    life.submit(budget_left_s=50)
    life.tell(Began("a"))

    (halt,) = life.tell(Tick(), after_s=50)
    assert isinstance(halt, Halt)
    assert life.tell(Ended("a", "stopped")) == [Finish("a", "stopped", halt.reason)]


def test_a_job_that_comes_back_without_a_second_left_does_not_run() -> None:
    """Killed between its last second and its end, it is stopped when the service is back."""
    life = Life()

    assert life.submit(budget_left_s=0.0) == [Finish("a", "stopped", "it has trained as long as it may")]
    assert life.submit("b", budget_left_s=-1.0, is_trained=True) == [Run("b", (GATE,))]


def test_the_budget_begins_anew_with_the_local_day() -> None:
    """Used up in the evening, the job goes on after midnight."""
    life = Life(Policy(budget_s=3_600, zone=BERLIN))
    life.submit()
    life.tell(Began("a"))
    life.tell(Tick(), after_s=3_600)
    life.tell(Ended("a", "stopped"), after_s=2)

    assert life.core.spent_s(life.at) == 3_602
    assert "today's 3600 s of training are used up" in life.reason()
    midnight = datetime(2026, 3, 29, tzinfo=BERLIN).timestamp()
    assert life.core.closed(life.at).opens_at == midnight
    assert life.tell(Tick(), after_s=midnight - life.at.wall) == [Run("a", ("cpu",))]
    assert life.core.spent_s(life.at) == 0


def test_a_trained_job_is_evaluated_beside_the_next_training() -> None:
    """What follows a training needs neither hours nor the device."""
    life = Life(Policy(windows=Windows(parse_hours("12:00-13:00")), zone=BERLIN))
    life.submit("a")
    life.submit("b")

    assert set(life.tell(Ended("a", "trained"))) == {Queue("a", "queued", "", 0), Run("a", (GATE,)), Run("b", ("cpu",))}
    assert [effect for effect in life.tell(Tick(), after_s=3_600) if isinstance(effect, Halt)] == [
        Halt("b", life.core.closed(life.at).reason)
    ]


def test_two_gpus_have_two_jobs_and_one_over_both_waits_for_both() -> None:
    """A job of two processes takes two devices in a row, or none."""
    life = Life(msgspec.structs.replace(OPEN, devices=("gpu0", "gpu1")))
    life.submit("a")
    life.submit("wide", device="gpu0", processes=2)

    assert life.submit("b") == [Run("b", ("gpu1",))]
    assert life.tell(Ended("a", "done")) == []
    assert life.reason("wide") == "job b has gpu1"
    assert life.tell(Ended("b", "done")) == [Run("wide", ("gpu0", "gpu1"))]


def test_before_the_devices_are_known_only_jobs_that_name_one_begin() -> None:
    """A machine with GPUs that were not found yet does not train on its CPU by mistake."""
    life = Life(msgspec.structs.replace(OPEN, devices=()))

    assert life.submit("a") == []
    assert "not known yet" in life.reason("a")
    assert life.submit("b", device="gpu0") == [Run("b", ("gpu0",))]
    assert life.tell(Changed(msgspec.structs.replace(OPEN, devices=("gpu0", "gpu1")))) == [Run("a", ("gpu1",))]


def test_a_stop_wins_over_the_end_of_the_training() -> None:
    """Withdrawn while its last step ran, it is stopped, not evaluated."""
    life = Life()
    life.submit()

    assert life.tell(Withdrawn("a", "changed my mind")) == [Halt("a", "changed my mind")]
    assert life.tell(Ended("a", "trained")) == [Finish("a", "stopped", "changed my mind")]


def test_libraries_are_worth_holding_only_while_a_training_is_near() -> None:
    """A job that waits for the night does not hold them; one that waits for silence does."""
    life = Life(Policy(windows=Windows(parse_hours("22:00-06:00")), idle_s=30, zone=BERLIN))
    life.submit()
    assert not life.core.is_near(life.at)

    life.tell(Changed(msgspec.structs.replace(OPEN, idle_s=30)))
    assert life.core.is_near(life.at)


SAVE_S = 60.0
TICK_S = 5.0
ENDS = ("trained", "done", "stopped", "refused", "memory", "lost", "away", "failed")
POLICIES = (
    OPEN,
    Policy(windows=Windows(parse_hours("22:00-06:00,12:00-13:00")), zone=BERLIN),
    Policy(windows=Windows(parse_hours("02:30-03:30"), frozenset({"sun"})), idle_s=10, zone=BERLIN),
    Policy(budget_s=120, zone=BERLIN),
    Policy(budget_s=30, idle_s=30, devices=("gpu0", "gpu1"), zone=BERLIN),
    Policy(is_paused=True, zone=BERLIN),
    Policy(devices=(), zone=BERLIN),
)


class SchedulerLife(RuleBasedStateMachine):
    """Jobs come, are stopped and resumed, end in every way; models are asked, schedules change, time passes, services die."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = OPEN
        self.at = Instant(NOON, 0.0)
        self.core = Scheduler(self.policy, {})
        self.jobs: dict[str, Job] = {}
        self.running: dict[str, tuple[str, ...]] = {}
        self.halting: dict[str, float] = {}
        self.training: set[str] = set()
        self.finished: dict[str, str] = {}
        self.spent: dict[str, float] = {}
        self.began_over: list[str] = []
        self.number = 0

    def tell(self, event: Event, after_s: float = 0.0) -> None:
        for _ in self.training:
            day = local_day(self.at.wall + after_s, BERLIN)
            self.spent[day] = self.spent.get(day, 0.0) + after_s
        self.at = Instant(self.at.wall + after_s, self.at.steady + after_s)
        if isinstance(event, Ended):
            self.running.pop(event.job_id)
            self.halting.pop(event.job_id, None)
            self.training.discard(event.job_id)
            if event.how == "done":
                self.finish(event.job_id, "done")
            elif event.how == "trained":
                self.jobs[event.job_id] = msgspec.structs.replace(self.jobs[event.job_id], is_trained=True)
        for effect in self.core.handle(event, self.at):
            self.carry_out(effect)

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case Run(name, devices):
                assert name in self.jobs and name not in self.running and name not in self.finished
                assert devices, "no device"
                self.running[name] = devices
                if devices != (GATE,):
                    assert not self.policy.is_paused
                    assert not self.policy.budget_s or self.core.spent_s(self.at) < self.policy.budget_s
            case Halt(name, reason):
                assert name in self.running and name not in self.halting and reason
                self.halting[name] = self.at.steady
            case Queue(name, _, _, failures):
                assert name not in self.running
                self.jobs[name] = msgspec.structs.replace(self.jobs[name], failures=failures)
            case Finish(name, state, reason):
                assert reason
                self.finish(name, state)

    def finish(self, name: str, state: str) -> None:
        assert name not in self.finished and name not in self.running
        self.finished[name] = state

    def settle(self, seconds: float) -> None:
        """Everything trains, time passes in ticks; whoever was told to stop has a checkpoint within SAVE_S."""
        for name in [name for name, devices in self.running.items() if devices != (GATE,)]:
            self.training.add(name)
            self.tell(Began(name))
        while seconds > 0:
            step = min(TICK_S, seconds)
            self.tell(Tick(), step)
            seconds -= step
            for name in [name for name, since in self.halting.items() if self.at.steady - since >= SAVE_S - TICK_S]:
                self.tell(Ended(name, "stopped", has_progress=True))

    @rule(
        priority=st.integers(1, 5),
        device=st.sampled_from(["", "", "cpu", "gpu0", "gpu1"]),
        processes=st.integers(1, 2),
        is_now=st.booleans(),
        budget=st.sampled_from([None, None, 40.0]),
    )
    def submit(self, priority: int, device: str, processes: int, is_now: bool, budget: float | None) -> None:
        self.number += 1
        name = f"job-{self.number}"
        self.jobs[name] = Job(
            job_id=name,
            priority=priority,
            created_at=self.at.wall,
            device=device,
            processes=processes,
            is_now=is_now,
            budget_left_s=budget,
        )
        self.tell(Submitted(self.jobs[name]))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def submit_twice(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.jobs)))
        if name not in self.finished:
            self.tell(Submitted(self.jobs[name]))

    @precondition(lambda self: any(state != "done" for state in self.finished.values()))
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, state in self.finished.items() if state != "done")))
        del self.finished[name]
        self.jobs[name] = msgspec.structs.replace(self.jobs[name], failures=0)
        self.tell(Submitted(self.jobs[name], "resumed"))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self.tell(Withdrawn(data.draw(st.sampled_from(sorted(self.jobs))), "enough"))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(ENDS), has_progress=st.booleans())
    def end(self, data: st.DataObject, how: Any, has_progress: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        if how == "trained" and self.running[name] == (GATE,):
            how = "done"
        if how == "done" and self.running[name] != (GATE,):
            how = "trained"
        self.tell(Ended(name, how, "because", has_progress))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        if self.running[name] != (GATE,):
            self.training.add(name)
            self.tell(Began(name))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ask_back(self, data: st.DataObject) -> None:
        self.tell(AskedBack(data.draw(st.sampled_from(sorted(self.running))), "somebody needs it"))

    @rule(event=st.sampled_from([Asked(), Freed(), Tick()]))
    def happen(self, event: Event) -> None:
        self.tell(event)

    @rule(policy=st.sampled_from(POLICIES))
    def change(self, policy: Policy) -> None:
        self.policy = policy
        self.tell(Changed(policy))

    @rule(seconds=st.sampled_from([1.0, 30.0, 200.0, 600.0]))
    def pass_time(self, seconds: float) -> None:
        self.settle(seconds)

    @rule()
    def sleep_for_hours(self) -> None:
        """Everything ends, and much later the clock ticks again."""
        for name in list(self.running):
            self.tell(Ended(name, "stopped"))
            if name in self.running:
                self.tell(Ended(name, "stopped"))
        if not self.running:
            self.tell(Tick(), 5 * 3_600.0)

    @rule()
    def restart(self) -> None:
        """The service dies: what was not finished is submitted anew, as its rows on disk say."""
        self.running, self.halting, self.training = {}, {}, set()
        self.core = Scheduler(self.policy, self.spent)
        for name, job in self.jobs.items():
            if name not in self.finished:
                self.tell(Submitted(job, "the service was started anew"))

    @invariant()
    def no_device_has_two_jobs(self) -> None:
        taken = [device for devices in self.running.values() for device in devices]
        assert len(taken) == len(set(taken))

    @invariant()
    def every_job_runs_waits_with_a_reason_or_is_finished(self) -> None:
        queued = self.core.queued(self.at)
        assert sorted([*queued, *self.running, *self.finished]) == sorted(self.jobs)
        assert set(self.core.running()) == set(self.running)
        for name in queued:
            assert self.core.reason(name, self.at), name

    @invariant()
    def the_budget_is_kept_but_for_a_checkpoint(self) -> None:
        assert self.core.spent_s(self.at) == pytest.approx(self.spent.get(local_day(self.at.wall, BERLIN), 0.0))
        for name, since in self.halting.items():
            assert self.at.steady - since <= SAVE_S, name
        budget = self.policy.budget_s
        if budget and self.core.spent_s(self.at) >= budget:
            assert all(name in self.halting for name in self.training)

    def teardown(self) -> None:
        """From wherever it came: with an open schedule, and others coming for ever, each job gets its turn."""
        self.change(OPEN)
        old = [name for name in self.jobs if name not in self.finished]
        for _ in range(60 + 3 * len(old)):
            self.submit(1, "", 1, False, None)
            self.settle(0.2 * AGE_S / 10)
            for name in list(self.running):
                if name in self.running:
                    how: Any = "done" if self.running[name] == (GATE,) else "trained"
                    self.tell(Ended(name, how))
            self.tell(Tick(), AGE_S / 4 if not self.training else 0.0)
        assert all(name in self.finished for name in old)


SchedulerLife.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
test_no_history_breaks_the_rules = SchedulerLife.TestCase
