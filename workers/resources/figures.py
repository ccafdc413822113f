"""What the resource service tells of devices, locks and leases, and which of them are not as they should be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bus.device_lock import read_lock
from bus.metrics import Figures, Labels, by_label
from schemas.bodies.resource import LockHolder
from schemas.errors import Unsupported
from schemas.metrics import (
    DEVICE_HEAT,
    DEVICE_LOAD,
    DEVICE_LOCK_WAITING,
    DEVICE_LOCKED,
    DEVICE_RESERVED,
    DEVICE_TOTAL,
    DEVICE_USED,
    LEASES,
)
from workers.resources.device import Device
from workers.resources.ledger import Ledger

# Seconds between two looks at devices and locks.
LOOK_S: Final = 5.0

# Who holds a lock may write what it likes about its purpose; the first word counts, and of these alone.
_PURPOSES: Final = frozenset({"load", "unload", "change", "training"})

# A lock is held while memory is taken and given back, which takes seconds. Only a training computes under it for long.
_LONG_S: Final = 600.0


class _Lock(NamedTuple):
    """The lock of a device as its files say."""

    holder: LockHolder | None = None
    waiting: int = 0
    problem: str = ""


class DeviceFigures:
    """Tells `figures` how devices, their locks and leases were a moment ago, as long as `look_forever` runs.

    devices: as they are now. locks: the folder of the lock files.
    """

    def __init__(self, figures: Figures, devices: Callable[[], Sequence[Device]], ledger: Ledger, locks: Path) -> None:
        self._look_at = devices
        self._folder = locks
        self._devices: Sequence[Device] = ()
        self._locks: dict[str, _Lock] = {}
        figures.read(DEVICE_TOTAL, lambda: self._each(lambda one: one.total_bytes))
        figures.read(DEVICE_USED, lambda: self._each(lambda one: one.used_bytes))
        figures.read(DEVICE_RESERVED, lambda: self._each(lambda one: ledger.reserved(one.device)))
        figures.read(DEVICE_LOAD, lambda: self._each(lambda one: one.utilisation))
        figures.read(DEVICE_HEAT, lambda: self._each(lambda one: one.temperature_c))
        figures.read(DEVICE_LOCKED, self._held)
        figures.read(DEVICE_LOCK_WAITING, lambda: by_label((name, lock.waiting) for name, lock in self._locks.items()))
        figures.read(LEASES, lambda: dict(Counter((one.device, one.service) for one in ledger.leases())))

    async def look_forever(self) -> None:
        """Look at devices and locks every few seconds until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Look at devices and locks once; takes some 60 microseconds a device, which is no work for another thread."""
        self._devices = self._look_at()
        self._locks = {one.device: _read(self._folder, one.device) for one in self._devices}

    def problems(self, now: float) -> dict[str, str]:
        """What is wrong with a device or its lock, at Unix epoch seconds `now`, by its name."""
        problems = {one.device: one.problem for one in self._devices if one.is_lost}
        for name, lock in self._locks.items():
            if lock.problem:
                problems.setdefault("locks", lock.problem)
            elif lock.holder is not None and _purpose(lock.holder) != "training" and now - lock.holder.since > _LONG_S:
                problems[f"{name} lock"] = _held_long(name, lock.holder, now)
        return problems

    def _each(self, value: Callable[[Device], float | None]) -> dict[Labels, float]:
        values = {(one.device,): value(one) for one in self._devices}
        return {labels: number for labels, number in values.items() if number is not None}

    def _held(self) -> dict[Labels, float]:
        return {(name, _purpose(lock.holder)): 1 for name, lock in self._locks.items() if lock.holder is not None}


def _read(folder: Path, device: str) -> _Lock:
    try:
        holder, waiting = read_lock(folder, device)
    except Unsupported as error:
        return _Lock(problem=error.message)
    return _Lock(holder, len(waiting))


def _purpose(holder: LockHolder) -> str:
    word = holder.purpose.partition(" ")[0]
    return word if word in _PURPOSES else "other"


def _held_long(device: str, holder: LockHolder, now: float) -> str:
    who = f"process {holder.pid} of {holder.host} ({holder.purpose or 'no purpose named'})"
    return f"{who} has held the lock of {device} for {(now - holder.since) / 60:.0f} minutes; nothing loads there meanwhile"
