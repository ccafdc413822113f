"""The memory as it is: sessions of turns in its database, vectors in its index, found by its own search."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bench_recall_parts.collection import Conversation
from bus.settings import Settings
from schemas.bodies.search import Mode, Search
from schemas.bodies.sessions import NewTurn, SessionAppend, SessionCreate
from workers.memory.records import Records
from workers.memory.search.pipeline import Searcher
from workers.memory.sessions.sessions import Sessions
from workers.memory.sessions.tokens import BusTokenCounter
from workers.memory.vectors.edge import EdgeIndex
from workers.memory.vectors.encoder import ProcessEncoder
from workers.memory.vectors.index import Point, VectorIndex
from workers.memory.vectors.model_files import DEFAULT_MODEL, find_model

# Turns appended, and chunks encoded, at once.
BATCH: Final = 500

# Seconds between the last turn and the questions.
ASKED_AFTER_S: Final = 86_400.0


class Remembered:
    """Vectors of texts, made once. An `Encoder` whose queries cost nothing at search time, so that search alone is timed."""

    def __init__(self, encoder: ProcessEncoder) -> None:
        self.name = encoder.name
        self.dimension = encoder.dimension
        self._encoder = encoder
        self._known: dict[str, bytes] = {}

    async def encode(self, texts: Sequence[str], *, is_query: bool = False) -> list[bytes]:
        """Vectors in the order of the texts."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self._known]
        for first in range(0, len(unknown), BATCH):
            part = unknown[first : first + BATCH]
            self._known.update(zip(part, await self._encoder.encode(part), strict=True))
        return [self._known[text] for text in texts]


class Product:
    """The parts of the memory that search needs."""

    def __init__(self, records: Records, encoder: Remembered, index: VectorIndex, settings: Settings) -> None:
        self._records = records
        self._encoder = encoder
        self._index = index
        self._searcher = Searcher(records, lambda: encoder, lambda: index, settings.search)
        counter = BusTokenCounter(_no_bus)
        self._sessions = Sessions(records, counter, ttl_s=settings.memory.session_ttl_s, on_turns=_heard)
        self._turns: dict[tuple[str, str], str] = {}

    async def ingest(self, conversation: Conversation) -> None:
        """Append the turns, session by session, and embed them."""
        ns = conversation.id
        numbers: dict[str, int] = {}
        for name, turns in conversation.sessions():
            if name not in numbers:
                await self._sessions.create(SessionCreate(session_id=name, ns=ns), uuid.uuid4().bytes)
            for first in range(0, len(turns), BATCH):
                part = turns[first : first + BATCH]
                new = [
                    NewTurn(
                        role="user" if turn.speaker else "document",
                        content=turn.content,
                        speaker=turn.speaker,
                        at=turn.at,
                    )
                    for turn in part
                ]
                await self._sessions.append(SessionAppend(session_id=name, turns=new, ns=ns), uuid.uuid4().bytes)
                for number, turn in enumerate(part, numbers.get(name, 0) + 1):
                    self._turns[ns, f"{name}/{number}"] = turn.id
                numbers[name] = numbers.get(name, 0) + len(part)
        await self._embed(ns)
        await self._encoder.encode([question.question for question, _ in conversation.asked()])

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
        began = time.perf_counter()
        reply = await self._searcher.search(request)
        took_s = time.perf_counter() - began
        turns = dict.fromkeys(self._turns[conversation.id, hit.id] for hit in reply.hits)
        return list(turns)[:count], took_s

    async def nearest(self, conversation: Conversation, question: str, count: int) -> tuple[list[str], float]:
        """The turns nearest in meaning, by the vector index alone."""
        (vector,) = await self._encoder.encode([question])
        began = time.perf_counter()
        found = await self._index.search(vector, ns=conversation.id, kinds=None, limit=2 * count)
        took_s = time.perf_counter() - began
        sources = await self._records.read(lambda connection: _sources(connection, [chunk for chunk, _ in found]))
        turns = dict.fromkeys(self._turns[conversation.id, sources[chunk]] for chunk, _ in found)
        return list(turns)[:count], took_s

    async def _embed(self, ns: str) -> None:
        chunks = await self._records.read(
            lambda connection: connection.execute("SELECT id, text, kind FROM chunks WHERE ns = ?", (ns,)).fetchall()
        )
        vectors = await self._encoder.encode([text for _, text, _ in chunks])
        await self._index.upsert(
            [Point(chunk, vector, ns, kind) for (chunk, _, kind), vector in zip(chunks, vectors, strict=True)]
        )


@asynccontextmanager
async def opened(settings: Settings, folder: Path) -> AsyncIterator[Product]:
    """The product in an empty folder. Raises EncoderUnavailable."""
    model = find_model(DEFAULT_MODEL)
    records = await Records.open(folder / "memory.db", readers=settings.memory.readers, on_committed=_committed)
    encoder = ProcessEncoder(model, folder / "encoder", threads=0, idle_s=-1)
    index = EdgeIndex(folder / "vectors", model.name, model.dimension)
    try:
        await encoder.load()
        yield Product(records, Remembered(encoder), index, settings)
    finally:
        await encoder.close()
        await index.close()
        await records.close()


def _sources(connection: sqlite3.Connection, chunks: Sequence[int]) -> dict[int, str]:
    rows = connection.execute(f"SELECT id, source_id FROM chunks WHERE id IN ({', '.join(map(str, chunks))})")
    return dict(rows.fetchall())


async def _no_bus(*_: Any, **__: Any) -> Any:
    raise AssertionError("the bench counts no tokens")


def _heard(ns: str, session_id: str) -> None:
    """Nobody watches the sessions of the bench."""


def _committed(events: Sequence[Any]) -> None:
    """Nobody hears the events of the bench."""
