"""The vectors of one memory: its encoder, its index and the pump between them, opened when something needs them.

    settings --> model files --> ProcessEncoder --+
                                                  +--> OutboxPump
                 EdgeIndex or QdrantIndex --------+

Start reading at outbox.py. Where the model's files are missing, search goes on with words and says so, and the orders wait in the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final, Self

from bus.metrics import Figures, only
from bus.settings import Settings
from schemas.bodies.upkeep import MemoryVerify, Rebuilt, UpkeepProgress, Verified
from schemas.errors import BusError
from schemas.metrics import MEMORY_ENCODE_SECONDS, MEMORY_ENCODED, MEMORY_ENCODER_LOADED
from workers.memory.records import Records
from workers.memory.upkeep.reporting import Report, Tell, told
from workers.memory.vectors import agreement
from workers.memory.vectors.edge import EdgeIndex
from workers.memory.vectors.encoder import Encoder, ProcessEncoder, QueryCache
from workers.memory.vectors.index import VectorIndex
from workers.memory.vectors.model_files import find_model
from workers.memory.vectors.outbox import OutboxPump
from workers.memory.vectors.qdrant import QdrantIndex, client_factory
from workers.memory.vectors.unavailable import EncoderUnavailable, VectorsUnavailable

log = logging.getLogger("olympus.memory")

# Seconds before the files of a model that was not found are looked for again: somebody may install them.
LOOK_AGAIN_S: Final = 10.0

# Seconds between two looks at how far a rebuild is.
_WATCH_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class VectorState:
    """count: vectors in the index. encoder: the model's name. degraded: what does not work, "" when all does."""

    count: int
    encoder: str
    encoder_state: str
    engine: str
    degraded: str


@dataclass(frozen=True, slots=True)
class _Open:
    encoder: ProcessEncoder
    index: VectorIndex
    pump: OutboxPump


