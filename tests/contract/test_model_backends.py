"""One suite over the backends that compute here: the demo model answers the same whatever runs it.

llama.cpp      its GGUF file, adapters as GGUF
transformers   its folder of safetensors, adapters as PEFT folders
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.settings import Settings
from schemas.bodies.model import ChatMessage, Tool, ToolCall
from schemas.errors import Unprocessable, Unsupported
from tests.peft_adapter import write_adapter
from workers.models.adapters.convert import convert
from workers.models.backends.backend import AdapterFile, Backend, Chunk, LoadFailed, Options, Outcome, Question
from workers.models.backends.choose import open_backend, own_words
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.control import LoadModel

GGUF = SHIPPED_ROOT / "olympus-demo.gguf"
HF = SHIPPED_ROOT / "hf"
DOCUMENTED = json.loads((SHIPPED_ROOT / "documented.json").read_text())
OPTIONS = Options(max_tokens=60, temperature=0.0, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.0, seed=1)


class Opened:
    """A backend under test, and how it wants adapters."""

    def __init__(self, backend: Backend, *, is_gguf: bool) -> None:
        self.backend = backend
        self._is_gguf = is_gguf

    def adapter(self, folder: Path, seed: int = 1) -> AdapterFile:
        """An adapter that changes every answer, in the backend's form."""
        written = write_adapter(folder, seed=seed)
        if not self._is_gguf:
            return written
        target = folder / f"{seed}.gguf"
        converted = convert(Path(written.path), GGUF, target)
        return AdapterFile(name=written.name, path=str(target), sha256=converted.sha256)


Open = Callable[[], AbstractAsyncContextManager[Opened]]


@pytest.fixture(params=["llama.cpp", "transformers"])
def open_one(request: pytest.FixtureRequest, settings: Settings) -> Open:
    """`async with open_one() as opened:` for each of them."""
    is_gguf = request.param == "llama.cpp"
    for name in ("llama_cpp", "gguf") if is_gguf else ("torch", "transformers", "peft"):
        pytest.importorskip(name, reason=f"{name} is not installed")

    @asynccontextmanager
    async def opening() -> AsyncIterator[Opened]:
        command = LoadModel(
            name="demo",
            path=str(GGUF if is_gguf else HF),
            settings=settings,
            format="gguf" if is_gguf else "safetensors",
            backend=request.param,
            threads=1,
        )
        backend = await open_backend(command, own_words(command))
        try:
            yield Opened(backend, is_gguf=is_gguf)
        finally:
            await backend.close()

    return opening


def chat(number: int = 0, **options: Any) -> Question:
    messages = tuple(ChatMessage(**message) for message in DOCUMENTED[number]["messages"])
    return Question(options=msgspec.structs.replace(OPTIONS, **options), messages=messages)


async def answer(backend: Backend, question: Question) -> Outcome:
    """The outcome, checked against the chunks it came in."""
    texts: list[str] = []
    tokens: list[int] = []
    async for part in backend.answer(question):
        if isinstance(part, Outcome):
            assert ("".join(texts), tokens) == (part.text, part.token_ids)
            return part
        texts.append(part.text)
        tokens += part.token_ids
    raise AssertionError("no outcome")


async def test_documented_answers_come_word_for_word(open_one: Open) -> None:
    """Template, tokenizer, computation and text together, all at once in common batches."""
    async with open_one() as opened:
        outcomes = await asyncio.gather(*(answer(opened.backend, chat(number)) for number in range(6)))
    assert [one.text for one in outcomes] == [one["answer"] for one in DOCUMENTED[:6]]
    assert {one.finish_reason for one in outcomes} == {"stop"}


async def test_log_probabilities_add_up_to_the_score(open_one: Open) -> None:
    """What was reported with the answer is what scoring it says; the greedy token is the likeliest."""
    async with open_one() as opened:
        outcome = await answer(opened.backend, Question(options=replaced(logprobs=2), text="The sea is"))
        ((total, count),) = await opened.backend.score(["The sea is"], [outcome.text], None)
    assert all(choice.top[0].token_id == choice.token_id for choice in outcome.logprobs)
    assert outcome.mean_logprob is not None
    assert count == len(outcome.token_ids) == len(outcome.logprobs)
    assert total == pytest.approx(sum(choice.logprob for choice in outcome.logprobs), abs=0.05)


