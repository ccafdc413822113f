"""Memories on a real file: what the differential test does not reach, from bad input to very deep trees."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.bodies import items as bodies
from schemas.errors import BadRequest, Conflict, NotFound, TooLarge, Unprocessable
from tests.items_bench import HOUR_S, START_S, Bench, bench
from workers.memory.items import removal
from workers.memory.outcome import Outcome
from workers.memory.sessions import suggestions

# Text that means something to SQL, to FTS5, to LIKE or to C.
HOSTILE = [
    "'; DROP TABLE memories; --",
    '" OR "1"="1',
    "% _ \\ * ? [a-z]",
    'NEAR("a" "b", 2) AND text: NOT ^x*',
    "null\0byte",
    "ünï 🙂 \u202e\ufeff\U0010ffff",
    "\n\r\t",
]


# Texts and limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
async def test_every_text_field_holds_any_unicode_text(tmp_path: Path, text: str) -> None:
    """Nothing in a text is syntax to anybody, and it comes back as it was."""
    async with bench(tmp_path) as at:
        memory_id = await at.add(
            text, text, type=text, tags=[text], metadata={text: [text]}, parent_id=f"{text}p", speaker=text
        )
        await at.link(text, f"{text}2", kind=text)
        found = await at.get(text)
        listed = await at.memories.list(bodies.MemoryList(type=text, tag=text, parent_id=f"{text}p"))
        related = await at.memories.related(bodies.MemoryRelated(id=text, kind=text))

        assert await at.delete(text) == 1

    assert (memory_id, found.content, found.type, found.speaker) == (text, text, text, text)
    assert (found.tags, found.metadata, found.parent_id) == ([text], {text: [text]}, f"{text}p")
    assert listed.memories == [found]
    assert [one.relation.target_id for one in related.related] == [f"{text}2"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"content": "ab\ud800"}, "content"),
        ({"type": "\ud800"}, "type"),
        ({"id": "\udfff"}, "id"),
        ({"parent_id": "\udfff"}, "parent_id"),
        ({"tags": ["fine", "\ud800"]}, "tags[1]"),
        ({"metadata": {"a": [1, {"b": "ä\ud800"}]}}, "metadata.a[1].b"),
        ({"metadata": {"x": {"\ud800": 1}}}, "metadata.x (a key)"),
    ],
)
async def test_a_lone_surrogate_is_refused_wherever_it_stands(
    tmp_path: Path, fields: dict[str, Any], path: str
) -> None:
    """The error names the way to it; in one item of many, the item too."""
    async with bench(tmp_path) as at:
        with pytest.raises(BadRequest, match="lone surrogate") as alone:
            await at.add(**{"content": "c", **fields})
        items = [bodies.NewMemory(content="c"), bodies.NewMemory(**{"content": "c", **fields})]
        with pytest.raises(BadRequest, match="lone surrogate") as among:
            await at.memories.add_many(bodies.MemoryAddMany(items=items), os.urandom(16))

        assert await at.all() == []
    assert alone.value.details["field"] == path
    assert among.value.details["field"] == f"items[1].{path}"


async def test_metadata_that_msgpack_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    """Too deep, too large a number: the caller's mistake, not the service's."""
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    async with bench(tmp_path) as at:
        for metadata in ({"a": deep}, {"a": 2**70}):
            with pytest.raises(BadRequest, match="metadata"):
                await at.add(metadata=metadata)
        memory_id = await at.add()
        with pytest.raises(BadRequest, match="metadata"):
            await at.update(memory_id, metadata={"a": deep}, merge_metadata=True)


async def test_a_memory_that_no_reply_could_carry_is_refused(tmp_path: Path) -> None:
    """On adding, on overwriting and where merged metadata would outgrow it; what was there stays."""
    async with bench(tmp_path, max_body_bytes=10_000) as at:
        with pytest.raises(TooLarge) as caught:
            await at.add("ä" * 5_000)
        await at.add("c" * 5_000, "m")
        with pytest.raises(TooLarge):
            await at.add("c" * 9_990, "m", replace=True)
        await at.update("m", metadata={"a": "x" * 3_000})
        with pytest.raises(TooLarge):
            await at.update("m", metadata={"b": "x" * 3_000}, merge_metadata=True)

        kept = await at.get("m")

    assert caught.value.details["limit_bytes"] == 10_000
    assert caught.value.details["size_bytes"] > 10_000
    assert (len(kept.content), list(kept.metadata)) == (5_000, ["a"])


async def test_a_reply_of_many_large_memories_comes_in_parts(tmp_path: Path) -> None:
    """Listings, children, relations, groups and get_many end early, say where, and go on there."""
    async with bench(tmp_path, max_body_bytes=20_000) as at:
        ids = [await at.add("c" * 4_000, f"m{number}", parent_id="p") for number in range(5)]
        group = await at.memories.group_create(bodies.GroupCreate(name="g"), os.urandom(16))
        for memory_id in ids:
            await at.link("p", memory_id)
            await at.memories.group_add(bodies.GroupAdd(group_id=group.group_id, memory_id=memory_id), os.urandom(16))

        async def read(method: Any, make: Any, first: int | None) -> tuple[list[str], int]:
            found, pages, after = [], 0, first
            while True:
                page = await method(make(after))
                assert len(msgspec.msgpack.encode(page)) < 20_000
                memories = page.related if hasattr(page, "related") else page.memories
                found += [one.memory.id if hasattr(one, "memory") else one.id for one in memories]
                pages, after = pages + 1, page.next_after
                if after is None:
                    return found, pages

        memories = at.memories
        answers = [
            await read(memories.list, lambda after: bodies.MemoryList(after=after), None),
            await read(memories.children, lambda after: bodies.MemoryChildren(id="p", after=after), 0),
            await read(memories.related, lambda after: bodies.MemoryRelated(id="p", after=after), 0),
            await read(
                memories.group_members,
                lambda after: bodies.GroupMembers(group_id=group.group_id, after=after),
                None,
            ),
        ]
        asked = [*ids, "unknown"]
        told: list[str] = []
        while asked:
            part = await memories.get_many(bodies.MemoryGetMany(ids=asked), os.urandom(16))
            told += [memory.id for memory in part.memories] + part.missing
            asked = asked[part.next_after :] if part.next_after else []
        counts = [memory.access_count for memory in await at.all()] + [(await at.get(ids[-1])).access_count]

    for found, pages in answers:
        assert found == ids
        assert pages > 1
    assert told == [*ids, "unknown"]
    assert set(counts) == {1}


async def test_ten_megabytes_of_content_are_kept_and_cut(tmp_path: Path) -> None:
    """A long text is one memory of many chunks that cover it."""
    content = "A sentence about bees and their honey. " * 270_000
    async with bench(tmp_path) as at:
        memory_id = await at.add(content)
        chunks = await at.ask('SELECT text, start, "end", position FROM chunks ORDER BY position')

        assert (await at.get(memory_id)).content == content
        assert await at.delete(memory_id) == 1
        assert await at.ask("SELECT 1 FROM chunks") == []

    assert len(chunks) > 10_000
    assert all(text == content[start:end] for text, start, end, _ in chunks)
    assert chunks[-1][2] == len(content.rstrip())
    assert chunks[-1][3] < chunks[0][3] + 1


# Fields ---------------------------------------------------------------------------------------------------------


async def test_time_and_speaker_come_from_the_request_else_from_the_metadata(tmp_path: Path) -> None:
    """What was said keeps who said it and when; the chunk knows both."""
    metadata = {"speaker": "Ada", "time": "2001-09-09T01:46:40Z"}
    async with bench(tmp_path) as at:
        await at.add("a", "a", metadata=metadata)
        await at.add("b", "b", metadata=metadata, speaker="Bo", at=5.0)
        await at.add("c", "c", metadata={"speaker": 7, "time": "soon"})
        found = [(memory.speaker, memory.at) for memory in await at.all()]
        chunks = await at.ask("SELECT speaker, at FROM chunks ORDER BY id")

    assert found == [("Ada", 1e9), ("Bo", 5.0), (None, START_S)]
    assert chunks == found


async def test_tags_are_kept_once_in_their_order(tmp_path: Path) -> None:
    """And replaced as a whole."""
    async with bench(tmp_path) as at:
        await at.add("c", "m", tags=["b", "a", "b"])
        assert (await at.get("m")).tags == ["b", "a"]
        await at.update("m", tags=["z"])
        assert await at.ask("SELECT tag FROM memory_tags") == [("z",)]


async def test_search_is_told_only_what_concerns_it(tmp_path: Path) -> None:
    """A change of importance leaves the chunk and its vector alone; one of content or parent replaces it."""
    async with bench(tmp_path) as at:
        await at.add("tea", "m", parent_id="p")
        (first,) = await at.ask("SELECT id, text, stream FROM chunks")
        await at.update("m", importance=0.9, tags=["x"], metadata={"k": 1}, content="tea")
        assert await at.ask("SELECT id, text, stream FROM chunks") == [first]

        await at.update("m", parent_id="q")
        (second,) = await at.ask("SELECT id, text, stream FROM chunks")
        await at.update("m", content="coffee")
        (third,) = await at.ask("SELECT id, text, stream FROM chunks")
        outbox = await at.ask("SELECT chunk_id, action FROM outbox ORDER BY sequence")

    assert [row[1:] for row in (first, second, third)] == [("tea", "p"), ("tea", "q"), ("coffee", "q")]
    ids = [row[0] for row in (first, second, third)]
    assert sorted(set(ids)) == ids
    assert outbox == [
        (ids[0], "embed"),
        (ids[0], "remove"),
        (ids[1], "embed"),
        (ids[1], "remove"),
        (ids[2], "embed"),
    ]


# Once -----------------------------------------------------------------------------------------------------------


async def test_ids_come_from_the_request_id(tmp_path: Path) -> None:
    """So a repeated request is the same write, and its id is known before the reply."""
    request_id = bytes(range(16))
    items = [bodies.NewMemory(content="a"), bodies.NewMemory(content="b", id="mine"), bodies.NewMemory(content="c")]
    async with bench(tmp_path) as at:
        one = await at.memories.add(bodies.MemoryAdd(content="c"), request_id)
        again = await at.memories.add(bodies.MemoryAdd(content="c"), request_id)
        many = await at.memories.add_many(bodies.MemoryAddMany(items=items), bytes(16))

        assert len(await at.all()) == 4

    made = "mem-00000000-0000-0000-0000-000000000000"
    assert one == again
    assert one.id == "mem-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert many.ids == [f"{made}-0", "mine", f"{made}-2"]


async def test_an_access_is_counted_once_per_request(tmp_path: Path) -> None:
    """Also when the request comes again after its worker died; and events name the request."""
    async with bench(tmp_path) as at:
        memory_id = await at.add(importance=0.5)
        at.heard()
        for _ in range(2):
            got = await at.memories.get(bodies.MemoryGet(id=memory_id), b"g" * 16)
            raised = await at.memories.reinforce(bodies.MemoryReinforce(id=memory_id), b"r" * 16)
        told = [event.body for event in at.events]

    assert (got.access_count, raised.access_count) == (2, 2)
    assert raised.importance == pytest.approx(0.6)
    assert [(body.action, body.version, body.request_id) for body in told] == [  # type: ignore[attr-defined]
        ("reinforce", 2, (b"r" * 16).hex())
    ]


async def test_add_many_with_one_bad_item_keeps_nothing(tmp_path: Path) -> None:
    """All or none: no memory, tag, chunk or event stays of it."""
    items = [bodies.NewMemory(content="a", tags=["t"]), bodies.NewMemory(content="b", id="taken")]
    async with bench(tmp_path) as at:
        await at.add("c", "taken")
        at.heard()
        with pytest.raises(Conflict) as caught:
            await at.memories.add_many(bodies.MemoryAddMany(items=items), os.urandom(16))

        assert [memory.id for memory in await at.all()] == ["taken"]
        assert await at.ask("SELECT 1 FROM memory_tags") == []
        assert len(await at.ask("SELECT 1 FROM chunks")) == 1
        assert at.heard() == []
    assert caught.value.details["id"] == "taken"


async def test_the_same_id_twice_in_add_many_is_refused_by_place(tmp_path: Path) -> None:
    """Which of the two would be kept?"""
    items = [bodies.NewMemory(content=text, id=text[0], replace=True) for text in ("x", "y1", "x", "y2")]
    async with bench(tmp_path) as at:
        with pytest.raises(BadRequest, match=r"items\[0\] and items\[2\] have the same id 'x'"):
            await at.memories.add_many(bodies.MemoryAddMany(items=items), os.urandom(16))


async def test_an_old_version_never_fits_what_came_after_a_delete(tmp_path: Path) -> None:
    """A caller that remembers version 1 of an id does not change another memory of that name."""
    async with bench(tmp_path) as at:
        await at.add("first", "m")
        await at.delete("m")
        await at.add("second", "m")
        with pytest.raises(Conflict) as caught:
            await at.update("m", content="third", if_version=1)

    assert caught.value.details["version"] == 2


# Trees and relations --------------------------------------------------------------------------------------------

DEPTH = 100_000


def fill_chain(connection: sqlite3.Connection) -> None:
    """Memories of which each is the parent of the next."""
    connection.execute(
        "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO memories (ns, id, content, type, tier, importance, created_at, updated_at, last_accessed_at,"
        " decayed_at, at, parent_id, metadata)"
        " SELECT 'memory', 'm' || i, 'c', 'general', 'long', 0.5, 0, 0, 0, 0, 0,"
        " CASE WHEN i > 0 THEN 'm' || (i - 1) END, x'80' FROM n",
        (DEPTH - 1,),
    )


async def test_a_chain_of_a_hundred_thousand_is_no_problem(tmp_path: Path) -> None:
    """Looking for circles, listing and deleting go down without a stack."""
    async with bench(tmp_path) as at:
        await at.tell(fill_chain)
        with pytest.raises(Unprocessable, match="descendants"):
            await at.update("m0", parent_id=f"m{DEPTH - 1}")
        below = await at.memories.children(bodies.MemoryChildren(id="m0", recursive=True, limit=3, after=DEPTH - 3))

        assert [memory.id for memory in below.memories] == [f"m{DEPTH - 2}", f"m{DEPTH - 1}"]
        assert await at.delete("m1", cascade=True) == DEPTH - 1
        assert [memory.id for memory in await at.all()] == ["m0"]


async def family(at: Bench, children: int) -> list[str]:
    """A memory and what lies below it; the ids, the parent first."""
    await at.add("The bees of the year.", "top")
    below = [await at.add(f"Hive number {number}.", f"m{number}", parent_id="top") for number in range(children)]
    return ["top", *below]


async def test_a_large_cascade_is_gone_at_once_and_removed_page_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No write waits for all of it; also after a crash the rest is removed, and told as deleted."""
    monkeypatch.setattr(removal, "REMOVED_AT_ONCE", 7)
    pages: list[int] = []
    expire = removal.expire

    def note(*arguments: Any, **named: Any) -> Outcome:
        outcome = expire(*arguments, **named)
        pages.append(len(outcome.events))
        return outcome

    monkeypatch.setattr(removal, "expire", note)
    async with bench(tmp_path) as at:
        ids = await family(at, 20)
        await at.add("c", "other")
        await at.link("other", "m3")
        at.heard()

        assert await at.delete("top", cascade=True) == 21
        assert at.heard() == []
        assert [memory.id for memory in await at.all()] == ["other"]
        assert (await at.memories.related(bodies.MemoryRelated(id="other"))).related == []
        with pytest.raises(NotFound):
            await at.delete("top", cascade=True)
        assert (await at.age(dry_run=True)).expired == 0
        await at.records.close()
        await at.open()

        await at.add("new", "m5")
        assert at.heard() == [("delete", "m5"), ("add", "m5")]
        await at.memories.sweep(at.now)
        assert sorted(at.heard()) == sorted(("delete", one) for one in ids if one != "m5")
        assert pages == [3, 3, 3, 3, 3, 3, 2]
        assert await at.ask("SELECT id FROM memories ORDER BY id") == [("m5",), ("other",)]
        assert await at.ask("SELECT DISTINCT source_id FROM chunks ORDER BY 1") == [("m5",), ("other",)]
        assert (await at.get("m5")).version == 2


