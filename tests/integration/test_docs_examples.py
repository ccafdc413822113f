"""Every example of docs/examples runs as it stands against a real broker, and prints what the documents promise."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from bus.client import Client
from bus.settings import Settings, environment_name
from bus.worker import Call, Worker
from schemas.bodies.model import Chat, Generation, GenerationPart, Timings, Usage
from schemas.errors import Internal, Unprocessable
from workers.memory.service import service

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
WAIT_S = 20.0

Serve = Callable[..., AbstractAsyncContextManager[Settings]]


async def chat(request: Chat, call: Call) -> Generation:
    """Stands in for a model: two pieces of text."""
    for text in ("Hello! ", "Good day."):
        await call.partial(GenerationPart(text=text, token_ids=[1]))
    return Generation(
        model="stand-in",
        text="Hello! Good day.",
        token_ids=[1, 1],
        finish_reason="stop",
        usage=Usage(prompt_tokens=1, completion_tokens=2),
        timings=Timings(prompt_s=0, generate_s=0, first_token_s=0, tokens_per_s=0),
    )


@asynccontextmanager
async def house(serve_broker: Serve) -> AsyncIterator[Settings]:
    """A broker with the memory service and a stand-in for a model."""
    async with serve_broker() as settings:
        model = Worker("model", settings)
        model.handle("model.chat", chat)
        async with service(settings) as memory:
            try:
                await memory.start(WAIT_S)
                await model.start(WAIT_S)
                yield settings
            finally:
                await memory.stop(drain_s=0)
                await model.stop(drain_s=0)


@asynccontextmanager
async def example(name: str, settings: Settings, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """The example as a process of its own, ended with the block whatever happens."""
    ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    environment = {
        **os.environ,
        **{environment_name(f"bus.{port}"): str(getattr(settings.bus, port)) for port in ports},
        "OLYMPUS_HOME": settings.home,
        "PYTHONPATH": str(ROOT),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLES / name), *map(str, arguments), env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def output(name: str, settings: Settings, *arguments: object) -> str:
    """What the example prints; it must end well and complain of nothing."""
    async with example(name, settings, *arguments) as process:
        said, complained = await asyncio.wait_for(process.communicate(), WAIT_S)
        assert (process.returncode, complained.decode()) == (0, "")
        return said.decode()


async def line(process: asyncio.subprocess.Process) -> str:
    """The next line the example prints."""
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), WAIT_S)).decode().rstrip("\n")


async def until_subscribed(client: Client, pattern: str) -> None:
    """Wait until the broker has a subscription to `pattern`."""
    async with asyncio.timeout(WAIT_S):
        while True:
            stats = await client.request("bus.stats")
            if any(pattern in subscriber.patterns for subscriber in stats.subscribers):
                return
            await asyncio.sleep(0.02)


REQUESTS = {
    "req_json.py": "ok Oslo\n",
    "req_msgpack.py": "error not_found\n",
    "req_one_frame.py": "ok colour\n",
    "dealer_many.py": "[0, 1, 2, 3, 4]\n",
    "dealer_stream.py": "partial Hello! \npartial Good day.\nok Hello! Good day.\n",
}
PUBLISHERS: dict[str, tuple[str, Any]] = {
    "pub_json.py": ("demo.greeting", {"text": "hello"}),
    "pub_msgpack.py": ("demo.reading", {"celsius": 21.5}),
}
SUBSCRIBERS = {
    "sub_plain.py": ("subscribe_port", "demo.greeting {'text': 'hello'}"),
    "sub_sequenced.py": ("sequenced_port", "True kitchen reading-1 demo.greeting 12"),
}
OURS = {
    "client_asyncio.py": "city Oslo\nmemory.changed.user remember True\nHello! Good day.\nstop\nnot_found\n",
    "client_sync.py": "colour\nmemory.changed.kv\nHello! Good day.\nTrue\n",
}


def test_every_example_is_run_here_and_shown_whole_in_its_document() -> None:
    """No example is untested, and the documents show the very files."""
    files = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    shown = (ROOT / "docs" / "plain-agents.md").read_text() + (ROOT / "docs" / "client.md").read_text()

    assert set(files) == {*REQUESTS, *PUBLISHERS, *SUBSCRIBERS, *OURS, "worker.py"}
    assert [name for name, text in files.items() if f"```python\n{text}```\n" not in shown] == []


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_stock_agent_gets_its_reply(name: str, serve_broker: Serve) -> None:
    """REQ and DEALER, JSON and msgpack, one frame and several, gathered and streamed."""
    async with house(serve_broker) as settings:
        said = await output(name, settings, settings.bus.request_port)

    assert said == REQUESTS[name]


@pytest.mark.parametrize("name", PUBLISHERS)
async def test_a_stock_publisher_is_heard(name: str, serve_broker: Serve) -> None:
    """What a PUB socket sends arrives as an event, with the source and id that its headers name."""
    subject, body = PUBLISHERS[name]
    async with house(serve_broker) as settings, Client(settings) as client, client.subscribe("demo.>") as events:
        said = await output(name, settings, settings.bus.publish_port)
        event = await asyncio.wait_for(anext(aiter(events)), WAIT_S)

    assert said == ""
    assert (event.subject, event.body) == (subject, body)
    if name == "pub_msgpack.py":
        assert (event.source, event.id) == ("kitchen", "reading-1")


@pytest.mark.parametrize("name", SUBSCRIBERS)
async def test_a_stock_subscriber_hears(name: str, serve_broker: Serve) -> None:
    """A SUB socket gets two frames on the plain port and three on the sequenced one."""
    port, expected = SUBSCRIBERS[name]
    async with (
        house(serve_broker) as settings,
        Client(settings) as client,
        example(name, settings, getattr(settings.bus, port)) as process,
    ):
        await until_subscribed(client, "demo.")
        await client.publish("other.greeting", {"text": "not for it"})
        await client.publish("demo.greeting", {"text": "hello"}, headers={"source": "kitchen", "id": "reading-1"})
        said = await line(process)

    assert said == expected


@pytest.mark.parametrize("name", OURS)
async def test_our_clients_print_what_their_document_says(name: str, serve_broker: Serve) -> None:
    """Request, stream, publish and subscribe, with and without asyncio."""
    async with house(serve_broker) as settings, Client(settings) as client, client.subscribe("demo.done") as events:
        said = await output(name, settings)
        event = await asyncio.wait_for(anext(aiter(events)), WAIT_S)

    assert said == OURS[name]
    assert event.source == event.body["by"]


async def test_the_worker_example_serves_streams_and_leaves(serve_broker: Serve) -> None:
    """It answers, refuses what does not fit, streams, publishes, logs what failed, and ends well on SIGTERM."""
    async with (
        serve_broker() as settings,
        Client(settings) as client,
        client.subscribe("bus.worker.*", "calculator.counted") as events,
        example("worker.py", settings) as process,
    ):
        incoming = aiter(events)
        joined = await asyncio.wait_for(anext(incoming), WAIT_S)
        quotient = await client.request("calculator.divide", {"a": 6, "b": 3})
        with pytest.raises(Unprocessable, match="b is 0"):
            await client.request("calculator.divide", {"a": 1, "b": 0})
        async with client.stream("calculator.count", {"to": 3}) as parts:
            counted = [part async for part in parts]
        event = await asyncio.wait_for(anext(incoming), WAIT_S)
        with pytest.raises(Internal):
            await client.request("calculator.count", {"to": "three"})
        process.send_signal(signal.SIGTERM)
        left = await asyncio.wait_for(anext(incoming), WAIT_S)
        assert process.stderr is not None
        logged = await asyncio.wait_for(process.stderr.read(), WAIT_S)
        await asyncio.wait_for(process.wait(), WAIT_S)

    assert (joined.subject, left.subject) == ("bus.worker.joined", "bus.worker.left")
    assert quotient == {"result": 2.0}
    assert counted == [0, 1, 2]
    assert parts.final == {"counted": 3}
    assert b"handler failed" in logged
    assert (event.subject, event.body) == ("calculator.counted", {"to": 3})
    assert process.returncode == 0


def native(kind: int, body: Any = None, id: bytes = b"") -> bytes:
    """Frame 0 as docs/wire.md draws it, made with the msgpack package alone."""
    return b"OL" + bytes((1, kind)) + msgpack.packb([id, "", 0, None, body])


def foreign_worker(port: int) -> list[int]:
    """A worker written from docs/wire.md with stock packages: answers twice, drains; returns the kinds it was sent."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as link:
        link.rcvtimeo = int(WAIT_S * 1000)
        link.connect(f"tcp://127.0.0.1:{port}")
        link.send(native(16, {"service": "foreign", "instance": "one", "subjects": ["foreign.double"], "capacity": 1}))
        heard = []
        while True:
            (frame,) = link.recv_multipart()
            heard.append(frame[3])
            id, _, _, _, body = msgpack.unpackb(frame[4:])
            if frame[3] == 1 and body["n"]:
                link.send(native(3, {"doubled": 2 * body["n"]}, id))
            elif frame[3] == 1:
                link.send(native(4, {"code": "unprocessable", "message": "n is 0", "details": {}}, id))
                link.send(native(19))
            elif frame[3] == 19:
                return heard


