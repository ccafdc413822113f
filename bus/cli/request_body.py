"""Reads a request's body from the command line: JSON, `@file`, `-` for stdin, or `key=value` words."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bus.cli.failures import UsageError
from schemas.envelope import Headers

_PAIR = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*=", re.ASCII)


def read_body(words: Sequence[str], body_type: type[Any] | None = None) -> Any:
    """The body that `words` describe; without words an empty one.

    `body_type` is the declared Struct, by which `key=value` knows text fields from others: `key=1` stays the text
    "1" for a text field and is the number 1 elsewhere. `a.b=1` fills a nested field. Raises UsageError.
    """
    if not words:
        return {}
    if all(_PAIR.match(word) for word in words):
        return _from_pairs(words, _text_fields(body_type))
    if len(words) > 1:
        odd = next(word for word in words if not _PAIR.match(word))
        raise UsageError(f"{odd!r} is not key=value; a body is one JSON text, @file, '-' or key=value words")
    word = words[0]
    if word == "-":
        return _from_json(sys.stdin.buffer.read(), "stdin")
    if word.startswith("@"):
        return _from_json(_read(word[1:]), word[1:])
    return _from_json(word.encode(), "the body")


def read_headers(words: Sequence[str]) -> Headers | None:
    """Headers from `name=value` words; None without any. Raises UsageError."""
    headers: Headers = {}
    for word in words:
        name, is_pair, value = word.partition("=")
        if not is_pair or not name:
            raise UsageError(f"--header {word!r} is not name=value")
        read = _value(value)
        headers[name] = value if isinstance(read, (dict, list)) else read
    return headers or None


def _from_pairs(words: Sequence[str], text_fields: frozenset[str]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        *parents, leaf = name.split(".")
        at = body
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise UsageError(f"{name}: {parent} already has a value of its own")
        at[leaf] = value if name in text_fields else _value(value)
    return body


def _text_fields(body_type: type[Any] | None) -> frozenset[str]:
    if body_type is None or not issubclass(body_type, msgspec.Struct):
        return frozenset()
    info = msgspec.inspect.type_info(body_type)
    fields = info.fields if isinstance(info, msgspec.inspect.StructType) else ()
    return frozenset(field.name for field in fields if _is_text(field.type))


def _is_text(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.UnionType):
        return all(isinstance(member, msgspec.inspect.NoneType) or _is_text(member) for member in kind.types)
    return isinstance(kind, msgspec.inspect.StrType)


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _from_json(data: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
