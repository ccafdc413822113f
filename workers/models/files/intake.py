"""Brings models into the first model root: those of this machine (`model.import`), and those that were fetched or made."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from schemas.bodies.model_files import ModelImport
from schemas.errors import BadRequest, Conflict, Internal, NotFound, Unprocessable
from workers.models.catalogue import SHIPPED_ROOT, Catalogue, Entry, check_name, describe
from workers.models.files import placing
from workers.models.files.hashes import Hashes
from workers.models.files.reading import Progress, Report, hash_file, in_thread
from workers.models.found import PART, Found, FoundFile, found_at, found_below, stamp_of
from workers.models.gguf_header import UnusableFile

# Room left on the disk by a copy, bytes: other programs have to live.
_SPARE_BYTES: Final = 64 * 1024 * 1024


class _Piece(NamedTuple):
    """A file of a model, and what it is called in the root. sha256: where reading it has told."""

    source: Path
    name: str
    sha256: str | None = None


class Intake:
    """The way into the first model root. Nothing is visible there before it is whole, and a cancel leaves nothing."""

    def __init__(self, catalogue: Catalogue, hashes: Hashes) -> None:
        self._catalogue = catalogue
        self._hashes = hashes
        # One at a time gives names and takes them; the copying before it is not under this lock.
        self.placing = asyncio.Lock()

    @property
    def root(self) -> Path:
        """Where models are written to. Raises Unprocessable when the settings name no folder."""
        root = self._catalogue.roots[0] if self._catalogue.roots else SHIPPED_ROOT
        if root == SHIPPED_ROOT:
            raise Unprocessable("models.roots names no folder, so there is none to write models to")
        return root

    # From this machine

    async def take(self, request: ModelImport, report: Report) -> Entry:
        """`model.import`: the new entry.

        Raises BadRequest, NotFound, Unprocessable (no usable model, no room, not readable) and Conflict (the name is
        taken by other content). Asked again for what is done, it answers the same.
        """
        source = Path(request.path)
        if not source.is_absolute():
            raise BadRequest(f"field 'path' is {request.path!r}, it must be absolute", field="path")
        with _explained(str(source)):
            found = await in_thread(_source, source, request.name)
            await in_thread(self._catalogue.scan)
            taken = self._holder(found.name)
            if taken is not None:
                return await self._same(taken, found, report)
            return await self._bring(found, request.mode, report)

    def _holder(self, name: str) -> Entry | None:
        with contextlib.suppress(NotFound):
            entry = self._catalogue.entry(name)
            return entry if entry.info.name == name else None
        return None

    async def _same(self, taken: Entry, found: Found, report: Report) -> Entry:
        """`taken`, if it is what is to be brought in. Raises Conflict otherwise."""
        there = taken.found
        is_alike = there is not None and (there.format, there.size_bytes) == (found.format, found.size_bytes)
        if there is not None and is_alike and taken.info.state != "unusable":
            if await self._hashes.compute(there) == await self._hashes.compute(found, report):
                return taken
        raise Conflict(
            f"there is a model {found.name} already, {taken.info.path}: give another name, or delete it first",
            model=found.name,
        )

    async def _bring(self, found: Found, mode: str, report: Report) -> Entry:
        async with self._stage() as stage:
            staged = stage / placing.NEW
            await in_thread(staged.mkdir)
            pieces = await self._filled(staged, _pieces(found), mode, report)
            async with self.placing:
                targets = await in_thread(_place_new, staged, [piece.name for piece in pieces], found, self.root)
            await self._note(targets, pieces)
        if mode == "move":
            await in_thread(_remove_sources, found)
        return await self._entry(found.name, f"import:{found.path}")

    async def _filled(self, stage: Path, pieces: Sequence[_Piece], mode: str, report: Report) -> list[_Piece]:
        """The pieces by hard link where that is wanted and possible, else by copy."""
        if mode != "copy" and await in_thread(_link_all, stage, pieces):
            return list(pieces)
        total = await in_thread(placing.total_bytes, [piece.source for piece in pieces])
        free = await in_thread(placing.free_bytes, stage)
        if total + _SPARE_BYTES > free:
            raise Unprocessable(
                f"the copy takes {total} bytes, and {self.root} has {free} free, of which {_SPARE_BYTES} stay free",
                needed_bytes=total,
                free_bytes=free,
            )
        progress = Progress("copying", total, report)
        copied = []
        for piece in pieces:
            before = await in_thread(stamp_of, piece.source)
            sha256 = await hash_file(piece.source, progress, copy_to=stage / piece.name)
            if await in_thread(stamp_of, piece.source) != before:
                raise Conflict(f"{piece.source} changed while it was copied", path=str(piece.source))
            copied.append(piece._replace(sha256=sha256))
        return copied

    # From other parts

    async def adopt(self, staged: Path, name: str, source: str, sha256: str | None = None) -> Entry:
        """Move a finished file, or a folder of files, into the first model root as the model `name`; its entry.

        What `name` was there before is replaced, and becomes an earlier version. source: where the content came from,
        for people. sha256: of a single file, where it is known. What is refused stays where it was staged. Raises
        Unprocessable for what is no usable model, and Conflict where `name` is a model of another format.
        """
        with _explained(str(staged)):
            found = await in_thread(_staged, staged, name)
            async with self._stage() as stage, self.placing:
                await in_thread(self._catalogue.scan)
                before = self._replaced(found)
                targets = await in_thread(_move_in, stage, found, self.root, before)
            # Of a folder what was not the model's is left.
            await in_thread(shutil.rmtree, staged, True)
        if sha256 is not None and len(targets) == 1:
            await self._hashes.keep_hash(targets[0], sha256)
        return await self._entry(name, source)

    def _replaced(self, found: Found) -> Found | None:
        """What has the name in the first root now."""
        holder = self._holder(found.name)
        if holder is None or holder.found is None or holder.found.root != self.root:
            return None
        if holder.found.format != found.format:
            raise Conflict(
                f"there is a model {found.name} of format {holder.found.format}, {holder.info.path}: delete it first",
                model=found.name,
            )
        return holder.found

    # Both

    @asynccontextmanager
    async def _stage(self) -> AsyncIterator[Path]:
        stage = await in_thread(placing.new_stage, self.root)
        try:
            yield stage
        finally:
            await in_thread(shutil.rmtree, stage, True)

    async def _note(self, targets: Sequence[Path], pieces: Sequence[_Piece]) -> None:
        for target, piece in zip(targets, pieces, strict=True):
            if piece.sha256 is not None:
                await self._hashes.keep_hash(target, piece.sha256)

    async def _entry(self, name: str, source: str) -> Entry:
        await in_thread(self._catalogue.scan)
        entry = self._holder(name)
        if entry is None:
            raise Internal(f"{name} was brought into {self.root}, and is gone again", model=name)
        await self._hashes.keep(entry, source)
        return entry


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of the disk and of what was read, as a caller understands them."""
    try:
        yield
    except UnusableFile as error:
        raise Unprocessable(f"{what} cannot become a model here: {error}") from error
    except FileExistsError as error:
        raise Conflict(f"{error.filename2 or error.filename} is there already") from error
    except OSError as error:
        at = error.filename2 or error.filename or what
        raise Unprocessable(f"{at}: {error.strerror or error}", path=str(at)) from error


