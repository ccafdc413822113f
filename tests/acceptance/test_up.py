"""`olympus up` as a person runs it: ready, stopped, killed, and refused when a port is taken."""

from __future__ import annotations

import os
import queue
import shlex
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

from bus.supervisor import process_stat

TIMEOUT_S = 60.0
PORTS = ("request_port", "publish_port", "subscribe_port", "sequenced_port")


class Up:
    """One `olympus up` with a home and ports of its own."""

    def __init__(self, home: Path, *arguments: str) -> None:
        with ExitStack() as held:
            free = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
            self.ports = dict(zip(PORTS, (server.getsockname()[1] for server in free), strict=True))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OLYMPUS_", "HONCHO_"))}
        flags = [part for key, port in self.ports.items() for part in ("--set", f"bus.{key}={port}")]
        self.command = [sys.executable, "-m", "bus.cli.app", *flags, "up", *arguments]
        self.environment = {**inherited, "OLYMPUS_HOME": str(home)}
        self.process: subprocess.Popen[str] | None = None
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()

    def start(self) -> subprocess.Popen[str]:
        """Start it; its stdout and stderr are read as one stream."""
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self.process

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for_line(self, text: str) -> str:
        """The next line that holds `text`; fails with what was said instead."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                pytest.fail(f"waited in vain for {text!r}; it said:\n{''.join(self.said)}")
            self.said.append(line)
            if text in line:
                return line

    def family(self) -> list[int]:
        """Every living process below `up`, found by its home folder, which all inherit."""
        mark = f"OLYMPUS_HOME={self.environment['OLYMPUS_HOME']}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                is_ours = entry.name.isdigit() and mark in (entry / "environ").read_bytes() + b"\0"
            except OSError:
                continue
            stat = process_stat(int(entry.name)) if is_ours else None
            if stat is not None and stat.state not in "ZX":
                found.append(int(entry.name))
        return found

    def wait_until_nothing_is_left(self) -> None:
        """Fails naming what still runs, or which port is still held."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if not self.family() and not self.held_ports():
                return
            time.sleep(0.02)
        pytest.fail(f"still there: processes {self.family()}, ports {self.held_ports()}")

    def held_ports(self) -> list[str]:
        """Those of our ports that somebody listens on."""
        held = []
        for key, port in self.ports.items():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    held.append(f"{key} {port}")
        return held

    def end(self) -> None:
        """Leave nothing running, whatever the test did."""
        for pid in self.family():
            # One may end by itself, or by its parent's end, meanwhile.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(timeout=TIMEOUT_S)
            self._reader.join(timeout=TIMEOUT_S)
            assert self.process.stdout is not None
            self.process.stdout.close()


@pytest.fixture
def make_up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Makes the test's `olympus up` and ends it afterwards."""
    made: list[Up] = []

    def make(*arguments: str) -> Up:
        made.append(Up(tmp_path / "home", *arguments))
        return made[-1]

    yield make
    for up in made:
        up.end()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_says_when_it_is_ready_and_stops_with_status_0(make_up: Callable[..., Up], signum: signal.Signals) -> None:
    """Broker and memory come up; a stop that was asked for ends everything and is no failure."""
    up = make_up("--only", "broker,memory")
    process = up.start()
    up.wait_for_line("Olympus is ready: broker, memory")
    up.wait_for_line(f"--set bus.request_port={up.ports['request_port']}")

    process.send_signal(signum)

    assert process.wait(timeout=TIMEOUT_S) == 0
    up.wait_until_nothing_is_left()


def test_nothing_is_left_when_up_itself_is_killed_with_9(make_up: Callable[..., Up]) -> None:
    """honcho is told by the kernel and stops in good order."""
    up = make_up("--only", "broker")
    process = up.start()
    up.wait_for_line("Olympus is ready")

    process.kill()

    up.wait_until_nothing_is_left()


def test_nothing_is_left_when_honcho_is_killed_with_9(make_up: Callable[..., Up]) -> None:
    """`up` says that honcho is gone, and no service or model runner outlives it."""
    up = make_up()
    process = up.start()
    up.wait_for_line("model loaded")
    (honcho,) = [pid for pid in up.family() if (stat := process_stat(pid)) and stat.parent == process.pid]

    os.kill(honcho, signal.SIGKILL)

    up.wait_for_line("everything has stopped: honcho was killed by SIGKILL")
    assert process.wait(timeout=TIMEOUT_S) == 1
    up.wait_until_nothing_is_left()


def test_stop_right_after_the_start_leaves_nothing(make_up: Callable[..., Up]) -> None:
    """A stop before honcho has started every line waits for that."""
    up = make_up("--only", "broker,memory")
    process = up.start()
    up.wait_for_line("started (pid=")

    process.terminate()

    assert process.wait(timeout=TIMEOUT_S) == 0
    up.wait_until_nothing_is_left()


def test_taken_port_is_refused_before_anything_starts(make_up: Callable[..., Up]) -> None:
    """The message names the key to change."""
    up = make_up()
    with socket.create_server(("127.0.0.1", up.ports["publish_port"])):
        process = up.start()

        up.wait_for_line("(bus.publish_port) is already taken")
        assert process.wait(timeout=TIMEOUT_S) == 78


def test_whole_house_comes_up_answers_and_stops(make_up: Callable[..., Up]) -> None:
    """Every line of the Procfile is ready, the first command shown to a newcomer works, and nothing is left."""
    up = make_up()
    process = up.start()
    up.wait_for_line("Olympus is ready: broker, memory, resources, models")
    shown = up.wait_for_line(" chat")
    arguments = [*shlex.split(shown)[1:], "What can you do?"]

    answer = subprocess.run(
        [sys.executable, "-m", "bus.cli.app", *arguments],
        env=up.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    process.terminate()

    assert answer.stdout.startswith("I can")
    assert process.wait(timeout=TIMEOUT_S) == 0
    up.wait_until_nothing_is_left()


def test_unknown_name_is_refused_with_the_known_ones(make_up: Callable[..., Up]) -> None:
    """--only takes names from the Procfile."""
    up = make_up("--only", "broker,mermory")
    process = up.start()

    up.wait_for_line("expected names from broker, memory, resources, models")
    assert process.wait(timeout=TIMEOUT_S) == 2
