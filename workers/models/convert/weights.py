"""Reads the tensors of a safetensors folder one at a time, with a LoRA adapter merged into them if there is one.

Runs in a child process. Nothing is unpickled; the header is checked before a byte of the data is believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import Unprocessable, Unsupported
from workers.models.gguf_header import UnusableFile
from workers.models.safetensors_header import read_header

Floats = NDArray[np.float32]

_INDEX: Final = "model.safetensors.index.json"
_ONLY: Final = "model.safetensors"
_ADAPTER: Final = "adapter_model.safetensors"

# Names of PEFT: base_model.model.<the layer's own name>.lora_A.weight
_BEFORE: Final = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"

# What an adapter may do beside B A: none of it is a plain addition to a weight.
_NOT_MERGED: Final = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "trainable_token_indices",
)


class _Place(msgspec.Struct, frozen=True):
    """Where a tensor lies: bytes `start` to `end` of a file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Weights:
    """The tensors of some safetensors files by name."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._places: dict[str, _Place] = {}
        for path in paths:
            self._places.update(_places(path))

    @property
    def names(self) -> list[str]:
        """Every tensor, in the order of the files."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, outermost first."""
        return self._places[name].shape

    def read(self, name: str) -> Floats:
        """A tensor as float32, which holds every value of the narrower types."""
        place = self._places[name]
        data = np.memmap(place.path, np.uint8, "r", offset=place.start, shape=(place.end - place.start,))
        match place.dtype:
            case "F32":
                values = data.view(np.float32)
            case "F16":
                values = data.view(np.float16).astype(np.float32)
            case "BF16":
                # bfloat16 is the upper half of a float32.
                values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            case other:
                raise Unsupported(f"tensor {name} is of type {other}, F32, F16 and BF16 can be exported")
        return values.reshape(place.shape)


class Adapter:
    """A LoRA adapter in PEFT's format: what to add to which weight. Source: arXiv:2106.09685, section 4.1."""

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "adapter_config.json")
        odd = [key for key in _NOT_MERGED if config.get(key)]
        if config.get("peft_type") != "LORA" or odd:
            what = f"it uses {', '.join(odd)}" if odd else f"it is of type {config.get('peft_type')!r}"
            raise Unsupported(f"adapter {folder.name} cannot be merged: {what}; plain LoRA adapters can")
        rank = config.get("r")
        alpha = config.get("lora_alpha", rank)
        if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
            raise Unprocessable(f"adapter_config.json: r is {rank!r}, it must be a number of 1 or more", field="r")
        # Rank-stabilised adapters divide by the root: arXiv:2312.03732.
        self._scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._weights = Weights([folder / _ADAPTER])
        self.targets = self._targets(folder)

    def _targets(self, folder: Path) -> set[str]:
        targets = set()
        for name in self._weights.names:
            layer = name.removeprefix(_BEFORE).removesuffix(_A).removesuffix(_B)
            if not name.startswith(_BEFORE) or not name.endswith((_A, _B)):
                raise Unsupported(f"adapter {folder.name} cannot be merged: it holds {name[:120]}")
            targets.add(f"{layer}.weight")
        return targets

    def delta(self, name: str, shape: tuple[int, ...]) -> Floats:
        """What to add to weight `name` of `shape`. Raises Unprocessable when the adapter is of another model."""
        layer = _BEFORE + name.removesuffix(".weight")
        try:
            a, b = self._weights.read(layer + _A), self._weights.read(layer + _B)
        except KeyError as error:
            raise Unprocessable(f"the adapter has only half of {name}") from error
        if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != shape or a.shape[0] != b.shape[1]:
            raise Unprocessable(f"the adapter is of another model: {name} is {shape}, its delta {b.shape} x {a.shape}")
        merged: Floats = (b @ a) * np.float32(self._scale)
        return merged


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder. Raises Unprocessable naming the file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Unprocessable(f"{path.name} is missing") from error
    except (ValueError, RecursionError) as error:
        raise Unprocessable(f"{path.name} does not decode: {error}") from error
    if not isinstance(value, dict):
        raise Unprocessable(f"{path.name} holds no JSON object")
    return value


def shards(folder: Path) -> Iterator[Path]:
    """The files that hold the weights of a model's folder. Raises Unprocessable for an index that leads elsewhere."""
    if not (folder / _INDEX).exists():
        yield folder / _ONLY
        return
    shards = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise Unprocessable(f"{_INDEX} has no weight_map")
    for name in sorted(set(map(str, shards.values()))):
        if "/" in name or not name.endswith(".safetensors"):
            raise Unprocessable(f"{_INDEX} names {name[:80]!r}, which is no file of the folder")
        yield folder / name


def _places(path: Path) -> dict[str, _Place]:
    try:
        # Checks every length and offset; what follows reads the same bytes again.
        read_header(path)
    except FileNotFoundError as error:
        raise Unprocessable(f"{path.name} is missing") from error
    except UnusableFile as error:
        raise Unprocessable(f"{path.name}: {error}") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    base = 8 + length
    return {
        name: _Place(
            path,
            entry["dtype"],
            tuple(entry["shape"]),
            base + entry["data_offsets"][0],
            base + entry["data_offsets"][1],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
