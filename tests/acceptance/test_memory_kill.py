"""The whole memory service killed with -9 under mixed load, again and again: nothing lost, nothing half, nothing twice."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.client import Client
from bus.settings import Settings
from schemas.bodies import items, memory, sessions
from schemas.bodies.upkeep import MemoryVerify
from schemas.envelope import new_id
from schemas.errors import Retryable
from tests.acceptance.test_memory_process import started
from tests.vectors_bench import tiny_model

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

CALLERS = 8
# Answers between a start and the kill, so that it comes at another place each time.
ANSWERED_BEFORE_KILL = (80, 150, 220, 120, 180, 260)
SOON_S = 30.0

ITEMS = 4
PARAGRAPHS = 12


class Caller:
    """One caller of all the writes, each after the last was answered; what it was told is kept beside it."""

    def __init__(self, client: Client, name: str, on_answer: Callable[[], None]) -> None:
        self.client = client
        self.name = name
        self.rounds = 0
        self.versions: list[int] = []
        self.told: list[str] = []
        self._on_answer = on_answer

    async def write(self, subject: str, body: msgspec.Struct) -> Any:
        """The answer to one write, sent again under its id for as long as the service is away."""
        request_id = new_id()
        while True:
            try:
                reply = await self.client.request(subject, body, id=request_id, timeout_s=SOON_S)
            except Retryable:
                continue
            self._on_answer()
            return reply

    async def run(self, is_over: asyncio.Event) -> None:
        """Whole rounds until told to stop."""
        await self.write("memory.session.create", sessions.SessionCreate(session_id=self.name, user_id=self.name))
        while not is_over.is_set():
            await self.round(self.rounds)
            self.rounds += 1

    async def round(self, number: int) -> None:
        """Each kind of write once."""
        name = f"{self.name}-{number}"
        entry = await self.write("memory.kv.set", memory.KvSet(key=self.name, value=number))
        self.versions.append(entry.version)
        added = await self.write("memory.add", items.MemoryAdd(content=f"{name} said something", type=self.name))
        self.told.append(added.id)
        many = [
            items.NewMemory(content=f"{name} part {n}", type=self.name, tags=[name], parent_id=added.id)
            for n in range(ITEMS)
        ]
        parts = await self.write("memory.add_many", items.MemoryAddMany(items=many))
        self.told += parts.ids
        await self.write("memory.link", items.MemoryLink(source_id=parts.ids[0], target_id=added.id, kind="about"))
        await self.write("memory.reinforce", items.MemoryReinforce(id=added.id, factor=1.0))
        await self.write("memory.doc.put", items.DocPut(doc_id=self.name, content=self.text(number)))
        turns = [sessions.NewTurn(role="user", content=f"{number} {n}") for n in range(2)]
        await self.write("memory.session.append", sessions.SessionAppend(session_id=self.name, turns=turns))
        await self.write("memory.remember", memory.Remember(key=name, value=f"{name} is remembered"))
        await self.write("memory.experience.record", items.ExperienceRecord(agent=self.name, action=name))

    def text(self, number: int) -> str:
        """A document of several chunks, another one each round."""
        return "\n\n".join(f"{self.name} {number} {n}. " + "Bees fly far. " * 20 for n in range(PARAGRAPHS))


class Answers:
    """How many writes were answered since the last look, and a wait for more."""

    def __init__(self) -> None:
        self._count = 0
        self._wanted = 0
        self._are_enough = asyncio.Event()

    def add(self) -> None:
        """One more."""
        self._count += 1
        if self._count >= self._wanted:
            self._are_enough.set()

    async def more(self, count: int) -> None:
        """Wait for `count` from now on."""
        self._wanted = self._count + count
        self._are_enough.clear()
        async with asyncio.timeout(SOON_S):
            await self._are_enough.wait()


def kill_in_commit(process: asyncio.subprocess.Process, log: Path) -> None:
    """Kill the service when its log is next written: what it commits then is on disk, and nobody was told."""
    before = log.stat()
    give_up_at = time.monotonic() + SOON_S
    while (now := log.stat()).st_size == before.st_size and now.st_mtime_ns == before.st_mtime_ns:
        assert time.monotonic() < give_up_at, "nothing was written"
        time.sleep(0.0001)
    process.kill()


def damage(path: Path, copy: Path) -> list[str]:
    """What is wrong with a database whose service was killed; looked for in a copy, so that its log is left to it."""
    copy.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, copy)
    with closing(sqlite3.connect(copy / path.name)) as connection:
        for index in ("chunks_text", "facts_text"):
            connection.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)")
        found = [] if connection.execute("PRAGMA integrity_check").fetchone() == ("ok",) else ["integrity_check"]
        for what, query in HALF.items():
            found += [f"{what}: {row}" for row in connection.execute(query)]
    return found


# Each finds what only half of a write could leave.
HALF = {
    "add_many in part": f"""
        SELECT parent_id, count(*) FROM memories WHERE parent_id IS NOT NULL GROUP BY parent_id HAVING count(*) <> {ITEMS}
    """,
    "a memory without its tag": """
        SELECT id FROM memories WHERE parent_id IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM memory_tags WHERE memory_tags.id = memories.id)
    """,
    "append in part": """
        SELECT session_id, turns, count(number) FROM sessions LEFT JOIN turns USING (ns, session_id)
        GROUP BY session_id HAVING turns <> count(number) OR turns % 2
    """,
    "a document without its chunks": """
        SELECT doc_id FROM knowledge_base
        WHERE chunks <> (SELECT count(*) FROM chunks WHERE kind = 'document' AND source_id = doc_id)
    """,
    "something that search cannot find": """
        SELECT source_id, kind FROM (
            SELECT ns, id AS source_id, 'memory' AS kind FROM memories
            UNION ALL SELECT ns, key, 'fact' FROM facts
            UNION ALL SELECT ns, session_id || '/' || number, 'turn' FROM turns
        ) WHERE NOT EXISTS (
            SELECT 1 FROM chunks c WHERE (c.ns, c.kind, c.source_id) = (ns, kind, source_id)
        )
    """,
    "a chunk that nobody will embed": """
        SELECT id FROM chunks WHERE vector_model IS NULL
        AND NOT EXISTS (SELECT 1 FROM outbox WHERE chunk_id = chunks.id AND action = 'embed')
    """,
    "a write that was not noted": """
        SELECT * FROM (SELECT
            (SELECT count(*) FROM experiences) AS made,
            (SELECT count(*) FROM applied_requests WHERE operation = 'memory.experience.record') AS noted
        ) WHERE made <> noted
    """,
}


async def check_told(client: Client, caller: Caller) -> None:
    """Everything this caller was told is there, once, and nothing else of it."""
    name, rounds = caller.name, caller.rounds
    assert caller.versions == list(range(1, rounds + 1))
    assert (await client.request("memory.kv.get", memory.KvGet(key=name))).value == rounds - 1

    listed = await client.request("memory.list", items.MemoryList(type=name, limit=1000))
    assert [one.id for one in listed.memories] == caller.told
    assert [one.access_count for one in listed.memories] == [1, *[0] * ITEMS] * rounds
    for first in caller.told[1 :: ITEMS + 1]:
        related = await client.request("memory.related", items.MemoryRelated(id=first, kind="about"))
        assert len(related.related) == 1

    document = await client.request("memory.doc.get", items.DocGet(doc_id=name))
    assert (document.version, document.content) == (rounds, caller.text(rounds - 1))

    history = await client.request("memory.session.history", sessions.SessionHistory(session_id=name, limit=1000))
    assert [(turn.number, turn.content) for turn in history.turns] == [
        (2 * number + n + 1, f"{number} {n}") for number in range(rounds) for n in range(2)
    ]
    experiences = await client.request("memory.experience.list", items.ExperienceList(agent=name, limit=1000))
    assert sorted(one.action for one in experiences.experiences) == sorted(f"{name}-{n}" for n in range(rounds))
    for number in range(rounds):
        fact = await client.request("memory.recall", memory.Recall(key=f"{name}-{number}"))
        assert (fact.value, fact.access_count) == (f"{name}-{number} is remembered", 1)


async def check_vectors(client: Client) -> None:
    """The index holds the vector of every chunk, and nothing else."""
    async with asyncio.timeout(SOON_S):
        while (await client.request("memory.stats")).waiting:
            await asyncio.sleep(0.05)
    verified = await client.request("memory.verify", MemoryVerify(), timeout_s=SOON_S)
    assert (verified.agrees, verified.problems) == (True, [])


async def test_killed_under_mixed_load_the_service_keeps_every_answered_write_whole_and_once(
    serve_broker: Serve, tmp_path: Path
) -> None:
    """Six kills, several callers of every kind of write; what was not answered is sent again under its id."""
    pytest.importorskip("qdrant_edge", reason="the vector index is not installed")
    flags = ("--set", f"memory.encoder={tiny_model(tmp_path / 'model')}")
    answers = Answers()
    is_over = asyncio.Event()
    async with serve_broker() as settings, Client(settings, name="callers") as client:
        path = settings.path(settings.memory.path)
        callers = [Caller(client, f"caller{number}", answers.add) for number in range(CALLERS)]
        async with asyncio.TaskGroup() as tasks:
            calling = [tasks.create_task(caller.run(is_over)) for caller in callers]
            for number, count in enumerate(ANSWERED_BEFORE_KILL):
                async with started(settings, *flags) as process:
                    await answers.more(count)
                    await asyncio.to_thread(kill_in_commit, process, path.with_name(f"{path.name}-wal"))
                    await process.wait()
                assert damage(path, tmp_path / f"killed-{number}") == []

            async with started(settings, *flags):
                await answers.more(CALLERS)
                is_over.set()
                await asyncio.wait(calling)
                for caller in callers:
                    await check_told(client, caller)
                await check_vectors(client)
        assert damage(path, tmp_path / "stopped") == []
