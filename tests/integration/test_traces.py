"""A request and what it leads to are one trace: through handlers, tasks, threads, REST, losses and redriven letters."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import msgspec

from bus.client import Client
from bus.settings import Settings
from bus.sync import SyncClient
from bus.worker import Call, Worker
from schemas.bodies.telling import Span, Spans, TraceRead
from schemas.errors import BusError, NotFound
from tests.conftest import Serve
from tests.rest_house import rest_house
from workers.models.relay import Relay

WITHIN_S = 10.0
OUTER = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{OUTER}-b7ad6b7169203331-01"


class Workers:
    """Workers of one test, stopped at its end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._running: list[Worker] = []

    async def serve(self, service: str, handlers: dict[str, Any], **options: Any) -> Worker:
        """A registered worker; handlers take the request, the call and the worker."""
        worker = Worker(service, self.settings, **options)
        for subject, handler in handlers.items():
            worker.handle(subject, lambda request, call, handler=handler: handler(request, call, worker))
        self._running.append(worker)
        await worker.start(WITHIN_S)
        return worker

    async def __aenter__(self) -> Workers:
        return self

    async def __aexit__(self, *error: object) -> None:
        for worker in self._running:
            await worker.stop(drain_s=0)


async def spans_of(client: Client, id: str, count: int) -> dict[str, Span]:
    """By subject, once so many have ended."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            found: Spans = await client.request("bus.trace.read", TraceRead(id=id))
            if len(found.spans) >= count:
                return {span.subject: span for span in found.spans}
            await asyncio.sleep(0.02)


async def leaf(request: Any, call: Call, worker: Worker) -> Any:
    """Answers with its headers of the trace."""
    return {name: value for name, value in call.headers.items() if name.startswith("trace")}


async def test_requests_made_in_handlers_tasks_and_threads_join_the_trace(serve_broker: Serve) -> None:
    """Each names the request in whose handler it was made; a stream, a task and a synchronous client alike."""

    async def top(request: Any, call: Call, worker: Worker) -> Any:
        await worker.client.request("test.mid", {})
        await asyncio.create_task(worker.client.request("test.task", {}))
        async with worker.client.stream("test.stream", {}) as parts:
            async for _ in parts:
                pass

        def ask() -> Any:
            with SyncClient(worker.settings) as client:
                return client.request("test.sync", {})

        return await asyncio.to_thread(ask)

    async def mid(request: Any, call: Call, worker: Worker) -> Any:
        return await worker.client.request("test.leaf", {})

    async with serve_broker() as settings, Workers(settings) as workers, Client(settings, name="me") as client:
        await workers.serve("upper", {"test.top": top, "test.mid": mid})
        await workers.serve("lower", {f"test.{name}": leaf for name in ("leaf", "task", "stream", "sync")})
        id = b"\x4b" * 16
        seen = await client.request("test.top", {}, id=id)
        spans = await spans_of(client, id.hex(), 6)
        outside = await client.request("test.leaf", {})

    assert seen == {"traceparent": f"00-{id.hex()}-{id[:8].hex()}-01"}
    assert outside == {}
    assert {span.trace for span in spans.values()} == {id.hex()}
    by_id = {span.id[:16]: span.subject for span in spans.values()}
    assert {subject: by_id.get(span.parent, "") for subject, span in spans.items()} == {
        "test.top": "",
        "test.mid": "test.top",
        "test.leaf": "test.mid",
        "test.task": "test.top",
        "test.stream": "test.top",
        "test.sync": "test.top",
    }
    top_span = spans["test.top"]
    assert (top_span.caller, top_span.service, top_span.outcome, top_span.attempts) == ("me", "upper", "ok", 1)
    assert top_span.received_at <= top_span.dispatched_at <= spans["test.mid"].received_at <= top_span.ended_at


async def test_many_requests_at_once_do_not_mix_their_traces(serve_broker: Serve) -> None:
    """Each of a hundred handlers that take turns asks in its own trace; a bad header begins a new one."""

    async def top(request: Any, call: Call, worker: Worker) -> Any:
        await asyncio.sleep(0.001 * (call.id[0] % 5))
        return await worker.client.request("test.leaf", {})

    async with serve_broker() as settings, Workers(settings) as workers, Client(settings) as client:
        await workers.serve("upper", {"test.top": top}, capacity=200)
        await workers.serve("lower", {"test.leaf": leaf}, capacity=200)
        ids = [bytes([number]) * 16 for number in range(1, 101)]
        seen = await asyncio.gather(*(client.request("test.top", {}, id=id) for id in ids))
        bad = await client.request("test.top", {}, headers={"traceparent": TRACEPARENT.upper()}, id=b"\xee" * 16)
        good = await client.request(
            "test.top", {}, headers={"traceparent": TRACEPARENT, "tracestate": "a=1"}, id=b"\xdd" * 16
        )

    assert [one["traceparent"] for one in seen] == [f"00-{id.hex()}-{id[:8].hex()}-01" for id in ids]
    assert bad == {"traceparent": f"00-{'ee' * 16}-{'ee' * 8}-01"}
    assert good == {"traceparent": f"00-{OUTER}-{'dd' * 8}-01", "tracestate": "a=1"}


async def test_a_request_that_loses_its_worker_stays_in_its_trace(serve_broker: Serve) -> None:
    """The second worker sees the same header, and the broker tells of one request with two attempts."""
    began = asyncio.Event()

    async def hang(request: Any, call: Call, worker: Worker) -> Any:
        began.set()
        await asyncio.Event().wait()

    async with serve_broker() as settings, Workers(settings) as workers, Client(settings) as client:
        first = await workers.serve("memory", {"memory.kv.get": hang}, instance="first")
        asking = asyncio.create_task(
            client.request("memory.kv.get", {"key": "k"}, raw=True, headers={"traceparent": TRACEPARENT})
        )
        await asyncio.wait_for(began.wait(), WITHIN_S)
        await workers.serve("memory", {"memory.kv.get": leaf}, instance="second")
        link = first._channel.link
        assert link is not None
        first._is_serving = False
        first._channel._is_closing = True
        link.abort("killed by the test")

        assert await asyncio.wait_for(asking, WITHIN_S) == {"traceparent": TRACEPARENT}
        span = (await spans_of(client, OUTER, 1))["memory.kv.get"]

    assert (span.attempts, span.worker, span.outcome) == (2, "second", "ok")
    assert span.parent == "b7ad6b7169203331"


async def test_a_generation_handed_to_a_runner_stays_in_its_trace(serve_broker: Serve) -> None:
    """Below the request of the model service, whose caller's header it does not repeat."""

    async def chat(request: Any, call: Call, worker: Worker) -> Any:
        return await Relay("test.leaf", {}, call).run(worker)

    async with serve_broker() as settings, Workers(settings) as workers, Client(settings) as client:
        await workers.serve("model", {"test.chat": chat})
        await workers.serve("runner", {"test.leaf": leaf})
        seen = await client.request("test.chat", {}, id=b"\x07" * 16, headers={"traceparent": TRACEPARENT})

    assert seen == {"traceparent": f"00-{OUTER}-{'07' * 8}-01"}


