"""ServiceRegistry (7100): registrations and look-ups by agent name."""

from __future__ import annotations

from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply, Words
from workers.gateway.legacy.agents import directory
from workers.gateway.legacy.house import House


async def register_agent(ask: Fields, house: House) -> Reply:
    fields = Fields(ask.mapping("registration_data") or ask)
    directory.check_reachable(fields)
    await directory.register(fields, house)
    return {"status": "success"}


async def get_agent_endpoint(ask: Fields, house: House) -> Reply:
    name = ask.text("agent_name")
    record = await directory.find(name, house)
    if record is None:
        raise Refused(f"Agent '{name}' not found")
    return {
        "status": "success",
        "host": record["host"],
        "port": record["port"],
        "health_check_port": record["health_check_port"],
        "agent_type": record["agent_type"],
        "capabilities": record["capabilities"],
        "metadata": record["metadata"],
        "last_registered": directory.iso(record["last_registered"]),
    }


async def list_agents(ask: Fields, house: House) -> Reply:
    return {"status": "success", "agents": sorted(await directory.everybody(house))}


AGENT = Agent(
    name="ServiceRegistry",
    service="memory",
    kind="registry",
    ports=(7100, 7200),
    actions={
        "register_agent": Action(register_agent),
        "get_agent_endpoint": Action(get_agent_endpoint, required=("agent_name",), missing="Missing agent_name"),
        "list_agents": Action(list_agents),
    },
    words=Words(error_keys=("error", "message")),
)
