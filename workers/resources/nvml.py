"""Asks the NVIDIA driver about its GPUs, from a thread of its own: a call takes milliseconds, and for ever when it hangs.

`pynvml` (the distribution nvidia-ml-py) is imported when there is a driver, and never otherwise. What is read is handed
to the event loop; nothing here decides what it means.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from bus.supervisor import process_stat

# How long the first look may take before the service starts without it; initialising NVML takes up to seconds where no
# other program keeps the driver awake.
_FIRST_S: Final = 10.0

# After a failure the driver is asked again this much later, or after `sample_s` if that is longer.
_RETRY_S: Final = 30.0

# NVML_VALUE_NOT_AVAILABLE: the driver does not tell this process's memory (in Windows, or in a container).
_NOT_TOLD: Final = 2**64 - 1


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as NVML tells of it; with a `problem`, only its index is sure. utilisation: 0 to 1."""

    index: int
    uuid: str = ""
    name: str = ""
    total_bytes: int = 0
    used_bytes: int = 0
    processes: dict[int, int] = {}
    temperature_c: float | None = None
    utilisation: float | None = None
    problem: str = ""


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all GPUs. problem: why NVML gives nothing."""

    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


def load_pynvml() -> Any:
    """The module `pynvml`. Raises ImportError."""
    return importlib.import_module("pynvml")


class Nvml:
    """The driver. Blocking; to be used from one thread."""

    def __init__(self, load: Callable[[], Any] = load_pynvml) -> None:
        self._load = load
        self._library: Any = None

    def read(self) -> Readings:
        """Look at every GPU. Failures are in what is returned."""
        try:
            library = self._initialised()
        except ImportError as error:
            return Readings(problem=f"there is an NVIDIA driver, but nvidia-ml-py cannot be imported: {error}")
        except _Failed as error:
            return Readings(problem=f"NVML cannot be initialised: {error}")
        try:
            count = library.nvmlDeviceGetCount()
        except library.NVMLError as error:
            # After the driver was reloaded only a new beginning helps.
            self.close()
            return Readings(problem=f"NVML does not count its devices: {error}")
        return Readings(gpus=tuple(self._gpu(library, index) for index in range(count)))

    def close(self) -> None:
        """Let go of the driver."""
        library, self._library = self._library, None
        if library is not None:
            with contextlib.suppress(library.NVMLError):
                library.nvmlShutdown()

    def _initialised(self) -> Any:
        if self._library is None:
            library = self._load()
            try:
                library.nvmlInit()
            except library.NVMLError as error:
                raise _Failed(str(error)) from error
            self._library = library
        return self._library

    def _gpu(self, library: Any, index: int) -> Gpu:
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
            memory = library.nvmlDeviceGetMemoryInfo(handle)
            return Gpu(
                index=index,
                uuid=_text(library.nvmlDeviceGetUUID(handle)),
                name=_text(library.nvmlDeviceGetName(handle)),
                total_bytes=int(memory.total),
                used_bytes=int(memory.used),
                processes=_processes(library, handle),
                temperature_c=_optional(
                    library, lambda: float(library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU))
                ),
                utilisation=_optional(library, lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            )
        except library.NVMLError as error:
            return Gpu(index=index, problem=str(error))


class _Failed(Exception):
    """NVML said no."""


def _optional(library: Any, ask: Callable[[], float]) -> float | None:
    """What not every card tells."""
    try:
        return float(ask())
    except library.NVMLError:
        return None


def _processes(library: Any, handle: Any) -> dict[int, int]:
    """Bytes by pid. A process counts for those that started it too: a service holds leases, its children the memory."""
    try:
        running = library.nvmlDeviceGetComputeRunningProcesses(handle)
    except library.NVMLError:
        return {}
    used_by: dict[int, int] = {}
    for one in running:
        if one.usedGpuMemory is None or one.usedGpuMemory == _NOT_TOLD:
            continue
        for pid in _line_of(int(one.pid)):
            used_by[pid] = used_by.get(pid, 0) + int(one.usedGpuMemory)
    return used_by


def _line_of(pid: int) -> list[int]:
    """A process and its ancestors below init; itself alone where it is not a process of this host's numbering."""
    line = [pid]
    while (stat := process_stat(line[-1])) is not None and stat.parent > 1 and stat.parent not in line:
        line.append(stat.parent)
    return line


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class Sampler:
    """Looks every `sample_s` seconds, and when asked; hands each look to `on_readings` in the event loop."""

    def __init__(self, nvml: Nvml, sample_s: float, on_readings: Callable[[Readings], None]) -> None:
        self._nvml = nvml
        self._sample_s = sample_s
        self._on_readings = on_readings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = threading.Event()
        self._is_stopping = False
        self._begun_at = time.monotonic()
        self._heard_at = time.monotonic()
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []
        # A call that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)

    async def start(self) -> None:
        """Begin; returns after the first look, or without it when the driver hangs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        await self.refresh(_FIRST_S)

    async def refresh(self, timeout_s: float) -> None:
        """Wait for a look that begins after now, for at most `timeout_s` seconds."""
        arrived = asyncio.get_running_loop().create_future()
        self._waiting.append((time.monotonic(), arrived))
        self._wake.set()
        await asyncio.wait([arrived], timeout=timeout_s)
        self._waiting = [(since, one) for since, one in self._waiting if one is not arrived]

    @property
    def silent_s(self) -> float:
        """Seconds since the last look ended."""
        return time.monotonic() - self._heard_at

    async def stop(self) -> None:
        """End the thread, unless it hangs."""
        self._is_stopping = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join, 1.0)

    def _run(self) -> None:
        while not self._is_stopping:
            self._wake.clear()
            begun_at = time.monotonic()
            readings = self._nvml.read()
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._arrived, begun_at, readings)
            except RuntimeError:
                # The loop has ended, and the process with it.
                break
            self._wake.wait(max(self._sample_s, _RETRY_S) if readings.problem else self._sample_s)
        self._nvml.close()

    def _arrived(self, begun_at: float, readings: Readings) -> None:
        self._heard_at = time.monotonic()
        self._on_readings(readings)
        waiting, self._waiting = self._waiting, []
        for since, arrived in waiting:
            if since > begun_at:
                self._waiting.append((since, arrived))
            elif not arrived.done():
                arrived.set_result(None)
        if self._waiting:
            self._wake.set()
