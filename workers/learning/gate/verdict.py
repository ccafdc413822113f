"""The gate's verdict on an adapter, from both sides' scores alone; asks nobody, keeps nothing and knows no clock.

An adapter passes when all of this is shown at the corrected level (`multiplicity.py`):
    gain        the target's scores rose: sign-flip test over clusters (`permutation.py`)
    retention   what was known before fell by less than the margin: the lower bound (`bounds.py`) lies above -margin
    both        the same of the retention set and all earlier adapters' held-out sets taken together
and no single earlier set is seen to have fallen by more than the margin. As every one of these has to hold, testing several
needs no correction of its own (intersection-union test, R. L. Berger, Technometrics 24 (1982)).

What cannot be shown for want of items is "underpowered", what speaks against the adapter or would have been seen is
"refused". Too little data is never "passed".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from schemas.bodies.learning_gate import SetResult, VerdictWord
from workers.learning.gate.bounds import Spread, lower_bound, spread, upper_bound
from workers.learning.gate.multiplicity import corrected_alpha
from workers.learning.gate.pairs import Cluster, Pair, clustered, means
from workers.learning.gate.permutation import p_of_gain
from workers.learning.gate.power import POWER, power_of, seen_effect

# Confidence of the intervals that are shown; the verdict does not rest on them.
_SHOWN_CONFIDENCE: Final = 0.95


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter has to show. attempt: the how-manieth verdict on this held-out set, from 1.

    min_gain: gain of the score that the gate has to be able to see. margin: loss on what was known that is let pass.
    """

    alpha: float
    min_gain: float
    margin: float
    min_target_items: int
    min_retention_items: int
    attempt: int = 1
    seed: int = 0

    @property
    def level(self) -> float:
        """What this attempt may use of alpha."""
        return corrected_alpha(self.alpha, self.attempt)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """reasons: in words, the deciding one first. The rest as in `GateResult`."""

    verdict: VerdictWord
    reasons: list[str]
    target: SetResult | None
    retention: SetResult | None
    earlier: list[SetResult]
    backward_transfer: float | None
    corrected_alpha: float
    power: float
    detectable_gain: float


class _Finding(msgspec.Struct, frozen=True):
    """What one part of the gate says."""

    verdict: VerdictWord
    reason: str


def decide(
    target: Sequence[Pair], retention: Sequence[Pair], earlier: Mapping[str, Sequence[Pair]], terms: Terms
) -> Verdict:
    """Judge an adapter. earlier: held-out items by the name of the set they were learned from.

    Takes up to half a second with some thousand items: call it in a thread.
    """
    kept = {name: pairs for name, pairs in sorted(earlier.items()) if pairs}
    # "Together" clusters by set, too: two sets may have named theirs alike.
    together = clustered(retention) + [cluster for pairs in kept.values() for cluster in clustered(pairs)]
    gained, lost = _measured(clustered(target)), _measured(clustered(retention))
    p_value = p_of_gain(clustered(target), terms.level, seed=terms.seed) if target else 1.0
    findings = [
        _gain(len(target), gained, p_value, terms),
        _kept(len(retention), lost, terms),
        *[_not_harmed(name, clustered(pairs), terms) for name, pairs in kept.items()],
    ]
    if kept:
        findings.append(_kept_together(together, terms))
    sets = [_result(name, pairs, terms) for name, pairs in kept.items()]
    word = _worst(findings)
    return Verdict(
        verdict=word,
        reasons=[one.reason for one in sorted(findings, key=lambda one: one.verdict != word)],
        target=_result("target", target, terms, p_value=p_value) if target else None,
        retention=_result("retention", retention, terms) if retention else None,
        earlier=sets,
        backward_transfer=math.fsum(one.difference for one in sets) / len(sets) if sets else None,
        corrected_alpha=terms.level,
        power=power_of(terms.min_gain, gained.error, terms.level),
        detectable_gain=seen_effect(gained.error, terms.level, POWER),
    )


def _worst(findings: Sequence[_Finding]) -> VerdictWord:
    """Refused before underpowered before passed: what speaks against an adapter needs no more data."""
    words = {finding.verdict for finding in findings}
    return "refused" if "refused" in words else "underpowered" if "underpowered" in words else "passed"


def _measured(clusters: Sequence[Cluster]) -> Spread:
    """Of a set; one without items says nothing at all."""
    return spread(clusters) if clusters else Spread(0.0, math.inf, 0.0)


# The parts ----------------------------------------------------------------------------------------------------------


