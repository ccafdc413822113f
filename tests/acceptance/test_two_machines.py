"""MainPC and PC2 as their profiles describe them: on two loopback addresses, and in two network namespaces."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60.0
OLYMPUS = (sys.executable, "-m", "bus.cli.app")
PORTS = ("request_port", "publish_port", "subscribe_port", "sequenced_port")


class Machine:
    """One machine: its home, its profile, and where its commands run."""

    def __init__(self, name: str, home: Path, flags: tuple[str, ...] = (), prefix: tuple[str, ...] = ()) -> None:
        self.name = name
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OLYMPUS_", "HONCHO_"))}
        self.environment = {**inherited, "OLYMPUS_HOME": str(home)}
        self._command = (*prefix, *OLYMPUS, "--config", str(ROOT / "config" / f"{name}.yaml"), *flags)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.said: list[str] = []

    def olympus(self, *arguments: str, code: int = 0) -> str:
        """stdout of one command, and stderr where it was to fail."""
        done = subprocess.run(
            (*self._command, *arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stderr if code else done.stdout.strip()

    def up(self, *arguments: str) -> None:
        """Start what its profile names; stdout and stderr are read as one stream."""
        self._lines = queue.Queue()
        self.said.clear()
        self._process = subprocess.Popen(
            (*self._command, "up", *arguments),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True)
        self._reader.start()

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    def hears(self, text: str) -> str:
        """The next line that holds `text`; fails with what was said instead."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                pytest.fail(f"{self.name} did not say {text!r}; it said:\n{''.join(self.said)}")
            self.said.append(line)
            if text in line:
                return line

    def down(self) -> None:
        """Ctrl-C."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(timeout=TIMEOUT_S) == 0
        self._close()

    def end(self) -> None:
        """Leave nothing running, whatever the test did: supervisors end with `up`, their children with them."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        assert self._process is not None and self._process.stdout is not None and self._reader is not None
        self._reader.join(timeout=TIMEOUT_S)
        self._process.stdout.close()

    def remembers(self, key: str) -> str:
        """What memory holds under a key, asked from here."""
        reply = json.loads(self.olympus("req", "memory.recall", json.dumps({"key": key}), "--timeout", "10s"))
        return str(reply["value"])


Make = Callable[..., Machine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes the test's machines and ends them afterwards."""
    made: list[Machine] = []

    def one(name: str, *, home: str = "", **options: tuple[str, ...]) -> Machine:
        made.append(Machine(name, tmp_path / (home or name), **options))
        return made[-1]

    yield one
    for machine in made:
        machine.end()


def free_ports() -> dict[str, int]:
    """Four ports that nobody holds."""
    with ExitStack() as held:
        servers = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return dict(zip(PORTS, (server.getsockname()[1] for server in servers), strict=True))


def test_machines_find_each_other_in_any_order_and_after_a_restart(make: Make) -> None:
    """PC2 first, keys traded while it waits, memory used from both sides, a stranger refused, MainPC restarted."""
    settings = {
        **{f"bus.{name}": port for name, port in free_ports().items()},
        "machine.addresses": "mainpc=127.0.0.2,pc2=127.0.0.3",
        **{f"rest.{name}_port": 0 for name in ("memory", "models", "learning")},
        **{f"rest.{name}_health_port": 0 for name in ("memory", "models", "learning")},
        "rest.host": "127.0.0.1",
        "exporter.port": 0,
        "legacy.enabled": "false",
    }
    flags = tuple(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))
    main, second = make("mainpc", flags=flags), make("pc2", flags=flags)
    stranger = make("pc2", home="stranger", flags=flags)

    assert "olympus keys make" in second.olympus("up", code=78)
    public = {machine.name: machine.olympus("keys", "make") for machine in (main, second)}
    second.olympus("keys", "trust", "mainpc", public["mainpc"])
    second.up()
    assert "Connection refused" in second.hears("no connection to the broker at 127.0.0.2")

    main.up()
    second.hears("the server does not trust our key")
    main.hears("learning waits for memory on pc2")
    main.olympus("keys", "trust", "pc2", public["pc2"])
    second.hears("the broker is there")
    second.hears("Olympus is ready: memory, gateway")
    main.hears("Olympus is ready: broker, resources, models, learning, gateway, errors, exporter")

    main.olympus("req", "memory.remember", '{"key": "from-main", "value": "1"}')
    second.olympus("req", "memory.remember", '{"key": "from-pc2", "value": "2"}')
    assert (second.remembers("from-main"), main.remembers("from-pc2")) == ("1", "2")

    stranger.olympus("keys", "make")
    stranger.olympus("keys", "trust", "mainpc", public["mainpc"])
    assert "the server does not trust our key" in stranger.olympus("req", "bus.ping", code=3)
    main.hears("key refused")

    main.down()
    second.hears("lost the broker")
    second.hears("waiting for the broker")
    main.up("--only", "broker")
    second.hears("the broker is there")
    assert main.remembers("from-main") == "1"


