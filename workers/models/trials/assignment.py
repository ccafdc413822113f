"""Which variant of a test a unit gets: a hash of both, cut by the weights; knows no storage and no outcomes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate


def variant_of(test_id: str, unit: str, weights: Sequence[float]) -> int:
    """Index of the unit's variant: always the same for the same test, unit and weights, which are above 0.

    Tests are independent of each other, since the test's id is part of what is hashed.
    """
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), key=test_id.encode(), digest_size=8).digest()
    place = int.from_bytes(digest) / 2**64 * sum(weights)
    for index, end in enumerate(accumulate(weights)):
        if place < end:
            return index
    return len(weights) - 1
