#!/usr/bin/env python3
"""Measure what a failure that nobody declared costs the worker, alone and in a storm, and failing requests over the bus.

See docs/logs.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import uvloop

from broker.server import Broker
from bus.client import Client
from bus.context import Asked, current
from bus.logs import configure_logging
from bus.reports import Reports
from bus.settings import LogSettings, Settings, load_settings
from bus.worker import Call, Worker
from schemas.bodies.control import ErrorReport
from schemas.envelope import encode_any, new_id
from schemas.errors import BusError, Internal

# What a failing worker may lose to telling of a failure, microseconds.
LIMIT_US: Final = 50.0

# Failures of one storm, and kinds of failures that are new one after the other.
STORM: Final = 20_000
KINDS: Final = 200

# Calls between the worker's dispatch and the line that fails.
DEPTH: Final = 5

IN_FLIGHT: Final = 64

EPILOG = """examples:
  scripts/bench_errors.py                     about ten seconds
  scripts/bench_errors.py --rounds 9 --json
exit codes: 0 measured, 1 a failure costs more than 50 us, 2 wrong arguments"""

Handler = Callable[[], Awaitable[None]]
Ended = Callable[[Exception], None]


def handler_of(number: int) -> Handler:
    """A handler that fails DEPTH calls down, in code that no other handler shares."""
    calls = "".join(f"def call{depth}():\n    call{depth + 1}()\n" for depth in range(DEPTH - 1))
    last = f"def call{DEPTH - 1}():\n    raise RuntimeError('the {number}th thing went wrong')\n"
    names: dict[str, Any] = {}
    exec(compile(f"{calls}{last}async def handle():\n    call0()\n", __file__, "exec"), names)
    handle: Handler = names["handle"]
    return handle


async def ended(handle: Handler, end: Ended) -> None:
    """What the worker's dispatch does with a handler."""
    try:
        await handle()
    except Exception as error:  # noqa: BLE001 - as the dispatch
        end(error)


def reply(error: Exception, message: str) -> bytes:
    """The answer to the caller."""
    kind = type(error).__name__
    return encode_any(Internal(f"bench failed on bench.fail: {kind}: {message}", kind=kind).body())


def answered(error: Exception) -> None:
    """A failure that is answered, and told to nobody else."""
    reply(error, str(error))


async def published(subject: str, report: ErrorReport) -> None:
    """What the client does with a report before it is written to the socket."""
    encode_any(report)


class Round:
    """One measurement of the error path without sockets; log lines go where they cost a write and take no room."""

    def __init__(self) -> None:
        self.reports = Reports("bench", "bench-1", published)
        self.reports.bind()

    def told(self, error: Exception) -> None:
        """A failure as the worker takes it."""
        reply(error, self.reports.failed(error, "handler failed", subject="bench.fail", operation="bench.fail"))

    async def storm(self, end: Ended) -> float:
        """Microseconds per failure, of many alike; what is told of them included."""
        handle = handler_of(0)
        began_at = time.perf_counter()
        for number in range(STORM):
            await ended(handle, end)
            if number % IN_FLIGHT == 0:
                await asyncio.sleep(0)
        await self.reports.close(10)
        return (time.perf_counter() - began_at) / STORM * 1e6

    async def singles(self, end: Ended) -> tuple[float, float]:
        """Microseconds of a failure that is the first of its kind: before the answer, and after it."""
        handlers = [handler_of(number) for number in range(KINDS)]
        began_at = time.perf_counter()
        for handle in handlers:
            await ended(handle, end)
        answered_at = time.perf_counter()
        await self.reports.close(10)
        return (answered_at - began_at) / KINDS * 1e6, (time.perf_counter() - answered_at) / KINDS * 1e6


