"""Puts the home that an archive holds into a folder: beside it first, checked whole, then in its place by a rename.

Until that rename nothing at the place has changed; what was there keeps lying beside it under another name.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from bus import moved_paths, state
from bus.archive import Archive, Entry, Head, stamp
from bus.scratch import scratch
from bus.sqlite_copy import sync, sync_folder
from bus.sqlite_lock import InUse, alone_with
from bus.state import LOCK, UnusableHome

# Begins the name of the folder in which a home is put together; it lies beside its place.
_STAGING: Final = ".olympus-restore-"

# Left free on the disk: a service that starts there has to write, too.
_SPARE_BYTES: Final = 64 * 1024 * 1024

# Has the vectors of a memory made anew; a module of the memory service, which is not imported here.
_WITHOUT_VECTORS: Final = "workers.memory.upkeep.without_vectors"

# Databases with paths of files below home.
_WITH_PATHS: Final = ("models.db", "learning.db")

# Told what is being done, and how much of how much.
Report = Callable[[str, int, int], None]


class RestoreRefused(Exception):
    """Nothing was restored and nothing has changed; the message says why and what to do."""


class Restored(NamedTuple):
    """kept_as: where lies what was there before, None where nothing was."""

    head: Head
    files: int
    content_bytes: int
    kept_as: Path | None


def check(file: BinaryIO, report: Report) -> Restored:
    """Read a whole archive and compare every checksum. Raises BadArchive, OSError."""
    archive = Archive(file, newest_state=state.FORMAT)
    total = archive.total_bytes
    sums = archive.read(_Nowhere(), lambda name, done: report("check", done, total))
    return Restored(archive.head, len(sums.files), sum(one.size_bytes for one in sums.files.values()), None)


def restore(file: BinaryIO, home: Path, *, may_replace: bool, report: Report) -> Restored:
    """Make `home` what the archive says.

    Raises BadArchive, RestoreRefused, UnusableHome while somebody serves from it, OSError; then nothing has changed.
    """
    place = home.resolve()
    _check_place(place, may_replace)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        archive = Archive(file, newest_state=state.FORMAT)
        _check_room(place.parent, archive.total_bytes)
        with scratch(place.parent, _STAGING) as aside:
            staged = aside / "home"
            staged.mkdir(mode=0o700)
            total = archive.total_bytes
            sums = archive.read(_Folder(staged), lambda name, done: report("restore", done, total))
            report("adapt", 0, 0)
            _adapt(staged, archive.head, home)
            _sync_all(staged)
            kept_as = _exchange(staged, place)
    return Restored(archive.head, len(sums.files), sum(one.size_bytes for one in sums.files.values()), kept_as)


# Before ---------------------------------------------------------------------------------------------------------------


def _check_place(place: Path, may_replace: bool) -> None:
    if place.exists() and not place.is_dir():
        raise RestoreRefused(f"{place} is no folder")
    if os.path.ismount(place):
        raise RestoreRefused(
            f"{place} is where a disk is mounted, which cannot be replaced by a rename: restore into a folder below it"
            " (--into), and set OLYMPUS_HOME to that"
        )
    if not may_replace and not _is_empty(place):
        raise RestoreRefused(
            f"{place} holds a home already: --replace puts this one in its place and keeps that beside it, --into FOLDER"
            " restores elsewhere"
        )


def _is_empty(place: Path) -> bool:
    return not place.exists() or not set(os.listdir(place)) - {LOCK}


def _check_room(folder: Path, wanted_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted_bytes + _SPARE_BYTES > free:
        raise RestoreRefused(
            f"{folder} has {free:,} bytes free, the backup takes {wanted_bytes:,} and {_SPARE_BYTES:,} are to be left"
        )


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Nobody serves from there: by the lock of the home, and by those of its databases where an older program does."""
    with ExitStack() as stack:
        stack.enter_context(state.alone(place))
        for path in sorted(path for path in place.rglob("*.db") if path.is_file()):
            try:
                stack.enter_context(alone_with(path))
            except InUse as error:
                raise UnusableHome(f"{path} is open in another program: stop Olympus there first") from error
        yield


# Between --------------------------------------------------------------------------------------------------------------


class _Nowhere:
    """For a check: what is read goes nowhere."""

    def open(self, entry: Entry) -> BinaryIO:
        return open(os.devnull, "wb")


class _Folder:
    """Files below a folder that nobody else writes to, for this user alone."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, entry: Entry) -> BinaryIO:
        path = self._root / entry.name
        for folder in reversed(path.relative_to(self._root).parents):
            (self._root / folder).mkdir(exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        return open(descriptor, "wb")


def _adapt(staged: Path, head: Head, home: Path) -> None:
    """What has to change because home lies elsewhere, and because vectors are not in the archive."""
    for entry in head.files:
        path = staged / entry.name
        if entry.kind == "memory" and path.exists():
            _order_vectors(path)
        if entry.name in _WITH_PATHS and entry.kind == "database" and path.exists() and head.home != str(home):
            try:
                moved_paths.follow(path, head.home, str(home))
            except sqlite3.Error as error:
                raise RestoreRefused(
                    f"{entry.name} of the backup cannot be used: {error}; nothing was changed"
                ) from error


def _sync_all(staged: Path) -> None:
    for folder, _, names in os.walk(staged, topdown=False):
        for name in names:
            sync(Path(folder, name))
        sync_folder(Path(folder))


def _order_vectors(path: Path) -> None:
    command = [sys.executable, "-P", "-m", _WITHOUT_VECTORS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"it left with status {done.returncode}"]
        raise RestoreRefused(f"the memory of the backup cannot be used: {why[0]}; nothing was changed")


# After ----------------------------------------------------------------------------------------------------------------


def _exchange(staged: Path, place: Path) -> Path | None:
    """Give the new home its name; returns the name of the old one."""
    kept_as: Path | None = None
    if place.exists() and not _is_empty(place):
        kept_as = _unused(place)
        place.rename(kept_as)
    elif place.exists():
        (place / LOCK).unlink(missing_ok=True)
        place.rmdir()
    try:
        staged.rename(place)
    except OSError:
        if kept_as is not None:
            kept_as.rename(place)
        raise
    sync_folder(place.parent)
    return kept_as


def _unused(place: Path) -> Path:
    stem = f"{place.name}.before-restore-{stamp(time.time())}"
    path, number = place.with_name(stem), 1
    while path.exists():
        number += 1
        path = place.with_name(f"{stem}-{number}")
    return path
