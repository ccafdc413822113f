"""A PEFT adapter's folder as it lies there: what it says about its base, its content, its name. No weights are loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from schemas.errors import NotFound, Unprocessable
from workers.learning.training.base import fingerprint

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"

_CHUNK_BYTES: Final = 4 * 1024 * 1024

# Hexadecimal digits of the content in a name: two of a trillion adapters would share them.
_NAME_DIGITS: Final = 12


class _Config(msgspec.Struct, frozen=True):
    base_model_name_or_path: str | None = None


def content_of(folder: Path) -> str:
    """sha256 of the two files that make an adapter. Reads them; call it in a thread. Raises NotFound, OSError."""
    content = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise NotFound(f"{folder} has no {name}, so there is no adapter that PEFT wrote")
        with (folder / name).open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()


def name_of(dataset: str, sha256: str) -> str:
    """Name of an adapter: other content never has it."""
    return f"{dataset}-{sha256[:_NAME_DIGITS]}"


def check_base(folder: Path, base: Path, base_sha256: str, model: str) -> None:
    """That the adapter was trained on `base`, which `model` is served from. Reads all of it; call it in a thread.

    base_sha256: fingerprint of what it was trained on, "" where only the name in its configuration tells. Raises
    Unprocessable with the names of both, OSError.
    """
    try:
        named = msgspec.json.decode((folder / CONFIG).read_bytes(), type=_Config).base_model_name_or_path or ""
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unprocessable(f"{folder / CONFIG}: {error}") from error
    if base_sha256:
        present = fingerprint(base)
        if present != base_sha256:
            raise Unprocessable(
                f"the adapter is for the base {named or '(unnamed)'} with content {base_sha256[:12]},"
                f" but {model} has the base {base} with content {present[:12]}",
                model=model,
            )
        return
    if named and named not in (model, base.name) and Path(named).resolve() != base.resolve():
        raise Unprocessable(f"the adapter is for the base {named}, but {model} has the base {base}", model=model)
