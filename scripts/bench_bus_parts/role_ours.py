"""Our side: `bus.client.Client` and `bus.worker.Worker` on uvloop, through `python -m broker`.

Roles: `worker`, `client`, `subscriber`; for the broker alone also `swarm` (many registered instances in one process)
and `flood` (requests that nobody will answer, so that they queue).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import uvloop

from bench_bus_parts import load
from bench_bus_parts.line_protocol import Fields, obey, until_told_to_end
from bus.client import Client
from bus.settings import Settings, load_settings
from bus.worker import Call, Worker

TOPIC = "bench.event"
# Bytes that msgpack puts around `data` in {"data": bytes}: map 1, key 5, and the header of a short or a long bin.
_AROUND_SHORT, _AROUND_LONG = 8, 11

# Registrations that the swarm has under way at once; a listening socket holds back what comes faster.
_JOINING = 50


class Echo(msgspec.Struct):
    """Any bytes there and back."""

    data: bytes


class Stream(msgspec.Struct):
    """How many chunks of how many bytes."""

    chunks: int
    chunk_bytes: int


def _body(size_bytes: int) -> dict[str, bytes]:
    """A body of `size_bytes` as encoded."""
    around = _AROUND_SHORT if size_bytes - _AROUND_SHORT < 256 else _AROUND_LONG
    return {"data": b"x" * (size_bytes - around)}


def _settings(overrides: Mapping[str, int | str]) -> Settings:
    return load_settings(overrides=overrides)


async def _echo(request: Echo, call: Call) -> Echo:
    return request


async def _stream(request: Stream, call: Call) -> Echo:
    part = _body(request.chunk_bytes)
    for _ in range(request.chunks):
        await call.partial(part)
    return Echo(b"")


async def worker(settings: Mapping[str, int | str], service: str) -> None:
    """Serve SERVICE.echo and SERVICE.stream."""
    serving = Worker(service, _settings(settings), capacity=256)
    serving.handle(f"{service}.echo", _echo, request_type=Echo)
    serving.handle(f"{service}.stream", _stream, request_type=Stream)
    await serving.start()
    await until_told_to_end()
    await serving.stop()


class Cases:
    """What the client measures."""

    def __init__(self, bus: Client, service: str) -> None:
        self.bus = bus
        self.service = service

    def _call(self, body_bytes: int) -> load.Call:
        request, subject, body = self.bus.request, f"{self.service}.echo", _body(body_bytes)
        return lambda: request(subject, body)

    async def rr(self, *, body_bytes: int, seconds: float, requests: int, in_flight: int) -> Fields:
        """Requests per second, many in flight."""
        return await load.throughput(self._call(body_bytes), seconds=seconds, requests=requests, in_flight=in_flight)

    async def latency(self, *, body_bytes: int, seconds: float, requests: int) -> Fields:
        """Time of single requests."""
        return await load.latency(self._call(body_bytes), seconds=seconds, requests=requests)

    async def stream(self, *, chunks: int, chunk_bytes: int, seconds: float, requests: int) -> Fields:
        """Time of whole streams."""
        subject, body = f"{self.service}.stream", {"chunks": chunks, "chunk_bytes": chunk_bytes}

        async def once() -> None:
            received = 0
            async with self.bus.stream(subject, body) as parts:
                async for _ in parts:
                    received += 1
            if received != chunks:
                raise RuntimeError(f"a stream brought {received} of {chunks} chunks")

        return await load.latency(once, seconds=seconds, requests=requests)

    async def publish(self, *, events: int, body_bytes: int) -> Fields:
        """Publish as fast as it goes."""
        publish, body = self.bus.publish, _body(body_bytes)
        began_at = time.monotonic()
        for _ in range(events):
            await publish(TOPIC, body)
        await self.bus.flush()
        return {"operations": events, "began_at": began_at, "elapsed_s": time.monotonic() - began_at}


async def client(settings: Mapping[str, int | str], service: str) -> None:
    """Carry out the bench's commands."""
    async with Client(_settings(settings), name=f"{service}-client") as bus:
        await bus.connect()
        cases = Cases(bus, service)
        await obey(rr=cases.rr, latency=cases.latency, stream=cases.stream, publish=cases.publish)


async def subscriber(settings: Mapping[str, int | str]) -> None:
    """Count events between `arm` and `collect`."""
    arrivals = load.Arrivals()
    async with Client(_settings(settings), name="subscriber") as bus, bus.subscribe(TOPIC) as events:

        async def listen() -> None:
            async for _ in events:
                arrivals.arrived()

        listening = asyncio.create_task(listen())
        await obey(arm=arrivals.arm, collect=arrivals.collect)
        listening.cancel()


async def swarm(settings: Mapping[str, int | str], instances: int) -> None:
    """Register `instances` workers of one service that answer nothing until their time is up."""
    common = _settings(settings)
    joining = asyncio.Semaphore(_JOINING)

    async def hold(request: Echo, call: Call) -> Echo:
        await asyncio.Event().wait()
        return request

    async def join(number: int) -> None:
        one = Worker("swarm", common, capacity=1, instance=f"swarm-{number}")
        one.handle("swarm.hold", hold, request_type=Echo)
        async with joining:
            await one.start()

    await asyncio.gather(*(join(number) for number in range(instances)))
    await until_told_to_end()


async def flood(settings: Mapping[str, int | str], requests: int) -> None:
    """Have `requests` outstanding at the swarm, more than it takes, until told to end."""
    body = _body(256)
    async with Client(_settings(settings), name="flood") as bus:
        await bus.connect()
        asking = [asyncio.create_task(bus.request("swarm.hold", body, timeout_s=600)) for _ in range(requests)]
        # The broker reads one connection in order: when this is answered it has taken in all of the above.
        await asyncio.sleep(0)
        await bus.request("bus.ping")
        refused = [task for task in asking if task.done()]
        if refused:
            await refused[0]
        await until_told_to_end()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


ROLES: dict[str, Callable[..., Awaitable[None]]] = {
    "worker": worker,
    "client": client,
    "subscriber": subscriber,
    "swarm": swarm,
    "flood": flood,
}


async def _main() -> None:
    await ROLES[sys.argv[1]](**json.loads(sys.argv[2]))


if __name__ == "__main__":
    uvloop.run(_main())
