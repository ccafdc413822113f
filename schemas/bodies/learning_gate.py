"""Bodies of the gate and of promotion: `learning.evaluate`, `.gate.show`, `.promote`, `.rollback`, `.adapter.list`, `.watch`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.bodies.base import Ordinal, Reply, Request, Unit
from schemas.bodies.learning import LearningId
from schemas.bodies.learning_data import DatasetName
from schemas.bodies.model import AdapterName, ModelName

VerdictWord = Literal["passed", "refused", "underpowered"]


class LearningEvaluate(Request, frozen=True, kw_only=True):
    """Measure an adapter: gain on a dataset's held-out rows, loss on what must not be forgotten, and the gate's verdict.

    Either job_id, or model with adapter and dataset. against: the adapter to compare with, "" for the bare model, None for
    what serves now. is_attempt: counts as an attempt on this held-out set, which later verdicts are corrected for.
    """

    job_id: LearningId | None = None
    model: ModelName | None = None
    adapter: AdapterName | None = None
    dataset: DatasetName | None = None
    version: Ordinal | None = None
    against: Annotated[str, Meta(max_length=128)] | None = None
    is_attempt: bool = True


class LearningEvaluateProgress(Reply, frozen=True, kw_only=True):
    """Partial reply: answers so far, of how many; score: mean of the candidate's so far."""

    phase: str
    done: int
    total: int
    score: float | None = None


class SetResult(Reply, frozen=True, kw_only=True):
    """One set of items, answered by both. Scores are 0..1, a difference is candidate less the other.

    name: "target", "retention", or the dataset of an earlier adapter. low, high: interval of the difference at
    `confidence`. p_value: of no gain (target only), before the correction for attempts. bound: lower end that must lie above
    -margin (all but the target). better, worse: items whose answer became right, or wrong.
    """

    name: str
    items: int
    clusters: int
    score: float
    score_before: float
    difference: float
    low: float
    high: float
    confidence: float
    p_value: float | None = None
    bound: float | None = None
    margin: float | None = None
    better: int = 0
    worse: int = 0


class GateResult(Reply, frozen=True, kw_only=True):
    """Events `learning.gate.passed|failed`, too. reasons: in words, the deciding one first.

    alpha: of the gate; corrected_alpha: what this attempt may use, the `attempt`-th on this held-out set. power: chance to
    see a gain of `min_gain` with this many items; detectable_gain: the smallest seen with a power of 0.8.
    """

    evaluation_id: str
    job_id: str
    model: str
    model_sha256: str
    adapter: str
    against: str
    dataset: str
    version: int
    at: float
    verdict: VerdictWord
    reasons: list[str]
    target: SetResult | None
    retention: SetResult | None
    earlier: list[SetResult]
    backward_transfer: float | None
    alpha: float
    corrected_alpha: float
    attempt: int
    min_gain: float
    power: float
    detectable_gain: float
    metric: str
    took_s: float


class GateShow(Request, frozen=True, kw_only=True):
    """Why a job passed or not: the newest verdict of a job, or the one of an evaluation, with items.

    only: all items, or those whose score changed for the better or worse.
    """

    job_id: LearningId | None = None
    evaluation_id: LearningId | None = None
    only: Literal["all", "changed", "better", "worse"] = "changed"
    limit: Annotated[int, Meta(ge=0, le=10_000)] = 50


class GateItem(Reply, frozen=True, kw_only=True):
    set: str
    row_id: str
    cluster: str
    question: str
    reference: str
    answer: str
    answer_before: str
    score: float
    score_before: float


class GateShown(Reply, frozen=True, kw_only=True):
    result: GateResult
    items: list[GateItem]
    total: int


class PowerShow(Request, frozen=True, kw_only=True):
    """What could be seen with a dataset's held-out rows, before anything is trained."""

    dataset: DatasetName
    version: Ordinal | None = None


class PowerStatement(Reply, frozen=True, kw_only=True):
    """is_enough: the gate could pass an adapter. words: what is missing, or what gain could be seen."""

    dataset: str
    version: int
    target_items: int
    target_clusters: int
    retention_items: int
    retention_clusters: int
    power: float
    detectable_gain: float
    min_gain: float
    attempt: int
    corrected_alpha: float
    is_enough: bool
    words: str


# Promotion and watching ---------------------------------------------------------------------------------------------


class Promote(Request, frozen=True, kw_only=True):
    """Put the adapter of a job to work. Refused unless the gate passed it; is_forced overrules that, with a reason.

    canary_share: part of the conversations that get it at first, while it is watched; 1 for all at once, None for the
    setting.
    """

    job_id: LearningId
    reason: Annotated[str, Meta(max_length=1_024)] = ""
    is_forced: bool = False
    canary_share: Annotated[float, Meta(gt=0, le=1)] | None = None


class Rollback(Request, frozen=True, kw_only=True):
    """Take the newest adapter of a model out of service; what served before it serves again at once."""

    model: ModelName | None = None
    reason: Annotated[str, Meta(max_length=1_024)] = ""


DeploymentState = Literal["canary", "champion", "retired", "rolled_back"]


class Deployment(Reply, frozen=True, kw_only=True):
    """One adapter put to work. Events `learning.promoted|rolled_back` carry it, too.

    share: of the conversations it answers. previous: what served before it, "" for the bare model. path: its PEFT folder.
    """

    deployment_id: str
    model: str
    adapter: str
    sha256: str
    job_id: str
    dataset: str
    version: int
    state: DeploymentState
    share: float
    previous: str
    promoted_at: float
    ended_at: float | None
    reason: str
    path: str
    verdict: str
    is_forced: bool = False


class LearnedAdapters(Request, frozen=True, kw_only=True):
    """Adapters that were put to work, the newest first."""

    model: ModelName | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 50


class Deployments(Reply, frozen=True, kw_only=True):
    deployments: list[Deployment]


class WatchShow(Request, frozen=True, kw_only=True):
    model: ModelName | None = None


class WatchArm(Reply, frozen=True, kw_only=True):
    """mean of the outcomes, with an interval that holds at all times at once."""

    adapter: str
    outcomes: int
    mean: float | None
    low: float | None
    high: float | None


class Watched(Reply, frozen=True, kw_only=True):
    """How a new adapter does in live traffic, against what it replaced.

    evidence: the e-value that it is worse; at `needed` it is taken back. pairs: compared so far. promised_pairs: after how many
    a drop of `drop` is found on average.
    """

    model: str
    deployment: Deployment
    new: WatchArm
    old: WatchArm
    pairs: int
    evidence: float
    needed: float
    drop: Unit
    promised_pairs: int | None
    state: Literal["watching", "kept", "rolled_back"]
    words: str


class Watches(Reply, frozen=True, kw_only=True):
    watches: list[Watched]
