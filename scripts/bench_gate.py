#!/usr/bin/env python3
"""Simulated adapters at the gate, and simulated traffic at the watch: how often is each wrong, and how soon is it right?

An adapter is drawn as answers that are right or wrong on a target and on a retention set; a share of them turns for no
reason, as with any training. The gate must not pass what is useless or harmful, not even when one set is tried twenty
times, and should pass what is good. The watch looks after every pair of outcomes: it must not take back what is no worse,
and must find a drop after as many pairs as its mathematics promises, on average.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workers.learning.gate.pairs import Pair
from workers.learning.gate.power import DISAGREEMENT
from workers.learning.gate.sequential import begin, is_worse, promised_pairs
from workers.learning.gate.verdict import Terms, decide

EPILOG = """examples:
  scripts/bench_gate.py                 about a minute and a half
  scripts/bench_gate.py --quick --json
exit codes: 0 everything within its limit, 1 something is not, 2 wrong arguments"""

TERMS = Terms(alpha=0.05, min_gain=0.1, margin=0.03, min_target_items=60, min_retention_items=600)

# Pairs after which a watch that found nothing is given up; ten times what a drop of 10 points takes.
WATCHED_PAIRS = 2_500

# Verdicts on one set, one adapter after the other.
ATTEMPTS = 20

# Answers that a set has right before anything is trained.
RIGHT_BEFORE = 0.5


@dataclass(frozen=True)
class Kind:
    """One sort of adapter. gain, loss: true changes of the two sets' scores. cluster: items about one fact.

    turning: share of answers that turn for no reason, on the target and on the retention set.
    """

    name: str
    gain: float
    loss: float
    target: int
    retention: int
    pass_at_most: float = 1.0
    pass_at_least: float = 0.0
    cluster: int = 1
    turning: tuple[float, float] = (DISAGREEMENT, 0.06)


KINDS = (
    Kind("useless", 0.0, 0.0, 300, 600, pass_at_most=0.05),
    Kind("useless, few items", 0.0, 0.0, 60, 600, pass_at_most=0.05),
    Kind("useless, facts of 4", 0.0, 0.0, 300, 600, pass_at_most=0.05, cluster=4),
    Kind("useless and harmful", 0.0, 0.10, 300, 600, pass_at_most=0.05),
    Kind("helps, harms at margin", 0.20, 0.03, 300, 600, pass_at_most=0.05),
    Kind("helps, harms by 5", 0.20, 0.05, 300, 600, pass_at_most=0.05),
    Kind("helps, harms by 10", 0.20, 0.10, 300, 600, pass_at_most=0.05),
    Kind("worse at its target", -0.10, 0.0, 300, 600, pass_at_most=0.05),
    Kind("too little data", 0.30, 0.0, 40, 600, pass_at_most=0.0),
    Kind("good, +5 points", 0.05, 0.0, 600, 1_200),
    Kind("good, +10 points", 0.10, 0.0, 300, 1_200, pass_at_least=0.8),
    Kind("good, +20 points", 0.20, 0.0, 120, 1_200, pass_at_least=0.8),
)


def drawn(kind_name: str, items: int, change: float, turning: float, cluster: int, rng: random.Random) -> list[Pair]:
    """A set, answered by both sides. Items of one cluster turn together."""
    worse, better = turning / 2 + max(-change, 0.0), turning / 2 + max(change, 0.0)
    pairs = []
    for number in range(items):
        if number % cluster == 0:
            luck = rng.random()
            before, after = float(rng.random() < RIGHT_BEFORE), None
            if luck < worse:
                before, after = 1.0, 0.0
            elif luck < worse + better:
                before, after = 0.0, 1.0
        pairs.append(
            Pair(
                item_id=f"{kind_name}-{number}",
                cluster=str(number // cluster),
                before=before,
                after=before if after is None else after,
            )
        )
    return pairs


def verdict_of(kind: Kind, rng: random.Random, attempt: int = 1) -> str:
    """What the gate says of one such adapter."""
    target = drawn("t", kind.target, kind.gain, kind.turning[0], kind.cluster, rng)
    retention = drawn("r", kind.retention, -kind.loss, kind.turning[1], 1, rng)
    terms = msgspec.structs.replace(TERMS, attempt=attempt, seed=rng.getrandbits(32))
    return decide(target, retention, {}, terms).verdict


def gate_figures(kind: Kind, runs: int, seed: int) -> dict[str, float]:
    """Shares of the verdicts."""
    rng = random.Random(f"{kind.name} {seed}")
    words = [verdict_of(kind, rng) for _ in range(runs)]
    return {word: words.count(word) / runs for word in ("passed", "refused", "underpowered")}


def attempted(runs: int, seed: int) -> float:
    """Share of series of useless adapters, tried one after the other on one set, of which any was passed."""
    rng, useless = random.Random(f"attempts {seed}"), Kind("useless", 0.0, 0.0, 120, 600)
    return statistics.fmean(
        any(verdict_of(useless, rng, attempt) == "passed" for attempt in range(1, ATTEMPTS + 1)) for _ in range(runs)
    )


def watched(drop: float, rng: random.Random, alpha: float) -> int | None:
    """Pairs until a drop was found, None when it was not."""
    watching = begin()
    for pair in range(1, WATCHED_PAIRS + 1):
        luck = rng.random()
        if luck < DISAGREEMENT / 2 + drop:
            new, old = 0.0, 1.0
        elif luck < DISAGREEMENT + drop:
            new, old = 1.0, 0.0
        else:
            new = old = float(rng.random() < RIGHT_BEFORE)
        watching = watching.plus(new, old)
        if is_worse(watching, alpha):
            return pair
    return None


def watch_figures(drop: float, runs: int, seed: int, alpha: float) -> dict[str, float | None]:
    """How often and how soon a drop was found; runs that were given up count with all their pairs."""
    rng = random.Random(f"watch {drop} {seed}")
    found = [watched(drop, rng, alpha) for _ in range(runs)]
    pairs = [WATCHED_PAIRS if one is None else one for one in found]
    return {
        "found": statistics.fmean(one is not None for one in found),
        "mean_pairs": statistics.fmean(pairs),
        "median_pairs": float(statistics.median(pairs)),
        "promised_pairs": promised_pairs(drop, alpha=alpha) if drop else None,
    }


def table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns below a title."""
    print(f"\n{title}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def chance(limit: float, runs: int) -> float:
    """How far a share of that many runs may lie beyond its limit by chance: three standard errors."""
    return 3 * math.sqrt(limit * (1 - limit) / runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print the tables, and with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="adapters and watches of each kind (1000)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of everything that is drawn (1)")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object in the last line")
    plan = parser.parse_args(argv)
    if plan.runs < 0:
        parser.error("--runs is 1 or more")
    runs = plan.runs or (100 if plan.quick else 1_000)
    problems: list[str] = []

    gate = {kind.name: gate_figures(kind, runs, plan.seed) for kind in KINDS}
    for kind in KINDS:
        passed = gate[kind.name]["passed"]
        if passed > kind.pass_at_most + chance(kind.pass_at_most, runs):
            problems.append(f"{kind.name}: {passed:.1%} passed, {kind.pass_at_most:.0%} may")
        if passed < kind.pass_at_least - chance(kind.pass_at_least, runs):
            problems.append(f"{kind.name}: {passed:.1%} passed, {kind.pass_at_least:.0%} should")
    table(
        f"gate: {runs} adapters of each kind, alpha {TERMS.alpha}, margin {TERMS.margin}",
        [("adapter", "gain", "loss", "target", "retention", "passed", "refused", "underpowered")]
        + [
            (
                kind.name,
                f"{kind.gain * 100:+.0f}",
                f"{kind.loss * 100:.0f}",
                str(kind.target),
                str(kind.retention),
                *(f"{gate[kind.name][word]:.1%}" for word in ("passed", "refused", "underpowered")),
            )
            for kind in KINDS
        ],
    )

    series = max(runs // 5, 1)
    any_passed = attempted(series, plan.seed)
    print(f"\nattempts: of {series} series of {ATTEMPTS} useless adapters on one set, {any_passed:.1%} passed any")
    if any_passed > TERMS.alpha + chance(TERMS.alpha, series):
        problems.append(f"attempts: {any_passed:.1%} of the series passed any, {TERMS.alpha:.0%} may")

    watch = {f"{drop:g}": watch_figures(drop, runs, plan.seed, TERMS.alpha) for drop in (0.0, 0.05, 0.1, 0.2)}
    table(
        f"watch: {runs} runs of each kind, looked at after every pair, alpha {TERMS.alpha}",
        [("drop", "found", "mean pairs", "median", "promised")]
        + [
            (
                drop,
                f"{row['found']:.1%}",
                f"{row['mean_pairs']:.0f}",
                f"{row['median_pairs']:.0f}",
                "" if row["promised_pairs"] is None else f"{row['promised_pairs']:.0f}",
            )
            for drop, row in watch.items()
        ],
    )
    for drop, row in watch.items():
        found, mean_pairs, promised = row["found"], row["mean_pairs"], row["promised_pairs"]
        assert found is not None
        assert mean_pairs is not None
        if promised is None and found > TERMS.alpha + chance(TERMS.alpha, runs):
            problems.append(f"watch: {found:.1%} false alarms, {TERMS.alpha:.0%} may be")
        if promised is not None and mean_pairs > promised:
            problems.append(f"watch: a drop of {drop} took {mean_pairs:.0f} pairs, {promised:.0f} were promised")

    for problem in problems:
        print(f"beyond its limit: {problem}", file=sys.stderr)
    if plan.json:
        print(json.dumps({"runs": runs, "gate": gate, "attempts_any_passed": any_passed, "watch": watch}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
