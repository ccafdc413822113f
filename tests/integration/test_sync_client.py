"""The synchronous client against a real broker and worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import pytest

from bus.settings import Settings
from bus.sync import SyncClient
from bus.worker import Call, Worker
from schemas.bodies.memory import KvEntry, KvGet
from schemas.errors import Cancelled, DeadlineExceeded, NotFound

WAIT_S = 20.0

Serve = Callable[..., AbstractAsyncContextManager[Settings]]


class Service:
    """A small worker, and what became of its requests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cancelled = asyncio.Event()
        self.worker = Worker("small", settings)
        self.worker.handle("memory.kv.get", self.get)
        self.worker.handle("small.count", self.count)
        self.worker.handle("small.wait", self.wait)

    async def get(self, request: KvGet, call: Call) -> KvEntry:
        """The key as its value; "absent" is absent."""
        if request.key == "absent":
            raise NotFound("there is no key 'absent'", field="key")
        return KvEntry(key=request.key, value=request.key, ns=request.ns, version=1, created_at=0, updated_at=0)

    async def count(self, request: Any, call: Call) -> str:
        """1 to n as partial replies."""
        for number in range(1, request["n"] + 1):
            await call.partial(number)
        return "counted"

    async def wait(self, request: Any, call: Call) -> None:
        """One partial reply, then nothing until cancelled."""
        await call.partial("begun")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@asynccontextmanager
async def service(serve_broker: Serve) -> AsyncIterator[Service]:
    """A broker with one small worker."""
    async with serve_broker() as settings:
        small = Service(settings)
        await small.worker.start(WAIT_S)
        try:
            yield small
        finally:
            await small.worker.stop(drain_s=0)


def bus_threads() -> list[str]:
    """Threads of synchronous clients that still run."""
    return [thread.name for thread in threading.enumerate() if thread.name == "bus-sync"]


async def test_request_returns_the_typed_reply_and_raises_the_same_errors(serve_broker: Serve) -> None:
    """A reply is the catalogue's Struct, an error the class of its code, and the client goes on after it."""

    def script(settings: Settings) -> None:
        with SyncClient(settings) as client:
            with pytest.raises(NotFound, match="no key 'absent'"):
                client.request("memory.kv.get", {"key": "absent"})
            with pytest.raises(DeadlineExceeded):
                client.request("small.wait", timeout_s=0.2)
            assert client.request("memory.kv.get", KvGet(key="a")).value == "a"
            assert client.request("memory.kv.get", {"key": "a"}, raw=True)["value"] == "a"

    async with service(serve_broker) as small:
        await asyncio.to_thread(script, small.settings)

    assert bus_threads() == []


async def test_stream_yields_every_part_and_then_has_the_final_reply(serve_broker: Serve) -> None:
    """`for` sees the partial replies in order; `final` is there after the last and not before."""

    def script(settings: Settings) -> None:
        with SyncClient(settings) as client:
            parts = client.stream("small.count", {"n": 100})
            with pytest.raises(RuntimeError, match="has not ended"):
                _ = parts.final
            assert list(parts) == list(range(1, 101))
            assert parts.final == "counted"

    async with service(serve_broker) as small:
        await asyncio.to_thread(script, small.settings)


async def test_leaving_a_stream_early_cancels_the_request(serve_broker: Serve) -> None:
    """The worker's handler is cancelled when the `with` block ends before the reply does."""

    def script(settings: Settings, has_left: threading.Event) -> None:
        with SyncClient(settings) as client:
            with client.stream("small.wait") as parts:
                assert next(parts) == "begun"
            assert has_left.wait(WAIT_S)

    async with service(serve_broker) as small:
        has_left = threading.Event()
        running = asyncio.create_task(asyncio.to_thread(script, small.settings, has_left))
        await asyncio.wait_for(small.cancelled.wait(), WAIT_S)
        has_left.set()
        await running


