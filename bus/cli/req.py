"""`olympus req`: send one request and print its reply, piece by piece where it streams."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any, TypedDict

from bus.cli import exits
from bus.cli.connection import run_with_client
from bus.cli.describe import describe, describe_json, marks, request_line
from bus.cli.durations import duration
from bus.cli.failures import UsageError, say
from bus.cli.output import print_json, printable, table, to_json, write_line
from bus.cli.request_body import read_body, read_headers
from bus.client import Client, Priority
from schemas import catalog, subjects
from schemas.envelope import Headers, new_id
from schemas.errors import NoWorker

HELP = "Send one request and print its reply; partial replies are printed as they come."

EXAMPLES = """\
examples:
  olympus req memory.kv.set key=greeting value=hello
  olympus req memory.kv.get '{"key": "greeting"}'
  olympus req model.generate prompt='2 + 3 =' max_tokens=8
  olympus req model.chat @conversation.json --timeout 2m
  olympus req model.list --raw | head -c 300
  olympus req memory.search query=city -v
  olympus req --list
  olympus req memory.kv.set --describe

BODY is JSON, @FILE, '-' (read JSON from stdin), or key=value words.
"""

# Generations go straight to the runner of the model they name; the broker falls back to the plain subject.
_BY_MODEL = frozenset({"model.chat", "model.generate"})


class _Options(TypedDict):
    timeout_s: float | None
    headers: Headers | None
    priority: Priority
    raw: bool
    id: bytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus req`."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "subject", nargs="?", metavar="SUBJECT", help="what to ask, e.g. memory.kv.get or model.chat@demo"
    )
    parser.add_argument("body", nargs="*", metavar="BODY", help="JSON, @file, '-' for stdin, or key=value words")
    parser.add_argument("--timeout", type=duration, metavar="TIME", help="give up after this long (30s, 2m)")
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="add a header; repeatable")
    parser.add_argument("-v", "--verbose", action="store_true", help="say the request's id, for olympus trace")
    parser.add_argument("--priority", choices=("interactive", "batch"), default="interactive")
    parser.add_argument("--stdin", action="store_true", help="read the body as JSON from stdin, like BODY '-'")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help='one JSON line per reply: {"kind": ..., "body": ...}')
    shape.add_argument("--raw", action="store_true", help="the reply's body alone: text, bytes or one line of JSON")
    shape_of = parser.add_mutually_exclusive_group()
    shape_of.add_argument("--list", action="store_true", help="list the operations of the catalogue")
    shape_of.add_argument(
        "--describe", action="store_true", help="show an operation's fields (--json: its JSON Schema)"
    )


def run(args: argparse.Namespace) -> int:
    """Send the request, or show the catalogue."""
    if args.list:
        _list(args.json)
        return exits.OK
    if args.subject is None:
        raise UsageError("req needs a SUBJECT; olympus req --list shows them")
    if args.describe:
        return _describe(args.subject, args.json)
    operation = catalog.lookup(args.subject)
    body = read_body(["-"] if args.stdin else args.body, operation.request if operation else None)
    subject = address(args.subject, body)
    headers = read_headers(args.header)
    printer = _printer(args)

    async def ask(client: Client) -> int:
        id = new_id()
        if args.verbose:
            say(f"request {id.hex()}; once it has ended: olympus trace {id.hex()[:12]}")
        options = _Options(timeout_s=args.timeout, headers=headers, priority=args.priority, raw=True, id=id)
        if operation is not None and not operation.is_streaming:
            printer.final(await client.request(subject, body, **options))
            return exits.OK
        async with client.stream(subject, body, **options) as stream:
            async for part in stream:
                printer.partial(part)
            printer.final(stream.final)
        return exits.OK

    try:
        return run_with_client(args, ask)
    except NoWorker as error:
        # A model elsewhere that does not answer is no_worker too; only the broker tells of operations.
        if operation is not None and "is_known" in error.details:
            say(f"nobody serves {subject} now; olympus status shows what runs")
        raise
    finally:
        printer.close()


def address(subject: str, body: Any) -> str:
    """The subject to send to: a generation that names its model is addressed to that model's runner."""
    if subject in _BY_MODEL and isinstance(body, dict):
        model = body.get("model")
        if isinstance(model, str) and model:
            return f"{subject}@{model}"
    return subject


