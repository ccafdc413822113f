"""`olympus trace`: one request's way through the bus with all that it led to, or the requests that ended last."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

from bus.cli import exits
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError, say
from bus.cli.output import clock, fit, milliseconds, one_line, plural, print_json, table, terminal_width, write_line
from bus.cli.waterfall import ID_DIGITS, as_json, lines, queued_s, took_s
from bus.client import Client
from schemas import subjects
from schemas.bodies.telling import Span, Spans, TraceRead

HELP = "Show one request's way through the bus with timings, or list the requests that ended last."

EXAMPLES = """\
examples:
  olympus trace                            the newest requests, with their ids
  olympus trace 4bf92f3577b3               one, with every request that it led to
  olympus trace --failed --subject 'model.>'
  olympus trace --slow --count 5
  olympus trace --follow --json

ID is 8 or more digits of a request's or a trace's id. olympus req -v, olympus tap --requests, the header X-Request-Id of
every REST reply, the field request= of log lines and olympus errors show it. A request is there once it has ended.
"""

# Fewer digits of an id would often fit several of the requests that the broker remembers.
_ID_DIGITS_MIN: Final = 8

# Requests asked of the broker at a time: one reply of half a megabyte.
_PAGE: Final = 5_000

# Requests looked through for the slowest, the failed or those of a subject, at most: twenty replies.
_LOOKED_MAX: Final = 100_000

# Requests of one trace that are shown, at most.
_SHOWN_MAX: Final = 5_000

# How often --follow asks, seconds.
_FOLLOW_S: Final = 1.0

# What this command itself asks, which would otherwise be the newest request for ever.
_OWN: Final = "bus.trace.read"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus trace`."""
    parser.epilog = EXAMPLES
    parser.add_argument("id", nargs="?", metavar="ID", help="8 or more digits of a request's or a trace's id")
    parser.add_argument("--count", type=int, default=20, metavar="N", help="list N requests (20)")
    parser.add_argument(
        "--subject", default=">", metavar="PATTERN", help="those of this subject; '*' and '>' as in tap"
    )
    parser.add_argument("--failed", action="store_true", help="those that did not end well")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--slow", action="store_true", help="the slowest first")
    order.add_argument("--follow", action="store_true", help="go on with those that end from now on")
    parser.add_argument("--json", action="store_true", help="for programs: the trace as one object, a list as lines")


def run(args: argparse.Namespace) -> int:
    """Show a trace, or the list."""
    if args.count < 1:
        raise UsageError(f"--count {args.count} must be at least 1")
    subjects.validate_pattern(args.subject)
    if args.id is None:
        return run_with_client(args, lambda client: _list(client, args))
    id = args.id.lower().replace("-", "")
    if not re.fullmatch(r"[0-9a-f]+", id) or not _ID_DIGITS_MIN <= len(id) <= 32:
        raise UsageError(f"ID is {args.id!r}; it must be {_ID_DIGITS_MIN} to 32 hexadecimal digits")
    return run_with_client(args, lambda client: _show(client, id, is_json=args.json))


# One trace ------------------------------------------------------------------------------------------------------


async def _show(client: Client, id: str, *, is_json: bool) -> int:
    found = await _read(client, TraceRead(id=id, limit=_SHOWN_MAX))
    traces = list(dict.fromkeys(span.trace for span in found.spans))
    if not traces:
        say(forgotten(id, found))
        return exits.FAILED
    if len(traces) > 1:
        say(
            f"{id} fits {plural(len(traces), 'trace')}: {', '.join(trace[:16] for trace in traces[:8])}; say more digits"
        )
        return exits.FAILED
    whole = await _read(client, TraceRead(id=traces[0], limit=_SHOWN_MAX))
    # A request of another trace may have the trace's digits as its own id.
    spans = [span for span in whole.spans if span.trace == traces[0]] or found.spans
    if is_json:
        print_json(as_json(spans), indent=2)
        return exits.OK
    for line in lines(spans, width=terminal_width(), asked=id):
        write_line(line)
    for text in _missing(spans):
        say(text)
    return exits.OK


