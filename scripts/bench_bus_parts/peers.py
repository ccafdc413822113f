"""Who is measured: how each peer's broker, worker, client and subscribers are started, and what it takes part in."""

from __future__ import annotations

import abc
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bench_bus_parts.processes import ROOT, Process, ProcessFailed, Stage, free_port

SUBSCRIBERS = 4


class Peer(abc.ABC):
    """One way of carrying messages. Subclasses say how its broker starts and where its ends connect."""

    name = ""
    module = ""
    cases: frozenset[str] = frozenset()
    needs: Sequence[str] = ()

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.broker: Process
        self.worker: Process
        self.client: Process
        self.subscribers: list[Process] = []
        self.bulk: dict[str, Process] = {}

    @classmethod
    def missing(cls) -> str:
        """Why this peer cannot take part; empty when it can."""
        absent = [name for name in cls.needs if importlib.util.find_spec(name) is None]
        return f"the package {absent[0]} is not installed" if absent else ""

    def start(self) -> None:
        """Start broker, worker and client, each in its process."""
        self.start_broker()
        self.worker = self._role("worker")
        self.client = self._role("client")

    @abc.abstractmethod
    def start_broker(self) -> None:
        """Start what stands between the ends."""

    def start_bulk(self) -> None:
        """Start a second worker and client on the same broker, for large bodies alone."""
        self.bulk = {role: self._role(role) for role in ("bulk worker", "bulk client")}

    def start_subscribers(self) -> None:
        """Start the subscribers of the publish case."""
        self.subscribers = [self._role("subscriber") for _ in range(SUBSCRIBERS)]

    def end_extras(self) -> None:
        """End what start_bulk and start_subscribers started."""
        self.stage.end([*self.bulk.values(), *self.subscribers])
        self.bulk, self.subscribers = {}, []

    def processes(self) -> dict[str, list[Process]]:
        """Every process by role, for the CPU column."""
        roles = {"broker": [self.broker], "worker": [self.worker], "client": [self.client]}
        roles |= {role: [process] for role, process in self.bulk.items()}
        return roles | ({"subscribers": self.subscribers} if self.subscribers else {})

    @abc.abstractmethod
    def arguments(self, role: str) -> dict[str, object]:
        """What the role's function is called with."""

    def _role(self, role: str) -> Process:
        return self.stage.role(self.name, self.module, role.removeprefix("bulk "), **self.arguments(role))[0]


class Proxy(Peer):
    """`zmq.proxy` as the ZeroMQ guide shows it: replies find their caller, nothing else is decided."""

    name = "proxy"
    module = "role_zmq"
    cases = frozenset({"rr", "latency"})
    needs = ("zmq",)

    def start_broker(self) -> None:
        self.broker, said = self.stage.role(self.name, self.module, "broker")
        self.ports: dict[str, int] = said["ports"]

    def arguments(self, role: str) -> dict[str, object]:
        return {"port": self.ports["router_front" if role == "client" else "router_back"]}

    def _role(self, role: str) -> Process:
        return self.stage.role(self.name, self.module, f"plain_{role}", **self.arguments(role))[0]


class Tuned(Proxy):
    """The same between two DEALERs, one frame, drained sockets: no way back to a caller, the most libzmq can do."""

    name = "tuned"
    cases = frozenset({"rr", "latency", "stream", "echo16", "mixed", "pubsub"})
    side = "plain"

    def arguments(self, role: str) -> dict[str, object]:
        side = "bulk" if role.startswith("bulk") else self.side
        if role == "subscriber":
            return {"port": self.ports["xpub"]}
        if role.endswith("client"):
            return {"port": self.ports[f"{side}_front"], "publish_port": self.ports["xsub"]}
        return {"port": self.ports[f"{side}_back"], "is_bulk": side == "bulk"}

    def _role(self, role: str) -> Process:
        return self.stage.role(self.name, self.module, role.removeprefix("bulk "), **self.arguments(role))[0]


class NatsPeer(Peer):
    """nats-py and nats-server."""

    name = "nats"
    module = "role_nats"
    cases = frozenset({"rr", "latency", "stream", "echo16", "mixed", "pubsub"})
    needs = ("nats", "uvloop")

    @classmethod
    def missing(cls) -> str:
        return super().missing() or ("" if _beside_python("nats-server") else "nats-server is not installed")

    def start_broker(self) -> None:
        self.port = free_port()
        config = self.stage.home / "nats.conf"
        config.write_text(f'listen: "127.0.0.1:{self.port}"\nmax_payload: 64MB\nmax_pending: 256MB\n')
        self.broker = self.stage.start("nats broker", [_beside_python("nats-server"), "--config", str(config)])
        self.broker.wait_for_port(self.port)

    def arguments(self, role: str) -> dict[str, object]:
        url: dict[str, object] = {"url": f"nats://127.0.0.1:{self.port}"}
        return url if role == "subscriber" else url | {"prefix": "bulk" if role.startswith("bulk") else "bench"}


