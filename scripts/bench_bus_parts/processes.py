"""The bench's child processes: start, command, CPU time, resident memory, and a sure end."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from bench_bus_parts.line_protocol import Fields

SCRIPTS = Path(__file__).resolve().parent.parent
ROOT = SCRIPTS.parent

# How long a process may take to say ready, and to carry out one command, seconds.
READY_S = 20.0
COMMAND_S = 90.0
# How long a process may take to leave by itself before it is killed, seconds.
LEAVE_S = 3.0

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessFailed(RuntimeError):
    """A process of the bench ended, or did not answer in time."""


def _die_with_parent() -> None:
    """Runs in the child: a bench killed with -9 leaves nothing behind either."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_given_ports: set[int] = set()


def free_port() -> int:
    """A TCP port of the loopback address that nothing listens on now, and that this function has not given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _given_ports:
            _given_ports.add(port)
            return port


def listens(port: int) -> bool:
    """True when something accepts on the port."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """One child with its line protocol and its meters."""

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str], *, is_role: bool) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if is_role else output,
                stderr=output,
                env=environment,
                cwd=ROOT,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  the bench has one thread
            )
        self._received = b""

    def tell(self, **command: object) -> None:
        """Send one command without waiting for its answer."""
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(json.dumps(command).encode() + b"\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            raise self._failure("ended") from None

    def answer(self, timeout_s: float = COMMAND_S) -> Fields:
        """The next line the process says. Raises ProcessFailed when it ends or `timeout_s` passes."""
        assert self.child.stdout is not None
        descriptor = self.child.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            if not _readable(descriptor, deadline - time.monotonic()):
                raise self._failure(f"said nothing for {timeout_s:g} s")
            data = os.read(descriptor, 65536)
            if not data:
                raise self._failure("ended")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        fields: Fields = json.loads(line)
        return fields

    def ask(self, **command: object) -> Fields:
        """Send a command and wait for its answer."""
        self.tell(**command)
        return self.answer()

    def wait_for_port(self, port: int) -> None:
        """Wait until the process listens."""
        deadline = time.monotonic() + READY_S
        while not listens(port):
            if self.child.poll() is not None:
                raise self._failure("ended")
            if time.monotonic() > deadline:
                raise self._failure(f"does not listen on port {port} after {READY_S:g} s")
            time.sleep(0.02)

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far: the kernel's CPU clock of another process."""
        return time.clock_gettime((~self.child.pid << 3) | 2)

    def rss_mb(self) -> float:
        """Resident memory, MiB."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(kilobytes) / 1024

    def close(self) -> None:
        """Close its stdin, at which the bench's own roles leave, and our end of its stdout."""
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()
        if self.child.stdout is not None:
            self.child.stdout.close()

    def _failure(self, what: str) -> ProcessFailed:
        tail = self.log.read_text(errors="replace")[-1500:].strip()
        return ProcessFailed(f"{self.name} {what}" + (f"; it wrote:\n{tail}" if tail else ""))


def _readable(descriptor: int, timeout_s: float) -> bool:
    return bool(select.select([descriptor], [], [], max(0.0, timeout_s))[0])


class Stage:
    """Every process of one run, in one temporary home; leaving the context ends them all."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="olympus-bench-")
        self.home = Path(self._folder.name)
        self.processes: list[Process] = []

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end(self.processes)
        self._folder.cleanup()

    def start(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str] | None = None,
        *,
        is_role: bool = False,
    ) -> Process:
        """Start a process; it inherits the environment plus `environment`, without any OLYMPUS_* of the caller's.

        A role speaks the line protocol on its stdout; what any other process prints goes to its log.
        """
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("OLYMPUS_")}
        log = self.home / f"{name.replace(' ', '-')}-{len(self.processes)}.log"
        own = {"OLYMPUS_HOME": str(self.home), "PYTHONPATH": f"{SCRIPTS}{os.pathsep}{ROOT}"}
        process = Process(name, command, log, inherited | own | (environment or {}), is_role=is_role)
        self.processes.append(process)
        return process

    def role(self, peer: str, module: str, role: str, **arguments: object) -> tuple[Process, Fields]:
        """Start `role` of one of the bench's own modules; the process and what it said when it was ready."""
        command = [sys.executable, "-m", f"bench_bus_parts.{module}", role, json.dumps(arguments)]
        process = self.start(f"{peer} {role}", command, is_role=True)
        return process, process.answer(READY_S)

    def end(self, processes: list[Process]) -> None:
        """End these processes, the last started first."""
        ending = list(reversed(processes))
        for process in ending:
            process.close()
            process.child.terminate()
        deadline = time.monotonic() + LEAVE_S
        for process in ending:
            try:
                process.child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.child.kill()
                process.child.wait()
        self.processes = [process for process in self.processes if process not in ending]


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP leave through the same exits as Ctrl-C, so that the children end."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
