"""Binds the operations `memory.cache.*` to the cache."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import memory as bodies
from workers.memory.hot.cache import Cache


def register(worker: Worker, cache: Cache) -> None:
    """Make `worker` answer every operation of the cache."""

    @worker.handles("memory.cache.get")
    async def cache_get(request: bodies.CacheGet, call: Call) -> bodies.CacheEntry:
        return await cache.get(request)

    @worker.handles("memory.cache.set")
    async def cache_set(request: bodies.CacheSet, call: Call) -> bodies.CacheStored:
        return await cache.set(request)

    @worker.handles("memory.cache.delete")
    async def cache_delete(request: bodies.CacheDelete, call: Call) -> bodies.CacheDeleted:
        return await cache.delete(request)

    @worker.handles("memory.cache.flush")
    async def cache_flush(request: bodies.CacheFlush, call: Call) -> bodies.CacheFlushed:
        return await cache.flush(request)

    @worker.handles("memory.cache.stats")
    async def cache_stats(request: bodies.CacheStats, call: Call) -> bodies.CacheFigures:
        return await cache.stats(request)
