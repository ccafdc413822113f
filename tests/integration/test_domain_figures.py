"""What the services tell in figures and what they say they do without, each driven a little on a real broker."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import pytest

from bus.client import Client
from bus.device_lock import DeviceLock
from bus.metrics import Figures, Labels
from bus.settings import Settings
from bus.worker import Worker
from schemas import metrics
from schemas.bodies.accounts import Login, Register
from schemas.bodies.items import MemoryAdd
from schemas.bodies.learning import AnswerEvent, OpportunityAdd
from schemas.bodies.memory import CacheGet, CacheSet, KvSet
from schemas.bodies.model import Generate, ModelInfo, ModelLoad, ModelShow, ModelUnload
from schemas.bodies.resource import LeaseAcquire, LeaseRelease
from schemas.bodies.search import Search
from schemas.bodies.sessions import SessionCreate
from schemas.bodies.telling import Figures as Told
from schemas.bodies.telling import Series
from schemas.errors import BusError, QuotaExceeded, Unauthenticated
from schemas.metrics import METRICS, Metric
from tests.fake_nvml import Card, FakeNvml
from workers.gateway.service import Gateway
from workers.learning.service import LearningService
from workers.memory.service import service as memory_service
from workers.models.service import ModelService
from workers.resources.nvml import Nvml
from workers.resources.service import ResourceService

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

WAIT_S: Final = 20.0
GIB: Final = 1024**3


def values(series: dict[str, list[Series]], metric: Metric) -> dict[Labels, float]:
    """What is told of a metric, by its labels; of a histogram, how many observations."""
    return {one.labels: sum(one.counts) if one.counts else one.value for one in series.get(metric.name, [])}


def of(figures: Figures, metric: Metric) -> dict[Labels, float]:
    return values(figures.series(), metric)


def declared(*prefixes: str) -> set[str]:
    """Metrics of a section."""
    return {name for name in METRICS if name.startswith(tuple(f"olympus_{prefix}" for prefix in prefixes))}


async def until(holds: Callable[[], Any], what: str) -> None:
    """Wait until it holds; fail naming what did not come about."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not holds():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {WAIT_S:g} s: {what}")


def with_section(settings: Settings, section: str, **changes: Any) -> Settings:
    return msgspec.structs.replace(
        settings, **{section: msgspec.structs.replace(getattr(settings, section), **changes)}
    )


# Memory -------------------------------------------------------------------------------------------------------------


