#!/usr/bin/env python3
"""Measure the hot tier on SQLite and on Redis beside the bare Redis library and what it stands before, in one run.

See docs/hot-tier.md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import uvloop

from bench_bus_parts import load
from bench_bus_parts.processes import ProcessFailed, Stage, ended_by_signals
from bus.settings import SettingsError, load_settings
from schemas.bodies import sessions as bodies
from workers.memory.clock import SteadyClock
from workers.memory.hot.opening import open_hot_tier
from workers.memory.hot.tier import HotTier
from workers.memory.records import Records
from workers.memory.sessions.sessions import Sessions
from workers.memory.sessions.tokens import Estimator
from workers.memory.vectors.encoder import ProcessEncoder
from workers.memory.vectors.model_files import find_model
from workers.memory.vectors.unavailable import EncoderUnavailable

Figures = dict[str, float]
Call = Callable[[], Awaitable[object]]

# Callers at once where many are asked for.
IN_FLIGHT: Final = 64

# Bytes of a value, and keys it is stored under in turn.
VALUE_BYTES: Final = 200
KEYS: Final = 1_000

# Turns of the session that is read.
HISTORY_TURNS: Final = 20

# Longest wait for redis-server, seconds.
LISTENS_WITHIN_S: Final = 10.0

EPILOG = """examples:
  scripts/bench_hot.py                     about half a minute
  scripts/bench_hot.py --rounds 2 --json
