"""The health socket of agents that answered it themselves: to `health_check` alone, in words of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from workers.gateway.legacy.house import House


def health_socket(name: str) -> Callable[[Any, House], Awaitable[dict[str, Any]]]:
    """What the agent of that name answers on its health port."""

    async def answer(message: Any, house: House) -> dict[str, Any]:
        action = message.get("action") if isinstance(message, dict) else message
        if action != "health_check":
            return {"status": "unknown_action", "message": f"Unknown action: {action}"}
        agent, endpoint = house.agents[name], house.endpoints.get(name)
        return {
            "status": "ok",
            "service": name,
            "initialization_status": "complete",
            "port": endpoint.port if endpoint else next(iter(agent.ports), 0),
            "health_port": endpoint.health_port if endpoint else next(iter(agent.health_ports), 0),
            "timestamp": datetime.now().isoformat(),
        }

    return answer
