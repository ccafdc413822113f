"""ModelEvaluationFramework (7220): measurements of agents and marks of models, kept by the model service.

A measurement or a mark comes as an object of its own or at the top of the request; both are understood. Times go out as
ISO 8601 without a zone, in local time, as these clients write and compare them.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Final, NamedTuple

from schemas.bodies.model_trials import (
    Evaluation,
    EvaluationList,
    EvaluationRecord,
    Evaluations,
    MetricEntry,
    MetricList,
    MetricRecord,
    Metrics,
)
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply
from workers.gateway.legacy.agents.model_tally import tally_of
from workers.gateway.legacy.house import House

# Marks of an evaluation, in our list of scores. Only the first makes it one that these clients understand.
_SCORES: Final = ("trust_score", "avg_latency_ms", "accuracy", "f1_score")

# Evaluations that are looked through, the newest; more than a reply of the service holds are never asked for.
_LOOKED_AT: Final = 1_000
_METRICS_MAX: Final = 10_000


async def log_performance_metric(ask: Fields, house: House) -> Reply:
    record = metric_record(_own(ask, "metric", ("agent_name", "metric_name", "value")))
    reply = await house.ask("model.metric.record", record)
    tally_of(house).performance_logs += 1
    return {"status": "success", "metric_id": reply.metric_id, "message": f"Metric {record.metric} logged"}


async def get_performance_metrics(ask: Fields, house: House) -> Reply:
    return {"status": "success", "metrics": await metrics_of(ask, house, limit=10)}


async def log_model_evaluation(ask: Fields, house: House) -> Reply:
    is_object = "evaluation" in ask
    required = ("model_name", "cycle_id", "trust_score", *(("avg_latency_ms",) if is_object else ()))
    record = evaluation_record(_own(ask, "evaluation", required))
    reply: Evaluation = await house.ask("model.evaluation.record", record)
    tally_of(house).evaluated(record.model)
    return {
        "status": "success",
        "evaluation_id": reply.evaluation_id,
        "message": f"Evaluation of {record.model} logged",
    }


async def get_model_evaluation_scores(ask: Fields, house: House) -> Reply:
    return {"status": "success", "evaluations": await evaluations_of(ask, house, limit=10)}


async def get_stats(ask: Fields, house: House) -> Reply:
    return {"status": "success", "metrics": tally_of(house).stats()}


async def metrics_of(ask: Fields, house: House, *, limit: int) -> list[dict[str, Any]]:
    """Measurements that the request asks for, the newest first; `limit` where it names none."""
    wanted = ask.whole("limit", limit, high=_METRICS_MAX)
    if wanted == 0:
        return []
    start, end = bound(ask.get("start_time")), bound(ask.get("end_time"))
    listed: Metrics = await house.ask(
        "model.metric.list",
        MetricList(
            agent=ask.text("agent_name") or None,
            metric=ask.text("metric_name") or None,
            since=start.looked_from,
            until=end.looked_to,
            limit=_METRICS_MAX if start.text or end.text else wanted,
        ),
    )
    entries = [metric_entry(one) for one in listed.metrics]
    return [
        one for one in entries if start.text <= one["timestamp"] and (not end.text or one["timestamp"] <= end.text)
    ][:wanted]


async def evaluations_of(ask: Fields, house: House, *, limit: int) -> list[dict[str, Any]]:
    """Marks that others gave, the newest first; `limit` where the request names none."""
    wanted, model = ask.whole("limit", limit, high=_LOOKED_AT), ask.text("model_name")
    listed: Evaluations = await house.ask("model.evaluation.list", EvaluationList(suite="", limit=_LOOKED_AT))
    found = [one for one in listed.evaluations if _has_trust(one) and model in ("", one.model)]
    found.sort(key=lambda one: one.started_at, reverse=True)
    return [evaluation_entry(one) for one in found[:wanted]]


# The objects


def metric_record(fields: Fields) -> MetricRecord:
    """A `PerformanceMetric` as ours; `context`, or `metadata` of the suite, becomes the details. Raises Refused."""
    return MetricRecord(
        agent=fields.text("agent_name"),
        metric=fields.text("metric_name"),
        value=fields.number("value", 0.0),
        metric_id=fields.text("metric_id") or str(uuid.uuid4()),
        details=fields.mapping("context") or fields.mapping("metadata"),
        at=instant(fields.get("timestamp"), "timestamp"),
    )


def metric_entry(entry: MetricEntry) -> dict[str, Any]:
    """A measurement of ours as theirs."""
    return {
        "metric_id": entry.metric_id,
        "agent_name": entry.agent,
        "metric_name": entry.metric,
        "value": entry.value,
        "timestamp": iso(entry.at),
        "context": entry.details,
        "metadata": entry.details,
    }


def evaluation_record(fields: Fields) -> EvaluationRecord:
    """A `ModelEvaluationScore` as ours; `comparison_data` goes into the details. Raises Refused."""
    trust = fields.number("trust_score", 0.0)
    if not 0 <= trust <= 1:
        raise Refused(f"trust_score is {trust}, it must be from 0 to 1")
    given = {name: fields.number(name, 0.0) for name in _SCORES if fields.get(name) is not None}
    compared = fields.get("comparison_data")
    return EvaluationRecord(
        model=fields.text("model_name"),
        scores={"avg_latency_ms": 0.0, **given},
        cycle_id=fields.text("cycle_id"),
        evaluation_id=fields.text("evaluation_id") or str(uuid.uuid4()),
        details={} if compared is None else {"comparison_data": compared},
        at=instant(fields.get("evaluation_timestamp"), "evaluation_timestamp"),
    )


def evaluation_entry(evaluation: Evaluation) -> dict[str, Any]:
    """Marks of ours as theirs."""
    scores = {one.metric: one.mean for one in evaluation.scores}
    return {
        "evaluation_id": evaluation.evaluation_id,
        "model_name": evaluation.model,
        "cycle_id": evaluation.details.get("cycle_id", ""),
        "trust_score": scores["trust_score"],
        "accuracy": scores.get("accuracy"),
        "f1_score": scores.get("f1_score"),
        "avg_latency_ms": scores.get("avg_latency_ms", 0.0),
        "evaluation_timestamp": iso(evaluation.started_at),
        "comparison_data": evaluation.details.get("comparison_data"),
    }


def instant(value: Any, name: str) -> float | None:
    """Epoch seconds of a time as these clients write it: ISO 8601, local where it has no zone, or a number. None for none.

    Raises Refused.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    raise Refused(f"{name} must be a time in ISO 8601, not {value!r}")


