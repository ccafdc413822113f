"""Reads the header of a GGUF file: metadata and tensor table, never the weights.

A reader of our own, because these files come from strangers and the service that lists them must stay small: every
count and length is checked against the bytes that are left before anything is allocated, nothing is mapped (a file cut
short under a mapping kills the process), and numpy is not needed.

    "GGUF" | version u32 | tensors u64 | entries u64
    entry    key string | type u32 | value            string   length u64 | bytes
    tensor   name string | dims u32 | dim u64 ... | type u32 | offset u64
    padding to the alignment, then the tensor data; offsets count from here

Source: the GGUF specification, ggml `docs/gguf.md`; block sizes: `ggml-common.h`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

import msgspec

Value = str | int | float | bool

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

# Bounds on what a header may claim. The largest public models have about 1,500 tensors, 60 entries and vocabularies of
# 262,144 tokens; these leave room and keep the reading of a hostile file under a second and a few MB.
MAX_ENTRIES: Final = 16_384
MAX_TENSORS: Final = 262_144
# Texts of all arrays together.
MAX_ARRAY_STRINGS: Final = 2_097_152
MAX_NAME_BYTES: Final = 65_535
MAX_TEXT_BYTES: Final = 4 * 1024 * 1024
MAX_DIMS: Final = 4
MAX_ELEMENTS: Final = 1 << 48

# Arrays of up to this many numbers are kept: they hold one for each layer, and no public model has over 200 layers. Of all
# arrays together no more than this are, since a number of a byte takes up to 40 in memory.
MAX_KEPT: Final = 1_024
MAX_KEPT_IN_ALL: Final = 65_536

_CHUNK_BYTES: Final = 256 * 1024
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING: Final = 8
_ARRAY: Final = 9

# ggml type -> (name, elements in a block, bytes of a block).
_TENSOR_TYPES: Final = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

# `general.file_type` (llama_ftype in llama.h) -> the usual name.
_FILE_TYPES: Final = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
}


class UnusableFile(Exception):
    """The file, or the folder, is no model this system can read; the message says why, for a person."""


class GgufHeader(msgspec.Struct, frozen=True):
    """What a GGUF file says about itself.

    values: every scalar and text entry. lengths: elements of every array. numbers: the arrays of up to MAX_KEPT numbers,
    which say something for each layer. parameters: elements of all tensors, tensor_types: the same by type.
    data_offset: byte at which the tensor data begin.
    """

    values: dict[str, Value]
    parameters: int
    tensor_types: dict[str, int]
    lengths: dict[str, int] = {}
    numbers: dict[str, tuple[int | float, ...]] = {}
    data_offset: int = 0

    def text(self, key: str, default: str = "") -> str:
        """A text entry; `default` when it is missing or of another type."""
        value = self.values.get(key, default)
        return value if isinstance(value, str) else default

    def number(self, key: str) -> float | int | None:
        """A numeric entry; None when it is missing or of another type."""
        value = self.values.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def whole(self, key: str, limit: int = 2**31) -> int:
        """A numeric entry as a whole number; 0 when it is missing, of another type, negative or not below `limit`."""
        value = self.number(key)
        return int(value) if value is not None and 0 <= value < limit else 0

    @property
    def architecture(self) -> str:
        """`general.architecture`, for instance "llama"."""
        return self.text("general.architecture")

    @property
    def context_tokens(self) -> int:
        """Length of the context window the model was trained for; 0 when the file does not say."""
        return self.whole(f"{self.architecture}.context_length")

    @property
    def quantisation(self) -> str:
        """Name of the file type; without one, of the tensor type that holds most parameters."""
        file_type = self.number("general.file_type")
        if isinstance(file_type, int) and file_type in _FILE_TYPES:
            return _FILE_TYPES[file_type]
        return max(self.tensor_types, key=lambda name: self.tensor_types[name], default="unknown")


def read_header(path: Path, *, is_later_part: bool = False) -> GgufHeader:
    """The header of the GGUF file at `path`. Blocks on the disk.

    is_later_part: of a model split over several files, one behind the first; only the first names the architecture.

    Raises UnusableFile for anything that is not a complete GGUF file of version 2 or 3 (empty, cut short, another
    format, sizes that lie), and OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        return _read(_Cursor(file, path.stat().st_size), is_later_part=is_later_part)


