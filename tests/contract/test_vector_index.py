"""One vector index, five ways: embedded, embedded with its graph built, a server, its client alone, and the fake."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.qdrant_server import QdrantServer
from tests.vectors_bench import FakeIndex, cosine, random_vectors, unit
from workers.memory.vectors.edge import EdgeIndex
from workers.memory.vectors.index import Point, VectorIndex
from workers.memory.vectors.qdrant import QdrantIndex, client_factory
from workers.memory.vectors.unavailable import IndexUnavailable

OpenIndex = Callable[..., AbstractAsyncContextManager[VectorIndex]]

# Half precision keeps three digits of a cosine.
CLOSE = 2e-3

# Points after which the "graph" variant builds its graph.
GRAPH_POINTS = 200


def local_client(folder: Path) -> Callable[[], Any]:
    """The server's client on a folder of its own: the same calls, without a server."""
    qdrant_client = pytest.importorskip("qdrant_client")

    def make() -> Any:
        return qdrant_client.AsyncQdrantClient(path=str(folder))

    return make


@pytest.fixture(params=["edge", "graph", "server", "client", "fake"])
def open_index(request: pytest.FixtureRequest, tmp_path: Path) -> OpenIndex:
    """Opens the index of one kind; opened again it has what it had."""
    fakes: dict[str, FakeIndex] = {}
    server = QdrantServer()
    if request.param == "server":
        pytest.importorskip("qdrant_client")

    @asynccontextmanager
    async def opened(model: str = "Model-1", dimension: int = 8) -> AsyncIterator[VectorIndex]:
        index: VectorIndex
        if request.param == "server":
            async with server.serving() as url:
                index = QdrantIndex(client_factory(url, ""), model, dimension, prefix="test")
                yield index
                await index.close()
            return
        match request.param:
            case "edge":
                index = EdgeIndex(tmp_path / "vectors", model, dimension)
            case "graph":
                index = EdgeIndex(tmp_path / "vectors", model, dimension, optimise_points=GRAPH_POINTS)
            case "client":
                index = QdrantIndex(local_client(tmp_path / "server"), model, dimension, prefix="test")
            case _:
                index = fakes.setdefault(model, FakeIndex(dimension, fakes))
        with warnings.catch_warnings():
            # The client without a server has neither payload indexes nor a graph, and says so.
            warnings.filterwarnings("ignore", "Payload indexes have no effect", UserWarning)
            warnings.filterwarnings("ignore", "Local mode performs exact", UserWarning)
            try:
                yield index
            finally:
                await index.close()

    return opened


async def test_nearest_points_come_best_first_with_their_cosine(open_index: OpenIndex) -> None:
    """As comparing the query with every vector says."""
    vectors = random_vectors(60, 8)
    query = random_vectors(1, 8, seed=2)[0]
    async with open_index() as index:
        await index.upsert([Point(id, vector, "n", "memory") for id, vector in enumerate(vectors, 1)])

        found = await index.search(query, ns="n", kinds=None, limit=10)

        true = sorted(((id, cosine(query, vector)) for id, vector in enumerate(vectors, 1)), key=lambda hit: -hit[1])
        assert [score for _, score in found] == pytest.approx([score for _, score in true[:10]], abs=CLOSE)
        assert all(score == pytest.approx(dict(true)[id], abs=CLOSE) for id, score in found)


async def test_other_namespaces_are_never_found(open_index: OpenIndex) -> None:
    """Not even when theirs are nearer, their names alike, or the own namespace empty."""
    async with open_index(dimension=2) as index:
        names = ["a", "A", "a/b", "memory/a", "a b", "ä", "*", ""]
        await index.upsert([Point(id, unit(1, id / 100), ns, "memory") for id, ns in enumerate(names, 1)])

        for id, ns in enumerate(names, 1):
            assert [hit[0] for hit in await index.search(unit(1, 0), ns=ns, kinds=None, limit=5)] == [id]
            assert [hit[0] for hit in await index.search(unit(1, 0), ns=ns, kinds=["memory"], limit=5)] == [id]
        assert await index.search(unit(1, 0), ns="b", kinds=None, limit=5) == []


async def test_kinds_are_a_filter_within_the_namespace(open_index: OpenIndex) -> None:
    """Several, one, none of them there, and no kind at all."""
    async with open_index(dimension=2) as index:
        kinds = ["memory", "turn", "fact"]
        await index.upsert([Point(id, unit(1, id), "n", kind) for id, kind in enumerate(kinds, 1)])
        await index.upsert([Point(9, unit(1, 0), "other", "turn")])

        async def found(kinds: list[str] | None) -> set[int]:
            return {id for id, _ in await index.search(unit(1, 0), ns="n", kinds=kinds, limit=9)}

        assert await found(None) == {1, 2, 3}
        assert await found(["turn", "fact"]) == {2, 3}
        assert await found(["turn"]) == {2}
        assert await found(["document"]) == set()
        assert await found([]) == set()


async def test_a_point_stored_again_replaces_what_it_was(open_index: OpenIndex) -> None:
    """Vector, namespace and kind; what is repeated after a crash does no harm."""
    async with open_index(dimension=2) as index:
        await index.upsert([Point(1, unit(1, 0), "n", "memory"), Point(2, unit(0, 1), "n", "memory")])
        await index.upsert([Point(1, unit(0, 1), "m", "turn"), Point(2, unit(0, 1), "n", "memory")])

        assert await index.count() == 2
        assert await index.search(unit(0, 1), ns="m", kinds=["turn"], limit=5) == [(1, pytest.approx(1, abs=CLOSE))]
        assert [id for id, _ in await index.search(unit(1, 0), ns="n", kinds=None, limit=5)] == [2]


