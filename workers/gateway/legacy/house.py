"""What translations have at hand: the bus, records, publishers, the other agents, and the health all of them share."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, Protocol, Self, TypeVar

from bus.client import Client, Stream
from bus.metrics import Labels
from bus.settings import Settings
from schemas.bodies.control import BusServices
from schemas.envelope import Headers
from schemas.errors import BusError, Unauthenticated
from workers.gateway.legacy.agent import Agent, Reply
from workers.gateway.legacy.kept import Kept
from workers.gateway.legacy.sockets import REACHED

log = logging.getLogger("olympus.legacy")

# Seconds for which it is believed which services have joined.
_SERVICES_S: Final = 1.0
_ASK_SERVICES_S: Final = 1.0

# Seconds for the broker to be there before a request fails: the agents' clients give up after 5.
_BROKER_S: Final = 4.0

# Seconds an agent's own part of its health may take: pollers wait no longer than 5 for the whole.
_HEALTH_S: Final = 2.0

_S = TypeVar("_S")


class Sign(Protocol):
    """Whose requests the edge makes."""

    async def headers(self) -> Headers | None:
        """The headers of each request. Raises BusError where there are none to be had."""

    def forget(self) -> None:
        """They were not accepted: get others."""


Publish = Callable[[list[bytes]], None]


class Endpoint(NamedTuple):
    """Where an agent answers: what discovery tells. host: empty for the one its caller reached. health_port: 0: none."""

    name: str
    host: str
    port: int
    health_port: int


class _Desk:
    """What is known of one agent while it runs."""

    def __init__(self) -> None:
        self.state: Any = None
        self.requests = 0
        self.failures = 0
        self.outcomes = {"ok": 0, "failed": 0}
        self.last_request_at = 0.0
        self.publishers: list[Publish] = []


class House:
    """Shared by all agents of one edge.

    sign: the account the edge acts for; without one requests carry no token.
    """

    def __init__(
        self, settings: Settings, client: Client, agents: tuple[Agent, ...], *, sign: Sign | None = None
    ) -> None:
        self.settings = settings
        self.client = client
        self.agents = {agent.name: agent for agent in agents}
        self.endpoints: dict[str, Endpoint] = {}
        self.started_at = time.time()
        # The edge itself, also for a house that acts with a caller's token: for records that are no caller's business.
        self.own: House = self
        self._sign = sign
        self._headers: Headers | None = None
        self._desks = {agent.name: _Desk() for agent in agents}
        self._services: dict[str, int] = {}
        self._services_at = float("-inf")
        self._asking: asyncio.Task[dict[str, int]] | None = None

    # The bus

    async def ask(self, subject: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
        """The reply of an operation, as its Struct. Raises schemas.errors.BusError."""
        await self._reach()
        try:
            return await self.client.request(subject, body, timeout_s=timeout_s, headers=await self.headers())
        except Unauthenticated:
            if self._sign is None:
                raise
        # Keys were turned, or the account's sign-ins ended: once more, with a new token.
        self._sign.forget()
        return await self.client.request(subject, body, timeout_s=timeout_s, headers=await self.headers())

    async def stream(self, subject: str, body: Any = None, *, timeout_s: float | None = None) -> Stream:
        """Its reply piece by piece: `async with await house.stream(...) as parts`. Raises BusError without a broker."""
        await self._reach()
        return self.client.stream(subject, body, timeout_s=timeout_s, headers=await self.headers())

    async def _reach(self) -> None:
        if not self.client.is_connected:
            await self.client.connect(_BROKER_S)

    async def headers(self) -> Headers | None:
        """What makes a request ours to send."""
        return self._headers if self._sign is None else await self._sign.headers()

    def acting_with(self, token: str) -> Self:
        """This house for a caller of its own: requests carry `token` instead of the edge's."""
        other = copy.copy(self)
        other._sign = None
        other._headers = {"token": token} if token else None
        return other

    def kept(self, name: str) -> Kept:
        """Records in the namespace `legacy.NAME`."""
        return Kept(self, name)

    async def is_up(self, service: str) -> bool:
        """True where a worker of the service (memory, model, learning, resource) has joined the bus."""
        return (await self.services()).get(service, 0) > 0

    async def services(self) -> dict[str, int]:
        """Instances by service, at most a second old; empty where the broker does not answer."""
        if time.monotonic() - self._services_at > _SERVICES_S:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.ensure_future(self._ask_services())
            self._services = await asyncio.shield(self._asking)
        return self._services

    async def _ask_services(self) -> dict[str, int]:
        try:
            reply = await self.client.request("bus.services", BusServices(), timeout_s=_ASK_SERVICES_S)
            services = {service.service: service.instances for service in reply.services}
        except BusError:
            services = {}
        self._services_at = time.monotonic()
        return services

    # The agents

    def agent(self, name: str) -> BoundAgent:
        """An agent of this edge, by name. Raises KeyError."""
        return BoundAgent(self.agents[name], self)

    def state(self, name: str, make: Callable[[], _S]) -> _S:
        """What an agent keeps in this process alone; made when first asked for."""
        desk = self._desks[name]
        if desk.state is None:
            desk.state = make()
        state: _S = desk.state
        return state

    def endpoint(self, name: str) -> Endpoint | None:
        """Where an agent of this edge is reached, by the address the caller of this moment came in on."""
        endpoint = self.endpoints.get(name)
        if endpoint is None or endpoint.host:
            return endpoint
        return endpoint._replace(host=REACHED.get() or "127.0.0.1")

    async def health_of(self, agent: Agent) -> dict[str, Any]:
        """The health reply of an agent: the keys of the old base class, then its own, which may replace them."""
        is_up = await self.is_up(agent.service)
        status = "ok" if is_up else "degraded"
        port = next(iter(agent.ports), 0) if agent.name not in self.endpoints else self.endpoints[agent.name].port
        common = {
            "status": status,
            "ready": is_up,
            "initialized": True,
            "message": f"{agent.name} is answered by Olympus"
            + ("" if is_up else f"; its {agent.service} service has not joined the bus"),
            "service": agent.name,
            "timestamp": datetime.now().isoformat(),
            "uptime": time.time() - self.started_at,
            "uptime_seconds": int(time.time() - self.started_at),
            "request_count": self.requests_of(agent.name),
            "active_threads": threading.active_count(),
            "health_checks": {"port_accessible": True, "redis_connected": is_up, "ready_signal": is_up},
            "health_details": {"port": port, "redis_host": "", "ready_signal": is_up},
            "health_status": "healthy" if is_up else "degraded",
        }
        if agent.health is None:
            return common
        try:
            async with asyncio.timeout(_HEALTH_S):
                return {**common, **await agent.health(self)}
        except TimeoutError:
            return {**common, "status": "degraded", "message": f"{common['message']}; it answers too slowly"}

    def count(self, name: str) -> None:
        """A request came for an agent."""
        desk = self._desks[name]
        desk.requests += 1
        desk.last_request_at = time.time()

    def note(self, name: str, outcome: Literal["ok", "failed"]) -> None:
        """A request to an agent was answered, as asked or with why not."""
        self._desks[name].outcomes[outcome] += 1

    def outcomes(self) -> dict[Labels, float]:
        """Requests answered since the start, by agent and outcome, of the agents that were asked."""
        return {
            (name, outcome): count
            for name, desk in self._desks.items()
            if desk.requests
            for outcome, count in desk.outcomes.items()
        }

    def on_failure(self, agent: Agent, error: Exception) -> None:
        """A translation raised what it did not declare: a defect of ours, logged with its stack."""
        self._desks[agent.name].failures += 1
        log.error("translation failed", exc_info=error, extra={"action": "legacy.failed", "agent": agent.name})

    def on_chore_failure(self, agent: Agent, error: Exception) -> None:
        """What an agent does unasked came to an end: a bus that is away is waited for, anything else is a defect."""
        if not isinstance(error, BusError | OSError):
            self.on_failure(agent, error)
            return
        log.warning("chore waits", extra={"action": "legacy.chore", "agent": agent.name, "error": str(error)})

    def add_publisher(self, name: str, publish: Publish) -> None:
        """An event port of an agent is open."""
        self._desks[name].publishers.append(publish)

    def publish(self, name: str, frames: list[bytes]) -> None:
        """Send an event on the event ports of an agent; nobody hears it where they are not bound."""
        for publish in self._desks[name].publishers:
            publish(frames)

    def requests_of(self, name: str) -> int:
        """Requests an agent was sent since the start."""
        return self._desks[name].requests

    def failures_of(self, name: str) -> int:
        """Requests of it that failed for a reason of ours."""
        return self._desks[name].failures

    def last_request_at(self, name: str) -> float:
        """Epoch seconds of the last request of an agent; 0 before the first."""
        return self._desks[name].last_request_at


class BoundAgent(NamedTuple):
    """An agent with the house it acts in."""

    agent: Agent
    house: House

    async def answer(self, request: object) -> Reply:
        """The reply to a decoded request; see `Agent.answer`."""
        self.house.count(self.agent.name)
        return await self.agent.answer(request, self.house)
