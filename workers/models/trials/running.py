"""Tasks of trials: ended at once when the service leaves, and several of them as one; knows no trial."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager

from schemas.errors import WorkerLost


class Running:
    """The tasks of trials in flight."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self.is_leaving = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling task is a trial within this block. Raises WorkerLost when the service leaves meanwhile."""
        task = asyncio.current_task()
        assert task is not None
        if self.is_leaving:
            raise WorkerLost("the model service is leaving")
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError as error:
            if self.is_leaving:
                raise WorkerLost("the model service left while the trial ran") from error
            raise
        finally:
            self._tasks.discard(task)

    async def stop(self) -> None:
        """End what runs and wait until it has noted its end; nothing new begins."""
        self.is_leaving = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def all_or_first_error(works: Sequence[Coroutine[object, object, None]]) -> None:
    """Run all at once; the first error of one ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
