"""Which model is in memory: a pure core, `handle(event, now) -> effects`, that knows no socket, process, clock or disk.

Times are seconds of one steady clock, chosen by the caller. A runner is a process; the core names it by a number.

    model      absent --> LOADING --> LOADED --> DRAINING --> absent
                  ^          |           |                      ^
                  +----------+-----------+---- its process ended

What always holds, whatever the events:
- At most `max_loaded` processes hold a model. A draining one counts until it has really ended.
- A model in use (answers in flight, or handed to its runner a moment ago) is never evicted, nor unloaded for idling.
- Two requests for one absent model cause one load.
- Every request gets exactly one of Forward, Done and Refuse, unless its caller ended it first; a Forward may be
  followed by another, or by a Refuse, after Lost.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

import msgspec

from schemas.errors import BusError, Conflict, DeadlineExceeded, Overloaded, Unprocessable

# A runner that dies within this many seconds of being told its model died quickly; so many of those in a row and the
# model is not loaded for so long, unless `model.load` asks for one more try.
QUICK_DEATH_S: Final = 60.0
QUICK_DEATHS: Final = 3
QUARANTINE_S: Final = 300.0

# A draining runner with nothing in flight is gone at once; one that is still there after this many seconds hangs.
LEAVE_S: Final = 5.0

# When a request comes back from a vanished runner, the news of the process's end is due within this many seconds.
SUSPECT_S: Final = 1.0

# Times a request is handed to a runner before it is given up.
ATTEMPTS: Final = 2

# Spare runners that end by themselves, in a row, before no more are started ahead of need.
SPARE_FAILURES: Final = 3

# So long before its deadline a request that still waits is refused, while its caller can still hear why.
ANSWER_S: Final = 0.25


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The settings this core decides by. `keep_alive_s` below 0 keeps an idle model for good."""

    max_loaded: int
    keep_alive_s: float
    spare_runners: int
    load_timeout_s: float


# Events -------------------------------------------------------------------------------------------------------------


class Started(msgspec.Struct, frozen=True):
    """The service begins. `preload` is loaded although nobody asked, if given."""

    preload: str | None = None


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants `model`: to use it, or (`is_load`) to have it loaded. `deadline` None is none."""

    request: int
    model: str
    deadline: float | None = None
    is_load: bool = False
    context_tokens: int | None = None
    keep_alive_s: float | None = None


class Ended(msgspec.Struct, frozen=True):
    """A request is over: answered, failed, or taken back by its caller."""

    request: int


class Lost(msgspec.Struct, frozen=True):
    """The runner vanished under a forwarded request. `is_fresh`: nothing of an answer has reached the caller."""

    request: int
    is_fresh: bool
    error: BusError


class UnloadAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants `model` out of memory; `is_forced` does not wait for its answers."""

    request: int
    model: str
    is_forced: bool = False


class Loaded(msgspec.Struct, frozen=True):
    """A runner serves its model."""

    runner: int


class LoadFailed(msgspec.Struct, frozen=True):
    """A runner could not load its model and says why."""

    runner: int
    error: BusError


class Busy(msgspec.Struct, frozen=True):
    """A runner's number of answers in flight changed."""

    runner: int
    in_flight: int


class Exited(msgspec.Struct, frozen=True):
    """A runner's process ended; `how` says it for a person ("exit code 0", "signal 9")."""

    runner: int
    how: str


class Leaving(msgspec.Struct, frozen=True):
    """The service ends and takes every runner along."""


class Tick(msgspec.Struct, frozen=True):
    """Time passed; due at `Scheduler.next_wakeup`."""


Event = Started | Arrived | Ended | Lost | UnloadAsked | Loaded | LoadFailed | Busy | Exited | Leaving | Tick


# Effects ------------------------------------------------------------------------------------------------------------


class Spawn(msgspec.Struct, frozen=True):
    """Start a runner process."""

    runner: int


class Load(msgspec.Struct, frozen=True):
    """Tell a runner its model."""

    runner: int
    model: str
    context_tokens: int | None


class Drain(msgspec.Struct, frozen=True):
    """Tell a runner to take nothing new, finish, and end."""

    runner: int


class Kill(msgspec.Struct, frozen=True):
    """End a runner's process now."""

    runner: int


class Forward(msgspec.Struct, frozen=True):
    """Hand a request to the runner of its model. `waited_s` since it arrived, 0 when the model was loaded."""

    request: int
    runner: int
    waited_s: float


