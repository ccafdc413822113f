"""The life of a service process: start, serve until told to stop, leave. Signals only set a mark; the rest is the service's."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Protocol

from bus.collector import spare_what_stays
from bus.worker import Worker


class Service(Protocol):
    """What is started and stopped; `worker` is how the bus knows it."""

    worker: Worker

    async def start(self) -> None:
        """Be able to serve; may be cancelled."""

    async def stop(self) -> None:
        """Leave within `supervisor.stop_s`, also after a start that was cut off."""


async def serve_until_told(service: Service, log: logging.Logger) -> None:
    """Run `service` until SIGTERM or SIGINT. Raises what its start raises; the process is then to end.

    What nobody catches meanwhile, in tasks, callbacks and threads, is reported.
    """
    with service.worker.reports.hooks():
        await _serve_until_told(service, log)


async def _serve_until_told(service: Service, log: logging.Logger) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    starting = asyncio.ensure_future(service.start())
    waiting = asyncio.ensure_future(told.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
        spare_what_stays()
        worker = service.worker
        log.info("ready", extra={"action": "worker.ready", "service": worker.service, "instance": worker.instance})
        await waiting
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await service.stop()
