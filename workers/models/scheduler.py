"""Which model is in memory: a pure core, `handle(event, now) -> effects`, that knows no socket, process, clock or disk.

Its words are in `decisions`; times are seconds of one steady clock, chosen by the caller.

    model      absent --> memory asked for --> LOADING --> LOADED --> DRAINING --> absent
                  ^              |                |           |                      ^
                  +--------------+----------------+-----------+---- its process ended

What always holds, whatever the events:
- A model is loaded only into memory that was reserved for it (or that nobody keeps the books of).
- At most `max_loaded` processes hold a model. A draining one counts until it has really ended, unless its memory and
  that of its successor are both reserved: then both are there, and the load need not wait for the end.
- A model in use (answers in flight, or handed to its runner a moment ago), pinned or not swappable is never evicted,
  and nothing is evicted where all that may go would not make enough room.
- Two requests for one absent model cause one load.
- A load ahead of need takes free memory, or that of idle models that are less likely to be wanted. One on the word of
  prediction alone is broken off when somebody waits for another model.
- Every request gets exactly one of Forward, Done and Refuse, unless its caller ended it first; a Forward may be
  followed by another, or by a Refuse, after Lost.
"""

from __future__ import annotations

from typing import Final, Literal

from schemas.errors import BusError, Conflict, DeadlineExceeded, Overloaded
from workers.models import decisions as say
from workers.models.eviction import Candidate, enough_for, in_order
from workers.models.holding import (
    PINNED,
    Ahead,
    Hold,
    Model,
    Phase,
    Request,
    Runner,
    State,
    differs,
    loaded_otherwise,
    quarantined,
    too_big,
    waiting_for,
)

# A runner that dies within this many seconds of being told its model died quickly; so many of those in a row and the
# model is not loaded for so long, unless `model.load` asks for one more try. As long after a failed load nothing is
# loaded ahead of need.
QUICK_DEATH_S: Final = 60.0
QUICK_DEATHS: Final = 3
QUARANTINE_S: Final = 300.0

# A draining runner with nothing in flight is gone at once; one that is still there after this many seconds hangs.
LEAVE_S: Final = 5.0

# When a request comes back from a vanished runner, the news of the process's end is due within this many seconds.
SUSPECT_S: Final = 1.0

# A runner that lost requests for so long, and said nothing of any meanwhile, hangs. Longer than a connection to a broker
# that was started anew takes to come back (bus.reconnect_max_s).
SILENT_S: Final = 10.0

# Memory that was asked back is wanted for so long after it was last said; renewals of its lease say it every 10 s.
ASKED_BACK_S: Final = 15.0

# Times a request is handed to a runner before it is given up.
ATTEMPTS: Final = 2

# Spare runners that end by themselves, in a row, before no more are started ahead of need.
SPARE_FAILURES: Final = 3

# A new spare runner takes a core for 0.7 s of imports (MEASURED.md). The first answer of a model that was just loaded goes
# before it, for so many seconds.
SPARE_PAUSE_S: Final = 2.0

# So long before its deadline a request that still waits is refused, while its caller can still hear why.
ANSWER_S: Final = 0.25

# Seconds after which memory that was refused is asked for again: others give theirs back without telling us.
RETRY_S: Final = 1.0

# A prediction is followed where having the model in memory is worth this much (Likely.value), and, where others have to
# leave for it, this many times what they are worth together, and so much more. Chosen on generated traces
# (scripts/bench_prediction.py, seeds 1000 to 1003): less follows every whim, more leaves memory empty or waits until the
# request is there.
WORTH: Final = 0.02
WORTH_RATIO: Final = 1.2
WORTH_MORE: Final = 0.02

# Why a model leaves memory, by what is announced of it, unless something else is known.
_CAUSES: Final[dict[str, say.Cause]] = {"unloaded": "asked", "evicted": "room", "failed": "crash"}


