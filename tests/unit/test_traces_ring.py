"""What the broker remembers of requests that ended, and how it is read."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from broker import traces
from broker.core import CancelReceived, Core, Origin, PeerLost, ReadyReceived, ReplyReceived, RequestReceived, Tick
from broker.traces import Ended, EndedRequests
from bus.settings import BrokerSettings
from schemas.bodies.control import Ready
from schemas.bodies.telling import Spans, TraceRead
from schemas.envelope import Kind, decode, encode
from schemas.errors import Forbidden

TRACE = "ab" * 16


def ended(number: int, **more: Any) -> Ended:
    """A request with an id made of its number."""
    plain: dict[str, Any] = {
        "id": number.to_bytes(16, "big"),
        "traceparent": None,
        "subject": "memory.get",
        "caller": "c",
        "ready": None,
        "received_at": float(number),
        "dispatched_at": None,
        "ended_at": number + 0.5,
        "attempts": 1,
        "outcome": "ok",
        "body_bytes": 1,
    }
    return Ended(**{**plain, **more})


async def read(ring: EndedRequests, **asked: Any) -> Spans:
    """What the broker answers, its clock being the wall clock less 1,000 s."""
    return await traces.read(ring, TraceRead(**asked), boot="b", epoch_offset=1000.0)


def filled(count: int, size: int, step: int) -> EndedRequests:
    """`count` requests added, `step` between two settlings."""
    ring = EndedRequests(size)
    for number in range(1, count + 1):
        ring.add(ended(number))
        if number % step == 0:
            ring.settle()
    ring.settle()
    return ring


@pytest.mark.parametrize("step", [1, 3, 4, 7, 50])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 23])
async def test_the_ring_holds_the_newest_under_their_numbers(count: int, step: int) -> None:
    """Whatever comes between two settlings, also several rounds of the ring."""
    ring = filled(count, 4, step)

    kept = list(range(max(count - 3, 1), count + 1))
    assert (len(ring), ring.last_number) == (len(kept), count)
    assert [one.received_at for number in kept if (one := ring.get(number))] == [float(number) for number in kept]
    assert ring.get(0) is None
    assert ring.get(count - 4) is None
    assert ring.get(count + 1) is None


async def test_reading_on_gives_what_came_after_in_order() -> None:
    """The newest without a number; after one, the oldest of the rest first, as many as asked for."""
    ring = filled(23, 10, 1)

    assert [span.number for span in (await read(ring, limit=3)).spans] == [21, 22, 23]
    assert [span.number for span in (await read(ring, after=20)).spans] == [21, 22, 23]
    assert [span.number for span in (await read(ring, after=0, limit=2)).spans] == [14, 15]
    assert (await read(ring, after=23)).spans == []
    page = await read(ring, limit=1)
    assert (page.remembered, page.last_number, page.oldest_at, page.boot) == (10, 23, 1014.5, "b")


async def test_a_request_is_found_by_its_id_and_by_its_trace() -> None:
    """Both by their beginning; a header that is none stands for no trace."""
    ring = EndedRequests(10)
    ring.add(ended(1, id=bytes.fromhex(TRACE)))
    ring.add(ended(2, traceparent=f"00-{TRACE}-{TRACE[:16]}-01"))
    ring.add(ended(3, traceparent=f"00-{TRACE.upper()}-{TRACE[:16]}-01"))

    both = (await read(ring, id="abab")).spans
    assert [(span.number, span.trace, span.parent) for span in both] == [(1, TRACE, ""), (2, TRACE, TRACE[:16])]
    assert [span.number for span in (await read(ring, id="0" * 31 + "3")).spans] == [3]
    assert (await read(ring, id="ff")).spans == []


async def test_a_long_ring_lets_the_loop_go_on_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn for every 500 that are looked at."""
    turns = []

    async def sleep(seconds: float) -> None:
        turns.append(seconds)

    ring = filled(5_000, 5_000, 5_000)
    monkeypatch.setattr(traces.asyncio, "sleep", sleep)

    assert (await read(ring, id="f" * 32)).spans == []
    assert turns == [0] * 10


class Broker:
    """A core with one worker, of which every end is looked at."""

    def __init__(self, **settings: Any) -> None:
        self.core = Core(
            BrokerSettings(**settings), boot="b", heartbeat_s=1.0, max_body_bytes=1 << 20, jitter=lambda: 0
        )
        self.core.handle(Tick(0.0), 0.0)
        self.next_id = 0

    def join(self, peer: str, subject: str = "memory.get") -> None:
        """A worker of one request at a time registers."""
        self.core.handle(ReadyReceived(peer, Ready(service="memory", instance=peer, subjects=[subject], capacity=1, version="1", host="h", pid=1)), 0.0)  # fmt: skip

    def ask(self, now: float, *, deadline: float = 0, headers: Any = None, form: Any = None, subject: str = "memory.get") -> bytes:  # fmt: skip
        """A request of the client `c`."""
        self.next_id += 1
        id = self.next_id.to_bytes(16, "big")
        message = decode(encode(Kind.REQUEST, id, subject, int(deadline * 1000), headers, {"key": "k"}))
        self.core.handle(RequestReceived(Origin("c", form, "caller"), message), now)
        return id

    def answer(self, id: bytes, now: float, *, peer: str = "w", kind: Kind = Kind.FINAL, body: Any = None) -> None:
        """The worker's reply."""
        self.core.handle(ReplyReceived(peer, decode(encode(kind, id, body=body))), now)

    def told(self) -> list[tuple[str, int, float | None]]:
        """Outcome, attempts and time of the last dispatch of everything that ended."""
        ring = self.core.ended
        ring.settle()
        found = [ring.get(number) for number in range(1, ring.last_number + 1)]
        return [(one.outcome, one.attempts, one.dispatched_at) for one in found if one is not None]


