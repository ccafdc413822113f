"""The embedded index beside its contract: its files, its graph, and what it does when either is unusable."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.vectors_bench import cosine, random_vectors, unit, until
from workers.memory.vectors import edge
from workers.memory.vectors.edge import EdgeIndex
from workers.memory.vectors.index import Point
from workers.memory.vectors.unavailable import IndexBusy, IndexUnavailable

ROOT = Path(__file__).resolve().parents[2]

# Stores points for ever, and says after each call how many there are.
WRITER = """
import asyncio, sys
from pathlib import Path
from workers.memory.vectors.edge import EdgeIndex
from workers.memory.vectors.index import Point
from tests.vectors_bench import random_vectors

async def main():
    index = EdgeIndex(Path(sys.argv[1]), "m", 8)
    vectors = random_vectors(50, 8)
    for first in range(1, 10_000_000, 50):
        await index.upsert([Point(first + n, vector, "n", "memory") for n, vector in enumerate(vectors)])
        print(first + 49, flush=True)

asyncio.run(main())
"""


def points(count: int, dimension: int = 8) -> list[Point]:
    return [Point(id, vector, "n", "memory") for id, vector in enumerate(random_vectors(count, dimension), 1)]


def write_and_be_killed(folder: Path) -> int:
    """How many points a process had stored for sure when it was killed."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        try:
            stored = [int(writer.stdout.readline()) for _ in range(10)][-1]
        finally:
            os.kill(writer.pid, signal.SIGKILL)
        return max([stored, *(int(line) for line in writer.stdout if line.endswith("\n"))])


def states(folder: Path) -> set[str]:
    """Folders of states there are."""
    return {path.name for path in (folder / "m").iterdir() if path.is_dir()}


async def test_nothing_is_opened_before_the_first_call(tmp_path: Path) -> None:
    """An idle service holds no index."""
    index = EdgeIndex(tmp_path / "vectors", "m", 2)
    await index.close()
    assert not (tmp_path / "vectors").exists()


async def test_what_was_stored_survives_a_kill(tmp_path: Path) -> None:
    """Whatever a call returned for is there after kill -9, three times over."""
    for _ in range(3):
        stored = write_and_be_killed(tmp_path)
        index = EdgeIndex(tmp_path, "m", 8)
        assert await index.count() >= stored
        assert await index.ids(after=stored - 5, limit=5) == list(range(stored - 4, stored + 1))
        await index.close()


async def test_graph_is_built_on_a_copy_that_takes_over(tmp_path: Path) -> None:
    """The original goes, and the copy has what was written while the graph was built."""
    index = EdgeIndex(tmp_path, "m", 8, optimise_points=300)
    before = points(300)
    await index.upsert(before)
    assert states(tmp_path) >= {"1"}
    late = [Point(1_000, before[0].vector, "late", "turn")]
    await index.upsert(late)
    await index.remove([5])
    await index.optimised()

    assert states(tmp_path) == {"2"}
    assert (tmp_path / "m" / "current").read_text() == "2"
    assert await index.count() == 300
    assert [id for id, _ in await index.search(late[0].vector, ns="late", kinds=None, limit=1)] == [1_000]
    found = await index.search(before[4].vector, ns="n", kinds=None, limit=5)
    assert 5 not in [id for id, _ in found]
    await index.close()

    again = EdgeIndex(tmp_path, "m", 8, optimise_points=300)
    assert await again.count() == 300
    await again.close()


