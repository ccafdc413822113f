"""`model.quantize` and `model.export`: a new GGUF model made in a child process, adopted, and measured against its source."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.model import ModelInfo, ModelShow
from schemas.bodies.model_files import (
    AdapterInfo,
    AdapterList,
    Adapters,
    FileProgress,
    ModelConverted,
    ModelExport,
    ModelQuantize,
)
from schemas.errors import Conflict, NotFound, Unprocessable, Unsupported, WorkerLost
from workers.models.convert import saying
from workers.models.convert.child_process import convert
from workers.models.convert.perplexity import TEXT, perplexity
from workers.models.convert.types import exported_type, quantised_type, size_of
from workers.models.pull.progress import Meter
from workers.models.pull.sources import checked_name
from workers.models.staging import staging_folder

log = logging.getLogger("olympus.models")

# Seconds between two looks at a conversion for who waits for it.
_PROGRESS_S: Final = 0.25

# Seconds for the list of adapters, which is kept in memory.
_ADAPTERS_S: Final = 10.0

_LOCK: Final = "lock"


class Catalogued(Protocol):
    """The catalogue's part of the service as a conversion sees it."""

    async def show(self, request: ModelShow) -> ModelInfo:
        """A model by its name or alias, as its files are now; raises NotFound."""

    async def adopt(self, staged: Path, name: str, source: str, sha256: str | None = None) -> ModelInfo:
        """Move a finished file into the first model root and call it `name`."""


class Conversions:
    """The part of the model service that makes models of models. One at a time: each takes every core."""

    def __init__(self, worker: Worker, files: Catalogued) -> None:
        self._worker = worker
        self._files = files
        self._settings: Settings = worker.settings
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[ModelConverted]] = set()
        self._is_stopping = False

    async def quantize(self, request: ModelQuantize, call: Call) -> ModelConverted:
        """Make a copy of a GGUF model in another number format.

        Raises Unprocessable for an unknown type (naming the allowed ones), for a full disk, and with llama.cpp's reason;
        Conflict for a name that is taken; NotFound; Unsupported without llama-cpp-python; WorkerLost when the service
        leaves.
        """
        return await self._run(self._quantize(request, call))

    async def export(self, request: ModelExport, call: Call) -> ModelConverted:
        """Write a safetensors model as GGUF, with an adapter merged into it if one is named.

        Raises as `quantize` does, and Unsupported for a network or a tokenizer that cannot be exported.
        """
        return await self._run(self._export(request, call))

    async def stop(self) -> None:
        """End what is being made; those who wait, and who come now, get WorkerLost."""
        self._is_stopping = True
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, work: Coroutine[Any, Any, ModelConverted]) -> ModelConverted:
        """`work`, which ends with who waits for it, or with the service."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if self._is_stopping:
            task.cancel()
        try:
            await asyncio.wait({task})
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():
            raise WorkerLost("the model service leaves; the conversion begins anew when it is asked for again")
        return task.result()

    async def _quantize(self, request: ModelQuantize, call: Call) -> ModelConverted:
        started = time.monotonic()
        type = quantised_type(request.type)
        source = await self._source(request.model, "gguf", "quantised; export it first")
        name = await self._free_name(request.name, f"{source.name}-{type}")
        threads = self._settings.models.threads or os.cpu_count() or 1
        arguments = ["quantise", "--source", source.path, "--type", type, "--threads", str(threads)]
        made = await self._made(source, name, type, arguments, f"{type} of {source.name}", call)
        return await self._measured(source, made, request.perplexity_text, started)

    async def _export(self, request: ModelExport, call: Call) -> ModelConverted:
        started = time.monotonic()
        type = exported_type(request.type)
        source = await self._source(request.model, "safetensors", "exported; a GGUF one is quantised")
        merged = f"-{request.adapter}" if request.adapter else ""
        name = await self._free_name(request.name, f"{source.name}{merged}-{type}")
        arguments = ["export", "--source", source.path, "--type", type, f"--name={name}"]
        if request.adapter is not None:
            arguments += ["--adapter", await self._adapter_folder(source.name, request.adapter)]
        what = f"{type} of {source.name}{f' with {request.adapter}' if request.adapter else ''}"
        made = await self._made(source, name, type, arguments, what, call)
        return await self._measured(source, made, "", started)

    async def _source(self, model: str, format: str, otherwise: str) -> ModelInfo:
        info = await self._files.show(ModelShow(model=model))
        if info.state == "unusable":
            raise Unprocessable(f"{info.name} cannot be used: {info.error}", model=info.name)
        if info.format != format:
            raise Unprocessable(f"{info.name} is a {info.format} model, only {format} ones can be {otherwise}")
        return info

    async def _free_name(self, wanted: str | None, otherwise: str) -> str:
        name = checked_name(wanted or otherwise)
        await self._check_free(name)
        return name

    async def _check_free(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            there = await self._files.show(ModelShow(model=name))
            raise Conflict(f"there is a model {name!r} already, {there.path}: delete it or name another", model=name)

    async def _adapter_folder(self, model: str, adapter: str) -> str:
        adapters: Adapters = await self._worker.client.request(
            "model.adapter.list", AdapterList(model=model), timeout_s=_ADAPTERS_S
        )
        chosen = _version(adapters.adapters, adapter)
        if chosen is None:
            known = ", ".join(f"{one.adapter}:{one.version}" for one in adapters.adapters) or "none"
            raise NotFound(f"{model} has no adapter {adapter!r}, it has: {known}", adapter=adapter)
        if not await asyncio.to_thread(os.path.isfile, os.path.join(chosen.path, "adapter_config.json")):
            raise Unsupported(f"adapter {adapter} is {chosen.path}; only a PEFT folder can be merged", adapter=adapter)
        return chosen.path

    async def _made(
        self, source: ModelInfo, name: str, type: str, arguments: list[str], what: str, call: Call
    ) -> ModelInfo:
        async with self._turn, self._staging() as folder:
            # Whoever had the turn before may have taken the name.
            await self._check_free(name)
            await asyncio.to_thread(_check_room, folder, source, type)
            target = folder / f"{name}.gguf"
            log.info("conversion begins", extra={"action": "model.convert.begun", "model": name, "type": type})
            sha256 = await _watched([*arguments, "--target", str(target)], call)
            info = await self._files.adopt(target, name, what, sha256)
        log.info("converted", extra={"action": "model.converted", "model": name, "bytes": info.size_bytes})
        return info

    async def _measured(self, source: ModelInfo, made: ModelInfo, text: str, started: float) -> ModelConverted:
        if not text:
            text = await asyncio.to_thread(TEXT.read_text, encoding="utf-8")
        context_tokens = min(info.context_tokens or 0 for info in (source, made))
        limit = self._settings.models.context_tokens or self._settings.models.max_context_tokens
        context_tokens = min(context_tokens or limit, limit)
        before = await perplexity(self._worker.client, source.name, text, context_tokens)
        after = await perplexity(self._worker.client, made.name, text, context_tokens)
        return ModelConverted(
            model=made,
            source_bytes=source.size_bytes,
            perplexity_before=before,
            perplexity_after=after,
            took_s=time.monotonic() - started,
        )

    @asynccontextmanager
    async def _staging(self) -> AsyncIterator[Path]:
        """A folder of this conversion's own, gone afterwards; those that killed processes left are removed first."""
        folder, lock = await asyncio.to_thread(_new_folder, self._settings)
        try:
            yield folder
        finally:
            os.close(lock)
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


