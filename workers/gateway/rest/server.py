"""HTTP on sockets: uvicorn's protocol with limits on time and number, several ports on the running loop.

uvicorn sets no limit on the time a head may take, nor on its size, and would make a timer per request; here one round a
second looks at every connection instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from bus.settings import RestSettings, is_loopback
from schemas.errors import BadRequest, BusError
from workers.gateway.rest.front import Application
from workers.gateway.rest.response import PROBLEM, HeadTooLarge, SlowCaller, TooManyConnections, problem_body

# Bytes of request line and headers: what nginx and Apache take (32 KiB and 8 KiB a line) and some more.
MAX_HEAD_BYTES: Final = 65_536
_MAX_HEADERS: Final = 128

# Requests sent before their turn at which nothing more is read, and at which the rest is refused: some hundreds may come
# in one piece. A connection that is not read does not tell that its caller has gone, so it is not the first one.
_PAUSED_AHEAD: Final = 16
_MAX_AHEAD: Final = 1000

# Headers of which a second one is read differently by whoever stands between: RFC 9112, section 3.2, for Host.
_SINGLE: Final = frozenset({b"host", b"authorization", b"origin"})

# Bytes on the wire for each byte of a body, at most: chunks of one byte take six, extensions of chunks take any number.
_CHUNKING: Final = 16

# Bytes a second, at least: of a body once `rest.read_timeout_s` have gone by, of an answer in each `rest.idle_s`. A modem
# is faster.
_SLOWEST: Final = 1024

# Seconds without a byte after which a connection that was told its last is closed though its caller has not hung up.
_LINGER_S: Final = 2.0

# Seconds between two rounds over the connections, and so how late a limit may be kept.
_ROUND_S: Final = 1.0

# Answers that have no body: RFC 9110, sections 15.3.5 and 15.4.5.
_BODILESS: Final = frozenset({204, 304})

# Connections the kernel keeps while they wait to be accepted.
_BACKLOG: Final = 1024


class _Refused(Exception):
    """What a callback of the parser found wrong."""


class Cycle(RequestResponseCycle):
    """One request and its answer. Head and first piece go out in one write: each write is a system call."""

    _head: list[bytes]

    async def send(self, message: Any) -> None:
        """What the application says, as ASGI has it; nothing once the caller has hung up."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected or self.transport.is_closing():
            self.disconnected = True
            return
        if not self.response_started:
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._written_head(message["status"], message["headers"])
            return
        parts, self._head = self._head, []
        body: bytes = message.get("body", b"")
        has_more: bool = message.get("more_body", False)
        if self.scope["method"] != "HEAD":
            if self.chunked_encoding:
                if body:
                    parts += (b"%x\r\n" % len(body), body, b"\r\n")
                if not has_more:
                    parts.append(b"0\r\n\r\n")
            elif body:
                parts.append(body)
        if parts:
            self.transport.write(b"".join(parts))
        if not has_more:
            self.response_complete = True
            self.message_event.set()
            self.on_response()

    def _written_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> list[bytes]:
        parts = [STATUS_LINE[status]]
        has_length = status in _BODILESS
        for name, value in (*self.default_headers, *headers):
            if name == b"content-length":
                has_length = True
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
                continue
            parts += (name, b": ", value, b"\r\n")
        if not has_length:
            # A caller of HTTP/1.0 knows the end by the connection's.
            self.chunked_encoding = self.scope["http_version"] == "1.1"
            self.keep_alive = self.keep_alive and self.chunked_encoding
            if self.chunked_encoding:
                parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        return parts


