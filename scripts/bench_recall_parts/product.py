"""The memory as it is: sessions of turns in its database, vectors by its own pump, found by its own search."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from bench_recall_parts.collection import Conversation, Turn
from bus.settings import Settings
from schemas.bodies.search import Mode, Search
from schemas.bodies.sessions import NewTurn, SessionAppend, SessionCreate
from workers.memory.records import Records
from workers.memory.search.candidates import waiting
from workers.memory.search.pipeline import Searcher
from workers.memory.sessions.sessions import Sessions
from workers.memory.sessions.tokens import BusTokenCounter
from workers.memory.vectors.encoder import Encoder
from workers.memory.vectors.index import VectorIndex
from workers.memory.vectors.unavailable import EncoderUnavailable
from workers.memory.vectors.vectors import Vectors

# Turns appended at once.
BATCH: Final = 500

# Seconds between two looks at whether everything is embedded.
LOOK_EVERY_S: Final = 0.1

# Seconds between the last turn and the questions.
ASKED_AFTER_S: Final = 86_400.0


class Product:
    """The parts of the memory that search needs."""

    def __init__(
        self, records: Records, vectors: Vectors, encoder: Encoder, index: VectorIndex, settings: Settings
    ) -> None:
        self._records = records
        self._vectors = vectors
        self.encoder = encoder
        self._index = index
        self._searcher = Searcher(records, vectors.encoder, vectors.index, settings.search)
        counter = BusTokenCounter(_no_bus)
        self._sessions = Sessions(records, counter, ttl_s=settings.memory.session_ttl_s, on_turns=_heard)
        self._turns: dict[tuple[str, str], str] = {}

    async def ingest(self, conversation: Conversation) -> None:
        """Append the turns, session by session."""
        ns = conversation.id
        numbers: dict[str, int] = {}
        for name, turns in conversation.sessions():
            if name not in numbers:
                await self._sessions.create(SessionCreate(session_id=name, ns=ns), uuid.uuid4().bytes)
            for first in range(0, len(turns), BATCH):
                part = turns[first : first + BATCH]
                request = SessionAppend(session_id=name, turns=[_new(turn) for turn in part], ns=ns)
                await self._sessions.append(request, uuid.uuid4().bytes)
                begun = numbers.get(name, 0)
                for number, turn in enumerate(part, begun + 1):
                    self._turns[ns, f"{name}/{number}"] = turn.id
                numbers[name] = begun + len(part)

    async def embedded(self) -> None:
        """Return once every turn has its vector. Raises EncoderUnavailable."""
        while await self._records.read(lambda connection: waiting(connection, 1)):
            state = await self._vectors.state()
            if state.degraded:
                raise EncoderUnavailable(state.degraded)
            await asyncio.sleep(LOOK_EVERY_S)

    async def find(self, conversation: Conversation, question: str, mode: Mode, count: int) -> tuple[list[str], float]:
        """The ids of the best turns, and the seconds it took beside the encoding."""
        end = conversation.end()
        request = Search(
            query=question,
            ns=conversation.id,
            k=2 * count,
            mode=mode,
            now=None if end is None else end + ASKED_AFTER_S,
        )
        # The encoder remembers a query, so the search itself gets the vector at once.
        await self.encoder.encode([question], is_query=True)
        began = time.perf_counter()
        reply = await self._searcher.search(request)
        took_s = time.perf_counter() - began
        turns = dict.fromkeys(self._turns[conversation.id, hit.id] for hit in reply.hits)
        return list(turns)[:count], took_s

    async def nearest(self, conversation: Conversation, vector: bytes, count: int) -> tuple[list[str], float]:
        """The turns nearest in meaning, by the vector index alone: its vectors know who spoke, and when."""
        began = time.perf_counter()
        found = await self._index.search(vector, ns=conversation.id, kinds=None, limit=2 * count)
        took_s = time.perf_counter() - began
        sources = await self._records.read(lambda connection: _sources(connection, [chunk for chunk, _ in found]))
        turns = dict.fromkeys(self._turns[conversation.id, sources[chunk]] for chunk, _ in found)
        return list(turns)[:count], took_s


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Product]:
    """The product in the empty folder `settings.home`. Raises EncoderUnavailable."""
    opened_vectors: list[Vectors] = []

    def on_committed(_: Sequence[Any]) -> None:
        for vectors in opened_vectors:
            vectors.wake()

    records = await Records.open(
        settings.path(settings.memory.path), readers=settings.memory.readers, on_committed=on_committed
    )
    try:
        vectors = await Vectors.open(settings, records)
        opened_vectors.append(vectors)
        encoder, index = vectors.encoder(), vectors.index()
        if encoder is None or index is None:
            raise EncoderUnavailable((await vectors.state()).degraded)
        pump = asyncio.create_task(vectors.tend_forever())
        try:
            yield Product(records, vectors, encoder, index, settings)
        finally:
            pump.cancel()
            await asyncio.wait([pump])
            await vectors.close()
    finally:
        await records.close()


def _new(turn: Turn) -> NewTurn:
    """A turn; what nobody says has the role of the machinery, so that no speaker is made up."""
    return NewTurn(role="user" if turn.speaker else "system", content=turn.content, speaker=turn.speaker, at=turn.at)


def _sources(connection: sqlite3.Connection, chunks: Sequence[int]) -> dict[int, str]:
    rows = connection.execute(f"SELECT id, source_id FROM chunks WHERE id IN ({', '.join(map(str, chunks))})")
    return dict(rows.fetchall())


async def _no_bus(*_: Any, **__: Any) -> Any:
    raise AssertionError("the bench counts no tokens")


def _heard(ns: str, session_id: str) -> None:
    """Nobody watches the sessions of the bench."""
