"""Quantising and exporting over a real bus, with real child processes and the real catalogue."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bus.client import Client
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.model import Score, Scores
from schemas.bodies.model_files import (
    AdapterInfo,
    AdapterList,
    Adapters,
    FileProgress,
    ModelConverted,
    ModelExport,
    ModelQuantize,
)
from schemas.errors import Conflict, Internal, NotFound, Unprocessable, Unsupported, WorkerLost
from workers.models.catalogue import SHIPPED_ROOT, Catalogue
from workers.models.convert import child_process
from workers.models.convert.conversions import Conversions
from workers.models.convert.handlers import register
from workers.models.convert.types import QUANTISED
from workers.models.files.files import Files
from workers.models.gguf_header import read_header
from workers.models.records import model_records

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

DEMO = "olympus-demo"
WAIT_S = 40.0


class Rig(NamedTuple):
    client: Client
    settings: Settings
    scored: list[Score]
    adapters: list[AdapterInfo]
    conversions: Conversions

    @property
    def root(self) -> Path:
        return self.settings.path("models")

    async def quantize(self, type: str, **more: Any) -> ModelConverted:
        return await self.client.request(
            "model.quantize", ModelQuantize(model=DEMO, type=type, **more), timeout_s=WAIT_S
        )

    def left(self) -> list[Path]:
        """What conversions left behind."""
        return list(self.settings.path("conversions").iterdir())


@pytest.fixture
def rig(serve_broker: Any) -> Callable[..., Any]:
    """`async with rig() as it:` runs broker, catalogue and conversions; has_scores=False leaves nobody to measure."""

    @asynccontextmanager
    async def run(*, has_scores: bool = True) -> AsyncIterator[Rig]:
        async with serve_broker() as settings:
            root = settings.path("models")
            root.mkdir(parents=True, exist_ok=True)
            records = model_records(settings.path("models.db"))
            await records.open()
            worker = Worker("model", settings)
            files = Files(settings, Catalogue([root, SHIPPED_ROOT]), records, worker.client, lambda info: info)
            scored: list[Score] = []
            adapters: list[AdapterInfo] = []
            conversions = Conversions(worker, files)
            register(worker, conversions)
            if has_scores:
                _serve_scores(worker, scored)

            @worker.handles("model.adapter.list")
            async def list_adapters(request: AdapterList, call: Call) -> Adapters:
                return Adapters(adapters=[one for one in adapters if one.model == request.model])

            shutil.copytree(SHIPPED_ROOT / "hf", root / "theirs")
            await files.start()
            await worker.start(WAIT_S)
            try:
                async with Client(settings, name="test") as client:
                    yield Rig(client, settings, scored, adapters, conversions)
            finally:
                await files.stop()
                await worker.stop()
                await records.close()

    return run


def _serve_scores(worker: Worker, scored: list[Score]) -> None:
    """One bit lost for each token of the shipped model, two for any other; a token is a byte."""

    @worker.handles("model.score")
    async def score(request: Score, call: Call) -> Scores:
        scored.append(request)
        bits = 1 if request.model == DEMO else 2
        tokens = [len(text.encode()) for text in request.texts]
        return Scores(model=request.model or "", logprobs=[-bits * math.log(2) * one for one in tokens], tokens=tokens)


async def test_a_smaller_copy_is_made_adopted_and_measured(rig: Callable[..., Any]) -> None:
    """Progress on the way, a new usable entry, and what the copy lost."""
    async with rig() as it:
        request = ModelQuantize(model=DEMO, type="q8_0")
        async with it.client.stream("model.quantize", request, timeout_s=WAIT_S) as parts:
            steps = [part async for part in parts]
        done = parts.final
        header = read_header(it.root / f"{DEMO}-Q8_0.gguf")
        sha256 = hashlib.sha256((it.root / f"{DEMO}-Q8_0.gguf").read_bytes()).hexdigest()
        assert not it.left()
    assert (done.model.name, done.model.quantisation, done.model.state) == (f"{DEMO}-Q8_0", "Q8_0", "available")
    assert done.model.sha256 == sha256
    assert done.model.size_bytes < 0.6 * done.source_bytes
    assert header.quantisation == "Q8_0"
    assert (done.perplexity_before, done.perplexity_after) == (pytest.approx(2.0), pytest.approx(4.0))
    assert all(isinstance(step, FileProgress) for step in steps)
    assert (steps[-1].step, steps[-1].done_bytes) == ("hashing", done.model.size_bytes)
    assert [one.model for one in it.scored] == [DEMO, f"{DEMO}-Q8_0"]
    assert it.scored[0].texts == it.scored[1].texts
    assert max(len(text.encode()) for text in it.scored[0].texts) < 512, "a piece may be longer than the window"


async def test_two_who_make_the_same_copy_at_once_make_one(rig: Callable[..., Any]) -> None:
    """The later one hears that the name is taken, and replaces nothing."""
    async with rig(has_scores=False) as it:
        first, second = await asyncio.gather(it.quantize("Q8_0"), it.quantize("Q8_0"), return_exceptions=True)
    assert {type(first), type(second)} == {ModelConverted, Conflict}


async def test_a_text_of_ones_own_is_measured(rig: Callable[..., Any]) -> None:
    """Cut between characters, not within one, and nothing of it lost."""
    text = "Straße, 日本語 und 🙂. " * 40
    async with rig() as it:
        await it.quantize("Q4_K_M", name="small", perplexity_text=text)
        assert (it.root / "small.gguf").exists()
    assert "".join(it.scored[0].texts) == text


async def test_without_anybody_to_measure_there_is_no_perplexity(rig: Callable[..., Any]) -> None:
    """The copy is made all the same."""
    async with rig(has_scores=False) as it:
        done = await it.quantize("F32")
    assert (done.perplexity_before, done.perplexity_after) == (None, None)
    assert done.model.quantisation == "F32"


async def test_what_cannot_be_quantised_says_why(rig: Callable[..., Any]) -> None:
    """An unknown type names the allowed ones; names are checked; a folder is exported first; nothing is left."""
    async with rig() as it:
        with pytest.raises(Unprocessable, match=r"Q8_0, Q6_K, .*TQ1_0") as caught:
            await it.quantize("Q9_9")
        assert caught.value.details["allowed"] == list(QUANTISED)
        with pytest.raises(Unprocessable, match="IQ1_S"):
            await it.quantize("IQ1_S")
        with pytest.raises(Conflict, match="already"):
            await it.quantize("Q8_0", name=DEMO)
        with pytest.raises(NotFound):
            await it.client.request("model.quantize", ModelQuantize(model="nothing", type="Q8_0"), timeout_s=WAIT_S)
        with pytest.raises(Unprocessable, match="export it first"):
            await it.client.request("model.quantize", ModelQuantize(model="theirs", type="Q8_0"), timeout_s=WAIT_S)
        with pytest.raises(Unprocessable, match="only safetensors"):
            await it.client.request("model.export", ModelExport(model=DEMO), timeout_s=WAIT_S)
        with pytest.raises(Unprocessable, match="exported as: F32, F16, BF16, Q8_0"):
            await it.client.request("model.export", ModelExport(model="theirs", type="Q4_0"), timeout_s=WAIT_S)
        assert not it.settings.path("conversions").exists()


async def test_a_copy_bigger_than_the_disk_is_refused_with_both_numbers(
    rig: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before the child starts."""
    real = shutil.disk_usage
    async with rig() as it:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
        with pytest.raises(Unprocessable, match="has 1000 free"):
            await it.quantize("Q8_0")
        assert not it.left()


