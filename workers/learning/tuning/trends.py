"""Which way measurements go, in which phase a learning session is, and what to change about it. Pure.

The rules and numbers are those of the agents this replaces, ActiveLearningMonitor and LearningManager.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from schemas.bodies.learning_tuning import Advice, MetricTrend, Phase, Trend

# Values behind the newest one that a line is laid through.
_WINDOW: Final = 10
# With fewer earlier values there is no trend.
_LEAST: Final = 3
# Slopes up to this, per measurement, are no change.
_FLAT: Final = 0.001

# Of these more is better; of the others (loss, latency) less.
_MORE_IS_BETTER: Final = frozenset({"accuracy", "performance", "efficiency", "reward", "score", "convergence"})

CONVERGED_ACCURACY: Final = 0.95
_EVALUATED_ACCURACY: Final = 0.8
_STAGNANT_MEASUREMENTS: Final = 20
_WARM_UP_S: Final = 60.0
_MOST_BATCH: Final = 128


def slope_of(values: Sequence[float]) -> float:
    """Slope of the least-squares line through `values` at 0, 1, 2 ...; 0 for fewer than two."""
    n = len(values)
    if n < 2:
        return 0.0
    middle, mean = (n - 1) / 2, sum(values) / n
    above = sum((at - middle) * (value - mean) for at, value in enumerate(values))
    return above / sum((at - middle) ** 2 for at in range(n))


def trend_of(metric: str, values: Sequence[float]) -> MetricTrend:
    """Where a metric goes, from all its values, the oldest first (at least one)."""
    last = values[-_WINDOW - 1 :]
    is_more_better = metric in _MORE_IS_BETTER
    slope = slope_of(last) if len(last) > _LEAST else None
    return MetricTrend(
        metric=metric,
        trend=_word(slope, is_more_better=is_more_better),
        slope=slope,
        initial=values[0],
        latest=values[-1],
        best=max(values) if is_more_better else min(values),
        average=sum(values) / len(values),
    )


def _word(slope: float | None, *, is_more_better: bool) -> Trend:
    if slope is None:
        return "insufficient_data"
    if abs(slope) <= _FLAT:
        return "stable"
    return "improving" if (slope > 0) == is_more_better else "declining"


def phase_of(age_s: float, metrics: Mapping[str, float], trends: Sequence[MetricTrend]) -> Phase:
    """The phase of a session that is so old, with these newest values and trends."""
    accuracy = next((trend for trend in trends if trend.metric == "accuracy"), None)
    if accuracy is not None and metrics.get("accuracy", 0.0) >= CONVERGED_ACCURACY:
        return "consolidation"
    if accuracy is not None and metrics.get("accuracy", 0.0) > _EVALUATED_ACCURACY:
        return "optimization" if accuracy.trend == "stable" else "evaluation"
    return "active_learning" if age_s >= _WARM_UP_S else "initialization"


def advice_for(
    trends: Sequence[MetricTrend], measurements: int, learning_rate: float, batch_size: float | None
) -> list[Advice]:
    """What to change: nothing while it goes well. batch_size: as the session's parameters say, None when they do not."""
    accuracy = next((trend for trend in trends if trend.metric == "accuracy"), None)
    if accuracy is not None and accuracy.latest >= CONVERGED_ACCURACY:
        return [Advice(parameter="stop", value=None, factor=None, reason=f"accuracy is {accuracy.latest:.3g}")]
    declining = [trend.metric for trend in trends if trend.trend == "declining"]
    if declining:
        reason = f"{', '.join(declining)} got worse over the last measurements"
        return [
            Advice(parameter="max_grad_norm", value=1.0, factor=None, reason=reason),
            Advice(parameter="learning_rate", value=learning_rate * 0.5, factor=0.5, reason=reason),
        ]
    if measurements > _STAGNANT_MEASUREMENTS and any(trend.trend == "stable" for trend in trends):
        still = ", ".join(trend.metric for trend in trends if trend.trend == "stable")
        reason = f"{still} did not change over the last measurements"
        found = [Advice(parameter="learning_rate", value=learning_rate * 0.95, factor=0.95, reason=reason)]
        if batch_size is not None and batch_size < _MOST_BATCH:
            larger = min(batch_size * 2, _MOST_BATCH)
            found.append(Advice(parameter="batch_size", value=larger, factor=larger / batch_size, reason=reason))
        return found
    return []


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation of two series of one length; None where one of them is constant, or there are fewer than two."""
    n = len(first)
    if n < 2:
        return None
    mean_first, mean_second = sum(first) / n, sum(second) / n
    # Products and not powers: past the largest float a product is infinite, and a power raises.
    spread_first = sum((value - mean_first) * (value - mean_first) for value in first)
    spread_second = sum((value - mean_second) * (value - mean_second) for value in second)
    spread = math.sqrt(spread_first) * math.sqrt(spread_second)
    if spread <= 0 or not math.isfinite(spread):
        return None
    both = sum((a - mean_first) * (b - mean_second) for a, b in zip(first, second, strict=True))
    found: float = max(-1.0, min(1.0, both / spread))
    return found
