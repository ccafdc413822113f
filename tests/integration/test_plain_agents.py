"""Agents with a stock pyzmq and the msgpack package: every plain form gets exactly the bytes it was promised."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgpack
import pytest
import zmq

from bus.client import Client
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.errors import NotFound

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

TIMEOUT_MS = 5_000


async def _echo(request: Any, call: Call) -> Any:
    return request


async def _fail(request: Any, call: Call) -> Any:
    raise NotFound("no such thing", name="x")


async def _words(request: Any, call: Call) -> Any:
    for word in ("one ", "two"):
        await call.partial({"text": word})
    return {"text": "", "count": 2}


async def _deadline(request: Any, call: Call) -> Any:
    return {"deadline_at": call.deadline_at, "priority": call.headers.get("priority"), "attempt": call.attempt}


async def _hang(request: Any, call: Call) -> Any:
    await asyncio.Event().wait()


@asynccontextmanager
async def serving(serve_broker: Serve) -> AsyncIterator[Settings]:
    """A broker with one worker of odd jobs."""
    async with serve_broker() as settings:
        worker = Worker("test", settings, instance="one")
        for subject, handler in {
            "test.echo": _echo,
            "test.fail": _fail,
            "test.words": _words,
            "test.deadline": _deadline,
            "test.hang": _hang,
        }.items():
            worker.handle(subject, handler)
        await worker.start(10)
        try:
            yield settings
        finally:
            await worker.stop(drain_s=0)


class Agent:
    """One stock socket; used from a thread, as its program would be another process."""

    def __init__(self, kind: int, port: int, **options: int) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 0
        self.socket.rcvtimeo = TIMEOUT_MS
        self.socket.sndtimeo = TIMEOUT_MS
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def __enter__(self) -> Any:
        return self.socket

    def __exit__(self, *error: object) -> None:
        self.socket.close()
        self._context.term()


async def ask(port: int, *requests: list[bytes], kind: int = zmq.REQ) -> list[list[bytes]]:
    """The reply to each request, from one socket, one after the other."""

    def run() -> list[list[bytes]]:
        replies = []
        with Agent(kind, port) as socket:
            for frames in requests:
                socket.send_multipart(frames)
                replies.append(socket.recv_multipart())
        return replies

    return await asyncio.to_thread(run)


BODY = {"a": [1, 2.5, None, True], "ü": "ö"}
JSON = json.dumps(BODY).encode()
PACKED = msgpack.packb(BODY)


async def test_req_gets_ok_and_the_body_in_its_own_encoding(serve_broker: Serve) -> None:
    """Two frames, three frames; JSON in, JSON out; msgpack in, msgpack out."""
    async with serving(serve_broker) as settings:
        replies = await ask(
            settings.bus.request_port,
            [b"test.echo", JSON],
            [b"test.echo", PACKED],
            [b"test.echo", JSON, b'{"timeout_s": 5}'],
            [b"test.echo", PACKED, msgpack.packb({"timeout_s": 5})],
            [b"test.echo", b'"text"'],
            [b"test.echo", b"null"],
        )

    assert [status for status, _ in replies] == [b"ok"] * 6
    bodies = [body for _, body in replies]
    assert [json.loads(bodies[index]) for index in (0, 2, 4)] == [BODY, BODY, "text"]
    assert [msgpack.unpackb(bodies[index]) for index in (1, 3)] == [BODY, BODY]


async def test_req_gets_error_with_code_message_and_details(serve_broker: Serve) -> None:
    """From a handler and from the broker itself, in the encoding of the request."""
    async with serving(serve_broker) as settings:
        replies = await ask(
            settings.bus.request_port,
            [b"test.fail", b"{}"],
            [b"test.fail", msgpack.packb({})],
            [b"nobody.home", b"{}"],
            [b"nobody.home", msgpack.packb({})],
        )

    assert [status for status, _ in replies] == [b"error"] * 4
    assert json.loads(replies[0][1]) == {"code": "not_found", "message": "no such thing", "details": {"name": "x"}}
    assert msgpack.unpackb(replies[1][1]) == json.loads(replies[0][1])
    assert json.loads(replies[2][1])["code"] == msgpack.unpackb(replies[3][1])["code"] == "no_worker"


async def test_one_frame_form_is_a_map_with_status_and_body(serve_broker: Serve) -> None:
    """send_json / recv_json, and the same map in msgpack."""
    async with serving(serve_broker) as settings:
        replies = await ask(
            settings.bus.request_port,
            [json.dumps({"subject": "test.echo", "body": BODY, "headers": {"timeout_s": 3}}).encode()],
            [json.dumps({"subject": "test.fail"}).encode()],
            [msgpack.packb({"subject": "test.echo", "body": BODY})],
            [msgpack.packb({"subject": "test.fail", "body": None})],
        )

    assert [len(frames) for frames in replies] == [1] * 4
    decoded = [json.loads(replies[0][0]), json.loads(replies[1][0]), *(msgpack.unpackb(one[0]) for one in replies[2:])]
    assert decoded[0] == decoded[2] == {"status": "ok", "body": BODY}
    assert decoded[1] == decoded[3]
    assert (decoded[1]["status"], decoded[1]["body"]["code"]) == ("error", "not_found")


async def test_dealer_with_and_without_delimiter_gets_back_what_it_sent(serve_broker: Serve) -> None:
    """The empty frame comes back where it was sent, and only there."""
    async with serving(serve_broker) as settings:
        with_delimiter, without, single = await ask(
            settings.bus.request_port,
            [b"", b"test.echo", JSON],
            [b"test.echo", JSON],
            [json.dumps({"subject": "test.echo", "body": 1}).encode()],
            kind=zmq.DEALER,
        )

    assert with_delimiter[:2] == [b"", b"ok"]
    assert without[0] == b"ok"
    assert json.loads(single[0]) == {"status": "ok", "body": 1}


async def test_req_gets_partial_replies_gathered_into_one(serve_broker: Serve) -> None:
    """A REQ socket can read one reply only, so it gets the whole."""
    async with serving(serve_broker) as settings:
        ((status, body),) = await ask(settings.bus.request_port, [b"test.words", b"{}"])

    assert (status, json.loads(body)) == (b"ok", {"text": "one two", "count": 2})


async def test_dealer_with_the_stream_header_gets_every_piece(serve_broker: Serve) -> None:
    """[b"partial", body] for each, then [b"ok", body]; in the one-frame form the status says it."""

    def run(port: int) -> tuple[list[Any], list[Any]]:
        with Agent(zmq.DEALER, port) as socket:
            socket.send_multipart([b"test.words", b"{}", b'{"stream": true}'])
            framed = [socket.recv_multipart() for _ in range(3)]
            socket.send_json({"subject": "test.words", "headers": {"stream": True}})
            return framed, [socket.recv_json() for _ in range(3)]

    async with serving(serve_broker) as settings:
        framed, single = await asyncio.to_thread(run, settings.bus.request_port)

    assert [status for status, _ in framed] == [b"partial", b"partial", b"ok"]
    assert [json.loads(body)["text"] for _, body in framed] == ["one ", "two", ""]
    assert [one["status"] for one in single] == ["partial", "partial", "ok"]
    assert [one["body"]["text"] for one in single] == ["one ", "two", ""]


async def test_headers_reach_the_handler_and_internal_ones_cannot_be_forged(serve_broker: Serve) -> None:
    """`timeout_s` becomes the deadline; `priority` passes; `attempt` and `gather` are the broker's."""
    async with serving(serve_broker) as settings:
        header = {"timeout_s": 9, "priority": "batch", "attempt": 7, "gather": False, "encoding": "msgpack"}
        ((status, body),) = await ask(settings.bus.request_port, [b"test.deadline", b"{}", json.dumps(header).encode()])

    seen = json.loads(body)
    assert status == b"ok"
    assert seen["deadline_at"] > 0
    assert (seen["priority"], seen["attempt"]) == ("batch", 1)


