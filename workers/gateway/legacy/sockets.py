"""The ZeroMQ ports of the replaced agents: requests answered one task each, events published, errors taken in.

One port serves whatever type of socket comes (`bus.zmtp.ANY`): REQ and DEALER are answered, SUB hears what is published,
PUB is listened to. It knows nothing of agents; what a message means is the owner's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final

from bus import zmtp
from bus.transport import Connection, Link, listen
from schemas.envelope import Buffer

log = logging.getLogger("olympus.legacy")

# Requests of one connection that are taken in before the first is answered. REQ has one; a DEALER may have more.
_AT_ONCE: Final = 64

# Bytes of them, from which on the peer is not read either: each may have MAX_MESSAGE_BYTES.
_AT_ONCE_BYTES: Final = 64 * 1024 * 1024

# Prefixes of one subscriber, and bytes of one; the agents' clients have a handful of words.
_PREFIXES: Final = 1000
_PREFIX_BYTES: Final = 1024

# A subscriber that takes nothing loses what comes after this many bytes wait for it.
_SUBSCRIBER_BYTES: Final = 8 * 1024 * 1024

# Nobody ever sent these agents more in one message than a few megabytes of audio.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

# Stands, as this very object, for a frame that was too large to be received.
TOO_LARGE: Final = b"\xff"

# The address a request came in on, for answers that tell where something is.
REACHED: Final[ContextVar[str]] = ContextVar("REACHED", default="")

# Set once the connection a request came in on is closed, for work that is worth nothing without somebody to hear of it.
GONE: Final[ContextVar[asyncio.Event | None]] = ContextVar("GONE", default=None)

Answer = Callable[[list[bytes]], Awaitable[bytes]]
Take = Callable[[list[bytes]], Awaitable[None]]

_REQUESTERS: Final = frozenset({b"REQ", b"DEALER"})
_SUBSCRIBERS: Final = frozenset({b"SUB", b"XSUB"})


class Port:
    """One bound port. `answer` gives the reply to a request, `take` gets what publishers send; None refuses such peers."""

    def __init__(self, *, answer: Answer | None = None, take: Take | None = None) -> None:
        self._answer = answer
        self._take = take
        self._server: asyncio.Server | None = None
        self._peers: dict[Link, _Peer] = {}
        self.port = 0

    @property
    def connections(self) -> int:
        """Peers that are connected."""
        return len(self._peers)

    async def open(self, host: str, port: int, *, key: str) -> None:
        """Bind. Raises AddressInUse naming `key`, OSError."""
        self._server, self.port = await listen(host, port, zmtp.ANY, self, key=key, max_body_bytes=MAX_MESSAGE_BYTES)

    async def close(self) -> None:
        """Take no new peers, finish nothing: clients ask again."""
        if self._server is not None:
            self._server.close()
        for connection, peer in list(self._peers.items()):
            peer.cancel()
            connection.abort("the port is closed")

    def publish(self, frames: list[bytes]) -> None:
        """Send an event to those who subscribed to the start of its first frame."""
        out: list[Buffer] = list(frames)
        wire: list[Buffer] = []
        zmtp.encode_message(out, wire)
        joined = b"".join(wire)
        for connection, peer in self._peers.items():
            if peer.wants(frames[0]) and isinstance(connection, Connection):
                if connection.pending_bytes < _SUBSCRIBER_BYTES:
                    connection.send_prepared(out, joined)
                else:
                    peer.lost += 1

    # bus.transport.Handler

    def on_open(self, connection: Link) -> None:
        assert isinstance(connection, Connection)
        kind = connection.codec.peer_type
        is_served = self._answer is not None if kind in _REQUESTERS else kind in _SUBSCRIBERS or self._take is not None
        if not is_served:
            connection.abort(f"a {kind.decode('ascii', 'replace')} socket has nothing to do here")
            return
        self._peers[connection] = _Peer(connection, kind, self._answer, self._take)
        if kind not in _REQUESTERS and kind not in _SUBSCRIBERS:
            connection.send(zmtp.subscription(b""))

    def on_messages(self, connection: Link, messages: list[list[Buffer]]) -> None:
        peer = self._peers.get(connection)
        if peer is not None:
            for frames in messages:
                peer.on_message([bytes(frame) for frame in frames])

    def on_oversize(self, connection: Link, frames: list[Buffer], size_bytes: int) -> None:
        peer = self._peers.get(connection)
        if peer is not None:
            # The peer waits for a reply.
            peer.on_message([*(bytes(frame) for frame in frames), TOO_LARGE])

    def on_close(self, connection: Link, reason: str) -> None:
        peer = self._peers.pop(connection, None)
        if peer is None:
            return
        peer.end()
        if peer.lost:
            log.warning("subscriber was slow", extra={"action": "legacy.slow", "port": self.port, "lost": peer.lost})


class _Peer:
    """One connection, by the type of its socket."""

    def __init__(self, connection: Link, kind: bytes, answer: Answer | None, take: Take | None) -> None:
        self._connection = connection
        self._kind = kind
        self._answer = answer
        self._take = take
        self._tasks: set[asyncio.Task[None]] = set()
        # Of messages that are not dealt with yet.
        self._held_bytes = 0
        self._is_paused = False
        # The newest request of each envelope that is not answered yet.
        self._latest: dict[tuple[bytes, ...], asyncio.Task[None]] = {}
        self._taking: asyncio.Queue[list[bytes] | None] | None = None
        self._prefixes: dict[bytes, int] = {}
        self._gone = asyncio.Event()
        self.lost = 0

    def wants(self, topic: bytes) -> bool:
        return any(topic.startswith(prefix) for prefix in self._prefixes)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    def end(self) -> None:
        """The peer is gone. What it sent is still taken in, what it asked for still done, save what looks at `GONE`."""
        self._gone.set()
        if self._taking is not None:
            self._taking.put_nowait(None)

    def on_message(self, frames: list[bytes]) -> None:
        if self._kind in _REQUESTERS:
            self._queue_request(frames)
            self._pause_or_resume(len(self._tasks))
        elif self._kind in _SUBSCRIBERS:
            self._subscribe(frames[0])
        elif self._take is not None:
            self._queue(frames)

    def _queue_request(self, frames: list[bytes]) -> None:
        """Those of one envelope one after the other: without ids in replies, a DEALER tells them by their order alone.

        Envelopes tell clients behind a proxy apart; none of them waits for another.
        """
        # REQ puts an empty frame before its message, and with ZMQ_REQ_CORRELATE a number before that; both come back.
        start = frames.index(b"") + 1 if b"" in frames[:-1] else 0
        envelope = tuple(frames[:start])
        size = _size(frames)
        self._held_bytes += size
        task = self._begin(self._reply(frames, start, self._latest.get(envelope)))
        self._latest[envelope] = task
        task.add_done_callback(lambda done: self._forget(envelope, done, size))

    def _forget(self, envelope: tuple[bytes, ...], task: asyncio.Task[None], size: int) -> None:
        self._held_bytes -= size
        self._pause_or_resume(len(self._tasks))
        if self._latest.get(envelope) is task:
            del self._latest[envelope]

    def _pause_or_resume(self, waiting: int) -> None:
        is_full = waiting >= _AT_ONCE or self._held_bytes >= _AT_ONCE_BYTES
        if is_full and not self._is_paused:
            self._connection.pause_reading()
        elif self._is_paused and not is_full:
            self._connection.resume_reading()
        self._is_paused = is_full

    def _subscribe(self, frame: bytes) -> None:
        prefix = frame[1:]
        if frame[:1] == b"\1":
            if len(prefix) > _PREFIX_BYTES or len(self._prefixes) >= _PREFIXES:
                self._connection.abort("it subscribes to more than any client of these agents")
                return
            self._prefixes[prefix] = self._prefixes.get(prefix, 0) + 1
        elif frame[:1] == b"\0" and (count := self._prefixes.get(prefix, 0)):
            if count == 1:
                del self._prefixes[prefix]
            else:
                self._prefixes[prefix] = count - 1

    def _queue(self, frames: list[bytes]) -> None:
        """In order, one after the other; a publisher faster than that is slowed by TCP."""
        if self._taking is None:
            self._taking = asyncio.Queue()
            self._begin(self._take_each(self._taking))
        self._taking.put_nowait(frames)
        self._held_bytes += _size(frames)
        self._pause_or_resume(self._taking.qsize())

    async def _take_each(self, queue: asyncio.Queue[list[bytes] | None]) -> None:
        assert self._take is not None
        while (frames := await queue.get()) is not None:
            try:
                await self._take(frames)
            except Exception as error:  # noqa: BLE001 - one message of a publisher must not end those that follow
                self._told(error)
            self._held_bytes -= _size(frames)
            self._pause_or_resume(queue.qsize())

    async def _reply(self, frames: list[bytes], start: int, before: asyncio.Task[None] | None) -> None:
        assert self._answer is not None
        if before is not None:
            await asyncio.wait((before,))
        if isinstance(self._connection, Connection):
            REACHED.set(self._connection.local_host)
        GONE.set(self._gone)
        reply = await self._answer(frames[start:])
        self._connection.send([*frames[:start], reply])

    def _begin(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._told(error)

    def _told(self, error: BaseException) -> None:
        log.error("message of a legacy peer failed", exc_info=error, extra={"action": "legacy.failed"})


def _size(frames: list[bytes]) -> int:
    return sum(map(len, frames))
