"""SelfTrainingOrchestrator (5660): training cycles of agents, with the resources each of them takes.

A cycle whose config names a dataset, an opportunity, or a model that has something to learn is trained by the learning
service. Any other is the agent's own training: it takes its resources, and its progress is what is told of the learning
session that has the cycle's id (`learning.session.update`, or `update_session` of LearningManager).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from schemas.bodies.learning_jobs import JobInfo, TrainingResume
from schemas.bodies.learning_tuning import LearningSession, SessionCreate, SessionGet, SessionUpdate
from schemas.errors import NotFound, Rejected
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply, Words
from workers.gateway.legacy.agents import trainings
from workers.gateway.legacy.agents.asked import given, is_number, iso, learning_id
from workers.gateway.legacy.house import House

log = logging.getLogger("olympus.legacy")

NAME: Final = "SelfTrainingOrchestrator"

# What all running cycles may take together.
POOLS: Final[Mapping[str, float]] = {"cpu": 100, "gpu": 100, "memory": 16, "storage": 100, "network": 1000}

# Seconds between two looks for created cycles that can begin.
_LOOK_S: Final = 1.0

_OVER: Final = frozenset({"completed", "failed", "paused"})
_SHOWN: Final = ("id", "agent_id", "status", "progress", "start_time", "end_time", "error", "metrics")

_OWN_TRAINING: Final = (
    "the agent trains itself: its config names nothing that Olympus could train; tell of progress under session {id}"
)


# A record that says no more than who it is: one that was migrated may lack what only this edge writes.
_BLANK: Final[Mapping[str, Any]] = {
    "priority": 1,
    "resources": {},
    "status": "pending",
    "progress": 0.0,
    "start_time": None,
    "end_time": None,
    "error": None,
    "metrics": {},
    "job_id": "",
    "session_id": "",
    "reason": "",
}


class _Desk:
    """held: what each running cycle takes. queued: created and not begun, with their priorities."""

    def __init__(self) -> None:
        self.changing = asyncio.Lock()
        self.held: dict[str, dict[str, float]] = {}
        self.queued: dict[str, int] = {}
        self.is_read = False
        self.has_begun = False


def resources_of(config: Mapping[str, Any]) -> dict[str, float]:
    """What a cycle takes. Raises Refused for nothing, something unknown, and amounts no pool has."""
    wanted = config.get("resources")
    if not isinstance(wanted, dict) or not wanted:
        raise Refused("Invalid resource requirements")
    for name, amount in wanted.items():
        if name not in POOLS or not is_number(amount) or not 0 < amount <= POOLS[name]:
            raise Refused("Invalid resource requirements")
    return wanted


def fits(wanted: Mapping[str, float], held: Mapping[str, Mapping[str, float]]) -> bool:
    """True where the pools have so much left."""
    taken = {name: sum(each.get(name, 0) for each in held.values()) for name in wanted}
    return all(taken[name] + amount <= POOLS.get(name, 0) for name, amount in wanted.items())


async def create_cycle(ask: Fields, house: House) -> Reply:
    """Note a cycle; it begins when somebody says so, or after those that somebody did."""
    given(ask, "agent_id")
    given(ask, "config")
    agent_id, config = ask.text("agent_id"), ask.mapping("config")
    resources = resources_of(config)
    priority = ask.whole("priority", 1, low=-(2**31), high=2**31)
    desk = await _desk(house)
    async with desk.changing:
        now = time.time()
        cycle_id = await house.kept("self_training").free_key(f"cycle_{int(now)}_{agent_id}")
        record = {
            **_BLANK,
            "id": cycle_id,
            "agent_id": agent_id,
            "config": config,
            "priority": priority,
            "resources": resources,
            "created_at": iso(now),
        }
        await house.kept("self_training").put(cycle_id, record)
        desk.queued[cycle_id] = priority
    return {"status": "success", "cycle_id": cycle_id}


async def start_cycle(ask: Fields, house: House) -> Reply:
    """Begin a cycle now, if its resources are there."""
    given(ask, "cycle_id")
    desk = await _desk(house)
    async with desk.changing:
        record = await _record(ask, house)
        if record["status"] in ("running", "completed"):
            return {"status": "success", "message": f"Cycle {record['id']} is {record['status']} already"}
        await _settle(desk, house)
        if not fits(record["resources"], desk.held):
            raise Refused("Insufficient resources")
        desk.has_begun = True
        record = await _begin(record, desk, house)
    if record["status"] == "failed":
        raise Refused(record["error"])
    return {"status": "success", "message": f"Cycle {record['id']} started"}


async def get_status(ask: Fields, house: House) -> Reply:
    """Where a cycle stands."""
    given(ask, "cycle_id")
    record = await _refreshed(await _record(ask, house), await _desk(house), house)
    shown = {name: record.get(name) for name in _SHOWN}
    return {"status": "success", "cycle": {**shown, **({"reason": record["reason"]} if record.get("reason") else {})}}


async def health(house: House) -> dict[str, Any]:
    """What the agent told beside the common keys."""
    return {
        "service": "self_training_orchestrator",
        "active_cycles": len(house.state(NAME, _Desk).held),
        "database_status": "ok" if await house.is_up("memory") else "unavailable",
    }


def queue_of(look_s: float = _LOOK_S) -> Callable[[House], Awaitable[None]]:
    """The task that follows running cycles, and begins created ones, the highest priority first, once any was begun by
    request."""
    return trainings.looking("cycles", look_s, _is_read, _look)


def _is_read(house: House) -> bool:
    return house.state(NAME, _Desk).is_read


async def _look(house: House) -> None:
    desk = await _desk(house)
    async with desk.changing:
        await _settle(desk, house)
        if not desk.has_begun:
            return
        for cycle_id in sorted(desk.queued, key=lambda one: -desk.queued[one]):
            record = await _kept(cycle_id, house)
            if record is None or record["status"] != "pending":
                del desk.queued[cycle_id]
            elif fits(record["resources"], desk.held):
                await _begin(record, desk, house)


async def _desk(house: House) -> _Desk:
    """With what running cycles held when this process was started."""
    desk = house.state(NAME, _Desk)
    if not desk.is_read:
        async with desk.changing:
            async for cycle_id, record in house.kept("self_training").each():
                if record["status"] == "running":
                    desk.held[cycle_id] = record["resources"]
            desk.is_read = True
    return desk


async def _record(ask: Fields, house: House) -> dict[str, Any]:
    cycle_id = ask.text("cycle_id")
    record = await _kept(cycle_id, house) if cycle_id else None
    if record is None:
        raise Refused("Cycle not found")
    return record


async def _kept(cycle_id: str, house: House) -> dict[str, Any] | None:
    record = await house.kept("self_training").get(cycle_id)
    return None if record is None else {**_BLANK, **record}


async def _begin(record: dict[str, Any], desk: _Desk, house: House) -> dict[str, Any]:
    """The record of a cycle that runs, or that failed. Raises Retryable where the learning service is away."""
    started = {"status": "running", "start_time": iso(time.time()), "end_time": None, "error": None, "reason": ""}
    try:
        record = {**record, **started, **await _started(record, learning_id(record["id"]), house)}
        desk.held[record["id"]] = record["resources"]
    except (Refused, Rejected) as error:
        record = {**record, **started, "status": "failed", "end_time": iso(time.time()), "error": str(error)}
    desk.queued.pop(record["id"], None)
    await house.kept("self_training").put(record["id"], record)
    return record


async def _started(record: Mapping[str, Any], name: str, house: House) -> dict[str, str]:
    """Have it trained, or follow the agent's own training; what of its record that changes."""
    if record["job_id"]:
        await house.ask("learning.training.resume", TrainingResume(job_id=record["job_id"], is_now=True))
        return {}
    config = record["config"]
    target = trainings.named_target(config) or await trainings.target_of(trainings.named_model(config), house)
    if target is not None:
        await house.ask("learning.training.start", trainings.start_of(name, target, config))
        return {"job_id": name}
    model = record["agent_id"][:256] or "unnamed"
    await house.ask("learning.session.create", SessionCreate(model=model, session_id=name))
    await house.ask("learning.session.update", SessionUpdate(session_id=name, status="running"))
    return {"session_id": name, "reason": _OWN_TRAINING.format(id=name)}


