"""Writes a GGUF model of a wanted size with weights drawn at random: it computes as long as a trained one, and says noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np

# Tokens of the vocabulary: the two controls, every byte, pairs of letters.
_LETTERS = b"etaoinshrdlucmfwypvbgkjqxz"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A Llama's sizes. Parameters: about layers * (4 width^2 + 3 width feed_forward) + 2 vocabulary width."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int = 4096
    context_tokens: int = 2048


# 98 M parameters: a step takes some 15 ms on two cores, as that of a quantised model of 1 B does on eight.
MIDDLE = Shape(width=768, layers=12, heads=12, feed_forward=2304)
# 518 M parameters of two bytes: a file of 1 GB.
LARGE = Shape(width=1536, layers=15, heads=12, feed_forward=5120, vocabulary=8192)


def write_model(path: Path, shape: Shape) -> None:
    """Write the file, F16. Blocks are one and the same, which makes the writing quick and the computing no faster."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, shape.vocabulary)
    rng = np.random.default_rng(7)

    def drawn(rows: int, columns: int, scale: float) -> Any:
        return (rng.standard_normal((rows, columns), dtype=np.float32) * scale).astype(np.float16)

    width, inner = shape.width, shape.feed_forward
    spread = float(1 / np.sqrt(width))
    square, up, down = drawn(width, width, spread), drawn(inner, width, spread), drawn(width, inner, spread)
    ones = np.ones(width, np.float32)
    writer.add_tensor("token_embd.weight", drawn(shape.vocabulary, width, 1.0))
    writer.add_tensor("output.weight", drawn(shape.vocabulary, width, 0.3))
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", square)
        for name, matrix in (("ffn_gate", up), ("ffn_up", up), ("ffn_down", down)):
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """A byte-level tokenizer, filled up with words that no text makes: a token of half a character would be held back."""
    shown = _shown_bytes()
    tokens = ["<|bos|>", "<|eos|>", *shown.values()]
    merges = []
    for first in _LETTERS:
        for second in _LETTERS:
            tokens.append(shown[first] + shown[second])
            merges.append(f"{shown[first]} {shown[second]}")
    kinds = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2)
    missing = vocabulary - len(tokens)
    tokens += [f"word{number}" for number in range(missing)]
    kinds += [gguf.TokenType.NORMAL] * missing
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)


def _shown_bytes() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte (its `bytes_to_unicode`)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return dict(
        sorted({**{byte: chr(byte) for byte in plain}, **{b: chr(256 + n) for n, b in enumerate(others)}}.items())
    )
