"""A house for tests of the web console: a real gateway, memory and error service, beside scripted models and learning."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from bus.settings import Settings
from bus.worker import Call
from schemas.bodies.learning_gate import (
    Deployment,
    Deployments,
    GateResult,
    GateShow,
    GateShown,
    LearnedAdapters,
    Rollback,
    SetResult,
)
from schemas.bodies.learning_jobs import (
    CurvePoint,
    JobInfo,
    JobLog,
    JobProgress,
    Jobs,
    LogEntry,
    Schedule,
    ScheduleGet,
    TrainingList,
    TrainingLog,
    TrainingStop,
)
from schemas.bodies.model import ModelEvent, ModelInfo, ModelKeep, ModelKept, ModelLoad, ModelState
from schemas.bodies.resource import DeviceStatus, GpuStatus, GpuStatusReply, LeaseInfo
from schemas.errors import NotFound, Unprocessable
from tests.chat_house import ChatHouse
from workers.errors.service import ErrorService
from workers.gateway.service import Gateway

_GIB: Final = 2**30
_REST_PORTS: Final = (
    "memory_port",
    "models_port",
    "learning_port",
    "memory_health_port",
    "models_health_port",
    "learning_health_port",
)

# Steps of the scripted training that have been made.
_STEPS: Final = 240

BROKEN: Final = ModelInfo(
    name="broken",
    family="llama",
    format="gguf",
    quantisation="Q8_0",
    parameters=500_000_000,
    size_bytes=600_000_000,
    context_tokens=8192,
    state="available",
    capabilities=["generate", "chat"],
)


class ConsoleHouse:
    """Everything in threads of its own. `model.load` of "big" waits for `let_load`; "broken" cannot be loaded.

    with ConsoleHouse(tmp_path / "home") as house: browser.open(house.url)
    """

    def __init__(self, home: Path, **overrides: Any) -> None:
        self._free = {f"rest.{name}": 0 for name in _REST_PORTS}
        self.chat = ChatHouse(
            home,
            extra={
                "model.load": self._load,
                "model.keep": self._keep,
                "gpu.status": self._gpu,
                "learning.training.list": self._jobs,
                "learning.training.log": self._log,
                "learning.training.stop": self._stop_job,
                "learning.adapter.list": self._adapters,
                "learning.rollback": self._roll_back,
                "learning.schedule.get": self._schedule,
                "learning.gate.show": self._gate,
            },
            # Without an encoder the memory starts faster, and says that something is missing.
            **{**self._free, "legacy.enabled": False, "memory.encoder": "none-here", **overrides},
        )
        self.chat.models.append(BROKEN)
        self.jobs = [_job("tone-7", "training", 0.6), _job("tone-6", "promoted", 1.0), _job("facts-2", "failed", 0.2)]
        self.deployments = [_deployment("tone-6", "champion"), _deployment("facts-1", "rolled_back")]
        self._may_load = threading.Event()
        self._gateway: Gateway | None = None

    def __enter__(self) -> Self:
        self.chat.__enter__()
        try:
            self.chat.run(self._start)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._may_load.set()
        if self._gateway is not None:
            self.stop_gateway()
        if hasattr(self, "_errors"):
            self.chat.run(self._errors.stop)
        self.chat.__exit__(kind, error, trace)

    @property
    def origin(self) -> str:
        """Scheme, host and port of the page."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """The page."""
        return f"{self.origin}/console/"

    def stop_gateway(self) -> None:
        """End the gateway."""
        gateway, self._gateway = self._gateway, None
        assert gateway is not None
        self.chat.run(gateway.stop)

    def start_gateway(self) -> None:
        """The gateway anew, on the port that the page knows."""
        self.chat.run(self._open)

    def let_load(self) -> None:
        """Let the load of "big" be done."""
        self._may_load.set()

    def publish(self, subject: str, body: Any) -> None:
        """An event on the bus."""
        self.chat.run(lambda: self.chat._client.publish(subject, body))

    async def _start(self) -> None:
        self._port = 0
        await self._open()
        self._errors = ErrorService(self.chat.settings)
        await self._errors.start()

    async def _open(self) -> None:
        settings: Settings = self.chat.settings
        if self._port:
            settings = msgspec.structs.replace(
                settings, rest=msgspec.structs.replace(settings.rest, memory_port=self._port)
            )
        self._gateway = Gateway(settings)
        await self._gateway.start()
        mine = next(info for info in self._gateway.table if (info.owner, info.purpose) == ("memory", "rest"))
        assert mine.state == "bound", mine.note
        self._port = mine.port

    # The scripted services ------------------------------------------------------------------------------------------

    async def _load(self, request: ModelLoad, call: Call) -> ModelState:
        if request.model == "broken":
            raise Unprocessable("broken.gguf ends after 12 bytes, its header says 600000000")
        self._become(request.model, state="loading")
        while not self._may_load.is_set():
            await asyncio.sleep(0.02)
        info = self._become(request.model, state="loaded", device="gpu0", memory_bytes=5 * _GIB, loaded_at=time.time())
        await self.chat._client.publish("model.loaded", ModelEvent(model=request.model, reason="asked for"))
        return ModelState(model=info.name, state="loaded", took_s=2.5, device="gpu0")

    async def _keep(self, request: ModelKeep, call: Call) -> ModelKept:
        self._become(request.model, is_pinned=bool(request.is_pinned))
        return ModelKept(model=request.model, is_pinned=bool(request.is_pinned), priority=3, keep_alive_s=300.0)

    def _become(self, name: str, **changes: Any) -> ModelInfo:
        models = self.chat.models
        found = next((number for number, info in enumerate(models) if info.name == name), None)
        if found is None:
            raise NotFound(f"there is no model {name!r}")
        models[found] = msgspec.structs.replace(models[found], **changes)
        return models[found]

    async def _gpu(self, request: GpuStatus, call: Call) -> GpuStatusReply:
        loaded = sum(info.memory_bytes for info in self.chat.models if info.state == "loaded")
        lease = LeaseInfo(
            lease_id="l1",
            service="model",
            device="gpu0",
            vram_bytes=loaded + _GIB,
            ram_bytes=0,
            priority=3,
            purpose="models",
            granted_at=time.time() - 60,
            expires_at=time.time() + 60,
            is_preemptible=True,
        )
        gpu = _device("gpu0", "GeForce RTX 4070", 12 * _GIB, loaded, leases=[lease], temperature_c=51, utilisation=0.37)
        return GpuStatusReply(devices=[gpu, _device("cpu", "main memory", 64 * _GIB, 21 * _GIB)])

    async def _jobs(self, request: TrainingList, call: Call) -> Jobs:
        return Jobs(jobs=self.jobs)

    def _job(self, job_id: str) -> JobInfo:
        for job in self.jobs:
            if job.job_id == job_id:
                return job
        raise NotFound(f"there is no job {job_id!r}")

    async def _log(self, request: TrainingLog, call: Call) -> JobLog:
        began = time.time() - 600
        points = [
            CurvePoint(
                step=step,
                at=began + step,
                loss=0.35 + 2.4 * math.exp(-step / 60) + 0.08 * math.sin(step * 1.7),
                eval_loss=0.5 + 2.2 * math.exp(-step / 70) if step % 20 == 0 else None,
                learning_rate=2e-4,
            )
            for step in range(1, _STEPS + 1)
        ]
        entries = [
            LogEntry(number=1, at=began, event="started", message="the training begins on gpu0", fields={"rank": 8}),
            LogEntry(number=2, at=began + 200, event="checkpoint", message="checkpoint step-00000200 was kept"),
        ]
        return JobLog(job=self._job(request.job_id), entries=entries, points=points)

    async def _stop_job(self, request: TrainingStop, call: Call) -> JobInfo:
        stopped = msgspec.structs.replace(self._job(request.job_id), state="stopped", reason=request.reason)
        self.jobs = [stopped if job.job_id == request.job_id else job for job in self.jobs]
        return stopped

    async def _adapters(self, request: LearnedAdapters, call: Call) -> Deployments:
        return Deployments(deployments=self.deployments)

    async def _roll_back(self, request: Rollback, call: Call) -> Deployment:
        self.deployments[0] = msgspec.structs.replace(self.deployments[0], state="rolled_back", reason=request.reason)
        return self.deployments[0]

    async def _schedule(self, request: ScheduleGet, call: Call) -> Schedule:
        return Schedule(
            hours="22:00-06:00",
            days=[],
            budget_s=7200,
            idle_s=300,
            is_paused=False,
            is_automatic=True,
            spent_s=1300,
            is_open=False,
            reason="trainings run between 22:00 and 06:00",
            opens_at=None,
            running=["tone-7"],
            queued=[],
        )

    async def _gate(self, request: GateShow, call: Call) -> GateShown:
        return GateShown(result=_verdict(request.job_id or ""), items=[], total=0)


def _device(name: str, words: str, total: int, used: int, **more: Any) -> DeviceStatus:
    return DeviceStatus(
        device=name,
        name=words,
        source="host" if name == "cpu" else "nvml",
        state="ok",
        total_bytes=total,
        used_bytes=used,
        reserved_bytes=used + _GIB,
        free_bytes=total - used - _GIB,
        **more,
    )


def _job(job_id: str, state: Any, done: float) -> JobInfo:
    steps = round(_STEPS / 0.6)
    return JobInfo(
        job_id=job_id,
        model="tiny",
        dataset=job_id.partition("-")[0],
        version=3,
        state=state,
        reason="the loss became no number at step 80" if state == "failed" else "",
        priority=3,
        created_at=time.time() - 900,
        started_at=time.time() - 600,
        finished_at=None,
        spent_s=600 * done,
        attempts=1,
        rung=0,
        device="gpu0",
        config={"rank": 8},
        progress=JobProgress(
            job_id=job_id,
            model="tiny",
            phase="training",
            step=round(steps * done),
            steps=steps,
            loss=0.41,
            eval_loss=0.55,
            tokens_per_s=3120,
            eta_s=240,
            memory_bytes=3 * _GIB,
            device="gpu0",
        ),
        adapter=job_id if state == "promoted" else "",
        adapter_path="",
        verdict="passed" if state == "promoted" else "",
        opportunities=[],
        promote="auto",
    )


def _deployment(adapter: str, state: Any) -> Deployment:
    return Deployment(
        deployment_id=f"d-{adapter}",
        model="tiny",
        adapter=adapter,
        sha256="0" * 64,
        job_id=adapter,
        dataset="tone",
        version=3,
        state=state,
        share=1.0 if state == "champion" else 0.0,
        previous="",
        promoted_at=time.time() - 86_400,
        ended_at=None,
        reason="corrections came again" if state == "rolled_back" else "",
        path="",
        verdict="passed",
    )


def _verdict(job_id: str) -> GateResult:
    target = SetResult(
        name="target",
        items=120,
        clusters=40,
        score=0.81,
        score_before=0.62,
        difference=0.19,
        low=0.11,
        high=0.27,
        confidence=0.95,
        p_value=0.001,
    )
    return GateResult(
        evaluation_id="e1",
        job_id=job_id,
        model="tiny",
        model_sha256="",
        adapter=job_id,
        against="",
        dataset="tone",
        version=3,
        at=time.time(),
        verdict="passed",
        reasons=["the gain is shown: 19 points of 100, at least 11"],
        target=target,
        retention=None,
        earlier=[],
        backward_transfer=None,
        alpha=0.05,
        corrected_alpha=0.05,
        attempt=1,
        min_gain=0.05,
        power=0.9,
        detectable_gain=0.1,
        metric="exact",
        took_s=30,
    )
