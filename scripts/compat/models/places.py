"""Finds the model of Olympus that an old configuration means, and brings its file in where Olympus does not have it."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from models.config import ModelConfig
from models.errors import ModelError, UnknownModel
from models.house import House
from schemas.bodies.model import ModelInfo
from schemas.bodies.model_files import ModelImport, ModelPull
from schemas.errors import Conflict, NotFound

log = logging.getLogger("models")

# Seconds that bringing a model in may take: a copy of 40 GB from a slow disk, or a download of it.
_BRING_S: Final = 4 * 3600.0

# Names in words, longest message of near ones.
_NEAR: Final = 5


def place(config: ModelConfig, house: House, configured: Iterable[str]) -> ModelInfo:
    """The catalogue's entry for `config`, brought in first where it is not there.

    A path goes before the name. configured: other names that may have been meant. Raises UnknownModel with the nearest names, and ModelError when its file is no model.
    """
    there = listed(house)
    found = find(config, there)
    if found is not None:
        return found
    file = _file(config)
    if file is not None:
        try:
            return _imported(config, file, house)
        except UnknownModel as error:
            log.warning("model %s: the model service has no such file: %s", config.name, error)
    return _elsewhere(config, there) or _pulled(config, house) or _missing(config, there, configured)


def find(config: ModelConfig, there: list[ModelInfo]) -> ModelInfo | None:
    """The entry that is `config`'s for certain: the same file, or where it names none the same name."""
    if _has_only_a_name(config):
        return _named(config.name, there)
    file = _file(config)
    return None if file is None else next((one for one in there if _is_same(one.path, file)), None)


def listed(house: House) -> list[ModelInfo]:
    """Every model of the catalogue."""
    models: list[ModelInfo] = house.ask("model.list").models
    return models


def near_names(name: str, known: Iterable[str]) -> str:
    """In words, what `name` may have meant."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=_NEAR, cutoff=0.5) or names[:_NEAR]
    return f"nearest: {', '.join(near)}" if near else "there is no model at all"


def olympus_name(name: str) -> str:
    """`name` with what Olympus takes in a model's name: letters, digits and . _ : + -, no dot first."""
    return re.sub(r"[^A-Za-z0-9._:+-]+", "-", name).lstrip(".")[:128] or "model"


def _named(name: str, there: list[ModelInfo]) -> ModelInfo | None:
    wanted = (name, olympus_name(name))
    return next((one for one in there if one.name in wanted or not {*wanted}.isdisjoint(one.aliases)), None)


def _elsewhere(config: ModelConfig, there: list[ModelInfo]) -> ModelInfo | None:
    """A model whose path is not of this machine, or of no machine any more: by its name, then by that of its file."""
    if _has_only_a_name(config):
        return None
    stem = Path(config.path).name.removesuffix(".gguf")
    found = _named(config.name, there) or _named(stem, there) or _named(config.path, there)
    if found is not None:
        log.warning("model %s: there is no %s here; Olympus' model %s is taken", config.name, config.path, found.name)
    return found


def _has_only_a_name(config: ModelConfig) -> bool:
    """True too for a remote model, whose path is its name at the endpoint."""
    return not config.path or config.type == "openai"


def _file(config: ModelConfig) -> Path | None:
    """The file or folder of weights, if it is here; of a folder with one GGUF file that file."""
    if _has_only_a_name(config):
        return None
    path = Path(config.path).expanduser().absolute()
    if config.filename and path.is_dir():
        path = path / config.filename
    if path.is_dir() and not (path / "config.json").is_file():
        inside = sorted(path.glob("*.gguf"))
        # Parts of a split model are named by the first.
        if len(inside) == 1 or (inside and "-00001-of-" in inside[0].name):
            return inside[0]
    return path if path.exists() else None


def _is_same(known: str, file: Path) -> bool:
    """True for the same file, a hard link to it too."""
    try:
        return bool(known) and os.path.samefile(known, file)
    except OSError:
        return False


def _imported(config: ModelConfig, file: Path, house: House) -> ModelInfo:
    """Brought in by hard link; a copy where that cannot be."""
    name = olympus_name(config.name)
    log.info("model %s: bringing %s into Olympus", config.name, file)
    try:
        return _import(house, file, name)
    except ModelError as error:
        if error.code != Conflict.code:
            raise
    # Agents start together, and another one may have been faster with the same file. Olympus compares what it has now.
    try:
        return find(config, listed(house)) or _import(house, file, name)
    except ModelError as error:
        if error.code != Conflict.code:
            raise
        # The name is taken by other content: the same file always gets the same other name.
        state = file.stat()
        mark = hashlib.sha256(f"{file}:{state.st_size}:{state.st_mtime_ns}".encode()).hexdigest()[:8]
        log.warning("model %s: %s; it is called %s-%s there", config.name, error, name, mark)
        return _import(house, file, f"{name[:100]}-{mark}")


def _import(house: House, file: Path, name: str) -> ModelInfo:
    body = ModelImport(path=str(file), name=name, mode="link")
    info: ModelInfo = house.ask("model.import", body, timeout_s=_BRING_S)
    return info


def _pulled(config: ModelConfig, house: House) -> ModelInfo | None:
    """A model that is named as OWNER/NAME, fetched from the hub as transformers did."""
    if not config.is_hub_name:
        return None
    source = f"hf:{config.path}" + (f"/{config.filename}" if config.filename else "")
    log.info("model %s: fetching %s", config.name, source)
    name = olympus_name(config.name)
    pulled = house.ask("model.pull", ModelPull(source=source, name=name), timeout_s=_BRING_S)
    return _named(pulled.model, listed(house))


def _missing(config: ModelConfig, there: list[ModelInfo], configured: Iterable[str]) -> ModelInfo:
    where = f": there is no file or folder {config.path}" if config.path else ""
    near = near_names(config.name, [*(one.name for one in there), *configured])
    raise UnknownModel(f"there is no model {config.name!r}{where}, {near}", NotFound.code, model=config.name)