class JsonPrinter:
    """One JSON line per reply, for programs."""

    def partial(self, body: Any) -> None:
        print_json({"kind": "partial", "body": body})

    def final(self, body: Any) -> None:
        print_json({"kind": "final", "body": body})

    def close(self) -> None:
        """Nothing is left open."""


class TextPrinter:
    """For people: a stream of text runs on as it comes, anything else is JSON; figures go to stderr.

    `is_raw` leaves out the indentation, the figures and the escaping.
    """

    def __init__(self, *, is_raw: bool) -> None:
        self._is_raw = is_raw
        self._is_escaping = sys.stdout.isatty()
        self._has_text = False
        self._is_midline = False

    def partial(self, body: Any) -> None:
        text = body.get("text") if isinstance(body, dict) else None
        if isinstance(text, str):
            self._has_text = True
            self._write(text)
        else:
            write_line(to_json(body))

    def final(self, body: Any) -> None:
        text = body.get("text") if isinstance(body, dict) else None
        if not self._has_text and isinstance(text, str) and "usage" in body:
            self._has_text = True
            self._write(text)
        if self._has_text:
            self.close()
            if not self._is_raw:
                say(figures(body))
        elif isinstance(body, bytes) and self._is_raw:
            sys.stdout.buffer.write(body)
        else:
            write_line(to_json(body, indent=0 if self._is_raw else 2))

    def close(self) -> None:
        """End the line that running text has left open."""
        if self._is_midline:
            self._is_midline = False
            write_line("")

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(printable(text) if self._is_escaping else text)
            sys.stdout.flush()
            self._is_midline = not text.endswith("\n")


def figures(body: Mapping[str, Any]) -> str:
    """What a generation cost, on one line; other finals are shown without their text."""
    usage, timings = body.get("usage"), body.get("timings")
    if not isinstance(usage, dict) or not isinstance(timings, dict):
        return to_json({name: value for name, value in body.items() if name not in ("text", "token_ids")})
    parts = [
        str(body.get("model", "")),
        f"{usage.get('prompt_tokens', 0)} + {usage.get('completion_tokens', 0)} tokens",
        f"first after {timings.get('first_token_s', 0) * 1000:.0f} ms",
        f"{timings.get('tokens_per_s', 0):.0f} tokens/s",
    ]
    if timings.get("load_s"):
        parts.append(f"model loaded in {timings['load_s']:.2f} s")
    return " · ".join([*parts, f"ended by {body.get('finish_reason')}"])


def _printer(args: argparse.Namespace) -> JsonPrinter | TextPrinter:
    return JsonPrinter() if args.json else TextPrinter(is_raw=args.raw)


def _list(is_json: bool) -> None:
    operations = catalog.OPERATIONS.values()
    if is_json:
        print_json([describe_json(operation, with_schema=False) for operation in operations], indent=2)
        return
    rows = [(each.subject, marks(each), each.summary, request_line(each)) for each in operations]
    for line in table(("SUBJECT", "MARKS", "WHAT IT DOES", "FIELDS (* required)"), rows):
        write_line(line)
    say("marks: I repeating it is harmless, S streams; olympus req SUBJECT --describe tells more")


def _describe(subject: str, is_json: bool) -> int:
    operation = catalog.lookup(subject)
    if operation is None:
        say(f"the catalogue has no operation {subject!r}{_did_you_mean(subject)}")
        return exits.FAILED
    if is_json:
        print_json(describe_json(operation, with_schema=True), indent=2)
    else:
        write_line("\n".join(describe(operation)))
    return exits.OK


def _did_you_mean(subject: str) -> str:
    near = catalog.nearest(subjects.split_instance(subject)[0])
    return f"; did you mean {' or '.join(near)}?" if near else ""