class Done(msgspec.Struct, frozen=True):
    """A load or unload is accomplished."""

    request: int
    took_s: float


class Refuse(msgspec.Struct, frozen=True):
    """Answer a request with an error."""

    request: int
    error: BusError


class Announce(msgspec.Struct, frozen=True):
    """Publish the event `model.<what>`."""

    what: Literal["loading", "loaded", "unloaded", "evicted", "failed"]
    model: str
    reason: str
    runner: int | None = None
    took_s: float | None = None


Effect = Spawn | Load | Drain | Kill | Forward | Done | Refuse | Announce


# State --------------------------------------------------------------------------------------------------------------


class Phase(StrEnum):
    """LOADING (told its model) -> LOADED (serves it) -> DRAINING (told to go, or killed)."""

    LOADING = "loading"
    LOADED = "loaded"
    DRAINING = "draining"


class _Request(msgspec.Struct):
    id: int
    model: str
    arrived_at: float
    give_up_at: float
    is_load: bool = False
    context_tokens: int | None = None
    keep_alive_s: float | None = None
    attempts: int = 0
    runner: int | None = None


class _Runner(msgspec.Struct):
    id: int
    model: str
    phase: Phase
    told_at: float
    keep_alive_s: float
    context_tokens: int | None = None
    last_used: float = 0.0
    in_flight: int = 0
    forwarded: set[int] = msgspec.field(default_factory=set)
    suspect_until: float | None = None
    kill_at: float | None = None
    leaving: tuple[Literal["unloaded", "evicted", "failed"], str] = ("failed", "")

    @property
    def is_in_use(self) -> bool:
        return self.in_flight > 0 or bool(self.forwarded)

    @property
    def is_taking(self) -> bool:
        return self.phase is Phase.LOADED and self.suspect_until is None


class _Model(msgspec.Struct):
    name: str
    runner: _Runner | None = None
    waiting: list[_Request] = []
    unloading: list[_Request] = []
    is_preload: bool = False
    quick_deaths: int = 0
    quarantined_until: float = 0.0
    last_death: str = ""


