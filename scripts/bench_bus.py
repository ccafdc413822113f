#!/usr/bin/env python3
"""Measure the bus beside a bare `zmq.proxy`, NATS and Redis, in one run on one machine. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence

from bench_bus_parts import broker_alone, cases, peers, report
from bench_bus_parts.cases import Plan, Results, say
from bench_bus_parts.peers import Peer
from bench_bus_parts.processes import ProcessFailed, Stage, ended_by_signals

CASES: dict[str, Callable[[Sequence[Peer], Plan], Results]] = {
    "rr": cases.rr,
    "latency": cases.latency,
    "stream": cases.stream,
    "echo16": cases.echo16,
    "mixed": cases.mixed,
    "pubsub": cases.pubsub,
}
ALONE = "broker"

# Open files that 1,000 registered instances need on either side, with room to spare.
OPEN_FILES = 4096

EPILOG = """examples:
  scripts/bench_bus.py                          everything, about two minutes
  scripts/bench_bus.py --quick --json           the same shape in a fraction of the time
  scripts/bench_bus.py --only rr,latency        two cases
  scripts/bench_bus.py --peers ours,nats        two peers
  scripts/bench_bus.py --peers ours,curve       what encryption between machines costs
exit codes: 0 measured, 1 a process failed, 2 wrong arguments"""


def _names(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return [name for name in allowed if name in chosen]

    return parse


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_bus.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every_case, every_peer = [*CASES, ALONE], list(peers.PEERS)
    parser.add_argument(
        "--only", type=_names(every_case), default=every_case, metavar="CASES", help=f"of {','.join(every_case)}"
    )
    parser.add_argument(
        "--peers", type=_names(every_peer), default=peers.USUAL, metavar="PEERS", help=f"of {','.join(every_peer)}"
    )
    parser.add_argument("--rounds", type=int, help="rounds per case (default 5, with --quick 2)")
    parser.add_argument("--scale", type=float, help="factor on every duration and count (default 1, with --quick 0.4)")
    parser.add_argument("--requests", type=int, default=0, help="requests per measurement instead of a duration")
    parser.add_argument("--quick", action="store_true", help="a short run: shape right, figures rough")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args(argv)
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.scale = arguments.scale or (0.4 if arguments.quick else 1.0)
    if arguments.rounds < 1 or arguments.scale <= 0 or arguments.requests < 0:
        parser.error("--rounds must be at least 1, --scale above 0, --requests 0 or more")
    return arguments


def _measure(arguments: argparse.Namespace, stage: Stage) -> tuple[dict[str, Results], dict[str, str]]:
    """Run the chosen cases on the chosen peers; their results, and the reasons of the peers that did not run."""
    plan = Plan(rounds=arguments.rounds, scale=arguments.scale, requests=arguments.requests)
    chosen = [name for name in arguments.only if name in CASES]
    running, missing = peers.start(stage, arguments.peers, frozenset(chosen))
    for name, reason in missing.items():
        say(f"without {name}: {reason}")
    measured: dict[str, Results] = {}
    for name in chosen:
        taking_part = [peer for peer in running if name in peer.cases]
        if taking_part:
            say(f"{name}: {', '.join(peer.name for peer in taking_part)}")
            measured[name] = CASES[name](taking_part, plan)
    stage.end(list(stage.processes))
    return measured, missing


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and with --json the figures."""
    arguments = _arguments(argv)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(OPEN_FILES, hard)), hard))
    began = time.monotonic()
    try:
        with ended_by_signals(), Stage() as stage:
            measured, missing = _measure(arguments, stage)
            alone: dict[str, float | None] = {}
            if ALONE in arguments.only and "ours" in arguments.peers and "ours" not in missing:
                say("broker alone")
                alone = broker_alone.measure(stage, arguments.scale)
    except ProcessFailed as error:
        print(f"bench_bus.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say(f"took {time.monotonic() - began:.0f} s")
    print(report.table(measured))
    if alone:
        print("\n" + report.alone_table(alone))
    if arguments.json:
        print(json.dumps(report.figures(measured, alone, missing, broker_alone.KEYS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
