"""The transformers backend with the demo model: the tokens that llama.cpp makes, batches, adapters, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import math
import shutil
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="the extra 'learning' is not installed")
pytest.importorskip("transformers", reason="the extra 'learning' is not installed")

from schemas.bodies.model import ChatMessage  # noqa: E402
from schemas.errors import Internal, Unprocessable, Unsupported, WorkerLost  # noqa: E402
from tests.peft_adapter import LAYERS, TARGET, lora_weights, write_adapter  # noqa: E402
from workers.models.backends import llama_cpp, transformers  # noqa: E402
from workers.models.backends.backend import Chunk, LoadFailed, LoadOptions, Options, Outcome, Question  # noqa: E402
from workers.models.backends.local import LocalBackend  # noqa: E402

DEMO = Path(__file__).resolve().parents[2] / "workers" / "models" / "demo"
HF = DEMO / "hf"
TEMPLATE = json.loads((HF / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
DOCUMENTED: list[dict[str, Any]] = json.loads((DEMO / "documented.json").read_text(encoding="utf-8"))
LOAD = LoadOptions(context_tokens=512, parallel=4, threads=1, gpu_layers=0)
GREEDY = Options(max_tokens=64, temperature=0.0, top_k=40, top_p=1.0, min_p=0.0, repeat_penalty=1.0, seed=1)


@asynccontextmanager
async def loaded(path: Path = HF, **changes: Any) -> AsyncIterator[Any]:
    """A model that is closed at the end."""
    model: Any = transformers.load(path, msgspec.structs.replace(LOAD, **changes))
    try:
        yield model
    finally:
        model.close()


async def ask(model: Any, prompt: Sequence[int] | str, **changes: Any) -> Outcome:
    """The end of an answer; what was streamed is what it holds."""
    tokens = model.tokenize(prompt, with_special=True) if isinstance(prompt, str) else list(prompt)
    text, token_ids, logprobs = "", [], []
    async with contextlib.aclosing(model.generate(tokens, msgspec.structs.replace(GREEDY, **changes))) as parts:
        async for part in parts:
            if isinstance(part, Outcome):
                assert (part.text, part.token_ids, list(part.logprobs)) == (text, token_ids, logprobs)
                return part
            text += part.text
            token_ids += part.token_ids
            logprobs += part.logprobs
    raise AssertionError("no outcome")


def prompt_of(text: str) -> str:
    """A chat of one message, rendered."""
    return f"<|user|>{text}<|end|><|assistant|>"


PROMPTS = [
    *(prompt_of(entry["messages"][-1]["content"]) for entry in DOCUMENTED[:8]),
    prompt_of("tell me the river of Quibble 17 colour, why does Olympus sing? repeat: spell add hot not story " * 4),
    "Known facts about the user:\n- name: Ada",
]


@asynccontextmanager
async def in_llama_cpp() -> AsyncIterator[Any]:
    """The same weights in llama.cpp."""
    model: Any = llama_cpp.load(DEMO / "olympus-demo.gguf", LOAD)
    try:
        yield model
    finally:
        model.close()


async def test_greedy_answers_are_llama_cpps_token_for_token() -> None:
    """One by one, and ten at once in batches of four with prompts of every length."""
    async with in_llama_cpp() as other:
        reference = [(await ask(other, prompt)).token_ids for prompt in PROMPTS]
    async with loaded() as model:
        alone = [await ask(model, prompt) for prompt in PROMPTS]
        together = await asyncio.gather(*(ask(model, prompt) for prompt in PROMPTS))

    assert [outcome.token_ids for outcome in alone] == reference
    assert [outcome.token_ids for outcome in together] == reference
    assert any(outcome.finish_reason == "stop" for outcome in alone)


async def test_text_and_tokens_are_those_of_the_gguf_file() -> None:
    """Control tokens only where they are asked for; characters of several tokens come whole."""
    async with loaded() as model, in_llama_cpp() as other:
        for text in ("Hello there", "a<|end|>b", "naïve 日本語 😀 e\u0301", " x  y\n\n", ""):
            for special in (True, False):
                assert model.tokenize(text, with_special=special) == other.tokenize(text, with_special=special)
            stream = model.stream()
            pieces = [stream.feed(token) for token in model.tokenize(text, with_special=False)]
            assert "".join(pieces) + stream.finish() == text
        assert model.control_texts("a<|end|>b<|nobody|>") == {"<|end|>"}
        assert (model.bos_text, model.eos_text) == ("<|end|>", "<|end|>")
        assert model.begin([5]) == [5]
        cut = model.stream()
        assert cut.feed(model.tokenize("😀", with_special=False)[0]) + cut.finish() == "\ufffd"


async def test_stop_strings_limits_and_logprobs() -> None:
    """An answer ends before its stop string and at its limit; the chosen token is among the likeliest ones reported."""
    async with loaded() as model:
        whole = await ask(model, PROMPTS[0])
        at = len(whole.text) // 2
        stopped = await ask(model, PROMPTS[0], stop=(whole.text[at : at + 4],))
        assert (stopped.text, stopped.finish_reason) == (
            whole.text[: whole.text.index(whole.text[at : at + 4])],
            "stop",
        )
        short = await ask(model, PROMPTS[0], max_tokens=3, logprobs=2)
        assert (short.token_ids, short.finish_reason) == (whole.token_ids[:3], "length")
        for choice in short.logprobs:
            assert choice.top[0].token_id == choice.token_id and choice.top[0].logprob == choice.logprob
            assert len(choice.top) == 2 and choice.top[1].logprob < choice.logprob < 0
        mean = sum(choice.logprob for choice in short.logprobs) / 3
        assert short.mean_logprob == pytest.approx(mean, abs=1e-4)
        tokens = model.tokenize(PROMPTS[0], with_special=True)
        scores = await model.score(tokens, short.token_ids, None)
        assert scores == pytest.approx([choice.logprob for choice in short.logprobs], abs=2e-3)


async def test_answer_ends_with_the_window() -> None:
    """Prompt and answer share it."""
    async with loaded(context_tokens=32) as model:
        outcome = await ask(model, list(range(5, 30)), max_tokens=100, temperature=1.5, seed=3)
    assert len(outcome.token_ids) <= 7
    assert outcome.finish_reason == "length" or len(outcome.token_ids) < 7


async def test_seed_decides_the_answer_alone_and_in_a_batch() -> None:
    """Sampled answers come again with their seed, whoever else is served at the time."""
    async with loaded() as model:
        drawn = {"temperature": 3.0, "max_tokens": 20}
        alone = [await ask(model, PROMPTS[0], seed=seed, **drawn) for seed in (1, 1, 2)]
        together = await asyncio.gather(*(ask(model, PROMPTS[0], seed=seed, **drawn) for seed in (1, 2, 1, 2)))

    assert alone[0].token_ids == alone[1].token_ids != alone[2].token_ids
    assert together[0].token_ids == together[2].token_ids
    assert together[1].token_ids == together[3].token_ids


async def test_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces or whole, the answer and the scores are the same."""
    torch_model = importlib.import_module("workers.models.backends.torch_model")
    async with loaded() as model:
        prompt = model.tokenize(PROMPTS[8], with_special=True)
        whole, scores = await ask(model, prompt), await model.score(prompt[:40], prompt[40:], None)
        monkeypatch.setattr(torch_model, "PIECE_TOKENS", 7)
        pieces, again = await ask(model, prompt), await model.score(prompt[:40], prompt[40:], None)

    assert pieces.token_ids == whole.token_ids
    assert again == pytest.approx(scores, abs=0.1) and len(scores) == len(prompt) - 40


