"""Random lives of a broker's core: whatever happens in whatever order, no request is lost or answered twice."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.core import (
    Answer,
    Bury,
    ByeReceived,
    CancelReceived,
    Core,
    CreditReceived,
    Deliver,
    Disconnect,
    Fail,
    HeartbeatReceived,
    Origin,
    PeerLost,
    ReadyReceived,
    ReplyReceived,
    RequestReceived,
    Tick,
)
from broker.plain import Form
from broker.queues import Priority
from bus.settings import BrokerSettings
from schemas import catalog
from schemas.bodies.control import Heartbeat, Ready
from schemas.envelope import Kind, decode, encode
from schemas.errors import Conflict

EPOCH_OFFSET = 1_700_000_000.0
ATTEMPTS = 3
QUEUE_MAX = 4

# Idempotent, streaming and not idempotent, unknown to the catalogue; plain, at an instance that may exist.
SUBJECTS = ("memory.kv.get", "memory.kv.get@w0", "model.chat", "model.chat@w1", "test.any", "test.any@nobody")
SERVED = (
    ("memory.kv.get", "test.any"),
    ("memory.>",),
    ("model.chat", "memory.kv.get"),
    ("model.chat@w1",),
    ("test.any", "model.chat"),
)
PLAIN = Form(True, False, "json")


def pick(data: Any, items: list[Any]) -> Any:
    """One of them, chosen by hypothesis or by a random walk."""
    return data.choice(items) if isinstance(data, random.Random) else data.draw(st.sampled_from(items))


class Peer:
    """A connection."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Client:
    """Somebody who asks, over one connection after the other."""

    def __init__(self, name: str, *, is_plain: bool) -> None:
        self.name = name
        self.form = PLAIN if is_plain else None
        self.peer: Peer | None = Peer(name)


class Served:
    """A worker process: what it holds survives its connection."""

    def __init__(self, name: str, subjects: tuple[str, ...], capacity: int) -> None:
        self.name = name
        self.subjects = subjects
        self.capacity = capacity
        self.peer: Peer | None = None
        self.holds: dict[bytes, bool] = {}
        self.is_draining = False
        # Until it has finished what it held when it came back, it may hold more than its capacity.
        self.old: set[bytes] = set()


class Asked:
    """One request as its client sees it."""

    def __init__(self, id: bytes, client: Client, subject: str, deadline: float, headers: Any) -> None:
        self.id = id
        self.client = client
        self.subject = subject
        self.deadline_ms = int((deadline + EPOCH_OFFSET) * 1000)
        self.headers = headers
        self.attempt = 1
        self.ends = 0
        self.streamed = False
        self.has_hole = False
        self.dispatched = 0
        self.is_abandoned = False
        operation = catalog.lookup(subject)
        self.is_idempotent = operation is not None and operation.is_idempotent


