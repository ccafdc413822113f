"""One HTTP POST over asyncio's streams, whose answer is its status alone. Cancelled and timed like any other coroutine."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final
from urllib.parse import urlsplit

from bus.version import VERSION
from workers.errors.wording import Post

# Bytes of the line that holds the status.
_LINE_MAX: Final = 4_096


class NotPosted(Exception):
    """It was not taken; the message names the host alone, for an address often holds a secret. status: 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def host_of(url: str) -> str:
    """What may be shown of an address."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


async def post(url: str, what: Post, timeout_s: float) -> None:
    """Post `what` to `url`. Raises NotPosted for any answer but 2xx, and where none came in time."""
    host = host_of(url)
    try:
        async with asyncio.timeout(timeout_s):
            status = await _ask(url, what)
    except TimeoutError as error:
        raise NotPosted(f"{host} did not answer within {timeout_s:g} s") from error
    except (OSError, ssl.SSLError, UnicodeError, asyncio.LimitOverrunError, ValueError) as error:
        # Without the exception's own words, where they might hold more of the address than its host.
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise NotPosted(f"{host} cannot be reached: {reason}") from error
    if not 200 <= status < 300:
        elsewhere = "; it sends elsewhere, name that address" if 300 <= status < 400 else ""
        raise NotPosted(f"{host} answered {status}{elsewhere}", status)


async def _ask(url: str, what: Post) -> int:
    parts = urlsplit(url)
    assert parts.hostname is not None
    context = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if context else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context, limit=_LINE_MAX)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {
            "Host": parts.netloc,
            "User-Agent": f"olympus/{VERSION}",
            "Content-Length": str(len(what.body)),
            "Connection": "close",
            **what.headers,
        }
        head = "".join(
            [f"POST {target} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]
        )
        writer.write(head.encode("ascii") + what.body)
        await writer.drain()
        # `HTTP/1.1 204 No Content` (RFC 9112, section 4); nothing else of the answer matters.
        version, status = (await reader.readline()).split(b" ")[:2]
        if not version.startswith(b"HTTP/1.") or len(status) != 3:
            raise ValueError("no status line")
        return int(status)
    finally:
        # Nothing more is said: a server that hangs is not waited for.
        writer.transport.abort()
