"""Jobs for tests of training: rows, a spec for the shipped model, and a loop in a thread that outlives one test."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from workers.learning.training.messages import AnyMessage
from workers.learning.training.spec import TrainSpec
from workers.learning.training.training import Ended, Nest, TrainingRun

T = TypeVar("T")

BASE = Path(__file__).resolve().parent.parent / "workers" / "models" / "demo" / "hf"

WORDS = "sea wind river stone light bread cat dog house green old quick".split()


def rows(count: int, *, preferences: bool = False) -> list[dict[str, Any]]:
    """Short conversations, all different."""
    made = []
    for number in range(count):
        one, other = WORDS[number % len(WORDS)], WORDS[(number * 7 + 3) % len(WORDS)]
        row: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"What is {one} {other} number {number}?"}],
            "answer": f"It is {other} {one}.",
        }
        if preferences:
            row["rejected"] = f"I do not know {one}."
        made.append(row)
    return made


def write_rows(folder: Path, made: list[dict[str, Any]]) -> None:
    """As train.jsonl of the job."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def spec_of(folder: Path, **changes: Any) -> TrainSpec:
    """A short training of the shipped model."""
    plain: dict[str, Any] = {
        "job_id": folder.name,
        "base": str(BASE),
        "base_name": "olympus-demo",
        "learning_rate": 1e-3,
        "max_steps": 6,
        "effective_batch": 4,
        "threads": 1,
        "save_every_s": 3600.0,
    }
    return TrainSpec(**{**plain, **changes})


class Trainers:
    """A loop in a thread of its own, with a warm parent of trainers in it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="trainers")
        self._thread.start()
        self.nest = Nest()
        self.wait(self.nest.open())

    def wait(self, work: Coroutine[Any, Any, T], timeout_s: float = 60.0) -> T:
        """Its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def train(
        self,
        spec: TrainSpec,
        folder: Path,
        on_message: Callable[[TrainingRun, AnyMessage], None] = lambda run, message: None,
        *,
        nest: Nest | None = None,
        timeout_s: float = 60.0,
    ) -> tuple[Ended, list[AnyMessage]]:
        """Train to an end; `on_message` sees each message and may stop or kill."""
        said: list[AnyMessage] = []

        async def work() -> Ended:
            def hear(message: AnyMessage) -> None:
                said.append(message)
                on_message(run, message)

            run = TrainingRun(nest or self.nest, hear)
            return await run.run(spec, folder)

        return self.wait(work(), timeout_s), said

    def close(self) -> None:
        """End all of it."""
        self.wait(self.nest.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
