"""Writes a safetensors folder as one GGUF file with the `gguf` package, tensor by tensor. Runs in a child process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import Unprocessable, Unsupported
from workers.models.convert.shape import Shape, shape_of
from workers.models.convert.vocabulary import Vocabulary, vocabulary_of
from workers.models.convert.weights import Adapter, Floats, Weights, read_json, shards

Report = Callable[[int, int], None]

# Rows of a Q8_0 matrix are cut into blocks of this many weights.
_BLOCK: Final = 32

# Computed by older transformers and kept in files since; the graph computes it.
_NOT_KEPT: Final = ("rotary_emb.inv_freq",)


def export(source: Path, target: Path, type: str, *, name: str, adapter: Path | None, report: Report) -> None:
    """Write the model of folder `source` to `target` as `type`, merged with the PEFT folder `adapter`.

    report: bytes of the weights that are written, and all of them. Raises Unsupported for another network, tokenizer or
    adapter than those known, and without the `gguf` package; Unprocessable for a folder that contradicts itself.
    """
    try:
        import gguf
    except ImportError as error:
        raise Unsupported("the package gguf is not installed; pip install '.[models]' brings it") from error
    config = read_json(source / "config.json")
    shape = shape_of(config)
    weights = Weights(shards(source))
    # Before anything is made of these sizes: a list of all tokens or layers that a lie claims would take all memory.
    _check_sizes(shape, weights)
    vocabulary = _vocabulary(source, config)
    tensors = _Tensors(gguf, shape, weights, Adapter(adapter) if adapter is not None else None, type)
    writer = gguf.GGUFWriter(target, shape.architecture.name)
    try:
        _write_facts(gguf, writer, shape, type, name)
        _write_vocabulary(writer, vocabulary)
        tensors.write(writer, report)
    finally:
        writer.close()


class _Tensors:
    """The tensors under their GGUF names and in their types, made one at a time."""

    def __init__(self, gguf: Any, shape: Shape, weights: Weights, adapter: Adapter | None, type: str) -> None:
        self._gguf = gguf
        self._shape = shape
        self._weights = weights
        self._adapter = adapter
        self._type = gguf.GGMLQuantizationType[type]
        self._targets = self._named()

    def write(self, writer: Any, report: Report) -> None:
        """Announce every tensor, then write their data in the same order."""
        gguf = self._gguf
        total = 0
        for source, target in self._targets.items():
            shape = self._weights.shape(source)
            kind = self._kind(shape)
            stored, dtype = _stored(gguf, shape, kind)
            bytes_ = int(np.prod(stored)) * np.dtype(dtype).itemsize
            writer.add_tensor_info(target, stored, np.dtype(dtype), bytes_, raw_dtype=kind)
            total += bytes_
        factors = np.array(self._shape.scaling.factors, dtype=np.float32)
        if len(factors):
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done = 0
        report(done, total)
        for data in self._data():
            writer.write_tensor_data(data)
            done += data.nbytes
            report(done, total)
        if len(factors):
            writer.write_tensor_data(factors)

    def _data(self) -> Iterator[NDArray[Any]]:
        for source in self._targets:
            values = self._merged(source)
            if self._shape.architecture.is_permuted:
                values = self._permuted(source, values)
            kind = self._kind(values.shape)
            yield np.ascontiguousarray(self._gguf.quants.quantize(values, kind))

    def _merged(self, name: str) -> Floats:
        values = self._weights.read(name)
        if self._adapter is None or name not in self._adapter.targets:
            return values
        return values + self._adapter.delta(name, values.shape)

    def _permuted(self, name: str, values: Floats) -> Floats:
        if ".q_proj." in name:
            return permute_rotary(values, self._shape.heads)
        if ".k_proj." in name:
            return permute_rotary(values, self._shape.kv_heads)
        return values

    def _kind(self, shape: tuple[int, ...]) -> Any:
        """Vectors stay float32: they are small and everything is multiplied by them. Rows that fit no block are F16."""
        kinds = self._gguf.GGMLQuantizationType
        if len(shape) < 2:
            return kinds.F32
        if self._type == kinds.Q8_0 and shape[-1] % _BLOCK:
            return kinds.F16
        return self._type

    def _named(self) -> dict[str, str]:
        """The folder's names with their GGUF names. Raises Unprocessable for a tensor too many or too few."""
        gguf, shape = self._gguf, self._shape
        architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == shape.architecture.name)
        names = gguf.get_tensor_name_map(architecture, shape.layers)
        targets: dict[str, str] = {}
        for name in self._weights.names:
            if name.endswith(_NOT_KEPT) or (shape.is_tied and name == "lm_head.weight"):
                # A tied output matrix is left out: llama.cpp then uses the embedding for both.
                continue
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise Unprocessable(f"the folder holds a tensor {name[:120]!r} that this network does not have")
            targets[name] = target
        self._check_whole(targets)
        if self._adapter is not None and (unknown := sorted(self._adapter.targets - set(targets))):
            raise Unprocessable(f"the adapter is of another model: it changes {unknown[0][:120]!r}")
        return targets

    def _check_whole(self, targets: dict[str, str]) -> None:
        wanted = [_EMBEDDING, "model.norm.weight", *([] if self._shape.is_tied else ["lm_head.weight"])]
        for layer in range(self._shape.layers):
            wanted += [f"model.layers.{layer}.{part}.weight" for part in _PARTS]
        missing = [name for name in wanted if name not in targets]
        if missing:
            raise Unprocessable(f"the folder lacks {len(missing)} tensors, for instance {missing[0]}")


