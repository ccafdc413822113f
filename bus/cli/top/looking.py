"""One look at the whole bus, and the rates between two looks. Knows nothing of how they are shown."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import msgspec

from bus.cli.status import not_running
from bus.client import Client
from schemas.bodies.control import (
    BrokerStats,
    BusServices,
    BusStats,
    BusWorkers,
    ServiceInfo,
    ServiceList,
    WorkerInfo,
    WorkerList,
)
from schemas.bodies.errors import ErrorGroup, ErrorList, ErrorPage, ErrorStats, ErrorStatsReply
from schemas.bodies.learning_jobs import JobInfo, Jobs, TrainingList
from schemas.bodies.model import ModelInfo, ModelList, Models
from schemas.bodies.resource import GpuStatus, GpuStatusReply
from schemas.errors import BusError

# A broker that does not answer its own questions within this long is away, seconds.
_BROKER_S: Final = 2.0

# A service that is busy must not freeze the view, seconds.
_SERVICE_S: Final = 1.0

# Errors are counted this far back, seconds: long enough that one a minute is seen as such.
ERRORS_OVER_S: Final = 600.0

# Jobs and groups of errors that a view holds.
ROWS: Final = 200


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the bus. at: seconds of a monotonic clock; wall: since the epoch.

    What a service tells is None when nobody serves it: models, devices, jobs, and of the last ten minutes errors; groups
    are the newest of the open ones, of which there are groups_total.
    """

    at: float
    wall: float = 0.0
    stats: BrokerStats
    services: list[ServiceInfo]
    workers: list[WorkerInfo]
    models: list[ModelInfo] | None = None
    devices: GpuStatusReply | None = None
    jobs: list[JobInfo] | None = None
    errors: ErrorStatsReply | None = None
    groups: list[ErrorGroup] | None = None
    groups_total: int = 0


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Differences between two looks, per second; workers' CPU in percent of one core."""

    requests: float
    events: float
    answered: dict[str, float]
    failed: dict[str, float]
    worker_answered: dict[str, float]
    worker_cpu: dict[str, float]


async def look(client: Client) -> Sample:
    """Ask the broker, and every service that there is, how things stand. Raises BusError when the broker does not say."""
    services: ServiceList
    workers: WorkerList
    stats: BrokerStats
    async with asyncio.timeout(_BROKER_S + 1):
        services, workers, stats = await asyncio.gather(
            client.request("bus.services", BusServices(), timeout_s=_BROKER_S),
            client.request("bus.workers", BusWorkers(), timeout_s=_BROKER_S),
            client.request("bus.stats", BusStats(), timeout_s=_BROKER_S),
        )
    absent = not_running(services.services)

    async def ask(service: str, subject: str, body: Any) -> Any:
        if service in absent:
            return None
        try:
            return await client.request(subject, body, timeout_s=_SERVICE_S)
        except BusError:
            # It is busy, gone since, or we may not ask it: the view goes without.
            return None

    models: Models | None
    devices: GpuStatusReply | None
    jobs: Jobs | None
    errors: ErrorStatsReply | None
    page: ErrorPage | None
    models, devices, jobs, errors, page = await asyncio.gather(
        ask("model", "model.list", ModelList()),
        ask("resource", "gpu.status", GpuStatus()),
        ask("learning", "learning.training.list", TrainingList(limit=ROWS)),
        ask("error", "error.stats", ErrorStats(over_s=ERRORS_OVER_S)),
        ask("error", "error.list", ErrorList(limit=ROWS)),
    )
    return Sample(
        at=time.monotonic(),
        wall=time.time(),
        stats=stats,
        services=services.services,
        workers=workers.workers,
        models=models.models if models is not None else None,
        devices=devices,
        jobs=jobs.jobs if jobs is not None else None,
        errors=errors,
        groups=page.groups if page is not None else None,
        groups_total=page.total if page is not None else 0,
    )


def rates(before: Sample | None, now: Sample) -> Rates | None:
    """Rates between two looks; None without an earlier look or when the broker was started in between."""
    if before is None or before.stats.boot != now.stats.boot or now.at <= before.at:
        return None
    gap_s = now.at - before.at
    services = {each.service: each for each in before.services}
    workers = {worker_key(each): each for each in before.workers}
    known = [each for each in now.workers if worker_key(each) in workers]
    return Rates(
        requests=(now.stats.requests - before.stats.requests) / gap_s,
        events=(now.stats.events - before.stats.events) / gap_s,
        answered={
            each.service: (each.answered - (services[each.service].answered if each.service in services else 0)) / gap_s
            for each in now.services
        },
        failed={
            each.service: (each.failed - (services[each.service].failed if each.service in services else 0)) / gap_s
            for each in now.services
        },
        worker_answered={
            worker_key(each): (each.answered - workers[worker_key(each)].answered) / gap_s for each in known
        },
        worker_cpu={worker_key(each): 100 * (each.cpu_s - workers[worker_key(each)].cpu_s) / gap_s for each in known},
    )


def worker_key(worker: WorkerInfo) -> str:
    """What a worker is called in one look and the next."""
    return f"{worker.service}/{worker.instance}"
