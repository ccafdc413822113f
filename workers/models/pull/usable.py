"""Looks whether fetched files are a model that can be used, before anything of them is adopted. Reads headers only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from workers.models import gguf_header, safetensors_header
from workers.models.found import PART
from workers.models.gguf_header import UnusableFile

# Bytes of a JSON file at most, which is read whole: the largest public tokenizers have some 35 MB.
_MAX_JSON_BYTES: Final = 128 * 1024 * 1024


def check_usable(paths: Iterable[Path]) -> None:
    """Raises UnusableFile for a file that is cut short, hostile or of another format. Blocks on the disk."""
    for path in paths:
        try:
            _check(path)
        except UnusableFile as error:
            raise UnusableFile(f"{path.name}: {error}") from error


def _check(path: Path) -> None:
    if path.suffix == ".safetensors":
        safetensors_header.read_header(path)
    elif path.suffix == ".json":
        _check_json(path)
    elif path.suffix == ".gguf":
        part = PART.fullmatch(path.name)
        gguf_header.read_header(path, is_later_part=part is not None and int(part["number"]) > 1)


def _check_json(path: Path) -> None:
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise UnusableFile(f"it has {size} bytes, the limit is {_MAX_JSON_BYTES}")
    try:
        # Raw: nothing is built of it, which would take many times its size in memory.
        msgspec.json.decode(path.read_bytes(), type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableFile(f"does not decode: {error}") from error
