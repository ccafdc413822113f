"""The pump from outbox to index: complete, in pages, through failures of either side, and again after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.vectors_bench import FakeEncoder, FakeIndex, Store, opened_store, until
from workers.memory.records import Records
from workers.memory.vectors import agreement, outbox
from workers.memory.vectors.outbox import embedded_text


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are tried again at once."""
    monkeypatch.setattr(outbox, "RETRY_S", 0.005)
    monkeypatch.setattr(outbox, "RETRY_MAX_S", 0.01)


async def check_agreement(store: Store, encoder: FakeEncoder, index: FakeIndex) -> None:
    """Every chunk has the vector of its text, and there is no other."""
    rows = await store.rows("SELECT id, text, ns, kind, vector_model FROM chunks")
    assert {id for id, *_ in rows} == set(index.points)
    for id, text, ns, kind, model in rows:
        assert index.points[id] == (id, encoder.vector(text), ns, kind)
        assert model == encoder.name


async def test_chunks_reach_the_index_and_removed_ones_leave_it(tmp_path: Path) -> None:
    """In the order of their writes, woken by commits."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store, store.pumping(encoder, index):
        first = await store.put("a", "one", "two")
        await store.put("b", "three", ns="m", kind="turn")
        await store.settled()
        await check_agreement(store, encoder, index)

        await store.put("a", "changed")
        await store.remove("b", ns="m", kind="turn")
        await store.settled()

        await check_agreement(store, encoder, index)
        assert not set(first) & set(index.points)


async def test_pages_are_encoded_ahead_of_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder always has the next pages already."""
    monkeypatch.setattr(outbox, "PAGE_CHUNKS", 10)
    encoder, index = FakeEncoder(), FakeIndex()
    encoder.may_go_on.clear()
    async with opened_store(tmp_path) as store:
        await store.put("a", *(f"text {number}" for number in range(35)))
        async with store.pumping(encoder, index):
            await until(lambda: len(encoder.calls) == 3, "three pages are with the encoder")
            assert not index.points
            encoder.may_go_on.set()
            await store.settled()
            assert [len(call) for call in encoder.calls] == [10, 10, 10, 5]
            await check_agreement(store, encoder, index)


async def test_texts_of_similar_length_are_encoded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across all that was read at once; what was changed or removed in between ends as it was ordered last."""
    monkeypatch.setattr(outbox, "PAGE_CHUNKS", 4)
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        for number in range(10):
            await store.put(f"s{number}", "x" * (number * 7 % 10 + 1))
        await store.put("s3", "changed before it was encoded")
        await store.remove("s5")
        async with store.pumping(encoder, index):
            await store.settled()
            await check_agreement(store, encoder, index)
    lengths = [len(text) for call in encoder.calls for text in call]
    assert (len(lengths), lengths) == (9, sorted(lengths))


async def test_chunk_removed_while_it_is_encoded_leaves_nothing(tmp_path: Path) -> None:
    """Its vector comes and goes again."""
    encoder, index = FakeEncoder(), FakeIndex()
    encoder.may_go_on.clear()
    async with opened_store(tmp_path) as store, store.pumping(encoder, index):
        await store.put("a", "soon gone")
        await until(lambda: bool(encoder.calls), "the text is with the encoder")
        await store.remove("a")
        encoder.may_go_on.set()
        await store.settled()
        assert not index.points


async def test_nothing_is_lost_while_the_encoder_is_away(tmp_path: Path) -> None:
    """It waits, says why, and goes on by itself."""
    encoder, index = FakeEncoder(), FakeIndex()
    encoder.fails_with = "the model is missing"
    async with opened_store(tmp_path) as store, store.pumping(encoder, index) as pump:
        await store.put("a", "one")
        await until(lambda: pump.problem == "the model is missing", "the pump says what is wrong")
        await store.put("b", "two")
        encoder.fails_with = ""
        await store.settled()
        await until(lambda: pump.problem == "", "the pump says that all is well")
        await check_agreement(store, encoder, index)


async def test_index_that_comes_back_empty_is_filled_again(tmp_path: Path) -> None:
    """A server that was replaced while it was away: what it had lost is made anew."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store, store.pumping(encoder, index) as pump:
        await store.put("a", *(f"text {number}" for number in range(20)))
        await store.settled()
        index.fails_with = "connection refused"
        await store.put("b", "another")
        await until(lambda: pump.problem == "connection refused", "the pump says what is wrong")
        index.points.clear()
        index.fails_with = ""
        await until(lambda: len(index.points) == 21, "everything is in the index again")
        await store.settled()
        await check_agreement(store, encoder, index)


