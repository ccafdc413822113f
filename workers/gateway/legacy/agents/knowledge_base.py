"""KnowledgeBase (5715): facts by topic; a fact is a memory of type `knowledge_fact` with its topic as a tag."""

from __future__ import annotations

import json
import time
from typing import Any, Final

from schemas.bodies.items import Memory, MemoryAdd, MemoryAdded
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply
from workers.gateway.legacy.agents.memories import NS, TIMEOUT_S, found_by_meaning, listed, to_legacy
from workers.gateway.legacy.agents.orchestrator import change
from workers.gateway.legacy.house import House

NAME: Final = "KnowledgeBase"
FACT: Final = "knowledge_fact"


async def add_fact(ask: Fields, house: House) -> Reply:
    topic = ask.text("topic")
    added: MemoryAdded = await house.ask(
        "memory.add",
        MemoryAdd(
            content=_content(ask),
            type=FACT,
            tier="long",
            importance=0.8,
            metadata={"topic": topic},
            tags=[_tag(topic)],
            ns=NS,
        ),
        timeout_s=TIMEOUT_S,
    )
    return {"status": "success", "memory_id": added.id}


async def get_fact(ask: Fields, house: House) -> Reply:
    topic = ask.text("topic")
    found = await _about(house, topic) or await found_by_meaning(house, topic, 1, type=FACT)
    if not found:
        raise Refused("Fact not found")
    return {"status": "success", "fact": to_legacy(found[0])}


async def update_fact(ask: Fields, house: House) -> Reply:
    memory_id, topic = ask.text("memory_id"), ask.text("topic")
    if not memory_id and not topic:
        raise Refused("Missing required parameters")
    if not memory_id:
        # Not by meaning: what is merely near must not be written over.
        found = await _about(house, topic) or await listed(house, 1, contains=topic, type=FACT)
        if not found:
            raise Refused("Fact not found")
        memory_id = found[0].id
    await change(house, memory_id, {"content": _content(ask)})
    return {"status": "success", "message": "Fact updated", "memory_id": memory_id}


async def search_facts(ask: Fields, house: House) -> Reply:
    found = await found_by_meaning(house, ask.text("query"), ask.whole("limit", 10), type=FACT)
    return {"status": "success", "results": [to_legacy(memory) for memory in found]}


async def _about(house: House, topic: str) -> list[Memory]:
    """The fact of exactly this topic that was added last."""
    return await listed(house, 1, sort="newest", type=FACT, tag=_tag(topic))


def _tag(topic: str) -> str:
    return topic.lower()[:256]


def _content(ask: Fields) -> str:
    """The content as text: objects and arrays as JSON, which is how their readers got them back."""
    content = ask["content"]
    return json.dumps(content, ensure_ascii=False) if isinstance(content, dict | list) else ask.text("content")


async def health(house: House) -> dict[str, Any]:
    is_up = await house.is_up("memory")
    return {"status": "success" if is_up else "degraded", "healthy": is_up}


async def health_socket(message: object, house: House) -> Reply:
    """Exactly these five keys, whatever was sent."""
    return {
        "status": "HEALTHY" if await house.is_up("memory") else "DEGRADED",
        "service": NAME,
        "uptime_seconds": int(time.time() - house.started_at),
        "request_count": house.requests_of(NAME),
        "timestamp": time.time(),
    }


AGENT = Agent(
    name=NAME,
    service="memory",
    kind="knowledge",
    ports=(5715,),
    health_ports=(6715,),
    actions={
        "add_fact": Action(add_fact, ("topic", "content"), "Missing topic or content"),
        "get_fact": Action(get_fact, ("topic",)),
        "update_fact": Action(update_fact, ("content",), "Missing required parameters"),
        "search_facts": Action(search_facts, ("query",), "query is required."),
    },
    health=health,
    health_socket=health_socket,
)
