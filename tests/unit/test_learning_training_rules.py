"""The pure parts of training: spec, ladder, estimate, rows as tokens, the base as its folder shows it, and ends."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadRequest, Unprocessable
from tests.training_rows import BASE, spec_of, write_rows
from workers.learning.training import messages
from workers.learning.training.base import Shape, fingerprint, shape_of
from workers.learning.training.estimate import adapter_parameters, estimate
from workers.learning.training.examples import read_rows
from workers.learning.training.ladder import micro_batches, next_rung
from workers.learning.training.messages import EXIT_OUT_OF_MEMORY, Failed, Finished, Stopped
from workers.learning.training.spec import (
    Lora,
    Rung,
    StopRules,
    TrainSpec,
    default_learning_rate,
    read_spec,
    write_spec,
)
from workers.learning.training.training import Nest, judge

MIB = 1024 * 1024


class Tokenizer:
    """One token a word; roles are tokens, too."""

    eos_token_id = 0
    chat_template = "there is one"

    def __init__(self) -> None:
        self.known: dict[str, int] = {"<end>": 0}

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.known.setdefault(word, len(self.known)) for word in text.split()]}

    def apply_chat_template(
        self, said: list[dict[str, str]], *, add_generation_prompt: bool, return_dict: bool
    ) -> dict[str, list[int]]:
        text = " ".join(f"<{one['role']}> {one['content']} <end>" for one in said)
        return self(f"{text} <assistant>" if add_generation_prompt else text)


# Spec -----------------------------------------------------------------------------------------------------------------


def test_spec_is_read_back_as_written(tmp_path: Path) -> None:
    """The file in the job's folder says all of it."""
    spec = spec_of(tmp_path, lora=Lora(rank=4, targets=("q_proj",)), rung=Rung(level=1, micro_batch=2), device="gpu1")

    write_spec(tmp_path / "job", spec)

    assert read_spec(tmp_path / "job") == spec
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["spec.json"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("checkpoints_kept", 1, ">= 2"),
        ("learning_rate", 0, "> 0"),
        ("device", "tpu0", "matching regex"),
        ("scheduler", "wild", "Invalid enum value"),
        ("processes", 3, "multiple of processes"),
    ],
)
def test_spec_names_the_field_that_is_wrong(field: str, value: object, words: str, tmp_path: Path) -> None:
    """A spec out of range is refused before anything is imported."""
    plain = {**msgspec.to_builtins(spec_of(tmp_path)), field: value}
    (tmp_path / "spec.json").write_text(json.dumps(plain))

    with pytest.raises(BadRequest) as caught:
        read_spec(tmp_path)

    assert words in caught.value.message
    assert field in caught.value.message


def test_several_processes_take_as_many_gpus(tmp_path: Path) -> None:
    """One lock for each GPU, and one for the main memory however many processes use it."""
    assert spec_of(tmp_path, device="gpu2", processes=2).devices == ("gpu2", "gpu3")
    assert spec_of(tmp_path, processes=2).devices == ("cpu",)


def test_rates_have_documented_defaults() -> None:
    """DPO moves weights far more gently than SFT."""
    assert default_learning_rate("sft") == 2e-4
    assert default_learning_rate("dpo") == 5e-6


def test_messages_are_read_back_as_said() -> None:
    """What one end says the other reads, and a word it does not know is refused."""
    said = Failed(kind="rows", reason="none", micro_batch=2, max_length=64)

    assert messages.decode(messages.encode(said)) == said
    with pytest.raises(msgspec.DecodeError):
        messages.decode(b'{"type": "song"}')


# Ladder ---------------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 256), length=st.integers(8, 8_192))
def test_ladder_always_asks_for_less_and_ends(rows: int, length: int) -> None:
    """Each rung takes less memory than the one before, keeps the rows of a step, and there is a last one."""
    rung, micro, tokens = Rung(), rows, length
    for _ in range(64):
        following = next_rung(rung, micro_batch=micro, max_length=tokens, rows_per_process=rows)
        if following is None:
            break
        assert following.level == rung.level + 1
        before = (micro, not rung.activation_checkpointing, tokens)
        micro, tokens = following.micro_batch or micro, following.max_length or tokens
        after = (micro, not following.activation_checkpointing, tokens)
        assert rows % micro == 0
        assert after < before
        assert sum(one != other for one, other in zip(before, after, strict=True)) == 1
        rung = following
    else:
        pytest.fail("the ladder has no end")
    assert micro == 1
    assert rung.activation_checkpointing
    assert tokens < 128


