"""Which pieces go into a context of limited size. Pure: costs in, choice out; knows neither texts nor tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """Pieces of one kind, most wanted first. Only a run from the first one on is ever taken, so no gap comes about.

    costs: tokens of each piece. share: of the budget, kept for this part as far as it has pieces for it.
    """

    name: str
    costs: Sequence[int]
    share: float


def choose(budget: int, parts: Sequence[Part]) -> dict[str, int]:
    """How many pieces of each part to take, together at most `budget` tokens.

    First every part gets its guaranteed pieces; what is left over then goes to the parts in their order, each until
    its next piece does not fit.
    """
    taken = guaranteed(budget, parts)
    room = budget - sum(sum(part.costs[: taken[part.name]]) for part in parts)
    for part in parts:
        for cost in part.costs[taken[part.name] :]:
            if cost > room:
                break
            taken[part.name] += 1
            room -= cost
    return taken


def guaranteed(budget: int, parts: Sequence[Part]) -> dict[str, int]:
    """How many pieces of each part fit its fair allowance. A greater budget never guarantees fewer of any part."""
    allowances = fair_allowances(
        budget, {part.name: sum(part.costs) for part in parts}, {part.name: part.share for part in parts}
    )
    return {part.name: _fitting(part.costs, allowances[part.name]) for part in parts}


def fair_allowances(budget: int, demands: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, float]:
    """Weighted max-min fair shares of `budget`: what one part does not need is divided among the others.

    Every part gets min(demand, share * budget) or more if the shares sum to 1 at most. Source: the progressive filling
    of Bertsekas and Gallager, Data Networks, section 6.5.2.
    """
    allowances = dict.fromkeys(demands, 0.0)
    room = float(max(0, budget))
    open_parts = [name for name, demand in demands.items() if demand > 0 and shares[name] > 0]
    while open_parts:
        total = sum(shares[name] for name in open_parts)
        level = room / total
        content = [name for name in open_parts if demands[name] <= shares[name] * level]
        for name in content or open_parts:
            allowances[name] = float(demands[name]) if content else shares[name] * level
        if not content:
            break
        room -= sum(demands[name] for name in content)
        open_parts = [name for name in open_parts if name not in content]
    return allowances


def _fitting(costs: Sequence[int], allowance: float) -> int:
    # A hair more than the allowance, for a demand that was met exactly and lost a bit in the division.
    room = allowance + 1e-6
    for count, cost in enumerate(costs):
        room -= cost
        if room < 0:
            return count
    return len(costs)
