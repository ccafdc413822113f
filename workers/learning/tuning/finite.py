"""Refuses numbers that cannot be compared or kept: not-a-number and the infinities."""

from __future__ import annotations

import math
from collections.abc import Mapping

from schemas.errors import BadRequest


def require_finite(values: Mapping[str, float], field: str) -> None:
    """Raises BadRequest naming the first of `values` that is no finite number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise BadRequest(f"field '{field}' has {name!r}: {value}, it must be a finite number", field=field)
