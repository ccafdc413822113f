"""What lies below a home: what a backup takes, in which order, and what it leaves out and why. Reads names, no content.

Databases come first, and that of learning before that of models: what one store says of another, or of a file, was
there when it said so, and the other is read later. What a running service makes in between is in the backup without
being mentioned anywhere, which does no harm; the other way round something would be missing.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bus.archive import Kind, is_name
from bus.settings import Settings
from bus.state import LOCK

# Archives that this program writes.
ARCHIVE_NAME: Final = re.compile(r"olympus-[a-z0-9-]+-\d{8}T\d{6}Z(-\d+)?\.tar\.gz")

_SQLITE_MAGIC: Final = b"SQLite format 3\x00"

# Written anew by each start, made anew from what is there, or about processes that run now; by first part of the path.
_TRANSIENT: Final = {
    "cache": "made anew",
    "conversions": "unfinished work",
    "locks": "about running processes",
    "metrics": "about running processes",
    "pulls": "unfinished downloads",
    "resources": "about running processes",
}
_WRITTEN_AT_START: Final = {"auth/local-admin", LOCK}

# Belongs to a database, which is copied as a whole.
_OF_DATABASE: Final = re.compile(r".*-(wal|shm|journal)")

# By name, wherever it lies. `meeting-`: of processes that find each other while a training runs.
_NOT_TAKEN: Final = (
    (re.compile(r"\..*"), "hidden, as what is half-written"),
    (re.compile(r".*\.(partial|part|new)"), "half-written"),
    (re.compile(r"meeting-.*|.*\.(pid|lock|queue|sock)"), "about running processes"),
    (re.compile(r".*\.v\d+-backup"), "a copy from before an upgrade"),
    (ARCHIVE_NAME, "a backup"),
)

_CHECKPOINT: Final = re.compile(r"(learning/jobs/[^/]+/checkpoints/step-\d+)/[^/]+")


class Item(NamedTuple):
    """A file to take: its name in the archive, where it lies now, and what it is."""

    name: str
    path: Path
    kind: Kind

    @property
    def group(self) -> str:
        """What it is of use with alone; itself for most."""
        found = _CHECKPOINT.fullmatch(self.name)
        return found[1] if found is not None else self.name


class Holdings(NamedTuple):
    """What is taken, in the order in which it has to be read; and names of what is not, with the reason."""

    items: list[Item]
    left_out: dict[str, str]


def holdings(settings: Settings, *, with_models: bool, with_keys: bool, config: Path | None = None) -> Holdings:
    """What there is below home now. config: the settings file in use, where it lies elsewhere.

    Raises OSError for a folder that cannot be read.
    """
    home = settings.home_path
    found: dict[str, Item] = {}
    left_out: dict[str, str] = {}
    models = _below(home, [settings.path(root) for root in settings.models.roots])
    memory = settings.path(settings.memory.path)
    beside_memory = {
        memory.with_name("vectors"): "made anew from the memory",
        memory.with_name("backups"): "backups of their own",
    }
    for path, name in _files(
        home, left_out, {**{home / part: why for part, why in _TRANSIENT.items()}, **beside_memory}
    ):
        is_model = any(name.startswith(f"{root}/") for root in models)
        if is_model and not with_models:
            root = next(root for root in models if name.startswith(f"{root}/"))
            left_out[f"{root}/"] = "models are large; --models takes them"
            continue
        kind = "model" if is_model else _kind(path, name)
        if kind == "keys" and not with_keys:
            left_out[name] = "--without-keys"
            continue
        found[name] = Item(name, path, kind)
    _add_elsewhere(settings, found)
    if config is not None and config.is_file() and "olympus.yaml" not in found:
        found["olympus.yaml"] = Item("olympus.yaml", config, "file")
    if memory_name := next((name for name, item in found.items() if item.path == memory), None):
        found[memory_name] = found[memory_name]._replace(kind="memory")
    for path in (settings.path(root) for root in settings.models.roots):
        if not path.is_relative_to(home) and path.is_dir():
            left_out[f"{path}/"] = "a folder of models outside of home: copy it by itself"
    return Holdings(sorted(found.values(), key=_order), left_out)


def _order(item: Item) -> tuple[int, str]:
    ranks = {"database": 1, "memory": 2, "checkpoint": 3, "log": 5, "keys": 4, "file": 4, "model": 6}
    return (0 if item.name == "learning.db" else ranks[item.kind]), item.name


def _add_elsewhere(settings: Settings, found: dict[str, Item]) -> None:
    """Databases that the settings put outside of home get the name they would have below it."""
    defaults = Settings()
    for path, name in (
        (settings.path(settings.memory.path), defaults.memory.path),
        (settings.path(settings.memory.path).with_name("hot.db"), "memory/hot.db"),
        (settings.path(settings.errors.path), defaults.errors.path),
        (settings.path(settings.errors.path).with_name("audit.db"), "errors/audit.db"),
    ):
        if path.is_file() and not path.is_relative_to(settings.home_path):
            found[name] = Item(name, path, "database")


def _below(home: Path, folders: list[Path]) -> list[str]:
    return [folder.relative_to(home).as_posix() for folder in folders if folder != home and folder.is_relative_to(home)]


def _files(home: Path, left_out: dict[str, str], not_entered: dict[Path, str]) -> Iterator[tuple[Path, str]]:
    """Regular files below home with their names there; links are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    folders = [home]
    while folders:
        folder = folders.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in sorted(os.listdir(folder)):
            path = folder / name
            relative = path.relative_to(home).as_posix()
            if relative in _WRITTEN_AT_START or _OF_DATABASE.fullmatch(name):
                continue
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                if path.is_symlink():
                    left_out[_shown(relative)] = "a link that leads nowhere"
                # Else it is gone meanwhile.
                continue
            why = not_entered.get(path) or _why_not_taken(relative, mode)
            if why:
                left_out[_shown(relative) + "/" * stat.S_ISDIR(mode)] = why
            elif stat.S_ISDIR(mode):
                folders.append(path)
            else:
                yield path, relative


def _why_not_taken(relative: str, mode: int) -> str:
    """The reason, "" for what is taken; of a file or folder by its name, of others because of what they are."""
    name = relative.rpartition("/")[2]
    found = next((why for pattern, why in _NOT_TAKEN if pattern.fullmatch(name)), "")
    if found or stat.S_ISDIR(mode):
        return found
    if not stat.S_ISREG(mode):
        return "no plain file"
    return "" if is_name(relative) else "an archive takes no such name"


def _shown(relative: str) -> str:
    return relative if is_name(relative) else ascii(relative)


def _kind(path: Path, name: str) -> Kind:
    if name.startswith(("keys/", "auth/")):
        return "keys"
    if name.startswith("broker/events/"):
        return "log"
    if _CHECKPOINT.fullmatch(name):
        return "checkpoint"
    return "database" if path.suffix == ".db" and _is_database(path) else "file"


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE_MAGIC))
    except FileNotFoundError:
        return False
    # One that was only just made is empty until its first commit.
    return head in (b"", _SQLITE_MAGIC)
