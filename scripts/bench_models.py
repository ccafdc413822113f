#!/usr/bin/env python3
"""Measure the model service beside llama-cpp-python in process, in one run. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import uvloop

from bench_bus_parts.processes import READY_S, Process, ProcessFailed, Stage, ended_by_signals, free_port
from bench_models_parts.random_model import LARGE, MIDDLE, Shape, write_model
from bus.client import Client
from bus.settings import Settings, load_settings
from schemas.bodies.model import Generation
from workers.models.catalogue import SHIPPED_ROOT

Figures = dict[str, float]

PORTS: Final = ("request_port", "publish_port", "subscribe_port", "sequenced_port")

DEMO: Final = "olympus-demo"
PROMPT: Final = "Tell me a story about the sea and those who live by it"

# Noise at a high temperature ends by itself only when the end token is drawn.
SAMPLING: Final = {"temperature": 5.0, "top_k": 40, "top_p": 1.0, "min_p": 0.0}

# Callers at once, and sequences the runner answers together.
CALLERS: Final = 8

CONTEXT_TOKENS: Final = 512

# Requests for one median of the time to the first token.
FIRST_TOKENS: Final = 40

EPILOG = """examples:
  scripts/bench_models.py                        everything; writes 1.2 GB of random models into a temporary folder
  scripts/bench_models.py --quick --json         fewer rounds
  scripts/bench_models.py --only demo,swap
exit codes: 0 measured, 1 a process failed, 2 wrong arguments"""


class Plan(argparse.Namespace):
    """What was asked for."""

    rounds: int
    tokens: int
    keep: Path | None


class House:
    """A broker and the model service as processes of their own, and llama-cpp-python in a third."""

    def __init__(self, stage: Stage, plan: Plan) -> None:
        self.stage = stage
        self.root = plan.keep or stage.home / "models"
        self.root.mkdir(parents=True, exist_ok=True)
        ports = {f"bus.{name}": free_port() for name in PORTS}
        chosen: dict[str, object] = {
            **ports,
            "home": str(stage.home / "home"),
            "models.roots": str(self.root),
            "models.default": DEMO,
            "models.context_tokens": CONTEXT_TOKENS,
            "models.parallel": CALLERS,
            "models.predict": "false",
        }
        environment = {f"OLYMPUS_{key.replace('.', '_').upper()}": str(value) for key, value in chosen.items()}
        self.settings: Settings = load_settings(overrides=chosen)
        broker = stage.start("broker", [sys.executable, "-m", "broker"], environment)
        for port in ports.values():
            broker.wait_for_port(port)
        self.service = stage.start("models", [sys.executable, "-m", "workers.models"], environment)

    def model(self, name: str, shape: Shape) -> Path:
        """A random model of this shape, written when it is not there yet."""
        path = self.root / f"{name}.gguf"
        if not path.exists():
            print(f"writing {name} ...", file=sys.stderr)
            write_model(path, shape)
        return path

    def by_hand(self) -> Process:
        """A process with llama-cpp-python imported."""
        command = [sys.executable, "-m", "bench_models_parts.in_process"]
        # The runner's threads sleep while they wait; so do these.
        process = self.stage.start("by hand", command, {"OMP_WAIT_POLICY": "passive"}, is_role=True)
        process.answer(READY_S)
        return process

    async def wait(self, client: Client) -> None:
        """Return once the service answers. Raises ProcessFailed."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.service.child.poll() is None:
            reply = await client.request("bus.services")
            if any(info.service == "model" for info in reply.services):
                return
            await asyncio.sleep(0.05)
        raise ProcessFailed("the model service does not come up")


