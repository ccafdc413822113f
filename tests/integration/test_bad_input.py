"""Any bytes on any socket: each gets its clear end, the next good request works, and memory stays where it was."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from broker.server import Broker
from bus import transport, zmtp
from bus.client import Client
from bus.machine import rss_bytes
from bus.settings import Settings
from bus.transport import AddressInUse
from bus.worker import Call, Worker
from schemas.bodies.control import Ready
from schemas.envelope import Buffer, Kind, decode, encode, encode_raw, new_id
from schemas.errors import BusError, DeadlineExceeded, TooLarge
from tests.conftest import settings_of

Serve = Callable[..., AbstractAsyncContextManager[Settings]]
PORTS = ("request_port", "publish_port", "subscribe_port", "sequenced_port")


async def _echo(request: Any, call: Call) -> Any:
    return request


@asynccontextmanager
async def echoing(settings: Settings) -> AsyncIterator[Client]:
    """A worker and a client of a running broker."""
    worker = Worker("test", settings, instance="one", capacity=8)
    worker.handle("test.echo", _echo)
    await worker.start(10)
    try:
        async with Client(settings) as client:
            yield client
    finally:
        await worker.stop(drain_s=0)


async def works(client: Client) -> None:
    """The next good request and the next good event."""
    assert await client.request("test.echo", "fine", timeout_s=10) == "fine"
    async with client.subscribe("t.fine") as events:
        await client.publish("t.fine", 1)
        async with asyncio.timeout(10):
            assert (await anext(events)).body == 1


class Raw:
    """A TCP connection that says what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, port: str) -> AsyncIterator[Raw]:
        """Connect to one of the broker's ports."""
        raw = cls(*await asyncio.open_connection(settings.bus.host, getattr(settings.bus, port)))
        try:
            yield raw
        finally:
            raw._writer.close()
            with contextlib.suppress(ConnectionError):
                await raw._writer.wait_closed()

    async def send(self, data: bytes) -> None:
        """Write; a broker that has closed meanwhile is no failure of the test."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def read_to_end(self) -> bytes:
        """Everything until the broker closes."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                return await self._reader.read()
        return b""


def handshake(socket_type: bytes) -> bytes:
    """Greeting and READY of a stock peer."""
    codec = zmtp.Codec(socket_type)
    greeting = bytes(codec.outgoing)
    codec.outgoing.clear()
    codec.feed(greeting)
    return greeting + bytes(codec.outgoing)


class Native:
    """A native peer that may send anything as a message."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[Any] = asyncio.Queue()
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.opened = asyncio.Event()
        self.link: Any = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, port: str = "request_port", kind: bytes = b"DEALER"
    ) -> AsyncIterator[Native]:
        """Connect and shake hands."""
        native = cls()
        bus = settings.bus
        native.link = await transport.connect(bus.host, getattr(bus, port), kind, native)
        try:
            async with asyncio.timeout(10):
                await native.opened.wait()
            yield native
        finally:
            native.link.abort("the test is over")
            await native.closed

    def on_open(self, connection: Any) -> None:
        self.opened.set()

    def on_messages(self, connection: Any, messages: list[list[Buffer]]) -> None:
        for frames in messages:
            self.arrived.put_nowait(frames)

    def on_oversize(self, connection: Any, frames: list[Buffer], size_bytes: int) -> None:
        raise AssertionError("the broker sent too much")

    def on_close(self, connection: Any, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)

    async def next(self) -> Any:
        """The next native message."""
        async with asyncio.timeout(10):
            return decode(await self.arrived.get())

    async def code(self) -> str:
        """The code of the error that comes next."""
        message = await self.next()
        assert message.kind is Kind.ERROR
        return str(msgspec.msgpack.decode(message.body)["code"])

    async def until_closed(self) -> str:
        """Why the broker closed."""
        async with asyncio.timeout(10):
            return await asyncio.shield(self.closed)


@pytest.mark.parametrize("port", PORTS)
async def test_random_bytes_before_and_after_the_handshake(serve_broker: Serve, port: str) -> None:
    """60 connections of noise on each port leave the broker as it was."""
    chance = random.Random(7)
    kinds = {"request_port": b"DEALER", "publish_port": b"PUB", "subscribe_port": b"SUB", "sequenced_port": b"SUB"}
    async with serve_broker() as settings, echoing(settings) as client:
        for index in range(60):
            noise = chance.randbytes(chance.randrange(1, 3_000))
            async with Raw.open(settings, port) as raw:
                await raw.send((handshake(kinds[port]) if index % 2 else b"") + noise)
        await works(client)


@pytest.mark.parametrize("port", PORTS)
async def test_random_messages_in_valid_frames(serve_broker: Serve, port: str) -> None:
    """Noise that is framed well reaches the broker's own decoders; none of it does harm."""
    chance = random.Random(11)
    kinds = {"request_port": b"DEALER", "publish_port": b"PUB", "subscribe_port": b"SUB", "sequenced_port": b"SUB"}
    starts = [b"", b"OL", b"OL\x01", b"OL\x01\x01\x95\xc4\x10", b"{", b"\x83", b"\x01a.>", b"test.echo"]
    async with (
        serve_broker() as settings,
        echoing(settings) as client,
        Native.open(settings, port, kinds[port]) as native,
    ):
        for _ in range(500):
            frames = [
                chance.choice(starts) + chance.randbytes(chance.choice([0, 1, 10, 100, 5_000]))
                for _ in range(chance.randrange(1, 9))
            ]
            native.link.send(frames)
        native.link.flush()
        await works(client)