async def test_follow_up_of_a_conversation_does_not_read_its_prompt_again() -> None:
    """What is kept is used where the new prompt begins with it, and by nobody else; `forget` drops it."""
    async with loaded() as model:
        first = model.tokenize(PROMPTS[0], with_special=True)
        answer = await ask(model, first, conversation_id="c")
        later = [*first, *answer.token_ids, *model.tokenize("<|end|>" + PROMPTS[1], with_special=True)]
        plain = await ask(model, later)
        other = await ask(model, later, conversation_id="d")
        follow = await ask(model, later, conversation_id="c")
        assert (plain.cached_tokens, other.cached_tokens) == (0, 0)
        assert follow.cached_tokens == len(first) + len(answer.token_ids)
        assert follow.token_ids == plain.token_ids == other.token_ids
        assert model.forget("c") and not model.forget("c")
        assert (await ask(model, later, conversation_id="c")).cached_tokens == 0
        # One that ended within a batch is kept just so.
        await asyncio.gather(*(ask(model, prompt, conversation_id=prompt[:40]) for prompt in PROMPTS[:3]))
        again = await ask(model, PROMPTS[2], conversation_id=PROMPTS[2][:40])
        assert again.cached_tokens == again.prompt_tokens - 1


async def test_vectors_have_length_one_and_padding_leaves_no_trace() -> None:
    """A text's vector is the same alone and beside a longer one, and nearly llama.cpp's."""
    async with loaded() as model, in_llama_cpp() as other:
        texts = [
            model.tokenize(text, with_special=False) for text in ("Hello", "a much longer text than that", "Hello")
        ]
        together = [struct.unpack("<192f", vector) for vector in await model.embed(texts * 7)]
        theirs = struct.unpack("<192f", (await other.embed(texts[1:2]))[0])
        (alone,) = [struct.unpack("<192f", vector) for vector in await model.embed(texts[:1])]

    assert len(together) == 21
    assert sum(one * two for one, two in zip(together[1], theirs, strict=True)) > 0.999
    assert together[0] == pytest.approx(alone, abs=2e-3)
    assert together[0] != pytest.approx(together[1], abs=0.02)
    assert math.fsum(value * value for value in alone) == pytest.approx(1.0, abs=1e-5)