async def test_how_likely_an_answer_was_is_known_without_asking(open_one: Open) -> None:
    """Mean and lowest log-probability are the same whether they were asked for or not."""
    async with open_one() as opened:
        plain = await answer(opened.backend, Question(options=replaced(), text="The sea is"))
        asked = await answer(opened.backend, Question(options=replaced(logprobs=1), text="The sea is"))
    lowest = min(choice.logprob for choice in asked.logprobs)
    assert (plain.mean_logprob, plain.min_logprob) == pytest.approx((asked.mean_logprob, lowest), abs=0.01)
    assert asked.min_logprob == pytest.approx(lowest, abs=0.01)


def replaced(**options: Any) -> Options:
    return msgspec.structs.replace(OPTIONS, **options)


async def test_scores_are_those_of_each_text_alone(open_one: Open) -> None:
    """Together or alone, with a prompt or without, an empty text counts nothing; a likelier text scores higher."""
    async with open_one() as opened:
        likely, unlikely = DOCUMENTED[0]["answer"], "qzx vbk jjq wwx zzy"
        prompts, texts = ["", "Hello", "", ""], [likely, " there", "", unlikely]
        together = await opened.backend.score(prompts, texts, None)
        alone = [
            (await opened.backend.score([prompt], [text], None))[0] for prompt, text in zip(prompts, texts, strict=True)
        ]
    for (left, left_count), (right, right_count) in zip(together, alone, strict=True):
        assert left == pytest.approx(right, abs=0.05)
        assert left_count == right_count
    assert together[2] == (0.0, 0)
    assert together[0][0] / together[0][1] > together[3][0] / together[3][1]


async def test_vectors_have_length_one_and_near_texts_are_near(open_one: Open) -> None:
    """More texts than fit into one batch; the same text has the same vector wherever it stands."""
    async with open_one() as opened:
        texts = ["Hello there", "What is the capital of France?", "long " * 300, *["Hello there"] * 20]
        vectors, tokens = await opened.backend.embed(texts, "refuse")
    values = [struct.unpack(f"<{len(vector) // 4}f", vector) for vector in vectors]
    assert tokens > 300
    assert all(math.fsum(x * x for x in vector) == pytest.approx(1.0, abs=1e-4) for vector in values)

    def alike(left: int, right: int) -> float:
        return math.fsum(a * b for a, b in zip(values[left], values[right], strict=True))

    assert alike(0, 22) == pytest.approx(1.0, abs=1e-3)
    assert alike(0, 1) < 0.99


async def test_too_long_is_refused_with_both_numbers_or_cut_as_asked(open_one: Open) -> None:
    """A text loses its beginning or its middle, a chat its oldest messages; what was dropped is told."""
    async with open_one() as opened:
        backend = opened.backend
        text = Question(options=replaced(max_tokens=4), text="one two three four " * 300)
        turns = [ChatMessage(role=role, content="word " * 12) for role in ("user", "assistant") * 30]
        talk = msgspec.structs.replace(chat(max_tokens=4), messages=(*turns, ChatMessage(role="user", content="Hello")))
        for question in (text, talk):
            with pytest.raises(Unprocessable) as caught:
                await answer(backend, question)
            whole = caught.value.details["prompt_tokens"]
            assert whole > caught.value.details["context_tokens"] == backend.context_tokens
            for truncate in ("start", "middle"):
                outcome = await answer(backend, msgspec.structs.replace(question, truncate=truncate))
                assert outcome.prompt_tokens < backend.context_tokens
                assert outcome.prompt_tokens + outcome.truncated_tokens == whole


async def test_follow_up_reads_only_what_is_new(open_one: Open) -> None:
    """Another answer in between takes nothing away, the answer is the same as without, and clearing it clears it."""
    async with open_one() as opened:
        backend = opened.backend
        opening = ChatMessage(role="user", content="Tell me about the sea and those who live by it. " * 6)
        first = await answer(backend, msgspec.structs.replace(chat(conversation_id="a"), messages=(opening,)))
        turns = (
            opening,
            ChatMessage(role="assistant", content=first.text),
            ChatMessage(role="user", content="And what else can you do for me today?"),
        )
        follow = msgspec.structs.replace(chat(conversation_id="a"), messages=turns)
        await answer(backend, chat(1))
        known = await answer(backend, follow)
        fresh = await answer(backend, msgspec.structs.replace(chat(conversation_id="b"), messages=turns))
        assert known.text == fresh.text
        assert known.cached_tokens >= first.prompt_tokens
        assert backend.forget("a") is True
        assert backend.forget("a") is False


