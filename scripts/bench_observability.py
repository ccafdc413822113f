#!/usr/bin/env python3
"""Measure what figures, traces and the exporter cost the bus, and how long a scrape takes. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_bus_parts.line_protocol import Fields
from bench_bus_parts.processes import Process, ProcessFailed, Stage, ended_by_signals, free_port
from bus.client import Client
from bus.settings import load_settings
from schemas import catalog, metrics
from schemas.bodies.telling import ExporterStatus, ExporterStatusReply, Figures, Series

PORTS = ("request_port", "publish_port", "subscribe_port", "sequenced_port")

# Seconds between two scrapes while the bus is measured: five times as often as Prometheus is configured here.
SCRAPE_EVERY_S = 1.0
# An answer is shared for a quarter of a second; a scrape that is to be made anew waits longer.
ANEW_S = 0.3

# Model processes of the house that is scraped.
RUNNERS = 3

# Wanted: the share of throughput that everything together may cost, and the seconds a scrape may take.
COST_MAX = 0.03
SCRAPE_MAX_S = 0.05

EPILOG = """examples:
  scripts/bench_observability.py
  scripts/bench_observability.py --rounds 5 --seconds 1 --json
exit codes: 0 measured, 1 a process failed, 2 wrong arguments"""


class House:
    """A broker with a worker and a client, and what else is wanted."""

    def __init__(self, stage: Stage, name: str, overrides: dict[str, int | str]) -> None:
        self.settings: dict[str, int | str] = {
            "home": str(stage.home / name),
            **{f"bus.{port}": free_port() for port in PORTS},
            **overrides,
        }
        self._stage = stage
        self._name = name
        flags = [flag for key, value in self.settings.items() for flag in ("--set", f"{key}={value}")]
        self._flags = flags
        self._broker = stage.start(f"{name} broker", [sys.executable, "-m", "broker", *flags])
        self._processes = [self._broker]
        for port in PORTS:
            self._broker.wait_for_port(int(self.settings[f"bus.{port}"]))

    def load(self) -> None:
        """A worker and a client that can be told to ask it."""
        for role in ("worker", "client"):
            process, _ = self._stage.role(self._name, "role_ours", role, settings=self.settings, service="bench")
            self._processes.append(process)

    def export(self) -> tuple[Process, int]:
        """An exporter and its port."""
        port = free_port()
        command = [sys.executable, "-m", "workers.exporter", *self._flags, "--set", f"exporter.port={port}"]
        exporter = self._stage.start(f"{self._name} exporter", command)
        exporter.wait_for_port(port)
        self._processes.append(exporter)
        return exporter, port

    def measure(self, seconds: float) -> dict[str, float]:
        """Requests a second, 64 of 64 bytes in flight, and what one takes of the processors in all processes, us."""
        client = self._processes[2]
        before = sum(process.cpu_s() for process in self._processes)
        figures = client.ask(case="rr", body_bytes=64, seconds=seconds, requests=0, in_flight=64)
        used_s = sum(process.cpu_s() for process in self._processes) - before
        return {"per_s": figures["per_s"], "cpu_us": used_s / figures["operations"] * 1e6}


def get(connection: http.client.HTTPConnection, path: str) -> tuple[float, int]:
    """Seconds that one GET took, as Prometheus asks, and the bytes of its body."""
    began = time.perf_counter()
    connection.request("GET", path, headers={"accept": "application/openmetrics-text", "accept-encoding": "gzip"})
    answer = connection.getresponse()
    size = len(answer.read())
    if answer.status != 200:
        raise ProcessFailed(f"GET {path} ended with {answer.status}")
    return time.perf_counter() - began, size


@contextlib.contextmanager
def scraped(port: int) -> Iterator[None]:
    """Scrape each second meanwhile."""
    over = threading.Event()

    def scrape() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        while not over.wait(SCRAPE_EVERY_S):
            get(connection, "/metrics")
        connection.close()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cost(stage: Stage, rounds: int, seconds: float) -> Fields:
    """What a request costs with everything on, with everything off, and off once more, which says how much is chance.

    In time and in time of the processors: on a machine that does other things too, the second says more.
    """
    nothing: dict[str, int | str] = {"bus.metrics_interval_s": 0, "broker.traces_max": 0}
    houses = {
        "on": House(stage, "on", {}),
        "off": House(stage, "off", nothing),
        "again": House(stage, "again", nothing),
    }
    for house in houses.values():
        house.load()
    _, port = houses["on"].export()
    for house in houses.values():
        house.measure(seconds)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in houses}
    order = list(houses)
    for number in range(rounds):
        for name in order if number % 2 else reversed(order):
            with scraped(port) if name == "on" else contextlib.nullcontext():
                found[name].append(houses[name].measure(seconds))
    figures: Fields = {"rounds": rounds, "seconds": seconds}
    for what in ("per_s", "cpu_us"):
        for name, measured in found.items():
            figures[f"{name}_{what}"] = statistics.median(each[what] for each in measured)
            pairs = zip(measured, found["off"], strict=True)
            figures[f"{name}_{what}_ratio"] = statistics.median(each[what] / off[what] for each, off in pairs)
    return figures


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest rank."""
    ranked = sorted(values)
    return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


