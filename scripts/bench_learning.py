#!/usr/bin/env python3
"""The whole loop unattended: people correct a model, and some time later it knows better and has forgotten nothing.

A house of real processes serves the demo model. Some hundred requests ask for something it was never taught ("Say ahoy to
Ada."), each answer is corrected over the bus, and from then on nobody does anything: detection, curation, training, gate and
promotion run by themselves. Time runs from the last correction to the event `learning.promoted`. Then requests about names
that nobody ever corrected show the gain, and tasks the model knew before what it forgot. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import uvloop

from bench_bus_parts.processes import ProcessFailed, Stage, ended_by_signals, free_port
from bus.client import Client
from bus.settings import Settings, load_settings
from demo_model.tasks import held_out_checks
from schemas.bodies.learning_gate import GateResult
from schemas.errors import BusError

Figures = dict[str, float]

PORTS: Final = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
SERVICES: Final = ("memory", "resources", "models", "learning")

MODEL: Final = "olympus-demo"

# Corrections given, and unseen names asked before and after. A quarter of the corrections is held out for the gate, which
# wants 60 of them.
CORRECTIONS: Final = 360
UNSEEN: Final = 120

# People who correct, so that no cap per person is met.
PEOPLE: Final = 4

# Of each of the demo model's own tasks, cases asked before and after; and questions people asked in the days before, whose
# answers are what is repeated against forgetting.
KEPT_PER_TASK: Final = 12
ASKED_PER_TASK: Final = 48

# Seconds after which an answer nobody complained of counts as fine.
SILENCE_S: Final = 2.0

# Requests under way at once.
AT_ONCE: Final = 8

# Seconds the whole loop may take, ten times what it should.
LIMIT_S: Final = 1_200.0

EPILOG = """examples:
  scripts/bench_learning.py                  three rounds, some minutes
  scripts/bench_learning.py --rounds 1 --json
exit codes: 0 done, 1 a part of the loop failed, 2 wrong arguments"""

_ONSETS: Final = "B D F G H J K L M N P R S T V Br Kl Tr St".split()
_MIDDLES: Final = "a e i o u".split()
_ENDS: Final = "na ra lo mi ko da nis ton ber vik len sa".split()


class Case(NamedTuple):
    """A chat and the answer that is right."""

    messages: list[dict[str, str]]
    answer: str


def names(count: int, seed: int) -> list[str]:
    """Made-up first names, all different."""
    every = ["".join(parts) for parts in itertools.product(_ONSETS, _MIDDLES, _ENDS)]
    random.Random(seed).shuffle(every)
    return every[:count]


def lesson(name: str) -> Case:
    """What the model was never taught, and how people want it answered."""
    return Case([{"role": "user", "content": f"Say ahoy to {name}."}], f"Ahoy, {name}! Welcome aboard.")


def known_tasks(seed: int, per_task: int) -> list[Case]:
    """Cases of what the demo model was trained for, from rows it was not trained on."""
    return [
        Case(conversation.messages()[:-1], conversation.turns[-1].answer)
        for conversations in held_out_checks(seed, per_task).values()
        for conversation in conversations
    ]


class House:
    """Broker and services as processes of their own, with a schedule that waits for nothing."""

    def __init__(self, stage: Stage, number: int) -> None:
        home = stage.home / f"house-{number}"
        ports = {f"bus.{name}": free_port() for name in PORTS}
        chosen = {
            **ports,
            "home": str(home),
            "log.level": "error",
            "learning.idle_s": 1,
            "learning.silence_s": SILENCE_S,
            # All at once, so that every request afterwards shows what was learned.
            "learning.canary_share": 1,
        }
        environment = {f"OLYMPUS_{key.replace('.', '_').upper()}": str(value) for key, value in chosen.items()}
        self.settings: Settings = load_settings(overrides=chosen)
        broker = stage.start("broker", [sys.executable, "-m", "broker"], environment)
        for port in ports.values():
            broker.wait_for_port(port)
        for name in SERVICES:
            stage.start(name, [sys.executable, "-m", f"workers.{name}"], environment)

    async def wait(self, client: Client) -> None:
        """Return once every service answers. Raises ProcessFailed."""
        deadline = time.monotonic() + 60
        while True:
            reply = await client.request("bus.services")
            if {"memory", "resource", "model", "learning"} <= {info.service for info in reply.services}:
                return
            if time.monotonic() > deadline:
                raise ProcessFailed("the services do not come up")
            await asyncio.sleep(0.05)


async def ask(client: Client, cases: Sequence[Case]) -> list[Any]:
    """The answers to all of them, some at once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(case: Case) -> Any:
        async with gate:
            body = {"model": MODEL, "messages": case.messages, "temperature": 0, "max_tokens": 128}
            return await client.request("model.chat", body, timeout_s=120)

    return list(await asyncio.gather(*(one(case) for case in cases)))


