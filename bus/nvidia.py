"""Whether this machine has an NVIDIA driver, told by looking at its files alone; it asks the driver nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bus.settings import ResourceSettings

# One of these is there where an NVIDIA driver is loaded; the last is the driver's door in Windows' Linux.
_DRIVER: Final = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")


def has_driver() -> bool:
    """True where an NVIDIA driver is loaded."""
    return any(Path(path).exists() for path in _DRIVER)


def expects_gpus(resources: ResourceSettings) -> bool:
    """True where the resource service will tell of GPUs, unless their driver fails it."""
    is_declared = any(entry.strip().startswith("gpu") for entry in resources.devices)
    return is_declared or (resources.nvml == "auto" and has_driver())
