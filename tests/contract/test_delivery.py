"""Who gets a request: credit, order, bounds, instances, drain, and what becomes of a lost worker's work."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from bus.worker import Call
from schemas.bodies.memory import KvEntry, KvGet
from schemas.errors import DeadlineExceeded, NotFound, NoWorker, Overloaded, WorkerLost
from tests.contract.conftest import Bus, OpenBus, soon
from tests.contract.test_requests import Waiting, echo, entry


class Crowd:
    """A handler that waits at a gate and counts how many wait at once, and in which order they came."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.now = 0
        self.most = 0
        self.order: list[Any] = []

    async def __call__(self, request: Any, call: Call) -> Any:
        self.order.append(request)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
        finally:
            self.now -= 1
        return request


async def queued(bus: Bus, count: int) -> None:
    """Wait until that many requests wait in the broker."""
    await bus.until(lambda: bus.exchange.core.queued == count, f"{count} requests are queued")


async def test_worker_never_holds_more_than_its_capacity(open_bus: OpenBus) -> None:
    """50 requests to a worker that takes 3: never 4 at once, and all answered."""
    crowd = Crowd()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": crowd}, capacity=3)
        client = bus.client()
        asking = [asyncio.create_task(client.request("test.wait", index)) for index in range(50)]
        await queued(bus, 47)

        crowd.gate.set()

        assert await soon(asyncio.gather(*asking), "all answered") == list(range(50))
        assert crowd.most == 3


async def test_changed_capacity_counts_from_the_next_request(open_bus: OpenBus) -> None:
    """More credit lets waiting requests go; none pauses the worker."""
    crowd = Crowd()
    async with open_bus() as bus:
        worker = await bus.serve("test", {"test.wait": crowd}, capacity=1)
        client = bus.client()
        asking = [asyncio.create_task(client.request("test.wait", index)) for index in range(6)]
        await queued(bus, 5)

        worker.set_capacity(4)
        await queued(bus, 2)
        worker.set_capacity(0)
        crowd.gate.set()
        await bus.until(lambda: worker.in_flight == 0, "those in flight finished")
        assert bus.exchange.core.queued == 2
        worker.set_capacity(1)

        await soon(asyncio.gather(*asking), "all answered")
        assert crowd.most == 4


async def test_freest_instance_is_chosen(open_bus: OpenBus) -> None:
    """Load spreads by free credit: of 9 requests the worker with twice the room gets twice as many."""
    large, small = Crowd(), Crowd()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": large}, capacity=6, instance="large")
        await bus.serve("test", {"test.wait": small}, capacity=3, instance="small")
        client = bus.client()
        asking = [asyncio.create_task(client.request("test.wait", index)) for index in range(9)]
        await bus.until(lambda: large.now + small.now == 9, "all are in flight")

        assert (large.now, small.now) == (6, 3)
        large.gate.set()
        small.gate.set()
        await asyncio.gather(*asking)


async def test_request_never_waits_behind_a_busy_worker_while_another_is_free(open_bus: OpenBus) -> None:
    """With one instance hung, every request goes to the other."""
    hung, free = Crowd(), Crowd()
    free.gate.set()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": hung}, capacity=1, instance="hung")
        client = bus.client()
        stuck = asyncio.create_task(client.request("test.wait", "stuck"))
        await bus.until(lambda: hung.now == 1, "the first is in flight")
        await bus.serve("test", {"test.wait": free}, capacity=1, instance="free")

        for index in range(20):
            assert await soon(client.request("test.wait", index), "the free instance answers") == index

        assert hung.order == ["stuck"]
        hung.gate.set()
        assert await stuck == "stuck"


async def test_interactive_goes_before_batch(open_bus: OpenBus) -> None:
    """Whatever was queued first, interactive requests are served first, each kind in its own order."""
    crowd = Crowd()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": crowd}, capacity=1)
        client = bus.client()
        asking = [asyncio.create_task(client.request("test.wait", "first"))]
        await bus.until(lambda: crowd.now == 1, "the first is in flight")
        for index in range(3):
            asking.append(asyncio.create_task(client.request("test.wait", f"batch {index}", priority="batch")))
        await queued(bus, 3)
        for index in range(3):
            asking.append(asyncio.create_task(client.request("test.wait", f"now {index}")))
        await queued(bus, 6)

        crowd.gate.set()
        await soon(asyncio.gather(*asking), "all answered")

        assert crowd.order == ["first", "now 0", "now 1", "now 2", "batch 0", "batch 1", "batch 2"]