async def test_subscription_hears_every_event_and_ends_after_silence(serve_broker: Serve) -> None:
    """A loop ends when nothing came for `timeout_s`; the next loop goes on without losing an event."""

    def script(settings: Settings) -> list[list[int]]:
        with SyncClient(settings) as client, client.subscribe("demo.*", timeout_s=0.2) as events:
            heard = []
            for numbers in ([1, 2, 3], [], [4, 5]):
                for number in numbers:
                    client.publish("demo.count", {"n": number})
                client.flush()
                heard.append([event.body["n"] for event in events])
            return heard

    async with service(serve_broker) as small:
        heard = await asyncio.to_thread(script, small.settings)

    assert [number for numbers in heard for number in numbers] == [1, 2, 3, 4, 5]
    assert bus_threads() == []


async def test_several_threads_may_share_one_client(serve_broker: Serve) -> None:
    """Each thread gets the reply to its own request."""

    def script(settings: Settings) -> list[str]:
        with SyncClient(settings) as client:
            values: dict[str, str] = {}

            def ask(key: str) -> None:
                values[key] = client.request("memory.kv.get", {"key": key}).value

            threads = [threading.Thread(target=ask, args=(f"key {number}",)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(WAIT_S)
            return [key for key, value in values.items() if key == value]

    async with service(serve_broker) as small:
        right = await asyncio.to_thread(script, small.settings)

    assert len(right) == 8


async def test_closing_ends_the_calls_of_other_threads(serve_broker: Serve) -> None:
    """A thread that waits for a reply or an event gets Cancelled, or the end of its loop, and no thread is left."""

    def script(settings: Settings) -> tuple[list[Exception], list[str]]:
        client = SyncClient(settings)
        ends: list[Exception] = []
        are_waiting = threading.Barrier(3)

        def wait_for_reply() -> None:
            with client.stream("small.wait") as parts:
                next(parts)
                are_waiting.wait(WAIT_S)
                try:
                    next(parts)
                except Cancelled as error:
                    ends.append(error)

        def wait_for_event() -> None:
            events = client.subscribe("demo.*")
            are_waiting.wait(WAIT_S)
            try:
                next(events)
            except (Cancelled, StopIteration) as error:
                ends.append(error)

        with client:
            threads = [threading.Thread(target=wait_for_reply), threading.Thread(target=wait_for_event)]
            for thread in threads:
                thread.start()
            are_waiting.wait(WAIT_S)
        for thread in threads:
            thread.join(WAIT_S)
        return ends, [thread.name for thread in threads if thread.is_alive()]

    async with service(serve_broker) as small:
        ends, alive = await asyncio.to_thread(script, small.settings)

    assert len(ends) == 2
    assert alive == []
    assert bus_threads() == []


def test_a_client_that_is_not_open_says_how_to_open_it() -> None:
    """Forgetting `with` is told in so many words, before and after."""
    client = SyncClient()

    with pytest.raises(Cancelled, match="with SyncClient"):
        client.request("bus.ping")
    with client:
        pass
    with pytest.raises(Cancelled, match="with SyncClient"):
        client.publish("demo.late")
    client.close()


INTERRUPTED = """
import json, sys, threading
from bus.settings import load_settings
from bus.sync import SyncClient

try:
    with SyncClient(load_settings(overrides=json.loads(sys.argv[1]))) as client:
        for part in client.stream("small.wait"):
            print(part, flush=True)
except KeyboardInterrupt:
    print("threads left:", threading.active_count() - 1)
"""


async def test_ctrl_c_takes_the_request_back_and_leaves_no_thread(serve_broker: Serve) -> None:
    """SIGINT in the middle of a stream cancels it at the worker, and the script ends in good order."""
    async with service(serve_broker) as small:
        bus = msgspec.structs.asdict(small.settings.bus)
        overrides = {f"bus.{name}": value for name, value in bus.items() if name.endswith("_port")}
        script = await asyncio.create_subprocess_exec(
            sys.executable, "-c", INTERRUPTED, json.dumps(overrides),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=os.getcwd(),
        )  # fmt: skip
        assert script.stdout is not None
        begun = await asyncio.wait_for(script.stdout.readline(), WAIT_S)
        script.send_signal(signal.SIGINT)
        await asyncio.wait_for(small.cancelled.wait(), WAIT_S)
        said, complained = await asyncio.wait_for(script.communicate(), WAIT_S)

    assert begun == b"begun\n"
    assert (said, complained, script.returncode) == (b"threads left: 0\n", b"", 0)