async def test_timeout_header_is_kept_to(serve_broker: Serve) -> None:
    """A handler that hangs costs its caller that long and no longer."""
    async with serving(serve_broker) as settings:
        hung, fine = await ask(
            settings.bus.request_port, [b"test.hang", b"{}", b'{"timeout_s": 0.2}'], [b"test.echo", b"1"]
        )

    assert json.loads(hung[1])["code"] == "deadline_exceeded"
    assert fine == [b"ok", b"1"]


@pytest.mark.parametrize(
    ("frames", "code", "field"),
    [
        ([b"test.echo", b"hello"], "bad_request", "body"),
        ([b"test.echo", b"\x93"], "bad_request", "body"),
        ([b"test.echo", b'{"a": '], "bad_request", "body"),
        ([b"test.echo", b"[" * 50_000], "bad_request", "body"),
        ([b"test.echo", b"\x91" * 50_000], "bad_request", "body"),
        ([b"te st", b"{}"], "bad_request", "subject"),
        ([b"\xff\xfe", b"{}"], "bad_request", "subject"),
        ([b"x" * 300, b"{}"], "bad_request", "subject"),
        ([b"test.*", b"{}"], "bad_request", "subject"),
        ([b"test.echo", b"{}", b"[1]"], "bad_request", "headers"),
        ([b"test.echo", b"{}", b'{"a": {"b": 1}}'], "bad_request", "headers"),
        ([b"test.echo", b"{}", b'{"timeout_s": "soon"}'], "bad_request", "headers.timeout_s"),
        ([b"test.echo", b"{}", b'{"timeout_s": -1}'], "bad_request", "headers.timeout_s"),
        ([b"test.echo", b"{}", b'{"deadline_ms": true}'], "bad_request", "headers.deadline_ms"),
        ([b"test.echo", b"{}", b'{"deadline_ms": 1}'], "deadline_exceeded", "deadline_ms"),
        ([b"test.echo", b"{}", b"x" * 9_000], "too_large", "headers"),
        ([b"test.echo", b"{}", b"{}", b"{}"], "bad_request", None),
        ([b"{}"], "bad_request", None),
        ([b"hello"], "bad_request", None),
        ([b'{"subject": 5}'], "bad_request", None),
        ([b"[[[[" * 10_000], "bad_request", None),
        ([b"", b""], "bad_request", "subject"),
    ],
)
async def test_malformed_request_gets_an_error_and_the_next_one_works(
    serve_broker: Serve, frames: list[bytes], code: str, field: str | None
) -> None:
    """Never silence, never a lost credit: the same socket goes on."""
    async with serving(serve_broker) as settings:
        worse, good = await ask(settings.bus.request_port, frames, [b"test.echo", b"[1]"])
        stats = await _stats(settings)

    error = _error(worse)
    assert error["code"] == code, error
    assert error["details"].get("field") == field
    assert good == [b"ok", b"[1]"]
    assert stats.in_flight <= 1


