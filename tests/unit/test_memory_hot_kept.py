"""What parts of the memory keep in the hot tier for themselves, and the monitor's marks among it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from bus.settings import load_settings
from tests.sessions_bench import Bench, GivenFinder, bench
from workers.memory.clock import SteadyClock
from workers.memory.hot.kept import Kept
from workers.memory.hot.opening import open_hot_tier
from workers.memory.sessions.proactive import Monitor


class Shelf:
    """Marks in a dict."""

    def __init__(self) -> None:
        self.marks: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        """What was set."""
        return self.marks.get(key)

    async def set(self, key: str, value: bytes) -> None:
        """Keep it."""
        self.marks[key] = value


async def test_kept_value_is_found_and_a_failing_tier_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever keeps something never fails because of it."""
    settings = load_settings(overrides={"home": str(tmp_path)})
    tier = await open_hot_tier(settings, now=SteadyClock(), on_lost=lambda reason: None)
    kept = Kept(tier, "knowledge", ttl_s=60)

    await kept.set("k", b"v")
    await kept.settle()
    assert await kept.get("k") == b"v"
    assert await kept.get("other") is None
    await tier.close()

    with caplog.at_level(logging.WARNING, "olympus.memory"):
        assert await kept.get("k" * 10_000) is None
        await kept.set("k", b"v")
        await kept.settle()
    assert [record.message for record in caplog.records] == ["kept value not read", "value not kept"]


async def test_tier_that_does_not_answer_holds_up_nobody_who_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that goes away while the service stops: what is not kept by then is given up."""
    monkeypatch.setattr("workers.memory.hot.kept.SETTLE_S", 0.01)

    class Hanging:
        async def set(self, *_: Any, **__: Any) -> None:
            await asyncio.Event().wait()

    tier: Any = Hanging()
    kept = Kept(tier, "knowledge", ttl_s=60)
    await kept.set("k", b"v")
    async with asyncio.timeout(10):
        await kept.settle()


def monitor(at: Bench, finder: GivenFinder, marks: Shelf) -> Monitor:
    """The monitor as a process that has just started has it."""
    return Monitor(at.records, finder, lambda: None, is_enabled=True, marks=marks)


async def test_restart_does_not_make_the_monitor_look_again(tmp_path: Path) -> None:
    """Turns that were looked at are not taken for the beginning of a session; what comes after them is looked at."""
    finder, marks = GivenFinder(), Shelf()
    async with bench(tmp_path, finder=finder) as at:
        await at.session(user_id="ada")
        await at.say("The rhubarb in the garden froze last night.", "The garden soil froze as well.")
        await monitor(at, finder, marks).look("session", "s")
        asked = len(finder.asked)
        assert asked > 0

        await monitor(at, finder, marks).look("session", "s")
        assert len(finder.asked) == asked
        await at.say("Rhubarb in a garden that froze: what now?")
        await monitor(at, finder, marks).look("session", "s")
        assert len(finder.asked) == asked
        await monitor(at, finder, Shelf()).look("session", "s")
        assert len(finder.asked) > asked


async def test_session_made_anew_under_its_id_is_looked_at(tmp_path: Path) -> None:
    """A mark belongs to one session, not to whatever has its id next."""
    finder, marks = GivenFinder(), Shelf()
    async with bench(tmp_path, finder=finder) as at:
        watching = monitor(at, finder, marks)
        for _ in range(2):
            finder.asked.clear()
            await at.session(user_id="ada")
            await at.say("The rhubarb in the garden froze last night.")
            await watching.look("session", "s")
            assert finder.asked
            await at.end(delete=True)
            at.wait(1)


async def test_mark_behind_the_end_of_a_session_does_not_count(tmp_path: Path) -> None:
    """It is of turns that went with a restored backup."""
    finder, marks = GivenFinder(), Shelf()
    async with bench(tmp_path, finder=finder) as at:
        await at.session(user_id="ada")
        await at.say("The rhubarb in the garden froze last night.")
        await monitor(at, finder, marks).look("session", "s")
        finder.asked.clear()
        marks.marks = dict.fromkeys(marks.marks, b"14")

        await monitor(at, finder, marks).look("session", "s")

        assert finder.asked
        assert list(marks.marks.values()) == [b"1"]