async def test_removed_points_are_gone_and_strangers_do_no_harm(open_index: OpenIndex) -> None:
    """Removing is complete, and may be repeated."""
    async with open_index(dimension=2) as index:
        await index.upsert([Point(id, unit(1, id), "n", "memory") for id in range(1, 6)])

        await index.remove([2, 4, 777])
        await index.remove([2])
        await index.remove([])

        assert await index.count() == 3
        assert {id for id, _ in await index.search(unit(1, 0), ns="n", kinds=None, limit=9)} == {1, 3, 5}


async def test_ids_come_in_pages_in_ascending_order(open_index: OpenIndex) -> None:
    """Whatever the order they were stored in, up to the largest ids there are."""
    async with open_index(dimension=2) as index:
        ids = [40, 7, 3, 1 << 40, 100, 8]
        await index.upsert([Point(id, unit(1, 1), "n", "memory") for id in ids])

        assert await index.ids(after=0, limit=3) == [3, 7, 8]
        assert await index.ids(after=8, limit=3) == [40, 100, 1 << 40]
        assert await index.ids(after=1 << 40, limit=3) == []


async def test_a_cleared_index_is_empty_and_usable(open_index: OpenIndex) -> None:
    """Clearing an empty one included."""
    async with open_index(dimension=2) as index:
        await index.clear()
        await index.upsert([Point(1, unit(1, 0), "n", "memory")])
        await index.clear()

        assert (await index.count(), await index.ids(after=0, limit=9)) == (0, [])
        await index.upsert([Point(2, unit(1, 0), "n", "memory")])
        assert [id for id, _ in await index.search(unit(1, 0), ns="n", kinds=None, limit=9)] == [2]


async def test_what_was_stored_is_there_when_opened_again(open_index: OpenIndex) -> None:
    """With its places, so that filters work as before."""
    async with open_index(dimension=2) as index:
        await index.upsert([Point(1, unit(1, 0), "n", "memory"), Point(2, unit(0, 1), "m", "turn")])
        await index.remove([3])

    async with open_index(dimension=2) as index:
        assert await index.count() == 2
        assert [id for id, _ in await index.search(unit(1, 0), ns="m", kinds=["turn"], limit=9)] == [2]


async def test_mark_lives_and_dies_with_the_points(open_index: OpenIndex) -> None:
    """It is no point to anybody, the last one counts, and a cleared index has none."""
    async with open_index(dimension=2) as index:
        assert await index.read_mark() == ""
        await index.upsert([Point(1, unit(1, 0), "n", "memory")])
        await index.write_mark("d 1")
        await index.write_mark("d 2")

    async with open_index(dimension=2) as index:
        assert await index.read_mark() == "d 2"
        assert (await index.count(), await index.ids(after=0, limit=9)) == (1, [1])
        assert [id for id, _ in await index.search(unit(1, 0), ns="n", kinds=None, limit=9)] == [1]
        await index.clear()
        assert (await index.read_mark(), await index.count()) == ("", 0)


async def test_many_points_keep_their_vectors_and_filters(open_index: OpenIndex) -> None:
    """Past the size where the embedded index builds its graph, while points are changed and removed."""
    vectors = random_vectors(3 * GRAPH_POINTS, 8)
    async with open_index() as index:
        points = [Point(id, vector, f"n{id % 3}", "memory") for id, vector in enumerate(vectors, 1)]
        for at in range(0, len(points), 50):
            await index.upsert(points[at : at + 50])
        moved = [Point(point.id, point.vector, "moved", "turn") for point in points[:20]]
        await index.upsert(moved)
        await index.remove([point.id for point in points[20:40]])
        if isinstance(index, EdgeIndex):
            await index.optimised()

        assert await index.count() == len(points) - 20
        for point in moved[:5]:
            ((id, score),) = await index.search(point.vector, ns="moved", kinds=["turn"], limit=1)
            assert (id, score) == (point.id, pytest.approx(1, abs=CLOSE))
        for point in points[40:]:
            found = dict(await index.search(point.vector, ns=point.ns, kinds=None, limit=5))
            assert found.get(point.id) == pytest.approx(1, abs=CLOSE)
            assert all(id % 3 == point.id % 3 and id > 40 for id in found)


async def test_another_models_index_is_apart_and_can_be_forgotten(open_index: OpenIndex) -> None:
    """One collection or folder per model, whatever characters its name has."""
    async with open_index("Old/Model 1", 2) as old:
        await old.upsert([Point(1, unit(1, 0), "n", "memory")])
    async with open_index("New", 3) as new:
        assert await new.count() == 0
        await new.upsert([Point(5, unit(1, 0, 0), "n", "memory")])
        await new.forget_model("Old/Model 1")
        await new.forget_model("never there")
        await new.forget_model("New")
        assert await new.count() == 1
    async with open_index("Old/Model 1", 2) as old:
        assert await old.count() == 0


async def test_a_vector_of_another_length_is_refused_whole(open_index: OpenIndex) -> None:
    """Nothing of the batch is stored."""
    async with open_index(dimension=2) as index:
        good, bad = Point(1, unit(1, 0), "n", "memory"), Point(2, array("f", [1.0]).tobytes(), "n", "memory")
        with pytest.raises(IndexUnavailable, match=r"chunk 2 has 1 components.* holds 2"):
            await index.upsert([good, bad])
        assert await index.count() == 0