def _error(frames: list[bytes]) -> Any:
    """The error body of a reply of any form."""
    last = frames[-1]
    body = json.loads(last) if last[:1] == b"{" else msgpack.unpackb(last)
    return body["body"] if len(frames) == 1 else body


async def _stats(settings: Settings) -> Any:
    async with Client(settings) as client:
        return await client.request("bus.stats")


async def test_two_hundred_bad_bodies_leave_the_worker_with_all_its_credit(serve_broker: Serve) -> None:
    """A body that is neither JSON nor msgpack never reaches a worker that could not answer it."""
    async with serving(serve_broker) as settings:
        replies = await ask(settings.bus.request_port, *[[b"test.echo", b"hello"]] * 200, [b"test.echo", b"[1]"])
        stats = await _stats(settings)

    assert replies[-1] == [b"ok", b"[1]"]
    assert stats.in_flight <= 1


async def test_large_body_passes_in_both_encodings(serve_broker: Serve) -> None:
    """Past 64 KiB a body has a frame of its own on its way through."""
    text = json.dumps("x" * 300_000).encode()
    async with serving(serve_broker) as settings:
        in_json, in_msgpack, single = await ask(
            settings.bus.request_port,
            [b"test.echo", text],
            [b"test.echo", msgpack.packb(b"\x01" * 300_000)],
            [json.dumps({"subject": "test.echo", "body": "y" * 300_000}).encode()],
        )

    assert in_json == [b"ok", text]
    assert msgpack.unpackb(in_msgpack[1]) == b"\x01" * 300_000
    assert json.loads(single[0])["body"] == "y" * 300_000


# Publish and subscribe ------------------------------------------------------------------------------------------


def _subscriber(port: int, *topics: bytes) -> Agent:
    agent = Agent(zmq.SUB, port)
    for topic in topics:
        agent.socket.setsockopt(zmq.SUBSCRIBE, topic)
    return agent


async def _until_heard(settings: Settings, count: int) -> None:
    """Wait until the broker knows that many subscriptions."""
    async with Client(settings) as client, asyncio.timeout(10):
        while sum(len(one.patterns) for one in (await client.request("bus.stats")).subscribers) < count:
            await asyncio.sleep(0.01)


