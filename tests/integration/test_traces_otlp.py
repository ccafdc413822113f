"""Traces on their way to an OpenTelemetry collector: a local server takes them and decodes what came."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bus.client import Client
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas import metrics
from schemas.bodies.telling import Span
from schemas.errors import BusError, Internal
from tests.conftest import Serve
from workers.exporter import spans
from workers.exporter.spans import Share, SpanExport

WITHIN_S = 20.0


class FakeCollector(http.server.ThreadingHTTPServer):
    """Keeps every span it takes with its resource; `status` is what it answers, `hold` makes it hang."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.status = 200
        self.asked = 0
        self.hold: threading.Event | None = None
        self.spans: list[tuple[Any, dict[str, str]]] = []

    @property
    def url(self) -> str:
        """What exporter.otlp_endpoint says."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Post(http.server.BaseHTTPRequestHandler):
    server: FakeCollector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.asked += 1
        if self.server.hold is not None:
            self.server.hold.wait(WITHIN_S)
        if self.server.status == 200 and self.path == "/v1/traces":
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = {one.key: one.value.string_value for one in group.resource.attributes}
                self.server.spans += [(span, resource) for scope in group.scope_spans for span in scope.spans]
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""


@contextmanager
def collecting() -> Iterator[FakeCollector]:
    """A collector on a free port."""
    with FakeCollector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            if server.hold is not None:
                server.hold.set()
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds follow at once, and no proxy of this machine stands between."""
    for name in ("_ROUND_S", "_RETRY_S", "_RETRY_MAX_S"):
        monkeypatch.setattr(spans, name, 0.02)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@asynccontextmanager
async def exporting(settings: Settings, **exporter: Any) -> AsyncIterator[tuple[SpanExport, Worker]]:
    """The export as the exporter's process runs it, beside a worker with two operations."""
    changed = msgspec.structs.replace(settings, exporter=msgspec.structs.replace(settings.exporter, **exporter))
    worker = Worker("upper", changed)

    async def top(request: Any, call: Call) -> Any:
        return await worker.client.request("test.leaf", {})

    async def leaf(request: Any, call: Call) -> Any:
        if call.id == b"\x4b" * 16:
            raise Internal("no")
        return {}

    worker.handle("test.top", top)
    worker.handle("test.leaf", leaf)
    await worker.start(WITHIN_S)
    export = SpanExport(changed, worker)
    await export.start()
    try:
        yield export, worker
    finally:
        await export.stop()
        await worker.stop(drain_s=0)


async def until(is_true: Callable[[], object], what: str) -> None:
    """Wait for it, or say what was missing."""
    try:
        async with asyncio.timeout(WITHIN_S):
            while not is_true():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"did not happen: {what}")


def counted(worker: Worker) -> dict[str, float]:
    """The figure of exported spans by its outcome."""
    return {one.labels[0]: one.value for one in worker.figures.series()[metrics.SPANS_EXPORTED.name]}


async def begun(export: SpanExport) -> None:
    """It knows where to begin, so that what ends from now on is sent."""
    await until(lambda: export._boot, "the first reading")


async def test_a_collector_gets_the_trace_with_ids_times_and_parents(serve_broker: Serve) -> None:
    """As OTLP has it: every request a SERVER span of its service, none of the export's own."""
    with collecting() as collector:
        async with serve_broker() as settings, exporting(settings, otlp_endpoint=collector.url) as (export, worker):
            await begun(export)
            async with Client(settings, name="me") as client:
                await client.request("test.top", {}, id=b"\x4a" * 16)
            await until(lambda: len(collector.spans) >= 2, "two spans")
            told = counted(worker)

    by_name = {span.name: (span, resource) for span, resource in collector.spans}
    assert set(by_name) <= {"test.top", "test.leaf", "bus.services"}
    (top, resource), (leaf, _) = by_name["test.top"], by_name["test.leaf"]
    assert (top.trace_id, top.span_id, top.parent_span_id) == (b"\x4a" * 16, b"\x4a" * 8, b"")
    assert (leaf.trace_id, leaf.parent_span_id) == (b"\x4a" * 16, b"\x4a" * 8)
    assert top.start_time_unix_nano <= leaf.start_time_unix_nano <= leaf.end_time_unix_nano <= top.end_time_unix_nano
    assert (top.kind, top.status.code) == (top.SPAN_KIND_SERVER, 0)
    assert resource["service.name"] == "upper"
    attributes = {one.key: one.value for one in top.attributes}
    assert attributes["rpc.method"].string_value == "test.top"
    assert attributes["olympus.caller"].string_value == "me"
    assert [event.name for event in top.events] == ["dispatched"]
    assert told["ok"] >= 2
    assert told["failed"] == told["missed"] == 0


