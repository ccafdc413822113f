"""Supervised processes as they are in a real run: restarts, giving up, stopping, and nothing left behind after kill -9."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bus.settings import EX_CONFIG
from bus.supervisor import EX_GAVE_UP, process_stat

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30.0

# Supervises `python child.py` of the folder it is started in, with waits short enough for a test.
SUPERVISE = """
import sys
from bus.logs import configure_logging
from bus.settings import LogSettings, SupervisorSettings
from bus.supervisor import Supervisor

configure_logging(LogSettings())
settings = SupervisorSettings(backoff_s=0.01, backoff_max_s=0.05, quick_death_s=5.0, give_up_after=3, stop_s=STOP_S)
sys.exit(Supervisor("toy", [sys.executable, "child.py"], settings).run())
"""

# Serves as a worker would: notes its pid, holds a port, leaves on SIGTERM.
SERVE = """
import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
listener = socket.create_server(("127.0.0.1", int(open("port").read())))
print("serving", file=sys.stderr, flush=True)
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
while True:
    time.sleep(60)
"""


class Toy:
    """A folder with a supervised script in it, and what it notes there."""

    def __init__(self, folder: Path, child: str, stop_s: float = 4.0) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (folder / "port").write_text(str(self.port))
        (folder / "pids").touch()
        (folder / "child.py").write_text(child)
        (folder / "supervise.py").write_text(SUPERVISE.replace("STOP_S", str(stop_s)))
        (folder / "Procfile").write_text(f"toy: exec {sys.executable} supervise.py\n")
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.environment.pop("HONCHO_PROCESS_NAME", None)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *command: str) -> subprocess.Popen[str]:
        """`command` run in the folder, its output collected."""
        output = subprocess.PIPE if command[0] != "-m" else subprocess.DEVNULL
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=output,
            text=True,
        )
        self.started.append(process)
        return process

    def supervise(self) -> subprocess.Popen[str]:
        """The supervisor alone."""
        return self.start("supervise.py")

    def honcho(self) -> subprocess.Popen[str]:
        """The supervisor as a line of honcho's."""
        return self.start("-m", "honcho", "start")

    def pids(self) -> list[int]:
        """Every child that began to serve, in order."""
        return [int(line) for line in (self.folder / "pids").read_text().split()]

    def wait_for_child(self, number: int = 1) -> int:
        """The pid of the `number`th child that serves."""
        wait_for(lambda: len(self.pids()) >= number, f"child {number} to serve")
        return self.pids()[number - 1]

    def is_port_free(self) -> bool:
        """True when nobody listens on the child's port."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) != 0

    def end(self) -> None:
        """Leave nothing running, whatever the test did."""
        for process in self.started:
            process.kill()
            process.communicate(timeout=TIMEOUT_S)
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def make_toy(tmp_path: Path) -> Iterator[Callable[..., Toy]]:
    """Makes the test's toy and ends it afterwards."""
    toys: list[Toy] = []

    def make(child: str = SERVE, **options: float) -> Toy:
        toys.append(Toy(tmp_path, child, **options))
        return toys[-1]

    yield make
    for toy in toys:
        toy.end()


