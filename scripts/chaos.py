#!/usr/bin/env python3
"""Break a house in every way there is an alert for, and see that the alert fires and ends again.

    scripts/chaos.py                           every fault, some minutes
    scripts/chaos.py --only 'kill the broker' --only redis
    scripts/chaos.py --list                    the faults with their alerts, nothing is broken

It runs a house of its own in a temporary home, with a real Prometheus that has the project's own rules. Their durations
are divided by --factor (30), so that five minutes are ten seconds; no window is shorter than five seconds, for two
scrapes must lie in it. Thresholds stay as they are. See docs/alerts.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

# The script reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_bus_parts.processes import ProcessFailed, Stage, ended_by_signals
from bus.cli.output import table, write_line
from bus.client import Client
from chaos_parts import faults
from chaos_parts.faults import FAULTS, Fault, World
from chaos_parts.house import House, Redis, Webhook
from chaos_parts.prometheus import Prometheus, installed
from schemas.errors import BusError

EXIT_CODES: Final = """exit codes: 0 every alert fired and ended, 1 one did not, 2 wrong arguments or no Prometheus,
130 ended by Ctrl-C; a fault that cannot be made here is SKIP with the reason"""

# What durations of the rules are divided by.
FACTOR: Final = 30

# Seconds for an alert to fire and to end, at most: the longest window and `for` of the rules are 30 m and 10 m but for a
# day and six hours, where a few scrapes are enough.
_FIRE_S: Final = 90.0
_END_S: Final = 150.0

# Alerts whose window is a day: they end with the house.
_LONG: Final = frozenset({"GateKeepsRefusing"})


class Outcome(NamedTuple):
    """One alert of one fault. Seconds are None where it did not happen."""

    fault: str
    alert: str
    verdict: str
    fired_s: float | None
    ended_s: float | None
    said: str


def main(argv: Sequence[str] | None = None) -> int:
    """Break what is asked for and return the exit code."""
    args = _arguments(argv)
    chosen = [one for one in FAULTS if not args.only or any(word in one.name for word in args.only)]
    if args.list:
        print("\n".join(_listed(chosen)))
        return 0
    if not chosen:
        print(f"no fault is named like {args.only}; --list shows them", file=sys.stderr)
        return 2
    if not installed():
        print("prometheus is not installed; Debian has it as the package prometheus", file=sys.stderr)
        return 2
    try:
        with ended_by_signals():
            outcomes = asyncio.run(run(chosen, args.factor, is_quiet=args.json))
    except ProcessFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if args.json:
        print(json.dumps([one._asdict() for one in outcomes], indent=2))
    else:
        for line in _printed(outcomes):
            write_line(line)
    return 1 if any(one.verdict == "FAIL" for one in outcomes) else 0


async def run(chosen: Iterable[Fault], factor: int, *, is_quiet: bool) -> list[Outcome]:
    """Every fault, one after the other, in one house. Raises ProcessFailed where it does not come up."""
    outcomes: list[Outcome] = []
    with Stage() as stage:
        redis = Redis(stage)
        if redis.url:
            redis.start()
        webhook = Webhook()
        await webhook.start()
        house = House(stage, faults.settings_of(redis, webhook))
        faults.put_broken_model(house.home)
        await house.start()
        prometheus = Prometheus(stage, house.exporter, factor)
        if await prometheus.until(lambda: _is_calm(prometheus), _FIRE_S) is None:
            raise ProcessFailed(f"these alerts fire before anything was broken: {', '.join(prometheus.firing())}")
        async with Client(house.settings, name="chaos") as client:
            world = World(house, client, redis, webhook)
            for one in chosen:
                found = await _broken(one, world, prometheus)
                outcomes += found
                if not is_quiet:
                    verdicts = ", ".join(f"{each.alert} {each.verdict}" for each in found)
                    print(f"{one.name}: {verdicts}", file=sys.stderr, flush=True)
        await webhook.stop()
    return outcomes


def _is_calm(prometheus: Prometheus) -> bool:
    """True once the house is scraped and no alert fires."""
    return bool(prometheus.query("olympus_broker_requests_total")) and not prometheus.firing()


async def _broken(one: Fault, world: World, prometheus: Prometheus) -> list[Outcome]:
    """Break, wait for the alerts, heal, wait for their end."""
    if reason := one.needs(world):
        return [Outcome(one.name, alert, "SKIP", None, None, reason) for alert in one.alerts]
    # An alert of the fault before may still be ending.
    await prometheus.until(lambda: not _firing(prometheus, one), _END_S)
    fired: dict[str, float | None] = {}
    said: dict[str, str] = {}
    try:
        async with one.inject(world):
            began_at = time.monotonic()
            for alert in one.alerts:
                waited = await prometheus.until(lambda: alert in prometheus.firing(), _FIRE_S)  # noqa: B023
                fired[alert] = None if waited is None else time.monotonic() - began_at
                said[alert] = prometheus.firing().get(alert, {}).get("summary", "")
    except (BusError, OSError, ProcessFailed) as error:
        return [
            Outcome(one.name, alert, "FAIL", None, None, f"{type(error).__name__}: {error}") for alert in one.alerts
        ]
    outcomes = []
    for alert in one.alerts:
        ended_s = 0.0 if alert in _LONG else await prometheus.until(lambda: alert not in prometheus.firing(), _END_S)  # noqa: B023
        is_good = fired[alert] is not None and ended_s is not None
        outcomes.append(Outcome(one.name, alert, "ok" if is_good else "FAIL", fired[alert], ended_s, said[alert]))
    return outcomes


def _firing(prometheus: Prometheus, one: Fault) -> set[str]:
    return set(prometheus.firing()) & set(one.alerts) - _LONG


def _printed(outcomes: Iterable[Outcome]) -> Iterable[str]:
    def moment(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds:.1f} s"

    rows: list[list[Any]] = [
        [one.verdict, one.fault, one.alert, moment(one.fired_s), moment(one.ended_s), one.said] for one in outcomes
    ]
    return table(["", "fault", "alert", "fired after", "ended after", "what it said"], rows)


def _listed(chosen: Iterable[Fault]) -> Iterable[str]:
    return table(
        ["fault", "what is broken", "alerts"], [[one.name, one.about, ", ".join(one.alerts)] for one in chosen]
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="WORD", help="faults whose name holds it; may be repeated")
    parser.add_argument("--factor", type=int, default=FACTOR, help=f"divides the durations of the rules ({FACTOR})")
    parser.add_argument("--list", action="store_true", help="show the faults and break nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
