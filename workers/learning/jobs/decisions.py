"""The words between the scheduler of trainings and the service around it: what happened, and what is to be done."""

from __future__ import annotations

from datetime import tzinfo
from typing import Final, Literal, NamedTuple

import msgspec

from workers.learning.jobs.windows import Windows

# In place of a device: trained jobs are evaluated and promoted one after the other, beside a training.
GATE: Final = "gate"

# How a run of a job ended.
#   trained   the adapter is whole; the rest of the job is another run
#   done      nothing is left to do, whatever came of it
#   stopped   at a checkpoint, because it was told to
#   refused   the memory it needs is held by others
#   memory    out of memory on the last rung of the ladder
#   lost      the process died, or said nothing of why it ended
#   away      a service it needs did not answer
#   failed    for a reason that stays
How = Literal["trained", "done", "stopped", "refused", "memory", "lost", "away", "failed"]


class Instant(NamedTuple):
    """wall: epoch seconds, for hours and days; steady: seconds of a clock that nobody sets, for durations."""

    wall: float
    steady: float


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """When training may run. budget_s: seconds a day, 0 for no limit. idle_s: 0 for not waiting.

    devices: for jobs that name none, the first choice first; none while nobody knows yet which there are. zone None is the machine's own.
    """

    windows: Windows = Windows()
    budget_s: float = 0.0
    idle_s: float = 0.0
    is_paused: bool = False
    devices: tuple[str, ...] = ("cpu",)
    zone: tzinfo | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler knows of one. priority: 1 is the most important. created_at: epoch seconds.

    device "" leaves the choice to the policy. is_now: whatever the hours, and however busy the models. is_trained: what is
    left of it needs no device. budget_left_s: seconds it may still train. failures: tries in a row that came to nothing.
    """

    job_id: str
    priority: int
    created_at: float
    device: str = ""
    processes: int = 1
    is_now: bool = False
    is_trained: bool = False
    budget_left_s: float | None = None
    failures: int = 0


# Events


class Submitted(NamedTuple):
    """A job is to run; reason: why it is not done yet, where it has run before."""

    job: Job
    reason: str = ""


class Withdrawn(NamedTuple):
    """Somebody wants the job stopped."""

    job_id: str
    reason: str


class Urgent(NamedTuple):
    """Somebody wants it to run whatever the hours, and however busy the models."""

    job_id: str


class Changed(NamedTuple):
    policy: Policy


class Asked(NamedTuple):
    """A model was asked something."""


class AskedBack(NamedTuple):
    """The job's memory is wanted by somebody more important, or was taken already."""

    job_id: str
    reason: str


class Freed(NamedTuple):
    """Memory was given back by somebody."""


class Began(NamedTuple):
    """The job's trainer runs from now on: its seconds count."""

    job_id: str


class Ended(NamedTuple):
    """The run that `Run` began is over. has_progress: a checkpoint was written in it."""

    job_id: str
    how: How
    reason: str = ""
    has_progress: bool = False


class Tick(NamedTuple):
    """Time passed."""


Event = Submitted | Withdrawn | Urgent | Changed | Asked | AskedBack | Freed | Began | Ended | Tick


# Effects


class Run(NamedTuple):
    """Let it run, on these devices; (GATE,) for what comes after the training. Answered by `Ended`."""

    job_id: str
    devices: tuple[str, ...]


class Halt(NamedTuple):
    """Stop the run at a checkpoint. Answered by `Ended`, however it ends."""

    job_id: str
    reason: str


class Queue(NamedTuple):
    """It is to run again."""

    job_id: str
    state: Literal["queued", "waiting"]
    reason: str
    failures: int


class Finish(NamedTuple):
    """It is over."""

    job_id: str
    state: Literal["stopped", "failed"]
    reason: str


Effect = Run | Halt | Queue | Finish
