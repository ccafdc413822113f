"""The lock of a device between real processes: order, deaths at every step, limits, and what readers see."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus import device_lock
from bus.device_lock import DeviceLock, held, read_lock
from schemas.bodies.resource import LockHolder
from schemas.errors import BadRequest, DeadlineExceeded, Unsupported

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 20.0

# A party of the lock: says "took" when it has it, gives it back at the next line on its stdin, and says "gave".
PARTY = """
import sys
from pathlib import Path
from bus.device_lock import held
folder, device, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with held(folder, device, model=name, purpose="load", timeout_s=60):
    print("took", name, flush=True)
    sys.stdin.readline()
print("gave", name, flush=True)
"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the locks are kept."""
    return tmp_path / "locks"


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """`start(name)` runs a party; all are ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(name: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PARTY, str(folder), "gpu0", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[str]) -> str:
    """The next line of a party, "" after its end."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(WAIT_S)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition()`; fails naming what did not come about."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"did not come about: {what}"
        time.sleep(0.002)


def waiting(folder: Path) -> list[str]:
    return [waiter.model for waiter in read_lock(folder, "gpu0")[1]]


def start_in_line(start: Start, folder: Path, names: str) -> list[subprocess.Popen[str]]:
    """Parties that have queued up in the order of `names`."""
    parties = []
    for count, name in enumerate(names, 1):
        parties.append(start(name))
        until(lambda count=count: len(waiting(folder)) == count, f"{name} waits")
    return parties


# Order and deaths ----------------------------------------------------------------------------------------------------


def test_processes_get_the_lock_in_the_order_they_came(start: Start, folder: Path) -> None:
    """Each release hands the lock to the one that has waited longest, and readers see the queue in that order."""
    with held(folder, "gpu0", model="first", purpose="train", timeout_s=0):
        parties = start_in_line(start, folder, "abcd")
        assert waiting(folder) == ["a", "b", "c", "d"]

    for name, party in zip("abcd", parties, strict=True):
        assert says(party) == f"took {name}"
        holder, _ = read_lock(folder, "gpu0")
        assert holder is not None and (holder.model, holder.pid) == (name, party.pid)
        let_go(party)
        assert says(party) == f"gave {name}"
    assert read_lock(folder, "gpu0") == (None, [])


def test_the_kernel_frees_the_lock_of_a_killed_holder(start: Start, folder: Path) -> None:
    """kill -9 of one holder after another: the next in line has the lock each time, and nothing stays behind."""
    holder = start("z")
    assert says(holder) == "took z"
    parties = start_in_line(start, folder, "ab")

    kill(holder)
    assert says(parties[0]) == "took a"
    kill(parties[0])
    assert says(parties[1]) == "took b"
    kill(parties[1])

    assert read_lock(folder, "gpu0") == (None, [])
    with held(folder, "gpu0", model="after", purpose="load", timeout_s=WAIT_S):
        assert os.listdir(folder / "gpu0.queue") == []


