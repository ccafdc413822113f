"""Reading goes on while nothing can be written: the use is not noted, and everything else is as ever."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bus.settings import SearchSettings
from schemas.bodies.items import (
    ExperienceGet,
    ExperienceList,
    ExperienceRecord,
    MemoryAdd,
    MemoryGet,
    MemoryGetMany,
    MemoryReinforce,
)
from schemas.bodies.memory import Recall, Remember
from schemas.bodies.search import Search
from schemas.bodies.sessions import SessionGet, SessionHistory
from schemas.errors import Conflict, Internal, NotFound
from tests.sessions_bench import START_S, Bench, bench
from workers.memory.items.experiences import Experiences
from workers.memory.items.memories import Memories
from workers.memory.search.pipeline import Searcher

Read = Callable[[Bench], Awaitable[Any]]


def searcher(at: Bench) -> Searcher:
    """Search by words alone."""
    return Searcher(at.records, lambda: None, lambda: None, SearchSettings())


READS: dict[str, Read] = {
    "memory.get": lambda at: Memories(at.records).get(MemoryGet(id="m"), os.urandom(16)),
    "memory.get_many": lambda at: Memories(at.records).get_many(MemoryGetMany(ids=["m"]), os.urandom(16)),
    "memory.experience.get": lambda at: Experiences(at.records).get(ExperienceGet(exp_id="e"), os.urandom(16)),
    "memory.experience.list": lambda at: Experiences(at.records).list(ExperienceList(), os.urandom(16)),
    "memory.recall": lambda at: at.store.recall(Recall(key="city"), os.urandom(16)),
    "memory.search": lambda at: searcher(at).search(Search(query="bees", touch=True)),
    "memory.session.get": lambda at: at.sessions.get(SessionGet(session_id="s", touch=True)),
    "memory.session.history": lambda at: at.sessions.history(SessionHistory(session_id="s")),
}


async def fill(at: Bench) -> None:
    """One of each."""
    await Memories(at.records).add(MemoryAdd(id="m", content="Ada keeps bees"), os.urandom(16))
    experience = ExperienceRecord(exp_id="e", agent="ada", action="looked", outcome="saw")
    await Experiences(at.records).record(experience, os.urandom(16))
    await at.store.remember(Remember(key="city", value="Porto"), os.urandom(16))
    await at.session()
    await at.say("Hello")


async def take_writes(at: Bench, is_on: bool) -> None:
    """Let the disk take writes, or none: SQLite refuses them as it does where the file may not be written."""
    value = "OFF" if is_on else "ON"
    await at.records.database.exclusively(lambda connection: connection.execute(f"PRAGMA query_only = {value}").close())


async def uses(at: Bench) -> list[Any]:
    """What is noted of every use."""
    return await at.rows(
        "SELECT access_count FROM memories UNION ALL SELECT access_count FROM experiences"
        " UNION ALL SELECT access_count FROM facts UNION ALL SELECT last_used_at FROM sessions"
    )


@pytest.mark.parametrize("operation", READS)
async def test_what_can_be_read_is_read_while_nothing_can_be_written(tmp_path: Path, operation: str) -> None:
    """The same content; the use is noted again as soon as it can be, and the service says what is wrong meanwhile."""
    async with bench(tmp_path) as at:
        await fill(at)
        at.wait(5)
        before = await uses(at)
        await take_writes(at, False)

        found = await READS[operation](at)

        assert "check the permissions" in at.records.database.problem
        await take_writes(at, True)
        assert await uses(at) == before
        counted = await READS[operation](at)
        assert type(found) is type(counted)
        assert await uses(at) != before
        assert at.records.database.problem == ""


async def test_other_errors_are_told_as_ever(tmp_path: Path) -> None:
    """What is not there is not found, a write is refused, and an id that was used for another operation is a conflict."""
    async with bench(tmp_path) as at:
        await fill(at)
        memories = Memories(at.records)
        await memories.reinforce(MemoryReinforce(id="m"), b"r" * 16)
        with pytest.raises(Conflict, match=r"already used for memory\.reinforce"):
            await memories.get(MemoryGet(id="m"), b"r" * 16)

        await take_writes(at, False)

        with pytest.raises(NotFound):
            await memories.get(MemoryGet(id="nobody"), os.urandom(16))
        with pytest.raises(NotFound):
            await at.store.recall(Recall(key="nothing"), os.urandom(16))
        with pytest.raises(NotFound):
            await at.history("elsewhere")
        with pytest.raises(Internal, match="cannot be written"):
            await memories.reinforce(MemoryReinforce(id="m"), os.urandom(16))
        assert (await at.get()).last_used_at == START_S
