"""Texts in keys and searches: what can be stored, and the range of keys that start with a prefix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

import msgspec

from schemas.errors import BadRequest

_LAST_CHARACTER: Final = "\U0010ffff"


def check_texts(request: msgspec.Struct) -> None:
    """Raise BadRequest naming the first text in `request` that is not Unicode text (a lone surrogate in it).

    Texts in lists, maps (their keys too) and structs count, and are named by their path: `items[3].metadata.note`.
    Null bytes pass: SQLite stores and compares them like any other character.
    """
    for field in request.__struct_fields__:
        value = getattr(request, field)
        if isinstance(value, str):
            _check(value, field)
        elif value and isinstance(value, (list, tuple, dict, msgspec.Struct)):
            for text, path in _texts_in(value, field):
                _check(text, path)


def end_of_prefix(prefix: str) -> str | None:
    """The first text, in code point order, after all that start with `prefix`; None where nothing comes after them.

    UTF-8 bytes order as code points do, so this bounds an SQLite range too.
    """
    stem = prefix.rstrip(_LAST_CHARACTER)
    if not stem:
        return None
    successor = ord(stem[-1]) + 1
    # The surrogates are no characters: after U+D7FF comes U+E000.
    return stem[:-1] + chr(0xE000 if successor == 0xD800 else successor)


def _check(text: str, path: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"{path} holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start},"
            " which is not Unicode text",
            field=path,
            position=error.start,
        ) from error


def _texts_in(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text in `value` that is not plain ASCII, in order, with its path. A loop, so that depth costs no stack."""
    waiting: list[Iterator[tuple[Any, Any]]] = [_children(value)]
    steps: list[Any] = [None]
    while waiting:
        step, inner = next(waiting[-1], (None, _END))
        if inner is _END:
            waiting.pop()
            steps.pop()
            continue
        steps[-1] = step
        if isinstance(inner, str):
            if not inner.isascii():
                yield inner, _path(path, steps)
        elif inner and isinstance(inner, (list, tuple, dict, msgspec.Struct)):
            waiting.append(_children(inner))
            steps.append(None)


_END: Final = object()
# What stands in a path for a key of a map, where the key itself is the text that is looked at.
_KEY: Final = object()


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, msgspec.Struct):
        return ((field, getattr(value, field)) for field in value.__struct_fields__)
    if isinstance(value, dict):
        keys: Iterable[tuple[Any, Any]] = ((_KEY, key) for key in value)
        return chain(keys, value.items())
    return iter(enumerate(value))


def _path(path: str, steps: list[Any]) -> str:
    for step in steps:
        if step is _KEY:
            path += " (a key)"
        elif isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step}"
    return path
