"""Finds a model in a repository of a hub, and chooses the files that make it.

    GET /api/models/OWNER/NAME/revision/REVISION?blobs=true  -> sha (the commit), siblings: rfilename, size, lfs.sha256
    GET /OWNER/NAME/resolve/COMMIT/FILE                      -> the file, by redirect from where it is stored

The revision is resolved to a commit first, so that all files are of one state of the repository however long it takes.
Source: the Hub's OpenAPI description, "models".
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

import msgspec

from schemas.errors import NotFound, Unprocessable
from workers.models.pull.plan import Plan, RemoteFile, Size
from workers.models.pull.sources import HubSource, checked_file_name, model_name_of
from workers.models.pull.web import Web

# What makes a model beside its weights. Programs (*.py) and pickled weights (*.bin, *.pt) are never fetched.
_BESIDE: Final = frozenset(
    """
    config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json
    tokenizer.model vocab.json merges.txt chat_template.jinja chat_template.json model.safetensors.index.json
    """.split()
)
_WEIGHTS: Final = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_SPLIT: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

# A projector of a vision model is a part for another one, no model to choose.
_PROJECTOR: Final = re.compile(r"(^|/)mmproj[^/]*$")

_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class _Lfs(msgspec.Struct):
    sha256: str
    size: Size


class Sibling(msgspec.Struct):
    """One file of a repository as its index has it."""

    rfilename: str
    size: Size | None = None
    lfs: _Lfs | None = None


class _Repository(msgspec.Struct):
    sha: str
    siblings: list[Sibling]


async def resolve_hub(web: Web, base_url: str, source: HubSource) -> Plan:
    """The files of a repository that make the model. Raises NotFound, Unprocessable, and what `Web.json` raises."""
    base = base_url.rstrip("/")
    repository: _Repository = await web.json(
        f"{base}/api/models/{source.repository}/revision/{quote(source.revision, safe='')}?blobs=true",
        source.shown,
        _Repository,
    )
    if not _COMMIT.fullmatch(repository.sha):
        raise Unprocessable(f"{source.shown}: the hub names {repository.sha[:80]!r}, which is no commit")
    chosen = choose(source, repository.siblings)
    root = f"{base}/{source.repository}/resolve/{repository.sha}"
    files = [_remote(source, root, sibling) for sibling in chosen]
    is_folder = len(files) > 1 or files[0].name.endswith(".safetensors")
    name = source.name
    if chosen[0].rfilename.endswith(".gguf"):
        name = _called(chosen[0].rfilename)
    return Plan(name=name, files=files, is_folder=is_folder)


def choose(source: HubSource, siblings: list[Sibling]) -> list[Sibling]:
    """The files to fetch: the one that was named with the other parts of it, the only GGUF, or a safetensors folder.

    Raises NotFound for a file that is not there, Unprocessable with a list where there are several, or none, and where
    parts are missing.
    """
    if source.file is not None:
        return _whole(source, _named(source, source.file, siblings))
    weights = [one for one in siblings if _WEIGHTS.fullmatch(one.rfilename)]
    if weights and any(one.rfilename == "config.json" for one in siblings):
        return [*(one for one in siblings if one.rfilename in _BESIDE), *weights]
    models = _models(siblings)
    if len(models) == 1:
        return _whole(source, next(iter(models.values())))
    if models:
        listed = ", ".join(f"{name} ({_size(parts)})" for name, parts in sorted(models.items()))
        raise Unprocessable(
            f"{source.shown} holds {len(models)} models, name one of them as {source.shown}/FILE: {listed}",
            files=sorted(models),
        )
    raise Unprocessable(f"{source.shown} holds no GGUF file and no config.json with model*.safetensors")


def _named(source: HubSource, file: str, siblings: list[Sibling]) -> list[Sibling]:
    if file.endswith(".safetensors"):
        raise Unprocessable(
            f"{source.shown}: a safetensors file is no model without its configuration and tokenizer; leave the file out"
            " of the source to fetch the folder",
        )
    for parts in _models(siblings, with_projectors=True).values():
        if any(one.rfilename == file for one in parts):
            return parts
    known = sorted(_models(siblings))
    listed = ", ".join(known[:20]) or "none"
    raise NotFound(f"{source.shown}: there is no GGUF file {file!r}; there are: {listed}", files=known)


def _whole(source: HubSource, parts: list[Sibling]) -> list[Sibling]:
    """`parts`, if none is missing: that is said before gigabytes of the others come. Raises Unprocessable."""
    split = _SPLIT.fullmatch(parts[0].rfilename)
    there, count = len({one.rfilename for one in parts}), int(split.group(3)) if split else 1
    if there != count:
        raise Unprocessable(f"{source.shown}: of the {count} parts of {parts[0].rfilename} the hub has {there}")
    return parts


def _models(siblings: list[Sibling], *, with_projectors: bool = False) -> dict[str, list[Sibling]]:
    """Every GGUF model by its first file's name, with all of its parts in order."""
    models: dict[str, list[Sibling]] = {}
    for one in sorted(siblings, key=lambda sibling: sibling.rfilename):
        path = one.rfilename
        if not path.endswith(".gguf") or (_PROJECTOR.search(path) and not with_projectors):
            continue
        split = _SPLIT.fullmatch(path)
        first = f"{split.group(1)}-00001-of-{split.group(3)}.gguf" if split else path
        models.setdefault(first, []).append(one)
    return models


def _remote(source: HubSource, root: str, sibling: Sibling) -> RemoteFile:
    name = checked_file_name(sibling.rfilename)
    if name is None:
        raise Unprocessable(f"{source.shown}: the hub names a file {sibling.rfilename[:120]!r}, which none here may be")
    digest = sibling.lfs.sha256 if sibling.lfs is not None else None
    if digest is not None and not _SHA256.fullmatch(digest):
        raise Unprocessable(f"{source.shown}: the hub names {digest[:80]!r} for {name}, which is no sha256")
    return RemoteFile(
        url=f"{root}/{quote(sibling.rfilename)}",
        name=name,
        size_bytes=sibling.lfs.size if sibling.lfs is not None else sibling.size,
        sha256=digest,
        is_fixed=True,
    )


def _called(path: str) -> str:
    split = _SPLIT.fullmatch(path)
    return model_name_of((f"{split.group(1)}.gguf" if split else path).rpartition("/")[2])


def _size(parts: list[Sibling]) -> str:
    sizes = [one.lfs.size if one.lfs is not None else one.size for one in parts]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return "size not told"
    total = sum(known)
    return f"{total / 1e9:.2f} GB" if total >= 1e8 else f"{total / 1e6:.1f} MB"