async def _settle(desk: _Desk, house: House) -> None:
    """Give back what cycles held that are over."""
    for cycle_id in list(desk.held):
        record = await _kept(cycle_id, house)
        if record is None:
            del desk.held[cycle_id]
        else:
            await _refreshed(record, desk, house)


async def _refreshed(record: dict[str, Any], desk: _Desk, house: House) -> dict[str, Any]:
    """The record as its training or its session has it now; a cycle that is over gives its resources back."""
    # A paused training may have been resumed by somebody else.
    if record["status"] != "running" and not (record["status"] == "paused" and record["job_id"]):
        return record
    # Read from the learning service each time; kept is only how it ended.
    now = {**record, **(await _of_training(record, house) if record["job_id"] else await _of_session(record, house))}
    if now["status"] not in _OVER:
        desk.held[record["id"]] = record["resources"]
    else:
        desk.held.pop(record["id"], None)
        if now != record:
            await house.kept("self_training").put(record["id"], now)
    return now


class _Stand(NamedTuple):
    status: str
    error: str | None = None
    reason: str = ""


def stand_of(info: JobInfo) -> _Stand:
    """Where a cycle stands whose training stands so."""
    if info.state in trainings.WAITING:
        return _Stand("pending", None, info.reason or "waits for its turn")
    if info.state in trainings.RUNNING:
        return _Stand("running", None, info.reason)
    if info.state in trainings.DONE:
        return _Stand("completed", None, info.reason)
    if info.state == "stopped":
        return _Stand("paused", None, info.reason)
    return _Stand("failed", f"{info.state}: {info.reason}")


