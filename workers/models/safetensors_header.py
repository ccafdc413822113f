"""Reads the header of a safetensors file: names, shapes and places of its tensors, never the weights.

As with GGUF the file comes from a stranger, so every length is checked before anything of that length is read.

    length u64 | header JSON {name: {"dtype", "shape", "data_offsets": [from, to]}, "__metadata__": {text: text}} | data

Offsets count from the first byte behind the header, and the data end where the file ends.
Source: the safetensors format description, section "Format".
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from workers.models.gguf_header import MAX_ELEMENTS, MAX_TENSORS, UnusableFile

# Bytes of the JSON at most. The library of the format allows 100 MB; the largest public shards have under 2 MB (some 150
# bytes a tensor). Decoding a hostile one takes up to ten times its size in memory.
MAX_HEADER_BYTES: Final = 8 * 1024 * 1024

_LENGTH_BYTES: Final = 8

# Bits of an element. Types of under a byte are packed.
_BITS: Final = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6,
    "F4": 4,
}  # fmt: skip

_Size = Annotated[int, Meta(ge=0, le=2**62)]


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: Annotated[list[_Size], Meta(max_length=16)]
    data_offsets: tuple[_Size, _Size]


class SafetensorsHeader(msgspec.Struct, frozen=True):
    """What a file holds. parameters: elements of all tensors, tensor_types: the same by type; data_bytes: of the data."""

    names: frozenset[str]
    parameters: int
    tensor_types: dict[str, int]
    data_bytes: int


class _Notes(msgspec.Struct):
    """The one entry that is no tensor, as it stands in the text; the others are passed over without being built."""

    raw: msgspec.Raw = msgspec.field(name="__metadata__", default=msgspec.Raw())


_NOTES: Final = "__metadata__"
_NO_TENSOR: Final = b'{"dtype":"","shape":[0],"data_offsets":[0,0]}'

_decode_notes = msgspec.json.Decoder(_Notes).decode
_decode_tensors = msgspec.json.Decoder(dict[str, _Tensor]).decode


def read_header(path: Path) -> SafetensorsHeader:
    """The header of the file at `path`. Blocks on the disk.

    Raises UnusableFile for anything that is not a complete safetensors file (cut short, another format, sizes that lie),
    and OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < _LENGTH_BYTES:
            raise UnusableFile(f"no safetensors file: it has {size} bytes")
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise UnusableFile(f"its header claims {length} bytes, the limit is {MAX_HEADER_BYTES}")
        if length > size - _LENGTH_BYTES:
            raise UnusableFile(f"truncated: its header claims {length} bytes, the file has {size}")
        text = file.read(length)
    try:
        tensors = _tensors(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UnusableFile(f"its header does not decode: {error}") from error
    return _checked(tensors, size - _LENGTH_BYTES - length)


def _tensors(text: bytes) -> dict[str, _Tensor]:
    """The entries that are tensors. Decoding ends at the first that is none, so that small lies build no great tables."""
    notes = bytes(_decode_notes(text).raw)
    tensors = _decode_tensors(text.replace(notes, _NO_TENSOR, 1) if notes else text)
    tensors.pop(_NOTES, None)
    return tensors


def _checked(tensors: dict[str, _Tensor], data_bytes: int) -> SafetensorsHeader:
    if len(tensors) > MAX_TENSORS:
        raise UnusableFile(f"claims {len(tensors)} tensors, the limit is {MAX_TENSORS}")
    parameters, end = 0, 0
    by_type: dict[str, int] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        start, stop = tensor.data_offsets
        elements = math.prod(tensor.shape)
        if elements + parameters > MAX_ELEMENTS:
            raise UnusableFile(f"tensor {name[:80]!r} claims {elements} elements, the limit is {MAX_ELEMENTS} in all")
        # The data are gapless, so that nothing can hide in a file and no tensor lies over another one.
        if start != end:
            raise UnusableFile(f"tensor {name[:80]!r} begins at byte {start} of the data, the one before ends at {end}")
        bits = _BITS.get(tensor.dtype)
        if bits is not None and (stop - start) * 8 != elements * bits:
            raise UnusableFile(
                f"tensor {name[:80]!r} of {elements} {tensor.dtype} claims bytes {start} to {stop} of the data"
            )
        if stop < start:
            raise UnusableFile(f"tensor {name[:80]!r} ends at byte {stop} of the data, before its beginning")
        end = stop
        parameters += elements
        by_type[tensor.dtype[:16]] = by_type.get(tensor.dtype[:16], 0) + elements
    if end != data_bytes:
        how = "truncated" if end > data_bytes else "not what its header says"
        raise UnusableFile(f"{how}: the tensors take {end} bytes, the file has {data_bytes} for them")
    return SafetensorsHeader(frozenset(tensors), parameters, by_type, data_bytes)