async def test_a_redriven_dead_letter_stays_in_its_trace(serve_broker: Serve) -> None:
    """Also one that came without a header, whose own id was its trace."""

    async def slow(request: Any, call: Call, worker: Worker) -> Any:
        await asyncio.Event().wait()

    ids = {b"\x01" * 16: None, b"\x02" * 16: {"traceparent": TRACEPARENT}}
    async with serve_broker() as settings, Workers(settings) as workers, Client(settings) as client:
        worker = await workers.serve("one", {"test.work": slow})
        for id, headers in ids.items():
            try:
                await client.request("test.work", {}, timeout_s=0.1, id=id, headers=headers)
            except BusError as error:
                assert error.code == "deadline_exceeded"
        await worker.stop(drain_s=0)
        await workers.serve("one", {"test.work": leaf})
        seen = []
        for number, id in enumerate(ids):
            redrive = {"id": id.hex(), "timeout_s": WITHIN_S}
            done = await client.request("deadletter.redrive", redrive, raw=True, id=bytes([0xA0 + number]) * 16)
            seen.append(done["reply"]["traceparent"])
        ended: Spans = await client.request("bus.trace.read", TraceRead(id=(b"\x01" * 16).hex()))

    assert seen == [f"00-{'01' * 16}-{'a0' * 8}-01", TRACEPARENT]
    assert [(span.outcome, span.trace) for span in ended.spans] == [("deadline_exceeded", "01" * 16), ("ok", "01" * 16)]


