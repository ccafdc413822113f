"""Two model services on one machine, each with a bus of its own, and one lock per device between them."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.client import Client
from bus.device_lock import read_lock
from bus.settings import Settings
from schemas.bodies.model import Generate, ModelLoad, ModelUnload
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.service import ModelService

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

WAIT_S = 20.0

# A program that knows nothing of Olympus but the lock: takes it, says so, and holds it until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from bus.device_lock import held
with held(Path(sys.argv[1]), "cpu", model="a-notebook", purpose="train", timeout_s=10):
    print("held", flush=True)
    time.sleep(600)
"""


@asynccontextmanager
async def house(settings: Settings, locks: Path, model: str) -> AsyncIterator[Client]:
    """A model service whose locks are those of the machine; it has one model, called `model`."""
    settings.home_path.mkdir(parents=True, exist_ok=True)
    settings.path("locks").symlink_to(locks)
    root = settings.path("models")
    root.mkdir()
    shutil.copy(SHIPPED_ROOT / "olympus-demo.gguf", root / f"{model}.gguf")
    models = msgspec.structs.replace(settings.models, default="none", predict=False)
    service = ModelService(msgspec.structs.replace(settings, models=models))
    await service.start()
    try:
        async with Client(settings, name="test") as client:
            yield client
    finally:
        await service.stop()


@asynccontextmanager
async def two_houses(serve_broker: Any, tmp_path: Path) -> AsyncIterator[tuple[Path, Client, Client]]:
    """The folder of the machine's locks, and a client of each house."""
    locks = tmp_path / "locks"
    locks.mkdir()
    async with AsyncExitStack() as stack:
        clients = []
        for name in ("one", "two"):
            settings = await stack.enter_async_context(serve_broker())
            at = msgspec.structs.replace(settings, home=str(tmp_path / name))
            clients.append(await stack.enter_async_context(house(at, locks, name)))
        yield locks, clients[0], clients[1]


async def load(client: Client, model: str) -> Any:
    return await client.request("model.load", ModelLoad(model=model), timeout_s=WAIT_S)


async def waiting(locks: Path, count: int) -> list[str]:
    """The models that wait for the lock, once there are so many."""
    for _ in range(int(WAIT_S / 0.02)):
        models = [waiter.model for waiter in read_lock(locks, "cpu")[1]]
        if len(models) == count:
            return models
        await asyncio.sleep(0.02)
    pytest.fail(f"{count} waiters did not come about")


def start_holder(locks: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(locks)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )


async def test_two_services_take_turns_and_a_killed_holder_gives_way(serve_broker: Any, tmp_path: Path) -> None:
    """Both wait, visibly and in order, for a program that only uses the lock; when that is killed, both load."""
    async with two_houses(serve_broker, tmp_path) as (locks, one, two):
        holder = await asyncio.to_thread(start_holder, locks)
        try:
            assert holder.stdout is not None
            assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
            first = asyncio.ensure_future(load(one, "one"))
            assert await waiting(locks, 1) == ["one"]
            second = asyncio.ensure_future(load(two, "two"))
            assert await waiting(locks, 2) == ["one", "two"]
            seen = read_lock(locks, "cpu")[0]
            assert seen is not None and (seen.pid, seen.model, seen.purpose) == (holder.pid, "a-notebook", "train")
        finally:
            holder.kill()
            holder.wait()
            if holder.stdout is not None:
                holder.stdout.close()

        states = await asyncio.gather(first, second)

    assert [state.state for state in states] == ["loaded", "loaded"]
    assert read_lock(locks, "cpu") == (None, [])


async def test_neither_service_starves_while_both_swap(serve_broker: Any, tmp_path: Path) -> None:
    """Loads and unloads of both at the same time all come about, and nobody is left in the queue."""

    async def swap(client: Client, model: str) -> int:
        for _ in range(4):
            await client.request("model.generate", Generate(prompt="a", model=model, max_tokens=1), timeout_s=WAIT_S)
            await client.request("model.unload", ModelUnload(model=model), timeout_s=WAIT_S)
        return 4

    async with two_houses(serve_broker, tmp_path) as (locks, one, two):
        done = await asyncio.gather(swap(one, "one"), swap(two, "two"))

    assert done == [4, 4]
    assert read_lock(locks, "cpu") == (None, [])
