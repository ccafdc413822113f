"""Paths that only the first memory service had: each hands its fields to the agent whose router it was.

The table reads like the contract: method, path, agent, its action, what the request holds, how failures are told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from schemas.bodies.accounts import TokenState, Verify
from schemas.errors import Unauthenticated
from workers.gateway.legacy.house import House
from workers.gateway.phase1.answers import answer_of, body_of, worded
from workers.gateway.phase1.fields import (
    Given,
    Invalid,
    Missing,
    Read,
    anything,
    body,
    error_of,
    flag,
    mapping,
    number,
    query,
    read_bare,
    read_fields,
    text,
    whole,
)
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response, json_response
from workers.gateway.rest.routes import Route

MEMORIES: Final = "MemoryOrchestratorService"
CLIENT: Final = "MemoryClient"
SESSIONS: Final = "SessionMemoryAgent"
FACTS: Final = "KnowledgeBase"
REASONING: Final = "UnifiedMemoryReasoningAgent"
CONTEXTS: Final = "ContextManager"
EXPERIENCES: Final = "ExperienceTracker"
CACHE: Final = "CacheManager"
PROACTIVE: Final = "ProactiveContextMonitor"
UTILS: Final = "UnifiedUtilsAgent"
ACCOUNTS: Final = "AuthenticationAgent"
TRUST: Final = "AgentTrustScorer"

# What these hold lies in this process, where no worker asks who the caller is.
_IN_PROCESS: Final = frozenset({CONTEXTS, PROACTIVE})


class Bare(NamedTuple):
    """A body that is the value itself."""

    name: str
    read: Read
    is_optional: bool = False


class Row(NamedTuple):
    """One path. Names in it are fields of the agent's request.

    fails: status of a failure in the agent's own words. missing: status where a field is not there; with 400 an empty
    one counts as missing. keep: keys of the reply that are told, all where empty.
    """

    method: str
    path: str
    agent: str
    action: str
    fields: tuple[Given, ...] = ()
    fails: int = 500
    missing: int = 422
    bare: Bare | None = None
    keep: tuple[str, ...] = ()


_LIMIT: Final = query("limit", whole, 10)
_METADATA: Final = body("metadata", mapping, None)
_WINDOW: Final = (query("speaker", text, None), query("max_items", whole, None))
_STATUS: Final = ("status",)

ROWS: Final = (
    Row(
        "POST",
        "/session/{session_id}/interaction",
        SESSIONS,
        "add_interaction",
        (body("role", text), body("content", text), _METADATA),
    ),
    Row("GET", "/session/{session_id}/context", SESSIONS, "get_context", (query("limit", whole, 20),), fails=404),
    Row("GET", "/session/{session_id}/search", SESSIONS, "search_interactions", (query("query", text), _LIMIT)),
    Row("PUT", "/doc/{memory_id}", FACTS, "update_fact", bare=Bare("content", text)),
    Row("GET", "/kb/search", FACTS, "search_facts", (query("query", text, ""), _LIMIT)),
    Row("PUT", "/memory/{memory_id}", MEMORIES, "update_memory", bare=Bare("update_data", mapping)),
    Row(
        "POST",
        "/memory/search",
        MEMORIES,
        "search_memory",
        (body("query", text), body("limit", whole, 10), body("memory_type", text, None)),
        missing=400,
    ),
    Row(
        "POST",
        "/memory/semantic_search",
        MEMORIES,
        "semantic_search",
        (body("query", text), body("k", whole, 5), body("filters", mapping, None)),
        missing=400,
    ),
    Row("POST", "/twin/{user_id}", REASONING, "update_twin", bare=Bare("twin_data", mapping)),
    Row("GET", "/twin/{user_id}", REASONING, "get_twin"),
    Row("DELETE", "/twin/{user_id}", REASONING, "delete_twin", fails=404),
    Row(
        "POST",
        "/interaction",
        REASONING,
        "add_interaction",
        (body("session_id", text), body("interaction_type", text), body("content", anything), _METADATA),
        missing=400,
    ),
    Row("POST", "/error_solution", REASONING, "get_error_solution", (body("error_message", text),), missing=400),
    Row(
        "POST",
        "/context/add",
        CONTEXTS,
        "add_to_context",
        (body("text", text), body("speaker", text, None), _METADATA),
        keep=_STATUS,
    ),
    Row("GET", "/context/text", CONTEXTS, "get_context_text", _WINDOW),
    Row(
        "POST",
        "/context/clear",
        CONTEXTS,
        "clear_context",
        bare=Bare("speaker", text, is_optional=True),
        keep=_STATUS,
    ),
    Row("POST", "/context/prune", CONTEXTS, "prune_context", keep=_STATUS),
    Row(
        "POST",
        "/experience",
        EXPERIENCES,
        "track_experience",
        (
            body("content", text),
            body("importance_score", number, 0.5),
            _METADATA,
            body("expires_at", text, None),
        ),
    ),
    Row("GET", "/cache/{cache_type}/{key}", CACHE, "get", fails=404),
    Row(
        "POST",
        "/cache/{cache_type}/{key}",
        CACHE,
        "put",
        (body("value", anything), body("ttl", number, None)),
    ),
    Row("DELETE", "/cache/{cache_type}/{key}", CACHE, "invalidate"),
    Row("POST", "/cache/{cache_type}/flush", CACHE, "flush"),
    Row("GET", "/memory_cache/{memory_id}", CACHE, "get_cached_memory", fails=404),
    Row(
        "POST",
        "/memory_cache/{memory_id}",
        CACHE,
        "cache_memory",
        (body("data", mapping), body("ttl", number, 3600.0)),
    ),
    Row("DELETE", "/memory_cache/{memory_id}", CACHE, "invalidate_memory_cache"),
    Row("POST", "/proactive/context", PROACTIVE, "add_context", bare=Bare("context", mapping), fails=400),
    Row("GET", "/proactive/history", PROACTIVE, "get_context_history", (_LIMIT,)),
    Row("POST", "/proactive/clear", PROACTIVE, "clear_context_history"),
    Row(
        "POST",
        "/trust/{model_id}/log",
        TRUST,
        "log_performance",
        (body("success", flag), body("response_time", number, 0.0), body("error_message", text, None)),
    ),
    Row("GET", "/trust/{model_id}/history", TRUST, "get_performance_history", (_LIMIT,)),
)

# Where a whole request of an agent is posted.
RAW: Final = {
    "/memory_client/raw": CLIENT,
    "/session_agent/raw": SESSIONS,
    "/knowledge_base/raw": FACTS,
    "/orchestrator/raw": MEMORIES,
    "/umra/raw": REASONING,
    "/context_manager/raw": CONTEXTS,
    "/experience_tracker/raw": EXPERIENCES,
    "/cache_manager/raw": CACHE,
    "/proactive/raw": PROACTIVE,
    "/utils/raw": UTILS,
    "/auth/raw": ACCOUNTS,
    "/trust/raw": TRUST,
}

# Messages that this router worded otherwise than the agent's own port.
_RAW_MESSAGES: Final = {
    (CONTEXTS, "add_to_context"): "Added",
    (CONTEXTS, "clear_context"): "Cleared",
    (CONTEXTS, "prune_context"): "Pruned",
}


def agent_routes(house: House, rows: Iterable[Row] = ROWS) -> Iterator[Route]:
    """The routes of the table."""
    for row in rows:
        yield Route(row.method, row.path, worded(_handle(house, row)))


def raw_routes(house: House, paths: dict[str, str]) -> Iterator[Route]:
    """Routes that take whole requests, by the agent behind each path."""
    for path, agent in paths.items():
        yield Route("POST", path, worded(_handle_raw(house, agent)))


async def asked(house: House, request: RestRequest, agent: str, action: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The reply of an agent, asked with the caller's token. Raises BusError where the caller has to sign in first."""
    mine = await acting(house, request, agent)
    data_key = mine.agents[agent].data_key
    told = {data_key: fields} if data_key else fields
    reply: dict[str, Any] = await mine.agent(agent).answer({**told, "action": action})
    return reply


