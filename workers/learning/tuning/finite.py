"""Refuses numbers that cannot be compared or kept: not-a-number, the infinities, and what sums of squares cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from schemas.errors import BadRequest

# The square of a larger one, times some thousand of them, comes near the largest float (1.8e308).
_MOST: Final = 1e150


def require_finite(values: Mapping[str, float], field: str) -> None:
    """Raises BadRequest naming the first of `values` that is no number within -1e150..1e150."""
    for name, value in values.items():
        if not -_MOST <= value <= _MOST:
            raise BadRequest(
                f"field '{field}' has {name!r}: {value}, it must be a finite number, {-_MOST:g} to {_MOST:g}",
                field=field,
            )