def test_every_end_is_remembered_once() -> None:
    """Answered, failed, unserved, expired, cancelled, overloaded and lost, each with its code."""
    broker = Broker(queue_max_requests=1)
    broker.ask(1.0, subject="memory.nothing")
    broker.join("w")
    broker.answer(broker.ask(2.0), 2.1)
    broker.answer(broker.ask(3.0), 3.1, kind=Kind.ERROR, body=Forbidden("no").body())
    broker.answer(broker.ask(3.2), 3.3, kind=Kind.ERROR, body={"code": "x" * 5000, "message": "", "details": {}})
    busy = broker.ask(4.0, deadline=4.6)
    waiting = broker.ask(4.1)
    broker.ask(4.2)
    broker.core.handle(CancelReceived("c", waiting), 4.3)
    broker.ask(4.4, deadline=4.0)
    broker.core.handle(Tick(0.0), 4.8)
    broker.answer(busy, 4.9)
    broker.ask(5.0)
    broker.core.handle(PeerLost("w", "killed"), 5.1)
    broker.core.handle(Tick(0.0), 20.0)

    outcomes = [outcome for outcome, _, _ in broker.told()]
    assert outcomes == [
        *("no_worker", "ok", "forbidden", "error", "overloaded", "cancelled", "deadline_exceeded", "deadline_exceeded"),
        "worker_lost",
    ]
    assert broker.told()[1] == ("ok", 1, 2.0)
    assert broker.told()[5] == ("cancelled", 0, None)


def test_a_plain_caller_that_leaves_is_remembered_as_cancelled() -> None:
    """Whether its request waits or runs, and once."""
    broker = Broker()
    broker.join("w")
    running = broker.ask(1.0, form="plain")
    broker.ask(1.1, form="plain")
    broker.core.handle(PeerLost("c", "gone"), 1.2)
    broker.answer(running, 1.3)

    assert broker.told() == [("cancelled", 1, 1.0), ("cancelled", 0, None)]


def test_a_redispatched_request_is_one_with_its_attempts() -> None:
    """The time of the dispatch is that of the last."""
    broker = Broker()
    broker.join("w", "memory.kv.get")
    broker.join("v", "memory.kv.get")
    id = broker.ask(1.0, subject="memory.kv.get", headers={"traceparent": f"00-{TRACE}-{TRACE[:16]}-01"})
    first = next(worker.ready.instance for worker in broker.core.registry.workers.values() if worker.in_flight)
    broker.core.handle(PeerLost(first, "killed"), 1.5)
    broker.core.handle(Tick(0.0), 2.0)
    broker.answer(id, 2.5, peer="v" if first == "w" else "w")

    assert broker.told() == [("ok", 2, 2.0)]
    one = broker.core.ended.get(1)
    assert one is not None
    assert (one.traceparent, one.caller) == (f"00-{TRACE}-{TRACE[:16]}-01", "caller")


def test_nothing_is_remembered_where_nothing_is_to_be() -> None:
    """broker.traces_max: 0."""
    broker = Broker(traces_max=0)
    broker.join("w")
    broker.answer(broker.ask(1.0), 1.1)
    broker.ask(2.0, subject="memory.nothing")

    assert broker.told() == []


def test_no_message_and_no_connection_is_kept_alive() -> None:
    """Bodies and peers go; a header that cannot be a traceparent is not kept either."""

    class Peer:
        """A connection."""

    broker = Broker()
    broker.join("w")
    peer, frame = Peer(), bytearray(encode(Kind.REQUEST, b"\1" * 16, "memory.get", 0, {"traceparent": "x" * 4000}, "b" * 5000)[0])  # fmt: skip
    gone = weakref.ref(peer)
    broker.core.handle(RequestReceived(Origin(peer, None, "caller"), decode([frame])), 1.0)
    broker.answer(b"\1" * 16, 1.1)
    del peer
    gc.collect()

    one = (broker.core.ended.settle(), broker.core.ended.get(1))[1]
    assert one is not None
    assert one.traceparent is None
    assert gone() is None
    frame.extend(b"x")  # Raises BufferError while something still looks into it.


def test_of_a_flood_what_is_special_is_remembered() -> None:
    """Past the room of one tick: what failed, was slow or belongs to a trace; the rest is counted, and room comes back."""
    broker = Broker()
    broker.join("w")
    for _ in range(300):
        broker.answer(broker.ask(1.0), 1.01)
    broker.answer(broker.ask(1.0), 1.01, kind=Kind.ERROR, body=Forbidden("no").body())
    broker.answer(broker.ask(1.0), 1.2)
    broker.answer(broker.ask(1.0, headers={"traceparent": f"00-{TRACE}-{TRACE[:16]}-01"}), 1.01)

    ring = broker.core.ended
    outcomes = [outcome for outcome, _, _ in broker.told()]
    assert (outcomes.count("ok"), outcomes.count("forbidden"), ring.skipped) == (102, 1, 200)

    broker.core.handle(Tick(0.0), 1.3)
    broker.answer(broker.ask(1.4), 1.41)
    assert (len(broker.told()), ring.skipped) == (104, 200)
