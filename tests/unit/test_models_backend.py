"""The llama.cpp loop on the shipped demo model: exact answers, common batches, cancel, stop strings, broken files."""

from __future__ import annotations

import array
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.bodies.model import ChatMessage, Generate
from schemas.errors import Internal
from workers.models.backends.backend import Chunk, LoadFailed, LoadOptions, Options, Outcome
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.chat import ChatTemplate
from workers.models.gguf_header import read_header

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from workers.models.backends import llama_cpp
from workers.models.backends.kept_states import KeptState, KeptStates
from workers.models.runner import sampling_options

DEMO = SHIPPED_ROOT / "olympus-demo.gguf"
DOCUMENTED = json.loads((SHIPPED_ROOT / "documented.json").read_text())


@asynccontextmanager
async def demo(parallel: int = 4, context_tokens: int = 512) -> AsyncIterator[llama_cpp.LlamaCpp]:
    options = LoadOptions(context_tokens=context_tokens, parallel=parallel, threads=1, gpu_layers=0)
    backend = llama_cpp.load(DEMO, options)
    try:
        yield backend
    finally:
        backend.close()


def greedy(**changes: Any) -> Options:
    plain = {"temperature": 0.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0, "seed": 1}
    return Options(**{"max_tokens": 200, **plain, **changes})


# A prompt and sampling that go on for hundreds of tokens: noise at a high temperature hardly ever ends by itself.
def endless(**changes: Any) -> Options:
    return greedy(max_tokens=400, temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, **changes)


async def answer(backend: llama_cpp.LlamaCpp, prompt: Sequence[int], options: Options) -> Outcome:
    """The outcome, checked against the chunks it came in."""
    chunks: list[Chunk] = []
    async for part in backend.generate(prompt, options):
        if isinstance(part, Outcome):
            assert "".join(chunk.text for chunk in chunks) == part.text
            assert [token for chunk in chunks for token in chunk.token_ids] == part.token_ids
            return part
        chunks.append(part)
    raise AssertionError("no outcome")


def prompts(backend: llama_cpp.LlamaCpp) -> list[list[int]]:
    template = ChatTemplate(read_header(DEMO).text("tokenizer.chat_template"), backend)
    return [template.tokens([ChatMessage(**message) for message in example["messages"]]) for example in DOCUMENTED]


async def test_greedy_answers_are_the_documented_ones() -> None:
    """Template, tokenizer, computation and detokenizer together, word for word."""
    async with demo() as backend:
        answers = [(await answer(backend, prompt, greedy())).text for prompt in prompts(backend)]
    assert answers == [example["answer"] for example in DOCUMENTED]


async def test_answers_in_a_common_batch_equal_those_given_alone() -> None:
    """More callers than sequences: everybody gets what they would get alone."""
    async with demo() as backend:
        alone = [await answer(backend, prompt, greedy()) for prompt in prompts(backend)]
        together = await asyncio.gather(*(answer(backend, prompt, greedy()) for prompt in prompts(backend)))
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


async def test_the_end_token_stops_and_the_limit_cuts() -> None:
    """finish_reason says which it was."""
    async with demo() as backend:
        prompt = prompts(backend)[0]
        whole = await answer(backend, prompt, greedy())
        cut = await answer(backend, prompt, greedy(max_tokens=3))
    assert whole.finish_reason == "stop"
    assert (cut.finish_reason, cut.token_ids) == ("length", whole.token_ids[:3])
    assert whole.prompt_tokens == len(prompt)


async def test_an_answer_ends_where_the_window_ends() -> None:
    """Prompt and answer together fill the window, never more."""
    async with demo(context_tokens=64) as backend:
        prompt = (prompts(backend)[0] * 20)[:60]
        outcome = await answer(backend, prompt, endless())
    assert outcome.finish_reason == "length"
    assert len(outcome.token_ids) <= 4


async def test_a_stop_string_cuts_the_answer_before_it() -> None:
    """It is found across token borders and never shown."""
    async with demo() as backend:
        outcome = await answer(backend, prompts(backend)[0], greedy(stop=("Olympus de",)))
    assert outcome.finish_reason == "stop"
    assert outcome.text == DOCUMENTED[0]["answer"].partition("Olympus de")[0]


async def test_a_seed_makes_sampling_repeatable() -> None:
    """The same seed gives the same tokens, another one others."""
    async with demo() as backend:
        prompt = prompts(backend)[0]
        first, again, other = [await answer(backend, prompt, endless(seed=seed)) for seed in (7, 7, 8)]
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