def test_a_waiter_killed_or_stopped_does_not_block_those_behind_it(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead waiter is passed over at once, one that was stopped by a signal after a while."""
    monkeypatch.setattr(device_lock, "_OVERTAKE_S", 0.2)
    with held(folder, "gpu0", model="first", purpose="load", timeout_s=0):
        dead, stopped = start_in_line(start, folder, "ab")
        kill(dead)
        stopped.send_signal(signal.SIGSTOP)
        assert waiting(folder) == ["b"]

    with held(folder, "gpu0", model="second", purpose="load", timeout_s=WAIT_S):
        assert waiting(folder) == ["b"]
        stopped.send_signal(signal.SIGCONT)
    assert says(stopped) == "took b"


@pytest.mark.parametrize("step", ["_lock", "_is_at", "_write", "_tickets", "_open"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_party_killed_at_any_step_leaves_a_lock_that_works(step: str, count: int, folder: Path) -> None:
    """A process that dies by SIGKILL before or between the steps of taking the lock hinders nobody after it."""
    code = f"""
import os, signal, sys
from pathlib import Path
from bus import device_lock
real, left = device_lock.{step}, {count}
def dying(*args):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
device_lock.{step} = dying
with device_lock.held(Path(sys.argv[1]), "gpu0", model="x", purpose="load", timeout_s=5):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=WAIT_S,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL

    assert read_lock(folder, "gpu0") == (None, [])
    with held(folder, "gpu0", model="after", purpose="load", timeout_s=1):
        holder, _ = read_lock(folder, "gpu0")
        assert holder is not None and holder.model == "after"
        assert os.listdir(folder / "gpu0.queue") == []


def test_many_processes_never_hold_the_lock_together(folder: Path) -> None:
    """Six processes that take it over and over: none ever finds another inside."""
    code = """
import os, sys
from pathlib import Path
from bus.device_lock import held
folder = Path(sys.argv[1])
for _ in range(15):
    with held(folder, "cpu", model="m", purpose="load", timeout_s=60):
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
        os.unlink(folder / "inside")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parties = [subprocess.Popen([sys.executable, "-P", "-c", code, str(folder)], env=environment) for _ in range(6)]
    try:
        assert [party.wait(WAIT_S) for party in parties] == [0] * 6
    finally:
        for party in parties:
            party.kill()
            party.wait()


# Limits --------------------------------------------------------------------------------------------------------------


def test_a_wait_that_is_too_long_names_the_holder(start: Start, folder: Path) -> None:
    """The error says process, host, model, purpose and since when; the place in the queue is given up."""
    holder = start("big-model")
    assert says(holder) == "took big-model"

    with pytest.raises(DeadlineExceeded, match=f"process {holder.pid} on .* since .*: load of big-model") as caught:
        DeviceLock(folder, "gpu0").acquire_blocking(model="m", purpose="load", timeout_s=0.05)

    assert caught.value.details["holder"]["pid"] == holder.pid
    assert os.listdir(folder / "gpu0.queue") == []


async def test_waiting_in_an_event_loop_is_told_and_can_be_cancelled(folder: Path) -> None:
    """The loop goes on meanwhile; the callback hears of each holder; a cancelled waiter leaves the queue."""
    told: list[str | None] = []
    first, second, third = (DeviceLock(folder, "gpu0") for _ in range(3))
    await first.acquire(model="one", purpose="load", timeout_s=0)

    async def take(lock: DeviceLock, name: str) -> None:
        def on_wait(holder: LockHolder | None) -> None:
            told.append(holder.model if holder else None)

        await lock.acquire(model=name, purpose="adapters", timeout_s=WAIT_S, on_wait=on_wait)

    cancelled = asyncio.create_task(take(second, "two"))
    taken = asyncio.create_task(take(third, "three"))
    while len(read_lock(folder, "gpu0")[1]) < 2:
        await asyncio.sleep(0.001)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert waiting(folder) == ["three"]
    first.release()
    await taken

    assert told == ["one", "one"]
    assert (first.is_held, second.is_held, third.is_held) == (False, False, True)
    third.release()
    third.release()


def test_a_lock_held_by_this_object_is_not_taken_twice(folder: Path) -> None:
    """It would wait for itself until the time is up."""
    with held(folder, "cpu", model="m", purpose="load", timeout_s=0) as lock, pytest.raises(RuntimeError, match="cpu"):
        lock.acquire_blocking(model="m", purpose="load", timeout_s=0)


# Other programs, forks, files that go away -----------------------------------------------------------------------------


def test_flock_of_the_shell_is_a_party_too(folder: Path) -> None:
    """The util-linux command holds the same lock; its pid is found where it says nothing itself, and it waits for us."""
    if shutil.which("flock") is None:
        pytest.skip("the flock command is not installed")
    folder.mkdir()
    with subprocess.Popen(["flock", folder / "gpu0.lock", "cat"], stdin=subprocess.PIPE) as shell:
        until(lambda: read_lock(folder, "gpu0")[0] is not None, "flock holds it")
        holder, _ = read_lock(folder, "gpu0")
        assert holder is not None and (holder.model, holder.purpose) == ("", "unknown")
        with pytest.raises(DeadlineExceeded, match="says nothing about itself"):
            DeviceLock(folder, "gpu0").acquire_blocking(model="m", purpose="load", timeout_s=0)
        shell.communicate()

    with held(folder, "gpu0", model="m", purpose="load", timeout_s=WAIT_S):
        assert subprocess.run(["flock", "-n", folder / "gpu0.lock", "true"], check=False).returncode == 1


def test_a_stale_text_under_a_held_lock_is_not_believed(folder: Path) -> None:
    """A pid that was used again, or a text left by a killed holder, names nobody."""
    folder.mkdir()
    old = {"pid": os.getpid(), "host": os.uname().nodename, "model": "old", "purpose": "load", "since": 1.0}
    (folder / "gpu0.lock").write_text(json.dumps({**old, "start_ticks": 1}) + "\n")
    assert read_lock(folder, "gpu0") == (None, [])

    with open(folder / "gpu0.lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        holder, _ = read_lock(folder, "gpu0")
    assert holder is not None and holder.model == ""


def test_who_has_just_taken_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between taking the lock and writing who holds it a party is found in the queue, where the kernel tells its pid."""
    write = device_lock._write
    seen: list[LockHolder | None] = []

    def write_late(file: io.FileIO, entry: device_lock._Entry) -> None:
        if device_lock._is_at(file, folder / "gpu0.lock"):
            seen.append(read_lock(folder, "gpu0")[0])
        write(file, entry)

    monkeypatch.setattr(device_lock, "_write", write_late)
    with held(folder, "gpu0", model="m", purpose="load", timeout_s=WAIT_S):
        seen.append(read_lock(folder, "gpu0")[0])

    early, late = ((one.pid, one.model, one.purpose) for one in seen if one is not None)
    assert late == (os.getpid(), "m", "load")
    assert early == (late if early[0] else (0, "", "unknown"))


def test_children_hold_no_lock_of_their_parent(folder: Path) -> None:
    """Neither a forked child nor one that was started afresh keeps the lock when the parent has given it back."""
    lock = DeviceLock(folder, "gpu0")
    lock.acquire_blocking(model="m", purpose="load", timeout_s=0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"held" if lock.is_held else b"free")
        lock.release()
        signal.pause()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as started:
        try:
            assert os.read(reading, 4) == b"free"
            assert read_lock(folder, "gpu0")[0] is not None
            lock.release()
            assert read_lock(folder, "gpu0")[0] is None
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reading)
            os.close(writing)
            started.communicate()


