"""Makes a file of an adapter ready to be kept: copies a GGUF adapter, or writes a PEFT one as GGUF. A program of its own.

    python -m workers.models.adapters.convert --parent PID SOURCE BASE TARGET        answers with one line of JSON

It reads what strangers wrote, with numpy and gguf, so it runs apart from the service: what it crashes on, and the memory
it takes, is its own. BASE is the GGUF file of the base model, or its folder of safetensors; for a folder the adapter is
kept as it is.

    base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight    ->    blk.N.attn_q.weight.lora_a
    lora_alpha, r                                                            adapter.lora.alpha

The rotary heads of llama-like models are stored in another order in GGUF, so the rows of q and k are permuted.
Source: llama.cpp, convert_lora_to_gguf.py and `LlamaModel.permute` of convert_hf_to_gguf.py; PEFT's LoraConfig.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.parent import die_with_parent
from workers.models.gguf_header import GgufHeader, UnusableFile
from workers.models.gguf_header import read_header as read_gguf
from workers.models.safetensors_header import read_header as read_safetensors

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"

# Architecture of llama.cpp -> whether q and k are permuted. Others lay their tensors out in ways this does not know.
_PERMUTED: Final = {
    "llama": True,
    "mistral3": True,
    "qwen2": False,
    "qwen3": False,
    "gemma": False,
    "gemma2": False,
    "gemma3": False,
    "olmo2": False,
    "starcoder2": False,
}

_MODULE: Final = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")

# Fields of adapter_config.json that change what is computed in a way a GGUF adapter cannot say.
_REFUSED: Final = (
    "use_dora",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "fan_in_fan_out",
    "lora_bias",
)

# Beginnings of init_lora_weights that change the base model's weights, too: the adapter alone then means something else.
_CHANGED_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")

# Adapters of the largest models stay under this.
MAX_BYTES: Final = 16 * 1024**3
_CHUNK_BYTES: Final = 4 * 1024 * 1024
_MAX_CONFIG_BYTES: Final = 1024 * 1024


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What was made, or why nothing was (`error`). sha256: of the content at the target."""

    sha256: str = ""
    size_bytes: int = 0
    rank: int = 0
    error: str = ""


def convert(source: Path, base: Path, target: Path) -> Converted:
    """Make `target` from the adapter at `source`. Raises UnusableFile with the reason, OSError."""
    if source.is_dir():
        return _keep_folder(source, target) if base.is_dir() else _write_gguf(source, read_gguf(base), target)
    if base.is_dir():
        raise UnusableFile("the base model is a folder of safetensors; its adapters are folders that PEFT wrote")
    return _copy_gguf(source, read_gguf(base), target)


# GGUF ---------------------------------------------------------------------------------------------------------------


def _copy_gguf(source: Path, base: GgufHeader, target: Path) -> Converted:
    header = read_gguf(source)
    if header.text("general.type") != "adapter" or header.text("adapter.type") != "lora":
        raise UnusableFile("it is a GGUF file, but no LoRA adapter")
    if header.architecture != base.architecture:
        raise UnusableFile(f"it is for models of kind {header.architecture!r}, the base model is {base.architecture!r}")
    sha256 = hashlib.sha256()
    size = source.stat().st_size
    if size > MAX_BYTES:
        raise UnusableFile(f"it has {size} bytes, the limit is {MAX_BYTES}")
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(_CHUNK_BYTES):
            sha256.update(chunk)
            write.write(chunk)
        write.flush()
        os.fsync(write.fileno())
    return Converted(sha256=sha256.hexdigest(), size_bytes=target.stat().st_size, rank=_rank_of(target))