async def test_queue_bound_by_count_refuses_with_the_numbers(open_bus: OpenBus) -> None:
    """Past the bound the caller hears `overloaded` at once, with length and limit; the queue itself is untouched."""
    waiting = Waiting()
    async with open_bus(queue_max_requests=5) as bus:
        await bus.serve("test", {"test.wait": waiting}, capacity=1)
        client = bus.client()
        async with client.subscribe("bus.service.overloaded") as events:
            asking = [asyncio.create_task(client.request("test.wait", index)) for index in range(6)]
            await queued(bus, 5)

            with pytest.raises(Overloaded) as failure:
                await soon(client.request("test.wait", "one too many"), "the refusal")

            event = await soon(anext(events), "the event")
        assert failure.value.details["queued"] == failure.value.details["limit"] == 5
        assert (event.body["subject"], event.body["queued"]) == ("test.wait", 5)
        waiting.gate.set()
        assert await soon(asyncio.gather(*asking), "the others are answered") == list(range(6))


async def test_queue_bound_by_bytes_refuses_with_the_numbers(open_bus: OpenBus) -> None:
    """A few large requests fill a queue as many small ones do."""
    waiting = Waiting()
    async with open_bus(queue_max_bytes=300_000) as bus:
        await bus.serve("test", {"test.wait": waiting}, capacity=1)
        client = bus.client()
        asking = [asyncio.create_task(client.request("test.wait", bytes(100_000))) for _ in range(3)]
        await queued(bus, 2)

        with pytest.raises(Overloaded) as failure:
            await soon(client.request("test.wait", bytes(100_000)), "the refusal")

        assert failure.value.details["queued_bytes"] > 200_000
        assert failure.value.details["limit_bytes"] == 300_000
        waiting.gate.set()
        await soon(asyncio.gather(*asking), "the others are answered")


async def test_memory_of_cancelled_requests_is_given_back(open_bus: OpenBus) -> None:
    """Requests that were cancelled behind one that waits long do not stay in memory."""
    waiting = Waiting()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting}, capacity=1)
        client = bus.client()
        asking = [asyncio.create_task(client.request("test.wait", index)) for index in range(2)]
        await queued(bus, 1)
        for _ in range(5):
            doomed = [asyncio.create_task(client.request("test.wait", bytes(1000))) for _ in range(200)]
            await queued(bus, 201)
            for task in doomed:
                task.cancel()
            await queued(bus, 1)

        kept = sum(map(len, bus.exchange.core.registry.routes["test.wait"].queue._lanes))
        waiting.gate.set()

        assert kept <= 2
        assert await soon(asyncio.gather(*asking), "the others are answered") == [0, 1]


async def named(request: Any, call: Call) -> str:
    """The instance that answered."""
    return call._worker.instance


async def test_instance_is_addressed_by_name_and_falls_back_to_any(open_bus: OpenBus) -> None:
    """`subject@instance` reaches that instance; a name that nobody has reaches whoever serves the plain subject."""
    async with open_bus() as bus:
        for name in ("one", "two"):
            await bus.serve("test", {"test.name": named}, instance=name)
        client = bus.client()

        for name in ("one", "two"):
            answers = {await client.request(f"test.name@{name}") for _ in range(5)}
            assert answers == {name}
        assert await client.request("test.name@three") in {"one", "two"}


async def test_subject_served_at_an_instance_only_is_not_served_plainly(open_bus: OpenBus) -> None:
    """A runner that registers `model.chat@demo` gets what names it; the plain subject goes to the scheduler."""
    async with open_bus() as bus:
        runner = bus.make_worker("model", instance="runner-1")
        await bus.serve("model", {"model.chat@demo": named}, instance="runner-1")
        client = bus.client()
        assert runner.instance == "runner-1"

        assert await client.request("model.chat@demo", {"messages": [{"role": "user", "content": "a"}]}, raw=True)
        with pytest.raises(NoWorker):
            await client.request("model.chat", {"messages": [{"role": "user", "content": "a"}]}, raw=True)
        await bus.serve("model", {"model.chat": named}, instance="scheduler")

        chat = {"messages": [{"role": "user", "content": "a"}]}
        assert await client.request("model.chat@demo", chat, raw=True) == "runner-1"
        assert await client.request("model.chat@other", chat, raw=True) == "scheduler"
        assert await client.request("model.chat", chat, raw=True) == "scheduler"


