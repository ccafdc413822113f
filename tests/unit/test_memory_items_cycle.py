"""The life cycle on a real file with a fake clock: ageing, summaries, consolidation, and what must never be lost."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from schemas.bodies import items as bodies
from tests.items_bench import HOUR_S, START_S, Bench, bench
from workers.memory.items import cycle, rows
from workers.memory.items.lifecycle import age
from workers.memory.items.summary import LOOKED_AT_CHARACTERS, summarise

LONG = "The boiler is in the cellar. Its pressure must stay above one bar. " * 8


async def importance(at: Bench, memory_id: str) -> tuple[str, float]:
    """Tier and importance of a memory."""
    memory = await at.get(memory_id)
    return memory.tier, memory.importance


async def consolidations(at: Bench) -> list[bodies.Memory]:
    """Every consolidated memory."""
    return (await at.memories.list(bodies.MemoryList(type="consolidated"))).memories


# Ageing ---------------------------------------------------------------------------------------------------------


async def test_hourly_runs_give_the_numbers_of_the_rule(tmp_path: Path) -> None:
    """Importance times 1 - rate * age in days, each hour anew; long memories rest."""
    async with bench(tmp_path) as at:
        for tier in ("short", "medium", "long"):
            await at.add("c", tier, tier=tier, importance=1.0)
        expected = {"short": 1.0, "medium": 1.0, "long": 1.0}
        for hour in range(1, 6):
            at.wait(HOUR_S)
            await at.age()
            expected["short"] *= 1 - 0.1 * hour / 24
            expected["medium"] *= 1 - 0.05 * hour / 24
            for tier, value in expected.items():
                assert await importance(at, tier) == (tier, pytest.approx(value))


async def test_runs_more_often_change_nothing_and_missed_ones_are_made_up_for(tmp_path: Path) -> None:
    """A service that looks every ten minutes and one that was down a day agree."""
    async with bench(tmp_path) as at:
        await at.add("c", "m", importance=1.0)
        for _ in range(24 * 6):
            at.wait(600)
            await at.age()
        by_looking = await importance(at, "m")

    aged = age("short", 1.0, created_at=START_S, since=START_S, until=START_S + 24 * HOUR_S)
    assert by_looking == (aged.tier, pytest.approx(aged.importance))


async def test_a_clock_set_back_changes_nothing(tmp_path: Path) -> None:
    """No pass lies in the past."""
    async with bench(tmp_path) as at:
        await at.add("c", "m", importance=1.0)
        at.wait(5 * HOUR_S)
        await at.age()
        before = await importance(at, "m")
        at.wait(-4 * HOUR_S)
        report = await at.age()

        assert await importance(at, "m") == before
    assert report.looked_at == 0


async def test_an_importance_set_anew_does_not_pay_for_the_hours_before(tmp_path: Path) -> None:
    """A person who says that something matters is not overruled by a run that was late."""
    async with bench(tmp_path) as at:
        await at.add("c", "m", importance=1.0)
        at.wait(9.5 * HOUR_S)
        await at.update("m", importance=0.9)
        await at.age()
        unchanged = await importance(at, "m")
        at.wait(HOUR_S)
        await at.age()

        assert unchanged == ("short", 0.9)
        assert await importance(at, "m") == ("short", pytest.approx(0.9 * (1 - 0.1 * 10 / 24)))


async def test_a_dry_run_tells_what_a_run_then_does(tmp_path: Path) -> None:
    """And writes nothing."""
    async with bench(tmp_path) as at:
        await at.add("c", "gone", ttl_s=60)
        await at.add(LONG, "faded", importance=0.3)
        await at.add("c", "strong", importance=1.0)
        for number in range(6):
            await at.add(f"part {number}.", f"p{number}", parent_id="p", importance=0.3)
        at.wait(HOUR_S)
        before = await at.all()
        told = await at.age(dry_run=True)
        assert await at.all() == before
        done = await at.age()

    assert told.dry_run and not done.dry_run
    assert (told.looked_at, told.decayed, told.promoted, told.summarised, told.consolidated, told.expired) == (
        8,
        8,
        7,
        1,
        1,
        1,
    )
    assert (
        bodies.CycleReport(**{**{name: getattr(told, name) for name in told.__struct_fields__}, "dry_run": False})
        == done
    )


async def test_only_the_namespace_asked_for_ages(tmp_path: Path) -> None:
    """The others wait for their hour."""
    async with bench(tmp_path) as at:
        await at.add("c", "m", importance=1.0)
        await at.add("c", "m", importance=1.0, ns="other")
        at.wait(HOUR_S)
        report = await at.memories.decay(bodies.MemoryDecay(ns="other"), os.urandom(16))

        assert report.looked_at == 1
        assert (await at.get("m")).importance == 1.0
        assert (await at.get("m", ns="other")).importance < 1.0


async def test_a_repeated_request_gets_the_report_it_had(tmp_path: Path) -> None:
    """Exactly once, as every write."""
    async with bench(tmp_path) as at:
        await at.add("c", importance=1.0)
        at.wait(HOUR_S)
        first = await at.memories.decay(bodies.MemoryDecay(), b"i" * 16)

        assert await at.memories.decay(bodies.MemoryDecay(), b"i" * 16) == first
    assert first.decayed == 1


async def test_more_memories_than_one_batch_age_in_one_run(tmp_path: Path) -> None:
    """Each exactly once."""
    async with bench(tmp_path) as at:
        count = cycle.BATCH_ROWS + 10
        items = [bodies.NewMemory(content=f"{number}", importance=1.0) for number in range(count)]
        await at.memories.add_many(bodies.MemoryAddMany(items=items), os.urandom(16))
        at.wait(HOUR_S)
        report = await at.age()
        values = {memory.importance for memory in await at.all()}

    assert report.looked_at == count
    assert values == {1 - 0.1 / 24}


async def test_changes_of_tier_are_told_and_versions_stay(tmp_path: Path) -> None:
    """Fading alone is no event: it happens to every memory every hour."""
    async with bench(tmp_path) as at:
        await at.add("c", "strong", importance=1.0)
        await at.add("c", "weak", importance=0.3)
        at.heard()
        at.wait(HOUR_S)
        await at.age()

        assert at.heard() == [("decay", "weak")]
        assert [(memory.tier, memory.version) for memory in await at.all()] == [("short", 1), ("medium", 1)]


async def test_the_cycle_runs_by_itself_until_cancelled(tmp_path: Path) -> None:
    """At once on starting, which makes up for the time the service was down."""
    async with bench(tmp_path) as at:
        await at.add("c", "m", importance=1.0)
        at.wait(HOUR_S)
        running = asyncio.create_task(at.memories.cycle_forever(0.01))
        async with asyncio.timeout(10):
            while (await at.get("m")).importance == 1.0:
                await asyncio.sleep(0.01)
            at.wait(HOUR_S)
            first = (await at.get("m")).importance
            while (await at.get("m")).importance == first:
                await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


# Summaries ------------------------------------------------------------------------------------------------------


async def test_a_long_memory_that_fades_gets_a_summary_and_keeps_its_words(tmp_path: Path) -> None:
    """Nothing acknowledged is ever lost: the summary stands beside the content."""
    async with bench(tmp_path) as at:
        await at.add(LONG, "m", importance=0.3, metadata={"k": 1})
        await at.add("short", "s", importance=0.3)
        at.wait(HOUR_S)
        report = await at.age()
        memory = await at.get("m")

        assert (await at.get("s")).metadata == {}
    assert report.summarised == 1
    assert memory.content == LONG
    assert memory.metadata == {
        "k": 1,
        "summary": "The boiler is in the cellar. Its pressure must stay above one bar.",
    }


async def test_a_summary_of_the_callers_own_stays(tmp_path: Path) -> None:
    """The service does not know better."""
    async with bench(tmp_path) as at:
        await at.add(LONG, "m", importance=0.3, metadata={"summary": None})
        at.wait(HOUR_S)

        assert (await at.age()).summarised == 0
        assert (await at.get("m")).metadata == {"summary": None}


async def test_a_memory_without_room_for_a_summary_still_ages(tmp_path: Path) -> None:
    """A reply could not carry it with one."""
    async with bench(tmp_path, max_body_bytes=10_000) as at:
        await at.add("Bees. " * 1_400, "m", importance=0.3)
        at.wait(HOUR_S)

        assert (await at.age()).promoted == 1
        assert (await at.get("m")).metadata == {}


async def test_a_batch_ends_when_enough_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no reader is kept for long; the rest comes in the next ones of the same run."""
    monkeypatch.setattr(cycle, "BATCH_CHARACTERS", 2 * len(LONG))
    async with bench(tmp_path) as at:
        for number in range(5):
            await at.add(LONG, f"m{number}", importance=0.3)
        at.wait(HOUR_S)
        batch = await at.records.read(
            lambda connection: cycle.plan(
                connection, tier="short", after=0, ns=None, now=at.now, taken=set(), max_bytes=1_000_000
            )
        )
        assert [ageing.id for ageing in batch.ageings] == ["m0", "m1"]
        assert batch.after == batch.ageings[-1].sequence

        assert (await at.age()).summarised == 5
        assert [list(memory.metadata) for memory in await at.all()] == [["summary"]] * 5


