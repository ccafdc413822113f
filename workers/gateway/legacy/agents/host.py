"""Figures of this machine and its GPUs, as the old agents reported them."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import psutil

from schemas.bodies.resource import GpuStatus, GpuStatusReply
from schemas.errors import BusError
from workers.gateway.legacy.house import House

MIB: Final = 1024 * 1024

# Seconds the resource service has to say what its devices hold.
_ASK_S: Final = 2.0


# A share of less time than this, seconds, says nothing.
_CPU_S: Final = 1.0


class _Cpu:
    at = float("-inf")
    percent = 0.0


_cpu = _Cpu()


class Memory(NamedTuple):
    """Device memory of all GPUs together, bytes."""

    total_bytes: int = 0
    used_bytes: int = 0
    reserved_bytes: int = 0

    @property
    def free_bytes(self) -> int:
        """What neither a program nor a lease holds."""
        return max(self.total_bytes - max(self.used_bytes, self.reserved_bytes), 0)

    @property
    def percent(self) -> float:
        """Used share, 0 to 100; 0 without a GPU."""
        return 100.0 * self.used_bytes / self.total_bytes if self.total_bytes else 0.0


def cpu_percent() -> float:
    """Busy share of all cores over the last second or more, 0 to 100."""
    now = time.monotonic()
    if now - _cpu.at >= _CPU_S:
        _cpu.at, _cpu.percent = now, float(psutil.cpu_percent(interval=None))
    return _cpu.percent


def ram() -> tuple[int, int, float]:
    """Main memory: total bytes, available bytes, used percent."""
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available), float(memory.percent)


def disk(path: str) -> tuple[int, float]:
    """The file system of a path: free bytes, used percent."""
    usage = psutil.disk_usage(path)
    return int(usage.free), float(usage.percent)


def cores() -> int:
    """Logical cores."""
    return psutil.cpu_count() or 1


async def gpu_count(house: House) -> int:
    """GPUs the resource service knows and can use."""
    return sum(1 for device in (await _status(house)).devices if device.device != "cpu" and device.state == "ok")


async def vram(house: House) -> Memory:
    """Zeros without a GPU, and where the resource service does not answer."""
    memory = Memory()
    for device in (await _status(house)).devices:
        if device.device != "cpu":
            used = device.used_bytes if device.used_bytes is not None else device.reserved_bytes
            memory = Memory(
                memory.total_bytes + device.total_bytes,
                memory.used_bytes + used,
                memory.reserved_bytes + device.reserved_bytes,
            )
    return memory


async def bus_latency_ms(house: House) -> float:
    """A round trip to the broker, milliseconds; 0 where it does not answer."""
    began = time.perf_counter()
    try:
        await house.ask("bus.ping", timeout_s=_ASK_S)
    except BusError:
        return 0.0
    return (time.perf_counter() - began) * 1e3


async def _status(house: House) -> GpuStatusReply:
    try:
        status: GpuStatusReply = await house.ask("gpu.status", GpuStatus(), timeout_s=_ASK_S)
    except BusError:
        return GpuStatusReply(devices=[])
    return status