async def path_costs(rounds: int) -> dict[str, float]:
    """Medians over the rounds."""
    current.set(Asked(new_id()))
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        bare_storm_us = await Round().storm(answered)
        bare_us, _ = await Round().singles(answered)
        told = Round()
        storm_us = await told.storm(told.told)
        told = Round()
        before_us, after_us = await told.singles(told.told)
        for name, value in (
            ("bare_us", bare_storm_us),
            ("storm_us", storm_us),
            ("storm_more_us", storm_us - bare_storm_us),
            ("storm_ratio", storm_us / bare_storm_us),
            ("single_us", before_us),
            ("single_more_us", before_us - bare_us),
            ("single_later_us", after_us),
        ):
            samples.setdefault(name, []).append(value)
    return {name: round(statistics.median(values), 2) for name, values in samples.items()}


async def fail(request: Any, call: Call) -> None:
    """Nobody declared this."""
    raise RuntimeError("this went wrong")


async def refuse(request: Any, call: Call) -> None:
    """The same answer, declared."""
    raise Internal("this went wrong", kind="RuntimeError")


async def bus_rates(rounds: int, seconds: float) -> dict[str, float]:
    """Failing requests per second over broker, worker and client in one process, declared and undeclared in turn."""
    with tempfile.TemporaryDirectory() as home:
        ports = {f"bus.{name}_port": 0 for name in ("request", "publish", "subscribe", "sequenced")}
        settings = load_settings(overrides={"home": home, **ports})
        broker = Broker(settings)
        await broker.start()
        settings = at_ports(settings, broker)
        worker = Worker("bench", settings)
        worker.handle("bench.fail", fail)
        worker.handle("bench.refuse", refuse)
        await worker.start(10)
        client = Client(settings)
        samples: dict[str, list[float]] = {"bench.refuse": [], "bench.fail": []}
        try:
            for _ in range(rounds):
                for subject, rates in samples.items():
                    rates.append(await rate(client, subject, seconds))
        finally:
            await client.close()
            await worker.stop()
            await broker.stop()
    declared, failing = (statistics.median(rates) for rates in samples.values())
    return {
        "bus_declared_per_s": round(declared),
        "bus_failing_per_s": round(failing),
        "bus_more_us": round(1e6 / failing - 1e6 / declared, 2),
    }


def at_ports(settings: Settings, broker: Broker) -> Settings:
    """The settings with the ports that the broker got."""
    ports = {f"{name}_port": port for name, port in broker.ports._asdict().items()}
    return msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, **ports))


async def rate(client: Client, subject: str, seconds: float) -> float:
    """Requests per second that ended in an error."""
    until = time.perf_counter() + seconds
    failures = 0

    async def ask() -> None:
        nonlocal failures
        while time.perf_counter() < until:
            try:
                await client.request(subject, {})
            except BusError:
                failures += 1

    began_at = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))
    return failures / (time.perf_counter() - began_at)


async def measure(rounds: int, seconds: float) -> dict[str, float]:
    """All figures."""
    return {**await path_costs(rounds), **await bus_rates(rounds, seconds)}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="medians of so many (5)")
    parser.add_argument("--seconds", type=float, default=0.7, metavar="S", help="of each run over the bus (0.7)")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        configure_logging(LogSettings(), nowhere)
        figures = uvloop.run(measure(args.rounds, args.seconds))
        logging.basicConfig(force=True)
    print(json.dumps(figures) if args.json else text(figures))
    return int(max(figures["storm_more_us"], figures["single_more_us"]) > LIMIT_US)


def text(figures: dict[str, float]) -> str:
    """The figures for people."""
    return (
        f"a handler that raises, answered and told to nobody  {figures['bare_us']:8.1f} us\n"
        f"the same, told: in a storm                          {figures['storm_us']:8.1f} us"
        f"  ({figures['storm_more_us']:+.1f} us, {figures['storm_ratio']:.2f} times)\n"
        f"  the first of its kind, before it is answered      {figures['single_us']:8.1f} us"
        f"  ({figures['single_more_us']:+.1f} us)\n"
        f"  and after that, for its text, log line and report {figures['single_later_us']:8.1f} us\n"
        f"over the bus, errors that handlers declare          {figures['bus_declared_per_s']:8.0f} /s\n"
        f"over the bus, failures                              {figures['bus_failing_per_s']:8.0f} /s"
        f"  ({figures['bus_more_us']:+.1f} us each)"
    )


if __name__ == "__main__":
    sys.exit(main())
