"""The picture of the bus: broker, services, workers and machines, with rates between two looks; pure but for the asking."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from bus.client import Client
from bus.needs import in_words, missing, needs_of
from bus.settings import Settings
from schemas import catalog
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

# Seconds an answer is given again: many may look, and none of them should load the bus.
_KEPT_S: Final = 0.5

# Seconds between two looks for a rate: less is noise, more is history.
_RATE_FROM_S: Final = 1.0
_RATE_TO_S: Final = 10.0

# Seconds the broker has for each answer.
_ASK_S: Final = 3.0

# What the broker itself answers is there when the broker is.
_OF_BROKER: Final = frozenset({"bus", "deadletter"})

# Services that a whole house has.
_EXPECTED: Final = frozenset(one.service for one in catalog.OPERATIONS.values()) - _OF_BROKER


class Look(msgspec.Struct, frozen=True):
    """What the broker said at one time, monotonic seconds."""

    at: float
    stats: BrokerStats
    services: list[ServiceInfo]
    workers: list[WorkerInfo]


class BrokerRates(msgspec.Struct, frozen=True, kw_only=True):
    """What a person wants the rate of, per second; cpu: cores."""

    requests: float
    events: float
    cpu: float


class BrokerView(BrokerStats, frozen=True, kw_only=True):
    """The broker with its rates."""

    rates: BrokerRates | None


class WorkerView(WorkerInfo, frozen=True, kw_only=True):
    """A worker instance with its rates: answers per second and cores."""

    rate: float | None
    cpu: float | None


class ServiceView(msgspec.Struct, frozen=True, kw_only=True):
    """One service. needs: what the settings of this machine say that it waits for; missing: what of that is not there."""

    service: str
    state: Literal["ok", "degraded", "away"]
    instances: int = 0
    capacity: int = 0
    in_flight: int = 0
    queued: int = 0
    answered: int = 0
    failed: int = 0
    p50_s: float | None = None
    p99_s: float | None = None
    rate: float | None = None
    needs: list[str] = []
    missing: list[str] = []
    degraded: dict[str, str] = {}
    machines: list[str] = []
    subjects: list[str] = []


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine by what its workers say of themselves. cpu: cores."""

    name: str
    services: list[str]
    workers: int
    rss_bytes: int
    cpu: float | None


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """Rates are over `window_s` seconds; None where there was no earlier look, or the broker was started since."""

    at: float
    window_s: float | None
    broker: BrokerView
    services: list[ServiceView]
    workers: list[WorkerView]
    machines: list[Machine]


