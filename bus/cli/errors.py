"""`olympus errors`: what failed, how often and where; say that it was seen, or that it may be ignored for a while."""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from typing import Final, get_args

import msgspec

from bus.cli import exits
from bus.cli.action import Action, add_actions, configure_json, run_action
from bus.cli.connection import run_with_client
from bus.cli.durations import amount, duration, instant
from bus.cli.failures import UsageError, say
from bus.cli.output import (
    clock,
    day_and_time,
    fit,
    number,
    one_line,
    plural,
    print_json,
    printable,
    table,
    terminal_width,
    to_json,
    write_line,
)
from bus.cli.output import duration as spoken
from bus.client import Client
from schemas.bodies.control import ErrorReport, Severity
from schemas.bodies.errors import (
    AnyState,
    ErrorAcknowledge,
    ErrorForget,
    ErrorGroup,
    ErrorGroupEvent,
    ErrorList,
    ErrorMute,
    ErrorPage,
    ErrorsChanged,
    ErrorShow,
    ErrorStats,
    ErrorStatsReply,
    ErrorWhole,
)

HELP = "Show what failed, like errors together. Without an action: those that nobody has seen yet, the newest first."

EXAMPLES = """\
examples:
  olympus errors
  olympus errors --service memory --severity error --since 1d
  olympus errors --follow
  olympus errors show 5f0c2b66
  olympus errors ack 5f0c2b66 --note 'the disk was full'
  olympus errors mute 5f0c2b66 --for 2h

olympus errors ACTION --help tells more about one action. Of a fingerprint the first digits are enough.
"""

_SEVERITIES: Final = get_args(Severity)

# Digits of a fingerprint that a list shows; some 10,000 groups rarely share them, and who asks for such a one is told.
_DIGITS: Final = 8

# Groups in a list that says nothing else.
_LIMIT: Final = 50

# Characters of a message in a list that goes to no terminal, where lines are not cut to its width.
_WHAT_MAX: Final = 200

