"""Memories, relations, groups and the life cycle against a plain in-memory model, in any order hypothesis can think of."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schemas.bodies import items as bodies
from schemas.errors import BadRequest, Conflict, NotFound, Unprocessable
from workers.memory.items.memories import Memories
from workers.memory.outcome import Event
from workers.memory.records import Records

Place = tuple[str, str]

# Few ids, so that what hangs together by parents and relations meets often.
IDS = st.sampled_from(["a", "a", "a", "b", "b", "c", "d", "é\0%"])
NAMESPACES = st.sampled_from(["memory"] * 6 + ["other"])
KINDS = st.sampled_from(["about", "about", "after"])
LONG = "A long walk by the sea. " * 12
CONTENTS = st.sampled_from(["tea", LONG, "wörter\0", "%' OR 1=1 --", " "])
TAGS = st.lists(st.sampled_from(["x", "y", "z"]), max_size=3)
METADATA = st.dictionaries(st.sampled_from(["k", "l"]), st.integers(0, 3), max_size=2)
IMPORTANCES = st.sampled_from([0.0, 0.25, 0.5, 1.0])
TIERS = st.sampled_from(["short", "medium", "long"])
TTLS = st.sampled_from([None, None, 1.0, 2.5])
# The life cycle as docs/memories.md tells it: loss of importance per day of age at each full hour, and the importance
# below which a memory leaves its tier.
LOSS = {"short": 0.1, "medium": 0.05}
LEAVES_BELOW = {"short": 0.4, "medium": 0.2}
HOUR_S = 3_600.0
ABOVE = {"short": "medium", "medium": "long", "long": "long"}


@dataclass(frozen=True)
class Model:
    """What the model knows of a memory."""

    content: str
    version: int
    order: int
    created_at: float
    last_accessed_at: float
    tier: str = "short"
    importance: float = 0.5
    access_count: int = 0
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    parent_id: str | None = None
    expires_at: float | None = None
    type: str = "general"


def model_of(memory: bodies.Memory, order: int) -> Model:
    """A memory as the model would know it."""
    return Model(
        content=memory.content,
        version=memory.version,
        order=order,
        created_at=memory.created_at,
        last_accessed_at=memory.last_accessed_at,
        tier=memory.tier,
        importance=memory.importance,
        access_count=memory.access_count,
        tags=tuple(memory.tags),
        metadata=memory.metadata,
        parent_id=memory.parent_id,
        expires_at=memory.expires_at,
        type=memory.type,
    )


@dataclass(frozen=True)
class Plan:
    """What one run of the life cycle does to one memory. sources: what is consolidated with it, None for nothing."""

    place: Place
    before: Model
    after: Model
    sources: set[str] | None
    is_summarised: bool


class MemoryMachine(RuleBasedStateMachine):
    """The service's memories and the model take the same steps; after each they must hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="memory-items-"))
        self.now = 1_000.0
        self.memories: dict[Place, Model] = {}
        self.relations: dict[tuple[str, str, str, str], tuple[float, float]] = {}
        self.groups: dict[int, tuple[str, list[str]]] = {}
        self.highest: dict[Place, int] = {}
        # When the importance of each was last set, by a caller or by the life cycle.
        self.aged_at: dict[Place, float] = {}
        self.events: list[Event] = []
        self.made = 0
        self.last_write: tuple[Callable[[Any, bytes], Any], Any, bytes, Any] | None = None
        self.runner = asyncio.Runner()
        self.open()

    def open(self) -> None:
        """The memories on this example's file."""
        self.records = self.runner.run(
            Records.open(self.folder / "memory.db", readers=1, on_committed=self.events.extend, now=lambda: self.now)
        )
        self.service = Memories(self.records)

    def teardown(self) -> None:
        """The full-text index agrees with its chunks; end the threads and remove the file."""
        self.run(self.records.write(check_full_text))
        self.run(self.records.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def run(self, work: Any) -> Any:
        """Wait for a coroutine."""
        return self.runner.run(work)

    # The model ----------------------------------------------------------------------------------------------------

    def live(self, ns: str) -> dict[str, Model]:
        """The model's memories of a namespace, in the order of adding."""
        self.forget_expired()
        found = [(memory_id, memory) for (space, memory_id), memory in self.memories.items() if space == ns]
        return dict(sorted(found, key=lambda item: item[1].order))

    def forget_expired(self) -> None:
        """Drop what has expired, with all that hangs on it.

        What has expired is gone at once, a consolidation made of it with the next sweep: so that comes now.
        """
        count = len(self.memories)
        expired = [
            place
            for place, memory in self.memories.items()
            if memory.expires_at is not None and memory.expires_at <= self.now
        ]
        for place in expired:
            self.drop(*place)
        if count - len(self.memories) > len(expired):
            self.run(self.service.sweep(self.now))

    def drop(self, ns: str, memory_id: str) -> None:
        """Take a memory out of the model, with the untouched consolidations that quote it."""
        if self.memories.pop((ns, memory_id), None) is None:
            return
        for place, other in list(self.memories.items()):
            is_quoted = memory_id in other.metadata.get("consolidated_from", [])
            if place[0] == ns and is_quoted and other.version == 1 and self.leads_into(ns, memory_id, place[1]):
                self.drop(*place)
        for name in [name for name in self.relations if name[0] == ns and memory_id in (name[1], name[3])]:
            del self.relations[name]
        for space, members in self.groups.values():
            if space == ns and memory_id in members:
                members.remove(memory_id)

    def leads_into(self, ns: str, memory_id: str, into: str | None = None) -> bool:
        """Whether a consolidation, this one or any, was made of a memory."""
        return any(
            name[:3] == (ns, memory_id, "consolidated_into") and into in (None, name[3]) for name in self.relations
        )

    def below(self, ns: str, memory_id: str) -> list[str]:
        """Ids of everything under a memory."""
        found: list[str] = []
        waiting = [memory_id]
        while waiting:
            above = waiting.pop()
            nearer = [child for child, memory in self.live(ns).items() if memory.parent_id == above]
            waiting += [child for child in nearer if child not in found]
            found += [child for child in nearer if child not in found]
        return found

    def makes_a_circle(self, ns: str, memory_id: str, parent_id: str | None) -> bool:
        """Whether a memory would become its own ancestor."""
        return parent_id is not None and (parent_id == memory_id or parent_id in self.below(ns, memory_id))

    def keep(self, ns: str, memory_id: str, item: bodies.NewMemory, version: int | None) -> None:
        """Put an added memory into the model."""
        existing = self.live(ns).get(memory_id)
        self.made += 1
        seen = self.highest.get((ns, memory_id), 0)
        if version is None:
            version = self.run(self.peek(ns, memory_id)).version
        assert version > seen, "a version once seen must not come again"
        self.highest[ns, memory_id] = version
        self.aged_at[ns, memory_id] = self.now
        self.memories[ns, memory_id] = Model(
            content=item.content,
            version=version,
            order=self.made if existing is None else existing.order,
            created_at=self.now,
            last_accessed_at=self.now,
            tier=item.tier,
            importance=item.importance,
            tags=tuple(dict.fromkeys(item.tags)),
            metadata=item.metadata,
            parent_id=item.parent_id,
            expires_at=None if item.ttl_s is None else self.now + item.ttl_s,
        )

    def change(self, ns: str, memory_id: str, version: int, **fields: Any) -> None:
        """Change a memory of the model by one write."""
        before = self.memories[ns, memory_id]
        assert version == before.version + 1
        self.memories[ns, memory_id] = replace(before, version=version, **fields)
        self.highest[ns, memory_id] = version

    async def peek(self, ns: str, memory_id: str) -> bodies.Memory:
        """A memory, without counting that."""
        return await self.service.get(bodies.MemoryGet(id=memory_id, ns=ns, touch=False), os.urandom(16))

    def write(self, method: Callable[[Any, bytes], Any], request: Any) -> Any:
        """Make a write under a new id and remember it."""
        request_id = os.urandom(16)
        reply = self.run(method(request, request_id))
        self.last_write = (method, request, request_id, reply)
        return reply

    @initialize(count=st.integers(0, 6), importance=st.sampled_from([0.25, 0.5]), content=CONTENTS, tags=TAGS)
    def begin_with_a_family(self, count: int, importance: float, content: str, tags: list[str]) -> None:
        """Memories under one parent, two of them in a group: few examples would come by them."""
        for memory_id in ("a", "b", "c", "d", None, None)[:count]:
            self.add(
                ns="memory",
                memory_id=memory_id,
                overwrite=False,
                content=content,
                tags=tags,
                metadata={},
                parent_id="p",
                importance=importance,
                tier="short",
                ttl_s=None,
            )
        self.create_group(ns="memory")
        for memory_id in ("a", "b"):
            self.change_group(ns="memory", group_id=1, memory_id=memory_id, remove=False)

    # Steps --------------------------------------------------------------------------------------------------------

    @rule(
        ns=NAMESPACES,
        memory_id=st.none() | IDS,
        content=CONTENTS,
        tags=TAGS,
        metadata=METADATA,
        parent_id=st.none() | IDS,
        importance=IMPORTANCES,
        tier=TIERS,
        ttl_s=TTLS,
        overwrite=st.booleans(),
    )
    def add(self, ns: str, memory_id: str | None, overwrite: bool, **fields: Any) -> None:
        """One memory: new, overwritten, refused."""
        request = bodies.MemoryAdd(ns=ns, id=memory_id, replace=overwrite, **fields)
        if memory_id is not None and memory_id in self.live(ns) and not overwrite:
            with pytest.raises(Conflict):
                self.run(self.service.add(request, os.urandom(16)))
            return
        if memory_id is not None and self.makes_a_circle(ns, memory_id, request.parent_id):
            with pytest.raises(Unprocessable):
                self.run(self.service.add(request, os.urandom(16)))
            return

        reply = self.write(self.service.add, request)

        self.keep(ns, reply.id, request, reply.version)
        assert reply.expires_at == self.memories[ns, reply.id].expires_at

    @rule(ns=NAMESPACES, ids=st.lists(st.none() | IDS, min_size=1, max_size=3), parent_id=st.none() | IDS, ttl_s=TTLS)
    def add_many(self, ns: str, ids: list[str | None], parent_id: str | None, ttl_s: float | None) -> None:
        """Several memories, all or none."""
        items = [
            bodies.NewMemory(content=f"number {number}", id=memory_id, parent_id=parent_id, ttl_s=ttl_s)
            for number, memory_id in enumerate(ids)
        ]
        request = bodies.MemoryAddMany(items=items, ns=ns)
        given = [memory_id for memory_id in ids if memory_id is not None]
        if len(set(given)) < len(given):
            with pytest.raises(BadRequest):
                self.run(self.service.add_many(request, os.urandom(16)))
            return
        if any(memory_id in self.live(ns) for memory_id in given):
            with pytest.raises((Conflict, Unprocessable)):
                self.run(self.service.add_many(request, os.urandom(16)))
            return
        # All have one parent, so a circle is closed by one that lies above it, whatever else is added with it.
        if any(self.makes_a_circle(ns, memory_id, parent_id) for memory_id in given):
            with pytest.raises(Unprocessable):
                self.run(self.service.add_many(request, os.urandom(16)))
            return

        reply = self.write(self.service.add_many, request)

        for memory_id, item in zip(reply.ids, items, strict=True):
            self.keep(ns, memory_id, item, None)

    @rule(ns=NAMESPACES, memory_id=IDS, touch=st.booleans())
    def get(self, ns: str, memory_id: str, touch: bool) -> None:
        """One memory or not found; the count is in the reply."""
        request = bodies.MemoryGet(id=memory_id, ns=ns, touch=touch)
        if memory_id not in self.live(ns):
            with pytest.raises(NotFound):
                self.run(self.service.get(request, os.urandom(16)))
            return
        if touch:
            self.count_access(ns, memory_id)

        found = self.run(self.service.get(request, os.urandom(16)))

        expected = self.memories[ns, memory_id]
        assert model_of(found, expected.order) == expected

    @rule(ns=NAMESPACES, ids=st.lists(IDS, min_size=1, max_size=4), touch=st.booleans())
    def get_many(self, ns: str, ids: list[str], touch: bool) -> None:
        """Several in the order asked for, each once."""
        asked = list(dict.fromkeys(ids))
        there = [memory_id for memory_id in asked if memory_id in self.live(ns)]
        if touch:
            for memory_id in there:
                self.count_access(ns, memory_id)

        reply = self.run(self.service.get_many(bodies.MemoryGetMany(ids=ids, ns=ns, touch=touch), os.urandom(16)))

        assert reply.next_after is None
        assert reply.missing == [memory_id for memory_id in asked if memory_id not in there]
        self.assert_same(ns, reply.memories, there)

    def count_access(self, ns: str, memory_id: str) -> None:
        """An access in the model."""
        before = self.memories[ns, memory_id]
        self.memories[ns, memory_id] = replace(before, access_count=before.access_count + 1, last_accessed_at=self.now)

    @rule(
        ns=NAMESPACES,
        memory_id=IDS,
        fields=st.fixed_dictionaries(
            {},
            optional={
                "content": CONTENTS,
                "tier": TIERS,
                "importance": IMPORTANCES,
                "tags": TAGS,
                "metadata": METADATA,
                "parent_id": IDS,
                "ttl_s": st.sampled_from([1.0, 2.5]),
            },
        ),
        merge=st.booleans(),
        clear=st.lists(st.sampled_from(["parent_id", "expires_at"]), unique=True, max_size=2),
        version=st.sampled_from(["any", "right", "stale"]),
    )
    def update(self, ns: str, memory_id: str, fields: dict[str, Any], merge: bool, clear: Any, version: str) -> None:
        """Some fields, or refused."""
        before = self.live(ns).get(memory_id)
        actual = before.version if before else 1
        if_version = {"any": None, "right": actual, "stale": actual + 1}[version]
        request = bodies.MemoryUpdate(
            id=memory_id, ns=ns, merge_metadata=merge, clear=clear, if_version=if_version, **fields
        )
        refusal: type[Exception] | None = None
        if before is None:
            refusal = NotFound
        elif version == "stale":
            refusal = Conflict
        elif self.makes_a_circle(ns, memory_id, request.parent_id):
            refusal = Unprocessable
        elif ("parent_id" in fields and "parent_id" in clear) or ("ttl_s" in fields and "expires_at" in clear):
            refusal = BadRequest
        if refusal is not None:
            with pytest.raises(refusal):
                self.run(self.service.update(request, os.urandom(16)))
            return
        assert before is not None

        reply = self.write(self.service.update, request)

        changes = {name: value for name, value in fields.items() if name not in ("ttl_s", "tags", "metadata")}
        changes.update(dict.fromkeys(clear))
        if "tags" in fields:
            changes["tags"] = tuple(dict.fromkeys(fields["tags"]))
        if "metadata" in fields:
            changes["metadata"] = {**(before.metadata if merge else {}), **fields["metadata"]}
        if "ttl_s" in fields:
            changes["expires_at"] = self.now + fields["ttl_s"]
        if "importance" in fields:
            self.aged_at[ns, memory_id] = self.now
        self.leave_rest(ns, memory_id, fields.get("tier"))
        self.change(ns, memory_id, reply.version, **changes)

    @rule(ns=NAMESPACES, memory_id=IDS, factor=st.sampled_from([0.5, 1.2, 100.0]))
    def reinforce(self, ns: str, memory_id: str, factor: float) -> None:
        """Importance times a factor, at most 1."""
        request = bodies.MemoryReinforce(id=memory_id, ns=ns, factor=factor)
        before = self.live(ns).get(memory_id)
        if before is None:
            with pytest.raises(NotFound):
                self.run(self.service.reinforce(request, os.urandom(16)))
            return

        reply = self.write(self.service.reinforce, request)

        self.change(
            ns,
            memory_id,
            reply.version,
            importance=min(1.0, before.importance * factor),
            access_count=before.access_count + 1,
            last_accessed_at=self.now,
        )
        assert reply.importance == self.memories[ns, memory_id].importance

    def leave_rest(self, ns: str, memory_id: str, tier: str | None) -> None:
        """A long memory that is to be of another tier owes nothing for the hours it rested."""
        if self.memories[ns, memory_id].tier == "long" and tier not in (None, "long"):
            self.aged_at[ns, memory_id] = self.now

    @rule(ns=NAMESPACES, memory_id=IDS, tier=st.none() | TIERS)
    def promote(self, ns: str, memory_id: str, tier: Any) -> None:
        """To a tier, or one up."""
        request = bodies.MemoryPromote(id=memory_id, ns=ns, tier=tier)
        before = self.live(ns).get(memory_id)
        if before is None:
            with pytest.raises(NotFound):
                self.run(self.service.promote(request, os.urandom(16)))
            return

        reply = self.write(self.service.promote, request)

        self.leave_rest(ns, memory_id, tier)
        self.change(ns, memory_id, reply.version, tier=tier or ABOVE[before.tier])

    @rule(ns=NAMESPACES, memory_id=IDS, cascade=st.booleans())
    def delete(self, ns: str, memory_id: str, cascade: bool) -> None:
        """One memory, or all below it too."""
        request = bodies.MemoryDelete(id=memory_id, ns=ns, cascade=cascade)
        if memory_id not in self.live(ns):
            with pytest.raises(NotFound):
                self.run(self.service.delete(request, os.urandom(16)))
            return
        doomed = [memory_id, *(self.below(ns, memory_id) if cascade else [])]

        reply = self.write(self.service.delete, request)

        assert reply.deleted == len(doomed)
        for gone in doomed:
            self.drop(ns, gone)

    @rule(
        ns=NAMESPACES,
        parent_id=IDS,
        recursive=st.booleans(),
        by=st.sampled_from(["added", "importance"]),
        order=st.sampled_from(["asc", "desc"]),
        limit=st.none() | st.integers(1, 2),
    )
    def children(self, ns: str, parent_id: str, recursive: bool, by: Any, order: Any, limit: int | None) -> None:
        """What lies under a memory, or under where one was, page by page."""
        there = self.live(ns)
        under = self.below(ns, parent_id) if recursive else [i for i in there if there[i].parent_id == parent_id]

        def place(memory_id: str) -> tuple[float, int]:
            memory = there[memory_id]
            return (memory.importance if by == "importance" else 0.0, memory.order)

        expected = sorted(under, key=place, reverse=order == "desc")
        listed: list[bodies.Memory] = []
        after: int | None = 0
        while after is not None:
            request = bodies.MemoryChildren(
                id=parent_id, ns=ns, recursive=recursive, sort_field=by, sort_order=order, limit=limit, after=after
            )
            page = self.run(self.service.children(request))
            listed += page.memories
            after = page.next_after
        self.assert_same(ns, listed, expected)

    @rule(
        ns=NAMESPACES,
        tier=st.none() | TIERS,
        tag=st.none() | st.sampled_from(["x", "y"]),
        parent_id=st.none() | IDS,
        limit=st.integers(1, 3),
    )
    def list_pages(self, ns: str, tier: Any, tag: str | None, parent_id: str | None, limit: int) -> None:
        """All pages of a listing with filters."""
        expected = [
            memory_id
            for memory_id, memory in self.live(ns).items()
            if (tier is None or memory.tier == tier)
            and (tag is None or tag in memory.tags)
            and (parent_id is None or memory.parent_id == parent_id)
        ]
        listed: list[bodies.Memory] = []
        after: int | None = None
        while True:
            request = bodies.MemoryList(ns=ns, tier=tier, tag=tag, parent_id=parent_id, limit=limit, after=after)
            page = self.run(self.service.list(request))
            listed += page.memories
            after = page.next_after
            if after is None:
                break
        self.assert_same(ns, listed, expected)

    @rule(ns=NAMESPACES, near=IDS, far=IDS, kind=KINDS, strength=IMPORTANCES)
    def link(self, ns: str, near: str, far: str, kind: str, strength: float) -> None:
        """A relation, also to itself and to what does not exist; again it changes the strength."""
        self.forget_expired()
        name = (ns, near, kind, far)
        request = bodies.MemoryLink(source_id=near, target_id=far, kind=kind, strength=strength, ns=ns)

        reply = self.write(self.service.link, request)

        assert reply.is_new == (name not in self.relations)
        created_at = self.relations[name][1] if name in self.relations else self.now
        self.relations[name] = (strength, created_at)
        assert (reply.relation.strength, reply.relation.created_at) == self.relations[name]

    @rule(ns=NAMESPACES, near=IDS, far=IDS, kind=st.none() | KINDS)
    def unlink(self, ns: str, near: str, far: str, kind: str | None) -> None:
        """One kind, or all of them."""
        self.forget_expired()
        doomed = [
            name
            for name in self.relations
            if (name[0], name[1], name[3]) == (ns, near, far) and kind in (None, name[2])
        ]
        request = bodies.MemoryUnlink(source_id=near, target_id=far, kind=kind, ns=ns)

        reply = self.write(self.service.unlink, request)

        assert reply.removed == len(doomed)
        for name in doomed:
            del self.relations[name]

    @rule(
        ns=NAMESPACES,
        memory_id=IDS,
        kind=st.none() | KINDS,
        direction=st.sampled_from(["out", "in", "both"]),
        depth=st.integers(1, 4),
        limit=st.integers(1, 3),
    )
    def related(self, ns: str, memory_id: str, kind: str | None, direction: Any, depth: int, limit: int) -> None:
        """Relations by distance and strength, in circles too."""
        listed: list[bodies.RelatedMemory] = []
        after: int | None = 0
        while after is not None:
            request = bodies.MemoryRelated(
                id=memory_id, ns=ns, kind=kind, direction=direction, depth=depth, limit=limit, after=after
            )
            page = self.run(self.service.related(request))
            listed += page.related
            after = page.next_after
        told = [(one.relation.source_id, one.relation.kind, one.relation.target_id, one.depth) for one in listed]
        assert told == list(self.walk(ns, memory_id, kind, direction, depth))
        for one in listed:
            if one.memory is not None:
                self.assert_same(ns, [one.memory], [one.memory.id])
            else:
                there = self.live(ns)
                assert one.relation.source_id not in there or one.relation.target_id not in there

    def walk(
        self, ns: str, start: str, kind: str | None, direction: str, depth: int
    ) -> Iterator[tuple[str, str, str, int]]:
        """The model's relations in the order that `related` promises."""
        self.forget_expired()
        told: set[tuple[str, str, str]] = set()
        reached = [start]
        layer = [start]
        for steps in range(1, depth + 1):
            following: list[str] = []
            for near in layer:
                names = [
                    (-strength, created_at, middle, source, target)
                    for (space, source, middle, target), (strength, created_at) in self.relations.items()
                    if space == ns
                    and kind in (None, middle)
                    and ((source == near and direction != "in") or (target == near and direction != "out"))
                ]
                for _, _, middle, source, target in sorted(names):
                    if (source, middle, target) not in told:
                        told.add((source, middle, target))
                        yield source, middle, target, steps
                        far = target if source == near and direction != "in" else source
                        if far not in reached:
                            reached.append(far)
                            following.append(far)
            layer = following

    # Groups -------------------------------------------------------------------------------------------------------

    @rule(ns=NAMESPACES)
    @precondition(lambda self: len(self.groups) < 3)
    def create_group(self, ns: str) -> None:
        """A new group, empty."""
        group = self.write(self.service.group_create, bodies.GroupCreate(name="g", ns=ns))
        assert group.group_id not in self.groups
        self.groups[group.group_id] = (ns, [])

    @rule(ns=NAMESPACES, group_id=st.integers(1, 4), memory_id=IDS, remove=st.booleans())
    def change_group(self, ns: str, group_id: int, memory_id: str, remove: bool) -> None:
        """In or out, once."""
        self.forget_expired()
        space, members = self.groups.get(group_id, ("", []))
        change = self.service.group_remove if remove else self.service.group_add
        body = bodies.GroupRemove if remove else bodies.GroupAdd
        request = body(group_id=group_id, memory_id=memory_id, ns=ns)
        if space != ns:
            with pytest.raises(NotFound):
                self.run(change(request, os.urandom(16)))  # type: ignore[arg-type]
            return

        reply = self.write(change, request)  # type: ignore[arg-type]

        assert reply.changed == ((memory_id in members) == remove)
        if remove and memory_id in members:
            members.remove(memory_id)
        if not remove and memory_id not in members:
            members.append(memory_id)

    @rule(ns=NAMESPACES, group_id=st.integers(1, 4))
    def delete_group(self, ns: str, group_id: int) -> None:
        """Gone, its memories not."""
        is_there = self.groups.get(group_id, ("", []))[0] == ns
        reply = self.write(self.service.group_delete, bodies.GroupDelete(group_id=group_id, ns=ns))
        assert reply.changed == is_there
        if is_there:
            del self.groups[group_id]

    @rule(ns=NAMESPACES, limit=st.integers(1, 2))
    def look_at_groups(self, ns: str, limit: int) -> None:
        """Listing, counts and members that exist."""
        there = self.live(ns)
        expected = {
            group_id: [memory_id for memory_id in members if memory_id in there]
            for group_id, (space, members) in sorted(self.groups.items())
            if space == ns
        }
        counts: dict[int, int] = {}
        after: int | None = 0
        while after is not None:
            page = self.run(self.service.group_list(bodies.GroupList(ns=ns, limit=limit, after=after)))
            counts.update((group.group_id, group.members) for group in page.groups)
            after = page.next_after
        assert counts == {group_id: len(members) for group_id, members in expected.items()}
        for group_id, members in expected.items():
            listed: list[bodies.Memory] = []
            after = 0
            while after is not None:
                request = bodies.GroupMembers(group_id=group_id, ns=ns, limit=limit, after=after)
                found = self.run(self.service.group_members(request))
                listed += found.memories
                after = found.next_after
            self.assert_same(ns, listed, members)

    # The life cycle -----------------------------------------------------------------------------------------------

    @rule(ns=st.none() | NAMESPACES, hours=st.sampled_from([0, 1, 5, 30, 30]), dry_run=st.booleans())
    def age(self, ns: str | None, hours: int, dry_run: bool) -> None:
        """Hours pass and the life cycle runs, or tells what it would do."""
        self.now += hours * HOUR_S
        # A reply is kept for an hour only.
        self.last_write = None
        plans = self.plans(ns)

        reply = self.run(self.service.decay(bodies.MemoryDecay(ns=ns, dry_run=dry_run), os.urandom(16)))

        assert (reply.looked_at, reply.decayed, reply.promoted, reply.consolidated, reply.summarised) == (
            len(plans),
            sum(plan.after.importance != plan.before.importance for plan in plans),
            sum(plan.after.tier != plan.before.tier for plan in plans),
            sum(plan.sources is not None for plan in plans),
            sum(plan.is_summarised for plan in plans),
        )
        if not dry_run:
            for plan in plans:
                self.carry_out(plan)

    @rule()
    @precondition(lambda self: self.now < 2 * 86_400.0)
    def age_for_a_day(self) -> None:
        """What short memories leave their tier in; early, while there is still something to age."""
        self.age(ns=None, hours=30, dry_run=False)

    def plans(self, only: str | None) -> list[Plan]:
        """What the life cycle is to do now, in its order."""
        plans: list[Plan] = []
        taken: set[Place] = set()
        last_hour = self.now // HOUR_S * HOUR_S
        for tier in LOSS:
            # All namespaces together, in the order of adding.
            self.forget_expired()
            for place, memory in sorted(self.memories.items(), key=lambda item: item[1].order):
                if memory.tier != tier or self.aged_at[place] >= last_hour or only not in (None, place[0]):
                    continue
                after, left_short = self.aged(memory, self.aged_at[place])
                sources = self.sources(place, memory, taken) if left_short else None
                is_long = len(memory.content) > 200 and "summary" not in memory.metadata
                is_summarised = after.tier != tier and sources is None and is_long
                plans.append(Plan(place, memory, after, sources, is_summarised))
        return plans

    def aged(self, memory: Model, since: float) -> tuple[Model, bool]:
        """A memory after every full hour since then, and whether it left the short tier."""
        tier, importance, left_short = memory.tier, memory.importance, False
        hour = (since // HOUR_S + 1) * HOUR_S
        while hour <= self.now and tier in LOSS:
            importance *= 1.0 - LOSS[tier] * ((hour - memory.created_at) / 86_400.0)
            importance = max(0.0, importance)
            if importance < LEAVES_BELOW[tier]:
                left_short = left_short or tier == "short"
                tier = ABOVE[tier]
            hour += HOUR_S
        return replace(memory, tier=tier, importance=importance), left_short

    def sources(self, place: Place, memory: Model, taken: set[Place]) -> set[str] | None:
        """What a memory is consolidated with, itself among it; None where too little is near."""

        def is_free(memory_id: str) -> bool:
            is_made = self.memories[ns, memory_id].type == "consolidated"
            return not is_made and (ns, memory_id) not in taken and not self.leads_into(ns, memory_id)

        ns, itself = place
        there = self.live(ns)
        near = {i for i, other in there.items() if memory.parent_id is not None and other.parent_id == memory.parent_id}
        near |= {name[3] for name in self.relations if name[:2] == place and name[3] in there}
        free = {memory_id for memory_id in near - {itself} if is_free(memory_id)}
        if not is_free(itself) or len(free) < 3:
            return None
        taken.update((ns, memory_id) for memory_id in (itself, *free))
        return {itself, *free}

    def carry_out(self, plan: Plan) -> None:
        """Age a memory of the model; what is new with it is taken from the service, and looked at."""
        ns, memory_id = plan.place
        self.memories[plan.place] = plan.after
        self.aged_at[plan.place] = self.now
        if plan.is_summarised:
            summary = self.run(self.peek(ns, memory_id)).metadata["summary"]
            assert 0 < len(summary) <= 200
            self.memories[plan.place] = replace(plan.after, metadata={**plan.after.metadata, "summary": summary})
        if plan.sources is None:
            return
        (leads,) = self.run(
            self.service.related(bodies.MemoryRelated(id=memory_id, ns=ns, kind="consolidated_into"))
        ).related
        made = leads.memory
        quoted = made.metadata["consolidated_from"]
        assert (quoted[0], set(quoted), len(quoted)) == (memory_id, plan.sources, len(plan.sources))
        assert made.metadata["consolidation_date"] == self.now
        assert 0 < len(made.content) <= 1_000
        self.made += 1
        self.memories[ns, made.id] = Model(
            content=made.content,
            version=1,
            order=self.made,
            created_at=self.now,
            last_accessed_at=self.now,
            tier="medium",
            importance=0.7,
            tags=tuple(sorted(set.intersection(*(set(self.memories[ns, source].tags) for source in quoted)))),
            metadata=made.metadata,
            parent_id=plan.after.parent_id,
            type="consolidated",
        )
        self.aged_at[ns, made.id] = self.now
        for source in quoted:
            self.relations[ns, source, "consolidated_into", made.id] = (1.0, self.now)

    @rule(what=st.sampled_from(["edit", "delete", "delete what it quotes"]))
    @precondition(lambda self: any(memory.type == "consolidated" for memory in self.memories.values()))
    def change_consolidation(self, what: str) -> None:
        """One that was edited is its editor's own, and stays when what it quotes goes."""
        self.forget_expired()
        made = [(place, memory) for place, memory in self.memories.items() if memory.type == "consolidated"]
        if not made:
            return
        (ns, memory_id), memory = made[0]
        if what == "edit":
            self.update(ns=ns, memory_id=memory_id, fields={"tier": "long"}, merge=False, clear=[], version="any")
        elif what == "delete":
            self.delete(ns=ns, memory_id=memory_id, cascade=False)
        else:
            quoted = [name for name in memory.metadata["consolidated_from"] if (ns, name) in self.memories]
            for name in quoted[:1]:
                self.delete(ns=ns, memory_id=name, cascade=False)

    # Time and failure ------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        """What has expired leaves the file."""
        self.run(self.service.sweep(self.now))
        self.forget_expired()
        stored = self.run(
            self.records.read(lambda connection: connection.execute("SELECT count(*) FROM memories").fetchone()[0])
        )
        assert stored == len(self.memories)

    @rule()
    def restart(self) -> None:
        """Close and open."""
        self.run(self.records.close())
        self.open()
        self.last_write = None

    @rule()
    def repeat_last_write(self) -> None:
        """The same request id again: the same reply where it is kept, and nothing changes."""
        if self.last_write is None:
            return
        method, request, request_id, reply = self.last_write
        heard = len(self.events)
        if isinstance(reply, bodies.Memory):
            if reply.id in self.live(reply.ns):
                expected = self.memories[reply.ns, reply.id]
                assert model_of(self.run(method(request, request_id)), expected.order) == expected
        else:
            assert self.run(method(request, request_id)) == reply
        assert len(self.events) == heard

    # What always holds --------------------------------------------------------------------------------------------

    def assert_same(self, ns: str, found: Sequence[bodies.Memory], expected: Sequence[str]) -> None:
        """These are the model's memories, in this order."""
        assert [memory.id for memory in found] == list(expected)
        for memory in found:
            assert memory.ns == ns
            assert model_of(memory, self.memories[ns, memory.id].order) == self.memories[ns, memory.id]

    @invariant()
    def everything_agrees(self) -> None:
        """Each namespace lists exactly what the model holds."""
        for ns in ("memory", "other"):
            page = self.run(self.service.list(bodies.MemoryList(ns=ns)))
            self.assert_same(ns, page.memories, list(self.live(ns)))

    @invariant()
    def events_and_chunks_tell_the_same_story(self) -> None:
        """Replaying the events gives the versions stored; chunks, tags and the outbox belong to what is stored."""
        self.forget_expired()
        stored = self.run(self.records.read(read_stored))
        told: dict[Place, int] = {}
        for event in self.events:
            change: Any = event.body
            if change.action in ("add", "update", "reinforce", "promote", "consolidate"):
                told[change.ns, change.key] = change.version
            elif change.action in ("delete", "expire"):
                assert told.pop((change.ns, change.key)) == change.version
        assert told == stored.versions
        assert stored.chunked == {place for place, content in stored.contents.items() if content.strip()}
        assert stored.chunk_texts == [content.strip() for content in stored.contents.values() if content.strip()]
        assert stored.waiting == stored.chunk_ids
        assert stored.tagged <= set(stored.versions)
        # What hangs on an expired memory goes with it when it is swept.
        expired = {place for place, expires_at in stored.expiries.items() if expires_at <= self.now}
        relations = {name for name in stored.relations if not {name[:2], (name[0], name[3])} & expired}
        assert relations == set(self.relations)
        members = [(ns, *member) for ns, *member in stored.members if (ns, member[1]) not in expired]
        assert members == [
            (ns, group_id, memory_id) for group_id, (ns, ids) in sorted(self.groups.items()) for memory_id in ids
        ]


@dataclass(frozen=True)
class Stored:
    """What the tables hold, whoever may see it."""

    versions: dict[Place, int]
    contents: dict[Place, str]
    chunked: set[Place]
    chunk_texts: list[str]
    chunk_ids: set[int]
    waiting: set[int]
    tagged: set[Place]
    expiries: dict[Place, float]
    relations: set[tuple[str, str, str, str]]
    members: list[tuple[str, int, str]]


def read_stored(connection: sqlite3.Connection) -> Stored:
    """The tables behind the memories."""
    memories = connection.execute("SELECT ns, id, version, content FROM memories ORDER BY ns, id").fetchall()
    chunks = connection.execute("SELECT ns, source_id, id, text FROM chunks ORDER BY ns, source_id").fetchall()
    waiting: set[int] = set()
    for chunk_id, action in connection.execute("SELECT chunk_id, action FROM outbox ORDER BY sequence"):
        if action == "embed":
            waiting.add(chunk_id)
        else:
            waiting.remove(chunk_id)
    return Stored(
        versions={(ns, memory_id): version for ns, memory_id, version, _ in memories},
        contents={(ns, memory_id): content for ns, memory_id, _, content in memories},
        chunked={(ns, source_id) for ns, source_id, _, _ in chunks},
        chunk_texts=[text for _, _, _, text in chunks],
        chunk_ids={chunk_id for _, _, chunk_id, _ in chunks},
        waiting=waiting,
        tagged={(ns, memory_id) for ns, memory_id in connection.execute("SELECT ns, id FROM memory_tags")},
        expiries={
            (ns, memory_id): expires_at
            for ns, memory_id, expires_at in connection.execute(
                "SELECT ns, id, expires_at FROM memories WHERE expires_at IS NOT NULL"
            )
        },
        relations=set(connection.execute("SELECT ns, source_id, kind, target_id FROM relations")),
        members=connection.execute(
            "SELECT ns, group_id, memory_id FROM group_members ORDER BY group_id, sequence"
        ).fetchall(),
    )


def check_full_text(connection: sqlite3.Connection, now: float) -> Any:
    """Raise where the full-text index disagrees with the chunks."""
    from workers.memory.outcome import Outcome

    connection.execute("INSERT INTO chunks_text (chunks_text, rank) VALUES ('integrity-check', 1)")
    return Outcome(None, [])


class TestMemoriesAgainstModel(MemoryMachine.TestCase):  # type: ignore[misc]
    """Runs the machine: every operation on memories, relations and groups agrees with plain dicts."""

    settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