def wait_for(is_true: Callable[[], bool], what: str) -> None:
    """Return as soon as `is_true()`; fail naming `what` after the timeout."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_true():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {TIMEOUT_S:g} s in vain for {what}")
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """True when the process has ended, reaped or not."""
    stat = process_stat(pid)
    return stat is None or stat.state in "ZX"


def children_of(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    every = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [child for child in every if (stat := process_stat(child)) is not None and stat.parent == pid]


def test_supervising_command_imports_nothing_heavy() -> None:
    """Each line of the Procfile runs one of these beside the real process, so it has to stay small."""
    heavy = {"asyncio", "sqlite3", "uvloop", "yaml", "zmq", "bus.client", "bus.worker", "schemas.catalog"}
    code = "import bus.cli.app, bus.cli.worker, bus.cli.broker, sys; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert heavy & set(loaded.stdout.split()) == set()


def test_child_killed_with_9_comes_back_and_a_stop_ends_both(make_toy: Callable[..., Toy]) -> None:
    """kill -9 of the child brings a new one on the same port; SIGTERM then ends everything with status 0."""
    toy = make_toy()
    supervisor = toy.supervise()

    os.kill(toy.wait_for_child(1), signal.SIGKILL)
    second = toy.wait_for_child(2)
    supervisor.terminate()
    _, said = supervisor.communicate(timeout=TIMEOUT_S)

    assert supervisor.returncode == 0
    assert is_gone(second)
    assert toy.is_port_free()
    assert "was killed by SIGKILL" in said
    assert said.count("serving") == 2


def test_a_child_is_told_how_often_it_was_started_again(make_toy: Callable[..., Toy]) -> None:
    """It tells so in its figures; what it starts in turn does not take that for its own."""
    toy = make_toy(
        "from bus.settings import child_environment, restarts_of_process\n"
        "print(f'restarts {restarts_of_process()}', file=open('restarts', 'a'))\n"
        "assert 'OLYMPUS_RESTARTS' not in child_environment(None, {})\n"
        "if restarts_of_process() < 2:\n"
        "    raise SystemExit(1)\n" + SERVE
    )
    supervisor = toy.supervise()
    toy.wait_for_child()
    supervisor.terminate()
    supervisor.communicate(timeout=TIMEOUT_S)

    assert (toy.folder / "restarts").read_text().split("\n") == ["restarts 0", "restarts 1", "restarts 2", ""]


def test_interrupt_stops_in_good_order(make_toy: Callable[..., Toy]) -> None:
    """Ctrl-C on a supervisor run by hand is a stop like any other."""
    toy = make_toy()
    supervisor = toy.supervise()
    child = toy.wait_for_child()

    supervisor.send_signal(signal.SIGINT)

    assert supervisor.wait(timeout=TIMEOUT_S) == 0
    assert is_gone(child)


def test_gives_up_loudly_with_the_last_lines_of_the_child(make_toy: Callable[..., Toy]) -> None:
    """After quick deaths in a row the status says so, and the words say why."""
    toy = make_toy("import sys; print('the reason', file=sys.stderr); sys.exit(3)")
    supervisor = toy.supervise()

    _, said = supervisor.communicate(timeout=TIMEOUT_S)

    assert supervisor.returncode == EX_GAVE_UP
    assert "toy died 3 times in a row within 5 s of its start; giving up" in said
    assert "left with status 3, after saying:\n    the reason" in said


def test_misconfigured_child_is_not_started_again(make_toy: Callable[..., Toy]) -> None:
    """EX_CONFIG passes through at once."""
    toy = make_toy(f"import sys; print('wrong key', file=sys.stderr); sys.exit({EX_CONFIG})")
    supervisor = toy.supervise()

    _, said = supervisor.communicate(timeout=TIMEOUT_S)

    assert supervisor.returncode == EX_CONFIG
    assert said.count("wrong key") == 1


def test_child_that_ignores_the_stop_is_killed_with_its_own_children(make_toy: Callable[..., Toy]) -> None:
    """Past stop_s the whole process group goes, so that no grandchild stays."""
    toy = make_toy(
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.fork()\n"
        "with open('pids', 'a') as file: file.write(f'{os.getpid()}\\n')\n"
        "while True: time.sleep(60)\n",
        stop_s=0.2,
    )
    supervisor = toy.supervise()
    toy.wait_for_child(2)

    supervisor.terminate()
    _, said = supervisor.communicate(timeout=TIMEOUT_S)

    assert supervisor.returncode == 0
    assert "killed" in said
    wait_for(lambda: all(is_gone(pid) for pid in toy.pids()), "the process group to end")


def test_what_a_dead_child_left_in_its_group_ends_before_the_next_start(make_toy: Callable[..., Toy]) -> None:
    """A grandchild that holds the port would make every restart fail."""
    toy = make_toy(
        "import os, subprocess, sys, time\n"
        "if not os.path.exists('once'):\n"
        "    open('once', 'w').close()\n"
        "    subprocess.Popen([sys.executable, '-c', open('serve.py').read()])\n"
        "    while not open('pids').read(): time.sleep(0.01)\n"
        "    os.abort()\n"
        "exec(open('serve.py').read())\n"
    )
    (toy.folder / "serve.py").write_text(SERVE)
    toy.supervise()

    toy.wait_for_child(2)

    assert is_gone(toy.pids()[0])


def test_child_ends_when_its_supervisor_is_killed_with_9(make_toy: Callable[..., Toy]) -> None:
    """The kernel's parent-death signal needs no help from the child."""
    toy = make_toy()
    supervisor = toy.supervise()
    child = toy.wait_for_child()

    supervisor.kill()

    wait_for(lambda: is_gone(child), "the child to end")
    assert toy.is_port_free()


