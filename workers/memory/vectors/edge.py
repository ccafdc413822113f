"""The embedded vector index: Qdrant's own engine in this process, its files in a folder per model.

    vectors/<model>/current      the name of the folder that counts
    vectors/<model>/<number>/    one state of the index: the engine's files

Up to OPTIMISE_POINTS every search compares the query with all points of the namespace and is exact. Past that a copy of
the folder gets a graph (HNSW) built in a process of its own, what was written meanwhile is written to the copy as well,
and the copy takes the place of the original. While the files are copied writes wait, and searches go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from workers.memory.vectors.index import (
    COMPONENT_BYTES,
    MARK_ID,
    UPSERT_POINTS,
    Point,
    components,
    mark_point,
    place,
    slug,
)
from workers.memory.vectors.unavailable import IndexBusy, IndexUnavailable

if TYPE_CHECKING:
    from qdrant_edge import EdgeConfig, EdgeShard, Filter

log = logging.getLogger("olympus.memory")

T = TypeVar("T")

# What was written since a copy was made: the point, or None for one that was removed.
_Written = dict[int, Point | None]

# Points outside the graph, at which it is built anew although more keep coming. A full scan of 100,000 takes 6.5 ms, the
# graph over as many 0.3 ms; but each time it is built it takes the processor from the encoder that the points come from.
OPTIMISE_POINTS: Final = 100_000

# The graph is built anew only for this share of what it has, so that a growing index is not built over and over.
_OPTIMISE_SHARE: Final = 0.25

# Once nothing has been written for so many seconds, fewer points are reason enough: this part of them, or this share. To
# take 18,000 into a graph of 82,000 costs 8 s of one core.
QUIET_S: Final = 10.0
_QUIET_PART: Final = 50
_QUIET_SHARE: Final = 0.05

# Points written between two looks at how many are outside the graph.
_LOOK_EVERY_POINTS: Final = 2_000

# Edges per point and candidates while the graph is built: Qdrant's own defaults. With them and _SEARCH_EF candidates
# per search, 96 % of the 10 nearest of 100,000 texts are found in 0.3 ms (128: 97 % in 0.4 ms); see docs/adr/0009.
_EDGES: Final = 16
_BUILD_EF: Final = 100
_SEARCH_EF: Final = 96

# KiB of vectors that a filter leaves, below which they are compared one by one instead of through the graph: 4,000
# points of 384 components.
_FULL_SCAN_KIB: Final = 3_000

# Bytes of a stored component.
_HALF_BYTES: Final = 2

# Seconds a thread that others need waits for its turn: longer than a page of points takes to be stored.
TURN_WAIT_S: Final = 0.05

# Namespaces at which it no longer matters which they are: only the one that is alone needs no filter.
_SEVERAL: Final = 2

# Bytes copied between two looks whether the copy is still wanted.
_COPIED_BYTES: Final = 4 * 1024 * 1024

_CURRENT: Final = "current"

# What the engine says when another process has the folder open.
_IN_USE: Final = "WouldBlock"


class EdgeIndex:
    """The index below `root`. Opens its files when first used; `close` ends it.

    Every call of the engine blocks, and the long ones hold the interpreter as well, so they run in a thread of their
    own, one at a time; `search_here` takes its turn among them. `optimise_points` and `quiet_s` are constants but for
    tests.
    """

    engine = "qdrant-edge"
    # The engine locks the folder.
    is_shared = False

    def __init__(
        self,
        root: Path,
        model: str,
        dimension: int,
        *,
        optimise_points: int = OPTIMISE_POINTS,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._root = root
        self._folder = root / slug(model)
        self._dimension = dimension
        self._optimise_points = optimise_points
        self._quiet_s = quiet_s
        self._quiet: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vectors")
        self._turn = threading.Lock()
        self._is_closed = False
        self._shard: EdgeShard | None = None
        # Those that points are in; two stand for any number. One that lost its last point stays until the next opening.
        self._namespaces: set[str] = set()
        self._state = ""
        self._written_since_look = 0
        self._optimising: asyncio.Task[None] | None = None
        # Set while a copy is optimised.
        self._written_meanwhile: _Written | None = None
        # Held by every write, and while the files are copied: a copy of files that change fits no state of the index.
        self._writing = asyncio.Lock()

    # What an index does ------------------------------------------------------------------------------------------

    async def upsert(self, points: Sequence[Point]) -> None:
        """Store points, in the place of those with the same ids."""
        for point in points:
            if len(point.vector) != self._dimension * COMPONENT_BYTES:
                raise IndexUnavailable(
                    f"vector of chunk {point.id} has {len(point.vector) // COMPONENT_BYTES} components,"
                    f" the index of {self._folder.name} holds {self._dimension}"
                )
        for part in _parts(points, UPSERT_POINTS):
            async with self._writing:
                await self._run(lambda shard, part=part: self._upsert(shard, part))  # type: ignore[misc]
        self._written_since_look += len(points)
        if self._written_since_look >= min(_LOOK_EVERY_POINTS, self._optimise_points):
            self._written_since_look = 0
            await self._optimise_if_due(self._optimise_points, _OPTIMISE_SHARE)
        self._wait_for_quiet()

    async def remove(self, ids: Sequence[int]) -> None:
        """Remove points; ids that are not there do no harm."""
        if ids:
            async with self._writing:
                await self._run(lambda shard: self._remove(shard, list(ids)))

    async def search(
        self, vector: bytes, *, ns: str, kinds: Sequence[str] | None, limit: int
    ) -> list[tuple[int, float]]:
        """The nearest points of a namespace, and of `kinds` unless None: id and cosine, best first."""
        if kinds is not None and not kinds:
            return []
        return await self._run(lambda shard: _search(shard, vector, self._filter(ns, kinds), limit))

    def search_here(
        self, vector: bytes, ns: str, kinds: Sequence[str] | None, limit: int, /
    ) -> list[tuple[int, float]]:
        """`search` in the thread that calls it, which waits TURN_WAIT_S for its turn at most. Raises IndexBusy."""
        if kinds is not None and not kinds:
            return []
        if not self._turn.acquire(timeout=TURN_WAIT_S):
            raise IndexBusy(f"the vector index has been busy for {TURN_WAIT_S:g} s")
        try:
            return _guarded(lambda: _search(self._opened(), vector, self._filter(ns, kinds), limit))
        finally:
            self._turn.release()

    async def count(self) -> int:
        """How many points there are."""
        return await self._run(_count)

    async def ids(self, *, after: int, limit: int) -> list[int]:
        """Ids above `after` in ascending order, `limit` at most."""
        return await self._run(lambda shard: _ids(shard, after, limit))

    async def read_mark(self) -> str:
        """What `write_mark` left last, "" where nothing was left since the index was made or cleared."""
        return await self._run(_mark)

    async def write_mark(self, mark: str) -> None:
        """Leave a few words with the points, written after all that was stored before."""
        async with self._writing:
            await self._run(lambda shard: self._upsert(shard, [mark_point(mark, self._dimension)]))

    async def clear(self) -> None:
        """Remove every point."""
        await self._stop_optimising()
        await self._in_thread(self._start_anew)

    async def forget_model(self, model: str) -> None:
        """Remove the whole index of another model; one that is not there does no harm."""
        folder = self._root / slug(model)
        if folder != self._folder:
            await self._in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def close(self) -> None:
        """Write everything out and close the files."""
        await self._stop_optimising()
        try:
            await self._in_thread(self._close)
        finally:
            self._thread.shutdown()

    async def optimised(self) -> None:
        """Return once no graph is being built."""
        if self._optimising is not None:
            await asyncio.wait({self._optimising})

    # In the index's thread ---------------------------------------------------------------------------------------

    async def _run(self, work: Callable[[EdgeShard], T]) -> T:
        return await self._in_thread(lambda: work(self._opened()))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_turn, work)

    def _in_turn(self, work: Callable[[], T]) -> T:
        with self._turn:
            return _guarded(work)

    def _opened(self) -> EdgeShard:
        if self._is_closed:
            raise IndexUnavailable("the vector index is closed")
        if self._shard is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._state = _read_current(self._folder)
            self._remove_other_states()
            shard = self._load() or self._create()
            try:
                self._namespaces = _namespaces(shard)
            except BaseException:
                # Whoever comes next opens it again, rather than search it with a wrong set.
                shard.close()
                raise
            self._shard = shard
        return self._shard

    def _filter(self, ns: str, kinds: Sequence[str] | None) -> Filter | None:
        # Each point on the way through the graph is held against a filter, which takes a quarter of the search.
        return None if kinds is None and self._namespaces == {ns} else _filter(ns, kinds)

    def _load(self) -> EdgeShard | None:
        from qdrant_edge import EdgeShard

        folder = self._folder / self._state
        if not self._state or not folder.is_dir():
            return None
        try:
            return EdgeShard.load(str(folder), _config(self._dimension, self._optimise_points))
        except Exception as error:
            if _IN_USE in str(error):
                raise IndexUnavailable(f"{folder} is in use by another process") from error
            # The engine raises plain exceptions only. Vectors can be made anew from the chunks, and are: see outbox.py.
            log.warning(
                "vector index unusable, starting a new one",
                extra={"action": "memory.vectors.unusable", "folder": str(folder), "reason": str(error)},
            )
            return None

    def _create(self) -> EdgeShard:
        from qdrant_edge import EdgeShard, PayloadSchemaType, UpdateOperation

        self._state = str(int(self._state or 0) + 1)
        folder = self._folder / self._state
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shard = EdgeShard.create(str(folder), _config(self._dimension, self._optimise_points))
        for key in ("ns", "place"):
            shard.update(UpdateOperation.create_field_index(key, PayloadSchemaType.Keyword))
        _write_current(self._folder, self._state)
        self._remove_other_states()
        return shard

    def _start_anew(self) -> None:
        # A copy that was just being made when it was given up has begun to collect.
        self._written_meanwhile = None
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        else:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._state = _read_current(self._folder)
        self._shard = self._create()
        self._namespaces.clear()

    def _close(self) -> None:
        self._is_closed = True
        shard, self._shard = self._shard, None
        if shard is not None:
            try:
                shard.flush()
            finally:
                shard.close()

    def _remove_other_states(self) -> None:
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder.name != self._state:
                shutil.rmtree(folder, ignore_errors=True)

    def _upsert(self, shard: EdgeShard, points: Sequence[Point]) -> None:
        if self._written_meanwhile is not None:
            self._written_meanwhile.update((point.id, point) for point in points)
        if len(self._namespaces) < _SEVERAL:
            self._namespaces.update(islice({point.ns for point in points if point.id != MARK_ID}, _SEVERAL))
        _upsert(shard, points)

    def _remove(self, shard: EdgeShard, ids: list[int]) -> None:
        if self._written_meanwhile is not None:
            self._written_meanwhile.update(dict.fromkeys(ids))
        _remove(shard, ids)

    # Building the graph ------------------------------------------------------------------------------------------

    def _wait_for_quiet(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = asyncio.create_task(self._optimise_when_quiet(), name="memory vectors quiet")

    async def _optimise_when_quiet(self) -> None:
        await asyncio.sleep(self._quiet_s)
        await self.optimised()
        try:
            await self._optimise_if_due(self._optimise_points // _QUIET_PART, _QUIET_SHARE)
        except IndexUnavailable as error:
            log.warning(
                "graph of vectors not built", extra={"action": "memory.vectors.not_optimised", "reason": str(error)}
            )

    async def _optimise_if_due(self, least: int, share: float) -> None:
        if self._is_optimising:
            return
        points, inside = await self._run(_points_and_inside)
        # Asked again, because the other of the two who build it may have been here meanwhile.
        if points - inside >= max(least, share * inside) and not self._is_optimising:
            self._optimising = asyncio.create_task(self._optimise(points), name="memory vectors graph")

    @property
    def _is_optimising(self) -> bool:
        return self._optimising is not None and not self._optimising.done()

    async def _optimise(self, points: int) -> None:
        started_at = asyncio.get_running_loop().time()
        try:
            copy, written = await self._copy()
            problem = await _optimise_in_child(copy)
            if not problem:
                await self._take_over(copy, written)
                # Nobody has these open any more, so no search waits for it.
                await _outside(lambda stop: self._remove_other_states())
        except (IndexUnavailable, OSError) as error:
            problem = str(error)
        finally:
            self._written_meanwhile = None
        if problem:
            # Searches stay exact and become slower; tried again after the next points.
            with contextlib.suppress(IndexUnavailable):
                await self._in_thread(self._remove_other_states)
            log.warning(
                "graph of vectors not built", extra={"action": "memory.vectors.not_optimised", "reason": problem}
            )
            return
        took_s = round(asyncio.get_running_loop().time() - started_at, 1)
        log.info(
            "graph of vectors built", extra={"action": "memory.vectors.optimised", "points": points, "took_s": took_s}
        )

    async def _copy(self) -> tuple[Path, _Written]:
        """The folder of a copy, and where what is written from now on is collected.

        Without a flush, which takes 0.5 s for 100,000 points and holds the interpreter: what is not in the files yet is in
        the engine's log beside them, as after a kill.
        """
        async with self._writing:
            original, copy = await self._in_thread(self._folders)
            await _outside(lambda stop: _copy_files(original, copy, stop))
            written = self._written_meanwhile = {}
        return copy, written

    def _folders(self) -> tuple[Path, Path]:
        """The folder that counts, and the one for its copy, which is not there."""
        self._opened()
        copy = self._folder / str(int(self._state) + 1)
        shutil.rmtree(copy, ignore_errors=True)
        return self._folder / self._state, copy

    async def _take_over(self, copy: Path, written: _Written) -> None:
        """Bring the copy up to date, in steps between which searches have their turn, and let it take over."""
        loaded: list[EdgeShard] = []
        try:
            await self._in_thread(lambda: loaded.append(self._load_copy(copy)))
            while len(written) > UPSERT_POINTS:
                for part in _parts(await self._in_thread(lambda: _emptied(written)), UPSERT_POINTS):
                    await self._in_thread(lambda part=part: _write(loaded[0], part))  # type: ignore[misc]
            await self._in_thread(lambda: self._take(loaded[0], copy, written))
        except BaseException:
            await self._in_thread(lambda: self._give_up(loaded))
            raise

    def _load_copy(self, copy: Path) -> EdgeShard:
        from qdrant_edge import EdgeShard

        return EdgeShard.load(str(copy), _config(self._dimension, self._optimise_points))

    def _take(self, shard: EdgeShard, copy: Path, written: _Written) -> None:
        for part in _parts(_emptied(written), UPSERT_POINTS):
            _write(shard, part)
        _write_current(self._folder, copy.name)
        before, self._shard = self._shard, shard
        self._state = copy.name
        if before is not None:
            before.close()

    def _give_up(self, loaded: list[EdgeShard]) -> None:
        for shard in loaded:
            # Whoever waited for it may have left just when it took over.
            if shard is not self._shard:
                shard.close()

    async def _stop_optimising(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            await asyncio.wait({self._quiet})
            self._quiet = None
        if self._optimising is not None:
            self._optimising.cancel()
            await asyncio.wait({self._optimising})
            self._optimising = None


# The engine --------------------------------------------------------------------------------------------------------


def _guarded(work: Callable[[], T]) -> T:
    try:
        return work()
    except ImportError as error:
        raise IndexUnavailable(
            f"the embedded vector index needs qdrant-edge-py, which is in the extra 'memory': {error}"
        ) from error
    except IndexUnavailable:
        raise
    except Exception as error:  # the engine raises nothing more special
        raise IndexUnavailable(f"the embedded vector index failed: {error}") from error


def _config(dimension: int, optimise_points: int) -> EdgeConfig:
    from qdrant_edge import (
        Distance,
        EdgeConfig,
        EdgeOptimizersConfig,
        EdgeVectorParams,
        HnswIndexConfig,
        ScalarQuantizationConfig,
        ScalarType,
        VectorStorageDatatype,
    )

    # The vectors have length 1, so their product is the cosine. Half precision finds the same nearest ones as single
    # precision in two thirds of the time and half of the memory. The graph is walked on 8-bit copies, which takes 0.5
    # instead of 1.2 ms; `_search` has what it finds compared with the vectors themselves.
    least_points = optimise_points // _QUIET_PART
    return EdgeConfig(
        vectors=EdgeVectorParams(size=dimension, distance=Distance.Dot, datatype=VectorStorageDatatype.Float16),
        hnsw_config=HnswIndexConfig(m=_EDGES, ef_construct=_BUILD_EF, full_scan_threshold=_FULL_SCAN_KIB),
        quantization_config=ScalarQuantizationConfig(ScalarType.Int8, quantile=0.99, always_ram=True),
        optimizers=EdgeOptimizersConfig(indexing_threshold=least_points * dimension * _HALF_BYTES // 1024),
        # To wake several threads takes longer than one of them takes to walk the graph: 0.7 instead of 0.4 ms.
        max_search_threads=1,
    )


def _filter(ns: str, kinds: Sequence[str] | None) -> Filter:
    from qdrant_edge import FieldCondition, Filter, MatchAny, MatchValue

    if kinds is None:
        return Filter(must=[FieldCondition("ns", MatchValue(ns))])
    return Filter(must=[FieldCondition("place", MatchAny([place(ns, kind) for kind in kinds]))])


def _search(shard: EdgeShard, vector: bytes, wanted: Filter | None, limit: int) -> list[tuple[int, float]]:
    from qdrant_edge import QuantizationSearchParams, Query, SearchParams, SearchRequest

    found = shard.search(
        SearchRequest(
            query=Query.Nearest(components(vector)),
            # One more, because without a filter the mark is found as well.
            limit=limit + (wanted is None),
            filter=wanted,
            params=SearchParams(hnsw_ef=_SEARCH_EF, quantization=QuantizationSearchParams(rescore=True)),
            with_payload=False,
        )
    )
    return [(_int_id(point.id), point.score) for point in found if point.id != MARK_ID][:limit]


def _namespaces(shard: EdgeShard) -> set[str]:
    """Those that points are in, of which two are named at most."""
    from qdrant_edge import FacetRequest, Filter, HasIdCondition

    no_mark = Filter(must_not=[HasIdCondition({MARK_ID})])
    found = shard.facet(FacetRequest("ns", limit=_SEVERAL, exact=True, filter=no_mark))
    return {str(hit.value) for hit in found.hits}


def _upsert(shard: EdgeShard, points: Sequence[Point]) -> None:
    from qdrant_edge import Point as EdgePoint
    from qdrant_edge import UpdateOperation

    shard.update(
        UpdateOperation.upsert_points(
            [
                EdgePoint(point.id, components(point.vector), {"ns": point.ns, "place": place(point.ns, point.kind)})
                for point in points
            ]
        )
    )


def _remove(shard: EdgeShard, ids: list[int]) -> None:
    from qdrant_edge import UpdateOperation

    if ids:
        shard.update(UpdateOperation.delete_points(list(ids)))


def _emptied(written: _Written) -> list[tuple[int, Point | None]]:
    """All of what was written meanwhile, which is empty after that."""
    all_of_it = list(written.items())
    written.clear()
    return all_of_it


def _write(shard: EdgeShard, written: Sequence[tuple[int, Point | None]]) -> None:
    points = [point for _, point in written if point is not None]
    if points:
        _upsert(shard, points)
    _remove(shard, [id for id, point in written if point is None])


def _count(shard: EdgeShard) -> int:
    from qdrant_edge import CountRequest

    return shard.count(CountRequest(exact=True)) - len(shard.retrieve([MARK_ID], False, False))


def _mark(shard: EdgeShard) -> str:
    marks = shard.retrieve([MARK_ID], True, False)
    return str((marks[0].payload or {}).get("ns", "")) if marks else ""


def _ids(shard: EdgeShard, after: int, limit: int) -> list[int]:
    from qdrant_edge import ScrollRequest

    records, _ = shard.scroll(ScrollRequest(offset=after + 1, limit=limit, with_payload=False, with_vector=False))
    return [_int_id(record.id) for record in records]


def _points_and_inside(shard: EdgeShard) -> tuple[int, int]:
    info = shard.info()
    return info.points_count, info.indexed_vectors_count


def _int_id(id: object) -> int:
    assert isinstance(id, int)
    return id


async def _optimise_in_child(folder: Path) -> str:
    """Build the graph in the copy; what went wrong, or "" when nothing did."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "workers.memory.vectors.edge_optimise",
        str(folder),
        "--parent",
        str(os.getpid()),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        start_new_session=True,
    )
    try:
        _, said = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    lines = said.decode(errors="replace").strip().splitlines()
    return "" if process.returncode == 0 else f"status {process.returncode}: {lines[-1] if lines else 'no word'}"


