"""The index on a server that is not there, does not answer, or refuses; with servers of a few lines."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.qdrant_server import DONE, QdrantServer, answering, described
from tests.vectors_bench import FakeEncoder, opened_store, unit, until
from workers.memory.vectors import outbox
from workers.memory.vectors.index import Point
from workers.memory.vectors.qdrant import QdrantIndex, client_factory
from workers.memory.vectors.unavailable import IndexUnavailable

pytest.importorskip("qdrant_client")
from qdrant_client import AsyncQdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse


def healthy(method: str, path: str) -> tuple[int, Any]:
    """What a server with an empty collection of two components answers."""
    if path.endswith("/exists"):
        return 200, {"exists": True}
    if path.endswith("/count"):
        return 200, {"count": 0}
    return 200, described(2) if method == "GET" else DONE


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
    """After the time limit of a call, once: a search waits for it."""
    async with answering(lambda method, path, body: None) as (url, asked):
        index = index_at(url, timeout_s=1)
        with pytest.raises(IndexUnavailable, match="the Qdrant server failed"):
            await index.count()
        await index.close()
    assert len(asked) == 1


async def test_server_that_asks_for_patience_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client has an error of its own for that: search goes on without meaning, and the pump tries again."""

    async def answer(*_: Any, **__: Any) -> None:
        raise ResourceExhaustedResponse("too many requests", 7)

    index = index_at("http://127.0.0.1:1")
    monkeypatch.setattr(AsyncQdrantClient, "collection_exists", answer)
    with pytest.raises(IndexUnavailable, match=r"the Qdrant server failed: .*too many requests"):
        await index.count()
    await index.close()


async def test_passing_failure_is_tried_again() -> None:
    """A busy server that recovers is not noticed by the caller."""
    failures = iter([503, 502])

    def answer(method: str, path: str, body: bytes) -> tuple[int, Any]:
        status = next(failures, 0)
        return (status, None) if status else healthy(method, path)

    async with answering(answer) as (url, asked):
        index = index_at(url)
        assert await index.count() == 0
        await index.close()
    assert asked[:3] == ["GET /collections/test-m/exists"] * 3


async def test_refusal_is_not_tried_again() -> None:
    """A wrong key stays wrong; the key itself is in no message."""
    async with answering(lambda method, path, body: (403, None)) as (url, asked):
        index = index_at(url)
        with pytest.raises(IndexUnavailable, match="403"):
            await index.count()
        await index.close()
    assert len(asked) == 1


async def test_collection_of_other_vectors_is_refused() -> None:
    """It belongs to something else; a setting gives another name."""
    async with answering(lambda method, path, body: healthy(method, path)) as (url, _):
        index = QdrantIndex(client_factory(url, ""), "m", 3, prefix="test")
        with pytest.raises(IndexUnavailable, match=r"test-m holds other vectors than 3 .*memory.qdrant_prefix"):
            await index.count()
        await index.close()


async def test_server_that_comes_back_is_used_again() -> None:
    """Without a new index: the collection is prepared at the first call that gets through."""
    is_up = False

    def answer(method: str, path: str, body: bytes) -> tuple[int, Any]:
        return healthy(method, path) if is_up else (503, None)

    async with answering(answer) as (url, _):
        index = index_at(url)
        with pytest.raises(IndexUnavailable):
            await index.count()
        is_up = True
        assert await index.count() == 0
        await index.close()


async def test_collection_removed_by_somebody_is_made_again() -> None:
    """The first call after that fails, the next one prepares it."""
    is_gone = False

    def answer(method: str, path: str, body: bytes) -> tuple[int, Any]:
        return (404, None) if is_gone and path.endswith("/count") else healthy(method, path)

    async with answering(answer) as (url, asked):
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


async def test_server_that_goes_away_is_filled_again_when_it_comes_back_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written meanwhile waits, and what the server has lost is made anew, without a restart of the memory."""
    monkeypatch.setattr(outbox, "RETRY_S", 0.01)
    monkeypatch.setattr(outbox, "RETRY_MAX_S", 0.02)
    port = closed_port()
    index = index_at(f"http://127.0.0.1:{port}")
    encoder = FakeEncoder(dimension=2)
    async with opened_store(tmp_path) as store, store.pumping(encoder, index) as pump:
        async with QdrantServer().serving(port):
            before = await store.put("a", *(f"text {number}" for number in range(20)))
            await store.settled()
            assert await index.ids(after=0, limit=99) == before

        meanwhile = await store.put("b", "written while it was away")
        await until(lambda: pump.problem.startswith("the Qdrant server failed"), "the pump says what is wrong")
        assert not await store.is_settled()

        replaced = QdrantServer()
        async with replaced.serving(port):
            await until(lambda: "test-m" in replaced.collections, "the collection is made again")
            await until(lambda: len(replaced.collections["test-m"].points) == 22, "everything and the mark are there")
            await store.settled()
            await until(lambda: pump.problem == "", "the pump says that all is well")
            assert await index.ids(after=0, limit=99) == [*before, *meanwhile]
    await index.close()
