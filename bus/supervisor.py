"""Keeps one service alive: starts it as a child process, starts it again when it dies, gives up when that is no use.

    olympus up -> honcho -> honcho's reader of one line -> supervisor (this) -> python -m broker

honcho stops everything when one of its processes ends, so what ends here is only what nobody can bring back. The other
way round nothing may outlive its parent, or it would hold a port for ever: the kernel ends the child when this process
is killed, and this process ends when honcho is. Knows nothing of the bus and imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import logging
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from types import FrameType
from typing import Final, NamedTuple

from bus.settings import EX_CONFIG, SupervisorSettings, honcho_process_name, supervised_environment

log = logging.getLogger("olympus.supervisor")

# Exit status of a supervisor whose child kept dying (EX_SOFTWARE of sysexits.h).
EX_GAVE_UP: Final = 70

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Where the kernel offers no pidfd, ancestors are looked at this often, seconds: a port stays held at most so long.
_POLL_S: Final = 0.5

# How much of what the child said last is repeated when it is given up: bytes kept, lines shown.
_TAIL_BYTES: Final = 16 * 1024
_TAIL_LINES: Final = 20


# When to start again -------------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """What follows a death.

    restart        after a wait that doubles with every quick death in a row
    misconfigured  never: the child said with EX_CONFIG that only a changed configuration helps
    give_up        never: too many quick deaths in a row
    """

    RESTART = "restart"
    MISCONFIGURED = "misconfigured"
    GIVE_UP = "give_up"


class Decision(NamedTuple):
    """`verdict`, the seconds to wait before a restart, and the quick deaths in a row so far."""

    verdict: Verdict
    wait_s: float
    quick_deaths: int


class RestartPolicy:
    """Decides after each death. Pure: it is told the time, and where its dice come from.

    jitter: a number in [0, 1). A wait is 50 to 100 % of its nominal length, so that several services felled by the same
    cause do not come back in step.
    """

    def __init__(self, settings: SupervisorSettings, jitter: Callable[[], float] = random.random) -> None:
        self._settings = settings
        self._jitter = jitter
        self._started_at = 0.0
        self._quick_deaths = 0

    def started(self, now: float) -> None:
        """The child was started at `now`, seconds of a monotonic clock."""
        self._started_at = now

    def died(self, now: float, status: int) -> Decision:
        """The child ended at `now` with `status` (negative: killed by that signal), and nobody had asked it to."""
        if status == EX_CONFIG:
            return Decision(Verdict.MISCONFIGURED, 0.0, self._quick_deaths)
        lived_s = now - self._started_at
        self._quick_deaths = self._quick_deaths + 1 if lived_s < self._settings.quick_death_s else 0
        if self._quick_deaths >= self._settings.give_up_after:
            return Decision(Verdict.GIVE_UP, 0.0, self._quick_deaths)
        doublings = max(0, self._quick_deaths - 1)
        nominal_s = min(self._settings.backoff_max_s, self._settings.backoff_s * 2.0 ** min(doublings, 64))
        return Decision(Verdict.RESTART, nominal_s * (0.5 + 0.5 * self._jitter()), self._quick_deaths)


# Processes -----------------------------------------------------------------------------------------------------------

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(signum: int) -> Callable[[], None]:
    """What a child runs between fork and exec so that the kernel sends it `signum` when this process dies (Linux).

    The kernel ties this to the thread that forks, not to the process (prctl(2)): fork from the main thread.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def arrange() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
        # The parent may have died before the kernel knew whom to tell.
        if os.getppid() != parent:
            os._exit(1)

    return arrange


class Child:
    """The supervised process, in a process group of its own. What it says on stderr passes through and is remembered.

    restarts: how often it was started again, which it is told.
    """

    def __init__(self, command: Sequence[str], restarts: int) -> None:
        self._process = subprocess.Popen(
            command,
            env=supervised_environment(restarts),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - this process has one thread
        )
        assert self._process.stderr is not None
        self.pid = self._process.pid
        self.stderr_fd = self._process.stderr.fileno()
        os.set_blocking(self.stderr_fd, False)
        self._tail = b""

    def is_dead(self) -> bool:
        """True once it ended. It stays unreaped, so that its process group keeps its number."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def forward(self) -> bool:
        """Copy what it wrote to our own stderr; False when nothing more can come."""
        while True:
            try:
                data = os.read(self.stderr_fd, 65_536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            _write_stderr(data)

    def last_lines(self) -> list[str]:
        """The end of what it said on stderr."""
        return self._tail.decode(errors="replace").splitlines()[-_TAIL_LINES:]

    def terminate(self) -> None:
        """Ask it to leave."""
        self._process.send_signal(signal.SIGTERM)

    def kill_group(self) -> None:
        """End it and whatever it started that is still in its group. Only before `reap`."""
        os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Its exit status, negative for a signal; waits for a process that was killed. Closes its stderr."""
        status = self._process.wait()
        self.forward()
        assert self._process.stderr is not None
        self._process.stderr.close()
        return status


