"""The encrypted bus over real sockets: our ends with each other and with libzmq's, who is let in, and who is told why."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

import broker.server
from broker.server import Broker
from bus import transport, z85
from bus.client import BrokerUnreachable, Client
from bus.curve import CurveClient, KeyPair, fingerprint, key_pair
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.envelope import Buffer
from tests.curve_house import house_of

TIMEOUT_S = 10.0


async def echo(request: Any, call: Call) -> Any:
    """What came goes back."""
    return request


@asynccontextmanager
async def echoing(settings: Settings) -> AsyncIterator[None]:
    """A worker that answers `test.echo`."""
    worker = Worker("test", settings)
    worker.handle("test.echo", echo)
    await worker.start(TIMEOUT_S)
    try:
        yield
    finally:
        await worker.stop(0)


@asynccontextmanager
async def sockets() -> AsyncIterator[Callable[..., zmq.asyncio.Socket]]:
    """Makes sockets of libzmq, encrypted where keys are given."""
    context = zmq.asyncio.Context()

    def make(kind: int, own: KeyPair | None = None, server_key: bytes = b"") -> zmq.asyncio.Socket:
        made = context.socket(kind)
        made.linger = 0
        if own is not None:
            made.curve_publickey, made.curve_secretkey = (z85.encode(key).encode() for key in own)
            if server_key:
                made.curve_serverkey = z85.encode(server_key).encode()
            else:
                made.curve_server = True
        return made

    try:
        yield make
    finally:
        context.destroy(0)


async def soon(work: Any) -> Any:
    """The result of something that must not take long."""
    async with asyncio.timeout(TIMEOUT_S):
        return await work


async def why_not(settings: Settings) -> str:
    """What a client is told that gets no connection."""
    async with Client(settings, name="other") as client:
        with pytest.raises(BrokerUnreachable) as caught:
            await client.connect(0.3)
    return caught.value.message


# Our own ends ---------------------------------------------------------------------------------------------------


async def test_machines_meet_at_one_broker_in_clear_here_and_encrypted_from_elsewhere(
    settings: Settings, tmp_path: Path
) -> None:
    """Requests both ways, bodies of every size, events, and a subscription."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        await stack.enter_async_context(echoing(house.elsewhere))
        here = await stack.enter_async_context(Client(house.here, name="here"))
        there = await stack.enter_async_context(Client(house.elsewhere, name="there"))

        for client in (here, there):
            for size in (1, 70_000, 5_000_000):
                body = b"\xa5" * size
                assert await soon(client.request("test.echo", {"a": body})) == {"a": body}
        async with there.subscribe("test.>") as events:
            await here.publish("test.said", {"by": "here"})
            await there.publish("test.said", {"by": "there"})
            heard = {(await soon(anext(events))).body["by"] for _ in range(2)}

    assert heard == {"here", "there"}


async def test_each_reason_for_no_connection_is_told_apart(settings: Settings, tmp_path: Path) -> None:
    """No key here, none trusted for the broker, another one, not trusted there, nobody there, a port in clear."""
    async with house_of(settings, tmp_path, is_traded=False) as house:
        keys = house.keys_elsewhere
        assert "this machine has no key" in await why_not(house.elsewhere)
        own = keys.make()
        assert "no key of 'mainpc' is trusted here" in await why_not(house.elsewhere)
        keys.trust("mainpc", key_pair().public)
        assert "the server there has another key" in await why_not(house.elsewhere)
        keys.trust("mainpc", house.keys.own().public)
        assert f"the server does not trust our key {fingerprint(own.public)}" in await why_not(house.elsewhere)

        bus = house.elsewhere.bus
        in_clear = msgspec.structs.replace(bus, host="127.0.0.1")
        assert "'NULL', only CURVE" in await why_not(msgspec.structs.replace(house.elsewhere, bus=in_clear))
        nobody = msgspec.structs.replace(bus, host="127.0.0.3")
        assert "Connection refused" in await why_not(msgspec.structs.replace(house.elsewhere, bus=nobody))
        no_key = msgspec.structs.replace(bus, server_key="")
        assert "'CURVE', only NULL" in await why_not(msgspec.structs.replace(house.elsewhere, bus=no_key))