async def acting(house: House, request: RestRequest, agent: str) -> House:
    """The house as it acts for the caller. Raises Unauthenticated, and BusError where nobody can say who that is."""
    token = request.token or ""
    if agent in _IN_PROCESS and house.settings.auth.required:
        if not token:
            raise Unauthenticated(f"{request.method} {request.template} needs a token: sign in first", reason="missing")
        state = await house.client.request("auth.verify", Verify(token=token))
        assert isinstance(state, TokenState)
        if not state.valid:
            raise Unauthenticated(f"the token is no good: {state.reason}", reason=state.reason)
    return house.acting_with(token)


def _handle(house: House, row: Row) -> Any:
    async def handle(request: RestRequest) -> Response:
        fields = await _fields(row, request)
        reply = await asked(house, request, row.agent, row.action, fields)
        response = answer_of(reply, row.fails)
        if row.keep and response.status == 200:
            return json_response({name: reply[name] for name in row.keep})
        return response

    return handle


async def _fields(row: Row, request: RestRequest) -> dict[str, Any]:
    found = await body_of(request)
    fields = {**request.params}
    if row.bare is not None:
        value = read_bare(row.bare.name, row.bare.read, found, is_optional=row.bare.is_optional)
        return fields if value is None else {**fields, row.bare.name: value}
    if row.missing == 400:
        for one in row.fields:
            if one.is_required and isinstance(found, dict) and not found.get(one.name):
                raise Missing(one.name)
    return {**read_fields(row.fields, found, request.query), **fields}


def _handle_raw(house: House, agent: str) -> Any:
    async def handle(request: RestRequest) -> Response:
        found = await body_of(request)
        if not isinstance(found, dict):
            raise Invalid([error_of(["body"], "dict_type", "Input should be a valid dictionary")])
        reply = await (await acting(house, request, agent)).agent(agent).answer(found)
        message = _RAW_MESSAGES.get((agent, str(found.get("action"))))
        if message is not None and reply.get("status") == "success":
            reply = {**reply, "message": message}
        return json_response(reply)

    return handle
