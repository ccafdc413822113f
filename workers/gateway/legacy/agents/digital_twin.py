"""SystemDigitalTwin (7120): who is there, what this machine holds, and whether a load would fit.

Every old agent calls it at its start. Besides its actions it answers the older command dialect, which some still send.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import deque
from datetime import datetime
from typing import Any, Final

from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply, Words
from workers.gateway.legacy.agents import directory, error_bus, framings, host
from workers.gateway.legacy.house import House

NAME: Final = "SystemDigitalTwin"

# Seconds between two samples, and how many are remembered: an hour.
_SAMPLE_S: Final = 10.0
_SAMPLES: Final = 360

# Above this share of a resource, 0 to 1, a load is denied or warned of.
_RAM_LIMIT: Final = 0.9
_CPU_LIMIT: Final = 80.0

_METRICS: Final = ("cpu_usage", "vram_usage_mb", "ram_usage_mb", "network_latency_ms")


class _Twin:
    """Samples of this machine, and what other machines said of their VRAM."""

    def __init__(self) -> None:
        self.samples: deque[dict[str, Any]] = deque(maxlen=_SAMPLES)
        self.reported: dict[str, dict[str, Any]] = {}


def _twin(house: House) -> _Twin:
    return house.state(NAME, _Twin)


async def sample(house: House) -> dict[str, Any]:
    """What this machine does now."""
    total, available, _ = host.ram()
    vram = await host.vram(house)
    return {
        "cpu_usage": host.cpu_percent(),
        "vram_usage_mb": vram.used_bytes / host.MIB,
        "ram_usage_mb": (total - available) / host.MIB,
        "network_latency_ms": await host.bus_latency_ms(house),
        "timestamps": datetime.now().isoformat(),
    }


async def keep_sampling(house: House) -> None:
    """One sample every few seconds."""
    while True:
        _twin(house).samples.append(await sample(house))
        await asyncio.sleep(_SAMPLE_S)


async def ping(ask: Fields, house: House) -> Reply:
    return {"status": "ok", "message": "pong", "timestamp": datetime.now().isoformat()}


async def get_metrics(ask: Fields, house: House) -> Reply:
    return {"status": "success", "metrics": await sample(house)}


async def get_history(ask: Fields, house: House) -> Reply:
    samples = list(_twin(house).samples)
    history = {name: [one[name] for one in samples] for name in (*_METRICS, "timestamps")}
    return {"status": "success", "history": history}


async def get_all_agents(ask: Fields, house: House) -> Reply:
    found = await directory.everybody(house)
    agents = {
        name: {"location": record["location"], "status": record["status"], "last_seen": _iso(record)}
        for name, record in found.items()
    }
    return {"status": "success", "agents": agents}


async def get_registered_agents(ask: Fields, house: House) -> Reply:
    found = await directory.everybody(house)
    agents = [
        {
            "name": name,
            "status": record["status"],
            "location": record["location"],
            "last_updated": _iso(record),
            "host": record["host"],
            "port": record["port"],
            "health_check_port": record["health_check_port"],
            "agent_type": record["agent_type"],
            "capabilities": record["capabilities"],
        }
        for name, record in found.items()
    ]
    return {"status": "success", "agents": agents}


async def get_ok_agents(ask: Fields, house: House) -> Reply:
    found = await directory.everybody(house)
    names = sorted(name for name, record in found.items() if str(record["status"]).lower() == "ok")
    return {"status": "success", "count": len(names), "agents": names}


async def get_agent_info(ask: Fields, house: House) -> Reply:
    name = ask.text("agent_name")
    record = await directory.find(name, house)
    if record is None:
        raise Refused(f"Agent not found: {name}")
    return {"status": "success", "agent_info": {**record, "last_registered": _iso(record)}}


async def register_agent(ask: Fields, house: House) -> Reply:
    """Both forms that agents send, mostly in one message."""
    whole = ask.mapping("registration_data")
    name = ask.text("agent_name") or str(whole.get("agent_id") or "")
    if not name:
        raise Refused("Missing agent_name")
    if whole:
        directory.check_reachable(Fields({"agent_id": name, **whole}))
    record = await directory.register(
        Fields({"agent_id": name, **whole}), house, status=ask.text("status"), location=ask.text("location")
    )
    return {
        "status": "success",
        "message": f"Agent {name} registered",
        "agent": {"name": name, "status": record["status"], "location": record["location"]},
    }


async def simulate_load(ask: Fields, house: House) -> Reply:
    kind, value = ask.text("load_type"), ask.number("value", 0.0)
    now = await sample(house)
    reply: dict[str, Any] = {
        "status": "success",
        "timestamp": datetime.now().isoformat(),
        "current_state": now,
        "load_type": kind,
        "requested_value": value,
    }
    if kind not in ("vram", "cpu", "ram") or value <= 0:
        reason = f"load_type must be vram, cpu or ram and value above 0, not {kind!r} and {value:g}"
        return {**reply, "recommendation": "error_invalid_request", "reason": reason}
    if kind == "cpu":
        return {**reply, **_cpu_load(now["cpu_usage"], value)}
    if kind == "vram":
        memory = await host.vram(house)
        used, capacity = memory.total_bytes - memory.free_bytes, memory.total_bytes
        share = 1.0
    else:
        total, available, _ = host.ram()
        used, capacity, share = total - available, total, _RAM_LIMIT
    return {**reply, **_memory_load(kind, used / host.MIB, capacity / host.MIB, value, share)}


def _cpu_load(now: float, value: float) -> dict[str, Any]:
    projected = now + value
    fits = projected <= _CPU_LIMIT
    return {
        "recommendation": "proceed" if fits else "caution_high_cpu",
        "projected_cpu_usage": projected,
        "cpu_capacity": 100.0,
        "reason": f"the CPU would be at {projected:.0f} %, {'within' if fits else 'above'} {_CPU_LIMIT:.0f} %",
    }


def _memory_load(kind: str, used_mb: float, capacity_mb: float, value_mb: float, share: float) -> dict[str, Any]:
    projected = used_mb + value_mb
    fits = projected <= capacity_mb * share
    return {
        "recommendation": "proceed" if fits else "deny_insufficient_resources",
        f"projected_{kind}_mb": projected,
        f"{kind}_capacity_mb": capacity_mb,
        "reason": f"{projected:.0f} MB of {capacity_mb * share:.0f} MB would be used",
    }


async def get_agent_endpoint(ask: Fields, house: House) -> Reply:
    name = ask.text("agent_name")
    record = await directory.find(name, house)
    if record is None:
        raise Refused(f"Agent '{name}' not found")
    return {
        "status": "success",
        **{key: record[key] for key in ("host", "port", "health_check_port", "agent_type", "capabilities", "metadata")},
        "last_registered": _iso(record),
    }


async def publish_event(ask: Fields, house: House) -> Reply:
    event = ask.mapping("event")
    for name in ("event_type", "source_agent"):
        if not event.get(name):
            raise Refused(f"Missing required field: event.{name}")
    event_id = str(event.get("event_id") or uuid.uuid4())
    token = re.sub(r"[^a-z0-9_-]+", "-", str(event["event_type"]).lower())[:64].strip("-") or "event"
    await house.client.publish(f"legacy.event.{token}", {**event, "event_id": event_id})
    return {"status": "success", "message": f"Event {event_id} published", "event_id": event_id}


async def report_error(ask: Fields, house: House) -> Reply:
    error = ask.mapping("error") or ask
    if not any(error.get(name) for name in ("message", "reason", "error_type")):
        raise Refused("Missing required field: error.message")
    await error_bus.report_error(framings.from_fields(error), house)
    error_id = str(error.get("error_id") or uuid.uuid4())
    return {"status": "success", "message": f"Error {error_id} reported", "error_id": error_id}


async def update_vram_metrics(ask: Fields, house: House) -> Reply:
    payload = ask.mapping("payload")
    name = str(payload.get("agent_name") or "")
    if not name:
        raise Refused("Missing required field: payload.agent_name")
    _twin(house).reported[name] = {**payload, "received_at": time.time()}
    return {"status": "success", "message": f"VRAM metrics of {name} updated"}


async def discover(ask: Fields, house: House) -> Reply:
    name = str(ask.mapping("payload").get("name") or "")
    record = await directory.find(name, house) if name else None
    if record is None:
        return {"status": "NOT_FOUND", "message": f"Agent '{name}' not found", "error": f"Agent '{name}' not found"}
    payload = {
        "name": name,
        "ip": record["host"],
        "port": record["port"],
        "health_check_port": record["health_check_port"],
        "protocol": "tcp",
        "capabilities": record["capabilities"],
        "metadata": record["metadata"],
    }
    return {"status": "SUCCESS", "payload": payload}


async def register_command(ask: Fields, house: House) -> Reply:
    payload = Fields(ask.mapping("payload"))
    if not payload.get("name"):
        raise Refused("Missing required field: payload.name", status="ERROR")
    await directory.register(payload, house, location=payload.text("location"))
    return {"status": "SUCCESS"}


async def report_vram(ask: Fields, house: House) -> Reply:
    await update_vram_metrics(ask, house)
    return {"status": "SUCCESS"}


async def metrics_command(ask: Fields, house: House) -> Reply:
    memory = await host.vram(house)
    total, used = memory.total_bytes / host.MIB, memory.used_bytes / host.MIB
    payload = {
        "mainpc_vram_total_mb": total,
        "mainpc_vram_used_mb": used,
        "mainpc_vram_free_mb": memory.free_bytes / host.MIB,
        # PC2 has a light CPU and no device of its own.
        "pc2_vram_total_mb": 0.0,
        "pc2_vram_used_mb": 0.0,
        "pc2_vram_free_mb": 0.0,
        "cpu_usage": host.cpu_percent(),
        "vram_usage": used,
    }
    return {"status": "SUCCESS", "payload": payload}


async def all_status(ask: Fields, house: House) -> Reply:
    found = await directory.everybody(house)
    healthy = ("ok", "healthy", "running", "success")
    return {
        name: "HEALTHY" if str(record["status"]).lower() in healthy else str(record["status"]).upper()
        for name, record in found.items()
    }


async def pong(ask: Fields, house: House) -> Reply:
    return await house.health_of(AGENT)


def _iso(record: dict[str, Any]) -> str:
    return directory.iso(record["last_registered"])


AGENT = Agent(
    name=NAME,
    service="memory",
    kind="system",
    ports=(7120, 7220),
    actions={
        "ping": Action(ping),
        "get_metrics": Action(get_metrics),
        "get_history": Action(get_history),
        "get_all_agents": Action(get_all_agents),
        "get_registered_agents": Action(get_registered_agents),
        "get_ok_agents": Action(get_ok_agents),
        "get_agent_info": Action(get_agent_info, required=("agent_name",), missing="Missing agent_name"),
        "simulate_load": Action(simulate_load),
        "register_agent": Action(register_agent),
        "get_agent_endpoint": Action(get_agent_endpoint, required=("agent_name",), missing="Missing agent_name"),
        "publish_event": Action(publish_event, required=("event",), missing="Missing required field: event"),
        "report_error": Action(report_error),
        "update_vram_metrics": Action(update_vram_metrics, required=("payload",), missing="Missing payload"),
    },
    commands={
        "REGISTER": Action(register_command),
        "DISCOVER": Action(discover),
        "REPORT_MODEL_VRAM": Action(report_vram),
        "GET_METRICS": Action(metrics_command),
    },
    texts={"ping": pong, "GET_ALL_STATUS": all_status},
    words=Words(error_keys=("error", "message"), bad_json="Invalid JSON format."),
    tasks=(keep_sampling,),
)
