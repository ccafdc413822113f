"""Bodies of memories, their relations and groups, documents and experiences. Times are Unix epoch seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.bodies.base import Key, Namespace, Ordinal, PageSize, PositiveSeconds, Reply, Request, Unit, Whole

Tier = Literal["short", "medium", "long"]
MemoryType = Annotated[str, Meta(min_length=1, max_length=64)]
Tag = Annotated[str, Meta(min_length=1, max_length=256)]
Tags = Annotated[list[Tag], Meta(max_length=256)]
Content = Annotated[str, Meta(min_length=1, max_length=16 * 1024 * 1024)]
Metadata = dict[str, Any]
Text = Annotated[str, Meta(max_length=65_536)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class NewMemory(Request, frozen=True, kw_only=True):
    """One memory to keep.

    `parent_id` puts it under another one, whose children are neighbours in search, in the order of adding. `at`: when
    it happened or was said; else `metadata.time` or `metadata.timestamp` (epoch seconds or ISO 8601), else now.
    `speaker`: who said it; `metadata.speaker` serves too. `id` names it, where a caller has names of its own; `replace`
    allows an existing one to be overwritten.
    """

    content: Content
    type: MemoryType = "general"
    tier: Tier = "short"
    importance: Unit = 0.5
    tags: Tags = []
    metadata: Metadata = {}
    parent_id: Key | None = None
    ttl_s: PositiveSeconds | None = None
    speaker: Name | None = None
    at: Annotated[float, Meta(ge=0, le=1e11)] | None = None
    id: Key | None = None
    replace: bool = False


class MemoryAdd(NewMemory, frozen=True, kw_only=True):
    ns: Namespace = "memory"


class MemoryAddMany(Request, frozen=True, kw_only=True):
    """All of them, in one transaction, or none."""

    items: Annotated[list[NewMemory], Meta(min_length=1, max_length=1_000)]
    ns: Namespace = "memory"


class MemoryGet(Request, frozen=True, kw_only=True):
    """`touch` counts the access, as every reading by its user should."""

    id: Key
    ns: Namespace = "memory"
    touch: bool = True


class MemoryGetMany(Request, frozen=True, kw_only=True):
    """In the order asked for, each once; ids that do not exist are named in `missing`.

    Where a reply could not hold them all, `next_after` of it says how many of `ids` it covers: ask again for the rest.
    """

    ids: Annotated[list[Key], Meta(min_length=1, max_length=1_000)]
    ns: Namespace = "memory"
    touch: bool = True


class MemoryUpdate(Request, frozen=True, kw_only=True):
    """Fields that are given are replaced; `merge_metadata` adds keys to the metadata instead of replacing it.

    `clear` names fields to empty: parent_id, expires_at, speaker. `if_version` refuses when the memory changed since.
    """

    id: Key
    ns: Namespace = "memory"
    content: Content | None = None
    type: MemoryType | None = None
    tier: Tier | None = None
    importance: Unit | None = None
    tags: Tags | None = None
    metadata: Metadata | None = None
    merge_metadata: bool = False
    parent_id: Key | None = None
    ttl_s: PositiveSeconds | None = None
    speaker: Name | None = None
    at: Annotated[float, Meta(ge=0, le=1e11)] | None = None
    clear: list[Literal["parent_id", "expires_at", "speaker"]] = []
    if_version: Ordinal | None = None


class MemoryDelete(Request, frozen=True, kw_only=True):
    """`cascade` deletes the descendants too; without it children stay and keep their `parent_id`."""

    id: Key
    ns: Namespace = "memory"
    cascade: bool = False


class MemoryList(Request, frozen=True, kw_only=True):
    """Memories that fulfil all filters, page by page.

    `contains`: as it stands in the content, in any case of the letters a to z. `metadata`: it has these values. `sort`:
    in the order they were added, the other way round, or the most important first, then the last accessed. `after` is
    the `next_after` of the page before.
    """

    ns: Namespace = "memory"
    type: MemoryType | None = None
    tier: Tier | None = None
    tag: Tag | None = None
    parent_id: Key | None = None
    contains: Annotated[str, Meta(min_length=1, max_length=8192)] | None = None
    metadata: Annotated[dict[str, Any], Meta(max_length=32)] = {}
    sort: Literal["added", "newest", "importance"] = "added"
    limit: PageSize = 100
    after: Whole | None = None


class MemoryChildren(Request, frozen=True, kw_only=True):
    """What lies right under a memory, or everything below it (`recursive`); `after` skips as many."""

    id: Key
    ns: Namespace = "memory"
    limit: PageSize | None = None
    after: Whole = 0
    sort_field: Literal["added", "created_at", "at", "importance", "last_accessed_at"] = "added"
    sort_order: Literal["asc", "desc"] = "asc"
    recursive: bool = False


class MemoryLink(Request, frozen=True, kw_only=True):
    """A typed relation between two memories; neither has to exist yet. The same relation again changes its strength."""

    source_id: Key
    target_id: Key
    kind: Annotated[str, Meta(min_length=1, max_length=64)]
    strength: Unit = 1.0
    ns: Namespace = "memory"


class MemoryUnlink(Request, frozen=True, kw_only=True):
    source_id: Key
    target_id: Key
    kind: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    ns: Namespace = "memory"


class MemoryRelated(Request, frozen=True, kw_only=True):
    """Relations that leave (`out`), reach (`in`) or touch (`both`) a memory and those `depth` - 1 steps away.

    Nearest first, then strongest; each relation is listed once and each memory followed once. `after` skips as many.
    """

    id: Key
    ns: Namespace = "memory"
    kind: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    direction: Literal["out", "in", "both"] = "out"
    depth: Annotated[int, Meta(ge=1, le=8)] = 1
    limit: PageSize = 100
    after: Whole = 0


class MemoryReinforce(Request, frozen=True, kw_only=True):
    """Importance times `factor`, capped at 1; counts as an access."""

    id: Key
    ns: Namespace = "memory"
    factor: Annotated[float, Meta(gt=0, le=100)] = 1.2


class MemoryPromote(Request, frozen=True, kw_only=True):
    """To `tier`, or one tier up: short to medium, medium to long."""

    id: Key
    ns: Namespace = "memory"
    tier: Tier | None = None


class MemoryDecay(Request, frozen=True, kw_only=True):
    """Run the life cycle now instead of at its hour: decay, consolidation, change of tier. `dry_run` only tells."""

    ns: Namespace | None = None
    dry_run: bool = False


class Memory(Reply, frozen=True, kw_only=True):
    """`version` grows with every write, not by reading and ageing; `sequence` is its place in the order of adding."""

    id: str
    ns: str
    content: str
    type: str
    tier: str
    importance: float
    access_count: int
    created_at: float
    updated_at: float
    last_accessed_at: float
    at: float
    version: int
    sequence: int
    tags: list[str] = []
    metadata: Metadata = {}
    parent_id: str | None = None
    expires_at: float | None = None
    speaker: str | None = None


class MemoryAdded(Reply, frozen=True, kw_only=True):
    id: str
    ns: str
    version: int
    created_at: float
    expires_at: float | None = None


class MemoriesAdded(Reply, frozen=True, kw_only=True):
    """In the order of the items."""

    ids: list[str]
    ns: str


class Memories(Reply, frozen=True, kw_only=True):
    """A page; `next_after` is the `after` that continues it, None where nothing is left."""

    memories: list[Memory]
    missing: list[str] = []
    next_after: int | None = None


class MemoryDeleted(Reply, frozen=True, kw_only=True):
    """`deleted` counts the memory itself and, with cascade, its descendants, but no consolidation made of them."""

    id: str
    deleted: int


class Relation(Reply, frozen=True, kw_only=True):
    source_id: str
    target_id: str
    kind: str
    strength: float
    created_at: float


class Linked(Reply, frozen=True, kw_only=True):
    relation: Relation
    is_new: bool


class Unlinked(Reply, frozen=True, kw_only=True):
    removed: int


class RelatedMemory(Reply, frozen=True, kw_only=True):
    """`memory` is None where the relation points to one that does not exist; `depth` is 1 for a direct relation."""

    relation: Relation
    depth: int
    memory: Memory | None = None


class RelatedMemories(Reply, frozen=True, kw_only=True):
    related: list[RelatedMemory]
    next_after: int | None = None


class CycleReport(Reply, frozen=True, kw_only=True):
    """What one run of the life cycle did, or would do. `promoted` counts changes of tier."""

    looked_at: int
    decayed: int
    promoted: int
    consolidated: int
    summarised: int
    expired: int
    dry_run: bool = False


class GroupCreate(Request, frozen=True, kw_only=True):
    name: Name
    description: Text = ""
    ns: Namespace = "memory"


class GroupAdd(Request, frozen=True, kw_only=True):
    group_id: Ordinal
    memory_id: Key
    ns: Namespace = "memory"


class GroupRemove(Request, frozen=True, kw_only=True):
    group_id: Ordinal
    memory_id: Key
    ns: Namespace = "memory"


class GroupMembers(Request, frozen=True, kw_only=True):
    group_id: Ordinal
    ns: Namespace = "memory"
    limit: PageSize = 100
    after: Whole | None = None


class GroupList(Request, frozen=True, kw_only=True):
    ns: Namespace = "memory"
    limit: PageSize = 100
    after: Whole | None = None


class GroupDelete(Request, frozen=True, kw_only=True):
    group_id: Ordinal
    ns: Namespace = "memory"


class Group(Reply, frozen=True, kw_only=True):
    group_id: int
    ns: str
    name: str
    description: str
    created_at: float
    members: int = 0


class Groups(Reply, frozen=True, kw_only=True):
    groups: list[Group]
    next_after: int | None = None


class GroupChanged(Reply, frozen=True, kw_only=True):
    """`changed` is False where it already was so."""

    group_id: int
    changed: bool


# Documents


class DocPut(Request, frozen=True, kw_only=True):
    """Keep a document; long content is cut into chunks that are searched one by one."""

    doc_id: Key
    content: Content
    title: Annotated[str, Meta(max_length=1024)] = ""
    metadata: Metadata = {}
    tags: Tags = []
    ns: Namespace = "kb"
    at: Annotated[float, Meta(ge=0, le=1e11)] | None = None
    if_version: Whole | None = None


class DocGet(Request, frozen=True, kw_only=True):
    """`start` and `length` (characters) read a part of a long one."""

    doc_id: Key
    ns: Namespace = "kb"
    start: Whole = 0
    length: Ordinal | None = None


class DocDelete(Request, frozen=True, kw_only=True):
    doc_id: Key
    ns: Namespace = "kb"


class DocList(Request, frozen=True, kw_only=True):
    ns: Namespace = "kb"
    prefix: Annotated[str, Meta(max_length=1024)] = ""
    tag: Tag | None = None
    limit: PageSize = 100
    after: str | None = None


class DocInfo(Reply, frozen=True, kw_only=True):
    """A document without its content; `characters` is the length of the whole."""

    doc_id: str
    ns: str
    title: str
    version: int
    characters: int
    chunks: int
    created_at: float
    updated_at: float
    at: float
    tags: list[str] = []
    metadata: Metadata = {}


class Document(DocInfo, frozen=True, kw_only=True):
    content: str
    start: int = 0


class DocPage(Reply, frozen=True, kw_only=True):
    documents: list[DocInfo]
    next_after: str | None = None


class DocDeleted(Reply, frozen=True, kw_only=True):
    doc_id: str
    ns: str
    deleted: bool


# Experiences


class ExperienceRecord(Request, frozen=True, kw_only=True):
    """What an agent did in which situation, and what came of it. `reward` by the agent's own scale."""

    agent: Name
    action: Annotated[str, Meta(min_length=1, max_length=65_536)]
    outcome: Text = ""
    reward: Annotated[float, Meta(ge=-1e12, le=1e12)] | None = None
    success: bool | None = None
    context: Metadata = {}
    tags: Tags = []
    importance: Unit = 0.5
    ttl_s: PositiveSeconds | None = None
    ns: Namespace = "experience"
    exp_id: Key | None = None
    at: Annotated[float, Meta(ge=0, le=1e11)] | None = None


