"""Figures of this process and of the machine it runs on, as the system counts them (proc(5)).

Every process tells of its machine too, so that nobody has to know which one should; the exporter serves what came last.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from bus.logs import counts
from bus.metrics import Told
from bus.settings import restarts_of_process
from bus.version import VERSION
from schemas import metrics
from schemas.bodies.telling import Series

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

# Columns of the first line of /proc/stat. What guests take is in `user` and `nice` already.
_MODES: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")

# Places in /proc/PID/stat after the name in parentheses.
_THREADS: Final = 17
_STARTED: Final = 19


def rss_bytes() -> int:
    """Resident bytes of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


@cache
def started_at() -> float:
    """When this process started, Unix epoch seconds, as told by the clock at the first look; 0 where no /proc tells."""
    try:
        ticks = int(_stat()[_STARTED])
    except OSError:
        return 0.0
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / _TICKS_PER_S)


def process_figures() -> Iterator[Told]:
    """Of this process. Raises OSError where the system has no /proc; what comes before it is told."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield metrics.BUILD_INFO, Series((VERSION, platform.python_version()), 1.0)
    yield metrics.PROCESS_CPU, _one(usage.ru_utime + usage.ru_stime)
    yield metrics.PROCESS_STARTED, _one(started_at())
    yield metrics.PROCESS_RESTARTS, _one(restarts_of_process())
    for level, count in counts.by_level.items():
        yield metrics.LOG_LINES, Series((level,), count)
    yield metrics.LOG_DROPPED, _one(counts.dropped)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY:
        yield metrics.PROCESS_MAX_FDS, _one(limit)
    yield metrics.PROCESS_RSS, _one(rss_bytes())
    yield metrics.PROCESS_THREADS, _one(int(_stat()[_THREADS]))
    # Without the one that lists them.
    yield metrics.PROCESS_FDS, _one(len(os.listdir("/proc/self/fd")) - 1)


def host_figures(folder: Path) -> Iterator[Told]:
    """Of the machine, and of the disk that holds `folder`. Raises OSError where the system has no /proc."""
    host = socket.gethostname()
    yield metrics.HOST_CORES, Series((host,), os.cpu_count() or 1)
    yield metrics.HOST_LOAD, Series((host,), os.getloadavg()[0])
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    disk = os.statvfs(folder)
    yield metrics.HOST_DISK, Series((host,), disk.f_blocks * disk.f_frsize)
    yield metrics.HOST_DISK_FREE, Series((host,), disk.f_bavail * disk.f_frsize)
    memory = _meminfo()
    yield metrics.HOST_MEMORY, Series((host,), memory["MemTotal"])
    yield metrics.HOST_MEMORY_FREE, Series((host,), memory["MemAvailable"])
    with open("/proc/stat", "rb") as file:
        ticks = file.readline().split()[1:]
    for mode, count in zip(_MODES, ticks, strict=False):
        yield metrics.HOST_CPU, Series((host, mode), int(count) / _TICKS_PER_S)


def _meminfo() -> dict[str, int]:
    """Bytes by name; the file counts in KiB."""
    with open("/proc/meminfo") as file:
        lines = (line.split() for line in file)
        return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def _stat() -> list[bytes]:
    with open("/proc/self/stat", "rb") as file:
        # The name in parentheses may itself hold anything.
        return file.read().rpartition(b")")[2].split()


def _one(value: float) -> Series:
    return Series((), value)
