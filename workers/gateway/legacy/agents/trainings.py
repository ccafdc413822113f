"""What a cycle or a job of the old trainers has the learning service train, and how that goes on.

The old `config` was never read, so its keys are taken by the names in use: those of ours and those of PEFT.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from bus.reminder import Reminder
from schemas.bodies.learning import Opportunities, OpportunityList
from schemas.bodies.learning_jobs import (
    CurvePoint,
    JobInfo,
    JobLog,
    JobProgress,
    JobState,
    TrainingLog,
    TrainingStart,
    TrainingStatus,
)
from schemas.errors import BadRequest, BusError, NotFound
from workers.gateway.legacy.agent import Refused
from workers.gateway.legacy.agents.asked import is_number

if TYPE_CHECKING:
    from workers.gateway.legacy.house import House

log = logging.getLogger("olympus.legacy")

# Names of a config's keys, ours first.
_TARGETS: Final[Mapping[str, tuple[str, ...]]] = {
    "dataset": ("dataset", "dataset_name"),
    "version": ("version", "dataset_version"),
    "opportunity_id": ("opportunity_id", "learning_opportunity_id"),
}
_MODELS: Final = ("model", "model_id", "model_name")
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "learning_rate": ("learning_rate", "lr"),
    "epochs": ("epochs", "num_epochs", "num_train_epochs"),
    "max_steps": ("max_steps",),
    "batch_size": ("batch_size",),
    "max_length": ("max_length", "max_seq_length"),
    "seed": ("seed",),
}
_LORA: Final[Mapping[str, tuple[str, ...]]] = {
    "rank": ("rank", "r", "lora_rank", "lora_r"),
    "alpha": ("alpha", "lora_alpha"),
    "dropout": ("dropout", "lora_dropout"),
    "targets": ("targets", "target_modules"),
}

# The shape of the few-shot routine that LocalFineTunerAgent had; without it the defaults of `LoraSettings` are its general ones.
_FEW_SHOT: Final = {"rank": 4, "alpha": 16.0}

# Opportunities of a model that are looked through for one that can be trained.
_LOOKED_AT: Final = 200

# Progress that a training has at most before it ended: the gate comes after the last step.
_NOT_YET: Final = 0.99

_METRICS: Final = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_s")

WAITING: Final[frozenset[JobState]] = frozenset({"queued", "waiting"})
RUNNING: Final[frozenset[JobState]] = frozenset({"training", "evaluating", "promoting"})
DONE: Final[frozenset[JobState]] = frozenset({"promoted", "passed"})


class Target(NamedTuple):
    """What is to be trained: a dataset or an opportunity."""

    dataset: str | None = None
    version: int | None = None
    opportunity_id: str | None = None


def named_target(config: Mapping[str, Any]) -> Target | None:
    """The dataset or opportunity that a config names."""
    found = {field: _first(config, names) for field, names in _TARGETS.items()}
    if not found["dataset"] and not found["opportunity_id"]:
        return None
    return Target(**found)


def named_model(config: Mapping[str, Any]) -> str:
    """The model that a config names, "" for none."""
    found = _first(config, _MODELS)
    return found if isinstance(found, str) else ""


async def target_of(model: str, house: House) -> Target | None:
    """The first open opportunity of a model that has examples enough; None where there is none."""
    if not model:
        return None
    try:
        found: Opportunities = await house.ask(
            "learning.opportunity.list", OpportunityList(model=model, state="open", limit=_LOOKED_AT)
        )
    except BadRequest:
        # No name that a model of ours could have.
        return None
    ready = (one for one in found.opportunities if not one.needs and one.examples)
    return next((Target(opportunity_id=one.opportunity_id) for one in ready), None)


def start_of(job_id: str, target: Target, config: Mapping[str, Any]) -> TrainingStart:
    """The request that trains it, at once. Raises Refused for a config that cannot be trained with."""
    lora_config = config.get("lora")
    lora_config = lora_config if isinstance(lora_config, Mapping) else config
    lora = {**(_FEW_SHOT if config.get("few_shot") else {}), **_chosen(lora_config, _LORA)}
    values = {
        **{name: value for name, value in target._asdict().items() if value is not None},
        **_chosen(config, _CHOICES),
        "lora": lora,
        "job_id": job_id,
        "is_now": True,
    }
    try:
        return msgspec.convert(values, TrainingStart, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(f"config cannot be trained with: {error}") from error


async def status_of(job_id: str, house: House) -> JobInfo | None:
    """How a training goes; None where the learning service knows none of it."""
    try:
        info: JobInfo = await house.ask("learning.training.status", TrainingStatus(job_id=job_id))
    except NotFound:
        return None
    return info


def progress_of(info: JobInfo) -> float:
    """0 to 1; 1 only when it is over, and well."""
    if info.state in DONE:
        return 1.0
    if info.adapter_path:
        return _NOT_YET
    told = info.progress
    return min(told.step / told.steps, _NOT_YET) if told is not None and told.steps else 0.0


async def metrics_of(info: JobInfo, house: House) -> dict[str, float]:
    """The newest measurements of a training: of its progress, or of its curve once it is past training."""
    told: JobProgress | CurvePoint | None = info.progress
    if told is None or told.loss is None:
        log: JobLog = await house.ask("learning.training.log", TrainingLog(job_id=info.job_id, limit=1, points=1))
        told = log.points[-1] if log.points else None
    values: dict[str, Any] = {name: getattr(told, name, None) for name in _METRICS}
    return {name: value for name, value in values.items() if is_number(value)}


def _chosen(config: Mapping[str, Any], fields: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    found = {field: _first(config, names) for field, names in fields.items()}
    return {field: value for field, value in found.items() if value is not None}


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def looking(
    what: str, every_s: float, is_read: Callable[[House], bool], look: Callable[[House], Awaitable[None]]
) -> Callable[[House], Awaitable[None]]:
    """The task that looks at an agent's `what` (jobs, cycles) for ever, and tells ever more rarely why it cannot.

    is_read: whether the agent has read its records in this process; before, memory is waited for.
    """

    async def keep_looking(house: House) -> None:
        reminder = Reminder()
        while True:
            await asyncio.sleep(every_s)
            if not is_read(house) and not await house.is_up("memory"):
                continue
            try:
                await look(house)
                reminder.clear()
            except BusError as error:
                if reminder.is_due(str(error), time.monotonic()):
                    log.warning(f"{what} wait", extra={"action": f"legacy.{what}", "error": str(error)})

    return keep_looking
