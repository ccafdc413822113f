#!/usr/bin/env python3
"""Measure what a legacy port adds to the round trip of the plain bus, with the same pyzmq socket in the same run.

    native   REQ -> broker 7000 -> memory                    memory.kv.get, as a stock ZeroMQ agent writes it
    legacy   REQ -> gateway 7105 -> broker -> memory         get_twin, as the old clients write it: the same entry

Nothing is written meanwhile, so that no disk is measured.

Broker, memory and gateway are processes of their own. See docs/legacy.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import zmq

from bench_bus_parts.load import quantile
from bench_bus_parts.processes import ProcessFailed, Stage, ended_by_signals, free_port

Figures = dict[str, float]

# Seconds the services may take to answer their first request.
_READY_S: Final = 30.0

# Whose twin is read.
_USER: Final = "ada"

EPILOG = """examples:
  scripts/bench_legacy.py                  about half a minute
  scripts/bench_legacy.py --rounds 3 --seconds 1 --json
exit codes: 0 measured, 1 a process failed, 2 wrong arguments"""


def measure(calls: dict[str, Callable[[], None]], rounds: int, seconds: float) -> Figures:
    """Medians over the rounds of each call's p50 and p99, microseconds; in each round every call in turn."""
    p50: dict[str, list[float]] = {name: [] for name in calls}
    p99: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken = _timed(call, seconds)
            p50[name].append(quantile(taken, 0.5))
            p99[name].append(quantile(taken, 0.99))
    figures = {f"{name}_p50_us": statistics.median(values) for name, values in p50.items()}
    figures |= {f"{name}_p99_us": statistics.median(values) for name, values in p99.items()}
    added = [legacy - native for legacy, native in zip(p50["legacy"], p50["native"], strict=True)]
    figures["added_p50_us"] = statistics.median(added)
    figures["ratio"] = figures["legacy_p50_us"] / figures["native_p50_us"]
    return figures


def _timed(call: Callable[[], None], seconds: float) -> list[float]:
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        call()
        taken.append((time.perf_counter() - began) * 1e6)
    return sorted(taken)


def bench(stage: Stage, rounds: int, seconds: float) -> Figures:
    """Start everything, write one record through the old port, and read it both ways."""
    ports = {name: free_port() for name in ("request", "publish", "subscribe", "sequenced", "legacy")}
    settings = [f"bus.{name}_port={port}" for name, port in ports.items() if name != "legacy"]
    settings += [
        "legacy.enabled=true",
        "legacy.agents=UnifiedMemoryReasoningAgent",
        f"legacy.ports=UnifiedMemoryReasoningAgent={ports['legacy']},UnifiedMemoryReasoningAgent.health=off,"
        "UnifiedMemoryReasoningAgent.http=off",
        "rest.services=[]",
    ]
    flags = [part for setting in settings for part in ("--set", setting)]
    for name, module in (("broker", "broker"), ("memory", "workers.memory"), ("gateway", "workers.gateway")):
        process = stage.start(name, [sys.executable, "-m", module, *flags])
        if name == "broker":
            process.wait_for_port(ports["request"])
        elif name == "gateway":
            process.wait_for_port(ports["legacy"])
    context = zmq.Context()
    native, legacy = (_connected(context, ports[name]) for name in ("request", "legacy"))
    try:
        _write(legacy)
        plain = json.dumps({"key": _USER, "ns": "legacy.twins"}).encode()
        old = json.dumps({"action": "get_twin", "user_id": _USER}).encode()

        def ask_native() -> None:
            native.send_multipart([b"memory.kv.get", plain])
            status, _ = native.recv_multipart()
            assert status == b"ok", status

        def ask_legacy() -> None:
            legacy.send(old)
            assert b"Oslo" in legacy.recv()

        calls = {"native": ask_native, "legacy": ask_legacy}
        for call in calls.values():
            _timed(call, min(seconds, 0.5))
        return measure(calls, rounds, seconds)
    finally:
        context.destroy(linger=0)


def _connected(context: zmq.Context[zmq.Socket[bytes]], port: int) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.RCVTIMEO, int(_READY_S * 1000))
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket


def _write(legacy: zmq.Socket[bytes]) -> None:
    """A twin written through the old port, once the memory service is there."""
    deadline = time.monotonic() + _READY_S
    while True:
        twin = {"name": "Ada", "notes": ["lives in Oslo"] * 10}
        legacy.send_json({"action": "update_twin", "user_id": _USER, "twin_data": twin})
        reply = legacy.recv_json()
        assert isinstance(reply, dict)
        if reply["status"] == "ok":
            return
        if time.monotonic() > deadline:
            raise ProcessFailed(f"update_twin is not answered: {reply}")
        time.sleep(0.1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; see EPILOG."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds whose median is told (default 7)")
    parser.add_argument("--seconds", type=float, default=1.5, help="seconds of each call in a round (default 1.5)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds must be 1 or more and --seconds above 0")
    try:
        with ended_by_signals(), Stage() as stage:
            figures = bench(stage, args.rounds, args.seconds)
    except ProcessFailed as error:
        print(f"bench_legacy: {error}", file=sys.stderr)
        return 1
    print(f"{'':10}{'p50':>10}{'p99':>10}   microseconds")
    for name in ("native", "legacy"):
        print(f"{name:10}{figures[f'{name}_p50_us']:>10.0f}{figures[f'{name}_p99_us']:>10.0f}")
    print(
        f"a legacy round trip takes {figures['added_p50_us']:.0f} microseconds more, {figures['ratio']:.2f} times the native"
    )
    if args.json:
        print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