class RedisPeer(Peer):
    """redis-py and redis-server, lists as queues, nothing written to disk."""

    name = "redis"
    module = "role_redis"
    cases = frozenset({"rr", "latency"})
    needs = ("redis", "uvloop")

    @classmethod
    def missing(cls) -> str:
        return super().missing() or ("" if _beside_python("redis-server") else "redis-server is not installed")

    def start_broker(self) -> None:
        self.port = free_port()
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.stage.home)]
        self.broker = self.stage.start("redis broker", [_beside_python("redis-server"), *options])
        self.broker.wait_for_port(self.port)

    def arguments(self, role: str) -> dict[str, object]:
        return {"port": self.port}


class Ours(Peer):
    """bus.client, bus.worker and `python -m broker`."""

    name = "ours"
    module = "role_ours"
    cases = frozenset({"rr", "latency", "stream", "echo16", "mixed", "pubsub", "idle", "scale"})
    needs: tuple[str, ...] = ("uvloop", "msgspec")

    @classmethod
    def missing(cls) -> str:
        parts = ("bus/client.py", "bus/worker.py", "broker/__main__.py")
        absent = [part for part in parts if not (ROOT / part).exists()]
        return super().missing() or (f"{absent[0]} is not there" if absent else "")

    def start_broker(self) -> None:
        keys = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
        ports = {f"bus.{key}": free_port() for key in keys}
        self.settings: dict[str, int | str] = {**ports}
        environment = {f"OLYMPUS_{key.replace('.', '_').upper()}": str(port) for key, port in ports.items()}
        self.broker = self.stage.start("ours broker", [sys.executable, "-m", "broker"], environment)
        for port in ports.values():
            self.broker.wait_for_port(port)

    def arguments(self, role: str) -> dict[str, object]:
        settings: dict[str, object] = {"settings": self.settings}
        is_bulk = role.startswith("bulk")
        return settings if role == "subscriber" else settings | {"service": "bulk" if is_bulk else "bench"}


class Encrypted(Ours):
    """Ours with CURVE on every connection, as between two machines."""

    name = "curve"
    cases = frozenset({"rr", "latency", "stream", "echo16", "mixed", "pubsub"})
    needs = ("uvloop", "msgspec", "nacl")

    def start_broker(self) -> None:
        from bus.keys import Keys
        from bus.settings import load_settings

        keys = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
        ports = {f"bus.{key}": free_port() for key in keys}
        self.settings = {**ports, "home": str(self.stage.home / "curve"), "bus.server_key": "bench"}
        machine = Keys(load_settings(overrides=self.settings))
        machine.trust("bench", machine.make().public)
        flags = [part for key, value in self.settings.items() for part in ("--set", f"{key}={value}")]
        self.broker = self.stage.start("curve broker", [sys.executable, "-m", "broker", *flags])
        for port in ports.values():
            self.broker.wait_for_port(port)


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Ours, Proxy, Tuned, NatsPeer, RedisPeer, Encrypted)}

# Peers that are measured where nobody says which; ours encrypted is no peer of the others.
USUAL: list[str] = [name for name in PEERS if name != Encrypted.name]


def _beside_python(program: str) -> str:
    """Path of a program that a package put beside this Python, or that the system has; empty when neither."""
    beside = Path(sys.executable).parent / program
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(program) or ""


def start(stage: Stage, names: Sequence[str], cases: frozenset[str]) -> tuple[list[Peer], dict[str, str]]:
    """Start the peers that take part in any of `cases`; returns them and the reasons of those that could not."""
    running: list[Peer] = []
    reasons: dict[str, str] = {}
    for name in names:
        kind = PEERS[name]
        if not kind.cases & cases:
            continue
        reason = kind.missing()
        if not reason:
            peer = kind(stage)
            try:
                peer.start()
            except ProcessFailed as error:
                reason = str(error)
            else:
                running.append(peer)
        if reason:
            reasons[name] = reason
    return running, reasons
