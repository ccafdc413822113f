"""The peer the bus is compared with: nats-py on uvloop, against a nats-server that the bench starts.

Roles: `worker`, `client`, `subscriber`. Requests use the client's default (one wildcard inbox for all replies);
`spare` is the worker that large bodies go to while small calls are timed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

import nats
import uvloop
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from bench_bus_parts import load
from bench_bus_parts.line_protocol import Fields, obey, until_told_to_end

TOPIC = "bench.event"


async def worker(url: str, prefix: str) -> None:
    """Echo on PREFIX.echo; PREFIX.stream publishes its chunks to the reply subject, an empty one last."""
    connection = await nats.connect(url)

    async def echo(message: Msg) -> None:
        await connection.publish(message.reply, message.data)

    async def stream(message: Msg) -> None:
        count, size = map(int, message.data.split())
        for chunk in [b"x" * size] * count:
            await connection.publish(message.reply, chunk)
        await connection.publish(message.reply, b"")

    await connection.subscribe(f"{prefix}.echo", cb=echo)
    await connection.subscribe(f"{prefix}.stream", cb=stream)
    await connection.flush()
    await until_told_to_end()
    await connection.close()


class Cases:
    """What the client measures on its one connection."""

    def __init__(self, connection: Nats, prefix: str) -> None:
        self.connection = connection
        self.prefix = prefix

    def _call(self, body_bytes: int) -> load.Call:
        request, subject, body = self.connection.request, f"{self.prefix}.echo", b"x" * body_bytes
        return lambda: request(subject, body, timeout=30)

    async def rr(self, *, body_bytes: int, seconds: float, requests: int, in_flight: int) -> Fields:
        """Requests per second, many in flight."""
        return await load.throughput(self._call(body_bytes), seconds=seconds, requests=requests, in_flight=in_flight)

    async def latency(self, *, body_bytes: int, seconds: float, requests: int) -> Fields:
        """Time of single requests."""
        return await load.latency(self._call(body_bytes), seconds=seconds, requests=requests)

    async def stream(self, *, chunks: int, chunk_bytes: int, seconds: float, requests: int) -> Fields:
        """Time of whole streams: subscribe to an inbox, ask, count until the empty end."""
        ask = b"%d %d" % (chunks, chunk_bytes)

        async def once() -> None:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            received = 0

            async def chunk(message: Msg) -> None:
                nonlocal received
                if message.data:
                    received += 1
                else:
                    ended.set_result(None)

            inbox = self.connection.new_inbox()
            subscription = await self.connection.subscribe(inbox, cb=chunk)
            await self.connection.publish(f"{self.prefix}.stream", ask, reply=inbox)
            await ended
            await subscription.unsubscribe()
            if received != chunks:
                raise RuntimeError(f"a stream brought {received} of {chunks} chunks")

        return await load.latency(once, seconds=seconds, requests=requests)

    async def publish(self, *, events: int, body_bytes: int) -> Fields:
        """Publish as fast as it goes."""
        publish, body = self.connection.publish, b"x" * body_bytes
        began_at = time.monotonic()
        for _ in range(events):
            await publish(TOPIC, body)
        await self.connection.flush(timeout=60)
        return {"operations": events, "began_at": began_at, "elapsed_s": time.monotonic() - began_at}


async def client(url: str, prefix: str) -> None:
    """Carry out the bench's commands."""
    connection = await nats.connect(url)
    cases = Cases(connection, prefix)
    await obey(rr=cases.rr, latency=cases.latency, stream=cases.stream, publish=cases.publish)
    await connection.close()


async def subscriber(url: str) -> None:
    """Count events between `arm` and `collect`."""
    connection = await nats.connect(url)
    arrivals = load.Arrivals()

    async def arrived(message: Msg) -> None:
        arrivals.arrived()

    # Limits far above what is published, so that what is lost is lost by the server.
    await connection.subscribe(TOPIC, cb=arrived, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await connection.flush()
    await obey(arm=arrivals.arm, collect=arrivals.collect)
    await connection.close()


ROLES: dict[str, Callable[..., Awaitable[None]]] = {"worker": worker, "client": client, "subscriber": subscriber}


async def _main() -> None:
    await ROLES[sys.argv[1]](**json.loads(sys.argv[2]))


if __name__ == "__main__":
    uvloop.run(_main())