async def test_the_repeat_penalty_changes_a_repeating_answer() -> None:
    """The penalties stand at the head of the chain, for greedy answers too: counting repeats its commas."""
    async with demo() as backend:
        prompt = prompts(backend)[9]
        plain = await answer(backend, prompt, greedy())
        penalised = await answer(backend, prompt, greedy(repeat_penalty=5.0))
    assert plain.token_ids != penalised.token_ids


class CountingLibrary:
    """llama.cpp with its decodes counted."""

    def __init__(self, library: Any) -> None:
        self.decodes = 0
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def llama_decode(self, context: Any, batch: Any) -> int:
        self.decodes += 1
        return int(self._library.llama_decode(context, batch))


async def test_cancel_stops_within_one_token() -> None:
    """After the generator is closed at most the decode that was running is finished."""
    async with demo(parallel=1) as backend:
        library = backend._lib = CountingLibrary(backend._lib)
        async with aclosing(backend.generate(prompts(backend)[0], endless())) as parts:
            await anext(parts)
        before = library.decodes
        await answer(backend, prompts(backend)[1], greedy(max_tokens=1))
    assert library.decodes - before <= 2


async def test_a_long_prompt_is_read_in_pieces_while_others_stream() -> None:
    """A prompt of many pieces does not hold the running answer up: tokens come between the pieces."""
    async with demo(context_tokens=512) as backend:
        long_prompt = (prompts(backend)[1] * 80)[:500]
        running = backend.generate(prompts(backend)[0], endless())
        async with aclosing(running):
            await anext(running)
            library = backend._lib = CountingLibrary(backend._lib)
            outcome = await answer(backend, long_prompt, greedy(max_tokens=1))
    assert outcome.prompt_tokens == 500
    assert library.decodes >= 500 // llama_cpp.SHARED_PROMPT_TOKENS


async def test_waiting_jobs_are_answered_in_order_of_arrival() -> None:
    """One sequence, three callers: first come, first served."""
    finished: list[int] = []
    async with demo(parallel=1) as backend:

        async def one(number: int) -> None:
            await answer(backend, prompts(backend)[number], greedy(max_tokens=4))
            finished.append(number)

        await asyncio.gather(*(one(number) for number in range(3)))
    assert finished == [0, 1, 2]


async def test_a_failing_decode_ends_the_answers_and_the_next_one_works() -> None:
    """An error status of llama.cpp reaches every caller of the batch as `internal`."""
    async with demo() as backend:
        library = backend._lib

        class Failing(CountingLibrary):
            def llama_decode(self, context: Any, batch: Any) -> int:
                backend._lib = library
                return -3

        backend._lib = Failing(library)
        with pytest.raises(Exception, match="status -3"):
            await answer(backend, prompts(backend)[0], greedy())
        assert (await answer(backend, prompts(backend)[0], greedy())).text == DOCUMENTED[0]["answer"]


async def test_a_fault_of_the_loop_ends_the_answers_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a thread that is gone."""
    async with demo() as backend:
        with monkeypatch.context() as patch:
            patch.setattr(backend, "_step", lambda rows: 1 // 0)
            with pytest.raises(Internal, match="could not be computed"):
                await answer(backend, prompts(backend)[0], greedy())
        assert (await answer(backend, prompts(backend)[0], greedy())).text == DOCUMENTED[0]["answer"]


async def test_a_truncated_file_fails_with_llama_cpps_reason(tmp_path: Path) -> None:
    """The reason is a sentence, not a return code."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(DEMO.read_bytes()[:-1000])
    with pytest.raises(LoadFailed, match="not within the file bounds"):
        llama_cpp.load(cut, LoadOptions(context_tokens=64, parallel=1, threads=1, gpu_layers=0))
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    with pytest.raises(LoadFailed):
        llama_cpp.load(text, LoadOptions(context_tokens=64, parallel=1, threads=1, gpu_layers=0))


async def test_control_tokens_in_a_text_are_found() -> None:
    """What the chat template guards against."""
    async with demo() as backend:
        assert backend.control_texts(f"a {backend.eos_text} b") == {backend.eos_text}
        assert backend.control_texts("nothing special") == set()


