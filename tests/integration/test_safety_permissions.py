"""A running broker and keys that may do little: everything else is tried, in both forms, and refused."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

import broker.server
from bus import z85, zmtp
from bus.client import Client
from bus.keys import Keys
from bus.permissions import NOTHING, Permissions, of_role
from bus.settings import Settings
from bus.transport import Role, dialer
from bus.worker import Call, Worker
from schemas import catalog
from schemas.envelope import Kind, decode, encode
from schemas.errors import BusError, Forbidden, NoWorker, TooLarge
from schemas.limits import ID_BYTES, MAX_HEADER_BYTES
from tests.curve_house import house_of

TIMEOUT_S = 10.0

KV_ONLY = Permissions(request=("memory.kv.get",), subscribe=("memory.changed.*",))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions are read again more often than every 5 s."""
    monkeypatch.setattr(broker.server, "_KEEP_ALIVE_S", 0.05)


async def soon(work: Any) -> Any:
    """The result of something that must not take long."""
    async with asyncio.timeout(TIMEOUT_S):
        return await work


async def until(is_true: Callable[[], bool], what: str) -> None:
    """Wait for a state that nothing tells of."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not is_true():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never: {what}")


async def echo(request: Any, call: Call) -> Any:
    """What came goes back."""
    return request


@asynccontextmanager
async def serving(settings: Settings, *subjects: str, service: str = "test") -> AsyncIterator[Worker]:
    """A worker that answers with what it was asked."""
    worker = Worker(service, settings)
    for subject in subjects:
        worker.handle(subject, echo, request_type=Any)
    await worker.start(TIMEOUT_S)
    try:
        yield worker
    finally:
        await worker.stop(0)


@asynccontextmanager
async def socket_of(settings: Settings, server: Keys, kind: int, port: int) -> AsyncIterator[zmq.asyncio.Socket]:
    """One of libzmq's, with the keys of a home."""
    context = zmq.asyncio.Context()
    try:
        made = context.socket(kind)
        made.linger = 0
        own = Keys(settings).own()
        made.curve_publickey, made.curve_secretkey = (z85.encode(key).encode() for key in own)
        made.curve_serverkey = z85.encode(server.own().public).encode()
        made.connect(f"tcp://127.0.0.2:{port}")
        yield made
    finally:
        context.destroy(0)


class _Raw:
    """A connection of one role whose frames the test writes itself."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self.closed = asyncio.Event()

    def on_open(self, link: Any) -> None:
        """The handshake is done; `dialled` waits for it."""
        self.link = link

    def on_messages(self, link: Any, messages: list[list[Any]]) -> None:
        """Keep them."""
        for frames in messages:
            self.messages.put_nowait([bytes(frame) for frame in frames])

    def on_oversize(self, link: Any, frames: list[Any], size_bytes: int) -> None:
        """Not here."""

    def on_close(self, link: Any, reason: str) -> None:
        """Keep that it is over."""
        self.closed.set()


async def dialled(stack: AsyncExitStack, settings: Settings, role: Role = Role.REQUEST) -> _Raw:
    """An open connection."""
    raw = _Raw()
    link = await dialer(settings, "raw")(role, raw)
    stack.callback(link.abort, "done")
    await until(lambda: link.is_open, "the handshake")
    return raw


# Requests -------------------------------------------------------------------------------------------------------


async def test_key_for_one_operation_can_ask_for_no_other_of_the_catalogue(settings: Settings, tmp_path: Path) -> None:
    """All of them, natively, and at an instance; the error names subject, identity and what is allowed."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        kiosk = house.machine("kiosk", KV_ONLY)
        await stack.enter_async_context(serving(house.here, "memory.kv.get", "memory.kv.set", service="memory"))
        client = await stack.enter_async_context(Client(kiosk, name="kiosk"))

        got = await soon(client.request("memory.kv.get", {"key": "a"}, raw=True))
        outcomes = {}
        for subject in [name for name in catalog.OPERATIONS if name != "memory.kv.get"]:
            for asked in (subject, f"{subject}@elsewhere"):
                with pytest.raises(Forbidden) as caught:
                    await soon(client.request(asked, {}, raw=True, timeout_s=5))
                outcomes[asked] = caught.value.details
        refused = house.broker.exchange.refused["request"]

    assert got["key"] == "a"
    assert len(outcomes) == 2 * (len(catalog.OPERATIONS) - 1) == refused
    assert outcomes["memory.kv.set"] == {
        "subject": "memory.kv.set",
        "identity": "kiosk",
        "action": "request",
        "allowed": ["memory.kv.get"],
    }


