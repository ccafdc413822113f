"""What an A/B test shows so far: intervals, p-values, who has won, and the same in words; knows no storage.

Every pair of variants is compared at alpha / pairs (Bonferroni), so that all its claims hold together with a chance of
1 - alpha, at every moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from schemas.bodies.model_trials import Difference, VariantResult
from workers.models.trials.sequential import Outcomes, difference_interval, excludes, mean_interval, p_value


class Ending(NamedTuple):
    """Why a test need not go on. winner: None when no difference matters."""

    winner: str | None
    verdict: str


class Terms(NamedTuple):
    """What was agreed before the first outcome; the first name is what the others are compared with."""

    names: tuple[str, ...]
    alpha: float
    min_effect: float

    @property
    def pairs(self) -> int:
        """Comparisons that share alpha."""
        return len(self.names) * (len(self.names) - 1) // 2


def variant_results(terms: Terms, outcomes: Sequence[Outcomes], counts: Sequence[int]) -> list[VariantResult]:
    """Means with confidence sequences that hold for all variants together. counts: outcomes told, of each variant."""
    return [
        VariantResult(variant=name, units=one.n, outcomes=count, mean=one.mean if one.n else 0.0, low=low, high=high)
        for name, one, count in zip(terms.names, outcomes, counts, strict=True)
        for low, high in [mean_interval(one, terms.alpha / len(terms.names))]
    ]


def differences(terms: Terms, outcomes: Sequence[Outcomes]) -> list[Difference]:
    """Each variant compared with the first."""
    first = outcomes[0]
    return [
        Difference(
            variant=name,
            difference=one.mean - first.mean if one.n and first.n else 0.0,
            low=low,
            high=high,
            p_value=p_value(first, one, terms.pairs),
        )
        for name, one in list(zip(terms.names, outcomes, strict=True))[1:]
        for low, high in [difference_interval(first, one, terms.alpha / terms.pairs)]
    ]


def ending(terms: Terms, outcomes: Sequence[Outcomes]) -> Ending | None:
    """Why the test ends now; None while it goes on."""
    beaten = _certain(terms, outcomes)
    for index, name in enumerate(terms.names):
        if all((index, other) in beaten for other in range(len(terms.names)) if other != index):
            others = _listed([other for other in terms.names if other != name])
            return Ending(name, f"{name} is better than {others}: certain at level {1 - terms.alpha:g}")
    if terms.min_effect > 0 and _is_futile(terms, outcomes):
        return Ending(
            None, f"no two variants differ by {terms.min_effect:g} or more: certain at level {1 - terms.alpha:g}"
        )
    return None


def words(terms: Terms, outcomes: Sequence[Outcomes]) -> str:
    """What is certain and what is not, of a test that has not ended by itself."""
    if not any(one.n for one in outcomes):
        return "no outcomes yet"
    known = [
        f"{terms.names[better]} is better than {terms.names[worse]}"
        for better, worse in sorted(_certain(terms, outcomes))
    ]
    missing = [name for name, one in zip(terms.names, outcomes, strict=True) if not one.n]
    parts = [f"certain at level {1 - terms.alpha:g}: {'; '.join(known)}" if known else "nothing is certain yet"]
    if missing:
        parts.append(f"no outcomes of {_listed(missing)} yet")
    return "; ".join([*parts, "no winner so far"])


def _certain(terms: Terms, outcomes: Sequence[Outcomes]) -> set[tuple[int, int]]:
    """(better, worse) for every pair that certainly differs."""
    found = set()
    for first, second in combinations(range(len(outcomes)), 2):
        if excludes(outcomes[first], outcomes[second], 0.0, terms.alpha / terms.pairs):
            is_second = outcomes[second].mean > outcomes[first].mean
            found.add((second, first) if is_second else (first, second))
    return found


def _is_futile(terms: Terms, outcomes: Sequence[Outcomes]) -> bool:
    alpha = terms.alpha / terms.pairs
    return all(
        abs(second.mean - first.mean) < terms.min_effect
        and excludes(first, second, terms.min_effect, alpha)
        and excludes(first, second, -terms.min_effect, alpha)
        for first, second in combinations(outcomes, 2)
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