# Blocks of a small graph, from nothing to most.
_BARS: Final = " ▁▂▃▄▅▆▇█"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus errors`."""
    parser.epilog = EXAMPLES
    parser.add_argument("--service", help="of this service alone")
    parser.add_argument("--severity", choices=_SEVERITIES, help="at least as bad")
    parser.add_argument("--state", choices=get_args(AnyState), default="open", help="in this state (open)")
    parser.add_argument("--text", default="", help="with this in kind or message")
    parser.add_argument("--since", type=instant, metavar="WHEN", help="seen since: 10m ago as 10m, or an ISO time")
    parser.add_argument("--limit", type=int, default=_LIMIT, metavar="N", help=f"at most ({_LIMIT})")
    parser.add_argument("--follow", action="store_true", help="print new ones, and those that come again, as they come")
    configure_json(parser)
    add_actions(parser, ACTIONS)
    parser.set_defaults(run_action=_run_list)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return run_action(args)


# The list, and what follows -----------------------------------------------------------------------------------------


def _run_list(args: argparse.Namespace) -> int:
    if args.follow:
        if args.since is not None or args.state != "open" or args.limit != _LIMIT:
            raise UsageError("--follow prints what comes from now on; --since, --state and --limit go with the list")
        return run_with_client(args, lambda client: _follow(client, args))
    query = ErrorList(
        service=args.service,
        severity=args.severity,
        state=args.state,
        text=args.text,
        since_at=args.since,
        limit=args.limit,
    )

    async def ask(client: Client) -> int:
        page: ErrorPage = await client.request("error.list", query)
        if args.json:
            print_json(page, indent=2)
            return exits.OK
        width = terminal_width()
        for line in group_lines(page, time.time(), args.state):
            write_line(fit(line, width))
        if page.total > len(page.groups):
            say(f"{page.total - len(page.groups):,} more; --limit shows more of them")
        return exits.OK

    return run_with_client(args, ask)


def group_lines(page: ErrorPage, now: float, state: str) -> list[str]:
    """A row for each group. now: epoch seconds."""
    if not page.groups:
        return [f"no {state} errors" if state != "any" else "no errors"]
    rows = [
        (
            group.fingerprint[:_DIGITS],
            ago(now - group.last_at),
            number(group.count),
            group.severity,
            one_line(group.service, 20),
            (f"[{group.state}] " if group.state != state else "") + what(group),
        )
        for group in page.groups
    ]
    return table(("ID", "LAST", "COUNT", "SEVERITY", "SERVICE", "WHAT"), rows)


def what(group: ErrorGroup) -> str:
    """Kind and message in one line."""
    return one_line(": ".join(part for part in (group.kind, group.message) if part), _WHAT_MAX)


def ago(seconds: float) -> str:
    """A duration in its largest unit: 42 s, 3 min, 2 h."""
    return " ".join(spoken(max(seconds, 0)).split()[:2])


async def _follow(client: Client, args: argparse.Namespace) -> int:
    async with client.subscribe("error.opened", "error.reopened") as events:
        async for event in events:
            try:
                group = msgspec.convert(event.body, ErrorGroupEvent).group
            except msgspec.ValidationError:
                # Anybody may publish there.
                continue
            if _is_asked_for(group, args):
                how = event.subject.rpartition(".")[2]
                line = f"{clock(event.at)}  {how:<8}  {group.fingerprint[:_DIGITS]}  {group.severity:<8}"
                plain = fit(f"{line}  {one_line(group.service, 20)}  {what(group)}", terminal_width())
                write_line(to_json({"event": how, "group": group}) if args.json else plain)
    return exits.OK


def _is_asked_for(group: ErrorGroup, args: argparse.Namespace) -> bool:
    least = _SEVERITIES.index(args.severity) if args.severity else 0
    return (
        args.service in (None, group.service)
        and _SEVERITIES.index(group.severity) >= least
        and args.text.casefold() in f"{group.kind}\n{group.message}".casefold()
    )


# show -------------------------------------------------------------------------------------------------------------


def _configure_show(parser: argparse.ArgumentParser) -> None:
    _add_fingerprint(parser)
    parser.add_argument("--limit", type=int, default=1, metavar="N", help="newest reports to show, up to 10 (1)")
    configure_json(parser)


def _run_show(args: argparse.Namespace) -> int:
    body = ErrorShow(fingerprint=args.fingerprint, limit=args.limit)

    async def ask(client: Client) -> int:
        whole: ErrorWhole = await client.request("error.show", body)
        if args.json:
            print_json(whole, indent=2)
        else:
            for line in whole_lines(whole, time.time()):
                write_line(line)
        return exits.OK

    return run_with_client(args, ask)


def whole_lines(whole: ErrorWhole, now: float) -> list[str]:
    """All that is known of a group. now: epoch seconds."""
    group = whole.group
    state: str = group.state
    if group.muted_until_at is not None:
        state += f" for {spoken(max(group.muted_until_at - now, 0))} more"
    if group.acknowledged_at is not None:
        by = f" by {printable(group.acknowledged_by)}" if group.acknowledged_by else ""
        state += f"{by} on {day_and_time(group.acknowledged_at)}"
    if group.reopened_at is not None:
        state += f", came again {ago(now - group.reopened_at)} ago"
    facts = (
        ("fingerprint", group.fingerprint),
        ("service", printable(group.service)),
        ("severity", group.severity),
        ("state", state),
        ("note", printable(group.note)),
        ("count", f"{number(group.count)}, {group.per_minute:g} a minute lately"),
        ("first", f"{day_and_time(group.first_at)}, {ago(now - group.first_at)} ago"),
        ("last", f"{day_and_time(group.last_at)}, {ago(now - group.last_at)} ago"),
        ("24 hours", f"{graph(whole.hours)}  {number(sum(whole.hours))}"),
        ("on", printable(group.subject)),
        ("where", printable(group.where)),
        ("from", ", ".join(map(printable, group.instances))),
    )
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts if value]
    return [*lines, "", *(line for report in whole.reports for line in report_lines(report))]


def graph(counts: list[int]) -> str:
    """A bar for each count; what is not nothing is seen."""
    most = max(counts, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def report_lines(report: ErrorReport) -> list[str]:
    """One report, whole."""
    many = f"  ({number(report.count)} times)" if report.count > 1 else ""
    head = f"{datetime.fromtimestamp(report.at):%Y-%m-%d %H:%M:%S}  {printable(report.kind)}  {printable(report.instance)}".rstrip()
    return [
        head + many,
        *(f"  {line}" for line in printable(report.message).splitlines()),
        *([f"  request {report.request_id}"] if report.request_id else []),
        *([f"  {one_line(to_json(report.context), 1_000)}"] if report.context else []),
        *(f"  {line}" for line in printable(report.traceback).splitlines()),
        "",
    ]


# stats ------------------------------------------------------------------------------------------------------------


def _configure_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--over", type=duration, default=3600.0, metavar="TIME", help="count this far back (1h)")
    configure_json(parser)


def _run_stats(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        stats: ErrorStatsReply = await client.request("error.stats", ErrorStats(over_s=args.over))
        if args.json:
            print_json(stats, indent=2)
            return exits.OK
        width = terminal_width()
        for line in stats_lines(stats, args.over, time.time()):
            write_line(fit(line, width))
        for reason in stats.degraded:
            say(printable(reason))
        return exits.OK

    return run_with_client(args, ask)


def stats_lines(stats: ErrorStatsReply, over_s: float, now: float) -> list[str]:
    """Counts by service, and of all. now: epoch seconds."""
    kinds = ", ".join(f"{number(count)} {severity}" for severity, count in stats.by_severity.items() if count)
    lines = [
        f"{plural(stats.count, 'error')} in the last {spoken(over_s)}" + (f": {kinds}" if kinds else ""),
        f"{plural(stats.groups, 'group')}, {stats.open_groups:,} open, {stats.muted_groups:,} muted"
        + (f"; {stats.missed:,} errors were missed" if stats.missed else ""),
    ]
    if not stats.services:
        return lines
    rows = [
        (
            one_line(each.service, 30),
            number(each.count),
            f"{each.per_minute:g}",
            number(each.open_groups),
            each.worst,
            ago(now - each.last_at),
        )
        for each in stats.services
    ]
    return [*lines, "", *table(("SERVICE", "COUNT", "A MINUTE", "OPEN", "WORST", "LAST"), rows)]


# ack, mute, unmute, forget ----------------------------------------------------------------------------------------


def _add_fingerprint(parser: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
    parser.add_argument(
        "fingerprint", nargs=nargs, metavar="FINGERPRINT", type=_fingerprint, help="or its first digits, 4 at least"
    )


def _fingerprint(text: str) -> str:
    lowered = text.lower()
    if not 4 <= len(lowered) <= 32 or lowered.strip("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r} is no fingerprint: 4 to 32 digits 0-9 and a-f")
    return lowered


def _configure_ack(parser: argparse.ArgumentParser) -> None:
    _add_fingerprint(parser, nargs="?")
    parser.add_argument("--service", help="all open ones of this service instead")
    parser.add_argument("--note", default="", metavar="TEXT", help="what it was")
    configure_json(parser)


def _run_ack(args: argparse.Namespace) -> int:
    if (args.fingerprint is None) == (args.service is None):
        raise UsageError("name either a fingerprint or --service")
    body = ErrorAcknowledge(fingerprint=args.fingerprint, service=args.service, note=args.note)
    return _change(args, "error.acknowledge", body, "acknowledged")


def _configure_mute(parser: argparse.ArgumentParser) -> None:
    _add_fingerprint(parser)
    parser.add_argument("--for", dest="for_s", type=duration, required=True, metavar="TIME", help="as 2h or 7d")
    parser.add_argument("--note", default="", metavar="TEXT", help="why")
    configure_json(parser)


def _configure_unmute(parser: argparse.ArgumentParser) -> None:
    _add_fingerprint(parser)
    parser.set_defaults(for_s=0.0, note="")
    configure_json(parser)


def _run_mute(args: argparse.Namespace) -> int:
    body = ErrorMute(fingerprint=args.fingerprint, for_s=args.for_s, note=args.note)

    async def ask(client: Client) -> int:
        group: ErrorGroup = await client.request("error.mute", body)
        if args.json:
            print_json(group, indent=2)
        elif group.muted_until_at is None:
            say(f"{group.fingerprint} is {group.state}")
        else:
            say(f"{group.fingerprint} is muted until {day_and_time(group.muted_until_at)}")
        return exits.OK

    return run_with_client(args, ask)


def _configure_forget(parser: argparse.ArgumentParser) -> None:
    _add_fingerprint(parser, nargs="?")
    parser.add_argument("--unseen", type=amount, metavar="TIME", help="all that did not come for so long, as 30d")
    configure_json(parser)


def _run_forget(args: argparse.Namespace) -> int:
    if (args.fingerprint is None) == (args.unseen is None):
        raise UsageError("name either a fingerprint or --unseen TIME")
    body = ErrorForget(fingerprint=args.fingerprint, unseen_s=args.unseen)
    return _change(args, "error.forget", body, "forgotten")


def _change(args: argparse.Namespace, subject: str, body: ErrorAcknowledge | ErrorForget, done: str) -> int:
    async def ask(client: Client) -> int:
        reply: ErrorsChanged = await client.request(subject, body)
        if args.json:
            print_json(reply, indent=2)
        else:
            say(f"{plural(reply.changed, 'group')} {done}")
        return exits.OK

    return run_with_client(args, ask)


ACTIONS: Final = (
    Action(
        "show",
        "all that is known of a group, with its newest reports",
        _configure_show,
        _run_show,
        "olympus errors show 5f0c2b66\nolympus errors show 5f0c2b66 --limit 10",
    ),
    Action(
        "stats",
        "how many errors, by service and severity",
        _configure_stats,
        _run_stats,
        "olympus errors stats\nolympus errors stats --over 7d",
    ),
    Action(
        "ack",
        "say that it was seen: listed again when it comes again",
        _configure_ack,
        _run_ack,
        "olympus errors ack 5f0c2b66 --note 'the disk was full'\nolympus errors ack --service memory",
    ),
    Action(
        "mute",
        "count it without listing or telling it, for a time",
        _configure_mute,
        _run_mute,
        "olympus errors mute 5f0c2b66 --for 2h",
    ),
    Action("unmute", "list and tell it again", _configure_unmute, _run_mute, "olympus errors unmute 5f0c2b66"),
    Action(
        "forget",
        "delete a group, or those that did not come for long",
        _configure_forget,
        _run_forget,
        "olympus errors forget 5f0c2b66\nolympus errors forget --unseen 30d",
    ),
)
