"""Publish and subscribe, sequence numbers, and the durable log, the same on both buses."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from bus.subscription import ReceivedEvent, Subscription
from schemas.bodies.control import EventsRead
from schemas.errors import BadRequest
from tests.contract.conftest import OpenBus, soon
from tests.contract.test_requests import echo


async def take(events: Subscription, count: int) -> list[ReceivedEvent]:
    """The next `count` events."""
    return [await soon(anext(events), f"event {index + 1} of {count}") for index in range(count)]


async def test_subscriber_hears_what_its_patterns_cover_and_nothing_else(open_bus: OpenBus) -> None:
    """`*` is one token, a trailing `>` the rest, and a pattern without wildcards that subject alone."""
    published = ["a.b", "a.b.c", "a.bc", "x.b", "a", "a.d.e.f", "end.now"]
    wanted = {
        "a.*": ["a.b", "a.bc"],
        "a.>": ["a.b", "a.b.c", "a.bc", "a.d.e.f"],
        "*.b": ["a.b", "x.b"],
        "a.b": ["a.b"],
        "a.*.c": ["a.b.c"],
        ">": published[:-1],
    }
    async with open_bus() as bus:
        client = bus.client()
        heard = {}
        for pattern in wanted:
            async with client.subscribe(pattern, "end.now") as events:
                for subject in published:
                    await client.publish(subject, {"of": subject})
                got = []
                while not got or got[-1].subject != "end.now":
                    got += await take(events, 1)
                heard[pattern] = [event.subject for event in got if not event.subject.startswith("bus.")][:-1]
                assert all(event.body == {"of": event.subject} for event in got if event.subject != "bus.stats")

        assert heard == wanted


async def test_events_of_one_publisher_keep_their_order_and_numbers_rise_strictly(open_bus: OpenBus) -> None:
    """Every subscriber sees the same events under the same numbers."""
    async with open_bus() as bus:
        client = bus.client("publisher")
        async with client.subscribe("t.>") as one, bus.client("other").subscribe("t.>") as two:
            for index in range(300):
                await client.publish(f"t.{index % 7}", index)
            first, second = await take(one, 300), await take(two, 300)

        assert [event.body for event in first] == list(range(300))
        numbers = [event.seq for event in first]
        assert numbers == sorted(set(numbers))
        assert [(event.seq, event.id) for event in second] == [(event.seq, event.id) for event in first]
        assert {event.source for event in first} == {"publisher"}
        assert all(abs(event.at - time.time()) < 60 for event in first)


async def test_event_of_a_worker_carries_its_name(open_bus: OpenBus) -> None:
    """`source` says which service and instance spoke."""
    async with open_bus() as bus:
        worker = await bus.serve("test", {"test.echo": echo}, instance="one")
        async with bus.client().subscribe("t.x") as events:
            await worker.publish("t.x", 1)
            (event,) = await take(events, 1)

        assert event.source in ("test/one", "test")


@pytest.mark.parametrize("subject", ["a b", "", "a.*", "a.>", "x" * 300])
async def test_bad_subject_cannot_be_published(open_bus: OpenBus, subject: str) -> None:
    """The publisher is told; nothing reaches the bus."""
    async with open_bus() as bus:
        with pytest.raises(BadRequest):
            await bus.client().publish(subject, 1)


@pytest.mark.parametrize("pattern", ["a.>.b", "a b", "", "*a", "a..b"])
async def test_bad_pattern_cannot_be_subscribed(open_bus: OpenBus, pattern: str) -> None:
    """It is refused before anything is sent."""
    async with open_bus() as bus:
        with pytest.raises(BadRequest):
            bus.client().subscribe(pattern)


async def test_event_log_is_read_by_sequence_and_by_time(open_bus: OpenBus) -> None:
    """Both ends are inclusive; the pattern filters; what the settings do not name is not kept."""
    async with open_bus(log_subjects=("kept.>",)) as bus:
        client = bus.client()
        async with client.subscribe("kept.>", "gone.>") as events:
            for index in range(10):
                await client.publish(f"kept.{'even' if index % 2 == 0 else 'odd'}", index)
                await client.publish("gone.by", index)
            heard = [event for event in await take(events, 20) if event.subject != "gone.by"]

        async def read(**query: Any) -> list[int]:
            page = await client.request("bus.events.read", EventsRead(**query))
            assert page.count == len(page.events)
            return [event.body for event in page.events]

        assert await read() == list(range(10))
        assert await read(from_seq=heard[3].seq, to_seq=heard[5].seq) == [3, 4, 5]
        assert await read(from_seq=heard[9].seq + 1) == []
        assert await read(subject="kept.odd") == [1, 3, 5, 7, 9]
        assert 4 in await read(since_at=heard[4].at, until_at=heard[6].at)
        assert await read(since_at=time.time() + 100) == []
        page = await client.request("bus.events.read", EventsRead())
        assert (page.oldest_seq, page.last_seq) == (heard[0].seq, heard[9].seq)
        assert [(event.seq, event.id, event.at) for event in page.events] == [
            (event.seq, event.id, event.at) for event in heard
        ]


async def test_event_log_read_stops_at_its_limit_and_goes_on_at_next_seq(open_bus: OpenBus) -> None:
    """Pages joined at `next_seq` are the whole, without gap or overlap."""
    async with open_bus(log_subjects=("kept.>",)) as bus:
        client = bus.client()
        for index in range(25):
            await client.publish("kept.it", index)
        await client.flush()

        bodies: list[Any] = []
        next_seq: int | None = 0
        while next_seq is not None:
            page = await client.request("bus.events.read", EventsRead(from_seq=next_seq, limit=10))
            bodies += [event.body for event in page.events]
            next_seq = page.next_seq

        assert bodies == list(range(25))


async def test_event_log_streams_in_batches(open_bus: OpenBus) -> None:
    """A long read comes piece by piece."""
    async with open_bus(log_subjects=("kept.>",)) as bus:
        client = bus.client()
        for index in range(1_000):
            await client.publish("kept.it", index)
        await client.flush()

        async with client.stream("bus.events.read", EventsRead(limit=1_000)) as batches:
            sizes = [len(batch.events) async for batch in batches]

        assert sum(sizes) == batches.final.count == 1_000
        assert len(sizes) > 1


async def test_flush_tells_of_events_that_went_down_with_their_connection(open_bus: OpenBus) -> None:
    """Another connection says nothing of what was sent over the one before it; what was flushed there is safe."""
    async with open_bus() as bus:
        client = bus.client()
        for is_flushed in (True, False):
            await client.publish("kept.it", 1)
            if is_flushed:
                await client.flush()
            link = client._events.link
            assert link is not None
            link.abort("cut by the test")
            await bus.until(lambda: client._events.link not in (None, link), "the client is back")  # noqa: B023
            await client.publish("kept.it", 2)
            if not is_flushed:
                with pytest.raises(ConnectionError, match="before the broker had read every event"):
                    await client.flush()
                await client.publish("kept.it", 2)
            await client.flush()


async def test_subscriber_that_was_cut_off_reads_back_what_it_missed(open_bus: OpenBus) -> None:
    """With `read_back` the events of the gap come from the log, in order, marked as replayed."""
    async with open_bus(log_subjects=("kept.>",)) as bus:
        client = bus.client()
        async with bus.client("reader").subscribe("kept.>", read_back=True) as events:
            await client.publish("kept.it", 0)
            assert (await take(events, 1))[0].body == 0
            link = events._channel.link
            assert link is not None
            link.abort("cut by the test")
            await bus.until(lambda: events._channel.link is not link, "the subscriber is cut off")
            for index in range(1, 6):
                await client.publish("kept.it", index)
            await client.flush()
            await bus.until(lambda: events._channel.link not in (None, link), "the subscriber is back")
            await asyncio.sleep(0)
            await client.publish("kept.it", 6)

            got = await take(events, 6)

        assert [event.body for event in got] == [1, 2, 3, 4, 5, 6]
        assert [event.seq for event in got] == sorted(event.seq for event in got)


async def test_workers_coming_and_going_are_events(open_bus: OpenBus) -> None:
    """`joined`, `left` and `lost`, with service, instance and reason."""
    async with open_bus() as bus:
        async with bus.client().subscribe("bus.worker.*") as events:
            one = await bus.serve("test", {"test.echo": echo}, instance="one")
            await one.stop()
            two = await bus.serve("test", {"test.echo": echo}, instance="two")
            await bus.vanish(two)
            got = await take(events, 4)

        assert [(event.subject, event.body["instance"]) for event in got] == [
            ("bus.worker.joined", "one"),
            ("bus.worker.left", "one"),
            ("bus.worker.joined", "two"),
            ("bus.worker.lost", "two"),
        ]


async def test_requests_are_traced_while_somebody_asks_for_it(open_bus: OpenBus) -> None:
    """`bus.trace.>` brings request, dispatch and end of each request under its id; otherwise nothing is published."""
    async with open_bus() as bus:
        await bus.serve("test", {"test.echo": echo})
        client = bus.client()
        before = bus.exchange.hub.published
        await client.request("test.echo", 1)
        assert bus.exchange.hub.published == before
        async with client.subscribe("bus.trace.>") as events:
            await client.request("test.echo", 2)
            got = await take(events, 3)

        assert [event.subject for event in got] == ["bus.trace.request", "bus.trace.dispatch", "bus.trace.final"]
        assert len({event.body["id"] for event in got}) == 1


async def test_operations_of_the_bus_describe_it(open_bus: OpenBus) -> None:
    """`bus.ping`, `bus.services`, `bus.workers` and `bus.stats` agree on what runs."""
    async with open_bus() as bus:
        await bus.serve("test", {"test.echo": echo}, instance="one", capacity=7)
        client = bus.client()
        for index in range(5):
            await client.request("test.echo", index)

        pong = await client.request("bus.ping", {"payload": [1]})
        services = {one.service: one for one in (await client.request("bus.services")).services}
        workers = (await client.request("bus.workers", {"service": "test"})).workers
        stats = await client.request("bus.stats")

        assert (pong.payload, pong.boot) == ([1], stats.boot)
        assert (services["test"].instances, services["test"].answered, services["test"].capacity) == (1, 5, 7)
        assert 0 < services["test"].p50_s <= services["test"].p99_s
        assert [(one.instance, one.subjects, one.state) for one in workers] == [("one", ["test.echo"], "serving")]
        assert (stats.workers, stats.queued, stats.log_failed) == (2, 0, None)
