"""Opens the ports of the replaced agents and joins each to its translation."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from bus.transport import AddressInUse
from schemas.bodies.gateway import PortInfo
from workers.gateway.legacy.agent import Agent, decode, encode
from workers.gateway.legacy.chores import Chores
from workers.gateway.legacy.house import Endpoint, House
from workers.gateway.legacy.sockets import MAX_MESSAGE_BYTES, TOO_LARGE, Port
from workers.gateway.ports import Planned, Refusal, plan

log = logging.getLogger("olympus.legacy")


class LegacyEdge:
    """The ports of `agents`, which are some of the house's, as long as it is started."""

    def __init__(self, house: House, agents: tuple[Agent, ...]) -> None:
        self._settings = house.settings
        self.agents = agents
        self.house = house
        # Ports for whoever speaks HTTP; there once started.
        self.http: list[Planned] = []
        self._ports: list[Port] = []
        self._chores = Chores(house)

    @property
    def connections(self) -> int:
        """Peers connected to all ports together."""
        return sum(port.connections for port in self._ports)

    async def start(self) -> list[PortInfo]:
        """Open what can be opened; returns the whole table. Raises SettingsError; a port in use is only told of."""
        planned, refused = plan(self.agents, self._settings.legacy)
        table = [await self._open(one) for one in planned if one.purpose != "http"]
        self.http = [one for one in planned if one.purpose == "http"]
        table += [self._refused(one) for one in refused]
        self._announce(table)
        self._chores.start(self.agents)
        return table

    async def stop(self) -> None:
        """Close every port and end every task."""
        await self._chores.stop()
        for port in self._ports:
            await port.close()

    async def _open(self, one: Planned) -> PortInfo:
        agents = tuple(self.house.agents[name] for name in (one.agent, *one.sharers))
        agent = agents[0]
        if one.purpose == "health":
            port = Port(answer=lambda frames: self._health(agent, frames))
        elif one.purpose == "requests":
            port = Port(answer=lambda frames: self._answer(agents, frames))
        else:
            intake = agent.intake
            # Whoever publishes, subscribes or asks on a port of events is served as what it is.
            port = Port(
                answer=(lambda frames: self._answer(agents, frames)) if agent.actions else None,
                take=None if intake is None else lambda frames: intake(frames, self.house),
            )
        host = self._settings.legacy.host
        try:
            await port.open(host, one.port, key=f"legacy.ports ({one.agent})")
        except AddressInUse:
            return self._info(
                one, "taken", f"another program has it; legacy.ports: {_override(one)}=PORT gives another"
            )
        except OSError as error:
            # An address this machine does not have, a number that is not ours to take.
            return self._info(
                one, "taken", f"{error.strerror or error}; legacy.host and legacy.ports: {_override(one)}=PORT"
            )
        self._ports.append(port)
        if one.purpose in ("events", "errors"):
            self.house.add_publisher(one.agent, port.publish)
        shared = f"also answers for {', '.join(one.sharers)}" if one.sharers else ""
        return self._info(one._replace(port=port.port), "bound", shared)

    async def _answer(self, agents: tuple[Agent, ...], frames: list[bytes]) -> bytes:
        owner = agents[0]
        if frames and frames[-1] is TOO_LARGE:
            return encode(owner.failure(f"the message is too large; the limit is {MAX_MESSAGE_BYTES} bytes"))
        if len(frames) != 1:
            return encode(owner.failure(owner.words.bad_json))
        frame = frames[0]
        request: object
        try:
            request = decode(frame)
        except (UnicodeDecodeError, ValueError) as error:
            text = frame[:64].decode("utf-8", "replace")
            agent = next((one for one in agents if one.understands(text)), None)
            if agent is None:
                is_text = not isinstance(error, UnicodeDecodeError)
                return encode(owner.failure(owner.words.bad_json if is_text else owner.words.bad_text))
            request = text
        if isinstance(request, str) and not any(one.understands(request) for one in agents):
            return encode(owner.failure(owner.words.not_object))
        agent = next((one for one in agents if one.understands(request)), owner)
        return encode(await self.house.agent(agent.name).answer(request))

    async def _health(self, agent: Agent, frames: list[bytes]) -> bytes:
        message: Any = None
        if len(frames) == 1:
            with contextlib.suppress(UnicodeDecodeError, ValueError):
                message = decode(frames[0])
        return encode(await agent.healthy(message, self.house))

    def _announce(self, table: list[PortInfo]) -> None:
        """What discovery tells: the first port of each agent that is bound, or is shared with another agent."""
        by_port = {info.port: info for info in table if info.state == "bound"}
        health = {info.owner: info.port for info in table if info.purpose == "health" and info.state == "bound"}
        mains = {
            info.owner: info.port
            for info in reversed(table)
            # The error bus is asked where others publish to it.
            if info.purpose in ("requests", "errors") and info.port in by_port
        }
        host = self._settings.legacy.announce
        self.house.endpoints = {
            agent.name: Endpoint(agent.name, host, mains[agent.name], health.get(agent.name, 0))
            for agent in self.agents
            if agent.name in mains
        }

    def _refused(self, one: Refusal) -> PortInfo:
        return self._info(Planned(one.port, one.agent, one.purpose), "yielded", one.why)

    def _info(self, one: Planned, state: Any, note: str) -> PortInfo:
        return PortInfo(
            owner=one.agent,
            purpose=one.purpose if one.purpose != "http" else "rest" if self.house.agents[one.agent].http else "health",
            protocol="http" if one.purpose == "http" else "zeromq",
            host=self._settings.legacy.host,
            port=one.port,
            state=state,
            note=note,
        )


def _override(one: Planned) -> str:
    return one.agent if one.purpose == "requests" else f"{one.agent}.{one.purpose}"
