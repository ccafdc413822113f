"""A runner on a real bus, told what to do over its pipe: every operation, adapters, the device's lock, hostile files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import signal
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from bus.client import Client
from bus.device_lock import DeviceLock, read_lock
from bus.settings import Settings
from schemas.bodies.learning import AnswerEvent
from schemas.bodies.model import Chat, ChatMessage, ConversationClear, Embed, Generate, Score, Tool
from schemas.errors import BadRequest, NotFound, NoWorker, Unprocessable, WorkerLost
from schemas.purpose import UNOBSERVED
from tests.peft_adapter import write_adapter
from workers.models.adapters.canary import InUse
from workers.models.adapters.convert import convert
from workers.models.backends.backend import AdapterFile
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.control import (
    AdaptersSet,
    DrainRunner,
    LoadModel,
    News,
    RunnerFailed,
    RunnerLoaded,
    RunnerReady,
    RunnerUsed,
    RunnerWaiting,
    ServeModel,
    SetAdapters,
)
from workers.models.runner_process import RunnerProcess

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")

NAME = "demo"
GGUF = SHIPPED_ROOT / "olympus-demo.gguf"
DOCUMENTED = json.loads((SHIPPED_ROOT / "documented.json").read_text())
WAIT_S = 20.0

N = TypeVar("N")


class Running:
    """A runner process and everything it said. serve: what it is told when its model is in memory, if anything."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.serve: ServeModel | None = ServeModel()
        self.said: list[News] = []
        self.exit = ""
        self._changed = asyncio.Event()
        self.process = RunnerProcess(1, self._on_news, self._on_exit)

    def _on_news(self, _: int, news: News) -> None:
        self.said.append(news)
        if isinstance(news, RunnerReady) and self.serve is not None:
            self.process.send(self.serve)
        self._changed.set()

    def _on_exit(self, _: int, how: str) -> None:
        self.exit = how
        self._changed.set()

    async def hear(self, kind: type[N]) -> N:
        """The next news of this kind; what was said before it is forgotten."""
        async with asyncio.timeout(WAIT_S):
            while True:
                while self.said:
                    news = self.said.pop(0)
                    if isinstance(news, kind):
                        return news
                if self.exit:
                    pytest.fail(f"the runner ended with {self.exit} before it said {kind.__name__}")
                self._changed.clear()
                await self._changed.wait()

    def load(self, path: Path = GGUF, **more: Any) -> None:
        self.process.send(LoadModel(name=NAME, path=str(path), settings=self.settings, threads=1, **more))


@pytest.fixture
def run(serve_broker: Any) -> Any:
    """`async with run() as (runner, client):` starts a runner that waits for its model."""

    @asynccontextmanager
    async def running(**models: Any) -> AsyncIterator[tuple[Running, Client]]:
        async with serve_broker() as settings:
            changed = msgspec.structs.replace(settings, models=msgspec.structs.replace(settings.models, **models))
            runner = Running(changed)
            try:
                async with Client(changed, name="test") as client:
                    yield runner, client
            finally:
                runner.process.signal(signal.SIGKILL)
                await asyncio.wait_for(runner.process.ended(), WAIT_S)

    return running


def chat(number: int = 0, **more: Any) -> Chat:
    messages = [ChatMessage(**message) for message in DOCUMENTED[number]["messages"]]
    return Chat(messages=messages, temperature=0.0, **more)


async def ask(client: Client, request: Any, verb: str = "chat") -> Any:
    return await client.request(f"model.{verb}@{NAME}", request, timeout_s=WAIT_S)


def adapter(folder: Path, seed: int = 1, name: str = "tone") -> AdapterFile:
    """An adapter of the demo model as GGUF."""
    target = folder / f"{name}-{seed}.gguf"
    converted = convert(Path(write_adapter(folder, name, seed=seed).path), GGUF, target)
    return AdapterFile(name=name, path=str(target), sha256=converted.sha256)


