"""`training_cycles.db` and `learning_opportunities.db`: cycles as their agent keeps them now, opportunities as ours."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from bus.sync import SyncClient
from migrate_parts.figures import number, text, unit
from migrate_parts.moving import Asked, Becomes, Row, Store, row
from migrate_parts.reasoning_files import kept
from migrate_parts.stores import Database, Found, find, opened, packed
from migrate_parts.times import epoch
from migrate_parts.trainings import STOPPED
from schemas.bodies.learning import Opportunity, OpportunityAdd, OpportunityClose, OpportunityGet
from schemas.errors import NotFound
from workers.gateway.legacy.agents.asked import iso_utc
from workers.gateway.legacy.agents.learning_orchestration import cycle_key

_CYCLE: Final = (
    "id",
    "model_name",
    "learning_opportunities",
    "status",
    "start_time",
    "end_time",
    "resource_allocation",
    "hyperparameters",
    "training_logs",
)
_ALLOCATED: Final = ("id", "cycle_id", "resource_type", "amount")
_OPPORTUNITY: Final = (
    "id",
    "source_agent",
    "opportunity_type",
    "priority_score",
    "status",
    "created_at",
    "interaction_data",
)

_TITLE_MAX: Final = 1_024
_REASON: Final = "marked as processed before the migration"


def stores(root: Path) -> list[Store]:
    """The stores that the project has. Opportunities first: cycles name them."""
    return [
        *(_opportunity_store(found) for found in find(root, "data/learning_opportunities.db")),
        *(_cycle_store(found) for found in find(root, "data/training_cycles.db")),
    ]


# LearningOrchestrationService


def _cycle_store(found: Found) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return database.count("training_cycles")

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            allocated: dict[str, dict[str, float]] = {}
            for one in database.rows("resource_allocation", *_ALLOCATED):
                amounts = allocated.setdefault(text(one["cycle_id"]), {})
                amounts[text(one["resource_type"])] = number(one["amount"], 0.0)
            known = set()
            for one in database.rows("training_cycles", *_CYCLE):
                known.add(text(one["id"]))
                yield row("training_cycles", one["id"], partial(_cycle, one, allocated, database.written_at))
            for one in database.rows("resource_allocation", *_ALLOCATED):
                if text(one["cycle_id"]) not in known:
                    why = f"the cycle {text(one['cycle_id'])[:60]!r} does not exist"
                    yield Row("resource_allocation", str(one["id"]), why)

    return Store(found.name, found.path, total, rows)


def _cycle(one: dict[str, Any], allocated: dict[str, dict[str, float]], written_at: float) -> Becomes:
    cycle_id = text(one["id"])
    if not cycle_id:
        return "has no id"
    # These are UTC where they name no zone: the service took the moment from the UTC clock.
    started_at, ended_at = (epoch(one[name], is_utc=True) for name in ("start_time", "end_time"))
    start_time = iso_utc(written_at if started_at is None else started_at)
    status, logs = text(one["status"]) or "scheduled", text(one["training_logs"])
    if status in ("running", "in_progress", "training"):
        status, logs = "failed", "\n".join(part for part in (logs, STOPPED) if part)
    record = {
        "cycle_id": cycle_id,
        "model_name": text(one["model_name"]),
        "learning_opportunities": [str(each) for each in packed(one["learning_opportunities"], list)],
        "status": status,
        "start_time": start_time,
        "end_time": None if ended_at is None else iso_utc(ended_at),
        "resource_allocation": {**allocated.get(cycle_id, {}), **packed(one["resource_allocation"], dict)},
        "hyperparameters": packed(one["hyperparameters"], dict),
        "training_logs": logs,
    }
    return kept("training_cycles", cycle_key(start_time, cycle_id), record, started_at, written_at)


# LearningOpportunityDetector


def _opportunity_store(found: Found) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return database.count("learning_opportunities")

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            # Those that are dealt with go first, and are closed: what is open and resembles one stays open.
            for is_processed in (True, False):
                yield from _opportunities(database, is_processed)

    return Store(found.name, found.path, total, rows)


def _opportunities(database: Database, is_processed: bool) -> Iterator[Row]:
    for one in database.rows("learning_opportunities", *_OPPORTUNITY):
        if (text(one["status"]).strip().lower() == "processed") != is_processed:
            continue
        yield row("learning_opportunities", one["id"], partial(_opportunity, one, is_processed))
        if is_processed:
            yield row("learning_opportunities (processed)", one["id"], partial(_closed, one))


def _opportunity(one: dict[str, Any], is_processed: bool) -> Becomes:
    told = packed(one["interaction_data"], dict)
    data = told.get("data")
    said = text((data if isinstance(data, dict) else told).get("user_input")).strip()
    category, opportunity_id = text(one["opportunity_type"])[:128], text(one["id"])
    body = OpportunityAdd(
        # One that is dealt with must not join what is open: its title is its own.
        title=(said[:_TITLE_MAX] if said and not is_processed else "")
        or f"{category or 'opportunity'} {opportunity_id}"[:_TITLE_MAX],
        category=category,
        source=text(one["source_agent"])[:256],
        score=None if one["priority_score"] is None else unit(one["priority_score"], 0.0),
        evidence=[opportunity_id],
        opportunity_id=opportunity_id,
    )
    return Asked("learning.opportunity.add", body, check=partial(_differs, body))


def _closed(one: dict[str, Any]) -> Becomes:
    opportunity_id = text(one["id"])

    def check(client: SyncClient) -> str | None:
        found = _found(opportunity_id, client)
        if found is None:
            return "not there"
        return None if found.state == "learned" else f"its state is {found.state}, in the old store it is processed"

    body = OpportunityClose(opportunity_id=opportunity_id, reason=_REASON)
    return Asked("learning.opportunity.close", body, check=check, is_once=True)


def _differs(body: OpportunityAdd, client: SyncClient) -> str | None:
    """What differs; of one that joined another only that it is found under its id."""
    found = _found(str(body.opportunity_id), client)
    if found is None:
        return "not there"
    if found.opportunity_id != body.opportunity_id:
        return None
    for name in ("category", "source", "score"):
        if getattr(found, name) != getattr(body, name):
            return f"{name} is {getattr(found, name)!r}, in the old store {getattr(body, name)!r}"
    return None


def _found(opportunity_id: str, client: SyncClient) -> Opportunity | None:
    try:
        found: Opportunity = client.request("learning.opportunity.get", OpportunityGet(opportunity_id=opportunity_id))
    except NotFound:
        return None
    return found
