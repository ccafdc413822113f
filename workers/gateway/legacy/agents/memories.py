"""Memories in the words of the replaced agents: the object of 13 keys, and the look-ups that several agents share.

What a `Memory` of ours has no field for stays with it in its metadata (KEPT), where these agents never see it:
`relationships`, a `created_at` of the client's own, an `access_count` to start from, an `expires_at` that is no time to
live of ours. A `last_accessed_at` of a client is dropped: it says when this memory was read, and only the service knows
that. Importance is brought into 0 to 1, an unknown tier becomes `short`. It knows no agent.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from schemas.bodies.items import Memories, Memory, MemoryAdd, MemoryGetMany, MemoryList, MemoryUpdate
from schemas.bodies.search import Filters, Mode, Search, SearchReply
from workers.gateway.legacy.agent import Refused
from workers.gateway.legacy.house import House

# Where clients of the bus keep memories too: old and new ones see the same.
NS: Final = "memory"

# Every key of the object, always present in replies.
KEYS: Final = (
    "memory_id",
    "content",
    "memory_type",
    "memory_tier",
    "importance",
    "access_count",
    "last_accessed_at",
    "created_at",
    "expires_at",
    "metadata",
    "tags",
    "relationships",
    "parent_id",
)

# The key of the metadata under which stays what `Memory` has no field for.
KEPT: Final = "legacy_fields"

# Seconds: clients give up after 5.
TIMEOUT_S: Final = 4.5

# Of the fields in `schemas.bodies.items`.
_TYPE_CHARACTERS: Final = 64
_TAG_CHARACTERS: Final = 256
_TAGS_MAX: Final = 256
_TTL_MAX_S: Final = 10 * 366 * 86_400
_AT_MAX: Final = 1e11
_PAGE_MAX: Final = 1_000

_TIERS: Final = ("short", "medium", "long")

Sort = Literal["added", "newest", "importance"]

# A hash, an id, a time in digits: to a vector all of them are alike, so one would bring any other.
_CODE: Final = re.compile(r"(?<![a-z0-9])(?=[a-z]*\d)[0-9a-f]{6,}(?![a-z0-9])", re.IGNORECASE)


def to_legacy(memory: Memory) -> dict[str, Any]:
    """The 13 keys of a memory of ours."""
    metadata = memory.metadata
    access_count, created_at, expires_at = memory.access_count, memory.created_at, memory.expires_at
    relationships: dict[str, Any] = {}
    kept = metadata.get(KEPT)
    if isinstance(kept, dict):
        metadata = {key: value for key, value in metadata.items() if key != KEPT}
        relationships = kept.get("relationships", relationships)
        access_count += kept.get("access_count", 0)
        created_at = kept.get("created_at", created_at)
        if expires_at is None:
            expires_at = kept.get("expires_at")
    return {
        "memory_id": memory.id,
        "content": memory.content,
        "memory_type": memory.type,
        "memory_tier": memory.tier,
        "importance": memory.importance,
        "access_count": access_count,
        "last_accessed_at": memory.last_accessed_at,
        "created_at": created_at,
        "expires_at": expires_at,
        "metadata": metadata,
        "tags": memory.tags,
        "relationships": relationships,
        "parent_id": memory.parent_id,
    }


def from_legacy(fields: Mapping[str, Any], *, importance: float = 1.0, now: float) -> MemoryAdd:
    """The request that adds a memory of these fields, over one that has its id.

    importance: where `fields` has none; 1.0 of add_memory, 0.5 of batch_add_memories and of MemoryClient. now: epoch
    seconds. Unknown keys are dropped. Raises Refused ("Invalid memory format: ...").
    """
    metadata = _mapping(fields, "metadata")
    created_at = _number(fields, "created_at")
    expires_at = _number(fields, "expires_at")
    ttl_s = _ttl_s(expires_at, now)
    kept: dict[str, Any] = {
        "relationships": _relationships(fields) or None,
        "access_count": int(_number(fields, "access_count") or 0) or None,
        "created_at": created_at,
        "expires_at": expires_at if ttl_s is None else None,
    }
    given = _number(fields, "importance")
    return MemoryAdd(
        content=_content(fields),
        type=type_of(fields.get("memory_type")),
        tier=_tier(fields),
        importance=unit(importance if given is None else given),
        tags=_tags(fields),
        metadata=_with_kept(metadata, kept),
        parent_id=_key(fields, "parent_id"),
        ttl_s=ttl_s,
        at=created_at if created_at is not None and 0 <= created_at <= _AT_MAX else time_in(metadata),
        id=_key(fields, "memory_id"),
        replace=True,
        ns=NS,
    )


def update_of(memory_id: str, changes: Mapping[str, Any], before: Memory | None, *, now: float) -> MemoryUpdate:
    """The request that replaces the given ones of the 13 keys; `memory_id` among them and unknown keys are ignored.

    before: the memory as it is, where `needs_before` says so. Raises Refused.
    """
    clear: list[Literal["parent_id", "expires_at", "speaker"]] = []
    ttl_s = None
    if "expires_at" in changes:
        ttl_s = _ttl_s(_number(changes, "expires_at"), now)
        if ttl_s is None:
            clear.append("expires_at")
    parent_id = _key(changes, "parent_id")
    if "parent_id" in changes and parent_id is None:
        clear.append("parent_id")
    given = _number(changes, "importance")
    return MemoryUpdate(
        id=memory_id,
        ns=NS,
        content=_content(changes) if "content" in changes else None,
        type=type_of(changes["memory_type"]) if changes.get("memory_type") else None,
        tier=_tier(changes) if changes.get("memory_tier") else None,
        importance=None if given is None else unit(given),
        tags=_tags(changes) if "tags" in changes else None,
        metadata=None if before is None else _metadata_after(changes, before, now),
        parent_id=parent_id,
        ttl_s=ttl_s,
        clear=clear,
        if_version=None if before is None else before.version,
    )


def needs_before(changes: Mapping[str, Any]) -> bool:
    """Whether an update touches the metadata, in which something may be kept, or what is kept there."""
    return not {"metadata", "relationships", "access_count", "created_at", "expires_at"}.isdisjoint(changes)


def type_of(value: object) -> str:
    """A `memory_type` as ours can hold it. Raises Refused for what is no text."""
    if value is None or value == "":
        return "general"
    if not isinstance(value, str):
        raise _invalid("memory_type", "text", value)
    return value[:_TYPE_CHARACTERS]


def unit(value: float) -> float:
    """An importance or strength, brought into 0 to 1."""
    return min(1.0, max(0.0, value))


def moment(value: object) -> float | None:
    """Epoch seconds of a number or of an ISO time, which the replaced agents wrote as local time; None for neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value.strip()).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
    return None


