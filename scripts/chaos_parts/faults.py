"""The faults: each breaks one thing for real, names the alerts that must tell of it, and heals it again."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench_bus_parts.processes import Process, ProcessFailed
from bus.client import Client
from chaos_parts.house import TELLING_S, House, Redis, Webhook
from schemas import metrics
from schemas.bodies.telling import Figures, Series
from schemas.errors import BusError
from schemas.metrics import Metric
from workers.models.catalogue import SHIPPED_ROOT

# Seconds between two of a fault's repeated acts.
_PAUSE_S: Final = 0.05

# Requests that fill the victim's queue, and how many a queue of this house takes (broker.queue_max_requests).
QUEUE_MAX: Final = 50

# Bytes that may wait for one subscriber of this house (broker.subscriber_max_bytes), and of one event.
SUBSCRIBER_MAX_BYTES: Final = 1024 * 1024
_EVENT_BYTES: Final = 64 * 1024

# A file of this name below models is no model.
BROKEN_MODEL: Final = "broken"


class World(NamedTuple):
    """What faults work on."""

    house: House
    client: Client
    redis: Redis
    webhook: Webhook


class Fault(NamedTuple):
    """`inject` breaks on entering and heals on leaving. needs: why it may be left out."""

    name: str
    about: str
    alerts: tuple[str, ...]
    inject: Callable[[World], AbstractAsyncContextManager[None]]
    needs: Callable[[World], str] = lambda world: ""


FAULTS: list[Fault] = []


def fault(
    name: str, about: str, *alerts: str, needs: Callable[[World], str] = lambda world: ""
) -> Callable[[Callable[[World], AsyncIterator[None]]], None]:
    """Declares one."""

    def declare(inject: Callable[[World], AsyncIterator[None]]) -> None:
        FAULTS.append(Fault(name, about, alerts, asynccontextmanager(inject), needs))

    return declare


@asynccontextmanager
async def again_and_again(act: Callable[[], Awaitable[object]], pause_s: float = _PAUSE_S) -> AsyncIterator[None]:
    """`act` over and over in the background; the bus's refusals are what is wanted."""

    async def go_on() -> None:
        while True:
            with contextlib.suppress(BusError):
                await act()
            await asyncio.sleep(pause_s)

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def victim(world: World) -> AsyncIterator[Process]:
    """A worker to break; once it has told figures, so that what comes is an increase."""
    process = world.house.spare("victim", ["-m", "chaos_parts.victim"])
    await world.house.joined("chaos")
    await asyncio.sleep(4 * TELLING_S)
    try:
        yield process
    finally:
        world.house.end(process)


# Processes --------------------------------------------------------------------------------------------------------


@fault("kill a service thrice", "kill -9 of the resource service, three times", "ServiceCrashLoop", "WorkersLost")
async def _kill_thrice(world: World) -> AsyncIterator[None]:
    for _ in range(3):
        world.house.kill("resources")
        world.house.run("resources")
        await world.house.joined("resource")
        await asyncio.sleep(4 * TELLING_S)
    yield


@fault("stop a service", "the resource service leaves and does not come back", "ServiceDown")
async def _stop_service(world: World) -> AsyncIterator[None]:
    world.house.stop("resources")
    yield
    world.house.run("resources")
    await world.house.joined("resource")


@fault("kill the broker", "kill -9 of the broker, which nobody starts again", "BrokerGone")
async def _kill_broker(world: World) -> AsyncIterator[None]:
    world.house.kill("broker")
    yield
    world.house.run("broker")
    await world.house.joined("memory", "model", "resource", "error", "exporter")


@fault("kill the exporter", "kill -9 of the exporter", "ExporterDown")
async def _kill_exporter(world: World) -> AsyncIterator[None]:
    world.house.kill("exporter")
    yield
    world.house.run("exporter")
    await world.house.joined("exporter")


@fault("block an event loop", "a worker that computes where it should wait", "EventLoopSlow")
async def _block(world: World) -> AsyncIterator[None]:
    async with victim(world), again_and_again(lambda: world.client.request("chaos.block", timeout_s=5)):
        yield


# The bus ----------------------------------------------------------------------------------------------------------


