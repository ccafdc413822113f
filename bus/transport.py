"""ZMTP connections on asyncio: listening, connecting, coalesced writes, bounded reads. The one place that owns sockets.

Small writes of one loop turn leave in one system call; frames of LARGE_FRAME_BYTES and more are neither joined nor
copied, and are received straight into their own buffer. Measured choices: docs/adr/0002.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Final, Protocol, cast

from bus import pages, zmtp
from bus.settings import Settings
from schemas.envelope import Buffer
from schemas.limits import MAX_BODY_BYTES

# One read takes at most this many bytes, so that a peer that sends much does not keep the loop from the others.
_READ_BYTES: Final = 256 * 1024

# The same while a large frame is received, which needs no copy.
_LARGE_READ_BYTES: Final = 1024 * 1024

# How long the memory of large frames waits to be used again.
_RELEASE_S: Final = 2.0

# asyncio asks a sender to pause when this much waits to be sent, and to go on when half of it is left.
_WRITE_HIGH_BYTES: Final = 4 * 1024 * 1024

# ZMTP metadata (RFC 37, "X-" for applications): what a peer calls itself.
NAME_PROPERTY: Final = "X-Olympus-Name"

# So many parts (two a frame) are written before the turn ends: 32 small messages. Without it 64 callers travel as one
# convoy, and client, broker and worker take turns instead of working at the same time (a factor of 1.6, bench_bus.py).
_EARLY_PARTS: Final = 64

# A peer must finish greeting and READY within this many seconds.
_HANDSHAKE_S: Final = 10.0

# A silent TCP peer is probed after a minute, and is gone when three probes, 20 s apart, brought nothing.
_PROBES: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}

# Peers of one address that have not finished, at most: then the one that has taken longest goes. A handshake takes
# milliseconds, so that who floods a port with connections pushes out its own; each holds about 20 KiB.
_HANDSHAKES_MAX: Final = 1024


class Role(StrEnum):
    """What a connection to the broker is for; each role has a port of its own."""

    REQUEST = "request"
    PUBLISH = "publish"
    EVENTS = "events"


class Link(Protocol):
    """A connection as clients and workers see it: a `Connection`, or its in-process twin in `broker.testing`."""

    @property
    def is_open(self) -> bool:
        """True between the handshake and the end."""

    def send(self, frames: list[Buffer]) -> None:
        """Queue one message; dropped when the connection is gone."""

    async def drain(self) -> None:
        """Wait until the peer takes more."""

    async def ping(self) -> None:
        """Wait until the peer has read everything sent before. Raises ConnectionError."""

    def keep_alive(self) -> bool:
        """Call at a fixed interval; False when the peer is silent."""

    def pause_reading(self) -> None:
        """Take nothing more from the peer for now."""

    def resume_reading(self) -> None:
        """Go on taking messages."""

    def close(self, reason: str) -> None:
        """Send what is queued, then close."""

    def abort(self, reason: str) -> None:
        """Close at once."""


class Handler(Protocol):
    """What a connection tells its owner; called in the event loop."""

    def on_open(self, connection: Link) -> None:
        """The handshake is done."""

    def on_messages(self, connection: Link, messages: list[list[Buffer]]) -> None:
        """Complete messages, in order, as many as one read brought."""

    def on_oversize(self, connection: Link, frames: list[Buffer], size_bytes: int) -> None:
        """A message over the limit was skipped; `frames` are those received before the one that broke the limit."""

    def on_close(self, connection: Link, reason: str) -> None:
        """The connection is gone; called once, also when the handshake failed."""


Dial = Callable[[Role, Handler], Awaitable[Link]]


class MakeCodec(Protocol):
    """`zmtp.Codec`, or one of bus.curve with its keys given."""

    def __call__(self, socket_type: bytes, *, properties: Mapping[str, bytes], max_body_bytes: int) -> zmtp.Codec:
        """The codec of one connection."""


class _PerThread(threading.local):
    view: memoryview | None = None
    release: asyncio.TimerHandle | None = None


_per_thread = _PerThread()


def _read_view() -> memoryview:
    """What the connections of one event loop read into, one at a time: each copies out before the next reads."""
    if _per_thread.view is None:
        _per_thread.view = memoryview(bytearray(_READ_BYTES))
    return _per_thread.view


def _release_later(loop: asyncio.AbstractEventLoop) -> None:
    """Give the memory of large frames back when it was not used for a while."""
    if _per_thread.release is not None:
        _per_thread.release.cancel()
    _per_thread.release = loop.call_later(_RELEASE_S, _release, loop)


def _release(loop: asyncio.AbstractEventLoop) -> None:
    _per_thread.release = loop.call_later(_RELEASE_S, _release, loop) if pages.release_idle() else None


class Connection(asyncio.BufferedProtocol):
    """One ZMTP peer. `waiting`: those of the same address whose handshake is not done, oldest first."""

    def __init__(self, codec: zmtp.Codec, handler: Handler, waiting: dict[Connection, None] | None = None) -> None:
        self.codec = codec
        self.peer = ""
        self.local_host = ""
        self.is_open = False
        self.was_heard = True
        self._handler = handler
        self._encode = codec.encode
        self._is_secure = codec.is_secure
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._out: list[Buffer] = []
        self._out_bytes = 0
        self._has_large = False
        self._is_scheduled = False
        self._is_closed = False
        # Nothing more is sent: it closes, or is closed.
        self._is_sealed = False
        self._reason = ""
        self._read_view = _read_view()
        self._handshake: asyncio.TimerHandle | None = None
        self._waiting = {} if waiting is None else waiting
        self._writable = asyncio.Event()
        self._writable.set()
        self._pongs: dict[bytes, asyncio.Future[None]] = {}
        self._pings = 0
        self._fd = -1

    @property
    def pending_bytes(self) -> int:
        """Bytes accepted by `send` and not yet taken by the kernel."""
        waiting = self._transport.get_write_buffer_size() if self._transport else 0
        return self._out_bytes + waiting

    def send(self, frames: list[Buffer]) -> None:
        """Queue one message; it leaves at the end of this loop turn, or sooner. Dropped when the connection is gone."""
        if self._is_sealed:
            return
        out = self._out
        size = self._encode(frames, out)
        self._out_bytes += size
        if size >= zmtp.LARGE_FRAME_BYTES:
            self._has_large = True
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush_scheduled)
        elif len(out) >= _EARLY_PARTS:
            self.flush()

    def send_prepared(self, frames: list[Buffer], wire: bytes) -> None:
        """As `send`, for a message that goes to many: `wire` is what `zmtp.encode_message` made of `frames`."""
        if self._is_sealed:
            return
        if self._is_secure:
            # Encrypted for each peer by itself.
            self.send(frames)
            return
        self._out.append(wire)
        self._out_bytes += len(wire)
        if len(wire) >= zmtp.LARGE_FRAME_BYTES:
            self._has_large = True
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush_scheduled)
        elif len(self._out) >= _EARLY_PARTS:
            self.flush()

    def _flush_scheduled(self) -> None:
        self._is_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Hand everything queued to the kernel now."""
        out = self._out
        if not out or self._transport is None:
            return
        self._out = []
        self._out_bytes = 0
        if not self._has_large:
            self._write_small(b"".join(out))
            return
        self._has_large = False
        small: list[Buffer] = []
        for part in out:
            if len(part) < zmtp.LARGE_FRAME_BYTES:
                small.append(part)
                continue
            self._transport.write(b"".join(small))
            small.clear()
            self._transport.write(part)
        if small:
            self._transport.write(b"".join(small))

    def _write_small(self, data: bytes) -> None:
        """Write past the transport where nothing waits in it: uvloop keeps every write until the end of the loop turn."""
        assert self._transport is not None
        if self._fd >= 0 and not self._transport.get_write_buffer_size():
            try:
                sent = os.write(self._fd, data)
            except OSError:
                # Full, or broken: the transport waits for the one and reports the other.
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer takes more; returns at once below the high-water mark or when the connection is gone."""
        await self._writable.wait()

    async def ping(self) -> None:
        """Wait for the peer's PONG: everything sent before has then been read. Raises ConnectionError when it is gone."""
        self.flush()
        if self._is_closed or self._transport is None:
            raise ConnectionError(self._reason or self.codec.when_closed())
        self._pings += 1
        context = self._pings.to_bytes(8, "big")
        pong = self._pongs[context] = self._loop.create_future()
        self._transport.write(self.codec.ping(context))
        await pong

    def pause_reading(self) -> None:
        """Take nothing more from the peer for now; TCP then slows it down."""
        if self._transport is not None and not self._is_closed:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on taking messages."""
        if self._transport is not None and not self._is_closed:
            self._transport.resume_reading()

    def keep_alive(self) -> bool:
        """Call at a fixed interval: False when nothing was heard since the last call but one. Sends a PING when idle."""
        if self.was_heard:
            self.was_heard = False
            if self.is_open and self.codec.peer_minor >= 1 and self._transport is not None:
                self.flush()
                self._transport.write(self.codec.ping())
            return True
        return self.is_open and self.codec.peer_minor == 0

    def close(self, reason: str) -> None:
        """Send what is queued, then close."""
        if self._is_closed:
            return
        self.flush()
        self._reason = reason
        self._is_sealed = True
        self._fd = -1
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once; what is queued is lost."""
        if self._is_closed:
            return
        self._reason = reason
        self._is_sealed = True
        self._fd = -1
        if self._transport is not None:
            self._transport.abort()

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio.Transport, they only have its methods.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        name = transport.get_extra_info("peername")
        self.peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
        own = transport.get_extra_info("sockname")
        self.local_host = str(own[0]) if isinstance(own, tuple) else ""
        raw: socket.socket | None = transport.get_extra_info("socket")
        self._fd = -1 if raw is None else raw.fileno()
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _watch_over(raw)
        self._handshake = self._loop.call_later(_HANDSHAKE_S, self.abort, "no ZMTP handshake in time")
        self._waiting[self] = None
        if len(self._waiting) > _HANDSHAKES_MAX:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.abort("too many handshakes at once")
        self._write_outgoing()

    def get_buffer(self, sizehint: int) -> memoryview:
        large = self.codec.large
        return self._read_view if large is None else large[:_LARGE_READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        codec = self.codec
        self.was_heard = True
        try:
            if codec.large is not None:
                messages = codec.large_filled(nbytes)
                if messages:
                    _release_later(self._loop)
            else:
                messages = codec.feed(bytes(self._read_view[:nbytes]))
        except zmtp.ProtocolError as error:
            self._write_outgoing()
            self.close(str(error))
            return
        if codec.outgoing:
            self._write_outgoing()
        if not self.is_open and codec.is_ready:
            self.is_open = True
            self._end_handshake()
            self._handler.on_open(self)
        if codec.subscriptions:
            messages = self._as_messages(codec) + messages
        if codec.pongs:
            for context in codec.pongs:
                pong = self._pongs.pop(context, None)
                if pong is not None and not pong.done():
                    pong.set_result(None)
            codec.pongs.clear()
        if messages:
            self._handler.on_messages(self, messages)
        if codec.oversize:
            for frames, size_bytes in codec.oversize:
                self._handler.on_oversize(self, frames, size_bytes)
            codec.oversize.clear()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        self._is_sealed = True
        self._fd = -1
        self.is_open = False
        self._end_handshake()
        self._writable.set()
        reason = self._reason or self.codec.when_closed() if exc is None else str(exc) or type(exc).__name__
        for pong in self._pongs.values():
            if not pong.done():
                pong.set_exception(ConnectionError(reason))
        self._pongs.clear()
        self._out.clear()
        self._handler.on_close(self, reason)

    def _end_handshake(self) -> None:
        self._waiting.pop(self, None)
        if self._handshake is not None:
            self._handshake.cancel()

    def _write_outgoing(self) -> None:
        if self.codec.outgoing and self._transport is not None:
            # In the order of encoding: encrypted frames are numbered.
            self.flush()
            data = bytes(self.codec.outgoing)
            self.codec.outgoing.clear()
            self._transport.write(data)

    @staticmethod
    def _as_messages(codec: zmtp.Codec) -> list[list[Buffer]]:
        """Subscriptions that came as commands, in the older message form, so that handlers know one form only."""
        messages = [zmtp.subscription(prefix, is_cancel=not is_on) for is_on, prefix in codec.subscriptions]
        codec.subscriptions.clear()
        return messages


def _watch_over(raw: socket.socket) -> None:
    """Let the kernel find out that a machine is gone: peers older than ZMTP 3.1 know no PING, and nobody else asks them."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES.items():
        if hasattr(socket, option):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class AddressInUse(OSError):
    """A port is taken; `key` is the settings key that would change it."""

    def __init__(self, host: str, port: int, key: str) -> None:
        super().__init__(
            errno.EADDRINUSE, f"port {port} on {host} is already taken; change {key} or stop the other program"
        )
        self.key = key


async def listen(
    host: str,
    port: int,
    socket_type: bytes,
    handler: Handler,
    *,
    key: str,
    properties: Mapping[str, bytes] = {},
    max_body_bytes: int = MAX_BODY_BYTES,
    codec: MakeCodec = zmtp.Codec,
    greeting: dict[Connection, None] | None = None,
) -> tuple[asyncio.Server, int]:
    """Serve ZMTP peers on a port (0 takes any free one); returns the server and the port it got.

    greeting: is given the connections whose handshake is not done, of this server alone. Raises AddressInUse naming `key`,
    and OSError for an address this machine does not have.
    """

    waiting: dict[Connection, None] = {} if greeting is None else greeting

    def accept() -> Connection:
        return Connection(codec(socket_type, properties=properties, max_body_bytes=max_body_bytes), handler, waiting)

    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(accept, host, port, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(host, port, key) from error
        raise
    bound = server.sockets[0].getsockname()[1]
    return server, int(bound)


async def connect(
    host: str,
    port: int,
    socket_type: bytes,
    handler: Handler,
    *,
    properties: Mapping[str, bytes] = {},
    max_body_bytes: int = MAX_BODY_BYTES,
    codec: MakeCodec = zmtp.Codec,
) -> Connection:
    """Open a TCP connection; `handler.on_open` tells when the handshake is done. Raises OSError."""
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        return Connection(codec(socket_type, properties=properties, max_body_bytes=max_body_bytes), handler)

    _, connection = await loop.create_connection(make, host, port)
    return connection


def dialer(settings: Settings, name: str) -> Dial:
    """How clients and workers reach the broker over TCP; `name` is what the broker calls the source of their events.

    Encrypted where `bus.server_key` is set; the keys are read at each connection, since they may be traded meanwhile.
    """
    bus = settings.bus
    ports = {
        Role.REQUEST: (bus.request_port, b"DEALER"),
        Role.PUBLISH: (bus.publish_port, b"PUB"),
        Role.EVENTS: (bus.sequenced_port, b"SUB"),
    }
    properties = {NAME_PROPERTY: name.encode()[:255]}

    async def dial(role: Role, handler: Handler) -> Link:
        port, socket_type = ports[role]
        codec: MakeCodec = zmtp.Codec
        if bus.server_key:
            from bus.keys import Keys

            codec = Keys(settings).client_codec(bus.server_key)
        return await connect(
            *(bus.host, port, socket_type, handler),
            properties=properties,
            max_body_bytes=bus.max_body_bytes,
            codec=codec,
        )

    return dial


def install_fast_loop() -> None:
    """Make asyncio use uvloop where it is installed; the stock loop works the same, slower."""
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
