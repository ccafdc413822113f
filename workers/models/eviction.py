"""Which models leave when memory is needed: a pure choice among those that may."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A runner that may be sent away.

    priority: 1 is evicted last, 5 first. worth: what prediction says having it in memory is worth, 0 where it says
    nothing. last_used: on the scheduler's clock.
    """

    runner: int
    priority: int
    worth: float = 0.0
    last_used: float
    memory_bytes: int


def in_order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """First who leaves first: the least important, of those the least worth, of those the one unused for longest."""
    return sorted(candidates, key=lambda one: (-one.priority, one.worth, one.last_used, one.runner))


def enough_for(need_bytes: int, candidates: Sequence[Candidate]) -> list[Candidate] | None:
    """Those that leave so that `need_bytes` become free; None when all of them together would not do.

    They are taken in order until there is enough; then whoever is not needed after all stays, the most important first.
    """
    chosen: list[Candidate] = []
    freed = 0
    for candidate in in_order(candidates):
        if freed >= need_bytes:
            break
        chosen.append(candidate)
        freed += candidate.memory_bytes
    if freed < need_bytes:
        return None
    for candidate in reversed(list(chosen)):
        if freed - candidate.memory_bytes >= need_bytes:
            chosen.remove(candidate)
            freed -= candidate.memory_bytes
    return chosen
