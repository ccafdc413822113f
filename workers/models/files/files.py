"""The part of the model service that answers for model files: what there is, where it came from, and whether it is whole.

It knows what is loaded only through `overlay`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from bus.client import Client
from bus.records import Records
from bus.settings import Settings
from bus.worker import Call
from schemas.bodies.model import ModelInfo, ModelList, Models, ModelShow
from schemas.bodies.model_files import (
    ModelAlias,
    ModelDelete,
    ModelDeleted,
    ModelImport,
    ModelRescan,
    ModelVerified,
    ModelVerify,
)
from schemas.errors import Conflict, Forbidden, NotFound, Unprocessable
from workers.models.catalogue import SHIPPED_ROOT, Catalogue, Entry
from workers.models.files import placing
from workers.models.files.hashes import Hashes, content_of
from workers.models.files.intake import Intake
from workers.models.files.kept import Kept
from workers.models.files.mirror import Mirror
from workers.models.files.reading import in_thread

log = logging.getLogger("olympus.models")

Overlay = Callable[[ModelInfo], ModelInfo]

# The time from one look at the folders to the next is at least this many times what the look took: 500 files on a local
# disk take 9 ms, folders over a network may take seconds.
_REST_TIMES: Final = 20.0


class Files:
    """`model.list`, `.show`, `.rescan`, `.alias`, `.import`, `.delete` and `.verify`. `start` before the first use.

    overlay: adds to an entry what is loaded right now (state, device, memory, and so on).
    """

    def __init__(
        self, settings: Settings, catalogue: Catalogue, records: Records, client: Client, overlay: Overlay
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._overlay = overlay
        self._kept = Kept(records)
        self._hashes = Hashes(catalogue, self._kept)
        self._intake = Intake(catalogue, self._hashes)
        self._mirror = Mirror(client, self._mirrored)
        self._scanned_at = float("-inf")
        self._scan_took_s = 0.0
        self._is_due = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read what is kept and the folders; hashing, watching and mirroring go on in the background."""
        await self._kept.load()
        self._catalogue.use_aliases(self._kept.aliases)
        await asyncio.to_thread(self._clean)
        await self.scan()
        self._tasks = [
            asyncio.create_task(self._watch(), name="model folders"),
            asyncio.create_task(self._hash(), name="model hashes"),
            asyncio.create_task(self._mirror.run(), name="model mirror"),
        ]

    async def stop(self) -> None:
        """End what goes on in the background."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def _clean(self) -> None:
        for root in self._catalogue.roots:
            if root != SHIPPED_ROOT:
                for name in placing.remove_stale_stages(root):
                    log.info(
                        "unfinished files removed", extra={"action": "model.files.cleaned", "path": str(root / name)}
                    )

    # For the other parts of the service

    async def scan(self) -> None:
        """Read the model roots again."""
        began = time.monotonic()
        await asyncio.to_thread(self._catalogue.scan)
        self._scanned_at = time.monotonic()
        self._scan_took_s = self._scanned_at - began
        self._changed()

    def entries(self) -> list[ModelInfo]:
        """Everything that the last look found, with hashes and versions."""
        return [self._shown(entry) for entry in self._catalogue.all()]

    def find(self, name: str) -> ModelInfo:
        """One of them by name or alias; raises NotFound."""
        return self._shown(self._catalogue.entry(name))

    async def adopt(self, staged: Path, name: str, source: str, sha256: str | None = None) -> ModelInfo:
        """See `Intake.adopt`: a finished file or folder becomes the model `name`."""
        try:
            return self._shown(await self._intake.adopt(staged, name, source, sha256))
        finally:
            self._changed()

    # Operations

    async def list_models(self, request: ModelList) -> Models:
        """Every entry of the catalogue, usable or not, with what is loaded."""
        if time.monotonic() - self._scanned_at > _REST_TIMES * self._scan_took_s:
            await self.scan()
        return self._models()

    async def rescan(self, request: ModelRescan) -> Models:
        """The same after a look at the folders."""
        await self.scan()
        return self._models()

    async def show(self, request: ModelShow) -> ModelInfo:
        """One entry, as its files are now."""
        return self._shown(await self._catalogue.current(request.model))

    async def alias(self, request: ModelAlias) -> ModelInfo:
        """Give a model another name, or take one away. Raises NotFound, and Conflict for the name of a model."""
        if request.model is None:
            model = await self._forget_alias(request.alias)
        else:
            model = (await self._catalogue.current(request.model)).info.name
            with contextlib.suppress(NotFound):
                if self._catalogue.entry(request.alias).info.name == request.alias:
                    raise Conflict(f"{request.alias} is a model's own name", alias=request.alias)
            await self._kept.keep_alias(request.alias, model)
        self._catalogue.use_aliases(self._kept.aliases)
        self._changed()
        try:
            return self._shown(await self._catalogue.current(model))
        except NotFound as error:
            return _gone(model, error.message)

    async def _forget_alias(self, alias: str) -> str:
        """What the alias meant."""
        model = self._kept.aliases.get(alias)
        if model is None:
            known = ", ".join(sorted(self._kept.aliases)[:10]) or "there is none"
            raise NotFound(f"there is no alias {alias!r}, known: {known}", alias=alias)
        await self._kept.forget_aliases([alias])
        return model

    async def import_model(self, request: ModelImport, call: Call) -> ModelInfo:
        """See `Intake.take`: a file or folder of this machine becomes a model."""
        try:
            return self._shown(await self._intake.take(request, call.partial))
        finally:
            self._changed()

    async def delete(self, request: ModelDelete) -> ModelDeleted:
        """Remove a model's files. Raises NotFound, Conflict while it is loaded, Forbidden for what is not to be deleted."""
        async with self._intake.placing:
            # What else lies in its folder, and what is loaded, has to be known as it is now.
            await self.scan()
            entry = self._catalogue.entry(request.model)
            name = entry.info.name
            # What can never go is not to be unloaded first.
            self._check_deletable(entry)
            self._check_not_loaded(entry)
            try:
                freed = await in_thread(_remove, entry)
            except OSError as error:
                raise Unprocessable(f"{error.filename}: {error.strerror}, so {name} stays", model=name) from error
        await self._kept.forget_hashes([file.path for file in entry.files])
        await self._kept.end_versions(name)
        await self._kept.forget_aliases([alias for alias, model in self._kept.aliases.items() if model == name])
        self._catalogue.use_aliases(self._kept.aliases)
        await self.scan()
        log.info("model deleted", extra={"action": "model.deleted", "model": name, "freed_bytes": freed})
        return ModelDeleted(model=name, freed_bytes=freed)

    def _check_not_loaded(self, entry: Entry) -> None:
        name, state = entry.info.name, self._overlay(entry.info).state
        if state in ("loaded", "loading"):
            raise Conflict(f"{name} is {state}: unload it first (model.unload)", model=name, state=state)

    def _check_deletable(self, entry: Entry) -> None:
        name, found = entry.info.name, entry.found
        if found is None:
            raise Forbidden(
                f"{name} runs at {entry.info.path}; take it out of {self._settings.models.rules}", model=name
            )
        if found.root == SHIPPED_ROOT:
            raise Forbidden(f"{name} is shipped with Olympus and stays", model=name)
        if found.path == found.root:
            raise Forbidden(f"{name} is the model root {found.root} itself: take that out of models.roots", model=name)
        # The folder of a link may be anywhere; the link itself, which is what goes, is in the root.
        if not found.path.parent.resolve().is_relative_to(found.root.resolve()):
            raise Forbidden(f"{found.path} is outside the model root {found.root}", model=name)
        inside = [
            other.info.name
            for other in self._catalogue.all()
            if other.found is not None and other is not entry and other.found.path.is_relative_to(found.path)
        ]
        if found.format == "safetensors" and inside:
            raise Conflict(f"the folder of {name} also holds {', '.join(inside)}: delete that first", model=name)

    async def verify(self, request: ModelVerify, call: Call) -> ModelVerified:
        """Hash a model's files again, and compare with what was asked for or was known.

        Raises NotFound, Unprocessable for what has no files that can be read, Conflict when they change meanwhile.
        """
        entry = await self._catalogue.current(request.model)
        name = entry.info.name
        if entry.found is None or not content_of(entry.found):
            raise Unprocessable(f"{name} has no files here to verify", model=name)
        if not await asyncio.to_thread(_are_files, entry):
            raise Unprocessable(f"{name} cannot be verified: {entry.info.error}", model=name)
        began = time.monotonic()
        known = self._hashes.known(entry) or self._last_of(entry)
        try:
            # What was known is not written over: a content that differs must not become the one to compare with.
            sha256 = await self._hashes.compute(entry.found, call.partial, fresh=known is not None)
        except OSError as error:
            raise Unprocessable(f"{error.filename}: {error.strerror}", model=name) from error
        if known is None:
            await self._hashes.keep(entry)
        expected = request.sha256 or known
        is_intact = expected is None or expected == sha256
        if not is_intact:
            log.warning(
                "model differs", extra={"action": "model.verify.differs", "model": name, "path": entry.info.path}
            )
        return ModelVerified(
            model=name,
            is_intact=is_intact,
            sha256=sha256,
            expected=expected,
            size_bytes=entry.info.size_bytes,
            took_s=time.monotonic() - began,
        )

    def _last_of(self, entry: Entry) -> str | None:
        """The hash of the last known content at this place, whatever its files look like now."""
        return next((one.sha256 for one in self._kept.versions(entry.info.name) if one.path == entry.info.path), None)

    # What is shown

    def _models(self) -> Models:
        """All of them, without templates: a few hundred long ones are more than a message holds."""
        entries = [msgspec.structs.replace(info, chat_template=None) for info in self.entries()]
        return Models(models=entries, default=self._settings.models.default)

    def _shown(self, entry: Entry) -> ModelInfo:
        if not entry.is_first:
            return entry.info
        return self._overlay(self._described(entry))

    def _described(self, entry: Entry) -> ModelInfo:
        """The entry with what is kept of it."""
        return msgspec.structs.replace(
            self._catalogue.shown(entry),
            sha256=self._hashes.known(entry),
            versions=self._kept.versions(entry.info.name),
            source=self._hashes.source_of(entry),
        )

    def _mirrored(self) -> list[ModelInfo]:
        return [self._described(entry) for entry in self._catalogue.all() if entry.is_first]

    # In the background

    def _changed(self) -> None:
        self._is_due.set()
        self._mirror.poke()

    async def _watch(self) -> None:
        """Look at the folders every `models.rescan_s`."""
        rescan_s = self._settings.models.rescan_s
        while rescan_s:
            await asyncio.sleep(max(rescan_s, _REST_TIMES * self._scan_took_s))
            await self.scan()

    async def _hash(self) -> None:
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            await self._hashes.catch_up()
            self._mirror.poke()


def _gone(name: str, error: str) -> ModelInfo:
    """A model that an alias meant, and that is not here."""
    return ModelInfo(
        name=name,
        family="",
        format="",
        quantisation="",
        parameters=0,
        size_bytes=0,
        context_tokens=0,
        state="unusable",
        error=error,
    )


# Steps that block on the disk -----------------------------------------------------------------------------------------


def _are_files(entry: Entry) -> bool:
    return all(file.path.is_file() for file in entry.files)


def _remove(entry: Entry) -> int:
    assert entry.found is not None
    if entry.found.format == "gguf":
        freed = placing.remove_files([file.path for file in entry.files])
        placing.sync_folder(entry.found.path.parent)
        return freed
    stage = placing.new_stage(entry.found.root)
    try:
        return placing.remove_folder(entry.found.path, stage)
    finally:
        # Empty by now, unless the folder could not be removed: what is left of it goes at the next start.
        with contextlib.suppress(OSError):
            stage.rmdir()
