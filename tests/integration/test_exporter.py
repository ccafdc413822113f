"""Figures from real processes over a real broker to a page: who lies, dies, comes back or asks too much harms nobody."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from broker.server import Broker
from bus.client import Client
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.accounts import TokenState
from schemas.bodies.control import BusWorkers, Heartbeat, WorkerList
from schemas.bodies.telling import ExporterStatus, ExporterStatusReply
from schemas.errors import BusError, NotFound, Unauthenticated
from tests.conftest import settings_of
from tests.exporter_house import exporter_house
from workers.exporter import service as exporter_service
from workers.exporter.http import CONNECTIONS_MAX

Serve = Callable[..., AbstractAsyncContextManager[Settings]]
ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 20.0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Those of every test, with figures told five times a second and heartbeats ten."""
    bus = msgspec.structs.replace(settings.bus, metrics_interval_s=0.2, heartbeat_s=0.1)
    return msgspec.structs.replace(settings, bus=bus)


@asynccontextmanager
async def worker(settings: Settings, service: str = "memory", **more: Any) -> AsyncIterator[Worker]:
    """A worker that answers one operation, with what the key asks for."""

    async def get(request: Any, call: Call) -> None:
        if request.key == "missing":
            raise NotFound("there is none")
        if request.key == "broken":
            raise ValueError("broken")

    one = Worker(service, settings, **more)
    one.handle("memory.kv.get", get)
    await one.start(WITHIN_S)
    try:
        yield one
    finally:
        await one.stop(drain_s=0)


def value(text: str, name: str, **labels: str) -> float | None:
    """The sum of a metric's samples that have these labels, None where there is none."""
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


async def ask(client: Client, key: str) -> None:
    """One request, however it ends."""
    try:
        await client.request("memory.kv.get", {"key": key, "ns": "kv"})
    except BusError:
        return


async def test_every_process_is_on_the_page_with_what_it_counted(serve_broker: Serve) -> None:
    """Broker, worker and exporter; requests by operation and outcome, what it does without, and nothing refused."""
    async with serve_broker() as settings, exporter_house(settings) as house, worker(settings) as one:
        one.degraded_by(lambda: {"encoder": "no model"})
        for key in ("a", "b", "missing", "broken"):
            await ask(one.client, key)
        await ask(one.client, "")

        def is_whole(text: str) -> bool:
            done = value(text, "olympus_worker_requests_total", service="memory", operation="memory.kv.get")
            degraded = value(text, "olympus_worker_degraded", service="memory", dependency="encoder")
            taken = value(text, "olympus_broker_request_duration_seconds_count", service="bus", target="memory")
            return (done, degraded, taken) == (5, 1, 5)

        text = await house.until(is_whole, "every request on the page")
        for outcome, count in {"ok": 2, "not_found": 1, "internal": 1, "bad_request": 1}.items():
            assert value(text, "olympus_worker_requests_total", service="memory", outcome=outcome) == count
        assert value(text, "olympus_worker_request_duration_seconds_count", operation="memory.kv.get") == 5
        assert value(text, "olympus_broker_instances", target="memory") == 1
        assert value(text, "olympus_broker_requests_total", service="bus", worker=broker_of(text)) is not None
        # One machine, told by three processes.
        assert text.count("olympus_host_cores{") == 1
        assert value(text, "olympus_exporter_refused_total") == 0
        list(openmetrics.text_string_to_metric_families(await house.scrape(openmetrics=True)))

        status: ExporterStatusReply = await one.client.request("exporter.status", ExporterStatus())
        assert house.url == f"http://{status.address}"
        assert [process.partition("/")[0] for process in status.processes] == ["bus", "exporter", "memory"]