class Bound(NamedTuple):
    """An end of a span of time as text, "" for none, and epoch seconds between which every time within it lies."""

    text: str = ""
    looked_from: float | None = None
    looked_to: float | None = None


def bound(value: Any) -> Bound:
    """What these clients give as `start_time` or `end_time`: text that was compared with times as text.

    So a part of a time (`2025-08`) is one, too; what has a zone is brought to local time first.
    """
    try:
        at = instant(value, "time")
    except Refused:
        return Bound(str(value))
    # A second to either side: a time may lose its last digit on the way through epoch seconds.
    return Bound() if at is None else Bound(iso(at), at - 1, at + 1)


def iso(at: float) -> str:
    """Epoch seconds in ISO 8601, local time without a zone."""
    return datetime.fromtimestamp(at).isoformat()


def _own(ask: Fields, key: str, required: tuple[str, ...]) -> Fields:
    """The object of a request, or the request itself where it has the first of the fields. Raises Refused."""
    if key not in ask and required[0] not in ask:
        raise Refused(f"'{key}'")
    fields = Fields(ask.mapping(key) if key in ask else ask)
    for name in required:
        if fields.get(name) is None or fields[name] == "":
            raise Refused(f"Missing {name}")
    return fields


def _has_trust(evaluation: Evaluation) -> bool:
    return any(one.metric == "trust_score" for one in evaluation.scores)


AGENT = Agent(
    name="ModelEvaluationFramework",
    service="model",
    kind="evaluation",
    ports=(7220,),
    health_ports=(7221,),
    actions={
        "log_performance_metric": Action(log_performance_metric),
        "get_performance_metrics": Action(get_performance_metrics),
        "log_model_evaluation": Action(log_model_evaluation),
        "get_model_evaluation_scores": Action(get_model_evaluation_scores),
        "get_stats": Action(get_stats),
    },
)
