"""An answer that is drawn while it comes: whoever stops it is heard, whatever happens at the same moment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

import pytest

from bus.cli.chat.events import Event, Text
from bus.cli.chat.live import LiveAnswer
from bus.cli.chat.rendering import Painter


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancellation_is_never_lost_to_an_event_that_comes_with_it(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many steps of the loop lie between the two; what had come stays, and the events are closed."""
    monkeypatch.setattr("bus.cli.chat.live._FRAME_S", 0)
    monkeypatch.setattr("bus.cli.chat.live._CLOCK_S", 60)
    written: list[str] = []
    come: asyncio.Queue[Event] = asyncio.Queue()
    is_closed = False

    async def events() -> AsyncGenerator[Event, None]:
        nonlocal is_closed
        try:
            while True:
                yield await come.get()
        finally:
            is_closed = True

    live = LiveAnswer(Painter(80), "tiny", written.append, lambda: os.terminal_size((80, 24)))
    running = asyncio.create_task(live.run(events()))
    for number in range(20):
        come.put_nowait(Text(text=f"line {number}\n\n"))
        await asyncio.sleep(0)
    while "line 19" not in "".join(written):
        await asyncio.sleep(0)

    live.take(Text(text="the last\n\n"))
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running}, timeout=10)

    assert running.cancelled()
    assert is_closed
    assert "the last" in "".join(written)