async def test_crash_between_storing_and_ticking_off_repeats_the_page(tmp_path: Path) -> None:
    """The points are stored twice with the same ids, which changes nothing."""

    class HangsAfterStoring(FakeIndex):
        async def remove(self, ids: Sequence[int]) -> None:
            await asyncio.Event().wait()

    encoder, hanging = FakeEncoder(), HangsAfterStoring()
    async with opened_store(tmp_path) as store:
        ids = await store.put("a", "one", "two")
        async with store.pumping(encoder, hanging):
            await until(lambda: set(hanging.points) == set(ids), "the points are stored")
        assert not await store.is_settled()

        index = FakeIndex()
        index.points = hanging.points
        async with store.pumping(encoder, index):
            await store.settled()
        assert index.upserted == ids
        await check_agreement(store, encoder, index)


async def test_changed_encoder_makes_every_vector_anew(tmp_path: Path) -> None:
    """The old index is removed, chunks that still waited are encoded once."""
    old, index = FakeEncoder("old"), FakeIndex()
    async with opened_store(tmp_path) as store:
        async with store.pumping(old, index):
            await store.put("a", *(f"text {number}" for number in range(30)))
            await store.settled()
        await store.put("b", "waited meanwhile")
        new, new_index = FakeEncoder("new", dimension=4), FakeIndex(4)
        async with store.pumping(new, new_index):
            await until(lambda: len(new_index.points) == 31, "every chunk has a new vector")
            await store.settled()
            await check_agreement(store, new, new_index)
        assert sum(map(len, new.calls)) == 31
        assert new_index.forgotten == ["old"]


async def test_idle_pump_opens_neither_encoder_nor_index(tmp_path: Path) -> None:
    """A service at rest costs nothing."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            await store.put("a", "one")
            await store.settled()
        encoder.calls.clear()
        index.fails_with = "was opened"
        async with store.pumping(encoder, index) as pump:
            pump.wake()
            await store.execute("SELECT 1")
            assert (pump.problem, encoder.calls) == ("", [])


async def test_index_that_lost_its_files_is_noticed_by_the_first_search(tmp_path: Path) -> None:
    """Although nothing is written."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            await store.put("a", "one", "two")
            await store.settled()
        index.points.clear()
        async with store.pumping(encoder, index) as pump:
            pump.index_is_used()
            await until(lambda: len(index.points) == 2, "the vectors are back")


async def test_order_overtaken_by_another_database_is_not_ticked_off(tmp_path: Path) -> None:
    """A restored database may bear the same numbers for other texts."""
    encoder, index = FakeEncoder(), FakeIndex()
    encoder.may_go_on.clear()
    async with opened_store(tmp_path) as store, store.pumping(encoder, index) as pump:
        (id,) = await store.put("a", "before")
        await until(lambda: bool(encoder.calls), "the text is with the encoder")
        await store.execute("UPDATE chunks SET text = 'after' WHERE id = ?", id)
        pump.begin_anew()
        encoder.may_go_on.set()
        await store.settled()
        await check_agreement(store, encoder, index)


def test_who_spoke_and_when_is_encoded_with_what_was_said() -> None:
    """Text without a speaker stays as it is."""
    at = datetime(2024, 5, 3, 23, 30).astimezone().timestamp()
    assert embedded_text("The train leaves at 7.", "Ana", at) == "2024-05-03 Ana: The train leaves at 7."
    assert embedded_text("The train leaves at 7.", None, at) == "The train leaves at 7."


async def test_what_is_new_overtakes_a_long_document(tmp_path: Path) -> None:
    """A turn is embedded before the rest of a document that was there first; everything is embedded once."""
    encoder, index = FakeEncoder(), FakeIndex()
    pieces = [f"{number} {'x' * 9_000}" for number in range(40)]
    async with opened_store(tmp_path) as store:
        document = await store.put("book", *pieces, kind="document")
        encoder.may_go_on.clear()
        async with store.pumping(encoder, index):
            await until(lambda: bool(encoder.calls), "the encoder has the first page")
            turn = await store.put("s/1", "hello", kind="turn")
            encoder.may_go_on.set()
            await store.settled()

        given = [text for call in encoder.calls for text in call]
        assert given.index("hello") < 20
        assert sorted(given) == sorted([*pieces, "hello"])
        assert set(index.points) == {*document, *turn}
        await check_agreement(store, encoder, index)


async def test_chunk_removed_while_its_document_waits_leaves_no_vector(tmp_path: Path) -> None:
    """What is to be removed overtakes nothing."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        await store.put("book", *(f"{number} {'x' * 9_000}" for number in range(40)), kind="document")
        encoder.may_go_on.clear()
        async with store.pumping(encoder, index):
            await until(lambda: bool(encoder.calls), "the encoder has the first page")
            await store.remove("book", kind="document")
            (kept,) = await store.put("m", "kept")
            encoder.may_go_on.set()
            await store.settled()

        assert set(index.points) == {kept}
        await check_agreement(store, encoder, index)


async def test_page_ends_before_it_takes_the_encoder_too_long(tmp_path: Path) -> None:
    """By characters as well as by number."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        await store.put("long", *(f"{number} {'x' * 9_000}" for number in range(10)))
        await store.put("short", *(str(number) for number in range(outbox.PAGE_CHUNKS + 1)))
        async with store.pumping(encoder, index):
            await store.settled()

        assert max(len(call) for call in encoder.calls) == outbox.PAGE_CHUNKS
        assert max(sum(len(text) for text in call) for call in encoder.calls) <= outbox.PAGE_CHARACTERS