def forgotten(id: str, found: Spans) -> str:
    """Why an id was not found."""
    if not found.remembered:
        return f"the broker remembers no requests: broker.traces_max is 0, or none has ended since it started; no {id}"
    since = clock(found.oldest_at or 0.0)
    return (
        f"the broker does not remember {id}: it holds the last {plural(found.remembered, 'request')}, those since {since}"
        " (broker.traces_max); one that still runs is not among them, olympus trace lists those that are"
        + (f"; {found.skipped} more were skipped, for over 2,000 a second went well" if found.skipped else "")
    )


def _missing(spans: Sequence[Span]) -> list[str]:
    """What is to be said of a tree that has no one root."""
    known = {span.id[:16] for span in spans}
    absent = list(dict.fromkeys(span.parent for span in spans if span.parent and span.parent not in known))
    told = []
    if absent:
        told.append(
            f"led to by {', '.join(absent[:4])}: still running, forgotten, or no request of this bus (a caller's own trace)"
        )
    if len(spans) >= _SHOWN_MAX:
        told.append(f"only the newest {plural(_SHOWN_MAX, 'request')} of it are shown")
    return told


# The list -------------------------------------------------------------------------------------------------------


async def _list(client: Client, args: argparse.Namespace) -> int:
    is_wanted = wanted(args.subject, failed=args.failed)
    looked, found = 0, list[Span]()
    newest = await _read(client, TraceRead(limit=1))
    async for page in _pages(client, max(newest.last_number - min(newest.remembered, _LOOKED_MAX), 0)):
        looked += len(page.spans)
        found += [span for span in page.spans if is_wanted(span)]
        found = chosen(found, args.count, slow=args.slow)
        newest = page
    show = _json_lines if args.json else _table
    show(found)
    if not found and not args.json:
        say(f"none of the last {plural(looked, 'request')} fits" if looked else "no request has ended yet")
    while args.follow:
        await asyncio.sleep(_FOLLOW_S)
        page = await _read(client, TraceRead(after=newest.last_number, limit=_PAGE))
        if page.boot != newest.boot:
            say("the broker has started anew")
            page = await _read(client, TraceRead(after=0, limit=_PAGE))
        newest = page
        rows = [span for span in page.spans if is_wanted(span)]
        if args.json:
            _json_lines(rows)
        else:
            for span in rows:
                write_line(fit("  ".join(_cells(span)), terminal_width()))
    return exits.OK


async def _pages(client: Client, after: int) -> AsyncGenerator[Spans]:
    """What the broker remembers after a number, in order."""
    while True:
        page = await _read(client, TraceRead(after=after, limit=_PAGE))
        yield page
        if len(page.spans) < _PAGE:
            return
        after = page.spans[-1].number


async def _read(client: Client, request: TraceRead) -> Spans:
    spans: Spans = await client.request(_OWN, request)
    return spans


def wanted(subject: str, *, failed: bool) -> Callable[[Span], bool]:
    """Which requests a list is of; those of this command only where their subject is asked for."""
    fits = subjects.matcher(subject)

    def is_wanted(span: Span) -> bool:
        is_own = span.subject == _OWN and subject != _OWN
        return not is_own and bool(fits(span.subject)) and not (failed and span.outcome == "ok")

    return is_wanted


def chosen(spans: Sequence[Span], count: int, *, slow: bool) -> list[Span]:
    """The slowest, the slowest of them first; else those that ended last, in order."""
    return sorted(spans, key=took_s, reverse=True)[:count] if slow else list(spans[-count:])


def _cells(span: Span) -> list[str]:
    outcome = span.outcome if span.attempts < 2 else f"{span.outcome} ({span.attempts} attempts)"
    times = [f"{milliseconds(took_s(span)):>9}", f"{milliseconds(queued_s(span)):>9}"]
    return [clock(span.ended_at), span.id[:ID_DIGITS], *times, outcome, one_line(span.subject, 60), span.worker]


def _table(spans: Sequence[Span]) -> None:
    if spans:
        width = terminal_width()
        header = ("ENDED", "ID", "TOOK ms", "QUEUED ms", "OUTCOME", "SUBJECT", "WORKER")
        for line in table(header, [_cells(span) for span in spans]):
            write_line(fit(line, width))


def _json_lines(spans: Sequence[Span]) -> None:
    for span in spans:
        print_json(span)
