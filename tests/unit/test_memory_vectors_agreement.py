"""Whether index and table agree: every kind of difference is found, and repaired by orders alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.bodies.upkeep import Verified
from tests.vectors_bench import FakeEncoder, FakeIndex, Store, opened_store
from workers.memory.vectors import agreement
from workers.memory.vectors.index import Point


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

        await agreement.restore_lost(store.records, index, encoder.name)
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
