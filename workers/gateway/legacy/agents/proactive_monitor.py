"""ProactiveContextMonitor (7119): a list of the contexts it was told, the last hundred, as long as the process lives.

What Olympus itself notices in conversations are suggestions (`memory.suggest.*`).
"""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import Any, Final

from workers.gateway.legacy.agent import Action, Agent, Fields, Reply
from workers.gateway.legacy.house import House

NAME: Final = "ProactiveContextMonitor"

# Contexts that are held.
HISTORY_MAX: Final = 100

_DEFAULT_LIMIT: Final = 10


class _History:
    """Contexts, oldest first."""

    def __init__(self) -> None:
        self.contexts: deque[dict[str, Any]] = deque(maxlen=HISTORY_MAX)


def _contexts(house: House) -> deque[dict[str, Any]]:
    return house.state(NAME, _History).contexts


async def add_context(ask: Fields, house: House) -> Reply:
    _contexts(house).append({"timestamp": datetime.now().isoformat(), "data": ask["context"]})
    return {"status": "success", "message": "Context added"}


async def get_context_history(ask: Fields, house: House) -> Reply:
    """The last `limit` contexts; all of them where that is 0 or no whole number."""
    contexts = list(_contexts(house))
    limit = ask.get("limit", _DEFAULT_LIMIT)
    is_bounded = isinstance(limit, int) and not isinstance(limit, bool) and limit > 0
    history = contexts[-limit:] if is_bounded else contexts
    return {"status": "success", "history": history, "count": len(history), "total": len(contexts)}


async def clear_context_history(ask: Fields, house: House) -> Reply:
    _contexts(house).clear()
    return {"status": "success", "message": "Context history cleared"}


async def health(house: House) -> dict[str, Any]:
    return {"context_history_length": len(_contexts(house))}


AGENT = Agent(
    name=NAME,
    service="memory",
    kind="proactive_monitor",
    ports=(7119,),
    health_ports=(8119,),
    actions={
        "add_context": Action(add_context, required=("context",), missing="Missing context data"),
        "get_context_history": Action(get_context_history),
        "clear_context_history": Action(clear_context_history),
    },
    health=health,
)
