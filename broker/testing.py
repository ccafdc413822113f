"""The in-process bus: the same core, exchange and operations as the real broker, with links instead of sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self

from broker import loopback
from broker.control import Control
from broker.deadletters import DeadLetters
from broker.eventlog import EventLog
from broker.exchange import Exchange
from bus.client import Client
from bus.settings import Settings
from bus.transport import Dial
from bus.worker import Worker


class InMemoryBus:
    """`async with InMemoryBus() as bus: worker = bus.worker("echo")`. With a folder, events and dead letters are kept."""

    def __init__(self, settings: Settings | None = None, *, folder: Path | None = None) -> None:
        self.settings = settings or Settings()
        self._folder = folder

    async def __aenter__(self) -> Self:
        broker = self.settings.broker
        self.event_log: EventLog | None = None
        self.dead_letters: DeadLetters | None = None
        last_seq = 0
        if self._folder is not None:
            self.event_log = EventLog(
                self._folder / "events",
                max_age_s=broker.log_max_age_s,
                max_bytes=broker.log_max_bytes,
                segment_bytes=broker.log_segment_bytes,
                sync_s=broker.log_sync_s,
            )
            last_seq = self.event_log.open()
            self.dead_letters = DeadLetters(
                self._folder / "dead_letters.db",
                max_count=broker.dead_letters_max,
                max_age_s=broker.dead_letters_max_age_s,
            )
        self.exchange = Exchange(
            self.settings, event_log=self.event_log, dead_letters=self.dead_letters, last_seq=last_seq
        )
        self._control = Control(self.exchange)
        await self._control.worker.start()
        self._ticking = asyncio.get_running_loop().create_task(self.exchange.tick_forever())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticking.cancel()
        await asyncio.gather(self._ticking, return_exceptions=True)
        await self._control.worker.stop(drain_s=0)
        for peer in list(self.exchange.peers):
            peer.abort("the bus stops")
        await self.exchange.settle()
        if self.event_log is not None:
            self.event_log.close(self.exchange.hub.last_seq)
        if self.dead_letters is not None:
            self.dead_letters.close()

    def dial(self, name: str) -> Dial:
        """How a client or worker called `name` reaches this bus."""
        return loopback.dialer(self.exchange, name)

    def client(self, name: str = "client") -> Client:
        """A client of this bus; the caller closes it."""
        return Client(self.settings, name=name, dial=self.dial(name))

    def worker(self, service: str, *, capacity: int = 64, instance: str | None = None) -> Worker:
        """A worker of this bus; the caller starts and stops it."""
        return Worker(service, self.settings, capacity=capacity, instance=instance, dial=self.dial(service))