class Looks:
    """Asks the broker at most twice a second, whoever wants to know, and remembers what it said for the rates."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._known: deque[Look] = deque()
        self._picture: Topology | None = None
        self._asking: asyncio.Task[Topology] | None = None

    async def picture(self) -> Topology:
        """How things are now, or were half a second ago. Raises BusError where the broker does not answer."""
        if self._picture is not None and time.monotonic() - self._known[-1].at < _KEPT_S:
            return self._picture
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask())
            # Looked at, because everybody who asked may have gone.
            self._asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        # Shielded: others may wait for the same answer.
        return await asyncio.shield(self._asking)

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> Topology:
        services: ServiceList = await self._client.request("bus.services", BusServices(), timeout_s=_ASK_S)
        workers: WorkerList = await self._client.request("bus.workers", BusWorkers(), timeout_s=_ASK_S)
        stats: BrokerStats = await self._client.request("bus.stats", BusStats(), timeout_s=_ASK_S)
        now = Look(time.monotonic(), stats, services.services, workers.workers)
        before = earlier(self._known, now)
        self._known.append(now)
        while now.at - self._known[0].at > _RATE_TO_S:
            self._known.popleft()
        self._picture = drawn(before, now, self._settings)
        return self._picture


def earlier(known: Iterable[Look], now: Look) -> Look | None:
    """The newest look that is old enough for a rate, of the same broker."""
    fits = [one for one in known if one.stats.boot == now.stats.boot and _RATE_FROM_S <= now.at - one.at <= _RATE_TO_S]
    return fits[-1] if fits else None


def drawn(before: Look | None, now: Look, settings: Settings) -> Topology:
    """The picture of a look, with rates since an earlier one."""
    window_s = None if before is None else now.at - before.at
    rates: BrokerRates | None = None
    was: dict[str, ServiceInfo] = {}
    were: dict[tuple[str, str], WorkerInfo] = {}
    if before is not None and window_s is not None:
        rates = BrokerRates(
            requests=(now.stats.requests - before.stats.requests) / window_s,
            events=(now.stats.events - before.stats.events) / window_s,
            cpu=(now.stats.cpu_s - before.stats.cpu_s) / window_s,
        )
        was = {one.service: one for one in before.services}
        were = {(one.service, one.instance): one for one in before.workers}
    workers = [_worker(were.get((one.service, one.instance)), one, window_s) for one in now.workers]
    return Topology(
        at=time.time(),
        window_s=window_s,
        broker=BrokerView(**msgspec.structs.asdict(now.stats), rates=rates),
        services=_services(was, now, window_s, settings),
        workers=workers,
        machines=_machines(workers),
    )


def _rate(before: float | None, now: float, window_s: float | None) -> float | None:
    # A worker that was started again counts from 0 again.
    return None if before is None or window_s is None else max(now - before, 0) / window_s


def _services(was: dict[str, ServiceInfo], now: Look, window_s: float | None, settings: Settings) -> list[ServiceView]:
    joined = {one.service for one in now.services if one.instances}
    known = {one.service for one in now.services}
    views = [
        _service(was.get(one.service), one, now.workers, window_s)
        for one in now.services
        if one.instances or one.queued or not _comes_and_goes(one.service, known)
    ]
    views += [ServiceView(service=name, state="away") for name in _EXPECTED - known]
    with_needs = []
    for view in sorted(views, key=lambda view: view.service):
        needs = needs_of(settings, view.service)
        lacking = missing(needs, joined)
        with_needs.append(
            msgspec.structs.replace(
                view, needs=[in_words([need]) for need in needs], missing=[in_words([need]) for need in lacking]
            )
        )
    return with_needs


def _comes_and_goes(name: str, known: set[str]) -> bool:
    """True for a part of another service, as model.runner is one of model: without a worker it has nothing to do."""
    return name not in _EXPECTED and name.rpartition(".")[0] in known


def _service(
    before: ServiceInfo | None, now: ServiceInfo, workers: list[WorkerInfo], window_s: float | None
) -> ServiceView:
    mine = [one for one in workers if one.service == now.service]
    degraded = {name: reason for one in mine for name, reason in one.degraded.items()}
    return ServiceView(
        **msgspec.structs.asdict(now),
        state="away" if not now.instances else "degraded" if degraded else "ok",
        rate=_rate(None if before is None else before.answered, now.answered, window_s),
        degraded=degraded,
        machines=sorted({one.host for one in mine}),
    )


def _worker(before: WorkerInfo | None, now: WorkerInfo, window_s: float | None) -> WorkerView:
    return WorkerView(
        **msgspec.structs.asdict(now),
        rate=_rate(None if before is None else before.answered, now.answered, window_s),
        cpu=_rate(None if before is None else before.cpu_s, now.cpu_s, window_s),
    )


def _machines(workers: list[WorkerView]) -> list[Machine]:
    found: dict[str, list[WorkerView]] = {}
    for one in workers:
        found.setdefault(one.host, []).append(one)
    return [_machine(name, mine) for name, mine in sorted(found.items())]


def _machine(name: str, workers: list[WorkerView]) -> Machine:
    # Several services may live in one process, which tells its figures with each.
    processes = {one.pid: one for one in workers}
    cores = [one.cpu for one in processes.values() if one.cpu is not None]
    return Machine(
        name=name,
        services=sorted({one.service for one in workers}),
        workers=len(workers),
        rss_bytes=sum(one.rss_bytes for one in processes.values()),
        cpu=sum(cores) if cores else None,
    )