def test_a_lock_file_removed_under_a_waiter_is_made_anew(start: Start, folder: Path) -> None:
    """The waiter does not take the removed file for the lock, and one whose place was removed lines up again."""
    with held(folder, "gpu0", model="first", purpose="load", timeout_s=0):
        (party,) = start_in_line(start, folder, "a")
        shutil.rmtree(folder / "gpu0.queue")
        until(lambda: waiting(folder) == ["a"], "it lines up again")
        (folder / "gpu0.lock").unlink()
        assert says(party) == "took a"

    holder, _ = read_lock(folder, "gpu0")
    assert holder is not None and holder.pid == party.pid


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file where the folder should be, and a device that is none."""
    (tmp_path / "locks").write_text("")
    with pytest.raises(Unsupported, match=f"device locks cannot be kept in {tmp_path / 'locks'}"):
        DeviceLock(tmp_path / "locks", "cpu").acquire_blocking(model="m", purpose="load", timeout_s=0)
    with pytest.raises(Unsupported, match="cannot be kept"):
        read_lock(tmp_path / "locks", "cpu")
    with pytest.raises(BadRequest, match="gpu0"):
        DeviceLock(tmp_path, "../cpu")


def test_a_full_disk_is_told_and_leaves_nothing_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place or a holder that cannot be written is no place and no holder."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(device_lock, "_write", full)
        with pytest.raises(Unsupported, match="No space left"):
            DeviceLock(folder, "cpu").acquire_blocking(model="m", purpose="load", timeout_s=0)
    assert read_lock(folder, "cpu") == (None, [])
