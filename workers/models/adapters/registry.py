"""Which LoRA adapters there are for each model, which are in use, and which one requests take that name none.

Knows nothing of backends and processes: what is in use is told to `Runners`, which refuses what does not fit.

    attach    PATH -> copied below home by its content -> a version -> in use: attached now and whenever the model loads
    promote   a version in use -> champion, on top of the champions before it, or the canary beside it
    rollback  takes the canary away, without one the top champion

In requests `NAME` is the champion's version of an adapter, or the one attached last; `NAME:VERSION` is exactly that one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from bus.records import Records
from bus.settings import Settings
from schemas.bodies.model import ModelInfo
from schemas.bodies.model_files import (
    AdapterAttach,
    AdapterChange,
    AdapterDetach,
    AdapterInfo,
    AdapterList,
    AdapterPromote,
    AdapterRollback,
    Adapters,
    AdapterState,
)
from schemas.errors import BadRequest, BusError, Conflict, NotFound, Unprocessable
from workers.models.adapters.canary import Canary, InUse
from workers.models.adapters.conversion import convert_apart
from workers.models.adapters.convert import Converted
from workers.models.backends.backend import AdapterFile

log = logging.getLogger("olympus.models")

Publish = Callable[[str, AdapterChange], Awaitable[None]]

# What is being made, until its content is known; one of these that is left over is of a service that was killed.
_NEW: Final = ".new-"

# `NAME:3` means a version.
_VERSIONED: Final = re.compile(r":[0-9]+\Z")


class Runners(Protocol):
    """What has models in memory."""

    async def set_adapters(self, name: str, use: InUse) -> None:
        """Have a loaded model use these. One that is loaded later asks `of`, when it is in memory.

        Raises Unprocessable, Conflict and DeadlineExceeded: then nothing has changed.
        """

    def loaded(self) -> list[str]:
        """Models that serve."""


class _Version(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `adapters`, in the order of its columns."""

    model: str
    adapter: str
    version: int
    sha256: str
    size_bytes: int
    rank: int
    path: str
    added_at: float
    note: str
    alias: str
    is_used: bool

    @property
    def key(self) -> tuple[str, int]:
        return self.adapter, self.version

    @property
    def exact_name(self) -> str:
        return f"{self.adapter}:{self.version}"


class _Champion(msgspec.Struct, frozen=True):
    adapter: str
    version: int
    since: float
    reason: str

    @property
    def key(self) -> tuple[str, int]:
        return self.adapter, self.version


class _Tried(msgspec.Struct, frozen=True):
    """The canary."""

    adapter: str
    version: int
    share: float
    since: float
    reason: str

    @property
    def key(self) -> tuple[str, int]:
        return self.adapter, self.version


class _Of(msgspec.Struct, frozen=True):
    """Everything of one model: its versions, its champions with the present one last, and its canary."""

    versions: tuple[_Version, ...] = ()
    champions: tuple[_Champion, ...] = ()
    tried: _Tried | None = None

    def find(self, key: tuple[str, int]) -> _Version:
        return next(one for one in self.versions if one.key == key)

    @property
    def champion(self) -> _Version | None:
        return self.find(self.champions[-1].key) if self.champions else None

    @property
    def canary(self) -> _Version | None:
        return self.find(self.tried.key) if self.tried is not None else None

    def share_of(self, one: _Version) -> float:
        """Part of the conversations naming no adapter that it answers."""
        if self.tried is not None and self.tried.key == one.key:
            return self.tried.share
        if not self.champions or self.champions[-1].key != one.key:
            return 0.0
        return 1.0 - self.tried.share if self.tried is not None else 1.0

    def named(self, adapter: str) -> list[_Version]:
        return [one for one in self.versions if one.adapter == adapter]

    def in_use(self) -> InUse:
        """The adapters in use as requests name them, and what answers requests that name none."""
        champion = self.champion
        used = [one for one in self.versions if one.is_used]
        meant: dict[str, _Version] = {}
        for one in sorted(used, key=lambda one: (one == champion, one.version)):
            meant[one.adapter] = one
        named = [(one.exact_name, one) for one in used] + list(meant.items())
        files = tuple(AdapterFile(name=name, path=one.path, sha256=one.sha256) for name, one in named)
        canary = self.canary
        return InUse(
            files,
            champion.exact_name if champion is not None else None,
            Canary(canary.exact_name, self.tried.share) if canary is not None and self.tried is not None else None,
        )


