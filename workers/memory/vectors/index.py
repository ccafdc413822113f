"""What a vector index is: points with an id, a vector and their place, found by nearness. Knows no engine."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

# Points written in one call. 64 hold the interpreter for 2 ms, and a search waits no longer than that.
UPSERT_POINTS: Final = 64

# Id of the point that bears the mark. Those of chunks begin at 1.
MARK_ID: Final = 0

# Bytes of one component of a vector: float32, little-endian.
COMPONENT_BYTES: Final = 4

_NOT_IN_SLUG: Final = re.compile(r"[^a-z0-9]+")


class Point(NamedTuple):
    """A chunk's vector. id: the chunk's. vector: float32 little-endian, of length 1. ns, kind: the chunk's own."""

    id: int
    vector: bytes
    ns: str
    kind: str


class SearchHere(Protocol):
    """`VectorIndex.search` in the thread that calls it, which waits until the engine is free for it."""

    def __call__(
        self, vector: bytes, ns: str, kinds: Sequence[str] | None, limit: int, /
    ) -> list[tuple[int, float]]: ...


class VectorIndex(Protocol):
    """Where vectors are kept and found. One index holds the vectors of one model.

    is_shared: another memory may keep its vectors in the same place, by mistake.

    Every method raises IndexUnavailable when the engine cannot be used now. What `upsert` and `remove` did survives the
    end of this process once they return; after a loss of power `count` tells.
    """

    engine: str
    is_shared: bool

    @property
    def search_here(self) -> SearchHere | None:
        """What any thread may search with; None where the index is elsewhere."""
        ...

    async def upsert(self, points: Sequence[Point]) -> None:
        """Store points, in the place of those with the same ids."""
        ...

    async def remove(self, ids: Sequence[int]) -> None:
        """Remove points; ids that are not there do no harm."""
        ...

    async def search(
        self, vector: bytes, *, ns: str, kinds: Sequence[str] | None, limit: int
    ) -> list[tuple[int, float]]:
        """The nearest points of a namespace, and of `kinds` unless None: id and cosine, best first."""
        ...

    async def count(self) -> int:
        """How many points there are."""
        ...

    async def ids(self, *, after: int, limit: int) -> list[int]:
        """Ids above `after` in ascending order, `limit` at most."""
        ...

    async def read_mark(self) -> str:
        """What `write_mark` left last, "" where nothing was left since the index was made or cleared."""
        ...

    async def write_mark(self, mark: str) -> None:
        """Leave a few words with the points, written after all that was stored before.

        An index that loses its last writes loses them too. They are no point to `count`, `ids` and `search`.
        """
        ...

    async def clear(self) -> None:
        """Remove every point, and the mark."""
        ...

    async def forget_model(self, model: str) -> None:
        """Remove the whole index of another model; one that is not there does no harm."""
        ...

    async def close(self) -> None:
        """Give back what the index holds open."""
        ...


def mark_point(mark: str, dimension: int) -> Point:
    """A point that bears `mark` as its namespace, which is none that anybody searches."""
    return Point(MARK_ID, array("f", [1.0, *([0.0] * (dimension - 1))]).tobytes(), mark, "")


def place(ns: str, kind: str) -> str:
    """The payload value that stands for one kind in one namespace, so that a filter on both is one comparison."""
    return f"{kind}/{ns}"


def components(vector: bytes) -> list[float]:
    """The components of a stored vector."""
    return array("f", vector).tolist()


def slug(model: str) -> str:
    """A model's name as a folder or a collection is called."""
    return _NOT_IN_SLUG.sub("-", model.lower()).strip("-")
