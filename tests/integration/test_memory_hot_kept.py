"""What the memory keeps in its hot tier, seen through the service: vectors of queries, and the monitor's marks."""

from __future__ import annotations

import asyncio
import importlib.util
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext
from pathlib import Path

import msgspec
import pytest

from bus.client import Client
from bus.settings import Settings
from schemas.bodies.search import Search
from schemas.bodies.sessions import NewTurn, SessionAppend, SessionCreate
from tests.redis_process import RedisProcess
from tests.vectors_bench import tiny_model
from workers.memory.hot.opening import FILE_NAME
from workers.memory.service import service

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

needs_runtime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("tokenizers") is None,
    reason="the encoder needs the extra 'memory'",
)
on_both = pytest.mark.parametrize("is_redis", [False, True], ids=["sqlite", "redis"])


@asynccontextmanager
async def memory(settings: Settings) -> AsyncIterator[Client]:
    """The service, registered with the broker of `settings`, and a client."""
    async with service(settings) as worker, Client(settings, name="test") as client:
        await worker.start(10)
        try:
            yield client
        finally:
            await worker.stop()


def with_memory(settings: Settings, **changes: object) -> Settings:
    """The settings with others of the memory."""
    return msgspec.structs.replace(settings, memory=msgspec.structs.replace(settings.memory, **changes))


@needs_runtime
@on_both
async def test_known_query_needs_no_encoder_after_a_restart(
    serve_broker: Serve, tmp_path: Path, is_redis: bool
) -> None:
    """Asked twice, its vector is in the hot tier: the second process searches by meaning without loading a model."""
    if is_redis:
        pytest.importorskip("redis")
    model = tiny_model(tmp_path / "tiny")
    with RedisProcess() if is_redis else nullcontext() as server:
        async with serve_broker() as found:
            url = server.url if server is not None else ""
            settings = with_memory(found, encoder=str(model), redis_url=url)
            query = Search(query="the train to the key")
            async with memory(settings) as client:
                # The very first load may take longer than a query waits.
                async with asyncio.timeout(60):
                    while (await client.request("memory.search", query)).degraded:
                        pass
                await client.request("memory.search", query)
                assert (await client.request("memory.stats")).encoder_state == "ready"

            async with memory(settings) as client:
                reply = await client.request("memory.search", query)
                stats = await client.request("memory.stats")

                assert reply.degraded == ""
                assert (stats.encoder_state, stats.hot_tier) == ("idle", "redis" if is_redis else "sqlite")


@on_both
async def test_monitor_marks_how_far_it_looked(serve_broker: Serve, is_redis: bool) -> None:
    """In the space `sessions`, under the session's own beginning, so that a restart does not repeat the look."""
    redis = pytest.importorskip("redis") if is_redis else None
    said = NewTurn(role="user", content="I prefer trains over planes.")
    with RedisProcess() if is_redis else nullcontext() as server:
        async with serve_broker() as found:
            settings = with_memory(found, redis_url=server.url if server is not None else "")
            async with memory(settings) as client, client.subscribe("memory.suggestion.made") as made:
                session = await client.request("memory.session.create", SessionCreate(session_id="s", user_id="ada"))
                await client.request("memory.session.append", SessionAppend(session_id="s", turns=[said]))
                async with asyncio.timeout(20):
                    await anext(aiter(made))

            mark = f"looked:session/s/{session.created_at!r}".encode()
            if server is None or redis is None:
                with closing(sqlite3.connect(settings.path(settings.memory.path).with_name(FILE_NAME))) as file:
                    assert file.execute("SELECT key, value FROM entries WHERE space = 1").fetchall() == [(mark, b"1")]
            else:
                with redis.Redis(unix_socket_path=str(server.socket), db=1) as database:
                    (key,) = database.keys("olympus:*")
                    assert key.endswith(mark)
                    assert database.get(key) == b"1"