class CoreLife(RuleBasedStateMachine):
    """Clients ask, workers come, answer and go, connections break, the broker restarts, time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.core = self._new_core()
        self.clients = [Client(f"c{index}", is_plain=index == 2) for index in range(3)]
        self.workers: list[Served] = []
        self.asked: dict[bytes, Asked] = {}
        self.count = 0
        self.dispatched_now: list[bytes] = []

    def _new_core(self) -> Core:
        limits = msgspec.structs.replace(BrokerSettings(), attempts=ATTEMPTS, queue_max_requests=QUEUE_MAX)
        core = Core(limits, boot="b", heartbeat_s=1.0, max_body_bytes=1 << 20, jitter=lambda: 0.5)
        core.handle(Tick(EPOCH_OFFSET), self.now)
        return core

    # The world's reaction to effects

    def do(self, event: Any) -> None:
        """Hand one event to the core and check every effect."""
        self.dispatched_now = []
        closed = []
        for effect in self.core.handle(event, self.now):
            if isinstance(effect, Deliver):
                self._on_deliver(effect)
            elif isinstance(effect, Answer):
                self._on_answer(effect)
            elif isinstance(effect, Fail):
                self._on_fail(effect)
            elif isinstance(effect, Disconnect):
                closed.append(effect.peer)
            elif isinstance(effect, Bury):
                assert effect.letter.attempts <= ATTEMPTS
        self._check_priorities()
        for peer in closed:
            self._break(peer)

    def _on_deliver(self, effect: Deliver) -> None:
        message = decode(effect.frames)
        worker = next(one for one in self.workers if one.peer is effect.peer)
        if message.kind is Kind.CANCEL:
            if message.id in worker.holds:
                worker.holds[message.id] = True
            return
        if message.kind is not Kind.REQUEST:
            return
        assert not worker.is_draining, "a draining worker got a request"
        asked = self.asked[message.id]
        asked.dispatched += 1
        self.dispatched_now.append(asked.id)
        if asked.dispatched > 1:
            assert asked.is_idempotent, "a request that is not idempotent was dispatched twice"
            assert not asked.streamed, "a request was dispatched again after a part of its reply"
            assert asked.dispatched <= ATTEMPTS, "more attempts than allowed"
        assert asked.ends == 0, "an answered request was dispatched"
        worker.holds[asked.id] = False
        worker.old.discard(asked.id)
        assert len(worker.holds.keys() - worker.old) <= worker.capacity, "more requests than the capacity"

    def _on_answer(self, effect: Answer) -> None:
        asked = self.asked[effect.message.id]
        self._check_receiver(asked, effect.origin)
        if effect.message.kind is Kind.PARTIAL:
            asked.streamed = True
            assert asked.ends == 0, "a piece after the end"
            return
        assert effect.message.kind is Kind.ERROR or not asked.has_hole, "a stream with a hole was passed off as whole"
        asked.ends += 1
        assert asked.ends == 1, "answered twice"

    def _on_fail(self, effect: Fail) -> None:
        asked = self.asked[effect.id]
        if isinstance(effect.error, Conflict):
            return
        self._check_receiver(asked, effect.origin)
        asked.ends += 1
        assert asked.ends == 1, f"answered twice, the second time with {effect.error.message}"

    @staticmethod
    def _check_receiver(asked: Asked, origin: Origin) -> None:
        assert origin.peer is asked.client.peer, "answered to somebody else, or into a broken connection"
        assert origin.form is asked.client.form

    def _check_priorities(self) -> None:
        routes = {
            pending.route
            for id in self.dispatched_now
            if (pending := self.core._pending.get(id)) is not None and pending.priority is Priority.BATCH
        }
        for route in routes:
            assert route is None or not route.queue.has(Priority.INTERACTIVE), "batch went before interactive"

    def _break(self, peer: Any) -> None:
        """A connection ends."""
        for worker in self.workers:
            if worker.peer is peer:
                worker.peer = None
                for id in worker.holds:
                    # It will answer with an error itself, as after a restart of the broker.
                    self.asked[id].has_hole = False
        for client in self.clients:
            if client.peer is peer:
                client.peer = None
                for asked in self.asked.values():
                    asked.has_hole |= asked.client is client and asked.streamed and not asked.ends
        self.do(PeerLost(peer, "broken"))

    # Rules

    @initialize()
    def begin(self) -> None:
        """One worker is there from the start, so that most lives have something to do."""
        self.workers.append(Served("w0", SERVED[0], 2))
        self._join(self.workers[0])

    @rule(
        index=st.integers(0, 2),
        subject=st.sampled_from(SUBJECTS),
        is_batch=st.booleans(),
        timeout_s=st.sampled_from([-1.0, 0.3, 3.0, 20.0, 20.0]),
        count=st.integers(1, 6),
    )
    def ask(self, index: int, subject: str, is_batch: bool, timeout_s: float, count: int) -> None:
        """A client asks something new, once or in a burst."""
        for _ in range(count):
            self._ask(self.clients[index], subject, is_batch, timeout_s)

    def _ask(self, client: Client, subject: str, is_batch: bool, timeout_s: float) -> None:
        if client.peer is None:
            return
        self.count += 1
        headers = {"priority": "batch"} if is_batch else {}
        asked = Asked(self.count.to_bytes(16, "big"), client, subject, self.now + timeout_s, headers)
        self.asked[asked.id] = asked
        self._send(asked)

    def _send(self, asked: Asked) -> None:
        headers = dict(asked.headers)
        if asked.attempt > 1:
            headers["attempt"] = asked.attempt
        frames = encode(Kind.REQUEST, asked.id, asked.subject, asked.deadline_ms, headers, {"a": 1})
        if asked.id not in self.core._pending:
            asked.dispatched = 0
            if asked.id not in self.core._parked:
                asked.streamed = asked.has_hole = False
        self.do(RequestReceived(Origin(asked.client.peer, asked.client.form), decode(frames)))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def ask_again_under_an_old_id(self, data: st.DataObject) -> None:
        """A mistake: an id in use. The original must not notice."""
        asked = pick(data, list(self.asked.values()))
        stranger = Peer("stranger")
        if asked.id not in self.core._pending or self.core._pending[asked.id].origin is None:
            return
        frames = encode(Kind.REQUEST, asked.id, asked.subject, 0, None, None)
        effects = self.core.handle(RequestReceived(Origin(stranger), decode(frames)), self.now)
        (effect,) = effects
        assert isinstance(effect, Fail)
        assert isinstance(effect.error, Conflict)
        assert effect.origin.peer is stranger

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A client takes a request back; it may long have ended."""
        asked = pick(data, list(self.asked.values()))
        if asked.client.peer is not None and asked.client.form is None:
            self.do(CancelReceived(asked.client.peer, asked.id))

    @rule(served=st.sampled_from(SERVED), capacity=st.integers(1, 3))
    def worker_starts(self, served: tuple[str, ...], capacity: int) -> None:
        """A new worker process."""
        if len(self.workers) < 4:
            worker = Served(f"w{len(self.workers)}", served, capacity)
            self.workers.append(worker)
            self._join(worker)

    @precondition(lambda self: any(worker.peer is None for worker in self.workers))
    @rule(data=st.data())
    def worker_comes_back(self, data: st.DataObject) -> None:
        """A worker whose connection broke registers with what it still works on."""
        self._join(pick(data, [one for one in self.workers if one.peer is None]))

    def _join(self, worker: Served) -> None:
        worker.peer = Peer(worker.name)
        worker.capacity = max(worker.capacity, 1)
        worker.is_draining = False
        worker.old = set(worker.holds)
        ready = Ready(
            service="s",
            instance=worker.name,
            subjects=list(worker.subjects),
            capacity=worker.capacity,
            in_flight=list(worker.holds),
        )
        self.do(ReadyReceived(worker.peer, ready))

    def _draw_worker(self, data: st.DataObject) -> Served | None:
        here = [worker for worker in self.workers if worker.peer is not None]
        return pick(data, here) if here else None

    @rule(data=st.data(), kind=st.sampled_from([Kind.PARTIAL, Kind.FINAL, Kind.FINAL, Kind.ERROR]))
    def worker_answers(self, data: st.DataObject, kind: Kind) -> None:
        """Something of a reply to something a worker holds."""
        worker = self._draw_worker(data)
        if worker is not None and worker.holds:
            self._answer(worker, pick(data, list(worker.holds)), kind)

    def _answer(self, worker: Served, id: bytes, kind: Kind) -> None:
        if kind is not Kind.PARTIAL:
            del worker.holds[id]
            worker.old.discard(id)
        body = {"code": "not_found", "message": "m"} if kind is Kind.ERROR else [1]
        pending = self.core._pending.get(id)
        if kind is Kind.PARTIAL and pending is not None and pending.worker is not None:
            if pending.worker.peer is worker.peer:
                self.asked[id].streamed = True
                self.asked[id].has_hole |= pending.origin is None
        self.do(ReplyReceived(worker.peer, decode(encode(kind, id, "", 0, None, body))))

    @rule(data=st.data(), id=st.integers(1, 40))
    def worker_answers_what_it_was_never_asked(self, data: st.DataObject, id: int) -> None:
        """A reply out of nowhere changes nothing."""
        worker = self._draw_worker(data)
        wanted = id.to_bytes(16, "big")
        if worker is not None and wanted not in worker.holds:
            self.do(ReplyReceived(worker.peer, decode(encode(Kind.FINAL, wanted, "", 0, None, 1))))

    @rule(data=st.data(), capacity=st.integers(0, 4))
    def worker_changes_credit(self, data: st.DataObject, capacity: int) -> None:
        """More or less at once."""
        worker = self._draw_worker(data)
        if worker is not None:
            worker.capacity = capacity
            self.do(CreditReceived(worker.peer, capacity))

    @rule(data=st.data())
    def worker_drains(self, data: st.DataObject) -> None:
        """It says bye and goes on with what it has."""
        worker = self._draw_worker(data)
        if worker is not None:
            self.do(ByeReceived(worker.peer))
            worker.is_draining = True

    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        """As with kill -9: what it held is gone."""
        worker = self._draw_worker(data)
        if worker is not None:
            worker.holds.clear()
            worker.old.clear()
            self._break(worker.peer)

    @rule(data=st.data())
    def worker_connection_breaks(self, data: st.DataObject) -> None:
        """It goes on working and can come back."""
        worker = self._draw_worker(data)
        if worker is not None:
            self._break(worker.peer)

    @rule(index=st.integers(0, 2))
    def client_connection_breaks(self, index: int) -> None:
        """A native client may come back; a plain one has lost its requests."""
        client = self.clients[index]
        if client.peer is None:
            return
        if client.form is not None:
            for asked in self.asked.values():
                if asked.client is client and not asked.ends:
                    asked.is_abandoned = True
        self._break(client.peer)

    @rule(index=st.integers(0, 2))
    def client_comes_back(self, index: int) -> None:
        """It sends again, by id, what has no answer."""
        client = self.clients[index]
        if client.peer is not None:
            return
        client.peer = Peer(client.name)
        for asked in [one for one in self.asked.values() if one.client is client]:
            if not asked.ends and not asked.is_abandoned:
                asked.attempt += 1
                self._send(asked)

    @rule()
    def broker_restarts(self) -> None:
        """Everything it knew is gone, and so is every connection."""
        self.core = self._new_core()
        for asked in self.asked.values():
            # A worker that was streaming sees its connection break and answers with an error itself (bus.worker.Call).
            asked.has_hole = False
        for worker in self.workers:
            worker.peer = None
        for client in self.clients:
            client.peer = None
            if client.form is not None:
                for asked in self.asked.values():
                    asked.is_abandoned |= asked.client is client and not asked.ends

    @rule(seconds=st.sampled_from([0.05, 0.05, 0.5, 1.0, 2.0, 6.0]), are_heard=st.booleans())
    def time_passes(self, seconds: float, are_heard: bool) -> None:
        """With or without heartbeats."""
        self._pass(seconds, are_heard=are_heard)

    def _pass(self, seconds: float, *, are_heard: bool) -> None:
        if are_heard:
            for worker in self.workers:
                if worker.peer is not None:
                    self.do(HeartbeatReceived(worker.peer, Heartbeat()))
        self.now += seconds
        self.do(Tick(EPOCH_OFFSET))

    # What holds after every step

    @invariant()
    def queues_count_what_they_hold(self) -> None:
        """Counters equal contents, and what has ended does not pile up."""
        for route in self.core.registry.routes.values():
            lanes = route.queue._lanes
            live = [[item for item in lane if not item.is_done] for lane in lanes]
            assert route.queue.count == sum(map(len, live)) <= QUEUE_MAX + len(self.asked)
            assert route.queue.size_bytes == sum(item.size_bytes for lane in live for item in lane)
            assert route.queue._waiting == [len(lane) for lane in live]
            assert all(len(lane) <= 2 * len(alive) for lane, alive in zip(lanes, live, strict=True))

    @invariant()
    def nobody_waits_while_a_worker_is_free(self) -> None:
        """A queue with something in it means that everybody who serves it is busy."""
        for route in self.core.registry.routes.values():
            assert not route.queue.count or route.freest() is None, f"{route.key} waits beside a free worker"

    @invariant()
    def credit_is_accounted_for(self) -> None:
        """Free credit is capacity less what is in flight and what a worker brought along."""
        core = self.core
        for worker in core.registry.workers.values():
            claimed = sum(claimant is worker for claimant in core._claims.values())
            assert worker.free == worker.ready.capacity - len(worker.in_flight) - claimed
            for id, pending in worker.in_flight.items():
                assert core._pending[id] is pending
                assert pending.worker is worker  # type: ignore[attr-defined]

    @invariant()
    def every_open_request_is_somewhere(self) -> None:
        """Queued, in flight, waiting for another attempt, or held for a worker to come back: exactly one of them."""
        core = self.core
        queued = {
            item.id  # type: ignore[attr-defined]
            for route in core.registry.routes.values()
            for lane in route.queue._lanes
            for item in lane
            if not item.is_done
        }
        for id, pending in core._pending.items():
            places = [id in queued, pending.worker is not None, id in core._retries, id in core._held]
            assert sum(places) == 1, f"{pending.message.subject} is in {places}"
        assert core._parked_bytes == sum(message.size_bytes for _, message, _ in core._parked.values())

    def teardown(self) -> None:
        """Everybody comes back and answers, and time passes: then all is answered, and nothing is left behind."""
        for index in range(3):
            self.client_comes_back(index)
        for worker in self.workers:
            if worker.peer is not None:
                worker.capacity = 2
                self.do(CreditReceived(worker.peer, 2))
        for _ in range(40):
            for worker in self.workers:
                if worker.peer is None:
                    self._join(worker)
                for id in list(worker.holds):
                    self._answer(worker, id, Kind.FINAL)
            self._pass(1.0, are_heard=True)

        for asked in self.asked.values():
            assert asked.ends == (0 if asked.is_abandoned and not asked.ends else 1), f"{asked.subject} got no answer"
        core = self.core
        for left in (core._pending, core._retries, core._away, core._held, core._parked, core._claims, core._deserted):
            assert not left
        assert not core._deadlines
        assert core._parked_bytes == 0
        assert core.in_flight == core.queued == core.queued_bytes == 0