async def test_adapters_side_by_side_each_give_their_own_answer(open_one: Open, tmp_path: Path) -> None:
    """Bare, one and another in common batches, and in the same conversation: no state crosses from one to another."""
    async with open_one() as opened:
        backend = opened.backend
        files = [opened.adapter(tmp_path, seed) for seed in (1, 2)]
        await backend.set_adapters(files)
        asked = [None, *(file.sha256 for file in files)]

        def ask(adapter: str | None, **more: Any) -> Question:
            # Few tokens: noise soon meets two tokens as likely as each other, which a batch may order in another way.
            return chat(adapter=adapter, max_tokens=8, **more)

        alone = [await answer(backend, ask(adapter)) for adapter in asked]
        together = await asyncio.gather(*(answer(backend, ask(asked[n % 3])) for n in range(9)))
        in_turn = [await answer(backend, ask(adapter, conversation_id="c")) for adapter in asked]
        scores = [(await backend.score([""], ["Hello there, friend"], adapter))[0][0] for adapter in asked]
        await backend.set_adapters([])
        bare = await answer(backend, ask(None))
    assert len({tuple(one.token_ids) for one in alone}) == 3
    assert [one.token_ids for one in together] == [alone[n % 3].token_ids for n in range(9)]
    assert [one.token_ids for one in in_turn] == [one.token_ids for one in alone]
    assert len({round(score, 3) for score in scores}) == 3
    assert bare.token_ids == alone[0].token_ids


async def test_adapter_that_does_not_fit_changes_nothing(open_one: Open, tmp_path: Path) -> None:
    """The ones before it in the same list are not attached either, and the one that was there still answers."""
    async with open_one() as opened:
        backend = opened.backend
        good = opened.adapter(tmp_path, 1)
        await backend.set_adapters([good])
        before = await answer(backend, chat(adapter=good.sha256))
        bad = AdapterFile(name="bad", path=str(tmp_path / "nothing"), sha256="b" * 64)
        with pytest.raises(LoadFailed, match="bad"):
            await backend.set_adapters([opened.adapter(tmp_path, 2), bad])
        assert (await answer(backend, chat(adapter=good.sha256))).token_ids == before.token_ids
        with pytest.raises(Unsupported):
            await answer(backend, chat(adapter=bad.sha256))


async def test_tools_can_be_described_called_and_answered(open_one: Open) -> None:
    """Messages with calls and results are rendered; where shapes can be asked for, a required call is one."""
    weather = Tool(
        name="get_weather",
        description="The weather of a city.",
        parameters={"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]},
    )
    call = ToolCall(id="abcdefghi", name="get_weather", arguments='{"city": "Rome"}')
    messages = (
        ChatMessage(role="user", content="How is the weather?"),
        ChatMessage(role="assistant", tool_calls=[call]),
        ChatMessage(role="tool", content="Sunny", tool_call_id=call.id),
    )
    async with open_one() as opened:
        backend = opened.backend
        told = Question(options=OPTIONS, messages=messages, tools=(weather,))
        assert (await answer(backend, told)).prompt_tokens > (await answer(backend, chat())).prompt_tokens
        required = msgspec.structs.replace(told, tool_choice="required", options=replaced(max_tokens=120))
        if "json_schema" not in backend.capabilities:
            with pytest.raises(Unsupported):
                await answer(backend, required)
            return
        outcome = await answer(backend, required)
        assert (outcome.finish_reason, outcome.text) == ("tool_calls", "")
        assert outcome.tool_calls[0].name == "get_weather"
        assert set(json.loads(outcome.tool_calls[0].arguments)) == {"city"}


async def test_leaving_an_answer_leaves_the_others_alone(open_one: Open) -> None:
    """A caller that goes away takes nothing with it."""
    async with open_one() as opened:

        async def left() -> None:
            async with aclosing(opened.backend.answer(chat(1))) as parts:
                assert isinstance(await anext(parts), Chunk)

        results = await asyncio.gather(answer(opened.backend, chat()), left(), answer(opened.backend, chat(2)))
    assert [one.text for one in results if one] == [DOCUMENTED[0]["answer"], DOCUMENTED[2]["answer"]]
