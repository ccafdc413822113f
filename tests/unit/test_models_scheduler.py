"""The model scheduler's decisions, with a fake clock and recorded effects."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.errors import Conflict, DeadlineExceeded, Overloaded, Unprocessable, WorkerLost
from workers.models import scheduler as core


class Bench:
    """A scheduler, a clock, and processes that obey at once unless told otherwise."""

    def __init__(self, **policy: Any) -> None:
        defaults = {"max_loaded": 2, "keep_alive_s": 300.0, "spare_runners": 0, "load_timeout_s": 120.0}
        self.scheduler = core.Scheduler(core.Policy(**{**defaults, **policy}))
        self.now = 1000.0
        self.requests = 0
        self.effects: list[core.Effect] = []

    def send(self, event: core.Event) -> list[core.Effect]:
        effects = self.scheduler.handle(event, self.now)
        self.effects += effects
        return effects

    def ask(self, model: str, **more: Any) -> tuple[int, list[core.Effect]]:
        self.requests += 1
        return self.requests, self.send(core.Arrived(request=self.requests, model=model, **more))

    def load(self, model: str) -> int:
        """Ask for a model and let its runner load it; the request ends at once. Returns the runner."""
        request, effects = self.ask(model)
        runner = one(core.Load, effects).runner
        self.send(core.Loaded(runner))
        self.send(core.Ended(request))
        return runner

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


def test_a_spare_runner_takes_the_model_and_is_replaced_after_the_load() -> None:
    """The warm process is used, and the next one starts only when the load no longer needs the cores."""
    bench = Bench(spare_runners=1)
    spare = one(core.Spawn, bench.send(core.Started())).runner
    _, effects = bench.ask("a")
    assert one(core.Load, effects).runner == spare
    assert of(core.Spawn, effects) == []
    assert len(of(core.Spawn, bench.send(core.Loaded(spare)))) == 1


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
    bench = Bench(keep_alive_s=60.0)
    runner = bench.load("a")
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
    bench = Bench(keep_alive_s=60.0)
    runner = bench.load("a")
    bench.send(core.Busy(runner, 1))
    assert bench.pass_time(600.0) == []
    bench.send(core.Busy(runner, 0))
    assert bench.pass_time(60.0) == [core.Drain(runner)]


def test_a_load_request_can_keep_its_model_for_good() -> None:
    """`keep_alive_s` -1 in model.load means no idle unload."""
    bench = Bench(keep_alive_s=60.0)
    _, effects = bench.ask("a", is_load=True, keep_alive_s=-1.0)
    effects = bench.send(core.Loaded(one(core.Load, effects).runner))
    assert len(of(core.Done, effects)) == 1
    assert bench.scheduler.next_wakeup() is None


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
    assert one(core.Forward, bench.pass_time(core.SUSPECT_S)) == core.Forward(request, runner, core.SUSPECT_S)


def test_three_quick_deaths_quarantine_a_model_until_somebody_loads_it_by_name() -> None:
    """Callers wait through crashes of the load; the third ends it with a clear error, model.load tries once more."""
    bench = Bench()
    request, effects = bench.ask("a")
    for _ in range(core.QUICK_DEATHS):
        effects = bench.send(core.Exited(one(core.Load, effects).runner, "signal 11"))

    refused = one(core.Refuse, effects)
    assert refused.request == request
    assert isinstance(refused.error, Unprocessable)
    assert "signal 11" in refused.error.message
    _, effects = bench.ask("a")
    assert "3 times in a row" in one(core.Refuse, effects).error.message

    _, effects = bench.ask("a", is_load=True)
    effects = bench.send(core.Exited(one(core.Load, effects).runner, "signal 11"))
    assert len(of(core.Refuse, effects)) == 1
    bench.pass_time(core.QUARANTINE_S)
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
    assert bench.pass_time(core.LEAVE_S) == [core.Kill(runner)]


def test_spares_that_cannot_live_are_not_started_for_ever() -> None:
    """After three in a row no more are started ahead of need."""
    bench = Bench(spare_runners=1)
    effects = bench.send(core.Started())
    for _ in range(core.SPARE_FAILURES):
        effects = bench.send(core.Exited(one(core.Spawn, effects).runner, "exit code 1"))
    assert effects == []


class World(RuleBasedStateMachine):
    """Random requests, loads, deaths and times; processes end only when they were told to or die by themselves."""

    models = st.sampled_from(["a", "b", "c", "d"])

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(max_loaded=2, keep_alive_s=30.0, spare_runners=1, load_timeout_s=20.0)
        self.alive: set[int] = set()
        self.holds: dict[int, str] = {}
        self.loading: set[int] = set()
        self.told_to_go: set[int] = set()
        self.busy: dict[int, int] = {}
        self.open: set[int] = set()
        self.unloading: int | None = None
        self.forwarded: dict[int, int] = {}
        self.take(core.Started("a"))

    def take(self, event: core.Event) -> None:
        for effect in self.bench.send(event):
            match effect:
                case core.Spawn(runner):
                    self.alive.add(runner)
                case core.Load(runner, model, _):
                    assert runner in self.alive and runner not in self.holds
                    assert model not in self.holds.values(), "one model in two runners"
                    self.holds[runner] = model
                    self.loading.add(runner)
                case core.Drain(runner):
                    # An explicit unload may drain a model in use; the scheduler's own choices must spare it.
                    if runner != self.unloading:
                        assert not self.busy.get(runner), "drained while answers were in flight"
                        assert runner not in self.forwarded.values(), "drained under a forwarded request"
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

    @rule(model=models, wait=st.sampled_from([None, 1.0, 10.0]), is_load=st.booleans())
    def arrive(self, model: str, wait: float | None, is_load: bool) -> None:
        self.bench.requests += 1
        self.open.add(self.bench.requests)
        deadline = None if wait is None else self.bench.now + wait
        self.take(core.Arrived(request=self.bench.requests, model=model, deadline=deadline, is_load=is_load))

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
        self.bench.requests += 1
        self.open.add(self.bench.requests)
        self.unloading = state[1] if state is not None else None
        self.take(core.UnloadAsked(request=self.bench.requests, model=model, is_forced=is_forced))
        self.unloading = None

    @invariant()
    def never_more_than_max_loaded(self) -> None:
        assert len(self.holds) <= 2

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


World.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWorld = World.TestCase
