"""A tiny server that speaks OpenAI's API on a free loopback port, with a mode for each way such an endpoint can fail.

It streams the words it is told to; what it received it keeps, and it notices when a client hangs up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

Head = dict[str, str]


def sse(*events: Any) -> bytes:
    """Events as a text/event-stream."""
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def chat_piece(text: str, **more: Any) -> dict[str, Any]:
    """One event of a streamed chat."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **more}]}


def last_piece(reason: str = "stop") -> dict[str, Any]:
    """The event that says why an answer ended."""
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def usage_piece(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """The event that counts the tokens."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {"choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": cached}}}


class OpenAIServer:
    """What it answers, and what it was asked.

    models: the entries of /v1/models. stream: bytes of a streamed answer, sent piece by piece. status, headers, error:
    of a refusal. is_cut: hang up after the last piece. is_silent: say nothing more after it, until the client leaves.
    routes: answers of other paths.
    """

    def __init__(self, **changes: Any) -> None:
        self.models: list[dict[str, Any]] | None = [{"id": "small", "owned_by": "somebody"}]
        self.stream: list[bytes] = [
            sse(chat_piece("Hello"), chat_piece(" you")),
            sse(last_piece(), usage_piece(7, 2)) + b"data: [DONE]\n\n",
        ]
        self.content_type = "text/event-stream"
        self.status = 200
        self.headers: Head = {}
        self.error: bytes = b""
        self.is_cut = False
        self.is_silent = False
        self.routes: dict[str, Any] = {}
        self.requests: list[tuple[str, str, Head, Any]] = []
        self.left = asyncio.Event()
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        for name, value in changes.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def body_of(self, path: str) -> Any:
        """The body of the last request to `path`."""
        return next(body for _, asked, _, body in reversed(self.requests) if asked == path)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[OpenAIServer]:
        """Serve until the end of the block; connections still open then are closed."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=64 * 1024 * 1024)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        method, path, _ = (await reader.readline()).decode().split(" ") if not reader.at_eof() else ("", "", "")
        if not method:
            return False
        headers: Head = {}
        while line := (await reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        size = int(headers.get("content-length", 0))
        body = json.loads(await reader.readexactly(size)) if size else None
        self.requests.append((method, path, headers, body))
        if path == "/v1/models" and self.models is not None:
            return await _reply(writer, 200, json.dumps({"object": "list", "data": self.models}).encode())
        if path in self.routes:
            answer = self.routes[path]
            answer = answer(body) if callable(answer) else answer
            return await _reply(writer, 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return await _reply(writer, 404, b'{"error": {"message": "no such path"}}')
        if self.status != 200:
            return await _reply(writer, self.status, self.error, self.headers)
        await self._stream(reader, writer)
        return False

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 200 OK\r\ncontent-type: {self.content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        for piece in self.stream:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        if self.is_silent:
            await reader.read()
            self.left.set()
        elif self.is_cut:
            writer.close()
        else:
            writer.write(b"0\r\n\r\n")
            await writer.drain()


async def _reply(writer: asyncio.StreamWriter, status: int, body: bytes, headers: Head | None = None) -> bool:
    lines: Iterable[str] = (f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    writer.write(
        f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n".encode()
        + "".join(lines).encode()
        + b"\r\n"
        + body
    )
    await writer.drain()
    return True
