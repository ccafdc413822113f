"""LearningManager (5580): learning sessions by any name, ten at most, and one learning rate for all of them.

The sessions are `learning.session.*`; which of them are its own, the rate, and the last deleted session's metrics are
kept here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

import msgspec

from schemas.bodies.learning_tuning import LearningSession, SessionCreate, SessionEnd, SessionGet, SessionUpdate
from schemas.errors import BusError, NotFound
from workers.gateway.legacy.agent import Action, Agent, Fields, Reply, encode
from workers.gateway.legacy.agents.asked import is_number, learning_id
from workers.gateway.legacy.house import House

NAME: Final = "LearningManager"

# One more evicts the oldest.
MOST_SESSIONS: Final = 10

# The rate at the very beginning, and its part that stays where a loss is worse than the last deleted session's.
FIRST_RATE: Final = 0.01
SLOWER: Final = 0.9

# Seconds between two broadcasts.
_BROADCAST_S: Final = 5.0

_DAY_S: Final = 86_400.0

# Characters of the name of a metric, and of a status (schemas.bodies.learning_tuning).
_NAME_MAX: Final = 128
_STATUS_MAX: Final = 64

# The one record of the namespace.
_KEY: Final = "manager"


class Manager(msgspec.Struct, kw_only=True):
    """sessions: epoch seconds at which each was created, by its name. archived: final metrics of the last deleted one."""

    learning_rate: float = FIRST_RATE
    archived: dict[str, float] = {}
    sessions: dict[str, float] = {}

    def begin(self, name: str, now: float) -> list[str]:
        """Take a session in; the ones that must go for it."""
        self.sessions.pop(name, None)
        oldest = sorted(self.sessions, key=lambda one: self.sessions[one])
        evicted = oldest[: max(len(oldest) + 1 - MOST_SESSIONS, 0)]
        for one in evicted:
            del self.sessions[one]
        self.sessions[name] = now
        return evicted

    def active(self, now: float) -> int:
        """Sessions that go on; the learning service ends them after a day."""
        return sum(now - created_at < _DAY_S for created_at in self.sessions.values())

    def measured(self, metrics: dict[str, Any]) -> None:
        """Slow down where a loss is worse than the last deleted session's."""
        loss, before = metrics.get("loss"), self.archived.get("loss")
        if before is not None and isinstance(loss, int | float) and loss > before:
            self.learning_rate *= SLOWER


class _Desk:
    def __init__(self) -> None:
        self.changing = asyncio.Lock()
        self.manager: Manager | None = None


async def create_session(ask: Fields, house: House) -> Reply:
    """Begin a session; a known name begins anew."""
    name = ask.text("session_id") or str(time.time())
    body = SessionCreate(
        model=ask.text("model_id")[:256], session_id=learning_id(name), parameters=ask.mapping("parameters")
    )
    desk = await _desk(house)
    async with desk.changing:
        await house.ask("learning.session.create", body)
        for evicted in _manager(desk).begin(name, time.time()):
            await _end(evicted, "evicted", house)
        await _keep(desk, house)
    return {"status": "success", "session_id": name}


async def update_session(ask: Fields, house: House) -> Reply:
    """Take in measurements."""
    if await _find(ask, house) is None:
        return {"status": "error"}
    told = ask.mapping("metrics")
    metrics = {name[:_NAME_MAX]: float(value) for name, value in told.items() if name and is_number(value)}
    body = SessionUpdate(
        session_id=learning_id(ask.text("session_id")),
        status=ask.text("status")[:_STATUS_MAX] or None,
        progress=share_of(ask.number("progress", 0.0)) if ask.get("progress") is not None else None,
        metrics=metrics,
    )
    desk = await _desk(house)
    async with desk.changing:
        await house.ask("learning.session.update", body)
        if not told:
            return {"status": "success"}
        manager = _manager(desk)
        before = manager.learning_rate
        manager.measured(metrics)
        if manager.learning_rate != before:
            await _keep(desk, house)
    ignored = {"ignored": names} if (names := [name for name in told if not (name and is_number(told[name]))]) else {}
    return {"status": "success", "learning_rate": manager.learning_rate, **ignored}


