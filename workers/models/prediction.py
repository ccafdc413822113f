"""Which models will be asked for soon, learned from the requests so far. Pure: it knows no clock and loads nothing.

Several simple views of usage each give a chance that a model is asked for within a horizon:

    rates             how often it was used, over three memories (five minutes, an hour, a day)
    gap               how long its own pauses are, given how long this one is by now      cron jobs, bursts
    hour, day, week   whether it was used at this time of earlier hours, days and weeks
    last, earlier     what came after the last model, or an earlier one, and how long after     pipelines, interleaved
    pair              the same after two models in order: tells pipelines apart that share a step
    next              which model comes next after the last one, and when at this pace               people, agents

What follows what, and at what pace, is learned for each caller alone, where callers are known: what another one asks for
meanwhile follows nothing of theirs. `next` takes a caller for a semi-Markov process whose pauses are all of one kind, so
that little usage teaches much; the other views of followers keep the pauses of each pair of models apart.

Their chances are mixed as in context-mixing compressors: a weighted sum of logits is the logit of the answer (M. Mahoney,
Adaptive Weighing of Context Models for Lossless Data Compression, 2005), and every outcome moves the weights by gradient
descent on the coding cost. So a view that knows nothing in this installation soon says nothing. `scripts/bench_prediction.py`
measures what it is worth.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from operator import mul
from typing import Final

import msgspec


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may be wanted. probability: of a request within the horizon. expected_at: Unix epoch seconds.

    value: what having it in memory is worth, from 0 to 1: the chance of a request, where a late one counts less than a
    soon one; 0 while forecasts have been no better than recency, so that nothing is done on their word. Who has to choose
    between two models keeps the one of more value. why: what it rests on, for a person.
    """

    model: str
    probability: float
    value: float
    expected_at: float
    why: str


# Seconds for which chances are mixed, each with weights of its own; other horizons lie between them. The shortest is
# about what a large model takes to load, the longest about the pause after which people have gone.
HORIZONS: Final = (15.0, 60.0, 300.0, 1_800.0)

# What the chance within each horizon counts in a model's value. Chosen on generated traces (scripts/bench_prediction.py,
# seeds 1000 to 1003): a longer view keeps what is used often instead of what is used next.
_VALUE: Final = (0.5, 0.4, 0.08, 0.02)

# Models remembered; past that the one unused longest is forgotten. One takes up to 10 kB.
MAX_MODELS: Final = 256

# Models that a forecast looks at, and those that one lesson is about: the last ones used. More cost time and are never
# all wanted at once.
_CANDIDATES: Final = 64
_TAUGHT: Final = 12

# Own pauses remembered of each model.
_GAPS: Final = 128

# Callers that are remembered, and models of each after which is known what came next. At so many cases of one model all
# its counts are halved, so that new habits outweigh old ones.
_CALLERS: Final = 64
_LEFT: Final = 64
_STEPS: Final = 128

# Contexts (one model, or two in order, of a caller) whose followers are remembered, occurrences of each, followers of each.
MAX_CONTEXTS: Final = 512
_OCCURRENCES: Final = 48
_FOLLOWERS: Final = 8

# Of several contexts of a kind, or callers, the one is asked that promises most within this horizon.
_SOON: Final = 1
_SOON_S: Final = HORIZONS[_SOON]

# Seconds in which something counts as following, and occurrences that are open for followers at once.
_FOLLOW_S: Final = 900.0
_OPEN: Final = 24

# What usually follows sooner than this part of the time that has passed will not follow any more; later, it is late.
_LATE: Final = 0.75

# Two requests this close are one use: a burst says nothing about pauses.
_SAME_USE_S: Final = 2.0

# A clock that is set back by more is taken as set anew: what is remembered moves with it.
_SET_BACK_S: Final = 60.0

# Jitter allowed to a pause: this part of it, and not more seconds than that.
_JITTER: Final = 0.05
_JITTER_MAX_S: Final = 20.0

# Minutes of the map of uses: four weeks.
_MAP_MINUTES: Final = 28 * 24 * 60
_MAP_MASK: Final = (1 << _MAP_MINUTES) - 1

