"""`olympus top`: a live view of services, workers and models, redrawn each second; works from 60 columns up."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from bus.cli import exits
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError
from bus.cli.output import duration, fit, milliseconds, number, print_json, size, table, write_line
from bus.cli.status import degraded_lines, not_running
from bus.client import Client
from schemas.bodies.control import (
    BrokerStats,
    BusServices,
    BusStats,
    BusWorkers,
    ServiceInfo,
    ServiceList,
    WorkerInfo,
    WorkerList,
)
from schemas.bodies.model import ModelInfo, ModelList, Models
from schemas.errors import BusError

HELP = "Live view of services, workers and models. q ends it."

EXAMPLES = """\
examples:
  olympus top
  olympus top --every 0.5
  olympus top --once
  olympus top --once --json
"""

_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # alternate screen, no cursor
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"

# Rates need two looks; `--once` takes them this many seconds apart.
_ONCE_GAP_S: Final = 0.5

# A model service that is busy must not freeze the view, seconds.
_MODELS_TIMEOUT_S: Final = 1.0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the bus. `models` is None when nobody serves `model.list`."""

    at: float
    stats: BrokerStats
    services: list[ServiceInfo]
    workers: list[WorkerInfo]
    models: list[ModelInfo] | None


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Differences between two looks, per second; workers' CPU in percent of one core."""

    requests: float
    events: float
    answered: dict[str, float]
    worker_answered: dict[str, float]
    worker_cpu: dict[str, float]


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus top`."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--every", type=float, default=1.0, metavar="SECONDS", help="time between two looks (default 1)"
    )
    parser.add_argument("--once", action="store_true", help="print one frame and end; also when stdout is no terminal")
    parser.add_argument("--json", action="store_true", help="with --once: one JSON document")


def run(args: argparse.Namespace) -> int:
    """Show the live view, or one frame."""
    if not 0.1 <= args.every <= 3600:
        raise UsageError(f"--every {args.every} must be between 0.1 and 3600 seconds")
    is_once = args.once or not sys.stdout.isatty()
    if args.json and not is_once:
        raise UsageError("--json needs --once")

    async def show(client: Client) -> int:
        if is_once:
            await _once(client, is_json=args.json)
        else:
            await _live(client, args.every)
        return exits.OK

    return run_with_client(args, show)


async def look(client: Client) -> Sample:
    """Ask the broker, and the model service if there is one, how things stand."""
    services: ServiceList = await client.request("bus.services", BusServices())
    workers: WorkerList = await client.request("bus.workers", BusWorkers())
    stats: BrokerStats = await client.request("bus.stats", BusStats())
    models: list[ModelInfo] | None = None
    if "model" not in not_running(services.services):
        with contextlib.suppress(BusError):
            answer: Models = await client.request("model.list", ModelList(), timeout_s=_MODELS_TIMEOUT_S)
            models = answer.models
    return Sample(at=time.monotonic(), stats=stats, services=services.services, workers=workers.workers, models=models)


def rates(before: Sample | None, now: Sample) -> Rates | None:
    """Rates between two looks; None without an earlier look or when the broker was started in between."""
    if before is None or before.stats.boot != now.stats.boot or now.at <= before.at:
        return None
    gap_s = now.at - before.at
    services = {each.service: each.answered for each in before.services}
    workers = {_key(each): each for each in before.workers}
    return Rates(
        requests=(now.stats.requests - before.stats.requests) / gap_s,
        events=(now.stats.events - before.stats.events) / gap_s,
        answered={each.service: (each.answered - services.get(each.service, 0)) / gap_s for each in now.services},
        worker_answered={
            _key(each): (each.answered - workers[_key(each)].answered) / gap_s
            for each in now.workers
            if _key(each) in workers
        },
        worker_cpu={
            _key(each): 100 * (each.cpu_s - workers[_key(each)].cpu_s) / gap_s
            for each in now.workers
            if _key(each) in workers
        },
    )


def frame(now: Sample, rate: Rates | None, width: int | None, height: int | None) -> list[str]:
    """The lines of one frame, none wider than `width` and no more than `height`."""
    lines = [*_head(now.stats, rate), ""]
    if without := degraded_lines(now.workers):
        # Above the tables: a window that is too low hides what is at the end.
        lines += [*(f"! {line}" for line in without), ""]
    lines += _services(now, rate)
    if now.workers:
        lines += ["", *_workers(now.workers, rate)]
    loaded = [model for model in now.models or [] if model.state in ("loaded", "loading")]
    if loaded:
        rows = [(each.name, each.state, size(each.size_bytes), each.instance or "-") for each in loaded]
        lines += ["", *table(("MODEL", "STATE", "SIZE", "INSTANCE"), rows)]
    if height is not None and len(lines) > height:
        hidden = len(lines) - height + 1
        lines = [*lines[: height - 1], f"… {hidden} more lines; a taller window shows them"]
    return [fit(line, width) for line in lines]


def _head(stats: BrokerStats, rate: Rates | None) -> list[str]:
    per_s = (number(rate.requests), number(rate.events)) if rate else ("-", "-")
    return [
        f"olympus · broker up {duration(stats.uptime_s)} · {size(stats.rss_bytes)}",
        f"requests {per_s[0]}/s · in flight {number(stats.in_flight)} · queued {number(stats.queued)}",
        f"events {per_s[1]}/s · dropped {number(stats.events_dropped)} · dead letters {number(stats.dead_letters)}",
    ]


def _services(now: Sample, rate: Rates | None) -> list[str]:
    rows = [
        (
            each.service,
            number(each.instances),
            number(rate.answered.get(each.service)) if rate else "-",
            f"{each.in_flight}/{each.capacity}",
            number(each.queued),
            milliseconds(each.p50_s),
            milliseconds(each.p99_s),
        )
        for each in sorted(now.services, key=lambda each: each.service)
    ]
    rows += [(service, "not running", "", "", "", "", "") for service in not_running(now.services)]
    return table(("SERVICE", "INST", "REQ/S", "BUSY", "QUEUED", "P50 MS", "P99 MS"), rows)


def _workers(workers: list[WorkerInfo], rate: Rates | None) -> list[str]:
    rows = [
        (
            each.service,
            number(rate.worker_answered.get(_key(each))) if rate else "-",
            f"{each.in_flight}/{each.capacity}",
            number(rate.worker_cpu.get(_key(each))) if rate else "-",
            size(each.rss_bytes),
            f"{each.instance}{' (draining)' if each.state == 'draining' else ''}",
        )
        for each in sorted(workers, key=lambda each: (each.service, each.instance))
    ]
    return table(("WORKER", "REQ/S", "BUSY", "CPU %", "MEMORY", "INSTANCE"), rows)


def _key(worker: WorkerInfo) -> str:
    return f"{worker.service}/{worker.instance}"


async def _once(client: Client, *, is_json: bool) -> None:
    before = await look(client)
    await asyncio.sleep(_ONCE_GAP_S)
    now = await look(client)
    rate = rates(before, now)
    if is_json:
        print_json({**msgspec.structs.asdict(now), "rates": rate}, indent=2)
    else:
        write_line("\n".join(frame(now, rate, None, None)))


async def _live(client: Client, every_s: float) -> None:
    before: Sample | None = None
    lines: list[str] = []
    ending = asyncio.Event()
    with _screen(ending):
        while not ending.is_set():
            columns, rows = shutil.get_terminal_size()
            try:
                now = await look(client)
            except BusError as error:
                lines = [*lines[: rows - 1], fit(f"! {error.code}: {error.message}", columns)]
            else:
                lines = frame(now, rates(before, now), columns, rows - 1)
                before = now
            _draw(lines)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), every_s)


def _draw(lines: list[str]) -> None:
    sys.stdout.write(_HOME + "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines) + _CLEAR_BELOW)
    sys.stdout.flush()


@contextlib.contextmanager
def _screen(ending: asyncio.Event) -> Iterator[None]:
    """The alternate screen, with `ending` set when q is pressed; the terminal is as before afterwards."""
    import termios
    import tty

    has_keys = sys.stdin.isatty()
    descriptor = sys.stdin.fileno() if has_keys else -1
    loop = asyncio.get_running_loop()
    saved = termios.tcgetattr(descriptor) if has_keys else None

    def read_key() -> None:
        if sys.stdin.read(1) in ("q", "Q", ""):
            ending.set()

    try:
        sys.stdout.write(_ENTER)
        if has_keys:
            tty.setcbreak(descriptor)
            loop.add_reader(descriptor, read_key)
        yield
    finally:
        if saved is not None:
            loop.remove_reader(descriptor)
            termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