async def _of_training(record: Mapping[str, Any], house: House) -> dict[str, Any]:
    info = await trainings.status_of(record["job_id"], house)
    if info is None:
        gone = f"the learning service knows no training {record['job_id']}"
        return {"status": "failed", "end_time": iso(time.time()), "error": gone, "reason": ""}
    stand = stand_of(info)
    return {
        **stand._asdict(),
        "progress": trainings.progress_of(info),
        "metrics": await trainings.metrics_of(info, house),
        "end_time": iso(info.finished_at),
    }


async def _of_session(record: Mapping[str, Any], house: House) -> dict[str, Any]:
    try:
        session: LearningSession = await house.ask("learning.session.get", SessionGet(session_id=record["session_id"]))
    except NotFound:
        return {"status": "failed", "end_time": iso(time.time()), "error": "its learning session is gone", "reason": ""}
    told = {"progress": session.progress, "metrics": session.metrics}
    if session.progress >= 1.0 or session.status == "completed":
        return {**told, "status": "completed", "end_time": iso(session.ended_at or time.time()), "reason": ""}
    if session.ended_at is not None or session.status == "failed":
        error = f"its learning session is {session.status!r}"
        end_time = iso(session.ended_at or time.time())
        return {**told, "status": "failed", "end_time": end_time, "error": error, "reason": ""}
    return told


AGENT = Agent(
    name=NAME,
    service="learning",
    kind="self_training",
    ports=(5660, 5644),
    actions={
        "create_cycle": Action(create_cycle),
        "start_cycle": Action(start_cycle),
        "get_status": Action(get_status),
    },
    words=Words(unknown="Unknown action", no_verb="Unknown action", bad_json="Invalid JSON"),
    health=health,
    tasks=(queue_of(),),
)