async def test_plain_requests_are_held_to_the_same(settings: Settings, tmp_path: Path) -> None:
    """Multipart and single-frame, JSON and msgpack, from libzmq; what is allowed is answered."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        kiosk = house.machine("kiosk", Permissions(request=("test.echo",)))
        await stack.enter_async_context(serving(house.here, "test.echo", "test.secret"))
        req = await stack.enter_async_context(socket_of(kiosk, house.keys, zmq.REQ, kiosk.bus.request_port))

        answers = []
        for frames in (
            [b"test.secret", b"{}"],
            [b"test.secret", msgspec.msgpack.encode({})],
            [json.dumps({"subject": "test.secret", "body": {}}).encode()],
            [b"test.echo", b"1"],
        ):
            await req.send_multipart(frames)
            answers.append(await soon(req.recv_multipart()))

    assert answers[0][0] == b"error" and json.loads(answers[0][1])["code"] == "forbidden"
    assert answers[1][0] == b"error" and msgspec.msgpack.decode(answers[1][1])["code"] == "forbidden"
    assert json.loads(answers[2][0])["status"] == "error"
    assert answers[3] == [b"ok", b"1"]


async def test_flood_of_invented_subjects_keeps_no_more_than_a_bounded_memory_of_them(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is refused, and none pushes out what is allowed."""
    monkeypatch.setattr("broker.rights._DECIDED_MAX", 50)
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        client = await stack.enter_async_context(Client(house.machine("kiosk", KV_ONLY), name="kiosk"))
        asked = [client.request(f"made.up{number}", timeout_s=5) for number in range(300)]
        ended = await soon(asyncio.gather(*asked, return_exceptions=True))
        rights = house.broker.exchange.rights_named("kiosk")
        assert rights is not None
        remembered = len(rights._decided)
        with pytest.raises(NoWorker):
            await soon(client.request("memory.kv.get", {"key": "a"}))

    assert all(isinstance(one, Forbidden) for one in ended)
    assert remembered <= 50


async def test_headers_without_room_for_the_keys_name_are_refused_and_take_no_credit(
    settings: Settings, tmp_path: Path
) -> None:
    """The broker adds a header to what is audited: what no worker could read then must not reach one."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        kiosk = house.machine("kiosk", Permissions(request=("memory.kv.delete",)))
        await stack.enter_async_context(serving(house.here, "memory.kv.delete", service="memory"))
        client = await stack.enter_async_context(Client(kiosk, name="kiosk"))
        outcomes = set()
        for size in range(MAX_HEADER_BYTES - 60, MAX_HEADER_BYTES - 4):
            try:
                await soon(client.request("memory.kv.delete", {"key": "a"}, raw=True, headers={"x": "y" * size}))
            except TooLarge as error:
                outcomes.add(error.code)
            else:
                outcomes.add("ok")
        in_flight = house.broker.exchange.core.in_flight

    assert outcomes == {"ok", "too_large"}
    assert in_flight == 0


# Whose request it is --------------------------------------------------------------------------------------------


async def test_key_named_in_a_header_is_the_senders_own_whatever_it_says(settings: Settings, tmp_path: Path) -> None:
    """Workers believe `via` where they write down who was refused, whether or not the operation is audited."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        mallory = await stack.enter_async_context(Client(house.machine("mallory", Permissions(request=(">",)))))

        async def headers_of(request: Any, call: Call) -> Any:
            return call.headers.get("via")

        worker = Worker("test", house.here)
        worker.handle("test.via", headers_of)
        await worker.start(TIMEOUT_S)
        stack.push_async_callback(worker.stop, 0)

        assert await mallory.request("test.via", headers={"via": "pc2"}) == "mallory"
        assert await mallory.request("test.via") is None


