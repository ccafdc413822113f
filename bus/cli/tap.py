"""`olympus tap`: watch events, or requests with their replies. A subscriber like any other; it slows nobody."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol

import msgspec

from bus.cli import exits
from bus.cli.connection import run_with_client
from bus.cli.durations import duration, instant
from bus.cli.failures import UsageError, say
from bus.cli.output import clock, fit, milliseconds, plural, print_json, size, terminal_width, to_json, write_line
from bus.client import Client
from bus.subscription import Missed
from bus.watching import Exchange, TraceJoiner, subject_filter
from schemas import subjects
from schemas.bodies.control import BrokerStats, BusStats, EventBatch, EventsPage, EventsRead, Trace
from schemas.errors import BY_CODE

HELP = "Print events as they pass, or requests joined with their replies. A slow terminal slows nobody."

EXAMPLES = """\
examples:
  olympus tap 'memory.>'
  olympus tap 'memory.>' 'model.*' --ignore 'model.usage'
  olympus tap model.loaded --count 1 --for 30s
  olympus tap 'memory.>' --since 10m
  olympus tap 'error.>' --since 2026-07-01T08:00 --no-follow --json
  olympus tap --requests 'memory.>'
  olympus tap 'memory.>' --raw | jq .key

Without PATTERN everything is shown but bus.stats, bus.trace.* and metrics.*; name them to see them.
A gap is told on stderr. Ends with 4 when --for is over before --count events came.
"""

# The longest error code.
_OUTCOME_COLUMNS: Final = max(map(len, BY_CODE))

# Events asked of the log at a time.
_PAGE: Final = 10_000

_GAP_REASON: Final = ": this tap was too slow or its connection broke; with --since they are read back from the log"

# Seconds that one page of the log may take.
_PAGE_TIMEOUT_S: Final = 60.0


class Seen(Protocol):
    """What a live event and a logged one have in common."""

    @property
    def seq(self) -> int: ...
    @property
    def at(self) -> float: ...
    @property
    def subject(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def body(self) -> Any: ...


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus tap`."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="'*' stands for one token, a trailing '>' for the rest"
    )
    parser.add_argument("--count", type=int, metavar="N", help="end after N lines")
    parser.add_argument("--for", dest="for_s", type=duration, metavar="TIME", help="end after this long (90s, 10m)")
    parser.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="leave these out; repeatable")
    parser.add_argument("--since", type=instant, metavar="WHEN", help="first read the log from 10m ago, or an ISO time")
    parser.add_argument("--no-follow", action="store_true", help="with --since: end where the log ends")
    parser.add_argument("--requests", action="store_true", help="show requests joined with their replies, not events")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="one JSON object a line")
    shape.add_argument("--raw", action="store_true", help="bodies alone: bytes as they are, anything else as JSON")
    shape.add_argument("--headers-only", action="store_true", help="no bodies: time, sequence, subject, source, id")


def run(args: argparse.Namespace) -> int:
    """Watch until told to end."""
    _check(args)
    patterns = args.patterns or [">"]

    async def watch(client: Client) -> int:
        shown = Shown(args.count)
        try:
            async with asyncio.timeout(args.for_s) as clock_of_tap:
                work = _watch_requests if args.requests else _watch_events
                await work(client, args, patterns, shown)
        except TimeoutError:
            if not clock_of_tap.expired():
                raise
        return exits.TIMED_OUT if args.count and not shown.is_enough else exits.OK

    return run_with_client(args, watch)


class Shown:
    """Counts lines up to the number asked for."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._lines = 0

    @property
    def is_enough(self) -> bool:
        """True once as many lines were shown as `--count` asks for."""
        return self._limit is not None and self._lines >= self._limit

    def add(self) -> None:
        """One more line was shown."""
        self._lines += 1


def event_line(event: Seen, *, shape: str, width: int | None) -> str:
    """One event as a person reads it. `shape` is "full" or "headers"."""
    head = f"{clock(event.at)}  {event.seq:>6}  {event.subject}"
    if shape == "headers":
        return fit(f"{head}  from {event.source or '-'}  id {event.id or '-'}", width)
    return fit(f"{head}  {to_json(event.body)}", width)


def exchange_line(exchange: Exchange, width: int | None) -> str:
    """One request with its reply as a person reads it."""
    took = f"{milliseconds(exchange.took_s)} ms" if exchange.took_s is not None else "-"
    asked = size(exchange.request_bytes)
    parts = [clock(exchange.at), f"{exchange.subject:<24}", f"{took:>10}", f"{exchange.outcome:<{_OUTCOME_COLUMNS}}"]
    parts.append(f"{asked} -> {size(exchange.reply_bytes)}" if exchange.outcome != "unanswered" else asked)
    if exchange.partials:
        parts.append(plural(exchange.partials, "partial"))
    if exchange.attempt > 1:
        parts.append(f"attempt {exchange.attempt}")
    if exchange.worker:
        parts.append(exchange.worker)
    parts.append(f"id {exchange.id[:12]}")
    return fit("  ".join(parts), width)


