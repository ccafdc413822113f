"""`olympus deadletters`: requests that no attempt could finish; look at them, send them again, drop them."""

from __future__ import annotations

import argparse
import math
import time
from typing import Final

from bus.cli import exits
from bus.cli.action import Action, add_actions, configure_json, run_action
from bus.cli.confirming import confirm
from bus.cli.connection import run_with_client
from bus.cli.durations import amount, duration
from bus.cli.errors import ago
from bus.cli.failures import UsageError, say
from bus.cli.output import (
    day_and_time,
    fit,
    one_line,
    plural,
    print_json,
    printable,
    size,
    table,
    terminal_width,
    to_json,
    write_line,
)
from bus.client import Client
from schemas import subjects
from schemas.bodies.control import (
    DeadLetter,
    DeadLetterList,
    DeadLetterPage,
    DeadLetterPurge,
    DeadLetterPurged,
    DeadLetterRedrive,
    DeadLetterRedriven,
    DeadLetterShow,
    DeadLetterWhole,
)
from schemas.errors import BadRequest, BusError, NotFound

HELP = "Requests that no attempt could finish. Without an action: lists them, the newest first."

EXAMPLES = """\
examples:
  olympus deadletters
  olympus deadletters --subject 'memory.>'
  olympus deadletters show 4f2a9c0d1e22
  olympus deadletters redrive 4f2a9c0d1e22
  olympus deadletters redrive --all --subject 'memory.>'
  olympus deadletters purge --older 7d

olympus deadletters ACTION --help tells more about one action. Of an id the first digits are enough.
"""

# Digits of an id that a list shows, and of a whole one.
_DIGITS: Final = 12
_WHOLE: Final = 32

# Dead letters of one page.
_PAGE: Final = 1_000

