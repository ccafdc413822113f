"""The encoder in a process of its own, with a tiny model of random weights: vectors, life and death, and what is missing."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.metrics import Figures
from schemas.metrics import MEMORY_ENCODE_SECONDS, MEMORY_ENCODED
from tests.vectors_bench import TINY_TOKENS, cosine, needs_model, tiny_model, until
from workers.memory.vectors import encoder as encoder_module
from workers.memory.vectors.encoder import ProcessEncoder
from workers.memory.vectors.encoder_process import CannotLoad, load
from workers.memory.vectors.frames import EncoderOptions
from workers.memory.vectors.model_files import DEFAULT_MODEL, find_model
from workers.memory.vectors.unavailable import EncoderUnavailable, TextsNotEncoded

needs_runtime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("tokenizers") is None,
    reason="the encoder needs the extra 'memory'",
)
pytestmark = needs_runtime

TEXTS = ["the key", "a train to the key", "the the the train", "z", "", "key " * 40]


@asynccontextmanager
async def opened(model: str | Path, cache: Path, **options: Any) -> AsyncIterator[ProcessEncoder]:
    """An encoder of the model in a folder, or of a known name, closed in the end."""
    found = find_model(str(model), cache)
    encoder = ProcessEncoder(found, cache, **{"threads": 2, "idle_s": -1.0, **options})
    try:
        yield encoder
    finally:
        await encoder.close()


def child_pid(encoder: ProcessEncoder) -> int:
    """The process that encodes now."""
    assert encoder._child is not None
    assert encoder._child._process is not None
    return encoder._child._process.pid


def plain_vectors(folder: Path, texts: list[str]) -> list[bytes]:
    """What the original graph, without 8-bit weights, makes of each text alone."""
    from workers.memory.vectors.graph import build_graph
    from workers.memory.vectors.onnx_model import OnnxModel

    original = OnnxModel(build_graph(folder, is_quantised=False).SerializeToString(), folder, threads=1)
    return [vector.tobytes() for vector in original.encode_queries(texts)]


async def test_vectors_are_the_models_in_the_order_of_the_texts(tmp_path: Path) -> None:
    """Of length 1, close to what the weights say before they have 8 bits, empty and overlong texts included."""
    pytest.importorskip("onnx")
    folder = tiny_model(tmp_path / "model")
    plain = plain_vectors(folder, TEXTS)
    figures = Figures()
    async with opened(folder, tmp_path / "cache", figures=figures) as encoder:
        vectors = await encoder.encode(TEXTS * 40)

        assert len(vectors) == 240
        for number, vector in enumerate(vectors):
            assert cosine(vector, vector) == pytest.approx(1, abs=1e-5)
            assert cosine(vector, plain[number % len(TEXTS)]) > 0.9
        assert encoder.dimension == 32
        assert await encoder.encode([]) == []
    told = figures.series()
    assert told[MEMORY_ENCODED.name][0].value == 240
    assert sum(told[MEMORY_ENCODE_SECONDS.name][0].counts) == 1


async def test_same_query_always_has_the_same_vector(tmp_path: Path) -> None:
    """Alone, beside others, and after a restart; what is past the model's tokens does not count."""
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        (alone,) = await encoder.encode(["the key"], is_query=True)
    async with opened(folder, tmp_path / "cache") as encoder:
        assert (await encoder.encode(["x y z train", "the key"], is_query=True))[1] == alone
        cut, longer = await encoder.encode(["key " * TINY_TOKENS, "key " * 5_000], is_query=True)
        assert cut == longer


async def test_query_is_answered_before_the_bulk_that_was_asked_first(tmp_path: Path) -> None:
    """A search does not wait for an ingestion."""
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        await encoder.load()
        bulk = asyncio.create_task(encoder.encode(["the key to the train"] * 50_000))
        await until(lambda: encoder._child is not None and encoder._child.is_busy, "the bulk is on its way")
        for number in range(5):
            await encoder.encode([f"where is the key {number}"], is_query=True)
        assert not bulk.done()
        assert len(await bulk) == 50_000


async def test_process_starts_with_the_first_text_and_ends_when_idle(tmp_path: Path) -> None:
    """And starts again with the next one."""
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache", idle_s=0.05) as encoder:
        assert encoder.state == "idle"
        await encoder.encode(["the key"])
        first = child_pid(encoder)
        await until(lambda: encoder.state == "idle", "the idle process ends")
        await encoder.load()
        assert encoder.state == "ready"
        assert child_pid(encoder) != first