async def test_what_is_hidden_and_what_has_expired_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each told as what it was; the report counts what expired alone."""
    async with bench(tmp_path) as at:
        with monkeypatch.context() as patched:
            patched.setattr(removal, "REMOVED_AT_ONCE", 1)
            await family(at, 2)
            await at.delete("top", cascade=True)
        await at.add("c", "old", ttl_s=10)
        at.wait(10)
        at.heard()

        assert (await at.age()).expired == 1
        assert sorted(at.heard()) == [("delete", "m0"), ("delete", "m1"), ("delete", "top"), ("expire", "old")]


async def test_a_large_cascade_hides_what_quotes_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consolidation made of it and others, and the suggestion that rests on it, wait for no sweep."""
    monkeypatch.setattr(removal, "REMOVED_AT_ONCE", 3)

    def suggest(connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT INTO suggestions (suggestion_id, ns, kind, text, reason, confidence, evidence, evidence_from,"
            " fingerprint, made_at) VALUES ('s', 'memory', 'related', 'Hive number 1.', 'r', 1, x'90', ?, x'00', 0)",
            (suggestions.source_of("memory", "memory", "m1"),),
        )

    async with bench(tmp_path) as at:
        ids = await family(at, 3)
        await at.add("About the hives.", "far", importance=0.3)
        for memory_id in ids:
            await at.link("far", memory_id)
        await at.tell(suggest)
        at.wait(HOUR_S)
        assert (await at.age()).consolidated == 1
        await at.delete("top", cascade=True)

        assert [memory.id for memory in await at.all()] == ["far"]
        assert await at.ask("SELECT text FROM suggestions") == [("",)]
        await at.memories.sweep(at.now)
        assert await at.ask("SELECT id FROM memories") == [("far",)]


async def test_one_memory_of_many_chunks_is_deleted_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to divide."""
    monkeypatch.setattr(removal, "REMOVED_AT_ONCE", 2)
    async with bench(tmp_path) as at:
        await at.add("A hive and its bees. " * 500, "m")
        at.heard()
        await at.delete("m")

        assert at.heard() == [("delete", "m")]
        assert await at.ask("SELECT 1 FROM memories UNION SELECT 1 FROM chunks") == []


async def test_a_memory_cannot_become_its_own_ancestor(tmp_path: Path) -> None:
    """Neither by an update nor by adding what others already name as their parent."""
    async with bench(tmp_path) as at:
        await at.add("c", "child", parent_id="top")
        await at.add("c", "grandchild", parent_id="child")
        for refused in (
            at.add("c", "top", parent_id="grandchild"),
            at.add("c", "self", parent_id="self"),
            at.update("child", parent_id="child"),
            at.update("child", parent_id="grandchild"),
        ):
            with pytest.raises(Unprocessable, match="itself or one of its descendants") as caught:
                await refused
            assert caught.value.details["field"] == "parent_id"
        await at.add("c", "top")
        assert await at.delete("top", cascade=True) == 3


async def test_a_delete_without_cascade_leaves_the_children_where_they_are(tmp_path: Path) -> None:
    """They keep their parent's id, and are found under it."""
    async with bench(tmp_path) as at:
        await at.add("c", "p")
        await at.add("c", "k", parent_id="p")
        await at.delete("p")
        orphans = await at.memories.children(bodies.MemoryChildren(id="p"))

    assert [(memory.id, memory.parent_id) for memory in orphans.memories] == [("k", "p")]


async def test_relations_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    """Each relation is told once, at its distance; one to nothing is told without a memory."""
    async with bench(tmp_path) as at:
        for memory_id in "abc":
            await at.add("c", memory_id)
        for source, target in ("ab", "bc", "ca", "aa", "cx"):
            await at.link(source, target)
        found = await at.memories.related(bodies.MemoryRelated(id="a", depth=8))

    told = [(one.relation.source_id + one.relation.target_id, one.depth) for one in found.related]
    assert told == [("aa", 1), ("ab", 1), ("bc", 2), ("ca", 3), ("cx", 3)]
    assert [one.memory is None for one in found.related] == [False, False, False, False, True]


async def test_what_has_expired_takes_its_relations_along_at_once(tmp_path: Path) -> None:
    """Before any sweep they are gone with it, and a new memory of the same id does not get them back."""
    async with bench(tmp_path) as at:
        await at.add("c", "a")
        await at.add("c", "b", ttl_s=10)
        await at.link("a", "b")
        at.wait(10)
        gone = await at.memories.related(bodies.MemoryRelated(id="a"))
        await at.add("c", "b")
        again = await at.memories.related(bodies.MemoryRelated(id="a"))
        heard = at.heard()

    assert gone.related == again.related == []
    assert heard[-2:] == [("expire", "b"), ("add", "b")]


async def test_an_expired_memory_is_gone_for_every_operation(tmp_path: Path) -> None:
    """Invisible at once; the sweep then says so and removes it."""
    async with bench(tmp_path) as at:
        await at.add("c", "m", ttl_s=60)
        at.wait(59)
        assert (await at.get("m")).expires_at == START_S + 60
        at.wait(1)
        for refused in (
            at.get("m"),
            at.update("m", content="d"),
            at.delete("m"),
            at.memories.reinforce(bodies.MemoryReinforce(id="m"), os.urandom(16)),
            at.memories.promote(bodies.MemoryPromote(id="m"), os.urandom(16)),
            at.memories.get(bodies.MemoryGet(id="m"), os.urandom(16)),
        ):
            with pytest.raises(NotFound):
                await refused
        at.heard()
        await at.memories.sweep(at.now)

        assert at.heard() == [("expire", "m")]
        assert await at.ask("SELECT 1 FROM memories UNION SELECT 1 FROM chunks") == []


async def test_groups_of_another_namespace_are_not_there(tmp_path: Path) -> None:
    """Callers stay apart."""
    async with bench(tmp_path) as at:
        group = await at.memories.group_create(bodies.GroupCreate(name="g", ns="mine"), os.urandom(16))
        with pytest.raises(NotFound):
            await at.memories.group_members(bodies.GroupMembers(group_id=group.group_id))
        gone = await at.memories.group_delete(bodies.GroupDelete(group_id=group.group_id), os.urandom(16))

    assert not gone.changed


async def test_everything_survives_closing_and_opening(tmp_path: Path) -> None:
    """What was acknowledged is in the file."""
    async with bench(tmp_path) as at:
        await at.add("c", "m", tags=["t"], metadata={"k": [1]})
        before = await at.get("m")
        await at.records.close()
        await at.open()

        assert await at.get("m") == before
