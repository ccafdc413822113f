"""Sizes of memory as people write them: `24GiB`, and `gpu0=24GiB` where each has a name. It knows no setting."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_UNITS: Final = {
    "B": 1,
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
}
_SIZE: Final = re.compile(rf"([0-9]{{1,15}}(?:\.[0-9]{{1,6}})?) ?({'|'.join(_UNITS)})\Z")

# What a body may carry (schemas/bodies/resource.py), and more than any machine has.
MAX_BYTES: Final = 2**53


def parse_size(text: str) -> int:
    """Bytes: `512MiB` -> 536870912. Raises ValueError saying what may stand there."""
    found = _SIZE.match(text.strip())
    size = round(float(found[1]) * _UNITS[found[2]]) if found else -1
    if not 0 <= size <= MAX_BYTES:
        raise ValueError(
            f"{text[:40]!r} is no size; allowed: a number up to 8192TiB with {', '.join(_UNITS)}, as 24GiB"
        )
    return size


def parse_sizes(entries: Sequence[str], name: str) -> dict[str, int]:
    """`["gpu0=24GiB"]` -> `{"gpu0": 25769803776}`, in the order written; each above 0.

    name: pattern of the names, in full. Raises ValueError naming the entry.
    """
    sizes: dict[str, int] = {}
    for entry in entries:
        key, equals, size = (part.strip() for part in entry.partition("="))
        if not equals or not re.fullmatch(name, key):
            raise ValueError(f"{entry[:80]!r} is not NAME=SIZE with a name like {name}")
        if key in sizes:
            raise ValueError(f"{key} stands there twice")
        sizes[key] = parse_size(size)
        if not sizes[key]:
            raise ValueError(f"{entry[:80]!r} is a size of 0; allowed: above 0")
    return sizes


def size_in_words(size_bytes: int) -> str:
    """`25769803776` -> `24.0 GiB`, for messages."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