async def test_a_failed_request_is_an_error_and_always_sent(serve_broker: Serve) -> None:
    """Also where no share of the traces is."""
    with collecting() as collector:
        endpoint = collector.url + "/v1/traces"
        async with (
            serve_broker() as settings,
            exporting(settings, otlp_endpoint=endpoint, otlp_share=0.0) as (export, _),
            Client(settings) as client,
        ):
            await begun(export)
            await client.request("test.leaf", {}, id=b"\x4a" * 16)
            with pytest.raises(BusError):
                await client.request("test.leaf", {}, id=b"\x4b" * 16)
            await until(lambda: collector.spans, "the span of the failed request")

    ((span, _),) = collector.spans
    assert (span.trace_id, span.status.code) == (b"\x4b" * 16, 2)
    assert next(one.value.string_value for one in span.attributes if one.key == "error.type") == "internal"


async def test_what_a_collector_did_not_take_is_sent_again(serve_broker: Serve) -> None:
    """It is away, then answers 500, then takes it: nothing is lost, and the trouble is told meanwhile."""
    with collecting() as collector:
        collector.status = 400
        async with (
            serve_broker() as settings,
            exporting(settings, otlp_endpoint=collector.url) as (export, worker),
            Client(settings) as client,
        ):
            await begun(export)
            await client.request("test.leaf", {}, id=b"\x4a" * 16)
            await until(lambda: export.trouble, "the trouble")
            assert collector.url in export.trouble
            collector.status = 200
            await until(lambda: collector.spans, "the span")
            await until(lambda: not export.trouble, "the end of the trouble")
            assert counted(worker)["failed"] == 0


async def test_what_is_never_taken_is_given_up_and_counted(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one batch that a collector refuses does not hold up all that come after."""
    monkeypatch.setattr(spans, "_ATTEMPTS", 2)
    with collecting() as collector:
        collector.status = 400
        async with (
            serve_broker() as settings,
            exporting(settings, otlp_endpoint=collector.url) as (export, worker),
            Client(settings) as client,
        ):
            await begun(export)
            await client.request("test.leaf", {}, id=b"\x4a" * 16)
            await until(lambda: counted(worker)["failed"] >= 1, "the batch is given up")


async def test_what_the_broker_forgot_meanwhile_is_counted(serve_broker: Serve) -> None:
    """A small memory and a collector that hangs; the bus answers all the while."""
    with collecting() as collector:
        collector.hold = threading.Event()
        async with (
            serve_broker(traces_max=4) as settings,
            exporting(settings, otlp_endpoint=collector.url) as (export, worker),
            Client(settings) as client,
        ):
            await begun(export)
            await client.request("test.leaf", {}, id=b"\x4a" * 16)
            await until(lambda: collector.asked, "the collector is asked")
            for number in range(20):
                await client.request("test.leaf", {}, id=bytes([2 * number]) + b"\x01" * 15)
            collector.hold.set()
            await until(lambda: counted(worker)["missed"] >= 10, "the gap is counted")


async def test_a_collector_that_hangs_holds_up_nobody_at_the_end(serve_broker: Serve) -> None:
    """`stop` returns while the batch is still on its way."""
    with collecting() as collector:
        collector.hold = threading.Event()
        async with (
            serve_broker() as settings,
            exporting(settings, otlp_endpoint=collector.url) as (export, _),
            Client(settings) as client,
        ):
            await begun(export)
            await client.request("test.leaf", {}, id=b"\x4a" * 16)
            await until(lambda: collector.asked, "the collector is asked")
            async with asyncio.timeout(2.0):
                await export.stop()


async def test_missing_packages_are_one_clear_warning(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the extra to install, and nothing else happens."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "workers.exporter.otlp", raising=False)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level(logging.WARNING, "olympus.exporter"):
        async with serve_broker() as settings, exporting(settings, otlp_endpoint="http://127.0.0.1:9") as (export, _):
            assert export._task is None

    assert "olympus-bus[otel]" in export.trouble
    assert [record.getMessage() for record in caplog.records] == ["traces are not exported"]


def span(trace: str, outcome: str = "ok", subject: str = "memory.get") -> Span:
    """A request of a trace."""
    return Span(
        number=1,
        id=trace,
        trace=trace,
        parent="",
        subject=subject,
        caller="",
        worker="",
        service="",
        received_at=0.0,
        dispatched_at=None,
        ended_at=0.0,
        attempts=1,
        outcome=outcome,
        body_bytes=0,
    )


def test_a_share_is_of_whole_traces_and_keeps_those_with_errors() -> None:
    """By the trace's id alone, so that everybody chooses the same; what follows an error in its trace is sent as well."""
    low, high = "f" * 16 + "1" * 16, "f" * 16 + "e" * 16
    share = Share(0.5)

    assert [one.trace for one in share.of([span(low), span(high)])] == [low]
    assert [one.trace for one in share.of([span(high), span(high, "internal")])] == [high, high]
    assert len(share.of([span(high)])) == 1
    assert Share(0.0).of([span(low)]) == []
    assert len(Share(1.0).of([span("f" * 32)])) == 1
    assert Share(1.0).of([span(low, subject="bus.trace.read"), span("0" * 32)]) == []