async def score(client: Client, cases: Sequence[Case]) -> float:
    """Part of the answers that are exactly right, in points of 100."""
    texts: list[str] = [reply.text.strip() for reply in await ask(client, cases)]
    return 100 * statistics.mean(float(text == case.answer) for text, case in zip(texts, cases, strict=True))


async def correct(client: Client, cases: Sequence[Case]) -> None:
    """Ask, and say of each answer what it should have been."""
    replies = await ask(client, cases)
    people = itertools.cycle(f"person-{number}" for number in range(PEOPLE))
    await asyncio.gather(
        *(
            client.request(
                "learning.feedback",
                {"reply_id": reply.reply_id, "rating": 0, "correction": case.answer, "user": person},
                timeout_s=60,
            )
            for reply, case, person in zip(replies, cases, people, strict=False)
        )
    )


async def until_promoted(client: Client) -> tuple[dict[str, float], GateResult]:
    """Instants of the loop's events by name, and the gate's result. Raises ProcessFailed when it ends otherwise."""
    at: dict[str, float] = {}
    result: GateResult | None = None
    async with asyncio.timeout(LIMIT_S), client.subscribe("learning.>", read_back=True) as events:
        async for event in events:
            name = event.subject.removeprefix("learning.")
            at.setdefault(name, time.monotonic())
            if name == "training.failed":
                raise ProcessFailed(f"the training failed: {event.body['reason']}")
            if name in ("gate.passed", "gate.failed"):
                result = msgspec.convert(event.body, GateResult)
            if name == "gate.failed":
                raise ProcessFailed(f"the gate did not pass it: {'; '.join(event.body['reasons'])}")
            if name == "promoted" and result is not None:
                return at, result
    raise ProcessFailed("the events ended")


async def round_of(stage: Stage, number: int) -> Figures:
    """One house, one lesson, from the corrections to the promotion. Raises ProcessFailed."""
    house = House(stage, number)
    every = names(CORRECTIONS + UNSEEN, seed=number)
    lessons, unseen = [lesson(name) for name in every[:CORRECTIONS]], [lesson(name) for name in every[CORRECTIONS:]]
    everyday = known_tasks(2_000 + number, ASKED_PER_TASK)
    kept = [case for case in known_tasks(1_000 + number, KEPT_PER_TASK) if case not in everyday]
    async with Client(house.settings, name="bench") as client:
        await house.wait(client)
        before, kept_before = await score(client, unseen), await score(client, kept)
        await ask(client, everyday)
        await asyncio.sleep(SILENCE_S + 1)
        await correct(client, lessons)
        began = time.monotonic()
        at, result = await until_promoted(client)
        after, kept_after = await score(client, unseen), await score(client, kept)
    return {
        "detected_to_promoted_s": at["promoted"] - began,
        "to_training_s": at["training.started"] - began,
        "training_s": at["training.finished"] - at["training.started"],
        "evaluation_s": at["gate.passed"] - at["training.finished"],
        "target_before": before,
        "target_after": after,
        "target_gain": after - before,
        "kept_before": kept_before,
        "kept_after": kept_after,
        "kept_loss": kept_before - kept_after,
        "gate_target_gain": 100 * (result.target.difference if result.target else math.nan),
        "gate_retention_loss": -100 * (result.retention.difference if result.retention else math.nan),
    }


def medians(rounds: Sequence[Figures]) -> Iterator[tuple[str, float]]:
    """The median of each figure over the rounds."""
    for name in rounds[0]:
        yield name, statistics.median(one[name] for one in rounds)


async def run(rounds: int) -> list[Figures]:
    """Each round's figures, in a house of its own."""
    found = []
    for number in range(rounds):
        with Stage() as stage:
            found.append(await round_of(stage, number))
            print(f"round {number + 1} of {rounds}: {found[-1]['detected_to_promoted_s']:.1f} s", file=sys.stderr)
    return found


def main() -> int:
    """Run the rounds and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="houses, one after another (3)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1")
    try:
        with ended_by_signals():
            figures = dict(medians(uvloop.run(run(args.rounds))))
    except (ProcessFailed, BusError, TimeoutError) as error:
        print(f"bench_learning: {error or 'the loop did not end in time'}", file=sys.stderr)
        return 1
    for name, value in figures.items():
        print(f"{name:<28} {value:10,.2f}")
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