class Scheduler:
    """The decision core. Feed it every event with a `now` that never goes back, carry out its effects in order."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._models: dict[str, _Model] = {}
        self._requests: dict[int, _Request] = {}
        self._runners: dict[int, _Runner] = {}
        self._spares: list[int] = []
        self._spare_failures = 0
        self._wanted: list[str] = []
        self._last_runner = 0
        self._is_leaving = False
        self._effects: list[Effect] = []

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return what has to be done about it, in order."""
        self._effects = []
        match event:
            case Started():
                self._on_started(event, now)
            case Arrived():
                self._on_arrived(event, now)
            case Ended():
                self._on_ended(event, now)
            case Lost():
                self._on_lost(event, now)
            case UnloadAsked():
                self._on_unload_asked(event, now)
            case Loaded():
                self._on_loaded(event, now)
            case LoadFailed():
                self._on_load_failed(event, now)
            case Busy():
                self._on_busy(event, now)
            case Exited():
                self._on_exited(event, now)
            case Leaving():
                self._on_leaving()
            case Tick():
                pass
        if not self._is_leaving:
            self._watch_clock(now)
            self._make_room(now)
            self._top_up()
        return self._effects

    def state_of(self, model: str) -> tuple[Phase, int] | None:
        """Phase and runner of a model; None when it is absent."""
        known = self._models.get(model)
        return (known.runner.phase, known.runner.id) if known is not None and known.runner is not None else None

    def next_wakeup(self) -> float | None:
        """When Tick is due next, if nothing else happens before; None for never."""
        if self._is_leaving:
            return None
        times = [request.give_up_at for model in self._models.values() for request in model.waiting]
        for runner in self._runners.values():
            if runner.phase is Phase.LOADING:
                times.append(runner.told_at + self._policy.load_timeout_s)
            if runner.phase is Phase.LOADED and not runner.is_in_use and runner.keep_alive_s >= 0:
                times.append(runner.last_used + runner.keep_alive_s)
            times += [at for at in (runner.suspect_until, runner.kill_at) if at is not None]
        return min(times, default=None)

    # Requests

    def _on_started(self, event: Started, now: float) -> None:
        self._top_up()
        if event.preload is not None:
            self._model(event.preload).is_preload = True
            self._want(event.preload)

    def _on_arrived(self, event: Arrived, now: float) -> None:
        limit = now + self._policy.load_timeout_s
        request = _Request(
            id=event.request,
            model=event.model,
            arrived_at=now,
            give_up_at=limit if event.deadline is None else min(limit, max(event.deadline - ANSWER_S, now)),
            is_load=event.is_load,
            context_tokens=event.context_tokens,
            keep_alive_s=event.keep_alive_s,
        )
        self._requests[request.id] = request
        model = self._model(event.model)
        if event.is_load and model.quarantined_until > now:
            model.quarantined_until, model.quick_deaths = 0.0, QUICK_DEATHS - 1
        self._place(request, model, now)

    def _place(self, request: _Request, model: _Model, now: float) -> None:
        """Answer the request if its model is there, else let it wait for a load."""
        runner = model.runner
        if self._is_leaving:
            self._refuse(request, Overloaded("the model service is leaving", model=model.name))
        elif model.quarantined_until > now:
            self._refuse(request, _quarantined(model, now))
        elif runner is not None and runner.phase is not Phase.DRAINING and _differs(request, runner):
            self._refuse(
                request,
                Conflict(
                    f"{model.name} is loaded with another context length; unload it first",
                    model=model.name,
                    context_tokens=runner.context_tokens,
                ),
            )
        elif runner is not None and runner.is_taking:
            self._serve(request, runner, now)
        else:
            model.waiting.append(request)
            if runner is None or runner.phase is Phase.DRAINING:
                self._want(model.name)

    def _serve(self, request: _Request, runner: _Runner, now: float) -> None:
        waited_s = now - request.arrived_at
        if request.is_load:
            if request.keep_alive_s is not None:
                runner.keep_alive_s = request.keep_alive_s
            del self._requests[request.id]
            self._effects.append(Done(request.id, waited_s))
            return
        request.attempts += 1
        request.runner = runner.id
        runner.forwarded.add(request.id)
        self._effects.append(Forward(request.id, runner.id, waited_s))

    def _refuse(self, request: _Request, error: BusError) -> None:
        self._requests.pop(request.id, None)
        self._effects.append(Refuse(request.id, error))

    def _on_ended(self, event: Ended, now: float) -> None:
        request = self._requests.pop(event.request, None)
        if request is not None:
            self._take_back(request, now)

    def _take_back(self, request: _Request, now: float) -> None:
        model = self._model(request.model)
        model.waiting = [one for one in model.waiting if one.id != request.id]
        model.unloading = [one for one in model.unloading if one.id != request.id]
        runner = self._runners.get(request.runner) if request.runner is not None else None
        if runner is not None:
            runner.forwarded.discard(request.id)
            runner.last_used = now
            self._watch_leaving(runner, now)

    def _on_lost(self, event: Lost, now: float) -> None:
        request = self._requests.get(event.request)
        if request is None:
            return
        runner = self._runners.get(request.runner) if request.runner is not None else None
        self._take_back(request, now)
        request.runner = None
        if runner is not None and runner.phase is Phase.LOADED:
            runner.suspect_until = now + SUSPECT_S
        if not event.is_fresh or request.attempts >= ATTEMPTS:
            self._refuse(request, event.error)
        else:
            self._place(request, self._model(request.model), now)

    def _on_unload_asked(self, event: UnloadAsked, now: float) -> None:
        request = _Request(id=event.request, model=event.model, arrived_at=now, give_up_at=now)
        model = self._model(event.model)
        model.quarantined_until, model.quick_deaths = 0.0, 0
        runner = model.runner
        if runner is None:
            self._effects.append(Done(request.id, 0.0))
            return
        self._requests[request.id] = request
        model.unloading.append(request)
        if runner.phase is Phase.LOADING:
            self._refuse_waiting(model, Conflict(f"{model.name} was unloaded while it was loading", model=model.name))
            self._send_away(runner, "unloaded", "unloaded on request while it was loading", now, is_killed=True)
        elif runner.phase is Phase.LOADED:
            self._send_away(runner, "unloaded", "unloaded on request", now, is_killed=event.is_forced)
        elif event.is_forced:
            self._effects.append(Kill(runner.id))

    def _refuse_waiting(self, model: _Model, error: BusError) -> None:
        waiting, model.waiting = model.waiting, []
        for request in waiting:
            self._refuse(request, error)

    def _on_leaving(self) -> None:
        self._is_leaving = True
        for model in self._models.values():
            self._refuse_waiting(model, Overloaded("the model service is leaving", model=model.name))
        for runner in self._runners.values():
            runner.phase, runner.leaving = Phase.DRAINING, ("unloaded", "the model service is leaving")

    # Runners

    def _on_loaded(self, event: Loaded, now: float) -> None:
        runner = self._runners.get(event.runner)
        if runner is None or runner.phase is not Phase.LOADING:
            return
        runner.phase, runner.last_used = Phase.LOADED, now
        self._spare_failures = 0
        model = self._model(runner.model)
        took_s = now - runner.told_at
        self._effects.append(Announce("loaded", model.name, f"loaded in {took_s:.2f} s", runner.id, took_s))
        self._serve_waiting(model, now)

    def _serve_waiting(self, model: _Model, now: float) -> None:
        waiting, model.waiting = model.waiting, []
        for request in waiting:
            self._place(request, model, now)

    def _on_load_failed(self, event: LoadFailed, now: float) -> None:
        runner = self._runners.get(event.runner)
        if runner is None or runner.phase is not Phase.LOADING:
            return
        self._refuse_waiting(self._model(runner.model), event.error)
        self._send_away(runner, "failed", event.error.message, now, is_killed=True)

    def _on_busy(self, event: Busy, now: float) -> None:
        runner = self._runners.get(event.runner)
        if runner is not None:
            runner.in_flight, runner.last_used = event.in_flight, now
            self._watch_leaving(runner, now)

    def _on_exited(self, event: Exited, now: float) -> None:
        runner = self._runners.pop(event.runner, None)
        if runner is None:
            if event.runner in self._spares:
                self._spares.remove(event.runner)
                self._spare_failures += 1
            return
        model = self._model(runner.model)
        model.runner = None
        for id in runner.forwarded:
            self._requests[id].runner = None
        if runner.phase is Phase.DRAINING:
            what, reason = runner.leaving
            self._effects.append(Announce(what, model.name, reason, runner.id))
        else:
            self._on_death(model, runner, event.how, now)
        unloading, model.unloading = model.unloading, []
        for request in unloading:
            del self._requests[request.id]
            self._effects.append(Done(request.id, now - request.arrived_at))
        if model.waiting:
            self._want(model.name)

    def _on_death(self, model: _Model, runner: _Runner, how: str, now: float) -> None:
        """Nobody told this runner to go."""
        is_quick = now - runner.told_at < QUICK_DEATH_S
        model.quick_deaths = model.quick_deaths + 1 if is_quick else 0
        doing = "loading it" if runner.phase is Phase.LOADING else "serving it"
        model.last_death = f"its runner ended ({how}) while {doing}"
        self._effects.append(Announce("failed", model.name, model.last_death, runner.id))
        if model.quick_deaths >= QUICK_DEATHS:
            model.quarantined_until = now + QUARANTINE_S
            self._refuse_waiting(model, _quarantined(model, now))
            self._effects.append(Announce("failed", model.name, _quarantined(model, now).message, runner.id))

    def _send_away(
        self,
        runner: _Runner,
        what: Literal["unloaded", "evicted", "failed"],
        reason: str,
        now: float,
        *,
        is_killed: bool = False,
    ) -> None:
        runner.phase, runner.leaving, runner.suspect_until = Phase.DRAINING, (what, reason), None
        if is_killed:
            self._effects.append(Kill(runner.id))
            return
        self._effects.append(Drain(runner.id))
        self._watch_leaving(runner, now)

    def _watch_leaving(self, runner: _Runner, now: float) -> None:
        """From the moment a draining runner has nothing left to do, its time to leave runs."""
        if runner.phase is Phase.DRAINING:
            runner.kill_at = None if runner.is_in_use else now + LEAVE_S

    # Time and room

    def _watch_clock(self, now: float) -> None:
        for runner in list(self._runners.values()):
            if runner.suspect_until is not None and runner.suspect_until <= now:
                runner.suspect_until = None
                self._serve_waiting(self._model(runner.model), now)
            if runner.phase is Phase.LOADING and now >= runner.told_at + self._policy.load_timeout_s:
                self._time_out(runner, now)
            elif runner.phase is Phase.LOADED and not runner.is_in_use and runner.keep_alive_s >= 0:
                if now >= runner.last_used + runner.keep_alive_s:
                    self._send_away(runner, "evicted", f"idle for {runner.keep_alive_s:g} s", now)
            elif runner.kill_at is not None and runner.kill_at <= now:
                runner.kill_at = now + LEAVE_S
                self._effects.append(Kill(runner.id))
        for model in self._models.values():
            for request in [one for one in model.waiting if one.give_up_at <= now]:
                model.waiting.remove(request)
                self._refuse(request, self._give_up(request, model, now))

    def _time_out(self, runner: _Runner, now: float) -> None:
        limit = self._policy.load_timeout_s
        error = DeadlineExceeded(
            f"{runner.model} did not load within {limit:g} s (models.load_timeout_s)", model=runner.model, limit_s=limit
        )
        self._refuse_waiting(self._model(runner.model), error)
        self._send_away(runner, "failed", error.message, now, is_killed=True)

    def _give_up(self, request: _Request, model: _Model, now: float) -> BusError:
        waited_s = round(now - request.arrived_at, 3)
        runner = model.runner
        if runner is not None and runner.phase is Phase.LOADING:
            return DeadlineExceeded(f"{model.name} was still loading after {waited_s} s", model=model.name)
        if runner is not None:
            return Overloaded(f"{model.name} was still {runner.phase} after {waited_s} s", model=model.name)
        used = sorted(one.model for one in self._runners.values())
        return Overloaded(
            f"no room for {model.name} within {waited_s} s: models.max_loaded is {self._policy.max_loaded}"
            f" and in use are {', '.join(used)}",
            model=model.name,
            in_use=used,
            max_loaded=self._policy.max_loaded,
        )

    def _want(self, name: str) -> None:
        if name not in self._wanted:
            self._wanted.append(name)

    def _make_room(self, now: float) -> None:
        """Load wanted models, first come first served; where there is no room, evict what is idle for the longest."""
        self._wanted = [name for name in self._wanted if self._model(name).waiting or self._model(name).is_preload]
        coming = sum(runner.phase is Phase.DRAINING for runner in self._runners.values())
        for name in list(self._wanted):
            model = self._model(name)
            if model.runner is not None:
                coming -= model.runner.phase is Phase.DRAINING
                continue
            if len(self._runners) < self._policy.max_loaded:
                self._wanted.remove(name)
                self._start_load(model, now)
            elif coming > 0:
                coming -= 1
            else:
                self._evict_for(model, now)

    def _evict_for(self, model: _Model, now: float) -> None:
        idle = [one for one in self._runners.values() if one.is_taking and not one.is_in_use]
        if idle:
            victim = min(idle, key=lambda runner: runner.last_used)
            self._send_away(victim, "evicted", f"least recently used, to make room for {model.name}", now)

    def _start_load(self, model: _Model, now: float) -> None:
        id = self._spares.pop(0) if self._spares else self._spawn()
        asked = next((one.context_tokens for one in model.waiting if one.context_tokens is not None), None)
        runner = _Runner(id, model.name, Phase.LOADING, now, self._policy.keep_alive_s, asked)
        self._runners[id], model.runner = runner, runner
        reason = f"wanted by {len(model.waiting)} waiting" if model.waiting else "the default model, ahead of need"
        model.is_preload = False
        self._effects += [Announce("loading", model.name, reason, id), Load(id, model.name, asked)]

    def _spawn(self) -> int:
        self._last_runner += 1
        self._effects.append(Spawn(self._last_runner))
        return self._last_runner

    def _top_up(self) -> None:
        """Keep spares ready, but not while a load needs the cores."""
        if any(runner.phase is Phase.LOADING for runner in self._runners.values()):
            return
        while len(self._spares) < self._policy.spare_runners and self._spare_failures < SPARE_FAILURES:
            self._spares.append(self._spawn())

    def _model(self, name: str) -> _Model:
        return self._models.setdefault(name, _Model(name))


def _differs(request: _Request, runner: _Runner) -> bool:
    return request.context_tokens is not None and request.context_tokens != runner.context_tokens


def _quarantined(model: _Model, now: float) -> Unprocessable:
    return Unprocessable(
        f"{model.name} is not loaded any more: {QUICK_DEATHS} times in a row {model.last_death}; model.load tries again,"
        f" and requests do in {model.quarantined_until - now:.0f} s",
        model=model.name,
        retry_in_s=round(model.quarantined_until - now, 1),
    )
