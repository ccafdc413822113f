"""`learning_adjuster.db` of the LearningAdjusterAgent: parameters, and what was measured while they had their values.

A measurement has no id of ours and would count twice, so each leaves a mark once it is taken in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from bus.sync import SyncClient
from migrate_parts.figures import text
from migrate_parts.moving import Asked, Becomes, Row, Store, row
from migrate_parts.reasoning_files import kept
from migrate_parts.stores import Database, Found, find, opened, packed, packed_or_text
from migrate_parts.times import default_epoch
from schemas.bodies.learning_tuning import (
    Parameter,
    ParameterKind,
    ParameterList,
    ParameterRegister,
    Parameters,
    PerformanceRecord,
)
from schemas.bodies.memory import KvGet
from schemas.errors import NotFound
from workers.gateway.legacy.agents.asked import is_number, iso

_PARAMETER: Final = (
    "name",
    "type",
    "min_value",
    "max_value",
    "current_value",
    "step_size",
    "description",
    "metadata",
)
_MEASURED: Final = ("id", "metric_name", "value", "timestamp", "parameters", "metadata")

# Namespace of the marks, behind `legacy.`.
MARKS: Final = "learning_adjuster"

_ALL: Final = 10_000


def stores(root: Path) -> list[Store]:
    """The store, where the project has one."""
    return [_store(found) for found in find(root, "data/learning_adjuster.db")]


def _store(found: Found) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return database.count("parameter_configs") + 2 * database.count("performance_metrics")

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            for one in database.rows("parameter_configs", *_PARAMETER):
                yield row("parameter_configs", one["name"], partial(_parameter, one))
            yield from _measurements(database, found.name)

    return Store(found.name, found.path, total, rows)


def _parameter(one: dict[str, Any]) -> Becomes:
    metadata = packed_or_text(one["metadata"], "metadata")
    # It was written as the word or as the name of the member: learning_rate, ParameterType.LEARNING_RATE.
    word = text(one["type"]).rpartition(".")[2].strip().lower()
    kind = next((known for known in get_args(ParameterKind) if known == word), None)
    if kind is None:
        metadata = {**metadata, "type": text(one["type"])}
    body = ParameterRegister(
        name=text(one["name"]),
        kind=kind or "custom",
        **{name: _number(one, name) for name in ("min_value", "max_value", "current_value", "step_size")},
        description=text(one["description"]),
        metadata=metadata,
    )
    if not body.min_value <= body.current_value <= body.max_value:
        return f"its value {body.current_value:g} is not within {body.min_value:g} and {body.max_value:g}"
    return Asked(
        "learning.parameter.register",
        body,
        check=partial(_differs, body),
        is_there=lambda client: _known(body.name, client) is not None,
    )


def _differs(body: ParameterRegister, client: SyncClient) -> str | None:
    found = _known(body.name, client)
    if found is None:
        return "not there"
    for name in ("kind", "min_value", "max_value", "current_value", "step_size", "description", "metadata"):
        if getattr(found, name) != getattr(body, name):
            return f"{name} is {getattr(found, name)!r}, in the old store {getattr(body, name)!r}"
    return None


def _known(name: str, client: SyncClient) -> Parameter | None:
    found: Parameters = client.request("learning.parameter.list", ParameterList(limit=_ALL))
    return next((one for one in found.parameters if one.name == name), None)


def _number(one: dict[str, Any], name: str) -> float:
    """Raises ValueError for what is no finite number."""
    value = float(one[name] if one[name] is not None else math.nan)
    if not math.isfinite(value):
        raise ValueError(f"{name} is {one[name]!r}, which is no finite number")
    return value


def _measurements(database: Database, store: str) -> Iterator[Row]:
    # Oldest first: what a correlation looks at are the newest.
    for one in database.rows("performance_metrics", *_MEASURED):
        measured = row("performance_metrics", one["id"], partial(_measured, one, store))
        yield measured
        if not isinstance(measured.becomes, str):
            make = partial(_mark, one, store, database.written_at)
            yield row("performance_metrics (marks)", one["id"], make)


def _measured(one: dict[str, Any], store: str) -> Becomes:
    parameters = packed(one["parameters"], dict)
    numbers = {str(name): float(value) for name, value in parameters.items() if is_number(value)}
    body = PerformanceRecord(metric=text(one["metric_name"]), value=_number(one, "value"), parameters=numbers)
    try:
        # Here and not only when it is sent: what is refused must leave no mark.
        msgspec.convert(msgspec.to_builtins(body), PerformanceRecord)
    except msgspec.ValidationError as error:
        return str(error)

    def check(client: SyncClient) -> str | None:
        try:
            entry = client.request("memory.kv.get", KvGet(key=_key(one, store), ns=f"legacy.{MARKS}"))
        except NotFound:
            return "not taken in"
        same = {name: entry.value.get(name) for name in ("metric", "value", "parameters")}
        return None if same == _told(body) else f"{same} was taken in, in the old store it is {_told(body)}"

    return Asked("learning.parameter.record", body, check=check, is_once=True)


def _mark(one: dict[str, Any], store: str, written_at: float) -> Becomes:
    measured = _measured(one, store)
    assert isinstance(measured, Asked) and isinstance(measured.body, PerformanceRecord)
    at = default_epoch(one["timestamp"])
    value = {**_told(measured.body), "measured_at": iso(written_at if at is None else at)}
    return kept(MARKS, _key(one, store), value, at, written_at)


def _told(body: PerformanceRecord) -> dict[str, Any]:
    return {"metric": body.metric, "value": body.value, "parameters": body.parameters}


def _key(one: dict[str, Any], store: str) -> str:
    return f"{store}:{int(one['id']):012d}"
