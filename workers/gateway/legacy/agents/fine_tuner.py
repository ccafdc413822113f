"""LocalFineTunerAgent (5642): fine-tuning jobs of models, trained by the learning service.

A job trains the dataset or opportunity that its config names, else what its model has to learn. While there is nothing
to train on it stays pending, says so, and is looked at again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from schemas.bodies.learning_jobs import JobInfo, TrainingResume
from schemas.errors import Rejected
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply, Words
from workers.gateway.legacy.agents import trainings
from workers.gateway.legacy.agents.asked import given, iso, learning_id
from workers.gateway.legacy.house import House

log = logging.getLogger("olympus.legacy")

NAME: Final = "LocalFineTunerAgent"

# Seconds between two looks for created jobs, and between two attempts at one that had nothing to train on.
_LOOK_S: Final = 1.0
_AGAIN_S: Final = 30.0

_SHOWN: Final = ("id", "model_id", "status", "start_time", "end_time", "error", "metrics", "artifacts")
_OPEN: Final = frozenset({"pending", "running"})


# A record that says no more than who it is: one that was migrated may lack what only this edge writes.
_BLANK: Final[Mapping[str, Any]] = {
    "status": "pending",
    "start_time": None,
    "end_time": None,
    "error": None,
    "metrics": {},
    "artifacts": {},
    "training": "",
}


class _Desk:
    """queued: jobs that were created or wait for something to train on, by when they are tried next."""

    def __init__(self) -> None:
        self.changing = asyncio.Lock()
        self.queued: dict[str, float] = {}
        self.running: set[str] = set()
        self.is_read = False
        self.has_begun = False


async def create_job(ask: Fields, house: House) -> Reply:
    """Note a job; it begins when somebody says so, or after others that somebody did."""
    given(ask, "model_id")
    given(ask, "config")
    job_id = await _create(ask.text("model_id"), ask.mapping("config"), house)
    return {"status": "success", "job_id": job_id}


async def start_job(ask: Fields, house: House) -> Reply:
    """Have it trained, or say what for it waits."""
    given(ask, "job_id")
    record = await _record(ask.text("job_id"), house)
    if record["status"] in ("running", "completed"):
        return {"status": "success", "message": f"Job {record['id']} is {record['status']} already"}
    record = await _begin(record, house)
    if record["status"] == "failed":
        raise Refused(record["error"])
    if record["error"]:
        return {"status": "success", "message": f"Job {record['id']} waits: {record['error']}"}
    return {"status": "success", "message": f"Job {record['id']} started"}


async def get_status(ask: Fields, house: House) -> Reply:
    """Where a job stands."""
    given(ask, "job_id")
    record = await _refreshed(await _record(ask.text("job_id"), house), house)
    return {"status": "success", "job": {name: record[name] for name in _SHOWN}}


async def trigger_finetune(ask: Fields, house: House) -> Reply:
    """What the older learning monitor sent: train the current model on a file of candidates it had written.

    Files of whoever calls are not read; `data_source` is the name of a dataset.
    """
    source, model = ask.text("data_source"), ask.text("model_to_tune")
    config = {**ask.mapping("parameters"), "dataset": source}
    job_id = await _create(model or "current_model", config, house)
    record = await _begin(await _record(job_id, house), house)
    if record["status"] != "running":
        raise Refused(
            f"data_source {source!r} is no dataset that can be trained on ({record['error']}); import files with"
            " learning.dataset.import, build a dataset, and name that",
            job_id=job_id,
        )
    return {"status": "started", "job_id": job_id}


async def health(house: House) -> dict[str, Any]:
    """What the agent told beside the common keys."""
    return {
        "service": "local_fine_tuner_agent",
        "active_jobs": len(house.state(NAME, _Desk).running),
        "database_status": "ok" if await house.is_up("memory") else "unavailable",
    }


def queue_of(look_s: float = _LOOK_S) -> Callable[[House], Awaitable[None]]:
    """The task that follows running jobs, and begins created ones once any was begun by request."""
    return trainings.looking("jobs", look_s, _is_read, _look)


def _is_read(house: House) -> bool:
    return house.state(NAME, _Desk).is_read


async def _look(house: House) -> None:
    desk = await _desk(house)
    for job_id in list(desk.running):
        if (record := await _kept(job_id, house)) is not None:
            await _refreshed(record, house)
    due = [job_id for job_id, at in desk.queued.items() if at <= time.monotonic()] if desk.has_begun else []
    for job_id in due:
        record = await _kept(job_id, house)
        if record is None or record["status"] != "pending":
            desk.queued.pop(job_id, None)
        else:
            # Also where the learning service or the models are away.
            desk.queued[job_id] = time.monotonic() + _AGAIN_S
            await _begin(record, house)


async def _create(model_id: str, config: dict[str, Any], house: House) -> str:
    desk, now = await _desk(house), time.time()
    async with desk.changing:
        job_id = await house.kept("fine_tuner").free_key(f"job_{int(now)}_{model_id}")
        record = {**_BLANK, "id": job_id, "model_id": model_id, "config": config, "created_at": iso(now)}
        await house.kept("fine_tuner").put(job_id, record)
    desk.queued[job_id] = time.monotonic()
    return job_id


async def _desk(house: House) -> _Desk:
    """With the jobs that ran when this process was started, and those begun that waited for something to train on."""
    desk = house.state(NAME, _Desk)
    if not desk.is_read:
        async with desk.changing:
            async for job_id, record in house.kept("fine_tuner").each():
                if record.get("training") and record["status"] in _OPEN:
                    desk.running.add(job_id)
                elif record["status"] == "pending" and record.get("error"):
                    desk.queued[job_id] = time.monotonic()
                    desk.has_begun = True
            desk.is_read = True
    return desk


async def _record(job_id: str, house: House) -> dict[str, Any]:
    record = await _kept(job_id, house) if job_id else None
    if record is None:
        raise Refused("Job not found")
    return record


async def _kept(job_id: str, house: House) -> dict[str, Any] | None:
    record = await house.kept("fine_tuner").get(job_id)
    return None if record is None else {**_BLANK, **record}


async def _begin(record: dict[str, Any], house: House) -> dict[str, Any]:
    """The record of a job that runs, waits for something to train on, or failed."""
    desk = await _desk(house)
    desk.has_begun = True
    async with desk.changing:
        changes = await _begun(record, house)
        record = {**record, **changes}
        await house.kept("fine_tuner").put(record["id"], record)
        if record["status"] == "running":
            desk.running.add(record["id"])
        if record["status"] == "pending":
            desk.queued[record["id"]] = time.monotonic() + _AGAIN_S
        else:
            desk.queued.pop(record["id"], None)
    return record


async def _begun(record: dict[str, Any], house: House) -> dict[str, Any]:
    started = {"status": "running", "start_time": iso(time.time()), "end_time": None, "error": None}
    try:
        if record["training"]:
            await house.ask("learning.training.resume", TrainingResume(job_id=record["training"], is_now=True))
            return started
        config = record["config"]
        target = trainings.named_target(config) or await trainings.target_of(record["model_id"], house)
        if target is None:
            nothing = (
                f"nothing to train {record['model_id']!r} on: config names no dataset and no opportunity_id, and no open"
                " opportunity of the model has examples enough"
            )
            return {"status": "pending", "error": nothing}
        name = learning_id(record["id"])
        await house.ask("learning.training.start", trainings.start_of(name, target, config))
    except (Refused, Rejected) as error:
        return {**started, "status": "failed", "end_time": iso(time.time()), "error": str(error)}
    return {**started, "training": name}


def status_of(info: JobInfo) -> str:
    """The old word for where a training stands."""
    if info.state in trainings.WAITING:
        return "pending"
    if info.state in trainings.RUNNING:
        return "running"
    if info.state in trainings.DONE:
        return "completed"
    return "cancelled" if info.state == "stopped" else "failed"


async def _refreshed(record: dict[str, Any], house: House) -> dict[str, Any]:
    """The record as its training has it now."""
    if not record["training"] or record["status"] in ("completed", "failed"):
        return record
    info = await trainings.status_of(record["training"], house)
    if info is None:
        gone = f"the learning service knows no training {record['training']}"
        now = {**record, "status": "failed", "end_time": iso(time.time()), "error": gone}
    else:
        status = status_of(info)
        now = {
            **record,
            "status": status,
            "end_time": iso(info.finished_at),
            "error": f"{info.state}: {info.reason}" if status == "failed" else None,
            "metrics": {**record["metrics"], **await trainings.metrics_of(info, house)},
            "artifacts": {"model": info.adapter_path} if info.adapter_path else {},
        }
    if now["status"] not in _OPEN:
        house.state(NAME, _Desk).running.discard(record["id"])
        await house.kept("fine_tuner").put(record["id"], now)
    return now


AGENT = Agent(
    name=NAME,
    service="learning",
    kind="fine_tuner",
    ports=(5642, 5662, 5000),
    actions={
        "create_job": Action(create_job),
        "start_job": Action(start_job),
        "get_status": Action(get_status),
        "trigger_finetune": Action(trigger_finetune),
    },
    words=Words(unknown="Unknown action", no_verb="Unknown action", bad_json="Invalid JSON"),
    health=health,
    tasks=(queue_of(),),
)