class Connection(HttpToolsProtocol):
    """One connection. Times are of the monotonic clock, 0 where the state they began with is over.

    by_caller: open connections of each address.
    """

    def __init__(self, config: Config, state: ServerState, limits: RestSettings, by_caller: dict[str, int]) -> None:
        super().__init__(config, state, {})
        self._limits = limits
        self._by_caller = by_caller
        self._caller = ""
        self._state = state
        self._task: asyncio.Task[None] | None = None
        # What the task answers; `cycle` is the last one that came, which may have to wait for its turn.
        self._answering: RequestResponseCycle | None = None
        self._refusal: BusError | None = None
        self._head_bytes = 0
        self._came_bytes = 0
        # Of the body that comes now: since when, its bytes on the wire and without its chunks. 0: none comes.
        self._body_since = 0.0
        self._body_came = 0
        self._body_bytes = 0
        self._head_since = 0.0
        self._heard_at = 0.0
        self._idle_since = 0.0
        self._told_last_at = 0.0
        # Of what was written and waits for the caller to read on: since when, and how many bytes waited then.
        self._unread_since = 0.0
        self._unread_bytes = 0

    @property
    def running(self) -> asyncio.Task[None] | None:
        """What answers a request now."""
        return None if self._task is None or self._task.done() else self._task

    # What the transport calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses what is one too many."""
        super().connection_made(transport)
        self._idle_since = time.monotonic()
        most = self._limits.max_connections
        self._caller = self.client[0] if self.client else ""
        from_there = self._by_caller[self._caller] = self._by_caller.get(self._caller, 0) + 1
        if len(self.connections) > most:
            self._refuse(TooManyConnections(f"{most} connections are open, as many as may be", limit=most))
        elif from_there > max(most // 2, 1) and not is_loopback(self._caller):
            # Others want in as well; programs of this machine, a proxy among them, speak for many.
            half = max(most // 2, 1)
            self._refuse(TooManyConnections(f"{half} connections of {self._caller} are open", limit=half))

    def connection_lost(self, exc: Exception | None) -> None:
        """Takes back what the caller no longer waits for."""
        super().connection_lost(exc)
        left = self._by_caller.pop(self._caller, 0) - 1
        if left > 0:
            self._by_caller[self._caller] = left
        self.pipeline.clear()
        self.abandon()

    def abandon(self) -> None:
        """End what answers now, unless it has ended; nobody is told."""
        answering = self._answering
        if self._task is not None and answering is not None and not answering.response_complete:
            answering.disconnected = True
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Feeds the parser."""
        self._heard_at = time.monotonic()
        if self._told_last_at or self._refusal is not None:
            return
        self._came_bytes = len(data)
        if self._head_since:
            # What came together with the first byte of the head is not counted, for it may be of the request before.
            self._head_bytes += len(data)
        elif self._body_since:
            self._body_came += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as plain HTTP/1.1; what follows on this connection is not.
            self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or BadRequest(f"this is not HTTP/1.1: {_reason(error)}", field="head"))
            return
        if self._head_since and (size := self._head_bytes + len(self.url)) > MAX_HEAD_BYTES:
            self._refuse(_head_too_large(size))
        elif self._body_since and self._body_came > MAX_HEAD_BYTES + _CHUNKING * self._body_bytes:
            self._refuse(BadRequest("the body has far more bytes of chunks and trailers than of content", field="body"))

    def resume_writing(self) -> None:
        """The caller reads again."""
        super().resume_writing()
        self._unread_since = 0.0

    # What the parser calls

    def on_message_begin(self) -> None:
        """The first byte of a head."""
        super().on_message_begin()
        self._head_since = self._heard_at
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; what comes after the body is none (RFC 9110, section 6.5.1: a trailer may be left out)."""
        if self._head_since:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._body_since = 0.0
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._head_since = 0.0
        self._body_since = self._heard_at
        self._body_came = self._body_bytes = 0
        single = [name for name, _ in self.headers if name in _SINGLE]
        if len(single) != len(set(single)):
            twice = next(name.decode() for name in single if single.count(name) > 1)
            self._refusal = BadRequest(f"the header {twice} is given twice", field=twice)
            raise _Refused
        if len(self.headers) > _MAX_HEADERS:
            self._refusal = HeadTooLarge(
                f"{len(self.headers)} headers, the limit is {_MAX_HEADERS}",
                headers=len(self.headers),
                limit=_MAX_HEADERS,
            )
            raise _Refused
        if self._head_bytes + self._came_bytes > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._refusal = _head_too_large(size)
                raise _Refused
        target = httptools.parse_url(self.url)
        version = self.parser.get_http_version()
        scope: Any = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["raw_path"] = target.path
        scope["path"] = unquote(target.path.decode("ascii"))
        scope["query_string"] = target.query or b""
        before = self.cycle
        self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self._state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            # Sent before the answer to the one before: answered in turn.
            self.pipeline.appendleft((self.cycle, self.app))
            if len(self.pipeline) >= _PAUSED_AHEAD:
                self.flow.pause_reading()
            if len(self.pipeline) > _MAX_AHEAD:
                self._refusal = BadRequest(f"more than {_MAX_AHEAD} requests were sent ahead", limit=_MAX_AHEAD)
                raise _Refused

    # What uvicorn calls

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        self._task = self.loop.create_task(cycle.run_asgi(app))

    def on_response_complete(self) -> None:
        """Begins the next request that came already, or waits for one."""
        self._state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._answering is not None and not self._answering.keep_alive:
            self._part()
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            if cycle is self.cycle and cycle.waiting_for_100_continue:
                # It is told only now to send its body.
                self._heard_at = self._body_since = time.monotonic()
            self._start_asgi_task(cycle, app)
        elif self._refusal is not None:
            self.transport.write(_problem(self._refusal))
            self._part()
        else:
            self._idle_since = time.monotonic()

    # Limits

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def look_at(self, now: float) -> None:
        """End the connection where its caller takes too long."""
        limits = self._limits
        if self.transport.is_closing():
            if self._is_left_unread(now):
                self.transport.abort()
        elif self._told_last_at:
            is_silent = now - max(self._told_last_at, self._heard_at) > min(_LINGER_S, limits.read_timeout_s)
            if is_silent or now - self._told_last_at > limits.read_timeout_s:
                self.transport.close()
        elif self.flow.write_paused and self._is_left_unread(now):
            self.transport.abort()
        elif self._refusal is not None:
            # What came before is answered first.
            return
        elif self._is_answering:
            is_told_to_wait = self.cycle is not self._answering and self.cycle.waiting_for_100_continue
            is_awaited = self.cycle.more_body and not self.flow.read_paused and not is_told_to_wait
            late_s = now - self._body_since - limits.read_timeout_s
            if is_awaited and now - self._heard_at > limits.read_timeout_s:
                self._refuse(SlowCaller(f"no more of the body came for {limits.read_timeout_s:g} s"))
            elif is_awaited and self._body_since and self._body_bytes < late_s * _SLOWEST:
                self._refuse(SlowCaller(f"the body comes with less than {_SLOWEST} bytes a second"))
        elif self._head_since:
            if now - max(self._head_since, self._idle_since) > limits.read_timeout_s:
                self._refuse(SlowCaller(f"the head was not whole after {limits.read_timeout_s:g} s"))
        elif now - self._idle_since > limits.idle_s:
            self.transport.close()

    def _is_left_unread(self, now: float) -> bool:
        """Whether of what waits for the caller less than _SLOWEST bytes a second were read in the last `rest.idle_s`."""
        waits, idle_s = self.transport.get_write_buffer_size(), self._limits.idle_s
        if self._unread_since and now - self._unread_since <= idle_s:
            return False
        is_left = self._unread_since > 0 and self._unread_bytes - waits < idle_s * _SLOWEST
        self._unread_since, self._unread_bytes = now, waits
        return is_left

    def _refuse(self, error: BusError) -> None:
        """Say what is wrong once all that came before it is answered, and close.

        It is not said where one of those answers ends the connection, nor to whose answer has begun before its body came.
        """
        if self._told_last_at:
            return
        self._refusal = error
        answering, cycle = self._answering, self.cycle
        if answering is None or answering.response_complete:
            self.transport.write(_problem(error))
            self._part()
        elif answering is cycle and cycle.more_body:
            if cycle.response_started:
                self.transport.close()
                return
            self.transport.write(_problem(error))
            self.abandon()
            self._part()
        else:
            if answering is not cycle and cycle.more_body:
                # It is not whole and never will be: its answer is the refusal.
                self.pipeline.popleft()
            # What follows would only be thrown away.
            self.flow.pause_reading()

    def _part(self) -> None:
        """Say no more, and close once the caller has hung up or been silent.

        Closed at once, bytes of it that are still under way would be met with a reset, and a reset may reach it before it
        has read the answer: RFC 9112, section 9.6. Where connections are short, there is no time for that.
        """
        is_whole = self._answering is not None and self._refusal is None and not self._answering.more_body
        if (is_whole and not self.pipeline) or len(self.connections) > self._limits.max_connections:
            self.transport.close()
            return
        self._told_last_at = time.monotonic()
        self.pipeline.clear()
        try:
            self.transport.write_eof()
        except OSError:
            # The caller has reset it.
            self.transport.abort()
        self.flow.resume_reading()


def _reason(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__


def _head_too_large(size: int) -> HeadTooLarge:
    return HeadTooLarge(
        f"request line and headers have {size} bytes or more, the limit is {MAX_HEAD_BYTES}",
        size_bytes=size,
        limit_bytes=MAX_HEAD_BYTES,
    )


def _problem(error: BusError) -> bytes:
    """A whole answer of its own, for requests that no application sees."""
    body = problem_body(error)
    head = (
        f"HTTP/1.1 {error.http_status} \r\ncontent-type: {PROBLEM}\r\ncontent-length: {len(body)}\r\n"
        "x-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class HttpServer:
    """Every HTTP port of this process; they share one number of connections."""

    def __init__(self, limits: RestSettings) -> None:
        self._limits = limits
        self._state = ServerState()
        self._by_caller: dict[str, int] = {}
        self._listening: list[asyncio.Server] = []
        self._rounds: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """Open now, on all ports."""
        return len(self._state.connections)

    async def listen(self, app: Application, host: str, port: int) -> int:
        """Open a port and return its number, which port 0 leaves open. Raises OSError."""
        loop = asyncio.get_running_loop()
        if self._rounds is None:
            self._rounds = loop.create_task(self._look_around())
        config = Config(
            app, http=Connection, ws="none", lifespan="off", interface="asgi3",
            proxy_headers=False, log_config=None, access_log=False,
        )  # fmt: skip
        config.load()
        bound = await _bound(host, port)
        make: Callable[[], Connection] = lambda: Connection(config, self._state, self._limits, self._by_caller)  # noqa: E731
        try:
            self._listening.append(await loop.create_server(make, sock=bound, backlog=_BACKLOG))
        except BaseException:
            bound.close()
            raise
        return int(bound.getsockname()[1])

    async def stop(self, drain_s: float) -> None:
        """Accept no more, let what runs end within `drain_s` seconds, close everything."""
        for server in self._listening:
            server.close()
        for connection in self._open():
            connection.shutdown()
        running = self._running()
        if running:
            await asyncio.wait(running, timeout=drain_s)
        left = self._running()
        for connection in self._open():
            connection.abandon()
        await asyncio.gather(*left, return_exceptions=True)
        for connection in self._open():
            connection.transport.close()
        if self._rounds is not None:
            self._rounds.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._rounds
        self._listening.clear()

    def _open(self) -> list[Connection]:
        return [connection for connection in self._state.connections if isinstance(connection, Connection)]

    def _running(self) -> set[asyncio.Task[None]]:
        return {running for connection in self._open() if (running := connection.running) is not None}

    async def _look_around(self) -> None:
        while True:
            # Read by uvicorn for every answer (RFC 9110, section 6.6.1).
            self._state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
            now = time.monotonic()
            for connection in self._open():
                connection.look_at(now)
            await asyncio.sleep(min(_ROUND_S, self._limits.read_timeout_s / 4, self._limits.idle_s / 4))


async def _bound(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind(address)
        # Now, so that a port that somebody else listens on is found out here.
        bound.listen(_BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound
