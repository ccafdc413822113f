"""`model.tokenize` on a real bus: counts by the model's own vocabulary, in a process that holds no weights."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.client import Client
from bus.settings import Settings, child_environment
from schemas.bodies.model import Generate, ModelTokenize, TokenCounts
from schemas.errors import Internal, NotFound, Unprocessable
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.service import ModelService
from workers.models.tokenizer_process import TokenizerProcess

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

NAME = "olympus-demo"
DEMO = SHIPPED_ROOT / f"{NAME}.gguf"
WAIT_S = 30.0
ROOT = Path(__file__).parents[2]

TEXTS = ["", "hello", "two words", "a longer sentence, with commas; and more.", "naïve 🙂 \0 text", "<|im_end|>"]


@asynccontextmanager
async def serving(settings: Settings, **models: Any) -> AsyncIterator[tuple[ModelService, Client]]:
    """The service and a client, with `settings.models` changed."""
    changed = msgspec.structs.replace(settings, models=msgspec.structs.replace(settings.models, **models))
    service = ModelService(changed)
    await service.start()
    try:
        async with Client(changed, name="test") as client:
            yield service, client
    finally:
        await service.stop()


async def tokenize(client: Client, texts: list[str], **more: Any) -> TokenCounts:
    reply: TokenCounts = await client.request("model.tokenize", ModelTokenize(texts=texts, **more), timeout_s=WAIT_S)
    return reply


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pid: int) -> None:
    """Wait until a process has ended."""
    for _ in range(int(WAIT_S / 0.02)):
        if not is_alive(pid):
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"process {pid} is still there")


async def test_tokens_are_counted_without_loading_the_model(serve_broker: Any) -> None:
    """Counts and ids agree, and the model's state does not change."""
    async with serve_broker() as settings, serving(settings, default="none") as (_, client):
        with_tokens = await tokenize(client, TEXTS, model=NAME, with_tokens=True)
        counts_only = await tokenize(client, TEXTS, model=NAME)
        models = await client.request("model.list", timeout_s=WAIT_S)
    assert with_tokens.tokens is not None
    assert with_tokens.counts == [len(tokens) for tokens in with_tokens.tokens]
    assert (counts_only.counts, counts_only.tokens) == (with_tokens.counts, None)
    assert with_tokens.counts[0] == 0
    assert all(count > 0 for count in with_tokens.counts[1:])
    assert [(model.name, model.state) for model in models.models if model.name == NAME] == [(NAME, "available")]


async def test_counts_agree_with_what_a_generation_reports(serve_broker: Any) -> None:
    """A prompt costs what was counted, but for the begin-of-text token."""
    prompt = "the quick brown fox"
    async with serve_broker() as settings, serving(settings) as (_, client):
        counted = await tokenize(client, [prompt])
        generation = await client.request("model.generate", Generate(prompt=prompt, max_tokens=1), timeout_s=WAIT_S)
    assert counted.model == NAME
    assert generation.usage.prompt_tokens - counted.counts[0] in (0, 1)


async def test_callers_at_once_each_get_their_own_counts(serve_broker: Any) -> None:
    """Answers are not mixed up between requests."""
    async with serve_broker() as settings, serving(settings, default="none") as (_, client):
        replies = await asyncio.gather(*(tokenize(client, ["word " * count], model=NAME) for count in range(1, 30)))
    counts = [reply.counts[0] for reply in replies]
    assert counts == sorted(counts)
    assert len(set(counts)) == len(counts)


