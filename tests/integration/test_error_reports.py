"""Failures of handlers over a real broker: what callers, the bus and the log hear of them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from bus.client import Client
from bus.logs import JsonFormatter, LineHandler
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas import catalog, metrics
from schemas.errors import BusError, Internal

Serve = Callable[..., AbstractAsyncContextManager[Settings]]
Handler = Callable[[Any, Call], Awaitable[Any]]

SECRET = "correct horse battery"
SECRET_OPERATIONS = sorted(subject for subject, operation in catalog.OPERATIONS.items() if operation.is_secret)


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What this process has logged so far, one map a line."""
    stream = io.StringIO()
    handler = LineHandler(stream)
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("olympus")
    log.addHandler(handler)
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    finally:
        log.removeHandler(handler)
        handler.close()


class Heard:
    """Bodies of `error.>`, as they come."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self._came = asyncio.Event()

    def take(self, body: dict[str, Any]) -> None:
        self.got.append(body)
        self._came.set()

    async def failures(self, count: int) -> None:
        """Wait until the reports stand for so many failures."""
        async with asyncio.timeout(10):
            while sum(map(count_of, self.got)) < count:
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def errors_of(client: Client) -> AsyncIterator[Heard]:
    """Whoever listens to errors."""
    heard = Heard()
    async with client.subscribe("error.>") as events:

        async def listen() -> None:
            async for event in events:
                heard.take(event.body)

        listening = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            listening.cancel()


def count_of(report: dict[str, Any]) -> int:
    """Failures it stands for; 1 is not sent."""
    return int(report.get("count", 1))


async def test_twenty_thousand_failures_make_a_few_reports_and_lines(
    serve_broker: Serve, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """Every caller gets `internal`, and the counts of the reports and of the lines both add up to 20,000."""

    async def fail(request: Any, call: Call) -> None:
        raise RuntimeError(f"request {call.id.hex()} failed")

    async with serve_broker() as settings:
        worker, client = Worker("storm", settings), Client(settings)
        worker.handle("storm.fail", fail)
        await worker.start(10)
        codes: list[str] = []

        async def ask() -> None:
            for _ in range(200):
                try:
                    await client.request("storm.fail", {})
                except BusError as error:
                    codes.append(error.code)

        async with errors_of(client) as heard:
            await asyncio.gather(*(ask() for _ in range(100)))
            told = worker.figures.series()
            await worker.stop()
            await heard.failures(20_000)
        await client.close()

    written = [line for line in lines() if line["message"] == "handler failed"]
    assert codes == ["internal"] * 20_000
    assert sum(map(count_of, heard.got)) == 20_000
    assert len(heard.got) < 30
    assert sum(line.get("count", 1) for line in written) == 20_000
    assert len(written) < 30
    assert "traceback" in written[0]
    assert not any("traceback" in line for line in written[1:])
    assert told[metrics.ERROR_REPORTS.name][0].value == 20_000
    assert 0 <= told[metrics.ERROR_REPORTS_DAMPED.name][0].value < 20_000


@pytest.mark.parametrize("subject", SECRET_OPERATIONS)
async def test_a_failing_secret_operation_tells_no_value_of_its_request(
    serve_broker: Serve, lines: Callable[[], list[dict[str, Any]]], subject: str
) -> None:
    """Though the exception and its cause quote it: neither reply, report, log line nor traceback do."""

    async def fail(request: dict[str, Any], call: Call) -> None:
        try:
            {}[request["password"]]
        except KeyError as error:
            raise ValueError(f"cannot take {request['password']}") from error

    async with serve_broker() as settings:
        worker, client = Worker("accounts", settings), Client(settings)
        worker.handle(subject, fail, request_type=dict[str, Any])
        await worker.start(10)
        async with errors_of(client) as heard:
            with pytest.raises(Internal) as refused:
                await client.request(subject, {"password": SECRET})
            await heard.failures(1)
        await client.close()
        await worker.stop()

    assert SECRET not in str(refused.value.body())
    assert "ValueError" in refused.value.message
    assert SECRET not in json.dumps(heard.got)
    assert heard.got[0]["kind"] == "ValueError"
    assert "in fail" in heard.got[0]["traceback"]
    assert SECRET not in json.dumps(lines())
    assert any(line["message"] == "handler failed" for line in lines())


async def test_lines_of_all_workers_on_a_request_share_its_trace(
    serve_broker: Serve, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """A handler that asks another worker: both log under the first request's id as their trace."""

    async def inner(request: Any, call: Call) -> str:
        logging.getLogger("olympus.inner").info("within")
        return call.id.hex()

    async with serve_broker() as settings:
        outer, other, client = Worker("outer", settings), Worker("inner", settings), Client(settings)

        async def ask(request: Any, call: Call) -> list[str]:
            logging.getLogger("olympus.outer").info("before")
            return [call.id.hex(), await outer.client.request("inner.work", {})]

        other.handle("inner.work", inner)
        outer.handle("outer.work", ask)
        logging.getLogger("olympus").setLevel(logging.INFO)
        try:
            await other.start(10)
            await outer.start(10)
            outer_id, inner_id = await client.request("outer.work", {})
        finally:
            logging.getLogger("olympus").setLevel(logging.NOTSET)
            await client.close()
            await outer.stop()
            await other.stop()

    told = {line["message"]: (line["request"], line["trace"]) for line in lines() if "request" in line}
    assert told == {"before": (outer_id, outer_id), "within": (inner_id, outer_id)}