def share_of(progress: float) -> float:
    """A progress as a share, 0 to 1: these clients may tell anything, and what is above 1 tells percent."""
    return max(0.0, min(1.0, progress if progress <= 1 else progress / 100))


async def get_session(ask: Fields, house: House) -> Reply:
    """A session with all that was told of it."""
    session = await _find(ask, house)
    if session is None:
        return {"status": "error", "session": None}
    return {
        "status": "success",
        "session": {
            "model_id": session.model,
            "created_at": session.created_at,
            "last_active": session.last_active_at,
            "parameters": session.parameters,
            "status": session.status,
            "progress": session.progress,
            "metrics": session.metrics,
            "history": [{"timestamp": one.at, "metrics": one.metrics} for one in session.history],
        },
    }


async def delete_session(ask: Fields, house: House) -> Reply:
    """End a session; its final metrics are what later ones are compared with."""
    session = await _find(ask, house)
    if session is None:
        return {"status": "error"}
    name = ask.text("session_id")
    desk = await _desk(house)
    async with desk.changing:
        await _end(name, "deleted", house)
        manager = _manager(desk)
        manager.archived = session.metrics
        manager.sessions.pop(name, None)
        await _keep(desk, house)
    return {"status": "success"}


async def get_learning_rate(ask: Fields, house: House) -> Reply:
    """The rate for all models."""
    return {"status": "success", "learning_rate": _manager(await _desk(house)).learning_rate}


async def health(house: House) -> dict[str, Any]:
    """What its never reached health check would have told."""
    is_up = await house.is_up("learning")
    return {
        "status": "ok" if is_up else "initializing",
        "initialization_status": {
            "is_initialized": is_up,
            "error": None,
            "progress": 1.0 if is_up else 0.0,
            "components": {"learning": is_up, "memory": await house.is_up("memory")},
        },
    }


def broadcast(period_s: float = _BROADCAST_S) -> Callable[[House], Awaitable[None]]:
    """The task that tells whoever listens how many sessions there are, one JSON frame without a topic."""

    async def tell(house: House) -> None:
        while True:
            await asyncio.sleep(period_s)
            try:
                manager = _manager(await _desk(house))
            except BusError:
                # Without the memory service nothing is known; the next one may tell more.
                continue
            metrics = {"active_sessions": manager.active(time.time()), "learning_rate": manager.learning_rate}
            told = {
                "component": "learning_manager",
                "status": "running",
                "timestamp": datetime.now().isoformat(),
                "metrics": metrics,
            }
            house.publish(NAME, [encode(told)])

    return tell


async def _find(ask: Fields, house: House) -> LearningSession | None:
    """The session that is meant, while it goes on."""
    body = SessionGet(session_id=learning_id(ask.text("session_id")))
    try:
        session: LearningSession = await house.ask("learning.session.get", body)
    except NotFound:
        return None
    return session if session.ended_at is None else None


async def _end(name: str, status: str, house: House) -> None:
    try:
        await house.ask("learning.session.end", SessionEnd(session_id=learning_id(name), status=status))
    except NotFound:
        # The learning service keeps a thousand, and this one was among the oldest.
        return


async def _desk(house: House) -> _Desk:
    """With what is kept; raises BusError where it cannot be read."""
    desk = house.state(NAME, _Desk)
    if desk.manager is None:
        async with desk.changing:
            record = await house.kept("learning_manager").get(_KEY)
            desk.manager = desk.manager or msgspec.convert(record or {}, Manager)
    return desk


def _manager(desk: _Desk) -> Manager:
    assert desk.manager is not None, "read before it is used"
    return desk.manager


async def _keep(desk: _Desk, house: House) -> None:
    await house.kept("learning_manager").put(_KEY, msgspec.to_builtins(desk.manager))


AGENT = Agent(
    name=NAME,
    service="learning",
    kind="learning",
    ports=(5580, 5588),
    event_ports=(6588,),
    echoes=("request_id",),
    actions={
        "create_session": Action(create_session, required=("model_id",)),
        "update_session": Action(update_session, required=("session_id",)),
        "get_session": Action(get_session, required=("session_id",)),
        "delete_session": Action(delete_session, required=("session_id",)),
        "get_learning_rate": Action(get_learning_rate),
    },
    health=health,
    tasks=(broadcast(),),
)
