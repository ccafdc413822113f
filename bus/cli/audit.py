"""`olympus audit`: who signed in, was refused, deleted or promoted what; and whether the log of it is unchanged."""

from __future__ import annotations

import argparse
import datetime
import re
from typing import Final, get_args

from bus.cli import exits
from bus.cli.action import Action, add_actions, configure_json, run_action
from bus.cli.connection import run_with_client
from bus.cli.durations import instant
from bus.cli.failures import UsageError, say
from bus.cli.output import one_line, plural, print_json, table, write_line
from bus.client import Client
from schemas.bodies.telling import AuditEntry, AuditKind, AuditList, AuditPage, AuditVerdict, AuditVerify

HELP = "The audit log: who signed in, was refused, deleted, promoted or changed what, newest first."

# Characters shown of a field, such as why something was refused; --json has all of it.
_SHOWN_MAX: Final = 60

# Lines asked for at a time.
_PAGE: Final = 500


def configure(parser: argparse.ArgumentParser) -> None:
    """The actions; without one the newest lines are listed."""
    add_actions(parser, _ACTIONS)
    parser.set_defaults(run_action=_list, json=False, limit=50, kind=None, actor="*", what="*", outcome=None)
    parser.set_defaults(since=None, until=None)
    parser.epilog = "examples:\n  olympus audit\n  olympus audit list --kind refusal\n  olympus audit verify\n"


def run(args: argparse.Namespace) -> int:
    """Do one action."""
    return run_action(args)


def _configure_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=get_args(AuditKind), help="only lines of one kind")
    parser.add_argument("--actor", default="*", metavar="PATTERN", help="user or machine, * stands for any text")
    parser.add_argument("--what", default="*", metavar="PATTERN", help="operation, e.g. 'memory.*' or 'auth.login'")
    parser.add_argument("--outcome", metavar="CODE", help="ok, or the code of an error, e.g. forbidden")
    parser.add_argument("--since", type=instant, metavar="TIME", help="from then on: 2h ago, or an ISO time")
    parser.add_argument("--until", type=instant, metavar="TIME", help="up to then")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="lines, at most (50)")
    configure_json(parser)


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--noted", metavar="LINE:HASH", default="", help="what an earlier verify said of the newest line"
    )
    configure_json(parser)


def _list(args: argparse.Namespace) -> int:
    if args.limit < 1:
        raise UsageError(f"--limit is {args.limit}; it must be 1 or more")

    async def work(client: Client) -> int:
        entries: list[AuditEntry] = []
        before: int | None = None
        while True:
            request = AuditList(
                kind=args.kind,
                actor=args.actor,
                action=args.what,
                outcome=args.outcome,
                since_at=args.since,
                until_at=args.until,
                before_id=before,
                limit=min(args.limit - len(entries), _PAGE),
            )
            page: AuditPage = await client.request("audit.list", request)
            entries += page.entries
            if len(entries) >= args.limit or len(page.entries) < request.limit:
                break
            before = page.entries[-1].id
        if args.json:
            print_json(AuditPage(entries=entries, total=page.total, is_whole=page.is_whole), indent=2)
            return exits.OK
        if entries:
            write_line("\n".join(table(_HEADER, [_row(entry) for entry in entries])))
        say(f"{len(entries)} of {plural(page.total, 'line')}")
        if not page.is_whole:
            say("the log was changed from outside: olympus audit verify says where")
        return exits.OK

    return run_with_client(args, work)


def _verify(args: argparse.Namespace) -> int:
    id, _, hash = args.noted.partition(":")
    if args.noted and not re.fullmatch("[1-9][0-9]{0,17}:[0-9a-f]{64}", args.noted):
        raise UsageError(f"--noted is {args.noted!r}; it is LINE:HASH, as an earlier verify printed it")

    async def work(client: Client) -> int:
        request = AuditVerify(id=int(id) if id else None, hash=hash)
        verdict: AuditVerdict = await client.request("audit.verify", request, timeout_s=_VERIFY_S)
        if args.json:
            print_json(verdict, indent=2)
        elif verdict.is_whole:
            write_line(f"{verdict.last_id}:{verdict.last_hash}")
            say(f"{plural(verdict.checked, 'line')} unchanged; keep this elsewhere and hand it to --noted next time")
        else:
            say(f"the log was changed: {verdict.reason}")
        return exits.OK if verdict.is_whole else exits.FAILED

    return run_with_client(args, work)


# A million lines take some ten seconds.
_VERIFY_S: Final = 120.0

_HEADER: Final = ("LINE", "WHEN", "KIND", "WHO", "WHAT", "OF", "OUTCOME", "FROM")


def _row(entry: AuditEntry) -> tuple[str, ...]:
    when = f"{datetime.datetime.fromtimestamp(entry.at):%Y-%m-%d %H:%M:%S}"
    outcome = entry.outcome if entry.count == 1 else f"{entry.outcome} x{entry.count}"
    texts = (entry.kind, entry.actor, entry.action, entry.target or entry.reason, outcome, entry.address or entry.host)
    # In one line each: what somebody tried may have an end of a line in it, and must not look like a line of its own.
    return (str(entry.id), when, *(one_line(text, _SHOWN_MAX) for text in texts))


_ACTIONS: Final = (
    Action(
        "list",
        "the newest lines (also without an action)",
        _configure_list,
        _list,
        "olympus audit list --kind sign_in --since 24h\n"
        "olympus audit list --actor ada --what 'memory.*' --json\n"
        "olympus audit list --outcome forbidden",
    ),
    Action(
        "verify",
        "check that no line was changed or taken out, and say where one was",
        _configure_verify,
        _verify,
        "olympus audit verify\nolympus audit verify --json",
    ),
)
