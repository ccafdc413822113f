"""Finds what may be models below a folder: GGUF files, their parts together, and folders of safetensors. Opens nothing.

Hidden files and folders are passed over, links to folders not entered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

# A part of a GGUF model split over several files, as llama.cpp names them: NAME-00001-of-00003.gguf.
PART: Final = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)

# Parts at most. The largest public models have under 100; the names are made up from this number.
MAX_PARTS: Final = 1_000

INDEX: Final = "model.safetensors.index.json"
# Folders below a root that are entered, one in the other. The hub's cache has four; more is no place for models.
MAX_DEPTH: Final = 32

_CONFIG: Final = "config.json"
_ADAPTER_CONFIG: Final = "adapter_config.json"

# Weights that are pickles: to read them runs whatever code is in them.
_PICKLE: Final = re.compile(r"(pytorch_model|model|consolidated)[^/]*\.(bin|pt|pth|pkl)", re.DOTALL)

# What belongs to a safetensors model: weights, configuration, tokenizer, templates, license. No code, no pickles.
_PART_OF_FOLDER: Final = (".safetensors", ".json", ".jinja", ".model", ".txt", ".md")
_NAMES_OF_FOLDER: Final = ("LICENSE", "NOTICE", "README")

# Names of folders that only say how a model is kept; the folder around them says which one it is.
_NAMES_OF_FORMATS: Final = ("hf", "safetensors")

# A folder of the hub's own cache: models--OWNER--NAME/snapshots/COMMIT.
_SNAPSHOT: Final = re.compile(r"[0-9a-f]{40}")


class Stamp(NamedTuple):
    """What shows that a file's content changed."""

    size: int
    mtime_ns: int
    inode: int


class FoundFile(NamedTuple):
    """A file. stamp: None where the file cannot be looked at."""

    path: Path
    stamp: Stamp | None


class Found(NamedTuple):
    """What may be a model.

    path: the file (of a split model the first part) or the folder. files: everything that belongs to it, the weights of
    a folder included. missing: parts of a split model that are not there. pickles: weights of a folder that nobody reads.
    """

    format: Literal["gguf", "safetensors"]
    name: str
    root: Path
    path: Path
    files: tuple[FoundFile, ...]
    missing: tuple[str, ...] = ()
    pickles: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(file.stamp.size for file in self.files if file.stamp is not None)


def stamp_of(path: Path) -> Stamp | None:
    """The file's stamp; None where it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def found_below(root: Path) -> Iterator[Found]:
    """Everything below `root` that may be a model, in a stable order. Blocks on the disk."""
    yield from _below(root, root, MAX_DEPTH, is_inside=False)


def found_at(path: Path) -> Found | None:
    """What `path` itself is: a GGUF file (the first part of several) or a folder of safetensors; None for neither."""
    if path.is_dir():
        names = sorted(os.listdir(path))
        return _folder(path, path, names) if _is_folder(names) else None
    return next((one for one in _ggufs(path.parent, path.parent, _beside(path)) if one.path == path), None)


def _beside(path: Path) -> list[str]:
    """The names of `path` and, where it is a part, of the other parts."""
    part = PART.fullmatch(path.name)
    if part is None:
        return [path.name]
    start = f"{part['name']}-"
    return sorted(name for name in os.listdir(path.parent) if name.startswith(start) and PART.fullmatch(name))


def _below(root: Path, folder: Path, depth: int, *, is_inside: bool) -> Iterator[Found]:
    """`depth` folders further down at most. `is_inside` a folder of safetensors, whose subfolders hold parts of that model and no other ones."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda one: one.name)
            folders = [entry.name for entry in listed if entry.is_dir(follow_symlinks=False)]
            names = [entry.name for entry in listed if not entry.is_dir(follow_symlinks=False)]
    except OSError:
        # A folder that is not there yet, or may not be read, holds no model.
        return
    yield from _ggufs(root, folder, names)
    is_model = _is_folder(names) and not is_inside
    if is_model:
        yield _folder(root, folder, names)
    for name in folders if depth else ():
        yield from _below(root, folder / name, depth - 1, is_inside=is_inside or is_model)


def _ggufs(root: Path, folder: Path, names: list[str]) -> Iterator[Found]:
    parts: dict[tuple[str, str], set[str]] = {}
    for name in names:
        if not name.endswith(".gguf"):
            continue
        part = PART.fullmatch(name)
        if part is not None and 1 <= int(part["count"]) <= MAX_PARTS:
            parts.setdefault((part["name"], part["count"]), set()).add(name)
        else:
            path = folder / name
            yield Found("gguf", path.stem, root, path, (FoundFile(path, stamp_of(path)),))
    for (stem, count), there in sorted(parts.items()):
        wanted = [f"{stem}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1)]
        files = tuple(FoundFile(folder / name, stamp_of(folder / name)) for name in wanted if name in there)
        missing = tuple(name for name in wanted if name not in there)
        yield Found("gguf", stem, root, folder / wanted[0], files, missing)


def _is_folder(names: list[str]) -> bool:
    there = set(names)
    if _ADAPTER_CONFIG in there:
        return False
    has_weights = "model.safetensors" in there or INDEX in there
    if _CONFIG not in there:
        return has_weights
    return has_weights or any(name.endswith(".safetensors") or _PICKLE.fullmatch(name) for name in names)


def _folder(root: Path, folder: Path, names: list[str]) -> Found:
    files = tuple(FoundFile(folder / name, stamp_of(folder / name)) for name in names if belongs_to_folder(name))
    pickles = tuple(name for name in names if _PICKLE.fullmatch(name))
    return Found("safetensors", _folder_name(folder), root, folder, files, (), pickles)


def belongs_to_folder(name: str) -> bool:
    """True for the names of files that a safetensors model is made of."""
    return name.endswith(_PART_OF_FOLDER) or name.startswith(_NAMES_OF_FOLDER)


def _folder_name(folder: Path) -> str:
    owner = folder.parent.parent.name
    if folder.parent.name == "snapshots" and owner.startswith("models--") and _SNAPSHOT.fullmatch(folder.name):
        return owner.rpartition("--")[2]
    if folder.name in _NAMES_OF_FORMATS:
        return f"{folder.parent.name}-{folder.name}"
    return folder.name