async def test_a_child_that_crashes_is_told_and_nothing_is_left(
    rig: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native code that dies over a file takes the child with it, not the service."""
    real = asyncio.create_subprocess_exec

    async def killed(*args: Any, **more: Any) -> Any:
        process = await real(*args, **more)
        process.send_signal(signal.SIGSEGV)
        return process

    async with rig() as it:
        with monkeypatch.context() as patched:
            patched.setattr(child_process.asyncio, "create_subprocess_exec", killed)
            with pytest.raises(Internal, match="signal 11"):
                await it.quantize("Q8_0")
        assert not it.left()
        await it.quantize("Q8_0")


async def test_a_caller_who_leaves_ends_the_child(rig: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No core is kept busy for nobody, and nothing half done becomes a model."""
    real = asyncio.create_subprocess_exec
    started: asyncio.Queue[Any] = asyncio.Queue()

    async def stopped(*args: Any, **more: Any) -> Any:
        process = await real(*args, **more)
        process.send_signal(signal.SIGSTOP)
        started.put_nowait(process)
        return process

    monkeypatch.setattr(child_process.asyncio, "create_subprocess_exec", stopped)
    async with rig() as it:
        caller = asyncio.create_task(it.quantize("Q8_0"))
        process = await asyncio.wait_for(started.get(), WAIT_S)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await asyncio.wait_for(process.wait(), WAIT_S)
        assert process.returncode == -signal.SIGKILL
        monkeypatch.undo()
        await it.quantize("Q8_0")
        assert not it.left()


async def test_a_service_that_leaves_ends_the_child(rig: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets an error that may be tried again, at once."""
    real = asyncio.create_subprocess_exec
    started: asyncio.Queue[Any] = asyncio.Queue()

    async def stopped(*args: Any, **more: Any) -> Any:
        process = await real(*args, **more)
        process.send_signal(signal.SIGSTOP)
        started.put_nowait(process)
        return process

    monkeypatch.setattr(child_process.asyncio, "create_subprocess_exec", stopped)
    async with rig() as it:
        caller = asyncio.create_task(it.quantize("Q8_0"))
        process = await asyncio.wait_for(started.get(), WAIT_S)
        await it.conversions.stop()
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(WorkerLost, match="leaves"):
            await caller
        assert not it.left()


async def test_what_a_killed_service_left_is_removed(rig: Callable[..., Any]) -> None:
    """A folder that nobody holds goes; one that another process works in stays."""
    import fcntl

    async with rig() as it:
        home = it.settings.path("conversions")
        for name in ("dead", "alive"):
            (home / name).mkdir(parents=True)
            (home / name / "lock").touch()
            (home / name / "half.gguf").write_bytes(b"x")
        with held(home / "alive" / "lock", fcntl.LOCK_EX):
            await it.quantize("Q8_0")
            assert [path.name for path in it.left()] == ["alive"]


@contextlib.contextmanager
def held(path: Path, how: int) -> Iterator[None]:
    import fcntl

    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


async def test_a_folder_is_exported_and_serves_as_a_gguf_model(rig: Callable[..., Any]) -> None:
    """The demo model's folder becomes the file that was shipped, as far as the catalogue can see; its name is no option."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    async with rig() as it:
        async with it.client.stream(
            "model.export", ModelExport(model="theirs", name="--again"), timeout_s=WAIT_S
        ) as parts:
            steps = [part async for part in parts]
        done = parts.final
        shipped = read_header(SHIPPED_ROOT / f"{DEMO}.gguf")
        header = read_header(it.root / "--again.gguf")
        assert not it.left()
    assert (done.model.name, done.model.format, done.model.quantisation) == ("--again", "gguf", "F16")
    assert done.model.chat_template == shipped.text("tokenizer.chat_template")
    assert (header.parameters, header.context_tokens) == (shipped.parameters, shipped.context_tokens)
    assert steps[-1].step == "hashing"
    assert [one.model for one in it.scored] == ["theirs", "--again"]


async def test_an_adapter_is_found_by_name_or_version(rig: Callable[..., Any], tmp_path: Path) -> None:
    """One that is unknown, or no PEFT folder, is refused before anything is written."""
    async with rig() as it:
        it.adapters.append(
            AdapterInfo(
                model="theirs", adapter="tone", version=1, sha256="", size_bytes=0, path=str(tmp_path), added_at=0.0
            )
        )
        with pytest.raises(NotFound, match="tone:1"):
            await it.client.request("model.export", ModelExport(model="theirs", adapter="other"), timeout_s=WAIT_S)
        for name in ("tone", "tone:1"):
            with pytest.raises(Unsupported, match="only a PEFT folder"):
                await it.client.request("model.export", ModelExport(model="theirs", adapter=name), timeout_s=WAIT_S)
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
        with pytest.raises(Unsupported, match="IA3"):
            await it.client.request("model.export", ModelExport(model="theirs", adapter="tone"), timeout_s=WAIT_S)


def test_the_types_are_those_of_the_library() -> None:
    """Numbers that llama.cpp gives its file types, by its own constants."""
    import llama_cpp

    for name, type in QUANTISED.items():
        constant = "LLAMA_FTYPE_ALL_F32" if name == "F32" else f"LLAMA_FTYPE_MOSTLY_{name}"
        assert getattr(llama_cpp, constant) == type.ftype, name
