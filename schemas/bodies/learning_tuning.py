"""Bodies of `learning.session.*`, `learning.rate.*` and `learning.parameter.*`: how training goes, and what to change."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.bodies.base import Reply, Request
from schemas.bodies.learning import LearningId
from schemas.bodies.model import ModelName

MetricName = Annotated[str, Meta(min_length=1, max_length=128)]
ParameterName = Annotated[str, Meta(min_length=1, max_length=256)]
Phase = Literal["initialization", "active_learning", "evaluation", "optimization", "consolidation", "idle"]
ParameterKind = Literal["learning_rate", "batch_size", "optimizer", "regularization", "custom"]
Trend = Literal["improving", "stable", "declining", "insufficient_data"]


class SessionCreate(Request, frozen=True, kw_only=True):
    """Begin to follow how a model learns, whoever trains it. A known session_id begins anew."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    session_id: LearningId | None = None
    parameters: dict[str, Any] = {}


class SessionUpdate(Request, frozen=True, kw_only=True):
    """Tell of new measurements; None leaves status and progress as they are. progress: 0 to 1."""

    session_id: LearningId
    status: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    progress: Annotated[float, Meta(ge=0, le=1)] | None = None
    metrics: Annotated[dict[MetricName, float], Meta(max_length=128)] = {}


class SessionGet(Request, frozen=True, kw_only=True):
    session_id: LearningId


class SessionEnd(Request, frozen=True, kw_only=True):
    session_id: LearningId
    status: Annotated[str, Meta(min_length=1, max_length=64)] = "completed"


class SessionsList(Request, frozen=True, kw_only=True):
    model: Annotated[str, Meta(max_length=256)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 50


class Measured(Reply, frozen=True, kw_only=True):
    at: float
    metrics: dict[str, float]


class MetricTrend(Reply, frozen=True, kw_only=True):
    """slope: of a straight line through the last values, per measurement; None while there are too few."""

    metric: str
    trend: Trend
    slope: float | None
    initial: float
    latest: float
    best: float
    average: float


class Advice(Reply, frozen=True, kw_only=True):
    """What to change and why. parameter: "learning_rate", "batch_size", "max_grad_norm", or "stop"."""

    parameter: str
    value: float | None
    factor: float | None
    reason: str


class LearningSession(Reply, frozen=True, kw_only=True):
    """learning_rate: what the session should go on with. status is "timeout" after a day without an end."""

    session_id: str
    model: str
    created_at: float
    last_active_at: float
    ended_at: float | None
    status: str
    progress: float
    phase: Phase
    parameters: dict[str, Any]
    metrics: dict[str, float]
    history: list[Measured]
    trends: list[MetricTrend]
    advice: list[Advice]
    learning_rate: float


class LearningSessions(Reply, frozen=True, kw_only=True):
    sessions: list[LearningSession]
    total: int


class RateGet(Request, frozen=True, kw_only=True):
    """The learning rate and the length that a new training of a model would begin with, and why."""

    model: ModelName | None = None


class LearningRate(Reply, frozen=True, kw_only=True):
    """formula: how it follows from the earlier jobs that `evidence` names."""

    model: str
    learning_rate: float
    epochs: float
    reason: str
    formula: str
    evidence: list[str]


class ParameterRegister(Request, frozen=True, kw_only=True):
    """A number of the user's system that may be tuned. A known name is registered anew."""

    name: ParameterName
    kind: ParameterKind = "custom"
    min_value: float
    max_value: float
    current_value: float
    step_size: Annotated[float, Meta(gt=0)]
    description: Annotated[str, Meta(max_length=4_096)] = ""
    metadata: dict[str, Any] = {}


class ParameterAdjust(Request, frozen=True, kw_only=True):
    name: ParameterName
    value: float
    reason: Annotated[str, Meta(max_length=1_024)] = ""


class Parameter(Reply, frozen=True, kw_only=True):
    name: str
    kind: str
    min_value: float
    max_value: float
    current_value: float
    step_size: float
    description: str
    metadata: dict[str, Any]
    changed_at: float


class ParameterList(Request, frozen=True, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000


class Parameters(Reply, frozen=True, kw_only=True):
    parameters: list[Parameter]


class PerformanceRecord(Request, frozen=True, kw_only=True):
    """One measurement, with the values the parameters had."""

    metric: MetricName
    value: float
    parameters: Annotated[dict[ParameterName, float], Meta(max_length=1_000)] = {}


class PerformanceRecorded(Reply, frozen=True, kw_only=True):
    metric: str
    records: int


class ParameterOptimize(Request, frozen=True, kw_only=True):
    """Which parameters to move, by their correlation with a metric over its last 100 records."""

    metric: MetricName


class Adjustment(Reply, frozen=True, kw_only=True):
    """confidence: absolute value of the correlation."""

    current_value: float
    suggested_value: float
    correlation: float
    confidence: float


class Adjustments(Reply, frozen=True, kw_only=True):
    metric: str
    records: int
    adjustments: dict[str, Adjustment]


class SessionEvent(Reply, frozen=True, kw_only=True):
    """Events `learning.session.*`: started, measured, converged, stagnated, declined, phase, ended.

    parameters: of one that started. took_s, values (how many were told) and trends: of one that ended.
    """

    session_id: str
    model: str
    at: float
    metric: str = ""
    value: float | None = None
    trend: str = ""
    phase: str = ""
    old_phase: str = ""
    status: str = ""
    advice: list[Advice] = []
    parameters: dict[str, Any] = {}
    took_s: float | None = None
    values: int = 0
    trends: list[MetricTrend] = []
