"""A house of its own to break: each service a process that can be killed, stopped, frozen and started again.

There is no supervisor in it, so that what was broken stays broken until it is healed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench_bus_parts.processes import LEAVE_S, Process, ProcessFailed, Stage, free_port
from bus.client import Client
from bus.settings import Settings, environment_name, load_settings
from schemas.errors import BusError

# Lines of the Procfile, the broker first, and what the bus calls their services.
SERVICES: Final[Mapping[str, str]] = {
    "errors": "error",
    "memory": "memory",
    "resources": "resource",
    "models": "model",
    "learning": "learning",
    "gateway": "gateway",
    "exporter": "exporter",
}

_FREE: Final = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
_REST: Final = tuple(
    f"{service}_{kind}port" for service in ("memory", "models", "learning") for kind in ("", "health_")
)

# Seconds for every service to join; learning and models import much.
_JOIN_S: Final = 60.0

# Seconds between two tellings of figures: each of Prometheus's shortened scrapes finds new ones.
TELLING_S: Final = 0.5


class House:
    """Broker and services; `chosen` are settings beside those that give it free ports. Settings by dotted name."""

    def __init__(self, stage: Stage, chosen: Mapping[str, Any] | None = None) -> None:
        self._stage = stage
        self.home: Path = stage.home / "house"
        wanted: dict[str, Any] = {
            **{f"bus.{name}": free_port() for name in _FREE},
            **{f"rest.{name}": 0 for name in _REST},
            "home": str(self.home),
            "exporter.port": free_port(),
            "bus.metrics_interval_s": TELLING_S,
            "log.level": "warning",
            **(chosen or {}),
        }
        self.settings: Settings = load_settings(overrides=wanted)
        self.exporter = f"127.0.0.1:{self.settings.exporter.port}"
        self._environment = {environment_name(key): _written(value) for key, value in wanted.items()}
        self.processes: dict[str, Process] = {}

    async def start(self) -> None:
        """Run everything and wait until every service has joined. Raises ProcessFailed."""
        self.run("broker")
        for name in SERVICES:
            self.run(name)
        await self.joined(*SERVICES.values())

    def run(self, name: str) -> Process:
        """Start one process, the broker or a line of the Procfile; returns at once, but for the broker."""
        module = "broker" if name == "broker" else f"workers.{name}"
        process = self._stage.start(name, [sys.executable, "-m", module], self._environment)
        self.processes[name] = process
        if name == "broker":
            bus = self.settings.bus
            for port in (bus.request_port, bus.publish_port, bus.subscribe_port, bus.sequenced_port):
                process.wait_for_port(port)
        return process

    async def joined(self, *services: str) -> None:
        """Wait until these services are on the bus. Raises ProcessFailed."""
        deadline = time.monotonic() + _JOIN_S
        async with Client(self.settings, name="chaos joins") as client:
            while True:
                with contextlib.suppress(BusError):
                    reply = await client.request("bus.services", timeout_s=2)
                    missing = set(services) - {info.service for info in reply.services if info.instances}
                    if not missing:
                        return
                for name, process in self.processes.items():
                    if process.child.poll() not in (None, -signal.SIGKILL):
                        raise ProcessFailed(f"{name} ended; it wrote:\n{process.log.read_text()[-1500:]}")
                if time.monotonic() > deadline:
                    raise ProcessFailed(f"these services do not join: {', '.join(sorted(missing))}")
                await asyncio.sleep(0.1)

    def kill(self, name: str) -> None:
        """End a process without a chance to say anything."""
        process = self.processes[name]
        process.child.kill()
        process.child.wait()

    def stop(self, name: str) -> None:
        """Let a process leave in good order."""
        process = self.processes[name]
        process.child.terminate()
        process.child.wait(LEAVE_S + self.settings.supervisor.stop_s)

    def spare(self, name: str, arguments: list[str]) -> Process:
        """One more process with the house's settings: `python` with these arguments."""
        return self._stage.start(name, [sys.executable, *arguments], self._environment)

    def end(self, process: Process) -> None:
        """End a spare process, frozen ones too."""
        process.child.send_signal(signal.SIGCONT)
        self._stage.end([process])


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)


class Redis:
    """A redis-server on a unix socket, where there is one."""

    def __init__(self, stage: Stage) -> None:
        program = shutil.which("redis-server")
        self._stage = stage
        self.socket = stage.home / "r"
        self._command = [program or "", "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self._process: Process | None = None
        self.url = f"unix://{self.socket}" if program else ""

    def start(self) -> None:
        """Run it and wait for its socket."""
        self.socket.unlink(missing_ok=True)
        self._process = self._stage.start("redis", self._command)
        deadline = time.monotonic() + LEAVE_S
        while not self.socket.exists():
            if time.monotonic() > deadline:
                raise ProcessFailed("redis-server does not come up")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.child.kill()
            self._process.child.wait()


class Webhook:
    """Whoever takes notifications, on a port of its own, while it listens."""

    def __init__(self) -> None:
        self.port = free_port()
        self._server: asyncio.Server | None = None
        self._taken = asyncio.Event()

    async def start(self) -> None:
        """Listen."""
        self._taken.clear()
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Let nobody in any more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def taken(self) -> None:
        """Wait until something was taken since the start. Raises ProcessFailed."""
        try:
            await asyncio.wait_for(self._taken.wait(), _JOIN_S)
        except TimeoutError:
            raise ProcessFailed(f"no notification came within {_JOIN_S:g} s") from None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            self._taken.set()
        writer.close()
