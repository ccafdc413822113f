"""How large a value from outside may become: counted in the bytes, before anything is decoded.

An empty list takes one byte in msgpack and over sixty in memory, so a body within its limit can still be too much.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import msgspec

from schemas.envelope import Buffer, Encoding, encoding_of
from schemas.errors import BadRequest, TooLarge
from schemas.limits import CHECKED_BODY_BYTES, MAX_BODY_DEPTH, MAX_BODY_VALUES

_measure: Callable[[Buffer, int, int], tuple[int, int]] | None = None
with contextlib.suppress(ImportError):
    from schemas import _scan as _compiled

    _measure = _compiled.measure


def check_values(body: Buffer, encoding: Encoding) -> None:
    """Refuse a body that would decode to too many or too deeply nested values.

    Raises TooLarge naming count and limit, BadRequest for nesting and for msgpack that is not one whole value. Bodies up
    to CHECKED_BODY_BYTES pass unseen: they cannot become much.
    """
    if len(memoryview(body)) <= CHECKED_BODY_BYTES:
        return
    if encoding == "json":
        # Every container starts with one of these; those within strings count too, which is harmless below a million.
        text = bytes(body)
        values, depth = text.count(b"[") + text.count(b"{"), 0
    else:
        values, depth = (_measure or measure)(body, MAX_BODY_VALUES, MAX_BODY_DEPTH)
    if values < 0:
        raise BadRequest("body is not one whole msgpack value", field="body")
    if values > MAX_BODY_VALUES:
        raise TooLarge(f"body holds more than {MAX_BODY_VALUES} values", field="body", limit=MAX_BODY_VALUES)
    if depth > MAX_BODY_DEPTH:
        raise BadRequest(f"body nests deeper than {MAX_BODY_DEPTH} levels", field="body", limit=MAX_BODY_DEPTH)


def decode_any(body: Buffer) -> Any:
    """A body from outside in whatever encoding it is; bytes that are neither, or too much of it, stay bytes."""
    encoding = encoding_of(body)
    try:
        check_values(body, encoding)
        return msgspec.json.decode(body) if encoding == "json" else msgspec.msgpack.decode(body)
    except (BadRequest, TooLarge, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return bytes(body)


def require_json(value: Any, field: str) -> None:
    """Raise BadRequest naming the place where `value` holds what JSON has no form for: bytes, extension values, keys that
    are no texts, numbers that are none."""
    match value:
        case None | bool() | int() | str():
            return
        case float():
            if math.isfinite(value):
                return
        case list():
            for index, inner in enumerate(value):
                require_json(inner, f"{field}[{index}]")
            return
        case dict():
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise BadRequest(f"field {field!r} has the key {key!r}, JSON knows only texts", field=field)
                require_json(inner, f"{field}.{key}")
            return
    raise BadRequest(f"field {field!r} is {value!r:.60}, which JSON has no form for", field=field)


def as_json(value: Any) -> bytes:
    """`value` as JSON text, also where it holds what JSON has no form for: such keys become text, an extension value of
    msgpack a map of its code and its bytes in base64. Raises TypeError for what msgpack could not hold either."""
    try:
        return msgspec.json.encode(value)
    except TypeError:
        return msgspec.json.encode(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value))
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, msgspec.msgpack.Ext):
        return {"ext_code": value.code, "ext_data": value.data}
    return value


def measure(data: Buffer, most_values: int, most_depth: int) -> tuple[int, int]:
    """Values in one msgpack value, and its depth: containers and what is in them; counting stops beyond either limit.

    (-1, -1) when `data` is not one whole value. The loop of `_scan.c`, for installations without a compiler.
    """
    view = memoryview(data).cast("B")
    end = len(view)
    at = values = deepest = 0
    left = [1]
    while left and values <= most_values and deepest <= most_depth:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        if at >= end:
            return -1, -1
        items, at = _read_value(view, at)
        if at < 0 or at > end:
            return -1, -1
        values += 1
        if items >= 0:
            left.append(items)
            deepest = max(deepest, len(left) - 1)
    if not left and at != end:
        return -1, -1
    return values, deepest


def _read_value(view: memoryview, at: int) -> tuple[int, int]:
    """Items of the value at `at` (-1 when it is no container) and where its own bytes end (-1 when it is no value).

    Source of the byte ranges: the msgpack specification, section "formats".
    """
    byte = view[at]
    at += 1
    if byte <= 0x7F or byte >= 0xE0 or byte in (0xC0, 0xC2, 0xC3):
        return -1, at
    if byte <= 0x8F:
        return 2 * (byte & 0x0F), at
    if byte <= 0x9F:
        return byte & 0x0F, at
    if byte <= 0xBF:
        return -1, at + (byte & 0x1F)
    if byte == 0xC1:
        return -1, -1
    if byte in (0xCA, 0xCB):
        return -1, at + (4 if byte == 0xCA else 8)
    if 0xCC <= byte <= 0xD3:
        return -1, at + (1 << ((byte - 0xCC) & 3))
    if 0xD4 <= byte <= 0xD8:
        return -1, at + 1 + (1 << (byte - 0xD4))
    width = (4 if byte & 1 else 2) if byte >= 0xDC else 1 << ((byte - _FIRST_OF_LENGTHS[byte]) & 3)
    if at + width > len(view):
        return -1, -1
    length = int.from_bytes(view[at : at + width], "big")
    at += width
    if byte >= 0xDC:
        return length * (2 if byte >= 0xDE else 1), at
    return -1, at + length + (1 if 0xC7 <= byte <= 0xC9 else 0)


# bin, ext and str each have a length of 1, 2 or 4 bytes, told by the distance from their first format byte.
_FIRST_OF_LENGTHS = {byte: first for first in (0xC4, 0xC7, 0xD9) for byte in range(first, first + 3)}
