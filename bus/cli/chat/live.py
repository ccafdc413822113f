"""Draws an answer on the screen while it comes: a frame when something happened, never more than some a second."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable
from typing import Final

from bus.cli.chat.events import Event
from bus.cli.chat.region import Line, Region
from bus.cli.chat.rendering import AnswerView, Painter

# An answer is drawn at most this often, and at least that often for its clock and for the window's size, seconds.
_FRAME_S: Final = 0.05
_CLOCK_S: Final = 0.25


class LiveAnswer:
    """One answer on the screen. write: takes text for the terminal. window: its size now."""

    def __init__(
        self, painter: Painter, label: str, write: Callable[[str], None], window: Callable[[], os.terminal_size]
    ) -> None:
        self._painter = painter
        self._write = write
        self._window = window
        self._view = AnswerView(painter, label, time.monotonic())
        self._region = Region(window().columns)
        self._happened = asyncio.Event()

    def take(self, event: Event) -> None:
        """Something happened; the next frame shows it."""
        self._view.take(event, time.monotonic())
        self._happened.set()

    async def run(self, events: AsyncGenerator[Event, None]) -> None:
        """Draw until the events end. What was drawn stays, also where this is cancelled or the events raise."""
        following = asyncio.create_task(self._follow(events))
        following.add_done_callback(lambda _: self._happened.set())
        try:
            while not following.done():
                self._draw()
                await asyncio.sleep(_FRAME_S)
                # Not wait_for, which in Python 3.11 may lose a cancellation that comes together with an event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CLOCK_S):
                        await self._happened.wait()
                self._happened.clear()
            await following
        finally:
            following.cancel()
            await asyncio.wait({following})
            self._view.close()
            finished, _ = self._frame()
            self._write(self._region.end(finished, self._painter.columns))

    async def _follow(self, events: AsyncGenerator[Event, None]) -> None:
        async with contextlib.aclosing(events):
            async for event in events:
                self.take(event)

    def _draw(self) -> None:
        finished, live = self._frame()
        self._write(self._region.draw(finished, live, self._painter.columns))

    def _frame(self) -> tuple[list[Line], list[Line]]:
        window = self._window()
        self._painter.columns = window.columns
        return self._view.frame(window.lines, time.monotonic())
