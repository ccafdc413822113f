"""Bodies of `memory.search`. Times are Unix epoch seconds, scores have no unit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.bodies.base import Key, Namespace, Reply, Request, Unit
from schemas.bodies.items import MemoryType, Name, Tags, Tier

Kind = Literal["memory", "document", "turn", "fact"]
Mode = Literal["hybrid", "dense", "text", "symbolic"]


class Filters(Request, frozen=True, kw_only=True):
    """What a hit must fulfil, all of it. `tags`: it has every one of them. `metadata`: it has these values.

    `since` <= at < `until`. `user_id` and `not_session_id` are about turns: of this user's sessions, and of every session
    but that one; hits of other kinds do not pass them.
    """

    kinds: Annotated[list[Kind], Meta(min_length=1)] | None = None
    type: MemoryType | None = None
    tier: Tier | None = None
    tags: Tags = []
    since: float | None = None
    until: float | None = None
    session_id: Key | None = None
    not_session_id: Key | None = None
    user_id: Name | None = None
    parent_id: Key | None = None
    speaker: Name | None = None
    metadata: Annotated[dict[str, Any], Meta(max_length=32)] = {}
    min_importance: Unit | None = None


class Search(Request, frozen=True, kw_only=True):
    """Find what matters for `query`.

    `now`: the time that "yesterday" in the query refers to; the present by default. `min_score` raises the floor under
    which hits are left out; 0 keeps the configured one.
    """

    query: Annotated[str, Meta(max_length=8192)]
    ns: Namespace = "memory"
    k: Annotated[int, Meta(ge=1, le=1_000)] = 10
    mode: Mode = "hybrid"
    filters: Filters = Filters()
    explain: bool = False
    now: float | None = None
    min_score: Annotated[float, Meta(ge=0)] = 0.0
    touch: bool = False


class Signal(Reply, frozen=True, kw_only=True):
    """One reason why a hit is here: its share of the score, the raw value behind it, and what it saw."""

    name: str
    share: float
    value: float
    note: str = ""


class SearchHit(Reply, frozen=True, kw_only=True):
    """The chunk that was found. `start` and `end` are its characters in the source; `id` is the source's id.

    `signals` only under `explain`, greatest share first.
    """

    id: str
    kind: str
    score: float
    text: str
    start: int
    end: int
    at: float
    chunk: int
    speaker: str | None = None
    stream: str | None = None
    title: str | None = None
    type: str | None = None
    tags: list[str] = []
    metadata: dict[str, Any] = {}
    importance: float | None = None
    signals: list[Signal] | None = None


class Understood(Reply, frozen=True, kw_only=True):
    """How the query was read, under `explain`."""

    terms: list[str]
    phrases: list[str] = []
    speakers: list[str] = []
    entities: list[str] = []
    since: float | None = None
    until: float | None = None
    time_words: str = ""


class SearchReply(Reply, frozen=True, kw_only=True):
    """Best first; empty when nothing passes the floor. `degraded` says why a signal was missing, empty for none."""

    hits: list[SearchHit]
    mode: str
    took_ms: float
    degraded: str = ""
    waiting: int = 0
    understood: Understood | None = None