# Steps that block on the disk -----------------------------------------------------------------------------------------


def _source(path: Path, name: str | None) -> Found:
    """What is to be imported. Links of the source are followed: its owner asks."""
    if not path.exists():
        raise NotFound(f"there is no file or folder {path}", path=str(path))
    found = found_at(path)
    if found is None and PART.fullmatch(path.name):
        raise UnusableFile("a later part of a split model: name its first part")
    if found is None:
        raise UnusableFile(
            "neither a .gguf file nor a folder with config.json and safetensors weights; an adapter is attached to its"
            " model by model.adapter.attach"
        )
    return _checked(found, name or found.name)


def _staged(path: Path, name: str) -> Found:
    """What another part has put together, whatever its files are called."""
    if not path.is_dir():
        return _checked(Found("gguf", name, path.parent, path, (FoundFile(path, stamp_of(path)),)), name)
    inside = list(found_below(path))
    if len(inside) != 1:
        raise UnusableFile(f"the folder holds {len(inside)} models, it must hold one")
    return _checked(inside[0], name)


def _checked(found: Found, name: str) -> Found:
    if "/" in name:
        raise UnusableFile(f"its name {name!r} holds a slash: give it another one, and this one as an alias")
    check_name(name)
    # The file system's root: what it links to is copied or linked, not the link.
    described = found._replace(name=name, root=Path("/"))
    describe(described)
    return described