CoreLife.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
TestCoreLife = CoreLife.TestCase
TestCoreLife.__doc__ = "No interleaving loses a request, answers one twice, or leaves anything behind."


@pytest.mark.parametrize("seed", range(100))
def test_long_lives_lose_nothing(seed: int) -> None:
    """Four hundred steps of the same life, with more work and fewer accidents than chance alone would bring."""
    chance = random.Random(seed)
    life = CoreLife()
    life.begin()
    for _ in range(400):
        _step(life, chance)
        for check in (
            life.queues_count_what_they_hold,
            life.nobody_waits_while_a_worker_is_free,
            life.credit_is_accounted_for,
            life.every_open_request_is_somewhere,
        ):
            check()
    life.teardown()


def _step(life: CoreLife, chance: random.Random) -> None:
    kind = chance.choices(
        [
            "ask",
            "answer",
            "worker",
            "back",
            "client",
            "time",
            "cancel",
            "credit",
            "drain",
            "die",
            "break",
            "gone",
            "boot",
        ],
        [30, 45, 4, 6, 6, 14, 4, 3, 2, 3, 2, 2, 0.7],
    )[0]
    if kind == "ask":
        timeout_s = chance.choice([-1.0, 0.3, 3.0, 20.0, 20.0])
        life.ask(chance.randrange(3), chance.choice(SUBJECTS), chance.random() < 0.4, timeout_s, chance.randint(1, 6))
    elif kind == "answer":
        life.worker_answers(chance, chance.choice([Kind.PARTIAL, Kind.FINAL, Kind.FINAL, Kind.FINAL, Kind.ERROR]))
    elif kind == "worker":
        life.worker_starts(chance.choice(SERVED), chance.randint(1, 3))
    elif kind == "back" and any(worker.peer is None for worker in life.workers):
        life.worker_comes_back(chance)
    elif kind == "client":
        life.client_comes_back(chance.randrange(3))
    elif kind == "time":
        life.time_passes(chance.choice([0.05, 0.05, 0.5, 1.0, 2.0, 6.0]), chance.random() < 0.9)
    elif kind == "cancel" and life.asked:
        life.cancel(chance)
        life.ask_again_under_an_old_id(chance)
    elif kind == "credit":
        life.worker_changes_credit(chance, chance.randint(0, 4))
    elif kind == "drain":
        life.worker_drains(chance)
    elif kind == "die":
        life.worker_dies(chance)
    elif kind == "break":
        life.worker_connection_breaks(chance)
    elif kind == "gone":
        life.client_connection_breaks(chance.randrange(3))
    elif kind == "boot":
        life.broker_restarts()