# Minutes of a period, periods looked back, and minutes that a use may be early or late.
_PERIODS: Final = ((60, 8, 1), (24 * 60, 7, 2), (7 * 24 * 60, 4, 5))

# Minutes of the longest horizon, begun ones included.
_LONGEST_MINUTES: Final = 31

_RATES_S: Final = (300.0, 3_600.0, 86_400.0)

_VIEWS: Final = ("rate5", "rate60", "rate1440", "gap", "hour", "day", "week", "earlier", "pair", "last", "next")
_BASES: Final = len(_RATES_S)

# A forecast is followed only while it beats recency. Each request asks: was its model among the first _PLACES by value,
# and was it among the last _PLACES used (with few models: all but one)? Where one was right and the other wrong, that
# counts, and less with each request after (_FORGET). Value is believed while it leads by so many standard deviations of a
# fair coin (McNemar's test, 1947). Without this, usage that has no pattern is served worse than by evicting what was used
# least recently; with one standard deviation, that still happened now and then.
_PLACES: Final = 3
_FORGET: Final = 0.995
_LEAD: Final = 1.5
_LEAD_MIN: Final = 4.0

# How fast outcomes move the weights, and where they begin: as the mean of the rates, and a part of what each other view
# knows beyond them, smaller for the last four, which know much of the same. Faster forgets what is true for most; slower
# learns a new installation too late (bench_prediction).
_LEARNING: Final = 0.01
_FIRST_WEIGHTS: Final = (*(1 / 3,) * _BASES, *(0.6,) * 4, *(0.45,) * 4, 0.0)

# Weights are kept apart by how long a model has been unused, in seconds: what tells of a pause in a conversation tells
# nothing of the next day.
_AGES_S: Final = (60.0, 900.0)

# Standard errors by which a view must differ from the rates before it is believed. Chosen as _VALUE was.
_SURE: Final = 0.5

# Lessons that wait for their outcome, and seconds after a request in which one is taken.
_LESSONS: Final = 64
_LESSON_S: Final = 600.0

# Logits are cut there: a chance of one in ten thousand, or all but that.
_LOGIT: Final = 9.2
_RAREST: Final = 1 / (1 + math.exp(_LOGIT))

_VERSION: Final = 4

# A context: the caller, "" for nobody known, and one model or two in order.
_Key = tuple[str, ...]


class _Durations:
    """The last _GAPS durations in seconds, in the order in which they came and by length."""

    __slots__ = ("latest", "sorted")

    def __init__(self, latest: Sequence[float] = ()) -> None:
        self.latest = deque(latest[-_GAPS:])
        self.sorted = sorted(self.latest)

    def add(self, duration: float) -> None:
        if len(self.latest) == _GAPS:
            del self.sorted[bisect_left(self.sorted, self.latest.popleft())]
        self.latest.append(duration)
        insort(self.sorted, duration)