@pytest.mark.parametrize(
    "said",
    [b"", b"\xff", b"\xff\0\0\0\0\0\0\0\0\x7f", handshake(b"DEALER")[:63], handshake(b"DEALER")[:70]],
    ids=["nothing", "one byte", "signature", "half a greeting", "half a ready"],
)
async def test_peer_that_does_not_finish_its_handshake_is_dropped(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """After the time for it is over; meanwhile others are served."""
    async with serve_broker() as settings, echoing(settings) as client:
        monkeypatch.setattr(transport, "_HANDSHAKE_S", 0.2)
        async with Raw.open(settings, "request_port") as raw:
            await raw.send(said)
            await works(client)
            await raw.read_to_end()


async def test_http_and_tls_clients_are_dropped_at_once(serve_broker: Serve) -> None:
    """A browser that lost its way does not wait for a timeout."""
    async with serve_broker() as settings, echoing(settings) as client:
        for said in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
            async with Raw.open(settings, "request_port") as raw:
                await raw.send(said)
                await raw.read_to_end()
        await works(client)


async def test_frame_that_is_cut_short_by_the_end_of_the_connection(serve_broker: Serve) -> None:
    """Half a message is no message."""
    async with serve_broker() as settings, echoing(settings) as client:
        out: list[Buffer] = []
        zmtp.encode_message(encode(Kind.REQUEST, new_id(), "test.echo", 0, None, "x" * 1_000), out)
        whole = b"".join(out)
        for cut in (1, 5, 500, len(whole) - 1):
            async with Raw.open(settings, "request_port") as raw:
                await raw.send(handshake(b"DEALER") + whole[:cut])
        await works(client)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"OL\x02\x01\x90"], "bad_request"),
        ([b"OL\x01\x63\x90"], "bad_request"),
        ([b"OL"], "bad_request"),
        ([b"OL\x01\x01"], "bad_request"),
        ([b"OL\x01\x01\x95"], "bad_request"),
        ([b"OL\x01\x01" + b"\x91" * 10_000], "bad_request"),
        (encode(Kind.REQUEST, b"short", "test.echo"), "bad_request"),
        (encode(Kind.REQUEST, b"", "test.echo"), "bad_request"),
        ([*encode(Kind.REQUEST, new_id(), "test.echo", 0, None, 5), b"x"], "bad_request"),
        ([*encode(Kind.REQUEST, new_id(), "test.echo"), b"x", b"y"], "bad_request"),
        (encode(Kind.REQUEST, new_id(), "no subject"), "bad_request"),
        (encode(Kind.REQUEST, new_id(), "x" * 256), "too_large"),
        (encode(Kind.REQUEST, new_id(), "test.echo", 0, {"token": "x" * 9_000}), "too_large"),
        (encode(Kind.REQUEST, new_id(), "test.echo", 0, {"encoding": "json"}, {"a": 1}), "bad_request"),
        (encode(Kind.REQUEST, new_id(), "test.echo", 1), "deadline_exceeded"),
        (encode(Kind.REQUEST, new_id(), "test.echo", -(2**60)), "deadline_exceeded"),
        (encode(Kind.REQUEST, new_id(), "nobody.home", 2**62), "no_worker"),
        (encode(Kind.WELCOME, body={}), "bad_request"),
    ],
)
async def test_native_message_that_is_none_gets_an_error(serve_broker: Serve, frames: list[Buffer], code: str) -> None:
    """With the id of the message where one can be read; the connection lives on."""
    async with serve_broker() as settings, echoing(settings) as client:
        async with Native.open(settings) as native:
            native.link.send(frames)
            assert await native.code() == code
            native.link.send(encode(Kind.REQUEST, new_id(), "test.echo", 0, None, "fine"))
            assert msgspec.msgpack.decode((await native.next()).body) == "fine"
        await works(client)


