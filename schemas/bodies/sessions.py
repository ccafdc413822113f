"""Bodies of sessions, contexts, suggestions and the memory tool. Times are Unix epoch seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.bodies.base import Key, Namespace, Ordinal, PageSize, PositiveSeconds, Reply, Request, Whole
from schemas.bodies.items import Metadata, Name

Role = Annotated[str, Meta(min_length=1, max_length=64)]
TurnContent = Annotated[str, Meta(min_length=1, max_length=16 * 1024 * 1024)]
TokenBudget = Annotated[int, Meta(ge=1, le=10_000_000)]
SessionState = Literal["open", "closed", "expired"]


class SessionCreate(Request, frozen=True, kw_only=True):
    """Open a session. It ends `ttl_s` seconds after its last use; without, by the configured time."""

    user_id: Name = "default"
    session_id: Key | None = None
    type: Annotated[str, Meta(min_length=1, max_length=64)] = "conversation"
    ttl_s: PositiveSeconds | None = None
    metadata: Metadata = {}
    ns: Namespace = "session"


class SessionGet(Request, frozen=True, kw_only=True):
    """`touch` counts as a use, which puts the end off."""

    session_id: Key
    ns: Namespace = "session"
    touch: bool = False


class NewTurn(Request, frozen=True, kw_only=True):
    """`speaker`: the person's name where the role alone does not tell; `at`: when it was said, now by default."""

    role: Role
    content: TurnContent
    speaker: Name | None = None
    at: Annotated[float, Meta(ge=0, le=1e11)] | None = None
    metadata: Metadata = {}


class SessionAppend(Request, frozen=True, kw_only=True):
    """Add one or more turns, all or none. A session that ended is reopened only with `reopen`."""

    session_id: Key
    turns: Annotated[list[NewTurn], Meta(min_length=1, max_length=1_000)]
    ns: Namespace = "session"
    reopen: bool = False


class SessionHistory(Request, frozen=True, kw_only=True):
    """The last `limit` turns, oldest first; `before` pages back. `max_tokens` cuts from the oldest."""

    session_id: Key
    ns: Namespace = "session"
    limit: PageSize = 50
    before: Ordinal | None = None
    max_tokens: TokenBudget | None = None
    model: Name | None = None
    touch: bool = True


class SessionUpdate(Request, frozen=True, kw_only=True):
    """Fields that are given are replaced; `merge_metadata` adds keys instead."""

    session_id: Key
    ns: Namespace = "session"
    metadata: Metadata | None = None
    merge_metadata: bool = False
    ttl_s: PositiveSeconds | None = None
    summary: Annotated[str, Meta(max_length=65_536)] | None = None


class SessionClose(Request, frozen=True, kw_only=True):
    """End a session. `delete` removes it with its turns for good."""

    session_id: Key
    ns: Namespace = "session"
    delete: bool = False


class SessionList(Request, frozen=True, kw_only=True):
    """Sessions of a user or of all, the one used last first."""

    ns: Namespace = "session"
    user_id: Name | None = None
    state: SessionState | None = None
    limit: PageSize = 100
    offset: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class SessionBridge(Request, frozen=True, kw_only=True):
    """What earlier sessions of this user hold that matters here. `query`: what about; else the latest turns decide."""

    session_id: Key
    ns: Namespace = "session"
    query: Annotated[str, Meta(max_length=8192)] | None = None
    max_tokens: TokenBudget = 512
    k: Annotated[int, Meta(ge=1, le=100)] = 10
    model: Name | None = None


class Session(Reply, frozen=True, kw_only=True):
    session_id: str
    ns: str
    user_id: str
    type: str
    state: str
    turns: int
    created_at: float
    last_used_at: float
    expires_at: float | None = None
    ended_at: float | None = None
    ttl_s: float | None = None
    summary: str = ""
    metadata: Metadata = {}


class Turn(Reply, frozen=True, kw_only=True):
    """`number` starts at 1 in each session."""

    number: int
    role: str
    content: str
    at: float
    speaker: str | None = None
    metadata: Metadata = {}


