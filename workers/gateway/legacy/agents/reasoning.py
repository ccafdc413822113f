"""UnifiedMemoryReasoningAgent (7105): twins of users, what happened in sessions, solutions for errors by pattern.

Failures say `reason`. Everything it is told is kept (`legacy.twins`, `legacy.umra.sessions`, `legacy.umra.patterns`);
the commands of its older form are in reasoning_commands.py.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

from schemas.errors import BusError
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply, Words
from workers.gateway.legacy.agents.pattern_search import PATTERN_CHARACTERS
from workers.gateway.legacy.agents.reasoning_commands import COMMANDS
from workers.gateway.legacy.agents.reasoning_desk import NAME, desk
from workers.gateway.legacy.house import House

# Interactions of a session that are kept; with the next one it gets a summary.
INTERACTIONS_MAX: Final = 50

# Pieces of code and errors that a summary holds, and characters of each piece in it.
_CODE_PIECES: Final = 5
_ERRORS: Final = 20
_CODE_CHARACTERS: Final = 1_000
_LINE_CHARACTERS: Final = 200

# Which words make an error of which kind, the first that fits.
_ERROR_KINDS: Final = {
    "timeout": ("timeout", "timed out", "deadline"),
    "connection": ("connection", "connect", "refused", "unreachable", "network"),
    "permission": ("permission", "access denied", "forbidden", "unauthorized", "not allowed"),
}

_SPEAKERS: Final = {"user_query": "User", "system_response": "System"}


# Twins


async def update_twin(ask: Fields, house: House) -> Reply:
    """The whole twin is replaced."""
    counts = desk(house).counts
    counts["update_count"] += 1
    try:
        twin = ask.mapping("twin_data")
        if not twin:
            raise Refused("No twin data provided")
        await house.kept("twins").put(_user(ask), twin)
    except (Refused, BusError):
        counts["failed_updates"] += 1
        counts["error_count"] += 1
        raise
    counts["successful_updates"] += 1
    return {"status": "ok"}


async def get_twin(ask: Fields, house: House) -> Reply:
    desk(house).counts["get_count"] += 1
    return {"status": "ok", "twin": await house.kept("twins").get(_user(ask)) or {}}


async def delete_twin(ask: Fields, house: House) -> Reply:
    desk(house).counts["delete_count"] += 1
    if not await house.kept("twins").drop(_user(ask)):
        raise Refused("User not found")
    return {"status": "ok"}


def _user(ask: Fields) -> str:
    return ask.text("user_id") or "default"


# Sessions


async def add_interaction(ask: Fields, house: House) -> Reply:
    session_id, now = ask.text("session_id"), time.time()
    interaction: dict[str, Any] = {
        "timestamp": now,
        "type": ask.text("interaction_type"),
        "content": ask["content"],
    }
    if ask.get("metadata"):
        interaction["metadata"] = ask["metadata"]
    sessions = house.kept("umra.sessions")
    async with desk(house).turns.of(session_id):
        session = await sessions.get(session_id) or {}
        await sessions.put(session_id, with_interaction(session, interaction, now))
    return {"status": "ok"}


async def get_context(ask: Fields, house: House) -> Reply:
    """The summary, else that the session is new; in both cases with the interactions themselves, oldest first."""
    session_id = ask.text("session_id")
    session = await house.kept("umra.sessions").get(session_id) or {}
    context = session.get("summary") or {"last_updated": time.time(), "context": f"New session: {session_id}"}
    interactions = session.get("interactions", [])[::-1]
    return {"status": "ok", "context": {**context, "session_id": session_id, "interactions": interactions}}


def with_interaction(session: dict[str, Any], interaction: dict[str, Any], now: float) -> dict[str, Any]:
    """The session after one more interaction; past the fiftieth its summary is made anew and the oldest goes."""
    interactions = [interaction, *session.get("interactions", [])]
    if len(interactions) <= INTERACTIONS_MAX:
        return {**session, "interactions": interactions}
    summary = summarised(interactions, session.get("summary") or {}, now)
    return {**session, "interactions": interactions[:INTERACTIONS_MAX], "summary": summary}


def summarised(interactions: list[dict[str, Any]], earlier: dict[str, Any], now: float) -> dict[str, Any]:
    """What `interactions`, newest first, come to. Errors of an earlier summary stay in it, and what nobody here knows."""
    oldest_first = interactions[::-1]
    code = [_text(one)[:_CODE_CHARACTERS] for one in oldest_first if one.get("type") == "code"]
    talk = [
        f"{_SPEAKERS[one['type']]}: {_text(one)[:_LINE_CHARACTERS]}"
        for one in oldest_first
        if one.get("type") in _SPEAKERS
    ]
    errors = {str(error.get("message")): error for error in earlier.get("errors_encountered", [])}
    for one in oldest_first:
        if one.get("type") == "error":
            message = _text(one)[:_LINE_CHARACTERS]
            errors[message] = {"type": error_kind(message), "message": message}
    summary = {**earlier, "last_updated": now, "errors_encountered": list(errors.values())[-_ERRORS:]}
    if code:
        summary["code_context"] = "\n".join(code[-_CODE_PIECES:])
    if talk:
        summary["conversation_summary"] = "\n".join(talk)
    return summary


def error_kind(message: str) -> str:
    """timeout, connection, permission or other."""
    text = message.lower()
    return next((kind for kind, words in _ERROR_KINDS.items() if any(word in text for word in words)), "other")


def _text(interaction: dict[str, Any]) -> str:
    content = interaction.get("content")
    return content if isinstance(content, str) else json.dumps(content)


# Errors


async def add_error_pattern(ask: Fields, house: House) -> Reply:
    error_type, pattern = ask.text("error_type"), ask.text("pattern")
    if len(pattern) > PATTERN_CHARACTERS:
        raise Refused(f"pattern has {len(pattern)} characters, allowed are {PATTERN_CHARACTERS}")
    own, patterns, now = desk(house), house.kept("umra.patterns"), time.time()
    async with own.turns.of(f"pattern {error_type}"):
        known = await patterns.get(error_type) or {}
        own.slow.discard(pattern)
        await patterns.put(
            error_type,
            {
                "pattern": pattern,
                "solution": ask.get("solution"),
                "last_seen": now,
                "occurrence_count": known.get("occurrence_count", 0) + 1,
                "order": known.get("order", now),
            },
        )
    return {"status": "ok"}


async def get_error_solution(ask: Fields, house: House) -> Reply:
    """That of the first pattern, in the order they were added, that is anywhere in the message."""
    own, patterns = desk(house), house.kept("umra.patterns")
    known = [item async for item in patterns.each() if item[1].get("pattern") not in own.slow]
    known.sort(key=lambda item: item[1].get("order", 0))
    if not known:
        return {"status": "ok", "solution": None}
    found = await own.search.first([str(one.get("pattern")) for _, one in known], ask.text("error_message"))
    own.slow.update(known[place][1]["pattern"] for place in found.slow)
    if found.place is None:
        return {"status": "ok", "solution": None}
    error_type = known[found.place][0]
    async with own.turns.of(f"pattern {error_type}"):
        current = await patterns.get(error_type) or known[found.place][1]
        seen = {"last_seen": time.time(), "occurrence_count": current.get("occurrence_count", 0) + 1}
        await patterns.put(error_type, {**current, **seen})
    return {"status": "ok", "solution": current.get("solution")}


async def keep_search(house: House) -> None:
    """The process that searches ends with the ports."""
    try:
        await asyncio.Event().wait()
    finally:
        await desk(house).search.close()


# Health


async def health(house: House) -> dict[str, Any]:
    counts = desk(house).counts
    counts["health_check_count"] += 1
    own: dict[str, Any] = {
        **counts,
        "service": "unified_memory_reasoning_agent",
        "error_count": counts["error_count"] + house.failures_of(NAME),
        "last_request_time": house.last_request_at(NAME),
    }
    try:
        own["total_twins"] = await house.kept("twins").count()
        own["total_sessions"] = await house.kept("umra.sessions").count()
        own["total_error_patterns"] = await house.kept("umra.patterns").count()
    except BusError as error:
        own["initialization_error"] = error.message
    return own


_MISSING = "Missing required fields"

AGENT = Agent(
    name=NAME,
    service="memory",
    kind="memory_reasoning",
    ports=(7105, 5596),
    health_ports=(8105, 7106),
    actions={
        "update_twin": Action(update_twin),
        "get_twin": Action(get_twin),
        "delete_twin": Action(delete_twin),
        "add_interaction": Action(
            add_interaction, required=("session_id", "interaction_type", "content"), missing=_MISSING
        ),
        "get_context": Action(get_context, required=("session_id",), missing="Missing session_id"),
        "add_error_pattern": Action(add_error_pattern, required=("error_type", "pattern"), missing=_MISSING),
        "get_error_solution": Action(get_error_solution, required=("error_message",), missing="Missing error_message"),
    },
    commands=COMMANDS,
    words=Words(error_keys=("reason", "message", "error"), unknown="Unknown action", no_verb="Unknown action"),
    health=health,
    tasks=(keep_search,),
)