async def test_json_that_is_none_is_the_workers_to_refuse(serve_broker: Serve) -> None:
    """The broker does not decode bodies; their faults come back from the worker, and traces and deadlines survive them."""
    async with serve_broker() as settings, echoing(settings) as client:
        async with Native.open(settings) as native, client.subscribe("bus.trace.>"):
            for body in (b"{", b"", b"\xff\xff", b"[" * 30_000):
                native.link.send(encode_raw(Kind.REQUEST, new_id(), "test.echo", 0, {"encoding": "json"}, body))
                message = await native.next()
                assert message.kind is Kind.ERROR
                assert msgspec.json.decode(message.body_bytes())["code"] == "bad_request"
        await works(client)


async def test_body_frame_that_is_no_msgpack_is_the_workers_to_refuse(serve_broker: Serve) -> None:
    """Also one that stands in a frame of its own."""
    async with serve_broker() as settings, echoing(settings) as client:
        async with Native.open(settings) as native:
            for body in (b"\xc1", b"\x93", b"\xc1" * 100_000):
                native.link.send([*encode(Kind.REQUEST, new_id(), "test.echo"), body])
                assert await native.code() == "bad_request"
        await works(client)


@pytest.mark.parametrize("size_bytes", [200_000, 5_000_000])
async def test_oversize_message_is_refused_with_its_size_and_skipped(settings: Settings, size_bytes: int) -> None:
    """Native and plain, on every port; the same connection goes on."""
    bus = msgspec.structs.replace(settings.bus, max_body_bytes=100_000)
    broker = Broker(msgspec.structs.replace(settings, bus=bus))
    await broker.start()
    try:
        small = settings_of(broker)
        async with echoing(small) as client:
            large = msgspec.structs.replace(small, bus=msgspec.structs.replace(small.bus, max_body_bytes=10_000_000))
            async with Client(large) as careless:
                with pytest.raises(TooLarge) as failure:
                    await careless.request("test.echo", bytes(size_bytes), timeout_s=10)
                assert failure.value.details["limit_bytes"] == 100_000
                assert await careless.request("test.echo", 1) == 1
                await careless.publish("t.large", bytes(size_bytes))
                await careless.publish("t.small", 1)
                await careless.flush()
            async with Native.open(small) as native:
                native.link.send([b"", b"test.echo", b'"' + b"x" * size_bytes + b'"'])
                native.link.send([b"", b"test.echo", b'"fine"'])
                async with asyncio.timeout(10):
                    assert (await native.arrived.get())[1] in (b"error", b"ok")
                    assert (await native.arrived.get())[1] in (b"error", b"ok")
            async with Native.open(small, "subscribe_port", b"SUB") as native:
                native.link.send([bytes(size_bytes)])
                await native.until_closed()
            await works(client)
            assert (await client.request("bus.stats")).rejected_messages >= 3
    finally:
        await broker.stop()


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"subjects": []}, "closed"),
        ({"subjects": ["a b"]}, "bad_request"),
        ({"subjects": ["a.>.b"]}, "bad_request"),
        ({"subjects": ["x" * 300]}, "bad_request"),
        ({"subjects": ["a.b"], "capacity": -1}, "bad_request"),
        ({"subjects": ["a.b"], "capacity": 2_000_000}, "bad_request"),
        ({"subjects": "a.b"}, "bad_request"),
        ({"subjects": [5]}, "bad_request"),
        ({"service": 5}, "bad_request"),
        ({"in_flight": ["text"]}, "bad_request"),
    ],
)
async def test_hostile_registration_is_refused(serve_broker: Serve, body: dict[str, Any], what: str) -> None:
    """A worker that serves nothing, or what no subject is, is not registered."""
    good: dict[str, Any] = {"service": "s", "instance": "i", "subjects": ["a.b"], "capacity": 1}
    async with serve_broker() as settings, echoing(settings) as client:
        async with Native.open(settings) as native:
            native.link.send(encode(Kind.READY, body={**good, **body}))
            if what == "closed":
                await native.until_closed()
            else:
                assert await native.code() == what
        assert {one.instance for one in (await client.request("bus.workers", {"service": "s"})).workers} == set()
        await works(client)