def broker_of(text: str) -> str:
    """The instance of the broker's own worker."""
    return next(
        sample.labels["worker"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("service") == "bus"
    )


async def test_series_of_a_killed_process_end_and_those_of_its_successor_are_its_own(serve_broker: Serve) -> None:
    """kill -9: no figure of it stays behind, and no counter of the next one seems to have begun with it."""
    async with serve_broker() as settings, exporter_house(settings) as house:
        flags = {
            "home": settings.home,
            **{f"bus.{port}": getattr(settings.bus, port) for port in ("request_port", "publish_port")},
            **{f"bus.{port}": getattr(settings.bus, port) for port in ("subscribe_port", "sequenced_port")},
            "bus.metrics_interval_s": 0.2,
            "resources.nvml": "off",
        }
        command = [sys.executable, "-m", "workers.resources", *(f"--set={key}={each}" for key, each in flags.items())]
        first = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL)
        second = None
        try:
            name = f"{socket.gethostname()}-{first.pid}"
            await house.until(lambda text: f'worker="{name}"' in text, "the first process")
            first.kill()
            await first.wait()
            await house.until(lambda text: f'worker="{name}"' not in text, "the end of its series")
            second = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL)
            another = f"{socket.gethostname()}-{second.pid}"
            text = await house.until(lambda text: f'worker="{another}"' in text, "the second process")
            assert f'worker="{name}"' not in text
            assert value(text, "olympus_worker_requests_total", service="resource", worker=another) == 0
            second.terminate()
            await house.until(lambda text: f'worker="{another}"' not in text, "the end of one that left")
        finally:
            for process in (first, second):
                if process is not None and process.returncode is None:
                    process.kill()
                    await process.wait()


async def test_an_exporter_that_begins_anew_shows_no_jump(serve_broker: Serve) -> None:
    """It holds nothing of its own: the same series go on with the same values."""
    async with serve_broker() as settings, worker(settings) as one:
        for _ in range(7):
            await ask(one.client, "a")

        def count(text: str) -> float | None:
            return value(text, "olympus_worker_requests_total", operation="memory.kv.get", outcome="ok")

        for _ in range(2):
            async with exporter_house(settings) as house:
                text = await house.until(lambda text: count(text) is not None, "the worker")
                assert count(text) == 7


async def test_a_broker_that_is_away_is_told_and_its_return_brings_everything_back(settings: Settings) -> None:
    """Meanwhile the exporter serves itself, and says why it serves no more."""
    broker = Broker(settings)
    await broker.start()
    house_settings = settings_of(broker)
    async with exporter_house(house_settings) as house, worker(house_settings):
        await house.until(lambda text: value(text, "olympus_exporter_processes") == 3, "all three")
        await broker.stop()
        text = await house.until(lambda text: value(text, "olympus_exporter_processes") == 1, "silence of the others")
        assert value(text, "olympus_process_threads", service="exporter") is not None
        health = await house.http.get(f"{house.url}/health")
        assert (health.status_code, health.json()["dependencies"]["broker"]["status"]) == (503, "failing")

        again = Broker(house_settings)
        await again.start()
        try:
            await house.until(lambda text: value(text, "olympus_exporter_processes") == 3, "all three again")
            assert (await house.http.get(f"{house.url}/health")).json()["status"] == "ok"
        finally:
            await house.service.stop()
            await again.stop()


async def test_figures_that_lie_harm_nobody(serve_broker: Serve) -> None:
    """Every kind of them is counted as refused, the page stays readable, and the others go on being served."""
    told = {"instance": "liar-1", "host": "liar", "pid": 1, "started_at": 0.0, "at": 0.0, "every_s": 5.0}
    huge = {"olympus_worker_requests_total": [[["x" * 100, f"{number}"], 1.0] for number in range(30_000)]}
    lies: list[Any] = [
        b"",
        b"\xc1" * 1000,
        bytes(10 * 1024 * 1024),
        {},
        {"service": "liar"},
        {**told, "service": "memory", "metrics": {}},
        {**told, "service": "liar", "metrics": {f"made_up_{number}": [] for number in range(5_000)}},
        {**told, "service": "liar", "metrics": huge},
        {**told, "service": "liar", "metrics": {"olympus_models_known": [[[], float("nan")], [["a"], 1]]}},
        {**told, "service": "liar", "metrics": {"olympus_models_known": [[[], "\n# EOF\n"]]}},
    ]
    async with serve_broker() as settings, exporter_house(settings) as house, worker(settings) as one:
        for lie in lies:
            await one.client.publish("metrics.liar", lie)
        await one.client.publish("bus.worker.lost", b"\xff")
        await one.client.publish("bus.worker.lost", {"service": 5})
        await one.client.flush()

        def are_refused(text: str) -> bool:
            return (value(text, "olympus_exporter_refused_total", reason="body") or 0) >= 7

        text = await house.until(are_refused, "every lie refused")
        for reason in ("name", "label", "series", "value"):
            assert value(text, "olympus_exporter_refused_total", reason=reason), reason
        await house.until(lambda text: value(text, "olympus_process_threads", service="memory") is not None, "others")
        list(openmetrics.text_string_to_metric_families(await house.scrape(openmetrics=True)))


