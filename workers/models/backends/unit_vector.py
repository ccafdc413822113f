"""A vector at length 1, in the bytes that `model.embed` answers with."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Sequence

from schemas.errors import Internal


def unit_vector(values: Sequence[float]) -> bytes:
    """`values` at length 1, as float32 little-endian. Raises Internal when they have no direction."""
    # Squares of large numbers alone would overflow.
    length = math.hypot(*values)
    if not length or not math.isfinite(length):
        raise Internal(f"a vector has length {length}, and so no direction")
    packed = array.array("f", [value / length for value in values])
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
