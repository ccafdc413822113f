"""Binds the operations on memories, documents and experiences to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import items as bodies
from workers.memory.items.documents import Documents
from workers.memory.items.experiences import Experiences
from workers.memory.items.memories import Memories


def register(worker: Worker, memories: Memories, documents: Documents, experiences: Experiences) -> None:
    """Make `worker` answer every operation of these parts."""
    _register_memories(worker, memories)
    _register_links(worker, memories)
    _register_documents(worker, documents)
    _register_experiences(worker, experiences)


def _register_memories(worker: Worker, memories: Memories) -> None:
    @worker.handles("memory.add")
    async def add(request: bodies.MemoryAdd, call: Call) -> bodies.MemoryAdded:
        return await memories.add(request, call.id)

    @worker.handles("memory.add_many")
    async def add_many(request: bodies.MemoryAddMany, call: Call) -> bodies.MemoriesAdded:
        return await memories.add_many(request, call.id)

    @worker.handles("memory.get")
    async def get(request: bodies.MemoryGet, call: Call) -> bodies.Memory:
        return await memories.get(request, call.id)

    @worker.handles("memory.get_many")
    async def get_many(request: bodies.MemoryGetMany, call: Call) -> bodies.Memories:
        return await memories.get_many(request, call.id)

    @worker.handles("memory.update")
    async def update(request: bodies.MemoryUpdate, call: Call) -> bodies.Memory:
        return await memories.update(request, call.id)

    @worker.handles("memory.delete")
    async def delete(request: bodies.MemoryDelete, call: Call) -> bodies.MemoryDeleted:
        return await memories.delete(request, call.id)

    @worker.handles("memory.list")
    async def list_memories(request: bodies.MemoryList, call: Call) -> bodies.Memories:
        return await memories.list(request)

    @worker.handles("memory.children")
    async def children(request: bodies.MemoryChildren, call: Call) -> bodies.Memories:
        return await memories.children(request)

    @worker.handles("memory.reinforce")
    async def reinforce(request: bodies.MemoryReinforce, call: Call) -> bodies.Memory:
        return await memories.reinforce(request, call.id)

    @worker.handles("memory.promote")
    async def promote(request: bodies.MemoryPromote, call: Call) -> bodies.Memory:
        return await memories.promote(request, call.id)

    @worker.handles("memory.decay")
    async def decay(request: bodies.MemoryDecay, call: Call) -> bodies.CycleReport:
        return await memories.decay(request, call.id)


def _register_links(worker: Worker, memories: Memories) -> None:
    @worker.handles("memory.link")
    async def link(request: bodies.MemoryLink, call: Call) -> bodies.Linked:
        return await memories.link(request, call.id)

    @worker.handles("memory.unlink")
    async def unlink(request: bodies.MemoryUnlink, call: Call) -> bodies.Unlinked:
        return await memories.unlink(request, call.id)

    @worker.handles("memory.related")
    async def related(request: bodies.MemoryRelated, call: Call) -> bodies.RelatedMemories:
        return await memories.related(request)

    @worker.handles("memory.group.create")
    async def group_create(request: bodies.GroupCreate, call: Call) -> bodies.Group:
        return await memories.group_create(request, call.id)

    @worker.handles("memory.group.list")
    async def group_list(request: bodies.GroupList, call: Call) -> bodies.Groups:
        return await memories.group_list(request)

    @worker.handles("memory.group.add")
    async def group_add(request: bodies.GroupAdd, call: Call) -> bodies.GroupChanged:
        return await memories.group_add(request, call.id)

    @worker.handles("memory.group.remove")
    async def group_remove(request: bodies.GroupRemove, call: Call) -> bodies.GroupChanged:
        return await memories.group_remove(request, call.id)

    @worker.handles("memory.group.members")
    async def group_members(request: bodies.GroupMembers, call: Call) -> bodies.Memories:
        return await memories.group_members(request)

    @worker.handles("memory.group.delete")
    async def group_delete(request: bodies.GroupDelete, call: Call) -> bodies.GroupChanged:
        return await memories.group_delete(request, call.id)


def _register_documents(worker: Worker, documents: Documents) -> None:
    @worker.handles("memory.doc.put")
    async def doc_put(request: bodies.DocPut, call: Call) -> bodies.DocInfo:
        return await documents.put(request, call.id)

    @worker.handles("memory.doc.get")
    async def doc_get(request: bodies.DocGet, call: Call) -> bodies.Document:
        return await documents.get(request)

    @worker.handles("memory.doc.list")
    async def doc_list(request: bodies.DocList, call: Call) -> bodies.DocPage:
        return await documents.list(request)

    @worker.handles("memory.doc.delete")
    async def doc_delete(request: bodies.DocDelete, call: Call) -> bodies.DocDeleted:
        return await documents.delete(request, call.id)


def _register_experiences(worker: Worker, experiences: Experiences) -> None:
    @worker.handles("memory.experience.record")
    async def experience_record(request: bodies.ExperienceRecord, call: Call) -> bodies.Experience:
        return await experiences.record(request, call.id)

    @worker.handles("memory.experience.get")
    async def experience_get(request: bodies.ExperienceGet, call: Call) -> bodies.Experience:
        return await experiences.get(request, call.id)

    @worker.handles("memory.experience.list")
    async def experience_list(request: bodies.ExperienceList, call: Call) -> bodies.Experiences:
        return await experiences.list(request, call.id)

    @worker.handles("memory.experience.stats")
    async def experience_stats(request: bodies.ExperienceStats, call: Call) -> bodies.ExperienceTotals:
        return await experiences.stats(request)