async def test_killed_process_is_replaced_and_its_work_done_again(tmp_path: Path) -> None:
    """The caller notices nothing."""
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        await encoder.load()
        first = child_pid(encoder)
        bulk = asyncio.create_task(encoder.encode(["the key to the train"] * 20_000))
        await until(lambda: encoder._child is not None and encoder._child.is_busy, "the bulk is on its way")
        os.kill(first, signal.SIGKILL)
        assert len(await bulk) == 20_000
        assert child_pid(encoder) != first


async def test_process_that_keeps_dying_is_given_up_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears how it ended; the next attempts come more and more seldom."""
    folder = tiny_model(tmp_path / "model")
    monkeypatch.setattr(encoder_module.sys, "executable", "/bin/false")
    async with opened(folder, tmp_path / "cache") as encoder:
        with pytest.raises(EncoderUnavailable, match="status 1"):
            await encoder.encode(["the key"])
        assert encoder.state == "unusable"
        assert "status 1" in encoder.problem
        with pytest.raises(EncoderUnavailable, match="status 1"):
            await encoder.encode(["the key"], is_query=True)


async def test_program_that_cannot_be_started_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's reason."""
    folder = tiny_model(tmp_path / "model")
    monkeypatch.setattr(encoder_module.sys, "executable", str(tmp_path / "nothing"))
    async with opened(folder, tmp_path / "cache") as encoder:
        with pytest.raises(EncoderUnavailable, match="could not be started: No such file"):
            await encoder.encode(["the key"])


async def test_damaged_prepared_model_is_made_anew_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start says which file it is."""
    monkeypatch.setattr(encoder_module, "UNUSABLE_S", 0.0)
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        await encoder.load()
    (prepared,) = (tmp_path / "cache").glob("*.onnx")
    prepared.write_bytes(b"nonsense")

    async with opened(folder, tmp_path / "cache") as encoder:
        with pytest.raises(EncoderUnavailable, match=r"the prepared model .*\.onnx cannot be loaded"):
            await encoder.load()
        await encoder.load()
        assert encoder.state == "ready"


@pytest.mark.parametrize("damage", ["weights", "tokenizer"])
async def test_damaged_model_is_unusable_with_its_reason(tmp_path: Path, damage: str) -> None:
    """And is not tried again and again."""
    folder = tiny_model(tmp_path / "model")
    match damage:
        case "weights":
            (folder / "model.safetensors").write_bytes(b"nonsense" * 10)
        case "tokenizer":
            (folder / "tokenizer.json").write_text("{")
    async with opened(folder, tmp_path / "cache") as encoder:
        with pytest.raises(EncoderUnavailable) as raised:
            await encoder.encode(["the key"])
        assert str(folder) in raised.value.message
        assert encoder.state == "unusable"
        assert encoder.problem == raised.value.message


async def test_closed_encoder_answers_nobody(tmp_path: Path) -> None:
    """What was under way raises, and its process is gone."""
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        await encoder.load()
        pid = child_pid(encoder)
        bulk = asyncio.create_task(encoder.encode(["the key to the train"] * 50_000))
        await until(lambda: encoder._child is not None and encoder._child.is_busy, "the bulk is on its way")
        await encoder.close()
        with pytest.raises(EncoderUnavailable):
            await bulk
        with pytest.raises(EncoderUnavailable, match="the encoder is closed"):
            await encoder.encode(["the key"])
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_query_does_not_wait_long_for_a_model_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loading goes on, and the next query has it."""
    monkeypatch.setattr(encoder_module, "QUERY_WAIT_S", 0.0)
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        with pytest.raises(EncoderUnavailable, match="still loading"):
            await encoder.encode(["the key"], is_query=True)
        assert encoder.state == "loading"
        await encoder.load()
        assert len(await encoder.encode(["the key"], is_query=True)) == 1


async def test_process_that_nobody_waited_for_ends_when_idle_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only query was answered by words while it loaded."""
    monkeypatch.setattr(encoder_module, "QUERY_WAIT_S", 0.0)
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache", idle_s=0.05) as encoder:
        with pytest.raises(EncoderUnavailable, match="still loading"):
            await encoder.encode(["the key"], is_query=True)
        await until(lambda: encoder.state == "idle", "the process that was loaded in vain ends")


async def test_process_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search goes on by words, once; the next query has a new process, and nothing is left of the old one."""
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        await encoder.load()
        hanging = child_pid(encoder)
        os.kill(hanging, signal.SIGSTOP)
        monkeypatch.setattr(encoder_module, "QUERY_ANSWER_S", 0.05)
        with pytest.raises(EncoderUnavailable, match=r"was ended: no answer within 0\.05 s"):
            await encoder.encode(["the key"], is_query=True)
        monkeypatch.setattr(encoder_module, "QUERY_ANSWER_S", 20.0)
        monkeypatch.setattr(encoder_module, "QUERY_WAIT_S", 20.0)

        assert len(await encoder.encode(["the key"], is_query=True)) == 1
        assert child_pid(encoder) != hanging
        assert (encoder.state, encoder.problem) == ("ready", "")
        await until(lambda: not Path(f"/proc/{hanging}").exists(), "the process that hung is gone")


