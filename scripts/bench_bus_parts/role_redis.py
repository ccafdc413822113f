"""Request/reply over Redis lists: push to the worker's list, block on a list of one's own for the reply.

Roles: `worker`, `client`. The worker waits for one request, takes all that wait behind it and answers in one
pipeline.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

import redis.asyncio
import uvloop

from bench_bus_parts import load
from bench_bus_parts.line_protocol import Fields, obey, until_told_to_end

QUEUE = "bench.echo"
KEY_BYTES = 16
# Requests the worker takes beside the one it waited for, at most.
BATCH = 63


async def _answer(server: redis.asyncio.Redis) -> None:
    while True:
        waited = await server.blpop([QUEUE], timeout=60)
        if waited is None:
            continue
        requests = [waited[1], *(await server.lpop(QUEUE, BATCH) or [])]
        pipeline = server.pipeline(transaction=False)
        for request in requests:
            pipeline.rpush(request[:KEY_BYTES], request[KEY_BYTES:])
        await pipeline.execute()


async def worker(port: int) -> None:
    """Echo every request to the list it names."""
    async with redis.asyncio.Redis(port=port) as server:
        answering = asyncio.create_task(_answer(server))
        await until_told_to_end()
        answering.cancel()


class Cases:
    """What the client measures; each caller has a connection and a reply list of its own."""

    def __init__(self, server: redis.asyncio.Redis) -> None:
        self.server = server
        self._keys: list[bytes] = []
        self._made = 0

    def _call(self, body_bytes: int) -> load.Call:
        server, keys, body = self.server, self._keys, b"x" * body_bytes

        async def call() -> None:
            if keys:
                key = keys.pop()
            else:
                self._made += 1
                key = b"%*d" % (KEY_BYTES, self._made)
            pipeline = server.pipeline(transaction=False)
            pipeline.rpush(QUEUE, key + body)
            pipeline.blpop([key.decode()], timeout=30)
            await pipeline.execute()
            keys.append(key)

        return call

    async def rr(self, *, body_bytes: int, seconds: float, requests: int, in_flight: int) -> Fields:
        """Requests per second, many in flight."""
        return await load.throughput(self._call(body_bytes), seconds=seconds, requests=requests, in_flight=in_flight)

    async def latency(self, *, body_bytes: int, seconds: float, requests: int) -> Fields:
        """Time of single requests."""
        return await load.latency(self._call(body_bytes), seconds=seconds, requests=requests)


async def client(port: int) -> None:
    """Carry out the bench's commands."""
    async with redis.asyncio.Redis(port=port, max_connections=1024) as server:
        cases = Cases(server)
        await obey(rr=cases.rr, latency=cases.latency)


ROLES: dict[str, Callable[..., Awaitable[None]]] = {"worker": worker, "client": client}


async def _main() -> None:
    await ROLES[sys.argv[1]](**json.loads(sys.argv[2]))


if __name__ == "__main__":
    uvloop.run(_main())
