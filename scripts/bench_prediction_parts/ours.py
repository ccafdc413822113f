"""The service's own scheduler and predictor, as in production, on a machine of events: no process, no clock, no sleep."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from bench_prediction_parts.machine import ANSWER_S, Machine, Outcome, outcome_of
from bench_prediction_parts.traces import Trace
from workers.models import decisions as say
from workers.models.loading import HORIZON_S
from workers.models.prediction import Predictor
from workers.models.scheduler import Scheduler

DEVICE: Final = "gpu0"

# When production looks ahead: so long after a request, and at this interval (workers.models.loading).
SOON_S: Final = 0.5
LOOK_S: Final = 5.0


class Replay:
    """One trace, once. keep_alive_s: how long an idle model stays, -1 for good. predictor: None loads on demand alone."""

    def __init__(self, trace: Trace, machine: Machine, learn: float, keep_alive_s: float, predictor: Predictor | None):
        self.outcome: Outcome = outcome_of(trace, learn)
        # Seconds of this computer that looking ahead took, and how often it did.
        self.look_s, self.looks = 0.0, 0
        self._trace, self._machine, self._predictor = trace, machine, predictor
        self._terms = {
            model: say.Terms(memory_bytes=size, device=DEVICE, keep_alive_s=keep_alive_s)
            for model, size in trace.sizes.items()
        }
        self._scheduler = Scheduler(say.Policy(max_loaded=64, spare_runners=0, load_timeout_s=600))
        self._leases: dict[int, int] = {}
        self._models: dict[int, str] = {}
        self._loading: dict[int, float] = {}
        self._loader_free_at = 0.0
        self._answering: dict[int, int] = {}
        self._ahead_bytes: dict[str, int] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._soon_at = 0.0

    def run(self) -> Replay:
        """Replay to the last request."""
        for number, (at, model) in enumerate(self._trace.requests):
            self._at(at, lambda number=number, model=model: self._arrive(number, model))  # type: ignore[misc]
        end = self._trace.requests[-1][0]
        if self._predictor is not None:
            self._at(LOOK_S, self._look_regularly)
        while self._agenda:
            wakeup = self._scheduler.next_wakeup()
            if wakeup is not None and wakeup < self._agenda[0][0]:
                self._now = max(wakeup, self._now)
                self._feed(say.Tick())
                continue
            at, _, act = heapq.heappop(self._agenda)
            if at > end + 600:
                break
            self._now = at
            act()
        return self

    def _at(self, at: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at, next(self._order), act))

    def _arrive(self, number: int, model: str) -> None:
        if self._predictor is not None:
            callers = self._trace.callers
            self._predictor.record(model, self._now, callers[number] if callers else "")
            if self._soon_at <= self._now:
                self._soon_at = self._now + SOON_S
                self._at(self._soon_at, self._look)
        self._feed(say.Arrived(request=number, model=model, terms=self._terms[model]))

    def _look_regularly(self) -> None:
        self._look()
        if self._now < self._trace.requests[-1][0]:
            self._at(self._now + LOOK_S, self._look_regularly)

    def _look(self) -> None:
        assert self._predictor is not None
        begin = time.perf_counter()
        forecasts = self._predictor.predict(self._now, HORIZON_S)
        self.look_s, self.looks = self.look_s + time.perf_counter() - begin, self.looks + 1
        likely = tuple(
            say.Likely(
                model=one.model, probability=one.probability, value=one.value, terms=self._terms[one.model], why=""
            )
            for one in forecasts
        )
        self._feed(say.Expected(likely, HORIZON_S))

    def _feed(self, event: say.Event) -> None:
        """Tell the scheduler, and do what it wants; what that leads to at once is told in its turn."""
        events = deque([event])
        while events:
            for effect in self._scheduler.handle(events.popleft(), self._now):
                events.extend(self._do(effect))

    def _do(self, effect: say.Effect) -> list[say.Event]:
        match effect:
            case say.Reserve():
                return [self._reserve(effect)]
            case say.Release(lease):
                self._leases.pop(lease, None)
            case say.Load(runner, model):
                self._load(runner, model)
            case say.Drain(runner) | say.Kill(runner):
                return self._end(runner)
            case say.Forward(request, runner, waited_s):
                self.outcome.served(self._trace.requests[request][0], waited_s)
                self._answering[runner] = self._answering.get(runner, 0) + 1
                self._at(self._now + ANSWER_S, lambda: self._answered(request, runner))
                return [say.Busy(runner, self._answering[runner])]
            case say.Refuse(request):
                at = self._trace.requests[request][0]
                self.outcome.refuse(at, self._now - at)
            case say.Announce("preloaded", model):
                self.outcome.ahead += 1
                self._ahead_bytes[model] = self._trace.sizes[model]
            case say.Judged(model, is_hit):
                self.outcome.ahead_used += is_hit
                wasted = self._ahead_bytes.pop(model, 0)
                self.outcome.wasted_bytes += 0 if is_hit else wasted
        return []

    def _reserve(self, effect: say.Reserve) -> say.Event:
        free = self._machine.memory_bytes - sum(self._leases.values())
        if effect.memory_bytes <= free:
            self._leases[effect.lease] = effect.memory_bytes
            return say.Reserved(effect.lease, DEVICE)
        room = say.Room(DEVICE, self._machine.memory_bytes, free, effect.memory_bytes)
        return say.ReserveRefused(effect.lease, (room,), "")

    def _load(self, runner: int, model: str) -> None:
        size = self._trace.sizes[model]
        self.outcome.loaded(self._now, size)
        begin = max(self._now, self._loader_free_at)
        self._loader_free_at = begin + self._machine.load_s(size)
        self._models[runner], self._loading[runner] = model, begin
        self._at(self._loader_free_at, lambda: self._loaded(runner))

    def _loaded(self, runner: int) -> None:
        if self._loading.pop(runner, None) is not None:
            self._feed(say.Loaded(runner))

    def _end(self, runner: int) -> list[say.Event]:
        """Nothing is in flight when a runner is sent away; one that loads leaves the disk to the next."""
        if runner not in self._models:
            return []
        model = self._models.pop(runner)
        begun = self._loading.pop(runner, None)
        if begun is not None:
            # Read in vain is what was read by now.
            self._loader_free_at = self._now
            read = int(max(self._now - begun, 0) * self._machine.bytes_per_s)
            self.outcome.wasted_bytes += min(read, self._trace.sizes[model])
        return [say.Exited(runner, "exit code 0")]

    def _answered(self, request: int, runner: int) -> None:
        self._answering[runner] -= 1
        self._feed(say.Ended(request))
        self._feed(say.Busy(runner, self._answering[runner]))
