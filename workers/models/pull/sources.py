"""Reads what a pull is asked for, `https://...`, `ollama:NAME[:TAG]` or `hf:OWNER/NAME[@REVISION][/FILE]`. Knows no network."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from schemas.errors import BadRequest

# What may become a file name here: what a model's name may hold, less the slash, and no leading dot.
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._:+-]{0,199}", re.ASCII)
_MODEL_NAME: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._:+-]{0,127}", re.ASCII)
_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)

_FORMS: Final = "https://HOST/FILE, ollama:NAME[:TAG] or hf:OWNER/NAME[@REVISION][/FILE]"


class UrlSource(msgspec.Struct, frozen=True):
    """One file. shown: the URL without what may be a key in its query."""

    url: str
    shown: str
    name: str


class RegistrySource(msgspec.Struct, frozen=True):
    """A model of a registry with Ollama's protocol. repository: with its namespace, "library" where none was named."""

    repository: str
    tag: str
    shown: str
    name: str


class HubSource(msgspec.Struct, frozen=True):
    """A repository of a hub, or one file of it."""

    repository: str
    revision: str
    file: str | None
    shown: str
    name: str


Source = UrlSource | RegistrySource | HubSource


def parse_source(text: str) -> Source:
    """The source that `text` names. Raises BadRequest with the field, the value and the allowed forms."""
    kind, colon, rest = text.partition(":")
    if not text.isprintable() or not colon:
        raise _refused(text, "it names no source")
    if kind in ("https", "http"):
        return _url(text)
    if kind == "ollama":
        return _registry(text, rest)
    if kind == "hf":
        return _hub(text, rest)
    raise _refused(text, f"{kind[:20]!r} is no kind of source")


def checked_name(name: str) -> str:
    """`name`, if a file here can be called that. Raises BadRequest."""
    if not _MODEL_NAME.fullmatch(name):
        raise BadRequest(
            f"name is {name[:140]!r}, allowed are 1 to 128 letters, digits and . _ : + -, not beginning with a dot,"
            " and no slash: it becomes a file name",
            field="name",
        )
    return name


def checked_file_name(path: str) -> str | None:
    """The last part of a path on a server, if a file here can be called that."""
    last = path.rpartition("/")[2]
    return last if _FILE_NAME.fullmatch(last) else None


def model_name_of(file_name: str) -> str:
    """What a model from a file of this name is called: no ending, and other characters replaced by a dash."""
    stem = re.sub(r"\.(gguf|safetensors|bin)$", "", file_name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._:+-]+", "-", stem, flags=re.ASCII).lstrip(".-")[:128].rstrip("-") or "model"


def _url(text: str) -> UrlSource:
    try:
        parts = urlsplit(text)
        host = parts.hostname
        # Reading the port checks it.
        is_whole = bool(host) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise _refused(text, str(error)) from error
    if not is_whole:
        raise _refused(text, "the URL names no host")
    if "@" in parts.netloc:
        raise BadRequest("source is a URL with a user or password in it, which would end up in logs", field="source")
    last = unquote(parts.path).rstrip("/").rpartition("/")[2]
    if not last:
        raise _refused(_without_query(text), "the URL names no file")
    return UrlSource(text.partition("#")[0], _without_query(text), model_name_of(last))


def _registry(text: str, rest: str) -> RegistrySource:
    path, _, tag = rest.partition(":")
    parts = path.split("/")
    tag = tag or "latest"
    if len(parts) > 2 or not all(_PART.fullmatch(part) for part in parts) or not _TAG.fullmatch(tag):
        raise _refused(text, "after 'ollama:' comes NAME or NAMESPACE/NAME, then perhaps :TAG")
    if len(parts) == 1:
        parts = ["library", *parts]
    name = parts[1] if tag == "latest" else f"{parts[1]}:{tag}"
    return RegistrySource("/".join(parts), tag, text, model_name_of(name))


def _hub(text: str, rest: str) -> HubSource:
    owner, slash, after = rest.partition("/")
    name, at, behind = after.partition("@")
    if at:
        revision, _, file = behind.partition("/")
    else:
        revision = "main"
        name, _, file = after.partition("/")
    if not (slash and _PART.fullmatch(owner) and _PART.fullmatch(name) and _REVISION.fullmatch(revision)):
        raise _refused(text, "after 'hf:' comes OWNER/NAME, then perhaps @REVISION and /FILE")
    if file and any(part in ("", ".", "..") for part in file.split("/")):
        raise _refused(text, f"{file[:80]!r} is no path of a file")
    called = model_name_of(file.rpartition("/")[2]) if file else model_name_of(name)
    return HubSource(f"{owner}/{name}", revision, file or None, text, called)


def _without_query(url: str) -> str:
    return url.partition("#")[0].partition("?")[0]


def _refused(text: str, why: str) -> BadRequest:
    return BadRequest(f"source is {text[:200]!r}: {why}; allowed are {_FORMS}", field="source")