BEATS: list[Any] = [
    {"in_flight": -1},
    {"cpu_s": float("nan")},
    {"cpu_s": float("inf")},
    {"rss_bytes": 2**63},
    {"handled": "many"},
    {"degraded": {"": "no name"}},
    {"degraded": {"a": "x" * 2000}},
    {"degraded": {f"d{number}": "" for number in range(5_000)}},
    {"degraded": "everything"},
    b"\xc1\xff",
    bytes(10 * 1024 * 1024),
    [1, 2, 3],
]


async def test_a_worker_that_lies_in_its_heartbeats_is_not_lost_and_its_last_word_stands(serve_broker: Serve) -> None:
    """A beat that cannot be read still proves life: requests in flight must not end for a figure that is wrong."""
    async with serve_broker() as settings, worker(settings) as one, Client(settings) as client:
        told = 0

        def lie() -> Any:
            nonlocal told
            told += 1
            return BEATS[told % len(BEATS)]

        async def seen() -> list[Any]:
            found: WorkerList = await client.request("bus.workers", BusWorkers(service="memory"))
            return [
                (each.instance, each.in_flight, each.rss_bytes, each.cpu_s, each.degraded) for each in found.workers
            ]

        one._heartbeat = lambda: Heartbeat(rss_bytes=4711, cpu_s=1.5)  # type: ignore[method-assign]
        async with asyncio.timeout(WITHIN_S):
            while (await seen())[0][2] != 4711:
                await asyncio.sleep(0.05)
        before = (await client.request("bus.stats")).rejected_messages
        one._heartbeat = lie  # type: ignore[method-assign]
        async with asyncio.timeout(WITHIN_S):
            # Longer than the lease, which is three beats.
            while told < 2 * len(BEATS):
                await asyncio.sleep(0.05)
        assert await seen() == [(one.instance, 0, 4711, 1.5, {})]
        await client.request("memory.kv.get", {"key": "a", "ns": "kv"}, raw=True)
        assert (await client.request("bus.stats")).rejected_messages >= before + len(BEATS)


async def test_requests_refused_for_who_asked_are_counted_by_why(settings: Settings, serve_broker: Serve) -> None:
    """Without a token, and with one that is none; before the handler sees them."""
    async with serve_broker() as served:
        strict = msgspec.structs.replace(served, auth=msgspec.structs.replace(served.auth, required=True))
        async with worker(strict) as one, Client(served) as stranger:

            async def verified(token: str) -> TokenState:
                return TokenState(valid=False, reason="forged")

            assert one.authorizer is not None
            one.authorizer.verify_with(verified)
            for headers in (None, {"token": "forged"}, {"token": "forged"}):
                with pytest.raises(Unauthenticated):
                    await stranger.request("memory.kv.get", {"key": "a", "ns": "kv"}, headers=headers)

            refused = {series.labels: series.value for series in one.figures.series()["olympus_refusals_total"]}
            assert refused == {("missing",): 1, ("invalid",): 2, ("forbidden",): 0, ("rate",): 0}
            counted = {series.labels: series.value for series in one.figures.series()["olympus_worker_requests_total"]}
            assert counted["memory.kv.get", "unauthenticated"] == 3


async def test_a_worker_whose_own_state_cannot_be_read_lives_and_says_so(serve_broker: Serve) -> None:
    """What `degraded_by` was given raises: that is the reason that is shown."""

    def broken() -> dict[str, str]:
        raise OSError("no such thing")

    async with serve_broker() as settings, worker(settings) as one, Client(settings) as client:
        one.degraded_by(broken)
        async with asyncio.timeout(WITHIN_S):
            while True:
                found: WorkerList = await client.request("bus.workers", BusWorkers(service="memory"))
                if found.workers[0].degraded:
                    break
                await asyncio.sleep(0.05)
        assert found.workers[0].degraded == {"itself": "it cannot say how it is: OSError: no such thing"}


