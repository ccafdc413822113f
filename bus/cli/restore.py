"""`olympus restore`: puts the home that a backup holds into its place, or only checks the backup."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bus.archive import BadArchive
from bus.cli import exits
from bus.cli.arguments import settings_from
from bus.cli.failures import UsageError, say
from bus.cli.output import duration, plural, print_json, printable, size, write_line
from bus.cli.progress import Progress
from bus.restore import Report, Restored, RestoreRefused, check, restore

HELP = "put a backup of everything in its place"

_EPILOG = """\
Nothing may serve from that home meanwhile. Everything is unpacked and checked beside it first; what is no whole backup
is refused, and then nothing has changed. Vectors are not in a backup: the memory makes them anew, in the background,
from its first start on (docs/backup.md).

examples:
  olympus restore --check olympus.tar.gz
  olympus restore olympus.tar.gz
  olympus restore olympus.tar.gz --replace
  olympus restore olympus.tar.gz --into /srv/olympus
  age -d olympus.tar.gz.age | olympus restore -
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments and examples."""
    parser.add_argument("file", metavar="FILE", help="a backup; - is stdin")
    parser.add_argument("--check", action="store_true", help="only read it all and compare every checksum")
    parser.add_argument("--into", metavar="HOME", help="the folder to put it (the home that the settings name)")
    parser.add_argument("--replace", action="store_true", help="also where a home is; that is kept beside it")
    parser.add_argument("--json", action="store_true", help="print what was done as one JSON document")
    parser.epilog = _EPILOG


def run(args: argparse.Namespace) -> int:
    """Restore, or check."""
    if args.check and (args.into or args.replace):
        raise UsageError("--check changes nothing, so --into and --replace mean nothing with it")
    home = Path(args.into).expanduser().absolute() if args.into else settings_from(args).home_path
    began_at = time.monotonic()
    try:
        with _opened(args.file) as file, Progress(is_shown=not args.json) as progress:
            report = _reporter(progress)
            if args.check:
                restored = check(file, report)
            else:
                restored = restore(file, home, may_replace=args.replace, report=report)
    except BadArchive as error:
        say(f"{args.file} cannot be restored: {printable(str(error))}. Nothing was changed")
        return exits.FAILED
    except RestoreRefused as error:
        say(printable(str(error)))
        return exits.FAILED
    except OSError as error:
        named = f" ({error.filename})" if error.filename else ""
        say(f"nothing was restored: {error.strerror or error}{named}")
        return exits.FAILED
    _show(args, restored, home, time.monotonic() - began_at)
    return exits.OK


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")  # noqa: SIM115 - closed below, but what opening raises is another error
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error
    with file:
        yield file


def _reporter(progress: Progress) -> Report:
    began_at = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        passed_s = time.monotonic() - began_at
        rate = done / passed_s if passed_s > 0 else None
        progress.show(what, done, total, passed_s * (total - done) / done if done else None, bytes_per_s=rate)

    return report


def _show(args: argparse.Namespace, restored: Restored, home: Path, took_s: float) -> None:
    head = restored.head
    if args.json:
        print_json(
            {
                "home": None if args.check else str(home),
                "kept_as": str(restored.kept_as) if restored.kept_as is not None else None,
                "files": restored.files,
                "content_bytes": restored.content_bytes,
                "machine": head.machine,
                "version": head.version,
                "created_at": head.created_at,
                "left_out": head.left_out,
                "took_s": round(took_s, 3),
            },
            indent=2,
        )
        return
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(head.created_at))
    what = "whole" if args.check else f"restored to {home}"
    write_line(f"{what}: {plural(restored.files, 'file')}, {size(restored.content_bytes)}")
    write_line(printable(f"made {made} by Olympus {head.version} on {head.machine}, home {head.home}"))
    for name, why in sorted(head.left_out.items()):
        write_line(printable(f"  not in it: {name} ({why})"))
    if restored.kept_as is not None:
        write_line(f"what was there is kept as {restored.kept_as}; remove it when it is not needed")
    if not args.check:
        say(f"took {duration(took_s)}; now start it again: olympus up")