class Vectors:
    """Encoder, index and pump. `open` makes one, `tend_forever` does their work, `close` ends them."""

    def __init__(self, settings: Settings, records: Records, queries: QueryCache | None, figures: Figures) -> None:
        self._settings = settings
        self._records = records
        self._queries = queries
        self._figures = figures
        # Told from the start, also while there is no encoder that counts in them.
        figures.counter(MEMORY_ENCODED)
        figures.histogram(MEMORY_ENCODE_SECONDS)
        figures.read(MEMORY_ENCODER_LOADED, lambda: only(self.loaded_encoder() is not None))
        self._open: _Open | None = None
        self._missing = ""

    @classmethod
    async def open(
        cls, settings: Settings, records: Records, queries: QueryCache | None = None, figures: Figures | None = None
    ) -> Self:
        """The vectors of `records`. Loads no model and opens no index yet; succeeds without a model too.

        queries: where vectors of queries are kept beyond this process. figures: where it counts what it encodes.
        """
        vectors = cls(settings, records, queries, figures or Figures())
        await vectors._look_for_model()
        return vectors

    async def close(self) -> None:
        """End the encoder's process and give back what the index holds open."""
        if self._open is not None:
            await self._open.encoder.close()
            await self._open.index.close()

    def encoder(self) -> Encoder | None:
        """The encoder, loaded when first used; None while its files are missing."""
        return self._open.encoder if self._open is not None else None

    def loaded_encoder(self) -> Encoder | None:
        """The encoder if it is loaded already."""
        opened = self._open
        return opened.encoder if opened is not None and opened.encoder.state == "ready" else None

    def index(self) -> VectorIndex | None:
        """The index, None while there is no model that its vectors could be of, or they are another database's."""
        if self._open is None:
            return None
        self._open.pump.index_is_used()
        return None if self._open.pump.is_index_taken else self._open.index

    def wake(self) -> None:
        """Something was committed."""
        if self._open is not None:
            self._open.pump.wake()

    async def forget(self) -> None:
        """The database was replaced."""
        if self._open is not None:
            self._open.pump.begin_anew()

    async def tend_forever(self) -> None:
        """Work through the outbox until cancelled; without a model, look for one."""
        while self._open is None:
            await asyncio.sleep(LOOK_AGAIN_S)
            await self._look_for_model()
        async with asyncio.TaskGroup() as tasks:
            if self._settings.memory.encoder_preload:
                tasks.create_task(self._preload(self._open.encoder))
            await self._open.pump.run_forever()

    @property
    def degraded(self) -> dict[str, str]:
        """Why there are no vectors, or no new ones, now: by `encoder` or `vectors`; empty when all is well."""
        opened = self._open
        if opened is None:
            return {"encoder": self._missing}
        if opened.encoder.problem:
            return {"encoder": opened.encoder.problem}
        return {"vectors": opened.pump.problem} if opened.pump.problem else {}

    async def state(self) -> VectorState:
        """How the vectors are."""
        engine = "qdrant" if self._settings.memory.qdrant_url else EdgeIndex.engine
        opened = self._open
        if opened is None:
            return VectorState(0, self._settings.memory.encoder, "unusable", engine, self._missing)
        # Counted in the table, so that a look does not open the index.
        counts = await agreement.counts(self._records)
        degraded = next(iter(self.degraded.values()), "")
        return VectorState(counts.vectors, opened.encoder.name, opened.encoder.state, engine, degraded)

    async def verify(self, request: MemoryVerify, tell: Tell) -> Verified:
        """Compare index and table. Raises EncoderUnavailable, IndexUnavailable."""
        opened = self._required()

        async def compare(report: Report) -> Verified:
            # The pump stands still meanwhile: between its two steps index and table differ.
            async with opened.pump.storing:
                if request.repair and await agreement.is_of_another(self._records, opened.index):
                    await agreement.settle(self._records, opened.index, opened.encoder.name)
                return await agreement.compare(
                    self._records, opened.index, opened.encoder.name, is_repaired=request.repair, report=report
                )

        verified = await told(compare, tell)
        opened.pump.wake()
        return verified

    async def rebuild(self, tell: Tell) -> Rebuilt:
        """Empty the index and make every vector anew. Raises EncoderUnavailable, IndexUnavailable."""
        opened = self._required()
        began = time.monotonic()

        async def order(report: Report) -> None:
            async with opened.pump.storing:
                await agreement.order_everything(self._records, opened.index, report)

        try:
            await told(order, tell)
        finally:
            # Cut off half-way, the index lacks what the table says it has; the pump compares the two again.
            opened.pump.begin_anew()
        newest = await agreement.newest(self._records)
        total, waiting, _ = await agreement.counts(self._records)
        first = waiting
        while waiting:
            if opened.pump.problem:
                raise VectorsUnavailable(
                    f"{waiting} of {total} chunks still wait, and it goes on when it can: {opened.pump.problem}"
                )
            await asyncio.sleep(_WATCH_S)
            # Without what is written meanwhile: under steady writing something always waits.
            waiting = await agreement.waiting_up_to(self._records, newest)
            done, passed_s = first - waiting, time.monotonic() - began
            eta_s = passed_s * waiting / done if done > 0 else None
            await tell(UpkeepProgress(stage="encode", done=total - waiting, total=total, eta_s=eta_s))
        return Rebuilt(chunks=total, took_s=time.monotonic() - began)

    async def _look_for_model(self) -> None:
        memory = self._settings.memory
        cache = self._settings.path("cache", "encoder")
        try:
            model = await asyncio.to_thread(find_model, memory.encoder, cache)
        except EncoderUnavailable as error:
            if error.message != self._missing:
                log.warning(
                    "no vectors, search by words only",
                    extra={"action": "memory.vectors.unavailable", "reason": error.message},
                )
            self._missing = error.message
            return
        self._missing = ""
        encoder = ProcessEncoder(
            model,
            cache,
            threads=memory.encoder_threads,
            idle_s=memory.encoder_idle_s,
            queries=self._queries,
            figures=self._figures,
        )
        index: VectorIndex
        if memory.qdrant_url:
            connect = client_factory(memory.qdrant_url, memory.qdrant_api_key)
            index = QdrantIndex(connect, model.name, model.dimension, prefix=memory.qdrant_prefix)
        else:
            root = self._settings.path(memory.path).with_name("vectors")
            index = EdgeIndex(root, model.name, model.dimension)
        self._open = _Open(encoder, index, OutboxPump(self._records, encoder, index))

    async def _preload(self, encoder: ProcessEncoder) -> None:
        try:
            await encoder.load()
        except BusError as error:
            log.warning("encoder not loaded", extra={"action": "memory.encoder.failed", "reason": error.message})

    def _required(self) -> _Open:
        if self._open is None:
            raise EncoderUnavailable(self._missing)
        return self._open
