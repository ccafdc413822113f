"""Collects both sides' answers: those that are known, and the rest from the models, several at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from schemas.bodies.learning_gate import LearningEvaluateProgress
from schemas.errors import Unprocessable
from workers.learning.gate.asking import Answer, Asking, Side
from workers.learning.gate.items import Item
from workers.learning.gate.kept import Kept
from workers.learning.gate.scoring import score

OnProgress = Callable[[LearningEvaluateProgress], Awaitable[None]]

# Answers kept in one transaction.
_BATCH: Final = 32

# Answers without a single success after which it is the model that is broken, not the items.
_GIVE_UP: Final = 10

# Seconds between progress messages.
_PROGRESS_S: Final = 0.25


class Answering:
    """Asks `parallel` questions at a time."""

    def __init__(self, asking: Asking, kept: Kept, parallel: int) -> None:
        self._asking = asking
        self._kept = kept
        self._parallel = parallel

    async def both(
        self, sets: Mapping[str, Sequence[Item]], candidate: Side, before: Side, on_progress: OnProgress | None
    ) -> tuple[dict[str, Answer], dict[str, Answer]]:
        """Both sides' answers to all sets, by `Item.key`. Raises what `Asking.answer` does, and Unprocessable."""
        total = 2 * sum(len(items) for items in sets.values())
        progress = _Progress(on_progress, total)
        found: list[dict[str, Answer]] = [{}, {}]
        for name, items in sets.items():
            for known, side, who in ((found[0], candidate, "candidate"), (found[1], before, "before")):
                progress.begins(f"{name}, {who}", counts_score=side is candidate and name == "target")
                known.update(await self.all_of(side, items, progress))
        await progress.ends()
        return found[0], found[1]

    async def all_of(self, side: Side, items: Sequence[Item], progress: _Progress) -> dict[str, Answer]:
        """One side's answers to all items, some at a time; what was answered is kept as it comes."""
        known = await self._kept.answers(side, items)
        for item in items:
            if item.key in known:
                await progress.answered(item, known[item.key])
        waiting = iter([item for item in items if item.key not in known])
        unkept: list[tuple[Item, Answer]] = []
        asked = refused = 0

        async def work() -> None:
            nonlocal asked, refused
            for item in waiting:
                answer = await self._asking.answer(side, item)
                known[item.key] = answer
                asked += 1
                if answer.error:
                    # Not kept: the next try may find it answered.
                    refused += 1
                else:
                    unkept.append((item, answer))
                if refused == asked >= _GIVE_UP:
                    raise Unprocessable(
                        f"{side.model} answers nothing ({side.adapter or 'no adapter'}); the last error: {answer.error}",
                        model=side.model,
                    )
                await progress.answered(item, answer)
                if len(unkept) >= _BATCH:
                    batch = unkept[:]
                    unkept.clear()
                    # Whoever is cancelled here has taken the batch from the others: it is kept all the same.
                    await asyncio.shield(self._kept.keep_answers(side, batch))

        try:
            await _all_or_first_error([work() for _ in range(self._parallel)])
        finally:
            if unkept:
                await self._kept.keep_answers(side, unkept)
        return known


class _Progress:
    """Tells how far it is, a few times a second. score: mean of the candidate's on the target so far."""

    def __init__(self, tell: OnProgress | None, total: int) -> None:
        self._tell = tell
        self._total = total
        self._done = 0
        self._phase = ""
        self._counts_score = False
        self._scores: list[float] = []
        self._told_at = 0.0

    def begins(self, phase: str, *, counts_score: bool) -> None:
        self._phase, self._counts_score = phase, counts_score

    async def answered(self, item: Item, answer: Answer) -> None:
        self._done += 1
        if self._counts_score and not answer.error:
            self._scores.append(score(item.metric, answer.text, item.reference))
        if time.monotonic() - self._told_at >= _PROGRESS_S:
            await self._say()

    async def ends(self) -> None:
        self._phase = "judging"
        await self._say()

    async def _say(self) -> None:
        self._told_at = time.monotonic()
        if self._tell is not None:
            mean = sum(self._scores) / len(self._scores) if self._scores else None
            await self._tell(
                LearningEvaluateProgress(phase=self._phase, done=self._done, total=self._total, score=mean)
            )


async def _all_or_first_error(works: Sequence[Awaitable[None]]) -> None:
    """Run all at once; the first error of one ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