async def test_searches_go_on_while_the_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes wait for that, so that the copy is one state of the index; nothing of them is lost."""
    copying, may_copy = threading.Event(), threading.Event()
    copytree = shutil.copytree

    def copy_slowly(*paths: Any, **how: Any) -> Any:
        copying.set()
        assert may_copy.wait(20)
        return copytree(*paths, **how)

    monkeypatch.setattr(shutil, "copytree", copy_slowly)
    index = EdgeIndex(tmp_path, "m", 8, optimise_points=300)
    before = points(300)
    await index.upsert(before)
    await until(copying.is_set, "the files are being copied")

    async with asyncio.timeout(10):
        found = await index.search(before[0].vector, ns="n", kinds=None, limit=1)
    assert [id for id, _ in found] == [1]
    writing = asyncio.gather(index.upsert(points(310)[300:]), index.remove([1]), index.write_mark("d 1"))
    await asyncio.sleep(0)
    # Asked in the index's thread, where the writes would have been before it.
    assert await index.count() == 300
    assert not writing.done()

    may_copy.set()
    await writing
    await index.optimised()
    assert states(tmp_path) == {"2"}
    assert await index.ids(after=0, limit=400) == list(range(2, 311))
    assert await index.read_mark() == "d 1"
    await index.close()


async def test_what_was_written_meanwhile_reaches_the_copy_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes of writing would be seconds without a search, were all of it written to the copy in one go."""
    may_build, left = asyncio.Event(), []
    take = EdgeIndex._take

    async def wait(folder: Path) -> str:
        await may_build.wait()
        return ""

    def look(self: EdgeIndex, shard: Any, copy: Path, written: Any) -> None:
        left.append(len(written))
        take(self, shard, copy, written)

    monkeypatch.setattr(edge, "_optimise_in_child", wait)
    monkeypatch.setattr(EdgeIndex, "_take", look)
    index = EdgeIndex(tmp_path, "m", 8, optimise_points=100)
    await index.upsert(points(100))
    await until(lambda: index._written_meanwhile is not None, "the copy is made")
    await index.upsert(points(1_000)[100:])
    await index.remove(list(range(1, 11)))
    may_build.set()
    await index.optimised()

    assert states(tmp_path) == {"2"}
    assert left[0] <= 64
    assert await index.ids(after=0, limit=2_000) == list(range(11, 1_001))
    await index.close()


async def test_copying_ends_when_nobody_wants_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and not with the last byte: a service that stops has seconds."""
    monkeypatch.setattr(edge, "_COPIED_BYTES", 1)
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "file").write_bytes(bytes(100_000_000))
    copied = tmp_path / "copy" / "file"
    copying = asyncio.create_task(
        edge._outside(lambda stop: edge._copy_files(tmp_path / "original", tmp_path / "copy", stop))
    )
    await until(copied.exists, "the copying has begun")
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying

    size = copied.stat().st_size
    await asyncio.sleep(0.05)
    assert copied.stat().st_size == size < 100_000_000


async def test_graph_gives_the_cosines_of_the_vectors_themselves(tmp_path: Path) -> None:
    """It is walked on 8-bit copies, whose own cosines would be off by as much as tells two neighbours apart."""
    index = EdgeIndex(tmp_path, "m", 64, optimise_points=1_000)
    stored = points(1_000, 64)
    await index.upsert(stored)
    await index.optimised()
    assert states(tmp_path) == {"2"}

    for asked in random_vectors(5, 64, seed=2):
        found = await index.search(asked, ns="n", kinds=None, limit=50)
        for id, score in found:
            # Half precision has 11 bits.
            assert score == pytest.approx(cosine(asked, stored[id - 1].vector), abs=5e-4)
    await index.close()


async def test_graph_that_cannot_be_built_leaves_the_index_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches stay exact; what was written is there."""

    async def fail(folder: Path) -> str:
        return "status 1: no space left"

    monkeypatch.setattr(edge, "_optimise_in_child", fail)
    index = EdgeIndex(tmp_path, "m", 8, optimise_points=100)
    await index.upsert(points(100))
    await index.optimised()

    assert await index.count() == 100
    assert (tmp_path / "m" / "current").read_text() == "1"
    # On a disk that is full the copy would keep it so.
    assert states(tmp_path) == {"1"}
    await index.upsert(points(120)[100:])
    assert await index.count() == 120
    await index.close()


async def test_program_that_cannot_be_started_is_told_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine without room for one more process: the index goes on, and nothing fails unheard."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    index = EdgeIndex(tmp_path, "m", 8, optimise_points=100)
    await index.upsert(points(100))
    await index.optimised()

    assert [record.message for record in caplog.records] == ["graph of vectors not built"]
    assert await index.count() == 100
    await index.close()


