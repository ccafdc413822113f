#!/usr/bin/env python3
"""Swap models thousands of times on real processes, and show that nothing grows: memory, handles, leases, processes.

A day of a house where another model is wanted every half minute is some 3,000 swaps. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Final

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import uvloop

from bench_bus_parts.processes import Process, ProcessFailed, Stage, ended_by_signals, free_port
from bus.client import Client
from bus.settings import Settings, load_settings
from schemas.errors import BusError
from workers.models.catalogue import SHIPPED_ROOT

Figures = dict[str, float]

PORTS: Final = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
SERVICES: Final = ("models", "resources")

# Copies of the demo model under names of their own, and how many of them are in memory at once.
MODELS: Final = 5
ROOM: Final = 2

# Of the swaps, those before the first look: allocators and caches reach their size in them.
WARM_UP_SHARE: Final = 0.2

# Seconds for processes that are leaving to be gone before they are counted.
SETTLE_S: Final = 3.0

EPILOG = """examples:
  scripts/bench_soak.py                        3,000 swaps, some minutes
  scripts/bench_soak.py --swaps 200 --json
exit codes: 0 nothing grew, 1 something did or a process failed, 2 wrong arguments"""


class House:
    """A broker, the model service and the resource service as processes of their own."""

    def __init__(self, stage: Stage) -> None:
        home = stage.home / "house"
        roots = home / "models"
        roots.mkdir(parents=True)
        demo = next(SHIPPED_ROOT.glob("*.gguf"))
        for number in range(MODELS):
            shutil.copy(demo, roots / f"copy-{number}.gguf")
        ports = {f"bus.{name}": free_port() for name in PORTS}
        chosen = {
            **ports,
            "home": str(home),
            "models.max_loaded": ROOM,
            "models.default": "copy-0",
            "models.predict": "false",
            "log.level": "error",
        }
        environment = {f"OLYMPUS_{key.replace('.', '_').upper()}": str(value) for key, value in chosen.items()}
        self.settings: Settings = load_settings(overrides=chosen)
        self.broker = stage.start("broker", [sys.executable, "-m", "broker"], environment)
        for port in ports.values():
            self.broker.wait_for_port(port)
        self.services: dict[str, Process] = {
            name: stage.start(name, [sys.executable, "-m", f"workers.{name}"], environment) for name in SERVICES
        }

    async def wait(self, client: Client) -> None:
        """Return once both services answer. Raises ProcessFailed."""
        deadline = time.monotonic() + 20
        while True:
            reply = await client.request("bus.services")
            if {"model", "resource"} <= {info.service for info in reply.services}:
                return
            if time.monotonic() > deadline:
                raise ProcessFailed("the services do not come up")
            await asyncio.sleep(0.05)

    async def figures(self, client: Client) -> Figures:
        """What could grow: of the broker and each service, and of the house."""
        found: Figures = {}
        for name, process in {"broker": self.broker, **self.services}.items():
            watched = psutil.Process(process.child.pid)
            found[f"{name}_mib"] = watched.memory_info().rss / 2**20
            found[f"{name}_handles"] = watched.num_fds()
        found["processes"] = len(psutil.Process(self.services["models"].child.pid).children(recursive=True))
        leases = await client.request("resource.lease.list")
        found["leases"] = len(leases.leases)
        found["home_files"] = sum(len(names) for _, _, names in os.walk(self.settings.home_path))
        return found


async def soak(house: House, client: Client, swaps: int) -> tuple[Figures, Figures, list[float]]:
    """Ask each model in turn, so that every request needs a swap. The figures early and late, and seconds per swap."""
    first: Figures = {}
    took: list[float] = []
    for number in range(swaps):
        if number == int(swaps * WARM_UP_SHARE):
            await asyncio.sleep(SETTLE_S)
            first = await house.figures(client)
        began = time.perf_counter()
        body = {"model": f"copy-{number % MODELS}", "prompt": "one two three", "max_tokens": 1, "temperature": 0}
        reply = await client.request("model.generate", body, timeout_s=60)
        if reply.model != body["model"]:
            raise ProcessFailed(f"{body['model']} was asked, {reply.model} answered")
        took.append(time.perf_counter() - began)
    await asyncio.sleep(SETTLE_S)
    return first, await house.figures(client), took


# Growth that is noise of allocators: MiB over the whole run. Everything else may not grow at all, but for the files of
# the home, where logs of SQLite come and go.
ALLOWED: Final = {"mib": 6.0, "handles": 2.0, "processes": 0.0, "leases": 0.0, "files": 3.0}


def grown(first: Figures, last: Figures) -> list[str]:
    """What grew by more than noise, in words."""
    return [
        f"{name} grew from {first[name]:g} to {last[name]:g}"
        for name in first
        if last[name] - first[name] > ALLOWED[name.rpartition("_")[2]]
    ]


async def run(swaps: int) -> tuple[Figures, list[str]]:
    """Figures by name, and what grew."""
    with ended_by_signals(), Stage() as stage:
        house = House(stage)
        async with Client(house.settings, name="soak") as client:
            await house.wait(client)
            first, last, took = await soak(house, client, swaps)
    half = len(took) // 2
    figures: Figures = {"swaps": swaps, "swap_p50_ms": statistics.median(took) * 1000}
    # The second half as fast as the first: nothing that is looked through grows either.
    figures["late_to_early_ratio"] = statistics.median(took[half:]) / statistics.median(took[:half])
    for name in first:
        figures[f"{name}_early"], figures[f"{name}_late"] = first[name], last[name]
    return figures, grown(first, last)


def main() -> int:
    """Soak, print, and say whether anything grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--swaps", type=int, default=3_000, help="how often another model is wanted (3000)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    if args.swaps < 50:
        parser.error(f"--swaps {args.swaps}: at least 50, or there is nothing to compare")
    try:
        figures, problems = uvloop.run(run(args.swaps))
    except (ProcessFailed, BusError) as error:
        print(f"bench_soak: {error}", file=sys.stderr)
        return 1
    for name, value in figures.items():
        print(f"{name:<28} {value:12,.2f}")
    for problem in problems:
        print(f"! {problem}", file=sys.stderr)
    if args.json:
        print(json.dumps(figures))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
