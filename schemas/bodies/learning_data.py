"""Bodies of `learning.dataset.*` and `learning.row.*`: what is learned from."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.bodies.base import Ordinal, Reply, Request
from schemas.bodies.learning import Example, LearningId, Text
from schemas.bodies.model import ChatMessage, ModelName

DatasetName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$(?!\n)")]
# exchange: an answer that somebody rated as good. unrated: one that nobody complained of; it is only ever repeated, against
# forgetting.
RowKind = Literal["feedback", "evaluation", "teacher", "import", "manual", "exchange", "unrated"]
RowState = Literal["ready", "quarantined", "removed"]
Split = Literal["train", "held_out", "replay", "retention"]
Metric = Literal["auto", "exact", "contains", "token_f1", "json"]


class RowInfo(Reply, frozen=True, kw_only=True):
    """One example with where it comes from. cluster: rows about one fact share it, and so the split.

    reason: why it is quarantined or removed, or what was replaced in it. evidence: ids of what it was made of.
    """

    row_id: str
    model: str
    kind: RowKind
    messages: list[ChatMessage]
    prompt: str | None
    answer: str
    rejected: str | None
    user: str
    session_id: str
    memory_ids: list[str]
    evidence: list[str]
    opportunity_id: str
    cluster: str
    split: Split
    state: RowState
    reason: str
    created_at: float
    sha256: str


class RowPage(Reply, frozen=True, kw_only=True):
    """next: the `after` of the next page, "" at the end."""

    rows: list[RowInfo]
    total: int
    next: str = ""


class RowList(Request, frozen=True, kw_only=True):
    """Rows of the store, of every dataset to come; the newest first."""

    model: ModelName | None = None
    state: RowState | None = None
    split: Split | None = None
    kind: RowKind | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None
    opportunity_id: LearningId | None = None
    after: Annotated[str, Meta(max_length=128)] = ""
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100


class RowEdit(Request, frozen=True, kw_only=True):
    """Correct an example; None leaves a field. It goes through the filters again."""

    row_id: LearningId
    answer: Annotated[str, Meta(min_length=1, max_length=1_048_576)] | None = None
    rejected: Text | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1_024)] | None = None
    prompt: Text | None = None


class RowRemove(Request, frozen=True, kw_only=True):
    """Take an example out for good: its text is erased, and the same is not taken in again."""

    row_id: LearningId
    reason: Annotated[str, Meta(max_length=1_024)] = ""


class RowRelease(Request, frozen=True, kw_only=True):
    """Let a quarantined example be used after all."""

    row_id: LearningId
    reason: Annotated[str, Meta(max_length=1_024)] = ""


class DatasetInfo(Reply, frozen=True, kw_only=True):
    """One frozen version of a dataset. sha256: over its rows and the base model.

    rows: counts by split; quarantined: rows of the selection that were left out, by reason. model_sha256: of the base
    model when it was built. is_stale: why it must be built anew before it is trained on, "" when it need not.
    """

    dataset: str
    version: int
    model: str
    model_sha256: str
    sha256: str
    created_at: float
    rows: dict[str, int]
    clusters: dict[str, int]
    kinds: dict[str, int]
    quarantined: dict[str, int]
    opportunities: list[str]
    metric: Metric
    is_stale: str = ""
    note: str = ""


class DatasetList(Request, frozen=True, kw_only=True):
    """Datasets, the newest version of each; with `dataset` every version of that one."""

    model: ModelName | None = None
    dataset: DatasetName | None = None


class Datasets(Reply, frozen=True, kw_only=True):
    datasets: list[DatasetInfo]


class DatasetShow(Request, frozen=True, kw_only=True):
    """A version (None for the newest) with a page of its rows."""

    dataset: DatasetName
    version: Ordinal | None = None
    split: Split | None = None
    after: Annotated[str, Meta(max_length=128)] = ""
    limit: Annotated[int, Meta(ge=0, le=1_000)] = 50


class DatasetShown(Reply, frozen=True, kw_only=True):
    dataset: DatasetInfo
    page: RowPage


class DatasetBuild(Request, frozen=True, kw_only=True):
    """Freeze what is known into a version; the same content is the version it always was.

    Selected are rows of `model` (None: the default model) from these opportunities, of these kinds, newer than `since`;
    empty selects all. replay_share: part of the training rows that are earlier data. max_rows: the newest ones.
    metric: how answers are compared with the reference; "auto" takes exact for short references and token F1 for long.
    """

    dataset: DatasetName
    model: ModelName | None = None
    opportunities: Annotated[list[LearningId], Meta(max_length=1_000)] = []
    kinds: Annotated[list[RowKind], Meta(max_length=8)] = []
    since: float | None = None
    replay_share: Annotated[float, Meta(ge=0, le=0.9)] | None = None
    max_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    metric: Metric = "auto"
    note: Annotated[str, Meta(max_length=1_024)] = ""


class DatasetDelete(Request, frozen=True, kw_only=True):
    """Delete a version, or with None all of them. The rows stay in the store. Refused while a job needs it."""

    dataset: DatasetName
    version: Ordinal | None = None


class DatasetDeleted(Reply, frozen=True, kw_only=True):
    dataset: str
    versions: int


class DatasetExport(Request, frozen=True, kw_only=True):
    """The rows as JSON Lines, in partial replies."""

    dataset: DatasetName
    version: Ordinal | None = None
    split: Split | None = None


class DatasetPart(Reply, frozen=True, kw_only=True):
    """Whole lines, each with its line feed."""

    lines: str


class DatasetExported(Reply, frozen=True, kw_only=True):
    dataset: str
    version: int
    rows: int
    sha256: str


class DatasetImport(Request, frozen=True, kw_only=True):
    """Take in examples: as JSON Lines (fields of an example), or as they are. Bad lines are named and left out.

    opportunity_id: what they count towards. first_line: number of the first line, for messages, where a file is sent in parts.
    split "retention" keeps them as what must not be forgotten; the default lets their cluster decide.
    """

    model: ModelName | None = None
    lines: Annotated[str, Meta(max_length=16_777_216)] = ""
    examples: Annotated[list[Example], Meta(max_length=10_000)] = []
    opportunity_id: LearningId | None = None
    split: Literal["", "retention"] = ""
    first_line: Ordinal = 1
    source: Annotated[str, Meta(max_length=256)] = ""


class LineProblem(Reply, frozen=True, kw_only=True):
    line: int
    reason: str


class DatasetImported(Reply, frozen=True, kw_only=True):
    """added: new rows. duplicates: known already. quarantined: taken in, but kept out of training. problems: first 100."""

    added: int
    duplicates: int
    quarantined: int
    refused: int
    problems: list[LineProblem] = []
