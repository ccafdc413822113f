"""Puts a backup in the place of a database that nobody serves, also of one that is damaged.

`python -m workers.memory.upkeep.offline PATH`; `olympus memory restore` runs it where no service answers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec

from bus import sqlite_copy
from bus.settings import EX_CONFIG, SettingsError, load_settings, parse_overrides
from bus.sqlite_lock import InUse, alone_with
from schemas.bodies.upkeep import Restored, UpkeepProgress
from schemas.errors import BusError, Conflict, Internal
from workers.memory.migrations import load_migrations, version_of
from workers.memory.sqlite_errors import UnusableDatabase, explain
from workers.memory.upkeep import staging
from workers.memory.upkeep.backup import first_damage, folder_beside, stamp, unused
from workers.memory.upkeep.reporting import Report
from workers.memory.upkeep.restore import chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Restore, say where what was there is kept (one line of JSON on stdout), and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.memory.upkeep.offline", description="Go back to a backup while no service runs."
    )
    parser.add_argument("path", metavar="PATH", help="a file of the backups folder, or an absolute path")
    parser.add_argument("--config", metavar="FILE", help="configuration file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting; may be repeated")
    args = parser.parse_args(argv)
    try:
        settings = load_settings(args.config, parse_overrides(args.set))
        restored = restore_offline(args.path, settings.path(settings.memory.path), _report)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EX_CONFIG
    except BusError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        return 1
    sys.stdout.write(f"{msgspec.json.encode(restored).decode()}\n")
    return 0


def restore_offline(path: str, present: Path, report: Report) -> Restored:
    """Put the backup that `path` names in the place of `present`, whatever state that is in, and keep that as it is.

    Raises Conflict while a service has it open, BadRequest, NotFound and Unprocessable for what is no backup of this
    memory, Internal from the disk.
    """
    folder = folder_beside(present)
    backup = chosen(path, folder, present)
    staged = folder / "restoring.partial"
    kept_as = unused(folder, f"before-restore-{stamp(time.time())}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_unused(present)
        try:
            staging.stage(backup, staged, load_migrations(), report)
            report("compare", 0, 0)
            staging.reconcile(staged, present if _can_be_compared(present, report) else None)
            chunks = _chunks(staged)
            staging.sync_staged(staged)
            with _locked(present):
                _exchange(staged, present, kept_as)
        finally:
            sqlite_copy.discard(staged)
    except sqlite3.Error as error:
        raise explain(error, staged) from error
    except OSError as error:
        raise Internal(f"{error.filename or folder} could not be written: {error.strerror}") from error
    return Restored(path=str(backup), kept_as=str(kept_as) if kept_as.exists() else "", chunks=chunks)


def _check_unused(present: Path) -> None:
    with _locked(present):
        return


@contextmanager
def _locked(present: Path) -> Iterator[None]:
    """Nobody else has the database open, and nobody opens it within the block. Raises Conflict."""
    with ExitStack() as stack:
        if present.exists():
            try:
                stack.enter_context(alone_with(present))
            except InUse as error:
                raise Conflict(
                    f"{present} is in use: restore through the service that has it open, or stop it first",
                    path=str(present),
                ) from error
        yield


def _can_be_compared(present: Path, report: Report) -> bool:
    """True for a sound database of our schema: its versions and vectors can then be taken into account."""
    if not present.exists():
        return False
    try:
        with closing(sqlite3.connect(present, isolation_level=None)) as connection:
            is_newest = version_of(connection, present) == load_migrations()[-1].number
            return is_newest and first_damage(connection, report) is None
    except (sqlite3.Error, UnusableDatabase):
        return False


def _chunks(staged: Path) -> int:
    with closing(sqlite3.connect(staged, isolation_level=None)) as connection:
        (chunks,) = connection.execute("SELECT count(*) FROM chunks").fetchone()
    return int(chunks)


def _exchange(staged: Path, present: Path, kept_as: Path) -> None:
    """At every moment there is a database at `present`: the old one until the new one takes its name."""
    log, index = (present.with_name(f"{present.name}{suffix}") for suffix in ("-wal", "-shm"))
    if present.exists():
        _link_or_copy(present, kept_as)
        if log.exists():
            # What the old database wrote last; it must not be read into the new one.
            log.replace(kept_as.with_name(f"{kept_as.name}-wal"))
        index.unlink(missing_ok=True)
        sqlite_copy.sync_folder(kept_as.parent)
    staged.replace(present)
    sqlite_copy.sync_folder(present.parent)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # A file system without hard links.
        shutil.copy2(source, target)
        sqlite_copy.sync(target)


def _report(stage: str, done: int, total: int) -> None:
    """One line of JSON on stderr, which `olympus memory restore` makes a bar of."""
    progress = UpkeepProgress(stage=stage, done=done, total=total)
    sys.stderr.write(f"{msgspec.json.encode(progress).decode()}\n")


if __name__ == "__main__":
    sys.exit(main())
