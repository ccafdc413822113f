"""`olympus feedback`: what the last answer was worth, and what should have been answered; learning takes it up."""

from __future__ import annotations

import argparse
from typing import Final

from bus.cli import exits
from bus.cli.action import configure_json
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError, say
from bus.cli.hosting import hosted
from bus.cli.output import one_line, print_json, printable
from bus.client import Client
from schemas.bodies.learning import ExchangeList, Exchanges, Feedback, FeedbackTaken
from schemas.errors import NoWorker

HELP = "Say what the last answer was worth, or what it should have been."

EXAMPLES = """\
examples:
  olympus feedback good
  olympus feedback bad 'it made that up'
  olympus feedback fix 'Lisbon is the capital of Portugal.'
  olympus feedback good --reply 9f0c2b66a1d04e55b1f2

Without --reply it is about the last answer that is kept; in a chat, about the last one there.
olympus learn feedback takes ratings and preferred answers, too.
"""

_RATINGS: Final = {"good": 1.0, "bad": 0.0}

# Characters of question and answer that are shown, so that a person sees what the feedback was about.
_SHOWN: Final = 60


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus feedback`."""
    parser.epilog = EXAMPLES
    parser.add_argument("verdict", choices=("good", "bad", "fix"), help="what you think of the answer")
    parser.add_argument(
        "text", nargs="*", default=[], metavar="TEXT", help="why; with fix, what should have been answered"
    )
    parser.add_argument("--reply", metavar="ID", help="about this answer; olympus learn exchanges lists them")
    parser.add_argument("--session", metavar="ID", help="about the last answer of this session")
    configure_json(parser)


def run(args: argparse.Namespace) -> int:
    """Tell learning."""
    text = " ".join(args.text).strip()
    if args.verdict == "fix" and not text:
        raise UsageError("fix needs the TEXT that should have been answered")
    if args.reply and args.session:
        raise UsageError("--reply names one answer already: leave --session out")

    async def ask(client: Client) -> int:
        try:
            return await _give(client, args, text)
        except NoWorker:
            say("learning does not run, so feedback cannot be kept; 'olympus status' shows what runs")
            return exits.FAILED

    return run_with_client(args, ask)


async def _give(client: Client, args: argparse.Namespace, text: str) -> int:
    reply_id = await _reply_id(client, args)
    if reply_id is None:
        say("no answer is kept that this could be about; olympus learn exchanges lists those that are")
        return exits.FAILED
    is_fix = args.verdict == "fix"
    host = hosted()
    taken: FeedbackTaken = await client.request(
        "learning.feedback",
        Feedback(
            reply_id=reply_id,
            rating=_RATINGS.get(args.verdict),
            correction=text if is_fix else None,
            comment="" if is_fix else text,
            session_id=args.session or (host.session_id if host is not None and not args.reply else None) or "",
        ),
    )
    if args.json:
        print_json(taken, indent=2)
        return exits.OK
    counts = f", counts towards {taken.opportunity_id}" if taken.opportunity_id else ""
    say(f"kept{counts}" + (f"; {printable(taken.note)}" if taken.note else ""))
    return exits.OK


async def _reply_id(client: Client, args: argparse.Namespace) -> str | None:
    """The answer that is meant: the one named, the chat's last, or the last that is kept, which is shown."""
    if args.reply:
        return str(args.reply)
    host = hosted()
    if host is not None and host.reply_id and not args.session:
        return host.reply_id
    kept: Exchanges = await client.request("learning.exchange.list", ExchangeList(session_id=args.session, limit=1))
    if not kept.exchanges:
        return None
    last = kept.exchanges[0]
    question = last.messages[-1].content if last.messages else last.prompt or ""
    say(f"about: {one_line(question, _SHOWN)}")
    say(f"  {one_line(last.error or last.text, _SHOWN)}")
    return last.reply_id