# Seconds beyond the time a request may take, for the broker to say how it ended.
_SLACK_S: Final = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus deadletters`."""
    parser.epilog = EXAMPLES
    _add_subject(parser)
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most (50)")
    configure_json(parser)
    add_actions(parser, ACTIONS)
    parser.set_defaults(run_action=_run_list)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return run_action(args)


def _add_subject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--subject", type=_pattern, default=">", metavar="PATTERN", help="requests for these subjects (all of them)"
    )


def _pattern(text: str) -> str:
    try:
        return subjects.validate_pattern(text)
    except BadRequest as error:
        raise argparse.ArgumentTypeError(error.message) from None


def _add_id(parser: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
    parser.add_argument("id", nargs=nargs, metavar="ID", type=_id, help="or its first digits, 4 at least")


def _id(text: str) -> str:
    lowered = text.lower()
    if not 4 <= len(lowered) <= _WHOLE or lowered.strip("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r} is no id: 4 to {_WHOLE} digits 0-9 and a-f")
    return lowered


# The list ---------------------------------------------------------------------------------------------------------


def _run_list(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        page: DeadLetterPage = await client.request(
            "deadletter.list", DeadLetterList(subject=args.subject, limit=args.limit)
        )
        if args.json:
            print_json(page, indent=2)
            return exits.OK
        width = terminal_width()
        for line in letter_lines(page.dead_letters, time.time()):
            write_line(fit(line, width))
        if page.total > len(page.dead_letters):
            say(f"{page.total - len(page.dead_letters):,} more; --limit shows more of them")
        return exits.OK

    return run_with_client(args, ask)


def letter_lines(letters: list[DeadLetter], now: float) -> list[str]:
    """A row for each. now: epoch seconds."""
    if not letters:
        return ["no dead letters"]
    rows = [
        (
            letter.id[:_DIGITS],
            ago(now - letter.at),
            one_line(letter.subject, 40),
            letter.reason,
            ("[sent again] " if letter.redriven_at is not None else "") + one_line(letter.message, 200),
        )
        for letter in letters
    ]
    return table(("ID", "AGE", "SUBJECT", "REASON", "MESSAGE"), rows)


async def every_letter(client: Client, pattern: str) -> list[DeadLetter]:
    """All of them, the newest first."""
    found: dict[str, DeadLetter] = {}
    before_at: float | None = None
    while True:
        page: DeadLetterPage = await client.request(
            "deadletter.list", DeadLetterList(subject=pattern, limit=_PAGE, before_at=before_at)
        )
        known = len(found)
        found |= {letter.id: letter for letter in page.dead_letters}
        if len(page.dead_letters) < _PAGE:
            return list(found.values())
        # Those that a lost worker left behind are of one instant: the next page begins with it once more.
        last_at = page.dead_letters[-1].at
        before_at = math.nextafter(last_at, math.inf) if len(found) > known else last_at


async def whole_id(client: Client, start: str) -> str:
    """The id that begins so. Raises NotFound, BadRequest where there are several."""
    if len(start) == _WHOLE:
        return start
    fitting = [letter.id for letter in await every_letter(client, ">") if letter.id.startswith(start)]
    if not fitting:
        raise NotFound(f"no dead letter has an id that begins with {start!r}", field="id")
    if len(fitting) > 1:
        raise BadRequest(f"{start!r} begins the ids of {len(fitting)} dead letters; give more digits", field="id")
    return fitting[0]


# show -------------------------------------------------------------------------------------------------------------


def _configure_show(parser: argparse.ArgumentParser) -> None:
    _add_id(parser)
    configure_json(parser)


def _run_show(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        named = await whole_id(client, args.id)
        whole: DeadLetterWhole = await client.request("deadletter.show", DeadLetterShow(id=named))
        if args.json:
            print_json(whole, indent=2)
        else:
            for line in whole_lines(whole):
                write_line(line)
        return exits.OK

    return run_with_client(args, ask)


def whole_lines(whole: DeadLetterWhole) -> list[str]:
    """A dead letter with its body."""
    letter = whole.dead_letter
    worker = f"{letter.service} {letter.instance}".strip()
    redriven = "" if letter.redriven_at is None else day_and_time(letter.redriven_at)
    facts = (
        ("id", letter.id),
        ("subject", printable(letter.subject)),
        ("since", day_and_time(letter.at)),
        ("reason", f"{letter.reason} after {plural(letter.attempts, 'attempt')}"),
        ("message", printable(letter.message)),
        ("worker", printable(worker)),
        ("sent again", redriven),
        ("headers", one_line(to_json(whole.headers), 1_000) if whole.headers else ""),
        ("body", size(letter.body_bytes)),
    )
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts if value]
    return [*lines, *(f"  {line}" for line in printable(to_json(whole.body, indent=2)).splitlines())]


# redrive ----------------------------------------------------------------------------------------------------------


def _configure_redrive(parser: argparse.ArgumentParser) -> None:
    _add_id(parser, nargs="?")
    parser.add_argument("--all", action="store_true", help="every one that was not sent again yet, the oldest first")
    _add_subject(parser)
    parser.add_argument(
        "--timeout", type=duration, default=30.0, metavar="TIME", help="that each request may take, up to 1h (30s)"
    )
    configure_json(parser)


def _run_redrive(args: argparse.Namespace) -> int:
    if (args.id is None) != args.all:
        raise UsageError("name either a dead letter's ID or --all")
    if args.id is not None and args.subject != ">":
        raise UsageError("--subject goes with --all")

    async def ask(client: Client) -> int:
        if args.id is not None:
            return await _redrive_one(client, await whole_id(client, args.id), args)
        waiting = [letter for letter in await every_letter(client, args.subject) if letter.redriven_at is None]
        return await _redrive_all(client, sorted(waiting, key=lambda letter: letter.at), args)

    return run_with_client(args, ask)


async def _redrive(client: Client, named: str, timeout_s: float) -> DeadLetterRedriven:
    body = DeadLetterRedrive(id=named, timeout_s=timeout_s)
    done: DeadLetterRedriven = await client.request("deadletter.redrive", body, timeout_s=timeout_s + _SLACK_S)
    return done


async def _redrive_one(client: Client, named: str, args: argparse.Namespace) -> int:
    done = await _redrive(client, named, args.timeout)
    if args.json:
        print_json(done, indent=2)
    else:
        say(f"{named[:_DIGITS]} was answered")
        write_line(printable(to_json(done.reply, indent=2)))
    return exits.OK


async def _redrive_all(client: Client, letters: list[DeadLetter], args: argparse.Namespace) -> int:
    failed = 0
    for letter in letters:
        try:
            await _redrive(client, letter.id, args.timeout)
            outcome, message = "ok", ""
        except BusError as error:
            failed += 1
            outcome, message = error.code, error.message
        if args.json:
            told = {"id": letter.id, "subject": letter.subject, "outcome": outcome, "message": message}
            write_line(to_json(told))
        else:
            line = f"{letter.id[:_DIGITS]}  {one_line(letter.subject, 40)}  {outcome}  {one_line(message, 200)}"
            write_line(fit(line.rstrip(), terminal_width()))
    say(f"{plural(len(letters), 'dead letter')} sent again" + (f", {failed:,} of them failed again" if failed else ""))
    return exits.FAILED if failed else exits.OK


# purge ------------------------------------------------------------------------------------------------------------


def _configure_purge(parser: argparse.ArgumentParser) -> None:
    _add_id(parser, nargs="?")
    _add_subject(parser)
    parser.add_argument("--older", type=amount, default=0.0, metavar="TIME", help="only those older than this, as 7d")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    configure_json(parser)


def _run_purge(args: argparse.Namespace) -> int:
    if args.id is None and not args.yes:
        which = "all dead letters" if args.subject == ">" else f"the dead letters of {args.subject}"
        confirm(f"delete {which}" + (f" older than {ago(args.older)}" if args.older else ""))

    async def ask(client: Client) -> int:
        named = await whole_id(client, args.id) if args.id is not None else None
        body = DeadLetterPurge(subject=args.subject, id=named, older_than_s=args.older)
        purged: DeadLetterPurged = await client.request("deadletter.purge", body)
        if args.json:
            print_json(purged, indent=2)
        else:
            say(f"{plural(purged.purged, 'dead letter')} deleted")
        return exits.OK

    return run_with_client(args, ask)


ACTIONS: Final = (
    Action("show", "one with its body", _configure_show, _run_show, "olympus deadletters show 4f2a9c0d1e22"),
    Action(
        "redrive",
        "send requests again, with your rights, and say how they ended",
        _configure_redrive,
        _run_redrive,
        "olympus deadletters redrive 4f2a9c0d1e22\nolympus deadletters redrive --all --subject 'memory.>'",
    ),
    Action(
        "purge",
        "delete them",
        _configure_purge,
        _run_purge,
        "olympus deadletters purge --older 7d\nolympus deadletters purge 4f2a9c0d1e22",
    ),
)