async def test_key_counts_from_when_it_is_trusted_until_it_is_trusted_no_more(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a restart of anything: who waits is let in, who is inside is put out, and a refusal is one line a minute."""
    monkeypatch.setattr(broker.server, "_KEEP_ALIVE_S", 0.05)
    caplog.set_level(logging.WARNING, "olympus.broker")
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        public = house.keys_elsewhere.own().public
        house.keys.untrust("pc2")
        await why_not(house.elsewhere)
        await why_not(house.elsewhere)
        client = await stack.enter_async_context(Client(house.elsewhere, name="there"))
        waiting = asyncio.ensure_future(client.request("bus.ping", timeout_s=TIMEOUT_S))

        house.keys.trust("pc2", public)
        await soon(waiting)
        link = client._requests.link
        assert link is not None
        house.keys.untrust("pc2")
        async with asyncio.timeout(TIMEOUT_S):
            await client._requests._down.wait()

    refusals = [record for record in caplog.records if record.getMessage() == "key refused"]
    assert [record.__dict__["fingerprint"] for record in refusals] == [fingerprint(public)]


async def test_broker_without_its_key_does_not_start(settings: Settings) -> None:
    """And says what to type."""
    listening = msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, listen=("127.0.0.2",)))
    running = Broker(listening)

    with pytest.raises(ConnectionError, match="olympus keys make"):
        await running.start()


async def test_nonsense_on_the_encrypted_port_disturbs_nobody(settings: Settings, tmp_path: Path) -> None:
    """Bytes of any kind, a handshake that stops half way, and a greeting in clear; who is connected goes on."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        await stack.enter_async_context(echoing(house.elsewhere))
        client = await stack.enter_async_context(Client(house.elsewhere, name="there"))
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE".ljust(23, b"\0") + bytes(32)
        for hostile in (
            b"GET / HTTP/1.1\r\n\r\n",
            greeting + b"\x04\xc8\x05HELLO" + b"\1\0" + bytes(192),
            greeting + b"\x00\x05hello",
            greeting + b"\x06" + (2**60).to_bytes(8, "big") + b"x",
            greeting.replace(b"CURVE", b"PLAIN"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.2", house.elsewhere.bus.request_port)
            writer.write(hostile)
            # The broker ends the connection, after what it had to say itself.
            await soon(reader.read())
            writer.close()

        assert await soon(client.request("test.echo", {"still": "there"})) == {"still": "there"}


async def test_flood_of_half_open_connections_pushes_out_its_own(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest goes when too many have not finished their handshake; who has is not among them."""
    monkeypatch.setattr(transport, "_HANDSHAKES_MAX", 4)
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        before = await stack.enter_async_context(Client(house.elsewhere, name="before"))
        await soon(before.request("bus.ping"))
        opened = []
        for _ in range(6):
            reader, writer = await asyncio.open_connection("127.0.0.2", house.elsewhere.bus.request_port)
            stack.callback(writer.close)
            # The greeting: it is taken in.
            await soon(reader.readexactly(64))
            opened.append(reader)

        for reader in opened[:2]:
            with suppress(ConnectionResetError):
                assert await soon(reader.read()) == b""
        after = await stack.enter_async_context(Client(house.elsewhere, name="after"))
        await soon(after.request("bus.ping"))
        await soon(before.request("bus.ping"))


async def test_broken_list_of_keys_does_not_end_the_watch_over_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is trusted while it cannot be read; the broker goes on, and so does who comes when it can be again."""
    monkeypatch.setattr(broker.server, "_KEEP_ALIVE_S", 0.05)
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        client = await stack.enter_async_context(Client(house.elsewhere, name="there"))
        await soon(client.request("bus.ping"))
        (house.keys.folder / "trusted" / "attic").mkdir()
        async with asyncio.timeout(TIMEOUT_S):
            await client._requests._down.wait()

        (house.keys.folder / "trusted" / "attic").rmdir()
        await soon(client.request("bus.ping", timeout_s=TIMEOUT_S))
        house.keys.untrust("pc2")
        async with asyncio.timeout(TIMEOUT_S):
            await client._requests._down.wait()


# With libzmq ----------------------------------------------------------------------------------------------------


async def test_libzmq_agents_use_the_encrypted_ports(settings: Settings, tmp_path: Path) -> None:
    """A REQ, a DEALER that sends heartbeats, a PUB and a SUB with CURVE, as any agent has them."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        await stack.enter_async_context(echoing(house.here))
        make = await stack.enter_async_context(sockets())
        bus, own, server_key = house.elsewhere.bus, house.keys_elsewhere.own(), house.keys.own().public
        req, dealer, pub, sub = (make(kind, own, server_key) for kind in (zmq.REQ, zmq.DEALER, zmq.PUB, zmq.SUB))
        req.connect(f"tcp://127.0.0.2:{bus.request_port}")
        for size in (5, 300, 3_000_000):
            await req.send_multipart([b"test.echo", json.dumps("x" * size).encode()])
            status, reply = await soon(req.recv_multipart())
            assert status == b"ok" and json.loads(reply) == "x" * size

        dealer.heartbeat_ivl = 20
        dealer.heartbeat_timeout = 2_000
        dealer.connect(f"tcp://127.0.0.2:{bus.request_port}")
        await dealer.send_multipart([b"", b"test.echo", b"1"])
        assert await soon(dealer.recv_multipart()) == [b"", b"ok", b"1"]

        sub.connect(f"tcp://127.0.0.2:{bus.subscribe_port}")
        sub.subscribe(b"test.")
        pub.connect(f"tcp://127.0.0.2:{bus.publish_port}")
        heard = asyncio.ensure_future(sub.recv_multipart())
        while not heard.done():
            # libzmq drops what is published before the subscription has come.
            await pub.send_multipart([b"test.said", b'{"a":1}'])
            await asyncio.wait({heard}, timeout=0.02)
        assert await heard == [b"test.said", b'{"a":1}']


async def test_libzmq_client_with_an_untrusted_key_hears_that_it_failed(settings: Settings, tmp_path: Path) -> None:
    """Its monitor reports a failed authentication with status 400, as from any ZAP server."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(house_of(settings, tmp_path))
        make = await stack.enter_async_context(sockets())
        stranger = make(zmq.DEALER, key_pair(), house.keys.own().public)
        monitor = stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        stranger.connect(f"tcp://127.0.0.2:{house.elsewhere.bus.request_port}")

        event, _ = await soon(monitor.recv_multipart())

        assert int.from_bytes(event[:2], "little") == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        assert int.from_bytes(event[2:6], "little") == 400
        stranger.disable_monitor()


class _Heard:
    """What a connection tells."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[str] = loop.create_future()
        self.messages: asyncio.Queue[list[bytes]] = asyncio.Queue()

    def on_open(self, connection: transport.Link) -> None:
        """The handshake is done."""
        self.opened.set_result(None)

    def on_messages(self, connection: transport.Link, messages: list[list[Any]]) -> None:
        """Keep them."""
        for frames in messages:
            self.messages.put_nowait([bytes(frame) for frame in frames])

    def on_oversize(self, connection: transport.Link, frames: list[Any], size_bytes: int) -> None:
        """Not here."""

    def on_close(self, connection: transport.Link, reason: str) -> None:
        """Keep why."""
        self.closed.set_result(reason)


async def test_our_client_speaks_to_a_libzmq_server() -> None:
    """Frames of all sizes, empty ones too, PING, and what its silence means when it has another key."""
    own, server = key_pair(), key_pair()
    async with sockets() as make:
        router = make(zmq.ROUTER, server)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        heard = _Heard()
        codec = partial(CurveClient, own=own, server_key=server.public)
        connection = await transport.connect("127.0.0.1", port, b"DEALER", heard, codec=codec)
        await soon(heard.opened)
        frames: list[Buffer] = [b"a", b"", b"b" * 255, b"c" * 100_000]

        connection.send(frames)
        identity, *arrived = await soon(router.recv_multipart())
        await router.send_multipart([identity, *reversed(frames)])

        assert arrived == frames
        assert await soon(heard.messages.get()) == frames[::-1]
        await soon(connection.ping())
        connection.abort("done")

        wrong = _Heard()
        codec = partial(CurveClient, own=own, server_key=own.public)
        await transport.connect("127.0.0.1", port, b"DEALER", wrong, codec=codec)
        assert "most likely it has another key" in await soon(wrong.closed)