@pytest.mark.parametrize(
    "more",
    [
        {"subjects": [f"test.s{number}" for number in range(10_001)]},
        {"in_flight": [number.to_bytes(ID_BYTES) for number in range(100_001)]},
        {"in_flight": [b"short"]},
        {"host": "h" * 256},
    ],
    ids=["subjects", "requests", "id", "host"],
)
async def test_registration_past_all_measure_is_refused(
    settings: Settings, tmp_path: Path, more: dict[str, Any]
) -> None:
    """What a worker says of itself is kept while it is there, and told to whoever asks."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        raw = await dialled(stack, house.machine("mallory", Permissions(serve=("test.>",))))
        ready = {"service": "test", "instance": "m", "subjects": ["test.one"], "capacity": 1}
        raw.link.send(encode(Kind.READY, body={**ready, **more}))
        answer = decode(list(await soon(raw.messages.get())))

    assert answer.kind is Kind.ERROR and b"does not decode" in bytes(answer.body)


async def test_nobody_answers_cancels_or_takes_over_the_request_of_another(settings: Settings, tmp_path: Path) -> None:
    """Not as a stranger, not as a worker that the request was not given to, not with the very id of it."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        may = Permissions(request=("test.>",), serve=("test.other",))
        mallory = house.machine("mallory", may)
        is_asked, may_answer = asyncio.Event(), asyncio.Event()

        async def slow(request: Any, call: Call) -> Any:
            is_asked.set()
            await may_answer.wait()
            return "the right one"

        worker = Worker("test", house.here)
        worker.handle("test.slow", slow)
        await worker.start(TIMEOUT_S)
        stack.push_async_callback(worker.stop, 0)
        victim = await stack.enter_async_context(Client(house.elsewhere, name="victim"))
        raw = await dialled(stack, mallory)
        ready = {"service": "test", "instance": "m", "subjects": ["test.other"], "capacity": 1}
        id = os.urandom(ID_BYTES)
        asked = asyncio.ensure_future(victim.request("test.slow", timeout_s=TIMEOUT_S, id=id))
        await soon(is_asked.wait())

        for hostile in (
            encode(Kind.READY, body={**ready, "in_flight": [id]}),
            encode(Kind.FINAL, id, body="forged"),
            encode(Kind.PARTIAL, id, body="forged"),
            encode(Kind.ERROR, id, body={"code": "internal", "message": "forged"}),
            encode(Kind.CANCEL, id),
            encode(Kind.REQUEST, id, "test.slow", 0, {"attempt": 2}),
            encode(Kind.REQUEST, id, "test.slow"),
        ):
            raw.link.send(hostile)
        await soon(raw.link.ping())
        may_answer.set()
        answer = await soon(asked)
        heard = []
        while not raw.messages.empty():
            heard.append(decode(list(raw.messages.get_nowait())))

    assert answer == "the right one"
    finals = [one for one in heard if one.kind is Kind.FINAL or b"right" in bytes(one.body)]
    assert not finals and {one.kind for one in heard} <= {Kind.WELCOME, Kind.ERROR}


