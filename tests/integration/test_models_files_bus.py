"""Model files over a real bus: the operations as callers meet them, and the catalogue's copy in a real MemoryHub."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.client import Client
from bus.settings import Settings
from bus.worker import Worker
from schemas.bodies.memory import KvGet, KvList
from schemas.bodies.model import ModelList, ModelShow
from schemas.bodies.model_files import ModelAlias, ModelDelete, ModelImport, ModelRescan, ModelVerify
from schemas.errors import Conflict, Forbidden, NotFound
from workers.memory.service import service
from workers.models.catalogue import SHIPPED_ROOT, Catalogue
from workers.models.files import handlers, mirror, reading
from workers.models.files.files import Files
from workers.models.records import model_records

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

DEMO = SHIPPED_ROOT / "olympus-demo.gguf"
WAIT_S = 20.0


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Client]:
    """The part on a worker of its own, and a client."""
    root = settings.path("models")
    root.mkdir(parents=True, exist_ok=True)
    records = model_records(settings.path("models.db"))
    await records.open()
    worker = Worker("model", settings)
    files = Files(settings, Catalogue([root, SHIPPED_ROOT]), records, worker.client, lambda info: info)
    handlers.register(worker, files)
    await files.start()
    try:
        await worker.start()
        async with Client(settings, name="test") as client:
            yield client
    finally:
        await files.stop()
        await worker.stop()
        await records.close()


async def eventually(ask: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool], what: str) -> Any:
    """The first answer for which `holds`; NotFound is an answer that does not."""
    answer: Any = None
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    answer = await ask()
                    if holds(answer):
                        return answer
                except NotFound as error:
                    answer = error
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"waited {WAIT_S} s for {what}, last: {answer}")


async def test_a_model_is_brought_in_named_verified_and_deleted_over_the_bus(
    serve_broker: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operation answers with the reply its catalogue entry declares, with progress on the way."""
    monkeypatch.setattr(reading, "STEP_BYTES", 2 * 1024 * 1024)
    source = tmp_path / "theirs.gguf"
    shutil.copyfile(DEMO, source)
    async with serve_broker() as settings, serving(settings) as client:
        steps = []
        ask = ModelImport(path=str(source), name="mine", mode="copy")
        async with client.stream("model.import", ask, timeout_s=WAIT_S) as parts:
            async for part in parts:
                steps.append((part.step, part.done_bytes))
            assert parts.final.name == "mine"
        assert len(steps) > 1
        assert steps[-1] == ("copying", DEMO.stat().st_size)

        await client.request("model.alias", ModelAlias(alias="owner/mine:1", model="mine"))
        shown = await client.request("model.show", ModelShow(model="owner/mine:1"))
        assert (shown.name, shown.aliases, shown.backend) == ("mine", ["owner/mine:1"], "llama.cpp")
        verified = await client.request("model.verify", ModelVerify(model="mine"))
        assert (verified.is_intact, verified.sha256) == (True, shown.sha256)
        source.write_bytes(DEMO.read_bytes()[:-1] + b"\x7f")
        with pytest.raises(Conflict):
            await client.request("model.import", ModelImport(path=str(source), name="mine"))
        with pytest.raises(Forbidden):
            await client.request("model.delete", ModelDelete(model="olympus-demo"))
        assert (await client.request("model.delete", ModelDelete(model="mine"))).model == "mine"
        listed = await client.request("model.list", ModelList())
        assert "mine" not in [info.name for info in listed.models]


async def test_a_cancelled_import_over_the_bus_leaves_nothing_in_the_root(
    serve_broker: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who goes away takes the work along."""
    monkeypatch.setattr(reading, "STEP_BYTES", 1024)
    monkeypatch.setattr(reading, "_CHUNK_BYTES", 1024)
    source = tmp_path / "theirs.gguf"
    shutil.copyfile(DEMO, source)
    async with serve_broker() as settings, serving(settings) as client:
        ask = ModelImport(path=str(source), mode="copy")
        async with client.stream("model.import", ask, timeout_s=WAIT_S) as parts:
            await anext(parts)
            parts.cancel()
        root = settings.path("models")

        async def names() -> list[str]:
            return [path.name for path in root.iterdir()]

        await eventually(names, lambda found: found == [], "the root to be empty again")
        listed = await client.request("model.rescan", ModelRescan())
        assert "theirs" not in [info.name for info in listed.models]


async def test_the_catalogue_reaches_a_memory_that_starts_later(
    serve_broker: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever searches in MemoryHub finds the models of this installation, and no longer those that went."""
    monkeypatch.setattr(mirror, "_RETRY_S", 0.05)
    monkeypatch.setattr(mirror, "_RETRY_MAX_S", 0.1)
    async with serve_broker() as settings, serving(settings) as client:
        shutil.copyfile(DEMO, settings.path("models") / "mine.gguf")
        await client.request("model.rescan", ModelRescan())
        async with service(settings) as memory:
            await memory.start(10)
            try:

                async def entry() -> Any:
                    return await client.request("memory.kv.get", KvGet(key="mine", ns="models"))

                found = await eventually(entry, lambda entry: True, "the model in memory")
                assert (found.value["family"], found.value["format"]) == ("llama", "gguf")
                await client.request("model.delete", ModelDelete(model="mine"))

                async def keys() -> list[str]:
                    page = await client.request("memory.kv.list", KvList(ns="models", keys_only=True))
                    return [entry.key for entry in page.entries]

                assert "olympus-demo" in await eventually(keys, lambda keys: "mine" not in keys, "the model's end")
            finally:
                await memory.stop()
