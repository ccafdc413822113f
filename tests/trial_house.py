"""A `ChatHouse` whose models can be compared, and which has jobs and errors: for the tests of `compare` and `top`.

with TrialHouse(tmp_path / "home") as house:
    house.scripts["tiny"] = Say(pieces=["four"])      # what a model answers, each time it is asked
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.worker import Call, Worker
from schemas.bodies.errors import (
    ErrorAcknowledge,
    ErrorGroup,
    ErrorList,
    ErrorPage,
    ErrorsChanged,
    ErrorShow,
    ErrorStats,
    ErrorStatsReply,
    ErrorWhole,
    ServiceErrors,
)
from schemas.bodies.learning_jobs import JobInfo, JobProgress, Jobs, TrainingList, TrainingStop
from schemas.bodies.model import Chat, Generation, GenerationPart, Timings, Usage
from schemas.bodies.model_trials import Compare, CompareGet, ComparePick, Comparison
from schemas.errors import BY_CODE, NotFound
from tests.chat_house import ChatHouse, Say
from workers.models.records import model_records
from workers.models.trials.compare import Comparing
from workers.models.trials.running import Running

JOB: Final = JobInfo(
    job_id="job-1",
    model="tiny",
    dataset="greetings",
    version=2,
    state="training",
    reason="",
    priority=3,
    created_at=1.0,
    started_at=2.0,
    finished_at=None,
    spent_s=90.0,
    attempts=1,
    rung=0,
    device="gpu0",
    config={},
    progress=JobProgress(
        job_id="job-1", model="tiny", phase="training", step=40, steps=100, loss=1.25, tokens_per_s=900
    ),
    adapter="",
    adapter_path="",
    verdict="",
    opportunities=[],
    promote="ask",
)

ERROR: Final = ErrorGroup(
    fingerprint="5f0c2b66aa",
    service="memory",
    severity="error",
    kind="DiskFull",
    message="no room for vectors",
    state="open",
    count=12,
    per_minute=0.4,
    first_at=1.0,
    last_at=2.0,
)


class TrialHouse(ChatHouse):
    """scripts: what each model answers. jobs, groups: what there is to see and to change."""

    def __init__(self, home: Path, **overrides: Any) -> None:
        extra: dict[str, Callable[[Any, Call], Awaitable[Any]]] = {
            "model.chat": self._scripted,
            "model.compare": self._compare,
            "model.compare.pick": self._compare_pick,
            "model.compare.get": self._compare_get,
            "learning.training.list": self._job_list,
            "learning.training.stop": self._job_stop,
        }
        super().__init__(home, extra=extra, has_memory=False, **overrides)
        self.scripts: dict[str, Say] = {}
        self.jobs: list[JobInfo] = [JOB]
        self.groups: list[ErrorGroup] = [ERROR]

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        await super()._start(stack)
        records = model_records(self.home / "models.sqlite3")
        await records.open()
        stack.push_async_callback(records.close)
        self._comparing = Comparing(self._client, records, Running())
        errors = Worker("error", self.settings, instance="error-house")
        errors.handle("error.stats", self._error_stats)
        errors.handle("error.list", self._error_list)
        errors.handle("error.show", self._error_show)
        errors.handle("error.acknowledge", self._error_acknowledge)
        await errors.start(10)
        stack.push_async_callback(errors.stop, 0)
        self._workers.append(errors)

    # Models

    async def _scripted(self, request: Chat, call: Call) -> Generation:
        self.asked.append(request)
        say = self.scripts.get(str(request.model), Say(pieces=["I am ", str(request.model), "."]))
        try:
            for piece in say.pieces:
                await call.partial(GenerationPart(text=piece))
                if say.hold_s:
                    await asyncio.sleep(say.hold_s)
            if say.waits:
                await self._released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if say.error is not None:
            raise BY_CODE[say.error[0]](say.error[1])
        return Generation(
            model=str(request.model),
            text="".join(say.pieces),
            token_ids=[],
            finish_reason="stop",
            usage=Usage(prompt_tokens=3, completion_tokens=len(say.pieces)),
            timings=Timings(prompt_s=0.01, generate_s=0.1, first_token_s=0.02, tokens_per_s=say.tokens_per_s),
        )

    async def _compare(self, request: Compare, call: Call) -> Comparison:
        return await self._comparing.compare(request, call)

    async def _compare_pick(self, request: ComparePick, call: Call) -> Comparison:
        return await self._comparing.pick(request)

    async def _compare_get(self, request: CompareGet, call: Call) -> Comparison:
        return await self._comparing.get(request)

    # Jobs

    async def _job_list(self, request: TrainingList, call: Call) -> Jobs:
        return Jobs(jobs=self.jobs)

    async def _job_stop(self, request: TrainingStop, call: Call) -> JobInfo:
        for index, job in enumerate(self.jobs):
            if job.job_id == request.job_id:
                self.jobs[index] = msgspec.structs.replace(job, state="stopped", reason=request.reason)
                return self.jobs[index]
        raise NotFound(f"no job {request.job_id}")

    # Errors

    async def _error_stats(self, request: ErrorStats, call: Call) -> ErrorStatsReply:
        services = [
            ServiceErrors(
                service=each.service,
                count=each.count,
                per_minute=each.per_minute,
                open_groups=int(each.state == "open"),
                worst=each.severity,
                last_at=each.last_at,
            )
            for each in self.groups
        ]
        return ErrorStatsReply(
            services=services,
            count=sum(each.count for each in self.groups),
            groups=len(self.groups),
            open_groups=sum(each.state == "open" for each in self.groups),
            muted_groups=0,
            by_severity={},
        )

    async def _error_list(self, request: ErrorList, call: Call) -> ErrorPage:
        found = [each for each in self.groups if request.state in (None, "any", each.state)]
        return ErrorPage(groups=found, total=len(found))

    async def _error_show(self, request: ErrorShow, call: Call) -> ErrorWhole:
        group = next(each for each in self.groups if each.fingerprint.startswith(request.fingerprint))
        return ErrorWhole(group=group, reports=[], hours=[0] * 23 + [group.count])

    async def _error_acknowledge(self, request: ErrorAcknowledge, call: Call) -> ErrorsChanged:
        for index, group in enumerate(self.groups):
            if group.fingerprint == request.fingerprint:
                self.groups[index] = msgspec.structs.replace(group, state="acknowledged")
        return ErrorsChanged(changed=1)
