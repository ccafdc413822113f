"""Binds the operations on key-value entries and facts to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import memory as bodies
from workers.memory.store import MemoryStore


def register(worker: Worker, store: MemoryStore) -> None:
    """Make `worker` answer every operation of the store."""

    @worker.handles("memory.kv.get")
    async def kv_get(request: bodies.KvGet, call: Call) -> bodies.KvEntry:
        return await store.kv_get(request)

    @worker.handles("memory.kv.set")
    async def kv_set(request: bodies.KvSet, call: Call) -> bodies.KvVersion:
        return await store.kv_set(request, call.id)

    @worker.handles("memory.kv.delete")
    async def kv_delete(request: bodies.KvDelete, call: Call) -> bodies.KvDeleted:
        return await store.kv_delete(request, call.id)

    @worker.handles("memory.kv.list")
    async def kv_list(request: bodies.KvList, call: Call) -> bodies.KvPage:
        return await store.kv_list(request)

    @worker.handles("memory.remember")
    async def remember(request: bodies.Remember, call: Call) -> bodies.Fact:
        return await store.remember(request, call.id)

    @worker.handles("memory.recall")
    async def recall(request: bodies.Recall, call: Call) -> bodies.Fact:
        return await store.recall(request, call.id)

    @worker.handles("memory.find")
    async def find(request: bodies.Find, call: Call) -> bodies.FactPage:
        return await store.find(request)

    @worker.handles("memory.forget")
    async def forget(request: bodies.Forget, call: Call) -> bodies.Forgotten:
        return await store.forget(request, call.id)

    @worker.handles("memory.all")
    async def all_facts(request: bodies.AllFacts, call: Call) -> bodies.FactPage:
        return await store.all(request)

    @worker.handles("memory.prompt")
    async def prompt(request: bodies.Prompt, call: Call) -> bodies.PromptAddition:
        return await store.prompt(request)
