"""Other policies on the same machine: by frequency, by timeouts alone, and with knowledge of what will be asked."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from bench_prediction_parts.machine import ANSWER_S, Machine, Outcome, outcome_of
from bench_prediction_parts.traces import Trace

# Requests ahead that the clairvoyant looks through for what to load next; far more than fit into memory.
_AHEAD: Final = 60


class Policy:
    """Loads on demand; when there is no room, evicts in the order of `rank`, lowest first, what is idle before the rest."""

    def __init__(self, trace: Trace, machine: Machine, learn: float) -> None:
        self.outcome: Outcome = outcome_of(trace, learn)
        self.trace, self.machine = trace, machine
        # From when on each model in memory serves, and until when it answers.
        self.ready: dict[str, float] = {}
        self.busy: dict[str, float] = defaultdict(float)
        self.unused: dict[str, int] = {}
        # The model that is being loaded ahead of need, and when it will be there.
        self.coming: tuple[str, float] | None = None
        self.loader_free_at = 0.0

    def run(self) -> Outcome:
        """Replay the whole trace."""
        for number, (at, model) in enumerate(self.trace.requests):
            self.between(self.trace.requests[number - 1][0] if number else 0.0, at)
            self.expire(at)
            self.serve(at, model)
        self.outcome.wasted_bytes += sum(self.unused.values())
        return self.outcome

    def rank(self, model: str, now: float) -> float:
        """Who is evicted first: the lowest."""
        raise NotImplementedError

    def between(self, before: float, now: float) -> None:
        """What is done while nobody asks."""

    def expire(self, now: float) -> None:
        """Let go what has been idle for too long."""

    def serve(self, at: float, model: str) -> None:
        """One request."""
        start = at
        if model in self.ready:
            start = max(at, self.ready[model])
        elif self.coming is not None and self.coming[0] == model:
            start = self.coming[1]
            self.ready[model], self.coming, self.loader_free_at = start, None, start
        else:
            start = self.load(at, model)
        if self.unused.pop(model, None) is not None:
            self.outcome.ahead_used += 1
        self.busy[model] = max(self.busy[model], start + ANSWER_S)
        self.outcome.served(at, start - at)
        self.used(model)

    def used(self, model: str) -> None:
        """A model was used."""

    def load(self, at: float, model: str) -> float:
        """Load because somebody waits, at the cost of what was coming ahead of need; when it is there."""
        if self.coming is not None:
            name, ready_at = self.coming
            begun = ready_at - self.machine.load_s(self.trace.sizes[name])
            self.outcome.wasted_bytes += int(max(at - begun, 0) * self.machine.bytes_per_s)
            self.coming = None
        start = max(at, self.loader_free_at)
        for victim in self.victims(model, start, self.by_rank(self.ready, start)):
            start = max(start, self.busy[victim])
            self.evict(victim)
        self.outcome.loaded(at, self.trace.sizes[model])
        ready_at = start + self.machine.load_s(self.trace.sizes[model])
        self.ready[model] = self.loader_free_at = ready_at
        return ready_at

    def by_rank(self, models: Iterable[str], now: float) -> list[str]:
        """Idle ones by rank, then the others by when they become idle."""
        return sorted(models, key=lambda one: (max(self.busy[one] - now, 0.0), self.rank(one, now)))

    def victims(self, model: str, now: float, order: list[str]) -> list[str]:
        """The first of `order` that make room for `model`."""
        missing, chosen = self.trace.sizes[model] - self.free(), list[str]()
        for victim in order:
            if missing <= 0:
                break
            chosen.append(victim)
            missing -= self.trace.sizes[victim]
        return chosen

    def free(self) -> int:
        """Bytes of memory that nothing holds."""
        held = sum(self.trace.sizes[one] for one in self.ready)
        return self.machine.memory_bytes - held - (self.trace.sizes[self.coming[0]] if self.coming else 0)

    def evict(self, model: str) -> None:
        """Take a model out of memory."""
        del self.ready[model]
        self.outcome.wasted_bytes += self.unused.pop(model, 0)


class Frequency(Policy):
    """LFU: the model asked for least often so far leaves first."""

    def __init__(self, trace: Trace, machine: Machine, learn: float) -> None:
        super().__init__(trace, machine, learn)
        self._uses: dict[str, int] = defaultdict(int)

    def used(self, model: str) -> None:
        self._uses[model] += 1

    def rank(self, model: str, now: float) -> float:
        return self._uses[model]


class TimeoutAlone(Policy):
    """Nothing is evicted for another model: who finds no room waits until enough of what is there was idle for 300 s."""

    KEEP_S: Final = 300.0

    def rank(self, model: str, now: float) -> float:
        return self.busy[model]

    def expire(self, now: float) -> None:
        for model in [one for one in self.ready if self.busy[one] + self.KEEP_S <= now]:
            self.evict(model)

    def victims(self, model: str, now: float, order: list[str]) -> list[str]:
        chosen = super().victims(model, now, sorted(order, key=lambda one: self.busy[one]))
        for victim in chosen:
            self.busy[victim] = max(self.busy[victim] + self.KEEP_S, now)
        return chosen


class Clairvoyant(Policy):
    """Knows every request: evicts what is needed last (Belady), and while the disk is idle loads what is needed next.

    The rule is that of aggressive prefetching: the next model that is missing, in the place of those needed latest, and
    never in the place of one needed sooner (P. Cao and others, A Study of Integrated Prefetching and Caching Strategies,
    1995). With sizes and one disk that is no proven optimum; none of the policies here comes near it.
    """

    def __init__(self, trace: Trace, machine: Machine, learn: float) -> None:
        super().__init__(trace, machine, learn)
        self._times = [at for at, _ in trace.requests]
        self._uses: dict[str, list[float]] = defaultdict(list)
        for at, model in trace.requests:
            self._uses[model].append(at)

    def rank(self, model: str, now: float) -> float:
        return -self._next(model, now)

    def between(self, before: float, now: float) -> None:
        """Look again whenever the disk is free or a model has become idle."""
        moment = before
        while moment < now:
            if self.coming is not None:
                name, ready_at = self.coming
                if ready_at > now:
                    return
                moment, self.coming = max(moment, ready_at), None
                self.ready[name], self.unused[name] = ready_at, self.trace.sizes[name]
            if moment >= self.loader_free_at:
                self._load_next(moment)
            if self.coming is None:
                later = [one for one in (self.loader_free_at, *self.busy.values()) if moment < one < now]
                moment = min(later, default=now)

    def _next(self, model: str, now: float) -> float:
        uses = self._uses[model]
        place = bisect_right(uses, now)
        return uses[place] if place < len(uses) else math.inf

    def _load_next(self, now: float) -> None:
        begin = bisect_right(self._times, now)
        seen: set[str] = set()
        for at, model in self.trace.requests[begin : begin + _AHEAD]:
            if model in self.ready or model in seen:
                continue
            seen.add(model)
            idle = [one for one in self.ready if self.busy[one] <= now and self.ready[one] <= now]
            victims = self.victims(model, now, self.by_rank(idle, now))
            freed = sum(self.trace.sizes[one] for one in victims)
            if freed + self.free() < self.trace.sizes[model] or any(self._next(one, now) <= at for one in victims):
                continue
            for victim in victims:
                self.evict(victim)
            self.coming = (model, now + self.machine.load_s(self.trace.sizes[model]))
            self.outcome.ahead += 1
            self.outcome.loaded(now, self.trace.sizes[model])
            return


OTHERS: Final[dict[str, Callable[[Trace, Machine, float], Policy]]] = {
    "LFU": Frequency,
    "timeout alone": TimeoutAlone,
    "clairvoyant": Clairvoyant,
}
