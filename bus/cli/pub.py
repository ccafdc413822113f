"""`olympus pub`: publish an event, once or many times."""

from __future__ import annotations

import argparse

from bus.cli import exits
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError, say
from bus.cli.output import plural
from bus.cli.request_body import read_body, read_headers
from bus.client import Client
from schemas import catalog, subjects

HELP = "Publish an event. What the catalogue declares for its subject tells text fields from numbers."

EXAMPLES = """\
examples:
  olympus pub demo.greeting '{"text": "hello"}'
  olympus pub demo.greeting text=hello
  olympus pub demo.load n=1 --count 1000
  echo '{"text": "from a pipe"}' | olympus pub demo.greeting -

BODY is JSON, @FILE, '-' (read JSON from stdin), or key=value words.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus pub`."""
    parser.epilog = EXAMPLES
    parser.add_argument("subject", metavar="SUBJECT", help="what happened, e.g. demo.greeting")
    parser.add_argument("body", nargs="*", metavar="BODY", help="JSON, @file, '-' for stdin, or key=value words")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="publish it this many times")
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="add a header; repeatable")


def run(args: argparse.Namespace) -> int:
    """Publish."""
    if args.count < 1:
        raise UsageError(f"--count {args.count} must be at least 1")
    subjects.validate(args.subject)
    event = catalog.event_for(args.subject)
    body = read_body(args.body, event.body if event else None)
    headers = read_headers(args.header)

    async def publish(client: Client) -> int:
        for _ in range(args.count):
            await client.publish(args.subject, body, headers=headers)
        await client.flush()
        return exits.OK

    code = run_with_client(args, publish)
    say(f"published {plural(args.count, 'event')} on {args.subject}")
    return code
