"""The base model as its folder shows it: which weights these are, and their shape. No weights are loaded.

It knows nothing of training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas.errors import Unprocessable

CONFIG: Final = "config.json"
_INDEX: Final = "model.safetensors.index.json"
_CHUNK_BYTES: Final = 4 * 1024 * 1024

# Of a configuration; those of the largest models have a few hundred KB.
_MAX_CONFIG_BYTES: Final = 4 * 1024 * 1024

# What makes the model and its tokens; notes, licences and what other tools keep beside them do not count.
_PARTS: Final = (
    "*.safetensors",
    _INDEX,
    CONFIG,
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
)

# The library of the format allows 100 MB.
_MAX_HEADER_BYTES: Final = 100_000_000
_LENGTH_BYTES: Final = 8

_Sizes = Mapping[str, object]


class _Tensor(msgspec.Struct, frozen=True):
    """Of one tensor its shape; the notes in the header have none."""

    shape: tuple[int, ...] | None = None


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What of a transformer decides the memory of its training. weights_bytes: of the files; parameters: elements in them."""

    family: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    window: int
    weights_bytes: int
    parameters: int


def weights_of(folder: Path) -> list[Path]:
    """Files of weights. Raises Unprocessable saying what is missing and what is needed."""
    if folder.is_file() and folder.suffix == ".gguf":
        raise Unprocessable(
            f"{folder} is a GGUF file, which cannot be trained: give the folder of safetensors it was made from"
        )
    if not folder.is_dir():
        raise Unprocessable(
            f"{folder} is no folder: the base model's safetensors, config.json and tokenizer are needed"
        )
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        other = sorted([*folder.glob("*.gguf"), *folder.glob("*.bin"), *folder.glob("*.pt")])
        beside = f" (it holds {other[0].name}, which is not read)" if other else ""
        raise Unprocessable(f"{folder} holds no safetensors{beside}: trainable weights in that format are needed")
    if not (folder / CONFIG).is_file():
        raise Unprocessable(f"{folder} holds no {CONFIG}, so nothing tells how to run it")
    return found


def fingerprint(folder: Path) -> str:
    """sha256 over names and contents of weights, configuration and tokenizer. Reads it all; call it in a thread.

    Raises Unprocessable, OSError.
    """
    weights_of(folder)
    whole = hashlib.sha256()
    for path in sorted({path for part in _PARTS for path in folder.glob(part)}):
        one = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                one.update(chunk)
        whole.update(f"{path.name}\0{one.hexdigest()}\n".encode())
    return whole.hexdigest()


def shape_of(folder: Path) -> Shape:
    """Shape of the base in `folder`. Raises Unprocessable when its configuration does not tell, OSError."""
    weights = weights_of(folder)
    path = folder / CONFIG
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise Unprocessable(f"{path} has {path.stat().st_size} bytes, the limit is {_MAX_CONFIG_BYTES}")
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unprocessable(f"{path}: {error}") from error
    text = config.get("text_config")
    sizes: _Sizes = text if isinstance(text, dict) else config
    hidden, heads = _size(path, sizes, "hidden_size"), _size(path, sizes, "num_attention_heads")
    layers, vocabulary = _size(path, sizes, "num_hidden_layers"), _size(path, sizes, "vocab_size")
    kv_heads = _size(path, sizes, "num_key_value_heads", heads)
    head_dim = _size(path, sizes, "head_dim", max(hidden // heads, 1))
    feed_forward = _size(path, sizes, "intermediate_size", 4 * hidden)
    return Shape(
        family=str(config.get("model_type", "")),
        layers=layers,
        hidden=hidden,
        feed_forward=feed_forward,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        window=_size(path, sizes, "max_position_embeddings", 2**20),
        weights_bytes=sum(file.stat().st_size for file in weights),
        parameters=sum(_elements(file) for file in weights),
    )


def _elements(path: Path) -> int:
    """Elements of all tensors. Source: the safetensors format description: u64 length, then a JSON of names and shapes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= _MAX_HEADER_BYTES:
            raise Unprocessable(f"{path} is no safetensors file: its header would have {length} bytes")
        header = file.read(length)
    try:
        tensors = msgspec.json.decode(header, type=dict[str, _Tensor])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unprocessable(f"{path}: {error}") from error
    return sum(math.prod(tensor.shape) for tensor in tensors.values() if tensor.shape is not None)


def _size(path: Path, sizes: _Sizes, name: str, default: int | None = None) -> int:
    value = sizes.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise Unprocessable(f"{path}: {name} is {value!r}, it must be a whole number from 1")
    return value