async def test_process_that_hangs_again_and_again_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries are answered by words at once and everybody hears why, until one process has encoded something."""
    monkeypatch.setattr(encoder_module, "QUERY_WAIT_S", 20.0)
    monkeypatch.setattr(encoder_module, "_HUNG_S", 1_000.0)
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        for _ in range(2):
            await encoder.load()
            os.kill(child_pid(encoder), signal.SIGSTOP)
            monkeypatch.setattr(encoder_module, "QUERY_ANSWER_S", 0.05)
            with pytest.raises(EncoderUnavailable, match="no answer within"):
                await encoder.encode(["the key"], is_query=True)
        monkeypatch.setattr(encoder_module, "QUERY_ANSWER_S", 1_000.0)
        assert (encoder.state, encoder.problem) == (
            "unusable",
            "the encoder process was ended: no answer within 0.05 s",
        )
        async with asyncio.timeout(1):
            with pytest.raises(EncoderUnavailable, match="no answer within"):
                await encoder.encode(["the key"], is_query=True)

        assert encoder._not_before - asyncio.get_running_loop().time() > 900
        encoder._not_before = 0.0
        await encoder.load()
        assert encoder.problem != ""
        assert len(await encoder.encode(["the key"], is_query=True)) == 1
        assert encoder.problem == ""


async def test_bulk_that_is_not_answered_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time grows with the characters asked for; a query beside it is done again."""
    monkeypatch.setattr(encoder_module, "BULK_ANSWER_S", 0.05)
    monkeypatch.setattr(encoder_module, "BULK_CHARACTER_S", 0.01)
    monkeypatch.setattr(encoder_module, "QUERY_WAIT_S", 20.0)
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        await encoder.load()
        os.kill(child_pid(encoder), signal.SIGSTOP)
        query = asyncio.create_task(encoder.encode(["a train"], is_query=True))
        first = asyncio.create_task(encoder.encode(["the key of"]))
        # So long that no stall of this process reaches its limit too.
        second = asyncio.create_task(encoder.encode(["the key of " * 200]))
        with pytest.raises(TextsNotEncoded, match=r"no answer within 0\.15 s"):
            await first
        monkeypatch.setattr(encoder_module, "BULK_ANSWER_S", 20.0)
        assert len(await query) == 1
        # Longer, and asked behind the first, it had more time; the new process does it.
        assert len(await second) == 1
        assert encoder.problem == ""


async def test_process_that_hangs_while_it_loads_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for it hears that."""
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o700)
    monkeypatch.setattr(encoder_module.sys, "executable", str(hanging))
    monkeypatch.setattr(encoder_module, "LOAD_S", 0.1)
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        with pytest.raises(EncoderUnavailable, match=r"was ended: not loaded within 0\.1 s"):
            await encoder.load()
        await asyncio.wait_for(asyncio.gather(*encoder._leaving), 20)


async def test_process_that_dies_while_it_loads_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To whoever only wanted it loaded, at the start of the service, too."""
    monkeypatch.setattr(encoder_module.sys, "executable", "/bin/false")
    async with opened(tiny_model(tmp_path / "model"), tmp_path / "cache") as encoder:
        with pytest.raises(EncoderUnavailable, match="status 1"):
            await encoder.load()


async def test_query_of_several_callers_is_made_once_and_outlives_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that leaves takes the vector from nobody else."""
    monkeypatch.setattr(encoder_module, "QUERY_WAIT_S", 60.0)
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache") as encoder:
        first = asyncio.create_task(encoder.encode(["the key"], is_query=True))
        second = asyncio.create_task(encoder.encode(["the key"], is_query=True))
        await until(lambda: encoder.state == "ready" or len(encoder._making) == 1, "the query is being made")
        first.cancel()
        assert len(await second) == 1
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_query_that_is_given_up_leaves_no_word_unread_behind(tmp_path: Path) -> None:
    """The process would answer each later query with the one before it."""
    async with opened(tiny_model(tmp_path / "model"), tmp_path / "cache") as encoder:
        await encoder.load()
        given_up = asyncio.create_task(encoder.encode(["the wall"], is_query=True))
        await asyncio.sleep(0)
        given_up.cancel()
        for text in ("the key", "the moon"):
            (alone,) = await encoder.encode([text], is_query=True)
            assert cosine(alone, (await encoder.encode([text]))[0]) > 0.99


async def test_query_that_cannot_be_made_fails_for_all_who_wait_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they would each wait as long again."""
    tried: list[str] = []

    async def fail(text: str) -> bytes:
        tried.append(text)
        await asyncio.sleep(0)
        raise EncoderUnavailable("it hangs")

    async with opened(tiny_model(tmp_path / "model"), tmp_path / "cache") as encoder:
        monkeypatch.setattr(encoder, "_make_query", fail)
        callers = [encoder.encode(["the key"], is_query=True) for _ in range(5)]
        ends = await asyncio.gather(*callers, return_exceptions=True)

    assert [str(end) for end in ends] == ["it hangs"] * 5
    assert tried == ["the key"]