def _version(adapters: list[AdapterInfo], wanted: str) -> AdapterInfo | None:
    """What requests mean by NAME (the champion of that name, or its newest version) and by NAME:VERSION."""
    for one in adapters:
        if wanted == f"{one.adapter}:{one.version}":
            return one
    named = [one for one in adapters if one.adapter == wanted]
    return max(named, key=lambda one: (one.alias == "champion", one.version), default=None)


async def _watched(arguments: list[str], call: Call) -> str:
    """Run a child, passing on how far it is; the sha256 of what it made."""
    latest: list[FileProgress] = []
    task = asyncio.create_task(convert(arguments, _reporter(latest)))
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_PROGRESS_S)
            if latest:
                await call.partial(latest.pop())
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _reporter(latest: list[FileProgress]) -> Callable[[saying.Step], None]:
    """Turns the child's steps into progress with a rate; only the newest one is kept in `latest`."""
    meter, name = Meter(time.monotonic()), ""

    def on_step(step: saying.Step) -> None:
        nonlocal name
        now = time.monotonic()
        if step.step != name:
            name = step.step
            meter.start_at(0, now)
        meter.total_bytes = step.total_bytes
        meter.reach(step.done_bytes, now)
        latest[:] = [
            FileProgress(
                step=step.step,
                done_bytes=step.done_bytes,
                total_bytes=step.total_bytes,
                rate_bytes_per_s=meter.rate_bytes_per_s(now),
                eta_s=meter.eta_s(now),
            )
        ]

    return on_step


def _new_folder(settings: Settings) -> tuple[Path, int]:
    home = staging_folder(settings, "conversions")
    for old in home.iterdir():
        _remove_if_left(old)
    folder = home / secrets.token_hex(8)
    folder.mkdir()
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder, lock


def _remove_if_left(folder: Path) -> None:
    """Remove what a process left that is no more: the kernel let go of its lock."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        # No lock yet: another process is making it just now.
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    finally:
        os.close(lock)
    shutil.rmtree(folder, ignore_errors=True)


def _check_room(folder: Path, source: ModelInfo, type: str) -> None:
    needed = size_of(source.parameters, type)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Unprocessable(
            f"{source.name} takes about {needed} bytes as {type}, the disk of {folder} has {free} free",
            needed_bytes=needed,
            free_bytes=free,
        )
