"""`model.metric.*`: measurements of agents' work that others send, kept and listed."""

from __future__ import annotations

import math
import sqlite3
import time
from typing import Final

import msgspec

from bus.records import Records
from schemas.bodies.model_trials import MetricEntry, MetricList, MetricRecord, MetricRecorded, Metrics
from schemas.errors import BadRequest, Conflict
from schemas.values import require_json

# Measurements kept: the newest to arrive. Some 200 bytes each.
_KEPT: Final = 1_000_000

_COLUMNS: Final = "id, agent, metric, value, at, details"


class Measurements:
    """The measurements of one file of records."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def record(self, request: MetricRecord, id: bytes) -> MetricRecorded:
        """Keep one; telling it twice under one id is telling it once.

        Raises Conflict for an id with another content, BadRequest for a value or an instant that is not finite.
        """
        for field in ("value", "at"):
            number = getattr(request, field)
            if number is not None and not math.isfinite(number):
                raise BadRequest(f"field {field!r} is {number}, it must be a finite number", field=field)
        require_json(request.details, "details")
        metric_id = request.metric_id or id.hex()
        row = (metric_id, request.agent, request.metric, request.value)

        def statements(connection: sqlite3.Connection) -> None:
            known = connection.execute(
                "SELECT id, agent, metric, value FROM measurements WHERE id = ?", (metric_id,)
            ).fetchone()
            if known is None:
                connection.execute(
                    f"INSERT INTO measurements ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        *row,
                        time.time() if request.at is None else request.at,
                        msgspec.json.encode(request.details).decode(),
                    ),
                )
                connection.execute(
                    "DELETE FROM measurements WHERE number <= (SELECT max(number) FROM measurements) - ?", (_KEPT,)
                )
            elif known != row:
                raise Conflict(
                    f"metric_id {metric_id} is {known[2]} = {known[3]:g} of {known[1]} already", metric_id=metric_id
                )

        await self._records.run(statements)
        return MetricRecorded(metric_id=metric_id)

    async def list(self, request: MetricList) -> Metrics:
        """What fits, the newest first."""
        wanted = {
            "agent = ?": request.agent,
            "metric = ?": request.metric,
            "at >= ?": request.since,
            "at <= ?": request.until,
        }
        given = {condition: value for condition, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""

        def statements(connection: sqlite3.Connection) -> list[MetricEntry]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM measurements {where} ORDER BY at DESC, number DESC LIMIT ?",
                (*given.values(), request.limit),
            )
            return [
                MetricEntry(
                    metric_id=id, agent=agent, metric=metric, value=value, at=at, details=msgspec.json.decode(details)
                )
                for id, agent, metric, value, at, details in rows
            ]

        return Metrics(metrics=await self._records.run(statements))
