"""The half of search that goes by meaning: the query's vector, and the chunks nearest to it. Knows no ranking."""

from __future__ import annotations

import asyncio
from typing import Final

from schemas.bodies.search import Search
from schemas.errors import BusError
from workers.memory.vectors.encoder import Encoder
from workers.memory.vectors.index import VectorIndex
from workers.memory.vectors.unavailable import IndexBusy, IndexUnavailable

# Chunks asked of the vector index where those that fulfil the filters are not among the nearest. It takes 30 ms.
FAR_NEAREST: Final = 10_000

# Seconds a search waits for an index in this process that is busy: what keeps it longer must not make every search hang.
# One that is elsewhere has a limit of its own.
BUSY_WAIT_S: Final = 2.0


class Meaning:
    """What one query means. First `encode`, then `ask` unless `is_index_here`, then `cosines`.

    degraded: why nothing is known by meaning, "" where it is. is_encoded: `encode` is over. limit: chunks asked of the
    index at first.
    """

    def __init__(self, request: Search, limit: int) -> None:
        self.degraded = ""
        self.is_encoded = False
        self._request = request
        self._limit = limit
        self._index: VectorIndex | None = None
        self._vector = b""
        self._cosines: dict[int, float] | None = None

    async def encode(self, encoder: Encoder | None, index: VectorIndex | None) -> None:
        """Make the query's vector, unless the request goes without meaning."""
        try:
            await self._encode(encoder, index)
        finally:
            self.is_encoded = True

    async def _encode(self, encoder: Encoder | None, index: VectorIndex | None) -> None:
        if self._request.mode in ("text", "symbolic"):
            return
        if encoder is None or index is None:
            self.degraded = (
                "no search by meaning: there is no encoder"
                if encoder is None
                else "no search by meaning: there are no vectors; memory.stats says why"
            )
            return
        try:
            (self._vector,) = await encoder.encode([self._request.query], is_query=True)
        except BusError as error:
            self._give_up(error)
        else:
            self._index = index

    @property
    def is_index_here(self) -> bool:
        """`cosines` asks the index; else `ask` has to. True also where there is nothing to ask."""
        return self._index is None or self._index.search_here is not None

    async def ask(self, only: frozenset[int] | None) -> None:
        """Ask an index that is elsewhere, or busy: BUSY_WAIT_S at most. only: see `cosines`."""
        index = self._index
        if index is None:
            return
        try:
            async with asyncio.timeout(BUSY_WAIT_S if self.is_index_here else None):
                for limit in (self._limit, FAR_NEAREST):
                    found = await index.search(
                        self._vector, ns=self._request.ns, kinds=self._request.filters.kinds, limit=limit
                    )
                    self._cosines = dict(found)
                    if self._is_enough(self._cosines, only):
                        break
        except TimeoutError:
            self._give_up(IndexUnavailable(f"the vector index has been busy for {BUSY_WAIT_S:g} s"))
        except BusError as error:
            self._give_up(error)

    def cosines(self, only: frozenset[int] | None) -> dict[int, float]:
        """Chunk -> cosine of the nearest, in any thread. only: the chunks that may be hits, None for all.

        Raises IndexBusy where the index is here and not free; `ask` waits for it.
        """
        search = self._index.search_here if self._index is not None else None
        if self._cosines is not None or search is None:
            return self._cosines or {}
        cosines: dict[int, float] = {}
        try:
            for limit in (self._limit, FAR_NEAREST):
                cosines = dict(search(self._vector, self._request.ns, self._request.filters.kinds, limit))
                if self._is_enough(cosines, only):
                    break
        except IndexBusy:
            raise
        except BusError as error:
            self._give_up(error)
        return cosines

    def _is_enough(self, cosines: dict[int, float], only: frozenset[int] | None) -> bool:
        if only is None or not cosines:
            return True
        return len(only & cosines.keys()) >= min(self._request.k, len(only))

    def _give_up(self, error: BusError) -> None:
        self._index = self._cosines = None
        self.degraded = f"no search by meaning: {error.message}"