def _check_sizes(shape: Shape, weights: Weights) -> None:
    """Raises Unprocessable where the configuration claims more than the files hold."""
    held = len(weights.names)
    if shape.layers > held:
        raise Unprocessable(f"config.json says {shape.layers} layers, the folder has {held} tensors")
    found = weights.shape(_EMBEDDING) if _EMBEDDING in weights.names else None
    if found != (shape.vocabulary, shape.width):
        raise Unprocessable(f"{_EMBEDDING} is {found}, config.json says {(shape.vocabulary, shape.width)}")


_EMBEDDING: Final = "model.embed_tokens.weight"

_PARTS: Final = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
)


def permute_rotary(rows: Floats, heads: int) -> Floats:
    """Reorder the output rows of a q or k projection, or its bias, from transformers' rotary order to llama.cpp's.

    rows: (heads * head_width, ...), returns the same shape. Within a head transformers pairs row i with row
    i + head_width / 2; llama.cpp's Llama graph pairs 2 i with 2 i + 1, as the paper does (arXiv:2104.09864, 3.2.2).
    """
    pairs = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _stored(gguf: Any, shape: tuple[int, ...], kind: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and numpy type of a tensor's data in the file."""
    kinds = gguf.GGMLQuantizationType
    if kind == kinds.F32:
        return shape, np.float32
    if kind == kinds.F16:
        return shape, np.float16
    return gguf.quant_shape_to_byte_shape(shape, kind), np.uint8


def _write_facts(gguf: Any, writer: Any, shape: Shape, type: str, name: str) -> None:
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if type == "F32" else f"MOSTLY_{type}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
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
    writer.add_vocab_size(shape.vocabulary)
    scaling = shape.scaling
    if scaling.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[scaling.kind.upper()])
        writer.add_rope_scaling_factor(scaling.factor)
        if scaling.original_context:
            writer.add_rope_scaling_orig_ctx_len(scaling.original_context)


def _write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.texts)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for kind, id in vocabulary.special.items():
        getattr(writer, f"add_{kind}_token_id")(id)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    writer.add_add_space_prefix(vocabulary.adds_space)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _vocabulary(source: Path, config: dict[str, Any]) -> Vocabulary:
    path = source / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    try:
        return vocabulary_of(read_json(source / "tokenizer.json"), settings, config, _own_template(source))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        # A stranger's file may have anything anywhere.
        raise Unprocessable(f"tokenizer.json is not as expected: {type(error).__name__} {error}") from error


def _own_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.exists() else None
