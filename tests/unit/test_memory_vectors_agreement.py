"""Whether index and table agree: every kind of difference is found, and repaired by orders alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.bodies.upkeep import Verified
from tests.vectors_bench import FakeEncoder, FakeIndex, Store, opened_store, until
from workers.memory.vectors import agreement
from workers.memory.vectors.index import Point
from workers.memory.vectors.unavailable import IndexTaken, IndexUnavailable


async def compare(store: Store, index: FakeIndex, *, is_repaired: bool = False) -> Verified:
    return await agreement.compare(
        store.records, index, "fake-1", is_repaired=is_repaired, report=lambda stage, done, total: None
    )


async def test_agreement_is_reported_with_its_counts(tmp_path: Path) -> None:
    """An empty memory agrees too."""
    index = FakeIndex()
    async with opened_store(tmp_path) as store:
        assert (await compare(store, index)).agrees
        async with store.pumping(FakeEncoder(), index):
            await store.put("a", *(f"text {number}" for number in range(10)))
            await store.settled()
        verified = await compare(store, index)
        assert verified == Verified(
            agrees=True, chunks=10, vectors=10, waiting=0, missing=[], surplus=[], outdated=[], problems=[]
        )


async def test_every_difference_is_named_and_repaired(tmp_path: Path) -> None:
    """Missing, surplus and outdated vectors are ordered; what waits needs no repair."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            ids = await store.put("a", *(f"text {number}" for number in range(10)))
            await store.settled()
        await index.remove([ids[2]])
        await index.upsert([Point(9_999, encoder.vector("x"), "n", "memory")])
        await store.execute("UPDATE chunks SET vector_model = 'other' WHERE id = ?", ids[5])
        (waiting,) = await store.put("b", "waits")

        verified = await compare(store, index, is_repaired=True)

        assert (verified.missing, verified.surplus, verified.outdated) == ([ids[2]], [9_999], [ids[5]])
        assert (verified.agrees, verified.chunks, verified.vectors, verified.repaired) == (False, 11, 10, 3)
        assert verified.problems == [
            "1 chunks have no vector, although the table says so",
            "1 chunks have the vector of another model",
            "3 chunks wait to be encoded",
            "1 vectors belong to no chunk",
        ]
        async with store.pumping(encoder, index):
            await store.settled()
        assert (await compare(store, index)).agrees
        assert waiting in index.points


async def test_vector_whose_removal_is_ordered_is_no_surplus(tmp_path: Path) -> None:
    """And one that was stored but not ticked off is none either."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            await store.put("a", "one")
            await store.settled()
        await store.remove("a")
        (waiting,) = await store.put("b", "two")
        await index.upsert([Point(waiting, encoder.vector("two"), "n", "memory")])

        verified = await compare(store, index)

        assert verified.surplus == []
        assert verified.waiting == 1


async def test_index_that_lost_its_last_writes_is_repaired_although_the_counts_agree(tmp_path: Path) -> None:
    """A change is a removal and a new vector: an index that is a moment behind holds as many as it should."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            await store.put("a", "one", "two")
            await store.put("b", "three")
            await store.settled()
            before = dict(index.points)
            await store.put("b", "changed")
            await store.settled()
        index.points = before

        await agreement.settle(store.records, index, encoder.name)
        async with store.pumping(encoder, index):
            await store.settled()

        assert (await compare(store, index)).agrees


async def test_rebuild_empties_the_index_and_orders_everything_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that waited already are not ordered twice; pages are short."""
    monkeypatch.setattr(agreement, "PAGE_CHUNKS", 4)
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            ids = await store.put("a", *(f"text {number}" for number in range(10)))
            await store.settled()
        ids += await store.put("b", "waits")
        reports: list[tuple[str, int, int]] = []

        await agreement.order_everything(store.records, index, lambda *report: reports.append(report))

        assert not index.points
        assert await store.rows("SELECT chunk_id FROM outbox ORDER BY chunk_id") == [(id,) for id in ids]
        assert reports == [("order", 0, 11), ("order", 4, 11), ("order", 8, 11), ("order", 10, 11)]
        async with store.pumping(encoder, index):
            await store.settled()
        assert set(index.points) == set(ids)


async def filled(folder: Path, encoder: FakeEncoder, index: FakeIndex, *texts: str) -> None:
    """A store in `folder` with `texts`, all of them in the index, closed."""
    async with opened_store(folder) as store, store.pumping(encoder, index):
        for text in texts:
            await store.put(text, text)
        await store.settled()


async def check_vectors(store: Store, encoder: FakeEncoder, index: FakeIndex) -> None:
    """The index holds the vector of each chunk's own text, nothing else, and the mark of the database."""
    texts = dict(await store.rows("SELECT id, text FROM chunks"))
    assert {id: point.vector for id, point in index.points.items()} == {
        id: encoder.vector(text) for id, text in texts.items()
    }
    assert index.mark == str(await store.mark())


