"""Binds the operations of the gate to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import learning_gate as bodies
from workers.learning.gate.gate import Gate


def register(worker: Worker, gate: Gate) -> None:
    """Make `worker` answer `learning.evaluate`, `learning.gate.show` and `learning.gate.power`."""

    @worker.handles("learning.evaluate")
    async def evaluate(request: bodies.LearningEvaluate, call: Call) -> bodies.GateResult:
        return await gate.evaluate(request, call)

    @worker.handles("learning.gate.show")
    async def show(request: bodies.GateShow, call: Call) -> bodies.GateShown:
        return await gate.show(request)

    @worker.handles("learning.gate.power")
    async def power(request: bodies.PowerShow, call: Call) -> bodies.PowerStatement:
        return await gate.power(request)
