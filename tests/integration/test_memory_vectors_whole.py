"""Encoder, index and pump of one memory together: a change of the model, verify and rebuild with progress, what is lost."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from bus.settings import Settings, load_settings
from schemas.bodies.upkeep import MemoryVerify, UpkeepProgress
from tests.qdrant_server import QdrantServer
from tests.vectors_bench import Store, opened_store, tiny_model, until
from workers.memory.upkeep import reporting
from workers.memory.vectors import agreement, outbox, vectors
from workers.memory.vectors.unavailable import EncoderUnavailable, VectorsUnavailable
from workers.memory.vectors.vectors import Vectors

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "tokenizers", "qdrant_edge")),
    reason="vectors need the extra 'memory'",
)


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at again after seconds is looked at again at once."""
    monkeypatch.setattr(outbox, "RETRY_S", 0.01)
    monkeypatch.setattr(outbox, "RETRY_MAX_S", 0.02)
    monkeypatch.setattr(vectors, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(vectors, "_WATCH_S", 0.01)


def settings_for(home: Path, model: Path, **memory: object) -> Settings:
    """Settings of a memory below `home` whose encoder is in the folder `model`."""
    chosen = {f"memory.{key}": value for key, value in memory.items()}
    return load_settings(overrides={"home": str(home), "memory.encoder": str(model), **chosen})


@asynccontextmanager
async def tended(settings: Settings, store: Store) -> AsyncIterator[Vectors]:
    """The vectors of a store, at work."""
    opened = await Vectors.open(settings, store.records)
    store.listeners.append(opened.wake)
    work = asyncio.create_task(opened.tend_forever())
    try:
        yield opened
    finally:
        store.listeners.remove(opened.wake)
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        await opened.close()


async def nearest(opened: Vectors, query: str) -> list[int]:
    """Chunk ids, nearest first."""
    encoder, index = opened.encoder(), opened.index()
    assert encoder is not None
    assert index is not None
    (vector,) = await encoder.encode([query], is_query=True)
    return [id for id, _ in await index.search(vector, ns="n", kinds=None, limit=3)]


async def ignore(progress: UpkeepProgress) -> None:
    """Nobody listens."""


async def test_another_model_makes_every_vector_anew_in_the_background(tmp_path: Path) -> None:
    """At the next start, without a word to anybody; the old index and its folder are gone."""
    home = tmp_path / "home"
    first = settings_for(home, tiny_model(tmp_path / "first", seed=1))
    second = settings_for(home, tiny_model(tmp_path / "second", seed=2))
    async with opened_store(tmp_path) as store:
        ids = await store.put("a", *(f"the key number {number}" for number in range(30)), "a train")
        async with tended(first, store) as opened:
            await store.settled()
            old = (await opened.state()).encoder
        assert [path.name for path in (home / "memory" / "vectors").iterdir()] == [old]

        async with tended(second, store) as opened:
            state = await opened.state()
            assert state.encoder != old
            await until(lambda: not (home / "memory" / "vectors" / old).exists(), "the old index is removed")
            await store.settled()
            verified = await opened.verify(MemoryVerify(), ignore)
            assert (verified.agrees, verified.vectors) == (True, 31)
            assert (await nearest(opened, "a train"))[0] == ids[-1]
        models = await store.rows("SELECT DISTINCT vector_model FROM chunks")
        assert models == [(state.encoder,)]


async def test_rebuild_makes_every_vector_anew_and_says_how_far_it_is(tmp_path: Path) -> None:
    """Stage by stage, up to the whole; a vector that was nobody's is gone."""
    settings = settings_for(tmp_path / "home", tiny_model(tmp_path / "model"))
    heard: list[UpkeepProgress] = []

    async def hear(progress: UpkeepProgress) -> None:
        heard.append(progress)

    async with opened_store(tmp_path) as store:
        ids = await store.put("a", *(f"the key number {number}" for number in range(700)))
        async with tended(settings, store) as opened:
            await store.settled()
            index = opened.index()
            assert index is not None
            await index.remove(ids[:5])
            before = await opened.verify(MemoryVerify(), hear)
            assert (before.agrees, before.missing) == (False, ids[:5])

            rebuilt = await opened.rebuild(hear)

            assert rebuilt.chunks == 700
            assert (await opened.verify(MemoryVerify(), hear)).agrees
            assert await index.count() == 700
    encoding = [progress for progress in heard if progress.stage == "encode"]
    assert encoding[-1].done == encoding[-1].total == 700
    assert [progress.done for progress in encoding] == sorted(progress.done for progress in encoding)
    assert {"compare", "order"} & {progress.stage for progress in heard}


async def test_rebuild_does_not_wait_for_what_is_written_meanwhile(tmp_path: Path) -> None:
    """Under steady writing there is always something that waits; only what was there before is rebuilt."""
    settings = settings_for(tmp_path / "home", tiny_model(tmp_path / "model"))
    heard: list[UpkeepProgress] = []

    async with opened_store(tmp_path) as store:

        async def write_more(progress: UpkeepProgress) -> None:
            heard.append(progress)
            if progress.stage == "encode" and len(heard) < 30:
                await store.put(f"later {len(heard)}", *(f"the train number {number}" for number in range(300)))

        await store.put("a", *(f"the key number {number}" for number in range(700)))
        async with tended(settings, store) as opened:
            await store.settled()
            rebuilt = await opened.rebuild(write_more)

            assert rebuilt.chunks == 700
            assert not await store.is_settled()
            await store.settled()
            assert (await opened.verify(MemoryVerify(), ignore)).agrees
    assert heard[-1].done == heard[-1].total == 700


async def test_rebuild_that_is_cut_off_loses_no_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is empty by then, and only some texts are ordered: the rest is noticed without a restart."""
    monkeypatch.setattr(reporting, "TELL_EVERY_S", 0.001)
    monkeypatch.setattr(agreement, "PAGE_CHUNKS", 5)
    settings = settings_for(tmp_path / "home", tiny_model(tmp_path / "model"))

    async def leave(progress: UpkeepProgress) -> None:
        if progress.stage == "order" and progress.done:
            raise ConnectionResetError("whoever asked has left")

    async with opened_store(tmp_path) as store:
        ids = await store.put("a", *(f"the key number {number}" for number in range(400)))
        async with tended(settings, store) as opened:
            await store.settled()
            with pytest.raises(ConnectionResetError):
                await opened.rebuild(leave)

            index = opened.index()
            assert index is not None
            async with asyncio.timeout(20):
                while await index.count() < len(ids):
                    await asyncio.sleep(0.01)
            await store.settled()
            assert (await opened.verify(MemoryVerify(), ignore)).agrees


async def test_verify_repairs_what_differs(tmp_path: Path) -> None:
    """In the background, after its answer."""
    settings = settings_for(tmp_path / "home", tiny_model(tmp_path / "model"))
    async with opened_store(tmp_path) as store:
        ids = await store.put("a", "the key", "a train", "x y z")
        async with tended(settings, store) as opened:
            await store.settled()
            index = opened.index()
            assert index is not None
            await index.remove(ids[1:])
            repaired = await opened.verify(MemoryVerify(repair=True), ignore)
            assert (repaired.agrees, repaired.repaired) == (False, 2)
            await store.settled()
            assert (await opened.verify(MemoryVerify(), ignore)).agrees


async def test_damaged_index_is_made_anew_by_the_first_search(tmp_path: Path) -> None:
    """The folder may be gone as well; texts are the record."""
    settings = settings_for(tmp_path / "home", tiny_model(tmp_path / "model"))
    async with opened_store(tmp_path) as store:
        ids = await store.put("a", "the key", "a train")
        async with tended(settings, store) as opened:
            await store.settled()
        folder = tmp_path / "home" / "memory" / "vectors"
        for file in folder.rglob("edge_config.json"):
            file.write_text("{")
        for _ in range(2):
            async with tended(settings, store) as opened:
                await nearest(opened, "a train")
                async with asyncio.timeout(20):
                    while set(await nearest(opened, "a train")) != set(ids):
                        await asyncio.sleep(0.01)
                assert (await nearest(opened, "a train"))[0] == ids[1]
            shutil.rmtree(folder)


async def test_orders_wait_for_a_model_that_is_installed_later(tmp_path: Path) -> None:
    """The state says what is missing; nothing has to be started anew."""
    model = tmp_path / "model"
    settings = settings_for(tmp_path / "home", model)
    async with opened_store(tmp_path) as store, tended(settings, store) as opened:
        await store.put("a", "the key")
        assert (opened.encoder(), opened.index()) == (None, None)
        state = await opened.state()
        assert (state.encoder_state, state.count) == ("unusable", 0)
        assert "is neither a folder" in state.degraded
        for refused in (opened.verify(MemoryVerify(), ignore), opened.rebuild(ignore)):
            with pytest.raises(EncoderUnavailable, match="is neither a folder"):
                await refused

        tiny_model(tmp_path / "on its way").rename(model)
        await store.settled()
        assert (await opened.state()).degraded == ""


async def test_server_by_url_holds_the_vectors_and_may_go_away(tmp_path: Path) -> None:
    """Its loss is reported, by rebuild too; once it is back, what waited is there, and nothing below home."""
    pytest.importorskip("qdrant_client")
    server = QdrantServer()
    async with opened_store(tmp_path) as store:
        async with server.serving() as url:
            settings = settings_for(tmp_path / "home", tiny_model(tmp_path / "model"), qdrant_url=url)
            async with tended(settings, store) as opened:
                (first,) = await store.put("a", "the key")
                await store.settled()
                assert await nearest(opened, "the key") == [first]
                assert (await opened.state()).engine == "qdrant"
        assert len(server.collections) == 1
        assert not (tmp_path / "home" / "memory" / "vectors").exists()

        async with tended(settings, store) as opened:
            await store.put("b", "a train")
            async with asyncio.timeout(20):
                while not (await opened.state()).degraded.startswith("the Qdrant server failed"):
                    await asyncio.sleep(0.01)
            with pytest.raises(VectorsUnavailable, match="the Qdrant server failed"):
                await opened.rebuild(ignore)
            async with server.serving(int(url.rsplit(":", 1)[1])):
                await store.settled()
                async with asyncio.timeout(20):
                    while (await opened.state()).degraded:
                        await asyncio.sleep(0.01)
                assert (await opened.verify(MemoryVerify(), ignore)).agrees


async def test_model_is_adopted_once_its_change_is_ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash on the way to another model begins again, and ends with every vector of the new one."""
    home = tmp_path / "home"
    first = settings_for(home, tiny_model(tmp_path / "first", seed=1))
    second = settings_for(home, tiny_model(tmp_path / "second", seed=2))
    async with opened_store(tmp_path) as store:
        await store.put("a", *(f"the key number {number}" for number in range(12)))
        async with tended(first, store):
            await store.settled()

        real = agreement._order_all
        half_way = asyncio.Event()

        async def crash(records: object, report: object) -> None:
            await store.execute("UPDATE chunks SET vector_model = NULL WHERE id < 6")
            await store.execute("INSERT INTO outbox (chunk_id, action) SELECT id, 'embed' FROM chunks WHERE id < 6")
            half_way.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(agreement, "_order_all", crash)
        async with tended(second, store):
            await asyncio.wait_for(half_way.wait(), 20)
        monkeypatch.setattr(agreement, "_order_all", real)

        async with tended(second, store) as opened:
            await until(lambda: opened.loaded_encoder() is not None, "the new model is in use")
            await store.settled()
            name = (await opened.state()).encoder
            assert await store.rows("SELECT DISTINCT vector_model FROM chunks") == [(name,)]
            assert (await opened.verify(MemoryVerify(), ignore)).agrees


async def test_new_database_beside_old_vectors_is_searched_by_meaning(tmp_path: Path) -> None:
    """What `how_to_restore` says where there is no backup: the old texts' vectors must not stand before the new ones."""
    settings = settings_for(tmp_path / "home", tiny_model(tmp_path / "model"))
    async with opened_store(tmp_path / "old") as store, tended(settings, store):
        await store.put("a", *(f"the key number {number}" for number in range(50)))
        await store.settled()

    async with opened_store(tmp_path / "new") as store, tended(settings, store) as opened:
        (new,) = await store.put("a", "the key")
        await store.settled()
        assert await nearest(opened, "the key") == [new]
        index = opened.index()
        assert index is not None
        assert await index.count() == 1
        assert (await opened.verify(MemoryVerify(), ignore)).agrees


async def test_two_memories_with_one_prefix_do_not_mix(tmp_path: Path) -> None:
    """The second is told which setting to change, searches by words, and takes the place only when told to."""
    pytest.importorskip("qdrant_client")
    server = QdrantServer()
    model = tiny_model(tmp_path / "model")
    async with server.serving() as url, opened_store(tmp_path / "one") as one, opened_store(tmp_path / "two") as two:
        async with tended(settings_for(tmp_path / "1", model, qdrant_url=url), one):
            await one.put("a", "the key", "a train")
            await one.settled()
        async with tended(settings_for(tmp_path / "2", model, qdrant_url=url), two) as opened:
            await two.put("a", "x y z")
            await until(lambda: "memory.qdrant_prefix" in opened.degraded.get("vectors", ""), "the second is told")
            assert opened.index() is None
            with pytest.raises(VectorsUnavailable, match=r"memory\.qdrant_prefix"):
                await opened.verify(MemoryVerify(repair=True), ignore)
            ((collection),) = server.collections.values()
            assert set(collection.points) == {0, 1, 2}

            assert (await opened.rebuild(ignore)).chunks == 1
            assert opened.index() is not None
            assert (await opened.verify(MemoryVerify(), ignore)).agrees


async def test_text_that_cannot_be_encoded_is_told_by_the_state(tmp_path: Path) -> None:
    """It is no vector, and nothing waits for it."""
    settings = settings_for(tmp_path / "home", tiny_model(tmp_path / "model"))
    async with opened_store(tmp_path) as store, tended(settings, store) as opened:
        ids = await store.put("a", "the key", "a train")
        await store.settled()
        await store.execute("UPDATE chunks SET vector_model = 'none' WHERE id = ?", ids[0])
        await store.execute("INSERT INTO service_state (key, value) VALUES (?, x'a0')", f"vectors.unencodable/{ids[0]}")
        assert (await opened.state()).count == 1
        assert (await opened.verify(MemoryVerify(), ignore)).unencodable == ids[:1]