async def test_lost_instance_leaves_its_requests_to_the_plain_subject(open_bus: OpenBus) -> None:
    """After the instance is gone its name falls back at once."""
    async with open_bus() as bus:
        one = await bus.serve("test", {"test.name": named}, instance="one")
        await bus.serve("test", {"test.name": named}, instance="two")
        client = bus.client()
        assert await client.request("test.name@one") == "one"

        await bus.vanish(one)

        assert await soon(client.request("test.name@one"), "the fallback") == "two"


async def test_worker_may_serve_a_pattern(open_bus: OpenBus) -> None:
    """Exact subjects win over patterns; the handler sees the subject as written."""

    async def subject(request: Any, call: Call) -> str:
        return call.subject

    async with open_bus() as bus:
        await bus.serve("test", {"test.>": subject, "test.echo": echo})
        client = bus.client()

        assert await client.request("test.some.thing") == "test.some.thing"
        assert await client.request("test.echo", 1) == 1
        with pytest.raises(NoWorker):
            await client.request("test")


async def test_exact_subject_without_worker_goes_to_a_pattern_that_is_served(open_bus: OpenBus) -> None:
    """The seconds of grace after a loss are for services that nobody else serves."""
    async with open_bus() as bus:
        exact = await bus.serve("test", {"test.name": named}, instance="exact")
        await bus.serve("test", {"test.>": named}, instance="wide")
        client = bus.client()
        assert await client.request("test.name") == "exact"

        await bus.vanish(exact)

        assert await soon(client.request("test.name"), "the other worker's answer") == "wide"


async def test_draining_worker_finishes_what_it_has_and_gets_nothing_new(open_bus: OpenBus) -> None:
    """`bye`: in-flight requests are answered, later ones go elsewhere, the bus hears `left` and not `lost`."""
    waiting = Waiting()
    async with open_bus() as bus:
        one = await bus.serve("test", {"test.wait": waiting}, instance="one")
        client = bus.client()
        async with client.subscribe("bus.worker.left", "bus.worker.lost") as events:
            asking = asyncio.create_task(client.request("test.wait", 1))
            await soon(waiting.started.wait(), "the handler started")
            stopping = asyncio.create_task(one.stop(drain_s=8))
            await bus.until(
                lambda: any(w.state == "draining" for w in bus.exchange.core.workers(0)), "the worker drains"
            )
            with pytest.raises(NoWorker):
                await client.request("test.wait", 2)
            await bus.serve("test", {"test.wait": echo}, instance="two")
            assert await client.request("test.wait", 3) == 3

            waiting.gate.set()

            assert await asking == 1
            await stopping
            event = await soon(anext(events), "the event")
        assert (event.subject, event.body["instance"]) == ("bus.worker.left", "one")


async def test_no_request_is_lost_while_workers_come_and_go_in_good_order(open_bus: OpenBus) -> None:
    """Rolling replacement under load: requests of an operation that is not idempotent all get their answer."""
    handled: Counter[int] = Counter()

    async def once(request: int, call: Call) -> int:
        handled[request] += 1
        await asyncio.sleep(0)
        return request

    async with open_bus() as bus:
        client = bus.client()
        worker = await bus.serve("test", {"test.once": once}, instance="0")
        asking: list[asyncio.Task[Any]] = []

        async def ask_all() -> None:
            for index in range(2_000):
                asking.append(asyncio.create_task(client.request("test.once", index)))
                if index % 10 == 0:
                    await asyncio.sleep(0)

        load = asyncio.create_task(ask_all())
        for index in range(1, 10):
            successor = await bus.serve("test", {"test.once": once}, instance=str(index))
            await worker.stop(drain_s=5)
            worker = successor
        await load

        ends = await soon(asyncio.gather(*asking, return_exceptions=True), "all answered")
        assert ends == list(range(2_000))
        assert set(handled.values()) == {1}