@fault("fill a queue", "more requests than a slow worker's queue takes", "QueueFilling", "BusOverloaded")
async def _fill_queue(world: World) -> AsyncIterator[None]:
    async def ask() -> None:
        with contextlib.suppress(BusError):
            await world.client.request("chaos.dawdle", timeout_s=120)

    async with victim(world):
        tasks = [asyncio.create_task(ask()) for _ in range(2 * QUEUE_MAX)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@fault("let requests expire", "callers that wait less than a worker takes", "RequestsExpiring")
async def _expire(world: World) -> AsyncIterator[None]:
    async with victim(world), again_and_again(lambda: world.client.request("chaos.dawdle", timeout_s=0.2)):
        yield


@fault("ask for what nobody serves", "a program whose service is missing", "RequestsUnserved")
async def _unserved(world: World) -> AsyncIterator[None]:
    async with again_and_again(lambda: world.client.request("nobody.serves.this", timeout_s=1)):
        yield


@fault(
    "die while working", "a worker that crashes over a request, which is not tried again", "DeadLetters", "WorkersLost"
)
async def _die(world: World) -> AsyncIterator[None]:
    async with victim(world):
        with contextlib.suppress(BusError):
            await world.client.request("chaos.die", timeout_s=10)
    yield


@fault("stop reading events", "a frozen `olympus tap` while much is published", "SubscribersLoseEvents")
async def _slow_subscriber(world: World) -> AsyncIterator[None]:
    tap = world.house.spare("tap", ["-m", "bus.cli.app", "tap", "chaos.>"])
    try:
        # It reads as long as it is being started.
        async with again_and_again(lambda: world.client.publish("chaos.noise", b"x" * _EVENT_BYTES), 0.01):
            deadline = time.monotonic() + 20
            while not tap.log.stat().st_size:
                if time.monotonic() > deadline:
                    raise ProcessFailed("olympus tap shows nothing")
                await asyncio.sleep(0.1)
            tap.child.send_signal(signal.SIGSTOP)
            yield
    finally:
        world.house.end(tap)


@fault("fill the event log's disk", "the broker may not write another byte to its files", "EventLogFailed")
async def _full_disk(world: World) -> AsyncIterator[None]:
    # RLIMIT_FSIZE stands for a full disk: a write fails, and goes on to fail, until somebody makes room.
    pid = world.house.processes["broker"].child.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        async with again_and_again(lambda: world.client.publish("memory.changed.chaos", {"ns": "chaos"})):
            yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    async with again_and_again(lambda: world.client.publish("memory.changed.chaos", {"ns": "chaos"})):
        await asyncio.sleep(2 * TELLING_S)


@fault(
    "send garbage",
    "a program that speaks ZeroMQ and not our protocol",
    "UnreadableMessages",
    needs=lambda world: _no_zmq(),
)
async def _garbage(world: World) -> AsyncIterator[None]:
    import zmq

    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"tcp://127.0.0.1:{world.house.settings.bus.request_port}")

        async def send() -> None:
            dealer.send_multipart([b"no", b"such", b"message"], zmq.NOBLOCK)

        async with again_and_again(send):
            yield


def _no_zmq() -> str:
    return "" if importlib.util.find_spec("zmq") else "pyzmq is not installed"


# Errors and safety ------------------------------------------------------------------------------------------------


@fault(
    "storm of errors",
    "a worker that fails every request, and a webhook that takes no notice",
    "ErrorBurst",
    "ManyRequestsFail",
    "NotificationsFail",
)
async def _storm(world: World) -> AsyncIterator[None]:
    async with victim(world):
        await world.webhook.stop()
        async with again_and_again(lambda: world.client.request("chaos.fail", timeout_s=5), 0.01):
            yield
        # The error service believes in the webhook again when it has taken something, and tells it what is new.
        await world.webhook.start()
        async with again_and_again(lambda: _report_another(world), 1.0):
            await world.webhook.taken()


async def _report_another(world: World) -> None:
    """An error like none before: words without digits, which would not count."""
    word = "".join(random.choices("abcdefghijkl", k=12))
    await world.client.request(
        "error.report", {"service": "chaos", "message": f"the {word} broke", "severity": "error"}
    )


