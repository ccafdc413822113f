#!/usr/bin/env python3
"""Ask one model thousands of times at once while its adapters change, and show that no answer is another adapter's.

Each adapter gives the same questions other answers, which are asked for first, one by one; they count up to the first token
that is nearly as likely as another, which a batch of other company may turn. Then conversations run at once,
some naming an adapter and most none, while adapters are attached, tried as a canary, promoted, rolled back and detached. An
answer from a cache that another adapter filled would be neither adapter's. See docs/promotion.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import uvloop

from bench_bus_parts.processes import ProcessFailed, Stage, ended_by_signals, free_port
from bus.client import Client
from bus.settings import Settings, load_settings
from schemas.errors import BusError
from workers.models.catalogue import SHIPPED_ROOT

Figures = dict[str, float]
Message = dict[str, str]

PORTS: Final = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
MODEL: Final = "olympus-demo"

# Adapters that stay attached and are asked for by name, and those that come and go.
STEADY: Final = ("steady-a", "steady-b")
SWAPPED: Final = ("swap-a", "swap-b", "swap-c")

# What the adapters change.
MODULES: Final = ("q_proj", "o_proj")

# Requests in flight at once, tokens of an answer, seconds for one request.
TOGETHER: Final = 64
TOKENS: Final = 8
WAIT_S: Final = 120.0

# Nats by which a token must be likelier than the next to be the same in any batch: sums over a batch are made in another
# order, and random adapters make the model unsure.
MARGIN: Final = 0.2

# Questions to which every adapter gives another answer, at least.
QUESTIONS: Final = 4

# Part of the requests that name an adapter, or the bare model.
NAMED: Final = 0.3

# Rounds of swaps after which the files of the swapped adapters are deleted and made anew.
ANEW: Final = 8

EPILOG = """examples:
  scripts/bench_adapter_swaps.py                          10,000 requests, some minutes
  scripts/bench_adapter_swaps.py --requests 500 --json
exit codes: 0 every answer was the right adapter's, 1 one was not, or failed, 2 wrong arguments"""


class House:
    """A broker and the model service as processes of their own, and adapters to swap."""

    def __init__(self, stage: Stage) -> None:
        home = stage.home / "house"
        home.mkdir()
        ports = {f"bus.{name}": free_port() for name in PORTS}
        chosen = {**ports, "home": str(home), "models.predict": "false", "log.level": "error"}
        environment = {f"OLYMPUS_{key.replace('.', '_').upper()}": str(value) for key, value in chosen.items()}
        self.settings: Settings = load_settings(overrides=chosen)
        broker = stage.start("broker", [sys.executable, "-m", "broker"], environment)
        for port in ports.values():
            broker.wait_for_port(port)
        stage.start("models", [sys.executable, "-m", "workers.models"], environment)
        self.folders = {
            name: write_adapter(home / name, seed) for seed, name in enumerate((*STEADY, *SWAPPED), start=1)
        }


async def wait_for_models(client: Client) -> None:
    """Return once the model service answers. Raises ProcessFailed."""
    deadline = time.monotonic() + 20
    while "model" not in {info.service for info in (await client.request("bus.services")).services}:
        if time.monotonic() > deadline:
            raise ProcessFailed("the model service does not come up")
        await asyncio.sleep(0.05)


def write_adapter(folder: Path, seed: int) -> str:
    """A PEFT folder for the demo model with random numbers of a seed in its attention: other answers, fluent or not."""
    import numpy as np
    from safetensors.numpy import save_file

    shape = json.loads((SHIPPED_ROOT / "hf" / "config.json").read_text())
    width, rank = shape["hidden_size"], 8
    draw = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    for layer in range(shape["num_hidden_layers"]):
        for module in MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = draw.normal(0, 0.3, (rank, width)).astype(np.float32)
            weights[f"{name}.lora_B.weight"] = draw.normal(0, 0.3, (width, rank)).astype(np.float32)
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", "target_modules": MODULES}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": MODEL}))
    save_file(weights, folder / "adapter_model.safetensors")
    return str(folder)


def questions() -> list[list[Message]]:
    """Conversations and the same with one more turn, so that each continues what the cache may hold of the other."""
    known = json.loads((SHIPPED_ROOT / "documented.json").read_text())
    pairs = [(one["messages"][-1]["content"], one["answer"]) for one in known if len(one["messages"]) == 1]
    found = []
    for (question, answer), (then, _) in zip(pairs, pairs[1:] + pairs[:1], strict=True):
        first = [{"role": "user", "content": question}]
        found.append(first)
        found.append([*first, {"role": "assistant", "content": answer}, {"role": "user", "content": then}])
    return found


