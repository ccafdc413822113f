"""The command line of the migration scripts: arguments, the passes in their order, and what is told at the end."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bus.cli.arguments import settings_from
from bus.settings import Settings, SettingsError
from bus.sync import SyncClient
from migrate_parts.moving import Mover, Report, Store
from migrate_parts.stores import UnusableStore
from schemas.errors import BusError

# Rejects that are printed; all of them are in the file.
_SHOWN: Final = 20

# Seconds for the broker to answer: it runs, or it does not.
_CONNECT_S: Final = 5.0

EXIT_CODES: Final = """exit codes: 0 all rows are moved and agree (or could be, in a dry run), 1 the bus or a store failed,
2 wrong arguments, 3 some rows were rejected or differ"""

# What `stores_of` is given: the arguments, with `source`, and the settings.
StoresOf = Callable[[argparse.Namespace, Settings], list[Store]]


def main(
    name: str,
    description: str,
    stores_of: StoresOf,
    argv: Sequence[str] | None,
    *,
    options: Callable[[argparse.ArgumentParser], None] | None = None,
    beside: Callable[[argparse.Namespace, Settings], Iterable[str]] | None = None,
    notes: Callable[[argparse.Namespace, Settings], Iterable[str]] | None = None,
) -> int:
    """Run one migration from the command line and return its exit code.

    options: adds arguments of its own. beside: what is done beside rows, after them and not in a dry run; yields lines.
    notes: lines that are told in any case, of what only a person can move.
    """
    parser = _parser(description)
    if options is not None:
        options(parser)
    args = parser.parse_args(argv)
    if not args.source.exists():
        parser.error(f"{args.source} does not exist")
    try:
        settings = settings_from(args)
    except SettingsError as error:
        parser.error(str(error))
    try:
        stores = stores_of(args, settings)
    except UnusableStore as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    folder = settings.path("migrations")
    mover = Mover(
        stores,
        folder / f"{name}.json",
        max_body_bytes=settings.bus.max_body_bytes,
        is_replacing=args.replace,
        is_again=args.again,
        is_quiet=args.json,
    )
    began_at = time.monotonic()
    status = _run(name, mover, settings, args) if stores else 0
    lines = [] if notes is None else list(notes(args, settings))
    if beside is not None and not args.dry_run and not args.verify_only:
        lines += beside(args, settings)
    if not stores and not lines:
        print(f"{name}: {args.source} holds none of the old stores", file=sys.stderr)
        return 1
    with contextlib.suppress(BrokenPipeError):
        _tell(mover.report, args, folder / f"{name}-rejects.jsonl", time.monotonic() - began_at, lines)
    if status == 0 and (mover.report.rejects or mover.report.differs):
        status = 3
    return 1 if mover.report.unreadable else status


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, help="root folder of the old project, or one of its stores; never written to"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would become of every row")
    parser.add_argument("--verify-only", action="store_true", help="only compare what was moved with what is there")
    parser.add_argument("--again", action="store_true", help="go through rows that an earlier run moved, too")
    parser.add_argument(
        "--replace", action="store_true", help="as --again, and write over records that are there and differ"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON document")
    parser.add_argument("--config", metavar="FILE", help="settings file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a setting")
    return parser


def _run(name: str, mover: Mover, settings: Settings, args: argparse.Namespace) -> int:
    if args.dry_run:
        mover.dry_run()
        return 0
    try:
        with SyncClient(settings, name=name) as client:
            client.connect(_CONNECT_S)
            if not args.verify_only:
                mover.move(client)
            mover.verify(client)
    except (BusError, ConnectionError) as error:
        print(f"{name}: {error}; what was moved is kept, run it again to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: cut off; what was moved is kept, run it again to go on", file=sys.stderr)
        return 1
    return 0


def _tell(report: Report, args: argparse.Namespace, rejects: Path, took_s: float, lines: Sequence[str]) -> None:
    lost = [*report.rejects, *report.differs]
    if lost:
        rejects.parent.mkdir(parents=True, exist_ok=True)
        # Keys and reasons may hold halves of characters.
        rejects.write_text("".join(json.dumps(reject._asdict()) + "\n" for reject in lost))
    if args.json:
        print(json.dumps({**report.as_json(), "notes": list(lines)}))
        return
    for line in _lines(report, is_dry=args.dry_run):
        print(line)
    for reject in lost[:_SHOWN]:
        print(f"  {_plain(reject.store)} {reject.table} {_plain(reject.key)}: {_plain(reject.reason)}")
    if lost:
        print(f"{len(lost)} listed in {rejects}")
    for line in lines:
        print(line)
    print(f"{took_s:.1f} s")


def _plain(text: str) -> str:
    """On one line, and printable anywhere."""
    return "".join(char if char.isprintable() else "?" for char in text)[:300]


def _lines(report: Report, *, is_dry: bool) -> Iterator[str]:
    yield from (f"cannot be read: {line}" for line in report.unreadable)
    rejected = Counter(f"{reject.store}:{reject.table}" for reject in report.rejects)
    differs = Counter(f"{reject.store}:{reject.table}" for reject in report.differs)
    for place in sorted({*report.read, *report.agrees, *rejected, *differs}):
        told = [
            (report.read[place], "rows"),
            (report.written[place], "written"),
            (report.there[place], "there already"),
            (rejected[place], "rejected"),
            (differs[place], "differ"),
        ]
        parts = [f"{count:,} {what}" for count, what in told if count]
        if is_dry:
            parts.insert(1, f"{report.read[place] - rejected[place]:,} can be moved")
        else:
            parts.append(f"{report.agrees[place]:,} agree on both sides")
        yield f"{place}: {', '.join(parts)}"
