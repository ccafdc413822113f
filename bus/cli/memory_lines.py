"""Exports as JSON Lines: a header, a record a line, and an end that tells a whole file from one that was cut off.

    {"format": "olympus-memory", "version": 1, "total": 2}
    {"kind": "fact", "ns": "user", "data": {"key": "city", "value": "Porto", ...}}
    {"kind": "kv", "ns": "kv", "data": {"key": "logo", "value": {"$bytes": "iVBORw=="}, ...}}
    {"end": {"fact": 1, "kv": 1}}

What JSON has no form for is a map of one key that starts with `$`:

    {"$bytes": base64}   {"$time": ISO 8601}   {"$ext": [code, base64]}   {"$float": "nan", "inf" or "-inf"}
    {"$map": [[key, value], ...]}   a map with keys that are not text, or with one that starts with `$`
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

FORMAT: Final = "olympus-memory"
VERSION: Final = 1

# Longest line read, bytes: a body of the largest size that a message may have by default, in base64, with room for the
# fields around it. A file that is no export may be one line of gigabytes.
MAX_LINE_BYTES: Final = 96 * 1024 * 1024

# Characters of a line that an error quotes.
_QUOTED: Final = 60


class BadLine(Exception):
    """A line that does not fit; the message names it, counted from 1."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"line {number}: {why}")
        self.number = number


class Line(NamedTuple):
    """One record and the line it stands on, counted from 1."""

    number: int
    record: dict[str, Any]
    size_bytes: int


class _Header(msgspec.Struct, frozen=True):
    format: str
    version: int
    total: int = 0


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


def header(total: int) -> bytes:
    """The first line."""
    return _encode({"format": FORMAT, "version": VERSION, "total": total}) + b"\n"


def end(counts: dict[str, int]) -> bytes:
    """The last line."""
    return _encode({"end": counts}) + b"\n"


def line(kind: str, ns: str, data: Any) -> bytes:
    """The line of one record."""
    return _encode({"kind": kind, "ns": ns, "data": to_plain(data)}) + b"\n"


class Lines:
    """The records of an export that is read from a file, one after the other.

    total: how many records the header promises, 0 for none. is_whole: True once the end has been read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.total = self._read_header()
        self.is_whole = False

    def __iter__(self) -> Iterator[Line]:
        """Raises BadLine."""
        number = 1
        while text := self._file.readline(MAX_LINE_BYTES):
            number += 1
            if len(text) == MAX_LINE_BYTES:
                raise BadLine(number, f"it has more than {MAX_LINE_BYTES} bytes")
            if not text.strip():
                continue
            if self.is_whole:
                raise BadLine(number, "it stands after the end of the export")
            fields = _parsed(number, text)
            if "end" in fields:
                self.is_whole = True
                continue
            yield Line(number, _record(number, fields), len(text))

    def _read_header(self) -> int:
        text = self._file.readline(MAX_LINE_BYTES)
        if not text:
            raise BadLine(1, "the file is empty; an export begins with a header")
        try:
            found = msgspec.convert(_parsed(1, text), _Header)
        except (BadLine, msgspec.ValidationError):
            raise BadLine(1, f"it is not the header of an export: {_quote(text)}") from None
        if found.format != FORMAT:
            raise BadLine(1, f"the format is {found.format!r}, not {FORMAT!r}")
        if found.version != VERSION:
            raise BadLine(1, f"the version of the format is {found.version}, this program reads version {VERSION}")
        return found.total


def to_plain(value: Any) -> Any:
    """`value` in what JSON can hold, in such a way that `from_plain` gives it back."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$float": str(value)}
        case bytes():
            return {"$bytes": base64.b64encode(value).decode()}
        case datetime():
            return {"$time": value.isoformat()}
        case msgspec.msgpack.Ext():
            return {"$ext": [value.code, base64.b64encode(bytes(value.data)).decode()]}
        case dict():
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: to_plain(inner) for key, inner in value.items()}
            return {"$map": [[to_plain(key), to_plain(inner)] for key, inner in value.items()]}
        case list() | tuple():
            return [to_plain(inner) for inner in value]
    raise TypeError(f"{type(value).__name__} has no form in an export")


def from_plain(value: Any) -> Any:
    """The value that `to_plain` made `value` of. Raises ValueError for a map with an unknown `$` key."""
    if isinstance(value, list):
        return [from_plain(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    mark = next((key for key in value if key.startswith("$")), None)
    if mark is None:
        return {key: from_plain(inner) for key, inner in value.items()}
    if len(value) != 1:
        raise ValueError(f"a map with {mark!r} may hold nothing else")
    try:
        return _from_mark(mark, value[mark])
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{mark!r} does not hold what it should: {error}") from error


def _from_mark(mark: str, inner: Any) -> Any:
    match mark, inner:
        case "$bytes", str():
            return base64.b64decode(inner, validate=True)
        case "$time", str():
            return datetime.fromisoformat(inner)
        case "$ext", [int(code), str(data)]:
            return msgspec.msgpack.Ext(code, base64.b64decode(data, validate=True))
        case "$float", ("nan" | "inf" | "-inf"):
            return float(inner)
        case "$map", list():
            return {_hashable(from_plain(key)): from_plain(item) for key, item in inner}
    raise ValueError(_quote(_encode(inner)))


def _hashable(key: Any) -> Any:
    """A list as it stands for a key: msgpack allows that."""
    return tuple(map(_hashable, key)) if isinstance(key, list) else key


def _parsed(number: int, text: bytes) -> dict[str, Any]:
    try:
        fields = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine(number, f"it is not JSON ({error}): {_quote(text)}") from error
    if not isinstance(fields, dict):
        raise BadLine(number, f"it is not a JSON object: {_quote(text)}")
    return fields


def _record(number: int, fields: dict[str, Any]) -> dict[str, Any]:
    for name, kind in (("kind", str), ("ns", str), ("data", dict)):
        if not isinstance(fields.get(name), kind):
            what = "an object" if kind is dict else "text"
            raise BadLine(number, f"{name} has to be {what}, it is {_quote(_encode(fields.get(name)))}")
    data = {}
    for name, value in fields["data"].items():
        try:
            data[name] = from_plain(value)
        except (ValueError, RecursionError) as error:
            raise BadLine(number, f"data.{name}: {error}") from error
    return {"kind": fields["kind"], "ns": fields["ns"], "data": data}


def _quote(text: bytes) -> str:
    shown = text[:_QUOTED].decode(errors="replace").strip()
    return repr(shown if len(text) <= _QUOTED else f"{shown}...")
