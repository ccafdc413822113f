"""The broker by itself: memory, CPU while nothing happens, and latency with many instances and a long queue."""

from __future__ import annotations

import statistics
import time

from bench_bus_parts.cases import BODY_BYTES, say
from bench_bus_parts.peers import Ours
from bench_bus_parts.processes import Stage

INSTANCES = 1_000
QUEUED = 10_000

# Seconds of doing nothing over which CPU is counted, and seconds of each latency sample, of which the median counts.
IDLE_S = 4.0
SAMPLE_S = 0.4
SAMPLES = 3

KEYS = (
    "broker_rss_mb",
    "broker_idle_cpu_percent",
    "scale_p50_before_us",
    "scale_p50_instances_us",
    "scale_p50_queued_us",
    "scale_p50_after_us",
    "scale_p50_ratio",
    "scale_registered_idle_cpu_percent",
    "scale_broker_rss_mb",
)


def measure(stage: Stage, scale: float) -> dict[str, float | None]:
    """Every figure of KEYS, on a broker of its own. `scale_p50_ratio` is queued / before: 1 is no change, 2 is slower."""
    ours = Ours(stage)
    ours.start()
    seconds = SAMPLE_S * scale

    def p50_us() -> float:
        def sample() -> float:
            ask = ours.client.ask(case="latency", body_bytes=BODY_BYTES, seconds=seconds, requests=0)
            return float(ask["p50_us"])

        return statistics.median(sample() for _ in range(SAMPLES))

    before_us = p50_us()
    idle_percent = _cpu_percent(ours, IDLE_S * scale)
    rss_mb = ours.broker.rss_mb()
    say(f"  {INSTANCES} instances")
    swarm, _ = stage.role("ours", Ours.module, "swarm", settings=ours.settings, instances=INSTANCES)
    instances_us = p50_us()
    registered_percent = _cpu_percent(ours, IDLE_S * scale)
    say(f"  {QUEUED} queued requests")
    flood, _ = stage.role("ours", Ours.module, "flood", settings=ours.settings, requests=INSTANCES + QUEUED)
    queued_us = p50_us()
    loaded_mb = ours.broker.rss_mb()
    stage.end([flood, swarm])
    after_us = p50_us()
    figures = (
        rss_mb,
        idle_percent,
        before_us,
        instances_us,
        queued_us,
        after_us,
        queued_us / before_us,
        registered_percent,
        loaded_mb,
    )
    return {key: round(figure, 3) for key, figure in zip(KEYS, figures, strict=True)}


def _cpu_percent(ours: Ours, seconds: float) -> float:
    """CPU of the broker's process over `seconds` without requests, per cent of one core."""
    before_s, before = ours.broker.cpu_s(), time.monotonic()
    time.sleep(seconds)
    return 100 * (ours.broker.cpu_s() - before_s) / (time.monotonic() - before)
