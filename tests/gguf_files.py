"""Small GGUF files made by hand, whole and split, for tests that need files of their own making."""

from __future__ import annotations

import struct
from pathlib import Path

U16, U32, STRING, ARRAY, U64 = 2, 4, 8, 9, 10


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def gguf(
    entries: list[bytes] | None = None,
    tensors: list[tuple[str, list[int], int, int]] | None = None,
    *,
    version: int = 3,
    data_bytes: int | None = None,
) -> bytes:
    """A small GGUF file: one F32 tensor of 8 x 4 elements unless told otherwise."""
    entries = good_entries() if entries is None else entries
    tensors = [("token_embd.weight", [8, 4], 0, 0)] if tensors is None else tensors
    file = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries)
    for name, dims, kind, offset in tensors:
        file += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        file += struct.pack("<IQ", kind, offset)
    file += b"\0" * (-len(file) % 32)
    return file + b"\0" * (128 if data_bytes is None else data_bytes)


def good_entries() -> list[bytes]:
    return [
        entry("general.architecture", STRING, text("llama")),
        entry("general.description", STRING, text("made for a test")),
        entry("general.license", STRING, text("Apache-2.0")),
        entry("general.file_type", U32, struct.pack("<I", 0)),
        entry("llama.context_length", U32, struct.pack("<I", 512)),
        entry("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("b" * 9) + text("")),
        entry("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ3f", 6, 3, 0.0, 1.0, 2.0)),
        entry("tokenizer.chat_template", STRING, text("{{ messages }}")),
    ]


def write_parts(folder: Path, count: int, *, missing: tuple[int, ...] = ()) -> None:
    """A model split over `count` files, as llama.cpp's own tool writes them: only the first says what it is."""
    for number in range(count):
        if number + 1 in missing:
            continue
        split = [entry("split.no", U16, struct.pack("<H", number)), entry("split.count", U16, struct.pack("<H", count))]
        entries = [*good_entries(), *split] if number == 0 else split
        (folder / f"big-{number + 1:05}-of-{count:05}.gguf").write_bytes(gguf(entries))