async def test_sub_on_the_plain_port_gets_exactly_subject_and_body(serve_broker: Serve) -> None:
    """Byte for byte what the publisher sent; on the sequenced port a meta frame stands between."""
    async with serving(serve_broker) as settings:
        bus = settings.bus
        plain, sequenced = _subscriber(bus.subscribe_port, b"t."), _subscriber(bus.sequenced_port, b"t.")
        with plain as plain_socket, sequenced as sequenced_socket, Agent(zmq.PUB, bus.publish_port) as publisher:
            await _until_heard(settings, 2)
            await asyncio.to_thread(_publish_until_heard, publisher, plain_socket, sequenced_socket)
            publisher.send_multipart([b"t.x", JSON])
            publisher.send_multipart([b"t.x", b"not json", b'{"source": "agent 7", "id": "e1"}'])
            two = [await asyncio.to_thread(plain_socket.recv_multipart) for _ in range(2)]
            three = [await asyncio.to_thread(sequenced_socket.recv_multipart) for _ in range(2)]

    assert two == [[b"t.x", JSON], [b"t.x", b"not json"]]
    assert [(subject, body) for subject, _, body in three] == [(b"t.x", JSON), (b"t.x", b"not json")]
    first, second = (msgpack.unpackb(meta) for _, meta, _ in three)
    assert second["seq"] == first["seq"] + 1
    assert (second["source"], second["id"]) == ("agent 7", "e1")
    assert first["at"] <= second["at"]
    assert first["id"] != second["id"]


def _publish_until_heard(publisher: Any, *subscribers: Any) -> None:
    """A PUB socket drops what it sends before its connection stands: knock until everybody answers."""
    for subscriber in subscribers:
        while True:
            publisher.send_multipart([b"t.knock", b"0"])
            if subscriber.poll(50):
                break
    publisher.send_multipart([b"t.knock.end", b"0"])
    for subscriber in subscribers:
        while subscriber.recv_multipart()[0] != b"t.knock.end":
            pass


@pytest.mark.parametrize(
    ("topics", "heard"),
    [
        ([b""], [b"a.b", b"a.b.c", b"ab.c", b"x"]),
        ([b"a."], [b"a.b", b"a.b.c"]),
        ([b"a"], [b"a.b", b"a.b.c", b"ab.c"]),
        ([b"a.b"], [b"a.b", b"a.b.c"]),
        ([b"x", b"ab"], [b"ab.c", b"x"]),
    ],
)
async def test_sub_hears_the_prefixes_it_subscribed(
    serve_broker: Serve, topics: list[bytes], heard: list[bytes]
) -> None:
    """As with any ZeroMQ publisher."""
    async with serving(serve_broker) as settings:
        with _subscriber(settings.bus.subscribe_port, *topics, b"the.end") as socket:
            assert await _heard(settings, socket, len(topics) + 1) == heard


@pytest.mark.parametrize(
    ("topics", "heard"),
    [
        ([b"a.*"], [b"a.b"]),
        ([b"a.>"], [b"a.b", b"a.b.c"]),
        ([b"*.c", b"x"], [b"ab.c", b"x"]),
        ([b">"], [b"a.b", b"a.b.c", b"ab.c", b"x"]),
    ],
)
async def test_xsub_hears_the_patterns_it_subscribed(
    serve_broker: Serve, topics: list[bytes], heard: list[bytes]
) -> None:
    """A wildcard makes a topic a pattern; a SUB socket would filter by prefix once more on its own side, XSUB does not."""
    async with serving(serve_broker) as settings:
        with Agent(zmq.XSUB, settings.bus.subscribe_port) as socket:
            for topic in (*topics, b"the.end"):
                socket.send(b"\x01" + topic)
            assert await _heard(settings, socket, len(topics) + 1) == heard


async def _heard(settings: Settings, socket: Any, count: int) -> list[bytes]:
    """What a socket with `count` subscriptions hears of five events."""
    async with Client(settings) as client:
        await _until_heard(settings, count)
        for subject in ("a.b", "a.b.c", "ab.c", "x", "the.end"):
            await client.publish(subject, 1)
        got = []
        while not got or got[-1] != b"the.end":
            got.append((await asyncio.to_thread(socket.recv_multipart))[0])
    return [subject for subject in got if not subject.startswith(b"bus.")][:-1]