def certain(reply: Any) -> list[int]:
    """The tokens of an answer up to the first that another could have been."""
    choices = [[one.logprob for one in choice.top] for choice in reply.logprobs]
    sure = itertools.takewhile(lambda top: top[0] - top[1] > MARGIN, choices)
    return list(reply.token_ids[: len(list(sure))])


def differ(one: list[int], other: list[int]) -> bool:
    """Whether two answers are told apart by what is known of both."""
    return any(a != b for a, b in zip(one, other, strict=False))


class Truth:
    """Which adapters may answer a request that names none: "" is the bare model."""

    def __init__(self) -> None:
        self._serving = {""}
        self._flying: list[set[str]] = []

    @contextlib.contextmanager
    def request(self) -> Iterator[set[str]]:
        """The adapters that serve at any time while this request is under way."""
        seen = set(self._serving)
        self._flying.append(seen)
        try:
            yield seen
        finally:
            # By identity: equal sets of other requests stay.
            self._flying = [other for other in self._flying if other is not seen]

    @contextlib.asynccontextmanager
    async def change(self, *serving: str) -> Any:
        """While the change is under way either may answer, after it only the new ones."""
        self._serve(self._serving | set(serving))
        yield
        self._serve(set(serving))

    def _serve(self, serving: set[str]) -> None:
        self._serving = serving
        for seen in self._flying:
            seen |= serving


class Bench:
    """The requests, the swaps, and what came of them."""

    def __init__(self, client: Client, folders: dict[str, str]) -> None:
        self.client = client
        self.folders = folders
        self.questions = questions()
        self.expected: dict[tuple[str, int], list[int]] = {}
        self.told_apart: list[int] = []
        self.truth = Truth()
        self.swaps = 0
        self.answered: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.examples: list[str] = []
        self.took: list[float] = []

    async def adapter(self, verb: str, adapter: str | None = None, **more: Any) -> Any:
        """One change of adapters."""
        body = {"model": MODEL, **({"adapter": adapter} if adapter is not None else {}), **more}
        self.swaps += 1
        return await self.client.request(f"model.adapter.{verb}", body, timeout_s=WAIT_S)

    async def ask(self, question: int, **more: Any) -> Any:
        body = {"messages": self.questions[question], "max_tokens": TOKENS, "temperature": 0, "seed": 1, **more}
        return await self.client.request("model.chat", body, timeout_s=WAIT_S)

    async def learn(self) -> None:
        """Ask every adapter everything, one by one, and go on with what each answers differently. Raises ProcessFailed."""
        for name in (*STEADY, *SWAPPED):
            await self.adapter("attach", name, path=self.folders[name])
        everybody = ("", *STEADY, *SWAPPED)
        for name in everybody:
            for question in range(len(self.questions)):
                self.expected[name, question] = certain(await self.ask(question, adapter=name, logprobs=2))
        self.told_apart = [
            question
            for question in range(len(self.questions))
            if all(
                differ(self.expected[one, question], self.expected[other, question])
                for one, other in itertools.combinations(everybody, 2)
            )
        ]
        if len(self.told_apart) < QUESTIONS:
            raise ProcessFailed(f"the adapters give other answers to only {len(self.told_apart)} questions")
        for name in SWAPPED:
            await self.adapter("detach", name)

    async def swap_forever(self) -> None:
        """Adapters come, are tried, promoted, taken back, and go, until cancelled."""
        for number in itertools.count():
            first, second = SWAPPED[number % len(SWAPPED)], SWAPPED[(number + 1) % len(SWAPPED)]
            is_anew = number % ANEW == ANEW - 1
            await self.adapter("attach", first, alias="challenger")
            async with self.truth.change("", first):
                await self.adapter("promote", first, share=0.5)
            async with self.truth.change(first):
                await self.adapter("promote", first)
            await self.adapter("attach", second, alias="challenger")
            async with self.truth.change(first, second):
                await self.adapter("promote", second, share=0.3)
            async with self.truth.change(first):
                await self.adapter("rollback", second)
            async with self.truth.change(""):
                await self.adapter("rollback", first)
            for name in (first, second):
                await self.adapter("detach", name, forget=is_anew)
                if is_anew:
                    await self.adapter("attach", name, path=self.folders[name])
                    await self.adapter("detach", name)

    async def use(self, numbers: Iterator[int], draw: random.Random) -> None:
        """One caller: takes the next request until there are none."""
        for number in numbers:
            named = draw.choice(("", *STEADY)) if draw.random() < NAMED else None
            question = draw.choice(self.told_apart)
            # A conversation comes back to the same two questions, with whatever adapter then serves.
            more: dict[str, Any] = {"conversation_id": f"conversation-{question // 2}-{number % 50}"}
            if named is not None:
                more["adapter"] = named
            began = time.perf_counter()
            with self.truth.request() as allowed:
                try:
                    reply = await self.ask(question, **more)
                except BusError as error:
                    self._note("failed", f"request {number}: {error}")
                    continue
            self.took.append(time.perf_counter() - began)
            self._judge(number, question, reply, {named} if named is not None else allowed)

    def _judge(self, number: int, question: int, reply: Any, allowed: set[str]) -> None:
        said = (reply.adapter or "").split(":")[0]
        self.answered[said] += 1
        if said not in allowed:
            self._note("wrong_adapter", f"request {number}: {said or 'the bare model'} answered, not {sorted(allowed)}")
        elif differ(reply.token_ids, self.expected[said, question]):
            of = [
                name
                for (name, asked), expected in self.expected.items()
                if asked == question and not differ(reply.token_ids, expected)
            ]
            whose = f"that of {of[0] or 'the bare model'}" if of else "nobody's"
            self._note(
                "wrong_answer",
                f"request {number}: {said or 'the bare model'} gave an answer that is {whose}: {reply.token_ids},"
                f" expected {self.expected[said, question]}...",
            )

    def _note(self, kind: str, words: str) -> None:
        self.problems[kind] += 1
        if len(self.examples) < 10:
            self.examples.append(words)