async def test_worker_messages_from_somebody_who_is_none(serve_broker: Serve) -> None:
    """Heartbeats and credit close the connection; replies, cancels and a bye change nothing."""
    async with serve_broker() as settings, echoing(settings) as client:
        for frames in (encode(Kind.HEARTBEAT, body={}), encode(Kind.CREDIT, body={"capacity": 1})):
            async with Native.open(settings) as native:
                native.link.send(frames)
                await native.until_closed()
        async with Native.open(settings) as native:
            for kind in (Kind.PARTIAL, Kind.FINAL, Kind.ERROR, Kind.CANCEL):
                native.link.send(encode(kind, new_id(), body={"x": 1}))
            native.link.send(encode(Kind.BYE))
            native.link.send(encode(Kind.HEARTBEAT, body=[1]))
            assert await native.code() == "bad_request"
        await works(client)


async def test_worker_that_answers_nonsense_harms_only_its_own_requests(serve_broker: Serve) -> None:
    """A reply in no encoding reaches a plain caller as `internal`, a registration twice over replaces the first."""
    async with serve_broker() as settings, echoing(settings) as client:
        async with Native.open(settings) as worker, Native.open(settings) as caller:
            ready = Ready(service="odd", instance="odd", subjects=["odd.job"], capacity=4)
            for _ in range(2):
                worker.link.send(encode(Kind.READY, body=ready))
                assert (await worker.next()).kind is Kind.WELCOME
            for kind, headers, body in (
                (Kind.FINAL, None, b"\xc1"),
                (Kind.FINAL, {"encoding": "json"}, b"{"),
                (Kind.ERROR, None, b"\x05"),
            ):
                caller.link.send([b"odd.job", b"{}"])
                request = await worker.next()
                worker.link.send([*encode(kind, request.id, "", 0, headers), body])
                async with asyncio.timeout(10):
                    frames = await caller.arrived.get()
                assert frames[0] in (b"error", b"ok")
        await works(client)


