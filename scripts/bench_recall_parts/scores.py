"""Recall and rank of what was asked for, by kind of question and by conversation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence, Set
from typing import Any, Final

# How many of the first hits count.
DEPTHS: Final = (5, 10, 25)


class Scores:
    """What one pipeline found.

    recall@k: the part of a question's evidence among the first k hits, averaged over the questions. MRR: the mean of
    1 / rank of the first hit that is evidence, 0 where none is.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._recalls: dict[str, list[tuple[float, ...]]] = {}
        self._seconds: list[float] = []

    def add(self, groups: Sequence[str], found: Sequence[str], evidence: Set[str], took_s: float) -> None:
        """A question of these groups was answered with `found`."""
        ranks = [found.index(turn) for turn in evidence if turn in found]
        figures = [sum(rank < depth for rank in ranks) / len(evidence) for depth in DEPTHS]
        figures.append(1 / (min(ranks) + 1) if ranks else 0.0)
        for group in ("all", *groups):
            self._recalls.setdefault(group, []).append(tuple(figures))
        self._seconds.append(took_s)

    def figures(self, group: str = "all") -> list[float]:
        """recall@5, @10, @25 and MRR, in percent."""
        return [100 * statistics.fmean(column) for column in zip(*self._recalls[group], strict=True)]

    def groups(self) -> dict[str, int]:
        """How many questions each group has."""
        return {group: len(recalls) for group, recalls in self._recalls.items()}

    def milliseconds(self) -> tuple[float, float]:
        """Median and 95th percentile of the time of a search."""
        ordered = sorted(self._seconds)
        return 1000 * statistics.median(ordered), 1000 * ordered[int(0.95 * (len(ordered) - 1))]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        names = [*(f"recall@{depth}" for depth in DEPTHS), "mrr"]
        median, p95 = self.milliseconds()
        return {
            "groups": {
                group: dict(zip(names, (round(figure, 2) for figure in self.figures(group)), strict=True))
                for group in self._recalls
            },
            "search_ms": {"p50": round(median, 3), "p95": round(p95, 3)},
        }