@pytest.mark.parametrize("is_marked", [True, False])
async def test_vectors_of_another_database_give_way(tmp_path: Path, is_marked: bool) -> None:
    """A new database beside an index that was filled before, by this program or by one that left no marks."""
    encoder, index = FakeEncoder(), FakeIndex()
    await filled(tmp_path / "old", encoder, index, *(f"text {number}" for number in range(50)))
    if not is_marked:
        index.mark = ""

    async with opened_store(tmp_path / "new") as store, store.pumping(encoder, index):
        await store.put("a", "a puppy")
        await store.settled()

        await check_vectors(store, encoder, index)


async def test_database_that_takes_the_place_of_another_gets_its_own_vectors(tmp_path: Path) -> None:
    """Its ids are those of the other's chunks, its texts are not: ids alone would agree."""
    encoder, index, other = FakeEncoder(), FakeIndex(), FakeIndex()
    await filled(tmp_path / "one", encoder, index, "one", "two", "three")
    await filled(tmp_path / "other", encoder, other, "four", "five", "six")

    async with opened_store(tmp_path / "other") as store:
        assert (await compare(store, index)).problems == ["the vectors are those of another database"]
        assert not (await compare(store, index)).agrees
        async with store.pumping(encoder, index) as pump:
            pump.index_is_used()
            await store.put("b", "seven")
            await store.settled()

        await check_vectors(store, encoder, index)
        assert (await compare(store, index)).agrees


