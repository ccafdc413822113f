#!/usr/bin/env python3
"""Replay requests model by model on the service's scheduler and predictor, beside other policies. See docs/models.md."""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Final

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_prediction_parts.machine import Machine, Outcome
from bench_prediction_parts.others import OTHERS
from bench_prediction_parts.ours import Replay
from bench_prediction_parts.traces import FLEETS, GB, GENERATED, Trace, of_callers, read_trace
from workers.models.prediction import Predictor

Figures = dict[str, float]

# Traces of each kind: their shares differ by twenty points from one seed to the next, so few say little.
SEEDS: Final = 12

# The first seed of the runs that are reported. Constants were chosen on seeds below 100 and 1000 to 1301, and earlier versions were
# measured on 2000 to 4002; nothing was chosen by what these show.
FIRST_SEED: Final = 5_000

# Part of a trace's time in which nothing is counted: nobody has learned anything yet.
LEARN: Final = 0.3

KEEP_ALIVE_S: Final = 300.0

POLICIES: Final = ("LRU", "LFU", "keep-alive", "timeout alone", "predicted", "clairvoyant")

EPILOG = """examples:
  scripts/bench_prediction.py                             every generated trace, minutes
  scripts/bench_prediction.py --only workflow,uniform --seeds 1 --json
  scripts/bench_prediction.py --trace requests.csv        lines time,model[,size_bytes[,caller]]
exit codes: 0 measured, 1 a trace cannot be read, 2 wrong arguments

LRU, keep-alive (300 s idle) and predicted are the service's own scheduler; the others are policies to compare with."""


class Plan(argparse.Namespace):
    """What was asked for."""

    trace: list[Path]
    only: str
    seeds: int
    fleet: str
    memory_gb: float
    gb_per_s: float
    json: bool


def replay(trace: Trace, machine: Machine) -> dict[str, Outcome]:
    """Every policy on one trace."""
    outcomes = {
        "LRU": Replay(trace, machine, LEARN, -1.0, None).run().outcome,
        "keep-alive": Replay(trace, machine, LEARN, KEEP_ALIVE_S, None).run().outcome,
        "predicted": Replay(trace, machine, LEARN, -1.0, Predictor()).run().outcome,
    }
    outcomes |= {name: policy(trace, machine, LEARN).run() for name, policy in OTHERS.items()}
    return {name: outcomes[name] for name in POLICIES}


def replayed(traces: Sequence[Trace], machine: Machine) -> list[dict[str, Outcome]]:
    """Every policy on each trace, the traces in processes side by side."""
    fit = [fitting(trace, machine) for trace in traces]
    if len(fit) == 1:
        return [replay(fit[0], machine)]
    with ProcessPoolExecutor(min(len(fit), len(os.sched_getaffinity(0)))) as processes:
        return list(processes.map(replay, fit, repeat(machine)))


def figures(outcomes: Sequence[Outcome]) -> Figures:
    """Of one policy over several seeds: every request counts the same."""
    requests = max(sum(one.requests for one in outcomes), 1)
    loaded = sum(one.loaded_bytes for one in outcomes)
    return {
        "hit_rate": sum(one.hits for one in outcomes) / requests,
        "wait_s": sum(one.waited_s for one in outcomes) / requests,
        "loaded_gb_per_1000": loaded / GB / requests * 1000,
        "wasted": sum(one.wasted_bytes for one in outcomes) / max(loaded, 1),
        "refused": float(sum(one.refused for one in outcomes)),
    }


def shares(runs: Sequence[dict[str, Outcome]]) -> Figures:
    """How far prediction goes from LRU to the clairvoyant, by hit rate and by waiting; the worst seed beside the mean."""
    by_hits = [_share(run, lambda one: one.hit_rate) for run in runs]
    by_wait = [_share(run, lambda one: one.mean_wait_s) for run in runs]
    return {
        "share_hits": statistics.fmean(by_hits),
        "share_hits_worst": min(by_hits),
        "share_wait": statistics.fmean(by_wait),
        "share_wait_worst": min(by_wait),
    }


