"""Subscriptions that go on from a known event, and whose reader takes what was lost in place of the client."""

from __future__ import annotations

import asyncio

from bus.client import Client
from schemas.bodies.control import LoggedEvent
from tests.conftest import Serve

WAIT_S = 20.0


async def test_a_subscription_goes_on_after_a_known_event(serve_broker: Serve) -> None:
    """What came since is read from the log first, then events as they come, each once."""
    async with serve_broker() as settings, Client(settings) as client:
        async with client.subscribe("memory.changed.a") as events:
            for number in range(3):
                await client.publish("memory.changed.a", number)
            first = await asyncio.wait_for(anext(events), WAIT_S)

        async with client.subscribe("memory.changed.a", read_back=True, after_seq=first.seq) as events:
            await client.publish("memory.changed.a", 3)
            found = [await asyncio.wait_for(anext(events), WAIT_S) for _ in range(3)]

        assert [event.body for event in found] == [1, 2, 3]
        assert [event.is_replayed for event in found][:2] == [True, True]


async def test_a_reader_takes_what_was_lost_and_is_asked_again_on_demand(serve_broker: Serve) -> None:
    """It is told from which number on; one that returns nothing leaves the live events alone."""
    asked: list[tuple[str, int, int | None]] = []
    was_asked = asyncio.Event()

    async def reader(pattern: str, first_seq: int, last_seq: int | None) -> list[LoggedEvent]:
        asked.append((pattern, first_seq, last_seq))
        was_asked.set()
        return []

    async with serve_broker() as settings, Client(settings) as client:
        subscription = client.subscribe("memory.changed.a", reader=reader, after_seq=0)
        async with subscription as events:
            await client.publish("memory.changed.a", "live")
            event = await asyncio.wait_for(anext(events), WAIT_S)
            was_asked.clear()
            waiting = asyncio.ensure_future(anext(events))
            subscription.catch_up()
            await asyncio.wait_for(was_asked.wait(), WAIT_S)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

        assert event.body == "live"
        assert asked == [("memory.changed.a", 1, None), ("memory.changed.a", event.seq + 1, None)]
