"""Experiences in the words of the ExperienceTracker: each one is an experience of ours (`memory.experience.*`)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final

from schemas.bodies.items import Experience, ExperienceList, ExperienceRecord
from workers.gateway.legacy.agent import Fields, Refused, Reply
from workers.gateway.legacy.house import House

# Whose experience it is where nobody says so, and the type its clients know it by.
TRACKER: Final = "ExperienceTracker"
EXPERIENCE: Final = "experience"

# Where a migrated experience has the number by which its old store knew it.
OLD_ID: Final = "legacy_memory_id"

# Stands for an experience without words, which ours cannot be.
WORDLESS: Final = " "

# Seconds: clients give up after 5.
_TIMEOUT_S: Final = 4.5

_DEFAULT_IMPORTANCE: Final = 0.5
_DEFAULT_LIMIT: Final = 10
_LIMIT_MAX: Final = 1_000
_NAME_CHARACTERS: Final = 256

# Seconds an experience lasts that was over before it came, and the longest that one can be kept for a time.
_OVER_S: Final = 1e-6
_LONGEST_S: Final = 10 * 366 * 86_400.0


async def track_experience(ask: Fields, house: House) -> Reply:
    """A field of the wrong type counts as not given."""
    content, metadata = ask.get("content"), ask.get("metadata")
    recorded: Experience = await house.ask(
        "memory.experience.record",
        ExperienceRecord(
            agent=_agent(ask),
            action=(content if isinstance(content, str) else "") or WORDLESS,
            importance=importance_of(ask.get("importance_score")),
            context=metadata if isinstance(metadata, dict) else {},
            ttl_s=ttl_s(ask.get("expires_at"), time.time()),
        ),
        timeout_s=_TIMEOUT_S,
    )
    return {"status": "success", "memory_id": recorded.sequence, "message": "Experience tracked"}


async def get_experiences(ask: Fields, house: House) -> Reply:
    """The most important first, then the one accessed last; each gains an access after it was read."""
    limit = limit_of(ask.get("limit"))
    if limit == 0:
        return {"status": "success", "memories": [], "count": 0}
    page = await house.ask(
        "memory.experience.list", ExperienceList(sort="importance", limit=limit), timeout_s=_TIMEOUT_S
    )
    memories = [item_of(experience) for experience in page.experiences]
    return {"status": "success", "memories": memories, "count": len(memories)}


def item_of(experience: Experience) -> dict[str, Any]:
    """An experience as its clients knew it."""
    old_id = experience.context.get(OLD_ID)
    accessed_at = experience.last_accessed_at or experience.created_at
    created = datetime.fromtimestamp(experience.created_at, UTC)
    return {
        "memory_id": old_id if isinstance(old_id, int) else experience.sequence,
        "content": "" if experience.action == WORDLESS else experience.action,
        "memory_type": EXPERIENCE,
        "importance_score": experience.importance,
        "access_count": experience.access_count,
        "last_accessed": datetime.fromtimestamp(accessed_at).isoformat(),
        "created_at": created.strftime("%Y-%m-%d %H:%M:%S"),
        "metadata": experience.context,
    }


def ttl_s(expires_at: Any, now: float) -> float | None:
    """Seconds until an ISO time, which is local without a zone; None for no text, or beyond any end. Raises Refused."""
    if not isinstance(expires_at, str) or not expires_at:
        return None
    try:
        left_s = datetime.fromisoformat(expires_at).timestamp() - now
    except (ValueError, OverflowError, OSError) as error:
        raise Refused(f"expires_at is {expires_at[:60]!r}; allowed: an ISO time, as 2026-01-31T12:00:00") from error
    return None if left_s > _LONGEST_S else max(left_s, _OVER_S)


def limit_of(value: Any) -> int:
    """How many are wanted: below 0 as many as a page holds, 10 for what is no whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        return _DEFAULT_LIMIT
    return min(value, _LIMIT_MAX) if value >= 0 else _LIMIT_MAX


def importance_of(value: Any) -> float:
    """A number brought into 0 to 1; 0.5 for what is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return max(0.0, min(1.0, float(value))) if is_number else _DEFAULT_IMPORTANCE


def _agent(ask: Fields) -> str:
    """Who had it: agents say so in every request to each other."""
    source = ask.get("source_agent")
    return source if isinstance(source, str) and 0 < len(source) <= _NAME_CHARACTERS else TRACKER
