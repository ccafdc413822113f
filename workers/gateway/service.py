"""The gateway: opens the edges that the settings ask for, tells what it has bound, and closes them."""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from bus.client import Client
from bus.metrics import only
from bus.serving import serve_until_told
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.gateway import GatewayPorts, PortInfo, PortList
from schemas.metrics import LEGACY_CONNECTIONS, LEGACY_PORTS, LEGACY_REQUESTS
from workers.gateway.agents_http import serve_agents
from workers.gateway.caller import StandIn
from workers.gateway.legacy.agent import Agent
from workers.gateway.legacy.agents.roster import roster
from workers.gateway.legacy.chores import Chores
from workers.gateway.legacy.edge import LegacyEdge
from workers.gateway.legacy.house import House
from workers.gateway.openai.routes import openai_routes
from workers.gateway.phase1.agents import RAW
from workers.gateway.phase1.routes import phase1_routes
from workers.gateway.ports import chosen, move_health
from workers.gateway.rest.edge import RestEdge

log = logging.getLogger("olympus.gateway")

# Of the time to leave, kept for leaving the bus.
_LEAVE_S: Final = 0.5

# Ports that could not be bound and are named, at most.
_PORTS_NAMED: Final = 5


class Gateway:
    """The edges and the worker `gateway`, which tells of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.worker = Worker("gateway", settings)
        self.worker.handle("gateway.ports", self._ports)
        # Requests of strangers must not travel with this home's own token.
        self._client = Client(settings, name="gateway", signs=False)
        agents = roster()
        sign = None
        if settings.auth.required and settings.legacy.user:
            sign = StandIn(self.worker.client, settings.legacy.user)
        self.house = House(settings, self._client, agents, sign=sign)
        self._legacy: LegacyEdge | None = None
        moved: dict[str, str] = {}
        rest = settings.rest
        if settings.legacy.enabled:
            mine = chosen(agents, settings.legacy.agents)
            self._legacy = LegacyEdge(self.house, mine)
            rest, moved = move_health(settings, mine)
        self._moved = moved
        self._rest = RestEdge(msgspec.structs.replace(settings, rest=rest), self._client, self.worker.figures)
        self._rest.add_routes("models", openai_routes())
        self._chores = Chores(self.house)
        self._at_work: list[Agent] = []
        if settings.rest.phase1:
            for service, routes in phase1_routes(self.house).items():
                self._rest.add_routes(service, routes)
            asked = set(RAW.values())
            bound = () if self._legacy is None else self._legacy.agents
            self._at_work = [agent for agent in agents if agent.name in asked and agent not in bound]
        self.table: list[PortInfo] = []
        self._tell_figures()
        self.worker.degraded_by(self._degraded)

    async def start(self) -> None:
        """Open the ports, then join the bus. Raises SettingsError; a port in use is told of and left out."""
        if self._legacy is not None:
            self.table += await self._legacy.start()
        self.table += [self._with_move(info) for info in await self._rest.start()]
        if self._legacy is not None:
            self.table += await serve_agents(self._legacy.http, self.house, self._rest)
        self._chores.start(self._at_work)
        self._tell()
        await self.worker.start()

    async def stop(self) -> None:
        """Close the ports within `supervisor.stop_s`, then leave the bus."""
        if self._legacy is not None:
            await self._legacy.stop()
        await self._chores.stop()
        await self._rest.stop(max(self._settings.supervisor.stop_s - 2 * _LEAVE_S, 0.0))
        await self._client.close()
        await self.worker.stop(_LEAVE_S)

    def _with_move(self, info: PortInfo) -> PortInfo:
        note = self._moved.get(info.owner) if info.purpose == "health" else None
        return msgspec.structs.replace(info, note=f"{note}. {info.note}".rstrip(" .")) if note else info

    def _tell_figures(self) -> None:
        figures, legacy = self.worker.figures, self._legacy
        figures.read(LEGACY_REQUESTS, self.house.outcomes)
        figures.read(LEGACY_PORTS, lambda: only(sum(self._is_bound_for_agent(info) for info in self.table)))
        figures.read(LEGACY_CONNECTIONS, lambda: only(legacy.connections if legacy is not None else 0))

    def _is_bound_for_agent(self, info: PortInfo) -> bool:
        return info.state == "bound" and info.owner in self.house.agents

    def _degraded(self) -> dict[str, str]:
        taken = [f"{info.port} ({info.owner})" for info in self.table if info.state == "taken"]
        if not taken:
            return {}
        others = f" and {len(taken) - _PORTS_NAMED} more" if len(taken) > _PORTS_NAMED else ""
        return {"ports": f"not bound: {', '.join(taken[:_PORTS_NAMED])}{others}; `olympus ports` says why"}

    def _tell(self) -> None:
        """What is bound in one line, and each port that is not as it was wanted; `olympus ports` has the whole table."""
        for info in self.table:
            level = {"taken": logging.WARNING, "yielded": logging.INFO}.get(info.state, logging.DEBUG)
            log.log(
                level,
                f"port {info.state}",
                extra={
                    "action": f"port.{info.state}",
                    "owner": info.owner,
                    "purpose": info.purpose,
                    "protocol": info.protocol,
                    "address": f"{info.host}:{info.port}",
                    **({"note": info.note} if info.note else {}),
                },
            )
        bound = [info for info in self.table if info.state == "bound"]
        http = sum(info.protocol == "http" for info in bound)
        log.info(
            "ports bound",
            extra={"action": "gateway.bound", "http": http, "zeromq": len(bound) - http, "table": "olympus ports"},
        )

    async def _ports(self, request: GatewayPorts, call: Call) -> PortList:
        return PortList(ports=self.table)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError."""
    await serve_until_told(Gateway(settings), log)
