"""The index on a server that is not there, does not answer, or refuses; with servers of a few lines."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.vectors_bench import unit
from workers.memory.vectors.index import Point
from workers.memory.vectors.qdrant import QdrantIndex, client_factory
from workers.memory.vectors.unavailable import IndexUnavailable

pytest.importorskip("qdrant_client")

Answer = Callable[[str, str], tuple[int, Any] | None]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that answers `(method, path)` with `(status, result)`, or never for None; its url and what it was asked."""
    asked: list[str] = []
    open_connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_connections.add(writer)
        while head := await read_head(reader):
            method, path, _ = head.split("\r\n")[0].split(" ")
            asked.append(f"{method} {path.partition('?')[0]}")
            answered = answer(method, path.partition("?")[0])
            if answered is None:
                continue
            status, result = answered
            body = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
            start = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(start.encode() + body)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", asked
    finally:
        listening.close()
        for writer in open_connections:
            writer.close()
        await listening.wait_closed()


async def read_head(reader: asyncio.StreamReader) -> str:
    """The head of the next request, its body read too; "" at the end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return ""
    lengths = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
    await reader.readexactly(int(lengths[0]) if lengths else 0)
    return head


def healthy(method: str, path: str) -> tuple[int, Any]:
    """What a server with an empty collection of two components answers."""
    if path.endswith("/exists"):
        return 200, {"exists": True}
    if path.endswith("/count"):
        return 200, {"count": 0}
    if method == "GET":
        params = {"vectors": {"size": 2, "distance": "Dot"}, "shard_number": 1}
        hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
        optimizer = {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1_000,
            "default_segment_number": 0,
            "flush_interval_sec": 5,
        }
        config = {"params": params, "hnsw_config": hnsw, "optimizer_config": optimizer}
        return 200, {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": 1,
            "config": config,
            "payload_schema": {},
        }
    return 200, {"operation_id": 1, "status": "completed"}


def index_at(url: str, *, timeout_s: int = 5) -> QdrantIndex:
    return QdrantIndex(client_factory(url, "", timeout_s=timeout_s), "m", 2, prefix="test")


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


async def test_refused_connection_is_unavailable_with_its_reason() -> None:
    """Every call says so, and none hangs."""
    index = index_at(f"http://127.0.0.1:{closed_port()}")
    calls = (
        index.count(),
        index.search(unit(1, 0), ns="n", kinds=None, limit=1),
        index.upsert([Point(1, unit(1, 0), "n", "memory")]),
        index.remove([1]),
        index.ids(after=0, limit=1),
        index.clear(),
    )
    for call in calls:
        with pytest.raises(IndexUnavailable, match=r"the Qdrant server failed: .*connection"):
            await call
    await index.close()


async def test_server_that_does_not_answer_is_given_up() -> None:
    """After the time limit of a call, several times."""
    async with server(lambda method, path: None) as (url, asked):
        index = index_at(url, timeout_s=1)
        with pytest.raises(IndexUnavailable, match="the Qdrant server failed"):
            await index.count()
        await index.close()
    assert len(asked) == 3


async def test_passing_failure_is_tried_again() -> None:
    """A busy server that recovers is not noticed by the caller."""
    failures = iter([503, 502])

    def answer(method: str, path: str) -> tuple[int, Any]:
        status = next(failures, 0)
        return (status, None) if status else healthy(method, path)

    async with server(answer) as (url, asked):
        index = index_at(url)
        assert await index.count() == 0
        await index.close()
    assert asked[:3] == ["GET /collections/test-m/exists"] * 3


async def test_refusal_is_not_tried_again() -> None:
    """A wrong key stays wrong; the key itself is in no message."""
    async with server(lambda method, path: (403, None)) as (url, asked):
        index = index_at(url)
        with pytest.raises(IndexUnavailable, match="403"):
            await index.count()
        await index.close()
    assert len(asked) == 1


async def test_collection_of_other_vectors_is_refused() -> None:
    """It belongs to something else; a setting gives another name."""
    async with server(healthy) as (url, _):
        index = QdrantIndex(client_factory(url, ""), "m", 3, prefix="test")
        with pytest.raises(IndexUnavailable, match=r"test-m holds other vectors than 3 .*memory.qdrant_prefix"):
            await index.count()
        await index.close()


async def test_server_that_comes_back_is_used_again() -> None:
    """Without a new index: the collection is prepared at the first call that gets through."""
    is_up = False

    def answer(method: str, path: str) -> tuple[int, Any]:
        return healthy(method, path) if is_up else (503, None)

    async with server(answer) as (url, _):
        index = index_at(url)
        with pytest.raises(IndexUnavailable):
            await index.count()
        is_up = True
        assert await index.count() == 0
        await index.close()


async def test_collection_removed_by_somebody_is_made_again() -> None:
    """The first call after that fails, the next one prepares it."""
    is_gone = False

    def answer(method: str, path: str) -> tuple[int, Any]:
        return (404, None) if is_gone and path.endswith("/count") else healthy(method, path)

    async with server(answer) as (url, asked):
        index = index_at(url)
        await index.count()
        is_gone = True
        with pytest.raises(IndexUnavailable):
            await index.count()
        is_gone = False
        asked.clear()
        assert await index.count() == 0
        await index.close()
    assert asked[0].endswith("/exists")


@pytest.mark.parametrize("url", ["localhost:6333", "ftp://127.0.0.1", "http://", "nonsense"])
async def test_address_that_is_none_is_refused(url: str) -> None:
    """With an example of one."""
    index = index_at(url)
    with pytest.raises(IndexUnavailable, match=r"memory.qdrant_url is not an address like http://127.0.0.1:6333"):
        await index.count()
    await index.close()