# Files -------------------------------------------------------------------------------------------------------------


def _read_current(folder: Path) -> str:
    try:
        name = (folder / _CURRENT).read_text().strip()
    except FileNotFoundError:
        return ""
    return name if name.isdecimal() else ""


def _write_current(folder: Path, name: str) -> None:
    """Make `name` the folder that counts, whole or not at all."""
    new = folder / f"{_CURRENT}.new"
    with new.open("w") as file:
        file.write(name)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / _CURRENT)


class _Stopped(Exception):
    """Nobody wants the copy any more."""


def _copy_files(original: Path, copy: Path, stop: threading.Event) -> None:
    """Copy a folder, unless told to stop. Raises OSError."""

    def copy_file(source: str, target: str) -> str:
        with open(source, "rb") as read, open(target, "wb") as written:
            while piece := read.read(_COPIED_BYTES):
                if stop.is_set():
                    raise _Stopped
                written.write(piece)
        return target

    shutil.copytree(original, copy, copy_function=copy_file)


async def _outside(work: Callable[[threading.Event], None]) -> None:
    """Do work on files in a thread that no search waits for; cancelled, tell it to stop and return once it has."""
    stop = threading.Event()
    working = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({working})
        # Read, so that nobody is told of an error that was wanted.
        working.exception()
        raise


def _parts(items: Iterable[T], size: int) -> Iterable[list[T]]:
    remaining = iter(items)
    while part := list(islice(remaining, size)):
        yield part
