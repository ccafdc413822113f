"""How a new adapter does in live traffic against what it replaced: outcomes paired off, and what follows. Pure.

The k-th outcome of the new side is compared with the k-th of the old one, each outcome once. In a canary both sides answer
at the same time, and which side a conversation gets is drawn; so a pair is fair whatever the day brings. Without a canary
the old side's outcomes are those from before the promotion: weaker, because a change of the traffic looks like one of the
adapter, and finite, because nobody adds to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from workers.learning.gate.sequential import Outcomes, Watching, begin, is_worse, promised_pairs
from workers.learning.promotion.seams import Outcome

Decision = Literal["watching", "keep", "roll_back"]

# Outcomes of one side that wait for the other's; beyond it the oldest go unpaired, which no outcome decides.
_WAITING: Final = 10_000

_DAY_S: Final = 86_400.0


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """When to decide: settings `watch_*`."""

    alpha: float
    drop: float
    pairs: int
    days: float


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison so far. new_name, old_name: adapters with their versions, "" for the bare model.

    after: number of the last outcome counted. is_historical: the old side's outcomes are from before the promotion.
    """

    new_name: str
    old_name: str
    after: int
    is_historical: bool = False
    compared: Watching
    new: Outcomes = Outcomes()
    old: Outcomes = Outcomes()
    waiting_new: tuple[float, ...] = ()
    waiting_old: tuple[float, ...] = ()
    words: str = ""


def first(
    new_name: str, old_name: str, after: int, history: Iterable[Outcome] = (), *, is_historical: bool
) -> Progress:
    """Nothing compared yet. history: the old side's outcomes from before, where there is no canary."""
    values = tuple(one.outcome for one in history)
    old = Outcomes()
    for value in values:
        old = old.plus(value)
    return Progress(
        new_name=new_name,
        old_name=old_name,
        after=after,
        is_historical=is_historical,
        compared=begin(),
        old=old,
        waiting_old=values,
    )


def with_outcomes(progress: Progress, outcomes: Iterable[Outcome], alpha: float) -> Progress:
    """With what came since, in its order. What was counted already, or is of others, is passed over.

    Pairs are compared until the evidence suffices for a decision at `alpha`: later ones could only unsay it.
    """
    after, compared = progress.after, progress.compared
    sides = {progress.new_name: progress.new, progress.old_name: progress.old}
    waiting = {progress.new_name: list(progress.waiting_new), progress.old_name: list(progress.waiting_old)}
    for one in outcomes:
        if one.number <= after:
            continue
        after = one.number
        is_old = one.adapter == progress.old_name
        if one.adapter not in sides or (is_old and progress.is_historical):
            continue
        sides[one.adapter] = sides[one.adapter].plus(one.outcome)
        waiting[one.adapter].append(one.outcome)
    new, old = waiting[progress.new_name], waiting[progress.old_name]
    pairs = min(len(new), len(old))
    for new_value, old_value in zip(new[:pairs], old[:pairs], strict=True):
        if is_worse(compared, alpha):
            break
        compared = compared.plus(new_value, old_value)
    return msgspec.structs.replace(
        progress,
        after=after,
        compared=compared,
        new=sides[progress.new_name],
        old=sides[progress.old_name],
        waiting_new=tuple(new[pairs:][-_WAITING:]),
        waiting_old=tuple(old[pairs:][-_WAITING:]),
    )


def decide(progress: Progress, age_s: float, rules: Rules) -> tuple[Decision, str]:
    """What follows, and why in words. age_s: since the promotion."""
    pairs, evidence, needed = progress.compared.pairs, progress.compared.evidence, 1 / rules.alpha
    replaced = progress.old_name or "the bare model"
    if is_worse(progress.compared, rules.alpha):
        return "roll_back", (
            f"worse than {replaced}: after {pairs} pairs of outcomes their mean is"
            f" {-progress.compared.mean_difference:.2f} lower, the evidence is {evidence:.1f}, needed were {needed:g}"
        )
    if pairs >= rules.pairs:
        return "keep", f"no worse than {replaced} was seen to be in {pairs} pairs of outcomes (evidence {evidence:.2g})"
    if age_s >= rules.days * _DAY_S:
        return "keep", f"{rules.days:g} days and {pairs} pairs of outcomes did not show it to be worse than {replaced}"
    promised = promised_pairs(rules.drop, alpha=rules.alpha)
    found = f"after {promised} pairs on average" if promised is not None else "at no number of pairs for certain"
    words = f"{pairs} pairs, evidence {evidence:.2g} of {needed:g}; a drop of {rules.drop:g} is found {found}"
    if progress.is_historical:
        words += f"; compared with {progress.old.n} outcomes from before it answered, for it has no canary beside it"
    return "watching", words