def test_micro_batches_divide_the_rows_of_a_step() -> None:
    """Largest first, so that the accumulation is always whole."""
    assert micro_batches(12) == (12, 6, 4, 3, 2, 1)
    assert micro_batches(7) == (7, 1)


# Estimate -------------------------------------------------------------------------------------------------------------


def test_shape_of_the_shipped_model() -> None:
    """Read from configuration and headers, without a heavy library."""
    shape = shape_of(BASE)

    assert (shape.family, shape.layers, shape.hidden, shape.kv_heads, shape.window) == ("llama", 6, 192, 3, 512)
    assert shape.weights_bytes == (BASE / "model.safetensors").stat().st_size
    assert shape.parameters == pytest.approx(shape.weights_bytes / 2, rel=0.01)
    # Seen in a training of this model with rank 8 on every linear layer.
    assert adapter_parameters(shape, Lora()) == 165_888


def test_estimate_grows_with_what_takes_memory() -> None:
    """More rows, longer rows, a larger rank and DPO take more; activation checkpointing less; a GPU half the weights."""
    shape = Shape(
        family="llama",
        layers=32,
        hidden=4096,
        feed_forward=14336,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocabulary=128_256,
        window=8192,
        weights_bytes=16_060_000_000,
        parameters=8_030_000_000,
    )
    plain = estimate(shape, lora=Lora(), tokens=1024)

    assert estimate(shape, lora=Lora(), tokens=1024, micro_batch=4).activation_bytes > 3 * plain.activation_bytes
    assert estimate(shape, lora=Lora(), tokens=2048).activation_bytes > 1.9 * plain.activation_bytes
    assert estimate(shape, lora=Lora(), tokens=10**6) == estimate(shape, lora=Lora(), tokens=8192)
    assert estimate(shape, lora=Lora(rank=16), tokens=1024).adapter_bytes == 2 * plain.adapter_bytes
    assert estimate(shape, lora=Lora(), method="dpo", tokens=1024).activation_bytes > 1.9 * plain.activation_bytes
    sparing = estimate(shape, lora=Lora(), tokens=1024, activation_checkpointing=True)
    assert sparing.activation_bytes < 0.75 * plain.activation_bytes
    on_gpu = estimate(shape, lora=Lora(), tokens=1024, device="gpu0")
    sparing = estimate(shape, lora=Lora(), tokens=1024, activation_checkpointing=True, device="gpu0")
    assert sparing.activation_bytes < on_gpu.activation_bytes / 4
    assert on_gpu.weights_bytes * 2 == plain.weights_bytes == 4 * shape.parameters
    assert on_gpu.device_bytes < plain.device_bytes
    assert on_gpu.ram_bytes > 0 == plain.ram_bytes


# Base -----------------------------------------------------------------------------------------------------------------


