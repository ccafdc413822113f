"""What a Hugging Face configuration says of a Llama-like network, as GGUF wants to know it. Pure.

Field names: `transformers` configurations of the architectures below; GGUF keys: ggml `docs/gguf.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from schemas.errors import Unprocessable, Unsupported


class Architecture(NamedTuple):
    """How llama.cpp calls it, and whether its graph pairs the rows of rotary heads otherwise than transformers."""

    name: str
    is_permuted: bool


# Networks whose tensors have the same parts in both worlds. Llama and Mistral share a graph in llama.cpp.
ARCHITECTURES: Final = {
    "LlamaForCausalLM": Architecture("llama", True),
    "MistralForCausalLM": Architecture("llama", True),
    "Qwen2ForCausalLM": Architecture("qwen2", False),
    "Qwen3ForCausalLM": Architecture("qwen3", False),
}

_SCALINGS: Final = ("default", "linear", "yarn", "llama3")

_Number = int | float


class Scaling(msgspec.Struct, frozen=True):
    """How the rotary angles are stretched. factors: one for each pair of a head, of "llama3" alone."""

    kind: str
    factor: float = 1.0
    original_context: int = 0
    factors: tuple[float, ...] = ()


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a network."""

    architecture: Architecture
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    context_tokens: int
    norm_epsilon: float
    rope_base: float
    scaling: Scaling
    is_tied: bool


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json tells. Raises Unsupported for another network, Unprocessable for senseless sizes."""
    names = config.get("architectures") or [None]
    architecture = ARCHITECTURES.get(names[0]) if isinstance(names, list) else None
    if architecture is None:
        raise Unsupported(
            f"models of architecture {names!r} cannot be exported, these can: {', '.join(ARCHITECTURES)}",
            allowed=list(ARCHITECTURES),
        )
    if config.get("quantization_config"):
        raise Unsupported("its weights are quantised already (quantization_config), there is nothing exact to export")
    heads = _size(config, "num_attention_heads")
    width = _size(config, "hidden_size")
    head_width = _size(config, "head_dim", width // heads)
    rope = _rope(config)
    return Shape(
        architecture=architecture,
        layers=_size(config, "num_hidden_layers"),
        width=width,
        feed_forward=_size(config, "intermediate_size"),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", heads),
        head_width=head_width,
        vocabulary=_size(config, "vocab_size"),
        context_tokens=_context(config),
        norm_epsilon=_number(config, "rms_norm_eps", 1e-6),
        rope_base=_number(rope, "rope_theta", 10_000.0),
        scaling=_scaling(rope, head_width, _number(rope, "rope_theta", 10_000.0)),
        is_tied=bool(config.get("tie_word_embeddings", False)),
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of the versions before."""
    rope: dict[str, Any] = {"rope_theta": config.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), dict):
            rope.update(config[key])
    if rope["rope_theta"] is None:
        del rope["rope_theta"]
    return rope


def _scaling(rope: Mapping[str, Any], head_width: int, base: float) -> Scaling:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _SCALINGS:
        raise Unsupported(f"rotary scaling {kind!r} cannot be exported, these can: {', '.join(_SCALINGS)}")
    if kind == "default":
        return Scaling("default")
    factor = _number(rope, "factor", 1.0)
    original = int(_number(rope, "original_max_position_embeddings", 0))
    if kind == "llama3":
        return Scaling("llama3", factor, original, _llama3_factors(rope, head_width, base, factor, original))
    return Scaling(str(kind), factor, original)


def _llama3_factors(
    rope: Mapping[str, Any], head_width: int, base: float, factor: float, original: int
) -> tuple[float, ...]:
    """What each rotary frequency is divided by: 1 for short waves, `factor` for long ones, smooth in between.

    Source: `transformers` `modeling_rope_utils`, "llama3"; the Llama 3.1 model card.
    """
    low, high = _number(rope, "low_freq_factor", 1.0), _number(rope, "high_freq_factor", 4.0)
    if original <= 0 or high <= low:
        raise Unprocessable(
            "rotary scaling 'llama3' without original_max_position_embeddings or with its factors swapped"
        )
    factors = []
    for pair in range(head_width // 2):
        wave = 2 * math.pi * base ** (2 * pair / head_width)
        if wave < original / high:
            factors.append(1.0)
        elif wave > original / low:
            factors.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def _context(config: Mapping[str, Any]) -> int:
    """The trained window; a sliding one where the model has it, because llama.cpp's graph of these networks has none."""
    context = _size(config, "max_position_embeddings")
    window = config.get("sliding_window")
    if isinstance(window, int) and window > 0 and config.get("use_sliding_window", True):
        return min(context, window)
    return context


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or not 0 < value < 2**31:
        raise Unprocessable(f"config.json: {key} is {value!r}, it must be a number from 1 to {2**31 - 1}", field=key)
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, _Number) or not math.isfinite(value) or value < 0:
        raise Unprocessable(f"config.json: {key} is {value!r}, it must be a number of 0 or more", field=key)
    return float(value)
