"""Bodies of `memory.*`. Times are Unix epoch seconds."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from schemas.bodies.base import Key, Namespace, PageSize, PositiveSeconds, Reply, Request, Whole


class KvGet(Request, frozen=True, kw_only=True):
    key: Key
    ns: Namespace = "kv"


class KvSet(Request, frozen=True, kw_only=True):
    """`if_version` makes it a compare-and-set: the version last seen, or 0 for "must not exist yet"."""

    key: Key
    value: Any
    ns: Namespace = "kv"
    ttl_s: PositiveSeconds | None = None
    if_version: Whole | None = None


class KvDelete(Request, frozen=True, kw_only=True):
    key: Key
    ns: Namespace = "kv"
    if_version: Whole | None = None


class KvList(Request, frozen=True, kw_only=True):
    """Entries whose key starts with `prefix`, in key order; `after` continues behind that key."""

    prefix: Annotated[str, Meta(max_length=1024)] = ""
    ns: Namespace = "kv"
    limit: PageSize = 100
    after: str | None = None
    keys_only: bool = False


class KvVersion(Reply, frozen=True, kw_only=True):
    """An entry without its value: what a write answers."""

    key: str
    ns: str
    version: int
    created_at: float
    updated_at: float
    expires_at: float | None = None


class KvEntry(Reply, frozen=True, kw_only=True):
    key: str
    value: Any
    ns: str
    version: int
    created_at: float
    updated_at: float
    expires_at: float | None = None


class KvDeleted(Reply, frozen=True, kw_only=True):
    key: str
    ns: str
    deleted: bool


class KvPage(Reply, frozen=True, kw_only=True):
    """`next_after` is None on the last page. Entries of a `keys_only` listing have a nil value."""

    entries: list[KvEntry]
    next_after: str | None = None


Category = Annotated[str, Meta(min_length=1, max_length=64)]


class Remember(Request, frozen=True, kw_only=True):
    """A fact, preference or piece of context that a person, a program or the model itself wants kept."""

    key: Key
    value: Annotated[str, Meta(min_length=1, max_length=65_536)]
    category: Category = "fact"
    source: Annotated[str, Meta(min_length=1, max_length=64)] = "user"
    ns: Namespace = "user"


class Recall(Request, frozen=True, kw_only=True):
    key: Key
    ns: Namespace = "user"


class Find(Request, frozen=True, kw_only=True):
    """Facts whose key or value holds the words of `query`, best match first."""

    query: Annotated[str, Meta(min_length=1, max_length=4096)]
    category: Category | None = None
    ns: Namespace = "user"
    limit: PageSize = 20


class Forget(Request, frozen=True, kw_only=True):
    """Exactly one of `key`, `category` and `everything` says what goes."""

    key: Key | None = None
    category: Category | None = None
    everything: bool = False
    ns: Namespace = "user"


class AllFacts(Request, frozen=True, kw_only=True):
    category: Category | None = None
    ns: Namespace = "user"
    limit: PageSize = 100
    after: str | None = None


class Prompt(Request, frozen=True, kw_only=True):
    """The system-prompt addition made of what is known, most useful first, within `max_tokens`.

    Tokens are counted by the tokenizer of `model` where one is named and known, else as `PromptAddition` says.
    """

    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    categories: list[Category] | None = None
    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    ns: Namespace = "user"


class Fact(Reply, frozen=True, kw_only=True):
    key: str
    value: str
    category: str
    source: str
    ns: str
    created_at: float
    updated_at: float
    access_count: int
    last_accessed_at: float | None = None


class FactPage(Reply, frozen=True, kw_only=True):
    facts: list[Fact]
    next_after: str | None = None


class Forgotten(Reply, frozen=True, kw_only=True):
    forgotten: int
    keys: list[str] = []


class PromptAddition(Reply, frozen=True, kw_only=True):
    """`tokens` by the tokenizer of the model `counted_by`, or an upper "estimate": bytes / 3, rounded up.

    `left_out` did not fit: the first 1,000 of them, most useful first; `left_out_count` counts all.
    """

    text: str
    tokens: int
    included: list[str]
    left_out: list[str]
    counted_by: str = "estimate"
    left_out_count: int = 0


class Changed(Reply, frozen=True, kw_only=True):
    """Event `memory.changed.{ns}`: what a committed write did."""

    ns: str
    key: str
    action: str
    version: int | None = None
    request_id: str | None = None


CacheType = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$(?!\n)")]


class CacheGet(Request, frozen=True, kw_only=True):
    """`type` tells kinds of results apart, each with its own time to live: nlu_results, tool_responses, ..."""

    key: Key
    type: CacheType = "general"
    ns: Namespace = "cache"


class CacheSet(Request, frozen=True, kw_only=True):
    """Without `ttl_s` the time of its type."""

    key: Key
    value: Any
    type: CacheType = "general"
    ttl_s: PositiveSeconds | None = None
    ns: Namespace = "cache"


class CacheDelete(Request, frozen=True, kw_only=True):
    key: Key
    type: CacheType = "general"
    ns: Namespace = "cache"


class CacheFlush(Request, frozen=True, kw_only=True):
    """Everything of one type, or the whole namespace."""

    type: CacheType | None = None
    ns: Namespace = "cache"


class CacheStats(Request, frozen=True, kw_only=True):
    ns: Namespace = "cache"


class CacheEntry(Reply, frozen=True, kw_only=True):
    """A miss is an answer too: `hit` False and a nil value."""

    key: str
    type: str
    ns: str
    hit: bool
    value: Any = None
    ttl_s: float | None = None


class CacheStored(Reply, frozen=True, kw_only=True):
    key: str
    type: str
    ns: str
    ttl_s: float


class CacheDeleted(Reply, frozen=True, kw_only=True):
    key: str
    type: str
    ns: str
    deleted: bool


class CacheFlushed(Reply, frozen=True, kw_only=True):
    flushed: int


class CacheFigures(Reply, frozen=True, kw_only=True):
    """Hits and misses since the service started; `tier` says where the cache is now."""

    ns: str
    entries: int
    size_bytes: int
    hits: int
    misses: int
    tier: str