def _rank_of(path: Path) -> int:
    """Rank of the first adapted matrix; the header was checked before."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    shapes = [tensor.shape for tensor in reader.tensors if tensor.name.endswith(".lora_a")]
    if not shapes:
        raise UnusableFile("it adapts nothing: no tensor's name ends in .lora_a")
    return int(shapes[0][1])


# PEFT ---------------------------------------------------------------------------------------------------------------


def _read_config(source: Path) -> dict[str, Any]:
    file = source / CONFIG
    if not file.is_file():
        raise UnusableFile(f"the folder has no {CONFIG}, so PEFT did not write it")
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise UnusableFile(f"{CONFIG} has {file.stat().st_size} bytes, the limit is {_MAX_CONFIG_BYTES}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnusableFile(f"{CONFIG} is no JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UnusableFile(f"{CONFIG} does not say peft_type LORA")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise UnusableFile(f"{CONFIG}: r is {rank!r}, it must be a whole number from 1")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise UnusableFile(f"{CONFIG}: lora_alpha is {alpha!r}, it must be a number")
    if config.get("bias", "none") != "none":
        raise UnusableFile(f"{CONFIG}: bias is {config['bias']!r}, only 'none' can be carried over")
    refused = [name for name in _REFUSED if config.get(name)]
    if refused:
        raise UnusableFile(f"{CONFIG}: {refused[0]} is set, which cannot be carried over")
    began = config.get("init_lora_weights")
    if isinstance(began, str) and began.lower().startswith(_CHANGED_BASE):
        raise UnusableFile(f"{CONFIG}: init_lora_weights is {began!r}, which changed the base model's own weights")
    weights = source / WEIGHTS
    if not weights.is_file():
        raise UnusableFile(f"the folder has no {WEIGHTS}")
    read_safetensors(weights)
    return config


def _keep_folder(source: Path, target: Path) -> Converted:
    """Copy the two files that say everything."""
    config = _read_config(source)
    target.mkdir()
    sha256 = hashlib.sha256()
    size = 0
    for name in (CONFIG, WEIGHTS):
        with (source / name).open("rb") as read, (target / name).open("wb") as write:
            while chunk := read.read(_CHUNK_BYTES):
                sha256.update(chunk)
                size += len(chunk)
                write.write(chunk)
            write.flush()
            os.fsync(write.fileno())
    return Converted(sha256=sha256.hexdigest(), size_bytes=size, rank=config["r"])


def _write_gguf(source: Path, base: GgufHeader, target: Path) -> Converted:
    import gguf

    config = _read_config(source)
    family = base.architecture
    if family not in _PERMUTED:
        raise UnusableFile(
            f"adapters of kind {family!r} cannot be converted here ({', '.join(_PERMUTED)} can); give its GGUF file"
        )
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[family], int(base.number(f"{family}.block_count") or 0))
    pairs = _pairs(source / WEIGHTS)
    rank = int(config["r"])
    alpha = float(config["lora_alpha"])
    if config.get("use_rslora"):
        # PEFT then scales by alpha / sqrt(rank) where llama.cpp divides by the rank.
        alpha *= math.sqrt(rank)
    writer = gguf.GGUFWriter(target, family)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for module, (a, b) in sorted(pairs.items()):
        name = names.get_name(module, try_suffixes=())
        if name is None:
            raise UnusableFile(f"{module} is no part of a model of kind {family!r}")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise UnusableFile(f"{module}: shapes {a.shape} and {b.shape} do not belong together")
        if config.get("use_rslora") and b.shape[1] != rank:
            raise UnusableFile(
                f"{module}: its rank is {b.shape[1]}, and with use_rslora only one of all, {rank}, can be"
            )
        if _PERMUTED[family] and name.endswith((".attn_q", ".attn_k")):
            b = _permuted(b, _heads(base, is_key=name.endswith("_k")), module)
        writer.add_tensor(f"{name}.weight.lora_a", a)
        writer.add_tensor(f"{name}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with target.open("rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Converted(sha256=sha256, size_bytes=target.stat().st_size, rank=rank)


def _heads(base: GgufHeader, *, is_key: bool) -> int:
    family = base.architecture
    heads = base.number(f"{family}.attention.head_count")
    key_heads = base.number(f"{family}.attention.head_count_kv")
    found = (key_heads if key_heads is not None else heads) if is_key else heads
    if not isinstance(found, int) or found < 1:
        raise UnusableFile("the base model does not say how many heads it has, or they differ between layers")
    return found


def _permuted(b: Any, heads: int, module: str) -> Any:
    """Rows of each head from (half, pair) to (pair, half), as llama.cpp wants rotary heads."""
    import numpy

    if b.shape[0] % (2 * heads):
        raise UnusableFile(f"{module}: {b.shape[0]} rows do not belong to {heads} heads of the base model")
    split = b.reshape(heads, 2, b.shape[0] // heads // 2, b.shape[1])
    return numpy.ascontiguousarray(split.swapaxes(1, 2).reshape(b.shape))


def _pairs(path: Path) -> dict[str, tuple[Any, Any]]:
    """The two float32 matrices of every adapted module."""
    found: dict[str, dict[str, Any]] = {}
    for name, matrix in _tensors(path).items():
        match = _MODULE.fullmatch(name)
        if match is None:
            raise UnusableFile(f"{WEIGHTS}: tensor {name[:120]!r} is no part of a LoRA adapter of matrices")
        found.setdefault(match[1], {})[match[2]] = matrix
    if not found:
        raise UnusableFile(f"{WEIGHTS} adapts nothing")
    for module, both in found.items():
        if len(both) != 2:
            raise UnusableFile(f"{WEIGHTS}: {module} has only one of its two matrices")
    return {module: (both["A"], both["B"]) for module, both in found.items()}


def _tensors(path: Path) -> dict[str, Any]:
    """Every tensor as float32; numpy knows no bfloat16, whose bits are the upper half of a float32."""
    import numpy

    kinds = {"F32": numpy.float32, "F16": numpy.float16, "F64": numpy.float64, "BF16": numpy.uint16}
    data = numpy.memmap(path, mode="r", dtype=numpy.uint8)
    length = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in kinds:
            raise UnusableFile(f"{WEIGHTS}: {name[:120]!r} is of type {entry['dtype']}, known are {', '.join(kinds)}")
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        raw = data[first:last].view(kinds[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            raw = (raw.astype(numpy.uint32) << 16).view(numpy.float32)
        tensors[name] = raw.astype(numpy.float32)
    return tensors


def main(argv: Sequence[str] | None = None) -> None:
    """Convert one adapter and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m workers.models.adapters.convert", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process id of the model service")
    for name in ("source", "base", "target"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args(argv)
    die_with_parent(given.parent)
    try:
        result = convert(given.source.expanduser(), given.base, given.target)
    except UnusableFile as error:
        result = Converted(error=str(error))
    except ImportError as error:
        result = Converted(error=f"{error}; install the extra 'models'")
    except OSError as error:
        result = Converted(error=f"{error.filename or given.source}: {error.strerror or error}")
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