async def test_two_reasons_at_once_build_one_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough points come just when there was quiet for long enough: two would build in the same folder."""
    building: list[Path] = []

    async def hang(folder: Path) -> str:
        building.append(folder)
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr(edge, "_optimise_in_child", hang)
    index = EdgeIndex(tmp_path, "m", 8, optimise_points=100, quiet_s=0.0)
    await index.upsert(points(99))
    await index.upsert(points(100)[99:])
    await until(lambda: bool(building), "a graph is being built")
    # Whoever else would build has asked the index's thread before this.
    await index.count()
    await index.count()

    assert len(building) == 1
    await index.close()


async def test_closing_while_the_graph_takes_over_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written since the copy was made is in the index that is opened next."""
    may_build, taking, may_take = asyncio.Event(), threading.Event(), threading.Event()
    take = EdgeIndex._take

    async def wait(folder: Path) -> str:
        await may_build.wait()
        return ""

    def take_slowly(self: EdgeIndex, *copied: Any) -> None:
        taking.set()
        may_take.wait(10)
        take(self, *copied)

    monkeypatch.setattr(edge, "_optimise_in_child", wait)
    monkeypatch.setattr(EdgeIndex, "_take", take_slowly)
    index = EdgeIndex(tmp_path, "m", 8, optimise_points=100)
    await index.upsert(points(100))
    await until(lambda: "2" in states(tmp_path), "the copy is made")
    await index.upsert(points(110)[100:])
    await index.remove([1])
    may_build.set()
    await until(taking.is_set, "the copy takes over")
    closing = asyncio.create_task(index.close())
    await index.optimised()
    may_take.set()
    await closing

    again = EdgeIndex(tmp_path, "m", 8)
    assert await again.ids(after=0, limit=200) == list(range(2, 111))
    await again.close()


async def test_clearing_ends_a_graph_in_the_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy made before the clearing never comes back."""
    started = asyncio.Event()

    async def hang(folder: Path) -> str:
        started.set()
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr(edge, "_optimise_in_child", hang)
    index = EdgeIndex(tmp_path, "m", 8, optimise_points=100)
    await index.upsert(points(100))
    await asyncio.wait_for(started.wait(), 10)

    await index.clear()

    assert await index.count() == 0
    assert len(states(tmp_path)) == 1
    await index.close()


async def test_child_that_builds_the_graph_ends_with_the_index(tmp_path: Path) -> None:
    """Closing kills it and leaves the original."""
    index = EdgeIndex(tmp_path, "m", 64, optimise_points=3_000)
    await index.upsert(points(3_000, 64))
    await until(lambda: "2" in states(tmp_path), "the copy is made")
    await index.close()

    again = EdgeIndex(tmp_path, "m", 64)
    assert await again.count() == 3_000
    assert len(states(tmp_path)) == 1
    await again.close()


async def test_closing_an_index_whose_files_are_gone_leaves_nothing_running(tmp_path: Path) -> None:
    """It says that it could not write them, and its thread ends."""
    index = EdgeIndex(tmp_path, "m", 8)
    await index.upsert(points(10))
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(IndexUnavailable, match="failed"):
        await index.close()
    assert "vectors_0" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("damage", ["config", "segments", "current"])
async def test_unusable_files_give_way_to_an_empty_index(tmp_path: Path, damage: str) -> None:
    """Vectors can be made anew; a service that refuses to start because of them helps nobody."""
    index = EdgeIndex(tmp_path, "m", 8)
    await index.upsert(points(30))
    await index.close()
    folder = tmp_path / "m" / "1"
    match damage:
        case "config":
            (folder / "edge_config.json").write_text("{")
        case "segments":
            for file in folder.glob("segments/*/segment.json"):
                file.write_text("nonsense")
        case "current":
            (tmp_path / "m" / "current").write_text("../../etc")

    again = EdgeIndex(tmp_path, "m", 8)
    assert await again.count() == 0
    await again.upsert(points(5))
    assert await again.count() == 5
    await again.close()


async def test_any_thread_may_search(tmp_path: Path) -> None:
    """While others write and search: each takes its turn, and finds what the index finds."""
    index = EdgeIndex(tmp_path, "m", 8)
    stored = points(200)
    await index.upsert(stored[:100])
    expected = await index.search(stored[0].vector, ns="n", kinds=None, limit=1)

    found, *_ = await asyncio.gather(
        asyncio.gather(*(asyncio.to_thread(index.search_here, stored[0].vector, "n", None, 1) for _ in range(20))),
        index.upsert(stored[100:]),
        index.remove([50, 51]),
    )

    assert found == [expected] * 20
    assert index.search_here(stored[0].vector, "n", [], 1) == []
    await index.close()
    with pytest.raises(IndexUnavailable, match="closed"):
        index.search_here(stored[0].vector, "n", None, 1)


async def test_search_does_not_wait_for_ever_for_its_turn(tmp_path: Path) -> None:
    """Whoever cannot wait is told so at once; others wait."""
    index = EdgeIndex(tmp_path, "m", 8)
    (only,) = points(1)
    await index.upsert([only])
    begun, done = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        begun.set()
        done.wait(20)

    holding = asyncio.ensure_future(index._run(hold))
    await asyncio.to_thread(begun.wait, 20)
    try:
        with pytest.raises(IndexBusy, match=r"busy for 0\.05 s"):
            index.search_here(only.vector, "n", None, 1)
        waiting = asyncio.ensure_future(index.search(only.vector, ns="n", kinds=None, limit=1))
        await asyncio.sleep(0.01)
        assert not waiting.done()
    finally:
        done.set()
        await holding
    assert len(await waiting) == 1
    assert len(index.search_here(only.vector, "n", None, 1)) == 1
    await index.close()


async def test_index_in_use_elsewhere_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Two services on one folder: the second says why it has none."""
    first = EdgeIndex(tmp_path, "m", 8)
    await first.upsert(points(10))
    script = WRITER.replace("10_000_000", "100")
    command = [sys.executable, "-c", script, str(tmp_path)]
    second = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "is in use by another process" in second.stderr
    assert await first.count() == 10
    await first.close()