async def test_every_operation_of_a_loaded_model(run: Any) -> None:
    """Answers, vectors, scores, log-probabilities, shapes, follow-ups; each is told to the service with its cost."""
    async with run() as (runner, client), client.subscribe("model.usage") as events:
        runner.load(sampling={"max_tokens": 5})
        loaded = await runner.hear(RunnerLoaded)
        assert {"generate", "chat", "embed", "adapters", "grammar", "json_schema"} <= set(loaded.capabilities)
        assert (loaded.context_tokens, loaded.ram_bytes > 0) == (512, True)

        # The length comes from what was loaded with the model unless the request says it.
        assert (await ask(client, chat())).usage.completion_tokens == 5
        answer = await ask(client, chat(max_tokens=100, logprobs=1))
        assert answer.text == DOCUMENTED[0]["answer"]
        assert len(answer.logprobs) == len(answer.token_ids)
        used = await runner.hear(RunnerUsed)
        used = await runner.hear(RunnerUsed)
        assert used.usage is not None and used.usage.mean_logprob is not None and used.usage.mean_logprob <= 0
        told = [await asyncio.wait_for(anext(events), WAIT_S) for _ in range(2)]
        assert told[1].body["mean_logprob"] == pytest.approx(used.usage.mean_logprob)

        vectors = await ask(client, Embed(texts=["Hello", "there"]), "embed")
        assert (vectors.dimension, len(vectors.vectors)) == (192, 2)
        values = struct.unpack("<192f", vectors.vectors[0])
        assert math.fsum(value * value for value in values) == pytest.approx(1.0, abs=1e-4)
        used = await runner.hear(RunnerUsed)
        assert used.usage is not None and used.usage.operation == "embed"

        scores = await ask(client, Score(texts=[answer.text, "qzx"], prompts=["Hello", ""]), "score")
        assert scores.tokens[0] > scores.tokens[1]
        assert all(value < 0 for value in scores.logprobs)

        shape = {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["n"],
        }
        shaped = await ask(client, chat(json_schema=shape, max_tokens=60))
        assert set(json.loads(shaped.text)) == {"n"}
        assert (await ask(client, chat(grammar='root ::= "yes" | "no"', max_tokens=9))).text in ("yes", "no")
        tool = Tool(name="add", parameters={"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]})
        called = await ask(client, chat(tools=[tool], tool_choice="required", max_tokens=90))
        assert [(one.name, json.loads(one.arguments)) for one in called.tool_calls] == [("add", {"a": None})]

        await ask(client, chat(conversation_id="c", max_tokens=100))
        again = await ask(client, chat(conversation_id="c", max_tokens=100))
        assert again.text == answer.text
        clear = ConversationClear(conversation_id="c")
        assert (await ask(client, clear, "conversation.clear")).was_kept
        assert not (await ask(client, clear, "conversation.clear")).was_kept

        cut = await ask(client, Generate(prompt="word " * 2000, truncate="middle", max_tokens=3), "generate")
        assert cut.truncated_tokens > 0 and cut.usage.prompt_tokens < 512


async def test_answers_are_told_to_who_learns_from_them(run: Any) -> None:
    """Question, answer and how sure the model was, under the id the reply names; no trial and no wrong request."""
    async with run() as (runner, client), client.subscribe("model.answered") as events:
        runner.load()
        await runner.hear(RunnerLoaded)
        await client.request(f"model.chat@{NAME}", chat(max_tokens=2), headers=UNOBSERVED)
        with pytest.raises(NotFound):
            await ask(client, chat(adapter="tone"))
        with pytest.raises(Unprocessable):
            await ask(client, chat(grammar='root ::= "x" root "b" | "x" root "d" | "y"'))
        answer = await ask(client, chat(conversation_id="c", logprobs=0, adapter=""))
        long = await ask(client, Generate(prompt="word " * 20_000, truncate="start", max_tokens=3), "generate")

        told = [
            msgspec.msgpack.decode((await asyncio.wait_for(anext(events), WAIT_S)).raw, type=AnswerEvent)
            for _ in range(3)
        ]

    failed, first, second = told
    assert failed.error.startswith("unprocessable: ") and failed.text == ""
    assert (first.reply_id, first.text, first.operation) == (answer.reply_id, answer.text, "chat")
    assert first.messages == chat().messages and first.conversation_id == "c" and first.is_adapter_asked
    logprobs = [choice.logprob for choice in answer.logprobs]
    assert first.mean_logprob == pytest.approx(sum(logprobs) / len(logprobs))
    assert first.min_logprob == pytest.approx(min(logprobs))
    assert (second.reply_id, second.is_cut, second.prompt, second.tokens) == (long.reply_id, True, None, 3)
    assert second.mean_logprob is not None and not second.is_adapter_asked


async def test_bad_requests_are_told_as_errors_and_the_next_one_works(run: Any) -> None:
    """Two shapes, a grammar that nothing fulfils, an unknown adapter, prompts that do not match the texts."""
    async with run() as (runner, client):
        runner.load()
        await runner.hear(RunnerLoaded)
        for kind, request, verb in [
            (BadRequest, chat(grammar="root ::= .", json_schema={}), "chat"),
            (BadRequest, chat(tools=[Tool(name="x")], tool_choice="required", response_format="json"), "chat"),
            (Unprocessable, chat(grammar="root ::= root"), "chat"),
            (Unprocessable, chat(grammar='root ::= "x" root "b" | "x" root "d" | "y"'), "chat"),
            (Unprocessable, chat(json_schema={"$ref": "https://example.org"}), "chat"),
            (NotFound, chat(adapter="tone"), "chat"),
            (BadRequest, Score(texts=["a", "b"], prompts=["c"]), "score"),
            (BadRequest, Embed(texts=["a"], model="another"), "embed"),
        ]:
            with pytest.raises(kind):
                await ask(client, request, verb)
            used = await runner.hear(RunnerUsed)
            assert used.usage is None
        assert (await ask(client, chat())).text == DOCUMENTED[0]["answer"]


async def test_adapters_come_and_go_while_answers_run(run: Any, tmp_path: Path) -> None:
    """By name, by champion, or none; a new content under a known name; one that does not fit changes nothing."""
    first, second = adapter(tmp_path, 1), adapter(tmp_path, 2)
    async with run() as (runner, client):
        runner.serve = ServeModel(use=InUse((first,), "tone"))
        runner.load()
        await runner.hear(RunnerLoaded)
        bare = await ask(client, chat(adapter=""))
        tone = await ask(client, chat())
        assert (bare.text, bare.adapter, tone.adapter) == (DOCUMENTED[0]["answer"], None, "tone")
        assert tone.token_ids != bare.token_ids
        with pytest.raises(NotFound, match="attached are: tone"):
            await ask(client, chat(adapter="tune"))

        # An answer that began with the old content ends with it.
        endless = chat(adapter="tone", max_tokens=300, grammar="root ::= [a-z ]{300,400}")
        running = asyncio.ensure_future(ask(client, endless))
        together = asyncio.ensure_future(ask(client, chat(1, adapter="")))
        assert (await together).text == DOCUMENTED[1]["answer"]
        runner.process.send(SetAdapters(id=1, use=InUse((second,))))
        assert (await runner.hear(AdaptersSet)).error == ""
        assert (await running).adapter == "tone"
        other = await ask(client, chat(adapter="tone"))
        assert (await ask(client, chat())).token_ids == bare.token_ids
        assert other.token_ids not in (bare.token_ids, tone.token_ids)

        bad = AdapterFile(name="bad", path=str(GGUF), sha256=hashlib.sha256(b"").hexdigest())
        runner.process.send(SetAdapters(id=2, use=InUse((first, bad), "tone")))
        said = await runner.hear(AdaptersSet)
        assert (said.id, "bad" in said.error) == (2, True)
        assert (await ask(client, chat(adapter="tone"))).token_ids == other.token_ids
        runner.process.send(SetAdapters(id=3, use=InUse()))
        assert (await runner.hear(AdaptersSet)).error == ""
        with pytest.raises(NotFound, match="attached are: none"):
            await ask(client, chat(adapter="tone"))


async def test_a_model_with_an_adapter_that_does_not_fit_is_not_loaded(run: Any, tmp_path: Path) -> None:
    """The reason names the adapter."""
    bad = AdapterFile(name="bad", path=str(GGUF), sha256="0" * 64)
    async with run() as (runner, _):
        runner.serve = ServeModel(use=InUse((adapter(tmp_path), bad)))
        runner.load()
        failed = await runner.hear(RunnerFailed)
        assert (failed.code, "adapter bad" in failed.message) == ("unprocessable", True)


async def test_a_model_in_memory_answers_nobody_before_it_is_told_to_serve(run: Any) -> None:
    """It keeps the lock of its load; a service that goes away meanwhile takes it along."""
    async with run() as (runner, client):
        runner.serve = None
        runner.load()
        await runner.hear(RunnerReady)
        with pytest.raises(NoWorker):
            await ask(client, chat())
        holder, _ = read_lock(runner.settings.path("locks"), "cpu")
        assert holder is not None and holder.purpose == "load"
        runner.process._process.stdin.close()
        await asyncio.wait_for(runner.process.ended(), WAIT_S)
        assert runner.exit == "exit code 0"
        assert read_lock(runner.settings.path("locks"), "cpu")[0] is None


async def test_the_load_waits_for_the_lock_and_says_for_whom(run: Any) -> None:
    """It loads when the lock comes free, and holds it no longer than the load."""
    async with run() as (runner, client):
        folder = runner.settings.path("locks")
        lock = DeviceLock(folder, "cpu")
        await lock.acquire(model="trainer", purpose="train", timeout_s=1)
        runner.load()
        waiting = await runner.hear(RunnerWaiting)
        assert "trainer" in waiting.reason and str(os.getpid()) in waiting.reason
        lock.release()
        await runner.hear(RunnerLoaded)
        assert read_lock(folder, "cpu")[0] is None
        assert (await ask(client, chat())).text == DOCUMENTED[0]["answer"]

        # Its end waits a moment for the lock too, but not for ever: it gives memory back.
        await lock.acquire(model="trainer", purpose="train", timeout_s=1)
        runner.process.send(DrainRunner())
        await asyncio.wait_for(runner.process.ended(), WAIT_S)
        assert runner.exit == "exit code 0"
        lock.release()


async def test_a_lock_that_stays_held_ends_the_load_with_its_holder_s_name(run: Any) -> None:
    """Bounded by models.load_timeout_s."""
    async with run(load_timeout_s=0.2) as (runner, _):
        lock = DeviceLock(runner.settings.path("locks"), "cpu")
        await lock.acquire(model="trainer", purpose="train", timeout_s=1)
        runner.load()
        failed = await runner.hear(RunnerFailed)
        assert (failed.code, "trainer" in failed.message) == ("deadline_exceeded", True)
        lock.release()


def hostile(folder: Path) -> Path:
    """A file whose header is right and whose vocabulary is not: llama.cpp goes down over it."""
    whole = GGUF.read_bytes()
    key = b"tokenizer.ggml.token_type"
    at = whole.index(key) + len(key) + 4 + 4
    # The array of token types is cut to nothing in its count while its bytes stay: everything behind is read askew.
    path = folder / "hostile.gguf"
    path.write_bytes(whole[:at] + (0).to_bytes(8, "little") + whole[at + 8 :])
    return path


async def test_a_file_that_breaks_llama_cpp_takes_only_the_runner_with_it(run: Any, tmp_path: Path) -> None:
    """Refused with llama.cpp's reason, or the process is gone: the pipe tells either way."""
    async with run() as (runner, _):
        runner.load(hostile(tmp_path))
        async with asyncio.timeout(WAIT_S):
            while not runner.exit and not any(isinstance(one, RunnerFailed) for one in runner.said):
                runner._changed.clear()
                await runner._changed.wait()
        assert not any(isinstance(one, RunnerLoaded) for one in runner.said)


async def test_a_native_crash_in_an_answer_is_worker_lost(run: Any) -> None:
    """What a bug of llama.cpp does to callers: a clear error, at once."""
    async with run() as (runner, client):
        runner.load()
        await runner.hear(RunnerLoaded)
        async with client.stream(f"model.chat@{NAME}", chat(max_tokens=400, grammar="root ::= [a-z ]{400}")) as parts:
            await anext(parts)
            runner.process.signal(signal.SIGSEGV)
            with pytest.raises(WorkerLost):
                async for _ in parts:
                    pass
        await asyncio.wait_for(runner.process.ended(), WAIT_S)
        assert runner.exit == "signal 11"
