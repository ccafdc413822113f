#!/usr/bin/env python3
"""Measure `GET /kv/{key}` over HTTP beside a plain FastAPI and redis-py service doing the same, in one run.

See docs/rest.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_bus_parts.processes import Process, ProcessFailed, Stage, ended_by_signals, free_port
from bench_rest_parts.callers import Load, NoAnswer, load

Figures = dict[str, float]

# Bytes of a value, and keys that are read in turn.
VALUE_BYTES: Final = 200
KEYS: Final = 100

# What is asked of the edge: at 64 connections so many times the plain service's rate, the slowest hundredth within so
# many times the median.
LEAST_RATIO: Final = 3.0
MOST_SPREAD: Final = 5.0

# Seconds until the memory service answers through the edge.
_READY_S: Final = 30.0

EPILOG = """examples:
  scripts/bench_rest.py                     about half a minute
  scripts/bench_rest.py --rounds 3 --json
exit codes: 0 measured, 1 a process failed or redis-server is missing, 2 wrong arguments"""


def start_olympus(stage: Stage) -> tuple[int, Process]:
    """Broker, memory and gateway with nothing but memory's port; the port, and the gateway."""
    names = ("REQUEST", "PUBLISH", "SUBSCRIBE", "SEQUENCED")
    environment = {f"OLYMPUS_BUS_{name}_PORT": str(free_port()) for name in names}
    port = free_port()
    environment |= {
        "OLYMPUS_REST_SERVICES": "memory",
        "OLYMPUS_REST_MEMORY_PORT": str(port),
        "OLYMPUS_REST_MEMORY_HEALTH_PORT": "0",
    }
    broker = stage.start("broker", [sys.executable, "-m", "broker"], environment)
    broker.wait_for_port(int(environment["OLYMPUS_BUS_REQUEST_PORT"]))
    stage.start("memory", [sys.executable, "-m", "workers.memory"], environment)
    gateway = stage.start("gateway", [sys.executable, "-m", "workers.gateway"], environment)
    gateway.wait_for_port(port)
    return port, gateway


def start_plain(stage: Stage) -> tuple[int, Process]:
    """redis-server without its disk, and FastAPI on uvicorn; the port, and the service. Raises ProcessFailed."""
    program = shutil.which("redis-server")
    if program is None:
        raise ProcessFailed("redis-server is not on the path")
    redis_port, port = free_port(), free_port()
    nothing_kept = ["--save", "", "--appendonly", "no", "--dir", str(stage.home)]
    stage.start("redis", [program, "--port", str(redis_port), *nothing_kept]).wait_for_port(redis_port)
    # Without its log of every access, which would cost it a tenth.
    command = [sys.executable, "-m", "uvicorn", "bench_rest_parts.plain:app", "--port", str(port), "--no-access-log"]
    service = stage.start("plain", command, {"REDIS_PORT": str(redis_port)})
    service.wait_for_port(port)
    return port, service


def fill(port: int) -> None:
    """Write every key. Raises ProcessFailed when the service does not take them in time."""
    deadline = time.monotonic() + _READY_S
    body = json.dumps({"value": "x" * VALUE_BYTES})
    for number in range(KEYS):
        while _write(port, f"/kv/key-{number}", body) != 200:
            if time.monotonic() > deadline:
                raise ProcessFailed(f"the service on port {port} takes no entries after {_READY_S:g} s")
            time.sleep(0.05)


def _write(port: int, path: str, body: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


def measure(ports: dict[str, int], rounds: int, seconds: float, connections: int) -> Figures:
    """Medians over the rounds, each service in turn; who goes first changes."""
    requests = [f"GET /kv/key-{number} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() for number in range(KEYS)]
    samples: dict[str, list[Load]] = {name: [] for name in ports}
    for port in ports.values():
        load(port, requests, connections, seconds / 2)
    for number in range(rounds):
        for name in sorted(ports, reverse=number % 2 == 1):
            samples[name].append(load(ports[name], requests, connections, seconds))
    figures: Figures = {}
    for name, loads in samples.items():
        for field in Load._fields:
            figures[f"{name}_{field}"] = statistics.median(getattr(one, field) for one in loads)
    figures["rate_ratio"] = statistics.median(
        ours.per_s / plain.per_s for ours, plain in zip(samples["olympus"], samples["plain"], strict=True)
    )
    figures["olympus_p99_to_p50"] = statistics.median(one.p99_ms / one.p50_ms for one in samples["olympus"])
    figures["plain_p99_to_p50"] = statistics.median(one.p99_ms / one.p50_ms for one in samples["plain"])
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="times each service is measured; default 5")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of one measurement; default 2")
    parser.add_argument("--connections", type=int, default=64, help="connections at once; default 64")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.seconds <= 0 or arguments.connections < 1:
        parser.error("--rounds and --connections must be 1 or more and --seconds above 0")
    try:
        with ended_by_signals(), Stage() as stage:
            (ours, gateway), (plain, service) = start_olympus(stage), start_plain(stage)
            for port in (ours, plain):
                fill(port)
            figures = measure(
                {"olympus": ours, "plain": plain}, arguments.rounds, arguments.seconds, arguments.connections
            )
            figures["olympus_edge_rss_mb"], figures["plain_rss_mb"] = gateway.rss_mb(), service.rss_mb()
    except (ProcessFailed, NoAnswer, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(figures))
        return 0
    for name, value in figures.items():
        print(f"{name:24} {value:12.2f}")
    print(f"{'wanted':24} rate_ratio >= {LEAST_RATIO:g}, olympus_p99_to_p50 < {MOST_SPREAD:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
