"""Types of conversions, the text they are measured with, and what a configuration says of a network."""

from __future__ import annotations

import math
from typing import Any

import pytest

from schemas.bodies.model import Score, Scores
from schemas.errors import Unprocessable, Unsupported
from workers.models.convert.perplexity import TEXT, perplexity, pieces_of
from workers.models.convert.shape import shape_of
from workers.models.convert.types import EXPORTED, QUANTISED, exported_type, quantised_type, size_of
from workers.models.convert.vocabulary import vocabulary_of


def test_a_type_is_found_in_any_case_or_the_allowed_ones_are_named() -> None:
    """Everything that can be exported can be quantised to as well."""
    assert quantised_type("q4_k_m") == "Q4_K_M"
    assert exported_type("bf16") == "BF16"
    assert set(EXPORTED) <= set(QUANTISED)
    with pytest.raises(Unprocessable, match="Q4_K_M"):
        quantised_type("int4")
    with pytest.raises(Unprocessable, match=r"F32, F16, BF16, Q8_0$"):
        exported_type("Q4_K_M")


def test_the_size_of_a_copy_is_foretold() -> None:
    """Eight bits and a half for a weight of Q8_0: 32 of them and a scale of 16 bits."""
    assert size_of(32, "Q8_0") == 34
    assert size_of(1_000_000, "F16") == 2_000_000


@pytest.mark.parametrize("size", [4, 5, 7, 100, 10_000])
def test_pieces_of_a_text_lose_nothing_and_cut_no_character(size: int) -> None:
    """Every piece is text of at most that many bytes."""
    text = "aß日🙂" * 50
    pieces = list(pieces_of(text, size))
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= size
    assert list(pieces_of("", size)) == []


def test_the_text_that_comes_along_is_there() -> None:
    """Some thousand characters of plain text."""
    assert 3_000 < len(TEXT.read_text(encoding="utf-8")) < 6_000


@pytest.mark.parametrize(
    ("logprob", "is_number"), [(math.nan, False), (-math.inf, False), (math.inf, False), (-9e9, True)]
)
async def test_numbers_that_are_none_are_no_perplexity(logprob: float, is_number: bool) -> None:
    """A broken copy is told by what is missing, and a very bad one overflows nothing."""

    class Broken:
        async def request(self, subject: str, body: Score, *, timeout_s: float) -> Scores:
            return Scores(model="m", logprobs=[logprob] * len(body.texts), tokens=[1] * len(body.texts))

    found = await perplexity(Broken(), "m", "some text", 512)  # type: ignore[arg-type]
    assert (found is not None and math.isfinite(found)) is is_number


def config(**more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 8192, **more,
    }  # fmt: skip


def test_what_a_configuration_leaves_out_has_the_defaults_of_the_network() -> None:
    """As many key heads as heads, the width divided among them, base 10,000."""
    shape = shape_of(config())
    assert (shape.kv_heads, shape.head_width, shape.rope_base, shape.is_tied) == (4, 16, 10_000.0, False)


def test_rotary_settings_are_read_in_both_spellings() -> None:
    """transformers 5 keeps the base in rope_parameters, the versions before beside rope_scaling."""
    new = shape_of(config(rope_parameters={"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}))
    old = shape_of(config(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}))
    assert new == old
    assert (new.rope_base, new.scaling.kind, new.scaling.factor) == (5e5, "linear", 2.0)


def test_llama3_scaling_leaves_short_waves_and_stretches_long_ones() -> None:
    """The first pair turns fastest and keeps its angle; the last is divided by the whole factor; between them it grows."""
    rope = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    factors = shape_of(config(head_dim=128, rope_parameters=rope)).scaling.factors
    assert len(factors) == 64
    assert (factors[0], factors[-1]) == (1.0, 8.0)
    assert list(factors) == sorted(factors)
    assert any(1.0 < factor < 8.0 for factor in factors)


def test_a_sliding_window_bounds_the_context() -> None:
    """Unless the configuration says that it is not used."""
    assert shape_of(config(sliding_window=4096)).context_tokens == 4096
    assert shape_of(config(sliding_window=4096, use_sliding_window=False)).context_tokens == 8192
    assert shape_of(config(sliding_window=None)).context_tokens == 8192


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"architectures": ["BertModel"]}, Unsupported),
        ({"architectures": None}, Unsupported),
        ({"architectures": "LlamaForCausalLM"}, Unsupported),
        ({"hidden_size": -64}, Unprocessable),
        ({"hidden_size": 2**40}, Unprocessable),
        ({"vocab_size": "100"}, Unprocessable),
        ({"rms_norm_eps": math.nan}, Unprocessable),
        ({"rope_theta": "big"}, Unprocessable),
        ({"rope_scaling": {"rope_type": "longrope"}}, Unsupported),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, Unprocessable),
    ],
)
def test_senseless_configurations_are_refused(change: dict[str, Any], error: type[Exception]) -> None:
    """A stranger's config.json may say anything."""
    with pytest.raises(error):
        shape_of(config(**change))


def tokenizer(**more: Any) -> dict[str, Any]:
    return {
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        "added_tokens": [
            {"id": 3, "content": "<s>", "special": True},
            {"id": 4, "content": "<tool>", "special": False},
        ],
        **more,
    }


def test_special_tokens_are_told_apart_and_gaps_filled() -> None:
    """Control tokens are never written by users; ids without a token are marked as unused."""
    read = vocabulary_of(tokenizer(), {"bos_token": {"content": "<s>"}}, {"vocab_size": 6, "eos_token_id": [3, 4]})
    assert (read.texts[3:], read.kinds) == (["<s>", "<tool>", "[PAD5]"], [1, 1, 1, 3, 4, 5])
    assert (read.special, read.merges, read.pre) == ({"bos": 3, "eos": 3}, ["a b"], "gpt-2")


def test_a_first_token_is_added_as_the_tokenizer_does() -> None:
    """By its settings, or else by the template of its post-processor."""
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    }
    sizes = {"vocab_size": 5}
    plain = vocabulary_of(tokenizer(), {"bos_token": "<s>"}, sizes)
    by_template = vocabulary_of(tokenizer(post_processor=template), {"bos_token": "<s>"}, sizes)
    by_setting = vocabulary_of(tokenizer(post_processor=template), {"bos_token": "<s>", "add_bos_token": False}, sizes)
    assert [one.adds_bos for one in (plain, by_template, by_setting)] == [False, True, False]


def test_a_chat_template_may_be_one_of_several_or_a_file() -> None:
    """The one called default goes before the file's."""
    several = {"chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]}
    assert vocabulary_of(tokenizer(), several, {"vocab_size": 5}, "F").chat_template == "D"
    assert vocabulary_of(tokenizer(), {}, {"vocab_size": 5}, "F").chat_template == "F"