class SessionAppended(Reply, frozen=True, kw_only=True):
    session_id: str
    first_number: int
    last_number: int
    expires_at: float | None = None


class SessionTurns(Reply, frozen=True, kw_only=True):
    """`next_before` pages further back; None at the beginning. `left_out` counts turns beyond the token budget."""

    session_id: str
    turns: list[Turn]
    next_before: int | None = None
    tokens: int | None = None
    left_out: int = 0


class SessionClosed(Reply, frozen=True, kw_only=True):
    session_id: str
    deleted: bool
    turns: int


class Sessions(Reply, frozen=True, kw_only=True):
    sessions: list[Session]
    has_more: bool = False


class BridgedTurn(Reply, frozen=True, kw_only=True):
    """`is_cut`: `content` is a part of a longer turn, 2,400 characters at most: its beginning, or between dots the part
    that was found further on; `memory.session.history` gives all of it.
    """

    session_id: str
    number: int
    role: str
    content: str
    at: float
    score: float
    speaker: str | None = None
    is_cut: bool = False


class Bridge(Reply, frozen=True, kw_only=True):
    """`text` is what may be put before a model; `turns` say where it comes from; `left_out` did not fit."""

    session_id: str
    text: str
    tokens: int
    turns: list[BridgedTurn]
    left_out: int
    counted_by: str
    sessions: list[str] = []


class SessionEvent(Reply, frozen=True, kw_only=True):
    """Events `memory.session.opened`, `.closed`, `.expired`."""

    session_id: str
    ns: str
    user_id: str
    state: str
    turns: int
    at: float


# Contexts


class ContextPut(Request, frozen=True, kw_only=True):
    """Keep the state of an ongoing piece of work: a system prompt, where to look, and anything else."""

    context_id: Key
    ns: Namespace = "context"
    data: Any = None
    system_prompt: Annotated[str, Meta(max_length=1_048_576)] = ""
    session_id: Key | None = None
    user_id: Name | None = None
    metadata: Metadata = {}
    ttl_s: PositiveSeconds | None = None
    if_version: Whole | None = None


class ContextGet(Request, frozen=True, kw_only=True):
    context_id: Key
    ns: Namespace = "context"


class ContextDelete(Request, frozen=True, kw_only=True):
    context_id: Key
    ns: Namespace = "context"


class ContextList(Request, frozen=True, kw_only=True):
    ns: Namespace = "context"
    user_id: Name | None = None
    limit: PageSize = 100
    after: str | None = None


class ContextBuild(Request, frozen=True, kw_only=True):
    """System prompt, known facts, memories found for `query` and the session's history, within `max_tokens`.

    `reserve_tokens`, fewer than `max_tokens`, are kept free for the answer. Without `query` the last turn decides.
    `context_id` names a stored context whose system prompt and session are used where the request gives none; it need
    not exist.
    """

    context_id: Key | None = None
    ns: Namespace = "context"
    query: Annotated[str, Meta(max_length=8192)] | None = None
    system_prompt: Annotated[str, Meta(max_length=1_048_576)] | None = None
    session_id: Key | None = None
    session_ns: Namespace = "session"
    search_ns: Annotated[tuple[Namespace, ...], Meta(max_length=16)] = ("memory", "kb")
    facts_ns: Namespace | None = "user"
    bridge: bool = True
    max_tokens: TokenBudget = 2048
    reserve_tokens: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    model: Name | None = None
    k: Annotated[int, Meta(ge=0, le=100)] = 10
    now: float | None = None


class Context(Reply, frozen=True, kw_only=True):
    context_id: str
    ns: str
    version: int
    created_at: float
    updated_at: float
    data: Any = None
    system_prompt: str = ""
    session_id: str | None = None
    user_id: str | None = None
    metadata: Metadata = {}
    expires_at: float | None = None


