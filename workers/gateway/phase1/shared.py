"""Paths that the first memory service and the catalogue both have: told apart by their fields, answered with both's.

A request that only one of the two could have meant goes to that one. Every other answer is the catalogue's with the old
fields added, and an error of the catalogue's route stays what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec

from schemas.bodies.accounts import Tokens
from schemas.bodies.items import Memory, MemoryAdd, MemoryGet
from schemas.errors import NotFound
from workers.gateway.legacy.agents.authentication import name_of, password_of
from workers.gateway.legacy.agents.memories import KEYS, NS, to_legacy
from workers.gateway.legacy.house import House
from workers.gateway.phase1 import unified
from workers.gateway.phase1.agents import (
    ACCOUNTS,
    CONTEXTS,
    EXPERIENCES,
    FACTS,
    MEMORIES,
    REASONING,
    SESSIONS,
    TRUST,
    UTILS,
    asked,
)
from workers.gateway.phase1.answers import (
    answer_of,
    body_of,
    checked,
    detail,
    has_failed,
    joined,
    native_value,
    superset,
    worded,
)
from workers.gateway.phase1.fields import Missing, body, mapping, query, read_fields, text, whole
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response, json_response
from workers.gateway.rest.routes import Route

# Keys of an old memory that ours does not have: who sends one means the old service.
OLD_KEYS: Final = frozenset({*KEYS, "created_by"}) - set(MemoryAdd.__struct_fields__)

_OLD_KEYS_AS_SENT: Final = tuple(f'"{key}"'.encode() for key in OLD_KEYS)

_SUCCESS: Final = {"status": "success"}

_NEW_MEMORY: Final = {"memory_type": "kv", "memory_tier": "short", "importance": 0.5}
_FACT: Final = (body("topic", text), body("content", text))
_SESSION: Final = (
    body("user_id", text),
    body("session_type", text, "conversation"),
    body("metadata", mapping, None),
)
_WINDOW: Final = (query("speaker", text, None), query("max_items", whole, None))

# As the old service gave them out.
_OLD_TOKEN: Final = re.compile(r"[0-9a-f]{64}")

# Operations of the catalogue, and those that only the old agent had.
_CLEANUPS: Final = ("cleanup_temp_files", "cleanup_logs", "cleanup_cache", "cleanup_system")
_OTHER_UTILS: Final = frozenset({"cleanup_browser_cache", "run_windows_disk_cleanup"})
_NO_BROWSERS: Final = {"browsers_cleaned": [], "files_removed": 0, "bytes_freed": 0, "errors": []}


def shared_routes(house: House) -> Iterator[Route]:
    """The routes of the memory port."""
    yield Route("GET", "/kv/{key}", partial(get_kv, house))
    yield Route("POST", "/kv/{key}", partial(set_kv, house))
    yield Route("POST", "/memory", partial(add_memory, house))
    yield Route("GET", "/memory/{id}", partial(get_memory, house))
    yield Route("DELETE", "/memory/{id}", partial(delete_memory, house))
    yield Route("POST", "/doc", worded(partial(add_fact, house)))
    yield Route("GET", "/doc/{doc_id}", partial(get_doc, house))
    yield Route("GET", "/context/{context_id}", partial(get_context, house))
    yield Route("GET", "/context", checked(partial(list_contexts, house)))
    yield Route("GET", "/experience", partial(list_experiences, house))
    yield Route("POST", "/session", worded(partial(create_session, house)))
    yield Route("DELETE", "/session/{session_id}", partial(end_session, house))
    yield Route("POST", "/auth/register", partial(register, house))
    yield Route("POST", "/auth/login", partial(login, house))
    yield Route("POST", "/auth/logout", partial(logout, house))
    yield Route("POST", "/auth/verify", partial(verify, house))
    yield Route("GET", "/trust/{user_id}", partial(get_trust, house))
    for operation in _CLEANUPS:
        yield Route("POST", f"/utils/{operation}", clean_up)
    yield Route("POST", "/utils/{operation}", worded(partial(run_utility, house)))


# Keys and memories


async def get_kv(house: House, request: RestRequest) -> Response:
    """An entry; else the memory of that name, as the first service stored what it was given under a key."""
    if request.query and request.query_one("pattern") is not None:
        return await worded(partial(unified.list_keys, house))(request)
    try:
        return await request.native()
    except NotFound as missing:
        if request.query:
            raise
        reply = await asked(house, request, MEMORIES, "get_memory", {"memory_id": request.params["key"]})
        if has_failed(reply):
            raise missing from None
        return json_response(reply)


async def set_kv(house: House, request: RestRequest) -> Response:
    """`value` is an entry's, `content` a memory's."""
    if b'"content"' in await request.json_text():
        fields = await request.json()
        if isinstance(fields, dict) and "content" in fields and "value" not in fields:
            return await worded(partial(_set_memory, house))(request)
    return await request.native()


async def _set_memory(house: House, request: RestRequest) -> Response:
    key, fields = request.params["key"], await body_of(request)
    if not fields["content"]:
        raise Missing("content")
    own = house.acting_with(request.token or "")
    try:
        await own.ask("memory.get", MemoryGet(id=key, ns=NS, touch=False))
    except NotFound:
        told = {**_NEW_MEMORY, **fields, "memory_id": key}
        return answer_of(await asked(house, request, MEMORIES, "add_memory", told), 400)
    told = {"memory_id": key, "update_data": fields}
    return answer_of(await asked(house, request, MEMORIES, "update_memory", told), 400)


async def add_memory(house: House, request: RestRequest) -> Response:
    """One with a key that only old memories have is added as the old service did."""
    sent = await request.json_text()
    if any(key in sent for key in _OLD_KEYS_AS_SENT):
        fields = await request.json()
        if isinstance(fields, dict) and not OLD_KEYS.isdisjoint(fields):
            return await worded(partial(_add_old_memory, house))(request)
    native = await request.native()
    return superset(native, {**_SUCCESS, "memory_id": native_value(native).get("id")})


async def _add_old_memory(house: House, request: RestRequest) -> Response:
    fields = await body_of(request)
    if not fields.get("content"):
        raise Missing("content")
    return answer_of(await asked(house, request, MEMORIES, "add_memory", fields), 400)


async def get_memory(house: House, request: RestRequest) -> Response:
    """The memory, and once more as the old service told it."""
    native = await request.native()
    if not isinstance(native.body, bytes):
        return native
    memory = to_legacy(msgspec.json.decode(native.body, type=Memory))
    return superset(native, {**_SUCCESS, "memory": memory})


async def delete_memory(house: House, request: RestRequest) -> Response:
    """Children stay unless `cascade` is given: what was not asked for is not deleted."""
    native = await request.native()
    return superset(native, {**_SUCCESS, "message": f"Memory {request.params['id']} deleted."})


# Documents and facts


async def add_fact(house: House, request: RestRequest) -> Response:
    """A document where there is a `doc_id`, else a fact with its topic."""
    found = await body_of(request)
    if isinstance(found, dict) and "doc_id" in found:
        return await unified.put_doc(house, request)
    fields = read_fields(_FACT, found, ())
    return answer_of(await asked(house, request, FACTS, "add_fact", fields), 500)


async def get_doc(house: House, request: RestRequest) -> Response:
    """A document, else the fact of that topic."""
    try:
        return await request.native()
    except NotFound as missing:
        if request.query:
            raise
        reply = await asked(house, request, FACTS, "get_fact", {"topic": request.params["doc_id"]})
        if has_failed(reply):
            raise missing from None
        return json_response(reply)


# Contexts, experiences, sessions


async def get_context(house: House, request: RestRequest) -> Response:
    """With `max_tokens` that of a session; without, a context of ours, else that of a session that was heard of."""
    session = {"session_id": request.params["context_id"]}
    if request.query and request.query_one("max_tokens") is not None:
        return answer_of(await asked(house, request, REASONING, "get_context", session), 404)
    try:
        return await request.native()
    except NotFound as missing:
        reply = await asked(house, request, REASONING, "get_context", session)
        if has_failed(reply) or not _is_heard_of(reply["context"]):
            raise missing from None
        return json_response(reply)


def _is_heard_of(context: Mapping[str, Any]) -> bool:
    """A session that nobody spoke of has no interactions, and the words of a new one in place of a summary."""
    return bool(context.get("interactions")) or "context" not in context


async def list_contexts(house: House, request: RestRequest) -> Response:
    """Contexts of ours, and what was said last."""
    window = read_fields(_WINDOW, None, request.query)
    own = [(name, value) for name, value in request.query if name not in ("speaker", "max_items")]
    native = await request.native(query=own)
    return joined(native, await asked(house, request, CONTEXTS, "get_context", window))


async def list_experiences(house: House, request: RestRequest) -> Response:
    """Experiences, and once more as the old service told them."""
    native = await request.native()
    limit = request.query_one("limit")
    fields = {} if limit is None else {"limit": int(limit)}
    return joined(native, await asked(house, request, EXPERIENCES, "get_experiences", fields))


async def create_session(house: House, request: RestRequest) -> Response:
    """With `data` a session of the second service, else one of the first."""
    found = await body_of(request)
    if isinstance(found, dict) and ("data" in found or "session_id" in found):
        return await unified.put_session(house, request)
    fields = read_fields(_SESSION, found, ())
    return answer_of(await asked(house, request, SESSIONS, "create_session", fields), 500)


async def end_session(house: House, request: RestRequest) -> Response:
    """A session of ours, else one of the first service with everything in it."""
    session = {"session_id": request.params["session_id"]}
    try:
        native = await request.native()
    except NotFound as missing:
        reply = await asked(house, request, SESSIONS, "delete_session", session)
        if has_failed(reply):
            raise missing from None
        return json_response(reply)
    return superset(native, {**_SUCCESS, "message": f"Session {request.params['session_id']} deleted"})


# Accounts and trust


async def register(house: House, request: RestRequest) -> Response:
    """Sign up; also with a name and a password that only the old service took."""
    native = await request.native(body=await _account(house, request))
    return superset(native, {**_SUCCESS, "message": "User registered"})


async def login(house: House, request: RestRequest) -> Response:
    """The token of `session` is the access token."""
    native = await request.native(body=await _account(house, request))
    if not isinstance(native.body, bytes):
        return native
    tokens = msgspec.json.decode(native.body, type=Tokens)
    expires_at = datetime.fromtimestamp(tokens.expires_at).isoformat()
    session = {"token": tokens.access_token, "expires_at": expires_at}
    return superset(native, {**_SUCCESS, "message": "Login successful", "session": session})


async def _account(house: House, request: RestRequest) -> bytes | None:
    """The body with a name and a password that ours can be; None where it is good, or bad, as it is."""
    fields = await request.json() if request.has_body else None
    if not isinstance(fields, dict) or set(fields) != {"user_id", "password"}:
        return None
    user_id, password = fields["user_id"], fields["password"]
    if not isinstance(user_id, str) or not isinstance(password, str) or not user_id or not password:
        return None
    is_strict = house.settings.auth.required
    return msgspec.json.encode({"user_id": name_of(user_id), "password": password_of(password, is_strict=is_strict)})


async def logout(house: House, request: RestRequest) -> Response:
    """A body that is the token itself ends the sign-in as the old service did."""
    token = await _bare_token(request)
    if token is not None:
        return answer_of(await asked(house, request, ACCOUNTS, "logout", {"token": token}), 400)
    return superset(await request.native(), {**_SUCCESS, "message": "Logged out"})


async def verify(house: House, request: RestRequest) -> Response:
    """A token that is no good is an answer, too."""
    token = await _bare_token(request)
    if token is not None:
        reply = await asked(house, request, ACCOUNTS, "validate_token", {"token": token})
        return answer_of({"status": "success", "valid": False} if has_failed(reply) and not token else reply, 400)
    return superset(await request.native(), _SUCCESS)


async def _bare_token(request: RestRequest) -> str | None:
    """The token, where it is the whole body or one that the old service gave out; None for a request of ours."""
    found = await request.json() if request.has_body else None
    if isinstance(found, str):
        return found
    token = found.get("token") if isinstance(found, dict) and set(found) == {"token"} else None
    return token if isinstance(token, str) and _OLD_TOKEN.fullmatch(token) else None


async def get_trust(house: House, request: RestRequest) -> Response:
    """The score of ours, and that of the old formula."""
    native = await request.native()
    told = {"model_id": request.params["user_id"]}
    return joined(native, await asked(house, request, TRUST, "get_trust_score", told))


# Utilities


async def clean_up(request: RestRequest) -> Response:
    """`result` is what the old agent would have told of the same."""
    native = await request.native()
    result = native_value(native)
    if "temp_files" in result:
        result["browser_cache"] = _NO_BROWSERS
    return superset(native, {**_SUCCESS, "result": result})


async def run_utility(house: House, request: RestRequest) -> Response:
    """Operations that only the old agent had."""
    operation = request.params["operation"]
    if operation not in _OTHER_UTILS:
        return detail(404, f"Unknown operation: {operation}")
    await body_of(request)
    return json_response({**_SUCCESS, "result": await asked(house, request, UTILS, operation, {})})
