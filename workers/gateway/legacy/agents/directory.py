"""Who is where: the agents this edge answers for, and those that registered themselves, for both discovery agents."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Final

from workers.gateway.legacy.agent import Fields, Refused
from workers.gateway.legacy.house import House

# Where registrations are kept.
REGISTERED: Final = "directory"

# Names that clients look up, though the agent that answers for them has another.
ALIASES: Final = {"ErrorBusService": "ErrorBus", "ModelOpsCoordinator": "ModelManagerSuite"}

# What a registration may hold, with what stands for a field that is not given.
FIELDS: Final[dict[str, Any]] = {
    "agent_type": "agent",
    "host": "",
    "port": 0,
    "health_check_port": 0,
    "capabilities": [],
    "dependencies": [],
    "metadata": {},
}


def check_reachable(fields: Fields) -> None:
    """Raise Refused where a registration does not say who it is of and where to reach them."""
    for name in ("agent_id", "host", "port"):
        if fields.get(name) in (None, ""):
            raise Refused(f"Missing required field: {name}")


async def register(fields: Fields, house: House, *, status: str = "", location: str = "") -> dict[str, Any]:
    """Keep a registration, whole or partial; returns the record. Raises Refused."""
    name = fields.text("agent_id") or fields.text("name") or fields.text("agent_name")
    if not name:
        raise Refused("Missing required field: agent_id")
    known = await house.kept(REGISTERED).get(name) or {}
    given = {key: fields[key] for key in FIELDS if fields.get(key) is not None}
    if fields.get("ip") and "host" not in given:
        given["host"] = fields.text("ip")
    if "port" in given:
        given["port"] = fields.whole("port", 0, high=65_535)
    record = {
        **FIELDS,
        **known,
        **given,
        "name": name,
        "status": status or known.get("status") or "HEALTHY",
        "location": location or known.get("location") or "",
        "last_registered": time.time(),
    }
    await house.kept(REGISTERED).put(name, record)
    return record


async def find(name: str, house: House) -> dict[str, Any] | None:
    """The record of an agent: one that is answered here goes before a registration of the same name."""
    own = _own(name, house)
    if own is not None:
        return own
    record: dict[str, Any] | None = await house.kept(REGISTERED).get(name)
    return record


async def everybody(house: House) -> dict[str, dict[str, Any]]:
    """All records by name, with their status."""
    found = {name: record async for name, record in house.kept(REGISTERED).each()}
    services = await house.services()
    for name in (*house.endpoints, *ALIASES):
        own = _own(name, house)
        if own is not None:
            own["status"] = "ok" if services.get(house.agents[ALIASES.get(name, name)].service) else "degraded"
            found[name] = own
    return found


def iso(at: float) -> str:
    """Local ISO text of epoch seconds."""
    return datetime.fromtimestamp(at).isoformat()


def _own(name: str, house: House) -> dict[str, Any] | None:
    answering = ALIASES.get(name, name)
    endpoint = house.endpoint(answering)
    if endpoint is None:
        return None
    return {
        **FIELDS,
        "name": name,
        "agent_type": house.agents[answering].kind,
        "host": endpoint.host,
        "port": endpoint.port,
        "health_check_port": endpoint.health_port,
        "capabilities": sorted(house.agents[answering].actions),
        "metadata": {"answered_by": "olympus"},
        "status": "ok",
        "location": "",
        "last_registered": time.time(),
    }
