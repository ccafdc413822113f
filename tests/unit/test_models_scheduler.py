"""The model scheduler's decisions, with a fake clock and recorded effects."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus.metrics import Figures
from schemas.errors import Conflict, DeadlineExceeded, Overloaded, Unprocessable, Unsupported, WorkerLost
from schemas.metrics import MODEL_LOADS, MODEL_PRELOADS, MODEL_UNLOADS
from workers.models import decisions as core
from workers.models import scheduler
from workers.models.figures import LoadFigures
from workers.models.scheduler import Scheduler


class Books:
    """Who keeps the books of memory: one device with so many bytes, or (None) nobody."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.leases: dict[int, int] = {}
        self.others = 0

    def take(self, effect: core.Effect) -> core.Event | None:
        match effect:
            case core.Reserve(lease=lease, memory_bytes=size):
                if self.total is None:
                    return core.Reserved(lease, "cpu", is_granted=False)
                free = self.total - self.others - sum(self.leases.values())
                if size > free:
                    return core.ReserveRefused(lease, (core.Room("cpu", self.total, max(free, 0), size),), "learning")
                self.leases[lease] = size
                return core.Reserved(lease, "cpu")
            case core.Resize(lease, size, _) if lease in self.leases:
                self.leases[lease] = size
            case core.Release(lease):
                self.leases.pop(lease, None)
        return None


class Bench:
    """A scheduler, a clock, books of memory that answer at once, and processes that obey when the test says so."""

    def __init__(self, *, memory: int | None = None, **policy: Any) -> None:
        defaults = {"max_loaded": 2, "spare_runners": 0, "load_timeout_s": 120.0}
        self.scheduler = Scheduler(core.Policy(**{**defaults, **policy}))
        self.books = Books(memory)
        self.now = 1000.0
        self.requests = 0
        self.effects: list[core.Effect] = []

    def send(self, event: core.Event) -> list[core.Effect]:
        """What the scheduler wants done about an event, and about the answers to what it reserves; without those."""
        wanted: list[core.Effect] = []
        events: list[core.Event] = [event]
        for _ in range(100):
            if not events:
                return wanted
            effects = self.scheduler.handle(events.pop(0), self.now)
            self.effects += effects
            events += [answer for effect in effects if (answer := self.books.take(effect)) is not None]
            wanted += [
                one for one in effects if not isinstance(one, core.Reserve | core.Resize | core.Rank | core.Release)
            ]
        pytest.fail(f"reserves for ever: {self.effects[-6:]}")

    def ask(self, model: str, **more: Any) -> tuple[int, list[core.Effect]]:
        self.requests += 1
        return self.requests, self.send(core.Arrived(request=self.requests, model=model, **more))

    def load(self, model: str, **terms: Any) -> int:
        """Ask for a model and let its runner load it; the request ends at once. Returns the runner."""
        request, effects = self.ask(model, terms=core.Terms(**terms))
        runner: int = one(core.Load, effects).runner
        self.send(core.Loaded(runner))
        self.send(core.Ended(request))
        return runner

    def preload(self, model: str, **terms: Any) -> list[core.Effect]:
        self.requests += 1
        return self.send(core.Preload(request=self.requests, model=model, terms=core.Terms(**terms)))

    def expect(self, *likely: tuple[str, float], horizon_s: float = 60.0, **terms: Any) -> list[core.Effect]:
        held = core.Terms(**terms)
        models = tuple(core.Likely(model=name, probability=p, value=p, terms=held, why="a test") for name, p in likely)
        return self.send(core.Expected(models, horizon_s))

    def pass_time(self, seconds: float) -> list[core.Effect]:
        self.now += seconds
        return self.send(core.Tick())


