"""Which models this installation has: the GGUF files under its model roots, read without loading weights."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from schemas.bodies.model import ModelInfo
from schemas.errors import NotFound
from workers.models.gguf_header import GgufHeader, UnusableFile, read_header

# The demo model ships inside the package, so that a first start needs no download.
SHIPPED_ROOT: Final = Path(__file__).parent / "demo"

# The same pattern as schemas.bodies.model.ModelName, less the slash: a name comes from one file name here.
_NAME: Final = re.compile(r"[A-Za-z0-9._:+-]{1,128}", re.ASCII)

_Stamp = tuple[int, int, int]


class Catalogue:
    """The models under `roots`, first root first.

    A file's name without ".gguf" is the model's name. The first file of a name wins; later ones, and files that are no
    usable model, are listed with state "unusable" and the reason, so that nobody searches for a model that vanished.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = list(roots)
        self._entries: list[ModelInfo] = []
        self._usable: dict[str, ModelInfo] = {}
        self._read: dict[Path, tuple[_Stamp, ModelInfo]] = {}

    def scan(self) -> None:
        """Read the roots again. Files whose size, time and inode are unchanged are not opened. Blocks on the disk."""
        entries: list[ModelInfo] = []
        by_name: dict[str, ModelInfo] = {}
        read: dict[Path, tuple[_Stamp, ModelInfo]] = {}
        for root in self._roots:
            for path in _files(root):
                entry = self._entry(root, path, read)
                if entry is None:
                    continue
                first = by_name.setdefault(entry.name, entry)
                if first is not entry:
                    entry = _unusable(path, f"hidden by {first.path}, which has the same name in an earlier place")
                entries.append(entry)
        self._entries, self._read = entries, read
        self._usable = by_name

    def entries(self) -> list[ModelInfo]:
        """Everything found by the last scan, in order of roots and paths."""
        return list(self._entries)

    def find(self, name: str) -> ModelInfo:
        """The entry called `name`; raises NotFound naming the nearest ones."""
        entry = self._usable.get(name)
        if entry is not None:
            return entry
        nearest = difflib.get_close_matches(name, sorted(self._usable), n=3, cutoff=0.4)
        known = nearest or sorted(self._usable)[:3]
        hint = f", nearest: {', '.join(known)}" if known else ", there is no model at all in the model roots"
        raise NotFound(f"there is no model {name!r}{hint}", model=name, nearest=known)

    def _entry(self, root: Path, path: Path, read: dict[Path, tuple[_Stamp, ModelInfo]]) -> ModelInfo | None:
        try:
            stat = path.stat()
            stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            known = self._read.get(path)
            if known is not None and known[0] == stamp:
                read[path] = known
                return known[1]
            entry = _describe(root, path, stat.st_size)
        except (UnusableFile, OSError) as error:
            reason = str(error) if isinstance(error, UnusableFile) else f"cannot be read: {error.strerror or error}"
            return _unusable(path, reason)
        if entry is not None:
            read[path] = (stamp, entry)
        return entry


def _files(root: Path) -> Iterator[Path]:
    """Every *.gguf below `root`, in a stable order. Linked folders are not entered."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".gguf"):
                yield Path(folder) / name


def _describe(root: Path, path: Path, size_bytes: int) -> ModelInfo | None:
    """The entry of one file; None for the later parts of a split model, which are read through the first."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise UnusableFile(f"links to {path.resolve()}, which is outside the model root {root}")
    if not path.is_file():
        raise UnusableFile("not a regular file")
    if not _NAME.fullmatch(path.stem):
        raise UnusableFile("its file name holds characters a model name cannot have (letters, digits, . _ : + -)")
    header = read_header(path)
    if (header.number("split.no") or 0) > 0:
        return None
    kind = header.text("general.type", "model")
    if kind != "model":
        raise UnusableFile(f"holds a {kind[:40]}, not a model")
    return _info(path, size_bytes, header)


def _info(path: Path, size_bytes: int, header: GgufHeader) -> ModelInfo:
    template = header.text("tokenizer.chat_template") or None
    return ModelInfo(
        name=path.stem,
        family=header.architecture[:128],
        format="gguf",
        quantisation=header.quantisation,
        parameters=header.parameters,
        size_bytes=size_bytes,
        context_tokens=header.context_tokens,
        state="available",
        capabilities=["generate", "chat"],
        path=_printable(str(path)),
        description=header.text("general.description")[:4096],
        license=header.text("general.license")[:128],
        chat_template=template,
    )


def _unusable(path: Path, error: str) -> ModelInfo:
    try:
        size_bytes = path.stat().st_size
    except OSError:
        size_bytes = 0
    return ModelInfo(
        name=_printable(path.stem),
        family="",
        format="gguf",
        quantisation="",
        parameters=0,
        size_bytes=size_bytes,
        context_tokens=0,
        state="unusable",
        path=_printable(str(path)),
        error=_printable(error),
    )


def _printable(text: str) -> str:
    """`text` as UTF-8 can carry it: file names on Linux are bytes, and Python keeps the undecodable ones as halves."""
    return text.encode("utf-8", "replace").decode()


def with_state(entry: ModelInfo, state: str, instance: str | None, loaded_at: float | None) -> ModelInfo:
    """`entry` as `model.list` shows it: the file's description and what is loaded right now."""
    if entry.state == "unusable":
        return entry
    return msgspec.structs.replace(entry, state=state, instance=instance, loaded_at=loaded_at)