def _read(cursor: _Cursor, *, is_later_part: bool) -> GgufHeader:
    if cursor.size == 0:
        raise UnusableFile("the file is empty")
    magic = cursor.take(4, "the magic") if cursor.size >= 4 else b""
    if magic != MAGIC:
        raise UnusableFile(f"not a GGUF file: it starts with {magic!r}, not b'GGUF'")
    version = cursor.u32("the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(_U32.pack(version), "big") in VERSIONS
        raise UnusableFile("GGUF of big-endian byte order" if swapped else f"GGUF version {version}, readable are 2, 3")
    tensors = cursor.count(cursor.u64("the tensor count"), MAX_TENSORS, 24, "tensors")
    entries = cursor.count(cursor.u64("the entry count"), MAX_ENTRIES, 13, "metadata entries")
    values, lengths, numbers = _read_values(cursor, entries)
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment > 1 << 20 or alignment & (alignment - 1):
        raise UnusableFile(f"general.alignment is {alignment!r}, it must be a power of two up to 1048576")
    if not is_later_part and not isinstance(values.get("general.architecture"), str):
        raise UnusableFile("general.architecture is missing, so nothing can tell how to run it")
    parameters, tensor_types, data_offset = _read_tensors(cursor, tensors, alignment)
    return GgufHeader(values, parameters, tensor_types, lengths, numbers, data_offset)


_Numbers = tuple[int | float, ...]


def _read_values(cursor: _Cursor, entries: int) -> tuple[dict[str, Value], dict[str, int], dict[str, _Numbers]]:
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    numbers: dict[str, _Numbers] = {}
    text_bytes, kept_numbers, array_strings = 0, 0, 0
    for _ in range(entries):
        key = cursor.name("a metadata key")
        kind = cursor.u32(key)
        text_bytes += len(key)
        if kind == _STRING:
            length = cursor.u64(key)
            text_bytes += length
            _check_text(text_bytes, key)
            values[key] = cursor.take(length, key).decode("utf-8", "replace")
        elif kind == _ARRAY:
            lengths[key], kept, strings = _read_array(cursor, key, MAX_ARRAY_STRINGS - array_strings)
            array_strings += strings
            kept_numbers += len(kept)
            if kept_numbers > MAX_KEPT_IN_ALL:
                raise UnusableFile(f"metadata arrays hold over {MAX_KEPT_IN_ALL} numbers at {key[:80]!r}")
            if kept:
                numbers[key] = kept
        elif kind in _SCALARS:
            scalar = _SCALARS[kind]
            values[key] = scalar.unpack(cursor.take(scalar.size, key))[0]
        else:
            raise UnusableFile(f"metadata entry {key[:80]!r} is of unknown type {kind}")
        _check_text(text_bytes, key)
    return values, lengths, numbers


def _check_text(text_bytes: int, key: str) -> None:
    if text_bytes > MAX_TEXT_BYTES:
        raise UnusableFile(f"metadata texts are over {MAX_TEXT_BYTES} bytes at {key[:80]!r}")


def _read_array(cursor: _Cursor, key: str, strings_left: int) -> tuple[int, _Numbers, int]:
    """Length of an array, its elements where they are few numbers, and how many texts it holds."""
    kind = cursor.u32(key)
    length = cursor.u64(key)
    if kind == _STRING:
        cursor.skip_strings(cursor.count(length, strings_left, 8, f"texts in {key[:80]!r}"), key)
        return length, (), length
    if kind not in _SCALARS:
        raise UnusableFile(f"metadata array {key[:80]!r} holds unknown type {kind}")
    scalar = _SCALARS[kind]
    if length <= MAX_KEPT:
        return length, tuple(value for (value,) in scalar.iter_unpack(cursor.take(length * scalar.size, key))), 0
    cursor.skip(length * scalar.size, key)
    return length, (), 0


def _read_tensors(cursor: _Cursor, tensors: int, alignment: int) -> tuple[int, dict[str, int], int]:
    """Elements of all tensors, elements by tensor type, and where the data begin.

    Raises UnusableFile when the data are not all there.
    """
    parameters = 0
    by_type: dict[str, int] = {}
    data_bytes, last = 0, ""
    for _ in range(tensors):
        name = cursor.name("a tensor name")
        dims = cursor.u32(name)
        if not 1 <= dims <= MAX_DIMS:
            raise UnusableFile(f"tensor {name[:80]!r} has {dims} dimensions, allowed are 1 to {MAX_DIMS}")
        elements = 1
        for _dim in range(dims):
            elements *= cursor.u64(name)
        if elements + parameters > MAX_ELEMENTS:
            raise UnusableFile(f"tensor {name[:80]!r} claims {elements} elements, the limit is {MAX_ELEMENTS} in all")
        kind, offset = cursor.u32(name), cursor.u64(name)
        # A type newer than this table still loads if llama.cpp knows it; only its size cannot be checked.
        label, block, block_bytes = _TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
        end = offset + elements // block * block_bytes
        if end > data_bytes:
            data_bytes, last = end, name
        parameters += elements
        by_type[label] = by_type.get(label, 0) + elements
    start = (cursor.position + alignment - 1) // alignment * alignment
    if data_bytes and start + data_bytes > cursor.size:
        raise UnusableFile(
            f"truncated: tensor {last[:80]!r} ends at byte {start + data_bytes}, the file has {cursor.size}"
        )
    return parameters, by_type, start


class _Cursor:
    """Reads a file forwards through a window; raises UnusableFile instead of reading past the end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file
        self._window = b""
        self._at = 0
        self._base = 0

    @property
    def position(self) -> int:
        return self._base + self._at

    def count(self, claimed: int, limit: int, least_bytes: int, what: str) -> int:
        """`claimed`, if it is within `limit` and that many things of `least_bytes` bytes can still follow."""
        if claimed > limit:
            raise UnusableFile(f"claims {claimed} {what}, the limit is {limit}")
        if claimed * least_bytes > self.size - self.position:
            self._cut(f"{claimed} {what}", claimed * least_bytes)
        return claimed

    def take(self, length: int, what: str) -> bytes:
        self._need(length, what)
        start, self._at = self._at, self._at + length
        return self._window[start : self._at]

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def name(self, what: str) -> str:
        length = self.u64(what)
        if length > MAX_NAME_BYTES:
            raise UnusableFile(f"{what} claims {length} bytes, the limit is {MAX_NAME_BYTES}")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnusableFile(f"{what} is not UTF-8: {error}") from error

    def skip(self, length: int, what: str) -> None:
        if length > self.size - self.position:
            self._cut(what, length)
        self._at += length
        if self._at > len(self._window):
            self._base += self._at
            self._window, self._at = b"", 0
            self._file.seek(self._base)

    def skip_strings(self, count: int, what: str) -> None:
        """Skip `count` texts. Apart from `skip` because vocabularies hold hundreds of thousands of them."""
        window, at, unpack = self._window, self._at, _U64.unpack_from
        for _ in range(count):
            if at + 8 > len(window):
                self._at = at
                self._need(8, what)
                window, at = self._window, self._at
            length = unpack(window, at)[0]
            if at + 8 + length > len(window):
                self._at = at + 8
                self.skip(length, what)
                window, at = self._window, self._at
            else:
                at += 8 + length
        self._at = at

    def _need(self, length: int, what: str) -> None:
        missing = length - (len(self._window) - self._at)
        if missing <= 0:
            return
        if length > self.size - self.position:
            self._cut(what, length)
        self._base += self._at
        self._window, self._at = self._window[self._at :] + self._file.read(max(missing, _CHUNK_BYTES)), 0
        if len(self._window) < length:
            self._cut(what, length)

    def _cut(self, what: str, length: int) -> NoReturn:
        raise UnusableFile(
            f"truncated: {what[:80]} needs {length} bytes at byte {self.position}, the file has {self.size}"
        )
