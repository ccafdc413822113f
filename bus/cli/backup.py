"""`olympus backup`: everything that home holds as one archive, while it serves."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from bus import sqlite_copy
from bus.archive import stamp
from bus.backup import BackupFailed, Made, back_up, machine_of
from bus.cli import exits
from bus.cli.arguments import settings_from
from bus.cli.failures import UsageError, say
from bus.cli.output import plural, print_json, size, write_line
from bus.cli.progress import Progress
from bus.holdings import ARCHIVE_NAME
from bus.scratch import scratch
from bus.settings import Settings, settings_file

HELP = "back up everything that home holds, while it serves"

_EPILOG = """\
FILE is one tar file, compressed with gzip, for its owner alone (mode 0600): it holds private keys. In a FOLDER it gets
a name of its own, olympus-MACHINE-TIME.tar.gz. It appears when it is whole and on disk. `olympus restore --check FILE`
reads it again (docs/backup.md).

examples:
  olympus backup
  olympus backup /mnt/usb --keep 7
  olympus backup --models before-the-move.tar.gz
  olympus backup --json | jq .path
  olympus backup - | age -r age1... > olympus.tar.gz.age
"""

# Begins the name of the folder in which an archive grows, beside its target.
_SCRATCH: Final = ".olympus-backup-"

_PARTIAL: Final = "archive.partial"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments and examples."""
    parser.add_argument(
        "target", nargs="?", default=".", metavar="FILE|FOLDER", help="where to; - is stdout (the current folder)"
    )
    parser.add_argument("--models", action="store_true", help="take the model folders below home too, which are large")
    parser.add_argument("--without-keys", action="store_true", help="leave out private keys and the sign-in")
    parser.add_argument(
        "--keep", type=_count, metavar="N", help="of this machine's backups in FOLDER keep the newest N"
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    parser.add_argument("--json", action="store_true", help="print what was done as one JSON document")
    parser.epilog = _EPILOG


def run(args: argparse.Namespace) -> int:
    """Make one."""
    settings = settings_from(args)
    try:
        if args.target == "-":
            return _to_stdout(args, settings)
        return _to_file(args, settings)
    except BackupFailed as error:
        say(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        named = f" ({error.filename})" if error.filename else ""
        say(f"no backup was made: {error.strerror or error}{named}; nothing was left behind")
    return exits.FAILED


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _to_stdout(args: argparse.Namespace, settings: Settings) -> int:
    if sys.stdout.isatty():
        raise UsageError("an archive would go to this terminal: send it to a file or a program")
    if args.json or args.keep:
        raise UsageError("--json and --keep go with a FILE or a FOLDER")
    with scratch(Path(tempfile.gettempdir()), _SCRATCH) as folder:
        made = _made(args, settings, sys.stdout.buffer, folder)
    sys.stdout.buffer.flush()
    _say_made(made)
    return exits.OK


def _to_file(args: argparse.Namespace, settings: Settings) -> int:
    target = Path(args.target).expanduser().absolute()
    is_folder = target.is_dir() or args.target.endswith("/")
    if args.keep and not is_folder:
        raise UsageError("--keep N goes with a FOLDER")
    if not is_folder and target.exists() and not args.force:
        raise UsageError(f"{target} exists; --force overwrites it")
    folder = target if is_folder else target.parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    began_at = time.time()
    with scratch(folder, _SCRATCH) as aside:
        partial = aside / _PARTIAL
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            made = _made(args, settings, file, aside)
        stem = f"olympus-{machine_of(settings)}-{stamp(began_at)}" if is_folder else None
        target = _placed(partial, target, stem, may_replace=args.force)
    pruned = _prune(target, machine_of(settings), args.keep) if args.keep else []
    _show(args, target, made, pruned, time.time() - began_at)
    return exits.OK


def _made(args: argparse.Namespace, settings: Settings, file: BinaryIO, aside: Path) -> Made:
    with Progress(is_shown=not args.json) as progress:
        stage_began: dict[str, float] = {}

        def report(what: str, done: int, total: int) -> None:
            passed_s = time.monotonic() - stage_began.setdefault(what, time.monotonic())
            rate = done / passed_s if passed_s > 0 and what == "pack" else None
            eta_s = passed_s * (total - done) / done if done and total else None
            progress.show(what, done, total, eta_s, bytes_per_s=rate)

        return back_up(
            settings,
            file,
            aside,
            with_models=args.models,
            with_keys=not args.without_keys,
            config=settings_file(args.config),
            report=report,
        )


def _placed(partial: Path, target: Path, stem: str | None, *, may_replace: bool) -> Path:
    """Give the whole archive its name: `target`, or in that folder `stem`, with a number where that is taken."""
    if stem is None:
        sqlite_copy.finish(partial, target, may_replace=may_replace)
        return target
    for number in itertools.count(1):
        path = target / (f"{stem}.tar.gz" if number == 1 else f"{stem}-{number}.tar.gz")
        with suppress(FileExistsError):
            sqlite_copy.finish(partial, path, may_replace=False)
            return path
    raise AssertionError("there is always a number that is free")


def _prune(made: Path, machine: str, kept: int) -> list[str]:
    """Remove this machine's older backups beside `made`, by their names, which sort by time; never `made` itself.

    Where the clock was set back, its name is not the newest.
    """
    start = f"olympus-{machine}-"
    found = [
        path
        for path in made.parent.iterdir()
        if path != made
        and ARCHIVE_NAME.fullmatch(path.name)
        and path.name.startswith(start)
        and path.name[len(start) :][:8].isdecimal()
    ]
    # Of one second the first has no number.
    found.sort(key=lambda path: (path.name[len(start) :][:16], len(path.name), path.name))
    older = found[: max(0, len(found) - kept + 1)]
    for path in older:
        path.unlink(missing_ok=True)
    return [path.name for path in older]


def _show(args: argparse.Namespace, target: Path, made: Made, pruned: list[str], took_s: float) -> None:
    if args.json:
        print_json(
            {
                "path": str(target),
                "size_bytes": target.stat().st_size,
                "files": made.files,
                "content_bytes": made.content_bytes,
                "took_s": round(took_s, 3),
                "gone": made.gone,
                "left_out": made.left_out,
                "pruned": pruned,
            },
            indent=2,
        )
        return
    write_line(str(target))
    _say_made(made)
    say(f"{size(target.stat().st_size)} in {took_s:.1f} s")
    if pruned:
        say(f"removed {plural(len(pruned), 'older backup')}")


def _say_made(made: Made) -> None:
    say(f"{plural(made.files, 'file')}, {size(made.content_bytes)}")
    for name, why in sorted(made.left_out.items()):
        say(f"  left out: {name} ({why})")
    for name in made.gone:
        say(f"  gone meanwhile: {name}")
