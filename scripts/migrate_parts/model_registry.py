"""The old registries of models, and the weights they meant: `llm_config.yaml`, `system_config.json`, `gguf_models.json`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from migrate_parts.figures import text
from migrate_parts.stores import Found, UnusableStore, find, read_object
from workers.models.found import PART

SYSTEM_CONFIG: Final = ("main_pc_code/config/system_config.json", "config/system_config.json")
GGUF_MODELS: Final = ("config/gguf_models.json", "models/gguf_models.json")
LLM_CONFIG: Final = ("main_pc_code/config/llm_config.yaml", "config/llm_config.yaml")

# Where weights lay; paths in the registries are relative to one of these.
_FOLDERS: Final = ("models", "models/gguf", "main_pc_code/models", "main_pc_code/models/gguf", ".")

_NO_NAME: Final = re.compile(r"[^A-Za-z0-9._+-]+")


class Listed(NamedTuple):
    """A model of a registry. path: None where its weights are not there."""

    registry: str
    id: str
    fields: dict[str, Any]
    path: Path | None


def registries(root: Path) -> list[Found]:
    """The files that list models."""
    return find(root, *SYSTEM_CONFIG, *GGUF_MODELS, *LLM_CONFIG)


def listed(root: Path, found: Found) -> list[Listed]:
    """The models of one registry. Raises UnusableStore."""
    if found.path.suffix == ".yaml":
        entries = _mapping(read_yaml(found.path).get("models"))
    else:
        content = read_object(found.path)
        settings = _mapping(content.get("main_pc_settings"))
        has_settings = "main_pc_settings" in content
        entries = (
            _mapping(settings.get("model_configs")) if has_settings else _mapping(content.get("model_configs", content))
        )
        speech = _mapping(
            _mapping(content.get("whisper_model_config") or settings.get("whisper_model_config")).get("models")
        )
        entries = {**entries, **{id: {**_mapping(one), "serving_method": "whisper"} for id, one in speech.items()}}
    return [
        Listed(found.name, text(id), one if isinstance(one, dict) else {}, _weights(root, _mapping(one)))
        for id, one in entries.items()
    ]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds an object. Raises UnusableStore."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UnusableStore(f"{path}: {error}") from error
    if not isinstance(content or {}, dict):
        raise UnusableStore(f"{path}: holds {type(content).__name__} where an object is expected")
    return content or {}


def weights(root: Path) -> Iterator[Path]:
    """Every GGUF file in the models folders, once; of a split model the first part."""
    seen: set[Path] = set()
    for folder in _FOLDERS[:-1]:
        if not (root / folder).is_dir():
            continue
        for path in sorted((root / folder).glob("*.gguf")):
            part = PART.fullmatch(path.name)
            if path.is_file() and path.resolve() not in seen and (part is None or int(part["number"]) == 1):
                seen.add(path.resolve())
                yield path


def name_of(path: Path) -> str:
    """What a model is called here: its file's name, in the characters of ours."""
    part = PART.fullmatch(path.name)
    stem = part["name"] if part else path.name if path.is_dir() else path.stem
    return _NO_NAME.sub("-", stem).strip("-").lstrip(".")[:128] or "model"


def _weights(root: Path, one: dict[str, Any]) -> Path | None:
    given = text(one.get("model_path") or one.get("filename") or one.get("path"))
    if not given or root.is_file():
        return None
    for folder in _FOLDERS:
        path = root / folder / given
        try:
            if path.is_file() or path.is_dir():
                return path
        except (OSError, ValueError):
            return None
    return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