# HTTP -----------------------------------------------------------------------------------------------------------


async def wire(address: str, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which this was sent."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    return reader, writer


async def said(stream: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    """What comes until the other end closes."""
    reader, writer = stream
    try:
        return await asyncio.wait_for(reader.read(), WITHIN_S)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_twenty_scrapers_at_once_share_one_page(serve_broker: Serve) -> None:
    """Each gets the whole of it, packed or not as it asked."""
    async with serve_broker() as settings, exporter_house(settings) as house:
        answers = await asyncio.gather(*(house.http.get(f"{house.url}/metrics") for _ in range(20)))

        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers["content-encoding"] for answer in answers} == {"gzip"}
        text = await house.until(lambda text: (value(text, "olympus_exporter_scrape_duration_seconds_count") or 0) > 0)
        assert (value(text, "olympus_exporter_scrape_duration_seconds_count") or 0) < 20
        request = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAccept-Encoding: "
        plain = await said(await wire(house.service.address, request + b"gzip;q=0\r\n\r\n"))
        packed = await said(await wire(house.service.address, request + b"br, gzip\r\n\r\n"))
        assert b"# HELP olympus_" in plain.partition(b"\r\n\r\n")[2]
        assert gzip.decompress(packed.partition(b"\r\n\r\n")[2]).startswith(b"# HELP olympus_")


async def test_any_bytes_and_any_pace_leave_the_page_served(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are no HTTP, heads without end, readers who read nothing, more connections than there may be."""
    async with serve_broker() as settings, exporter_house(settings) as house:
        address = house.service.address
        chance = random.Random(11)
        for sent, status in (
            (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b" 400 "),
            (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", b" 421 "),
            (b"GET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n", b" 404 "),
            (b"DELETE /metrics HTTP/1.1\r\nConnection: close\r\n\r\n", b" 405 "),
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b" 413 "),
            (b"GET /" + b"a" * 40_000, b" 431 "),
        ):
            assert status in (await said(await wire(address, sent))).partition(b"\r\n")[0]
        for _ in range(20):
            (await wire(address, chance.randbytes(chance.randrange(1, 3000))))[1].close()
        head = await said(await wire(address, b"HEAD /metrics HTTP/1.1\r\nConnection: close\r\n\r\n"))
        assert head.startswith(b"HTTP/1.1 200 ") and head.endswith(b"\r\n\r\n")

        asking = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        held = [await wire(address, b"GET /metrics HTT") for _ in range(CONNECTIONS_MAX + 10)]
        held += [await wire(address, asking * 50) for _ in range(5)]
        await house.scrape()
        for _, writer in held:
            writer.close()


async def test_a_port_that_another_program_has_is_said_and_taken_when_it_is_free(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The house goes on without it: nothing else needs the exporter."""
    monkeypatch.setattr(exporter_service, "_RETRY_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        async with serve_broker() as settings, exporter_house(settings, port=port) as house:
            assert house.service.address == ""
            reason = house.service.worker.degraded()["port"]
            assert f"127.0.0.1:{port} cannot be bound" in reason and "exporter.port=PORT" in reason
            other.close()
            async with asyncio.timeout(WITHIN_S):
                while not house.service.address:
                    await asyncio.sleep(0.02)
            assert house.service.worker.degraded() == {}
            house.url = f"http://{house.service.address}"
            assert "olympus_build_info" in await house.scrape()


async def test_figures_are_told_when_they_are_wanted_and_never_with_interval_nought(serve_broker: Serve) -> None:
    """0 turns them off; a broker that is away costs nobody a word or a wait."""
    async with serve_broker() as settings, Client(settings) as client:
        off = msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, metrics_interval_s=0))
        async with client.subscribe("metrics.memory") as events, worker(off, instance="quiet"):
            async with worker(settings, instance="telling"):
                async with asyncio.timeout(WITHIN_S):
                    event = await anext(events)
            assert event.body["instance"] == "telling"
    nobody = Worker("memory", settings)
    await asyncio.wait_for(nobody.tell_figures(), 1)
