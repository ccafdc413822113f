"""Binds the operations of routing and limits to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import model_trials as bodies
from workers.models.routing.routing import Routing


def register(worker: Worker, routing: Routing) -> None:
    """Make `worker` answer every operation of routing."""

    @worker.handles("model.route")
    async def route(request: bodies.Route, call: Call) -> bodies.Routed:
        return await routing.route(request)

    @worker.handles("model.profiles")
    async def profiles(request: bodies.Profiles, call: Call) -> bodies.ProfileList:
        return await routing.profiles(request)

    @worker.handles("model.limits")
    async def limits(request: bodies.ModelLimits, call: Call) -> bodies.Limits:
        return await routing.limits(request)