def describe_status(status: int) -> str:
    """`left with status 1` or `was killed by SIGSEGV`."""
    if status >= 0:
        return f"left with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _write_stderr(data: bytes) -> None:
    """Write to our own stderr; whoever read it may be gone, and the child is then stopped in good order all the same."""
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        return


# Ancestors -----------------------------------------------------------------------------------------------------------


class ProcessStat(NamedTuple):
    """What `/proc/PID/stat` says: state letter, parent, process group, start time in clock ticks since boot."""

    state: str
    parent: int
    group: int
    start_ticks: int


def process_stat(pid: int) -> ProcessStat | None:
    """None for a process that is gone, or on a system without `/proc`. Source: proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may itself hold anything.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return ProcessStat(fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[19]))


class Ancestor:
    """A process without which this one has no reason to live. Known by its start time too: numbers are used again."""

    def __init__(self, pid: int, stat: ProcessStat) -> None:
        self.pid = pid
        self._start_ticks = stat.start_ticks
        # Readable when the process ends; it only wakes us up, `is_gone` is what counts.
        self.wake_fd: int | None = None
        if hasattr(os, "pidfd_open"):
            try:
                self.wake_fd = os.pidfd_open(pid)
            except OSError:
                # A kernel before 5.3, or the process has just ended.
                self.wake_fd = None

    def is_gone(self) -> bool:
        """True once it ended, reaped or not."""
        stat = process_stat(self.pid)
        return stat is None or stat.state in "ZX" or stat.start_ticks != self._start_ticks

    def close(self) -> None:
        """Give back the descriptor; that of an ended process stays readable and would turn each wait into a busy loop."""
        if self.wake_fd is not None:
            os.close(self.wake_fd)
            self.wake_fd = None


class Orphaned(Exception):
    """honcho ended before the supervisor could begin to watch it."""


def honcho_ancestors() -> list[Ancestor]:
    """honcho's reader of our line (the parent) and honcho itself (its parent). Raises Orphaned when honcho is gone.

    honcho 2 starts each line from a process of its own that only reads the line's output, ignores SIGTERM and outlives
    a killed honcho for as long as we write, so the parent alone tells nothing.
    """
    reader_pid = os.getppid()
    reader = process_stat(reader_pid)
    if reader is None:
        return []
    honcho = process_stat(reader.parent)
    # Both are in one process group; init, which adopts the reader of a dead honcho, is in another.
    if honcho is None or honcho.group != reader.group:
        raise Orphaned
    return [Ancestor(reader_pid, reader), Ancestor(reader.parent, honcho)]


# The supervisor ------------------------------------------------------------------------------------------------------


class Supervisor:
    """Runs `command` until it is told to stop, loses honcho, or gives up."""

    def __init__(self, name: str, command: Sequence[str], settings: SupervisorSettings) -> None:
        self._name = name
        self._command = command
        self._settings = settings
        self._policy = RestartPolicy(settings)
        self._selector = selectors.DefaultSelector()
        self._ancestors: list[Ancestor] = []
        self._stop_reason: str | None = None
        self._starts = 0

    def run(self) -> int:
        """Supervise, and return this process's exit status. Call from the main thread: it handles signals and forks.

        0 after a stop that was asked for, EX_CONFIG when the child says that its configuration is wrong, EX_GAVE_UP
        when it died quickly too many times in a row.
        """
        self._watch_signals()
        try:
            self._watch_ancestors()
        except Orphaned:
            return 0
        while True:
            child = self._start()
            self._follow(child)
            if self._stop_reason:
                return self._stop(child)
            end = self._bury(child)
            if end is not None:
                return end

    def _start(self) -> Child:
        child = Child(self._command, self._starts)
        self._starts += 1
        self._policy.started(time.monotonic())
        self._selector.register(child.stderr_fd, selectors.EVENT_READ, child)
        log.debug("started", extra={"action": "process.started", "service": self._name, "child": child.pid})
        return child

    def _follow(self, child: Child) -> None:
        """Wait until the child is dead or a stop was asked for."""
        while not child.is_dead() and not self._stop_reason:
            self._turn(None)

    def _bury(self, child: Child) -> int | None:
        """After an unasked death: wait for the next start, or return the status to leave with."""
        died_at = time.monotonic()
        status = self._reap(child)
        decision = self._policy.died(died_at, status)
        how = describe_status(status)
        fields = {"service": self._name, "child": child.pid, "how": how, "quick_deaths": decision.quick_deaths}
        if decision.verdict is Verdict.MISCONFIGURED:
            log.error("process is misconfigured", extra={"action": "process.misconfigured", **fields})
            return EX_CONFIG
        if decision.verdict is Verdict.GIVE_UP:
            log.error("process given up", extra={"action": "process.given_up", **fields})
            self._explain(child, decision.quick_deaths, how)
            return EX_GAVE_UP
        log.warning("process died", extra={"action": "process.died", **fields, "wait_s": decision.wait_s})
        self._wait_until(died_at + decision.wait_s)
        return 0 if self._stop_reason else None

    def _explain(self, child: Child, quick_deaths: int, how: str) -> None:
        lines = child.last_lines() or ["(nothing)"]
        said = "\n".join(f"    {line}" for line in lines)
        _write_stderr(
            f"\n{self._name} died {quick_deaths} times in a row within {self._settings.quick_death_s:g} s of its start;"
            f" giving up.\nThe last time it {how}, after saying:\n{said}\n"
            f"Remove the cause and start again; `olympus doctor` says what is missing.\n\n".encode()
        )

    def _stop(self, child: Child) -> int:
        """Let the child finish within `stop_s`, end what is left of its group after that."""
        log.info("stopping", extra={"action": "process.stopping", "service": self._name, "why": self._stop_reason})
        if not child.is_dead():
            child.terminate()
        deadline = time.monotonic() + self._settings.stop_s
        while not child.is_dead() and time.monotonic() < deadline:
            self._turn(deadline)
        if not child.is_dead():
            log.warning(
                "process did not leave in time and is killed",
                extra={"action": "process.killed", "service": self._name, "stop_s": self._settings.stop_s},
            )
        self._reap(child)
        self._end_reader()
        return 0

    def _reap(self, child: Child) -> int:
        child.kill_group()
        if child.stderr_fd in self._selector.get_map():
            self._selector.unregister(child.stderr_fd)
        return child.reap()

    def _wait_until(self, at: float) -> None:
        while time.monotonic() < at and not self._stop_reason:
            self._turn(at)

    def _turn(self, until: float | None) -> None:
        """Sleep until something happens or `until` comes, pass on what the child said, look after the ancestors."""
        timeout = None if until is None else max(0.0, until - time.monotonic())
        if any(ancestor.wake_fd is None for ancestor in self._ancestors):
            timeout = _POLL_S if timeout is None else min(timeout, _POLL_S)
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, Child):
                if not key.data.forward():
                    self._selector.unregister(key.fd)
            elif isinstance(key.data, Ancestor):
                self._selector.unregister(key.fd)
                key.data.close()
            else:
                os.read(key.fd, 512)
        if not self._stop_reason and any(ancestor.is_gone() for ancestor in self._ancestors):
            self._stop_reason = "honcho is gone"

    # Signals and ancestors ---------------------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        """A signal writes a byte into a pipe, which wakes `select` without a race."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self._selector.register(reading, selectors.EVENT_READ)
        for signum in STOP_SIGNALS:
            signal.signal(signum, self._on_stop_signal)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)

    def _on_stop_signal(self, signum: int, frame: FrameType | None) -> None:
        self._stop_reason = self._stop_reason or signal.Signals(signum).name

    def _watch_ancestors(self) -> None:
        if honcho_process_name() is None:
            return
        self._ancestors = honcho_ancestors()
        for ancestor in self._ancestors:
            if ancestor.wake_fd is not None:
                self._selector.register(ancestor.wake_fd, selectors.EVENT_READ, ancestor)

    def _end_reader(self) -> None:
        """End honcho's reader of our line when honcho itself is gone.

        It would hand our last lines to the dead honcho through a pipe that nobody empties, and wait for that for ever.
        """
        if not self._ancestors:
            return
        reader, honcho = self._ancestors
        if honcho.is_gone() and not reader.is_gone():
            os.kill(reader.pid, signal.SIGKILL)