async def read_log(client: Client, patterns: Sequence[str], since_at: float) -> AsyncGenerator[Seen]:
    """The durable events since an instant, in order, page by page. Several patterns read everything and sort out here."""
    subject = patterns[0] if len(patterns) == 1 else ">"
    ask = EventsRead(subject=subject, since_at=since_at, limit=_PAGE)
    while True:
        async with client.stream("bus.events.read", ask, timeout_s=_PAGE_TIMEOUT_S) as batches:
            async for batch in batches:
                assert isinstance(batch, EventBatch)
                for event in batch.events:
                    yield event
            page: EventsPage = batches.final
        if page.next_seq is None:
            return
        ask = EventsRead(subject=subject, from_seq=page.next_seq, limit=_PAGE)


async def _events(
    client: Client, patterns: Sequence[str], since_at: float | None, follow: bool
) -> AsyncGenerator[Seen]:
    """Logged events, then live ones: none twice, none left out."""
    if since_at is not None and not follow:
        async with aclosing(read_log(client, patterns, since_at)) as logged:
            async for event in logged:
                yield event
        return
    before: BrokerStats | None = None
    if since_at is not None:
        before = await client.request("bus.stats", BusStats())
    async with client.subscribe(*patterns, read_back=since_at is not None) as live:
        # Events that were logged while the log was being read come a second time, live.
        twice: set[int] = set()
        if since_at is not None and before is not None:
            async with aclosing(read_log(client, patterns, since_at)) as logged:
                async for event in logged:
                    if event.seq > before.last_seq:
                        twice.add(event.seq)
                    yield event
        was_told = False
        async for event in live:
            if event.missed is not None:
                say(_gap(event.missed) + ("" if was_told else _GAP_REASON))
                was_told = True
            if event.seq in twice:
                twice.discard(event.seq)
            else:
                yield event


async def _watch_events(client: Client, args: argparse.Namespace, patterns: Sequence[str], shown: Shown) -> None:
    is_wanted = subject_filter(patterns, args.ignore)
    show = _event_printer(args)
    async with aclosing(_events(client, patterns, args.since, not args.no_follow)) as events:
        async for event in events:
            if is_wanted(event.subject):
                show(event)
                shown.add()
                if shown.is_enough:
                    return


async def _watch_requests(client: Client, args: argparse.Namespace, patterns: Sequence[str], shown: Shown) -> None:
    is_wanted = subject_filter(patterns, args.ignore)
    joiner = TraceJoiner()
    show = print_json if args.json else _show_exchange
    try:
        async with client.subscribe("bus.trace.>") as traces:
            async for event in traces:
                trace = msgspec.convert(event.body, Trace)
                exchange = joiner.feed(trace) if is_wanted(trace.subject) else None
                if exchange is not None:
                    show(exchange)
                    shown.add()
                    if shown.is_enough:
                        return
    finally:
        for exchange in joiner.unanswered():
            show(exchange)


def _gap(missed: Missed) -> str:
    """Sequence numbers count every event of the bus, so that only a bound is known of those this tap would show."""
    count = missed.last_seq - missed.first_seq + 1
    return f"missed up to {plural(count, 'event')}, {missed.first_seq} to {missed.last_seq}"


def _event_printer(args: argparse.Namespace) -> Callable[[Seen], None]:
    if args.json:
        return _show_json
    if args.raw:
        return _show_raw
    width = terminal_width()
    shape = "headers" if args.headers_only else "full"
    return lambda event: write_line(event_line(event, shape=shape, width=width))


def _show_json(event: Seen) -> None:
    print_json(
        {
            "seq": event.seq,
            "at": event.at,
            "subject": event.subject,
            "source": event.source,
            "id": event.id,
            "body": event.body,
        }
    )


def _show_raw(event: Seen) -> None:
    if isinstance(event.body, bytes):
        sys.stdout.buffer.write(event.body + b"\n")
        sys.stdout.buffer.flush()
    else:
        write_line(to_json(event.body))


def _show_exchange(exchange: Exchange) -> None:
    write_line(exchange_line(exchange, terminal_width()))


def _check(args: argparse.Namespace) -> None:
    if args.count is not None and args.count < 1:
        raise UsageError(f"--count {args.count} must be at least 1")
    if args.no_follow and args.since is None:
        raise UsageError("--no-follow needs --since: without a log to read there is nothing to end at")
    if args.requests and (args.since is not None or args.raw or args.headers_only):
        raise UsageError("--requests goes with --json, --count, --for and --ignore only: requests are not logged")
    for pattern in (*args.patterns, *args.ignore):
        subjects.validate_pattern(pattern)
