"""Bodies of the upkeep of a memory: figures, export and import, check and rebuild, backup and restore, clean-up."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.bodies.base import Empty, Namespace, Reply, Request


class MemoryStats(Empty, frozen=True):
    """What the memory holds."""


class NamespaceStats(Reply, frozen=True, kw_only=True):
    ns: str
    kind: str
    count: int


class StatsReply(Reply, frozen=True, kw_only=True):
    """Counts, and sizes in bytes on disk; `waiting` chunks have no vector yet, `unencodable` never one of this model."""

    namespaces: list[NamespaceStats]
    database_bytes: int
    vectors: int
    waiting: int
    encoder: str
    encoder_state: str
    vector_engine: str
    hot_tier: str
    schema_version: int
    degraded: list[str] = []
    unencodable: int = 0


RecordKind = Literal[
    "kv",
    "fact",
    "memory",
    "relation",
    "group",
    "document",
    "experience",
    "session",
    "context",
    "suggestion",
    "switch",
]


class MemoryExport(Request, frozen=True, kw_only=True):
    """Everything of `kinds` in `ns` (all of them by default), as records that `memory.import` takes.

    A suggestion that quotes a namespace out of the caller's reach comes without its text, dismissed.
    """

    ns: Namespace | None = None
    kinds: list[RecordKind] | None = None


class ExportRecord(Reply, frozen=True, kw_only=True):
    kind: str
    ns: str
    data: dict[str, Any]


class ExportPart(Reply, frozen=True, kw_only=True):
    """Some records, and how far the export is."""

    records: list[ExportRecord]
    done: int
    total: int


class Exported(Reply, frozen=True, kw_only=True):
    """What was exported, by kind. `records` is empty where they were streamed."""

    counts: dict[str, int]
    records: list[ExportRecord] = []


class NewRecord(Request, frozen=True, kw_only=True):
    kind: RecordKind
    ns: Namespace
    data: dict[str, Any]


class MemoryImport(Request, frozen=True, kw_only=True):
    """Records of an export, all or none. `on_conflict` decides about ids that exist."""

    records: Annotated[list[NewRecord], Meta(min_length=1, max_length=1_000)]
    on_conflict: Literal["skip", "replace", "fail"] = "fail"


class Imported(Reply, frozen=True, kw_only=True):
    imported: int
    skipped: int


class MemoryVerify(Request, frozen=True, kw_only=True):
    """Compare the vectors with the database; `repair` queues what differs."""

    repair: bool = False


class MemoryRebuild(Empty, frozen=True):
    """Make every vector anew, in the background of the service; searches go on with text meanwhile."""


class UpkeepProgress(Reply, frozen=True, kw_only=True):
    """How far a long piece of work is; `eta_s` None while unknown."""

    stage: str
    done: int
    total: int
    eta_s: float | None = None


class Verified(Reply, frozen=True, kw_only=True):
    """`agrees` is True when every chunk has its vector, and nothing else is in the index.

    Ids of the first hundred of each kind of difference. `unencodable`: chunks whose text the model cannot encode.
    """

    agrees: bool
    chunks: int
    vectors: int
    waiting: int
    missing: list[int]
    surplus: list[int]
    outdated: list[int]
    problems: list[str] = []
    repaired: int = 0
    unencodable: list[int] = []


class Rebuilt(Reply, frozen=True, kw_only=True):
    chunks: int
    took_s: float


class MemoryBackup(Request, frozen=True, kw_only=True):
    """Copy the database while it serves, to the service's `backups` folder. `name` for the file; the time by default."""

    name: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._-]+$(?!\n)")] | None = None


class BackedUp(Reply, frozen=True, kw_only=True):
    path: str
    size_bytes: int
    sha256: str
    schema_version: int
    took_s: float


class MemoryRestore(Request, frozen=True, kw_only=True):
    """Put a backup in the place of what is there; what was there is kept as a backup first."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]


class Restored(Reply, frozen=True, kw_only=True):
    """`kept_as` is the backup of what was there before."""

    path: str
    kept_as: str
    chunks: int


CleanupTarget = Literal["temp", "logs", "cache"]


class Cleanup(Request, frozen=True, kw_only=True):
    """Delete old files in Olympus' own folders; `older_than_s` instead of the usual age. `dry_run` only tells."""

    older_than_s: Annotated[float, Meta(ge=0)] | None = None
    dry_run: bool = False


class CleanedUp(Reply, frozen=True, kw_only=True):
    files_removed: int
    bytes_freed: int
    errors: list[str] = []


class CleanedSystem(Reply, frozen=True, kw_only=True):
    temp_files: CleanedUp
    logs: CleanedUp
    cache: CleanedUp