async def test_rest_callers_see_and_give_traces(serve_broker: Serve) -> None:
    """A reply names its request, an error too; what the caller sent is the trace, and what is none is left out."""

    async def get(request: Any, call: Call, worker: Worker) -> Any:
        await worker.client.request("test.leaf", {})
        raise NotFound("no such key")

    async with serve_broker() as settings, Workers(settings) as workers, Client(settings) as client:
        await workers.serve("memory", {"memory.kv.get": get})
        await workers.serve("lower", {"test.leaf": leaf})
        async with rest_house(settings) as house:
            plain = await house.ask("GET", "/kv/k", headers={"traceparent": "00-none"})
            given = await house.ask("GET", "/kv/k", headers={"traceparent": TRACEPARENT})
            keyed = await house.ask("GET", "/kv/k", headers={"idempotency-key": "cd" * 16})
            page = await house.ask("GET", "/openapi.json")
        own = plain.headers["x-request-id"]
        spans = await spans_of(client, own, 2)
        outer = await spans_of(client, given.headers["x-request-id"], 1)

    assert plain.status_code == 404
    assert plain.headers["traceparent"] == f"00-{own}-{own[:16]}-01"
    assert (spans["memory.kv.get"].id, spans["memory.kv.get"].outcome) == (own, "not_found")
    assert spans["test.leaf"].parent == own[:16]
    assert outer["memory.kv.get"].trace == OUTER
    assert given.headers["traceparent"] == f"00-{OUTER}-{given.headers['x-request-id'][:16]}-01"
    assert keyed.headers["x-request-id"] == "cd" * 16
    assert "x-request-id" not in page.headers


async def olympus(settings: Settings, *arguments: str) -> tuple[int, str, str]:
    """The command as a person runs it: code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bus.cli.app", "--set", f"bus.request_port={settings.bus.request_port}", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_command_finds_what_another_command_asked(serve_broker: Serve) -> None:
    """`req -v` says the id, `trace ID` draws it, `trace` lists it, and an unknown one is told so."""

    async def top(request: Any, call: Call, worker: Worker) -> Any:
        return await worker.client.request("test.leaf", {})

    async with serve_broker() as settings, Workers(settings) as workers:
        await workers.serve("upper", {"test.top": top})
        await workers.serve("lower", {"test.leaf": leaf})
        _, _, said = await olympus(settings, "req", "test.top", "-v")
        id = said.split()[2].rstrip(";")
        drawn, listed, as_json, unknown = await asyncio.gather(
            olympus(settings, "trace", id[:12]),
            olympus(settings, "trace", "--subject", "test.*"),
            olympus(settings, "trace", id, "--json"),
            olympus(settings, "trace", "00000000deadbeef"),
        )

    assert drawn[0] == 0
    assert [line for line in drawn[1].splitlines() if line.startswith("└ test.leaf")]
    assert [line.split()[5] for line in listed[1].splitlines()[1:]] == ["test.leaf", "test.top"]
    assert [(one["subject"], one["depth"]) for one in json.loads(as_json[1])["requests"]] == [
        ("test.top", 0),
        ("test.leaf", 1),
    ]
    assert unknown[0] == 1
    assert "does not remember 00000000deadbeef" in unknown[2]


async def test_a_broker_that_is_to_remember_nothing_says_so(serve_broker: Serve) -> None:
    """broker.traces_max: 0."""
    async with serve_broker(traces_max=0) as settings, Client(settings) as client:
        await client.request("bus.ping", {})
        found: Spans = await client.request("bus.trace.read", TraceRead())

    assert msgspec.structs.replace(found, boot="") == Spans(
        spans=[], remembered=0, oldest_at=None, last_number=0, boot=""
    )
