"""`data/model_evaluation.db` of the ModelEvaluationFramework: measurements of agents and marks of models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.sync import SyncClient
from migrate_parts.figures import number, text
from migrate_parts.moving import Asked, Becomes, Row, Store, row
from migrate_parts.stores import Found, find, opened, packed_or_text
from migrate_parts.times import epoch
from schemas.bodies.model_trials import EvaluationGet, EvaluationRecord, MetricList, MetricRecord
from schemas.errors import NotFound
from workers.gateway.legacy.agent import Fields, Refused
from workers.gateway.legacy.agents.evaluation_framework import evaluation_record, metric_record

_METRIC: Final = ("metric_id", "agent_name", "metric_name", "value", "timestamp", "context")
_MARK: Final = (
    "evaluation_id",
    "model_name",
    "cycle_id",
    "trust_score",
    "accuracy",
    "f1_score",
    "avg_latency_ms",
    "evaluation_timestamp",
    "comparison_data",
)
# schemas.bodies.model_trials.TrialId.
_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")


def stores(root: Path) -> list[Store]:
    """The store, where the project has one."""
    return [_store(found) for found in find(root, "data/model_evaluation.db", "model_evaluation.db")]


def _store(found: Found) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return database.count("performance_metrics") + database.count("model_evaluation_scores")

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            for one in database.rows("performance_metrics", *_METRIC):
                yield row("performance_metrics", one["metric_id"], partial(_metric, one, database.written_at))
            for one in database.rows("model_evaluation_scores", *_MARK):
                yield row("model_evaluation_scores", one["evaluation_id"], partial(_marks, one, database.written_at))

    return Store(found.name, found.path, total, rows)


def _metric(one: dict[str, Any], written_at: float) -> Becomes:
    missing = _missing(one, ("metric_id", "agent_name", "metric_name"), ("value",))
    if missing:
        return missing
    fields = {**one, "context": packed_or_text(one["context"], "context")}
    fields["timestamp"] = epoch(one["timestamp"]) or written_at
    body = metric_record(Fields({**fields, "value": number(one["value"], 0.0), "metric_id": _own_id(one["metric_id"])}))

    def check(client: SyncClient) -> str | None:
        wanted = MetricList(agent=body.agent, metric=body.metric, since=body.at, until=body.at, limit=10_000)
        for there in client.request("model.metric.list", wanted).metrics:
            if there.metric_id == body.metric_id:
                return _difference(there, body, ("value", "details"))
        return "not there"

    return Asked("model.metric.record", body, check)


def _marks(one: dict[str, Any], written_at: float) -> Becomes:
    missing = _missing(one, ("evaluation_id", "model_name"), ("trust_score",))
    if missing:
        return missing
    fields = {name: value for name, value in one.items() if value is not None}
    for name in ("trust_score", "accuracy", "f1_score", "avg_latency_ms"):
        if name in fields:
            if _missing(one, (), (name,)):
                return f"{name} is {one[name]!r}, no number"
            fields[name] = number(one[name], 0.0)
    if "comparison_data" in fields:
        fields["comparison_data"] = packed_or_text(one["comparison_data"], "comparison_data")
    fields["evaluation_timestamp"] = epoch(one["evaluation_timestamp"]) or written_at
    fields["evaluation_id"] = _own_id(one["evaluation_id"])
    fields["cycle_id"] = text(one["cycle_id"])[:256]
    try:
        body = evaluation_record(Fields(fields))
    except Refused as refused:
        return refused.text
    return Asked("model.evaluation.record", body, partial(_marks_differ, body))


def _marks_differ(body: EvaluationRecord, client: SyncClient) -> str | None:
    assert body.evaluation_id is not None
    try:
        there = client.request("model.evaluation.get", EvaluationGet(evaluation_id=body.evaluation_id)).evaluation
    except NotFound:
        return "not there"
    scores = {one.metric: one.mean for one in there.scores}
    if scores != body.scores:
        return f"scores are {scores}, in the old store {body.scores}"
    details = {**body.details, **({"cycle_id": body.cycle_id} if body.cycle_id else {})}
    return _difference(there, msgspec.structs.replace(body, details=details), ("model", "details"))


def _difference(there: msgspec.Struct, body: MetricRecord | EvaluationRecord, names: tuple[str, ...]) -> str | None:
    for name in names:
        if getattr(there, name) != getattr(body, name):
            return f"{name} is {getattr(there, name)!r}, in the old store {getattr(body, name)!r}"[:200]
    return None


def _missing(one: dict[str, Any], texts: tuple[str, ...], numbers: tuple[str, ...]) -> str:
    for name in texts:
        if one[name] is None or one[name] == "":
            return f"{name} is missing"
    for name in numbers:
        if number(one[name], float("inf")) == float("inf"):
            return f"{name} is {one[name]!r}, no number"
    return ""


def _own_id(value: Any) -> str:
    """The id where ours can be the same, else one made of it."""
    given = text(value)
    return given if _ID.fullmatch(given) else f"legacy-{hashlib.sha256(given.encode()).hexdigest()[:32]}"
