"""A worker that serves two subjects of its own until SIGTERM or Ctrl-C."""

import asyncio
from typing import Any

import msgspec

from bus.settings import load_settings
from bus.worker import Call, Worker
from schemas.errors import Unprocessable


class Divide(msgspec.Struct):
    a: float
    b: float


worker = Worker("calculator", load_settings(), capacity=16)


@worker.handles("calculator.divide", request_type=Divide)
async def divide(request: Divide, call: Call) -> dict[str, float]:
    if request.b == 0:
        raise Unprocessable("b is 0; it must be another number", field="b")
    return {"result": request.a / request.b}


@worker.handles("calculator.count")
async def count(request: Any, call: Call) -> dict[str, int]:
    for number in range(request["to"]):
        await call.partial(number)
    await worker.publish("calculator.counted", {"to": request["to"]})
    return {"counted": request["to"]}


asyncio.run(worker.run())