async def test_memory_tells_what_it_holds_and_did(serve_broker: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of rows, commits, searches, cache reads and sign-ins are what was done; every metric of it is told."""
    monkeypatch.setattr("workers.memory.upkeep.gauges.EVERY_S", 0.05)
    async with serve_broker() as broker:
        settings = with_section(broker, "memory", encoder="/nowhere")
        async with memory_service(settings) as worker, Client(settings, name="test") as client:
            figures = worker.figures
            await worker.start(10)
            await client.request("memory.kv.set", KvSet(key="k", value=1))
            await client.request("memory.add", MemoryAdd(content="the cat sleeps", tier="long"))
            await client.request("memory.session.create", SessionCreate(user_id="ada"))
            await client.request("memory.cache.set", CacheSet(type="memory", key="a", value=1))
            for key in ("a", "b", "b"):
                await client.request("memory.cache.get", CacheGet(type="memory", key=key))
            for query in ("cat", "zebra"):
                await client.request("memory.search", Search(query=query))
            await client.request("auth.register", Register(user_id="ada", password="open sesame"), timeout_s=WAIT_S)
            await client.request("auth.login", Login(user_id="ada", password="open sesame"), timeout_s=WAIT_S)
            outcomes = [await outcome_of_login(client) for _ in range(6)]

            assert outcomes[0] is Unauthenticated
            failed = outcomes.count(Unauthenticated)
            assert of(figures, metrics.SIGN_INS) == {("ok",): 1, ("failed",): failed, ("slowed",): 6 - failed}
            assert 0 < failed < 6
            assert of(figures, metrics.MEMORY_CACHE) == {("hit",): 1, ("miss",): 2}
            assert of(figures, metrics.MEMORY_SEARCHES) == {("found",): 1, ("empty",): 1}
            assert of(figures, metrics.MEMORY_SEARCH_SECONDS) == {(): 2}
            writes, commits = of(figures, metrics.MEMORY_WRITES)[()], of(figures, metrics.MEMORY_COMMITS)[()]
            assert 5 <= commits <= writes
            assert of(figures, metrics.MEMORY_COMMIT_SECONDS) == {(): commits}
            await until(lambda: of(figures, metrics.MEMORY_ITEMS).get(("long",)) == 1, "the memory is counted")
            await until(lambda: of(figures, metrics.MEMORY_SESSIONS)[()] == 1, "the session is counted")
            assert of(figures, metrics.MEMORY_ITEMS) == {("long",): 1, ("medium",): 0, ("short",): 0}
            assert of(figures, metrics.MEMORY_RECORDS)["kv",] == of(figures, metrics.MEMORY_RECORDS)["session",] == 1
            assert of(figures, metrics.MEMORY_OUTBOX) == {(): 1}
            assert of(figures, metrics.MEMORY_VECTORS) == of(figures, metrics.MEMORY_HOT_AWAY) == {(): 0}
            assert of(figures, metrics.MEMORY_DB_BYTES)[()] > 10_000
            told = figures.series().keys()
            assert told >= declared("memory_", "auth_")
            await worker.stop()


async def outcome_of_login(client: Client) -> type[BusError] | None:
    try:
        await client.request("auth.login", Login(user_id="ada", password="guessed"), timeout_s=WAIT_S)
    except (Unauthenticated, QuotaExceeded) as error:
        return type(error)
    return None


async def test_memory_says_what_it_does_without(serve_broker: Serve) -> None:
    """A missing encoder is named with its reason, by the worker as in the service's own figures."""
    async with serve_broker() as broker:
        settings = with_section(broker, "memory", encoder="/nowhere")
        async with memory_service(settings) as worker, Client(settings, name="test") as client:
            await worker.start(10)
            assert "/nowhere" in worker.degraded()["encoder"]
            assert worker.degraded().keys() == {"encoder"}

            stats = await client.request("memory.stats")
            assert stats.degraded == list(worker.degraded().values())
            await worker.stop()


# Models -------------------------------------------------------------------------------------------------------------


async def test_models_and_their_runners_tell_loads_answers_and_deaths(serve_broker: Serve) -> None:
    """A load, an answer, a crash and an unload are counted by the service, tokens by the runner, over the bus."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    async with serve_broker() as broker:
        settings = with_section(
            with_section(broker, "bus", metrics_interval_s=0.1), "models", spare_runners=0, predict=False
        )
        service = ModelService(settings)
        figures = service.worker.figures
        await service.start()
        try:
            async with Client(settings, name="test") as client, client.subscribe("metrics.>") as events:
                load = ModelLoad(model="olympus-demo")
                state = await client.request("model.load", load, timeout_s=WAIT_S)
                # Noise at a high temperature does not end by itself.
                noise = Generate(prompt="Tell", max_tokens=4, temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=3)
                reply = await client.request("model.generate", noise, timeout_s=WAIT_S)

                runner = await told_by(events, metrics.MODEL_SECONDS)
                name, usage = "olympus-demo", reply.usage
                assert runner.service == "model.runner"
                assert values(runner.metrics, metrics.MODEL_GENERATIONS) == {(name, "ok"): 1}
                assert values(runner.metrics, metrics.MODEL_TOKENS) == {
                    (name, "prompt"): usage.prompt_tokens,
                    (name, "cached"): usage.cached_tokens,
                    (name, "completion"): 4,
                }
                assert values(runner.metrics, metrics.MODEL_SECONDS) == {(name,): 1}
                assert values(runner.metrics, metrics.MODEL_FIRST_TOKEN) == {(name,): 1}
                assert figures.series().keys() | runner.metrics.keys() >= declared("model_", "models_")
                assert of(figures, metrics.MODELS_LOADED) == {("loading",): 0, ("serving",): 1, ("unloading",): 0}
                assert of(figures, metrics.MODEL_BYTES)[name, "cpu"] > 1_000_000
                assert of(figures, metrics.MODELS_KNOWN)[()] >= 1

                os.kill(state.pid, signal.SIGKILL)
                await until(lambda: of(figures, metrics.MODEL_CRASHES)[()] == 1, "the crash is counted")
                await client.request("model.load", load, timeout_s=WAIT_S)
                await client.request("model.unload", ModelUnload(model=name), timeout_s=WAIT_S)
                assert of(figures, metrics.MODEL_LOADS) == {("ok",): 2, ("failed",): 0}
                assert of(figures, metrics.MODEL_LOAD_SECONDS) == {(): 2}
                assert of(figures, metrics.MODEL_UNLOADS) == {
                    ("asked",): 1,
                    ("crash",): 1,
                    ("idle",): 0,
                    ("room",): 0,
                }
                assert of(figures, metrics.MODEL_CRASHES) == {(): 1}
        finally:
            await service.stop()


async def told_by(events: Any, metric: Metric) -> Told:
    """The first telling with values of a metric."""
    async with asyncio.timeout(WAIT_S):
        async for event in events:
            told = msgspec.convert(event.body, Told)
            if metric.name in told.metrics:
                return told
    raise AssertionError


async def test_models_say_what_they_do_without(serve_broker: Serve, tmp_path: Path) -> None:
    """A folder that cannot be read, a default model that is not there, and nobody who keeps the books of memory."""
    gone = tmp_path / "not mounted"
    async with serve_broker() as broker:
        settings = with_section(broker, "models", roots=("models", str(gone)), default="absent", spare_runners=0)
        service = ModelService(settings)
        await service.start()
        try:
            reasons = service.worker.degraded()
            assert reasons.keys() == {"catalogue", "default_model", "resource"}
            assert str(gone) in reasons["catalogue"]
            assert "models.default" in reasons["default_model"]
            assert "models.max_loaded" in reasons["resource"]
        finally:
            await service.stop()


class BusyGpu(FakeNvml):
    """Cards that tell how busy they are."""

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:  # noqa: N802 - the library's own name
        return SimpleNamespace(gpu=75)


# Resources ----------------------------------------------------------------------------------------------------------


async def test_resources_tell_devices_locks_and_leases(serve_broker: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as its driver tells of it, who holds its memory and its lock, and what happened to leases."""
    monkeypatch.setattr("workers.resources.figures.LOOK_S", 0.02)
    library = BusyGpu(Card("GPU-a", total=24 * GIB, used=3 * GIB))
    async with serve_broker() as broker:
        settings = with_section(broker, "resources", devices=("cpu=8GiB",), spare_vram="0GiB", sample_s=0.05)
        service = ResourceService(settings, Nvml(lambda: library))
        figures = service.worker.figures
        await service.start()
        lock = DeviceLock(settings.path("locks"), "gpu0")
        try:
            async with Client(settings, name="test") as client:
                lease = LeaseAcquire(service="model", lease_id="one", device="gpu0", vram_bytes=2 * GIB)
                await client.request("resource.lease.acquire", lease)
                with pytest.raises(BusError):
                    too_much = LeaseAcquire(service="model", device="gpu0", vram_bytes=23 * GIB)
                    await client.request("resource.lease.acquire", too_much)
                await lock.acquire(model="m", purpose="training job-7", timeout_s=1.0)
                await until(lambda: of(figures, metrics.DEVICE_LOCKED), "the lock is seen")

                assert of(figures, metrics.DEVICE_LOCKED) == {("gpu0", "training"): 1}
                assert of(figures, metrics.LEASES) == {("gpu0", "model"): 1}
                assert of(figures, metrics.DEVICE_TOTAL) == {("gpu0",): 24 * GIB, ("cpu",): 8 * GIB}
                assert of(figures, metrics.DEVICE_USED)["gpu0",] == 3 * GIB
                assert of(figures, metrics.DEVICE_RESERVED) == {("gpu0",): 2 * GIB, ("cpu",): 0}
                assert of(figures, metrics.DEVICE_LOAD) == {("gpu0",): 0.75}
                assert of(figures, metrics.DEVICE_HEAT) == {("gpu0",): 41}
                assert of(figures, metrics.DEVICE_LOCK_WAITING) == {("gpu0",): 0, ("cpu",): 0}
                assert figures.series().keys() >= declared("device_", "lease")
                await client.request("resource.lease.release", LeaseRelease(lease_id="one"))
                happened = of(figures, metrics.LEASE_EVENTS)
                assert (happened["granted",], happened["refused",], happened["released",]) == (1, 1, 1)

                assert service.worker.degraded() == {}
                lock.release()
                await lock.acquire(model="m", purpose="load", timeout_s=1.0)
                await until(lambda: ("gpu0", "load") in of(figures, metrics.DEVICE_LOCKED), "the new holder is seen")
                assert service._figures.problems(time.time() + 300.0) == {}
                assert "for 15 minutes" in service._figures.problems(time.time() + 900.0)["gpu0 lock"]
                library.failing = "Driver/library version mismatch"
                await until(lambda: service.worker.degraded().keys() >= {"nvml", "gpu0"}, "the driver is missed")
                assert "version mismatch" in service.worker.degraded()["nvml"]
                assert not of(figures, metrics.DEVICE_LOAD)
        finally:
            lock.release()
            await service.stop()


# Learning -----------------------------------------------------------------------------------------------------------


async def test_learning_tells_what_it_saw_and_what_is_open(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exchanges, opportunities and jobs by state are told from the start; a running training's own figures are not."""
    monkeypatch.setattr("workers.learning.figures.EVERY_S", 0.05)
    async with serve_broker() as broker:
        settings = with_section(broker, "learning", warm_s=0.0)
        service = LearningService(settings)
        figures = service.worker.figures
        others = Worker("model", settings)

        async def show(request: ModelShow, call: Any) -> ModelInfo:
            raise AssertionError("nobody asks")

        others.handle("model.show", show)
        await others.start()
        await service.start()
        try:
            async with Client(settings, name="test") as client:
                answer = AnswerEvent(reply_id="r", model="m", operation="generate", at=1.0, prompt="?", text="!")

                async def answered() -> None:
                    while not of(figures, metrics.LEARNING_EXCHANGES)[()]:
                        await client.publish("model.answered", answer)
                        await asyncio.sleep(0.05)

                async with asyncio.timeout(WAIT_S):
                    await answered()
                assert of(figures, metrics.LEARNING_EXCHANGES) == {(): 1}
                add = OpportunityAdd(model="m", title="what a cat is")
                await client.request("learning.opportunity.add", add)
                await until(lambda: of(figures, metrics.LEARNING_OPPORTUNITIES).get(("open",)) == 1, "it is counted")
                assert of(figures, metrics.LEARNING_OPPORTUNITIES)["learned",] == 0
                assert of(figures, metrics.LEARNING_JOBS)["queued",] == 0
                assert of(figures, metrics.LEARNING_TRAININGS) == {("finished",): 0, ("failed",): 0, ("stopped",): 0}
                assert of(figures, metrics.LEARNING_GATES) == {("passed",): 0, ("failed",): 0}
                running = {metrics.LEARNING_PROGRESS.name, metrics.LEARNING_LOSS.name}
                assert figures.series().keys() & declared("learning_") == declared("learning_") - running
                assert service.worker.degraded() == {}
        finally:
            await service.stop()
            await others.stop()


# Gateway ------------------------------------------------------------------------------------------------------------


async def test_the_gateway_tells_of_its_legacy_ports(serve_broker: Serve) -> None:
    """Requests to replaced agents by outcome, what is bound and connected, and a port that another program has."""
    async with serve_broker() as broker:
        taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = taken.sockets[0].getsockname()[1]
        settings = with_section(
            with_section(broker, "rest", **dict.fromkeys(HTTP_PORTS, 0)),
            "legacy",
            enabled=True,
            agents=("KnowledgeBase", "MemoryClient"),
            ports=(
                "KnowledgeBase=0",
                "KnowledgeBase.health=off",
                "KnowledgeBase.http=off",
                f"MemoryClient={port}",
                "MemoryClient.health=off",
                "MemoryClient.http=off",
            ),
        )
        gateway = Gateway(settings)
        figures = gateway.worker.figures
        await gateway.start()
        try:
            agent = gateway.house.agent("KnowledgeBase")
            await agent.answer({"action": "health_check"})
            await agent.answer({"action": "no such thing"})
            assert of(figures, metrics.LEGACY_REQUESTS) == {
                ("KnowledgeBase", "ok"): 1,
                ("KnowledgeBase", "failed"): 1,
            }
            assert of(figures, metrics.LEGACY_PORTS) == {(): 1}
            assert of(figures, metrics.LEGACY_CONNECTIONS) == {(): 0}
            assert gateway.worker.degraded() == {"ports": f"not bound: {port} (MemoryClient); `olympus ports` says why"}
            assert figures.series().keys() >= declared("legacy_")
        finally:
            await gateway.stop()
            taken.close()
            await taken.wait_closed()


HTTP_PORTS: Final = tuple(name for name in Settings().rest.__struct_fields__ if name.endswith("port"))
