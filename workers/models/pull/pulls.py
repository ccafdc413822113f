"""`model.pull`: one transfer for all who ask for the same, progress for each of them, and the finished model adopted.

What it fetches lies in a folder per source below home until all of it is whole and usable; a pull that was cut off, by the
line, its caller or the end of the process, is gone on with by the next one of that source.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from bus.settings import Settings, secret_of_environment
from bus.worker import Call, Worker
from schemas.bodies.model import ModelInfo, ModelList, Models, ModelShow
from schemas.bodies.model_files import ModelPull, ModelPulled, PullProgress
from schemas.errors import BadRequest, BusError, Conflict, NotFound, Unprocessable, Unsupported, WorkerLost
from workers.models.gguf_header import UnusableFile
from workers.models.pull.download import SPARE_BYTES, Download, in_thread
from workers.models.pull.hub import resolve_hub
from workers.models.pull.partfile import PartFile
from workers.models.pull.plan import Plan, RemoteFile
from workers.models.pull.progress import Meter
from workers.models.pull.registry import resolve_registry
from workers.models.pull.sources import HubSource, RegistrySource, Source, UrlSource, checked_name, parse_source
from workers.models.pull.usable import check_usable
from workers.models.pull.web import Patience, Unreachable, Web, origin
from workers.models.staging import staging_folder

log = logging.getLogger("olympus.models")

T = TypeVar("T")

# Seconds between two looks at a transfer for those who wait for it.
PROGRESS_S: Final = 0.25

# Seconds after which what a pull left behind, and nobody went on with, is thrown away.
_FORGET_S: Final = 30 * 86_400.0

# Names shown of what is here where nothing can be fetched.
_SHOWN_NAMES: Final = 12

_HUB_KEY: Final = "HF_TOKEN"
_LOCK: Final = "lock"

_Phase = Literal["resolving", "downloading", "verifying", "finishing"]


class Catalogued(Protocol):
    """The catalogue's part of the service as a pull sees it."""

    async def list_models(self, request: ModelList) -> Models:
        """Every model that is here."""

    async def show(self, request: ModelShow) -> ModelInfo:
        """One of them; raises NotFound."""

    async def adopt(self, staged: Path, name: str, source: str, sha256: str | None = None) -> ModelInfo:
        """Move a file, or a folder of files, into the first model root and call it `name`. sha256: of a single file."""


class _Key(msgspec.Struct, frozen=True):
    source: str
    name: str
    sha256: str | None