async def test_idempotent_request_of_a_vanished_worker_is_answered_by_another(open_bus: OpenBus) -> None:
    """Its second attempt says so in `call.attempt`; the caller notices nothing."""
    waiting = Waiting()
    attempts = []

    async def answer(request: KvGet, call: Call) -> KvEntry:
        attempts.append(call.attempt)
        return await entry(request, call)

    async with open_bus() as bus:
        doomed = await bus.serve("memory", {"memory.kv.get": waiting}, instance="doomed")
        client = bus.client()
        asking = asyncio.create_task(client.request("memory.kv.get", KvGet(key="a")))
        await soon(waiting.started.wait(), "the handler started")
        await bus.serve("memory", {"memory.kv.get": answer}, instance="other")

        await bus.vanish(doomed)

        assert (await soon(asking, "the answer")).key == "a"
        assert attempts == [2]
        assert bus.exchange.core.counters.redispatched == 1


async def test_idempotent_request_waits_for_the_only_worker_to_come_back(open_bus: OpenBus) -> None:
    """A supervisor needs a moment to restart a worker; callers only see that it took longer."""
    waiting = Waiting()
    async with open_bus() as bus:
        doomed = await bus.serve("memory", {"memory.kv.get": waiting}, instance="doomed")
        client = bus.client()
        before = asyncio.create_task(client.request("memory.kv.get", KvGet(key="before")))
        await soon(waiting.started.wait(), "the handler started")

        await bus.vanish(doomed)
        after = asyncio.create_task(client.request("memory.kv.get", KvGet(key="after")))
        await bus.until(lambda: bus.exchange.core.queued == 2, "both wait")
        await bus.serve("memory", {"memory.kv.get": entry}, instance="doomed")

        assert (await soon(before, "the first answer")).key == "before"
        assert (await soon(after, "the second answer")).key == "after"


async def test_other_requests_of_a_vanished_worker_end_in_worker_lost(open_bus: OpenBus) -> None:
    """Not idempotent, so not tried again: the caller decides, and the request is kept as a dead letter."""
    waiting = Waiting()
    async with open_bus() as bus:
        doomed = await bus.serve("test", {"test.wait": waiting}, instance="doomed")
        await bus.serve("test", {"other.echo": echo}, instance="other")
        client = bus.client()
        asking = asyncio.create_task(client.request("test.wait", {"a": 1}))
        await soon(waiting.started.wait(), "the handler started")

        await bus.vanish(doomed)

        with pytest.raises(WorkerLost, match="not idempotent") as failure:
            await soon(asking, "the error")
        assert failure.value.details["instance"] == "doomed"
        letters = (await client.request("deadletter.list")).dead_letters
        assert [(letter.subject, letter.reason, letter.attempts) for letter in letters] == [
            ("test.wait", "worker_lost", 1)
        ]


async def test_stream_of_a_vanished_worker_ends_in_worker_lost(open_bus: OpenBus) -> None:
    """What was already sent cannot be taken back, so the stream is not begun anew."""

    async def half(request: Any, call: Call) -> Any:
        await call.partial(KvEntry(key="1", value=1, ns="kv", version=1, created_at=0, updated_at=0))
        await asyncio.Event().wait()

    async with open_bus() as bus:
        doomed = await bus.serve("memory", {"memory.kv.get": half}, instance="doomed")
        await bus.serve("memory", {"memory.kv.list": echo}, instance="other")
        with pytest.raises(WorkerLost, match="part of the reply"):
            async with bus.client().stream("memory.kv.get", KvGet(key="a")) as stream:
                async for _ in stream:
                    await bus.vanish(doomed)


async def test_exhausted_attempts_make_a_dead_letter_that_can_be_redriven(open_bus: OpenBus) -> None:
    """After the last attempt the caller hears `worker_lost`; the letter can be listed, shown, sent again and purged."""
    async with open_bus(attempts=2) as bus:
        client = bus.client()

        async def ask() -> Any:
            async with client.stream("memory.kv.get", KvGet(key="a")) as stream:
                async for _ in stream:
                    pass
                return stream.final

        asking: asyncio.Task[Any] | None = None
        for name in ("first", "second"):
            waiting = Waiting()
            worker = await bus.serve("memory", {"memory.kv.get": waiting}, instance=name)
            asking = asking or asyncio.create_task(ask())
            await soon(waiting.started.wait(), f"the {name} attempt")
            await bus.vanish(worker)
        assert asking is not None
        with pytest.raises(WorkerLost, match="2 attempts") as failure:
            await soon(asking, "the error")
        assert failure.value.details["attempts"] == 2

        (letter,) = (await client.request("deadletter.list", {"subject": "memory.>"})).dead_letters
        whole = await client.request("deadletter.show", {"id": letter.id})
        assert (whole.body, whole.dead_letter.reason) == ({"key": "a"}, "worker_lost")
        await bus.serve("memory", {"memory.kv.get": entry}, instance="third")
        redriven = await soon(client.request("deadletter.redrive", {"id": letter.id}), "the redrive")
        assert redriven.reply["key"] == "a"
        assert (await client.request("deadletter.show", {"id": letter.id})).dead_letter.redriven_at is not None
        assert (await client.request("deadletter.purge", {})).purged == 1
        assert (await client.request("deadletter.list")).total == 0
        for operation in ("deadletter.show", "deadletter.redrive"):
            with pytest.raises(NotFound):
                await client.request(operation, {"id": letter.id})


