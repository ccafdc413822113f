"""Requests model by model, made up by rules and a seed or read from a file: what the policies are replayed on.

None of the generators looks at what is measured. What they share is a fleet: how large its models are (`SIZES`).
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

HOUR_S: Final = 3_600.0
DAY_S: Final = 24 * HOUR_S
GB: Final = 1_000_000_000

# Models of a home in GB, of which a fleet is drawn: what open models take at 4 bits with a window of 8,000 tokens. For
# embeddings; of 1, 2 and 3 thousand million parameters, speech to text among them; of 7 and 8 (most of what people run);
# of 9, 14, 24 and 32. About three at a time fit into the 24 GB of the card. An earlier fleet was drawn evenly from 2 to
# 20 GB. It is kept as LARGE, because one model in two filled half of the card there, which is not how a home is set up:
# seldom two fit, and then even somebody who knows every chance of the sessions below, but not how the dice fall, comes
# only 39 % of the way from LRU to the clairvoyant by hits (seed 10; with the usual fleet 72 %, and 49 % on seed 11).
USUAL: Final = (0.5, 1.5, 2.5, 3.5, 5.5, 5.5, 6.0, 7.0, 9.5, 10.5, 15.5, 21.0)
LARGE: Final = tuple(half / 2 for half in range(4, 41))
FLEETS: Final[dict[str, Sequence[float]]] = {"usual": USUAL, "large": LARGE}

# Size of a model of which a file gives none.
UNKNOWN_BYTES: Final = 8 * GB


class Trace(NamedTuple):
    """sizes: bytes of each model. requests: (seconds from the beginning, model), in order of time.

    callers: who made each request, in the same order; empty where nobody knows.
    """

    sizes: dict[str, int]
    requests: list[tuple[float, str]]
    callers: Sequence[str] = ()


def of_callers(sizes: dict[str, int], requests: list[tuple[float, str, str]]) -> Trace:
    """From (seconds, model, caller) in any order."""
    requests = sorted(requests)
    return Trace(sizes, [(at, model) for at, model, _ in requests], [caller for _, _, caller in requests])


def workflow(rng: random.Random, fleet: Sequence[float] = USUAL) -> Trace:
    """Pipelines of three to six models, one started every five minutes at random; steps are called one to three times.

    One step in twenty is another model, one pipeline in thirty breaks off after each step, and several run at once.
    """
    sizes, requests = _models(rng, 12, fleet), []
    names = list(sizes)
    pipelines = [rng.sample(names, rng.randint(3, 6)) for _ in range(5)]
    pauses = [[rng.lognormvariate(math.log(25), 0.5) for _ in pipeline] for pipeline in pipelines]
    start = 0.0
    while start < DAY_S:
        start += rng.expovariate(1 / 300)
        number, at = rng.randrange(len(pipelines)), start
        for model, pause in zip(pipelines[number], pauses[number], strict=True):
            used = rng.choice(names) if rng.random() < 0.05 else model
            for _ in range(rng.choice((1, 1, 2, 3))):
                requests.append((at, used))
                at += rng.uniform(3, 8)
            at += pause * rng.lognormvariate(0, 0.3)
            if rng.random() < 1 / 30:
                break
    return Trace(sizes, sorted(requests))


def cron(rng: random.Random, fleet: Sequence[float] = USUAL) -> Trace:
    """Each model at intervals of its own, from five minutes to a day, some seconds late; one in twenty is left out.

    Somebody uses any model in between, once an hour.
    """
    sizes, requests, end = _models(rng, 14, fleet), [], 3 * DAY_S
    for model in sizes:
        period = rng.choice((300, 600, 900, 1_800, 3_600, 3_600, 7_200, 21_600, 86_400))
        at, late = rng.uniform(0, period), rng.choice((1, 5, 20))
        while at < end:
            if rng.random() < 0.95:
                requests.append((at + abs(rng.gauss(0, late)), model))
            at += period
    requests += _poisson(rng, end, HOUR_S, lambda: rng.choice(list(sizes)))
    return Trace(sizes, sorted(requests))


def sessions(rng: random.Random, fleet: Sequence[float] = USUAL) -> Trace:
    """Five people who come twice a day at about their time, and go back and forth between three models of theirs.

    They have signed in, so that it is known who asks.
    """
    sizes, requests = _models(rng, 12, fleet), []
    for person in range(5):
        mine = rng.sample(list(sizes), 3)
        stays = [rng.choice((0.13, 0.4)) for _ in mine]
        begins, lasts = rng.uniform(8, 16) * HOUR_S, rng.uniform(1, 4) * HOUR_S
        for session in range(8):
            if rng.random() < 0.15:
                continue
            at = session // 2 * DAY_S + begins + session % 2 * 6 * HOUR_S + rng.gauss(0, 600)
            end, turn = at + lasts * rng.uniform(0.25, 0.5), 0
            while at < end:
                requests.append((at, mine[turn], f"person {person}"))
                at += rng.lognormvariate(math.log(45), 0.6)
                weights = [0.12] * 3
                weights[(turn + 1) % 3] = 0.75
                weights[turn] = stays[turn]
                turn = rng.choices(range(3), weights)[0]
    return of_callers(sizes, requests)


def phases(rng: random.Random, fleet: Sequence[float] = USUAL) -> Trace:
    """Pipelines whose models all change places in the middle of the day: what was learned is wrong from then on."""
    sizes, requests, _ = workflow(rng, fleet)
    names = list(sizes)
    places = dict(zip(names, rng.sample(names, len(names)), strict=True))
    return Trace(sizes, [(at, places[model] if at > DAY_S / 2 else model) for at, model in requests])


def zipf(rng: random.Random, fleet: Sequence[float] = USUAL) -> Trace:
    """Independent requests every 40 s, the n-th model 1/n as often as the first."""
    sizes = _models(rng, 20, fleet)
    weights = [1 / (rank + 1) for rank in range(len(sizes))]
    return Trace(sizes, _poisson(rng, DAY_S, 40, lambda: rng.choices(list(sizes), weights)[0]))


def uniform(rng: random.Random, fleet: Sequence[float] = USUAL) -> Trace:
    """Independent requests every 40 s, every model as likely: there is nothing to learn."""
    sizes = _models(rng, 12, fleet)
    return Trace(sizes, _poisson(rng, DAY_S, 40, lambda: rng.choice(list(sizes))))


def adversarial(rng: random.Random, fleet: Sequence[float] = USUAL) -> Trace:
    """Two models take turns three to five times, long enough to be learned, and then never again in that way.

    Every model is of the same size, whatever the fleet.
    """
    sizes, requests, at = {f"m{number}": 8 * GB for number in range(8)}, [], 0.0
    while at < DAY_S:
        pair = rng.sample(list(sizes), 2)
        for _ in range(rng.randint(3, 5)):
            for model in pair:
                at += rng.expovariate(1 / 40)
                requests.append((at, model))
    return Trace(sizes, requests)


Generator = Callable[[random.Random, Sequence[float]], Trace]

REGULAR: Final[dict[str, Generator]] = {"workflow": workflow, "cron": cron, "sessions": sessions}
RANDOM: Final[dict[str, Generator]] = {
    "zipf": zipf,
    "uniform": uniform,
    "adversarial": adversarial,
}
GENERATED: Final[dict[str, Generator]] = {**REGULAR, "phases": phases, **RANDOM}


def read_trace(path: Path) -> Trace:
    """A file with lines `time,model[,size_bytes[,caller]]`, seconds in any order; a first line without a number is a heading.

    Raises ValueError naming file, line and what is wrong.
    """
    sizes: dict[str, int] = {}
    requests: list[tuple[float, str, str]] = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), 1):
            try:
                at, model = float(row[0]), row[1].strip()
                size = int(row[2]) if len(row) > 2 and row[2].strip() else sizes.get(model, UNKNOWN_BYTES)
            except (ValueError, IndexError):
                if number == 1:
                    continue
                raise ValueError(
                    f"{path} line {number}: expected time,model[,size_bytes[,caller]], not {','.join(row)!r}"
                ) from None
            if not math.isfinite(at) or not model or size <= 0:
                raise ValueError(f"{path} line {number}: needs a finite time, a name and a size above 0")
            sizes[model] = size
            requests.append((at, model, row[3].strip() if len(row) > 3 else ""))
    if not requests:
        raise ValueError(f"{path}: holds no request")
    begin = min(at for at, _, _ in requests)
    return of_callers(sizes, [(at - begin, model, caller) for at, model, caller in requests])


def _models(rng: random.Random, count: int, fleet: Sequence[float]) -> dict[str, int]:
    return {f"m{number}": int(rng.choice(fleet) * GB) for number in range(count)}


def _poisson(rng: random.Random, end: float, every_s: float, model: Callable[[], str]) -> list[tuple[float, str]]:
    at, requests = rng.expovariate(1 / every_s), []
    while at < end:
        requests.append((at, model()))
        at += rng.expovariate(1 / every_s)
    return requests