def time_in(metadata: Mapping[str, Any]) -> float | None:
    """When something happened, by `time` or `timestamp` of its metadata: epoch seconds, None where neither says."""
    for key in ("time", "timestamp"):
        at = moment(metadata.get(key))
        if at is not None and 0 <= at <= _AT_MAX:
            return at
    return None


# Look-ups


def not_found(memory_id: str) -> Refused:
    """In the words of the old service."""
    return Refused(f"Memory with ID {memory_id} not found.")


async def read_many(house: House, ids: Sequence[str], *, touch: bool) -> list[Memory]:
    """The memories that exist, each once, in the order of `ids`; with `touch` the access is counted first."""
    found: list[Memory] = []
    left = list(dict.fromkeys(ids))
    while left:
        asked = left[:_PAGE_MAX]
        page: Memories = await house.ask(
            "memory.get_many", MemoryGetMany(ids=asked, ns=NS, touch=touch), timeout_s=TIMEOUT_S
        )
        found += page.memories
        left = left[len(asked) if page.next_after is None else page.next_after :]
    return found


async def listed(
    house: House,
    limit: int,
    *,
    sort: Sort = "importance",
    contains: str | None = None,
    type: str | None = None,
    tag: str | None = None,
    parent_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[Memory]:
    """At most `limit` memories that fulfil all of these; see `schemas.bodies.items.MemoryList`."""
    found: list[Memory] = []
    after: int | None = None
    while len(found) < limit:
        page: Memories = await house.ask(
            "memory.list",
            MemoryList(
                ns=NS,
                type=type,
                tag=tag,
                parent_id=parent_id,
                contains=contains,
                metadata=dict(metadata or {}),
                sort=sort,
                limit=min(limit - len(found), _PAGE_MAX),
                after=after,
            ),
            timeout_s=TIMEOUT_S,
        )
        found += page.memories
        after = page.next_after
        if after is None:
            break
    return found


def mode_of(query: str) -> Mode:
    """How `memory.search` is asked: a query with a code in it by words alone."""
    return "text" if _CODE.search(query) else "hybrid"


async def found_by_meaning(
    house: House,
    query: str,
    limit: int,
    *,
    type: str | None = None,
    parent_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[Memory]:
    """Memories that hold `query` as it stands, the most important first, then those near it in words or meaning.

    The floors under which nothing is near are those of `memory.search` (`search.text_floor`, `search.dense_floor`);
    a query with a code in it is looked for by its words alone.
    """
    if limit < 1:
        return []
    filters = Filters(kinds=["memory"], type=type, parent_id=parent_id, metadata=dict(metadata or {}))
    search = house.ask(
        "memory.search",
        Search(
            query=query[:8_192],
            ns=NS,
            k=min(limit, _PAGE_MAX),
            mode=mode_of(query),
            filters=filters,
        ),
        timeout_s=TIMEOUT_S,
    )
    exact = listed(house, limit, contains=query, type=type, parent_id=parent_id, metadata=metadata)
    found: list[Memory]
    near: SearchReply
    found, near = await asyncio.gather(exact, search)
    have = {memory.id for memory in found}
    more = [hit.id for hit in near.hits if hit.id not in have]
    if len(found) < limit and more:
        found += await read_many(house, list(dict.fromkeys(more))[: limit - len(found)], touch=False)
    return found


# Fields


def _content(fields: Mapping[str, Any]) -> str:
    content = fields.get("content")
    if not isinstance(content, str):
        raise _invalid("content", "text", content)
    if not content:
        raise Refused("Invalid memory format: content must not be empty")
    return content


def _key(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _invalid(name, "text", value)
    return value


def _tier(fields: Mapping[str, Any]) -> Literal["short", "medium", "long"]:
    tier = fields.get("memory_tier")
    if tier is not None and not isinstance(tier, str):
        raise _invalid("memory_tier", "short, medium or long", tier)
    return tier if tier in _TIERS else "short"  # type: ignore[return-value]


def _tags(fields: Mapping[str, Any]) -> list[str]:
    tags = fields.get("tags")
    if tags is None:
        return []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise _invalid("tags", "an array of text", tags)
    return [tag[:_TAG_CHARACTERS] for tag in tags if tag][:_TAGS_MAX]


def _mapping(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid(name, "an object", value)
    return value


def _relationships(fields: Mapping[str, Any]) -> dict[str, Any]:
    value = _mapping(fields, "relationships")
    for ids in value.values():
        if not isinstance(ids, list) or not all(isinstance(memory_id, str) for memory_id in ids):
            raise _invalid("relationships", "an object of arrays of text", value)
    return value


def _number(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _invalid(name, "a number", value)
    return number


def _ttl_s(expires_at: float | None, now: float) -> float | None:
    """Seconds to live; None for no end, and for one past or further away than ours reach, which is only kept."""
    if expires_at is None or not 0 < expires_at - now <= _TTL_MAX_S:
        return None
    return expires_at - now


def _metadata_after(changes: Mapping[str, Any], before: Memory, now: float) -> dict[str, Any]:
    kept = before.metadata.get(KEPT)
    kept = dict(kept) if isinstance(kept, dict) else {}
    if "relationships" in changes:
        kept["relationships"] = _relationships(changes) or None
    if "access_count" in changes:
        kept["access_count"] = int(_number(changes, "access_count") or 0) - before.access_count or None
    if "created_at" in changes:
        kept["created_at"] = _number(changes, "created_at")
    if "expires_at" in changes:
        expires_at = _number(changes, "expires_at")
        kept["expires_at"] = expires_at if _ttl_s(expires_at, now) is None else None
    metadata = _mapping(changes, "metadata") if "metadata" in changes else before.metadata
    return _with_kept(metadata, kept)


def _with_kept(metadata: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in metadata.items() if key != KEPT or not isinstance(value, dict)}
    more = {key: value for key, value in kept.items() if value is not None}
    return {**plain, KEPT: more} if more else plain


def _invalid(name: str, wanted: str, value: object) -> Refused:
    text = repr(value)
    return Refused(f"Invalid memory format: {name} must be {wanted}, not {text if len(text) <= 60 else text[:60]}")
