"""Reads the files of a BERT sentence encoder: what it is built like, and its weights. Encoder process only."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Part of the prepared file's name: raise it whenever the graph changes, and files made before are made anew.
GRAPH_VERSION: Final = 1


class UnsupportedModel(Exception):
    """A model of another build than this module knows; the message says what differs."""


class BertConfig(msgspec.Struct, frozen=True):
    """What counts of a BERT model's `config.json`."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"


class _Module(msgspec.Struct, frozen=True):
    type: str
    path: str


def read_config(folder: Path) -> BertConfig:
    """The configuration of the model in `folder`. Raises UnsupportedModel unless this module can write its graph.

    That is a BERT encoder, then the mean over its tokens, then division by the length.
    """
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=BertConfig)
        modules = msgspec.json.decode((folder / "modules.json").read_bytes(), type=list[_Module])
        pooling = json.loads((folder / modules[1].path / "config.json").read_bytes())
    except (OSError, msgspec.DecodeError, IndexError, json.JSONDecodeError) as error:
        raise UnsupportedModel(f"{folder} is not a sentence-transformers model of a known build: {error}") from error
    steps = [module.type.rpartition(".")[2] for module in modules]
    if steps != ["Transformer", "Pooling", "Normalize"]:
        raise UnsupportedModel(f"its steps are {', '.join(steps)}; known are Transformer, Pooling, Normalize")
    modes = sorted(name for name, value in pooling.items() if name.startswith("pooling_mode") and value is True)
    if modes != ["pooling_mode_mean_tokens"]:
        raise UnsupportedModel(f"it pools by {', '.join(modes)}; known is pooling_mode_mean_tokens")
    known = ("bert", "gelu", "absolute")
    if (config.model_type, config.hidden_act, config.position_embedding_type) != known:
        raise UnsupportedModel(
            f"model_type {config.model_type!r}, hidden_act {config.hidden_act!r}, position_embedding_type"
            f" {config.position_embedding_type!r}; known are {known}"
        )
    if not (folder / "model.safetensors").is_file() or not (folder / "tokenizer.json").is_file():
        raise UnsupportedModel("model.safetensors or tokenizer.json is missing")
    return config


def read_safetensors(path: Path) -> dict[str, Floats]:
    """The float32 tensors of a safetensors file by name, mapped, not copied. Raises UnsupportedModel.

    Source: the format's description: 8 bytes of header length, a JSON header, then the tensors' bytes.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        header_bytes = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_bytes])
    except ValueError as error:
        raise UnsupportedModel(f"{path} is no safetensors file: {error}") from error
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] == "I64":  # position_ids: the numbers from 0
            continue
        if entry["dtype"] != "F32":
            raise UnsupportedModel(f"tensor {name} has type {entry['dtype']}; known is F32")
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data, np.float32, (end - begin) // 4, 8 + header_bytes + begin)
        tensors[name] = array.reshape(entry["shape"])
    return tensors
