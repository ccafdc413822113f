"""Binds `memory.search` to the worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import search as bodies
from workers.memory.search.pipeline import Searcher


def register(worker: Worker, searcher: Searcher) -> None:
    """Make `worker` answer `memory.search`."""

    @worker.handles("memory.search")
    async def search(request: bodies.Search, call: Call) -> bodies.SearchReply:
        return await searcher.search(request)
