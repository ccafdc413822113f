"""LearningOrchestrationService (7210): a training cycle for each opportunity that somebody tells of.

An opportunity goes to `learning.opportunity.add`, and the learning service trains it by its own rules; the cycle is the
old view on that.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final

from schemas.bodies.learning import Opportunity, OpportunityAdd, OpportunityGet, OpportunityState
from schemas.errors import BusError, NotFound
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply
from workers.gateway.legacy.agents import trainings
from workers.gateway.legacy.agents.asked import is_number, iso, iso_utc
from workers.gateway.legacy.house import House
from workers.gateway.legacy.kept import log_key

NAME: Final = "LearningOrchestrationService"

# What a new cycle announced, whatever came of it.
_ANNOUNCED: Final[Mapping[str, Any]] = {
    "model_name": "ChitChatLLM_v2",
    "status": "scheduled",
    "resource_allocation": {"gpu_id": 0, "vram_mb": 8192},
    "hyperparameters": {"learning_rate": 0.001, "epochs": 3, "batch_size": 8},
}
_SHOWN: Final = (
    "cycle_id",
    "model_name",
    "learning_opportunities",
    "status",
    "start_time",
    "end_time",
    "resource_allocation",
    "hyperparameters",
    "training_logs",
)

# The old words for what became of an opportunity; others leave a cycle as it is.
_STATES: Final[Mapping[OpportunityState, str]] = {
    "open": "scheduled",
    "training": "running",
    "learned": "completed",
    "dismissed": "cancelled",
    "expired": "cancelled",
}
_OVER: Final = frozenset({"completed", "failed", "cancelled"})

# Cycles of an opportunity are looked up again at most this many per request.
_MOST_CYCLES: Final = 1_000


class _Stats:
    """Counts since the start, as the old service told them."""

    def __init__(self) -> None:
        self.opportunities_received = 0


async def new_opportunity(ask: Fields, house: House) -> Reply:
    """Note an opportunity, and a cycle for it."""
    house.state(NAME, _Stats).opportunities_received += 1
    opportunity_id = _uuid(ask)
    start_time = _timestamp(ask)
    category, score = ask.text("category"), ask.get("score")
    known = await _told(opportunity_id, category, score, house)
    cycle_id = str(uuid.uuid4())
    record = {
        **_ANNOUNCED,
        "cycle_id": cycle_id,
        "learning_opportunities": [opportunity_id],
        "start_time": start_time,
        "end_time": None,
        "training_logs": f"opportunity {known.opportunity_id} of {known.model}: {known.needs or known.state}",
    }
    await house.kept("training_cycles").put(cycle_key(start_time, cycle_id), record)
    return {"status": "acknowledged", "cycle_id": cycle_id}


async def typeless(ask: Fields, house: House) -> Reply:
    """What the detector sends: an opportunity without a word of what to do with it."""
    if "opportunity_id" not in ask:
        raise Refused("Unknown action: None")
    return await new_opportunity(ask, house)


async def get_training_cycles(ask: Fields, house: House) -> Reply:
    """Cycles as they stand, the newest first."""
    records = await house.kept("training_cycles").newest(ask.whole("limit", 10, high=_MOST_CYCLES))
    cycles = [await _refreshed(record, house) for record in records]
    return {"status": "success", "cycles": [{name: cycle.get(name) for name in _SHOWN} for cycle in cycles]}


async def get_stats(ask: Fields, house: House) -> Reply:
    """How many cycles there are, and how they ended."""
    return {"status": "success", "metrics": await _counts(house)}


async def health(house: House) -> dict[str, Any]:
    """The figures beside the common keys."""
    try:
        counts = await _counts(house)
        is_kept = True
    except BusError:
        counts, is_kept = {}, False
    return {
        "agent_specific_metrics": {
            "uptime_sec": time.time() - house.started_at,
            "cycles_created": 0,
            "cycles_completed": 0,
            "cycles_failed": 0,
            **counts,
            "opportunities_received": house.state(NAME, _Stats).opportunities_received,
            "training_cycle_count": counts.get("cycles_created", 0),
            "db_connected": is_kept,
            "zmq_ready": True,
        }
    }


def cycle_key(start_time: str, cycle_id: str) -> str:
    """Key of a cycle's record: the newest sort first. start_time: ISO, UTC where it names no zone."""
    return log_key(_epoch(start_time), id=cycle_id)


