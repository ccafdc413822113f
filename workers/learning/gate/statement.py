"""What a dataset could show, in figures and in words, before anything is trained on it; asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.bodies.learning_data import DatasetInfo
from schemas.bodies.learning_gate import PowerStatement
from workers.learning.gate.items import Item
from workers.learning.gate.power import POWER, detectable_gain, expected_error, independent_items, power_of
from workers.learning.gate.verdict import Terms


def statement(info: DatasetInfo, target: Sequence[Item], retention: Sequence[Item], terms: Terms) -> PowerStatement:
    """What these held-out and retention items could show at this attempt."""
    sizes = _cluster_sizes(target)
    items = independent_items(sizes)
    power = power_of(terms.min_gain, expected_error(items, terms.min_gain), terms.level)
    detectable = detectable_gain(items, terms.level, POWER)
    missing = [
        f"{there} of {needed} {name} items ({setting})"
        for there, needed, name, setting in (
            (len(target), terms.min_target_items, "held-out", "learning.min_target_items"),
            (len(retention), terms.min_retention_items, "retention", "learning.min_retention_items"),
        )
        if there < needed
    ]
    if not missing and 2.0 ** -len(sizes) > terms.level:
        missing = [f"{len(sizes)} facts in the held-out rows, too few for any level below {2.0 ** -len(sizes):.2g}"]
    seen = (
        f"{len(target)} held-out items about {len(sizes)} facts show a gain of {detectable * 100:.0f} points with a chance"
        f" of {POWER:.0%}, one of {terms.min_gain * 100:.0f} points with {power:.0%} (level {terms.level:.2g}, attempt"
        f" {terms.attempt} on this set)"
    )
    return PowerStatement(
        dataset=info.dataset,
        version=info.version,
        target_items=len(target),
        target_clusters=len(sizes),
        retention_items=len(retention),
        retention_clusters=len(_cluster_sizes(retention)),
        power=power,
        detectable_gain=detectable,
        min_gain=terms.min_gain,
        attempt=terms.attempt,
        corrected_alpha=terms.level,
        is_enough=not missing,
        words=f"too little to let anything pass: {'; '.join(missing)}" if missing else seen,
    )


def _cluster_sizes(items: Iterable[Item]) -> list[int]:
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.cluster] = sizes.get(item.cluster, 0) + 1
    return list(sizes.values())