# Two namespaces -------------------------------------------------------------------------------------------------


def ip(*arguments: str) -> None:
    """One command of iproute2."""
    subprocess.run(("ip", *arguments), check=True, capture_output=True, timeout=TIMEOUT_S)


def can_make_namespaces() -> bool:
    """True for who may make networks here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"olympus-{os.getpid()}"
    with suppress(subprocess.CalledProcessError):
        ip("netns", "add", name)
        try:
            ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "other")
        finally:
            ip("netns", "delete", name)
        return True
    return False


@pytest.fixture
def networks() -> Iterator[dict[str, str]]:
    """Two machines' networks with the addresses of the profiles, joined by a cable; names of the namespaces."""
    names = {machine: f"olympus-{os.getpid()}-{machine}" for machine in ("mainpc", "pc2")}
    try:
        for name in names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names["mainpc"], "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", names["pc2"])
        for machine, address in (("mainpc", "192.168.100.16/24"), ("pc2", "192.168.100.17/24")):
            ip("-n", names[machine], "address", "add", address, "dev", "lan")
            ip("-n", names[machine], "link", "set", "lan", "up")
        yield names
    finally:
        for name in names.values():
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


if can_make_namespaces():
    # Not skipped elsewhere but absent: where nothing may be skipped, an ordinary user may still run the rest.

    def test_profiles_work_as_they_are_in_two_networks(make: Make, networks: dict[str, str]) -> None:
        """Nothing is overridden: addresses, ports and the replaced agents are those of the files."""
        main, second = (
            make(machine, prefix=("ip", "netns", "exec", networks[machine])) for machine in ("mainpc", "pc2")
        )
        public = {machine.name: machine.olympus("keys", "make") for machine in (main, second)}
        second.olympus("keys", "trust", "mainpc", public["mainpc"])
        main.olympus("keys", "trust", "pc2", public["pc2"])

        second.up()
        main.up("--only", "broker,gateway")
        main.hears("Olympus is ready: broker, gateway")
        second.hears("Olympus is ready: memory, gateway")

        second.olympus("req", "memory.remember", '{"key": "city", "value": "Porto"}')
        assert main.remembers("city") == "Porto"
        asked = subprocess.run(
            ("ip", "netns", "exec", networks["mainpc"], sys.executable, "-c", ASK_LEGACY),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert json.loads(asked.stdout)["status"], asked.stderr


# An agent on MainPC that asks one of PC2, as it always has.
ASK_LEGACY = """
import zmq
with zmq.Context() as context, context.socket(zmq.REQ) as asking:
    asking.linger = 0
    asking.rcvtimeo = 20_000
    asking.connect("tcp://192.168.100.17:7102")
    asking.send_json({"action": "health_check"})
    print(asking.recv().decode())
"""
