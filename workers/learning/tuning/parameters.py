"""Numbers of the user's own system that may be tuned: registered, changed within their range, and correlated with results."""

from __future__ import annotations

import math
import sqlite3
import time
from typing import Any, Final

import msgspec

from bus.records import Records
from schemas.bodies.learning_tuning import (
    Adjustment,
    Adjustments,
    Parameter,
    ParameterAdjust,
    ParameterList,
    ParameterOptimize,
    ParameterRegister,
    Parameters,
    PerformanceRecord,
    PerformanceRecorded,
)
from schemas.errors import BadRequest, NotFound
from schemas.values import require_json
from workers.learning.tuning.finite import require_finite
from workers.learning.tuning.trends import correlation

# Records of a metric that are looked at, and how many of each are kept.
_WINDOW: Final = 100
_KEPT: Final = 10_000

# Weaker correlations say nothing.
_LEAST_CORRELATION: Final = 0.1

_COLUMNS: Final = "name, kind, min_value, max_value, current_value, step_size, description, metadata, changed_at"


class ParameterStore:
    """The parameters and measurements kept in `records`."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def register(self, request: ParameterRegister) -> Parameter:
        """Keep a parameter; a known name is registered anew.

        Raises BadRequest for a range that holds nothing, and for metadata that JSON cannot hold.
        """
        require_json(request.metadata, "metadata")
        for field in ("min_value", "max_value", "current_value", "step_size"):
            if not math.isfinite(getattr(request, field)):
                raise BadRequest(
                    f"field '{field}' is {getattr(request, field)}, it must be a finite number", field=field
                )
        if request.min_value > request.max_value:
            raise BadRequest(
                f"field 'min_value' is {request.min_value:g}, it must not be above max_value, {request.max_value:g}",
                field="min_value",
            )
        _check_range("current_value", request.current_value, request.min_value, request.max_value)
        parameter = Parameter(**msgspec.structs.asdict(request), changed_at=time.time())

        def write(connection: sqlite3.Connection) -> Parameter:
            connection.execute(
                f"INSERT OR REPLACE INTO parameters ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    parameter.name,
                    parameter.kind,
                    parameter.min_value,
                    parameter.max_value,
                    parameter.current_value,
                    parameter.step_size,
                    parameter.description,
                    msgspec.json.encode(parameter.metadata),
                    parameter.changed_at,
                ),
            )
            return parameter

        return await self._records.run(write)

    async def adjust(self, request: ParameterAdjust) -> Parameter:
        """Change a parameter. Raises NotFound, and BadRequest outside its range."""
        now = time.time()

        def write(connection: sqlite3.Connection) -> Parameter:
            parameter = _find(connection, request.name)
            _check_range("value", request.value, parameter.min_value, parameter.max_value)
            connection.execute(
                "UPDATE parameters SET current_value = ?, changed_at = ? WHERE name = ?",
                (request.value, now, request.name),
            )
            connection.execute(
                "INSERT INTO parameter_changes (name, at, value, reason) VALUES (?, ?, ?, ?)",
                (request.name, now, request.value, request.reason),
            )
            return msgspec.structs.replace(parameter, current_value=request.value, changed_at=now)

        return await self._records.run(write)

    async def list(self, request: ParameterList) -> Parameters:
        """Parameters by name."""

        def read(connection: sqlite3.Connection) -> Parameters:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM parameters ORDER BY name LIMIT ?", (request.limit,))
            return Parameters(parameters=[_parameter(row) for row in rows])

        return await self._records.run(read)

    async def record(self, request: PerformanceRecord) -> PerformanceRecorded:
        """Keep a measurement. Raises BadRequest for one that is no finite number."""
        require_finite({request.metric: request.value}, "value")
        require_finite(request.parameters, "parameters")

        def write(connection: sqlite3.Connection) -> PerformanceRecorded:
            connection.execute(
                "INSERT INTO performance (metric, at, value, parameters) VALUES (?, ?, ?, ?)",
                (request.metric, time.time(), request.value, msgspec.json.encode(request.parameters)),
            )
            connection.execute(
                "DELETE FROM performance WHERE metric = ? AND number <= (SELECT number FROM performance WHERE metric = ?"
                " ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (request.metric, request.metric, _KEPT),
            )
            (count,) = connection.execute(
                "SELECT count(*) FROM performance WHERE metric = ?", (request.metric,)
            ).fetchone()
            return PerformanceRecorded(metric=request.metric, records=count)

        return await self._records.run(write)

    async def optimize(self, request: ParameterOptimize) -> Adjustments:
        """One step for each parameter that goes along with the metric. Raises NotFound without any record of it."""

        def read(connection: sqlite3.Connection) -> Adjustments:
            rows = connection.execute(
                "SELECT value, parameters FROM performance WHERE metric = ? ORDER BY number DESC LIMIT ?",
                (request.metric, _WINDOW),
            ).fetchall()
            if not rows:
                raise NotFound(f"no performance of {request.metric!r} was recorded", field="metric")
            records = [(value, msgspec.json.decode(parameters)) for value, parameters in rows]
            known = connection.execute(f"SELECT {_COLUMNS} FROM parameters ORDER BY name").fetchall()
            found = ((row[0], _adjustment(_parameter(row), records)) for row in known)
            return Adjustments(
                metric=request.metric,
                records=len(records),
                adjustments={name: adjustment for name, adjustment in found if adjustment is not None},
            )

        return await self._records.run(read)


def _adjustment(parameter: Parameter, records: list[tuple[float, dict[str, float]]]) -> Adjustment | None:
    """One step up or down, by the sign of the correlation of the parameter's values with the metric's."""
    both = [(values[parameter.name], value) for value, values in records if parameter.name in values]
    found = correlation([first for first, _ in both], [second for _, second in both])
    if found is None or abs(found) < _LEAST_CORRELATION:
        return None
    moved = parameter.current_value + math.copysign(parameter.step_size, found)
    return Adjustment(
        current_value=parameter.current_value,
        suggested_value=min(max(moved, parameter.min_value), parameter.max_value),
        correlation=found,
        confidence=abs(found),
    )


def _check_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise BadRequest(f"field '{field}' is {value:g}, allowed are {low:g} to {high:g}", field=field)


def _find(connection: sqlite3.Connection, name: str) -> Parameter:
    row = connection.execute(f"SELECT {_COLUMNS} FROM parameters WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise NotFound(f"no parameter {name!r} is registered", field="name")
    return _parameter(row)


def _parameter(row: tuple[object, ...]) -> Parameter:
    values: dict[str, Any] = dict(zip(Parameter.__struct_fields__, row, strict=True))
    values["metadata"] = msgspec.json.decode(values["metadata"])
    return Parameter(**values)