async def test_text_that_cannot_be_encoded_stops_no_other(tmp_path: Path) -> None:
    """Wherever it stands in its page: it is noted, counted and named, and is no reason to compare anything again."""
    encoder, index = FakeEncoder(), FakeIndex()
    encoder.bad = {"text 77", "text 200"}
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            ids = await store.put("a", *(f"text {number}" for number in range(300)))
            await store.settled()
        bad = [ids[77], ids[200]]
        assert set(index.points) == set(ids) - set(bad)
        assert await agreement.counts(store.records) == (300, 0, 2)
        verified = await agreement.compare(
            store.records, index, encoder.name, is_repaired=False, report=lambda stage, done, total: None
        )
        assert (verified.agrees, verified.unencodable) == (False, bad)
        assert verified.problems == ["2 chunks cannot be encoded by this model"]

        encoder.calls.clear()
        async with store.pumping(encoder, index) as pump:
            pump.index_is_used()
            await store.put("b", "one more")
            await store.settled()
        assert encoder.calls == [["one more"]]


async def test_text_that_could_not_be_encoded_has_another_chance(tmp_path: Path) -> None:
    """By repair, and with another model; one that is removed is counted no longer."""
    encoder, index = FakeEncoder(), FakeIndex()
    encoder.bad = {"one", "two"}
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            await store.put("a", "one")
            await store.put("b", "two")
            await store.settled()
            assert (await agreement.counts(store.records)).unencodable == 2
            await store.remove("b")
            await store.settled()
            assert (await agreement.counts(store.records)).unencodable == 1

        encoder.bad = set()
        await agreement.compare(
            store.records, index, encoder.name, is_repaired=True, report=lambda stage, done, total: None
        )
        async with store.pumping(encoder, index):
            await store.settled()
            await check_agreement(store, encoder, index)
        assert (await agreement.counts(store.records)).unencodable == 0

        encoder.bad = {"three"}
        async with store.pumping(encoder, index):
            await store.put("c", "three")
            await store.settled()
        other, other_index = FakeEncoder("fake-2"), FakeIndex()
        async with store.pumping(other, other_index):
            await until(lambda: len(other_index.points) == 2, "every chunk has a vector of the other model")
            await store.settled()
            await check_agreement(store, other, other_index)
        assert (await agreement.counts(store.records)).unencodable == 0


async def test_text_that_could_not_be_encoded_is_not_counted_once_it_is_deleted(tmp_path: Path) -> None:
    """While its removal waits for the index too: the vectors were one fewer than none."""
    encoder, index = FakeEncoder(), FakeIndex()
    encoder.bad = {"one"}
    async with opened_store(tmp_path) as store:
        async with store.pumping(encoder, index):
            await store.put("a", "one")
            await store.settled()
        await store.remove("a")
        counted = await agreement.counts(store.records)
        assert (counted, counted.vectors) == ((0, 0, 0), 0)

        async with store.pumping(encoder, index):
            await store.settled()
        assert await store.rows("SELECT key FROM service_state WHERE key GLOB 'vectors.unencodable/*'") == []


async def test_encoder_that_fails_with_everything_blames_no_text(tmp_path: Path) -> None:
    """It waits as it does while the encoder is away."""
    encoder, index = FakeEncoder(), FakeIndex()
    encoder.bad = {"one", "two", outbox._HARMLESS_TEXT}
    async with opened_store(tmp_path) as store, store.pumping(encoder, index) as pump:
        await store.put("a", "one", "two")
        await until(lambda: pump.problem == "the encoder process ended: signal 11", "the pump says what is wrong")
        assert await agreement.counts(store.records) == (2, 2, 0)
        encoder.bad = set()
        await store.settled()
        await check_agreement(store, encoder, index)


async def test_what_was_written_before_the_index_was_settled_waits_for_that(tmp_path: Path) -> None:
    """A page carried out on an index of unknown state would make it look as if it belonged to this database."""
    encoder, index = FakeEncoder(), FakeIndex()
    async with opened_store(tmp_path) as store:
        pump = outbox.OutboxPump(store.records, encoder, index)
        is_looked_at = False

        async def look(read: Any) -> Any:
            nonlocal is_looked_at
            found = await Records.read(store.records, read)
            if read is outbox._has_orders and not is_looked_at:
                is_looked_at = True
                await store.put("a", "one")
            return found

        store.records.read = look  # type: ignore[method-assign]
        await pump._work()
        assert not index.points
        await pump._work()
        await check_agreement(store, encoder, index)