class Scheduler:
    """The decision core. Feed it every event with a `now` that never goes back, carry out its effects in order."""

    def __init__(self, policy: say.Policy) -> None:
        self._policy = policy
        self._models: dict[str, Model] = {}
        self._requests: dict[int, Request] = {}
        self._runners: dict[int, Runner] = {}
        self._holders: dict[int, str] = {}
        self._worth: dict[str, float] = {}
        self._spares: list[int] = []
        self._spare_failures = 0
        self._wanted: list[str] = []
        self._now = 0.0
        self._last_runner = 0
        self._last_lease = 0
        self._exits = 0
        self._promised = 0
        self._is_leaving = False
        self._effects: list[say.Effect] = []

    def handle(self, event: say.Event, now: float) -> list[say.Effect]:
        """Take one event; return what has to be done about it, in order."""
        self._effects, self._now = [], now
        self._take(event, now)
        if not self._is_leaving:
            self._watch_clock(now)
            self._make_room(now)
            self._top_up(now)
        self._forget(now)
        return self._effects

    def _take(self, event: say.Event, now: float) -> None:
        match event:
            case say.Started():
                self._on_started(event)
            case say.Described():
                self._on_described(event)
            case say.Arrived():
                self._on_arrived(event, now)
            case say.Preload():
                self._on_preload(event, now)
            case say.Expected():
                self._on_expected(event, now)
            case say.Ended():
                self._on_ended(event, now)
            case say.Lost():
                self._on_lost(event, now)
            case say.UnloadAsked():
                self._on_unload_asked(event, now)
            case say.Reserved() | say.ReserveRefused() | say.ReserveFailed():
                self._on_reserve_answered(event, now)
            case say.AskedBack():
                self._on_asked_back(event, now)
            case say.Waiting(runner, reason):
                if runner in self._runners:
                    self._runners[runner].waits_for = reason
            case say.Loaded():
                self._on_loaded(event, now)
            case say.LoadFailed():
                self._on_load_failed(event, now)
            case say.Busy():
                self._on_busy(event, now)
            case say.Exited():
                self._on_exited(event, now)
            case say.Leaving():
                self._on_leaving()
            case say.Tick():
                pass

    def state_of(self, model: str) -> State | None:
        """A model that has a runner; None when it is absent."""
        known = self._models.get(model)
        runner = known.runner if known is not None else None
        if runner is None:
            return None
        return State(
            phase=runner.phase,
            runner=runner.id,
            device=runner.device,
            memory_bytes=runner.memory_bytes,
            in_flight=max(runner.in_flight, len(runner.forwarded)),
            keep_alive_s=runner.keep_s,
        )

    def present(self) -> list[str]:
        """Models that have a runner, in the order in which they got it."""
        return [runner.model for runner in self._runners.values()]

    def waiting(self) -> int:
        """Requests that wait for a load."""
        return sum(len(model.waiting) for model in self._models.values())

    def quarantined(self, now: float) -> list[str]:
        """Why models are not loaded any more, a sentence for each."""
        return [quarantined(model, now).message for model in self._models.values() if model.quarantined_until > now]

    def next_wakeup(self) -> float | None:
        """When Tick is due next, if nothing else happens before; None for never."""
        if self._is_leaving:
            return None
        times = [request.give_up_at for model in self._models.values() for request in model.waiting]
        for runner in self._runners.values():
            if runner.phase is Phase.LOADING:
                times.append(runner.told_at + self._policy.load_timeout_s)
            if runner.idle_limit is not None:
                times.append(runner.idle_limit[0])
            times += [at for at in (runner.suspect_until, runner.kill_at) if at is not None]
        if self._lacks_spares():
            times += self._first_answers()
        for name in self._wanted:
            model = self._models[name]
            if model.hold is not None and model.hold.state == "refused":
                times.append(model.hold.retry_at)
            elif model.ahead is not None and model.runner is None and not model.waiting:
                times += [model.quarantined_until, model.not_ahead_before]
        return min((at for at in times if at > self._now), default=None)

    # Requests

    def _on_started(self, event: say.Started) -> None:
        if event.preload is not None:
            self._model(event.preload).terms = event.terms
            self._plan(self._model(event.preload), Ahead("default", "the default model, ahead of need"))

    def _on_described(self, event: say.Described) -> None:
        model = self._model(event.model)
        runner = model.runner
        old, model.terms = model.terms, event.terms
        if runner is not None:
            # What it takes was measured or reserved when it was loaded; how it is held changes now.
            runner.terms = event.terms
            self._rank(runner)
            if old.keep_alive_s != event.terms.keep_alive_s:
                runner.keep_alive_s = None
        if event.terms.is_pinned and runner is None and model.ahead is None:
            model.ahead = PINNED
            self._want(model.name)
        elif not event.terms.is_pinned and model.ahead is PINNED:
            model.ahead = None

    def _on_arrived(self, event: say.Arrived, now: float) -> None:
        limit = now + self._policy.load_timeout_s
        model = self._model(event.model)
        request = Request(
            id=event.request,
            model=event.model,
            arrived_at=now,
            give_up_at=limit if event.deadline is None else min(limit, max(event.deadline - ANSWER_S, now)),
            terms=event.terms or model.terms,
            is_load=event.is_load,
            context_tokens=event.context_tokens,
            device=event.device,
            keep_alive_s=event.keep_alive_s,
        )
        self._requests[request.id] = request
        if event.is_load and model.quarantined_until > now:
            model.quarantined_until, model.quick_deaths = 0.0, QUICK_DEATHS - 1
        self._place(request, model, now)

    def _place(self, request: Request, model: Model, now: float) -> None:
        """Answer the request if its model is there, else let it wait for a load."""
        runner = model.runner
        if self._is_leaving:
            self._refuse(request, Overloaded("the model service is leaving", model=model.name))
        elif model.quarantined_until > now:
            self._refuse(request, quarantined(model, now))
        elif runner is not None and runner.phase is not Phase.DRAINING and differs(request, runner):
            self._refuse(request, loaded_otherwise(request, runner))
        elif runner is not None and runner.is_taking:
            self._serve(request, runner, now)
        else:
            self._wait(request, model)
            if runner is None or runner.phase is Phase.DRAINING:
                self._want(model.name)

    def _wait(self, request: Request, model: Model) -> None:
        is_first_wish = request.has_wish and model.wish is None
        model.waiting.append(request)
        if model.runner is not None:
            return
        if is_first_wish and model.hold is not None:
            # What was asked for so far is for another window, or elsewhere.
            self._drop_hold(model)
        if model.hold is None or model.hold.state == "refused":
            model.terms = request.terms

    def _serve(self, request: Request, runner: Runner, now: float) -> None:
        waited_s = round(now - request.arrived_at, 3)
        self._mark_used(runner)
        if request.is_load:
            if request.keep_alive_s is not None:
                runner.keep_alive_s = request.keep_alive_s
            runner.last_used = now
            del self._requests[request.id]
            self._effects.append(say.Done(request.id, waited_s))
            return
        request.attempts += 1
        request.runner = runner.id
        runner.forwarded.add(request.id)
        self._effects.append(say.Forward(request.id, runner.id, waited_s))

    def _mark_used(self, runner: Runner) -> None:
        if runner.is_unused:
            runner.is_unused = False
            self._effects.append(say.Judged(runner.model, True, 0.0))
            # What was loaded ahead of need gave way to everybody; now it is in use.
            self._rank(runner)

    def _rank(self, runner: Runner) -> None:
        if runner.lease is not None:
            terms = runner.terms
            is_preemptible = terms.is_swappable and not terms.is_pinned
            self._effects.append(say.Rank(runner.lease, 5 if runner.is_unused else terms.priority, is_preemptible))

    def _refuse(self, request: Request, error: BusError) -> None:
        self._requests.pop(request.id, None)
        self._effects.append(say.Refuse(request.id, error))

    def _on_ended(self, event: say.Ended, now: float) -> None:
        request = self._requests.pop(event.request, None)
        if request is not None:
            self._take_back(request, now)

    def _take_back(self, request: Request, now: float) -> None:
        model = self._model(request.model)
        model.waiting = [one for one in model.waiting if one.id != request.id]
        model.unloading = [one for one in model.unloading if one.id != request.id]
        runner = self._runners.get(request.runner) if request.runner is not None else None
        if runner is not None:
            runner.forwarded.discard(request.id)
            runner.last_used = now
            self._watch_leaving(runner, now)

    def _on_lost(self, event: say.Lost, now: float) -> None:
        request = self._requests.get(event.request)
        if request is None:
            return
        runner = self._runners.get(request.runner) if request.runner is not None else None
        self._take_back(request, now)
        request.runner = None
        if runner is not None and runner.phase is Phase.LOADED:
            self._suspect(runner, now)
        if not event.is_fresh or request.attempts >= ATTEMPTS:
            self._refuse(request, event.error)
        else:
            self._place(request, self._model(request.model), now)

    def _suspect(self, runner: Runner, now: float) -> None:
        """It died, as will be heard; or it lost its connection for a moment; or it hangs, and has to be ended."""
        runner.suspect_until = now + SUSPECT_S
        if runner.silent_since is None:
            runner.silent_since = now
        elif now - runner.silent_since >= SILENT_S:
            reason = f"its runner hangs: it lost every request of the last {now - runner.silent_since:.0f} s"
            self._send_away(runner, "failed", reason, now, is_killed=True)

    def _on_unload_asked(self, event: say.UnloadAsked, now: float) -> None:
        model = self._model(event.model)
        request = Request(id=event.request, model=event.model, arrived_at=now, give_up_at=now, terms=model.terms)
        model.quarantined_until, model.quick_deaths = 0.0, 0
        self._drop_ahead(model, "it was unloaded")
        runner = model.runner
        if runner is None:
            self._effects.append(say.Done(request.id, 0.0))
            return
        self._requests[request.id] = request
        model.unloading.append(request)
        if event.is_forced:
            for id in runner.forwarded:
                # Tried again, they would bring the model back at once.
                self._requests[id].attempts = ATTEMPTS
        if runner.phase is Phase.LOADING:
            self._refuse_waiting(model, Conflict(f"{model.name} was unloaded while it was loading", model=model.name))
            self._send_away(runner, "unloaded", "unloaded on request while it was loading", now, is_killed=True)
        elif runner.phase is Phase.LOADED:
            self._send_away(runner, "unloaded", "unloaded on request", now, is_killed=event.is_forced)
        elif event.is_forced:
            self._effects.append(say.Kill(runner.id))

    def _refuse_waiting(self, model: Model, error: BusError) -> None:
        waiting, model.waiting = model.waiting, []
        for request in waiting:
            self._refuse(request, error)

    def _on_leaving(self) -> None:
        self._is_leaving = True
        for model in self._models.values():
            self._drop_ahead(model, "the model service is leaving")
            self._refuse_waiting(model, Overloaded("the model service is leaving", model=model.name))
            self._drop_hold(model)
        for runner in self._runners.values():
            runner.phase, runner.leaving = Phase.DRAINING, ("unloaded", "the model service is leaving")
            runner.cause = _CAUSES["unloaded"]

    # Ahead of need

    def _on_preload(self, event: say.Preload, now: float) -> None:
        model = self._model(event.model)
        request = Request(id=event.request, model=event.model, arrived_at=now, give_up_at=now, terms=event.terms)
        reason = self._why_not_ahead(model, now)
        if reason:
            self._refuse(request, Conflict(f"{model.name} is not loaded ahead of need: {reason}", model=model.name))
            return
        self._requests[request.id] = request
        model.terms = event.terms
        # Somebody asks: what failed before is tried again, and nobody waits minutes for the answer.
        model.not_ahead_before = 0.0
        self._plan(model, Ahead("asked", "asked for ahead of need", request=request.id))

    def _why_not_ahead(self, model: Model, now: float) -> str:
        if self._is_leaving:
            return "the model service is leaving"
        if model.runner is not None:
            return f"it is {model.runner.phase} already"
        if model.quarantined_until > now:
            return quarantined(model, now).message
        return "it is on its way already" if model.waiting or model.ahead is not None else ""

    def _on_expected(self, event: say.Expected, now: float) -> None:
        self._worth = {one.model: one.value for one in event.models}
        for model in self._models.values():
            if model.ahead is not None and model.ahead.kind == "predicted" and model.hold is None:
                model.ahead = None
                if not model.waiting:
                    # Wanted anew, it comes behind what is worth more now.
                    self._wanted.remove(model.name)
        for one in sorted(event.models, key=lambda likely: -likely.value):
            if one.value < WORTH or one.terms.is_remote:
                continue
            model = self._model(one.model)
            runner = model.runner
            if runner is not None and runner.is_unused and runner.unused_until is not None:
                runner.unused_until = max(runner.unused_until, now + event.horizon_s)
            if model.not_ahead_before <= now and not self._why_not_ahead(model, now):
                model.terms = one.terms
                why = f"may be wanted within {event.horizon_s:g} s ({one.probability:.0%}: {one.why})"
                self._plan(model, Ahead("predicted", why, one.value, event.horizon_s))

    def _plan(self, model: Model, ahead: Ahead) -> None:
        if model.runner is None or model.runner.phase is Phase.DRAINING:
            model.ahead = ahead
            self._want(model.name)

    def _drop_ahead(self, model: Model, reason: str) -> None:
        """Nobody waits for it any more than this: give it up and say why to who asked."""
        ahead, model.ahead = model.ahead, None
        request = self._requests.get(ahead.request) if ahead is not None and ahead.request is not None else None
        if request is not None:
            error = Overloaded(f"{model.name} is not loaded ahead of need: {reason}", model=model.name)
            self._refuse(request, error)

    # Runners

    def _on_loaded(self, event: say.Loaded, now: float) -> None:
        runner = self._runners.get(event.runner)
        if runner is None or runner.phase is not Phase.LOADING:
            return
        runner.phase, runner.loaded_at, runner.last_used = Phase.LOADED, now, now
        runner.context_tokens = event.context_tokens or runner.context_tokens
        runner.memory_bytes = event.memory_bytes or runner.memory_bytes
        runner.beside_bytes = event.beside_bytes or runner.beside_bytes
        if runner.lease is not None and event.memory_bytes:
            self._effects.append(say.Resize(runner.lease, runner.memory_bytes, runner.beside_bytes))
        if runner.unused_until is not None:
            # The horizon of a prediction begins when it can come true.
            runner.unused_until += now - runner.told_at
        self._spare_failures = 0
        model = self._model(runner.model)
        model.not_ahead_before = 0.0
        took_s = round(now - runner.told_at, 3)
        self._announce("loaded", runner, f"loaded in {took_s:.2f} s", took_s)
        if runner.is_unused:
            self._announce("preloaded", runner, runner.why, took_s)
        self._serve_waiting(model, now)

    def _announce(
        self,
        what: Literal["loading", "loaded", "unloaded", "evicted", "failed", "preloaded"],
        runner: Runner,
        reason: str,
        took_s: float | None = None,
    ) -> None:
        size = runner.memory_bytes or None
        cause = runner.cause if runner.loaded_at else ""
        self._effects.append(say.Announce(what, runner.model, reason, runner.id, took_s, runner.device, size, cause))

    def _serve_waiting(self, model: Model, now: float) -> None:
        waiting, model.waiting = model.waiting, []
        for request in waiting:
            self._place(request, model, now)

    def _on_load_failed(self, event: say.LoadFailed, now: float) -> None:
        runner = self._runners.get(event.runner)
        if runner is None or runner.phase is not Phase.LOADING:
            return
        if event.instead is None:
            self._give_load_up(runner, event.error, now)
            return
        model = self._model(runner.model)
        model.terms = event.instead
        if not model.waiting or model.terms.is_pinned:
            model.ahead = Ahead("default", f"again, ahead of need: {event.error.message}")
        for request in list(model.waiting):
            request.terms = event.instead
            if request.device is not None:
                # It asked for that device and no other.
                model.waiting.remove(request)
                self._refuse(request, event.error)
        # Dropped again where nobody waits any more.
        self._want(model.name)
        self._send_away(runner, "failed", event.error.message, now, is_killed=True)

    def _give_load_up(self, runner: Runner, error: BusError, now: float) -> None:
        model = self._model(runner.model)
        self._refuse_waiting(model, error)
        model.not_ahead_before = now + QUARANTINE_S
        if model.terms.is_pinned:
            model.ahead = PINNED
            self._want(model.name)
        self._send_away(runner, "failed", error.message, now, is_killed=True)

    def _on_busy(self, event: say.Busy, now: float) -> None:
        runner = self._runners.get(event.runner)
        if runner is not None:
            runner.in_flight, runner.last_used = event.in_flight, now
            runner.silent_since = None
            if event.in_flight:
                self._mark_used(runner)
            self._watch_leaving(runner, now)

    def _on_exited(self, event: say.Exited, now: float) -> None:
        self._exits += 1
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
        if runner.lease is not None:
            del self._holders[runner.lease]
            self._effects.append(say.Release(runner.lease))
        if runner.phase is Phase.DRAINING:
            what, reason = runner.leaving
            self._announce(what, runner, reason)
            if what != "failed" and runner.loaded_at:
                # It worked and left as it was told: deaths before and after it are not in a row.
                model.quick_deaths = 0
        else:
            self._on_death(model, runner, event.how, now)
        if runner.is_unused and runner.loaded_at:
            self._effects.append(say.Judged(model.name, False, now - runner.loaded_at))
        unloading, model.unloading = model.unloading, []
        for request in unloading:
            del self._requests[request.id]
            self._effects.append(say.Done(request.id, round(now - request.arrived_at, 3)))
        if model.waiting:
            self._want(model.name)

    def _on_death(self, model: Model, runner: Runner, how: str, now: float) -> None:
        """Nobody told this runner to go."""
        is_quick = now - runner.told_at < QUICK_DEATH_S
        model.quick_deaths = model.quick_deaths + 1 if is_quick else 0
        doing = "loading it" if runner.phase is Phase.LOADING else "serving it"
        model.last_death = f"its runner ended ({how}) while {doing}"
        reason = model.last_death
        if model.quick_deaths >= QUICK_DEATHS:
            model.quarantined_until = now + QUARANTINE_S
            reason = quarantined(model, now).message
            self._refuse_waiting(model, quarantined(model, now))
        # One event a death: they are counted.
        runner.cause = "crash"
        self._announce("failed", runner, reason)
        if model.terms.is_pinned:
            model.ahead = PINNED
            self._want(model.name)

    def _send_away(
        self,
        runner: Runner,
        what: Literal["unloaded", "evicted", "failed"],
        reason: str,
        now: float,
        *,
        is_killed: bool = False,
        cause: say.Cause = "",
    ) -> None:
        runner.phase, runner.leaving, runner.suspect_until = Phase.DRAINING, (what, reason), None
        runner.cause = cause or _CAUSES[what]
        if is_killed:
            self._effects.append(say.Kill(runner.id))
            return
        self._effects.append(say.Drain(runner.id))
        self._watch_leaving(runner, now)

    def _watch_leaving(self, runner: Runner, now: float) -> None:
        """From the moment a draining runner has nothing left to do, its time to leave runs."""
        if runner.phase is Phase.DRAINING:
            runner.kill_at = None if runner.is_in_use else now + LEAVE_S

    # Time

    def _watch_clock(self, now: float) -> None:
        for runner in list(self._runners.values()):
            self._watch_runner(runner, now)
        for model in self._models.values():
            for request in [one for one in model.waiting if one.give_up_at <= now]:
                model.waiting.remove(request)
                self._refuse(request, self._give_up(request, model, now))

    def _watch_runner(self, runner: Runner, now: float) -> None:
        if runner.suspect_until is not None and runner.suspect_until <= now:
            runner.suspect_until = None
            self._serve_waiting(self._model(runner.model), now)
        idle_limit = runner.idle_limit
        if runner.phase is Phase.LOADING and now >= runner.told_at + self._policy.load_timeout_s:
            self._time_out(runner, now)
        elif now < runner.asked_back_until and runner.may_go:
            self._send_away(runner, "evicted", f"its memory was asked back for {runner.asked_back_by}", now)
        elif idle_limit is not None and idle_limit[0] <= now:
            self._send_away(runner, "evicted", idle_limit[1], now, cause="idle")
        elif runner.kill_at is not None and runner.kill_at <= now:
            runner.kill_at = now + LEAVE_S
            self._effects.append(say.Kill(runner.id))

    def _time_out(self, runner: Runner, now: float) -> None:
        limit = self._policy.load_timeout_s
        error = DeadlineExceeded(
            f"{runner.model} did not load within {limit:g} s (models.load_timeout_s){waiting_for(runner)}",
            model=runner.model,
            limit_s=limit,
        )
        self._give_load_up(runner, error, now)

    def _give_up(self, request: Request, model: Model, now: float) -> BusError:
        waited_s = round(now - request.arrived_at, 3)
        runner = model.runner
        if runner is not None and runner.phase is Phase.LOADING:
            return DeadlineExceeded(
                f"{model.name} was still loading after {waited_s} s{waiting_for(runner)}", model=model.name
            )
        if runner is not None:
            return Overloaded(f"{model.name} was still {runner.phase} after {waited_s} s", model=model.name)
        if model.hold is not None and model.hold.state == "asked":
            return DeadlineExceeded(
                f"{model.name} waited {waited_s} s for an answer about its memory", model=model.name
            )
        return self._no_room(model, f"within {waited_s} s")

    # Room

    def _want(self, name: str) -> None:
        if name not in self._wanted:
            self._wanted.append(name)

    def _make_room(self, now: float) -> None:
        """Bring wanted models nearer to their load, first come first served; those nobody waits for come last."""
        self._drop_unwanted()
        self._break_off_predicted(now)
        self._promised = 0
        for name in sorted(self._wanted, key=lambda one: not self._models[one].waiting):
            model = self._models[name]
            if model.runner is None and not self._is_too_early(model, now):
                self._advance(model, now)
            elif model.runner is not None and model.runner.phase is Phase.DRAINING:
                self._promised += 1
        self._drop_unwanted()

    def _break_off_predicted(self, now: float) -> None:
        """A load that nobody waits for slows down one that somebody waits for, and holds its memory."""
        is_awaited = any(
            one.waiting and one.runner is None and not one.terms.is_remote for one in self._models.values()
        )
        for runner in self._runners.values() if is_awaited else ():
            is_predicted = runner.is_unused and runner.unused_until is not None
            if is_predicted and runner.phase is Phase.LOADING and not self._models[runner.model].waiting:
                self._send_away(runner, "evicted", "requests wait for another model", now, is_killed=True)

    def _drop_unwanted(self) -> None:
        for name in list(self._wanted):
            model = self._models[name]
            if not model.waiting and model.ahead is None:
                self._drop_hold(model)
                self._wanted.remove(name)

    def _is_too_early(self, model: Model, now: float) -> bool:
        return not model.waiting and max(model.not_ahead_before, model.quarantined_until) > now

    def _advance(self, model: Model, now: float) -> None:
        """One step nearer: ask for memory, evict for it, or load."""
        hold, ahead = model.hold, model.ahead
        is_preload = ahead is not None and ahead.is_preload and not model.waiting
        if is_preload and self._others_wait(model):
            self._drop_ahead(model, "requests wait for memory")
        elif is_preload and ahead is not None and ahead.kind == "predicted" and self._is_loading(model):
            # One after the other: a load slows down every other one. Nor must the other wait for what this one holds.
            self._drop_hold(model)
            return
        elif model.terms.is_remote:
            self._start_load(model, now)
        elif hold is None:
            self._reserve(model, now)
        elif hold.state == "granted":
            self._take_place(model, hold, now)
        elif hold.state == "refused":
            self._free_memory(model, hold, now)

    def _others_wait(self, model: Model) -> bool:
        return any(one.waiting and one.runner is None for one in self._models.values() if one is not model)

    def _is_loading(self, model: Model) -> bool:
        is_underway = any(one.hold is not None for one in self._models.values() if one is not model)
        return is_underway or any(runner.phase is Phase.LOADING for runner in self._runners.values())

    def _reserve(self, model: Model, now: float) -> None:
        """Ask for memory, unless there could be no place for the model anyway."""
        if not self._could_have_place(model):
            self._on_no_room(model, "now")
            self._drop_hold(model)
            return
        self._drop_hold(model)
        self._last_lease += 1
        model.hold = Hold(self._last_lease, self._exits)
        self._holders[self._last_lease] = model.name
        is_preload = model.ahead is not None and model.ahead.is_preload and not model.waiting
        terms = model.terms = model.terms_as_wished
        self._effects.append(
            say.Reserve(
                lease=self._last_lease,
                model=model.name,
                device=terms.device,
                memory_bytes=terms.memory_bytes,
                beside_bytes=terms.beside_bytes,
                # What is loaded ahead of need asks nothing of others and gives way to them.
                priority=5 if is_preload else terms.priority,
                is_preemptible=terms.is_swappable and not terms.is_pinned,
            )
        )

    def _could_have_place(self, model: Model) -> bool:
        local = self._local()
        staying = sum(runner.phase is not Phase.DRAINING for runner in local)
        if staying < self._policy.max_loaded:
            return True
        victims = in_order(self._candidates(model))[:1]
        return bool(victims) and self._is_worth(model, victims)

    def _local(self) -> list[Runner]:
        return [runner for runner in self._runners.values() if not runner.terms.is_remote]

    def _candidates(self, model: Model, device: str | None = None) -> list[Candidate]:
        """Who may be evicted for `model`, and what that frees on `device`."""
        ahead = model.ahead if not model.waiting else None
        spares_unused = ahead is not None and ahead.kind == "asked"
        return [
            Candidate(
                runner=one.id,
                priority=one.terms.priority,
                worth=self._worth.get(one.model, 0.0),
                last_used=one.last_used,
                memory_bytes=one.bytes_on(device) if device is not None else 0,
            )
            for one in self._runners.values()
            if one.may_go and not (spares_unused and one.is_unused)
        ]

    def _is_worth(self, model: Model, victims: list[Candidate]) -> bool:
        """A prediction may take the place of others only where it is clearly worth more than they are."""
        ahead = model.ahead
        if model.waiting or ahead is None or ahead.kind != "predicted":
            return True
        return ahead.value >= WORTH_RATIO * sum(one.worth for one in victims) + WORTH_MORE

    def _on_reserve_answered(self, event: say.Reserved | say.ReserveRefused | say.ReserveFailed, now: float) -> None:
        name = self._holders.get(event.lease)
        hold = self._models[name].hold if name is not None else None
        if name is None or hold is None or hold.lease != event.lease or hold.state != "asked":
            if name is None and isinstance(event, say.Reserved):
                # It was given up while the answer was on its way.
                self._effects.append(say.Release(event.lease))
            return
        model = self._models[name]
        match event:
            case say.Reserved():
                hold.state, hold.device, hold.is_granted = "granted", event.device, event.is_granted
            case say.ReserveRefused(_, rooms, held_by):
                hold.state, hold.rooms, hold.held_by = "refused", rooms, held_by
                hold.retry_at = now + RETRY_S
                if hold.exits != self._exits:
                    # A process ended meanwhile: what was free is out of date.
                    hold.retry_at = now
                if rooms and all(room.needed_bytes > room.total_bytes for room in rooms):
                    self._give_memory_up(model, too_big(model, rooms), now)
            case say.ReserveFailed(_, error):
                self._give_memory_up(model, error, now)

    def _give_memory_up(self, model: Model, error: BusError, now: float) -> None:
        self._drop_hold(model)
        self._refuse_waiting(model, error)
        self._drop_ahead(model, error.message)
        model.not_ahead_before = now + QUARANTINE_S
        if model.terms.is_pinned:
            model.ahead = PINNED
        self._effects.append(say.Announce("failed", model.name, error.message))

    def _drop_hold(self, model: Model) -> None:
        hold, model.hold = model.hold, None
        if hold is None:
            return
        del self._holders[hold.lease]
        if hold.state != "refused":
            self._effects.append(say.Release(hold.lease))

    def _take_place(self, model: Model, hold: Hold, now: float) -> None:
        """The memory is there; with `max_loaded` models in it, one has to go."""
        local = self._local()
        staying = sum(runner.phase is not Phase.DRAINING for runner in local)
        leaving = len(local) - staying
        if (staying if hold.is_granted else len(local)) < self._policy.max_loaded:
            self._start_load(model, now)
            return
        if not hold.is_granted and leaving > self._promised:
            self._promised += 1
            return
        victims = in_order(self._candidates(model))[:1]
        if not victims or not self._is_worth(model, victims):
            self._on_no_room(model, "now")
            if hold.is_granted:
                # Others may use it until a model becomes idle.
                self._drop_hold(model)
        elif hold.is_granted:
            # The new model needs nothing of the old one's: load it first, it is waited for.
            self._start_load(model, now)
            self._evict(victims, model, now)
        else:
            self._promised += 1
            self._evict(victims, model, now)

    def _free_memory(self, model: Model, hold: Hold, now: float) -> None:
        """The memory is not there: evict what is enough, wait for what leaves, or ask again."""
        if hold.retry_at <= now or hold.exits != self._exits:
            self._reserve(model, now)
            return
        leaving = [one for one in self._runners.values() if one.phase is Phase.DRAINING]
        best: list[Candidate] | None = None
        for room in hold.rooms:
            missing = room.needed_bytes - room.free_bytes - sum(one.bytes_on(room.device) for one in leaving)
            if missing <= 0:
                return
            victims = enough_for(missing, self._candidates(model, room.device))
            if victims is not None and self._is_worth(model, victims) and (best is None or len(victims) < len(best)):
                best = victims
        if best is None:
            self._on_no_room(model, "now")
        else:
            self._evict(best, model, now)

    def _evict(self, victims: list[Candidate], model: Model, now: float) -> None:
        for victim in victims:
            order = "least likely to be wanted" if self._worth else "least recently used"
            reason = f"priority {victim.priority}, {order}, to make room for {model.name}"
            self._send_away(self._runners[victim.runner], "evicted", reason, now)

    def _on_no_room(self, model: Model, when: str) -> None:
        """Nothing may go for it. Requests wait for what becomes idle, or are refused, as the policy says."""
        if self._policy.when_full == "refuse":
            self._refuse_waiting(model, self._no_room(model, when))
        if model.ahead is not None and model.ahead.kind != "pinned":
            self._drop_ahead(model, self._no_room(model, when).message)

    def _no_room(self, model: Model, when: str) -> Overloaded:
        local = self._local()
        used = sorted(one.model for one in local if one.is_in_use)
        kept = sorted(one.model for one in local if not one.is_in_use)
        there = [f"in use are {', '.join(used)}"] * bool(used) + [f"kept are {', '.join(kept)}"] * bool(kept)
        hold = model.hold
        if hold is not None and hold.state == "refused":
            rooms = ", ".join(f"{room.free_bytes} of {room.total_bytes} on {room.device}" for room in hold.rooms)
            needed = max((room.needed_bytes for room in hold.rooms), default=model.terms.memory_bytes)
            return Overloaded(
                f"no room for {model.name} {when}: it takes {needed} bytes, free are {rooms or 'none'}"
                f"{f' (held by {hold.held_by})' if hold.held_by else ''}{', '.join(['', *there])}",
                model=model.name,
                needed_bytes=needed,
                free_bytes=max((room.free_bytes for room in hold.rooms), default=0),
                in_use=used,
            )
        return Overloaded(
            f"no room for {model.name} {when}: models.max_loaded is {self._policy.max_loaded}"
            f" and {', '.join(there) or 'others go first'}",
            model=model.name,
            in_use=used,
            max_loaded=self._policy.max_loaded,
        )

    def _start_load(self, model: Model, now: float) -> None:
        id = self._spares.pop(0) if self._spares else self._spawn()
        asked = model.wish.context_tokens if model.wish is not None else None
        hold, ahead = model.hold, model.ahead
        model.hold, model.ahead = None, None
        self._wanted.remove(model.name)
        device = hold.device if hold is not None else None
        lease = hold.lease if hold is not None else None
        reason = f"wanted by {len(model.waiting)} waiting" if model.waiting else ahead.why if ahead else ""
        terms = model.terms
        runner = Runner(
            id=id,
            model=model.name,
            phase=Phase.LOADING,
            told_at=now,
            terms=terms,
            device=device,
            memory_bytes=terms.memory_bytes,
            beside_bytes=terms.beside_bytes,
            lease=lease,
            context_tokens=asked,
        )
        if ahead is not None and ahead.is_preload and not model.waiting:
            runner.is_unused, runner.why = True, reason
            runner.unused_until = now + ahead.horizon_s if ahead.horizon_s is not None else None
        self._runners[id], model.runner = runner, runner
        if ahead is not None and ahead.request is not None and self._requests.pop(ahead.request, None) is not None:
            self._effects.append(say.Done(ahead.request, 0.0))
        self._announce("loading", runner, reason)
        self._effects.append(say.Load(id, model.name, asked, device, lease))

    def _on_asked_back(self, event: say.AskedBack, now: float) -> None:
        runner = next((one for one in self._runners.values() if one.lease == event.lease), None)
        if runner is not None:
            runner.asked_back_by, runner.asked_back_until = event.wanted_by, now + ASKED_BACK_S

    def _spawn(self) -> int:
        self._last_runner += 1
        self._effects.append(say.Spawn(self._last_runner))
        return self._last_runner

    def _top_up(self, now: float) -> None:
        """Keep spares ready, but not while a load or the first answer after it needs the cores."""
        if any(until > now for until in self._first_answers()):
            return
        while self._lacks_spares():
            self._spares.append(self._spawn())

    def _lacks_spares(self) -> bool:
        return len(self._spares) < self._policy.spare_runners and self._spare_failures < SPARE_FAILURES

    def _first_answers(self) -> list[float]:
        """Until when each load, and the first answer after it, may take."""
        runners = self._runners.values()
        loading = [one.told_at + self._policy.load_timeout_s for one in runners if one.phase is Phase.LOADING]
        return loading + [one.loaded_at + SPARE_PAUSE_S for one in runners if one.loaded_at and one.is_in_use]

    # Names

    def _model(self, name: str) -> Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = Model(name, say.Terms())
        return model

    def _forget(self, now: float) -> None:
        """Names that nothing is known of any more cost nothing."""
        for model in list(self._models.values()):
            if model.not_ahead_before <= now:
                model.not_ahead_before = 0.0
            if model.is_forgettable:
                del self._models[model.name]
