"""What the store behind the ExperienceTracker understood itself (port 7110): memories with whole numbers as ids.

They are memories of ours called `mem-legacy-<number>`, with the tag `memory_manager`, on the tier that does not fade; what
has the type `experience` is the tracker's. Whoever has clients of 7110 adds that port to the tracker's in `legacy.ports`.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from schemas.bodies.items import Memories, Memory, MemoryAdd, MemoryGetMany, MemoryList, MemoryUpdate
from schemas.errors import Conflict, NotFound
from workers.gateway.legacy.agent import Action, Fields, Refused, Reply
from workers.gateway.legacy.agents import memories
from workers.gateway.legacy.agents.experiences import (
    EXPERIENCE,
    get_experiences,
    importance_of,
    limit_of,
    track_experience,
    ttl_s,
)
from workers.gateway.legacy.house import House

TAG: Final = "memory_manager"

_ID: Final = re.compile(r"mem-legacy-([0-9]{1,15})")

# Numbers tried where the next one is taken already.
_TRIES: Final = 100

_PAGE: Final = 1_000


async def store_memory(ask: Fields, house: House) -> Reply:
    if ask.get("memory_type") == EXPERIENCE:
        return await track_experience(ask, house)
    fields: dict[str, Any] = {
        "content": ask.text("content"),
        "type": ask.text("memory_type") or "general",
        "tier": "long",
        "importance": importance_of(ask.get("importance_score")),
        "tags": [TAG],
        "metadata": ask.mapping("metadata"),
        "ttl_s": ttl_s(ask.get("expires_at"), time.time()),
        "ns": memories.NS,
    }
    first = await _next_number(house)
    for number in range(first, first + _TRIES):
        try:
            await house.ask("memory.add", MemoryAdd(id=f"mem-legacy-{number}", **fields), timeout_s=memories.TIMEOUT_S)
        except Conflict:
            continue
        return {"status": "success", "memory_id": number, "message": "Memory stored"}
    raise Refused(f"none of {_TRIES} numbers from {first} on is free")


async def retrieve_memory(ask: Fields, house: House) -> Reply:
    """The most important first; each gains an access after it was read."""
    kind, query = ask.text("memory_type") or None, ask.text("query") or None
    if kind == EXPERIENCE and query is None:
        return await get_experiences(ask, house)
    limit = limit_of(ask.get("limit"))
    page = await _list(house, MemoryList(type=kind, contains=query, sort="importance", limit=max(limit, 1)))
    found = page.memories[:limit]
    if found:
        touched = MemoryGetMany(ids=[memory.id for memory in found], ns=memories.NS, touch=True)
        await house.ask("memory.get_many", touched, timeout_s=memories.TIMEOUT_S)
    items = [_item(memory) for memory in found]
    return {"status": "success", "memories": items, "count": len(items)}


async def update_importance(ask: Fields, house: House) -> Reply:
    number = ask.whole("memory_id", 0, high=10**15)
    change = MemoryUpdate(
        id=f"mem-legacy-{number}", ns=memories.NS, importance=importance_of(ask.get("importance_score"))
    )
    try:
        await house.ask("memory.update", change, timeout_s=memories.TIMEOUT_S)
    except NotFound as error:
        raise Refused(f"Memory not found: {number}") from error
    return {"status": "success", "message": "Importance updated"}


async def delete_expired(ask: Fields, house: House) -> Reply:
    """What expires goes by itself: there is never anything left to delete."""
    return {"status": "success", "deleted_count": 0, "message": "Expired memories go by themselves"}


async def get_stats(ask: Fields, house: House) -> Reply:
    by_type: Counter[str] = Counter()
    importance = 0.0
    async for memory in _each(house):
        by_type[memory.type] += 1
        importance += memory.importance
    total = by_type.total()
    stats = {
        "total_memories": total,
        "memories_by_type": dict(by_type),
        "average_importance": importance / total if total else 0.0,
        "expired_memories": 0,
    }
    return {"status": "success", "stats": stats}


async def _next_number(house: House) -> int:
    newest = await _list(house, MemoryList(sort="newest", limit=1))
    match = _ID.fullmatch(newest.memories[0].id) if newest.memories else None
    return int(match[1]) + 1 if match else 1


async def _each(house: House) -> AsyncIterator[Memory]:
    after: int | None = None
    while True:
        page = await _list(house, MemoryList(limit=_PAGE, after=after))
        for memory in page.memories:
            yield memory
        after = page.next_after
        if after is None:
            return


async def _list(house: House, wanted: MemoryList) -> Memories:
    page: Memories = await house.ask(
        "memory.list", msgspec.structs.replace(wanted, ns=memories.NS, tag=TAG), timeout_s=memories.TIMEOUT_S
    )
    return page


def _item(memory: Memory) -> dict[str, Any]:
    match = _ID.fullmatch(memory.id)
    return {
        "memory_id": int(match[1]) if match else memory.sequence,
        "content": memory.content,
        "memory_type": memory.type,
        "importance_score": memory.importance,
        "access_count": memory.access_count,
        "last_accessed": datetime.fromtimestamp(memory.last_accessed_at).isoformat(),
        "created_at": datetime.fromtimestamp(memory.created_at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "metadata": {key: value for key, value in memory.metadata.items() if key != memories.KEPT},
    }


ACTIONS: Final = {
    "store_memory": Action(store_memory, required=("content",)),
    "retrieve_memory": Action(retrieve_memory),
    "update_importance": Action(update_importance, required=("memory_id",)),
    "delete_expired": Action(delete_expired),
    "get_stats": Action(get_stats),
}
