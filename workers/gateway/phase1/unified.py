"""The second memory service's requests where their paths are free: keys, documents, embeddings, sessions and sign-ins.

It never ran, so its description is all there is of it. Passwords are checked and roles are what the account holds. Times
are epoch seconds; `storage_id` is the version.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from schemas.bodies.accounts import Login, TokenIssue, Tokens, TokenState, TrustGet, TrustScore, Verify
from schemas.bodies.items import DocGet, DocPut, MemoryAdd
from schemas.bodies.memory import KvDelete, KvGet, KvList, KvPage, KvSet
from schemas.bodies.sessions import Session, SessionCreate, SessionGet, SessionUpdate
from schemas.errors import BadRequest, Conflict, Forbidden, NotFound, Unauthenticated
from workers.gateway.legacy.house import House
from workers.gateway.phase1.answers import body_of, detail, worded
from workers.gateway.phase1.fields import Missing, body, mapping, number, read_bare, read_fields, text
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response, json_response
from workers.gateway.rest.routes import Route

_NAMESPACE: Final = "namespace"

# Entries read with one request, and keys that one list tells at most.
_PAGE: Final = 1_000
_KEYS_MAX: Final = 100_000

_HOUR_S: Final = 3_600.0
# The longest a session can be kept; it stands for "for ever".
_LONGEST_S: Final = 10 * 366 * 24 * _HOUR_S

_KV: Final = (
    body("key", text),
    body("value", text),
    body(_NAMESPACE, text, "memory_client"),
    body("expire", number, None),
)
_DOC: Final = (
    body("doc_id", text),
    body("title", text),
    body("content", text),
    body(_NAMESPACE, text, "knowledge_base"),
    body("metadata", mapping, {}),
)
_EMBEDDING: Final = (
    body("content", text),
    body(_NAMESPACE, text, "unified_memory_reasoning"),
    body("doc_id", text, None),
    body("category", text, None),
    body("metadata", mapping, {}),
)
_SESSION: Final = (
    body("session_id", text),
    body("user_id", text),
    body("data", mapping),
    body(_NAMESPACE, text, "session_memory"),
    body("expires_hours", number, 24.0),
)
_SIGN_IN: Final = (body("username", text, ""), body("password", text, ""), body("agent_name", text, None))


def unified_routes(house: House) -> Iterator[Route]:
    """The routes of the memory port that nobody else has."""
    for method, path, handle in (
        ("POST", "/kv", put_kv),
        ("GET", "/kv/{namespace}/{key}", get_kv),
        ("DELETE", "/kv/{namespace}/{key}", delete_kv),
        ("GET", "/doc/{namespace}/{doc_id}", get_doc),
        ("POST", "/embedding", add_embedding),
        ("GET", "/session/{namespace}/{session_id}", get_session),
        ("POST", "/auth/token", sign_in),
        ("POST", "/auth/agent-token", issue),
        ("GET", "/auth/me", whoami),
    ):
        yield Route(method, path, worded(partial(handle, house)))


# Keys


async def put_kv(house: House, request: RestRequest) -> Response:
    """An entry of a namespace; `expire` in seconds."""
    given = read_fields(_KV, await body_of(request), ())
    entry = KvSet(key=given["key"], value=given["value"], ns=given[_NAMESPACE], ttl_s=given.get("expire"))
    await _own(house, request).ask("memory.kv.set", entry)
    return json_response({"status": "success", "key": entry.key, "namespace": entry.ns})


async def get_kv(house: House, request: RestRequest) -> Response:
    """That there is none is an answer."""
    key, ns = request.params["key"], request.params[_NAMESPACE]
    try:
        value = (await _own(house, request).ask("memory.kv.get", KvGet(key=key, ns=ns))).value
    except NotFound:
        return json_response({"key": key, "value": None, "namespace": ns, "exists": False})
    return json_response({"key": key, "value": value, "namespace": ns, "exists": True})


async def delete_kv(house: House, request: RestRequest) -> Response:
    """`deleted` tells whether there was one."""
    key, ns = request.params["key"], request.params[_NAMESPACE]
    reply = await _own(house, request).ask("memory.kv.delete", KvDelete(key=key, ns=ns))
    return json_response({"status": "success", "key": key, "namespace": ns, "deleted": reply.deleted})


async def list_keys(house: House, request: RestRequest) -> Response:
    """Keys of a namespace that fit a pattern of shells: `*`, `?`, `[abc]`."""
    ns, pattern = request.params["key"], request.query_one("pattern") or "*"
    prefix = pattern[: min([at for at in map(pattern.find, "*?[") if at >= 0], default=len(pattern))]
    own = _own(house, request)
    keys: list[str] = []
    after: str | None = None
    while len(keys) < _KEYS_MAX:
        page: KvPage = await own.ask(
            "memory.kv.list", KvList(ns=ns, prefix=prefix, limit=_PAGE, after=after, keys_only=True)
        )
        keys += [entry.key for entry in page.entries if fnmatch.fnmatchcase(entry.key, pattern)]
        after = page.next_after
        if after is None:
            break
    return json_response({"namespace": ns, "pattern": pattern, "keys": keys, "count": len(keys)})


# Documents, embeddings, sessions


async def put_doc(house: House, request: RestRequest) -> Response:
    """Keep or replace a document."""
    given = read_fields(_DOC, await body_of(request), ())
    document = DocPut(
        doc_id=given["doc_id"],
        title=given["title"],
        content=given["content"],
        metadata=given["metadata"],
        ns=given[_NAMESPACE],
    )
    kept = await _own(house, request).ask("memory.doc.put", document)
    told = {"doc_id": document.doc_id, "namespace": document.ns, "embedding_id": None, "storage_id": kept.version}
    return json_response({"status": "success", **told})


async def get_doc(house: House, request: RestRequest) -> Response:
    """A document of a namespace."""
    wanted = DocGet(doc_id=request.params["doc_id"], ns=request.params[_NAMESPACE])
    try:
        document = await _own(house, request).ask("memory.doc.get", wanted)
    except NotFound:
        return detail(404, "Document not found")
    names = ("doc_id", "title", "content", "metadata", "created_at", "updated_at")
    return json_response({_NAMESPACE: document.ns, **{name: getattr(document, name) for name in names}})


async def add_embedding(house: House, request: RestRequest) -> Response:
    """A memory, which search finds by its meaning."""
    given = read_fields(_EMBEDDING, await body_of(request), ())
    about: dict[str, Any] = {name: given[name] for name in ("doc_id", "category") if name in given}
    memory = MemoryAdd(content=given["content"], metadata={**given["metadata"], **about}, ns=given[_NAMESPACE])
    added = await _own(house, request).ask("memory.add", memory)
    return json_response({"status": "success", "embedding_id": added.id, "namespace": added.ns})


async def put_session(house: House, request: RestRequest) -> Response:
    """Open a session with its data, or replace the data of one."""
    given = read_fields(_SESSION, await body_of(request), ())
    session_id, ns, data = given["session_id"], given[_NAMESPACE], given["data"]
    ttl_s = min(given["expires_hours"] * _HOUR_S, _LONGEST_S) or _LONGEST_S
    own = _own(house, request)
    try:
        session = SessionCreate(session_id=session_id, user_id=given["user_id"], metadata=data, ttl_s=ttl_s, ns=ns)
        await own.ask("memory.session.create", session)
    except Conflict:
        await own.ask("memory.session.update", SessionUpdate(session_id=session_id, metadata=data, ttl_s=ttl_s, ns=ns))
    return json_response({"status": "success", "session_id": session_id, "namespace": ns, "storage_id": 1})


async def get_session(house: House, request: RestRequest) -> Response:
    """One that has ended is not found."""
    wanted = SessionGet(session_id=request.params["session_id"], ns=request.params[_NAMESPACE])
    session: Session = await _own(house, request).ask("memory.session.get", wanted)
    if session.ended_at is not None:
        return detail(404, "Session not found")
    return json_response(
        {
            "session_id": session.session_id,
            "user_id": session.user_id,
            "data": session.metadata,
            "namespace": session.ns,
            "expires_at": session.expires_at,
            "created_at": session.created_at,
            "updated_at": session.last_used_at,
        }
    )


# Sign-ins


async def sign_in(house: House, request: RestRequest) -> Response:
    """An access token for a name and its password. Nobody becomes an agent by saying so."""
    given = read_fields(_SIGN_IN, await body_of(request), ())
    if not given["username"] or not given["password"]:
        raise Missing("username and password" if not given["username"] else "password")
    try:
        tokens: Tokens = await house.client.request(
            "auth.login", Login(user_id=given["username"], password=given["password"])
        )
    except BadRequest as error:
        # No account can have such a name.
        raise Unauthenticated("wrong user name or password") from error
    own = house.acting_with(tokens.access_token)
    return json_response(
        {
            "access_token": tokens.access_token,
            "token_type": "bearer",
            "expires_in": int(tokens.expires_in_s),
            "user": {
                "user_id": tokens.user_id,
                "username": tokens.user_id,
                "roles": _roles(tokens.scopes),
                "trust_score": await _trust(own, tokens.user_id),
            },
        }
    )


async def issue(house: House, request: RestRequest) -> Response:
    """A token for the account of an agent, for those who may issue them."""
    name = read_bare("agent_name", text, await body_of(request))
    tokens: Tokens = await _own(house, request).ask("auth.issue", TokenIssue(user_id=name))
    return json_response({"access_token": tokens.access_token, "token_type": "bearer", "agent_name": name})


async def whoami(house: House, request: RestRequest) -> Response:
    """Who the token says the caller is."""
    token = request.token
    state: TokenState | None = None
    if token:
        state = await house.client.request("auth.verify", Verify(token=token))
    if state is None or not state.valid:
        return detail(401, "Authentication required")
    return json_response(
        {
            "user_id": state.user_id,
            "username": state.user_id,
            "roles": _roles(state.scopes),
            "agent_name": None,
            "trust_score": await _trust(_own(house, request), state.user_id),
            "metadata": {"expires_at": time.time() + state.expires_in_s},
        }
    )


def _own(house: House, request: RestRequest) -> House:
    return house.acting_with(request.token or "")


async def _trust(own: House, user_id: str) -> float | None:
    """The score of an account; None for a caller who may not read it."""
    try:
        score: TrustScore = await own.ask("trust.get", TrustGet(user_id=user_id, history=0))
    except Forbidden:
        return None
    return score.score


def _roles(scopes: list[str]) -> list[str]:
    return ["user", "admin"] if "admin" in scopes else ["user"]