def _epoch(text: str) -> float:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo is not None else datetime.fromisoformat(f"{at.isoformat()}+00:00")).timestamp()


def _uuid(ask: Fields) -> str:
    text = ask.text("opportunity_id")
    if not text:
        raise Refused("Missing opportunity_id")
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise Refused(f"opportunity_id {text[:60]!r} is no UUID") from None


def _timestamp(ask: Fields) -> str:
    given = ask.get("timestamp")
    if given is None:
        return iso_utc(time.time())
    try:
        if is_number(given):
            return iso_utc(float(given))
        return datetime.fromisoformat(str(given)).isoformat()
    except (ValueError, OverflowError, OSError):
        raise Refused(f"timestamp {str(given)[:60]!r} is no time in ISO form") from None


async def _told(opportunity_id: str, category: str, score: Any, house: House) -> Opportunity:
    """The opportunity as the learning service knows it, told of now where it did not."""
    try:
        known: Opportunity = await house.ask("learning.opportunity.get", OpportunityGet(opportunity_id=opportunity_id))
    except NotFound:
        known = await house.ask(
            "learning.opportunity.add",
            OpportunityAdd(
                # Each told of without words is a thing of its own: what resembles another would join it.
                title=f"{category or 'opportunity'} {opportunity_id}"[:1_024],
                category=category[:128],
                source=NAME,
                score=min(max(float(score), 0.0), 1.0) if is_number(score) else None,
                evidence=[opportunity_id],
                opportunity_id=opportunity_id,
            ),
        )
    return known


async def _refreshed(record: dict[str, Any], house: House) -> dict[str, Any]:
    """The cycle as its opportunity and its training have it now."""
    if record["status"] in _OVER:
        return record
    try:
        body = OpportunityGet(opportunity_id=record["learning_opportunities"][0])
        known: Opportunity = await house.ask("learning.opportunity.get", body)
    except (NotFound, IndexError):
        return record
    now = {
        **record,
        "status": _STATES[known.state],
        "training_logs": f"opportunity {known.opportunity_id} of {known.model}: {known.needs or known.reason or known.state}",
    }
    info = await trainings.status_of(known.job_id, house) if known.job_id else None
    if info is not None:
        now |= {
            "model_name": info.model,
            "hyperparameters": info.config or record["hyperparameters"],
            "resource_allocation": {"device": info.device},
            "end_time": iso(info.finished_at),
            "training_logs": f"training {info.job_id}: {info.state}{': ' if info.reason else ''}{info.reason}",
        }
        if info.state in ("failed", "refused", "underpowered"):
            now["status"] = "failed"
    if now["status"] in _OVER:
        now["end_time"] = now["end_time"] or iso(time.time())
        await house.kept("training_cycles").put(cycle_key(record["start_time"], record["cycle_id"]), now)
    return now


async def _counts(house: House) -> dict[str, int]:
    statuses: list[str] = [cycle["status"] async for cycle in _each(house)]
    return {
        "cycles_created": len(statuses),
        "cycles_completed": statuses.count("completed"),
        "cycles_failed": statuses.count("failed"),
        "opportunities_received": house.state(NAME, _Stats).opportunities_received,
    }


async def _each(house: House) -> AsyncIterator[dict[str, Any]]:
    async for _, record in house.kept("training_cycles").each():
        yield record


AGENT = Agent(
    name=NAME,
    service="learning",
    kind="learning",
    ports=(7210,),
    health_ports=(8212,),
    actions={
        "new_learning_opportunity": Action(new_opportunity),
        "get_training_cycles": Action(get_training_cycles),
        "get_stats": Action(get_stats),
    },
    typeless=typeless,
    health=health,
)
