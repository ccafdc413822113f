"""Memories, documents and experiences on a real file with a fake clock, for tests."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from schemas.bodies import items as bodies
from workers.memory.items.documents import Documents
from workers.memory.items.experiences import Experiences
from workers.memory.items.memories import Memories
from workers.memory.outcome import Event, Outcome
from workers.memory.records import Records

T = TypeVar("T")

# A full hour, so that the first pass of the life cycle falls an hour later.
START_S = 1_699_963_200.0
HOUR_S = 3_600.0


class Bench:
    """The parts on one file, the clock they run on, and the events that were committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = START_S
        self.events: list[Event] = []
        self.records: Records
        self.memories: Memories
        self.documents: Documents
        self.experiences: Experiences

    async def open(self, **options: Any) -> None:
        """Open the parts, as at the start of the process."""
        self.records = await Records.open(
            self.path, readers=2, on_committed=self.events.extend, now=lambda: self.now, **options
        )
        self.memories = Memories(self.records)
        self.documents = Documents(self.records)
        self.experiences = Experiences(self.records)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def heard(self) -> list[tuple[str, str]]:
        """Action and key of the events since the last look."""
        heard = [(event.body.action, event.body.key) for event in self.events]  # type: ignore[attr-defined]
        self.events.clear()
        return heard

    async def add(self, content: str = "c", id: str | None = None, **fields: Any) -> str:
        """Keep a memory under a new request id; its id."""
        request = bodies.MemoryAdd(content=content, id=id, **fields)
        return (await self.memories.add(request, os.urandom(16))).id

    async def get(self, id: str, **fields: Any) -> bodies.Memory:
        """A memory, without counting that."""
        return await self.memories.get(bodies.MemoryGet(id=id, touch=False, **fields), os.urandom(16))

    async def update(self, id: str, **fields: Any) -> bodies.Memory:
        """Change a memory under a new request id."""
        return await self.memories.update(bodies.MemoryUpdate(id=id, **fields), os.urandom(16))

    async def delete(self, id: str, *, cascade: bool = False) -> int:
        """Delete a memory under a new request id; how many went."""
        return (await self.memories.delete(bodies.MemoryDelete(id=id, cascade=cascade), os.urandom(16))).deleted

    async def link(self, source: str, target: str, kind: str = "about", strength: float = 1.0) -> bodies.Linked:
        """Relate two memories under a new request id."""
        request = bodies.MemoryLink(source_id=source, target_id=target, kind=kind, strength=strength)
        return await self.memories.link(request, os.urandom(16))

    async def all(self) -> list[bodies.Memory]:
        """Every memory of the default namespace."""
        return (await self.memories.list(bodies.MemoryList(limit=1_000))).memories

    async def age(self, *, dry_run: bool = False) -> bodies.CycleReport:
        """Run the life cycle."""
        return await self.memories.decay(bodies.MemoryDecay(dry_run=dry_run), os.urandom(16))

    async def ask(self, sql: str, *values: Any) -> list[Any]:
        """Rows of the file."""
        return await self.records.read(lambda connection: connection.execute(sql, values).fetchall())

    async def tell(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Write to the file behind the service's back."""

        def write(connection: sqlite3.Connection, _: float) -> Outcome:
            work(connection)
            return Outcome(None, [])

        await self.records.write(write)


@asynccontextmanager
async def bench(tmp_path: Path, **options: Any) -> AsyncIterator[Bench]:
    """A bench on a new file."""
    made = Bench(tmp_path / "memory.db")
    await made.open(**options)
    try:
        yield made
    finally:
        await made.records.close()