def whole_house() -> list[Figures]:
    """What every process of a house may tell at most: all its operations were asked for, and each metric has values."""
    operations: dict[str, list[str]] = {}
    for operation in catalog.OPERATIONS.values():
        operations.setdefault(operation.service, []).append(operation.subject)
    for number in range(RUNNERS):
        operations[f"model.runner.{number}"] = ["model.generate", "model.chat", "model.embed"]
    return [
        Figures(
            service=service,
            instance=f"pc-1-{number}",
            host="pc-1",
            pid=number,
            started_at=0.0,
            at=0.0,
            every_s=60.0,
            metrics={metric.name: told(metric, subjects) for metric in metrics.METRICS.values()},
        )
        for number, (service, subjects) in enumerate(operations.items())
    ]


def told(metric: metrics.Metric, subjects: Sequence[str]) -> list[Series]:
    """Values of one metric of one process."""
    counts = tuple(range(len(metric.buckets) + 1)) if metric.kind == "histogram" else ()
    if metric is metrics.WORKER_REQUESTS:
        return [Series((subject, outcome), 3.0) for subject in subjects for outcome in ("ok", "internal", "not_found")]
    if metric is metrics.WORKER_SECONDS:
        return [Series((subject,), 3.5, counts) for subject in subjects]
    several = 3 if [label for label in metric.labels if label != "host"] else 1
    return [
        Series(tuple("pc-1" if label == "host" else f"{label}-{number}" for label in metric.labels), 3.5, counts)
        for number in range(several)
    ]


def scrapes(stage: Stage, count: int) -> Fields:
    """Times of a scrape of a whole house, of the smallest GET beside it, and of twenty at once."""
    house = House(stage, "house", {})
    exporter, port = house.export()
    figures = whole_house()
    series, refused = asyncio.run(tell(house, figures, port))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    size = get(connection, "/metrics")[1]
    anew, again, health = [], [], []
    for _ in range(count):
        time.sleep(ANEW_S)
        anew.append(get(connection, "/metrics")[0])
        again.append(get(connection, "/metrics")[0])
        health.append(get(connection, "/health")[0])
    connection.close()
    together = []
    for _ in range(max(count // 4, 3)):
        time.sleep(ANEW_S)
        together.append(asyncio.run(at_once(port, 20)))
    return {
        "processes": len(figures),
        "series": series,
        "refused": refused,
        "gzip_bytes": size,
        **{
            f"{name}_{label}_ms": quantile(values, share) * 1e3
            for name, values in (("scrape", anew), ("shared", again), ("health", health), ("twenty", together))
            for label, share in (("p50", 0.5), ("p99", 0.99))
        },
        "exporter_rss_mb": exporter.rss_mb(),
    }


async def tell(house: House, figures: Sequence[Figures], port: int) -> tuple[int, int]:
    """Publish what a house tells; the series that the exporter holds then, and how many it refused."""
    async with Client(load_settings(overrides=house.settings), name="bench") as client:
        async with asyncio.timeout(20):
            while True:
                for each in figures:
                    await client.publish(f"metrics.{each.service.replace('.', '-')}", each)
                await client.flush()
                held: ExporterStatusReply = await client.request("exporter.status", ExporterStatus())
                if len(held.processes) >= len(figures):
                    return held.series, sum(held.refused.values())
                await asyncio.sleep(0.1)


async def at_once(port: int, clients: int) -> float:
    """Seconds until the last of them has its page."""

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise ProcessFailed(f"one of {clients} scrapers at once got {answer[:60]!r}")

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return time.perf_counter() - began


def report(costs: Fields, scraped: Fields) -> str:
    """What was found, for people."""
    return "\n".join(
        (
            f"bus, 64 requests of 64 bytes in flight, median of {costs['rounds']} rounds of {costs['seconds']:g} s;"
            f" wanted within {COST_MAX:.0%}",
            *(
                f"  {what:<20} {costs[f'{name}_per_s']:>9,.0f} /s ({costs[f'{name}_per_s_ratio']:.3f})"
                f"   {costs[f'{name}_cpu_us']:>7.2f} us of processors each ({costs[f'{name}_cpu_us_ratio']:.3f})"
                for what, name in (("everything on", "on"), ("everything off", "off"), ("off once more", "again"))
            ),
            f"scrape of {scraped['processes']} processes, {scraped['series']:,} series,"
            f" {scraped['gzip_bytes'] / 1024:,.0f} KiB packed; wanted {SCRAPE_MAX_S * 1e3:g} ms",
            *(
                f"  {what:<30} p50 {scraped[f'{name}_p50_ms']:>7.2f} ms   p99 {scraped[f'{name}_p99_ms']:>7.2f} ms"
                for what, name in (
                    ("made anew", "scrape"),
                    ("again within a quarter second", "shared"),
                    ("/health, the raw limit", "health"),
                    ("20 at once, until the last", "twenty"),
                )
            ),
            f"  exporter holds {scraped['exporter_rss_mb']:.0f} MiB",
        )
    )


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the bus, each on, off and off (default 15)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each (default 2)")
    parser.add_argument("--scrapes", type=int, default=40, help="scrapes that are timed (default 40)")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.scrapes < 1 or not 0.1 <= arguments.seconds <= 60:
        parser.error("--rounds and --scrapes must be 1 or more, --seconds 0.1 to 60")
    try:
        with ended_by_signals():
            with Stage() as stage:
                found = scrapes(stage, arguments.scrapes)
            with Stage() as stage:
                costs = cost(stage, arguments.rounds, arguments.seconds)
    except ProcessFailed as error:
        print(f"bench_observability: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"bus": costs, "scrape": found}) if arguments.json else report(costs, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
