"""The commands of the reasoning agent's older form (port 5596): memories with a strength that fades.

A memory that nobody asked for during a day loses a tenth of its strength every five minutes from then on; the loss is
reckoned when it is next looked at, so nothing runs in between. Kept in `legacy.umra.memories`.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

from schemas.errors import BusError
from workers.gateway.legacy.agent import Action, Fields, Handle, Refused, Reply
from workers.gateway.legacy.agents.reasoning_desk import NAME, desk
from workers.gateway.legacy.house import House
from workers.gateway.legacy.kept import Kept

# When and how a memory fades; seconds, and factors of its strength.
IDLE_S: Final = 86_400.0
DECAY_EVERY_S: Final = 300.0
DECAY: Final = 0.9
FORGOTTEN_BELOW: Final = 0.1
REINFORCEMENT: Final = 1.2
STRONGEST: Final = 5.0

# Seconds within which another reading is not written down again: fading counts in days.
_SAME_ACCESS_S: Final = 60.0

# Records written at once.
_AT_ONCE: Final = 32


def settled(record: dict[str, Any], now: float) -> dict[str, Any]:
    """The record with the fading up to `now` in its memory, which then counts as asked for at `now`."""
    memory = dict(record["memory"])
    passes = _passes(memory, now)
    strength = _number(memory.get("strength"), 1.0) * DECAY**passes
    memory["strength"] = strength
    memory["forgotten"] = bool(memory.get("forgotten")) or (passes > 0 and strength < FORGOTTEN_BELOW)
    memory["last_accessed"] = now
    return {**record, "memory": memory, "decays": record.get("decays", 0) + passes}


def reinforced(record: dict[str, Any], now: float) -> dict[str, Any]:
    """The record with a stronger memory, which is forgotten no more."""
    after = settled(record, now)
    after["memory"]["strength"] = min(after["memory"]["strength"] * REINFORCEMENT, STRONGEST)
    after["memory"]["forgotten"] = False
    return {**after, "reinforcements": record.get("reinforcements", 0) + 1}


def stored(given: dict[str, Any], now: float) -> dict[str, Any]:
    """A new record: what was given, and what every memory has."""
    fields = Fields(given)
    memory = {
        **given,
        "id": fields.text("id") or f"mem_{int(now)}_{uuid.uuid4().hex[:8]}",
        "created_at": given.get("created_at") or now,
        "last_accessed": now,
        "strength": fields.number("strength", 1.0),
        "source": given.get("source") or "unknown",
        "forgotten": False,
    }
    return {"memory": memory, "decays": 0, "reinforcements": 0}


def merged(known: dict[str, Any] | None, given: dict[str, Any], now: float) -> dict[str, Any] | None:
    """The record after a memory from elsewhere came; None where ours was asked for later. The stronger one counts."""
    fresh = stored(given, now)
    fresh["memory"]["last_accessed"] = at = _number(given.get("last_accessed"), now)
    fresh["memory"]["forgotten"] = bool(given.get("forgotten"))
    if known is None:
        return fresh
    memory = known["memory"]
    if at < _number(memory.get("last_accessed"), 0.0):
        return None
    strength = max(_number(memory.get("strength"), 1.0), fresh["memory"]["strength"])
    return {**known, "memory": {**fresh["memory"], "strength": strength}}


def is_wanted(memory: dict[str, Any], keywords: list[str], source: str, min_strength: float) -> bool:
    """True where a memory is from the source (any for ""), strong enough, and holds one of the keywords, if any."""
    if memory["strength"] < min_strength or (source and memory.get("source") != source):
        return False
    content = str(memory.get("content", "")).lower()
    return not keywords or any(word.lower() in content for word in keywords)


def _passes(memory: dict[str, Any], now: float) -> int:
    idle_s = now - _number(memory.get("last_accessed"), now)
    return 0 if idle_s < IDLE_S else 1 + int((idle_s - IDLE_S) // DECAY_EVERY_S)


def _number(value: Any, default: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else default


# The commands


async def test_ping(ask: Fields, house: House) -> Reply:
    echo = {"echo": ask.get("data"), "timestamp": _stamp(time.time()), "agent": NAME, "location": "PC2"}
    return _success("pong", echo)


async def store_memory(ask: Fields, house: House) -> Reply:
    record = stored(_needed(ask.mapping("data"), "data"), time.time())
    memory_id = record["memory"]["id"]
    async with desk(house).turns.of(memory_id):
        await _memories(house).put(memory_id, record)
    return _success("Memory stored", {"memory_id": memory_id})


async def query_memory(ask: Fields, house: House) -> Reply:
    query = Fields(ask.mapping("query"))
    is_all = query.flag("include_forgotten", ask.flag("include_forgotten", False))
    min_strength = 0.0 if query.get("id") else query.number("min_strength", ask.number("min_strength", 0.0))
    now = time.time()
    hits = []
    for record in await _candidates(query, house):
        memory = settled(record, now)["memory"]
        if (is_all or not memory["forgotten"]) and is_wanted(memory, *_filters(query), min_strength):
            hits.append((record, memory))
    if query.get("id") and not hits:
        raise Refused(f"Memory not found: {query.text('id')}")
    await _note_access(house, [record for record, _ in hits], now)
    return _success(f"{len(hits)} memories", {"memories": [memory for _, memory in hits]})


async def reinforce_memory(ask: Fields, house: House) -> Reply:
    memory_id = _needed(ask.text("memory_id"), "memory_id")
    async with desk(house).turns.of(memory_id):
        record = await _memories(house).get(memory_id)
        if record is None:
            raise Refused(f"Memory not found: {memory_id}")
        after = reinforced(record, time.time())
        await _memories(house).put(memory_id, after)
    return _success("Memory reinforced", {"memory_id": memory_id, "strength": after["memory"]["strength"]})


async def get_memory_status(ask: Fields, house: House) -> Reply:
    now = time.time()
    total = forgotten = reinforcements = decays = 0
    async for _, record in _memories(house).each():
        total += 1
        forgotten += _is_forgotten(record, now)
        reinforcements += record.get("reinforcements", 0)
        decays += settled(record, now)["decays"]
    status = {
        "total_memories": total,
        "active_memories": total - forgotten,
        "forgotten_memories": forgotten,
        "total_reinforcements": reinforcements,
        "total_decays": decays,
        "last_decay_check": now,
        "last_sync": await house.kept("umra").get("last_sync") or 0.0,
        "timestamp": _stamp(now),
    }
    return _success("Memory status", status)


async def sync_memories(ask: Fields, house: House) -> Reply:
    given = [one for one in _needed(ask.items_of("memories"), "memories") if isinstance(one, dict) and one.get("id")]
    now, kept = time.time(), _memories(house)
    synced = 0
    for one in given:
        memory_id = Fields(one).text("id")
        async with desk(house).turns.of(memory_id):
            after = merged(await kept.get(memory_id), one, now)
            if after is not None:
                await kept.put(memory_id, after)
                synced += 1
    await house.kept("umra").put("last_sync", now)
    return _success(f"{synced} memories synced", {"synced_count": synced, "total_memories": await kept.count()})


async def delete_memory(ask: Fields, house: House) -> Reply:
    memory_id = _needed(ask.text("memory_id"), "memory_id")
    if not await _memories(house).drop(memory_id):
        raise Refused(f"Memory not found: {memory_id}")
    return {"status": "SUCCESS", "message": "Memory deleted"}


async def health_check(ask: Fields, house: House) -> Reply:
    base = await house.health_of(house.agents[NAME])
    counts = {key: value for key, value in base.items() if key.endswith("_count") or key.startswith("total_")}
    return {**base, "status": "success", "health": base, "metrics": counts}


def _memories(house: House) -> Kept:
    return house.kept("umra.memories")


async def _candidates(query: Fields, house: House) -> list[dict[str, Any]]:
    """What the first filter that is there asks for: one id, several, or whatever has to be looked through."""
    if query.get("id") or query.get("ids"):
        ids = [query.text("id")] if query.get("id") else [str(one) for one in query.items_of("ids") if one]
        found = [await _memories(house).get(memory_id) for memory_id in dict.fromkeys(ids)]
        return [record for record in found if record is not None]
    if query.get("keywords") or query.get("source"):
        return [record async for _, record in _memories(house).each()]
    raise Refused("No query given: one of id, ids, keywords, source")


async def _note_access(house: House, records: list[dict[str, Any]], now: float) -> None:
    """Write down that these were asked for, where that is news."""
    stale = [one["memory"]["id"] for one in records if now - _accessed(one["memory"]) > _SAME_ACCESS_S]
    for start in range(0, len(stale), _AT_ONCE):
        await asyncio.gather(*(_note_one(house, memory_id, now) for memory_id in stale[start : start + _AT_ONCE]))


async def _note_one(house: House, memory_id: str, now: float) -> None:
    async with desk(house).turns.of(memory_id):
        record = await _memories(house).get(memory_id)
        if record is not None:
            await _memories(house).put(memory_id, settled(record, now))


def _accessed(memory: dict[str, Any]) -> float:
    return _number(memory.get("last_accessed"), 0.0)


def _is_forgotten(record: dict[str, Any], now: float) -> bool:
    return bool(settled(record, now)["memory"]["forgotten"])


def _filters(query: Fields) -> tuple[list[str], str]:
    """The keywords and the source that hits must have; neither where ids are asked for."""
    if query.get("id") or query.get("ids"):
        return [], ""
    keywords = query.get("keywords") or []
    return [str(one) for one in (keywords if isinstance(keywords, list) else [keywords])], query.text("source")


def _needed(value: Any, name: str) -> Any:
    if not value:
        raise Refused(f"Missing {name}")
    return value


def _success(message: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"status": "SUCCESS", "message": message, "data": data}


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def _command(act: Callable[[Fields, House], Awaitable[Reply]]) -> Action:
    """Commands say ERROR in capitals."""

    async def answer(ask: Fields, house: House) -> Reply:
        try:
            return await act(ask, house)
        except Refused as refused:
            raise Refused(refused.text, status="ERROR") from refused
        except BusError as error:
            raise Refused(error.message, status="ERROR", code=error.code) from error

    handle: Handle = answer
    return Action(handle)


COMMANDS: Final = {
    "TEST_PING": _command(test_ping),
    "STORE_MEMORY": _command(store_memory),
    "QUERY_MEMORY": _command(query_memory),
    "REINFORCE_MEMORY": _command(reinforce_memory),
    "GET_MEMORY_STATUS": _command(get_memory_status),
    "SYNC_MEMORIES": _command(sync_memories),
    "DELETE_MEMORY": _command(delete_memory),
    "HEALTH_CHECK": _command(health_check),
}
