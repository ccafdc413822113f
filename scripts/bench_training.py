#!/usr/bin/env python3
"""Measure the trainer beside the same training written by hand with TRL, its starts and stops, and kill it at its saves.

See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import itertools

from bench_bus_parts.processes import ROOT, Process, ProcessFailed, Stage, ended_by_signals
from workers.learning.training.checkpoints import list_checkpoints, newest_good
from workers.learning.training.messages import AnyMessage, CheckpointSaved, Finished, Planned, Progress
from workers.learning.training.spec import CHECKPOINTS, TrainSpec
from workers.learning.training.training import Ended, Nest, TrainingRun

BASE: Final = ROOT / "workers" / "models" / "demo" / "hf"

# Seconds until the by-hand process has imported everything, on a busy machine.
IMPORT_S: Final = 120.0

SECTIONS: Final = ("speed", "start", "stop")

ENVIRONMENT: Final = {
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

EPILOG = """examples:
  scripts/bench_training.py --json                   speed, start and stop: about four minutes
  scripts/bench_training.py --only stop --rounds 3
  scripts/bench_training.py --only none --kills 200  kill -9 around a save: about eight minutes
exit codes: 0 measured, 1 a process failed or a resume was wrong, 2 wrong arguments"""


class Plan(argparse.Namespace):
    """What was asked for."""

    rounds: int
    steps: int
    threads: int
    kills: int
    seed: int
    only: str
    json: bool


class Timed:
    """One training, with the time of each message since it was started."""

    def __init__(self, nest: Nest | None) -> None:
        self.said: list[tuple[float, AnyMessage]] = []
        self.started_at = 0.0
        self.when: Callable[[AnyMessage], None] = lambda _: None
        self.run = TrainingRun(nest, self._hear)

    async def train(self, spec: TrainSpec, folder: Path) -> Ended:
        """To its end."""
        self.started_at = time.perf_counter()
        return await self.run.run(spec, folder)

    def at(self, kind: type) -> float:
        """Seconds until the first message of a kind. Raises ProcessFailed when there was none."""
        for at, message in self.said:
            if isinstance(message, kind):
                return at
        raise ProcessFailed(f"the trainer never said {kind.__name__}: {self.said[-1:]}")

    def of(self, kind: type) -> list[Any]:
        """Messages of a kind."""
        return [message for _, message in self.said if isinstance(message, kind)]

    def _hear(self, message: AnyMessage) -> None:
        self.said.append((time.perf_counter() - self.started_at, message))
        self.when(message)


def write_rows(folder: Path, count: int, words: int) -> Path:
    """Conversations of about `words` words."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    names = "sea wind river stone light bread cat dog house green old quick".split()
    path = folder / "train.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(draw.choice(names) for _ in range(words // 2))
            row = {"messages": [{"role": "user", "content": f"{number}: {text}?"}], "answer": f"It is {text}."}
            file.write(json.dumps(row) + "\n")
    return path


def spec_of(folder: Path, plan: Plan, **changes: Any) -> TrainSpec:
    """The training that is measured."""
    plain: dict[str, Any] = {
        "job_id": "bench",
        "base": str(BASE),
        "base_name": "olympus-demo",
        "learning_rate": 1e-3,
        "scheduler": "linear",
        "warmup_ratio": 0.0,
        "max_steps": plan.steps,
        "effective_batch": 8,
        "threads": plan.threads,
    }
    return TrainSpec(**{**plain, **changes})


