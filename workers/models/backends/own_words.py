"""What a model's files say of how to use it: chat template, trained window, sampling. Knows nothing of backends.

    GGUF                          tokenizer.chat_template, general.sampling.*
    folder of safetensors         chat_template.jinja or tokenizer_config.json, generation_config.json, config.json

Source: the GGUF specification; the Hugging Face transformers guides on chat templates and generation.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas.bodies.model import Sampling
from workers.models.gguf_header import UnusableFile, read_header

# Field of schemas.bodies.model.Sampling -> its name in general.sampling.*, and in generation_config.json.
_SAMPLING: Final = {
    "temperature": ("temp", "temperature"),
    "top_k": ("top_k", "top_k"),
    "top_p": ("top_p", "top_p"),
    "min_p": ("min_p", "min_p"),
    "repeat_penalty": ("penalty_repeat", "repetition_penalty"),
}

# Fields of a configuration that hold the trained window, by model family.
_WINDOW_FIELDS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")

# A file of this folder that is larger is none of these; a tokenizer's configuration reaches a few hundred kB.
_MAX_BYTES: Final = 16 * 1024 * 1024


class OwnWords(msgspec.Struct, frozen=True):
    """context_tokens: 0 when unknown. sampling: by the field names of schemas.bodies.model.Sampling."""

    chat_template: str | None = None
    context_tokens: int = 0
    sampling: dict[str, float] = {}


def words_of_gguf(path: Path) -> OwnWords:
    """Raises UnusableFile, OSError."""
    header = read_header(path)
    found = {field: header.number(f"general.sampling.{name}") for field, (name, _) in _SAMPLING.items()}
    return OwnWords(
        chat_template=header.text("tokenizer.chat_template") or None,
        context_tokens=header.context_tokens,
        sampling=_usable(found),
    )


def words_of_folder(folder: Path) -> OwnWords:
    """Raises UnusableFile for a file that is no JSON object, OSError."""
    config = _object(folder / "config.json")
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    generation = _object(folder / "generation_config.json")
    found = {field: generation.get(name) for field, (_, name) in _SAMPLING.items()}
    if generation.get("do_sample") is False:
        found["temperature"] = 0.0
    windows = [config[name] for name in _WINDOW_FIELDS if isinstance(config.get(name), int)]
    return OwnWords(
        chat_template=_template(folder),
        context_tokens=next((window for window in windows if 0 < window < 2**31), 0),
        sampling=_usable(found),
    )


def _usable(found: dict[str, Any]) -> dict[str, float]:
    """What a request could ask for too: a file is no more to be trusted than a caller, and holds NaN where it likes."""
    usable = {}
    for field, value in found.items():
        with contextlib.suppress(msgspec.ValidationError):
            usable[field] = getattr(msgspec.convert({field: value}, Sampling), field)
    return {field: value for field, value in usable.items() if value is not None}


def _template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return _text(file)
    found = _object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        # Several named templates; the one for conversations without more ado is called so.
        found = next(
            (one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), None
        )
    return found if isinstance(found, str) and found else None


def _object(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        value = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise UnusableFile(f"{file.name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnusableFile(f"{file.name} holds no JSON object")
    return value


def _text(file: Path) -> str:
    size = file.stat().st_size
    if size > _MAX_BYTES:
        raise UnusableFile(f"{file.name} has {size} bytes, at most {_MAX_BYTES} are read")
    return file.read_text(encoding="utf-8", errors="replace")