class AdapterRegistry:
    """The operations `model.adapter.*`. `open` before the first use; the records must be open.

    find: the catalogue entry of a name or an alias, raises NotFound.
    """

    def __init__(
        self,
        settings: Settings,
        records: Records,
        find: Callable[[str], ModelInfo],
        runners: Runners,
        publish: Publish,
    ) -> None:
        self._folder = settings.path("adapters")
        self._records = records
        self._find = find
        self._runners = runners
        self._publish = publish
        self._models: dict[str, _Of] = {}
        # What a change under way comes to.
        self._turning: dict[str, InUse] = {}
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Read what is known, and clear away what a killed service left half made."""
        self._models = await self._records.run(_read)
        await asyncio.to_thread(self._clear)

    # What is loaded with a model

    def of(self, name: str) -> InUse:
        """The adapters that a model has when it begins to answer, its champion and its canary."""
        return self._turning[name] if name in self._turning else self._models.get(name, _Of()).in_use()

    def counts(self) -> dict[str, int]:
        """Adapters in use, and models that answer with one, by `attached` and `champion`."""
        known = self._models.values()
        return {
            "attached": sum(version.is_used for one in known for version in one.versions),
            "champion": sum(bool(one.champions) for one in known),
        }

    async def use(self, model: str, adapter: str) -> None:
        """Have `adapter` in use, its newest version unless `NAME:VERSION`. Raises NotFound."""
        name, _, version = adapter.rpartition(":") if _VERSIONED.search(adapter) else (adapter, "", "")
        known = self._models.get(self._find(model).name, _Of())
        if adapter not in {file.name for file in known.in_use().files}:
            await self.attach(AdapterAttach(model=model, adapter=name, version=int(version) if version else None))

    # Operations

    async def list(self, request: AdapterList) -> Adapters:
        """Every version of the adapters of one model, or of all."""
        names = [self._find(request.model).name] if request.model is not None else sorted(self._models)
        versions = [one for name in names for one in self._models.get(name, _Of()).versions]
        return Adapters(adapters=[self._info(one) for one in versions])

    async def attach(self, request: AdapterAttach) -> AdapterInfo:
        """Put an adapter to use, from a file or as it is known.

        Raises BadRequest, NotFound, and Unprocessable for one that cannot be read or does not fit the model: then
        nothing has changed.
        """
        model = self._find(request.model)
        _check_name(request.adapter)
        async with self._changing:
            old = self._models.get(model.name, _Of())
            made: Path | None = None
            if request.path is None:
                version = _known(old, model.name, request.adapter, request.version)
            else:
                if request.version is not None:
                    raise BadRequest(
                        "a file's version is given by its content, 'version' chooses a known one", field="version"
                    )
                version, made = await self._taken_in(model, old, request.adapter, request.path)
            version = msgspec.structs.replace(
                version, is_used=True, alias=request.alias, note=request.note or version.note
            )
            try:
                await self._change(model.name, _with(old, version))
            except BaseException:
                if made is not None and version not in self._models.get(model.name, _Of()).versions:
                    await asyncio.to_thread(_remove, made)
                raise
            return self._info(version)

    async def detach(self, request: AdapterDetach) -> AdapterInfo:
        """Take every version of an adapter out of use. Raises NotFound, and Conflict for champion and canary."""
        model = self._find(request.model)
        async with self._changing:
            old = self._models.get(model.name, _Of())
            version = _known(old, model.name, request.adapter, None)
            champion = old.champion
            if champion is not None and champion.adapter == request.adapter:
                raise Conflict(
                    f"{champion.exact_name} is the champion of {model.name}; promote another or roll back first",
                    model=model.name,
                    adapter=request.adapter,
                )
            if old.canary is not None and old.canary.adapter == request.adapter:
                raise Conflict(
                    f"{old.canary.exact_name} answers a part of what {model.name} is asked; roll it back first",
                    model=model.name,
                    adapter=request.adapter,
                )
            gone = msgspec.structs.replace(version, is_used=False, alias="")
            if request.forget:
                await self._forget(model.name, old, request.adapter)
                return self._info(gone)
            versions = tuple(
                msgspec.structs.replace(one, is_used=False, alias="") if one.adapter == request.adapter else one
                for one in old.versions
            )
            await self._change(model.name, msgspec.structs.replace(old, versions=versions))
            return self._info(gone)

    async def promote(self, request: AdapterPromote) -> AdapterState:
        """Let requests that name no adapter use this one, or a share of them.

        Raises NotFound, Conflict for a champion that should become the canary, Unprocessable when it does not fit.
        """
        model = self._find(request.model)
        async with self._changing:
            old = self._models.get(model.name, _Of())
            version = _known(old, model.name, request.adapter, request.version)
            before = old.champion
            is_champion = before is not None and before.key == version.key
            if request.share < 1 and is_champion:
                raise Conflict(
                    f"{version.exact_name} is the champion of {model.name} already, and answers all",
                    model=model.name,
                    adapter=request.adapter,
                )
            is_tried = old.tried is not None and (old.tried.key, old.tried.share) == (version.key, request.share)
            if is_tried or (is_champion and old.tried is None):
                return self._state(model.name, before)
            version = msgspec.structs.replace(version, is_used=True, alias="")
            new = _with(msgspec.structs.replace(old, tried=None), version)
            if request.share < 1:
                tried = _Tried(version.adapter, version.version, request.share, time.time(), request.reason)
                new = msgspec.structs.replace(new, tried=tried)
            elif not is_champion:
                champion = _Champion(version.adapter, version.version, time.time(), request.reason)
                new = msgspec.structs.replace(new, champions=(*old.champions, champion))
            await self._change(model.name, new)
            return await self._tell("promoted", model.name, version, before, request)

    async def rollback(self, request: AdapterRollback) -> AdapterState:
        """Undo the newest promotion. Raises Conflict when there is none, or when it is of another adapter."""
        model = self._find(request.model)
        async with self._changing:
            old = self._models.get(model.name, _Of())
            before = old.canary or old.champion
            if before is None:
                raise Conflict(f"{model.name} has no champion to go back from", model=model.name)
            if request.adapter not in (None, before.adapter):
                raise Conflict(
                    f"{before.exact_name} is what a rollback of {model.name} takes away, not {request.adapter}",
                    model=model.name,
                    adapter=before.adapter,
                )
            new = _Of(old.versions, old.champions if old.tried is not None else old.champions[:-1])
            if new.champion is not None:
                new = _with(new, msgspec.structs.replace(new.champion, is_used=True, alias=""))
            await self._change(model.name, new)
            return await self._tell("rolled_back", model.name, new.champion, before, request)

    # How

    async def _taken_in(self, model: ModelInfo, old: _Of, adapter: str, given: str) -> tuple[_Version, Path | None]:
        """The version with this content, and the file where one had to be made for it."""
        if not given.startswith(("/", "~")):
            raise BadRequest(f"path is {given!r}, it must be absolute", field="path")
        if model.format == "remote":
            raise Unprocessable(f"{model.name} is computed elsewhere, its adapters are there too", model=model.name)
        target = self._folder / f"{_NEW}{secrets.token_hex(8)}"
        try:
            converted = await convert_apart(given, model.path, target)
            place, is_new = await asyncio.to_thread(_put, target, converted.sha256)
        finally:
            await asyncio.to_thread(_remove, target)
        known = [one for one in old.named(adapter) if one.sha256 == converted.sha256]
        if known:
            return msgspec.structs.replace(known[0], path=str(place)), None
        number = max((one.version for one in old.named(adapter)), default=0) + 1
        return _version(model.name, adapter, number, converted, place), place if is_new else None

    async def _change(self, model: str, new: _Of) -> None:
        """Have the runner agree, then write it down. Raises what either says, and then nothing has changed.

        Whoever is cancelled in the middle leaves a whole change behind.
        """
        work = asyncio.ensure_future(self._changed(model, new))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise

    async def _changed(self, model: str, new: _Of) -> None:
        old = self._models.get(model, _Of())
        before, after = old.in_use(), new.in_use()
        # What is loaded meanwhile answers with them.
        self._turning[model] = after
        try:
            if after != before:
                await self._runners.set_adapters(model, after)
            await self._records.run(lambda connection: _write(connection, model, new))
            self._models[model] = new
        except BusError:
            # What is not listed must not answer.
            self._turning[model] = before
            if after != before:
                await self._turn_back(model, before)
            raise
        finally:
            self._turning.pop(model, None)

    async def _turn_back(self, model: str, use: InUse) -> None:
        try:
            await self._runners.set_adapters(model, use)
        except BusError as error:
            log.warning(
                "adapters not turned back", extra={"action": "model.adapters", "model": model, "error": error.message}
            )

    async def _forget(self, model: str, old: _Of, adapter: str) -> None:
        """Drop every version of an adapter with its file, once the last answer with it has ended. Raises Conflict."""
        if any(one.adapter == adapter for one in old.champions):
            raise Conflict(
                f"{adapter} was a champion of {model} that a rollback may come back to", model=model, adapter=adapter
            )
        gone = {one.path for one in old.named(adapter)}
        kept = tuple(one for one in old.versions if one.adapter != adapter)
        await self._change(model, msgspec.structs.replace(old, versions=kept))
        needed = {one.path for other in self._models.values() for one in other.versions}
        for path in gone - needed:
            await asyncio.to_thread(_remove, Path(path))

    async def _tell(
        self,
        what: str,
        model: str,
        now: _Version | None,
        before: _Version | None,
        request: AdapterPromote | AdapterRollback,
    ) -> AdapterState:
        change = AdapterChange(
            model=model,
            adapter=now.adapter if now is not None else None,
            version=now.version if now is not None else None,
            previous=before.adapter if before is not None else None,
            previous_version=before.version if before is not None else None,
            reason=request.reason,
            share=self._models[model].share_of(now) if now is not None else 1.0,
        )
        await self._publish(f"model.adapter.{what}", change)
        return self._state(model, before)

    def _state(self, model: str, before: _Version | None) -> AdapterState:
        of = self._models[model]
        return AdapterState(
            model=model,
            champion=self._info(of.champion) if of.champion is not None else None,
            previous=self._info(before) if before is not None else None,
            canary=self._info(of.canary) if of.canary is not None else None,
        )

    def _info(self, one: _Version) -> AdapterInfo:
        of = self._models.get(one.model, _Of())
        alias = one.alias
        if of.tried is not None and of.tried.key == one.key:
            alias = "canary"
        elif of.champions and of.champions[-1].key == one.key:
            alias = "champion"
        return AdapterInfo(
            model=one.model,
            adapter=one.adapter,
            version=one.version,
            sha256=one.sha256,
            size_bytes=one.size_bytes,
            path=one.path,
            added_at=one.added_at,
            alias=alias,
            is_attached=one.is_used and one.model in self._runners.loaded(),
            rank=one.rank,
            note=one.note,
            share=of.share_of(one),
        )

    def _clear(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._folder.glob(f"{_NEW}*"):
            _remove(left)


def _with(old: _Of, version: _Version) -> _Of:
    """`version` in place of what had its number.

    Of its adapter only it, the champion and the canary stay in use; there is one challenger at most.
    """
    serving = old.champion, old.canary

    def beside(one: _Version) -> _Version:
        is_used = one.is_used and (one.adapter != version.adapter or one in serving)
        alias = "" if version.alias or not is_used else one.alias
        return msgspec.structs.replace(one, is_used=is_used, alias=alias)

    others = [beside(one) for one in old.versions if one.key != version.key]
    return msgspec.structs.replace(old, versions=tuple(sorted([*others, version], key=lambda one: one.key)))


def _known(old: _Of, model: str, adapter: str, version: int | None) -> _Version:
    """A version that is known, the newest unless one is named. Raises NotFound."""
    found = [one for one in old.named(adapter) if version is None or one.version == version]
    if not found:
        there = ", ".join(one.exact_name for one in old.versions) or "none"
        wanted = adapter if version is None else f"{adapter}:{version}"
        raise NotFound(f"{model} has no adapter {wanted!r}; known are: {there}", model=model, adapter=adapter)
    return found[-1]


def _version(model: str, adapter: str, number: int, converted: Converted, place: Path) -> _Version:
    return _Version(
        model=model,
        adapter=adapter,
        version=number,
        sha256=converted.sha256,
        size_bytes=converted.size_bytes,
        rank=converted.rank,
        path=str(place),
        added_at=time.time(),
        note="",
        alias="",
        is_used=False,
    )


def _put(target: Path, sha256: str) -> tuple[Path, bool]:
    """Where this content is kept, and whether it had to be put there."""
    place = target.with_name(sha256 if target.is_dir() else f"{sha256}.gguf")
    if place.exists():
        return place, False
    target.rename(place)
    return place, True


def _check_name(adapter: str) -> None:
    if _VERSIONED.search(adapter):
        raise BadRequest(f"adapter is {adapter!r}, a name must not end like a version", field="adapter")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_FIELDS: Final = _Version.__struct_fields__


def _read(connection: sqlite3.Connection) -> dict[str, _Of]:
    versions: dict[str, list[_Version]] = {}
    for row in connection.execute(f"SELECT {', '.join(_FIELDS)} FROM adapters ORDER BY model, adapter, version"):
        values = dict(zip(_FIELDS, row, strict=True))
        one = _Version(**{**values, "is_used": bool(values["is_used"])})
        versions.setdefault(one.model, []).append(one)
    champions: dict[str, list[_Champion]] = {}
    for model, *values in connection.execute(
        "SELECT model, adapter, version, since, reason FROM adapter_champions ORDER BY id"
    ):
        champions.setdefault(model, []).append(_Champion(*values))
    tried = {
        model: _Tried(*values)
        for model, *values in connection.execute(
            "SELECT model, adapter, version, share, since, reason FROM adapter_canaries"
        )
    }
    return {
        model: _Of(tuple(found), tuple(champions.get(model, ())), tried.get(model)) for model, found in versions.items()
    }


def _write(connection: sqlite3.Connection, model: str, new: _Of) -> None:
    connection.execute("DELETE FROM adapter_canaries WHERE model = ?", (model,))
    connection.execute("DELETE FROM adapter_champions WHERE model = ?", (model,))
    connection.execute("DELETE FROM adapters WHERE model = ?", (model,))
    connection.executemany(
        f"INSERT INTO adapters ({', '.join(_FIELDS)}) VALUES ({', '.join('?' * len(_FIELDS))})",
        [msgspec.structs.astuple(one) for one in new.versions],
    )
    connection.executemany(
        "INSERT INTO adapter_champions (model, adapter, version, since, reason) VALUES (?, ?, ?, ?, ?)",
        [(model, *msgspec.structs.astuple(one)) for one in new.champions],
    )
    if new.tried is not None:
        connection.execute(
            "INSERT INTO adapter_canaries (model, adapter, version, share, since, reason) VALUES (?, ?, ?, ?, ?, ?)",
            (model, *msgspec.structs.astuple(new.tried)),
        )