class _Usage:
    """What is known of one model alone."""

    def __init__(self, at: float) -> None:
        self.first = at
        self.last = at
        self.rates = [0.0] * len(_RATES_S)
        self.gaps = _Durations()
        # One bit a minute, the lowest is the minute `map_end`.
        self.map = 0
        self.map_end = int(at // 60)
        # What `period_chances` counted last, and in which minute; -1 for not since the last use.
        self.counted: list[tuple[int, list[int]]] = []
        self.counted_at = -1

    def use(self, at: float) -> None:
        gap = at - self.last
        self.rates = [count * math.exp(-gap / span_s) + 1 for count, span_s in zip(self.rates, _RATES_S, strict=True)]
        if gap > _SAME_USE_S:
            self.gaps.add(gap)
        self.last = at
        self.counted_at = -1
        minute = int(at // 60)
        if minute > self.map_end:
            self.map = self.map << min(minute - self.map_end, _MAP_MINUTES) & _MAP_MASK
            self.map_end = minute
        self.map |= 1

    def set_back(self, by_s: float) -> None:
        self.first -= by_s
        self.last -= by_s
        self.map_end -= int(by_s // 60)
        self.counted_at = -1

    def rates_per_s(self, now: float) -> list[float]:
        """Uses a second, over each memory; a memory that is not full yet is divided by what it could hold."""
        age, known_s = now - self.last, max(now - self.first, 60.0)
        return [
            count * math.exp(-age / span_s) / (span_s * (1 - math.exp(-known_s / span_s)))
            for count, span_s in zip(self.rates, _RATES_S, strict=True)
        ]

    def gap_chances(self, now: float, base: Sequence[float]) -> list[float] | None:
        """Of the pauses that were longer than this one is by now, the part that ended within each horizon from here."""
        age = now - self.last
        gaps = self.gaps.sorted
        begin = bisect_right(gaps, age - min(_JITTER * age, _JITTER_MAX_S))
        longer = len(gaps) - begin
        if len(gaps) < 2 or not longer:
            return None
        ends = [bisect_right(gaps, age + horizon) - begin for horizon in HORIZONS]
        return _all_beyond(ends, longer, base)

    def period_chances(self, now: float, base: Sequence[float]) -> list[list[float] | None]:
        """For each of _PERIODS: of the last ones, the part with a use at this time of it or within each horizon after."""
        minute = int(now // 60)
        if self.counted_at != minute:
            self.counted_at, self.counted = minute, [self._count(now, minute, period) for period in _PERIODS]
        return [_all_beyond(counts, looked, base) if looked else None for looked, counts in self.counted]

    def _count(self, now: float, minute: int, period: tuple[int, int, int]) -> tuple[int, list[int]]:
        """Periods looked at, and those with a use by the end of each horizon."""
        minutes, back, margin = period
        back = min(back, int((now - self.first) / 60 / minutes))
        passed = minute - self.map_end
        looked, counts = 0, [0] * len(HORIZONS)
        for number in range(1, back + 1):
            # Bits of the map from the early margin of the window (the higher one) to the end of the longest horizon.
            high = number * minutes + margin - passed
            if high < 0:
                continue
            low = max(high - 2 * margin - _LONGEST_MINUTES, 0)
            looked += 1
            bits = self.map >> low & ((1 << (high - low + 1)) - 1)
            if bits:
                after = high - low - (bits.bit_length() - 1) - 2 * margin
                counts = [count + (after <= horizon / 60) for count, horizon in zip(counts, HORIZONS, strict=True)]
        return looked, counts


class _Context:
    """What followed a model, or two in order: seconds to the first use of each follower, of the last occurrences.

    An occurrence ends when it occurs anew, or is no longer watched: what had not followed by then might have later.
    """

    __slots__ = ("ends", "followed", "lags")

    def __init__(self) -> None:
        self.followed: deque[tuple[float, dict[str, float]]] = deque()
        self.ends: list[float] = []
        # Of each follower: its lags, and the ends of the occurrences that it followed.
        self.lags: dict[str, tuple[list[float], list[float]]] = {}

    def add(self, end: float, followers: dict[str, float]) -> None:
        if len(self.followed) == _OCCURRENCES:
            self._forget(*self.followed.popleft())
        self.followed.append((end, followers))
        insort(self.ends, end)
        for model, lag in followers.items():
            lags, ends = self.lags.setdefault(model, ([], []))
            insort(lags, lag)
            insort(ends, end)

    def _forget(self, end: float, followers: dict[str, float]) -> None:
        del self.ends[bisect_left(self.ends, end)]
        for model, lag in followers.items():
            lags, ends = self.lags[model]
            del lags[bisect_left(lags, lag)], ends[bisect_left(ends, end)]
            if not lags:
                del self.lags[model]


class _Caller:
    """One caller's requests in order: the last models, what came next after each, and the pauses between any two."""

    def __init__(self) -> None:
        self.recent: deque[str] = deque(maxlen=4)
        self.last = ""
        self.at = 0.0
        self.pauses = _Durations()
        self.steps: OrderedDict[str, dict[str, float]] = OrderedDict()

    def ask(self, model: str, at: float) -> None:
        if self.last:
            self.pauses.add(at - self.at)
            self._step(model)
        self.last, self.at = model, at

    def _step(self, model: str) -> None:
        counts = self.steps.setdefault(self.last, {})
        counts[model] = counts.get(model, 0.0) + 1
        if math.fsum(counts.values()) >= _STEPS:
            self.steps[self.last] = {name: count / 2 for name, count in counts.items() if count > 1}
        self.steps.move_to_end(self.last)
        if len(self.steps) > _LEFT:
            self.steps.popitem(last=False)

    def next_within(self, now: float) -> list[float]:
        """Of the pauses that were longer than this one is by now, the part that ended within each horizon from here."""
        age = now - self.at
        pauses = self.pauses.sorted
        begin = bisect_right(pauses, age)
        # As if there had been one more that lasts: of few cases no chance is certain.
        cases = len(pauses) - begin + 1
        return [(bisect_right(pauses, age + horizon) - begin) / cases for horizon in HORIZONS]


class _Occurrence(msgspec.Struct):
    """A context that has just occurred, and what has followed so far."""

    key: _Key
    at: float
    followers: dict[str, float] = {}


class _View(msgspec.Struct):
    """What the views say of one model: for each horizon, what the weights are multiplied with."""

    group: int
    inputs: list[list[float]]
    # Of the contexts: the one that speaks for it most, to tell a person.
    after: str = ""


class _Lesson(msgspec.Struct):
    """A forecast whose outcome is awaited: at which instant, and for each horizon the models that were used since."""

    at: float
    views: dict[str, _View]
    used: list[set[str] | None]


class _Kept(msgspec.Struct):
    """A Predictor as bytes."""

    version: int
    now: float | None
    usage: list[tuple[str, float, float, list[float], list[float], bytes, int]]
    contexts: list[tuple[list[str], list[tuple[float, dict[str, float]]]]]
    callers: list[tuple[str, list[float], dict[str, dict[str, float]]]]
    weights: list[list[list[float]]]
    lessons: int
    ahead: float
    behind: float


class Predictor:
    """Learns from `record`, tells by `predict`. Memory is bounded however many models there are.

    The instants may be of any clock that runs like Unix time. One that is set back does no harm: a little is taken as no
    time at all, and with more the memories move along.
    """

    def __init__(self) -> None:
        self._usage: OrderedDict[str, _Usage] = OrderedDict()
        self._contexts: OrderedDict[_Key, _Context] = OrderedDict()
        self._open: deque[_Occurrence] = deque()
        self._callers: OrderedDict[str, _Caller] = OrderedDict()
        self._now: float | None = None
        self._weights = [[list(_FIRST_WEIGHTS) for _ in range(len(_AGES_S) + 1)] for _ in HORIZONS]
        self._lessons: deque[_Lesson] = deque()
        self._taken = 0
        # Requests that value foresaw and recency did not, and the other way round.
        self._ahead = self._behind = 0.0

    def record(self, model: str, at: float, caller: str = "") -> None:
        """Note a request for `model` at `at` (Unix epoch seconds) by `caller`, "" where nobody knows who asks."""
        if self._now is not None:
            if self._now - at > _SET_BACK_S:
                self._set_back(self._now - at)
            at = max(at, self._now)
            self._take_lesson(self._now, at, model)
        self._now = at
        self._learn_from(model, at)
        self._follow(model, at, caller)
        self._use(model, at)

    def predict(self, now: float, horizon_s: float) -> list[Forecast]:
        """The models of which a request within `horizon_s` seconds of `now` can be said anything, likeliest first."""
        now = max(now, self._now) if self._now is not None else now
        forecasts, is_trusted = [], self._is_trusted()
        for model, view in self._views(now, self._last_used(_CANDIDATES)).items():
            chances = self._chances(view)
            forecasts.append(
                Forecast(
                    model=model,
                    probability=_at_horizon(chances, horizon_s),
                    value=_value(chances) if is_trusted else 0.0,
                    expected_at=now + _expected_in(chances),
                    why=self._why(model, view, horizon_s, now),
                )
            )
        return sorted(forecasts, key=lambda one: (-one.probability, -one.value))

    def to_bytes(self) -> bytes:
        """What was learned, for `from_bytes`."""
        kept = _Kept(
            version=_VERSION,
            now=self._now,
            usage=[
                (name, one.first, one.last, one.rates, list(one.gaps.latest), _pack(one.map), one.map_end)
                for name, one in self._usage.items()
            ],
            contexts=[(list(key), list(one.followed)) for key, one in self._contexts.items()],
            callers=[(name, list(one.pauses.latest), dict(one.steps)) for name, one in self._callers.items()],
            weights=self._weights,
            lessons=self._taken,
            ahead=self._ahead,
            behind=self._behind,
        )
        return msgspec.msgpack.encode(kept)

    @classmethod
    def from_bytes(cls, data: bytes) -> Predictor:
        """The Predictor that `to_bytes` wrote. What another version wrote, or is damaged, gives one that knows nothing."""
        predictor = cls()
        try:
            kept = msgspec.msgpack.decode(data, type=_Kept)
        except msgspec.DecodeError:
            return predictor
        shape = [[len(_FIRST_WEIGHTS)] * (len(_AGES_S) + 1)] * len(HORIZONS)
        if kept.version != _VERSION or [[len(one) for one in group] for group in kept.weights] != shape:
            return predictor
        predictor._now, predictor._weights, predictor._taken = kept.now, kept.weights, kept.lessons
        predictor._ahead, predictor._behind = kept.ahead, kept.behind
        for name, first, last, rates, gaps, bits, map_end in kept.usage[-MAX_MODELS:]:
            usage = predictor._usage[name] = _Usage(first)
            usage.last, usage.rates, usage.map, usage.map_end = last, rates, int.from_bytes(bits, "little"), map_end
            usage.gaps = _Durations(gaps)
        for key, followed in kept.contexts[-MAX_CONTEXTS:]:
            context = predictor._contexts[tuple(key)] = _Context()
            for end, followers in followed[-_OCCURRENCES:]:
                context.add(end, followers)
        for name, pauses, steps in kept.callers[-_CALLERS:]:
            caller = predictor._callers[name] = _Caller()
            caller.pauses, caller.steps = _Durations(pauses), OrderedDict(steps)
        return predictor

    # Remembering

    def _use(self, model: str, at: float) -> None:
        usage = self._usage.get(model)
        if usage is None:
            if len(self._usage) >= MAX_MODELS:
                self._usage.popitem(last=False)
            usage = self._usage[model] = _Usage(at)
        usage.use(at)
        self._usage.move_to_end(model)

    def _follow(self, model: str, at: float, caller: str) -> None:
        """Tell the caller's open occurrences what followed, and open those that this use is."""
        for one in self._open:
            if one.key[0] == caller and len(one.followers) < _FOLLOWERS:
                one.followers.setdefault(model, at - one.at)
        while self._open and at - self._open[0].at > _FOLLOW_S:
            self._close(self._open.popleft(), at)
        usage, asking = self._usage.get(model), self._caller(caller)
        asking.ask(model, at)
        recent = asking.recent
        if usage is not None and at - usage.last <= _SAME_USE_S and recent and recent[-1] == model:
            return
        before = [one for one in dict.fromkeys(reversed(recent)) if one != model][:2]
        for key in ((caller, model), *((caller, one, model) for one in before)):
            self._occur(key, at)
        recent.append(model)

    def _caller(self, name: str) -> _Caller:
        caller = self._callers.get(name)
        if caller is None:
            if len(self._callers) >= _CALLERS:
                self._callers.popitem(last=False)
            caller = self._callers[name] = _Caller()
        self._callers.move_to_end(name)
        return caller

    def _occur(self, key: _Key, at: float) -> None:
        again = next((one for one in self._open if one.key == key), None)
        if again is not None:
            # It occurs anew before its time was over. Where nothing had followed, the pause in a burst tells nothing.
            self._open.remove(again)
            if again.followers:
                self._close(again, at)
        self._open.append(_Occurrence(key, at))
        while len(self._open) > _OPEN:
            self._close(self._open.popleft(), at)

    def _close(self, occurrence: _Occurrence, at: float) -> None:
        context = self._contexts.get(occurrence.key)
        if context is None:
            if len(self._contexts) >= MAX_CONTEXTS:
                self._contexts.popitem(last=False)
            context = self._contexts[occurrence.key] = _Context()
        context.add(at - occurrence.at, occurrence.followers)
        self._contexts.move_to_end(occurrence.key)

    def _set_back(self, by_s: float) -> None:
        assert self._now is not None
        self._now -= by_s
        self._lessons.clear()
        for usage in self._usage.values():
            usage.set_back(by_s)
        for one in self._open:
            one.at -= by_s
        for caller in self._callers.values():
            caller.at -= by_s

    # Views

    def _last_used(self, limit: int) -> list[str]:
        return [name for name, _ in zip(reversed(self._usage), range(limit), strict=False)]

    def _views(self, now: float, models: Sequence[str]) -> dict[str, _View]:
        """What every view says of `models` at `now`, which is not before the last request."""
        rates = {name: self._usage[name].rates_per_s(now) for name in models}
        bases = {name: _within((one[1] + one[2]) / 2) for name, one in rates.items()}
        followers = self._followers(now, bases)
        views = {}
        for name in models:
            usage, base = self._usage[name], bases[name]
            said: list[list[float] | None] = [usage.gap_chances(now, base)]
            said += usage.period_chances(now, base)
            contexts = followers.get(name, _Followed())
            said += [contexts.earlier, contexts.pair, contexts.last, contexts.next]
            views[name] = _View(
                group=bisect_right(_AGES_S, now - usage.last),
                inputs=_inputs([_within(one) for one in rates[name]], base, said),
                after=contexts.after,
            )
        return views

    def _followers(self, now: float, bases: dict[str, list[float]]) -> dict[str, _Followed]:
        """For each model that may still follow an open occurrence, what the one says that promises it soonest."""
        best: dict[tuple[str, str], tuple[float, _Key, list[int], int]] = {}
        last_at = {one.key[0]: one.at for one in self._open}
        for one in self._open:
            age = now - one.at
            context = self._contexts.get(one.key)
            if context is None or age > _FOLLOW_S:
                continue
            kind = "pair" if len(one.key) > 2 else "last" if one.at == last_at[one.key[0]] else "earlier"
            late = age * _LATE - 1
            going_on = len(context.ends) - bisect_right(context.ends, late)
            for model, (lags, its_ends) in context.lags.items():
                begin = bisect_right(lags, late)
                if begin == len(lags) or model in one.followers or model not in bases:
                    continue
                # Of the occurrences that went on for so long, those that it had not followed by then.
                alive = going_on - begin + bisect_right(its_ends, late)
                soon = bisect_right(lags, age + _SOON_S) - begin
                # What so few cases show counts for less, as if there had been one more without the follower.
                promise = soon / (alive + 1)
                known = best.get((model, kind))
                if known is None or promise > known[0]:
                    ends = [bisect_right(lags, age + horizon) - begin for horizon in HORIZONS]
                    best[model, kind] = promise, one.key, ends, alive
        found: dict[str, _Followed] = {}
        for (model, kind), (_, key, ends, alive) in best.items():
            found.setdefault(model, _Followed()).take(kind, _all_beyond(ends, alive, bases[model]), key)
        for model, (_, last, chances) in self._next(now, bases).items():
            found.setdefault(model, _Followed()).take("next", chances, ("", last))
        return found

    def _next(self, now: float, bases: dict[str, list[float]]) -> dict[str, tuple[float, str, list[float]]]:
        """For each model that may be somebody's next: how much the caller promises it who promises most, and after what."""
        best: dict[str, tuple[float, str, list[float]]] = {}
        for caller in self._callers.values():
            steps = caller.steps.get(caller.last)
            if steps is None or now - caller.at > _FOLLOW_S:
                continue
            within, cases = caller.next_within(now), math.fsum(steps.values())
            for model, count in steps.items():
                promise = count / (cases + 1) * within[_SOON]
                if model in bases and promise > best.get(model, (0.0,))[0]:
                    chances = _all_beyond([count * one for one in within], cases, bases[model])
                    best[model] = promise, caller.last, chances
        return best

    def _chances(self, view: _View) -> list[float]:
        """Chance of a request within each horizon; within a longer one it is no smaller."""
        chances: list[float] = []
        for weights, inputs in zip(self._weights, view.inputs, strict=True):
            chance = _chance(weights[view.group], inputs)
            chances.append(max(chance, chances[-1]) if chances else chance)
        return chances

    def _why(self, model: str, view: _View, horizon_s: float, now: float) -> str:
        number = min(range(len(HORIZONS)), key=lambda one: abs(math.log(HORIZONS[one] / horizon_s)))
        pushes = [a * b for a, b in zip(self._weights[number][view.group], view.inputs[number], strict=True)]
        best = max(range(_BASES, len(_VIEWS)), key=lambda one: pushes[one])
        usage = self._usage[model]
        if pushes[best] <= 0.1:
            return f"last used {_duration(now - usage.last)} ago, about {usage.rates_per_s(now)[1] * 3600:.1f} times an hour"
        match _VIEWS[best]:
            case "gap":
                usual = usage.gaps.sorted[len(usage.gaps.sorted) // 2]
                return f"last used {_duration(now - usage.last)} ago, usually again after {_duration(usual)}"
            case "hour" | "day" | "week" as period:
                return f"used at this time of the {period} before"
            case _:
                return f"often follows {view.after}"

    # Learning

    def _take_lesson(self, before: float, at: float, model: str) -> None:
        """Keep what would have been said at an instant between the last request and this one, for `model`."""
        if at <= before:
            return
        self._taken += 1
        # Multiples of the golden ratio are spread evenly: as good as chance, and the same in every run.
        moment = before + self._taken * 0.618_033_988_749_895 % 1 * min(at - before, _LESSON_S)
        views = self._views(moment, self._last_used(_TAUGHT))
        self._compare(views, model)
        self._lessons.append(_Lesson(moment, views, [set() for _ in HORIZONS]))
        if len(self._lessons) > _LESSONS:
            self._lessons.popleft()

    def _compare(self, views: dict[str, _View], model: str) -> None:
        """Who would have had `model` in memory: value, or recency, in whose order `views` are?"""
        places = min(_PLACES, len(views) - 1)
        by_value = sorted(views, key=lambda one: -_value(self._chances(views[one])))[:places]
        by_recency = list(views)[:places]
        self._ahead, self._behind = self._ahead * _FORGET, self._behind * _FORGET
        self._ahead += model in by_value and model not in by_recency
        self._behind += model in by_recency and model not in by_value

    def _is_trusted(self) -> bool:
        lead = self._ahead - self._behind
        return lead >= max(_LEAD_MIN, _LEAD * math.sqrt(self._ahead + self._behind))

    def _learn_from(self, model: str, at: float) -> None:
        """Tell the lessons that wait what has become true, and which of them have become false."""
        for lesson in self._lessons:
            for number, horizon in enumerate(HORIZONS):
                used = lesson.used[number]
                if used is None:
                    continue
                if at - lesson.at > horizon:
                    lesson.used[number] = None
                    for name in lesson.views.keys() - used:
                        self._learn(number, lesson.views[name], is_used=False)
                elif model in lesson.views and model not in used:
                    used.add(model)
                    self._learn(number, lesson.views[model], is_used=True)
        while self._lessons and not any(one is not None for one in self._lessons[0].used):
            self._lessons.popleft()

    def _learn(self, number: int, view: _View, *, is_used: bool) -> None:
        weights, inputs = self._weights[number][view.group], view.inputs[number]
        step = (is_used - _chance(weights, inputs)) * _LEARNING
        for position, value in enumerate(inputs):
            weights[position] += step * value


class _Followed(msgspec.Struct):
    """What contexts, and callers' next steps, say of one follower."""

    earlier: list[float] | None = None
    pair: list[float] | None = None
    last: list[float] | None = None
    next: list[float] | None = None
    after: str = ""
    best: float = -math.inf

    def take(self, kind: str, chances: list[float], key: _Key) -> None:
        setattr(self, kind, chances)
        if chances[-1] > self.best:
            self.best, self.after = chances[-1], " then ".join(key[1:])


def _value(chances: Sequence[float]) -> float:
    return math.fsum(map(mul, _VALUE, chances))


def _within(rate_per_s: float) -> list[float]:
    """Chance of at least one use within each horizon, of a Poisson process."""
    return [1 - math.exp(-rate_per_s * horizon) for horizon in HORIZONS]


def _inputs(
    rates: Sequence[Sequence[float]], base: Sequence[float], said: Sequence[Sequence[float] | None]
) -> list[list[float]]:
    """For each horizon: the logits of the rates, what each other view says beyond the base, and 1 for the constant.

    A view that knows nothing adds 0, so it neither raises nor lowers.
    """
    rows = []
    for number in range(len(HORIZONS)):
        beyond = [one[number] if one is not None else 0.0 for one in said]
        rows.append([*(_logit(one[number]) for one in rates), *beyond, 1.0])
    return rows


def _all_beyond(counts: Sequence[float], cases: float, base: Sequence[float]) -> list[float]:
    return [_beyond(count, cases, chance) for count, chance in zip(counts, base, strict=True)]


def _beyond(count: float, cases: float, base: float) -> float:
    """What `count` of `cases` says beyond the base, as a difference of logits: as much of it as is certain.

    That is the end nearer to the base of the interval of _SURE standard errors around the part observed (Agresti and
    Coull, Approximate is Better than Exact, 1998), and 0 where the base lies in it: of many contexts that know nothing,
    one always seems to know something.
    """
    part = (count + base) / (cases + 1)
    middle = (count + 1) / (cases + 2)
    margin = _SURE * math.sqrt(middle * (1 - middle) / (cases + 2))
    if part - margin > base:
        return _logit(part - margin) - _logit(base)
    return _logit(part + margin) - _logit(base) if part + margin < base else 0.0


def _logit(chance: float) -> float:
    if chance <= _RAREST:
        return -_LOGIT
    return _LOGIT if chance >= 1 - _RAREST else math.log(chance / (1 - chance))


def _chance(weights: Iterable[float], inputs: Iterable[float]) -> float:
    total = sum(map(mul, weights, inputs))
    return 1 / (1 + math.exp(-max(-_LOGIT, min(_LOGIT, total))))


def _at_horizon(chances: Sequence[float], horizon_s: float) -> float:
    """The chance within any horizon: between two known ones along the logarithm of time, outside at a constant rate."""
    if horizon_s <= HORIZONS[0]:
        return 1 - math.pow(1 - chances[0], horizon_s / HORIZONS[0])
    if horizon_s >= HORIZONS[-1]:
        return 1 - math.pow(1 - chances[-1], horizon_s / HORIZONS[-1])
    above = bisect_left(HORIZONS, horizon_s)
    low, high = HORIZONS[above - 1], HORIZONS[above]
    share = math.log(horizon_s / low) / math.log(high / low)
    return chances[above - 1] + share * (chances[above] - chances[above - 1])


def _expected_in(chances: Sequence[float]) -> float:
    """Seconds until a request is as likely to have come as not; past the longest horizon at the rate it shows."""
    above = next((number for number, chance in enumerate(chances) if chance >= 0.5), None)
    if above is None:
        return HORIZONS[-1] * math.log(2) / max(-math.log1p(-chances[-1]), 1e-9)
    low_s, low = (HORIZONS[above - 1], chances[above - 1]) if above else (0.0, 0.0)
    return low_s + (HORIZONS[above] - low_s) * (0.5 - low) / max(chances[above] - low, 1e-9)


def _pack(bits: int) -> bytes:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