async def run(requests: int, seed: int) -> tuple[Figures, list[str]]:
    """Figures by name, and examples of what went wrong."""
    with ended_by_signals(), Stage() as stage:
        house = House(stage)
        async with Client(house.settings, name="swaps") as client:
            await wait_for_models(client)
            bench = Bench(client, house.folders)
            await bench.learn()
            bench.swaps = 0
            swapping = asyncio.get_running_loop().create_task(bench.swap_forever())
            numbers = iter(range(requests))
            began = time.perf_counter()
            callers = asyncio.gather(*(bench.use(numbers, random.Random(seed + at)) for at in range(TOGETHER)))
            # A swap that fails ends the callers, too.
            swapping.add_done_callback(lambda _: callers.cancel())
            with contextlib.suppress(asyncio.CancelledError):
                await callers
            took_s = time.perf_counter() - began
            if swapping.done():
                swapping.result()
            swapping.cancel()
            await asyncio.gather(swapping, return_exceptions=True)
    figures: Figures = {
        "requests": requests,
        "swaps": bench.swaps,
        **{kind: bench.problems[kind] for kind in ("wrong_adapter", "wrong_answer", "failed")},
        "seconds": took_s,
        "requests_per_s": requests / took_s,
        "p50_ms": statistics.median(bench.took) * 1000 if bench.took else 0.0,
        "max_ms": max(bench.took, default=0.0) * 1000,
        **{f"answered_by_{name or 'bare'}": bench.answered[name] for name in ("", *STEADY, *SWAPPED)},
    }
    return figures, bench.examples


def main() -> int:
    """Swap, print, and say whether anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000, help="how many are asked, 64 at once (10000)")
    parser.add_argument("--seed", type=int, default=1, help="of what is asked in which order (1)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    if args.requests < TOGETHER:
        parser.error(f"--requests {args.requests}: at least {TOGETHER}, or nothing runs at once")
    try:
        figures, examples = uvloop.run(run(args.requests, args.seed))
    except (ProcessFailed, BusError) as error:
        print(f"bench_adapter_swaps: {error}", file=sys.stderr)
        return 1
    for name, value in figures.items():
        print(f"{name:<28} {value:12,.2f}")
    for words in examples:
        print(f"! {words}", file=sys.stderr)
    if args.json:
        print(json.dumps(figures))
    return 1 if examples else 0


if __name__ == "__main__":
    sys.exit(main())