# Consolidation --------------------------------------------------------------------------------------------------


async def siblings(at: Bench, count: int, /, **fields: Any) -> list[str]:
    """Memories under one parent, faded enough to be consolidated."""
    return [
        await at.add(
            f"The hive number {number} gave much honey.",
            f"s{number}",
            **{"parent_id": "p", "importance": 0.3, **fields},
        )
        for number in range(count)
    ]


async def test_siblings_that_fade_become_one_memory_beside_them(tmp_path: Path) -> None:
    """One of type consolidated, related from each of them, under the same parent; they keep their words."""
    async with bench(tmp_path) as at:
        ids = await siblings(at, 4, tags=["bees", "year"], at=7.0)
        await at.update("s2", tags=["bees"])
        at.heard()
        at.wait(HOUR_S)
        report = await at.age()
        (made,) = await consolidations(at)
        related = await at.memories.related(bodies.MemoryRelated(id="s3", kind="consolidated_into"))
        heard = at.heard()

        assert [(await at.get(i)).content for i in ids] == [f"The hive number {n} gave much honey." for n in range(4)]
        assert {(await at.get(i)).tier for i in ids} == {"medium"}
    assert (report.consolidated, report.promoted) == (1, 4)
    assert (made.tier, made.importance, made.tags, made.at, made.parent_id) == ("medium", 0.7, ["bees"], 7.0, "p")
    assert made.metadata == {"consolidated_from": ids, "consolidation_date": START_S + HOUR_S}
    assert made.content == " ".join(f"The hive number {n} gave much honey." for n in range(4))
    assert [one.memory for one in related.related] == [made]
    assert related.related[0].relation.strength == 1.0
    assert heard.count(("consolidate", made.id)) == 1


