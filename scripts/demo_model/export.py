"""Writes a small Llama model as a Hugging Face folder and as a GGUF file; both hold the same float16 numbers.

It knows nothing of training: weights come in under their transformers names as numpy arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from demo_model.shape import Shape
from demo_model.tokens import CHAT_TEMPLATE, END, LLAMA_CPP_PRE, PAD, SPECIALS

Weights = Mapping[str, NDArray[np.float16]]

NAME = "olympus-demo"
DESCRIPTION = (
    "A tiny demo model that answers a few documented prompts; trained on sentences made up by a script. "
    "It is not a general assistant."
)
LICENSE = "Apache-2.0"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file beside `path`, then renames it: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.chmod(0o644)  # safetensors makes its files readable by their owner only
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda partial: _write_text(partial, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


# -- Hugging Face folder -----------------------------------------------------------------------------------------------


def export_hf(folder: Path, weights: Weights, shape: Shape, tokenizer: Tokenizer) -> None:
    """Writes config.json, model.safetensors, the tokenizer files and generation_config.json into `folder`."""
    end, pad = SPECIALS.index(END), SPECIALS.index(PAD)
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": pad}
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.width,
            "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_width,
            "hidden_act": "silu",
            "max_position_embeddings": shape.context_tokens,
            "rms_norm_eps": shape.norm_epsilon,
            "rope_theta": shape.rope_base,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "torch_dtype": "float16",
            **ids,
        },
    )
    write_json(folder / "generation_config.json", {**ids, "do_sample": False, "max_new_tokens": 256})
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": shape.context_tokens,
            "bos_token": END,
            "eos_token": END,
            "pad_token": PAD,
            "additional_special_tokens": [text for text in SPECIALS if text not in (END, PAD)],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_atomically(folder / "tokenizer.json", lambda partial: tokenizer.save(str(partial)))
    tensors = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    write_atomically(folder / "model.safetensors", lambda partial: save_file(tensors, partial, {"format": "pt"}))


# -- GGUF --------------------------------------------------------------------------------------------------------------


def permute_rotary(rows: NDArray[np.float16], heads: int) -> NDArray[np.float16]:
    """Reorders the output rows of a q or k projection from transformers' rotary order to llama.cpp's.

    rows: (heads * head_width, d_in), returns the same shape. Within a head transformers pairs row i with row
    i + head_width / 2 ("half split"); llama.cpp's Llama graph pairs 2 i with 2 i + 1, as the RoPE paper does
    (arXiv:2104.09864, section 3.2.2).
    """
    d_out, d_in = rows.shape
    return rows.reshape(heads, 2, d_out // heads // 2, d_in).swapaxes(1, 2).reshape(d_out, d_in)


def gguf_tensors(weights: Weights, shape: Shape) -> dict[str, NDArray[Any]]:
    """The tensors under their GGUF names: matrices stay float16, vectors (the norms) become float32."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
    out: dict[str, NDArray[Any]] = {}
    for name, value in weights.items():
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise ValueError(f"no GGUF name for tensor {name}")
        if name.endswith("q_proj.weight"):
            value = permute_rotary(value, shape.heads)
        elif name.endswith("k_proj.weight"):
            value = permute_rotary(value, shape.kv_heads)
        out[target] = np.ascontiguousarray(value) if value.ndim > 1 else value.astype(np.float32)
    return out


def export_gguf(path: Path, weights: Weights, shape: Shape, tokenizer: Tokenizer) -> None:
    """Writes one F16 GGUF file. A tied output matrix is left out: llama.cpp then uses the embedding for both."""
    write_atomically(path, lambda partial: _write_gguf(partial, weights, shape, tokenizer))


def _write_gguf(path: Path, weights: Weights, shape: Shape, tokenizer: Tokenizer) -> None:
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_name(NAME)
    writer.add_description(DESCRIPTION)
    writer.add_license(LICENSE)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab_size)
    _add_tokenizer(writer, tokenizer)
    for name, value in gguf_tensors(weights, shape).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """The vocabulary, merges and special tokens; `pre` names the split rules llama.cpp has to apply."""
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(LLAMA_CPP_PRE)
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_types([gguf.TokenType.CONTROL if text in special else gguf.TokenType.NORMAL for text, _ in pieces])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(SPECIALS.index(END))
    writer.add_eos_token_id(SPECIALS.index(END))
    writer.add_pad_token_id(SPECIALS.index(PAD))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