async def test_reply_kept_for_a_machine_that_is_away_is_for_no_other(settings: Settings, tmp_path: Path) -> None:
    """Its id alone does not fetch it; its owner, back again, gets it."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        mallory = house.machine("mallory", Permissions(request=("test.>",)))
        is_asked, may_answer = asyncio.Event(), asyncio.Event()

        async def slow(request: Any, call: Call) -> Any:
            is_asked.set()
            await may_answer.wait()
            return "kept"

        worker = Worker("test", house.here)
        worker.handle("test.slow", slow)
        await worker.start(TIMEOUT_S)
        stack.push_async_callback(worker.stop, 0)
        id = os.urandom(ID_BYTES)
        victim = await dialled(stack, house.elsewhere)
        victim.link.send(encode(Kind.REQUEST, id, "test.slow"))
        await soon(is_asked.wait())
        victim.link.abort("gone")
        core = house.broker.exchange.core
        await until(lambda: bool(core._away), "the broker noticed")
        thief = await dialled(stack, mallory)
        thief.link.send(encode(Kind.CANCEL, id))
        thief.link.send(encode(Kind.REQUEST, id, "test.slow", 0, {"attempt": 2}))
        await soon(thief.messages.get())
        may_answer.set()
        await until(lambda: bool(core._parked), "the reply is kept")

        again = encode(Kind.REQUEST, id, "test.slow", 0, {"attempt": 2})
        thief.link.send(again)
        stolen = decode(list(await soon(thief.messages.get())))
        owner = await dialled(stack, house.elsewhere)
        owner.link.send(again)
        got = decode(list(await soon(owner.messages.get())))

    assert stolen.kind is Kind.ERROR
    assert got.kind is Kind.FINAL and msgspec.msgpack.decode(got.body) == "kept"


# Events ---------------------------------------------------------------------------------------------------------


async def test_key_that_may_publish_nothing_is_heard_by_nobody(settings: Settings, tmp_path: Path) -> None:
    """Every event of the catalogue, and those a name could be lent to; they are counted, and one line tells of each."""
    subjects = [event.pattern.replace("*", "memory") for event in catalog.EVENTS] + ["audit.deletion", "made.up"]
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        here = await stack.enter_async_context(Client(house.here, name="here"))
        kiosk = await stack.enter_async_context(Client(house.machine("kiosk", KV_ONLY), name="kiosk"))
        async with here.subscribe(">") as events:
            for subject in subjects:
                await soon(kiosk.publish(subject, {"forged": True}))
            refused = house.broker.exchange.refused
            await until(lambda: refused["publish"] == len(subjects), "all of them were refused")
            await here.publish("test.end")
            heard: list[Any] = []
            async with asyncio.timeout(TIMEOUT_S):
                async for event in events:
                    heard.append(event)
                    if event.subject == "test.end":
                        break

    assert not [event for event in heard if "@kiosk" in event.source]
    audited = [event.body for event in heard if event.subject == "audit.refusal"]
    assert {line["action"] for line in audited} == {f"publish {subject}" for subject in subjects}
    assert all(line["actor"] == "kiosk" and line["address"] == "127.0.0.1" for line in audited)


async def test_subscription_to_everything_brings_what_is_allowed_and_no_more(
    settings: Settings, tmp_path: Path
) -> None:
    """The pattern >, the empty prefix of libzmq on the plain port, and one that is out of bounds altogether."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        kiosk = house.machine("kiosk", KV_ONLY)
        here = await stack.enter_async_context(Client(house.here, name="here"))
        client = await stack.enter_async_context(Client(kiosk, name="kiosk"))
        sub = await stack.enter_async_context(socket_of(kiosk, house.keys, zmq.SUB, kiosk.bus.subscribe_port))
        sub.subscribe(b"")
        hub = house.broker.exchange.hub
        async with client.subscribe(">") as events, client.subscribe("model.>"):
            await until(
                lambda: sum(bool(one.prefixes or one.patterns) for one in hub.subscribers.values()) >= 3, "subs"
            )
            for subject in ("model.answered", "auth.failed", "audit.refusal", "memory.changed.kv"):
                await here.publish(subject, {"of": subject})
            event = await soon(anext(events))
            plain = await soon(sub.recv_multipart())
        refused = house.broker.exchange.refused["subscribe"]

    assert event.subject == "memory.changed.kv"
    assert plain[0] == b"memory.changed.kv"
    assert refused == 1


async def test_event_log_shows_a_key_no_more_than_it_may_hear(settings: Settings, tmp_path: Path) -> None:
    """Reading what was published is held to the same patterns as subscribing to it."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        kiosk = house.machine("kiosk", Permissions(request=("bus.events.read",), subscribe=("memory.changed.*",)))
        here = await stack.enter_async_context(Client(house.here, name="here"))
        client = await stack.enter_async_context(Client(kiosk, name="kiosk"))
        await here.publish("memory.changed.kv", {"a": 1})
        await here.publish("trust.changed", {"b": 2})

        found: list[str] = []
        async with client.stream("bus.events.read", {"subject": "memory.changed.*"}) as batches:
            async for batch in batches:
                found += [event.subject for event in batch.events]
        refusals = []
        for pattern in (">", "trust.changed", "memory.>", "memory.changed.>"):
            with pytest.raises(Forbidden) as caught:
                await soon(client.request("bus.events.read", {"subject": pattern}))
            refusals.append(caught.value.details["subject"])
        with pytest.raises(Forbidden):
            # Whoever lends itself the name of a key that may do more is known by its own.
            await soon(client.request("bus.events.read", {"subject": ">"}, headers={"via": "pc2"}))

    assert set(found) == {"memory.changed.kv"}
    assert refusals == [">", "trust.changed", "memory.>", "memory.changed.>"]


async def test_sequence_port_takes_no_body_and_publish_port_no_request(settings: Settings, tmp_path: Path) -> None:
    """A key with few rights gets no further by speaking one port's language to another."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        kiosk = house.machine("kiosk", KV_ONLY)
        await stack.enter_async_context(serving(house.here, "memory.kv.set", service="memory"))
        events = await dialled(stack, kiosk, Role.EVENTS)
        publish = await dialled(stack, kiosk, Role.PUBLISH)
        request = encode(Kind.REQUEST, os.urandom(ID_BYTES), "memory.kv.set", 0, None, {"key": "a", "value": 1})
        for raw in (events, publish):
            raw.link.send(request)
            raw.link.send(encode(Kind.READY, body={"service": "x", "instance": "y", "subjects": ["memory.>"]}))
            raw.link.send(zmtp.subscription(b"auth."))
            with suppress(ConnectionError):
                await soon(raw.link.ping())
        core = house.broker.exchange.core

        assert core.counters.requests == 0
        assert {worker.ready.service for worker in core.registry.workers.values()} == {"bus", "memory"}