async def test_known_queries_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again they are answered without a process; those not asked for longest are forgotten."""
    monkeypatch.setattr(encoder_module, "RECENT_QUERIES", 2)
    folder = tiny_model(tmp_path / "model")
    async with opened(folder, tmp_path / "cache", idle_s=0.05) as encoder:
        made = await encoder.encode(["the key", "a train", "the key"], is_query=True)
        assert made[0] == made[2] != made[1]
        await until(lambda: encoder.state == "idle", "the idle process ends")

        assert await encoder.encode(["a train", "the key"], is_query=True) == made[1::-1]
        assert encoder.state == "idle"
        await encoder.encode(["something else"], is_query=True)
        await until(lambda: encoder.state == "idle", "the idle process ends")
        assert await encoder.encode(["the key"], is_query=True) == made[:1]
        assert encoder.state == "idle"
        assert await encoder.encode(["a train"], is_query=True) == made[1:2]
        assert encoder.state == "ready"


async def test_queries_kept_elsewhere_cost_no_process(tmp_path: Path) -> None:
    """Another service, or this one before, asked them twice; a kept value of another length is not believed."""

    class Kept(dict[str, bytes]):
        async def get(self, key: str) -> bytes | None:  # type: ignore[override]
            return super().get(key)

        async def set(self, key: str, value: bytes) -> None:
            self[key] = value

    folder = tiny_model(tmp_path / "model")
    kept = Kept()
    async with opened(folder, tmp_path / "cache", queries=kept) as encoder:
        made = await encoder.encode(["the key", "a train"], is_query=True)
        assert not kept
        assert await encoder.encode(["the key", "a train"], is_query=True) == made
    async with opened(folder, tmp_path / "cache", queries=kept) as encoder:
        assert await encoder.encode(["the key", "a train"], is_query=True) == made
        assert encoder.state == "idle"
    kept.update(dict.fromkeys(kept, b"short"))
    async with opened(folder, tmp_path / "cache", queries=kept) as encoder:
        assert await encoder.encode(["the key", "a train"], is_query=True) == made
        assert encoder.state == "ready"


async def test_model_of_another_build_runs_through_its_own_package(tmp_path: Path) -> None:
    """Our graph knows one build; sentence-transformers knows the others, in the same kind of process."""
    pytest.importorskip("sentence_transformers", reason="other models need the extra 'search'")
    folder = tiny_model(tmp_path / "model", hidden_act="relu")
    async with opened(folder, tmp_path / "cache") as encoder:
        vectors = await encoder.encode(TEXTS[:4])
        queries = await encoder.encode(TEXTS[:4], is_query=True)
        assert [cosine(*pair) for pair in zip(vectors, queries, strict=True)] == pytest.approx([1] * 4, abs=1e-4)
        assert len(set(vectors)) == 4
    assert not list((tmp_path / "cache").glob("*.onnx"))


def test_package_that_is_missing_for_another_build_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that brings it, and what the model is that needs it."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    folder = tiny_model(tmp_path / "model", hidden_act="relu")
    options = EncoderOptions(folder=str(folder), sha256="0", dimension=32, cache=str(tmp_path), threads=1)
    with pytest.raises(
        CannotLoad, match=r"sentence_transformers.* '\.\[search\]'.*\(this model cannot run without: .*relu"
    ):
        load(options)


@needs_model
async def test_default_model_knows_what_is_alike(tmp_path: Path) -> None:
    """The packaged weights, turned into our graph: a paraphrase is nearer than another subject."""
    async with opened(DEFAULT_MODEL, tmp_path / "cache") as encoder:
        texts = ["The train leaves at seven.", "Departure of the railway service is 7 o'clock.", "She bakes bread."]
        train, paraphrase, bread = await encoder.encode(texts)
        assert encoder.dimension == 384
        assert cosine(train, paraphrase) > 0.5
        assert cosine(train, bread) < 0.3