exit codes: 0 measured, 1 a process failed, 2 wrong arguments"""


class Subject(NamedTuple):
    """One thing that is measured: its calls by name."""

    calls: dict[str, Call]


async def measure(subjects: dict[str, Subject], rounds: int, seconds: float) -> Figures:
    """Medians over the rounds; in each round every subject does everything, one after the other."""
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, subject in subjects.items():
            for operation, call in subject.calls.items():
                one = await load.latency(call, seconds=seconds / 2, requests=0)
                many = await load.throughput(call, seconds=seconds, requests=0, in_flight=IN_FLIGHT)
                samples.setdefault(f"{name}_{operation}_us", []).append(float(one["p50_us"]))
                samples.setdefault(f"{name}_{operation}_per_s", []).append(float(many["per_s"]))
    return {key: statistics.median(values) for key, values in samples.items()}


def with_ratios(figures: Figures) -> Figures:
    """The figures, and those of the bare library set in relation to ours: above 1 ours is faster."""
    ratios: Figures = {}
    for name, operation in itertools.product(("sqlite", "redis"), ("set", "get")):
        ours, bare = f"{name}_{operation}", f"bare_{operation}"
        if f"{ours}_us" in figures and f"{bare}_us" in figures:
            ratios[f"{ours}_p50_ratio_to_bare"] = figures[f"{bare}_us"] / figures[f"{ours}_us"]
            ratios[f"{ours}_rate_ratio_to_bare"] = figures[f"{ours}_per_s"] / figures[f"{bare}_per_s"]
    return {**figures, **ratios}


@asynccontextmanager
async def opened(home: Path, redis_url: str) -> AsyncIterator[HotTier]:
    """A tier with its upkeep running."""
    settings = load_settings(overrides={"home": str(home), "memory.redis_url": redis_url})
    told: list[str] = []
    tier = await open_hot_tier(settings, now=SteadyClock(), on_lost=told.append)
    tending = asyncio.create_task(tier.tend_forever())
    try:
        yield tier
        if told:
            # What was measured is then SQLite under the name of Redis.
            raise ProcessFailed(told[0])
    finally:
        tending.cancel()
        with suppress(asyncio.CancelledError):
            await tending
        await tier.close()


async def bench(stage: Stage, rounds: int, seconds: float) -> Figures:
    """Everything that can be measured here."""
    value = b"x" * VALUE_BYTES
    subjects: dict[str, Subject] = {}
    async with AsyncExitStack() as stack:
        tiers = {"sqlite": await stack.enter_async_context(opened(stage.home / "sqlite", ""))}
        program = shutil.which("redis-server")
        if program is None:
            _say("redis-server is not on the path: SQLite alone is measured")
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hot-"))
            url = await _start_redis(stage, program, Path(folder) / "s")
            tiers["redis"] = await stack.enter_async_context(opened(stage.home / "redis", url))
            subjects["bare"] = _bare(await stack.enter_async_context(_library(url)), value)
        for name, tier in tiers.items():
            subjects[name] = _of_tier(tier, value)
        subjects["records"] = await stack.enter_async_context(_records(stage.home / "records"))
        try:
            subjects["encoder"] = await stack.enter_async_context(_encoder(stage.home / "encoder"))
        except EncoderUnavailable as error:
            _say(f"no vectors are measured: {error.message}")
        figures = await measure(subjects, rounds, seconds)
    return with_ratios(figures)


def _of_tier(tier: HotTier, value: bytes) -> Subject:
    return _of(lambda key: tier.get("cache", key), lambda key: tier.set("cache", key, value, ttl_s=60))


def _bare(client: Any, value: bytes) -> Subject:
    return _of(client.get, lambda key: client.set(key, value, px=60_000))


def _of(get: Callable[[str], Awaitable[object]], store: Callable[[str], Awaitable[object]]) -> Subject:
    keys = itertools.cycle(f"bench:{number}" for number in range(KEYS))
    return Subject({"set": lambda: store(next(keys)), "get": lambda: get(next(keys))})


@asynccontextmanager
async def _records(home: Path) -> AsyncIterator[Subject]:
    """A session and its latest turns, read from the database: what a copy of them in the tier would save."""
    records = await Records.open(home / "memory.db", readers=2, on_committed=lambda events: None)
    try:
        sessions = Sessions(records, Estimator(), ttl_s=3_600, on_turns=lambda ns, session_id: None)
        await sessions.create(bodies.SessionCreate(session_id="s", metadata={"note": "x" * 200}), os.urandom(16))
        turns = [bodies.NewTurn(role="user", content="the kettle is on the stove " * 10)] * HISTORY_TURNS
        await sessions.append(bodies.SessionAppend(session_id="s", turns=turns), os.urandom(16))
        get = bodies.SessionGet(session_id="s")
        history = bodies.SessionHistory(session_id="s", limit=HISTORY_TURNS, touch=False)
        yield Subject({"session": lambda: sessions.get(get), "history": lambda: sessions.history(history)})
    finally:
        await records.close()


@asynccontextmanager
async def _encoder(cache: Path) -> AsyncIterator[Subject]:
    """A query that nobody asked before, encoded: what its vector in the tier saves. Raises EncoderUnavailable."""
    model = find_model(load_settings().memory.encoder, cache)
    encoder = ProcessEncoder(model, cache, threads=0, idle_s=-1)
    try:
        await encoder.load()
        numbers = itertools.count()
        yield Subject({"query": lambda: encoder.encode([f"where is kettle {next(numbers)}"], is_query=True)})
    finally:
        await encoder.close()


@asynccontextmanager
async def _library(url: str) -> AsyncIterator[Any]:
    import redis.asyncio

    # As many connections as callers: the library alone, as it comes.
    client = redis.asyncio.Redis.from_url(url, max_connections=IN_FLIGHT)
    try:
        yield client
    finally:
        await client.aclose()


async def _start_redis(stage: Stage, program: str, socket: Path) -> str:
    nothing_kept = ["--save", "", "--appendonly", "no", "--dir", str(socket.parent)]
    server = stage.start("redis", [program, "--port", "0", "--unixsocket", str(socket), *nothing_kept], {})
    deadline = time.monotonic() + LISTENS_WITHIN_S
    while not await asyncio.to_thread(socket.exists):
        if server.child.poll() is not None or time.monotonic() > deadline:
            raise ProcessFailed("redis-server does not come up")
        await asyncio.sleep(0.01)
    return f"unix://{socket}"


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _print_table(figures: Figures) -> None:
    for name, value in figures.items():
        print(f"{name:34} {value:12.2f}" if "ratio" in name else f"{name:34} {value:12.0f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="times everything is measured; default 5")
    parser.add_argument("--seconds", type=float, default=0.6, help="seconds of one measurement; default 0.6")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds must be 1 or more and --seconds above 0")
    try:
        with ended_by_signals(), Stage() as stage:
            figures = uvloop.run(bench(stage, arguments.rounds, arguments.seconds))
    except (ProcessFailed, SettingsError) as error:
        _say(str(error))
        return 1
    if arguments.json:
        print(json.dumps(figures))
    else:
        _print_table(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