def test_supervisor_can_be_stopped_while_it_waits_for_a_restart(make_toy: Callable[..., Toy]) -> None:
    """A stop does not have to wait for the back-off."""
    toy = make_toy("import sys; sys.exit(1)")
    script = (toy.folder / "supervise.py").read_text()
    (toy.folder / "supervise.py").write_text(
        script.replace("backoff_s=0.01, backoff_max_s=0.05", "backoff_s=60.0, backoff_max_s=600.0")
    )
    supervisor = toy.supervise()
    assert supervisor.stderr is not None
    readable, _, _ = select.select([supervisor.stderr], [], [], TIMEOUT_S)
    assert readable, "the supervisor said nothing about the death"

    supervisor.terminate()

    assert supervisor.wait(timeout=TIMEOUT_S) == 0


def test_nothing_is_left_when_honcho_is_killed_with_9(make_toy: Callable[..., Toy]) -> None:
    """Neither child, nor supervisor, nor honcho's reader of the line, nor the port."""
    toy = make_toy()
    honcho = toy.honcho()
    child = toy.wait_for_child()
    supervisor = process_stat(child).parent  # type: ignore[union-attr]
    reader = process_stat(supervisor).parent  # type: ignore[union-attr]

    honcho.kill()

    for what, pid in (("child", child), ("supervisor", supervisor), ("reader", reader)):
        wait_for(lambda pid=pid: is_gone(pid), f"the {what} to end")
    assert toy.is_port_free()


def test_nothing_is_left_when_honcho_is_killed_while_its_readers_pipe_is_full(make_toy: Callable[..., Toy]) -> None:
    """Lines that a dead honcho never takes must not keep its reader of the line for ever."""
    toy = make_toy(
        SERVE.replace("sys.exit(0)", "[print('x' * 1000, file=sys.stderr) for _ in range(500)] and sys.exit(0)")
    )
    honcho = toy.honcho()
    child = toy.wait_for_child()
    supervisor = process_stat(child).parent  # type: ignore[union-attr]
    reader = process_stat(supervisor).parent  # type: ignore[union-attr]

    honcho.kill()

    wait_for(lambda: is_gone(reader) and is_gone(supervisor) and is_gone(child), "everything to end")


def test_child_ends_when_honchos_reader_is_killed_with_9(make_toy: Callable[..., Toy]) -> None:
    """The supervisor watches its parent as well as honcho."""
    toy = make_toy()
    toy.honcho()
    child = toy.wait_for_child()
    supervisor = process_stat(child).parent  # type: ignore[union-attr]
    reader = process_stat(supervisor).parent  # type: ignore[union-attr]

    os.kill(reader, signal.SIGKILL)

    wait_for(lambda: is_gone(child) and is_gone(supervisor), "child and supervisor to end")


def test_honcho_stops_cleanly(make_toy: Callable[..., Toy]) -> None:
    """SIGTERM to honcho ends supervisor and child, and honcho itself with its own status for SIGTERM."""
    toy = make_toy()
    honcho = toy.honcho()
    child = toy.wait_for_child()

    honcho.terminate()

    assert honcho.wait(timeout=TIMEOUT_S) == 128 + signal.SIGTERM
    assert is_gone(child)
    assert children_of(honcho.pid) == []