async def test_closing_an_answer_stops_it_between_tokens() -> None:
    """The others go on, and the place is free."""
    async with loaded(parallel=1) as model:
        tokens = model.tokenize(PROMPTS[-1], with_special=True)
        parts = model.generate(tokens, msgspec.structs.replace(GREEDY, max_tokens=400, temperature=1.5, min_p=0.2))
        assert isinstance(await anext(parts), Chunk)
        await parts.aclose()
        assert (await ask(model, PROMPTS[0], max_tokens=2)).finish_reason == "length"


async def test_closing_the_model_tells_whoever_waits() -> None:
    """Running answers and waiting ones end with worker_lost."""
    async with loaded(parallel=1) as model:
        tokens = model.tokenize(PROMPTS[-1], with_special=True)
        endless = msgspec.structs.replace(GREEDY, max_tokens=480, temperature=1.5, min_p=0.2)
        running, waiting = model.generate(tokens, endless), model.generate(tokens, endless)
        assert isinstance(await anext(running), Chunk)
        second = asyncio.ensure_future(anext(waiting))
        await asyncio.sleep(0)
    for rest in (second, _all_of(running)):
        with pytest.raises(WorkerLost):
            await rest


async def _all_of(parts: AsyncIterator[Any]) -> None:
    async for _ in parts:
        pass


async def test_chat_goes_through_the_local_backend() -> None:
    """With the folder's own template, as the runner puts them together; a shape of the answer cannot be had."""
    async with loaded() as model:
        backend = LocalBackend(model, TEMPLATE)
        question = Question(options=GREEDY, messages=(ChatMessage(role="user", content="Hello"),))
        parts = [part async for part in backend.answer(question)]
        assert isinstance(parts[-1], Outcome) and parts[-1].text == DOCUMENTED[0]["answer"]
        with pytest.raises(Unsupported):
            async for _ in backend.answer(msgspec.structs.replace(question, is_json=True)):
                pass


# Adapters -----------------------------------------------------------------------------------------------------------


def distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Mean difference of two lists of scores."""
    return sum(abs(one - other) for one, other in zip(left, right, strict=True)) / len(left)


async def test_adapter_computes_what_its_weights_say(tmp_path: Path) -> None:
    """Scores with an adapter are those of a model into whose weights it was merged, at its scale; without, the bare ones."""
    pytest.importorskip("peft")
    safetensors = importlib.import_module("safetensors.torch")
    adapter = msgspec.structs.replace(write_adapter(tmp_path, seed=5), scale=0.5)
    merged = tmp_path / "merged"
    shutil.copytree(HF, merged)
    weights = {name: value.float() for name, value in safetensors.load_file(HF / "model.safetensors").items()}
    lora = lora_weights(5, 8)
    for layer in range(LAYERS):
        name = TARGET.format(layer=layer)
        a, b = (torch.tensor(lora[f"base_model.model.{name}.lora_{side}.weight"]) for side in "AB")
        # peft's scale is alpha / rank, 2 here; ours comes on top.
        weights[f"{name}.weight"] += 0.5 * 2 * b @ a
    safetensors.save_file(weights, merged / "model.safetensors", {"format": "pt"})

    async with loaded() as model, loaded(merged) as other:
        tokens = model.tokenize(PROMPTS[8], with_special=True)
        bare = await model.score(tokens[:2], tokens[2:], None)
        await model.set_adapters([adapter])
        tuned = await model.score(tokens[:2], tokens[2:], adapter.sha256)
        wanted = await other.score(tokens[:2], tokens[2:], None)
        # Merged in float32 and side by side in float16: half a unit apart at the worst token.
        assert distance(tuned, wanted) < 0.05 and distance(tuned, bare) > 0.5
        assert await model.score(tokens[:2], tokens[2:], None) == bare


async def test_answers_with_different_adapters_run_side_by_side(tmp_path: Path) -> None:
    """Each with its own, and a conversation's state is not carried over to another adapter."""
    pytest.importorskip("peft")
    one, two = write_adapter(tmp_path, seed=1), write_adapter(tmp_path, seed=2)
    async with loaded() as model:
        await model.set_adapters([one, two])
        choices = [None, one.sha256, two.sha256, None]
        alone = [(await ask(model, PROMPTS[1], adapter=each, max_tokens=12)).token_ids for each in choices]
        together = await asyncio.gather(*(ask(model, PROMPTS[1], adapter=each, max_tokens=12) for each in choices))
        assert [outcome.token_ids for outcome in together] == alone
        assert len({tuple(tokens) for tokens in alone}) == 3
        await ask(model, PROMPTS[1], conversation_id="c", adapter=one.sha256)
        assert (await ask(model, PROMPTS[1], conversation_id="c", adapter=two.sha256)).cached_tokens == 0
        assert (await ask(model, PROMPTS[1], conversation_id="c", adapter=two.sha256)).cached_tokens > 0

        await model.set_adapters([two])
        with pytest.raises(Unsupported, match=one.sha256[:12]):
            await ask(model, PROMPTS[1], adapter=one.sha256)
        assert (await ask(model, PROMPTS[1], adapter=two.sha256, max_tokens=12)).token_ids == alone[2]
        await model.set_adapters([])
        assert (await ask(model, PROMPTS[1], max_tokens=12)).token_ids == alone[0]


async def test_adapter_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    """Another shape, other modules, no weights, a pickle: LoadFailed, and the one attached before still answers."""
    pytest.importorskip("peft")
    good, other = write_adapter(tmp_path, seed=1), write_adapter(tmp_path, "other", seed=2)
    wrong = write_adapter(tmp_path, "wrong", seed=3, r=4)
    modules = write_adapter(tmp_path, "modules", seed=4, target_modules=["nowhere"])
    bare = write_adapter(tmp_path, "bare", seed=5)
    (Path(bare.path) / "adapter_model.safetensors").rename(Path(bare.path) / "adapter_model.bin")
    async with loaded() as model:
        await model.set_adapters([good])
        before = (await ask(model, PROMPTS[1], adapter=good.sha256, max_tokens=12)).token_ids
        plain = (await ask(model, PROMPTS[1], max_tokens=12)).token_ids
        for bad in (wrong, modules, bare):
            with pytest.raises(LoadFailed, match=f"adapter {bad.name}"):
                await model.set_adapters([other, bad])
            assert (await ask(model, PROMPTS[1], adapter=good.sha256, max_tokens=12)).token_ids == before
            assert (await ask(model, PROMPTS[1], max_tokens=12)).token_ids == plain
            with pytest.raises(Unsupported):
                await ask(model, PROMPTS[1], adapter=other.sha256)