def test_fingerprint_changes_with_weights_and_not_with_notes(tmp_path: Path) -> None:
    """It is of what makes the model and its tokens."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = fingerprint(tmp_path)

    (tmp_path / "README.md").write_text("a note")
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"weightz")
    assert fingerprint(tmp_path) != before


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no safetensors"),
        ({"model.gguf": b""}, "holds model.gguf, which is not read"),
        ({"pytorch_model.bin": b""}, "pytorch_model.bin"),
        ({"model.safetensors": b"\x02\0\0\0\0\0\0\0{}"}, "no config.json"),
        ({"model.safetensors": b"\x02\0\0\0\0\0\0\0{}", "config.json": b"[]"}, "config.json"),
        ({"model.safetensors": b"\x02\0\0\0\0\0\0\0{}", "config.json": b'{"hidden_size": -1}'}, "hidden_size is -1"),
        ({"model.safetensors": b"\xff" * 8, "config.json": b"{}"}, ""),
    ],
)
def test_base_that_cannot_be_trained_says_what_is_needed(files: dict[str, bytes], words: str, tmp_path: Path) -> None:
    """GGUF alone, pickles, or half a folder: each is named."""
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)

    with pytest.raises(Unprocessable) as caught:
        shape_of(tmp_path)

    assert words in caught.value.message


# Rows -----------------------------------------------------------------------------------------------------------------


def read(folder: Path, made: list[dict[str, Any]], limit: int = 64, **changes: Any) -> Any:
    write_rows(folder, made)
    return read_rows(folder, spec_of(folder, **changes), Tokenizer(), limit)


def test_only_the_answer_counts(tmp_path: Path) -> None:
    """A conversation goes through the chat template, a prompt stands as it is, and both answers end."""
    chat = {"messages": [{"role": "user", "content": "a b"}], "answer": "c"}
    raw = {"prompt": "a b ", "answer": "c"}

    spoken, plain = read(tmp_path, [chat, raw]).train

    assert len(spoken.prompt) == len("<user> a b <end> <assistant>".split())
    assert len(spoken.answer) == len("c <end>".split())
    assert (len(plain.prompt), len(plain.answer), plain.answer[-1]) == (2, 2, 0)


def test_what_is_left_out_is_counted_and_said(tmp_path: Path) -> None:
    """Too long and empty rows are left out in words."""
    made = [{"prompt": "a", "answer": "b"}, {"prompt": "a " * 100, "answer": "b"}, {"prompt": "a", "answer": " "}]

    read_back = read(tmp_path, made)

    assert len(read_back.train) == 1
    assert read_back.left_out == (
        "1 of 3 rows have an empty answer and were left out",
        "1 of 3 rows are longer than 64 tokens and were left out",
    )


def test_preferences_that_say_the_same_teach_nothing(tmp_path: Path) -> None:
    """DPO leaves out pairs without a difference; SFT says that it does not use them."""
    made = [{"prompt": "a ", "answer": "b", "rejected": "b"}, {"prompt": "a ", "answer": "b", "rejected": "c"}]

    as_dpo, as_sft = read(tmp_path, made), read(tmp_path, made, method="sft")

    assert (as_dpo.method, len(as_dpo.train), len(as_dpo.train[0].rejected)) == ("dpo", 1, 2)
    assert "same as the answer" in as_dpo.left_out[0]
    assert (as_sft.method, len(as_sft.train), as_sft.train[0].rejected) == ("sft", 2, [])
    assert "SFT does not use" in as_sft.left_out[0]


def test_rows_set_aside_are_the_same_in_whatever_order_they_come(tmp_path: Path) -> None:
    """They are chosen by what they say and the seed, share nothing with the others, and another seed takes others."""
    made = [{"prompt": f"w{number} ", "answer": "b"} for number in range(40)]
    rules = StopRules(patience=1, evaluation_share=0.25)

    def words(rows: Any) -> set[int]:
        return {row.prompt[0] for row in rows}

    tokenizer = Tokenizer()
    tokenizer(" ".join(f"w{number}" for number in range(40)))

    def split(order: list[dict[str, Any]], seed: int = 0) -> tuple[set[int], set[int]]:
        write_rows(tmp_path, order)
        found = read_rows(tmp_path, spec_of(tmp_path, stop=rules, seed=seed), tokenizer, 64)
        return words(found.train), words(found.evaluation)

    train, aside = split(made)
    assert len(aside) == 10
    assert not train & aside
    assert split(made[::-1]) == (train, aside)
    assert split(made, seed=1) != (train, aside)


def test_rows_that_are_all_the_same_are_all_trained(tmp_path: Path) -> None:
    """Nothing can be set aside of rows that say one thing."""
    found = read(tmp_path, [{"prompt": "a ", "answer": "b"}] * 10, stop=StopRules(patience=1))

    assert (len(found.train), len(found.evaluation)) == (10, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("\n\n", "no rows"),
        ("not json\n", "train.jsonl, line 1"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n', "line 2"),
        (
            '{"prompt": "a", "messages": [{"role": "user", "content": "x"}], "answer": "b"}\n',
            "one of messages and prompt",
        ),
        ('{"prompt": "\\ud800", "answer": "b"}\n', "line 1"),
    ],
)
def test_lines_that_are_no_rows_are_named(text: str, words: str, tmp_path: Path) -> None:
    """A file that is not what it should be ends the training with the line."""
    (tmp_path / "train.jsonl").write_text(text)

    with pytest.raises(Unprocessable) as caught:
        read_rows(tmp_path, spec_of(tmp_path), Tokenizer(), 64)

    assert words in caught.value.message


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    """A binary file is no dataset, and a missing one neither."""
    (tmp_path / "train.jsonl").write_bytes(bytes(range(128, 256)) * 10)
    with pytest.raises(Unprocessable, match="line 1"):
        read_rows(tmp_path, spec_of(tmp_path), Tokenizer(), 64)
    with pytest.raises(Unprocessable, match="cannot be read"):
        read_rows(tmp_path, spec_of(tmp_path, rows=("none.jsonl",)), Tokenizer(), 64)


# Ends -----------------------------------------------------------------------------------------------------------------

DONE = Finished(
    step=1,
    steps=1,
    why="steps",
    adapter="a",
    sha256="",
    base_sha256="",
    loss=None,
    best_step=None,
    best_loss=None,
    took_s=1.0,
)


@pytest.mark.parametrize(
    ("end", "status", "flags", "how"),
    [
        (DONE, 0, {}, "finished"),
        (DONE, 1, {}, "finished"),
        (Stopped(step=3, checkpoint="x"), -signal.SIGTERM, {"is_asked": True}, "stopped"),
        (Failed(kind="rows", reason="none"), 1, {}, "failed"),
        (Failed(kind="memory", reason="none"), 1, {}, "out_of_memory"),
        (None, EXIT_OUT_OF_MEMORY, {}, "out_of_memory"),
        (None, -signal.SIGKILL, {"is_near_budget": True}, "out_of_memory"),
        (None, -signal.SIGKILL, {}, "lost"),
        (None, -signal.SIGKILL, {"is_near_budget": True, "is_killed": True}, "lost"),
        (None, -signal.SIGKILL, {"is_asked": True, "is_killed": True}, "stopped"),
        (None, -signal.SIGTERM, {"is_asked": True}, "stopped"),
        (None, -signal.SIGTERM, {}, "lost"),
        (None, -signal.SIGSEGV, {"is_near_budget": True}, "lost"),
    ],
)
def test_how_it_ended_is_told_from_what_it_said_and_how_it_left(
    end: Finished | Stopped | Failed | None, status: int, flags: dict[str, bool], how: str
) -> None:
    """What the process said counts first; killed near its budget is out of memory, and by us is not."""
    given = {"is_asked": False, "is_killed": False, "is_near_budget": False, **flags}

    assert judge(end, status, **given)[0] == how


async def test_two_openings_at_once_start_one_warm_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock and a job that begins may both want it; a second one would be nobody's."""
    started: list[object] = []
    start = asyncio.create_subprocess_exec

    async def counted(*arguments: Any, **named: Any) -> Any:
        started.append(arguments)
        return await start(*arguments, **named)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", counted)
    nest = Nest()
    try:
        await asyncio.gather(nest.open(), nest.open())

        assert len(started) == 1
        assert nest.is_open
    finally:
        await nest.close()


def test_the_services_side_is_light() -> None:
    """What the service imports of training brings no heavy library."""
    code = (
        "import sys, workers.learning.training.training, workers.learning.training.estimate\n"
        "heavy = {'numpy', 'torch', 'transformers', 'trl', 'peft', 'datasets', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent.parent)


def test_spec_type_has_no_field_that_the_trainer_does_not_read() -> None:
    """Every field of a spec is read somewhere in the package."""
    sources = "".join(
        path.read_text() for path in (Path(__file__).parents[2] / "workers" / "learning" / "training").glob("*.py")
    )

    unread = [
        name for name in TrainSpec.__struct_fields__ if f"spec.{name}" not in sources and f"self.{name}" not in sources
    ]

    assert unread == []
