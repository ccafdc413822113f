"""What each kind of record is made of: its columns, how they are written in an export, and the order they come in.

Every kind is one table, and a record's `data` has a field for each of its columns, under the column's name. Groups and
sessions hold the rows of a second table as a list; a long one goes on in further records of the same id, which say
`continues`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from schemas.bodies.base import Key, Ordinal, Unit, Whole
from schemas.bodies.items import Content, MemoryType, Metadata, Name, Tags, Text, Tier
from schemas.bodies.memory import Category
from schemas.bodies.sessions import Role, SessionState, TurnContent

# Times reach this far, epoch seconds, as in every request.
Time = Annotated[float, Meta(ge=0, le=1e11)]


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields of one record. A field that is not known is an error, so that nothing of an export is lost unseen."""


class KvData(Data, frozen=True, kw_only=True):
    key: Key
    version: Ordinal
    created_at: Time
    updated_at: Time
    value: Any
    expires_at: Time | None = None


class FactData(Data, frozen=True, kw_only=True):
    key: Key
    value: Annotated[str, Meta(min_length=1, max_length=65_536)]
    category: Category
    source: Annotated[str, Meta(min_length=1, max_length=64)]
    created_at: Time
    updated_at: Time
    access_count: Whole = 0
    last_accessed_at: Time | None = None


class DocumentData(Data, frozen=True, kw_only=True):
    doc_id: Key
    title: Annotated[str, Meta(max_length=1024)]
    content: Content
    version: Ordinal
    created_at: Time
    updated_at: Time
    at: Time
    tags: Tags = []
    metadata: Metadata = {}


class MemoryData(Data, frozen=True, kw_only=True):
    id: Key
    content: Content
    type: MemoryType
    tier: Tier
    importance: Unit
    access_count: Whole
    created_at: Time
    updated_at: Time
    last_accessed_at: Time
    decayed_at: Time
    at: Time
    version: Ordinal
    parent_id: Key | None = None
    expires_at: Time | None = None
    speaker: Name | None = None
    tags: Tags = []
    metadata: Metadata = {}


class RelationData(Data, frozen=True, kw_only=True):
    source_id: Key
    target_id: Key
    kind: Annotated[str, Meta(min_length=1, max_length=64)]
    strength: Unit
    created_at: Time


class MemberData(Data, frozen=True, kw_only=True):
    memory_id: Key


class GroupData(Data, frozen=True, kw_only=True):
    group_id: Ordinal
    name: Name
    description: Text
    created_at: Time


class ExperienceData(Data, frozen=True, kw_only=True):
    exp_id: Key
    agent: Name
    action: Annotated[str, Meta(min_length=1, max_length=65_536)]
    outcome: Text
    importance: Unit
    at: Time
    created_at: Time
    reward: Annotated[float, Meta(ge=-1e12, le=1e12)] | None = None
    success: bool | None = None
    context: Metadata = {}
    tags: Tags = []
    expires_at: Time | None = None
    access_count: Whole = 0
    last_accessed_at: Time | None = None


class TurnData(Data, frozen=True, kw_only=True):
    number: Ordinal
    role: Role
    content: TurnContent
    at: Time
    speaker: Name | None = None
    metadata: Metadata = {}


class SessionData(Data, frozen=True, kw_only=True):
    session_id: Key
    user_id: Name
    type: Annotated[str, Meta(min_length=1, max_length=64)]
    state: SessionState
    created_at: Time
    last_used_at: Time
    expires_at: Time | None = None
    ended_at: Time | None = None
    ttl_s: Annotated[float, Meta(gt=0)] | None = None
    summary: Annotated[str, Meta(max_length=65_536)] = ""
    metadata: Metadata = {}


class ContextData(Data, frozen=True, kw_only=True):
    context_id: Key
    version: Ordinal
    data: Any
    system_prompt: Annotated[str, Meta(max_length=1_048_576)]
    created_at: Time
    updated_at: Time
    session_id: Key | None = None
    user_id: Name | None = None
    metadata: Metadata = {}
    expires_at: Time | None = None


class EvidenceData(Data, frozen=True, kw_only=True):
    kind: Annotated[str, Meta(min_length=1, max_length=64)]
    id: Annotated[str, Meta(min_length=1, max_length=2048)]
    text: Text
    score: Annotated[float, Meta(ge=-1e12, le=1e12)]
    at: Time


class SuggestionData(Data, frozen=True, kw_only=True):
    """Without a text it is what has been forgotten, and stays so that it is not suggested again."""

    # Its fingerprint, which is not exported a second time.
    suggestion_id: Annotated[str, Meta(pattern=r"^sug-[0-9a-f]{32}$(?!\n)")]
    kind: Annotated[str, Meta(min_length=1, max_length=64)]
    text: Text
    reason: Text
    confidence: Unit
    evidence: list[EvidenceData]
    made_at: Time
    user_id: Name | None = None
    session_id: Key | None = None
    evidence_from: Annotated[str, Meta(max_length=2048)] | None = None
    dismissed_at: Time | None = None


class SwitchData(Data, frozen=True, kw_only=True):
    """Of the proactive monitor, for a user or, under an empty name, for everybody."""

    user_id: Annotated[str, Meta(max_length=256)]
    is_on: bool


class Parts(NamedTuple):
    """The rows that belong to a record: in which field, of which table, by which column, in which order."""

    field: str
    table: str
    data: type[Data]
    order: str


class Kind(NamedTuple):
    """One kind of record. key: the columns that name it within its namespace. order: how an export sorts it."""

    name: str
    table: str
    data: type[Data]
    key: tuple[str, ...]
    order: str
    expires: bool = False
    parts: Parts | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns beside the namespace."""
        return self.data.__struct_fields__


# In the order of an export, which is one in which they can be imported.
KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("kv", "kv", KvData, ("key",), "ns, key", expires=True),
        Kind("fact", "facts", FactData, ("key",), "ns, key"),
        Kind("document", "knowledge_base", DocumentData, ("doc_id",), "ns, doc_id"),
        Kind("memory", "memories", MemoryData, ("id",), "sequence", expires=True),
        Kind(
            "relation",
            "relations",
            RelationData,
            ("source_id", "kind", "target_id"),
            "ns, source_id, kind, target_id",
        ),
        Kind(
            "group",
            "context_groups",
            GroupData,
            ("group_id",),
            "group_id",
            parts=Parts("members", "group_members", MemberData, "sequence"),
        ),
        Kind("experience", "experiences", ExperienceData, ("exp_id",), "sequence", expires=True),
        Kind(
            "session",
            "sessions",
            SessionData,
            ("session_id",),
            "ns, session_id",
            parts=Parts("turns", "turns", TurnData, "number"),
        ),
        Kind("context", "contexts", ContextData, ("context_id",), "ns, context_id", expires=True),
        Kind("suggestion", "suggestions", SuggestionData, ("suggestion_id",), "ns, suggestion_id"),
        Kind("switch", "suggestion_switches", SwitchData, ("user_id",), "ns, user_id"),
    )
}

# Columns that hold msgpack, JSON and 0 or 1 instead of plain values.
PACKED: Final = frozenset({"context", "data", "evidence", "metadata"})
LISTED: Final = frozenset({"tags"})
FLAGS: Final = frozenset({"is_on", "success"})


def is_packed(kind: str, column: str) -> bool:
    """True for a column that holds msgpack; a fact's value is plain text."""
    return column in PACKED or (kind == "kv" and column == "value")