async def _speed(stage: Stage, nest: Nest, plan: Plan) -> dict[str, float]:
    """Steps per second by hand and through the service's end, in turns."""
    folder = stage.home / "speed"
    rows = write_rows(folder, 256, 60)
    hand = stage.start("by hand", [sys.executable, "-m", "bench_training_parts.by_hand"], ENVIRONMENT, is_role=True)
    await asyncio.to_thread(hand.answer, IMPORT_S)
    ours: list[float] = []
    saving: list[float] = []
    theirs: list[float] = []
    saves: list[float] = []
    for number in range(plan.rounds + 1):
        by_hand = await asyncio.to_thread(_by_hand, hand, rows, plan)
        took_s = await _train(nest, spec_of(folder, plan), folder)
        timed = Timed(nest)
        ended = await timed.train(spec_of(folder, plan, save_every_s=1.0), folder)
        _clear(folder)
        if ended.how != "finished":
            raise ProcessFailed(f"the training ended {ended.how}: {ended.reason}")
        if number == 0:
            # Files are read for the first time.
            continue
        theirs.append(plan.steps / by_hand)
        ours.append(plan.steps / took_s)
        saving.append(plan.steps / (timed.at(Finished) - timed.at(Planned)))
        saves += [message.took_s for message in timed.of(CheckpointSaved)]
    await asyncio.to_thread(stage.end, [hand])
    figures = {
        "by hand, steps/s": statistics.median(theirs),
        "ours, steps/s": statistics.median(ours),
        "ours / by hand": statistics.median(one / other for one, other in zip(ours, theirs, strict=True)),
        "ours saving each second / by hand": statistics.median(
            one / other for one, other in zip(saving, theirs, strict=True)
        ),
    }
    if saves:
        figures["one checkpoint, ms"] = statistics.median(saves) * 1000
    return figures


def _by_hand(hand: Process, rows: Path, plan: Plan) -> float:
    options = {
        "max_steps": plan.steps,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 8,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": 512,
    }
    return float(hand.ask(base=str(BASE), rows=str(rows), options=options, threads=plan.threads)["took_s"])


async def _train(nest: Nest | None, spec: TrainSpec, folder: Path) -> float:
    """Seconds from the first step to the written adapter."""
    timed = Timed(nest)
    ended = await timed.train(spec, folder)
    _clear(folder)
    if ended.how != "finished":
        raise ProcessFailed(f"the training ended {ended.how}: {ended.reason}")
    return timed.at(Finished) - timed.at(Planned)


async def _start(stage: Stage, nest: Nest, plan: Plan) -> dict[str, float]:
    """Seconds from the wish to the end of the first step, warm and cold."""
    folder = stage.home / "start"
    write_rows(folder, 64, 20)
    firsts: dict[str, list[float]] = {"warm": [], "cold": []}
    for _ in range(plan.rounds):
        for name, parent in (("warm", nest), ("cold", None)):
            timed = Timed(parent)
            await timed.train(spec_of(folder, plan, max_steps=1), folder)
            _clear(folder)
            firsts[name].append(timed.at(Progress))
    return {f"{name} first step, s": statistics.median(values) for name, values in firsts.items()}


async def _stop(stage: Stage, nest: Nest, plan: Plan) -> dict[str, float]:
    """Seconds from SIGTERM to the sealed end, at any moment of a training."""
    folder = stage.home / "stop"
    write_rows(folder, 256, 60)
    draw = random.Random(plan.seed)
    took: list[float] = []
    loop = asyncio.get_running_loop()
    for _ in range(plan.rounds * 3):
        timed = Timed(nest)
        stopped_at: list[float] = []

        def stop(timed: Timed = timed, stopped_at: list[float] = stopped_at) -> None:
            stopped_at.append(time.perf_counter())
            timed.run.stop()

        def hear(message: AnyMessage, stop: Callable[[], None] = stop, stopped_at: list[float] = stopped_at) -> None:
            if isinstance(message, Progress) and not stopped_at and message.step == 1:
                loop.call_later(draw.uniform(0, 1), stop)

        timed.when = hear
        ended = await timed.train(spec_of(folder, plan, max_steps=100_000), folder)
        if ended.how != "stopped" or newest_good(folder / CHECKPOINTS) is None:
            raise ProcessFailed(f"a stop ended {ended.how} with the checkpoint {ended.checkpoint}: {ended.reason}")
        took.append(time.perf_counter() - stopped_at[0])
        _clear(folder)
    return {"SIGTERM to sealed exit, s": statistics.median(took), "the slowest, s": max(took)}