def of(kind: Any, effects: list[core.Effect]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def one(kind: Any, effects: list[core.Effect]) -> Any:
    found = of(kind, effects)
    assert len(found) == 1, effects
    return found[0]


def test_two_callers_of_an_absent_model_cause_one_load() -> None:
    """The second caller joins the first one's load, and both are handed on when it is done."""
    bench = Bench()
    first, effects = bench.ask("a")
    runner = one(core.Load, effects).runner
    second, effects = bench.ask("a")
    assert effects == []

    bench.now += 2
    effects = bench.send(core.Loaded(runner))

    assert [(f.request, f.runner, f.waited_s) for f in of(core.Forward, effects)] == [
        (first, runner, 2.0),
        (second, runner, 2.0),
    ]
    assert one(core.Announce, effects).what == "loaded"


def test_a_loaded_model_gets_the_request_at_once() -> None:
    """No wait and no second load for a model that is there."""
    bench = Bench()
    runner = bench.load("a")
    request, effects = bench.ask("a")
    assert effects == [core.Forward(request, runner, 0.0)]


def test_a_spare_runner_takes_the_model_and_is_replaced_after_the_first_answer() -> None:
    """The warm process is used; the next one starts when load and first answer no longer need the cores."""
    bench = Bench(spare_runners=1)
    spare = one(core.Spawn, bench.send(core.Started())).runner
    request, effects = bench.ask("a")
    assert one(core.Load, effects).runner == spare
    assert of(core.Spawn, effects) == []
    assert of(core.Spawn, bench.send(core.Loaded(spare))) == []
    assert len(of(core.Spawn, bench.send(core.Ended(request)))) == 1


def test_a_long_first_answer_does_not_hold_off_the_next_spare_runner() -> None:
    """After a moment it is started all the same."""
    bench = Bench(spare_runners=1)
    spare = one(core.Spawn, bench.send(core.Started())).runner
    bench.ask("a")
    bench.send(core.Loaded(spare))
    assert bench.scheduler.next_wakeup() == bench.now + scheduler.SPARE_PAUSE_S
    assert len(of(core.Spawn, bench.pass_time(scheduler.SPARE_PAUSE_S))) == 1


def test_the_default_model_is_loaded_ahead_of_need() -> None:
    """Started with a preload, the load begins without a request."""
    effects = Bench(spare_runners=1).send(core.Started("demo"))
    assert one(core.Load, effects).model == "demo"
    assert "ahead of need" in one(core.Announce, effects).reason


def test_the_least_recently_used_idle_model_makes_room() -> None:
    """With every place taken, the model idle for longest is drained, and its end starts the wanted load."""
    bench = Bench()
    a = bench.load("a")
    bench.now += 1
    bench.load("b")
    bench.now += 1

    _, effects = bench.ask("c")
    assert one(core.Drain, effects).runner == a
    assert of(core.Load, effects) == []

    effects = bench.send(core.Exited(a, "exit code 0"))
    assert one(core.Load, effects).model == "c"
    evicted = next(e for e in of(core.Announce, effects) if e.what == "evicted")
    assert evicted.model == "a"
    assert "make room for c" in evicted.reason


def test_what_becomes_of_models_is_counted_by_why() -> None:
    """Room, idleness, a request and a crash take models out of memory; what fails to load was never there."""
    bench, figures = Bench(max_loaded=1), Figures()
    counted = LoadFigures(figures)

    room = bench.load("a", keep_alive_s=60.0)
    bench.ask("b")
    (loading,) = (effect.runner for effect in bench.send(core.Exited(room, "0")) if isinstance(effect, core.Load))
    bench.send(core.LoadFailed(loading, Unprocessable("no model")))
    bench.send(core.Exited(loading, "9"))
    idle = bench.load("c", keep_alive_s=60.0)
    bench.pass_time(60.0)
    bench.send(core.Exited(idle, "0"))
    asked = bench.load("d")
    bench.send(core.UnloadAsked(request=99, model="d", is_forced=False))
    bench.send(core.Exited(asked, "0"))
    died = bench.load("e")
    bench.send(core.Exited(died, "signal 11"))
    predicted = one(core.Load, bench.expect(("f", 0.9))).runner
    bench.ask("g")
    bench.send(core.Exited(predicted, "9"))
    for effect in bench.effects:
        if isinstance(effect, core.Announce):
            counted.on_announce(effect)

    told = {
        name: {one.labels[0]: one.value for one in series if one.labels} for name, series in figures.series().items()
    }
    assert told[MODEL_UNLOADS.name] == {"room": 1, "idle": 1, "asked": 1, "crash": 1}
    assert told[MODEL_LOADS.name] == {"ok": 4, "failed": 1}
    assert told[MODEL_PRELOADS.name] == {"hit": 0, "wasted": 0, "cancelled": 1}
    # The request for g, whose load has begun.
    assert bench.scheduler.waiting() == 1


def test_a_model_in_use_is_never_evicted_and_the_caller_is_told_who_is() -> None:
    """When all places are in use until the deadline, the caller gets `overloaded` with their names."""
    bench = Bench(max_loaded=1)
    runner = bench.load("a")
    bench.send(core.Busy(runner, 1))
    request, effects = bench.ask("b", deadline=bench.now + 10)
    assert effects == []

    assert bench.pass_time(9.0) == []
    refused = one(core.Refuse, bench.pass_time(0.75))

    assert refused.request == request
    assert isinstance(refused.error, Overloaded)
    assert "in use are a" in refused.error.message
    assert of(core.Drain, bench.effects) == []


def test_a_waiting_model_is_loaded_as_soon_as_a_place_becomes_idle() -> None:
    """The end of the last answer lets the eviction happen without another request."""
    bench = Bench(max_loaded=1)
    runner = bench.load("a")
    request, _ = bench.ask("a")
    bench.ask("b")
    assert one(core.Drain, bench.send(core.Ended(request))).runner == runner


def test_an_idle_model_is_unloaded_after_its_time_and_not_before() -> None:
    """Keep-alive runs from the last use; a request during the drain waits and loads the model again."""
    bench = Bench()
    runner = bench.load("a", keep_alive_s=60.0)
    assert bench.scheduler.next_wakeup() == bench.now + 60.0
    assert bench.pass_time(59.0) == []
    assert bench.pass_time(1.0) == [core.Drain(runner)]

    request, effects = bench.ask("a")
    assert effects == []
    effects = bench.send(core.Exited(runner, "exit code 0"))
    again = one(core.Load, effects).runner
    assert one(core.Forward, bench.send(core.Loaded(again))).request == request


def test_an_answer_in_flight_holds_off_the_idle_unload() -> None:
    """A long answer that went straight to the runner counts as use."""
    bench = Bench()
    runner = bench.load("a", keep_alive_s=60.0)
    bench.send(core.Busy(runner, 1))
    assert bench.pass_time(600.0) == []
    bench.send(core.Busy(runner, 0))
    assert bench.pass_time(60.0) == [core.Drain(runner)]


def test_a_load_request_can_keep_its_model_for_good() -> None:
    """`keep_alive_s` -1 in model.load means no idle unload."""
    bench = Bench()
    _, effects = bench.ask("a", terms=core.Terms(keep_alive_s=60.0), is_load=True, keep_alive_s=-1.0)
    effects = bench.send(core.Loaded(one(core.Load, effects).runner))
    assert len(of(core.Done, effects)) == 1
    assert bench.scheduler.next_wakeup() is None
    state = bench.scheduler.state_of("a")
    assert state is not None and state.keep_alive_s == -1.0


def test_a_load_with_another_context_length_is_a_conflict() -> None:
    """A loaded model is not silently reloaded."""
    bench = Bench()
    bench.load("a")
    _, effects = bench.ask("a", is_load=True, context_tokens=64)
    assert isinstance(one(core.Refuse, effects).error, Conflict)


def test_a_failed_load_refuses_everyone_who_waited_and_ends_the_runner() -> None:
    """The reason reaches every caller, and the process that failed is not used again."""
    bench = Bench()
    bench.ask("a")
    bench.ask("a")
    error = Unprocessable("a cannot be loaded: broken")
    effects = bench.send(core.LoadFailed(1, error))
    assert [refusal.error for refusal in of(core.Refuse, effects)] == [error, error]
    assert one(core.Kill, effects).runner == 1


def test_a_load_that_could_work_otherwise_is_tried_so_for_the_same_requests() -> None:
    """A backend without the GPU it was given loads into main memory instead; nobody is refused."""
    bench = Bench(memory=100)
    request, effects = bench.ask("a", terms=core.Terms(memory_bytes=90, device="gpu0"))
    runner = one(core.Load, effects).runner
    instead = core.Terms(memory_bytes=30, device="cpu")
    effects = bench.send(core.LoadFailed(runner, Unprocessable("no GPU in this build"), instead))
    assert one(core.Kill, effects).runner == runner
    again = one(core.Load, bench.send(core.Exited(runner, "signal 9")))
    assert bench.books.leases == {again.lease: 30}
    assert one(core.Forward, bench.send(core.Loaded(again.runner))).request == request


def test_a_load_that_hangs_is_ended_and_its_callers_told() -> None:
    """The load timeout kills the runner."""
    bench = Bench(load_timeout_s=5.0)
    bench.ask("a", deadline=bench.now + 60)
    effects = bench.pass_time(5.0)
    assert isinstance(one(core.Refuse, effects).error, DeadlineExceeded)
    assert one(core.Kill, effects).runner == 1


def test_a_request_lost_before_its_first_token_is_tried_once_more() -> None:
    """A vanished runner is replaced and the fresh request handed to the new one; the second loss is final."""
    bench = Bench()
    runner = bench.load("a")
    request, _ = bench.ask("a")
    lost = WorkerLost("gone")

    assert bench.send(core.Lost(request, True, lost)) == []
    effects = bench.send(core.Exited(runner, "signal 9"))
    again = one(core.Load, effects).runner
    assert one(core.Forward, bench.send(core.Loaded(again))).request == request
    assert one(core.Refuse, bench.send(core.Lost(request, True, lost))).error is lost


def test_a_request_lost_after_its_first_token_is_refused() -> None:
    """What was streamed cannot be taken back."""
    bench = Bench()
    bench.load("a")
    request, _ = bench.ask("a")
    lost = WorkerLost("gone")
    assert one(core.Refuse, bench.send(core.Lost(request, False, lost))).error is lost


def test_a_suspected_runner_that_lives_on_gets_the_request_again() -> None:
    """A request lost on the bus while the process is well waits a moment, then goes to the same runner."""
    bench = Bench()
    runner = bench.load("a")
    request, _ = bench.ask("a")
    bench.send(core.Lost(request, True, WorkerLost("gone")))
    assert one(core.Forward, bench.pass_time(scheduler.SUSPECT_S)) == core.Forward(request, runner, scheduler.SUSPECT_S)


def test_three_quick_deaths_quarantine_a_model_until_somebody_loads_it_by_name() -> None:
    """Callers wait through crashes of the load; the third ends it with a clear error, model.load tries once more."""
    bench = Bench()
    request, effects = bench.ask("a")
    for _ in range(scheduler.QUICK_DEATHS):
        effects = bench.send(core.Exited(one(core.Load, effects).runner, "signal 11"))

    assert [announced.what for announced in of(core.Announce, effects)] == ["failed"]
    refused = one(core.Refuse, effects)
    assert refused.request == request
    assert isinstance(refused.error, Unprocessable)
    assert "signal 11" in refused.error.message
    _, effects = bench.ask("a")
    assert "3 times in a row" in one(core.Refuse, effects).error.message

    _, effects = bench.ask("a", is_load=True)
    effects = bench.send(core.Exited(one(core.Load, effects).runner, "signal 11"))
    assert len(of(core.Refuse, effects)) == 1
    bench.pass_time(scheduler.QUARANTINE_S)
    _, effects = bench.ask("a")
    assert len(of(core.Load, effects)) == 1


def test_unload_waits_for_the_process_and_force_kills_it() -> None:
    """A plain unload drains; asking again with force ends the process; both are done when it is gone."""
    bench = Bench()
    runner = bench.load("a")
    bench.send(core.Busy(runner, 1))
    assert bench.send(core.UnloadAsked(request=90, model="a")) == [core.Drain(runner)]
    assert bench.send(core.UnloadAsked(request=91, model="a", is_forced=True)) == [core.Kill(runner)]
    bench.now += 3
    effects = bench.send(core.Exited(runner, "signal 9"))
    assert [done.request for done in of(core.Done, effects)] == [90, 91]
    assert one(core.Announce, effects).what == "unloaded"


def test_unloading_what_is_not_loaded_is_done_at_once() -> None:
    """Nothing to do takes no time."""
    assert Bench().send(core.UnloadAsked(request=1, model="a")) == [core.Done(1, 0.0)]


def test_a_drained_runner_that_stays_is_killed() -> None:
    """With nothing in flight it has five seconds to leave."""
    bench = Bench()
    runner = bench.load("a")
    bench.send(core.UnloadAsked(request=90, model="a"))
    assert bench.pass_time(scheduler.LEAVE_S) == [core.Kill(runner)]


def test_spares_that_cannot_live_are_not_started_for_ever() -> None:
    """After three in a row no more are started ahead of need."""
    bench = Bench(spare_runners=1)
    effects = bench.send(core.Started())
    for _ in range(scheduler.SPARE_FAILURES):
        effects = bench.send(core.Exited(one(core.Spawn, effects).runner, "exit code 1"))
    assert effects == []


def test_memory_is_reserved_before_a_load_and_given_back_after_the_end_of_its_process() -> None:
    """Reserve, Load, and Release only when the process is gone; what was measured replaces the estimate."""
    bench = Bench(memory=100)
    request, effects = bench.ask("a", terms=core.Terms(memory_bytes=40))
    load = one(core.Load, effects)
    assert bench.books.leases == {load.lease: 40}

    bench.send(core.Loaded(load.runner, memory_bytes=30))
    bench.send(core.Ended(request))
    assert bench.books.leases == {load.lease: 30}
    bench.send(core.UnloadAsked(request=90, model="a"))
    assert bench.books.leases == {load.lease: 30}
    bench.send(core.Exited(load.runner, "exit code 0"))
    assert bench.books.leases == {}


def test_the_least_important_models_leave_and_only_as_many_as_are_needed() -> None:
    """Priority 5 goes first, whatever was used last; who is not needed for the room stays."""
    bench = Bench(memory=100, max_loaded=9)
    important = bench.load("important", memory_bytes=40, priority=1)
    bench.now += 1
    small = bench.load("small", memory_bytes=10, priority=5)
    bench.now += 1
    large = bench.load("large", memory_bytes=45, priority=4)

    _, effects = bench.ask("new", terms=core.Terms(memory_bytes=50))

    assert [drain.runner for drain in of(core.Drain, effects)] == [large]
    effects = bench.send(core.Exited(large, "exit code 0"))
    assert one(core.Load, effects).model == "new"
    assert {bench.scheduler.state_of(name).runner for name in ("important", "small")} == {important, small}


def test_nothing_is_evicted_when_it_would_not_be_enough() -> None:
    """Somebody else holds the memory: the request waits, is asked for again, and is told both numbers and who it is."""
    bench = Bench(memory=100)
    bench.load("a", memory_bytes=20)
    bench.books.others = 70
    request, effects = bench.ask("b", terms=core.Terms(memory_bytes=60), deadline=bench.now + 10)
    assert effects == []
    assert bench.scheduler.next_wakeup() == bench.now + scheduler.RETRY_S
    assert bench.pass_time(9.0) == []

    refused = one(core.Refuse, bench.pass_time(0.8))
    assert refused.request == request
    assert isinstance(refused.error, Overloaded)
    assert "takes 60 bytes, free are 10 of 100 on cpu (held by learning)" in refused.error.message

    bench.ask("b", terms=core.Terms(memory_bytes=60))
    bench.books.others = 0
    assert one(core.Load, bench.pass_time(scheduler.RETRY_S)).model == "b"
    assert of(core.Drain, bench.effects) == []


def test_a_model_bigger_than_the_device_is_refused_at_once() -> None:
    """No eviction and no waiting could help; both numbers are named."""
    bench = Bench(memory=100)
    bench.load("a", memory_bytes=20)
    _, effects = bench.ask("b", terms=core.Terms(memory_bytes=101))
    error = one(core.Refuse, effects).error
    assert isinstance(error, Unprocessable)
    assert (error.details["needed_bytes"], error.details["limit_bytes"]) == (101, 100)
    assert of(core.Drain, effects) == []


def test_with_memory_for_both_the_new_model_loads_before_the_old_one_is_gone() -> None:
    """A swap between two models that both have their memory does not wait for the end of the first."""
    bench = Bench(memory=100, max_loaded=1)
    a = bench.load("a", memory_bytes=20)
    _, effects = bench.ask("b", terms=core.Terms(memory_bytes=20))
    assert [type(one) for one in effects if isinstance(one, core.Load | core.Drain)] == [core.Load, core.Drain]
    assert one(core.Drain, effects).runner == a


@pytest.mark.parametrize("terms", [{"is_pinned": True}, {"is_swappable": False}])
def test_pinned_and_unswappable_models_are_not_evicted(terms: dict[str, Any]) -> None:
    """The request waits, and is told who is kept."""
    bench = Bench(max_loaded=1)
    bench.load("a", **terms)
    bench.ask("b", deadline=bench.now + 5)
    error = one(core.Refuse, bench.pass_time(4.9)).error
    assert "kept are a" in error.message
    assert of(core.Drain, bench.effects) == []


def test_requests_are_refused_at_once_where_the_policy_says_so() -> None:
    """`when_full` refuse: with nothing that may leave, the caller does not wait."""
    bench = Bench(max_loaded=1, when_full="refuse")
    runner = bench.load("a")
    bench.send(core.Busy(runner, 1))
    _, effects = bench.ask("b")
    assert "in use are a" in one(core.Refuse, effects).error.message

    bench.send(core.Busy(runner, 0))
    _, effects = bench.ask("b")
    assert one(core.Drain, effects).runner == runner


def test_a_pinned_model_is_loaded_and_loaded_again_when_its_runner_dies() -> None:
    """Described as pinned it comes without a request, does not idle out, and comes back after a crash."""
    bench = Bench()
    effects = bench.send(core.Described("a", core.Terms(is_pinned=True, keep_alive_s=1.0, max_idle_s=1.0)))
    runner = one(core.Load, effects).runner
    bench.send(core.Loaded(runner))
    assert bench.pass_time(10_000.0) == []
    effects = bench.send(core.Exited(runner, "signal 9"))
    assert one(core.Load, effects).model == "a"
    assert "pinned" in next(e for e in of(core.Announce, effects) if e.what == "loading").reason


def test_a_pinned_model_that_keeps_dying_is_tried_again_after_its_quarantine() -> None:
    """Three quick deaths stop it for a while, not for ever, and no request is needed."""
    bench = Bench()
    effects = bench.send(core.Described("a", core.Terms(is_pinned=True)))
    for _ in range(scheduler.QUICK_DEATHS):
        effects = bench.send(core.Exited(one(core.Load, effects).runner, "signal 11"))
    assert of(core.Load, effects) == []
    assert bench.scheduler.next_wakeup() == bench.now + scheduler.QUARANTINE_S
    assert one(core.Load, bench.pass_time(scheduler.QUARANTINE_S)).model == "a"


def test_max_idle_time_ends_even_a_model_kept_for_good() -> None:
    """`max_idle_s` goes before a keep-alive of -1."""
    bench = Bench()
    runner = bench.load("a", keep_alive_s=-1.0, max_idle_s=50.0)
    assert bench.pass_time(49.0) == []
    assert bench.pass_time(1.0) == [core.Drain(runner)]


def test_keeping_a_loaded_model_otherwise_takes_hold_at_once() -> None:
    """A new keep-alive goes before the one that model.load gave."""
    bench = Bench()
    _, effects = bench.ask("a", is_load=True, keep_alive_s=-1.0)
    runner = one(core.Load, effects).runner
    bench.send(core.Loaded(runner))
    bench.send(core.Described("a", core.Terms(keep_alive_s=10.0)))
    assert bench.pass_time(10.0) == [core.Drain(runner)]


def test_what_is_pinned_or_used_matters_more_in_the_books_too() -> None:
    """A pin makes a held lease one that is not asked back; the first use of a preload gives it the model's own rank."""
    bench = Bench(memory=100)
    bench.load("a", memory_bytes=10, priority=4)
    lease = one(core.Reserve, bench.effects).lease

    bench.send(core.Described("a", core.Terms(memory_bytes=10, priority=2, is_pinned=True)))

    assert of(core.Rank, bench.effects)[-1] == core.Rank(lease, 2, is_preemptible=False)

    ahead = one(core.Load, bench.preload("b", memory_bytes=10, priority=4)).runner
    reserved = of(core.Reserve, bench.effects)[-1]
    bench.send(core.Loaded(ahead))
    bench.ask("b")

    assert (reserved.priority, reserved.is_preemptible) == (5, True)
    assert of(core.Rank, bench.effects)[-1] == core.Rank(reserved.lease, 4, is_preemptible=True)


def test_a_remote_model_takes_no_memory_and_no_place() -> None:
    """It loads beside a full house, reserves nothing, and is not evicted for others."""
    bench = Bench(memory=100, max_loaded=1)
    bench.load("a", memory_bytes=100)
    bench.load("far", is_remote=True)
    assert len(of(core.Reserve, bench.effects)) == 1
    _, effects = bench.ask("b", terms=core.Terms(memory_bytes=100))
    assert one(core.Drain, effects).runner == bench.scheduler.state_of("a").runner


def test_memory_asked_back_is_given_when_the_model_becomes_idle() -> None:
    """In use it stays; then it leaves, and the reason names who wanted it."""
    bench = Bench(memory=100)
    runner = bench.load("a", memory_bytes=50)
    bench.send(core.Busy(runner, 1))
    lease = next(iter(bench.books.leases))
    assert bench.send(core.AskedBack(lease, "learning")) == []
    assert one(core.Drain, bench.send(core.Busy(runner, 0))).runner == runner
    assert "learning" in one(core.Announce, bench.send(core.Exited(runner, "exit code 0"))).reason


def test_a_preload_takes_free_memory_and_its_use_is_a_hit() -> None:
    """model.preload is answered when the load begins; the first request makes it a hit, once."""
    bench = Bench(memory=100)
    effects = bench.preload("a", memory_bytes=40)
    assert one(core.Done, effects).request == bench.requests
    effects = bench.send(core.Loaded(one(core.Load, effects).runner))
    assert [announce.what for announce in of(core.Announce, effects)] == ["loaded", "preloaded"]
    _, effects = bench.ask("a")
    assert core.Judged("a", True, 0.0) in effects
    _, effects = bench.ask("a")
    assert of(core.Judged, effects) == []


def test_a_preload_without_room_is_refused_with_the_reason() -> None:
    """Nothing waits for memory on its behalf."""
    bench = Bench(memory=100)
    runner = bench.load("a", memory_bytes=80)
    bench.send(core.Busy(runner, 1))
    refused = one(core.Refuse, bench.preload("b", memory_bytes=40))
    assert "free are 20 of 100" in refused.error.message
    assert bench.scheduler.next_wakeup() is None
    assert "it is loaded already" in one(core.Refuse, bench.preload("a", memory_bytes=80)).error.message


def test_a_preload_is_answered_at_once_after_a_load_that_failed() -> None:
    """What keeps predictions away from a model for minutes does not keep a caller of model.preload waiting."""
    bench = Bench(memory=100)
    _, effects = bench.ask("a", terms=core.Terms(memory_bytes=40))
    runner = one(core.Load, effects).runner
    bench.send(core.LoadFailed(runner, Unprocessable("no such window")))
    bench.send(core.Exited(runner, "killed"))
    assert of(core.Load, bench.expect(("a", 0.9), memory_bytes=40)) == []
    effects = bench.preload("a", memory_bytes=40)
    assert one(core.Done, effects).request == bench.requests
    assert one(core.Load, effects).model == "a"


def test_a_likely_model_replaces_an_idle_less_likely_one_and_no_other() -> None:
    """Prediction evicts what is idle and itself less likely to be wanted."""
    bench = Bench(memory=100)
    a = bench.load("a", memory_bytes=80)
    assert bench.expect(("a", 0.9), ("b", 0.8), memory_bytes=80) == []
    effects = bench.expect(("b", 0.8), ("a", 0.3), memory_bytes=80)
    assert one(core.Drain, effects).runner == a
    assert one(core.Load, bench.send(core.Exited(a, "exit code 0"))).model == "b"


def test_an_unlikely_model_is_not_loaded() -> None:
    """Below the threshold a forecast moves nothing, and nothing that others are nearly as likely for is evicted."""
    assert Bench(memory=100).expect(("b", scheduler.WORTH - 0.01), memory_bytes=10) == []


def test_predicted_models_load_one_after_the_other() -> None:
    """A load slows down every other one; the next one begins when the first is there."""
    bench = Bench(memory=100)
    effects = bench.expect(("b", 0.8), ("c", 0.9), memory_bytes=10)
    first = one(core.Load, effects)
    assert first.model == "c"
    assert one(core.Load, bench.send(core.Loaded(first.runner))).model == "b"


def test_what_is_worth_most_now_is_loaded_next_whatever_was_expected_first() -> None:
    """A place in the queue is not kept for a prediction."""
    bench = Bench(memory=100)
    first = one(core.Load, bench.expect(("a", 0.9), ("b", 0.8), ("c", 0.3), memory_bytes=10))
    assert bench.expect(("a", 0.9), ("b", 0.3), ("c", 0.8), memory_bytes=10) == []
    assert one(core.Load, bench.send(core.Loaded(first.runner))).model == "c"


def test_a_predicted_load_is_broken_off_for_a_request_and_tried_again_after_it() -> None:
    """Who waits for another model waits for neither the device nor the memory of a load that nobody asked for."""
    bench = Bench(memory=100)
    ahead = one(core.Load, bench.expect(("b", 0.9), memory_bytes=60)).runner
    _, effects = bench.ask("a", terms=core.Terms(memory_bytes=60))
    assert one(core.Kill, effects).runner == ahead
    effects = bench.send(core.Exited(ahead, "killed"))
    assert one(core.Announce, of(core.Announce, effects)[:1]).reason == "requests wait for another model"
    runner = one(core.Load, effects).runner
    assert of(core.Load, bench.expect(("b", 0.9), memory_bytes=40)) == []
    assert one(core.Load, bench.send(core.Loaded(runner))).model == "b"


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_load_that_somebody_wants_is_not_broken_off(is_asked: bool) -> None:
    """Neither one that model.preload began nor one that a request waits for by now."""
    bench = Bench(memory=100)
    if is_asked:
        bench.preload("b", memory_bytes=30)
    else:
        bench.expect(("b", 0.9), memory_bytes=30)
        bench.ask("b")
    _, effects = bench.ask("a", terms=core.Terms(memory_bytes=30))
    assert of(core.Kill, effects) == []
    assert one(core.Load, effects).model == "a"


def test_among_equally_important_models_the_least_likely_leaves() -> None:
    """What is soon wanted again stays, although it was used longer ago."""
    bench = Bench()
    bench.load("a")
    bench.now += 1
    b = bench.load("b")
    bench.expect(("a", 0.9), ("b", 0.2))
    _, effects = bench.ask("c")
    assert one(core.Drain, effects).runner == b


def test_a_wrong_prediction_is_taken_back_and_counted() -> None:
    """Unused when its time is over, it leaves, and the seconds it lay there are waste."""
    bench = Bench(memory=100)
    effects = bench.expect(("b", 0.9), horizon_s=60.0, memory_bytes=10, keep_alive_s=-1.0)
    runner = one(core.Load, effects).runner
    bench.send(core.Loaded(runner))
    assert bench.pass_time(59.0) == []
    assert bench.pass_time(1.0) == [core.Drain(runner)]
    effects = bench.send(core.Exited(runner, "exit code 0"))
    assert of(core.Judged, effects) == [core.Judged("b", False, 60.0)]


def test_a_predicted_model_outlasts_a_short_keep_alive_until_its_time_is_over() -> None:
    """Otherwise it would leave at once and be loaded again at every look ahead."""
    bench = Bench()
    runner = one(core.Load, bench.expect(("a", 0.9), horizon_s=60.0, keep_alive_s=0.0)).runner
    assert of(core.Drain, bench.send(core.Loaded(runner))) == []
    assert of(core.Drain, bench.pass_time(59.0)) == []
    assert one(core.Drain, bench.pass_time(1.0)).runner == runner


def test_deaths_with_a_life_between_them_are_not_in_a_row() -> None:
    """A model that worked and was unloaded in good order is not held to what it did before."""
    bench = Bench()
    for _ in range(scheduler.QUICK_DEATHS):
        bench.send(core.Exited(bench.load("a", keep_alive_s=10.0), "signal 11"))
        second = bench.load("a", keep_alive_s=10.0)
        assert one(core.Drain, bench.pass_time(10.0)).runner == second
        bench.send(core.Exited(second, "exit code 0"))
    assert len(of(core.Load, bench.ask("a")[1])) == 1


def test_a_request_goes_before_a_prediction() -> None:
    """While somebody waits for memory, nothing is loaded ahead of need."""
    bench = Bench(memory=100)
    bench.books.others = 60
    bench.ask("a", terms=core.Terms(memory_bytes=60))
    assert bench.expect(("b", 0.9), memory_bytes=10) == []
    bench.books.others = 0
    assert one(core.Load, bench.pass_time(scheduler.RETRY_S)).model == "a"


def test_a_load_that_waits_for_the_device_says_for_whom_when_time_is_up() -> None:
    """The deadline error names who holds the device."""
    bench = Bench()
    _, effects = bench.ask("a", deadline=bench.now + 10)
    runner = one(core.Load, effects).runner
    bench.send(core.Waiting(runner, "waits for gpu0, held by pid 7 (tiny: train)"))
    error = one(core.Refuse, bench.pass_time(9.8)).error
    assert isinstance(error, DeadlineExceeded)
    assert "pid 7" in error.message


def test_a_reservation_that_makes_no_sense_is_told_to_who_waits() -> None:
    """A device that does not exist is no reason to wait."""
    bench = Bench(memory=100)
    bench.books.take = lambda effect: (
        core.ReserveFailed(effect.lease, Unprocessable("there is no gpu7"))
        if isinstance(effect, core.Reserve)
        else None
    )
    _, effects = bench.ask("a", terms=core.Terms(device="gpu7"))
    assert "gpu7" in one(core.Refuse, effects).error.message


def test_a_request_whose_memory_nobody_answers_for_is_told_so_in_time() -> None:
    """The books are slow: that is the reason, not a lack of room."""
    bench = Bench()
    bench.books.take = lambda effect: None
    bench.ask("a", deadline=bench.now + 5.0, terms=core.Terms())
    error = one(core.Refuse, bench.pass_time(5.0)).error
    assert isinstance(error, DeadlineExceeded) and "answer about its memory" in error.message


def test_memory_is_reserved_for_the_window_that_will_be_loaded() -> None:
    """A plain request that comes before or after one with a window of its own does not make the reservation smaller."""
    small, large = core.Terms(memory_bytes=30), core.Terms(memory_bytes=90)
    for first_is_plain in (True, False):
        bench = Bench(memory=100)
        bench.books.others = 80
        for is_plain in (first_is_plain, not first_is_plain):
            if is_plain:
                bench.ask("a", terms=small)
            else:
                bench.ask("a", terms=large, is_load=True, context_tokens=32_768)
        bench.books.others = 0
        load = one(core.Load, bench.pass_time(2.0))
        assert load.context_tokens == 32_768
        assert bench.books.leases == {load.lease: 90}


def test_a_wish_that_comes_while_memory_is_asked_for_is_asked_for_instead() -> None:
    """The first reservation is given back, on its way or granted; the load is on the device that was wished."""
    scheduler = Scheduler(core.Policy(max_loaded=2, spare_runners=0, load_timeout_s=120.0))
    first = one(
        core.Reserve,
        scheduler.handle(core.Arrived(request=1, model="a", terms=core.Terms(memory_bytes=30, device="gpu0")), 0.0),
    )
    wish = core.Arrived(
        request=2, model="a", terms=core.Terms(memory_bytes=30, device="gpu1"), is_load=True, device="gpu1"
    )
    effects = scheduler.handle(wish, 1.0)
    second = one(core.Reserve, effects)
    assert (one(core.Release, effects).lease, second.device) == (first.lease, "gpu1")
    assert of(core.Load, scheduler.handle(core.Reserved(first.lease, "gpu0"), 2.0)) == []
    assert one(core.Load, scheduler.handle(core.Reserved(second.lease, "gpu1"), 3.0)).device == "gpu1"


def test_a_window_that_is_not_known_before_the_load_is_judged_after_it() -> None:
    """Who asks during the load for what then turns out to be there is served; another is told both numbers."""
    bench = Bench()
    _, effects = bench.ask("a")
    runner = one(core.Load, effects).runner
    fits, effects = bench.ask("a", is_load=True, context_tokens=4096)
    assert effects == []
    other, _ = bench.ask("a", is_load=True, context_tokens=512)
    effects = bench.send(core.Loaded(runner, context_tokens=4096))
    assert [done.request for done in of(core.Done, effects)] == [fits]
    refusal = one(core.Refuse, effects)
    assert refusal.request == other
    assert "context_tokens 4096 (512 was asked for)" in refusal.error.message


def test_who_asked_for_a_device_by_name_is_not_served_from_elsewhere() -> None:
    """Where the backend cannot use it, the others get the model elsewhere, and this one the backend's reason."""
    bench = Bench()
    bench.books.take = lambda effect: (
        core.Reserved(effect.lease, effect.device) if isinstance(effect, core.Reserve) else None
    )
    first, effects = bench.ask("a", terms=core.Terms(device="gpu0"))
    runner = one(core.Load, effects).runner
    named, _ = bench.ask("a", terms=core.Terms(device="gpu0"), is_load=True, device="gpu0")
    effects = bench.send(core.LoadFailed(runner, Unsupported("no GPU here"), core.Terms(device="cpu")))
    assert (one(core.Refuse, effects).request, one(core.Refuse, effects).error.message) == (named, "no GPU here")
    effects = bench.send(core.Exited(runner, "signal 9"))
    second = one(core.Load, effects).runner
    assert one(core.Forward, bench.send(core.Loaded(second))).request == first

    bench.ask("b", terms=core.Terms(device="gpu0"), is_load=True, device="gpu0")
    effects = bench.send(core.LoadFailed(second + 1, Unsupported("no GPU here"), core.Terms(device="cpu")))
    assert one(core.Refuse, effects).error.message == "no GPU here"
    assert of(core.Load, bench.send(core.Exited(second + 1, "signal 9"))) == []


def test_a_forced_unload_is_not_undone_by_the_requests_it_cut_off() -> None:
    """They are refused with what was lost, also fresh ones, and the model stays out."""
    bench = Bench()
    runner = bench.load("a")
    request, _ = bench.ask("a")
    unload = core.UnloadAsked(request=99, model="a", is_forced=True)
    assert one(core.Kill, bench.send(unload)).runner == runner
    assert one(core.Done, bench.send(core.Exited(runner, "signal 9"))).request == 99
    effects = bench.send(core.Lost(request, True, WorkerLost("gone")))
    assert one(core.Refuse, effects).error.code == "worker_lost"
    assert of(core.Load, effects) == []


def test_a_runner_that_hangs_is_ended_and_its_model_loaded_again() -> None:
    """It loses request after request, its process stays: after a while it is killed. One word of it clears it."""
    bench = Bench()
    runner = bench.load("a")

    def lose() -> list[core.Effect]:
        request, _ = bench.ask("a")
        effects = bench.send(core.Lost(request, False, WorkerLost("silent")))
        bench.pass_time(scheduler.SUSPECT_S)
        return effects

    assert of(core.Kill, lose()) == []
    bench.send(core.Busy(runner, 1))
    bench.send(core.Busy(runner, 0))
    bench.pass_time(scheduler.SILENT_S)
    assert of(core.Kill, lose()) == []
    bench.pass_time(scheduler.SILENT_S)
    assert one(core.Kill, lose()).runner == runner
    _, effects = bench.ask("a")
    assert effects == []
    effects = bench.send(core.Exited(runner, "signal 9"))
    assert any("hangs" in announced.reason for announced in of(core.Announce, effects))
    assert one(core.Load, effects).model == "a"


def test_memory_that_is_not_wanted_back_any_more_is_not_given() -> None:
    """A model in use outlasts the wish of somebody who has given up since."""
    bench = Bench(memory=100)
    runner = bench.load("a", memory_bytes=60, keep_alive_s=-1.0)
    bench.send(core.Busy(runner, 1))
    (lease,) = bench.books.leases
    bench.send(core.AskedBack(lease, "learning"))
    bench.pass_time(scheduler.ASKED_BACK_S)
    assert bench.send(core.Busy(runner, 0)) == []


def test_a_used_up_quota_is_made_room_in_by_whichever_model() -> None:
    """What a model holds beside its device counts for the quota too."""
    bench = Bench()

    def books(effect: core.Effect) -> core.Event | None:
        if not isinstance(effect, core.Reserve):
            return None
        if effect.model == "a" or len(of(core.Release, bench.effects)):
            return core.Reserved(effect.lease, "gpu0")
        return core.ReserveRefused(effect.lease, (core.Room(core.QUOTA, 60, 10, 30),), "model")

    bench.books.take = books
    runner = bench.load("a", memory_bytes=10, beside_bytes=15)
    _, effects = bench.ask("b", terms=core.Terms(memory_bytes=20, beside_bytes=10))
    assert one(core.Drain, effects).runner == runner
    assert one(core.Load, bench.send(core.Exited(runner, "exit code 0"))).model == "b"


def test_only_what_was_measured_is_told_as_measured() -> None:
    """Where nothing measures a model's memory, its reservation stays what it was."""
    bench = Bench(memory=100)
    _, effects = bench.ask("a", terms=core.Terms(memory_bytes=60))
    bench.send(core.Loaded(one(core.Load, effects).runner))
    assert of(core.Resize, bench.effects) == []
    _, effects = bench.ask("b", terms=core.Terms(memory_bytes=20))
    bench.send(core.Loaded(one(core.Load, effects).runner, memory_bytes=25))
    assert [(sized.memory_bytes, sized.beside_bytes) for sized in of(core.Resize, bench.effects)] == [(25, 0)]


def test_thousands_of_swaps_leave_nothing_behind() -> None:
    """One place, many models, deaths among them: state, leases and requests stay as few as they were."""
    bench = Bench(memory=100, max_loaded=1, spare_runners=1)
    bench.send(core.Started())
    for number in range(5_000):
        bench.now += 1.0
        request, effects = bench.ask(f"model-{number}", terms=core.Terms(memory_bytes=60))
        for drain in of(core.Drain, effects):
            effects += bench.send(core.Exited(drain.runner, "exit code 0"))
        runner = one(core.Load, effects).runner
        bench.send(core.Loaded(runner))
        bench.send(core.Ended(request))
        assert len(bench.books.leases) == 1
        bench.effects.clear()
    inner = bench.scheduler
    assert [len(one) for one in (inner._models, inner._requests, inner._runners, inner._holders)] == [1, 0, 1, 1]
    assert (len(inner._wanted), len(inner._spares)) == (0, 1)


MEMORY: dict[str, Any] = {
    "a": {"memory_bytes": 30, "priority": 5},
    "b": {"memory_bytes": 50, "priority": 1},
    "c": {"memory_bytes": 60, "is_swappable": False},
    "d": {"memory_bytes": 20, "max_idle_s": 20.0},
    "e": {"memory_bytes": 120},
}


# Tokens of a large window.
LARGE = 8192


def needed(model: str, context_tokens: int | None) -> int:
    size = int(MEMORY[model]["memory_bytes"])
    return size + size // 2 if context_tokens == LARGE else size


class World(RuleBasedStateMachine):
    """Random requests, loads, deaths and times; processes end only when they were told to or die by themselves."""

    models = st.sampled_from(sorted(MEMORY))
    memory: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(memory=self.memory, max_loaded=2, spare_runners=1, load_timeout_s=20.0)
        self.pinned = "b"
        self.alive: set[int] = set()
        self.holds: dict[int, core.Load] = {}
        self.loading: set[int] = set()
        self.told_to_go: set[int] = set()
        self.busy: dict[int, int] = {}
        self.open: set[int] = set()
        self.unloading: int | None = None
        self.forwarded: dict[int, int] = {}
        self.is_pinned = False
        self.take(core.Started("a", self.terms("a")))

    def terms(self, model: str) -> core.Terms:
        is_pinned = self.is_pinned and model == self.pinned
        return core.Terms(keep_alive_s=30.0, is_pinned=is_pinned, **MEMORY[model])

    def take(self, event: core.Event) -> None:
        for effect in self.bench.send(event):
            match effect:
                case core.Spawn(runner):
                    self.alive.add(runner)
                case core.Load(runner, model):
                    assert runner in self.alive and runner not in self.holds
                    assert model not in [one.model for one in self.holds.values()], "one model in two runners"
                    if self.memory is not None:
                        assert self.bench.books.leases[effect.lease] >= needed(model, effect.context_tokens), (
                            "too little"
                        )
                    self.holds[runner] = effect
                    self.loading.add(runner)
                case core.Drain(runner):
                    self.check_drain(runner)
                    self.told_to_go.add(runner)
                case core.Kill(runner):
                    self.told_to_go.add(runner)
                case core.Forward(request, runner, _):
                    assert runner in self.holds and runner not in self.loading
                    assert runner not in self.told_to_go, "forwarded to a runner that was told to go"
                    assert request in self.open and request not in self.forwarded
                    self.forwarded[request] = runner
                case core.Done(request, _) | core.Refuse(request, _):
                    assert request in self.open, "answered twice"
                    self.open.discard(request)
                    self.forwarded.pop(request, None)
                case core.Announce():
                    assert effect.reason
                    if effect.what == "evicted" and "make room" in effect.reason:
                        assert MEMORY[effect.model].get("is_swappable", True), "evicted what is not swappable"

    def check_drain(self, runner: int) -> None:
        """An explicit unload may drain anything; the scheduler's own choices must spare what is in use or pinned."""
        if runner != self.unloading:
            assert not self.busy.get(runner), "drained while answers were in flight"
            assert runner not in self.forwarded.values(), "drained under a forwarded request"
            assert not self.is_pinned or self.holds[runner].model != self.pinned, "drained a pinned model"

    def new_request(self) -> int:
        self.bench.requests += 1
        self.open.add(self.bench.requests)
        return self.bench.requests

    @rule(model=models, wait=st.sampled_from([None, 1.0, 10.0]), wish=st.sampled_from([None, False, True]))
    def arrive(self, model: str, wait: float | None, wish: bool | None) -> None:
        """A use (None), a load, or a load with a large window, which takes half as much memory again."""
        deadline = None if wait is None else self.bench.now + wait
        terms = self.terms(model)
        if wish:
            terms = msgspec.structs.replace(terms, memory_bytes=needed(model, LARGE))
        self.take(
            core.Arrived(
                request=self.new_request(),
                model=model,
                deadline=deadline,
                is_load=wish is not None,
                context_tokens=LARGE if wish else None,
                terms=terms,
            )
        )

    @precondition(lambda self: self.forwarded)
    @rule(data=st.data(), is_fresh=st.booleans())
    def lose(self, data: st.DataObject, is_fresh: bool) -> None:
        """A request comes back although its runner lives."""
        request = data.draw(st.sampled_from(sorted(self.forwarded)))
        del self.forwarded[request]
        self.take(core.Lost(request, is_fresh, WorkerLost("silent")))

    @rule(model=models)
    def preload(self, model: str) -> None:
        self.take(core.Preload(request=self.new_request(), model=model, terms=self.terms(model)))

    @rule(models=st.lists(models, max_size=3, unique=True), p=st.sampled_from([0.1, 0.6, 0.9]))
    def expect(self, models: list[str], p: float) -> None:
        likely = tuple(core.Likely(model=m, probability=p, value=p, terms=self.terms(m), why="a test") for m in models)
        self.take(core.Expected(likely, 15.0))

    @rule()
    def pin_or_unpin(self) -> None:
        self.is_pinned = not self.is_pinned
        self.take(core.Described(self.pinned, self.terms(self.pinned)))

    @rule(data=st.data())
    def ask_back(self, data: st.DataObject) -> None:
        leases = sorted(self.bench.books.leases)
        if leases:
            self.take(core.AskedBack(data.draw(st.sampled_from(leases)), "learning"))

    @rule(size=st.sampled_from([0, 40, 90]))
    def others_take(self, size: int) -> None:
        self.bench.books.others = size

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        self.open.discard(request)
        self.forwarded.pop(request, None)
        self.take(core.Ended(request))

    @precondition(lambda self: self.loading - self.told_to_go)
    @rule(data=st.data(), works=st.booleans())
    def finish_load(self, data: st.DataObject, works: bool) -> None:
        runner = data.draw(st.sampled_from(sorted(self.loading - self.told_to_go)))
        if works:
            self.loading.discard(runner)
        self.take(core.Loaded(runner) if works else core.LoadFailed(runner, Unprocessable("broken")))

    @precondition(lambda self: self.holds.keys() - self.loading - self.told_to_go)
    @rule(data=st.data(), in_flight=st.integers(0, 2))
    def change_use(self, data: st.DataObject, in_flight: int) -> None:
        runner = data.draw(st.sampled_from(sorted(self.holds.keys() - self.loading - self.told_to_go)))
        self.busy[runner] = in_flight
        self.take(core.Busy(runner, in_flight))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        runner = data.draw(st.sampled_from(sorted(self.told_to_go & self.alive or self.alive)))
        self.alive.discard(runner)
        self.holds.pop(runner, None)
        self.loading.discard(runner)
        self.busy.pop(runner, None)
        victims = [request for request, on in self.forwarded.items() if on == runner]
        for request in victims:
            del self.forwarded[request]
        self.take(core.Exited(runner, "signal 9"))
        for request in victims:
            self.take(core.Lost(request, data.draw(st.booleans()), WorkerLost("gone")))

    @rule(seconds=st.sampled_from([0.5, 5.0, 25.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.bench.now += seconds
        self.take(core.Tick())

    @rule(model=models, is_forced=st.booleans())
    def unload(self, model: str, is_forced: bool) -> None:
        state = self.bench.scheduler.state_of(model)
        self.unloading = state.runner if state is not None else None
        self.take(core.UnloadAsked(request=self.new_request(), model=model, is_forced=is_forced))
        self.unloading = None

    @invariant()
    def never_over_the_memory_nor_the_places(self) -> None:
        if self.memory is None:
            assert len(self.holds) <= 2
        else:
            held = sum(needed(load.model, load.context_tokens) for load in self.holds.values())
            assert held <= self.memory, "more in memory than was granted"
            assert len(self.holds.keys() - self.told_to_go) <= 2

    @invariant()
    def time_is_never_asked_for_in_the_past(self) -> None:
        wakeup = self.bench.scheduler.next_wakeup()
        assert wakeup is None or wakeup > self.bench.now

    def teardown(self) -> None:
        """Every request ends: let all processes go as told, all answers finish, and time pass."""
        for _ in range(12):
            for runner in sorted(self.told_to_go & self.alive):
                self.alive.discard(runner)
                self.holds.pop(runner, None)
                self.loading.discard(runner)
                self.take(core.Exited(runner, "exit code 0"))
            for runner in sorted(self.loading - self.told_to_go):
                self.loading.discard(runner)
                self.take(core.Loaded(runner))
            for request in sorted(self.forwarded):
                del self.forwarded[request]
                self.open.discard(request)
                self.take(core.Ended(request))
            for runner in sorted(self.busy):
                self.busy[runner] = 0
                self.take(core.Busy(runner, 0))
            self.bench.now += 130
            self.take(core.Tick())
        assert not self.open, "requests without an end"
        reserved = {load.lease for load in self.holds.values() if self.memory is not None}
        assert self.bench.books.leases.keys() == reserved, "memory that nobody holds"


class TightWorld(World):
    """The same with books of memory: two of the models fit at once, some pairs do not, one model never does."""

    memory = 100


def test_a_prediction_holds_no_memory_that_a_pinned_model_waits_for() -> None:
    """It waits for the other's load, so the other must not wait for it."""
    world = TightWorld()
    world.pin_or_unpin()
    world.pin_or_unpin()
    for runner in sorted(world.holds):
        world.bench.books.others = 90
        world.alive.discard(runner)
        del world.holds[runner]
        world.loading.discard(runner)
        world.take(core.Exited(runner, "signal 9"))
    world.expect(["a", "c"], 0.1)
    world.bench.books.others = 0
    world.pin_or_unpin()
    world.teardown()
    assert [load.model for load in world.holds.values()] == ["b"]


World.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TightWorld.TestCase.settings = World.TestCase.settings
TestWorld = World.TestCase
TestTightWorld = TightWorld.TestCase
