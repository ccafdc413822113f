"""SessionMemoryAgent (5574): conversations; a session is a memory of type `session`, its interactions lie under it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import datetime
from typing import Any, Final

from schemas.bodies.items import MemoryAdd, MemoryAdded
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply
from workers.gateway.legacy.agents.memories import NS, TIMEOUT_S, found_by_meaning, to_legacy
from workers.gateway.legacy.agents.orchestrator import change, children, open_session, remove
from workers.gateway.legacy.house import House

NAME: Final = "SessionMemoryAgent"

# Seconds without activity after which a session is marked as expired, and between two looks for such.
IDLE_S: Final = 3_600.0
_SWEEP_S: Final = 300.0


class Sessions:
    """When each session that was opened here was last used, epoch seconds. Gone with the process, as it always was."""

    def __init__(self) -> None:
        self.used_at: dict[str, float] = {}

    def use(self, session_id: str) -> None:
        """Put the end of a session off; one that was not opened here has none."""
        if session_id in self.used_at:
            self.used_at[session_id] = time.time()

    def idle(self, now: float) -> list[str]:
        """Sessions that nobody used for IDLE_S."""
        return [session_id for session_id, used_at in self.used_at.items() if now - used_at > IDLE_S]


async def create_session(ask: Fields, house: House) -> Reply:
    about = {**ask.mapping("metadata"), "created_at": datetime.now().isoformat(), "agent": NAME}
    session_id = await open_session(Fields({**ask, "created_by": NAME, "metadata": about}), house)
    _sessions(house).used_at[session_id] = time.time()
    return {"status": "success", "session_id": session_id}


async def add_interaction(ask: Fields, house: House) -> Reply:
    session_id, role = ask.text("session_id"), ask.text("role")
    added: MemoryAdded = await house.ask(
        "memory.add",
        MemoryAdd(
            content=ask.text("content"),
            type="interaction",
            tier="short",
            importance=0.5,
            tags=[role.lower()[:256]],
            metadata={**ask.mapping("metadata"), "role": role, "timestamp": datetime.now().isoformat()},
            parent_id=session_id,
            # Said here and now: the time in the metadata has no zone.
            at=time.time(),
            ns=NS,
        ),
        timeout_s=TIMEOUT_S,
    )
    _sessions(house).use(session_id)
    return {"status": "success", "message": "Interaction added", "interaction_id": added.id}


async def get_context(ask: Fields, house: House) -> Reply:
    session_id = ask.text("session_id")
    newest = await children(house, session_id, limit=ask.whole("limit", 20, low=1), is_descending=True)
    _sessions(house).use(session_id)
    return {
        "status": "success",
        "context": [
            {"role": memory.metadata.get("role", "unknown"), "content": memory.content}
            for memory in reversed(newest)
            # What the life cycle made of interactions was not said by anybody.
            if memory.type != "consolidated"
        ],
    }


async def delete_session(ask: Fields, house: House) -> Reply:
    session_id = ask.text("session_id")
    await remove(house, session_id, cascade=True)
    _sessions(house).used_at.pop(session_id, None)
    return {"status": "success", "message": f"Session {session_id} deleted"}


async def search_interactions(ask: Fields, house: House) -> Reply:
    found = await found_by_meaning(
        house,
        ask.text("query"),
        ask.whole("limit", 10),
        type="interaction",
        parent_id=ask.text("session_id") or None,
    )
    return {"status": "success", "results": [to_legacy(memory) for memory in found]}


async def expire_idle(house: House, now: float) -> None:
    """Mark what nobody used for IDLE_S at `now`: its metadata is replaced, everything else stays."""
    sessions = _sessions(house)
    for session_id in sessions.idle(now):
        mark = {"expired": True, "expired_at": datetime.fromtimestamp(now).isoformat()}
        # Refused where somebody else deleted it meanwhile: nothing is left to mark.
        with contextlib.suppress(Refused):
            await change(house, session_id, {"metadata": mark})
        sessions.used_at.pop(session_id, None)


async def sweep(house: House) -> None:
    """Expire idle sessions, for ever."""
    while True:
        await asyncio.sleep(_SWEEP_S)
        await expire_idle(house, time.time())


async def health(house: House) -> dict[str, Any]:
    is_up = await house.is_up("memory")
    return {
        "status": "success" if is_up else "degraded",
        "agent": NAME,
        "healthy": is_up,
        "active_sessions": len(_sessions(house).used_at),
    }


def _sessions(house: House) -> Sessions:
    return house.state(NAME, Sessions)


AGENT = Agent(
    name=NAME,
    service="memory",
    kind="memory",
    ports=(5574,),
    health_ports=(6574, 6583),
    actions={
        "create_session": Action(create_session),
        "add_interaction": Action(add_interaction, ("session_id", "role", "content"), "Missing required parameters"),
        "get_context": Action(get_context, ("session_id",)),
        "delete_session": Action(delete_session, ("session_id",)),
        "search_interactions": Action(search_interactions, ("query",)),
    },
    health=health,
    tasks=(sweep,),
)