async def test_missing_engine_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that brings it stands in the message."""
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    index = EdgeIndex(tmp_path, "m", 2)
    with pytest.raises(IndexUnavailable, match=r"qdrant-edge-py.*extra 'memory'"):
        await index.search(unit(1, 0), ns="n", kinds=None, limit=1)
    await index.close()


@pytest.mark.parametrize("is_opened_again", [False, True])
async def test_the_only_namespace_is_found_whole_and_a_second_one_stays_apart(
    tmp_path: Path, is_opened_again: bool
) -> None:
    """Where all points are of one namespace nothing is filtered: the mark is no hit then, and takes the place of none."""

    async def again(index: EdgeIndex) -> EdgeIndex:
        if not is_opened_again:
            return index
        await index.close()
        return EdgeIndex(tmp_path, "m", 2)

    async def found(index: EdgeIndex, ns: str, limit: int = 9) -> list[int]:
        return [id for id, _ in await index.search(unit(1, 0), ns=ns, kinds=None, limit=limit)]

    index = EdgeIndex(tmp_path, "m", 2)
    await index.write_mark("a")
    index = await again(index)
    assert await found(index, "n") == [] and await found(index, "a") == []
    await index.upsert([Point(1, unit(1, 0.1), "n", "memory"), Point(2, unit(0, 1), "n", "memory")])
    index = await again(index)
    assert await found(index, "n") == [1, 2] and await found(index, "n", limit=1) == [1]
    assert await found(index, "other") == [] and await found(index, "a") == []
    await index.upsert([Point(3, unit(1, 0), "other", "memory")])
    index = await again(index)
    assert await found(index, "n") == [1, 2] and await found(index, "other") == [3]
    await index.clear()
    assert await found(index, "n") == []
    await index.upsert([Point(4, unit(1, 0), "third", "memory")])
    index = await again(index)
    assert await found(index, "third") == [4] and await found(index, "n") == []
    await index.close()


async def test_namespaces_that_could_not_be_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that took itself for empty then would find what is of other namespaces."""
    index = EdgeIndex(tmp_path, "m", 2)
    await index.upsert([Point(1, unit(1, 0), "a", "memory"), Point(2, unit(1, 0), "b", "memory")])
    await index.write_mark("b")
    await index.close()

    def broken(shard: Any) -> set[str]:
        raise RuntimeError("the disk is gone")

    index = EdgeIndex(tmp_path, "m", 2)
    with monkeypatch.context() as patch:
        patch.setattr(edge, "_namespaces", broken)
        with pytest.raises(IndexUnavailable, match="the disk is gone"):
            await index.count()
    await index.upsert([Point(3, unit(1, 0), "a", "memory")])
    assert {id for id, _ in await index.search(unit(1, 0), ns="a", kinds=None, limit=9)} == {1, 3}
    await index.close()
