"""Weights of the old system and the names they went by: `model.import` without copying, then an alias for each old id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from bus.sync import SyncClient
from migrate_parts.model_registry import Listed, listed, name_of, registries, weights
from migrate_parts.moving import Asked, Becomes, Row, Store, row
from migrate_parts.stores import Found
from schemas.bodies.model import ModelShow
from schemas.bodies.model_files import ModelAlias, ModelImport, ModelVerify
from schemas.errors import NotFound

Mode = Literal["link", "copy"]

# Seconds: a copy of a large model, or its hash.
_TIMEOUT_S: Final = 3_600.0

# How models were served whose weights are files; whatever else stands there ran somewhere else.
_OF_FILES: Final = ("", "gguf_direct", "gguf", "huggingface")


def stores(root: Path, mode: Mode) -> list[Store]:
    """The folder of weights, where there are any, and the registries that name models."""
    found = [_registry(root, registry) for registry in registries(root)]
    files = [] if root.is_file() else list(weights(root))
    return [*([_files(root, files, mode)] if files else []), *found]


def _files(root: Path, files: list[Path], mode: Mode) -> Store:
    def rows() -> Iterator[Row]:
        for path in files:
            yield row("gguf", path.relative_to(root), partial(_imported, path, mode))

    # Without a mark: a model that is there is found by its name.
    return Store("models", None, lambda: len(files), rows)


def _imported(path: Path, mode: Mode) -> Asked:
    name = name_of(path)
    body = ModelImport(path=str(path.resolve()), name=name, mode=mode)
    return Asked(
        "model.import", body, partial(_differs, path, name), timeout_s=_TIMEOUT_S, is_there=partial(_is_known, name)
    )


def _differs(path: Path, name: str, client: SyncClient) -> str | None:
    """The same file, or one with the same content."""
    try:
        there = client.request("model.show", ModelShow(model=name))
    except NotFound:
        return "not there"
    if Path(there.path).exists() and Path(there.path).samefile(path):
        return None
    if there.state == "unusable":
        return f"{there.path} is unusable: {there.error}"
    if path.is_dir() or "-of-" in path.name:
        return None if there.name == name else f"{name} is another name of {there.name}"
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    verified = client.request("model.verify", ModelVerify(model=name, sha256=sha256), timeout_s=_TIMEOUT_S)
    return None if verified.is_intact else f"{there.path} has another content than {path}"


def _registry(root: Path, found: Found) -> Store:
    def rows() -> Iterator[Row]:
        for one in listed(root, found):
            yield row("models", one.id, partial(_named, one))

    return Store(found.name, None, lambda: len(listed(root, found)), rows)


def _named(one: Listed) -> Becomes:
    method = str(one.fields.get("serving_method") or "")
    if method not in _OF_FILES:
        return f"was served by {method}: there are no weights to import"
    if one.path is None:
        given: Any = one.fields.get("model_path") or one.fields.get("filename") or one.fields.get("repo_id")
        return f"its weights are not there: {given}" if given else "says nothing about weights"
    name = name_of(one.path)
    if name == one.id:
        # Its file is a row of its own.
        return Asked("model.show", ModelShow(model=name), partial(_is_named, one.id, name), is_once=True)
    # An alias that is there is somebody's, and stays.
    check, is_there = partial(_is_named, one.id, name), partial(_is_known, one.id)
    return Asked("model.alias", ModelAlias(alias=one.id, model=name), check, is_there=is_there)


def _is_known(name: str, client: SyncClient) -> bool:
    try:
        client.request("model.show", ModelShow(model=name))
    except NotFound:
        return False
    return True


def _is_named(id: str, name: str, client: SyncClient) -> str | None:
    try:
        there = client.request("model.show", ModelShow(model=id))
    except NotFound:
        return "not there"
    return None if there.name == name else f"{id} means {there.name}, in the old system {name}"
