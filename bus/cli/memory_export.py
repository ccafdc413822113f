"""`olympus memory export` and `import`: everything as JSON Lines, and back."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, get_args

from bus.cli import exits
from bus.cli.action import Action
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError, say
from bus.cli.hosting import hosted
from bus.cli.memory_lines import BadLine, Line, Lines, end, header, line
from bus.cli.memory_upkeep import LONG_S
from bus.cli.output import plural, print_json
from bus.cli.progress import Progress
from bus.client import Client
from schemas.bodies.upkeep import Imported, MemoryExport, RecordKind
from schemas.envelope import new_id
from schemas.errors import BusError, Conflict, NoWorker, Rejected, WorkerLost

# A batch of an import ends at this many records, and past its first before this many bytes: a commit takes some
# milliseconds however much is in it, and a batch that is refused has to be named by its lines.
_BATCH_RECORDS: Final = 500
_BATCH_BYTES: Final = 2 * 1024 * 1024

# Seconds one batch may take.
_BATCH_S: Final = 300.0

# Seconds before a batch is sent again that found nobody, or whose worker was lost.
_RETRY_S: Final = 2.0

# What a message says of the record, which the line and the field say better.
_BESIDE = re.compile(r"^(memory\.import: )?(record \d+( \([a-z]+\))?:? )?| \(field '[^']*'\)$")

_RECORD = re.compile(r"^records\[(\d+)\]\.?")


# export -----------------------------------------------------------------------------------------------------------


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="where to; '-' is stdout (-)")
    parser.add_argument("--ns", help="only this namespace")
    parser.add_argument("--kind", action="append", choices=get_args(RecordKind), help="only this kind; repeatable")
    parser.add_argument("--force", action="store_true", help="overwrite the file")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON document at the end")


def _run_export(args: argparse.Namespace) -> int:
    if args.json and args.file == "-":
        raise UsageError("--json prints the counts, so the export itself needs a FILE")

    async def ask(client: Client) -> int:
        with written(args.file, args.force) as file:
            counts = await _export(client, args, file)
        if args.json:
            print_json(counts, indent=2)
        else:
            say(f"exported {plural(sum(counts.values()), 'record')}{_by_kind(counts)}")
        return exits.OK

    try:
        return run_with_client(args, ask)
    except (BrokenPipeError, ConnectionError):
        raise
    except OSError as error:
        say(f"cannot write {args.file}: {error.strerror}")
        return exits.FAILED


async def _export(client: Client, args: argparse.Namespace, file: BinaryIO) -> dict[str, int]:
    is_begun = False
    with Progress(is_shown=not args.json and not file.isatty()) as progress:
        async with client.stream("memory.export", MemoryExport(ns=args.ns, kinds=args.kind), timeout_s=LONG_S) as parts:
            async for part in parts:
                if not is_begun:
                    is_begun = True
                    file.write(header(part.total))
                for record in part.records:
                    file.write(line(record.kind, record.ns, record.data))
                progress.show("export", part.done, part.total)
            counts: dict[str, int] = parts.final.counts
        if not is_begun:
            file.write(header(0))
        file.write(end(counts))
        file.flush()
    return counts


@contextmanager
def written(name: str, may_replace: bool) -> Iterator[BinaryIO]:
    """The file an export goes to: it appears when it is whole, readable by this user alone."""
    if name == "-":
        if hosted() is not None:
            raise UsageError("'-' reads stdin, which is the keyboard of this chat: name the file")
        yield sys.stdout.buffer
        return
    path = Path(name)
    if path.exists() and not may_replace:
        raise UsageError(f"{path} exists; --force overwrites it")
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _by_kind(counts: dict[str, int]) -> str:
    found = [f"{kind} {count:,}" for kind, count in counts.items() if count]
    return f": {', '.join(found)}" if found else ""


# import -----------------------------------------------------------------------------------------------------------


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="an export; '-' is stdin")
    parser.add_argument(
        "--on-conflict",
        choices=("fail", "skip", "replace"),
        default="fail",
        help="what becomes of an id that is there with another content (fail)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only read the file and say whether it is whole")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON document at the end")


def _run_import(args: argparse.Namespace) -> int:
    with _read(args.file) as file:
        try:
            lines = Lines(file)
            if args.dry_run:
                return _checked(args, lines)
            return run_with_client(args, lambda client: _import(client, args, lines))
        except BadLine as error:
            say(f"{args.file}: {error}")
            return exits.FAILED


def _checked(args: argparse.Namespace, lines: Lines) -> int:
    records = sum(not line.record["data"].get("continues") for line in lines)
    if args.json:
        print_json({"records": records, "is_whole": lines.is_whole})
    else:
        say(f"{plural(records, 'record')}, nothing was imported")
    return _verdict(args, lines)


async def _import(client: Client, args: argparse.Namespace, lines: Lines) -> int:
    imported = skipped = 0
    try:
        with Progress(is_shown=not args.json) as progress:
            for batch in _batches(lines):
                reply = await _send(client, args, batch)
                imported += reply.imported
                skipped += reply.skipped
                progress.show("import", imported + skipped, lines.total)
    finally:
        if args.json:
            print_json({"imported": imported, "skipped": skipped, "is_whole": lines.is_whole})
        else:
            say(f"imported {plural(imported, 'record')}{f', skipped {skipped:,}' if skipped else ''}")
    return _verdict(args, lines)


def _verdict(args: argparse.Namespace, lines: Lines) -> int:
    if lines.is_whole:
        return exits.OK
    say(f"{args.file} has no end: it was cut off, and what was behind is missing")
    return exits.FAILED


async def _send(client: Client, args: argparse.Namespace, batch: list[Line]) -> Imported:
    """Import one batch, all or none. Raises BusError naming the line of the file."""
    body = {"records": [line.record for line in batch], "on_conflict": args.on_conflict}
    # One id for every attempt, so that a batch whose answer was lost is not imported twice.
    request_id = new_id()
    try:
        reply: Imported = await client.request("memory.import", body, timeout_s=_BATCH_S, id=request_id)
    except Rejected as error:
        if isinstance(error, Conflict) and args.on_conflict == "fail":
            say("--on-conflict skip leaves what is there, --on-conflict replace overwrites it")
        raise _at_line(error, batch) from error
    except (NoWorker, WorkerLost):
        # The service may just be starting again.
        await asyncio.sleep(_RETRY_S)
        reply = await client.request("memory.import", body, timeout_s=_BATCH_S, id=request_id)
    return reply


def _at_line(error: BusError, batch: list[Line]) -> BusError:
    """The error with the line of the file instead of the number in the batch."""
    details = dict(error.details)
    field = str(details.pop("field", ""))
    found = _RECORD.match(field)
    number = int(found[1]) if found is not None else details.pop("record", None)
    if not isinstance(number, int) or not 0 <= number < len(batch):
        return error
    details.pop("record", None)
    message = _BESIDE.sub("", error.message)
    named = {"field": field[found.end() :] if found is not None else field} if field else {}
    return type(error)(f"line {batch[number].number}: {message}", **named, **details)


def _batches(lines: Lines) -> Iterator[list[Line]]:
    batch: list[Line] = []
    size_bytes = 0
    for one in lines:
        if batch and (len(batch) == _BATCH_RECORDS or size_bytes + one.size_bytes > _BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(one)
        size_bytes += one.size_bytes
    if batch:
        yield batch


@contextmanager
def _read(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        if hosted() is not None:
            raise UsageError("'-' reads stdin, which is the keyboard of this chat: name the file")
        yield sys.stdin.buffer
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(name, "rb"))
        except OSError as error:
            raise UsageError(f"cannot read {name}: {error.strerror}") from error
        yield file


ACTIONS: Final = (
    Action(
        "export",
        "write everything as JSON Lines",
        _configure_export,
        _run_export,
        """
olympus memory export memory.jsonl
olympus memory export --ns user --kind fact | jq -c '.data // empty'
""",
    ),
    Action(
        "import",
        "take in an export; run again, it goes on where it broke off",
        _configure_import,
        _run_import,
        """
olympus memory import memory.jsonl
olympus memory import memory.jsonl --on-conflict skip
zcat memory.jsonl.gz | olympus memory import -
""",
    ),
)
