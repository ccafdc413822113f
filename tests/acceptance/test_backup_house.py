"""A running house is backed up under load, restored into another folder and started there; upgrades as a person meets them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bus import state
from bus.client import Client
from bus.settings import EX_CONFIG, Settings, load_settings
from schemas.bodies.control import EventsRead
from schemas.bodies.items import MemoryAdd
from schemas.bodies.memory import KvGet, KvSet
from schemas.bodies.search import Search, SearchReply
from schemas.bodies.upkeep import MemoryVerify, Verified
from tests.acceptance.test_up import Up
from tests.vectors_bench import tiny_model

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
WRITERS = 8

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "tokenizers", "qdrant_edge")),
    reason="vectors need the extra 'memory'",
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Path], Up]]:
    """Starts broker and memory from a home; what was started ends with the test."""
    model = tiny_model(tmp_path / "model")
    made: list[Up] = []

    def start(home: Path) -> Up:
        up = Up(home, "--only", "broker,memory", "--set", f"memory.encoder={model}")
        made.append(up)
        up.start()
        up.wait_for_line("Olympus is ready")
        return up

    yield start
    for up in made:
        up.end()


def settings_of(up: Up) -> Settings:
    """Settings of a client of that house."""
    ports = {f"bus.{name}": port for name, port in up.ports.items()}
    return load_settings(overrides={"home": up.environment["OLYMPUS_HOME"], **ports})


async def olympus(*words: str, module: str = "bus.cli.app") -> tuple[int, str]:
    """Run `olympus ...`, or a service; its status and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *words),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    return process.returncode or 0, out.decode()


async def eventually(look: Callable[[], Any], what: str) -> Any:
    """What `look` answers once it is true."""
    deadline = time.monotonic() + WAIT_S
    while not (found := await look()):
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {WAIT_S:g} s: {what}")
        await asyncio.sleep(0.05)
    return found


async def test_house_is_backed_up_under_load_and_lives_on_elsewhere(
    tmp_path: Path, start: Callable[[Path], Up]
) -> None:
    """Every write that was acknowledged before the backup began is there, vectors come back, and events too."""
    home, other, archive = tmp_path / "home", tmp_path / "other", tmp_path / "backup.tar.gz"
    up = start(home)
    acknowledged: list[str] = []
    is_over = asyncio.Event()

    async with Client(settings_of(up), name="test") as client:

        async def write(writer: int) -> None:
            number = 0
            while not is_over.is_set():
                key = f"{writer}-{number}"
                await client.request("memory.kv.set", KvSet(key=key, value=key * 20))
                acknowledged.append(key)
                number += 1

        for number in range(30):
            await client.request("memory.add", MemoryAdd(content=f"the train number {number} leaves from the north"))
        writers = [asyncio.create_task(write(writer)) for writer in range(WRITERS)]
        await eventually(lambda: _is_true(len(acknowledged) > 200), "writes before the backup")
        before = list(acknowledged)
        status, said = await olympus("--set", f"home={home}", "backup", str(archive))
        assert status == 0, said
        status, said = await olympus("--set", f"home={home}", "restore", str(archive), "--replace")
        assert status == EX_CONFIG, said
        assert "is in use" in said
        assert len(acknowledged) > len(before)
        is_over.set()
        await asyncio.gather(*writers)

    status, said = await olympus("restore", str(archive), "--into", str(other))
    assert status == 0, said
    assert not (other / "memory" / "vectors").exists()
    second = start(other)
    async with Client(settings_of(second), name="test") as client:
        for key in before:
            assert (await client.request("memory.kv.get", KvGet(key=key))).value == key * 20

        async def agrees() -> bool:
            verified: Verified = await client.request("memory.verify", MemoryVerify(), timeout_s=WAIT_S)
            return verified.agrees and verified.vectors == verified.chunks >= 30 and not verified.waiting

        # Nobody has searched yet: the memory began by itself.
        await eventually(agrees, "every vector made anew")
        found: SearchReply = await client.request(
            "memory.search", Search(query="the train number 7", mode="dense", k=5)
        )
        assert found.hits
        assert not found.degraded
        async with client.stream("bus.events.read", EventsRead(subject="memory.>")) as parts:
            events = [event async for part in parts for event in part.events]
        assert events


async def _is_true(value: bool) -> bool:
    return value


async def test_older_home_is_brought_up_to_date_and_newer_one_refused(
    tmp_path: Path, start: Callable[[Path], Up]
) -> None:
    """A home without a mark opens with all it holds; format 999 stops `up` and every service, with what to do."""
    home = tmp_path / "home"
    up = start(home)
    async with Client(settings_of(up), name="test") as client:
        await client.request("memory.kv.set", KvSet(key="k", value="kept"))
    up.end()
    (home / state.MARK).unlink()

    again = start(home)
    async with Client(settings_of(again), name="test") as client:
        assert (await client.request("memory.kv.get", KvGet(key="k"))).value == "kept"
    again.end()
    assert json.loads((home / state.MARK).read_text())["format"] == state.FORMAT

    (home / state.MARK).write_text('{"format": 999, "version": "9.9.9"}')
    for module, *words in (
        ("bus.cli.app", "up", "--only", "broker"),
        ("broker",),
        ("workers.memory",),
        ("workers.resources",),
    ):
        status, said = await olympus(*words, "--set", f"home={home}", module=module)
        assert status == EX_CONFIG
        assert "format 999, written by Olympus 9.9.9" in said
        assert "olympus restore FILE --replace" in said
