"""The lock of a device: one kernel lock per GPU (and one for the main memory), for any program that swaps or trains on it.

    OLYMPUS_HOME/locks/gpu0.lock        flock(2) on this file is the lock; its first line says in JSON who holds it
    OLYMPUS_HOME/locks/gpu0.queue/N     one file per waiter, locked by it; the lowest number of a living one is next

It knows nothing of models, leases or the bus: what it is given to say about its holder it shows, no more.

The kernel frees the lock when its holder ends, however it ends; no child inherits it. The text in the file is written
after the lock is taken, so the lock is what counts: `read_lock` tries it, and shows no text of a holder that is gone.
Waiting is first come first served, also between processes, and has a limit. A waiter that dies leaves an unlocked file
in the queue, which the next one to look removes; one that stands still (stopped by a signal, or too busy to look) is
overtaken `_OVERTAKE_S` after the lock came free. Times shown are of the wall clock; waiting and order use none.

A program in another language, or a shell, takes part with flock(1) alone, outside the queue and unnamed but for its pid:

    flock ~/.olympus/locks/gpu0.lock COMMAND

Do not remove a lock file: whoever comes next makes a new one and holds that, beside the one who holds the removed file.
Keep the folder on a disk of this machine. NFS carries flock as a byte-range lock of the server, which is lost with the
connection, and some network file systems do not carry it at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import os
import re
import socket
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from bus.supervisor import process_stat
from schemas.bodies.resource import LockHolder, LockWaiter
from schemas.errors import BadRequest, DeadlineExceeded, Unsupported

# Between two looks: this part of the time waited so far, so that a lock that comes free is seen at most that much later;
# within these seconds. A look takes 60 microseconds (measured with four waiters).
_PAUSE_SHARE: Final = 0.05
_PAUSE_MIN_S: Final = 0.002
_PAUSE_MAX_S: Final = 0.05

# A lock that was free for this long and not taken by those ahead may be taken out of turn; 100 of their longest pauses.
_OVERTAKE_S: Final = 5.0

# Even one who will not wait looks for this long: a reader who tries whether the lock is held is in the way for
# microseconds.
_LEAST_WAIT_S: Final = 0.01

_DEVICE: Final = re.compile(r"(cpu|gpu[0-9]{1,3})\Z")

OnWait = Callable[[LockHolder | None], None]


class _Entry(LockHolder, frozen=True, kw_only=True):
    """A holder or waiter as its file says. start_ticks: when its process started (proc_pid_stat(5)): pids are reused."""

    start_ticks: int | None = None


class DeviceLock:
    """The lock of one device. Every object is a party of its own, also within one process.

    folder: `OLYMPUS_HOME/locks`, made when it is missing. device: "cpu", "gpu0", "gpu1" ... Raises BadRequest for
    another name.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._path, self._queue = _places(folder, device)
        self._device = device
        self._file: io.FileIO | None = None

    @property
    def is_held(self) -> bool:
        """True while this object holds the lock; never in a forked child."""
        return self._file is not None and not self._file.closed

    async def acquire(self, *, model: str, purpose: str, timeout_s: float, on_wait: OnWait | None = None) -> None:
        """Take the lock, in turn, within `timeout_s` seconds; cancelling gives up the place in the queue.

        model, purpose: what others read about the holder. on_wait: called when it has to wait, and again whenever
        another holds the lock; with None while nobody does and others are first.
        Raises DeadlineExceeded naming the holder, and Unsupported when the folder cannot be used.
        """
        with contextlib.closing(self._turns(model, purpose, timeout_s, on_wait)) as turns:
            for pause_s in turns:
                await asyncio.sleep(pause_s)

    def acquire_blocking(self, *, model: str, purpose: str, timeout_s: float, on_wait: OnWait | None = None) -> None:
        """`acquire` for programs without an event loop; with `timeout_s` 0 it takes the lock now or not at all."""
        with contextlib.closing(self._turns(model, purpose, timeout_s, on_wait)) as turns:
            for pause_s in turns:
                time.sleep(pause_s)

    def release(self) -> None:
        """Give the lock back; nothing when it is not held."""
        file, self._file = self._file, None
        if file is not None and not file.closed:
            with file:
                file.truncate(0)

    def _turns(self, model: str, purpose: str, timeout_s: float, on_wait: OnWait | None) -> Generator[float]:
        """Seconds to sleep before the next look; ends when the lock is held."""
        if self.is_held:
            raise RuntimeError(f"the lock of {self._device} is already held by this object")
        me = _about_me(model, purpose)
        started_at = time.monotonic()
        told: object = self
        place: _Place | None = None
        try:
            while True:
                if place is None or not place.is_in_line():
                    # For the first time, or after somebody removed the file of our place.
                    place = _Place(self._queue, me) if place is None else place.again()
                if place.is_next(self._path) and self._take(me):
                    return
                waited_s = time.monotonic() - started_at
                if waited_s >= max(timeout_s, _LEAST_WAIT_S):
                    self._give_up(waited_s, place.ahead())
                if on_wait is not None and (holder := _read_holder(self._path, self._queue)) != told:
                    told = holder
                    on_wait(holder)
                pause_s = min(max(waited_s * _PAUSE_SHARE, _PAUSE_MIN_S), _PAUSE_MAX_S)
                yield min(pause_s, max(timeout_s - waited_s, _PAUSE_MIN_S))
        except OSError as error:
            _unusable(self._path.parent, error)
        finally:
            if place is not None:
                place.leave()

    def _take(self, me: _Entry) -> bool:
        file = _open(self._path, os.O_RDWR | os.O_CREAT)
        try:
            # Somebody may have removed the file since it was opened; a lock on it would then exclude nobody.
            if _lock(file, fcntl.LOCK_EX) and _is_at(file, self._path):
                _write(file, me)
                self._file = file
                return True
        finally:
            if self._file is not file:
                file.close()
        return False

    def _give_up(self, waited_s: float, ahead: int) -> NoReturn:
        holder = _read_holder(self._path, self._queue)
        by = _in_words(holder) if holder is not None else f"nobody; {ahead} wait before this one"
        raise DeadlineExceeded(
            f"the lock of {self._device} was not free within {waited_s:.1f} s; it is held by {by}",
            device=self._device,
            waited_s=waited_s,
            holder=msgspec.to_builtins(holder),
        )