class _Answer:
    """One answer over the bus, as the caller sees it."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self.took_s = 0.0
        self.generation: Generation | None = None

    async def ask(self, client: Client, model: str, tokens: int, seed: int, *, subject: str = "") -> _Answer:
        body = {"prompt": f"{PROMPT} {seed}", "max_tokens": tokens, "seed": seed, "model": model, **SAMPLING}
        started_at = time.perf_counter()
        async with client.stream(subject or f"model.generate@{model}", body, timeout_s=120) as parts:
            async for _ in parts:
                self.first_s = self.first_s or time.perf_counter() - started_at
            self.generation = parts.final
        self.took_s = time.perf_counter() - started_at
        return self

    @property
    def tokens(self) -> int:
        return len(self.generation.token_ids) if self.generation is not None else 0


async def _speed(house: House, client: Client, plan: Plan, name: str, path: Path, threads: int) -> Figures:
    """Tokens per second and time to the first token of one model, over the bus and by hand, in turns."""
    hand = house.by_hand()
    asked: dict[str, Any] = {"path": str(path), "context_tokens": CONTEXT_TOKENS, "threads": threads}
    samples: dict[str, list[float]] = {
        key: [] for key in ("bus_per_s", "hand_per_s", "completion_per_s", "added_ms", "serial_per_s", "many_per_s")
    }
    await _Answer().ask(client, path.stem, 4, 1, subject="model.generate")
    hand.ask(do="generate", prompt=PROMPT, tokens=4, **asked)
    for number in range(plan.rounds):
        answer = await _Answer().ask(client, path.stem, plan.tokens, number)
        samples["bus_per_s"].append((answer.tokens - 1) / (answer.took_s - answer.first_s))
        by_hand = hand.ask(do="generate", prompt=f"{PROMPT} {number}", tokens=answer.tokens, **asked)
        samples["hand_per_s"].append(_per_s(by_hand))
        by_hand = hand.ask(do="complete", prompt=f"{PROMPT} {number}", tokens=answer.tokens, seed=number, **asked)
        samples["completion_per_s"].append(_per_s(by_hand))
        # Eight, one after the other, and eight at once: all of a request counts, the reading of its prompt too.
        seeds = range(100 * number, 100 * number + CALLERS)
        started_at = time.perf_counter()
        answers = [await _Answer().ask(client, path.stem, plan.tokens, seed) for seed in seeds]
        samples["serial_per_s"].append(sum(one.tokens for one in answers) / (time.perf_counter() - started_at))
        started_at = time.perf_counter()
        answers = await asyncio.gather(*(_Answer().ask(client, path.stem, plan.tokens, seed) for seed in seeds))
        samples["many_per_s"].append(sum(one.tokens for one in answers) / (time.perf_counter() - started_at))
    for number in range(FIRST_TOKENS):
        answer = await _Answer().ask(client, path.stem, 2, 1_000 + number)
        assert answer.generation is not None
        # What the runner itself counts begins when it gives the request to llama.cpp and ends at the first token.
        samples["added_ms"].append(1e3 * (answer.first_s - answer.generation.timings.first_token_s))
    hand.close()
    figures = {f"{name}_{key}": statistics.median(values) for key, values in samples.items()}
    for peer in ("hand", "completion"):
        ratios = [bus / own for bus, own in zip(samples["bus_per_s"], samples[f"{peer}_per_s"], strict=True)]
        figures[f"{name}_bus_to_{peer}_ratio"] = statistics.median(ratios)
    gains = [many / one for many, one in zip(samples["many_per_s"], samples["serial_per_s"], strict=True)]
    figures[f"{name}_{CALLERS}_callers_to_serial_ratio"] = statistics.median(gains)
    return figures


def _per_s(answer: dict[str, Any]) -> float:
    """Tokens a second behind the first."""
    return float((answer["tokens"] - 1) / (answer["took_s"] - answer["first_s"]))


async def demo(house: House, client: Client, plan: Plan) -> Figures:
    """The demo model: 2.7 M parameters, half a millisecond a token, so that all that is not computing shows."""
    return await _speed(house, client, plan, "demo", SHIPPED_ROOT / f"{DEMO}.gguf", 1)


async def middle(house: House, client: Client, plan: Plan) -> Figures:
    """A model whose step takes as long as those of useful models do."""
    path = house.model("middle", MIDDLE)
    return await _speed(house, client, plan, "middle", path, len(os.sched_getaffinity(0)))


async def swap(house: House, client: Client, plan: Plan) -> Figures:
    """From the request for an absent model of 1 GB, whose file is in the page cache, to its first token."""
    path = house.model("large", LARGE)
    threads = len(os.sched_getaffinity(0))
    hand = house.by_hand()
    # The same cache: most of a load from the page cache is the zeroing of it.
    asked: dict[str, Any] = {"path": str(path), "context_tokens": CONTEXT_TOKENS * CALLERS, "threads": threads}
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass
    samples: dict[str, list[float]] = {key: [] for key in ("bus_s", "hand_s", "hand_load_s", "bus_load_s")}
    for number in range(plan.rounds + 1):
        by_hand = hand.ask(do="swap", prompt=f"{PROMPT} {number}", tokens=1, **asked)
        answer = await _Answer().ask(client, path.stem, 1, number, subject="model.generate")
        assert answer.generation is not None
        await client.request("model.unload", {"model": path.stem}, timeout_s=30)
        # The spare runner that takes the place of the used one must be up before the next.
        await asyncio.sleep(1.5)
        if number == 0:
            continue
        samples["hand_s"].append(by_hand["first_s"])
        samples["hand_load_s"].append(by_hand["load_s"])
        samples["bus_s"].append(answer.first_s)
        samples["bus_load_s"].append(answer.generation.timings.load_s)
    figures = {f"swap_{key}": statistics.median(values) for key, values in samples.items()}
    ratios = [bus / by_hand for bus, by_hand in zip(samples["bus_s"], samples["hand_s"], strict=True)]
    figures["swap_bus_to_hand_ratio"] = statistics.median(ratios)
    return figures


CASES: Final[dict[str, Callable[[House, Client, Plan], Awaitable[Figures]]]] = {
    "demo": demo,
    "middle": middle,
    "swap": swap,
}


def _arguments(argv: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        prog="bench_models.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(CASES), metavar="CASES", help=f"of {','.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=7, help="rounds per case, of which the median counts")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of one answer")
    parser.add_argument("--keep", type=Path, help="folder where the random models stay for the next run")
    parser.add_argument("--quick", action="store_true", help="three short rounds: shape right, figures rough")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    plan = parser.parse_args(argv, namespace=Plan())
    plan.only = [name for name in plan.only.split(",") if name]
    unknown = [name for name in plan.only if name not in CASES]
    if unknown:
        parser.error(f"--only {unknown[0]!r} is none of {', '.join(CASES)}")
    if plan.quick:
        plan.rounds, plan.tokens = min(plan.rounds, 3), min(plan.tokens, 60)
    if plan.rounds < 1 or not 4 <= plan.tokens <= CONTEXT_TOKENS // 2:
        parser.error(f"--rounds must be at least 1, --tokens 4 to {CONTEXT_TOKENS // 2}")
    return plan


async def _measure(house: House, plan: Plan) -> Figures:
    figures: Figures = {}
    async with Client(house.settings, name="bench") as client:
        await house.wait(client)
        for name in CASES:
            if name in plan.only:
                print(f"{name} ...", file=sys.stderr)
                figures |= await CASES[name](house, client, plan)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and with --json the figures."""
    plan = _arguments(argv)
    try:
        with ended_by_signals(), Stage() as stage:
            figures = uvloop.run(_measure(House(stage, plan), plan))
    except ProcessFailed as error:
        print(f"bench_models.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    width = max(map(len, figures))
    for name, figure in figures.items():
        print(f"{name:<{width}}  {figure:>12,.3f}")
    if plan.json:
        print(json.dumps({name: round(figure, 4) for name, figure in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
