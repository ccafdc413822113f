"""`self_training.db`, `local_fine_tuner.db` and the table `learning_jobs`: cycles and jobs as their agents keep them now.

What ran when the old programs stopped runs no more: it becomes `paused` where it can be started again, else `failed`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from migrate_parts.figures import number, text, unit
from migrate_parts.moving import Becomes, Row, Store, row
from migrate_parts.reasoning_files import kept
from migrate_parts.stores import Database, Found, find, opened, packed
from migrate_parts.times import default_epoch
from workers.gateway.legacy.agents.asked import iso

_CYCLE: Final = (
    "id",
    "agent_id",
    "config",
    "status",
    "priority",
    "resources",
    "start_time",
    "end_time",
    "progress",
    "error",
    "created_at",
)
_JOB: Final = ("id", "model_id", "config", "status", "artifacts", "start_time", "end_time", "error", "created_at")
_LEARNING_JOB: Final = (
    "job_id",
    "job_type",
    "model_name",
    "dataset_path",
    "parameters",
    "status",
    "created_at",
    "started_at",
    "completed_at",
    "progress",
    "error_message",
    "result_path",
)

_CYCLE_STATES: Final = frozenset({"pending", "completed", "failed", "paused"})
_JOB_STATES: Final = frozenset({"pending", "completed", "failed", "cancelled"})

# Words of the coordinator that these agents do not have.
_SAME_STATES: Final = {"queued": "pending", "canceled": "cancelled", "done": "completed", "error": "failed"}

# What an agent keeps priorities in.
_PRIORITY_MAX: Final = 2**31

STOPPED: Final = "was running when the old service stopped"

# Where databases lie that no document names.
_ANYWHERE: Final = ("", "data", "data/data", "main_pc_code", "main_pc_code/data", "pc2_code", "pc2_code/data")


def stores(root: Path) -> list[Store]:
    """The stores that the project has."""
    return [
        *(_store(found, _cycles, "training_cycles") for found in find(root, "data/self_training.db")),
        *(_store(found, _jobs, "tuning_jobs") for found in find(root, "data/local_fine_tuner.db")),
        *(_store(found, _learning_jobs, "learning_jobs") for found in _coordinators(root)),
    ]


def _store(found: Found, read: Callable[[Database], Iterator[Row]], table: str) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return database.count(table)

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            yield from read(database)

    return Store(found.name, found.path, total, rows)


# SelfTrainingOrchestrator


def _cycles(database: Database) -> Iterator[Row]:
    metrics = _newest(database, "cycle_metrics", "cycle_id", "metric_name", "value")
    known = set()
    for one in database.rows("training_cycles", *_CYCLE):
        known.add(text(one["id"]))
        make = partial(_cycle, one, metrics.get(text(one["id"]), {}), database.written_at)
        yield row("training_cycles", one["id"], make)
    yield from _orphans(database, "cycle_metrics", "cycle_id", known, "cycle")


def _cycle(one: dict[str, Any], metrics: dict[str, float], written_at: float) -> Becomes:
    cycle_id = text(one["id"])
    if not cycle_id:
        return "has no id"
    status, note = _settled(one["status"], _CYCLE_STATES, "paused")
    created_at = default_epoch(one["created_at"])
    record = {
        "id": cycle_id,
        "agent_id": text(one["agent_id"]),
        "config": packed(one["config"], dict),
        "priority": int(min(max(number(one["priority"], 1), -_PRIORITY_MAX), _PRIORITY_MAX)),
        "resources": packed(one["resources"], dict),
        "status": status,
        "progress": 1.0 if status == "completed" else unit(one["progress"], 0.0),
        "start_time": _moment(one["start_time"]),
        "end_time": _moment(one["end_time"]),
        "error": text(one["error"]) or note,
        "metrics": metrics,
        "created_at": iso(written_at if created_at is None else created_at),
    }
    return kept("self_training", cycle_id, record, created_at, written_at)


# LocalFineTunerAgent


def _jobs(database: Database) -> Iterator[Row]:
    metrics = _newest(database, "tuning_metrics", "job_id", "metric_name", "value")
    paths = _newest(database, "artifacts", "job_id", "type", "path")
    known = set()
    for one in database.rows("tuning_jobs", *_JOB):
        job_id = text(one["id"])
        known.add(job_id)
        make = partial(_job, one, metrics.get(job_id, {}), paths.get(job_id, {}), database.written_at)
        yield row("tuning_jobs", one["id"], make)
    yield from _orphans(database, "tuning_metrics", "job_id", known, "job")
    yield from _orphans(database, "artifacts", "job_id", known, "job")


def _job(one: dict[str, Any], metrics: dict[str, float], paths: dict[str, str], written_at: float) -> Becomes:
    job_id = text(one["id"])
    if not job_id:
        return "has no id"
    status, note = _settled(one["status"], _JOB_STATES, "failed")
    created_at = default_epoch(one["created_at"])
    record = {
        "id": job_id,
        "model_id": text(one["model_id"]),
        "config": packed(one["config"], dict),
        "status": status,
        "start_time": _moment(one["start_time"]),
        "end_time": _moment(one["end_time"]),
        "error": text(one["error"]) or note,
        "metrics": metrics,
        "artifacts": {**_artifacts(one["artifacts"]), **paths},
        "created_at": iso(written_at if created_at is None else created_at),
    }
    return kept("fine_tuner", job_id, record, created_at, written_at)


def _artifacts(column: Any) -> dict[str, str]:
    """Path by type. The column was written as a list of records, too; those stand in a table of their own."""
    value = json.loads(column) if isinstance(column, str) and column else {}
    return {str(kind): path for kind, path in value.items() if isinstance(path, str)} if isinstance(value, dict) else {}


# ModelOpsCoordinator: what its jobs were is what the fine tuner's are.


def _coordinators(root: Path) -> list[Found]:
    """Databases with the table; no document names the file."""
    if root.is_file():
        return [Found(root.name, root)] if _has_table(root, "learning_jobs") else []
    found: dict[Path, Found] = {}
    for folder in _ANYWHERE:
        for path in sorted((root / folder).glob("*.db")):
            if path.is_file() and path.resolve() not in found and _has_table(path, "learning_jobs"):
                found[path.resolve()] = Found(str(path.relative_to(root)), path)
    return list(found.values())


def _has_table(path: Path, table: str) -> bool:
    """False for what is no database: whoever reads that store tells why."""
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    except sqlite3.Error:
        return False
    try:
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return connection.execute(query, (table,)).fetchone() is not None
    except sqlite3.Error:
        return False
    finally:
        connection.close()


def _learning_jobs(database: Database) -> Iterator[Row]:
    for one in database.rows("learning_jobs", *_LEARNING_JOB):
        yield row("learning_jobs", one["job_id"], partial(_learning_job, one, database.written_at))


def _learning_job(one: dict[str, Any], written_at: float) -> Becomes:
    job_id = text(one["job_id"])
    if not job_id:
        return "has no id"
    status, note = _settled(one["status"], _JOB_STATES, "failed")
    created_at = default_epoch(one["created_at"])
    config = packed(one["parameters"], dict)
    # Under names that nothing trains by: a path is no dataset of ours.
    beside = {"job_type": text(one["job_type"]), "dataset_path": text(one["dataset_path"])}
    result = text(one["result_path"])
    record = {
        "id": job_id,
        "model_id": text(one["model_name"]),
        "config": {**config, **{name: value for name, value in beside.items() if value}},
        "status": status,
        "start_time": _moment(one["started_at"]),
        "end_time": _moment(one["completed_at"]),
        "error": text(one["error_message"]) or note,
        "metrics": {"progress": number(one["progress"], 0.0)},
        "artifacts": {"model": result} if result else {},
        "created_at": iso(written_at if created_at is None else created_at),
    }
    return kept("fine_tuner", job_id, record, created_at, written_at)


# What they share


def _settled(value: Any, states: frozenset[str], stopped: str) -> tuple[str, str | None]:
    """The status of a row, and a note where it is another than the old one."""
    word = text(value).strip().lower() or "pending"
    word = _SAME_STATES.get(word, word)
    if word in states:
        return word, None
    if word in ("running", "in_progress", "started"):
        return stopped, STOPPED
    return "failed", f"had the status {word[:60]!r}, which is none"


def _moment(value: Any) -> str | None:
    """Local time in ISO form, as these agents tell it."""
    return iso(default_epoch(value))


def _newest(database: Database, table: str, owner: str, name: str, value: str) -> dict[str, dict[str, Any]]:
    """The last value of each name, by owner."""
    found: dict[str, dict[str, Any]] = {}
    for one in database.rows(table, owner, name, value):
        if one[value] is not None and one[name] is not None:
            is_number = isinstance(one[value], int | float)
            found.setdefault(text(one[owner]), {})[text(one[name])] = one[value] if is_number else text(one[value])
    return found


def _orphans(database: Database, table: str, owner: str, known: set[str], what: str) -> Iterator[Row]:
    """Rows of what is not there: foreign keys were never enforced."""
    for one in database.rows(table, "id", owner):
        if text(one[owner]) not in known:
            yield Row(table, str(one["id"]), f"the {what} {text(one[owner])[:60]!r} does not exist")
