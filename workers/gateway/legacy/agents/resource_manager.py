"""ResourceManager (7113) and its HTTP successor (9001): who may have how much of this machine.

Amounts without a unit are only recorded, as they were. Memory and VRAM asked for over HTTP become leases of the
resource service, so that models and training make room for them; the other pools are counted here.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import datetime
from typing import Any, Final

from schemas.bodies.resource import LeaseAcquire, LeaseRelease, LeaseRenew
from schemas.errors import BusError
from workers.gateway.legacy.agent import Action, Agent, Fields, HttpAsk, HttpRoute, Refused, Reply
from workers.gateway.legacy.agents import host
from workers.gateway.legacy.house import House

NAME: Final = "ResourceManager"

_DEFAULT_PERCENT: Final = 80.0
_GIB: Final = 1024**3

# Leases of allocations last this long, seconds, and are renewed at a third of it while the gateway runs.
_LEASE_S: Final = 90.0

# What an allocation may name, and how its priority reads: rank for leases, and share of the VRAM it may hold.
_POOLS: Final = ("cpu_cores", "memory_gb", "gpu_slots", "disk_space_gb", "vram_gb")
_PRIORITIES: Final = {"CRITICAL": (1, 0.8), "HIGH": (2, 0.6), "MEDIUM": (3, 0.4), "LOW": (4, 0.2)}


class _Thresholds:
    """Percentages above which nothing is given out; in memory only, as they were."""

    def __init__(self) -> None:
        self.percent = dict.fromkeys(("cpu", "memory", "gpu"), _DEFAULT_PERCENT)


def _thresholds(house: House) -> dict[str, float]:
    return house.state(NAME, _Thresholds).percent


async def _stats(house: House) -> dict[str, Any]:
    total, available, percent = host.ram()
    memory = await host.vram(house)
    return {
        "cpu_percent": host.cpu_percent(),
        "memory_percent": percent,
        "memory_available": available,
        "memory_total": total,
        "disk_usage": host.disk(str(house.settings.home_path))[1],
        "gpu_memory_percent": memory.percent,
        "gpu_memory_allocated": memory.used_bytes,
        "gpu_memory_reserved": memory.reserved_bytes,
        "timestamp": datetime.now().isoformat(),
    }


def _is_free(stats: dict[str, Any], limits: dict[str, float]) -> bool:
    return bool(
        stats["cpu_percent"] <= limits["cpu"]
        and stats["memory_percent"] <= limits["memory"]
        and stats["gpu_memory_percent"] <= limits["gpu"]
    )


async def get_stats(ask: Fields, house: House) -> Reply:
    return {"status": "success", "stats": await _stats(house)}


async def check_resources(ask: Fields, house: House) -> Reply:
    return {"status": "success", "available": _is_free(await _stats(house), _thresholds(house))}


async def allocate_resources(ask: Fields, house: House) -> Reply:
    name = ask.text("resource_id")
    if await house.kept("resources").get(name) is not None:
        raise Refused(f"Resource {name} already allocated")
    if not _is_free(await _stats(house), _thresholds(house)):
        raise Refused("Insufficient resources available")
    record = {
        "type": ask.text("resource_type"),
        "amount": ask.number("amount", 1.0),
        "allocated_at": datetime.now().isoformat(),
        "status": "active",
    }
    await house.kept("resources").put(name, record)
    return {"status": "success", "resource_id": name, "message": f"Resource {name} allocated"}


async def release_resources(ask: Fields, house: House) -> Reply:
    name = ask.text("resource_id")
    if not await house.kept("resources").drop(name):
        raise Refused(f"Resource {name} not found")
    return {"status": "success", "resource_id": name, "message": f"Resource {name} released"}


async def get_status(ask: Fields, house: House) -> Reply:
    stats, limits = await _stats(house), _thresholds(house)
    allocated = {name: record async for name, record in house.kept("resources").each()}
    return {
        "status": "success",
        "current_stats": stats,
        "allocated_resources": allocated,
        "resources_available": _is_free(stats, limits),
        "thresholds": limits,
    }


async def set_thresholds(ask: Fields, house: House) -> Reply:
    limits = _thresholds(house)
    wanted = {}
    for name in limits:
        value = ask.number(f"{name}_threshold", limits[name])
        if not 0 <= value <= 100:
            raise Refused(f"{name}_threshold is {value:g}; it must be 0 to 100 percent")
        wanted[name] = value
    limits.update(wanted)
    return {"status": "success", "thresholds": limits}


async def health_socket(message: Any, house: House) -> Reply:
    if not isinstance(message, dict) or message.get("action") != "health_check":
        return {"status": "unknown_action", "message": "Unknown action"}
    endpoint = house.endpoint(NAME)
    return {
        "status": "ok",
        "service": NAME,
        "initialization_status": "complete",
        "port": endpoint.port if endpoint else 0,
        "health_port": endpoint.health_port if endpoint else 0,
        "timestamp": datetime.now().isoformat(),
    }


# HTTP ---------------------------------------------------------------------------------------------------------------


async def _allocations(house: House) -> dict[str, dict[str, Any]]:
    return {name: record async for name, record in house.kept("allocations").each()}


def _taken(allocations: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {pool: sum(float(record["resources"].get(pool, 0.0)) for record in allocations.values()) for pool in _POOLS}


async def _totals(house: House) -> dict[str, float]:
    return {
        "cpu_cores": float(host.cores()),
        "memory_gb": host.ram()[0] / _GIB,
        "gpu_slots": float(await host.gpu_count(house)),
        "disk_space_gb": host.disk(str(house.settings.home_path))[0] / _GIB,
        "vram_gb": (await host.vram(house)).total_bytes / _GIB,
    }


def _wanted(body: Any) -> tuple[dict[str, float], str]:
    """Amounts and priority of a request. Raises Refused."""
    if not isinstance(body, dict):
        raise Refused("the body must be an object")
    fields = Fields(body)
    given = Fields(fields.mapping("resources"))
    unknown = sorted(set(given) - set(_POOLS))
    if unknown:
        raise Refused(f"resources.{unknown[0]} is no pool; allowed: {', '.join(_POOLS)}")
    amounts = {pool: given.number(pool, 0.0) for pool in given}
    for pool, amount in amounts.items():
        if amount < 0:
            raise Refused(f"resources.{pool} is {amount:g}; it must be 0 or more")
    priority = (fields.text("priority") or "MEDIUM").upper()
    if priority not in _PRIORITIES:
        raise Refused(f"priority is {priority!r}; allowed: {', '.join(_PRIORITIES)}")
    return amounts, priority


async def allocate(ask: HttpAsk, house: House) -> tuple[int, Any]:
    amounts, priority = _wanted(ask.body)
    name = str(ask.body.get("allocation_id") or uuid.uuid4())
    allocations = await _allocations(house)
    if name in allocations:
        raise Refused(f"allocation {name} exists already", allocation_id=name)
    why = await _lacking(amounts, priority, allocations, house)
    if why:
        return 200, {"status": "failed", "allocation_id": name, "message": why, "error": why}
    try:
        lease_id = await _lease(name, amounts, priority, house)
    except BusError as error:
        return 200, {"status": "failed", "allocation_id": name, "message": error.message, "error": error.message}
    record = {"resources": amounts, "priority": priority, "lease_id": lease_id, "allocated_at": time.time()}
    await house.kept("allocations").put(name, record)
    return 200, {"status": "success", "allocation_id": name}


async def _lacking(
    amounts: dict[str, float], priority: str, allocations: dict[str, dict[str, Any]], house: House
) -> str:
    """Why it does not fit; empty where it does."""
    totals, taken = await _totals(house), _taken(allocations)
    for pool, amount in amounts.items():
        free = totals[pool] - taken[pool]
        if amount > free:
            return f"Insufficient {pool}: {amount:g} asked for, {max(free, 0.0):.2f} of {totals[pool]:.2f} free"
    share = _PRIORITIES[priority][1]
    if amounts.get("vram_gb", 0.0) > share * totals["vram_gb"]:
        limit = share * totals["vram_gb"]
        return f"Insufficient vram_gb: priority {priority} may hold {share:.0%} of the device, {limit:.2f}"
    return ""


async def _lease(name: str, amounts: dict[str, float], priority: str, house: House) -> str:
    """The lease behind the memory of an allocation; empty where it asks for none. Raises BusError."""
    vram, ram = int(amounts.get("vram_gb", 0.0) * _GIB), int(amounts.get("memory_gb", 0.0) * _GIB)
    if not vram and not ram:
        return ""
    lease = await house.ask(
        "resource.lease.acquire",
        LeaseAcquire(
            service="legacy",
            vram_bytes=vram,
            ram_bytes=ram,
            priority=_PRIORITIES[priority][0],
            ttl_s=_LEASE_S,
            purpose=f"allocation {name}"[:256],
        ),
    )
    return str(lease.lease_id)


async def release(ask: HttpAsk, house: House) -> tuple[int, Any]:
    if not isinstance(ask.body, dict):
        raise Refused("the body must be an object")
    name = Fields(ask.body).text("allocation_id")
    record = await house.kept("allocations").get(name) if name else None
    if record is None:
        raise Refused(f"allocation {name!r} not found")
    if record["lease_id"]:
        await house.ask("resource.lease.release", LeaseRelease(lease_id=record["lease_id"]))
    await house.kept("allocations").drop(name)
    await _start_waiting(house)
    return 200, {"status": "success", "allocation_id": name}


async def schedule(ask: HttpAsk, house: House) -> tuple[int, Any]:
    """A task leaves the queue when it is given what it needs, as an allocation of its id, which its owner releases."""
    amounts, priority = _wanted(ask.body)
    kind = Fields(ask.body).text("task_type")
    if not kind:
        raise Refused("Missing task_type")
    task_id = str(ask.body.get("task_id") or uuid.uuid4())
    record = {
        "task_id": task_id,
        "task_type": kind,
        "resources": amounts,
        "priority": priority,
        "state": "waiting",
        "queued_at": time.time(),
    }
    rank = _PRIORITIES[priority][0]
    await house.kept("tasks").put(f"{rank}-{time.time_ns():020d}-{task_id}", record)
    await _start_waiting(house)
    return 200, {"status": "success", "task_id": task_id}


async def _start_waiting(house: House) -> None:
    """Give waiting tasks what they need, the most important and oldest first, until one does not fit."""
    async for key, record in house.kept("tasks").each():
        if record["state"] != "waiting":
            continue
        body = {key: record[key] for key in ("resources", "priority")}
        _, reply = await allocate(HttpAsk({}, {**body, "allocation_id": record["task_id"]}), house)
        if reply["status"] != "success":
            return
        await house.kept("tasks").drop(key)


async def resource_status(ask: HttpAsk, house: House) -> tuple[int, Any]:
    allocations = await _allocations(house)
    totals, taken = await _totals(house), _taken(allocations)
    return 200, {
        "status": "success",
        "total": totals,
        "allocated": taken,
        "available": {pool: totals[pool] - taken[pool] for pool in _POOLS},
        "allocations": allocations,
    }


async def queue_status(ask: HttpAsk, house: House) -> tuple[int, Any]:
    tasks = [record async for _, record in house.kept("tasks").each()]
    return 200, {"status": "success", "queue_size": len(tasks), "tasks": tasks}


async def vram_status(ask: HttpAsk, house: House) -> tuple[int, Any]:
    memory = await host.vram(house)
    allocations = await _allocations(house)
    held = {name: one["resources"]["vram_gb"] for name, one in allocations.items() if one["resources"].get("vram_gb")}
    taken = max(memory.used_bytes, memory.reserved_bytes)
    vram = {
        "total_vram": memory.total_bytes / _GIB,
        "allocated_vram": taken / _GIB,
        "free_vram": memory.free_bytes / _GIB,
        "utilization_percent": 100.0 * taken / memory.total_bytes if memory.total_bytes else 0.0,
        "allocations": held,
    }
    return 200, {"status": "success", "vram": vram}


async def _health(ask: HttpAsk, house: House) -> tuple[int, Any]:
    return 200, await house.health_of(AGENT)


async def keep_leases(house: House) -> None:
    """Renew what allocations hold; one whose lease is gone is dropped, as its memory is. Then see who fits now."""
    while True:
        for name, record in (await _allocations(house)).items():
            if not record["lease_id"]:
                continue
            try:
                await house.ask("resource.lease.renew", LeaseRenew(lease_id=record["lease_id"], ttl_s=_LEASE_S))
            except BusError as error:
                if error.code == "not_found":
                    await house.kept("allocations").drop(name)
        await _start_waiting(house)
        await asyncio.sleep(_LEASE_S / 3)


AGENT = Agent(
    name=NAME,
    service="resource",
    kind="resources",
    ports=(7113,),
    health_ports=(8113, 7114),
    http_ports=(9001,),
    actions={
        "get_stats": Action(get_stats),
        "check_resources": Action(check_resources),
        "allocate_resources": Action(
            allocate_resources, required=("resource_id", "resource_type"), missing="Missing required field: {field}"
        ),
        "release_resources": Action(
            release_resources, required=("resource_id",), missing="Missing required field: {field}"
        ),
        "get_status": Action(get_status),
        "set_thresholds": Action(set_thresholds),
    },
    health_socket=health_socket,
    http=(
        HttpRoute("GET", "/health", _health),
        HttpRoute("POST", "/allocate_resources", allocate),
        HttpRoute("POST", "/allocate", allocate),
        HttpRoute("POST", "/release_resources", release),
        HttpRoute("POST", "/release", release),
        HttpRoute("POST", "/schedule_task", schedule),
        HttpRoute("POST", "/schedule", schedule),
        HttpRoute("GET", "/resource_status", resource_status),
        HttpRoute("GET", "/status", resource_status),
        HttpRoute("GET", "/queue_status", queue_status),
        HttpRoute("GET", "/queue_stats", queue_status),
        HttpRoute("GET", "/vram_status", vram_status),
    ),
    tasks=(keep_leases,),
)