class ContextDeleted(Reply, frozen=True, kw_only=True):
    context_id: str
    ns: str
    deleted: bool


class Contexts(Reply, frozen=True, kw_only=True):
    contexts: list[Context]
    next_after: str | None = None


class ContextPart(Reply, frozen=True, kw_only=True):
    """One piece of a built context: `part` is system, facts, bridge, memory or history; `id` where it comes from."""

    part: str
    id: str
    tokens: int
    why: str = ""
    score: float | None = None


class BuiltMessage(Reply, frozen=True, kw_only=True):
    role: str
    content: str


class BuiltContext(Reply, frozen=True, kw_only=True):
    """`messages` go to `model.chat` as they are. `counted_by`: the tokenizer's model, or "estimate".

    `included` and `left_out` account for every piece that was considered.
    """

    messages: list[BuiltMessage]
    tokens: int
    max_tokens: int
    counted_by: str
    included: list[ContextPart]
    left_out: list[ContextPart]
    degraded: str = ""


class ContextEvent(Reply, frozen=True, kw_only=True):
    """Event `memory.context.changed`."""

    context_id: str
    ns: str
    action: str
    version: int
    at: float


# Suggestions


class SuggestList(Request, frozen=True, kw_only=True):
    """Newest first; dismissed ones only with `include_dismissed`, and none that quotes what the caller may not read."""

    user_id: Name | None = None
    session_id: Key | None = None
    include_dismissed: bool = False
    limit: PageSize = 50
    ns: Namespace = "session"


class SuggestDismiss(Request, frozen=True, kw_only=True):
    suggestion_id: Key
    ns: Namespace = "session"


class SuggestSwitch(Request, frozen=True, kw_only=True):
    """Turn the monitor off or on: for a user, or for everybody. Kept over restarts."""

    is_on: bool
    user_id: Name | None = None
    ns: Namespace = "session"


class Evidence(Reply, frozen=True, kw_only=True):
    kind: str
    id: str
    text: str
    score: float
    at: float


class Suggestion(Reply, frozen=True, kw_only=True):
    """`reason` says in words why; `evidence` holds what it rests on. Event `memory.suggestion.made` has the same form.

    `evidence_ns` is the namespace that the evidence is kept in, empty where that is not known.
    """

    suggestion_id: str
    ns: str
    kind: str
    text: str
    reason: str
    evidence: list[Evidence]
    confidence: float
    made_at: float
    user_id: str | None = None
    session_id: str | None = None
    dismissed_at: float | None = None
    evidence_ns: str = ""


class Suggestions(Reply, frozen=True, kw_only=True):
    suggestions: list[Suggestion]
    is_on: bool


class SuggestionDismissed(Reply, frozen=True, kw_only=True):
    suggestion_id: str
    dismissed: bool


class SuggestSwitched(Reply, frozen=True, kw_only=True):
    is_on: bool
    user_id: str | None = None


# The memory as a tool of a model


class ToolSchemas(Request, frozen=True, kw_only=True):
    """`names`: only these tools."""

    names: list[Name] | None = None


class ToolCall(Request, frozen=True, kw_only=True):
    """A call as a model wrote it: `arguments` is a map, or the JSON text of one; anything else is answered, not refused.
    `search_ns`: where `search_memory` looks; without, in `ns` alone, or where that is `user` in `user`, `memory` and `kb`,
    as far as the caller may read them.
    """

    name: Name
    arguments: Any = {}
    ns: Namespace = "user"
    source: Annotated[str, Meta(min_length=1, max_length=64)] = "model"
    search_ns: Annotated[list[Namespace], Meta(min_length=1, max_length=16)] | None = None


class ToolSchemaList(Reply, frozen=True, kw_only=True):
    """In the form of the `tools` of a chat request."""

    tools: list[dict[str, Any]]


class ToolResult(Reply, frozen=True, kw_only=True):
    """`content` is what goes back to the model as the tool's message; `ok` False where the call was not understood."""

    name: str
    ok: bool
    content: str