def _gain(items: int, found: Spread, p_value: float, terms: Terms) -> _Finding:
    level = terms.level
    if items < terms.min_target_items:
        return _Finding(
            "underpowered",
            f"the target has {items} held-out items, the gate wants {terms.min_target_items} at least"
            " (learning.min_target_items)",
        )
    seen = f"the target changed by {_points(found.mean)} points, p = {p_value:.2g}"
    if found.mean > 0 and p_value <= level:
        return _Finding("passed", f"{seen}, at most {level:.2g} is asked for")
    if found.mean <= 0:
        return _Finding("refused", f"{seen}: no gain")
    power = power_of(terms.min_gain, found.error, level)
    asked = f"{seen}, at most {level:.2g} is asked for (attempt {terms.attempt} on this set)"
    if power < POWER:
        return _Finding(
            "underpowered",
            f"{asked}; with these items a gain of {_points(terms.min_gain)} points is seen with a chance of {power:.0%}"
            f" only, one of {_points(seen_effect(found.error, terms.level, POWER))} with {POWER:.0%}",
        )
    return _Finding(
        "refused",
        f"{asked}; a gain of {_points(terms.min_gain)} points would have been seen with a chance of {power:.0%}",
    )


def _kept(items: int, found: Spread, terms: Terms) -> _Finding:
    if items == 0:
        return _Finding("underpowered", "there is no retention set, so nobody knows what the adapter makes forget")
    if found.mean < -terms.margin:
        return _Finding("refused", f"the retention set fell by {_points(-found.mean)} points, {_allowed(terms)}")
    if items < terms.min_retention_items:
        return _Finding(
            "underpowered",
            f"the retention set has {items} items, the gate wants {terms.min_retention_items} at least"
            " (learning.min_retention_items)",
        )
    return _above_margin("the retention set", found, terms)


def _kept_together(clusters: Sequence[Cluster], terms: Terms) -> _Finding:
    found = spread(clusters)
    if found.mean < -terms.margin:
        return _Finding(
            "refused",
            f"the retention set and earlier adapters' sets together fell by {_points(-found.mean)} points, {_allowed(terms)}",
        )
    return _above_margin("the retention set together with earlier adapters' sets", found, terms)


def _above_margin(name: str, found: Spread, terms: Terms) -> _Finding:
    """Whether a set that did not fall by more than the margin is shown not to have, beyond chance."""
    bound = lower_bound(found, terms.level)
    changed = f"{name} changed by {_points(found.mean)} points, at worst by {_points(bound)}"
    if bound > -terms.margin:
        return _Finding("passed", f"{changed}: {_allowed(terms)}")
    power = power_of(terms.margin, found.error, terms.level)
    if power < POWER:
        return _Finding(
            "underpowered",
            f"{changed}, {_allowed(terms)}; so few items show no loss with a chance of {power:.0%} where there is none",
        )
    return _Finding("refused", f"{changed}, {_allowed(terms)}")


def _not_harmed(name: str, clusters: Sequence[Cluster], terms: Terms) -> _Finding:
    """Earlier sets are often too small to show that nothing is lost, never too small to show that much is."""
    found = spread(clusters)
    if found.mean < -terms.margin:
        # Without the correction for attempts: to refuse too easily does not pass anything wrongly.
        p_value = p_of_gain(
            [cluster._replace(total=-cluster.total) for cluster in clusters], terms.alpha, seed=terms.seed
        )
        if p_value <= terms.alpha:
            return _Finding(
                "refused",
                f"what was learned from {name} fell by {_points(-found.mean)} points (p = {p_value:.2g}),"
                f" {_allowed(terms)}",
            )
    return _Finding("passed", f"what was learned from {name} changed by {_points(found.mean)} points")


# Figures ------------------------------------------------------------------------------------------------------------


def _result(name: str, pairs: Sequence[Pair], terms: Terms, *, p_value: float | None = None) -> SetResult:
    clusters, figures = clustered(pairs), means(pairs)
    found = spread(clusters)
    tail = (1 - _SHOWN_CONFIDENCE) / 2
    is_target = p_value is not None
    return SetResult(
        name=name,
        items=len(pairs),
        clusters=len(clusters),
        score=figures.after,
        score_before=figures.before,
        difference=found.mean,
        low=lower_bound(found, tail),
        high=upper_bound(found, tail),
        confidence=_SHOWN_CONFIDENCE,
        p_value=p_value,
        bound=None if is_target else lower_bound(found, terms.level),
        margin=None if is_target else terms.margin,
        better=figures.better,
        worse=figures.worse,
    )


def _allowed(terms: Terms) -> str:
    return f"{_points(terms.margin)} may be lost"


def _points(share: float) -> str:
    """A share as points of a hundred."""
    return f"{share * 100:.1f}".replace("-0.0", "0.0")