@contextlib.contextmanager
def held(
    folder: Path, device: str, *, model: str, purpose: str, timeout_s: float, on_wait: OnWait | None = None
) -> Iterator[DeviceLock]:
    """`with held(...):` runs its block under the lock, for programs without an event loop. Raises as `acquire` does."""
    lock = DeviceLock(folder, device)
    lock.acquire_blocking(model=model, purpose=purpose, timeout_s=timeout_s, on_wait=on_wait)
    try:
        yield lock
    finally:
        lock.release()


def read_lock(folder: Path, device: str) -> tuple[LockHolder | None, list[LockWaiter]]:
    """Who holds the lock of `device`, None for nobody, and who waits, first come first.

    A holder that wrote nothing about itself has an empty model; its pid is 0 where the kernel does not tell it. One that
    has just taken the lock may have the time since which it waited.
    Raises BadRequest for a name that is no device, and Unsupported when the files cannot be read.
    """
    path, queue = _places(folder, device)
    try:
        return _read_holder(path, queue), _read_waiters(queue)
    except OSError as error:
        _unusable(folder, error)


# The queue -----------------------------------------------------------------------------------------------------------


class _Place:
    """One waiter's file in the queue, locked for as long as it waits.

    Only who holds a file's lock may remove it, so nobody ever removes the file of a living waiter by mistake.
    """

    def __init__(self, queue: Path, me: _Entry) -> None:
        self._queue = queue
        self._me = me
        self._free_since: float | None = None
        self._number, self._file = self._line_up()

    def again(self) -> _Place:
        """A new place, at the end of the line."""
        self._file.close()
        return _Place(self._queue, self._me)

    def is_in_line(self) -> bool:
        """False when somebody has removed our file."""
        return _is_at(self._file, self._queue / str(self._number))

    def is_next(self, lock: Path) -> bool:
        """True when no living waiter is before us, or those before us do not take a lock that is free."""
        if self.ahead() == 0:
            return True
        if _is_locked(lock):
            self._free_since = None
            return False
        now = time.monotonic()
        if self._free_since is None:
            self._free_since = now
        return now - self._free_since > _OVERTAKE_S

    def ahead(self) -> int:
        """Living waiters before us; files of dead ones are removed."""
        return sum(1 for number, path in _tickets(self._queue) if number < self._number and not _clear_dead(path))

    def leave(self) -> None:
        """Take our file out of the queue; one that stays behind is unlocked, and so the next one to look removes it."""
        if not self._file.closed:
            with self._file, contextlib.suppress(OSError):
                if self.is_in_line():
                    (self._queue / str(self._number)).unlink()

    def _line_up(self) -> tuple[int, io.FileIO]:
        while True:
            self._queue.mkdir(parents=True, exist_ok=True)
            number = max((number for number, _ in _tickets(self._queue)), default=0) + 1
            try:
                file = _open(self._queue / str(number), os.O_RDWR | os.O_CREAT | os.O_EXCL)
            except (FileExistsError, FileNotFoundError):
                # Another was faster, or removed the folder.
                continue
            # Before it was locked another may have taken it for that of a dead one.
            try:
                if _lock(file, fcntl.LOCK_EX) and _is_at(file, self._queue / str(number)):
                    _write(file, self._me)
                    return number, file
            except OSError:
                file.close()
                raise
            file.close()


def _tickets(queue: Path) -> list[tuple[int, Path]]:
    try:
        names = os.listdir(queue)
    except FileNotFoundError:
        return []
    return sorted((int(name), queue / name) for name in names if name.isascii() and name.isdigit())


def _clear_dead(path: Path) -> bool:
    """True when no living waiter is behind this file, which then is removed."""
    try:
        file = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    with file:
        if not _lock(file, fcntl.LOCK_EX):
            return False
        # Another user's folder: theirs to clear, and dead all the same.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if _is_at(file, path):
                path.unlink()
        return True


