"""Sessions, contexts, suggestions and the tool on a real file with a fake clock, for tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bus.settings import MemorySettings, SearchSettings
from schemas.bodies import sessions as bodies
from schemas.bodies.search import Search, SearchHit, SearchReply
from workers.memory.clock import SteadyClock
from workers.memory.outcome import Event
from workers.memory.records import Records
from workers.memory.search.pipeline import Searcher
from workers.memory.sessions.finder import Finder
from workers.memory.sessions.parts import SessionParts
from workers.memory.sessions.tokens import Counted, TokenCounter
from workers.memory.store import MemoryStore

# Tuesday, 14 November 2023, noon UTC: the same day in nearly every time zone.
START_S = 1_699_963_200.0


class WordCounter:
    """One token for each word, as far as a model is named; an estimate that is easy to follow in a test."""

    async def count(self, texts: Sequence[str], model: str | None) -> Counted:
        """Words of each text."""
        return Counted([len(text.split()) for text in texts], model or "estimate")


class GivenFinder:
    """Search that finds what it was given, and remembers what it was asked."""

    def __init__(self, *hits: SearchHit, degraded: str = "") -> None:
        self.hits = list(hits)
        self.degraded = degraded
        self.asked: list[Search] = []

    async def search(self, request: Search) -> SearchReply:
        """Hits of the kinds asked for, whoever they belong to."""
        self.asked.append(request)
        kinds = request.filters.kinds
        hits = [hit for hit in self.hits if kinds is None or hit.kind in kinds][: request.k]
        return SearchReply(hits=hits, mode="text", took_ms=0.0, degraded=self.degraded)


def hit(id: str, text: str, kind: str = "memory", score: float = 1.0, at: float = START_S) -> SearchHit:
    """A hit as search gives it."""
    return SearchHit(id=id, kind=kind, score=score, text=text, start=0, end=len(text), at=at, chunk=1)


class Bench:
    """The parts on one file, the clock they run on, and the events that were committed."""

    def __init__(self, path: Path, finder: Finder | None, counter: TokenCounter, settings: MemorySettings) -> None:
        self.path = path
        self.wall_s = START_S
        self.monotonic_s = 0.0
        self.events: list[Event] = []
        self.records: Records
        self.store: MemoryStore
        self.parts: SessionParts
        self._finder = finder
        self._counter = counter
        self._settings = settings
        self.encoder: Any = None

    async def open(self) -> None:
        """Open everything, as at the start of the process."""
        clock = SteadyClock(lambda: self.wall_s, lambda: self.monotonic_s)
        self.records = await Records.open(self.path, readers=2, on_committed=self.events.extend, now=clock)
        self.store = MemoryStore(self.records, self._counter)
        finder = self._finder or Searcher(self.records, lambda: None, lambda: None, SearchSettings())
        self.parts = SessionParts(self.records, self._settings, self.store, finder, self._counter, lambda: self.encoder)
        self.sessions = self.parts.sessions
        self.contexts = self.parts.contexts
        await self.parts.sweep(await self.records.newest_time())

    async def close(self) -> None:
        """Close the file."""
        await self.records.close()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.wall_s += seconds
        self.monotonic_s += seconds

    async def sweep(self) -> None:
        """What the service does every second."""
        await self.parts.sweep(self.records.now())

    def heard(self, subject: str) -> list[Any]:
        """Bodies of the events under `subject` since the last look at any."""
        bodies = [event.body for event in self.events if event.subject.startswith(subject)]
        self.events.clear()
        return bodies

    async def session(self, session_id: str = "s", **fields: Any) -> bodies.Session:
        """Open a session."""
        return await self.sessions.create(bodies.SessionCreate(session_id=session_id, **fields), os.urandom(16))

    async def say(self, *contents: str, session_id: str = "s", role: str = "user", **fields: Any) -> int:
        """Append turns; returns the number of the last one."""
        at = fields.pop("at", None)
        speaker = fields.pop("speaker", None)
        turns = [bodies.NewTurn(role=role, content=content, at=at, speaker=speaker) for content in contents]
        request = bodies.SessionAppend(session_id=session_id, turns=turns, **fields)
        return (await self.sessions.append(request, os.urandom(16))).last_number

    async def get(self, session_id: str = "s", **fields: Any) -> bodies.Session:
        """One session."""
        return await self.sessions.get(bodies.SessionGet(session_id=session_id, **fields))

    async def history(self, session_id: str = "s", **fields: Any) -> bodies.SessionTurns:
        """Turns of a session."""
        return await self.sessions.history(bodies.SessionHistory(session_id=session_id, **fields))

    async def end(self, session_id: str = "s", **fields: Any) -> bodies.SessionClosed:
        """Close or delete a session."""
        return await self.sessions.close(bodies.SessionClose(session_id=session_id, **fields), os.urandom(16))

    async def rows(self, statement: str, *values: Any) -> list[Any]:
        """What a statement reads."""
        return await self.records.read(lambda connection: connection.execute(statement, values).fetchall())


@asynccontextmanager
async def bench(
    tmp_path: Path,
    *,
    finder: Finder | None = None,
    counter: TokenCounter | None = None,
    **settings: Any,
) -> AsyncIterator[Bench]:
    """A bench on a new file; without a finder the real search, by words alone."""
    made = Bench(tmp_path / "memory.db", finder, counter or WordCounter(), MemorySettings(**settings))
    await made.open()
    try:
        yield made
    finally:
        await made.close()
