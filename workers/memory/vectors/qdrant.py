"""The vector index on a Qdrant server, named by `memory.qdrant_url`: one collection per model.

A server that goes away makes every call raise IndexUnavailable until it is back; what was to be stored waits in the
outbox meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import tenacity

from workers.memory.vectors.index import COMPONENT_BYTES, MARK_ID, Point, components, mark_point, place, slug
from workers.memory.vectors.unavailable import IndexUnavailable

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, models

T = TypeVar("T")

# Seconds one attempt may take, after which there is no other: a search waits for it. One of a million points takes
# milliseconds.
TIMEOUT_S: Final = 5

# Attempts of one call, and the seconds of the last wait between them: bridges a lost connection, not a restart.
_ATTEMPTS: Final = 3
_WAIT_MAX_S: Final = 0.3

# Candidates per search in the server's graph: more than in the embedded index, because the way there costs more.
_SEARCH_EF: Final = 192

# HTTP statuses that may be gone at the next attempt.
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_NOT_FOUND: Final = 404

ClientFactory = Callable[[], "AsyncQdrantClient"]


class QdrantIndex:
    """The index of one model on a server. Connects when first used; `close` ends it.

    prefix: of the collection's name. make_client: how to connect; see `client_factory`.
    """

    engine = "qdrant"
    search_here = None
    is_shared = True

    def __init__(self, make_client: ClientFactory, model: str, dimension: int, *, prefix: str) -> None:
        self._make_client = make_client
        self._prefix = prefix
        self._collection = f"{prefix}-{slug(model)}"
        self._dimension = dimension
        self._client: AsyncQdrantClient | None = None
        self._is_prepared = False
        self._preparing = asyncio.Lock()

    async def upsert(self, points: Sequence[Point]) -> None:
        """Store points, in the place of those with the same ids."""
        for point in points:
            if len(point.vector) != self._dimension * COMPONENT_BYTES:
                raise IndexUnavailable(
                    f"vector of chunk {point.id} has {len(point.vector) // COMPONENT_BYTES} components,"
                    f" the collection {self._collection} holds {self._dimension}"
                )
        if points:
            await self._call(lambda client: client.upsert(self._collection, _structs(points), wait=True))

    async def remove(self, ids: Sequence[int]) -> None:
        """Remove points; ids that are not there do no harm."""
        if ids:
            await self._call(lambda client: client.delete(self._collection, list(ids), wait=True))

    async def search(
        self, vector: bytes, *, ns: str, kinds: Sequence[str] | None, limit: int
    ) -> list[tuple[int, float]]:
        """The nearest points of a namespace, and of `kinds` unless None: id and cosine, best first."""
        if kinds is not None and not kinds:
            return []

        async def query(client: AsyncQdrantClient) -> list[tuple[int, float]]:
            found = await client.query_points(
                self._collection,
                query=components(vector),
                query_filter=_filter(ns, kinds),
                search_params=_search_params(),
                limit=limit,
                with_payload=False,
            )
            return [(_int_id(point.id), point.score) for point in found.points]

        return await self._call(query)

    async def count(self) -> int:
        """How many points there are."""
        counted = await self._call(
            lambda client: client.count(self._collection, count_filter=_is_no_mark(), exact=True)
        )
        return counted.count

    async def ids(self, *, after: int, limit: int) -> list[int]:
        """Ids above `after` in ascending order, `limit` at most."""
        records, _ = await self._call(
            lambda client: client.scroll(
                self._collection, offset=after + 1, limit=limit, with_payload=False, with_vectors=False
            )
        )
        return [_int_id(record.id) for record in records]

    async def read_mark(self) -> str:
        """What `write_mark` left last, "" where nothing was left since the collection was made or cleared."""
        marks = await self._call(lambda client: client.retrieve(self._collection, [MARK_ID], with_payload=True))
        return str((marks[0].payload or {}).get("ns", "")) if marks else ""

    async def write_mark(self, mark: str) -> None:
        """Leave a few words with the points, written after all that was stored before."""
        await self.upsert([mark_point(mark, self._dimension)])

    async def clear(self) -> None:
        """Remove every point, and the mark."""
        async with self._preparing:
            self._is_prepared = False
            await self._attempts(lambda client: client.delete_collection(self._collection))
        await self.count()

    async def forget_model(self, model: str) -> None:
        """Remove the whole collection of another model; one that is not there does no harm."""
        collection = f"{self._prefix}-{slug(model)}"
        if collection != self._collection:
            await self._attempts(lambda client: client.delete_collection(collection))

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    # Calls -------------------------------------------------------------------------------------------------------

    async def _call(self, call: Callable[[AsyncQdrantClient], Awaitable[T]]) -> T:
        """The reply of a call on the collection, which is there once this returns."""
        if not self._is_prepared:
            async with self._preparing:
                if not self._is_prepared:
                    await self._attempts(self._prepare)
                    self._is_prepared = True
        return await self._attempts(call)

    async def _prepare(self, client: AsyncQdrantClient) -> None:
        from qdrant_client import models

        if not await client.collection_exists(self._collection):
            # The vectors have length 1, so their product is the cosine.
            await client.create_collection(
                self._collection,
                vectors_config=models.VectorParams(
                    size=self._dimension, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16
                ),
            )
        held = (await client.get_collection(self._collection)).config.params.vectors
        if not isinstance(held, models.VectorParams) or held.size != self._dimension:
            raise IndexUnavailable(
                f"the collection {self._collection} holds other vectors than {self._dimension} components:"
                " memory.qdrant_prefix names another one"
            )
        for key in ("ns", "place"):
            await client.create_payload_index(self._collection, key, models.PayloadSchemaType.KEYWORD)

    async def _attempts(self, call: Callable[[AsyncQdrantClient], Awaitable[T]]) -> T:
        try:
            from httpx import TimeoutException
            from qdrant_client.common.client_exceptions import QdrantException
            from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse
        except ImportError as error:
            raise IndexUnavailable(
                f"memory.qdrant_url needs qdrant-client, which is in the extra 'search': {error}"
            ) from error

        def is_passing(error: BaseException) -> bool:
            if isinstance(error, UnexpectedResponse):
                return error.status_code in _PASSING
            return isinstance(error, ResponseHandlingException) and not isinstance(error.source, TimeoutException)

        client = self._client = self._client or self._make_client()

        async def attempt() -> T:
            return await call(client)

        try:
            return await tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception(is_passing),
                wait=tenacity.wait_random_exponential(multiplier=0.05, max=_WAIT_MAX_S),
                stop=tenacity.stop_after_attempt(_ATTEMPTS),
                reraise=True,
            )(attempt)
        except (ApiException, QdrantException) as error:
            if isinstance(error, UnexpectedResponse) and error.status_code == _NOT_FOUND:
                # Somebody removed the collection; the next call makes it again.
                self._is_prepared = False
            raise IndexUnavailable(f"the Qdrant server failed: {_first_line(error)}") from error


def client_factory(url: str, api_key: str, *, timeout_s: int = TIMEOUT_S) -> ClientFactory:
    """How to connect to the server at `url`; an empty `api_key` means none. Connects with the first call.

    Raises IndexUnavailable, once called, for a url that is none.
    """

    def make() -> AsyncQdrantClient:
        from qdrant_client import AsyncQdrantClient

        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise IndexUnavailable("memory.qdrant_url is not an address like http://127.0.0.1:6333")
        return AsyncQdrantClient(url=url, api_key=api_key or None, timeout=timeout_s, check_compatibility=False)

    return make


def _structs(points: Sequence[Point]) -> list[models.PointStruct]:
    from qdrant_client import models

    return [
        models.PointStruct(
            id=point.id,
            vector=components(point.vector),
            payload={"ns": point.ns, "place": place(point.ns, point.kind)},
        )
        for point in points
    ]


def _filter(ns: str, kinds: Sequence[str] | None) -> models.Filter:
    from qdrant_client import models

    if kinds is None:
        return models.Filter(must=[models.FieldCondition(key="ns", match=models.MatchValue(value=ns))])
    places = models.MatchAny(any=[place(ns, kind) for kind in kinds])
    return models.Filter(must=[models.FieldCondition(key="place", match=places)])


def _is_no_mark() -> models.Filter:
    from qdrant_client import models

    return models.Filter(must_not=[models.HasIdCondition(has_id=[MARK_ID])])


def _search_params() -> models.SearchParams:
    from qdrant_client import models

    return models.SearchParams(hnsw_ef=_SEARCH_EF)


def _int_id(id: object) -> int:
    assert isinstance(id, int)
    return id


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
