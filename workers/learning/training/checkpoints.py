"""Checkpoints of one job: directories that are whole or are not there, with a manifest that says what is in them.

    JOB/checkpoints/step-00000042/manifest.json       {"step", "files": {name: {"sha256", "size_bytes"}}, ...}
    JOB/checkpoints/.step-00000042.PID.aside/         one that is being written; left over after a kill

Every file is written aside, hashed and synced; then the manifest by a temporary name; then the directory is renamed and
its parent synced. So a directory with a manifest whose hashes agree is what the trainer wrote, whatever happened since:
anything else is passed over, with the reason. It knows nothing of what is in the files.

Trainer and service may both be at it: the trainer writes and removes by its rules, the service lists and deletes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from schemas.errors import Conflict, NotFound

MANIFEST: Final = "manifest.json"

_NAME: Final = re.compile(r"step-(\d{8})")
_ASIDE: Final = re.compile(r"\.step-\d{8}\.\d+\.(aside|gone)")
_CHUNK_BYTES: Final = 1024 * 1024


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one file of a sealed directory."""

    sha256: str
    size_bytes: Annotated[int, Meta(ge=0)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a sealed directory holds. facts: what its writer wants remembered, for people."""

    job_id: str
    step: Annotated[int, Meta(ge=0)]
    created_at: float
    files: dict[str, FileFacts]
    facts: dict[str, str | int | float | bool | None] = {}


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One checkpoint as it lies there. problem: why it cannot be gone on from, "" when it can. sha256: of its manifest."""

    name: str
    path: Path
    step: int
    size_bytes: int
    created_at: float
    sha256: str
    problem: str

    @property
    def is_good(self) -> bool:
        """True when nothing is known against it."""
        return not self.problem


def name_of(step: int) -> str:
    """Name of the directory of a step."""
    return f"step-{step:08d}"


# Reading --------------------------------------------------------------------------------------------------------------


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Checkpoints in `folder`, by step; looks at manifests and sizes and hashes nothing. A missing folder has none."""
    return [_look(path) for path in _directories(folder)]


def verify(path: Path) -> Checkpoint:
    """The checkpoint at `path`, with every file of it hashed."""
    found = _look(path)
    if not found.is_good:
        return found
    for name, facts in _read_manifest(path).files.items():
        try:
            sha256 = _hash(path / name)
        except OSError as error:
            return msgspec.structs.replace(found, problem=f"{name} cannot be read: {error.strerror or error}")
        if sha256 != facts.sha256:
            return msgspec.structs.replace(found, problem=f"{name} has changed since it was written")
    return found


def newest_good(folder: Path, on_skip: Callable[[Checkpoint], None] = lambda _: None) -> Checkpoint | None:
    """The newest checkpoint whose every file is as it was written; `on_skip` hears of newer ones that are not."""
    for path in reversed(_directories(folder)):
        found = verify(path)
        if found.is_good:
            return found
        on_skip(found)
    return None


def _directories(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [folder / name for name in names if _NAME.fullmatch(name)]


def _look(path: Path) -> Checkpoint:
    match = _NAME.fullmatch(path.name)
    step = int(match[1]) if match else 0
    try:
        manifest = _read_manifest(path)
        sha256 = _hash(path / MANIFEST)
    except FileNotFoundError:
        return _torn(path, step, f"it has no {MANIFEST}: it was not written to its end")
    except OSError as error:
        return _torn(path, step, f"{MANIFEST} cannot be read: {error.strerror or error}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _torn(path, step, f"{MANIFEST}: {error}")
    return Checkpoint(
        name=path.name,
        path=path,
        step=manifest.step,
        size_bytes=_size(path),
        created_at=manifest.created_at,
        sha256=sha256,
        problem=_problem(path, step, manifest),
    )


def _torn(path: Path, step: int, problem: str) -> Checkpoint:
    try:
        created_at = path.stat().st_mtime
    except OSError:
        created_at = 0.0
    return Checkpoint(
        name=path.name, path=path, step=step, size_bytes=_size(path), created_at=created_at, sha256="", problem=problem
    )


def _problem(path: Path, step: int, manifest: Manifest) -> str:
    if manifest.step != step:
        return f"{MANIFEST} is of step {manifest.step}"
    for name, facts in manifest.files.items():
        if name != Path(name).name or name in ("", ".", ".."):
            return f"{MANIFEST} names {name!r}, which is no file beside it"
        try:
            size = (path / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != facts.size_bytes:
            return f"{name} has {size} bytes, it was written with {facts.size_bytes}"
    return ""


def _read_manifest(path: Path) -> Manifest:
    return msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)


def _size(path: Path) -> int:
    total = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                total += entry.stat(follow_symlinks=False).st_size
    except OSError:
        # Removed while it was looked at.
        return total
    return total


def _hash(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


# Writing --------------------------------------------------------------------------------------------------------------


class Sealing:
    """A directory in the making. `write` files into `aside`, then `seal`; whatever fails, call `abandon`.

    target: what it will be called. Raises OSError when the directory aside cannot be made.
    """

    def __init__(self, target: Path, *, job_id: str, step: int) -> None:
        self.target = target
        self.aside = target.parent / f".{name_of(step)}.{os.getpid()}.aside"
        self._job_id = job_id
        self._step = step
        self._files: dict[str, FileFacts] = {}
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.aside, ignore_errors=True)
        self.aside.mkdir()

    def write(self, name: str, data: bytes) -> None:
        """Write one file and see it on disk. Raises OSError."""
        _write_synced(self.aside / name, data)
        self._files[name] = FileFacts(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def sha256_of(self, name: str) -> str:
        """Of a file that was written."""
        return self._files[name].sha256

    def seal(self, facts: Mapping[str, str | int | float | bool | None]) -> Checkpoint:
        """Make it whole under its name; one of that name that is there already makes way. Raises OSError."""
        manifest = Manifest(
            job_id=self._job_id, step=self._step, created_at=time.time(), files=self._files, facts=dict(facts)
        )
        encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
        _write_synced(self.aside / f".{MANIFEST}", encoded)
        (self.aside / f".{MANIFEST}").rename(self.aside / MANIFEST)
        _sync_directory(self.aside)
        gone = self.aside.with_suffix(".gone")
        if self.target.exists():
            self.target.rename(gone)
        self.aside.rename(self.target)
        _sync_directory(self.target.parent)
        shutil.rmtree(gone, ignore_errors=True)
        return Checkpoint(
            name=self.target.name,
            path=self.target,
            step=self._step,
            size_bytes=sum(facts.size_bytes for facts in self._files.values()) + len(encoded),
            created_at=manifest.created_at,
            sha256=hashlib.sha256(encoded).hexdigest(),
            problem="",
        )

    def abandon(self) -> None:
        """Remove what was written aside."""
        shutil.rmtree(self.aside, ignore_errors=True)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Removing -------------------------------------------------------------------------------------------------------------


def surplus(found: Sequence[Checkpoint], *, kept: int, limit_bytes: int | None) -> list[Checkpoint]:
    """Which of the checkpoints go: torn ones, and the oldest beyond `kept` (two at least) or `limit_bytes`.

    Of good ones two stay however large, since the newest may yet turn out torn. Pure; `found` may be in any order.
    """
    good = sorted((one for one in found if one.is_good), key=lambda one: one.step, reverse=True)
    kept = max(kept, 2)
    staying, total = 0, 0
    for one in good[:kept]:
        total += one.size_bytes
        if limit_bytes is not None and total > limit_bytes and staying >= 2:
            break
        staying += 1
    newest = good[0].step if good else -1
    # A torn one that is newer than any good one is evidence, and no longer in the way once a good one is newer.
    return good[staying:] + [one for one in found if not one.is_good and one.step < newest]


def prune(folder: Path, *, kept: int, limit_bytes: int | None) -> list[Checkpoint]:
    """Remove what `surplus` says and what dead writers left; returns what went."""
    sweep(folder)
    gone = surplus(list_checkpoints(folder), kept=kept, limit_bytes=limit_bytes)
    for one in gone:
        _remove(one.path)
    return gone


def sweep(folder: Path) -> None:
    """Remove what a writer that was killed left aside. Only for who alone writes there."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        if _ASIDE.fullmatch(name):
            shutil.rmtree(folder / name, ignore_errors=True)


def delete(folder: Path, name: str, *, even_last: bool = False) -> Checkpoint:
    """Delete one checkpoint; returns what it was.

    Raises NotFound, and Conflict for the newest good one unless `even_last`.
    """
    found = {one.name: one for one in list_checkpoints(folder)}
    if name not in found:
        raise NotFound(f"there is no checkpoint {name[:64]!r}; there are: {', '.join(found) or 'none'}")
    good = [one for one in found.values() if one.is_good]
    if not even_last and good and good[-1].name == name:
        raise Conflict(f"{name} is the newest good checkpoint: without it the training would lose its way back")
    _remove(found[name].path)
    return found[name]


def discard(folder: Path) -> None:
    """Delete every checkpoint and whatever else lies in the folder."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    """First out of sight in one step, so that a kill leaves no half of it under its name."""
    step = path.name.removeprefix("step-")
    gone = path.parent / f".step-{step}.{os.getpid()}.gone"
    shutil.rmtree(gone, ignore_errors=True)
    try:
        path.rename(gone)
    except FileNotFoundError:
        # The other of trainer and service was faster.
        return
    shutil.rmtree(gone, ignore_errors=True)
