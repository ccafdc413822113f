"""Values whose shape is the caller's business: packed for the store, with their depth and size bounded."""

from __future__ import annotations

from itertools import chain
from typing import Any

import msgspec

from schemas.errors import BadRequest, TooLarge
from schemas.limits import MAX_VALUE_DEPTH

_packer = msgspec.msgpack.Encoder()
_unpacker = msgspec.msgpack.Decoder()

unpack = _unpacker.decode


def pack(value: Any, *, max_bytes: int, field: str = "value") -> bytes:
    """`value` as msgpack bytes.

    Raises BadRequest for a value nested too deeply or not expressible in msgpack, TooLarge past `max_bytes`; both name
    `field`.
    """
    depth = depth_of(value)
    if depth > MAX_VALUE_DEPTH:
        raise BadRequest(
            f"{field} is nested {depth} levels deep, the limit is {MAX_VALUE_DEPTH}",
            field=field,
            depth=depth,
            limit=MAX_VALUE_DEPTH,
        )
    try:
        packed = _packer.encode(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise BadRequest(f"{field} cannot be stored as msgpack: {error}", field=field) from error
    if len(packed) > max_bytes:
        raise TooLarge(
            f"{field} has {len(packed)} bytes, the limit is {max_bytes}, so that a reply can carry it",
            field=field,
            size_bytes=len(packed),
            limit_bytes=max_bytes,
        )
    return packed


def depth_of(value: Any) -> int:
    """How many arrays and maps stand inside one another: 0 for a scalar, 1 for `[]`, 2 for `[{}]`."""
    depth = 0
    level = [value] if isinstance(value, (dict, list, tuple)) else []
    while level:
        depth += 1
        level = [
            child
            for container in level
            for child in (chain(container, container.values()) if isinstance(container, dict) else container)
            if isinstance(child, (dict, list, tuple))
        ]
    return depth
