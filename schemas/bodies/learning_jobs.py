"""Bodies of `learning.training.*`, `learning.checkpoint.*` and `learning.schedule.*`. Sizes are bytes, times seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from schemas.bodies.base import Empty, Ordinal, Reply, Request
from schemas.bodies.learning import LearningId
from schemas.bodies.learning_data import DatasetName
from schemas.bodies.model import Device, ModelName, Priority

JobState = Literal[
    "queued",
    "waiting",
    "training",
    "evaluating",
    "promoting",
    "promoted",
    "passed",
    "refused",
    "underpowered",
    "stopped",
    "failed",
]
# How a finished job may go on: promoted by itself, after somebody said so, or not at all.
PromoteMode = Literal["auto", "ask", "never"]


class LoraSettings(Request, frozen=True, kw_only=True):
    """Shape of the adapter. targets: names of modules, ["all-linear"] for every linear layer."""

    rank: Annotated[int, Meta(ge=1, le=1_024)] = 8
    alpha: Annotated[float, Meta(gt=0, le=4_096)] = 32.0
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    targets: Annotated[list[Annotated[str, Meta(min_length=1, max_length=128)]], Meta(min_length=1, max_length=64)] = (
        field(default_factory=lambda: ["all-linear"])
    )


class TrainingStart(Request, frozen=True, kw_only=True):
    """Train an adapter on a dataset, or on what an opportunity calls for, then evaluate it and let the gate decide.

    Exactly one of dataset and opportunity_id. model None: the one the dataset is of. None of the rest leaves the choice to
    what earlier jobs showed. batch_size: rows per step, whatever fits in memory at once. max_length: tokens of one row.
    previous: the adapter to go on from, "" for none, None for the champion. budget_bytes: memory the training may take.
    budget_s: seconds of training at most. method "auto": DPO where every row has a rejected answer, else SFT.
    processes: more than one trains with data parallelism. is_now: do not wait for the hours or for an idle machine.
    wait: answer when the job has ended; its progress comes as partial replies. job_id makes starting twice harmless.
    """

    dataset: DatasetName | None = None
    version: Ordinal | None = None
    opportunity_id: LearningId | None = None
    model: ModelName | None = None
    lora: LoraSettings = LoraSettings()
    method: Literal["auto", "sft", "dpo"] = "auto"
    learning_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    epochs: Annotated[float, Meta(gt=0, le=1_000)] | None = None
    max_steps: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    batch_size: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    max_length: Annotated[int, Meta(ge=8, le=1_048_576)] | None = None
    seed: Annotated[int, Meta(ge=0, le=4_294_967_295)] = 0
    previous: Annotated[str, Meta(max_length=128)] | None = None
    device: Device | None = None
    budget_bytes: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    budget_s: Annotated[float, Meta(gt=0, le=30 * 86_400)] | None = None
    processes: Annotated[int, Meta(ge=1, le=64)] = 1
    priority: Priority = 3
    promote: PromoteMode | None = None
    is_now: bool = False
    wait: bool = False
    job_id: LearningId | None = None


class JobProgress(Reply, frozen=True, kw_only=True):
    """Event `learning.training.progress` and partial reply. phase: what the job does; the rest is about training.

    memory_bytes: of the device, or of the process on a CPU. eta_s: until the end of training.
    """

    job_id: str
    model: str
    phase: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    memory_bytes: int | None = None
    device: str = ""
    done: int = 0
    total: int = 0
    note: str = ""


class JobInfo(Reply, frozen=True, kw_only=True):
    """One training. Events `learning.training.started|finished|failed|stopped` carry it, too.

    reason: why it waits, stopped, failed or was refused. spent_s: seconds of training so far, over all tries. attempts:
    processes started. rung: which step of the ladder for too little memory it is on, 0 for none. config: what is trained
    with, once chosen. adapter: name of the trained adapter, "" until there is one. verdict: the gate's.
    """

    job_id: str
    model: str
    dataset: str
    version: int
    state: JobState
    reason: str
    priority: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    spent_s: float
    attempts: int
    rung: int
    device: str
    config: dict[str, Any]
    progress: JobProgress | None
    adapter: str
    adapter_path: str
    verdict: str
    opportunities: list[str]
    promote: PromoteMode
    power: str = ""


class Jobs(Reply, frozen=True, kw_only=True):
    jobs: list[JobInfo]


class TrainingStop(Request, frozen=True, kw_only=True):
    """Stop at the next step, with a checkpoint to go on from."""

    job_id: LearningId
    reason: Annotated[str, Meta(max_length=1_024)] = ""


class TrainingResume(Request, frozen=True, kw_only=True):
    """Put a stopped or failed job back in the queue; it goes on at its newest good checkpoint."""

    job_id: LearningId
    is_now: bool = False


class TrainingStatus(Request, frozen=True, kw_only=True):
    job_id: LearningId


class TrainingList(Request, frozen=True, kw_only=True):
    """Jobs, the newest first."""

    model: ModelName | None = None
    state: JobState | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 50


class TrainingLog(Request, frozen=True, kw_only=True):
    """What happened in a job, in order, and its curve. after: number of the last entry already known.

    points: of the curve at most, evenly thinned; 0 for none.
    """

    job_id: LearningId
    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000
    points: Annotated[int, Meta(ge=0, le=100_000)] = 500


class LogEntry(Reply, frozen=True, kw_only=True):
    number: int
    at: float
    event: str
    message: str
    fields: dict[str, Any] = {}


class CurvePoint(Reply, frozen=True, kw_only=True):
    step: int
    at: float
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None


class JobLog(Reply, frozen=True, kw_only=True):
    job: JobInfo
    entries: list[LogEntry]
    points: list[CurvePoint]


class CheckpointList(Request, frozen=True, kw_only=True):
    job_id: LearningId


class CheckpointInfo(Reply, frozen=True, kw_only=True):
    """Event `learning.training.checkpoint`, too. problem: why it cannot be resumed from, "" when it can."""

    job_id: str
    checkpoint: str
    step: int
    at: float
    size_bytes: int
    sha256: str
    problem: str = ""


class Checkpoints(Reply, frozen=True, kw_only=True):
    checkpoints: list[CheckpointInfo]


class CheckpointDelete(Request, frozen=True, kw_only=True):
    """Delete a checkpoint. Refused for the newest good one of a job that is not finished."""

    job_id: LearningId
    checkpoint: Annotated[str, Meta(min_length=1, max_length=128)]


class CheckpointDeleted(Reply, frozen=True, kw_only=True):
    job_id: str
    checkpoint: str
    freed_bytes: int


class ScheduleGet(Empty, frozen=True, kw_only=True):
    pass


_Hours = Annotated[str, Meta(max_length=128, pattern=r"^(\d\d:\d\d-\d\d:\d\d(,\d\d:\d\d-\d\d:\d\d)*)?$(?!\n)")]
_Days = Annotated[list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]], Meta(max_length=7)]


class ScheduleSet(Request, frozen=True, kw_only=True):
    """When training may run, from now on, also after a restart; None leaves a field as it is.

    hours: local time, as "22:00-06:00,12:00-13:00", "" for always. days: on which a window begins; empty for all.
    budget_s: seconds of training a day, 0 for no limit. idle_s: how long no model must have been asked, 0 for not at all.
    is_paused: start nothing, and stop what runs at a checkpoint. is_automatic: train open opportunities unasked. is_reset:
    forget what was set, and go back to the settings.
    """

    hours: _Hours | None = None
    days: _Days | None = None
    budget_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    idle_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    is_paused: bool | None = None
    is_automatic: bool | None = None
    is_reset: bool = False


class Schedule(Reply, frozen=True, kw_only=True):
    """spent_s: of today's budget. is_open: a job could start now; else `reason` says why not, and opens_at when, if known."""

    hours: str
    days: list[str]
    budget_s: float
    idle_s: float
    is_paused: bool
    is_automatic: bool
    spent_s: float
    is_open: bool
    reason: str
    opens_at: float | None
    running: list[str]
    queued: list[str]
