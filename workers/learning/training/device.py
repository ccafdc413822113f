"""The device of a training: its locks, which are lent between two steps to whoever waits, and the memory held on it."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Final

from bus.device_lock import DeviceLock, read_lock
from schemas.bodies.resource import LockHolder
from workers.learning.training.spec import TrainSpec

# Seconds between two looks at who waits. A look takes 60 microseconds; a load that waits 0.2 s more is not noticed
# beside its own time.
_LOOK_S: Final = 0.2

_PAGE_BYTES: Final = resource.getpagesize()


class Interrupted(Exception):
    """A signal came while the device was waited for."""


class Devices:
    """The locks of all devices of a training, held by its first process. With `spec.locks` None there are none.

    They are taken in the order of their numbers, as whoever needs several does, so that no two wait for each other.
    """

    def __init__(self, spec: TrainSpec, *, is_first: bool = True) -> None:
        self._folder = Path(spec.locks) if spec.locks is not None and is_first else None
        self._names = spec.devices
        self._locks = [DeviceLock(self._folder, name) for name in self._names] if self._folder is not None else []
        self._said = {"model": spec.base_name or Path(spec.base).name, "purpose": f"training {spec.job_id}"}
        self._wait_s = spec.lock_wait_s
        self._looked_at = 0.0
        self.is_gpu = spec.device != "cpu"
        self.is_waiting = False

    def take(self) -> str:
        """Take all locks, waiting in line; returns the first holder that said its name, words for one that did not.

        "" where nobody was seen to hold one.

        Raises DeadlineExceeded naming the holder, Interrupted, and Unsupported when locks cannot be kept there.
        """
        seen: list[LockHolder] = []

        def on_wait(holder: LockHolder | None) -> None:
            if holder is not None:
                seen.append(holder)

        self.is_waiting = True
        try:
            for lock in self._locks:
                lock.acquire_blocking(**self._said, timeout_s=self._wait_s, on_wait=on_wait)
        except BaseException:
            self.release()
            raise
        finally:
            self.is_waiting = False
            self._looked_at = time.monotonic()
        named = next((f"{holder.purpose} of {holder.model}" for holder in seen if holder.model), "")
        return named or ("a program that says nothing about itself" if seen else "")

    def release(self) -> None:
        """Give them all back; nothing when none is held."""
        for lock in self._locks:
            lock.release()

    def is_wanted(self) -> bool:
        """True when somebody waits for one of them; looks at most every `_LOOK_S`."""
        if self._folder is None or time.monotonic() - self._looked_at < _LOOK_S:
            return False
        self._looked_at = time.monotonic()
        return any(read_lock(self._folder, name)[1] for name in self._names)

    def lend(self) -> str:
        """Give them back and take them again, in line behind those who wait. Returns and raises as `take` does."""
        self.release()
        return self.take()


def memory_bytes(is_gpu: bool) -> int:
    """Memory this process holds now: reserved on its GPU, or resident."""
    if is_gpu:
        import torch

        return int(torch.cuda.memory_reserved())
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


class Peak:
    """The most memory held since `reset`. Where the kernel cannot reset its mark, since the process began."""

    def __init__(self, is_gpu: bool) -> None:
        self._is_gpu = is_gpu

    def reset(self) -> None:
        """Begin anew. Source: proc_pid_clear_refs(5): 5 resets the peak of the resident size."""
        if self._is_gpu:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
        except OSError:
            return
        try:
            os.write(descriptor, b"5")
        finally:
            os.close(descriptor)

    def read(self) -> int:
        """Bytes."""
        if self._is_gpu:
            import torch

            return int(torch.cuda.max_memory_reserved())
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
