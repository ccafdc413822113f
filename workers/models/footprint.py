"""Memory that this process and its children take, as the kernel and the NVIDIA driver tell it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def ram_bytes() -> int:
    """Resident main memory, mapped model files among it; 0 where the system has no /proc."""
    return sum(_resident(pid) for pid in _family(os.getpid()))


def vram_bytes(device: str) -> int:
    """Memory of "gpu0" and so on; 0 for the main memory, without a driver, and where the driver knows other ids."""
    if not device.startswith("gpu"):
        return 0
    try:
        import pynvml
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.removeprefix("gpu")))
        mine = set(_family(os.getpid()))
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return sum(int(one.usedGpuMemory or 0) for one in running if one.pid in mine)
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def _family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for one in found:
        for task in _list(Path(f"/proc/{one}/task")):
            try:
                found += map(int, (task / "children").read_text().split())
            except OSError:
                # It ended, or the kernel keeps no such list.
                continue
    return found


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
