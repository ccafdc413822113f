"""Which devices there are and how much of them leases may take: declared in the settings, told by NVML, or the host's.

A GPU keeps its name for as long as the service runs, also when another one before it falls out of the driver's list. It
knows no lease.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from bus.settings import DEVICE_NAME, ResourceSettings
from bus.sizes import parse_size, parse_sizes
from workers.resources.device import CPU, Device
from workers.resources.nvml import Gpu, Readings

_MEMINFO: Final = Path("/proc/meminfo")
# In a container: what it may use, or "max".
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


class Inventory:
    """Every device, by the settings and the last look."""

    def __init__(self, settings: ResourceSettings) -> None:
        self._declared = parse_sizes(settings.devices, DEVICE_NAME)
        self._spare_bytes = parse_size(settings.spare_vram)
        self._ram_share = settings.ram_share
        self._names: dict[str, str] = {}
        self._gpus = {name: self._unmeasured(name) for name in self._declared if name != CPU}
        self.problem = ""

    def update(self, readings: Readings) -> list[Device]:
        """Take in a look at the GPUs; returns those that failed since the last one.

        When the driver as a whole gives nothing, no card has failed: what runs on them mostly goes on (the library was
        upgraded under the driver, say). They are lost to new leases then, except declared ones, which need no measuring.
        """
        self.problem = readings.problem
        if readings.problem:
            self._gpus |= {name: self._unmeasured(name) for name in self._names.values()}
            return []
        seen: dict[str, Device] = {}
        for gpu in readings.gpus:
            name = self._name_of(gpu)
            seen[name] = self._lost(name, gpu.problem) if gpu.problem else self._device(name, gpu)
        for name in self._names.values():
            if name not in seen:
                seen[name] = self._lost(name, "the driver lists it no more")
        lost = [one for name, one in seen.items() if one.is_lost and self._was_there(name)]
        self._gpus |= seen
        return lost

    def devices(self) -> list[Device]:
        """GPUs in the order of their numbers, then the main memory."""
        return [*sorted(self._gpus.values(), key=lambda gpu: int(gpu.device[3:])), self._main_memory()]

    def _was_there(self, name: str) -> bool:
        before = self._gpus.get(name)
        return before is not None and not before.is_lost

    def _name_of(self, gpu: Gpu) -> str:
        """The name this card was first seen under: its place in the driver's order, or the next free one."""
        name = f"gpu{gpu.index}"
        if not gpu.uuid:
            return name
        if gpu.uuid not in self._names:
            taken = set(self._names.values())
            number = gpu.index
            while f"gpu{number}" in taken:
                number += 1
            self._names[gpu.uuid] = f"gpu{number}"
        return self._names[gpu.uuid]

    def _device(self, name: str, gpu: Gpu) -> Device:
        declared = self._declared.get(name)
        return Device(
            device=name,
            name=gpu.name,
            source="nvml" if declared is None else "declared",
            total_bytes=max(gpu.total_bytes - self._spare_bytes, 0) if declared is None else declared,
            used_bytes=gpu.used_bytes,
            spare_bytes=self._spare_bytes if declared is None else 0,
            processes=gpu.processes,
            temperature_c=gpu.temperature_c,
            utilisation=gpu.utilisation,
        )

    def _unmeasured(self, name: str) -> Device:
        if name not in self._declared:
            return self._lost(name, self.problem)
        return Device(device=name, name="declared", source="declared", total_bytes=self._declared[name])

    def _lost(self, name: str, why: str) -> Device:
        before = self._gpus.get(name)
        if before is None:
            before = Device(device=name, name="unknown", source="nvml", total_bytes=0)
        return msgspec.structs.replace(
            before, is_lost=True, problem=why, used_bytes=None, processes={}, temperature_c=None, utilisation=None
        )

    def _main_memory(self) -> Device:
        declared = self._declared.get(CPU)
        try:
            total, available = _host_memory()
        except (OSError, ValueError) as error:
            why = "" if declared is not None else f"the size of the main memory cannot be read: {error}"
            return Device(
                device=CPU,
                name="main memory",
                source="host" if declared is None else "declared",
                total_bytes=declared or 0,
                is_lost=declared is None,
                problem=why,
            )
        return Device(
            device=CPU,
            name="main memory",
            source="host" if declared is None else "declared",
            total_bytes=int(total * self._ram_share) if declared is None else declared,
            used_bytes=total - available,
        )


def _host_memory() -> tuple[int, int]:
    """Bytes there are for this process, and bytes available. Raises OSError, ValueError. Source: proc_meminfo(5)."""
    fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    total = min(total, int(limit)) if limit.isdigit() else total
    return total, min(available, total)