async def test_marks_are_adopted_without_encoding_anything(tmp_path: Path) -> None:
    """Database and index of a program that left no marks: where they agree they belong together."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            await store.put("a", *(f"text {number}" for number in range(50)))
            await store.settled()
        await store.execute("DELETE FROM service_state WHERE key = ?", agreement.MARK_KEY)
        index.mark, index.upserted = "", []

        await agreement.settle(store.records, index, encoder.name)

        assert await store.is_settled()
        assert not index.upserted
        await check_vectors(store, encoder, index)


async def present_and_older_copy(tmp_path: Path, encoder: FakeEncoder, index: FakeIndex) -> tuple[Path, Path]:
    """Two folders of a store; the index is that of the first, which has lost one of 20 texts and got another since."""
    present, copy = tmp_path / "present", tmp_path / "copy"
    await filled(present, encoder, index, *(f"text {number}" for number in range(20)))
    shutil.copytree(present, copy)
    async with opened_store(present) as store, store.pumping(encoder, index):
        await store.remove("text 3")
        await store.put("newer", "newer")
        await store.settled()
    return present, copy


async def test_copy_of_the_database_put_back_by_hand_is_noticed(tmp_path: Path) -> None:
    """What was removed since is encoded again, what was added goes; and the newer database is noticed when it returns."""
    encoder, index = FakeEncoder(), FakeIndex()
    present, copy = await present_and_older_copy(tmp_path, encoder, index)
    database = index.mark.partition(" ")[0]

    async with opened_store(copy) as store, store.pumping(encoder, index) as pump:
        pump.index_is_used()
        await until(lambda: len(index.points) == 20 and 4 in index.points, "the lost vector is back")
        await store.put("other", "has the id of the newer one")
        await store.settled()
        await check_vectors(store, encoder, index)
        assert not index.mark.startswith(database)

    async with opened_store(present) as store, store.pumping(encoder, index) as pump:
        pump.index_is_used()
        await until(lambda: index.mark.startswith(database), "the index is the newer database's again")
        await store.put("last", "last")
        await store.settled()
        await check_vectors(store, encoder, index)


class ForgetfulIndex(FakeIndex):
    """Fails with the next mark when told to, before or after it is written."""

    fails_when = ""

    async def write_mark(self, mark: str) -> None:
        fails_when, self.fails_when = self.fails_when, ""
        if fails_when == "before":
            raise IndexUnavailable("the server is away")
        await super().write_mark(mark)
        if fails_when == "after":
            raise IndexUnavailable("the answer is lost")


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("fails_when", ["before", "after"])
async def test_copy_whose_new_mark_does_not_reach_the_index_keeps_its_vectors(
    tmp_path: Path, fails_when: str, is_shared: bool
) -> None:
    """It says who it was until the index bears who it is, and then no longer: the newer database may come back."""
    encoder, index = FakeEncoder(), ForgetfulIndex(is_shared=is_shared)
    present, copy = await present_and_older_copy(tmp_path, encoder, index)
    index.upserted.clear()

    async with opened_store(copy) as store:
        index.fails_when = fails_when
        with pytest.raises(IndexUnavailable):
            await agreement.settle(store.records, index, encoder.name)
        assert not await agreement.is_of_another(store.records, index)
        assert set(index.points) == {*range(1, 22)} - {4}

        await agreement.settle(store.records, index, encoder.name)
        async with store.pumping(encoder, index):
            await store.settled()

        assert index.upserted == [4]
        await check_vectors(store, encoder, index)
        mark = await store.mark()
        assert mark is not None
        assert mark.previous is None

    async with opened_store(present) as store:
        assert await agreement.is_of_another(store.records, index)


async def test_index_that_was_out_of_use_is_brought_up_to_date(tmp_path: Path) -> None:
    """Away from files to a server and back: only what is new is encoded, and what is gone goes."""
    encoder, index, server = FakeEncoder(), FakeIndex(), FakeIndex(is_shared=True)
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            await store.put("a", *(f"text {number}" for number in range(20)))
            await store.put("gone", "soon gone")
            await store.settled()
        async with store.pumping(encoder, server):
            await store.remove("gone")
            (new,) = await store.put("b", "new")
            await until(lambda: len(server.points) == 21, "the server has everything")
            await store.settled()
        index.upserted.clear()
        async with store.pumping(encoder, index) as pump:
            pump.index_is_used()
            await until(lambda: new in index.points, "the new vector is in the index")
            await store.settled()
        assert index.upserted == [new]
        await check_vectors(store, encoder, index)


async def test_server_that_another_memory_fills_is_left_alone(tmp_path: Path) -> None:
    """Two memories with one prefix: the second says so, until somebody has it take the place."""
    encoder, server = FakeEncoder(), FakeIndex(is_shared=True)
    await filled(tmp_path / "first", encoder, server, "one", "two")
    held, mark = dict(server.points), server.mark

    async with opened_store(tmp_path / "second") as store, store.pumping(encoder, server) as pump:
        await store.put("a", "three")
        await until(lambda: pump.is_index_taken, "the second is refused")
        assert "memory.qdrant_prefix" in pump.problem
        assert (server.points, server.mark) == (held, mark)

        await agreement.order_everything(store.records, server, lambda stage, done, total: None)
        pump.begin_anew()
        await store.settled()
        assert not pump.is_index_taken
        await check_vectors(store, encoder, server)


async def test_change_of_the_model_touches_no_vectors_of_another_memory(tmp_path: Path) -> None:
    """Neither those of the new model nor, from a database that never filled it, those of the old one."""
    family: dict[str, FakeIndex] = {}
    old = family.setdefault("fake-1", FakeIndex(8, family, is_shared=True))
    new = family.setdefault("fake-2", FakeIndex(8, family, is_shared=True))
    await filled(tmp_path / "first", FakeEncoder("fake-1"), old, "one", "two")
    await filled(tmp_path / "third", FakeEncoder("fake-2"), new, "three")

    async with opened_store(tmp_path / "second") as store:
        await agreement.adopt_model(store.records, old, "fake-1")
        with pytest.raises(IndexTaken, match=r"memory\.qdrant_prefix"):
            await agreement.adopt_model(store.records, new, "fake-2")
        await new.clear()
        await agreement.adopt_model(store.records, new, "fake-2")

    assert len(old.points) == 2
    assert not new.forgotten


async def test_vector_of_a_reused_id_outlives_the_removal_of_the_one_before(tmp_path: Path) -> None:
    """A restored database gives ids again: the order to remove an id's old vector must not take the new one."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        await index.upsert([Point(1, encoder.vector("stranger"), "n", "memory")])
        await agreement.settle(store.records, index, encoder.name)
        assert await store.rows("SELECT chunk_id, action FROM outbox") == [(1, "remove")]
        async with store.pumping(encoder, index):
            assert await store.put("a", "own text") == [1]
            await store.settled()
        await check_vectors(store, encoder, index)


@given(
    chunks=st.sets(st.integers(1, 60)),
    vectors=st.sets(st.integers(1, 60)),
    others=st.sets(st.integers(1, 60)),
    page=st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_pages_find_what_one_look_would(
    chunks: set[int], vectors: set[int], others: set[int], page: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the ids on both sides and wherever the pages end."""
    import asyncio

    async def run() -> Verified:
        index = FakeIndex()
        await index.upsert([Point(id, FakeEncoder().vector("x"), "n", "memory") for id in vectors])
        async with opened_store(tmp_path_factory.mktemp("store")) as store:
            for id in chunks:
                await store.execute(
                    'INSERT INTO chunks (id, ns, kind, source_id, position, start, "end", text, at, vector_model)'
                    " VALUES (?, 'n', 'memory', 's', 0, 0, 1, 'x', 0, ?)",
                    id,
                    "old" if id in others else "fake-1",
                )
            return await compare(store, index)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(agreement, "PAGE_CHUNKS", page)
        verified = asyncio.run(run())
    assert verified.missing == sorted(chunks - others - vectors)
    assert verified.surplus == sorted(vectors - chunks)
    assert verified.outdated == sorted(chunks & others)
    assert (verified.chunks, verified.vectors) == (len(chunks), len(vectors))