async def test_a_worker_written_from_the_wire_document_serves(serve_broker: Serve) -> None:
    """READY, WELCOME, REQUEST, FINAL, ERROR and BYE are what docs/wire.md says they are."""
    async with serve_broker() as settings, Client(settings) as client, client.subscribe("bus.worker.*") as events:
        working = asyncio.create_task(asyncio.to_thread(foreign_worker, settings.bus.request_port))
        joined = await asyncio.wait_for(anext(aiter(events)), WAIT_S)
        doubled = await client.request("foreign.double", {"n": 21})
        with pytest.raises(Unprocessable, match="n is 0"):
            await client.request("foreign.double", {"n": 0})
        heard = await asyncio.wait_for(working, WAIT_S)
        left = await asyncio.wait_for(anext(aiter(events)), WAIT_S)

    assert (joined.subject, left.subject) == ("bus.worker.joined", "bus.worker.left")
    assert doubled == {"doubled": 42}
    assert heard == [20, 1, 1, 19]


@pytest.mark.parametrize("name", sorted({*REQUESTS, *PUBLISHERS, *SUBSCRIBERS}))
def test_a_plain_example_is_about_ten_lines_of_stock_zeromq(name: str) -> None:
    """It imports nothing of ours, and is short enough to be read at a glance."""
    text = (EXAMPLES / name).read_text()
    code = [row for row in text.split('"""', 2)[2].splitlines() if row and not row.startswith(("import ", "PORT = "))]

    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) <= {"json", "sys", "time", "zmq", "msgpack"}
    assert len(code) <= 10