# Files and their locks -----------------------------------------------------------------------------------------------

# The kernel ties a lock to the open file, which a forked child shares: there it is closed, which does not free the lock.
_files: weakref.WeakSet[io.FileIO] = weakref.WeakSet()


def _forget_in_child() -> None:
    for file in list(_files):
        file.close()
    _files.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _places(folder: Path, device: str) -> tuple[Path, Path]:
    if not _DEVICE.match(device):
        raise BadRequest(f"no device is named {device[:64]!r}; they are cpu, gpu0, gpu1 ...", field="device")
    return folder / f"{device}.lock", folder / f"{device}.queue"


def _open(path: Path, flags: int) -> io.FileIO:
    """Open without buffer, never inherited over exec (PEP 446); what is made can be read by anyone."""
    file = io.FileIO(os.open(path, flags, 0o644), "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "r+b")
    _files.add(file)
    return file


def _lock(file: io.FileIO, kind: int) -> bool:
    """Take a lock without waiting; False when another is in the way."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(file.fileno())
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _is_locked(path: Path) -> bool:
    try:
        file = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    with file:
        return not _lock(file, fcntl.LOCK_SH)


def _unusable(folder: Path, error: OSError) -> NoReturn:
    raise Unsupported(
        f"device locks cannot be kept in {folder}: {error.strerror or error} ({error.filename or 'no file named'})",
        folder=str(folder),
    ) from error


# What the files say --------------------------------------------------------------------------------------------------


def _about_me(model: str, purpose: str) -> _Entry:
    stat = process_stat(os.getpid())
    return _Entry(
        pid=os.getpid(),
        host=socket.gethostname(),
        model=model[:256],
        purpose=purpose[:256],
        since=0.0,
        start_ticks=stat.start_ticks if stat is not None else None,
    )


def _write(file: io.FileIO, entry: _Entry) -> None:
    line = msgspec.json.encode(msgspec.structs.replace(entry, since=time.time())) + b"\n"
    # In this order a reader sees the old line, or the new one with a rest behind it, and never half of one.
    os.pwrite(file.fileno(), line, 0)
    file.truncate(len(line))


def _entry(file: io.FileIO) -> _Entry | None:
    """What the holder of this file's lock says of itself; None when it said nothing, or another said it who is gone."""
    line = os.pread(file.fileno(), 16_384, 0).partition(b"\n")[0]
    try:
        entry = msgspec.json.decode(line, type=_Entry)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if entry.host == socket.gethostname() and entry.start_ticks is not None:
        stat = process_stat(entry.pid)
        if stat is None or stat.start_ticks != entry.start_ticks:
            return None
    return entry


def _read_holder(path: Path, queue: Path) -> LockHolder | None:
    try:
        file = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with file:
        if _lock(file, fcntl.LOCK_SH):
            return None
        entry: _Entry | LockWaiter | None = _entry(file)
        if entry is None:
            pid, host = _pid_of_lock(os.fstat(file.fileno())), socket.gethostname()
            # Who has just taken it keeps its place in the queue until it has written here. In a process with several
            # parties the next of them may be named while another gives it back: for microseconds, and it is next.
            waiting = (waiter for waiter in _read_waiters(queue) if (waiter.pid, waiter.host) == (pid, host))
            entry = next(waiting, None) or _entry(file)
        if entry is None:
            return LockHolder(pid=pid, host=host, model="", purpose="unknown", since=0.0)
        return LockHolder(pid=entry.pid, host=entry.host, model=entry.model, purpose=entry.purpose, since=entry.since)


def _read_waiters(queue: Path) -> list[LockWaiter]:
    waiters = []
    for _, path in _tickets(queue):
        with contextlib.suppress(FileNotFoundError), _open(path, os.O_RDONLY) as file:
            entry = None if _lock(file, fcntl.LOCK_SH) else _entry(file)
            if entry is not None:
                waiters.append(
                    LockWaiter(
                        pid=entry.pid, host=entry.host, model=entry.model, purpose=entry.purpose, since=entry.since
                    )
                )
    return waiters


def _pid_of_lock(stat: os.stat_result) -> int:
    """Process that holds the flock on a file, 0 where the kernel does not tell. Source: proc_locks(5)."""
    place = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as file:
            # 1: FLOCK  ADVISORY  WRITE 708 00:13:9891 0 EOF
            # READ are those who only look whether it is held.
            rows = [row for row in map(str.split, file) if row[1:2] + row[3:4] + row[5:6] == ["FLOCK", "WRITE", place]]
    except OSError:
        return 0
    return max((int(row[4]) for row in rows), default=0)


def _in_words(holder: LockHolder) -> str:
    who = f"process {holder.pid} on {holder.host}" if holder.pid else f"a process on {holder.host}"
    if not holder.model:
        return f"{who}, which says nothing about itself"
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    return f"{who} since {at}: {holder.purpose} of {holder.model}"
