"""Whether a service can do its work, dependency by dependency, told within a second whatever is broken."""

from __future__ import annotations

import asyncio
import time
from typing import Final, Literal

import msgspec

from bus.client import Client
from bus.version import VERSION
from schemas.bodies.control import BusWorkers, WorkerInfo, WorkerList
from schemas.errors import BusError

State = Literal["ok", "degraded", "failing"]

# Seconds until a health request is answered, whether or not the bus answers.
_WITHIN_S: Final = 0.9

# Seconds an answer is given again: many may ask, and none of them should load the bus.
_KEPT_S: Final = 0.5

# Services on the bus that a port stands for, and whether it is nothing without them.
_NEEDS: Final[dict[str, dict[str, bool]]] = {
    "memory": {"memory": True},
    "models": {"model": True, "resource": False},
    "learning": {"learning": True, "model": False, "memory": False},
}


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a service needs; reason is empty where it is ok."""

    status: State
    reason: str = ""


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """The worst of the dependencies counts: `failing` where the service cannot do its work at all."""

    status: State
    service: str
    dependencies: dict[str, Dependency]
    version: str = VERSION
    uptime_s: float
    at: float


class Health:
    """Asks the bus, for itself and not for whoever asked: an answer names no content."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._began_at = time.monotonic()
        self._asking: dict[str, asyncio.Task[HealthReport]] = {}
        self._known: dict[str, tuple[float, HealthReport]] = {}

    async def report(self, service: str) -> HealthReport:
        """How a service is now, or was half a second ago."""
        known = self._known.get(service)
        if known is not None and time.monotonic() - known[0] < _KEPT_S:
            return known[1]
        asking = self._asking.get(service)
        if asking is None or asking.done():
            asking = self._asking[service] = asyncio.ensure_future(self._look(service))
        # Somebody who hangs up does not take the answer from the others.
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """Stop asking."""
        for asking in self._asking.values():
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _look(self, service: str) -> HealthReport:
        found: dict[str, Dependency] = {}
        try:
            async with asyncio.timeout(_WITHIN_S):
                await self._look_at_workers(service, found)
        except TimeoutError:
            found.setdefault("broker", Dependency(status="failing", reason=f"no answer within {_WITHIN_S:g} s"))
        report = HealthReport(
            status=worst(found),
            service=service,
            dependencies=found,
            uptime_s=round(time.monotonic() - self._began_at, 3),
            at=time.time(),
        )
        self._known[service] = (time.monotonic(), report)
        return report

    async def _look_at_workers(self, service: str, found: dict[str, Dependency]) -> None:
        try:
            known: WorkerList = await self._client.request("bus.workers", BusWorkers(), timeout_s=_WITHIN_S)
        except BusError as error:
            found["broker"] = Dependency(status="failing", reason=error.message)
            return
        found["broker"] = Dependency(status="ok")
        for needed, is_vital in _NEEDS[service].items():
            found |= _state_of(needed, [each for each in known.workers if each.service == needed], is_vital=is_vital)


def _state_of(service: str, workers: list[WorkerInfo], *, is_vital: bool) -> dict[str, Dependency]:
    """That of a service, and of each thing that a worker of it does without, as `service.thing`."""
    if not workers:
        reason = f"no worker of the service {service!r} has joined"
        return {service: Dependency(status="failing" if is_vital else "degraded", reason=reason)}
    found = {service: Dependency(status="ok")}
    for worker in workers:
        for name, reason in worker.degraded.items():
            found[f"{service}.{name}"] = Dependency(status="degraded", reason=reason)
    return found


def worst(found: dict[str, Dependency]) -> State:
    """The state of the whole."""
    states = {each.status for each in found.values()}
    return "failing" if "failing" in states else "degraded" if "degraded" in states else "ok"


def status_of(report: HealthReport) -> int:
    """The HTTP status: a degraded service still answers."""
    return 503 if report.status == "failing" else 200