@fault("forge sign-ins", "a program that tries passwords", "SignInsFail")
async def _forge(world: World) -> AsyncIterator[None]:
    body = {"user_id": "admin", "password": "a guess that is wrong"}
    async with again_and_again(lambda: world.client.request("auth.login", body, timeout_s=10)):
        yield


@fault("lie in figures", "a process that tells what is no figure", "FiguresRefused")
async def _lie(world: World) -> AsyncIterator[None]:
    lies = {
        "olympus_no_such_metric": [Series((), 1.0)],
        metrics.PROCESS_RSS.name: [Series((), float("nan"))],
        metrics.MODEL_LOADS.name: [Series(("too", "many", "labels"), 1.0)],
    }
    async with again_and_again(lambda: tell(world, "liar", lies), TELLING_S):
        yield


@fault("fall silent", "told: a process that tells rarely, and then no more", "FiguresStale")
async def _silent(world: World) -> AsyncIterator[None]:
    told = {metrics.PROCESS_RSS.name: [Series((), 1.0)]}
    # Believed for three of its own intervals.
    await tell(world, "silent", told, every_s=60.0)
    yield
    await tell(world, "silent", told)


# Memory and models ------------------------------------------------------------------------------------------------


@fault(
    "kill Redis",
    "memory's Redis goes away",
    "RedisAway",
    "DependencyDegraded",
    needs=lambda world: "" if world.redis.url else "redis-server is not installed",
)
async def _redis(world: World) -> AsyncIterator[None]:
    world.redis.kill()
    yield
    world.redis.start()


@fault("load a broken model", "somebody who asks again and again for a file that no backend can run", "ModelLoadsFail")
async def _broken_model(world: World) -> AsyncIterator[None]:
    async with again_and_again(lambda: world.client.request("model.load", {"model": BROKEN_MODEL}, timeout_s=20), 0.5):
        yield


@fault("kill a model's runner", "kill -9 of the process that runs a model", "ModelRunnerCrashes")
async def _runner(world: World) -> AsyncIterator[None]:
    await world.client.request("model.load", {"model": "olympus-demo"}, timeout_s=60)
    await asyncio.sleep(4 * TELLING_S)
    workers = await world.client.request("bus.workers", {"service": "model.runner"})
    os.kill(workers.workers[0].pid, signal.SIGKILL)
    yield
    await world.client.request("model.load", {"model": "olympus-demo"}, timeout_s=60)


# What cannot be broken here: told, as another machine of the house would tell it ------------------------------------


async def tell(world: World, service: str, told: Mapping[str, list[Series]], *, every_s: float = TELLING_S) -> None:
    """Publish figures of a process on another machine."""
    body = Figures(
        service=service,
        instance="other-machine",
        host="other-machine",
        pid=1,
        started_at=time.time(),
        at=time.time(),
        every_s=every_s,
        metrics=dict(told),
    )
    await world.client.publish(f"metrics.{service}", body)


def _told(
    name: str, about: str, service: str, alerts: tuple[str, ...], figures: Callable[[float], Mapping[Metric, Any]]
) -> None:
    """A fault that is told: `figures` gives labels -> value of metrics, `since_s` seconds after it began."""

    async def inject(world: World) -> AsyncIterator[None]:
        began = time.monotonic()

        async def say() -> None:
            now = figures(time.monotonic() - began)
            await tell(world, service, {metric.name: _series(metric, values) for metric, values in now.items()})

        async with again_and_again(say, TELLING_S):
            yield

    FAULTS.append(Fault(name, f"told: {about}", alerts, asynccontextmanager(inject)))


def _series(metric: Metric, values: Mapping[tuple[str, ...], float]) -> list[Series]:
    if metric.kind != "histogram":
        return [Series(labels, float(value)) for labels, value in values.items()]
    # All observations above the last bucket.
    counts = (*([0] * len(metric.buckets)), 1)
    return [
        Series(labels, value * metric.buckets[-1], tuple(int(value) * one for one in counts))
        for labels, value in values.items()
    ]


_GIB: Final = 1024.0**3
_GPU: Final = ("gpu0",)
_HOST: Final = ("other-machine",)