def _pieces(found: Found) -> list[_Piece]:
    """The files under the names that they have in the root, or in the model's folder there."""
    if found.format == "safetensors":
        return [_Piece(file.path.resolve(), file.path.name) for file in found.files]
    if len(found.files) == 1:
        return [_Piece(found.files[0].path.resolve(), f"{found.name}.gguf")]
    count = len(found.files)
    return [
        _Piece(file.path.resolve(), f"{found.name}-{number:05}-of-{count:05}.gguf")
        for number, file in enumerate(found.files, 1)
    ]


def _link_all(stage: Path, pieces: Sequence[_Piece]) -> bool:
    """Hard links of all pieces in `stage`; none of them, and False, where one cannot be."""
    for at, piece in enumerate(pieces):
        if not placing.hard_link(piece.source, stage / piece.name):
            for done in pieces[:at]:
                (stage / done.name).unlink()
            return False
    return True


def _place_new(staged: Path, names: Sequence[str], found: Found, root: Path) -> list[Path]:
    placing.sync_folder(staged)
    if found.format == "safetensors":
        placing.place_new(staged, root / found.name)
        placing.sync_folder(root)
        return [root / found.name / name for name in names]
    placed: list[Path] = []
    try:
        # The first part last: without it the others are no model.
        for name in reversed(names):
            placing.place_new(staged / name, root / name)
            placed.append(root / name)
    except OSError:
        placing.remove_files(placed)
        raise
    placing.sync_folder(root)
    return [root / name for name in names]


def _move_in(stage: Path, found: Found, root: Path, before: Found | None) -> list[Path]:
    """Move the staged files into their places by way of `stage`; back to where they were when that fails."""
    pieces = _pieces(found)
    moved: list[tuple[Path, Path]] = []
    inside = stage / placing.NEW
    inside.mkdir()
    try:
        for file, piece in zip(found.files, pieces, strict=True):
            shutil.move(file.path, inside / piece.name)
            moved.append((inside / piece.name, file.path))
            placing.sync_file(inside / piece.name)
        return _place_over(inside, [piece.name for piece in pieces], found, root, before)
    except OSError:
        for here, back in moved:
            if here.exists():
                shutil.move(here, back)
        raise


def _place_over(staged: Path, names: Sequence[str], found: Found, root: Path, before: Found | None) -> list[Path]:
    old = [file.path for file in before.files] if before is not None else []
    placing.sync_folder(staged)
    if found.format == "safetensors":
        target = before.path if before is not None else root / found.name
        placing.place_over(staged, target, staged.parent)
        placing.sync_folder(target.parent)
        return [target / name for name in names]
    folder = before.path.parent if before is not None else root
    targets = [folder / name for name in names]
    for name, target in reversed(list(zip(names, targets, strict=True))):
        placing.place_over(staged / name, target, staged.parent)
    placing.remove_files([path for path in old if path not in targets])
    placing.sync_folder(folder)
    return targets


def _remove_sources(found: Found) -> None:
    placing.remove_files([file.path for file in found.files])
    if found.format == "safetensors":
        # What is left in it is not the model's, and stays.
        with contextlib.suppress(OSError):
            found.path.rmdir()
