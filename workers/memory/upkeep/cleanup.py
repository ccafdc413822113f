"""Deletes old files in Olympus' own folders for temporary files, logs and caches, and nowhere else.

Follows no link: folders are opened one below the other by descriptor, so that a name exchanged meanwhile leads nowhere.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from schemas.bodies.upkeep import CleanedSystem, CleanedUp, Cleanup, CleanupTarget
from workers.memory.clock import Now

DAY_S: Final = 86_400.0

# Errors named in a reply, at most.
_ERRORS_MAX: Final = 100


class _Place(NamedTuple):
    """A folder below home, the age from which its files go, and a folder in it that stays."""

    folder: str
    age_s: float
    kept: str | None = None


# The ages are those that the agent before this service had. The encoder's weights are read again at every start, which
# does not show in their times, and they would have to be downloaded anew.
PLACES: Final[dict[CleanupTarget, _Place]] = {
    "temp": _Place("tmp", DAY_S),
    "logs": _Place("logs", 7 * DAY_S),
    "cache": _Place("cache", DAY_S, kept="encoder"),
}


class Cleaner:
    """Cleans the folders below one home."""

    def __init__(self, home: Path, now: Now) -> None:
        self._home = home
        self._now = now

    async def clean(self, target: CleanupTarget, request: Cleanup) -> CleanedUp:
        """Delete what is old in one folder; a file that cannot be deleted is named in `errors`."""
        return await asyncio.to_thread(clean, self._home, PLACES[target], request, self._now())

    async def clean_all(self, request: Cleanup) -> CleanedSystem:
        """Delete what is old in all three."""
        return CleanedSystem(
            temp_files=await self.clean("temp", request),
            logs=await self.clean("logs", request),
            cache=await self.clean("cache", request),
        )


def clean(home: Path, place: _Place, request: Cleanup, now: float) -> CleanedUp:
    """Delete the files of a place that have not been written for its age, and the folders that were empty as long."""
    top = home / place.folder
    age_s = place.age_s if request.older_than_s is None else request.older_than_s
    sweep = _Sweep(before=now - age_s, is_dry=request.dry_run, kept=top / place.kept if place.kept else None)
    if top.is_symlink():
        sweep.errors.append(f"{top} is a link and was left alone")
    elif top.is_dir():
        sweep.run(top)
    return CleanedUp(files_removed=sweep.files, bytes_freed=sweep.freed_bytes, errors=sweep.errors[:_ERRORS_MAX])


class _Sweep:
    """One pass over one folder."""

    def __init__(self, *, before: float, is_dry: bool, kept: Path | None) -> None:
        self._before = before
        self._is_dry = is_dry
        self._kept = kept
        self.files = 0
        self.freed_bytes = 0
        self.errors: list[str] = []

    def run(self, top: Path) -> None:
        """Go through the folder, the deepest first."""
        for folder, folders, files, descriptor in self._walk(top):
            for name in files:
                self._remove(folder, name, descriptor)
            if not self._is_dry:
                for name in folders:
                    self._remove_if_empty(name, descriptor)

    def _walk(self, top: Path) -> Iterator[tuple[Path, list[str], list[str], int]]:
        walk = os.fwalk(top, topdown=False, onerror=lambda error: self.errors.append(_told(error)))
        for folder, folders, files, descriptor in walk:
            path = Path(folder)
            if self._kept is None or not path.is_relative_to(self._kept):
                yield path, folders, files, descriptor

    def _remove(self, folder: Path, name: str, descriptor: int) -> None:
        try:
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if found.st_mtime > self._before:
                return
            if not self._is_dry:
                os.unlink(name, dir_fd=descriptor)
        except FileNotFoundError:
            return
        except OSError as error:
            self.errors.append(f"{folder / name}: {error.strerror}")
            return
        self.files += 1
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            self.freed_bytes += found.st_size

    def _remove_if_empty(self, name: str, descriptor: int) -> None:
        """A folder that something was written into lately stays: somebody may be about to fill it."""
        try:
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode) and found.st_mtime <= self._before:
                os.rmdir(name, dir_fd=descriptor)
        except OSError:
            # It is not empty, or gone already: nothing to report, no file was left behind.
            return


def _told(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}"