class _Running:
    """One transfer, and how many wait for it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.callers = 0
        self.progress = PullProgress(
            phase="resolving", file=source.name, done_bytes=0, total_bytes=0, rate_bytes_per_s=0.0
        )
        self.task: asyncio.Task[ModelPulled] | None = None


class Pulls:
    """The part of the model service that fetches models."""

    def __init__(self, worker: Worker, files: Catalogued, *, patience: Patience | None = None) -> None:
        self._worker = worker
        self._files = files
        self._settings: Settings = worker.settings
        self._patience = patience or Patience()
        self._running: dict[_Key, _Running] = {}
        self._is_stopping = False

    async def pull(self, request: ModelPull, call: Call) -> ModelPulled:
        """Fetch a model, or join who fetches it already.

        Raises BadRequest for a source or name that is none; Unsupported offline; Unprocessable for a full disk, a wrong
        checksum or what is no usable model; NotFound, Forbidden, QuotaExceeded, Internal as the server has it; Conflict
        when another process fetches the same; WorkerLost when this one leaves.
        """
        source = parse_source(request.source)
        name = checked_name(request.name) if request.name is not None else source.name
        if self._settings.models.is_offline:
            raise Unsupported(f"models.is_offline is true, so nothing is fetched; {await self._what_is_here()}")
        if self._is_stopping:
            raise _left(source)
        running = await self._join(_Key(request.source, name, request.sha256), source, request)
        try:
            return await self._follow(running, call)
        finally:
            running.callers -= 1
            if running.callers == 0 and running.task is not None:
                running.task.cancel()

    async def stop(self) -> None:
        """Cut off what is being fetched, keeping what has come; those who wait, and who come now, get WorkerLost."""
        self._is_stopping = True
        tasks = [running.task for running in self._running.values() if running.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _join(self, key: _Key, source: Source, request: ModelPull) -> _Running:
        while True:
            running = self._running.get(key)
            if running is None:
                running = self._running[key] = _Running(source)
                running.task = asyncio.create_task(self._run(running, key, request), name=f"pull {source.shown}")
                running.task.add_done_callback(lambda task: self._on_done(key, task))
            elif running.callers == 0 and running.task is not None:
                # Its last caller left just now, and it is putting away what came.
                await asyncio.wait({running.task})
                continue
            running.callers += 1
            return running

    def _on_done(self, key: _Key, task: asyncio.Task[ModelPulled]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            # Read here, since those who waited may all have gone.
            task.exception()

    async def _follow(self, running: _Running, call: Call) -> ModelPulled:
        assert running.task is not None
        shown = None
        while not running.task.done():
            await asyncio.wait({running.task}, timeout=PROGRESS_S)
            if running.progress != shown:
                shown = running.progress
                await call.partial(shown)
        if running.task.cancelled():
            raise _left(running.source)
        return running.task.result()

    async def _run(self, running: _Running, key: _Key, request: ModelPull) -> ModelPulled:
        started = time.monotonic()
        source = running.source
        log.info("pull begins", extra={"action": "model.pull.begun", "source": source.shown})
        try:
            return await self._fetch(running, key, request, started)
        except Unreachable as error:
            raise Unsupported(f"{source.shown} cannot be fetched: {error}; {await self._what_is_here()}") from error
        except OSError as error:
            at = error.filename2 or error.filename or "the disk"
            raise Unprocessable(f"{source.shown} cannot be kept: {at}: {error.strerror or error}") from error
        except BusError as error:
            log.warning(
                "pull failed", extra={"action": "model.pull.failed", "source": source.shown, "error": error.message}
            )
            raise

    async def _fetch(self, running: _Running, key: _Key, request: ModelPull, started: float) -> ModelPulled:
        source = running.source
        # Loading the client library takes 0.1 to 0.3 s.
        try:
            web = await asyncio.to_thread(Web, self._keys(), self._patience)
        except ImportError as error:
            raise Unsupported("the package httpx is not installed; pip install '.[models]' brings it") from error
        try:
            plan = _agreed(await self._resolve(web, source), request)
            name = request.name or plan.name
            if (here := await self._is_here(name, plan)) is not None:
                return _pulled(here, source, transferred_bytes=0, digest=here.sha256, started=started)
            async with self._staging(key, source) as folder:
                transfer = _Transfer(web, plan, folder, running)
                try:
                    return await self._adopted(transfer, name, source, started)
                finally:
                    transfer.shut()
        finally:
            await web.close()

    async def _adopted(self, transfer: _Transfer, name: str, source: Source, started: float) -> ModelPulled:
        digest = await transfer.run()
        staged = await transfer.stage(name)
        try:
            info = await self._files.adopt(staged, name, source.shown, digest)
        except BaseException:
            await transfer.unstage(staged)
            raise
        await transfer.forget()
        pulled = _pulled(
            info,
            source,
            transferred_bytes=transfer.transferred_bytes,
            digest=digest or info.sha256,
            started=started,
        )
        await self._tell(pulled)
        return pulled

    async def _tell(self, pulled: ModelPulled) -> None:
        log.info(
            "pulled",
            extra={
                "action": "model.pulled",
                "model": pulled.model,
                "source": pulled.source,
                "bytes": pulled.size_bytes,
            },
        )
        try:
            await self._worker.publish("model.pulled", pulled)
        except BusError as error:
            log.warning("event not published", extra={"action": "model.event.lost", "error": error.message})

    async def _resolve(self, web: Web, source: Source) -> Plan:
        models = self._settings.models
        match source:
            case RegistrySource():
                return await resolve_registry(web, models.registry_url, source)
            case HubSource():
                return await resolve_hub(web, models.hub_url, source)
            case UrlSource():
                return Plan(name=source.name, files=[RemoteFile(url=source.url, name=f"{source.name}.gguf")])

    def _keys(self) -> dict[str, str]:
        token = secret_of_environment(_HUB_KEY)
        # Such a token could not be sent, and the library's complaint would show it.
        if not all("!" <= character <= "~" for character in token):
            raise Unprocessable(f"{_HUB_KEY} holds characters that no token has")
        return {origin(self._settings.models.hub_url): token} if token else {}

    async def _is_here(self, name: str, plan: Plan) -> ModelInfo | None:
        """The model of this name, if it has the very content that would be fetched."""
        if plan.is_folder or plan.files[0].sha256 is None:
            return None
        with contextlib.suppress(NotFound):
            info = await self._files.show(ModelShow(model=name))
            if info.sha256 == plan.files[0].sha256:
                return info
        return None

    async def _what_is_here(self) -> str:
        here = await self._files.list_models(ModelList())
        names = sorted(info.name for info in here.models if info.state != "unusable")
        if not names:
            return "no model is here"
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        return f"here are: {', '.join(names[:_SHOWN_NAMES])}{more}"

    @asynccontextmanager
    async def _staging(self, key: _Key, source: Source) -> AsyncIterator[Path]:
        """The folder of one source, held against other processes. Raises Conflict when one of them holds it."""
        home = await asyncio.to_thread(_pulls_folder, self._settings)
        folder = home / hashlib.sha256(key.source.encode()).hexdigest()[:16]
        lock = await asyncio.to_thread(_lock, folder, source.shown)
        try:
            yield folder
        finally:
            os.close(lock)


class _Transfer:
    """The files of one plan on their way into a folder."""

    def __init__(self, web: Web, plan: Plan, folder: Path, running: _Running) -> None:
        self.transferred_bytes = 0
        self._web = web
        self._plan = plan
        self._folder = folder
        self._running = running
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pull")
        self._meter = Meter(time.monotonic())
        self._attempt = 1
        self._before_bytes = 0

    async def run(self) -> str | None:
        """Fetch every file; returns the sha256 of the only one, None for several."""
        plan = self._plan
        self._meter.total_bytes = plan.size_bytes
        await self._in_thread(lambda: _check_room(self._folder, plan))
        digest = None
        for file in plan.files:
            digest = await self._file(file)
        self._say("verifying", plan.files[-1].name)
        return digest if len(plan.files) == 1 else None

    async def stage(self, name: str) -> Path:
        """Give the files their names, and look whether they are a model. Raises Unprocessable, keeping nothing then."""
        self._say("verifying", name)
        paths = [self._folder / file.name for file in self._plan.files]
        for path in paths:
            os.replace(path.with_name(f"{path.name}.part"), path)
        try:
            await self._in_thread(lambda: check_usable(paths))
        except UnusableFile as error:
            await self.forget()
            raise Unprocessable(f"{self._running.source.shown} is no usable model: {error}") from error
        self._say("finishing", name)
        if not self._plan.is_folder:
            return paths[0]
        staged = self._folder / "whole"
        await self._in_thread(lambda: _gather(paths, staged))
        return staged

    async def unstage(self, staged: Path) -> None:
        """Put the files back where a later pull finds them."""
        if self._plan.is_folder:
            await self._in_thread(lambda: _scatter(staged, self._folder))

    async def forget(self) -> None:
        """Remove what is left of the pull."""
        await self._in_thread(lambda: shutil.rmtree(self._folder, ignore_errors=True))

    def shut(self) -> None:
        """End the thread that writes."""
        self._executor.shutdown()

    async def _file(self, remote: RemoteFile) -> str:
        # A URL may hold a key, so what is written down is its hash.
        identity = remote.sha256 or hashlib.sha256(remote.url.encode()).hexdigest()
        part = PartFile(self._folder, remote.name, identity)
        self._say("verifying", remote.name)
        try:
            await self._in_thread(part.open)
            while await self._in_thread(part.take_up):
                self._say("verifying", remote.name)
            self._meter.start_at(self._before_bytes + part.bytes, time.monotonic())
            download = Download(
                self._web,
                remote,
                part,
                executor=self._executor,
                on_bytes=lambda here: self._on_bytes(download, remote, here),
            )
            try:
                digest = await download.run()
            finally:
                self.transferred_bytes += download.transferred_bytes
            self._before_bytes += part.bytes
            return digest
        finally:
            await self._in_thread(part.close)

    def _on_bytes(self, download: Download, remote: RemoteFile, here: int) -> None:
        self._attempt = download.attempt
        if len(self._plan.files) == 1:
            self._meter.total_bytes = download.total_bytes
        self._meter.reach(self._before_bytes + here, time.monotonic())
        self._say("downloading", remote.name)

    def _say(self, phase: _Phase, file: str) -> None:
        now = time.monotonic()
        self._running.progress = PullProgress(
            phase=phase,
            file=file,
            done_bytes=self._meter.done_bytes,
            total_bytes=self._meter.total_bytes or 0,
            rate_bytes_per_s=self._meter.rate_bytes_per_s(now),
            eta_s=self._meter.eta_s(now),
            attempt=self._attempt,
        )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await in_thread(self._executor, work)


def _agreed(plan: Plan, request: ModelPull) -> Plan:
    """The plan with the checksum that was asked for. Raises BadRequest for several files, Unprocessable for another one."""
    if request.sha256 is None:
        return plan
    if len(plan.files) > 1:
        raise BadRequest(f"sha256 is for a single file, {request.source} has {len(plan.files)}", field="sha256")
    (file,) = plan.files
    if file.sha256 not in (None, request.sha256):
        raise Unprocessable(f"{request.source}: its sha256 is {file.sha256}, asked for was {request.sha256}")
    return msgspec.structs.replace(plan, files=[msgspec.structs.replace(file, sha256=request.sha256)])


def _left(source: Source) -> WorkerLost:
    return WorkerLost(f"the model service leaves; what came of {source.shown} is kept for the next pull")


def _pulled(
    info: ModelInfo, source: Source, *, transferred_bytes: int, digest: str | None, started: float
) -> ModelPulled:
    return ModelPulled(
        model=info.name,
        source=source.shown,
        size_bytes=info.size_bytes,
        sha256=digest or "",
        transferred_bytes=transferred_bytes,
        took_s=time.monotonic() - started,
    )


def _pulls_folder(settings: Settings) -> Path:
    folder = staging_folder(settings, "pulls")
    _forget_old(folder)
    return folder


def _forget_old(folder: Path) -> None:
    for old in folder.iterdir():
        with contextlib.suppress(OSError):
            if old.is_dir() and time.time() - max(one.stat().st_mtime for one in (old, *old.iterdir())) > _FORGET_S:
                shutil.rmtree(old, ignore_errors=True)


def _lock(folder: Path, shown: str) -> int:
    """A descriptor that holds the folder; the kernel lets go of it when the process ends, however that happens."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise _held(shown) from error
    if not _is_at(lock, folder / _LOCK):
        # Whoever held it has finished just now and removed the folder: this is a lock on nothing.
        os.close(lock)
        raise _held(shown)
    return lock


def _held(shown: str) -> Conflict:
    return Conflict(f"{shown} is being fetched already, by another process or under another name")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _check_room(folder: Path, plan: Plan) -> None:
    """Raises Unprocessable with both numbers when the disk cannot take what is not here yet."""
    needed = sum(max((file.size_bytes or 0) - _here_bytes(folder, file), 0) for file in plan.files)
    free = shutil.disk_usage(folder).free
    if needed and needed + SPARE_BYTES > free:
        raise Unprocessable(
            f"{plan.name} needs {needed} more bytes, the disk of {folder} has {free} free, of which {SPARE_BYTES} stay free",
            needed_bytes=needed,
            free_bytes=free,
        )


def _here_bytes(folder: Path, file: RemoteFile) -> int:
    for name in (f"{file.name}.part", file.name):
        with contextlib.suppress(OSError):
            return (folder / name).stat().st_size
    return 0


def _gather(paths: list[Path], staged: Path) -> None:
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    for path in paths:
        os.replace(path, staged / path.name)


def _scatter(staged: Path, folder: Path) -> None:
    if staged.is_dir():
        for path in staged.iterdir():
            os.replace(path, folder / path.name)
