"""The load every asyncio peer is put under: the same loops around its own `call`, `stream` and `publish`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from bench_bus_parts.line_protocol import Fields

Call = Callable[[], Awaitable[object]]

# A stop for loops that count requests instead of seconds.
UNLIMITED = 1 << 60


def quantile(sorted_values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of `sorted_values` lie, nearest rank; NaN when there are none."""
    if not sorted_values:
        return float("nan")
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def latency_figures(taken_ns: list[int], elapsed_s: float) -> Fields:
    """p50 and p99 in microseconds and the mean in milliseconds of single calls."""
    taken_ns.sort()
    return {
        "operations": len(taken_ns),
        "elapsed_s": elapsed_s,
        "p50_us": quantile(taken_ns, 0.5) / 1e3,
        "p99_us": quantile(taken_ns, 0.99) / 1e3,
        "p50_ms": quantile(taken_ns, 0.5) / 1e6,
    }


async def throughput(call: Call, *, seconds: float, requests: int, in_flight: int) -> Fields:
    """Calls per second with `in_flight` tasks each calling in a loop, for `seconds` or until `requests` are made."""
    limit = requests or UNLIMITED
    started = 0
    begin = time.perf_counter()
    end = begin + seconds

    async def caller() -> None:
        nonlocal started
        while started < limit and time.perf_counter() < end:
            started += 1
            await call()

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    elapsed_s = time.perf_counter() - begin
    return {"operations": started, "elapsed_s": elapsed_s, "per_s": started / elapsed_s}


async def latency(call: Call, *, seconds: float, requests: int) -> Fields:
    """Time of single calls made one after the other."""
    limit = requests or UNLIMITED
    taken_ns: list[int] = []
    begin = now = time.perf_counter_ns()
    end = begin + int(seconds * 1e9)
    while now < end and len(taken_ns) < limit:
        before = now
        await call()
        now = time.perf_counter_ns()
        taken_ns.append(now - before)
    return latency_figures(taken_ns, (now - begin) / 1e9)


class Arrivals:
    """Counts events at a subscriber and remembers when the last one came.

    `CLOCK_MONOTONIC` is one clock for all processes of a machine, so the bench may compare it with the publisher's.
    """

    # A subscriber that hears nothing for this long reports what it has.
    SILENCE_S = 1.0

    def __init__(self) -> None:
        self.count = 0
        self.expected = UNLIMITED
        self.last_at = 0.0
        self.complete = asyncio.Event()

    def arrived(self) -> None:
        """Count one event."""
        self.count += 1
        if self.count >= self.expected:
            self.last_at = time.monotonic()
            self.complete.set()

    async def arm(self, expected: int) -> Fields:
        """Start counting from 0."""
        self.count, self.expected, self.last_at = 0, expected, 0.0
        self.complete.clear()
        return {"armed": True}

    async def collect(self) -> Fields:
        """What came: waits for `expected` events or for silence."""
        while not self.complete.is_set():
            before, at = self.count, time.monotonic()
            try:
                await asyncio.wait_for(self.complete.wait(), self.SILENCE_S)
            except TimeoutError:
                if self.count == before:
                    self.last_at = self.last_at or at
                    break
        return {"received": self.count, "last_at": self.last_at}
