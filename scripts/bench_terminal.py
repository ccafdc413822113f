#!/usr/bin/env python3
"""Measure what a person waits for in a terminal: `olympus --help`, and `olympus chat` to its first prompt.

Each round starts the interpreter with nothing to do (`python -c pass`), the help, and a chat in a pseudo-terminal with the
whole system up, one after the other, so that a busy machine slows all three. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pty
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_bus_parts.processes import Process, ProcessFailed, Stage, ended_by_signals, free_port
from bus.client import Client
from bus.settings import Settings, load_settings
from schemas.bodies.control import BusServices
from schemas.errors import BusError

PORTS = ("request_port", "publish_port", "subscribe_port", "sequenced_port")

# What a chat asks as it begins, and what answers.
SERVICES = {"memory", "model", "model.runner", "resource"}

# What is promised, milliseconds.
HELP_MS = 150.0
CHAT_MS = 500.0

# Longest wait for the system and for a prompt, and the pause between two looks, seconds.
READY_WITHIN_S = 60.0
PROMPT_WITHIN_S = 20.0
LOOK_EVERY_S = 0.05

PROMPT = "› ".encode()
CTRL_D = b"\x04"

EPILOG = """examples:
  scripts/bench_terminal.py                     fifteen rounds, medians
  scripts/bench_terminal.py --rounds 5 --json
exit codes: 0 both promises kept, 1 one was not, or something failed, 2 wrong arguments"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the medians, and say whether the promises are kept."""
    parser = argparse.ArgumentParser(
        prog="bench_terminal.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=15, help="how often (default 15)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        with ended_by_signals(), Stage() as stage:
            figures = measure(stage, arguments.rounds)
    except ProcessFailed as error:
        print(f"bench_terminal.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    show(figures)
    if arguments.json:
        print(json.dumps(figures))
    return 0 if figures["help_ms"] <= HELP_MS and figures["chat_ms"] <= CHAT_MS else 1


def measure(stage: Stage, rounds: int) -> dict[str, float]:
    """Medians of all rounds, milliseconds. Raises ProcessFailed."""
    ports = {f"bus.{name}": free_port() for name in PORTS}
    added = {f"OLYMPUS_{key.replace('.', '_').upper()}": str(port) for key, port in ports.items()}
    olympus = [sys.executable, "-m", "bus.cli.app"]
    up = stage.start("olympus up", [*olympus, "up"], added)
    asyncio.run(until_up(load_settings(overrides={**ports, "home": str(stage.home)}), up))
    environment = {**os.environ, **added, "OLYMPUS_HOME": str(stage.home), "TERM": "xterm-256color"}

    def run(command: list[str]) -> None:
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

    measured: dict[str, Callable[[], object]] = {
        "python_ms": lambda: run([sys.executable, "-c", "pass"]),
        "help_ms": lambda: run([*olympus, "--help"]),
    }
    took: dict[str, list[float]] = {"python_ms": [], "help_ms": [], "chat_ms": []}
    for _ in range(rounds):
        for name, do in measured.items():
            began = time.perf_counter()
            do()
            took[name].append(time.perf_counter() - began)
        took["chat_ms"].append(to_the_prompt([*olympus, "chat"], environment, stage.home))
    figures = {name: round(statistics.median(times) * 1000, 1) for name, times in took.items()}
    up.child.terminate()
    up.child.wait(READY_WITHIN_S)
    return {
        **figures,
        "help_over_python": round(figures["help_ms"] / figures["python_ms"], 2),
        "chat_over_python": round(figures["chat_ms"] / figures["python_ms"], 2),
        "chat_ms_max": round(max(took["chat_ms"]) * 1000, 1),
        "rounds": rounds,
    }


async def until_up(settings: Settings, up: Process) -> None:
    """Return once every service that a chat asks has an instance. Raises ProcessFailed."""
    give_up_at = time.monotonic() + READY_WITHIN_S
    missing = SERVICES
    async with Client(settings, name="bench-terminal") as client:
        while missing:
            if up.child.poll() is not None or time.monotonic() > give_up_at:
                raise ProcessFailed(f"not ready: {', '.join(sorted(missing))}; it wrote:\n{up.log.read_text()[-2000:]}")
            try:
                reply = await client.request("bus.services", BusServices(), timeout_s=1)
                missing = SERVICES - {one.service for one in reply.services if one.instances > 0}
            except BusError:
                continue
            await asyncio.sleep(LOOK_EVERY_S)


def to_the_prompt(command: list[str], environment: dict[str, str], folder: Path) -> float:
    """Seconds from the start of a chat until its prompt has been written; then it is ended by Ctrl-D."""
    keyboard, terminal = pty.openpty()
    began = time.perf_counter()
    chat = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, cwd=folder)
    os.close(terminal)
    drawn = b""
    try:
        while PROMPT not in drawn:
            if not select.select([keyboard], [], [], PROMPT_WITHIN_S)[0]:
                raise ProcessFailed(f"no prompt within {PROMPT_WITHIN_S:g} s; it wrote:\n{drawn.decode()}")
            drawn += _read(keyboard, drawn)
        took = time.perf_counter() - began
        os.write(keyboard, CTRL_D)
        chat.wait(PROMPT_WITHIN_S)
        return took
    finally:
        chat.kill()
        chat.wait()
        os.close(keyboard)


def _read(keyboard: int, drawn: bytes) -> bytes:
    try:
        return os.read(keyboard, 65_536)
    except OSError:
        raise ProcessFailed(f"the chat ended; it wrote:\n{drawn.decode()}") from None


def show(figures: dict[str, float]) -> None:
    """The medians in words."""
    print(f"python -c pass            {figures['python_ms']:7.1f} ms")
    print(
        f"olympus --help            {figures['help_ms']:7.1f} ms  "
        f"({figures['help_over_python']:g} times the interpreter; promised: {HELP_MS:g} ms)"
    )
    print(
        f"olympus chat to a prompt  {figures['chat_ms']:7.1f} ms  "
        f"({figures['chat_over_python']:g} times; at worst {figures['chat_ms_max']:g} ms; promised: {CHAT_MS:g} ms)"
    )


if __name__ == "__main__":
    sys.exit(main())