async def test_worker_that_never_answers_keeps_its_credit_used_and_slows_nobody(open_bus: OpenBus) -> None:
    """A handler that even swallows its cancellation costs its own credit and nothing else."""
    stubborn = asyncio.Event()
    release = asyncio.Event()

    async def deaf(request: Any, call: Call) -> Any:
        stubborn.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with open_bus() as bus:
        await bus.serve("test", {"test.ask": deaf}, capacity=1, instance="deaf")
        client = bus.client()
        with pytest.raises(DeadlineExceeded):
            await client.request("test.ask", timeout_s=0.2)
        assert stubborn.is_set()
        assert bus.exchange.core.in_flight == 1

        await bus.serve("test", {"test.ask": echo}, capacity=1, instance="good")
        for index in range(5):
            assert await soon(client.request("test.ask", index), "the other answers") == index
        assert bus.exchange.core.in_flight == 1
        release.set()
        await bus.until(lambda: bus.exchange.core.in_flight == 0, "its credit is back")


async def test_client_that_loses_its_connection_gets_the_reply_all_the_same(open_bus: OpenBus) -> None:
    """It comes back, sends again by id, and is joined to the request that is already in flight: handled once."""
    waiting = Waiting()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting})
        client = bus.client()
        asking = asyncio.create_task(client.request("test.wait", "x"))
        await soon(waiting.started.wait(), "the handler started")
        link = client._requests.link
        assert link is not None

        link.abort("cut by the test")
        await bus.until(lambda: client._requests.link not in (None, link), "the client is back")
        waiting.gate.set()

        assert await soon(asking, "the reply") == "x"
        assert len(waiting.calls) == 1


async def test_reply_that_came_while_its_client_was_away_is_kept(open_bus: OpenBus) -> None:
    """For a few seconds the broker holds it; nothing is handled twice."""
    waiting = Waiting()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting})
        client = bus.client()
        asking = asyncio.create_task(client.request("test.wait", "x"))
        await soon(waiting.started.wait(), "the handler started")
        link = client._requests.link
        assert link is not None
        dial, client._requests._dial = client._requests._dial, _unreachable

        link.abort("cut by the test")
        await bus.until(lambda: not bus.exchange.core.registry.workers or bus.exchange.core._away, "the client is away")
        waiting.gate.set()
        await bus.until(lambda: len(bus.exchange.core._parked) == 1, "the reply is kept")
        client._requests._dial = dial

        assert await soon(asking, "the reply") == "x"
        assert len(waiting.calls) == 1
        assert bus.exchange.core._parked_bytes == 0


async def _unreachable(role: Any, handler: Any) -> Any:
    raise ConnectionRefusedError("held away by the test")


async def test_stream_whose_connection_broke_ends_in_an_error_and_not_in_a_hole(open_bus: OpenBus) -> None:
    """Pieces may have been lost on the way, so the reader is told instead of getting the rest."""
    waiting = Waiting()

    async def count(request: Any, call: Call) -> Any:
        await call.partial(0)
        return await waiting(request, call)

    async with open_bus() as bus:
        await bus.serve("test", {"test.count": count})
        client = bus.client()
        got = []
        with pytest.raises(WorkerLost, match="connection broke"):
            async with client.stream("test.count") as stream:
                async for part in stream:
                    got.append(part)
                    await soon(waiting.started.wait(), "the handler waits")
                    link = client._requests.link
                    assert link is not None
                    link.abort("cut by the test")
        assert got == [0]
        await soon(waiting.cancelled.wait(), "the handler was cancelled")