class ExperienceGet(Request, frozen=True, kw_only=True):
    exp_id: Key
    ns: Namespace = "experience"


class ExperienceList(Request, frozen=True, kw_only=True):
    """Newest first, or the most important and last accessed first; each one listed counts an access.

    `since` <= at < `until`.
    """

    ns: Namespace = "experience"
    agent: Name | None = None
    success: bool | None = None
    tag: Tag | None = None
    since: float | None = None
    until: float | None = None
    sort: Literal["newest", "importance", "reward"] = "newest"
    limit: PageSize = 100
    offset: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class ExperienceStats(Request, frozen=True, kw_only=True):
    ns: Namespace = "experience"
    agent: Name | None = None


class Experience(Reply, frozen=True, kw_only=True):
    exp_id: str
    sequence: int
    ns: str
    agent: str
    action: str
    outcome: str
    importance: float
    access_count: int
    at: float
    created_at: float
    reward: float | None = None
    success: bool | None = None
    context: Metadata = {}
    tags: list[str] = []
    expires_at: float | None = None
    last_accessed_at: float | None = None


class Experiences(Reply, frozen=True, kw_only=True):
    experiences: list[Experience]
    has_more: bool = False


class AgentExperience(Reply, frozen=True, kw_only=True):
    """One agent's experiences at one action; `mean_reward` and `success_rate` are None where none was reported."""

    agent: str
    count: int
    last_at: float
    mean_reward: float | None = None
    success_rate: float | None = None


class ExperienceTotals(Reply, frozen=True, kw_only=True):
    count: int
    agents: list[AgentExperience]
