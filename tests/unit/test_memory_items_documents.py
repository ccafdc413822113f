"""Documents and experiences on a real file with a fake clock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from schemas.bodies import items as bodies
from schemas.errors import BadRequest, Conflict, NotFound, TooLarge
from tests.items_bench import START_S, Bench, bench


async def put(at: Bench, /, doc_id: str, content: str = "c", **fields: Any) -> bodies.DocInfo:
    """Keep a document under a new request id."""
    return await at.documents.put(bodies.DocPut(doc_id=doc_id, content=content, **fields), os.urandom(16))


async def get(at: Bench, doc_id: str, **fields: Any) -> bodies.Document:
    """A document, or a part of it."""
    return await at.documents.get(bodies.DocGet(doc_id=doc_id, **fields))


async def names(at: Bench, **fields: Any) -> list[str]:
    """Names of a listing, page by page."""
    found: list[str] = []
    after = fields.pop("after", None)
    while True:
        page = await at.documents.list(bodies.DocList(after=after, **fields))
        found += [document.doc_id for document in page.documents]
        after = page.next_after
        if after is None:
            return found


# Documents ------------------------------------------------------------------------------------------------------


async def test_a_document_comes_back_as_written(tmp_path: Path) -> None:
    """Content, title, tags and metadata; writing again keeps its age and grows its version."""
    async with bench(tmp_path) as at:
        await put(at, "d", "old")
        at.wait(5)
        info = await put(at, "d", "n\0ew 🙂", title="T", tags=["b", "a", "b"], metadata={"k": [1]}, at=9.0)
        document = await get(at, "d")
        heard = at.heard()

    assert (document.content, document.title, document.tags, document.metadata) == (
        "n\0ew 🙂",
        "T",
        ["b", "a"],
        {"k": [1]},
    )
    assert (info.version, info.characters, info.chunks, info.at) == (2, 6, 1, 9.0)
    assert (document.created_at, document.updated_at) == (START_S, START_S + 5)
    assert heard == [("doc_put", "d"), ("doc_put", "d")]


async def test_a_document_put_again_by_its_id_is_written_once_and_kept_once(tmp_path: Path) -> None:
    """Its metadata, which may be long, are not kept with the id; the answer is the document as it is by then."""
    async with bench(tmp_path) as at:
        request, request_id = bodies.DocPut(doc_id="d", content="c", metadata={"k": "long" * 999}), os.urandom(16)
        first = await at.documents.put(request, request_id)
        assert await at.documents.put(request, request_id) == first
        heard = at.heard()
        later = await put(at, "d", "other")
        assert await at.documents.put(request, request_id) == later
        kept = await at.records.read(
            lambda raw: raw.execute("SELECT max(length(reply)) FROM applied_requests").fetchone()
        )

    assert (first.version, later.version) == (1, 2)
    assert heard == [("doc_put", "d")]
    assert kept == (0,)


async def test_a_part_of_a_document_is_read_by_characters(tmp_path: Path) -> None:
    """Null bytes end nothing, and beyond the end there is nothing."""
    content = "ab\0dé🙂gh"
    async with bench(tmp_path) as at:
        await put(at, "d", content)
        for start, length in ((0, 3), (2, 4), (5, None), (7, 100), (8, 1), (99, None)):
            part = await get(at, "d", start=start, length=length)
            assert part.content == content[start : None if length is None else start + length]
            assert (part.start, part.characters) == (start, len(content))


async def test_compare_and_set_refuses_what_does_not_fit(tmp_path: Path) -> None:
    """0 asks for a new document; a version seen before a delete never fits again."""
    async with bench(tmp_path) as at:
        assert (await put(at, "d", if_version=0)).version == 1
        assert (await put(at, "d", if_version=1)).version == 2
        for stale in (0, 1, 3):
            with pytest.raises(Conflict) as caught:
                await put(at, "d", if_version=stale)
            assert caught.value.details["version"] == 2
        gone = await at.documents.delete(bodies.DocDelete(doc_id="d"), os.urandom(16))
        again = await at.documents.delete(bodies.DocDelete(doc_id="d"), os.urandom(16))
        with pytest.raises(Conflict):
            await put(at, "d", if_version=2)
        new = await put(at, "d", if_version=0)

    assert (gone.deleted, again.deleted) == (True, False)
    assert new.version == 3


async def test_a_long_document_is_found_chunk_by_chunk_and_by_its_title(tmp_path: Path) -> None:
    """The chunks follow each other in one stream; new tags alone change none of them."""
    content = "A sentence about bees and honey. " * 500
    async with bench(tmp_path) as at:
        info = await put(at, "d", content, title="On hives")
        chunks = await at.ask('SELECT id, stream, text, start, "end" FROM chunks ORDER BY position')
        await put(at, "d", content, title="On hives", tags=["t"])
        unchanged = await at.ask('SELECT id, stream, text, start, "end" FROM chunks ORDER BY position')
        await put(at, "d", "short")
        shorter = await at.ask("SELECT text FROM chunks")
        await at.documents.delete(bodies.DocDelete(doc_id="d"), os.urandom(16))

        assert await at.ask("SELECT 1 FROM chunks") == []
        with pytest.raises(NotFound):
            await get(at, "d")
    assert info.chunks == len(chunks) > 10
    assert unchanged == chunks
    assert chunks[0][2] == "On hives\n" + content[chunks[0][3] : chunks[0][4]]
    assert all(text == content[start:end] for _, _, text, start, end in chunks[1:])
    assert {stream for _, stream, *_ in chunks} == {"d"}
    assert shorter == [("short",)]


async def test_listing_takes_prefix_and_tag_literally_page_by_page(tmp_path: Path) -> None:
    """In the order of the names."""
    ids = ["a", "a%", "a_b", "ab", "b", "\U0010ffff"]
    async with bench(tmp_path) as at:
        for doc_id in ids:
            await put(at, doc_id, tags=["x"] if "a" in doc_id else [])
        await put(at, "z", ns="other")
        for limit in (1, 2, 100):
            assert await names(at, limit=limit) == ids
            assert await names(at, limit=limit, prefix="a_") == ["a_b"]
            assert await names(at, limit=limit, prefix="a", after="a%") == ["a_b", "ab"]
            assert await names(at, limit=limit, tag="x") == ids[:4]
            assert await names(at, limit=limit, tag="x%") == []


async def test_bad_documents_are_refused(tmp_path: Path) -> None:
    """Not Unicode, or more than a reply can carry."""
    async with bench(tmp_path, max_body_bytes=5_000) as at:
        with pytest.raises(BadRequest, match="title holds a lone surrogate"):
            await put(at, "d", title="\ud800")
        with pytest.raises(TooLarge):
            await put(at, "d", "x" * 5_000)
        assert await names(at) == []


async def test_a_put_happens_once_per_request(tmp_path: Path) -> None:
    """Again it answers the same."""
    request = bodies.DocPut(doc_id="d", content="c")
    async with bench(tmp_path) as at:
        first = await at.documents.put(request, b"i" * 16)

        assert await at.documents.put(request, b"i" * 16) == first
        assert len(at.heard()) == 1


# Experiences ----------------------------------------------------------------------------------------------------


async def record(at: Bench, /, agent: str = "a", action: str = "did", **fields: Any) -> bodies.Experience:
    """Keep an experience under a new request id."""
    return await at.experiences.record(bodies.ExperienceRecord(agent=agent, action=action, **fields), os.urandom(16))


async def listed(at: Bench, **fields: Any) -> list[str]:
    """Ids of a listing."""
    page = await at.experiences.list(bodies.ExperienceList(**fields), os.urandom(16))
    return [experience.exp_id for experience in page.experiences]


async def test_an_experience_comes_back_as_recorded(tmp_path: Path) -> None:
    """Reading it counts the access first."""
    context = {"screen": "login", "time": "2001-09-09T01:46:40Z"}
    async with bench(tmp_path) as at:
        made = await record(at, outcome="fine", reward=1.5, success=True, context=context, tags=["t", "t"], exp_id="e")
        at.wait(3)
        found = await at.experiences.get(bodies.ExperienceGet(exp_id="e"), os.urandom(16))
        heard = at.heard()

    assert (made.at, made.success, made.reward, made.tags, made.context) == (1e9, True, 1.5, ["t"], context)
    assert (made.access_count, made.last_accessed_at) == (0, None)
    assert (found.access_count, found.last_accessed_at) == (1, START_S + 3)
    assert heard == [("record", "e")]


async def test_the_most_important_come_first_then_the_last_accessed(tmp_path: Path) -> None:
    """Each one listed gains an access after it was read."""
    async with bench(tmp_path) as at:
        for exp_id, value in (("low", 0.1), ("old", 0.5), ("new", 0.5)):
            await record(at, exp_id=exp_id, importance=value)
            at.wait(1)
        assert await listed(at, sort="importance") == ["new", "old", "low"]
        await at.experiences.get(bodies.ExperienceGet(exp_id="old"), os.urandom(16))
        assert await listed(at, sort="importance", limit=1) == ["new"]
        at.wait(1)
        await at.experiences.get(bodies.ExperienceGet(exp_id="old"), os.urandom(16))
        page = await at.experiences.list(bodies.ExperienceList(sort="importance", limit=2), os.urandom(16))

    assert [(one.exp_id, one.access_count) for one in page.experiences] == [("old", 3), ("new", 2)]
    assert page.has_more


async def test_experiences_are_chosen_by_agent_outcome_tag_and_time(tmp_path: Path) -> None:
    """Newest first; the end of a range is outside it."""
    async with bench(tmp_path) as at:
        await record(at, "a", exp_id="1", success=True, at=10.0, tags=["x"], reward=1.0)
        await record(at, "a", exp_id="2", success=False, at=20.0, reward=3.0)
        await record(at, "b", exp_id="3", at=30.0, tags=["x"], reward=2.0)
        await record(at, "b", exp_id="4", at=30.0, ns="other")

        assert await listed(at) == ["3", "2", "1"]
        assert await listed(at, agent="a") == ["2", "1"]
        assert await listed(at, success=True) == ["1"]
        assert await listed(at, success=False) == ["2"]
        assert await listed(at, tag="x") == ["3", "1"]
        assert await listed(at, since=10.0, until=30.0) == ["2", "1"]
        assert await listed(at, sort="reward") == ["2", "3", "1"]
        assert await listed(at, offset=1, limit=1) == ["2"]
        stats = await at.experiences.stats(bodies.ExperienceStats())

    assert stats.count == 3
    assert [(one.agent, one.count, one.last_at, one.mean_reward, one.success_rate) for one in stats.agents] == [
        ("a", 2, 20.0, 2.0, 0.5),
        ("b", 1, 30.0, 2.0, None),
    ]


async def test_an_expired_experience_is_hidden_at_once_and_then_swept(tmp_path: Path) -> None:
    """Its id is free again."""
    async with bench(tmp_path) as at:
        await record(at, exp_id="e", ttl_s=10)
        with pytest.raises(Conflict):
            await record(at, exp_id="e")
        at.wait(10)
        with pytest.raises(NotFound):
            await at.experiences.get(bodies.ExperienceGet(exp_id="e"), os.urandom(16))
        assert await listed(at) == []
        assert (await at.experiences.stats(bodies.ExperienceStats())).count == 0
        at.heard()
        await record(at, exp_id="e", ttl_s=10)
        at.wait(10)
        await at.experiences.sweep(at.now)

        assert at.heard() == [("expire", "e"), ("record", "e"), ("expire", "e")]
        assert await at.ask("SELECT 1 FROM experiences") == []


async def test_recording_and_counting_happen_once_per_request(tmp_path: Path) -> None:
    """A repeated request makes no second experience and no second access."""
    request = bodies.ExperienceRecord(agent="a", action="did")
    async with bench(tmp_path) as at:
        first = await at.experiences.record(request, bytes(16))
        assert await at.experiences.record(request, bytes(16)) == first
        for _ in range(2):
            await at.experiences.list(bodies.ExperienceList(), b"l" * 16)
            found = await at.experiences.get(bodies.ExperienceGet(exp_id=first.exp_id), b"g" * 16)

    assert first.exp_id == "exp-00000000-0000-0000-0000-000000000000"
    assert found.access_count == 2
