"""`data/error_system.db` of the ErrorBus: old errors and the state of agents, as error_bus.py reads them back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from migrate_parts.figures import text, truth, whole
from migrate_parts.moving import Becomes, Row, Store, row
from migrate_parts.reasoning_files import kept
from migrate_parts.stores import Database, Found, find, opened, packed_or_text
from migrate_parts.times import epoch
from schemas.bodies.upkeep import NewRecord
from workers.gateway.legacy.agents.error_bus import OLD_AGENTS, OLD_ERRORS
from workers.gateway.legacy.kept import log_key

_ERROR: Final = ("id", "timestamp", "agent", "error_type", "message", "severity", "context")
_AGENT: Final = ("id", "agent", "status", "last_heartbeat", "error_count")
_ACTION: Final = ("id", "timestamp", "agent", "action", "success", "details")
_TABLES: Final = ("errors", "agent_health", "recovery_actions")

_ACTIONS: Final = "recovery_actions"


def stores(root: Path) -> list[Store]:
    """The store, where the project has one."""
    return [_store(found) for found in find(root, "data/error_system.db", "error_system.db")]


def _store(found: Found) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return sum(database.count(table) for table in _TABLES)

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            for one in database.rows("errors", *_ERROR):
                yield row("errors", one["id"], partial(_error, one, database.written_at))
            yield from _agents(database)
            for one in database.rows("recovery_actions", *_ACTION):
                yield row("recovery_actions", one["id"], partial(_action, one, database.written_at))

    return Store(found.name, found.path, total, rows)


def _error(one: dict[str, Any], written_at: float) -> Becomes:
    if not any(one[name] for name in ("agent", "error_type", "message")):
        return "says neither agent nor error nor message"
    at = epoch(one["timestamp"]) or written_at
    error = {
        "id": whole(one["id"]),
        "timestamp": at,
        "agent": text(one["agent"]) or "unknown",
        "error_type": text(one["error_type"]) or "Error",
        "message": text(one["message"]) or "no message",
        "severity": text(one["severity"]) or "error",
        "context": packed_or_text(one["context"], "context"),
    }
    return _logged(OLD_ERRORS, at, one["id"], error)


def _agents(database: Database) -> Iterator[Row]:
    """The newest state of each agent."""
    newest = {one["agent"]: one["id"] for one in database.rows("agent_health", "id", "agent")}
    for one in database.rows("agent_health", *_AGENT):

        def becomes(one: dict[str, Any] = one) -> Becomes:
            name = text(one["agent"])
            if newest[one["agent"]] != one["id"]:
                return f"an older state of {name}"
            seen_at = epoch(one["last_heartbeat"])
            state = {
                "agent": name,
                "status": text(one["status"]) or "unknown",
                "last_heartbeat": seen_at or 0.0,
                "error_count": whole(one["error_count"]),
            }
            return kept(OLD_AGENTS, name, state, seen_at, database.written_at)

        yield row("agent_health", one["id"], becomes)


def _action(one: dict[str, Any], written_at: float) -> Becomes:
    at = epoch(one["timestamp"]) or written_at
    return _logged(_ACTIONS, at, one["id"], {**one, "timestamp": at, "success": truth(one["success"])})


def _logged(what: str, at: float, id: Any, value: Any) -> NewRecord:
    return kept(what, log_key(at, id=f"{whole(id):012d}"), value, at, at)
