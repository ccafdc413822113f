"""MemoryClient (5713): hands requests on to MemoryOrchestratorService, and speaks the key-value words of its successor.

Items of the key-value words (`get`, `put`, ...) are records of their own (`legacy.fusion`), not memories.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, Literal

from schemas.bodies.memory import KvList, KvPage
from schemas.errors import BusError
from workers.gateway.legacy.agent import Action, Agent, Fields, Handle, Refused, Reply
from workers.gateway.legacy.agents import orchestrator
from workers.gateway.legacy.agents.memories import TIMEOUT_S, moment
from workers.gateway.legacy.house import House
from workers.gateway.legacy.kept import Kept

NAME: Final = "MemoryClient"

# As the breaker of the old client library: failures in a row, and seconds until the next request counts again.
FAILURES: Final = 3
RESET_S: Final = 60

# Codes of replies that say nothing about the request: the memory could not be asked.
_UNAVAILABLE: Final = frozenset({"no_worker", "overloaded", "worker_lost", "deadline_exceeded"})

# Keys that one list answers with, at most.
_KEYS_MAX: Final = 100_000
_PAGE: Final = 1_000

# Of the items without another kind.
_MEMORY_TYPES: Final = ("conversation", "knowledge", "session", "context", "metadata")

# Fields that tell items of other kinds; they are kept as they come.
_OTHER_KINDS: Final = ("item_type", "session_id", "knowledge_id", "event_id")

Work = Callable[[Fields, House], Awaitable[dict[str, Any]]]


class Breaker:
    """Whether the memory could be asked of late. It only tells: the bus itself answers at once where nobody serves."""

    def __init__(self) -> None:
        self.failures = 0
        self.failed_at = 0.0

    def note(self, is_failure: bool, now: float) -> None:
        """The outcome of one request at `now`, epoch seconds."""
        self.failures = self.failures + 1 if is_failure else 0
        if is_failure:
            self.failed_at = now

    def state(self, now: float) -> Literal["CLOSED", "OPEN", "HALF_OPEN"]:
        """As the old library would have called it."""
        if self.failures < FAILURES:
            return "CLOSED"
        return "OPEN" if now - self.failed_at < RESET_S else "HALF_OPEN"


def _forward(verb: str) -> Handle:
    async def handle(ask: Fields, house: House) -> Reply:
        data = ask.get("data")
        if data is None:
            data = {key: value for key, value in ask.items() if key != "action"}
        reply = await house.agent(orchestrator.AGENT.name).answer({"action": verb, "data": data})
        _breaker(house).note(reply.get("code") in _UNAVAILABLE, time.time())
        return reply

    return handle


async def reset_circuit_breaker(ask: Fields, house: House) -> Reply:
    _breaker(house).note(False, time.time())
    return {"status": "success", "message": "Circuit breaker reset to CLOSED", "new_state": "CLOSED"}


async def health_check(ask: Fields, house: House) -> Reply:
    base = await house.health_of(AGENT)
    return {**base, "status": "success" if base["connected"] else "degraded"}


async def health(house: House) -> dict[str, Any]:
    breaker = _breaker(house)
    return {
        "agent": NAME,
        "connected": await house.is_up("memory"),
        "circuit_breaker": {
            "state": breaker.state(time.time()),
            "failure_count": breaker.failures,
            "last_failure_time": breaker.failed_at,
            "failure_threshold": FAILURES,
            "reset_timeout": RESET_S,
        },
    }


def _breaker(house: House) -> Breaker:
    return house.state(NAME, Breaker)


# The key-value words


def _keyed(action: str, work: Work) -> Action:
    """An action answered in the words of the key-value dialect."""

    async def handle(ask: Fields, house: House) -> Reply:
        try:
            result = await work(ask, house)
        except Refused as refused:
            raise Refused(refused.text, success=False, timestamp=_utc()) from refused
        except BusError as error:
            raise Refused(error.message, success=False, timestamp=_utc(), code=error.code) from error
        return {"success": True, "status": "success", "action": action, "result": result, "timestamp": _utc()}

    return Action(handle)


async def get(ask: Fields, house: House) -> dict[str, Any]:
    item = await _items(house).get(_key(ask))
    return {"found": item is not None, "item": item}


async def put(ask: Fields, house: House) -> dict[str, Any]:
    key = _key(ask)
    item = item_of(key, ask.get("item"), now=time.time())
    end = moment(item.get("expiry_timestamp"))
    if end is not None and end <= time.time():
        raise Refused("expiry_timestamp is in the past")
    await _items(house).put(key, item, ttl_s=None if end is None else end - time.time())
    return {"stored": True}


async def delete(ask: Fields, house: House) -> dict[str, Any]:
    was_there = await _items(house).drop(_key(ask))
    return {"deleted": was_there, "found": was_there}


async def exists(ask: Fields, house: House) -> dict[str, Any]:
    return {"exists": await _items(house).get(_key(ask)) is not None}


async def list_keys(ask: Fields, house: House) -> dict[str, Any]:
    limit = ask.get("limit")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        limit = 100
    limit = min(limit, _KEYS_MAX)
    keys: list[str] = []
    after: str | None = None
    while len(keys) < limit:
        page: KvPage = await house.ask(
            "memory.kv.list",
            KvList(
                prefix=ask.text("prefix"),
                ns=_items(house).ns,
                limit=min(limit - len(keys), _PAGE),
                after=after,
                keys_only=True,
            ),
            timeout_s=TIMEOUT_S,
        )
        keys += [entry.key for entry in page.entries]
        after = page.next_after
        if after is None:
            break
    return {"keys": keys, "count": len(keys)}


async def batch_get(ask: Fields, house: House) -> dict[str, Any]:
    keys = ask.items_of("keys")
    if not keys or not all(isinstance(key, str) and key for key in keys):
        raise Refused("keys must be an array of at least one text")
    found = {key: await _items(house).get(key) for key in dict.fromkeys(keys)}
    items = {key: item for key, item in found.items() if item is not None}
    return {
        "items": items,
        "missing_keys": [key for key in found if key not in items],
        "total_requested": len(keys),
        "found_count": len(items),
    }


async def ping(ask: Fields, house: House) -> Reply:
    return await _pinged("ping", house, {"pong": True, "server": NAME, "timestamp": _utc()})


async def told_health(ask: Fields, house: House) -> Reply:
    is_up = await house.is_up("memory")
    return await _pinged("health", house, {"status": "healthy" if is_up else "degraded", "memory": is_up})


async def _pinged(action: str, house: House, result: dict[str, Any]) -> Reply:
    """The health of the old base class and the reply of the key-value words in one."""
    base = await house.health_of(AGENT)
    status = "HEALTHY" if base["connected"] else "DEGRADED"
    return {**base, "status": status, "success": True, "action": action, "result": result, "timestamp": _utc()}


def item_of(key: str, item: object, *, now: float) -> dict[str, Any]:
    """An item as it is kept: those without a kind of their own with every field. Raises Refused."""
    if not isinstance(item, dict):
        raise Refused("item must be an object")
    if any(name in item for name in _OTHER_KINDS):
        return {**item, "key": key}
    if not isinstance(item.get("content"), str | dict | list):
        raise Refused("item.content must be text, an object or an array")
    kind = item.get("memory_type", _MEMORY_TYPES[0])
    if kind not in _MEMORY_TYPES:
        raise Refused(f"item.memory_type must be one of {', '.join(_MEMORY_TYPES)}, not {kind!r}")
    at = _utc(now)
    unsaid: dict[str, Any] = {
        "timestamp": at,
        "metadata": {},
        "tags": [],
        "source_agent": None,
        "expiry_timestamp": None,
    }
    return {"memory_type": kind, **unsaid, **item, "key": key, "updated_at": at}


def _key(ask: Fields) -> str:
    key = ask.text("key")
    if not key:
        raise Refused("Missing required field: key")
    return key


def _items(house: House) -> Kept:
    return house.kept("fusion")


def _utc(at: float | None = None) -> str:
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).replace(tzinfo=None).isoformat()


AGENT = Agent(
    name=NAME,
    service="memory",
    kind="memory",
    ports=(5713,),
    health_ports=(6713,),
    actions={
        "health_check": Action(health_check),
        "reset_circuit_breaker": Action(reset_circuit_breaker),
        **{verb: Action(_forward(verb)) for verb in orchestrator.AGENT.actions},
        "get": _keyed("get", get),
        "put": _keyed("put", put),
        "delete": _keyed("delete", delete),
        "exists": _keyed("exists", exists),
        "list_keys": _keyed("list_keys", list_keys),
        "batch_get": _keyed("batch_get", batch_get),
        "health": Action(told_health),
        "ping": Action(ping),
    },
    health=health,
)
