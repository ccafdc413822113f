#!/usr/bin/env python3
"""Measure the time from `olympus up` to every service READY and the demo model loaded. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_bus_parts.line_protocol import Fields
from bench_bus_parts.processes import ROOT, Process, ProcessFailed, Stage, ended_by_signals, free_port
from bus.client import Client
from bus.settings import Settings, load_settings
from schemas.bodies.control import BusServices, BusWorkers, WorkerInfo
from schemas.errors import BusError

# Lines of the Procfile that are named otherwise than the service they run.
SERVICES = {"errors": "error", "models": "model", "resources": "resource"}
# The service of a loaded model.
RUNNER = "model.runner"

PORTS = ("request_port", "publish_port", "subscribe_port", "sequenced_port")

# Longest wait for readiness and for a clean stop, and the pause between two looks, seconds.
READY_WITHIN_S = 60.0
STOPPED_WITHIN_S = 12.0
LOOK_EVERY_S = 0.02

EPILOG = """examples:
  scripts/bench_start.py                   five starts, median
  scripts/bench_start.py --starts 1 --json
exit codes: 0 measured, 1 a start failed, 2 wrong arguments"""


def _services() -> list[str]:
    """What must have joined the bus: a service for each line of the Procfile but the broker's, and the demo model."""
    lines = (ROOT / "Procfile").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[0] for line in lines if line and not line.startswith("#")]
    return [*(SERVICES.get(name, name) for name in names if name != "broker"), RUNNER]


def _olympus() -> str:
    program = Path(sys.executable).parent / "olympus"
    if not program.exists():
        raise ProcessFailed(f"olympus is not installed beside {sys.executable}; scripts/start installs it")
    return str(program)


async def _until_ready(settings: Settings, names: Sequence[str], up: Process) -> tuple[dict[str, float], Fields]:
    """Seconds after now at which each name was ready first, and what the workers look like then."""
    began = time.monotonic()
    ready: dict[str, float] = {}
    async with Client(settings, name="bench-start") as client:
        while missing := [name for name in ("broker", *names) if name not in ready]:
            if up.child.poll() is not None or time.monotonic() - began > READY_WITHIN_S:
                raise ProcessFailed(f"not ready: {', '.join(missing)}; olympus up wrote:\n{up.log.read_text()[-2000:]}")
            try:
                services = await client.request("bus.services", BusServices(), timeout_s=1)
            except BusError:
                continue
            now = time.monotonic() - began
            for name in ("broker", *(one.service for one in services.services if one.instances > 0)):
                ready.setdefault(name, now)
            await asyncio.sleep(LOOK_EVERY_S)
        workers = await client.request("bus.workers", BusWorkers())
    return ready, {worker.service: _process_figures(worker) for worker in workers.workers}


def _process_figures(worker: WorkerInfo) -> Fields:
    process = Path(f"/proc/{worker.pid}")
    kilobytes = next(line.split()[1] for line in (process / "status").read_text().splitlines() if "VmRSS" in line)
    return {"rss_mb": round(int(kilobytes) / 1024, 1), "has_torch": "libtorch" in (process / "maps").read_text()}


def _start_once(names: Sequence[str]) -> Fields:
    """One start and stop with a home and ports of its own."""
    with Stage() as stage:
        ports = {f"bus.{key}": free_port() for key in PORTS}
        environment = {f"OLYMPUS_{key.replace('.', '_').upper()}": str(port) for key, port in ports.items()}
        # The client must not add its own back-off to what it measures.
        settings = load_settings(overrides={**ports, "bus.reconnect_max_s": 0.05, "home": str(stage.home)})
        up = stage.start("olympus up", [_olympus(), "up"], environment)
        ready, workers = asyncio.run(_until_ready(settings, names, up))
        ready_at = time.monotonic()
        up.child.terminate()
        try:
            up.child.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(f"olympus up did not stop within {STOPPED_WITHIN_S:g} s of SIGTERM") from None
        return {
            "start_s": max(ready[name] for name in ("broker", *names)),
            "ready_s": {name: ready[name] for name in ("broker", *names)},
            "stop_s": time.monotonic() - ready_at,
            "exit_code": up.child.returncode,
            "workers": workers,
        }


def _summary(starts: list[Fields], names: Sequence[str]) -> Fields:
    took = [start["start_s"] for start in starts]
    return {
        "start_s": round(statistics.median(took), 3),
        "start_s_min": round(min(took), 3),
        "start_s_max": round(max(took), 3),
        "stop_s": round(statistics.median(start["stop_s"] for start in starts), 3),
        "ready_s": {
            name: round(statistics.median(start["ready_s"][name] for start in starts), 3) for name in ("broker", *names)
        },
        "exit_codes": [start["exit_code"] for start in starts],
        "workers": starts[-1]["workers"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Start and stop several times, print the medians."""
    parser = argparse.ArgumentParser(
        prog="bench_start.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--starts", type=int, default=5, help="how often (default 5)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args(argv)
    if arguments.starts < 1:
        parser.error("--starts must be at least 1")
    names = _services()
    starts: list[Fields] = []
    try:
        with ended_by_signals():
            for number in range(arguments.starts):
                starts.append(_start_once(names))
                print(f"start {number + 1}: {starts[-1]['start_s']:.2f} s", file=sys.stderr, flush=True)
    except ProcessFailed as error:
        print(f"bench_start.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    summary = _summary(starts, names)
    print(
        f"every service ready  {summary['start_s']:.2f} s (from {summary['start_s_min']} to {summary['start_s_max']})"
    )
    for name, seconds in summary["ready_s"].items():
        figures = summary["workers"].get(name, {})
        print(f"  {name:20}{seconds:6.2f} s" + (f"  {figures['rss_mb']:g} MB" if figures else ""))
    print(f"stopped after SIGTERM {summary['stop_s']:.2f} s")
    if arguments.json:
        print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
