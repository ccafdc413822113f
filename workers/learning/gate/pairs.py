"""Answers of two sides to the same items, summed by cluster; knows no test, no model and no score's meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

# A score from here on counts as right, where items that turned are counted.
RIGHT: Final = 0.5


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One item answered by both. before, after: scores of what serves now and of the candidate, 0..1.

    cluster: items about one fact share it, since they rise and fall together.
    """

    item_id: str
    cluster: str
    before: float
    after: float

    def __post_init__(self) -> None:
        for name, score in (("before", self.before), ("after", self.after)):
            if not 0.0 <= score <= 1.0:
                raise ValueError(f"item {self.item_id}: {name} is {score}, a score is within 0..1")


class Cluster(NamedTuple):
    """Sum of the differences after - before of one cluster, over so many items."""

    total: float
    items: int


class Means(NamedTuple):
    """Of one set: mean scores of both sides, and items whose answer turned right (better) or wrong (worse)."""

    before: float
    after: float
    better: int
    worse: int


def clustered(pairs: Sequence[Pair]) -> list[Cluster]:
    """The clusters in order of their names, so that equal sets give equal results however they are ordered."""
    found: dict[str, list[float]] = {}
    for pair in pairs:
        found.setdefault(pair.cluster, []).append(pair.after - pair.before)
    return [Cluster(math.fsum(sorted(found[name])), len(found[name])) for name in sorted(found)]


def means(pairs: Sequence[Pair]) -> Means:
    """Figures of at least one pair."""
    return Means(
        before=math.fsum(pair.before for pair in pairs) / len(pairs),
        after=math.fsum(pair.after for pair in pairs) / len(pairs),
        better=sum(pair.before < RIGHT <= pair.after for pair in pairs),
        worse=sum(pair.after < RIGHT <= pair.before for pair in pairs),
    )