async def test_unsubscribed_topic_is_heard_no_more(serve_broker: Serve) -> None:
    """Each subscription counts, as in ZeroMQ: twice in, twice out."""
    async with serving(serve_broker) as settings, Client(settings) as client:
        with _subscriber(settings.bus.subscribe_port, b"a.", b"b", b"end") as socket:
            await _until_heard(settings, 3)
            socket.setsockopt(zmq.UNSUBSCRIBE, b"a.")
            async with asyncio.timeout(10):
                while sum(len(one.patterns) for one in (await client.request("bus.stats")).subscribers) != 2:
                    await asyncio.sleep(0.01)
            for subject in ("a.b", "b", "end"):
                await client.publish(subject, 1)
            got = [(await asyncio.to_thread(socket.recv_multipart))[0] for _ in range(2)]

    assert got == [b"b", b"end"]


@pytest.mark.parametrize(
    ("kind", "port"),
    [(zmq.PUB, "request_port"), (zmq.REQ, "publish_port"), (zmq.DEALER, "subscribe_port"), (zmq.PUB, "sequenced_port")],
)
async def test_wrong_socket_type_is_refused_at_the_handshake(serve_broker: Serve, kind: int, port: str) -> None:
    """The agent's library sees a failed handshake instead of a connection on which nothing ever happens."""

    def run(number: int) -> list[int]:
        context = zmq.Context()
        socket = context.socket(kind)
        socket.linger = 0
        monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
        )
        monitor.rcvtimeo = TIMEOUT_MS
        socket.connect(f"tcp://127.0.0.1:{number}")
        event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
        socket.disable_monitor()
        monitor.close(0)
        socket.close()
        context.term()
        return [event]

    async with serving(serve_broker) as settings:
        (event,) = await asyncio.to_thread(run, getattr(settings.bus, port))
        assert event in (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_DISCONNECTED)
        assert await ask(settings.bus.request_port, [b"test.echo", b"1"]) == [[b"ok", b"1"]]


async def test_heartbeats_of_libzmq_are_answered(serve_broker: Serve) -> None:
    """An agent with ZMQ_HEARTBEAT_IVL keeps its connection although nothing is said for long."""

    def run(port: int) -> list[list[bytes]]:
        options = {"HEARTBEAT_IVL": 50, "HEARTBEAT_TIMEOUT": 100, "HEARTBEAT_TTL": 300}
        with Agent(zmq.DEALER, port, **options) as socket:
            monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            socket.send_multipart([b"test.echo", b"1"])
            replies = [socket.recv_multipart()]
            assert not monitor.poll(600), "the agent's library gave the connection up"
            socket.send_multipart([b"test.echo", b"2"])
            replies.append(socket.recv_multipart())
            socket.disable_monitor()
            monitor.close(0)
            return replies

    async with serving(serve_broker) as settings:
        assert await asyncio.to_thread(run, settings.bus.request_port) == [[b"ok", b"1"], [b"ok", b"2"]]


async def test_req_peer_that_disconnects_mid_request_harms_nobody(serve_broker: Serve) -> None:
    """Its handler is cancelled, its credit returns, the next agent is served."""

    def leave(port: int) -> None:
        with Agent(zmq.REQ, port) as socket:
            socket.send_multipart([b"test.hang", b"{}"])
            socket.poll(100)

    async with serving(serve_broker) as settings:
        await asyncio.gather(*(asyncio.to_thread(leave, settings.bus.request_port) for _ in range(5)))
        async with asyncio.timeout(10):
            while (await _stats(settings)).in_flight > 1:
                await asyncio.sleep(0.02)
        assert await ask(settings.bus.request_port, [b"test.echo", b"1"]) == [[b"ok", b"1"]]


async def test_one_dealer_may_have_many_requests_in_flight(serve_broker: Serve) -> None:
    """500 at once on one socket, all answered."""

    def run(port: int) -> set[int]:
        with Agent(zmq.DEALER, port) as socket:
            for index in range(500):
                socket.send_multipart([b"test.echo", str(index).encode()])
            return {int(socket.recv_multipart()[1]) for _ in range(500)}

    async with serving(serve_broker) as settings:
        assert await asyncio.to_thread(run, settings.bus.request_port) == set(range(500))
