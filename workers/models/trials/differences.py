"""Whether two evaluations can be compared, and how they differ case by case; knows no storage and asks no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.bodies.model_trials import Evaluation, EvaluationDifference, MetricDifference
from workers.models.trials.scoring import BOUNDS, Scored, per_case
from workers.models.trials.statistics import paired_difference


def difference_of(
    first: Evaluation, cases: Sequence[Scored], other: Evaluation, other_cases: Sequence[Scored]
) -> EvaluationDifference:
    """`first` less `other`, at the confidence of `first`; or why that cannot be said."""
    reason = _why_not(first, other)
    if reason is None and not (cases and other_cases):
        reason = "the answers are not kept any more"
    if reason is not None:
        return EvaluationDifference(against=other.evaluation_id, is_comparable=False, reasons=[reason], metrics=[])
    notes = _notes(first, other)
    metrics = []
    for metric in [score.metric for score in first.scores]:
        reason = _why_not_metric(metric, first.details, other.details)
        found = None if reason else _metric_difference(metric, cases, other_cases, first.confidence)
        if found is not None:
            metrics.append(found)
        else:
            notes.append(reason or f"{metric}: no case has it in both")
    return EvaluationDifference(
        against=other.evaluation_id, is_comparable=bool(metrics), reasons=notes, metrics=metrics
    )


def _metric_difference(
    metric: str, cases: Sequence[Scored], other_cases: Sequence[Scored], confidence: float
) -> MetricDifference | None:
    ours, theirs = per_case(cases, metric), per_case(other_cases, metric)
    common = [case_id for case_id in ours if case_id in theirs]
    if not common:
        return None
    interval = paired_difference(
        [ours[case_id] for case_id in common],
        [theirs[case_id] for case_id in common],
        confidence,
        bounds=BOUNDS[metric],
    )
    of = ", of log perplexity in nats per token" if metric == "perplexity" else ""
    return MetricDifference(
        metric=metric,
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        method=interval.method + of,
    )


def _why_not(first: Evaluation, other: Evaluation) -> str | None:
    for one in (first, other):
        if not one.suite_sha256:
            return f"{one.evaluation_id} was recorded, not run here: its answers are unknown"
        if one.status != "done":
            return f"{one.evaluation_id} is {one.status}"
    if first.suite_sha256 != other.suite_sha256:
        return f"not the same questions: {first.suite} and {other.suite} differ in their sha256"
    return None


def _why_not_metric(metric: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    for name, of in (("judge", "judge"), ("judge_sha256", "judge"), ("embedder", "similarity")):
        if metric == of and ours.get(name) != theirs.get(name):
            return f"{metric}: {name} differs, {ours.get(name)} and {theirs.get(name)}"
    return None


def _notes(first: Evaluation, other: Evaluation) -> list[str]:
    notes = []
    if first.seeds != other.seeds:
        notes.append(f"seeds differ: {first.seeds} and {other.seeds}")
    if first.model_sha256 is None or other.model_sha256 is None:
        notes.append("the sha256 of a model was not known when it ran: it may have changed under its name")
    elif first.model_sha256 == other.model_sha256 and first.adapter == other.adapter:
        notes.append("both ran the same model with the same adapter")
    return notes