def test_options_come_from_the_request_then_the_model_then_llama_cpp() -> None:
    """The order of the defaults."""
    from bus.settings import ModelSettings

    advised = {"temperature": 0.5, "top_k": 7, "max_tokens": 12, "stop": ["b"]}
    options = sampling_options(Generate(prompt="x", top_k=3), advised, ModelSettings(), "cafe")
    assert (options.temperature, options.top_k, options.top_p) == (0.5, 3, 0.95)
    assert (options.max_tokens, options.stop, options.adapter) == (12, ("b",), "cafe")
    assert sampling_options(Generate(prompt="x", stop=["a"]), advised, ModelSettings()).stop == ("a",)
    assert sampling_options(Generate(prompt="x"), {}, ModelSettings()).max_tokens == 256


async def test_a_conversation_outlives_those_who_use_its_sequence() -> None:
    """With one cache for all, and with a cache for each: its state is put aside and found again."""
    for context_tokens in (512, 8192):
        async with demo(parallel=2, context_tokens=context_tokens) as backend:
            prompt = prompts(backend)[1] * 3
            first = await answer(backend, prompt, greedy(conversation_id="a", max_tokens=20))
            await asyncio.gather(*(answer(backend, prompts(backend)[number], greedy()) for number in range(2, 8)))
            follow = [*prompt, *first.token_ids, *prompts(backend)[2]]
            known = await answer(backend, follow, greedy(conversation_id="a", max_tokens=20))
            fresh = await answer(backend, follow, greedy(max_tokens=20))
        assert known.token_ids == fresh.token_ids
        assert known.cached_tokens >= len(prompt)


async def test_a_beginning_that_another_is_reading_is_shared() -> None:
    """The second of two answers with the same long instructions reads only its own end."""
    async with demo(parallel=2) as backend:
        instructions = (prompts(backend)[1] * 40)[:200]
        alone = await answer(backend, [*instructions, *prompts(backend)[2]], greedy(max_tokens=20))
        running = backend.generate(instructions, endless())
        async with aclosing(running):
            await anext(running)
            second = await answer(backend, [*instructions, *prompts(backend)[2]], greedy(max_tokens=20))
    assert second.cached_tokens >= 200
    assert second.token_ids == alone.token_ids


def with_entries(whole: bytes, *entries: bytes) -> bytes:
    """A GGUF file with more metadata; the entries together must be a multiple of the alignment of 32 bytes."""
    more = b"".join(entries)
    assert len(more) % 32 == 0
    count = int.from_bytes(whole[16:24], "little") + len(entries)
    return whole[:16] + count.to_bytes(8, "little") + more + whole[24:]


async def test_a_model_made_for_vectors_makes_vectors_only(tmp_path: Path) -> None:
    """Its file names a pooling: no cache for answers is made, and each text is read at once."""

    def text(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value

    pooling = text(b"llama.pooling_type") + (4).to_bytes(4, "little") + (1).to_bytes(4, "little")
    note = text(b"note") + (8).to_bytes(4, "little")
    path = tmp_path / "vectors.gguf"
    padding = text(b"x" * (-(len(pooling) + len(note) + 8) % 32))
    path.write_bytes(with_entries(DEMO.read_bytes(), pooling, note + padding))
    backend = llama_cpp.load(path, LoadOptions(context_tokens=512, parallel=4, threads=1, gpu_layers=0))
    try:
        assert backend.capabilities == {"embed"}
        async with demo() as plain:
            tokens = plain.tokenize("Hello there, what can you do?", with_special=False)
            expected = await plain.embed([tokens])
        vectors = await backend.embed([tokens, tokens * 30])
        assert backend.forget("a") is False
        await backend.set_adapters([])
    finally:
        backend.close()
    left, right = (array.array("f", vector) for vector in (expected[0], vectors[0]))
    assert sum(a * b for a, b in zip(left, right, strict=True)) == pytest.approx(1.0, abs=1e-3)


def test_kept_states_are_the_latest_within_their_bound() -> None:
    """The least recently used goes first; another adapter's state is not found; what is too large is not kept."""
    kept = KeptStates(100)

    def state(size: int, adapter: str | None = None) -> KeptState:
        return KeptState([1, 2], adapter, b"", size)

    kept.put("a", state(40))
    kept.put("b", state(40, "cafe"))
    assert kept.get("a", None) is not None
    assert kept.get("b", None) is None
    kept.put("c", state(40))
    assert (kept.get("b", "cafe"), kept.size_bytes) == (None, 80)
    kept.put("a", state(101))
    assert (kept.get("a", None), kept.size_bytes) == (None, 40)
    kept.put("d", state(10, "cafe"))
    kept.drop_adapter("cafe")
    assert (kept.drop("d"), kept.drop("c"), kept.drop("c"), kept.size_bytes) == (False, True, False, 0)