async def test_relations_count_as_siblings_do(tmp_path: Path) -> None:
    """What a memory leads to is related too, whatever its tier; fewer than three are too few."""
    async with bench(tmp_path) as at:
        for name in ("first", "second"):
            await at.add(f"About {name}.", name, importance=0.3)
        for number in range(3):
            await at.add(f"Fact {number}.", f"t{number}", tier="long")
            await at.link("first", f"t{number}")
        await at.link("second", "t0")
        at.wait(HOUR_S)
        await at.age()
        (made,) = await consolidations(at)

    assert made.metadata["consolidated_from"] == ["first", "t0", "t1", "t2"]
    assert made.parent_id is None


async def test_a_memory_is_consolidated_once(tmp_path: Path) -> None:
    """A hundred siblings make a handful of consolidations and not a hundred; later runs add none."""
    async with bench(tmp_path) as at:
        await siblings(at, 100)
        at.wait(HOUR_S)
        report = await at.age()
        made = await consolidations(at)
        at.wait(HOUR_S)
        later = await at.age()

    sources = [source for memory in made for source in memory.metadata["consolidated_from"]]
    assert report.consolidated == len(made) == 4
    assert len(sources) == len(set(sources)) == 100
    assert all(len(memory.content) <= cycle.CONSOLIDATION_CHARACTERS for memory in made)
    assert later.consolidated == 0


async def test_a_consolidation_goes_with_what_it_quotes(tmp_path: Path) -> None:
    """Who deletes a memory, or lets it expire, wants its words gone; the others stay whole."""
    async with bench(tmp_path) as at:
        await siblings(at, 4)
        at.wait(HOUR_S)
        await at.age()
        (made,) = await consolidations(at)
        at.heard()

        assert await at.delete("s1") == 1
        assert at.heard() == [("delete", "s1"), ("delete", made.id)]
        assert [memory.id for memory in await at.all()] == ["s0", "s2", "s3"]