# Workers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "subject"),
    [("memory", "memory.>"), ("kiosk", "memory.kv.get"), ("kiosk", ">"), ("bus", "kiosk.a"), ("memory", "kiosk.a")],
)
async def test_key_serves_only_what_it_may_and_under_no_other_service_s_name(
    settings: Settings, tmp_path: Path, service: str, subject: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is sent away with the reason, which its log shows, and the requests go where they went."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        kiosk = house.machine("kiosk", Permissions(request=(">",), serve=("kiosk.>",)))
        worker = Worker(service, kiosk)
        worker.handle(subject, echo, request_type=Any)
        with pytest.raises(TimeoutError):
            await worker.start(0.3)
        stack.push_async_callback(worker.stop, 0)
        registered = {one.ready.service for one in house.broker.exchange.core.registry.workers.values()}

    assert registered == {"bus"}
    assert house.broker.exchange.refused["serve"] >= 1
    reasons = [record.__dict__["reason"] for record in caplog.records if record.getMessage() == "refused by the broker"]
    assert reasons and "the key of kiosk may not serve" in reasons[0]


async def test_permissions_that_change_count_for_connections_that_are_there(settings: Settings, tmp_path: Path) -> None:
    """Both ways, for requests, events and a worker, which comes back by itself once it may serve."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        everything = Permissions(request=(">",), publish=(">",), subscribe=(">",), serve=("test.>",))
        kiosk = house.machine("kiosk", everything)
        here = await stack.enter_async_context(Client(house.here, name="here"))
        client = await stack.enter_async_context(Client(kiosk, name="kiosk"))
        await stack.enter_async_context(serving(kiosk, "test.echo"))
        events = await stack.enter_async_context(client.subscribe("test.>"))
        assert await soon(here.request("test.echo", 1)) == 1
        registry = house.broker.exchange.core.registry

        house.keys.allow("kiosk", NOTHING)
        await until(lambda: len(registry.workers) == 1, "its worker left")
        with pytest.raises(Forbidden):
            await soon(client.request("bus.ping"))
        await here.publish("test.unheard")

        house.keys.allow("kiosk", everything)
        await until(lambda: len(registry.workers) == 2, "its worker is back")
        assert await soon(here.request("test.echo", 2)) == 2
        await here.publish("test.heard")
        assert (await soon(anext(events))).subject == "test.heard"


async def test_keys_that_come_change_and_go_stand_in_the_audit_log(settings: Settings, tmp_path: Path) -> None:
    """Each once, with its name; and a stranger's key with its fingerprint and address, however often it tries."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        here = await stack.enter_async_context(Client(house.here, name="here"))
        async with here.subscribe("audit.*") as events:
            heard: list[Any] = []

            async def following(action: str) -> None:
                async with asyncio.timeout(TIMEOUT_S):
                    while not heard or heard[-1]["action"] != action:
                        heard.append((await anext(events)).body)

            kiosk = house.machine("kiosk", KV_ONLY)
            await following("keys.trust")
            house.keys.allow("kiosk", NOTHING)
            await following("keys.allow")
            house.keys.untrust("kiosk")
            await following("keys.untrust")
            stranger = await stack.enter_async_context(Client(kiosk, name="stranger"))
            with suppress(BusError):
                await stranger.connect(0.3)
            await following("connect")
            await here.publish("audit.end", {"action": "end"})
            await following("end")

    told = [(line["kind"], line["action"], line.get("target", "")) for line in heard[:-1] if line["target"] != "pc2"]
    assert told == [
        ("account", "keys.trust", "kiosk"),
        ("account", "keys.allow", "kiosk"),
        ("account", "keys.untrust", "kiosk"),
        ("refusal", "connect", ""),
    ]
    assert heard[-2]["address"] == "127.0.0.1" and heard[-2]["actor"].startswith("key ")


async def test_permissions_that_cannot_be_read_allow_nothing(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names file, line and field; a file that is whole again counts, one that is gone allows everything."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        kiosk = house.machine("kiosk", KV_ONLY)
        client = await stack.enter_async_context(Client(kiosk, name="kiosk"))
        path = house.keys.folder / "trusted" / "kiosk.allowed"

        async def outcome() -> str:
            try:
                await soon(client.request("memory.kv.get", {"key": "a"}))
            except BusError as error:
                return error.code
            return "ok"

        assert await outcome() == "no_worker"
        for content in ("request memory.kv.get\nrequest memory..get\n", "ask >\n", "\xff"):
            path.write_bytes(content.encode("latin-1"))
            async with asyncio.timeout(TIMEOUT_S):
                while await outcome() != "forbidden":
                    await asyncio.sleep(0.02)
            path.write_text("request memory.kv.get\n")
            async with asyncio.timeout(TIMEOUT_S):
                while await outcome() != "no_worker":
                    await asyncio.sleep(0.02)
        house.keys.allow("kiosk", None)
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                with suppress(Forbidden):
                    await soon(client.request("bus.ping"))
                    break
                await asyncio.sleep(0.02)

    reasons = " ".join(str(record.__dict__.get("reason", "")) for record in caplog.records)
    assert "kiosk.allowed: line 2, request: pattern 'memory..get'" in reasons
    assert "line 1: 'ask' is no action" in reasons


async def test_dead_letter_is_sent_again_only_by_who_may_ask_for_it(settings: Settings, tmp_path: Path) -> None:
    """The broker sends it itself, and must not lend its rights to whoever asks."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        keeper = house.machine("keeper", Permissions(request=("deadletter.>", "test.open")))
        here = await stack.enter_async_context(Client(house.here, name="here"))
        client = await stack.enter_async_context(Client(keeper, name="keeper"))
        started = asyncio.Event()

        async def never(request: Any, call: Call) -> Any:
            started.set()
            await asyncio.Event().wait()

        for subject in ("test.closed", "test.open"):
            worker = Worker("test", house.here)
            worker.handle(subject, never)
            await worker.start(TIMEOUT_S)
            started.clear()
            asked = asyncio.ensure_future(here.request(subject, timeout_s=0.2))
            await soon(started.wait())
            with suppress(BusError):
                await soon(asked)
            await worker.stop(0)
        letters = (await soon(here.request("deadletter.list", {}))).dead_letters
        ids = {letter.subject: letter.id for letter in letters}

        shown = await soon(client.request("deadletter.show", {"id": ids["test.open"]}))
        for operation in ("deadletter.show", "deadletter.redrive"):
            with pytest.raises(Forbidden, match=r"may not request test\.closed"):
                await soon(client.request(operation, {"id": ids["test.closed"]}))
        for operation in ("deadletter.list", "deadletter.purge"):
            with pytest.raises(Forbidden):
                await soon(client.request(operation, {"subject": ">"}))

    assert shown.dead_letter.subject == "test.open"


async def test_worker_of_a_role_serves_tells_and_asks_as_its_service_does(settings: Settings, tmp_path: Path) -> None:
    """The role of PC2: its figures, errors and events are heard with its machine's name behind them, others' are not."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        pc3 = house.machine("pc3", of_role("worker", ["memory"]))
        here = await stack.enter_async_context(Client(house.here, name="here"))
        await stack.enter_async_context(serving(pc3, "memory.kv.get", "auth.verify", service="memory"))
        client = await stack.enter_async_context(Client(pc3, name="memory/pc3"))
        async with here.subscribe("memory.>", "error.>", "metrics.>", "test.>", "model.>") as events:
            for subject in ("metrics.models", "error.models.error", "model.loaded", "bus.worker.lost"):
                await client.publish(subject, {})
            for subject in ("memory.changed.kv", "error.memory.error"):
                await client.publish(subject, {"a": 1})
            await until(lambda: house.broker.exchange.refused["publish"] == 4, "others' events were refused")
            await here.publish("test.end")
            heard = {}
            async with asyncio.timeout(TIMEOUT_S):
                async for event in events:
                    heard[event.subject] = event.source
                    if event.subject == "test.end":
                        break

    assert {name for name in heard if not name.startswith(("metrics.", "test."))} == {
        "memory.changed.kv",
        "error.memory.error",
    }
    assert heard["memory.changed.kv"] == "memory/pc3@pc3"
