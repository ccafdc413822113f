"""MemoryOrchestratorService (7140): memories with parents, relations and groups; arguments stand under `data`."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from schemas.bodies import items
from schemas.errors import BadRequest, Conflict, NotFound, TooLarge, Unprocessable
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply
from workers.gateway.legacy.agents.memories import (
    NS,
    TIMEOUT_S,
    found_by_meaning,
    from_legacy,
    listed,
    needs_before,
    not_found,
    read_many,
    to_legacy,
    type_of,
    unit,
    update_of,
)
from workers.gateway.legacy.house import House

# Memories that one search answers with, at most.
_LIMIT_MAX: Final = 1_000

# Items of one `memory.add_many`.
_ADDED_AT_ONCE: Final = 1_000

# Times an update is tried again where another one came in between.
_UPDATES: Final = 5

# What `children` can be sorted by; anything else leaves them in the order of adding.
_SORTS: Final = ("added", "created_at", "importance", "last_accessed_at")

# Keys of the metadata that readers of `results` look for beside the 13.
_LIFTED: Final = ("status", "priority", "task_type")

# "status:active OR status:pending": no text to look for, but values of `metadata.status`.
_STATUS: Final = re.compile(r"\s*status:(\w+)(?:\s+OR\s+status:\w+)*\s*", re.IGNORECASE)
_STATUS_WORD: Final = re.compile(r"status:(\w+)", re.IGNORECASE)

# Of the statuses that one query names, those looked for.
_STATUSES_MAX: Final = 16


# One memory


async def add_memory(ask: Fields, house: House) -> Reply:
    request = from_legacy(ask, now=time.time())
    try:
        added: items.MemoryAdded = await house.ask("memory.add", request, timeout_s=TIMEOUT_S)
    except (BadRequest, TooLarge) as error:
        raise Refused(f"Invalid memory format: {error.message}") from error
    return {"status": "success", "memory_id": added.id}


async def get_memory(ask: Fields, house: House) -> Reply:
    memory_id = ask.text("memory_id")
    try:
        memory = await house.ask("memory.get", items.MemoryGet(id=memory_id, ns=NS), timeout_s=TIMEOUT_S)
    except NotFound as error:
        raise not_found(memory_id) from error
    return {"status": "success", "memory": to_legacy(memory)}


async def update_memory(ask: Fields, house: House) -> Reply:
    await change(house, ask.text("memory_id"), ask.mapping("update_data"))
    return {"status": "success"}


async def change(house: House, memory_id: str, changes: Mapping[str, Any]) -> None:
    """Replace the given ones of the 13 keys. Raises Refused."""
    for attempt in range(_UPDATES):
        try:
            before = None
            if needs_before(changes):
                before = await house.ask(
                    "memory.get", items.MemoryGet(id=memory_id, ns=NS, touch=False), timeout_s=TIMEOUT_S
                )
            request = update_of(memory_id, changes, before, now=time.time())
            await house.ask("memory.update", request, timeout_s=TIMEOUT_S)
            return
        except NotFound as error:
            raise not_found(memory_id) from error
        except Conflict:
            if attempt == _UPDATES - 1:
                raise


async def delete_memory(ask: Fields, house: House) -> Reply:
    memory_id = ask.text("memory_id")
    await remove(house, memory_id, cascade=ask.flag("cascade", False))
    return {"status": "success", "message": f"Memory {memory_id} deleted."}


async def remove(house: House, memory_id: str, *, cascade: bool) -> None:
    """Delete a memory, its relations and memberships, with `cascade` all below it too. Raises Refused."""
    try:
        await house.ask("memory.delete", items.MemoryDelete(id=memory_id, ns=NS, cascade=cascade), timeout_s=TIMEOUT_S)
    except NotFound as error:
        raise not_found(memory_id) from error


async def reinforce_memory(ask: Fields, house: House) -> Reply:
    memory_id = ask.text("memory_id")
    factor = ask.number("reinforcement_factor", 1.2)
    try:
        memory = await _reinforced(house, memory_id, factor)
    except NotFound as error:
        raise not_found(memory_id) from error
    return {"status": "success", "new_importance": memory.importance}


async def _reinforced(house: House, memory_id: str, factor: float) -> items.Memory:
    memory: items.Memory
    if factor > 0:
        request = items.MemoryReinforce(id=memory_id, ns=NS, factor=min(factor, 100.0))
        memory = await house.ask("memory.reinforce", request, timeout_s=TIMEOUT_S)
    else:
        # Nothing is left of an importance times 0 or less, which ours does not take as a factor.
        memory = await house.ask(
            "memory.update", items.MemoryUpdate(id=memory_id, ns=NS, importance=0.0), timeout_s=TIMEOUT_S
        )
    return memory


# Several


async def batch_add_memories(ask: Fields, house: House) -> Reply:
    given = ask.items_of("memories")
    valid: list[items.MemoryAdd] = []
    now = time.time()
    for fields in given:
        try:
            valid.append(from_legacy(fields if isinstance(fields, dict) else {}, importance=0.5, now=now))
        except Refused:
            continue  # the contract: what is no memory is left out, the others are added
    ids = [
        memory_id
        for start in range(0, len(valid), _ADDED_AT_ONCE)
        for memory_id in await _add_each(house, valid[start : start + _ADDED_AT_ONCE])
    ]
    return {"status": "success", "message": f"Added {len(ids)} of {len(given)} memories.", "memory_ids": ids}


async def _add_each(house: House, memories: list[items.MemoryAdd]) -> list[str]:
    """The ids of those that could be added, in their order: all at once, one by one where that is refused."""
    new: list[items.NewMemory] = list(memories)
    try:
        added: items.MemoriesAdded = await house.ask(
            "memory.add_many", items.MemoryAddMany(items=new, ns=NS), timeout_s=TIMEOUT_S
        )
        return added.ids
    except (BadRequest, TooLarge, Unprocessable):
        ids = []
        for memory in memories:
            try:
                ids.append((await house.ask("memory.add", memory, timeout_s=TIMEOUT_S)).id)
            except (BadRequest, TooLarge, Unprocessable):
                continue  # as one that is no memory
        return ids


async def batch_get_memories(ask: Fields, house: House) -> Reply:
    ids = [memory_id for memory_id in ask.items_of("memory_ids") if isinstance(memory_id, str) and memory_id]
    by_id = {memory.id: to_legacy(memory) for memory in await read_many(house, ids, touch=True)}
    memories = [by_id[memory_id] for memory_id in ids if memory_id in by_id]
    return {"status": "success", "memories": memories, "count": len(memories)}


async def get_children(ask: Fields, house: House) -> Reply:
    # Who asks for no order gets that of adding; the old defaults are those of whoever asks for half of one.
    is_sorted = ask.get("sort_field") is not None or ask.get("sort_order") is not None
    sort_field = ask.text("sort_field", "created_at" if is_sorted else "added")
    found = await children(
        house,
        ask.text("parent_id"),
        limit=ask.whole("limit", 0, high=1_000_000),
        sort_field=sort_field if sort_field in _SORTS else "added",
        is_descending=ask.text("sort_order", "desc" if is_sorted else "asc").lower() == "desc",
    )
    objects = [to_legacy(memory) for memory in found]
    return {"status": "success", "children": objects, "results": [_lifted(one) for one in objects]}


async def children(
    house: House, parent_id: str, *, limit: int, sort_field: Any = "added", is_descending: bool = False
) -> list[items.Memory]:
    """What lies right under a memory; `limit` 0 for all of it."""
    found: list[items.Memory] = []
    while True:
        left = limit - len(found)
        page: items.Memories = await house.ask(
            "memory.children",
            items.MemoryChildren(
                id=parent_id,
                ns=NS,
                limit=min(left, _LIMIT_MAX) if limit else None,
                after=len(found),
                sort_field=sort_field,
                sort_order="desc" if is_descending else "asc",
            ),
            timeout_s=TIMEOUT_S,
        )
        found += page.memories
        if page.next_after is None or (limit and len(found) >= limit):
            return found


def _lifted(memory: dict[str, Any]) -> dict[str, Any]:
    """With what clients of `results` read at the top though it stands in the metadata."""
    metadata = memory["metadata"]
    return {**{key: metadata[key] for key in _LIFTED if key in metadata}, **memory}


# Search


async def search_memory(ask: Fields, house: House) -> Reply:
    query = _text_of(ask, "query")
    wanted = type_of(ask["memory_type"]) if ask.get("memory_type") else None
    parent_id = ask.text("parent_id") or None
    limit = ask.whole("limit", 10, high=_LIMIT_MAX)
    if _STATUS.fullmatch(query):
        found = await _with_status(house, query, limit, wanted, parent_id)
    else:
        found = await listed(house, limit, contains=query, type=wanted, parent_id=parent_id)
    results = [to_legacy(memory) for memory in found]
    return {"status": "success", "results": results, "count": len(results)}


async def _with_status(
    house: House, query: str, limit: int, wanted: str | None, parent_id: str | None
) -> list[items.Memory]:
    """Memories whose metadata has one of the statuses that the query names, and those that hold it as text."""
    statuses = dict.fromkeys(word.lower() for word in _STATUS_WORD.findall(query))
    lists = await asyncio.gather(
        listed(house, limit, contains=query, type=wanted, parent_id=parent_id),
        *(
            listed(house, limit, type=wanted, parent_id=parent_id, metadata={"status": status})
            for status in list(statuses)[:_STATUSES_MAX]
        ),
    )
    by_id = {memory.id: memory for found in lists for memory in found}
    return sorted(by_id.values(), key=lambda memory: (-memory.importance, -memory.last_accessed_at))[:limit]


async def semantic_search(ask: Fields, house: House) -> Reply:
    query = _text_of(ask, "query")
    filters = Fields(ask.mapping("filters"))
    found = await found_by_meaning(
        house,
        query,
        ask.whole("k", 5, high=_LIMIT_MAX),
        type=type_of(filters["memory_type"]) if filters.get("memory_type") else None,
        parent_id=filters.text("parent_id") or None,
    )
    results = [to_legacy(memory) for memory in found]
    return {
        "status": "success",
        "message": f"Found {len(results)} memories.",
        "results": results,
        "count": len(results),
    }


def _text_of(ask: Fields, name: str) -> str:
    text = ask.text(name)
    if not text.strip():
        raise Refused(f"{name} is required.")
    return text


# Relations and groups


async def add_relationship(ask: Fields, house: House) -> Reply:
    names = ("source_id", "target_id", "relationship_type")
    if not all(isinstance(ask[name], str) for name in names):
        raise Refused("source_id, target_id and relationship_type must be text.")
    await house.ask(
        "memory.link",
        items.MemoryLink(
            source_id=ask["source_id"],
            target_id=ask["target_id"],
            kind=ask["relationship_type"][:64],
            strength=unit(ask.number("strength", 1.0)),
            ns=NS,
        ),
        timeout_s=TIMEOUT_S,
    )
    return {"status": "success"}


async def get_related(ask: Fields, house: House) -> Reply:
    kind = ask.text("relationship_type")[:64] or None
    found: list[items.RelatedMemory] = []
    after: int | None = 0
    while after is not None:
        page: items.RelatedMemories = await house.ask(
            "memory.related",
            items.MemoryRelated(id=ask.text("memory_id"), ns=NS, kind=kind, limit=_LIMIT_MAX, after=after),
            timeout_s=TIMEOUT_S,
        )
        found += page.related
        after = page.next_after
    return {"status": "success", "related_memories": [_related(one) for one in found if one.memory is not None]}


def _related(one: items.RelatedMemory) -> dict[str, Any]:
    memory, relation = one.memory, one.relation
    assert memory is not None
    return {
        "relationship": {
            "type": relation.kind,
            "strength": relation.strength,
            "created_at": relation.created_at,
        },
        "memory": {
            "memory_id": memory.id,
            "content": memory.content,
            "memory_type": memory.type,
            "memory_tier": memory.tier,
            "importance": memory.importance,
        },
    }


async def create_context_group(ask: Fields, house: House) -> Reply:
    group: items.Group = await house.ask(
        "memory.group.create",
        items.GroupCreate(name=ask.text("name")[:256], description=ask.text("description"), ns=NS),
        timeout_s=TIMEOUT_S,
    )
    return {"status": "success", "group_id": group.group_id}


async def add_to_group(ask: Fields, house: House) -> Reply:
    if not isinstance(ask["memory_id"], str):
        raise Refused("memory_id must be text.")
    group_id = _group_id(ask)
    try:
        await house.ask(
            "memory.group.add",
            items.GroupAdd(group_id=group_id, memory_id=ask["memory_id"], ns=NS),
            timeout_s=TIMEOUT_S,
        )
    except NotFound as error:
        raise Refused(f"Context group with ID {group_id} not found.") from error
    return {"status": "success"}


async def get_memories_by_group(ask: Fields, house: House) -> Reply:
    group_id = _group_id(ask)
    found: list[items.Memory] = []
    after: int | None = None
    while True:
        try:
            page: items.Memories = await house.ask(
                "memory.group.members",
                items.GroupMembers(group_id=group_id, ns=NS, limit=_LIMIT_MAX, after=after),
                timeout_s=TIMEOUT_S,
            )
        except NotFound as error:
            raise Refused(f"Context group with ID {group_id} not found.") from error
        found += page.memories
        after = page.next_after
        if after is None:
            break
    memories = [to_legacy(memory) for memory in found]
    return {"status": "success", "memories": memories, "results": memories, "count": len(memories)}


def _group_id(ask: Fields) -> int:
    try:
        group_id = int(ask["group_id"])
    except (TypeError, ValueError, OverflowError):
        group_id = 0
    if group_id < 1:
        raise Refused(f"group_id must be a number from 1 on, not {ask['group_id']!r}.")
    return group_id


# Sessions


async def create_session(ask: Fields, house: House) -> Reply:
    return {"status": "success", "session_id": await open_session(ask, house)}


async def open_session(ask: Fields, house: House) -> str:
    """Keep a memory of type `session`, under which its interactions are put; returns its id. Raises Refused."""
    user_id = ask.text("user_id") or "default"
    session_type = ask.text("session_type") or "conversation"
    about = {"user_id": user_id, "session_type": session_type}
    if ask.get("created_by") is not None:
        about["created_by"] = ask.text("created_by")
    added: items.MemoryAdded = await house.ask(
        "memory.add",
        items.MemoryAdd(
            content=f"Session ({session_type}) of {user_id}",
            type="session",
            tier="medium",
            metadata={**about, **ask.mapping("metadata")},
            at=time.time(),
            ns=NS,
        ),
        timeout_s=TIMEOUT_S,
    )
    return added.id


async def health(house: House) -> dict[str, Any]:
    services = await house.services()
    is_up = services.get("memory", 0) > 0
    # The cache is the memory's own, and errors go to the bus.
    return {"db_connected": is_up, "redis_connected": is_up, "error_bus_ready": bool(services)}


_REQUIRED: Final = "{field} is required."

AGENT = Agent(
    name="MemoryOrchestratorService",
    service="memory",
    kind="memory",
    ports=(7140,),
    health_ports=(8140, 7141),
    data_key="data",
    actions={
        "add_memory": Action(add_memory),
        "get_memory": Action(get_memory, ("memory_id",), _REQUIRED),
        "get_children": Action(get_children, ("parent_id",), _REQUIRED),
        "add_relationship": Action(
            add_relationship,
            ("source_id", "target_id", "relationship_type"),
            "source_id, target_id and relationship_type are required.",
        ),
        "get_related": Action(get_related, ("memory_id",), _REQUIRED),
        "search_memory": Action(search_memory, ("query",), _REQUIRED),
        "semantic_search": Action(semantic_search, ("query",), _REQUIRED),
        "update_memory": Action(update_memory, ("memory_id",), _REQUIRED),
        "delete_memory": Action(delete_memory, ("memory_id",), _REQUIRED),
        "reinforce_memory": Action(reinforce_memory, ("memory_id",), _REQUIRED),
        "create_context_group": Action(create_context_group, ("name",), _REQUIRED),
        "add_to_group": Action(add_to_group, ("memory_id", "group_id"), "memory_id and group_id are required."),
        "get_memories_by_group": Action(get_memories_by_group, ("group_id",), _REQUIRED),
        "batch_add_memories": Action(batch_add_memories, ("memories",), "No memories provided."),
        "batch_get_memories": Action(batch_get_memories, ("memory_ids",), "No memory_ids provided."),
        "create_session": Action(create_session),
    },
    health=health,
)