def _share(run: dict[str, Outcome], figure: object) -> float:
    assert callable(figure)
    low, here, high = (float(figure(run[name])) for name in ("LRU", "predicted", "clairvoyant"))
    return (here - low) / (high - low) if high != low else 0.0


def chosen(plan: Plan) -> dict[str, list[Trace]]:
    """The traces by name, one for each seed. Raises ValueError."""
    if plan.trace:
        return {path.name: [read_trace(path)] for path in plan.trace}
    names = plan.only.split(",") if plan.only else list(GENERATED)
    unknown = [name for name in names if name not in GENERATED]
    if unknown:
        raise ValueError(f"--only {','.join(unknown)}: there are {', '.join(GENERATED)}")
    fleet, seeds = FLEETS[plan.fleet], range(FIRST_SEED, FIRST_SEED + plan.seeds)
    return {name: [GENERATED[name](random.Random(seed), fleet) for seed in seeds] for name in names}


def fitting(trace: Trace, machine: Machine) -> Trace:
    """Without the models that can never be in memory."""
    sizes = {model: size for model, size in trace.sizes.items() if size <= machine.memory_bytes}
    callers = trace.callers or [""] * len(trace.requests)
    return of_callers(
        sizes,
        [(at, model, caller) for (at, model), caller in zip(trace.requests, callers, strict=True) if model in sizes],
    )


def show(name: str, traces: Sequence[Trace], table: dict[str, Figures], share: Figures) -> None:
    """One trace as a table."""
    requests = sum(len(trace.requests) for trace in traces)
    print(f"\n{name}: {requests} requests, {len(traces)} seed{'s' if len(traces) > 1 else ''}")
    print(f"  {'':14} {'hit rate':>9} {'wait':>8} {'loaded/1000':>12} {'wasted':>8}")
    for policy, row in table.items():
        print(
            f"  {policy:14} {row['hit_rate']:9.3f} {row['wait_s']:6.2f} s {row['loaded_gb_per_1000']:9.0f} GB"
            f" {row['wasted']:8.0%}"
        )
    print(
        f"  from LRU to clairvoyant: {share['share_hits']:.0%} by hits (worst seed {share['share_hits_worst']:.0%}),"
        f" {share['share_wait']:.0%} by waiting (worst {share['share_wait_worst']:.0%})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table for each trace, and with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--trace", type=Path, action="append", default=[], metavar="FILE", help="a trace; may be repeated"
    )
    parser.add_argument("--only", default="", metavar="NAMES", help=f"of the generated ones: {', '.join(GENERATED)}")
    parser.add_argument(
        "--seeds",
        type=int,
        default=SEEDS,
        metavar="N",
        help=f"traces of each kind, side by side on all cores ({SEEDS})",
    )
    parser.add_argument(
        "--fleet",
        choices=list(FLEETS),
        default="usual",
        help="sizes of the models: those of a home (usual), or 2 to 20 GB",
    )
    parser.add_argument("--memory-gb", type=float, default=24.0, metavar="N", help="memory of the device (24)")
    parser.add_argument("--gb-per-s", type=float, default=2.0, metavar="N", help="what a load reads a second (2)")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object in the last line")
    plan = parser.parse_args(argv, namespace=Plan())
    if plan.seeds < 1 or plan.memory_gb <= 0 or plan.gb_per_s <= 0:
        parser.error("--seeds is 1 or more, --memory-gb and --gb-per-s are above 0")
    try:
        kinds = chosen(plan)
    except (ValueError, OSError) as error:
        print(f"bench_prediction: {error}", file=sys.stderr)
        return 1
    machine = Machine(memory_bytes=int(plan.memory_gb * GB), bytes_per_s=plan.gb_per_s * GB)
    report: dict[str, dict[str, Figures]] = {}
    for name, traces in kinds.items():
        runs = replayed(traces, machine)
        table = {policy: figures([run[policy] for run in runs]) for policy in POLICIES}
        share = shares(runs)
        show(name, traces, table, share)
        report[name] = {**table, "share": share}
    if plan.json:
        print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
