"""Binds learning sessions, learning rates and parameters to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import learning_tuning as bodies
from workers.learning.tuning.parameters import ParameterStore
from workers.learning.tuning.sessions import Sessions
from workers.learning.tuning.tuning import Tuning


def register(worker: Worker, tuning: Tuning, sessions: Sessions, parameters: ParameterStore) -> None:
    """Make `worker` answer `learning.session.*`, `learning.rate` and `learning.parameter.*`."""
    _register_sessions(worker, sessions)
    _register_parameters(worker, parameters)

    @worker.handles("learning.rate")
    async def rate(request: bodies.RateGet, call: Call) -> bodies.LearningRate:
        return await tuning.rate(request)


def _register_sessions(worker: Worker, sessions: Sessions) -> None:
    @worker.handles("learning.session.create")
    async def create(request: bodies.SessionCreate, call: Call) -> bodies.LearningSession:
        return await sessions.create(request)

    @worker.handles("learning.session.update")
    async def update(request: bodies.SessionUpdate, call: Call) -> bodies.LearningSession:
        return await sessions.update(request)

    @worker.handles("learning.session.get")
    async def get(request: bodies.SessionGet, call: Call) -> bodies.LearningSession:
        return await sessions.get(request)

    @worker.handles("learning.session.end")
    async def end(request: bodies.SessionEnd, call: Call) -> bodies.LearningSession:
        return await sessions.end(request)

    @worker.handles("learning.session.list")
    async def list_all(request: bodies.SessionsList, call: Call) -> bodies.LearningSessions:
        return await sessions.list(request)


def _register_parameters(worker: Worker, parameters: ParameterStore) -> None:
    @worker.handles("learning.parameter.register")
    async def register_one(request: bodies.ParameterRegister, call: Call) -> bodies.Parameter:
        return await parameters.register(request)

    @worker.handles("learning.parameter.adjust")
    async def adjust(request: bodies.ParameterAdjust, call: Call) -> bodies.Parameter:
        return await parameters.adjust(request)

    @worker.handles("learning.parameter.list")
    async def list_all(request: bodies.ParameterList, call: Call) -> bodies.Parameters:
        return await parameters.list(request)

    @worker.handles("learning.parameter.record")
    async def record(request: bodies.PerformanceRecord, call: Call) -> bodies.PerformanceRecorded:
        return await parameters.record(request)

    @worker.handles("learning.parameter.optimize")
    async def optimize(request: bodies.ParameterOptimize, call: Call) -> bodies.Adjustments:
        return await parameters.optimize(request)
