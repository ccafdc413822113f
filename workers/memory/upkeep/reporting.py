"""Lets work that runs in a thread say how far it is, and lets its caller end it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from schemas.bodies.upkeep import UpkeepProgress

T = TypeVar("T")

# How far the work is: stage, done, total. Called from any thread; raises Stopped when nobody waits any more.
Report = Callable[[str, int, int], None]

# What becomes of the reports: usually a partial reply.
Tell = Callable[[UpkeepProgress], Awaitable[None]]

# Seconds between two reports that are passed on. A person sees no more than this, and a message costs more than a page.
TELL_EVERY_S: Final = 0.25


class Stopped(Exception):
    """Nobody waits for this work any more."""


async def told(start: Callable[[Report], Awaitable[T]], tell: Tell) -> T:
    """What `start` returns, while `tell` hears the newest report a few times a second.

    Cancelled, it makes the next report raise Stopped and waits for the work to end.
    """
    stage = _Stage()
    work = asyncio.ensure_future(start(stage.report))
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=TELL_EVERY_S)
            progress = stage.taken()
            if progress is not None:
                await tell(progress)
    except BaseException:
        stage.stop()
        await asyncio.wait({work})
        if not work.cancelled():
            work.exception()
        raise
    return work.result()


class _Stage:
    """The newest report, between the thread that makes it and the coroutine that passes it on."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._newest: tuple[str, int, int] | None = None
        self._name = ""
        self._began_at = 0.0

    def report(self, stage: str, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise Stopped(stage)
        self._newest = (stage, done, total)

    def taken(self) -> UpkeepProgress | None:
        """The newest report, once."""
        newest, self._newest = self._newest, None
        if newest is None:
            return None
        stage, done, total = newest
        now = time.monotonic()
        if stage != self._name:
            self._name, self._began_at = stage, now
        elapsed_s = now - self._began_at
        eta_s = elapsed_s / done * (total - done) if done and elapsed_s > 0 else None
        return UpkeepProgress(stage=stage, done=done, total=total, eta_s=eta_s)

    def stop(self) -> None:
        self._stopping.set()