async def test_headers_that_grow_over_the_limit_on_their_way_take_no_credit(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker adds some of its own: what no worker could read then is refused, or answered by the worker."""
    async with serve_broker() as settings:
        worker = Worker("test", settings, capacity=2)

        async def echo(request: Any, call: Call) -> Any:
            return request

        worker.handle("test.echo", echo)
        await worker.start(10)
        context = zmq.asyncio.Context()
        try:
            req = context.socket(zmq.REQ)
            req.linger = 0
            req.connect(f"tcp://127.0.0.1:{settings.bus.request_port}")
            heard = []
            for size in (8_100, 8_180, 8_184, 8_186, 8_186, 9_000, 100):
                headers = msgspec.msgpack.encode({"x": "y" * size})
                for frames in (
                    [b"test.echo", msgspec.msgpack.encode({}), headers],
                    [msgspec.msgpack.encode({"subject": "test.echo", "body": {}, "headers": {"x": "y" * size}})],
                ):
                    await req.send_multipart(frames)
                    async with asyncio.timeout(10):
                        answer = b"".join(await req.recv_multipart())
                    heard.append(b"too_large" if b"too_large" in answer else b"ok")
            told: list[list[Buffer]] = []
            monkeypatch.setattr(worker, "_send", told.append)
            id = new_id()
            worker._on_messages([encode(Kind.REQUEST, id, "test.echo", 0, {"x": "y" * 9_000})])
            monkeypatch.undo()
        finally:
            context.destroy(0)
            await worker.stop(0)

    assert heard == [b"ok"] * 2 + [b"too_large"] * 10 + [b"ok"] * 2
    assert [(decode(frames).kind, decode(frames).id) for frames in told] == [(Kind.ERROR, id)]


async def test_subscriptions_outside_the_grammar_cost_nothing(serve_broker: Serve) -> None:
    """A pattern with many `>` would take exponential time to match; it is refused instead."""
    async with serve_broker() as settings, echoing(settings) as client:
        async with Native.open(settings, "subscribe_port", b"SUB") as native:
            native.link.send([b"\x01" + b">." * 60 + b"x*"])
            native.link.send([b"\x01" + b"x" * 300])
            native.link.send([b"\x07what"])
            native.link.send([b"\x01fine"])
            native.link.flush()
            subject = ".".join("a" * 100) + ".b"
            async with asyncio.timeout(10):
                await client.publish(subject, 1)
                await client.publish("fine", 1)
                assert (await native.arrived.get())[0] == b"fine"
        await works(client)


async def test_bad_events_are_counted_and_dropped(serve_broker: Serve) -> None:
    """One frame, four frames, a subject that is none, headers that are none."""
    async with serve_broker() as settings, echoing(settings) as client:
        async with Native.open(settings, "publish_port", b"PUB") as native:
            for frames in ([b"x"], [b"a", b"b", b"c", b"d"], [b"a b", b"1"], [b"\xff", b"1"], [b"a.b", b"1", b"[]"]):
                native.link.send(frames)
            await native.link.ping()
        async with asyncio.timeout(10):
            while (await client.request("bus.stats")).rejected_messages < 5:
                await asyncio.sleep(0.01)
        await works(client)


async def test_five_hundred_idle_connections_slow_nobody_and_cost_little(serve_broker: Serve) -> None:
    """Half of them have greeted; the broker's memory grows by kilobytes each, not by buffers."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 2_000:
        pytest.skip(f"this system allows {most} open files")
    async with serve_broker() as settings, echoing(settings) as client, contextlib.AsyncExitStack() as stack:
        await works(client)
        before = rss_bytes()
        for index in range(500):
            raw = await stack.enter_async_context(Raw.open(settings, PORTS[index % 4]))
            if index % 2:
                await raw.send(handshake([b"DEALER", b"PUB", b"SUB", b"SUB"][index % 4]))
        await works(client)

        assert rss_bytes() - before < 60 * 2**20


async def test_flood_of_bad_messages_leaves_memory_where_it_was(serve_broker: Serve) -> None:
    """50,000 refused messages: no list of them, no log line for each."""
    async with serve_broker() as settings, echoing(settings) as client:
        async with Native.open(settings) as native:
            before = rss_bytes()
            for index in range(50):
                for _ in range(1_000):
                    native.link.send([b"OL\x01\x01garbage" + bytes(200)])
                await native.link.ping()
                while native.arrived.qsize():
                    native.arrived.get_nowait()
                assert index < 50
            assert rss_bytes() - before < 60 * 2**20
        await works(client)


@pytest.mark.parametrize("taken", PORTS)
async def test_port_taken_names_the_settings_key(settings: Settings, taken: str) -> None:
    """The message says which key to change; nothing of the half-started broker stays behind."""
    blocker = await asyncio.start_server(lambda reader, writer: None, settings.bus.host, 0)
    port = blocker.sockets[0].getsockname()[1]
    broker = Broker(msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, **{taken: port})))
    try:
        with pytest.raises(AddressInUse, match=rf"bus\.{taken}") as failure:
            await broker.start()
        assert failure.value.key == f"bus.{taken}"
        assert str(port) in str(failure.value)
    finally:
        blocker.close()
        await blocker.wait_closed()
    again = Broker(settings)
    await again.start()
    await again.stop()


async def test_no_broker_is_said_with_address_and_advice(settings: Settings) -> None:
    """A client without a broker ends at its deadline, saying where it looked."""
    bus = msgspec.structs.replace(settings.bus, request_port=9, reconnect_max_s=0.05)
    async with Client(msgspec.structs.replace(settings, bus=bus)) as client:
        with pytest.raises(DeadlineExceeded, match="is it running"):
            await client.request("bus.ping", timeout_s=0.3)
        with pytest.raises(BusError):
            await client.connect(0.1)