_told(
    "a machine without room",
    "disk and memory of another machine run out",
    "resource",
    ("DiskFilling", "DiskAlmostFull", "MemoryLow"),
    lambda since_s: {
        metrics.HOST_DISK: {_HOST: 100 * _GIB},
        metrics.HOST_DISK_FREE: {_HOST: max(4 * _GIB - since_s * 10 * 2**20, 0)},
        metrics.HOST_MEMORY: {_HOST: 32 * _GIB},
        metrics.HOST_MEMORY_FREE: {_HOST: 1 * _GIB},
    },
)
_told(
    "a GPU in distress",
    "a card that is hot and full, whose lock is not given back and whose leases run out",
    "resource",
    ("GpuHot", "VramAlmostFull", "DeviceLockHeld", "LeasesRefused"),
    lambda since_s: {
        metrics.DEVICE_HEAT: {_GPU: 91},
        metrics.DEVICE_TOTAL: {_GPU: 24 * _GIB},
        metrics.DEVICE_USED: {_GPU: 23.8 * _GIB},
        metrics.DEVICE_LOCK_WAITING: {_GPU: 1},
        metrics.LEASE_EVENTS: {("refused",): 10 * since_s},
    },
)
_told(
    "memory in distress",
    "a memory service that does not keep up",
    "memory",
    ("OutboxStuck", "WritesWaiting", "SearchSlow", "FilesRunningOut", "LabelsOverflow"),
    lambda since_s: {
        metrics.MEMORY_OUTBOX: {(): 5000},
        metrics.MEMORY_WRITES_WAITING: {(): 2000},
        metrics.MEMORY_SEARCH_SECONDS: {(): 500 + 100 * since_s},
        metrics.PROCESS_FDS: {(): 1000},
        metrics.PROCESS_MAX_FDS: {(): 1024},
        metrics.METRICS_DROPPED: {(): since_s},
    },
)
_told(
    "models in distress",
    "a model that is quarantined, others that are awaited or fail",
    "model",
    ("ModelQuarantined", "ModelsAwaited", "GenerationsFail"),
    lambda since_s: {
        metrics.MODEL_QUARANTINED: {(): 1},
        metrics.MODEL_WAITING: {(): 3},
        metrics.MODEL_GENERATIONS: {("big", "ok"): since_s, ("big", "internal"): since_s},
    },
)
_told(
    "learning in distress",
    "trainings that fail, hang, are refused or taken back",
    "learning",
    ("TrainingFailed", "GateKeepsRefusing", "RolledBack", "LearningStuck"),
    lambda since_s: {
        metrics.LEARNING_TRAININGS: {("failed",): since_s // 5},
        metrics.LEARNING_GATES: {("failed",): since_s, ("passed",): 0},
        metrics.LEARNING_ROLLBACKS: {(): since_s // 5},
        metrics.LEARNING_JOBS: {("training",): 1},
        metrics.LEARNING_TOKENS: {(): 0},
    },
)
_told(
    "errors lost, people refused",
    "an error service that does not keep up, and somebody who asks for what is not theirs",
    "error",
    ("ErrorsMissed", "ManyRefusals"),
    lambda since_s: {metrics.ERRORS_MISSED: {(): since_s}, metrics.REFUSALS: {("forbidden",): 30 * since_s}},
)


# Set before the house starts ----------------------------------------------------------------------------------------


def settings_of(redis: Redis, webhook: Webhook) -> dict[str, Any]:
    """Bounds small enough to be reached within seconds."""
    chosen: dict[str, Any] = {
        "broker.queue_max_requests": QUEUE_MAX,
        "broker.subscriber_max_bytes": SUBSCRIBER_MAX_BYTES,
        "errors.webhooks": f'["http://127.0.0.1:{webhook.port}/"]',
        "errors.notify_every_s": 1,
        "models.predict": False,
    }
    return chosen | ({"memory.redis_url": redis.url} if redis.url else {})


def put_broken_model(home: Path) -> None:
    """The demo model with an architecture that nothing can run: it is found, and cannot be loaded."""
    folder = home / "models"
    folder.mkdir(parents=True, exist_ok=True)
    whole = next(SHIPPED_ROOT.glob("*.gguf")).read_bytes()
    key = b"general.architecture"
    at = whole.index(key) + len(key) + 12  # the type of the value, 4 bytes, and the length of the text, 8
    (folder / f"{BROKEN_MODEL}.gguf").write_bytes(whole[:at] + b"x" + whole[at + 1 :])
