"""A few small pages over HTTP/1.1 (RFC 9112): GET and HEAD, nothing that is sent along, bounds on everything.

Apart from the gateway's server, which takes bodies, streams and routes and brings uvicorn: this one answers a scraper from
bytes that are there. It knows nothing of what the pages hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple

from bus.settings import is_loopback

log = logging.getLogger("olympus.exporter")

# Connections at once. One more takes the place of the one that has been idle longest, so that nobody can keep a scraper
# out by holding connections open.
CONNECTIONS_MAX: Final = 64

# Bytes of a request's head, and headers in it: what curl and Prometheus send has some 500.
_HEAD_MAX_BYTES: Final = 16_384
_HEADERS_MAX: Final = 64

# Seconds a connection may be idle, or take to send a head: Prometheus asks every 5 to 60 s.
_IDLE_S: Final = 75.0

# Seconds within which an answer must have been read.
_READ_S: Final = 15.0

_METHODS: Final = ("GET", "HEAD")

# Headers by which a proxy in front and this server could see different requests in the same bytes (RFC 9112, section 11.2).
_ONCE: Final = frozenset({"host", "content-length"})
_CONTROLS: Final = frozenset(map(chr, range(32))) - {"\t"}


class Request(NamedTuple):
    """A head that was understood. Header names are in lower case; of one that came twice, the first counts."""

    method: str
    path: str
    headers: dict[str, str]
    keeps_alive: bool


class Answer(NamedTuple):
    """What is sent back."""

    body: bytes
    media_type: str
    status: HTTPStatus = HTTPStatus.OK
    headers: tuple[tuple[str, str], ...] = ()


class Malformed(Exception):
    """A request that is answered with `status` and the end of its connection."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


Page = Callable[[Request], Awaitable[Answer]]


class PageServer:
    """Serves `pages` by their path."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._checks_host = True
        # Idle ones in the order in which they became so.
        self._idle: dict[asyncio.StreamWriter, None] = {}
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def listen(self, host: str, port: int) -> int:
        """Bind, and return the number of the port. Raises OSError."""
        # A page in a browser may name this machine by a name of its own (DNS rebinding); whoever may only be reached
        # from this machine is only asked under its address.
        self._checks_host = is_loopback(host)
        self._server = await asyncio.start_server(
            self._accept, host, port, limit=_HEAD_MAX_BYTES, family=socket.AF_UNSPEC, backlog=128
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Accept no more and end every connection."""
        if self._server is not None:
            self._server.close()
        for writer in self._tasks.values():
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= CONNECTIONS_MAX:
            # All of them at work: this one finds nobody.
            leaving = next(iter(self._idle), writer)
            leaving.transport.abort()
            if leaving is writer:
                return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks[task] = writer
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # So that `drain` waits until all of it is on its way.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            while await self._answer_next(reader, writer):
                pass
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            # Whoever hangs up, or is too slow, misses the answer and nothing else.
            writer.transport.abort()
        finally:
            self._idle.pop(writer, None)
            writer.close()

    async def _answer_next(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one request and answer it; False when the connection ends with it."""
        self._idle[writer] = None
        try:
            async with asyncio.timeout(_IDLE_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            return await _send(writer, None, _plain(too_large, f"a head may have {_HEAD_MAX_BYTES} bytes"))
        self._idle.pop(writer, None)
        try:
            request = parse(head)
            if self._checks_host:
                _check_host(request.headers.get("host", ""))
        except Malformed as error:
            return await _send(writer, None, _plain(error.status, str(error)))
        return await _send(writer, request, await self._answer(request))

    async def _answer(self, request: Request) -> Answer:
        page = self._pages.get(request.path)
        if page is None:
            return _plain(HTTPStatus.NOT_FOUND, f"there is {' and '.join(self._pages)}")
        if request.method not in _METHODS:
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only", ("allow", ", ".join(_METHODS)))
        try:
            return await page(request)
        except Exception as error:
            log.error("page failed", exc_info=error, extra={"action": "exporter.failed", "path": request.path})
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}; the log has more")


def parse(head: bytes) -> Request:
    """The request of a whole head. Raises Malformed."""
    bad = HTTPStatus.BAD_REQUEST
    first, *rest = head[:-4].decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[0].isalpha() or not parts[1].startswith("/"):
        raise Malformed(bad, "a request begins with METHOD /PATH HTTP/1.1")
    method, target, version = parts
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise Malformed(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 and HTTP/1.0 only")
    if len(rest) > _HEADERS_MAX:
        raise Malformed(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head may have {_HEADERS_MAX} headers")
    headers: dict[str, str] = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon or not name or not name.isascii() or any(one <= " " for one in name) or _CONTROLS & set(value):
            raise Malformed(bad, "a header is NAME: VALUE")
        name = name.lower()
        if name in headers and name in _ONCE:
            raise Malformed(bad, f"{name} comes twice")
        headers.setdefault(name, value.strip())
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise Malformed(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a request has no body here")
    connection = headers.get("connection", "").lower()
    keeps_alive = "close" not in connection if version == "HTTP/1.1" else "keep-alive" in connection
    return Request(method, target.partition("?")[0], headers, keeps_alive)


def _check_host(host: str) -> None:
    """Raises Malformed where a loopback address was asked under a name that is not its own."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name in ("", "localhost"):
        return
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return
    raise Malformed(HTTPStatus.MISDIRECTED_REQUEST, "ask by address or as localhost")


def _plain(status: HTTPStatus, why: str, *headers: tuple[str, str]) -> Answer:
    return Answer(f"{status.value} {status.phrase}: {why}\n".encode(), "text/plain; charset=utf-8", status, headers)


async def _send(writer: asyncio.StreamWriter, request: Request | None, answer: Answer) -> bool:
    """Send an answer; False when the connection ends with it. Raises TimeoutError when it is not read."""
    keeps_alive = request is not None and request.keeps_alive
    headers = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"date: {formatdate(usegmt=True)}",
        f"content-type: {answer.media_type}",
        f"content-length: {len(answer.body)}",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        f"connection: {'keep-alive' if keeps_alive else 'close'}",
        *(f"{name}: {value}" for name, value in answer.headers),
    ]
    writer.write("\r\n".join((*headers, "", "")).encode("latin-1"))
    if request is None or request.method != "HEAD":
        writer.write(answer.body)
    async with asyncio.timeout(_READ_S):
        await writer.drain()
    return keeps_alive
