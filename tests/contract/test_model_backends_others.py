"""One suite over the backends that are not llama.cpp: whatever computes an answer, a runner sees the same of it.

openai         a small local server that speaks the protocol
vllm           a small program in vLLM's place
transformers   the demo model
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.settings import Settings
from schemas.bodies.model import ChatMessage
from schemas.errors import Unsupported
from tests.openai_server import OpenAIServer
from workers.models.backends.backend import Backend, Chunk, Options, Outcome, Question, Remote
from workers.models.backends.choose import open_backend, own_words
from workers.models.control import LoadModel

pytest.importorskip("httpx", reason="the extra 'models' is not installed")

ROOT = Path(__file__).resolve().parents[2]
HF = ROOT / "workers" / "models" / "demo" / "hf"
OPTIONS = Options(max_tokens=8, temperature=0.0, top_k=40, top_p=1.0, min_p=0.0, repeat_penalty=1.0, seed=1)
CHAT = Question(options=OPTIONS, messages=(ChatMessage(role="user", content="Hello"),))
TEXT = Question(options=OPTIONS, text="Hello")

Opened = Callable[[], AbstractAsyncContextManager[Backend]]


async def opened(settings: Settings, **changes: Any) -> Backend:
    """The backend as a runner opens it."""
    command = LoadModel(**{"name": "demo", "path": str(HF), "settings": settings, "format": "safetensors", **changes})
    return await open_backend(command, own_words(command))


@pytest.fixture(params=["openai", "vllm", "transformers"])
def open_one(
    request: pytest.FixtureRequest, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Opened:
    """`async with open_one() as backend:` for each of them."""

    @asynccontextmanager
    async def openai() -> AsyncIterator[Backend]:
        vectors = {
            "data": [{"index": 0, "embedding": [3, 4]}, {"index": 1, "embedding": [1, 0]}],
            "usage": {"prompt_tokens": 2},
        }
        async with OpenAIServer(routes={"/v1/embeddings": vectors}).running() as server:
            remote = Remote(base_url=server.base_url, model="small")
            backend = await opened(settings, backend="openai", format="remote", remote=remote)
            try:
                yield backend
            finally:
                await backend.close()

    @asynccontextmanager
    async def vllm() -> AsyncIterator[Backend]:
        program = tmp_path / "vllm"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests" / "fake_vllm.py"} "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_VLLM_LOG", str(tmp_path / "log"))
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: None if name == "vllm" else find(name, *more)
        )
        backend = await opened(settings, backend="vllm")
        try:
            yield backend
        finally:
            await backend.close()

    @asynccontextmanager
    async def transformers() -> AsyncIterator[Backend]:
        for name in ("torch", "transformers"):
            pytest.importorskip(name, reason="the extra 'learning' is not installed")
        backend = await opened(settings, backend="transformers")
        try:
            yield backend
        finally:
            await backend.close()

    kinds: dict[str, Opened] = {"openai": openai, "vllm": vllm, "transformers": transformers}
    return kinds[request.param]


@pytest.mark.parametrize("question", [CHAT, TEXT], ids=["chat", "text"])
async def test_answer_is_its_chunks_and_ends_with_one_outcome(open_one: Opened, question: Question) -> None:
    """What was streamed is what the outcome holds, and its figures are there."""
    async with open_one() as backend:
        parts = [part async for part in backend.answer(question)]
        outcome, chunks = parts[-1], parts[:-1]
        assert isinstance(outcome, Outcome)
        texts = [chunk.text for chunk in chunks if isinstance(chunk, Chunk)]
        assert len(texts) == len(chunks) > 0
        assert "".join(texts) == outcome.text != ""
        assert [token for chunk in chunks if isinstance(chunk, Chunk) for token in chunk.token_ids] == outcome.token_ids
        assert outcome.finish_reason in ("stop", "length")
        counted = len(outcome.token_ids) if outcome.completion_tokens is None else outcome.completion_tokens
        assert outcome.prompt_tokens > 0 and counted > 0
        assert min(outcome.prompt_s, outcome.generate_s, outcome.first_token_s) >= 0


async def test_answers_run_side_by_side_and_one_that_is_closed_disturbs_none(open_one: Opened) -> None:
    """A caller that leaves takes nothing with it."""
    async with open_one() as backend:
        alone = [part async for part in backend.answer(CHAT)][-1]

        async def whole() -> Any:
            return [part async for part in backend.answer(CHAT)][-1]

        async def left() -> None:
            async with contextlib.aclosing(backend.answer(CHAT)) as parts:
                await anext(parts)

        results = await asyncio.gather(whole(), left(), whole(), left(), whole())
        assert isinstance(alone, Outcome)
        assert [result.text for result in results if result is not None] == [alone.text] * 3


async def test_capabilities_say_what_can_be_done(open_one: Opened) -> None:
    """What is not among them is Unsupported; what is, is done."""
    async with open_one() as backend:
        assert {"generate", "chat"} <= backend.capabilities
        assert backend.context_tokens > 0
        grammar = msgspec.structs.replace(CHAT, options=msgspec.structs.replace(OPTIONS, grammar='root ::= "a"'))
        if "grammar" in backend.capabilities:
            assert [part async for part in backend.answer(grammar)]
        else:
            with pytest.raises(Unsupported):
                assert [part async for part in backend.answer(grammar)]
        if "embed" not in backend.capabilities:
            with pytest.raises(Unsupported):
                await backend.embed(["a"], "refuse")


async def test_adapter_that_was_never_attached_is_unsupported(open_one: Opened) -> None:
    """An answer without the adapter would be a wrong one; none attached is fine with every backend."""
    async with open_one() as backend:
        await backend.set_adapters([])
        asked = msgspec.structs.replace(CHAT, options=msgspec.structs.replace(OPTIONS, adapter="0" * 64))
        with pytest.raises(Unsupported):
            assert [part async for part in backend.answer(asked)]
        assert isinstance([part async for part in backend.answer(CHAT)][-1], Outcome)


async def test_conversation_that_is_not_kept_is_not_forgotten(open_one: Opened) -> None:
    """`forget` tells whether there was something."""
    async with open_one() as backend:
        assert backend.forget("nobody") is False


async def test_scores_are_log_probabilities_or_unsupported(open_one: Opened) -> None:
    """A sum and a number of tokens for each text."""
    async with open_one() as backend:
        try:
            scores = await backend.score(["Hello", ""], [" there", "Hello there"], None)
        except Unsupported:
            return
        assert len(scores) == 2
        assert all(total < 0 and count > 0 for total, count in scores)


async def test_vectors_are_of_length_one(open_one: Opened) -> None:
    """Where vectors can be had."""
    async with open_one() as backend:
        if "embed" not in backend.capabilities:
            return
        vectors, tokens = await backend.embed(["Hello", "there"], "refuse")
        assert len(vectors) == 2 and tokens > 0
        for vector in vectors:
            values = struct.unpack(f"<{len(vector) // 4}f", vector)
            assert sum(value * value for value in values) == pytest.approx(1.0, abs=1e-4)
