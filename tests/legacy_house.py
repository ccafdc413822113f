"""A house for tests of the legacy ports: broker, services and edge in a thread, asked over real sockets with pyzmq."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import threading
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from broker.server import Broker
from bus.client import Client
from bus.settings import Settings, load_settings
from schemas.bodies.gateway import PortInfo
from tests.conftest import settings_of
from workers.gateway.caller import StandIn
from workers.gateway.legacy.agent import Agent
from workers.gateway.legacy.edge import LegacyEdge
from workers.gateway.legacy.house import House

# A reply must be there by then, milliseconds; a generation of the demo model takes a few seconds on a busy machine.
REPLY_MS = 20_000


class LegacyHouse:
    """`services`: real ones among memory, models, resources, learning. Every port is free-chosen.

    with LegacyHouse(tmp_path, [AGENT], services=("memory",)) as house: house.ask("KnowledgeBase", {"action": ...})
    """

    def __init__(
        self, home: Path, agents: Iterable[Agent], *, services: Iterable[str] = ("memory",), **overrides: Any
    ) -> None:
        self._home = home
        self._agents = tuple(agents)
        self._services = tuple(services)
        self._overrides = overrides
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="legacy house")
        self._context = zmq.Context()
        self._opened: list[zmq.Socket[bytes]] = []
        self._sockets: dict[tuple[str, str], zmq.Socket[bytes]] = {}
        self.table: list[PortInfo] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for socket in self._opened:
            socket.close(0)
        self._context.term()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    # What tests use

    def ask(self, agent: str, request: Any) -> Any:
        """The decoded reply to one request on the main port of an agent."""
        return json.loads(self.raw(agent, [json.dumps(request).encode()])[0])

    def raw(self, agent: str, frames: list[bytes], purpose: str = "requests") -> list[bytes]:
        """The frames of the reply to any frames."""
        socket = self._sockets.get((agent, purpose))
        if socket is None:
            socket = self._sockets[agent, purpose] = self.socket(zmq.REQ, agent, purpose)
        socket.send_multipart(frames)
        try:
            return socket.recv_multipart()
        except zmq.Again:
            del self._sockets[agent, purpose]
            socket.close(0)
            raise AssertionError(f"{agent} did not answer {frames!r} in {REPLY_MS} ms") from None

    def health(self, agent: str, frame: bytes = b'{"action": "health_check"}') -> Any:
        """The decoded reply of an agent's health port."""
        return json.loads(self.raw(agent, [frame], "health")[0])

    def socket(self, kind: int, agent: str, purpose: str = "requests") -> zmq.Socket[bytes]:
        """A socket connected to a port of an agent; closed with the house."""
        socket = self._context.socket(kind)
        self._opened.append(socket)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, REPLY_MS)
        if kind == zmq.SUB:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(f"tcp://127.0.0.1:{self.port(agent, purpose)}")
        return socket

    def port(self, agent: str, purpose: str = "requests") -> int:
        """The number a port got."""
        return next(
            info.port
            for info in self.table
            if info.owner == agent and info.purpose == purpose and info.state == "bound"
        )

    def bus(self, subject: str, body: Any = None) -> Any:
        """The reply of an operation."""
        return self.run(lambda: self.edge.house.client.request(subject, body))

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of a coroutine in the loop of the house."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(60)

    # The thread

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._start(stack)
                self._started.set_result(None)
                await self._stop.wait()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        bus_ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
        ports = [
            f"{agent.name}{suffix}={'+'.join('0' for _ in own[:1])}" if own else f"{agent.name}{suffix}=off"
            for agent in self._agents
            for suffix, own in (
                ("", agent.ports),
                (".health", agent.health_ports),
                (".events", agent.event_ports),
                (".errors", agent.intake_ports),
                (".http", ()),
            )
        ]
        wanted = load_settings(
            overrides={
                "home": str(self._home),
                **{f"bus.{name}": 0 for name in bus_ports},
                "legacy.ports": json.dumps(ports),
                "legacy.enabled": True,
                **self._overrides,
            }
        )
        broker = Broker(wanted)
        await broker.start()
        stack.push_async_callback(broker.stop)
        self.settings = settings = settings_of(broker)
        for name in self._services:
            await self._serve(name, settings, stack)
        client = Client(settings, name="legacy", signs=False)
        stack.push_async_callback(client.close)
        sign = None
        if settings.auth.required:
            signing = Client(settings, name="legacy")
            stack.push_async_callback(signing.close)
            sign = StandIn(signing, settings.legacy.user)
        self.edge = LegacyEdge(House(settings, client, self._agents, sign=sign), self._agents)
        stack.push_async_callback(self.edge.stop)
        self.table = await self.edge.start()

    async def _serve(self, name: str, settings: Settings, stack: contextlib.AsyncExitStack) -> None:
        if name == "memory":
            from workers.memory.service import service

            worker = await stack.enter_async_context(service(settings))
            await worker.start(10)
            stack.push_async_callback(worker.stop)
            return
        served: Any
        if name == "models":
            from workers.models.service import ModelService

            served = ModelService(settings)
        elif name == "resources":
            from workers.resources.service import ResourceService

            served = ResourceService(settings)
        else:
            from workers.learning.service import LearningService

            served = LearningService(msgspec.structs.replace(settings))
        await served.start()
        stack.push_async_callback(served.stop)