async def _kills(stage: Stage, nest: Nest, plan: Plan) -> dict[str, float]:
    """Kill at random moments around a save; each resume must be from a verified checkpoint and end with the same adapter."""
    folder = stage.home / "kills"
    write_rows(folder, 24, 20)
    spec = spec_of(folder, plan, max_steps=6, save_every_steps=1)
    timed = Timed(nest)
    ended = await timed.train(spec, folder)
    if ended.finished is None:
        raise ProcessFailed(f"the undisturbed training ended {ended.how}: {ended.reason}")
    wanted = ended.finished.sha256
    saved_at = [at for at, message in timed.said if isinstance(message, CheckpointSaved)]
    between_s = statistics.median(later - sooner for sooner, later in itertools.pairwise(saved_at))
    draw = random.Random(plan.seed)
    counts = {"killed": 0, "in mid-save": 0, "right": 0}
    for number in range(plan.kills):
        _clear(folder)
        await _killed(nest, spec, folder, draw.randint(1, 5), draw.uniform(0, 1.2 * between_s))
        counts["killed"] += 1
        counts["in mid-save"] += any(path.name.startswith(".") for path in (folder / CHECKPOINTS).iterdir())
        good = newest_good(folder / CHECKPOINTS)
        again = Timed(nest)
        ended = await again.train(spec, folder)
        from_step = again.of(Planned)[0].from_step if again.of(Planned) else -1
        is_right = (
            good is not None
            and ended.finished is not None
            and ended.finished.sha256 == wanted
            and from_step == good.step
        )
        counts["right"] += is_right
        if not is_right:
            print(f"kill {number}: from step {from_step} of {good}, ended {ended}", file=sys.stderr)
            print(list_checkpoints(folder / CHECKPOINTS), file=sys.stderr)
    return {f"kills, {name}": float(count) for name, count in counts.items()}


async def _killed(nest: Nest, spec: TrainSpec, folder: Path, step: int, delay_s: float) -> None:
    timed = Timed(nest)
    loop = asyncio.get_running_loop()

    def hear(message: AnyMessage) -> None:
        if isinstance(message, CheckpointSaved) and message.step == step:
            loop.call_later(delay_s, timed.run.kill)

    timed.when = hear
    await timed.train(spec, folder)


def _clear(folder: Path) -> None:
    for name in (CHECKPOINTS, "adapter"):
        shutil.rmtree(folder / name, ignore_errors=True)


async def _measure(stage: Stage, plan: Plan) -> dict[str, float]:
    nest = Nest()
    await nest.open()
    figures: dict[str, float] = {}
    try:
        await nest.ready()
        for name, section in (("speed", _speed), ("start", _start), ("stop", _stop)):
            if name in plan.only.split(","):
                print(f"{name} ...", file=sys.stderr)
                figures |= await section(stage, nest, plan)
        if plan.kills:
            print("kills ...", file=sys.stderr)
            figures |= await _kills(stage, nest, plan)
    finally:
        await nest.close()
    return figures


def _arguments(argv: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each section (5)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a training for speed (60)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--kills", type=int, default=0, help="kill -9 this often around a save (0)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of stops and kills (0)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, or none (speed,start,stop)")
    parser.add_argument("--json", action="store_true", help="also one JSON object")
    return parser.parse_args(argv, namespace=Plan())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and with --json the figures."""
    plan = _arguments(argv)
    try:
        with ended_by_signals(), Stage() as stage:
            figures = asyncio.run(_measure(stage, plan))
    except ProcessFailed as error:
        print(f"bench_training.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    width = max(map(len, figures), default=0)
    for name, figure in figures.items():
        print(f"{name:<{width}}  {figure:>10,.3f}")
    if plan.json:
        print(json.dumps({name: round(figure, 4) for name, figure in figures.items()}))
    return 0 if figures.get("kills, right") == figures.get("kills, killed") else 1


if __name__ == "__main__":
    sys.exit(main())
