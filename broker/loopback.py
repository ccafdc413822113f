"""Links inside one process: the broker's own operations and the in-process bus of tests use them instead of sockets."""

from __future__ import annotations

import abc
import asyncio
from collections import deque

from broker.exchange import Exchange
from bus.transport import Dial, Handler, Link, Role
from schemas.envelope import Buffer


class _End(abc.ABC):
    """One end: what it sends, the other end's `receive` gets in a later turn of the loop, in order."""

    def __init__(self) -> None:
        self.peer = "loopback"
        self.is_open = False
        self.pending_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._sent: deque[list[Buffer]] = deque()
        self._is_scheduled = False
        self._is_paused = False

    def send(self, frames: list[Buffer]) -> None:
        if not self.is_open:
            return
        self._sent.append(frames)
        self.pending_bytes += sum(map(len, frames))
        self._schedule()

    def send_prepared(self, frames: list[Buffer], wire: bytes) -> None:
        self.send(frames)

    def pause(self, is_paused: bool) -> None:
        """Hold back what the other end is to receive, or let it go."""
        self._is_paused = is_paused
        self._schedule()

    @abc.abstractmethod
    def receive(self, messages: list[list[Buffer]]) -> None:
        """Hand messages to the other end."""

    def _schedule(self) -> None:
        if self._sent and not self._is_scheduled and not self._is_paused:
            self._is_scheduled = True
            self._loop.call_soon(self._move)

    def _move(self) -> None:
        self._is_scheduled = False
        if self._is_paused:
            return
        messages, self._sent = list(self._sent), deque()
        self.pending_bytes = 0
        if messages:
            self.receive(messages)


class _BrokerEnd(_End):
    """What the exchange holds; its messages go to the handler of the other end."""

    def __init__(self, link: LoopbackLink, handler: Handler, exchange: Exchange, name: str) -> None:
        super().__init__()
        self.peer = name
        self._link = link
        self._handler = handler
        self._exchange = exchange

    def receive(self, messages: list[list[Buffer]]) -> None:
        self._handler.on_messages(self._link, messages)

    def close(self, reason: str) -> None:
        """Deliver what is queued, then end both ends."""
        self._loop.call_soon(self.abort, reason)

    def abort(self, reason: str) -> None:
        """End both ends."""
        if self.is_open:
            self.is_open = self._link.is_open = False
            self._exchange.detach(self, reason)
            self._handler.on_close(self._link, reason)


class LoopbackLink(_End):
    """What a client or worker holds."""

    def __init__(self, exchange: Exchange, role: Role, handler: Handler, name: str) -> None:
        super().__init__()
        self.other = _BrokerEnd(self, handler, exchange, name)
        self._take = {
            Role.REQUEST: exchange.on_requests,
            Role.PUBLISH: exchange.on_published,
            Role.EVENTS: exchange.on_subscriptions,
        }[role]

    def receive(self, messages: list[list[Buffer]]) -> None:
        self._take(self.other, messages)

    async def drain(self) -> None:
        """Nothing ever waits long here."""

    async def ping(self) -> None:
        """Wait until everything sent before was taken."""
        if not self.is_open:
            raise ConnectionError("the link is closed")
        done = self._loop.create_future()
        self._loop.call_soon(done.set_result, None)
        await done

    def keep_alive(self) -> bool:
        """A link inside one process is never silent."""
        return True

    def pause_reading(self) -> None:
        """Take nothing more for now."""
        self.other.pause(True)

    def resume_reading(self) -> None:
        """Go on taking messages."""
        self.other.pause(False)

    def close(self, reason: str) -> None:
        """Deliver what is queued, then end both ends."""
        self.other.close(reason)

    def abort(self, reason: str) -> None:
        """End both ends."""
        self.other.abort(reason)


def dialer(exchange: Exchange, name: str) -> Dial:
    """How a client or worker in the broker's own process reaches it."""

    async def dial(role: Role, handler: Handler) -> Link:
        link = LoopbackLink(exchange, role, handler, name)
        link.is_open = link.other.is_open = True
        if role is Role.EVENTS:
            exchange.hub.add(link.other, is_sequenced=True)
        else:
            exchange.attach(link.other)
        handler.on_open(link)
        return link

    return dial