async def test_adapter_taken_off_stays_for_the_answer_that_runs_with_it(tmp_path: Path) -> None:
    """It ends as it began."""
    pytest.importorskip("peft")
    adapter = write_adapter(tmp_path, seed=1)
    async with loaded() as model:
        await model.set_adapters([adapter])
        whole = (await ask(model, PROMPTS[-1], adapter=adapter.sha256)).token_ids
        running = asyncio.ensure_future(ask(model, PROMPTS[-1], adapter=adapter.sha256))
        await asyncio.sleep(0)
        await model.set_adapters([])
        assert (await running).token_ids == whole


# What goes wrong ----------------------------------------------------------------------------------------------------


async def test_out_of_memory_ends_its_answers_and_the_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a prompt is read only that one; in a step those of the batch; the next request is answered."""
    async with loaded() as model:
        inner = model._model
        wanted = await ask(model, PROMPTS[0])

        class Failing:
            def __init__(self, rows: int) -> None:
                self.rows = rows

            def __call__(self, **arguments: Any) -> Any:
                if arguments["input_ids"].shape[1] > 1 and self.rows == 0:
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")
                if arguments["input_ids"].shape[1] == 1 and self.rows == 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                if self.rows == 2:
                    raise RuntimeError("shapes do not match")
                return inner(**arguments)

        for rows, kind, words in ((0, Unprocessable, "prompt of"), (1, Internal, "step"), (2, Internal, "shapes")):
            monkeypatch.setattr(model, "_model", Failing(rows))
            with pytest.raises(kind, match=words):
                await ask(model, PROMPTS[0])
            monkeypatch.setattr(model, "_model", inner)
            assert (await ask(model, PROMPTS[0])).token_ids == wanted.token_ids


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, r"config\.json"),
        ("config.json", b"{", "config"),
        ("config.json", b'{"model_type": "nobody-knows"}', "nobody-knows"),
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "custom code"),
        ("config.json", {"num_hidden_layers": 7}, "tensors are missing"),
        ("config.json", {"intermediate_size": 500}, "shape|size"),
        ("model.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "."),
        ("model.safetensors", b"", "."),
        ("model.safetensors", None, r"no folder with \.safetensors"),
        ("tokenizer.json", b'{"model": 7}', "."),
    ],
)
async def test_folder_that_is_no_model_is_refused(
    tmp_path: Path, file: str, content: bytes | dict[str, Any] | None, words: str
) -> None:
    """Missing, cut, hostile and contradictory files; code that a folder brings is never run."""
    folder = tmp_path / "hf"
    shutil.copytree(HF, folder)
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    target = folder / file
    if content is None:
        target.unlink()
    elif isinstance(content, bytes):
        target.write_bytes(content)
    else:
        target.write_text(json.dumps({**json.loads(target.read_bytes()), **content}))
    with pytest.raises(LoadFailed, match=words):
        transformers.load(folder, LOAD)


async def test_device_that_is_not_there_is_unsupported() -> None:
    """The error counts the devices that torch sees."""
    device = f"gpu{torch.cuda.device_count()}"
    with pytest.raises(Unsupported, match=device):
        transformers.load(HF, msgspec.structs.replace(LOAD, device=device))


async def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small installations have no torch."""
    monkeypatch.setattr(transformers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Unsupported, match="extra 'learning'"):
        transformers.load(HF, LOAD)