async def test_an_unknown_model_and_a_broken_file_are_refused_by_name(serve_broker: Any) -> None:
    """The next request is served as before."""
    async with serve_broker() as settings:
        root = settings.path("models")
        root.mkdir(parents=True)
        whole = DEMO.read_bytes()
        (root / "cut.gguf").write_bytes(whole[: len(whole) // 2])
        async with serving(settings, default="none") as (_, client):
            with pytest.raises(NotFound, match="no model 'nowhere'"):
                await tokenize(client, ["a"], model="nowhere")
            with pytest.raises(Unprocessable, match="cut cannot be used"):
                await tokenize(client, ["hello"], model="cut")
            assert (await tokenize(client, ["hello"], model=NAME)).counts[0] > 0


async def test_a_crash_of_the_tokenizer_is_told_and_the_next_request_served() -> None:
    """Whoever asked when it died hears of it; a process that died while idle is not even noticed."""
    tokenizer = TokenizerProcess()
    try:
        first = await tokenizer.tokenize(NAME, str(DEMO), ["hello"], with_tokens=False)
        assert tokenizer.pid is not None
        os.kill(tokenizer.pid, signal.SIGSTOP)
        asking = asyncio.create_task(tokenizer.tokenize(NAME, str(DEMO), ["hello"], with_tokens=False))
        await asyncio.sleep(0)
        os.kill(tokenizer.pid, signal.SIGKILL)
        with pytest.raises(Internal, match="crashed"):
            await asking
        assert (await tokenizer.tokenize(NAME, str(DEMO), ["hello"], with_tokens=False)).counts == first.counts
    finally:
        await tokenizer.stop()


async def test_a_tokenizer_that_hangs_is_ended() -> None:
    """The caller gets an error in time, the next one an answer."""
    tokenizer = TokenizerProcess()
    try:
        first = await tokenizer.tokenize(NAME, str(DEMO), ["hello"], with_tokens=False)
        assert tokenizer.pid is not None
        pid = tokenizer.pid
        os.kill(pid, signal.SIGSTOP)
        tokenizer._request_s = 0.2
        with pytest.raises(Internal, match=r"did not answer in 0\.2 s"):
            await tokenizer.tokenize(NAME, str(DEMO), ["hello"], with_tokens=False)
        await gone(pid)
        tokenizer._request_s = WAIT_S
        assert (await tokenizer.tokenize(NAME, str(DEMO), ["hello"], with_tokens=False)).counts == first.counts
    finally:
        await tokenizer.stop()


async def test_an_idle_tokenizer_leaves() -> None:
    """It holds memory only while somebody counts, and comes back when asked."""
    tokenizer = TokenizerProcess(idle_s=0.05)
    try:
        first = await tokenizer.tokenize(NAME, str(DEMO), ["hello"], with_tokens=False)
        assert tokenizer.pid is not None
        await gone(tokenizer.pid)
        assert (await tokenizer.tokenize(NAME, str(DEMO), ["hello"], with_tokens=False)).counts == first.counts
    finally:
        await tokenizer.stop()


async def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    """A vocabulary is remembered by the file's size and time, not by its name alone."""
    path = tmp_path / "model.gguf"
    shutil.copyfile(DEMO, path)
    tokenizer = TokenizerProcess()
    try:
        await tokenizer.tokenize("model", str(path), ["hello"], with_tokens=False)
        path.write_bytes(b"no model at all, but of another size")
        with pytest.raises(Unprocessable, match="model has no usable vocabulary"):
            await tokenizer.tokenize("model", str(path), ["hello"], with_tokens=False)
        path.unlink()
        with pytest.raises(Unprocessable, match="No such file"):
            await tokenizer.tokenize("model", str(path), ["hello"], with_tokens=False)
    finally:
        await tokenizer.stop()


PARENT = """
import asyncio, sys
from workers.models.tokenizer_process import TokenizerProcess

async def main():
    tokenizer = TokenizerProcess()
    await tokenizer.tokenize("demo", sys.argv[1], ["hello"], with_tokens=False)
    print(tokenizer.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_tokenizer_does_not_outlive_a_killed_service() -> None:
    """kill -9 of the service leaves no process behind."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        str(DEMO),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=child_environment(None, {}, PYTHONPATH=str(ROOT)),
    )
    assert parent.stdout is not None
    try:
        pid = int(await asyncio.wait_for(parent.stdout.readline(), WAIT_S))
    finally:
        parent.kill()
        await parent.wait()
    await gone(pid)
