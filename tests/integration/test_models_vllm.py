"""The vLLM backend with a small program in vLLM's place: start, requests, adapters, sleep, and every end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from bus.client import Client
from bus.settings import Settings
from schemas.bodies.model import ChatMessage, Generate
from schemas.errors import DeadlineExceeded, Unsupported, WorkerLost
from workers.models.backends import guard, guarded, vllm
from workers.models.backends.backend import AdapterFile, Backend, Chunk, LoadFailed, Options, Outcome, Question
from workers.models.control import LoadModel
from workers.models.service import ModelService

pytest.importorskip("httpx", reason="the extra 'models' is not installed")

ROOT = Path(__file__).resolve().parents[2]
HF = ROOT / "workers" / "models" / "demo" / "hf"
OPTIONS = Options(max_tokens=8, temperature=0.0, top_k=40, top_p=1.0, min_p=0.0, repeat_penalty=1.0, seed=1)


# A runner as far as its child is concerned.
RUNNER = """
import asyncio
from workers.models.backends import guarded
async def main():
    arguments = "serve m --host 127.0.0.1 --served-model-name m --port 0 --max-model-len 1 --max-num-seqs 1"
    await guarded.start("vllm", ["vllm", *arguments.split()], {})
    await asyncio.sleep(600)
asyncio.run(main())
"""


class Fake:
    """The program's place, and what it wrote down."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "fake.jsonl"
        self.log.touch()

    @property
    def notes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def start(self) -> dict[str, Any]:
        return next(note for note in self.notes if "started" in note)

    def asked(self, path: str) -> list[Any]:
        """Bodies of the requests to `path`, in order."""
        return [note["body"] for note in self.notes if note.get("path") == path]

    async def is_gone(self) -> None:
        """Wait until neither the program nor the process it started is there."""
        start = self.start
        async with asyncio.timeout(20):
            while any(psutil.pid_exists(start[name]) and _lives(start[name]) for name in ("pid", "core")):
                await asyncio.sleep(0.02)


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """`vllm` on the PATH, and not among the packages."""
    place = tmp_path / "bin"
    place.mkdir()
    program = place / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests" / "fake_vllm.py"} "$@"\n')
    program.chmod(0o755)
    found = Fake(tmp_path)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_VLLM_LOG", str(found.log))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else find_spec(name, *rest)
    )
    return found


def command_of(settings: Settings, **changes: Any) -> LoadModel:
    """What the service would tell a runner."""
    return LoadModel(
        **{"name": "demo", "path": str(HF), "settings": settings, "format": "safetensors", "backend": "vllm", **changes}
    )


@asynccontextmanager
async def loaded(settings: Settings, **changes: Any) -> AsyncIterator[vllm.Vllm]:
    """A backend whose child is gone at the end."""
    backend = await vllm.load(command_of(settings, **changes))
    assert isinstance(backend, vllm.Vllm)
    try:
        yield backend
    finally:
        await backend.close()


async def ask(backend: Backend, text: str, **options: Any) -> Outcome:
    """The end of an answer to `text`."""
    question = Question(options=msgspec.structs.replace(OPTIONS, **options), text=text)
    async with contextlib.aclosing(backend.answer(question)) as parts:
        async for part in parts:
            if isinstance(part, Outcome):
                return part
    raise AssertionError("no outcome")


def adapter_of(folder: Path, name: str, sha256: str, **changes: Any) -> AdapterFile:
    """An adapter whose files are there; what is in them is vLLM's to say."""
    folder /= f"{name}-{sha256[:4]}"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return AdapterFile(name=name, path=str(folder), sha256=sha256, **changes)


async def test_name_that_looks_like_an_option_is_none(settings: Settings, fake: Fake) -> None:
    """A folder can be called like an option, one that lets code run for instance."""
    async with loaded(settings, name="--trust-remote-code"):
        start = fake.start

    assert start["started"]["served_model_name"] == "--trust-remote-code"
    assert "--trust-remote-code" not in start["more"]