async def test_only_the_beginnings_of_long_sources_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together no more than one long text, whatever letters they have, and past a null too."""
    read: list[list[str]] = []

    def note(texts: list[str], most: int) -> str:
        read.append(texts)
        return summarise(texts, most)

    monkeypatch.setattr(cycle, "summarise", note)
    contents = [f"{letter}\0{letter} " * 5_000 for letter in ("a", "é", "中", "🙂")]
    async with bench(tmp_path) as at:
        for number, content in enumerate(contents):
            await at.add(content, f"s{number}", parent_id="p", importance=0.3)
        await at.add(contents[3], "alone", importance=0.3)
        at.wait(HOUR_S)
        report = await at.age()

    assert (report.consolidated, report.summarised) == (1, 4)
    assert read[0] == [content[: LOOKED_AT_CHARACTERS // 4] for content in contents]
    assert read[-1] == [contents[3]]


async def test_a_consolidation_that_was_edited_is_the_callers_own(tmp_path: Path) -> None:
    """What somebody wrote is not deleted with something else."""
    async with bench(tmp_path) as at:
        await siblings(at, 4)
        at.wait(HOUR_S)
        await at.age()
        (made,) = await consolidations(at)
        await at.update(made.id, content="My own words.")
        await at.delete("s1")

        assert (await at.get(made.id)).content == "My own words."


async def test_a_source_that_changes_in_between_is_left_for_the_next_run(tmp_path: Path) -> None:
    """What was planned from old words is not written."""
    async with bench(tmp_path) as at:
        await siblings(at, 4)
        at.wait(HOUR_S)
        batch = await at.records.read(
            lambda connection: cycle.plan(
                connection, tier="short", after=0, ns=None, now=at.now, taken=set(), max_bytes=1_000_000
            )
        )
        await at.update("s2", content="Something else.")
        report = await at.records.write(lambda connection, now: cycle.apply(connection, batch.ageings, now, 1_000_000))

        assert (report.consolidated, report.promoted) == (0, 2)
        assert await consolidations(at) == []
        assert (await at.age()).promoted == 2


# What others do meanwhile ---------------------------------------------------------------------------------------


def gone_before(path: Path, memory_id: str, function: Any) -> Any:
    """`function` of the service's reader, with somebody deleting a memory just before."""

    def run(*arguments: Any, **more: Any) -> Any:
        with closing(sqlite3.connect(path)) as other:
            other.execute("DELETE FROM memories WHERE id = ?", (memory_id,))
            other.commit()
        return function(*arguments, **more)

    return run


async def test_a_memory_deleted_while_it_is_looked_at_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is made of one state; what went since is left alone."""
    async with bench(tmp_path) as at:
        await at.add(LONG, "m", importance=0.41)
        at.wait(12 * HOUR_S)
        monkeypatch.setattr(cycle, "_summary", gone_before(at.path, "m", cycle._summary))

        report = await at.age()

        assert (report.looked_at, await at.all()) == (0, [])


async def test_a_listing_is_one_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that is deleted while its page is read is in it."""
    async with bench(tmp_path) as at:
        await at.add("c", "a")
        await at.add("c", "b")
        monkeypatch.setattr(rows, "by_sequence", gone_before(at.path, "b", rows.by_sequence))

        assert [memory.id for memory in await at.all()] == ["a", "b"]


@pytest.mark.parametrize("by", ["promote", "update"])
async def test_a_memory_taken_out_of_rest_owes_nothing_for_the_hours_in_it(tmp_path: Path, by: str) -> None:
    """A long memory loses nothing; made medium again it begins to from then on."""
    async with bench(tmp_path) as at:
        await at.add("c", "m", tier="long", importance=0.9)
        at.wait(120.5 * HOUR_S)
        if by == "promote":
            await at.memories.promote(bodies.MemoryPromote(id="m", tier="medium"), os.urandom(16))
        else:
            await at.update("m", tier="medium")
        await at.age()
        assert await importance(at, "m") == ("medium", 0.9)

        at.wait(HOUR_S)
        await at.age()
        assert await importance(at, "m") == ("medium", pytest.approx(0.9 * (1 - 0.05 * 121 / 24)))


async def test_a_run_for_one_namespace_leaves_the_others_alone(tmp_path: Path) -> None:
    """Also what has expired there; the report says what the dry run said."""
    async with bench(tmp_path) as at:
        await at.add("c", "mine", ns="mine", ttl_s=10)
        await at.add("c", "yours", ns="yours", ttl_s=10)
        at.wait(20)
        at.heard()
        told = await at.memories.decay(bodies.MemoryDecay(ns="mine", dry_run=True), os.urandom(16))
        done = await at.memories.decay(bodies.MemoryDecay(ns="mine"), os.urandom(16))

        assert (told.expired, done.expired) == (1, 1)
        assert at.heard() == [("expire", "mine")]
