"""Texts in keys and searches: what can be stored, and the range of keys that start with a prefix."""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.errors import BadRequest

_LAST_CHARACTER: Final = "\U0010ffff"


def check_texts(request: msgspec.Struct) -> None:
    """Raise BadRequest naming the first text field of `request` that is not Unicode text (a lone surrogate in it).

    Null bytes pass: SQLite stores and compares them like any other character.
    """
    for field in request.__struct_fields__:
        value = getattr(request, field)
        if not isinstance(value, str):
            continue
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(
                f"{field} holds a lone surrogate (U+{ord(value[error.start]):04X}) at character {error.start},"
                " which is not Unicode text",
                field=field,
                position=error.start,
            ) from error


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