async def test_child_is_started_with_the_model_and_its_limits(settings: Settings, fake: Fake) -> None:
    """Window, sequences, cache and LoRA on the command line; the rule's own arguments last; the key in no list."""
    async with loaded(settings, context_tokens=256, parallel=3, arguments=("--seed", "5")) as backend:
        start = fake.start
        assert backend.context_tokens == 256
        assert backend.capabilities == {"generate", "chat", "json_schema", "grammar", "adapters"}

    assert start["started"]["model"] == str(HF)
    assert start["started"]["host"] == "127.0.0.1"
    assert (start["started"]["max_model_len"], start["started"]["max_num_seqs"]) == (256, 3)
    assert start["more"][-2:] == ["--seed", "5"]
    assert "--enable-lora" in start["more"] and "--enable-sleep-mode" not in start["more"]
    # 2 x 6 layers x 3 heads x 32 numbers x 2 bytes, for 3 sequences of 256 tokens and 256 to spare.
    assert start["more"][start["more"].index("--kv-cache-memory-bytes") + 1] == str(2 * 6 * 3 * 32 * 2 * 3 * 512)
    assert start["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert start["environment"]["HF_HUB_OFFLINE"] == "1"


async def test_text_and_chat_go_through_with_their_tokens(settings: Settings, fake: Fake) -> None:
    """Requests carry the child's key; vLLM says which tokens it made."""
    async with loaded(settings) as backend:
        outcome = await ask(backend, "hello")
        assert (outcome.text, outcome.token_ids, outcome.prompt_tokens) == ("demo:hello", [1, 2], 5)
        parts = backend.answer(Question(options=OPTIONS, messages=(ChatMessage(role="user", content="hi"),)))
        assert [part.text for part in [part async for part in parts] if isinstance(part, Chunk)] == ["demo:", "hi"]

    keys = {note["key"] for note in fake.notes if "path" in note}
    assert len(keys) == 1 and len(keys.pop()) > 40


async def test_score_counts_the_text_after_its_prompt(settings: Settings, fake: Fake) -> None:
    """A token of the fake is a character, its log-probability a hundredth of its code, less than 0."""
    async with loaded(settings) as backend:
        scores = await backend.score(["ab", ""], ["cd", "ef"], None)

    assert scores == [(pytest.approx(-(99 + 100) / 100), 2), (pytest.approx(-1.02), 1)]
    assert [body["add_special_tokens"] for body in fake.asked("/tokenize")] == [True, False, True]


async def test_metrics_of_the_child_are_kept_in_a_file(
    settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prometheus text as the child writes it, written anew, and gone with the model."""
    monkeypatch.setattr(vllm, "METRICS_S", 0.02)
    file = settings.path("metrics", "vllm-demo.prom")
    async with loaded(settings):
        for _ in range(2):
            async with asyncio.timeout(10):
                while not file.exists():
                    await asyncio.sleep(0.01)
            assert file.read_text() == "vllm:num_requests_running 0.0\n"
            file.unlink()
    assert not file.exists()


async def test_model_for_vectors_makes_them_and_nothing_else(
    settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the child can do follows from the paths it opens."""
    async with loaded(settings) as backend:
        with pytest.raises(Unsupported, match="pooling"):
            await backend.embed(["a"], "refuse")
    monkeypatch.setenv("FAKE_VLLM_MODE", "pooling")
    async with loaded(settings, arguments=("--runner", "pooling")) as backend:
        assert backend.capabilities == {"embed"}
        vectors, tokens = await backend.embed(["a", "b"], "refuse")
    assert ([struct.unpack("<2f", vector) for vector in vectors], tokens) == ([(0.0, 1.0)] * 2, 3)


# Adapters -----------------------------------------------------------------------------------------------------------


async def test_adapter_is_attached_and_taken_off_by_name_and_content(
    settings: Settings, fake: Fake, tmp_path: Path
) -> None:
    """The same name with another content is another adapter: no cache of the child mixes them up."""
    old, new = adapter_of(tmp_path, "tone", "a" * 64), adapter_of(tmp_path, "tone", "b" * 64)
    async with loaded(settings) as backend:
        await backend.set_adapters([old])
        assert (await ask(backend, "x", adapter=old.sha256)).text == f"tone@{'a' * 16}:x"
        await backend.set_adapters([new])
        assert (await ask(backend, "x", adapter=new.sha256)).text == f"tone@{'b' * 16}:x"
        with pytest.raises(Unsupported, match="aaaa"):
            await ask(backend, "x", adapter=old.sha256)
        assert (await ask(backend, "x")).text == "demo:x"

    assert fake.asked("/v1/load_lora_adapter") == [
        {"lora_name": f"tone@{'a' * 16}", "lora_path": old.path},
        {"lora_name": f"tone@{'b' * 16}", "lora_path": new.path},
    ]
    assert fake.asked("/v1/unload_lora_adapter") == [{"lora_name": f"tone@{'a' * 16}"}]


async def test_adapter_that_does_not_fit_changes_nothing(settings: Settings, fake: Fake, tmp_path: Path) -> None:
    """One of two is refused: the other is taken off again, and the earlier one stays."""
    old, good, bad = (adapter_of(tmp_path, name, name[0] * 64) for name in ("first", "good", "bad"))
    async with loaded(settings) as backend:
        await backend.set_adapters([old])
        with pytest.raises(LoadFailed, match=r"adapter bad does not fit.*max_lora_rank"):
            await backend.set_adapters([good, bad])
        assert fake.asked("/v1/unload_lora_adapter") == [{"lora_name": f"good@{'g' * 16}"}]
        assert (await ask(backend, "x", adapter=old.sha256)).text.startswith("first@")


async def test_adapter_in_a_form_that_vllm_does_not_take_is_refused(
    settings: Settings, fake: Fake, tmp_path: Path
) -> None:
    """A scale of its own, a pickle, or a child that was started without LoRA."""
    async with loaded(settings) as backend:
        with pytest.raises(LoadFailed, match=r"scale 0\.5"):
            await backend.set_adapters([adapter_of(tmp_path, "half", "c" * 64, scale=0.5)])
        with pytest.raises(LoadFailed, match="safetensors"):
            await backend.set_adapters([AdapterFile(name="x", path=str(tmp_path), sha256="d" * 64)])
    async with loaded(settings, arguments=("--no-enable-lora",)) as backend:
        with pytest.raises(LoadFailed, match="without LoRA"):
            await backend.set_adapters([adapter_of(tmp_path, "tone", "e" * 64)])


# Sleep --------------------------------------------------------------------------------------------------------------


async def test_idle_child_on_a_gpu_sleeps_and_wakes_for_a_request(
    settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of the device is given back while nobody asks; the next request gets it again first."""
    monkeypatch.setattr(vllm, "SLEEP_AFTER_S", 0.05)
    monkeypatch.setattr(vllm, "_gpu_share", lambda *_: 0.25)
    async with loaded(settings, device="gpu1") as backend:
        async with asyncio.timeout(10):
            while not backend.is_asleep:
                await asyncio.sleep(0.01)
        monkeypatch.setattr(vllm, "SLEEP_AFTER_S", 60.0)
        assert (await ask(backend, "x")).text == "demo:x"
        assert not backend.is_asleep

    paths = [note["path"] for note in fake.notes if "path" in note]
    assert paths == ["/sleep?level=1", "/wake_up", "/v1/completions"]
    assert fake.start["environment"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert fake.start["environment"]["VLLM_SERVER_DEV_MODE"] == "1"
    more = fake.start["more"]
    assert "--enable-sleep-mode" in more and more[more.index("--gpu-memory-utilization") + 1] == "0.250"


async def test_child_does_not_sleep_under_a_request(settings: Settings, fake: Fake) -> None:
    """Sleeping would end what is in flight."""
    async with loaded(settings) as backend:
        parts = backend.answer(Question(options=OPTIONS, text="x"))
        await anext(parts)
        await backend.sleep()
        assert not backend.is_asleep
        await parts.aclose()
        await backend.sleep()
        assert backend.is_asleep


# Ends ---------------------------------------------------------------------------------------------------------------


async def test_closing_ends_the_child_and_what_it_started(settings: Settings, fake: Fake) -> None:
    """Also a process of the child that ignores SIGTERM."""
    async with loaded(settings):
        pass
    await fake.is_gone()


async def test_child_that_ignores_sigterm_is_ended_by_force(
    settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard asks, waits, and then kills."""
    monkeypatch.setenv("FAKE_VLLM_MODE", "stubborn")
    monkeypatch.setattr(guarded, "STOP_S", 0.3)
    async with loaded(settings):
        pass
    await fake.is_gone()


async def test_child_dies_with_a_runner_that_is_killed(settings: Settings, fake: Fake) -> None:
    """kill -9 of the runner leaves nothing behind, not even what the child itself started."""
    runner = await asyncio.create_subprocess_exec(sys.executable, "-c", RUNNER, cwd=ROOT)
    try:
        async with asyncio.timeout(20):
            while not fake.notes:
                await asyncio.sleep(0.02)
    finally:
        runner.kill()
        await runner.wait()
    await fake.is_gone()


async def test_child_that_fails_says_why(
    settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own error is the reason; its log is in ours, long lines cut."""
    caplog.set_level(logging.DEBUG, "olympus.models.program")
    monkeypatch.setenv("FAKE_VLLM_MODE", "fail")
    with pytest.raises(LoadFailed, match="exit code 1: ValueError: no such quantisation"):
        await vllm.load(command_of(settings))
    await fake.is_gone()

    told = [record for record in caplog.records if "www" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert told[0].getMessage().startswith("vllm: WARNING 01-01 www") and len(told[0].getMessage()) < 2_100


async def test_child_that_never_serves_is_ended_in_time(
    settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """models.load_timeout_s is the limit."""
    monkeypatch.setenv("FAKE_VLLM_MODE", "hang")
    models = msgspec.structs.replace(settings.models, load_timeout_s=1.0)
    with pytest.raises(DeadlineExceeded, match="within 1 s"):
        await vllm.load(command_of(msgspec.structs.replace(settings, models=models)))
    await fake.is_gone()


async def test_cancelled_load_ends_the_child(settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would end it later."""
    monkeypatch.setenv("FAKE_VLLM_MODE", "hang")
    task = asyncio.ensure_future(vllm.load(command_of(settings)))
    async with asyncio.timeout(20):
        while not fake.notes:
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await fake.is_gone()


async def test_child_that_dies_is_noticed_and_named(settings: Settings, fake: Fake) -> None:
    """Requests end with worker_lost and its exit code, and `ended` is set for whoever keeps the backend."""
    async with loaded(settings) as backend:
        with pytest.raises(WorkerLost):
            await ask(backend, "die")
        async with asyncio.timeout(10):
            await backend.program.ended.wait()
        assert backend.program.exit_code == 3
        with pytest.raises(WorkerLost, match="exit code 3"):
            await ask(backend, "x")
    await fake.is_gone()


async def test_missing_vllm_says_what_to_install(
    settings: Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither a package nor a program; and a folder without weights is refused before that."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="extra 'vllm'"):
        await vllm.load(command_of(settings))
    with pytest.raises(LoadFailed, match="safetensors"):
        await vllm.load(command_of(settings, path=str(tmp_path)))


def test_guard_gives_the_exit_code_of_its_program() -> None:
    """Of a program that ends by itself."""
    program = [sys.executable, "-c", "raise SystemExit(7)"]
    command = [sys.executable, "-m", guard.__name__, "--stop-s", "1", "--", *program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as running:
        assert running.wait(30) == 7


async def test_a_program_that_ends_by_itself_takes_its_runner_along_and_is_started_again(
    serve_broker: Any, fake: Fake, tmp_path: Path
) -> None:
    """The service hears of a crash, as of any other runner's, and the next request loads the model anew."""
    async with serve_broker() as settings:
        rules = settings.path("models.toml")
        rules.parent.mkdir(parents=True, exist_ok=True)
        rules.write_text('[[rule]]\nmodels = ["demo-hf"]\nbackend = "vllm"\n')
        models = msgspec.structs.replace(settings.models, default="none", predict=False)
        service = ModelService(msgspec.structs.replace(settings, models=models))
        await service.start()
        try:
            async with Client(settings, name="test") as client, client.subscribe("model.failed") as failures:
                asked = Generate(model="demo-hf", prompt="a", max_tokens=4)
                await client.request("model.generate", asked, timeout_s=20)
                first = fake.start["pid"]
                os.kill(first, signal.SIGKILL)
                async with asyncio.timeout(20):
                    failure = await anext(failures)
                reply = await client.request("model.generate", asked, timeout_s=20)
        finally:
            await service.stop()

    assert failure.body["model"] == "demo-hf"
    assert "exit code 1" in failure.body["reason"]
    assert reply.model == "demo-hf"
    assert sum("started" in note for note in fake.notes) == 2
