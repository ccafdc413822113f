"""What is in memory, and who says so: leases, pins, loads ahead of need, and kill -9 at every step."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.client import Client
from bus.device_lock import DeviceLock, read_lock
from bus.settings import Settings, child_environment
from schemas.bodies.model import (
    Chat,
    ChatMessage,
    Generate,
    ModelKeep,
    ModelLoad,
    ModelPreload,
    ModelShow,
    ModelStats,
    ModelUnload,
    ModelUsage,
)
from schemas.bodies.resource import LeaseAcquire, LeaseInfo, LeaseList
from schemas.errors import BusError, DeadlineExceeded, NotFound, Overloaded, Unprocessable, WorkerLost
from workers.models.adapters.canary import InUse
from workers.models.backends.backend import AdapterFile
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.prediction import Forecast
from workers.models.service import ModelService
from workers.resources.service import ResourceService

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

NAME = "olympus-demo"
WAIT_S = 20.0
MIB = 1024 * 1024


def chat(model: str | None = NAME, **more: Any) -> Chat:
    return Chat(messages=[ChatMessage(role="user", content="hello")], model=model, max_tokens=4, **more)


def endless(model: str = NAME) -> Generate:
    return Generate(prompt="Tell", model=model, max_tokens=480, temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=3)


@asynccontextmanager
async def resources(settings: Settings, **changes: Any) -> AsyncIterator[ResourceService]:
    """The resource service, with no GPU looked for."""
    changed = msgspec.structs.replace(settings.resources, nvml="off", **changes)
    service = ResourceService(msgspec.structs.replace(settings, resources=changed))
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


@asynccontextmanager
async def serving(settings: Settings, **models: Any) -> AsyncIterator[tuple[ModelService, Client]]:
    """The service and a client, with `settings.models` changed; a twin of the demo model lies beside it."""
    root = settings.path("models")
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(SHIPPED_ROOT / f"{NAME}.gguf", root / "twin.gguf")
    values = {"default": "none", "predict": False, **models}
    changed = msgspec.structs.replace(settings, models=msgspec.structs.replace(settings.models, **values))
    service = ModelService(changed)
    await service.start()
    try:
        async with Client(changed, name="test") as client:
            yield service, client
    finally:
        await service.stop()


async def leases(client: Client) -> list[LeaseInfo]:
    return list((await client.request("resource.lease.list", LeaseList(service="model"))).leases)


async def size_of(client: Client, model: str = NAME) -> int:
    """What the service expects the model to take."""
    return int((await client.request("model.show", ModelShow(model=model))).memory_bytes)


async def load(client: Client, model: str = NAME, **more: Any) -> int:
    """Load a model; returns the process id of its runner."""
    state = await client.request("model.load", ModelLoad(model=model, **more), timeout_s=WAIT_S)
    return int(state.pid)


async def until(condition: Any, what: str) -> None:
    """Wait until `condition()`, a plain or an async function, is true; fails naming what did not come about."""
    for _ in range(int(WAIT_S / 0.02)):
        met = condition()
        if await met if asyncio.iscoroutine(met) else met:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"did not come about: {what}")


async def no_lease(client: Client) -> bool:
    return not await leases(client)


async def refused(kind: type[BusError], client: Client, subject: str, body: Any, timeout_s: float = WAIT_S) -> Any:
    with pytest.raises(kind) as caught:
        await client.request(subject, body, timeout_s=timeout_s)
    return caught.value


async def test_a_loaded_model_holds_a_lease_of_its_memory_until_its_process_is_gone(serve_broker: Any) -> None:
    """Reserved before the load, named after the model, given back after the unload."""
    async with serve_broker() as settings, resources(settings), serving(settings) as (_, client):
        expected = await size_of(client)
        await load(client)
        (lease,) = await leases(client)
        shown = await client.request("model.show", ModelShow(model=NAME))
        await client.request("model.unload", ModelUnload(model=NAME), timeout_s=WAIT_S)
        await until(lambda: no_lease(client), "the end of the lease")
    assert (lease.device, lease.purpose, lease.is_preemptible) == ("cpu", NAME, True)
    assert lease.ram_bytes >= expected > 0
    assert (shown.device, shown.memory_bytes) == ("cpu", lease.ram_bytes)


async def test_memory_decides_who_stays(serve_broker: Any) -> None:
    """Room for one: the idle model leaves for the other, one in use stays, and the caller hears both numbers."""
    async with serve_broker() as settings:
        async with serving(settings) as (_, client):
            size = await size_of(client)
        async with (
            resources(settings, devices=(f"cpu={int(size * 1.5) // MIB}MiB",)),
            serving(settings) as (_, client),
        ):
            await load(client)
            await client.request("model.chat", chat("twin"), timeout_s=WAIT_S)
            assert [lease.purpose for lease in await leases(client)] == ["twin"]

            pid = await load(client, "twin")
            async with client.stream("model.generate@twin", endless("twin"), timeout_s=WAIT_S) as parts:
                await anext(parts)
                os.kill(pid, signal.SIGSTOP)
                error = await refused(Overloaded, client, "model.chat", chat(), timeout_s=1.0)
                os.kill(pid, signal.SIGCONT)
    assert error.details["needed_bytes"] > error.details["free_bytes"]
    assert "in use are twin" in error.message
    assert "held by model (twin)" in error.message


async def test_a_model_bigger_than_the_device_is_refused_at_once(serve_broker: Any) -> None:
    """Both numbers, and nothing is evicted for it."""
    async with (
        serve_broker() as settings,
        resources(settings, devices=("cpu=16MiB",)),
        serving(settings) as (_, client),
    ):
        error = await refused(Unprocessable, client, "model.chat", chat())
        assert error.details["needed_bytes"] > error.details["limit_bytes"] == 16 * MIB
        error = await refused(BusError, client, "model.load", ModelLoad(model=NAME, device="gpu7"))
    assert "gpu7" in error.message


async def test_memory_somebody_else_holds_is_asked_back_or_waited_for(serve_broker: Any) -> None:
    """A more important lease of another service takes an idle model's memory; its end lets the model come back."""
    async with serve_broker() as settings:
        async with serving(settings) as (_, client):
            size = await size_of(client)
        async with (
            resources(settings, devices=(f"cpu={int(size * 1.5) // MIB}MiB",)),
            serving(settings) as (_, client),
            client.subscribe("model.evicted") as evicted,
        ):
            await load(client)
            wanted = LeaseAcquire(service="learning", ram_bytes=size, priority=1, lease_id="one", purpose="train")
            await refused(BusError, client, "resource.lease.acquire", wanted)
            event = await asyncio.wait_for(anext(evicted), WAIT_S)
            await until(lambda: no_lease(client), "the end of the model's lease")
            await client.request("resource.lease.acquire", wanted)

            asking = asyncio.ensure_future(client.request("model.chat", chat(), timeout_s=WAIT_S))
            done, _ = await asyncio.wait({asking}, timeout=0.3)
            assert not done
            await client.request("resource.lease.release", {"lease_id": "one"})
            assert (await asking).model == NAME
    assert "learning" in event.body["reason"]


async def test_a_backend_without_the_gpu_that_is_there_loads_into_main_memory(serve_broker: Any) -> None:
    """A GPU is declared, and this llama-cpp-python computes on the CPU alone: the request is answered from there."""
    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this build of llama-cpp-python uses GPUs")
    async with (
        serve_broker() as settings,
        resources(settings, devices=("gpu0=64GiB",)),
        serving(settings) as (_, client),
        client.subscribe("model.loading") as loading,
    ):
        assert (await client.request("model.chat", chat(), timeout_s=WAIT_S)).model == NAME
        assert [lease.device for lease in await leases(client)] == ["cpu"]
        seen = [(await asyncio.wait_for(anext(loading), WAIT_S)).body["device"] for _ in range(2)]
    assert seen == ["gpu0", "cpu"]


async def test_what_is_held_is_entered_when_the_books_come_later(
    serve_broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the resource service models load all the same; when it comes, their memory is reserved."""
    monkeypatch.setattr("workers.models.leasing.RENEW_S", 0.1)
    async with serve_broker() as settings, serving(settings) as (_, client):
        await load(client)
        async with resources(settings):
            await until(lambda: has_lease(client), "the lease")


async def has_lease(client: Client) -> bool:
    return [lease.purpose for lease in await leases(client)] == [NAME]


@pytest.mark.parametrize("moment", ["load", "serve", "drain"])
async def test_kill_9_of_a_runner_leaves_nothing_behind(serve_broker: Any, moment: str) -> None:
    """While it loads, serves or drains: no lock and no lease stays, and the next request is answered."""
    async with (
        serve_broker() as settings,
        resources(settings),
        serving(settings, spare_runners=0) as (service, client),
    ):
        work: asyncio.Task[Any]
        if moment == "load":
            lock = DeviceLock(settings.path("locks"), "cpu")
            await lock.acquire(model="a test", purpose="wait", timeout_s=WAIT_S)
            work = asyncio.ensure_future(client.request("model.chat", chat(), timeout_s=WAIT_S))
            await until(lambda: read_lock(settings.path("locks"), "cpu")[1], "the runner waits for the lock")
            pid = read_lock(settings.path("locks"), "cpu")[1][0].pid
            lock.release()
        else:
            pid = await load(client)
            work = asyncio.ensure_future(client.request("model.generate", endless(), timeout_s=WAIT_S))
            await until(lambda: service._loading._relays._gates, "the request was passed on")
        if moment == "drain":
            await until(lambda: in_flight(client), "the request is in flight")
            unloading = asyncio.ensure_future(client.request("model.unload", ModelUnload(model=NAME), timeout_s=WAIT_S))
            await until(lambda: service._loading.state_of(NAME) == "draining", "the drain")
        os.kill(pid, signal.SIGKILL)
        (outcome,) = await asyncio.gather(work, return_exceptions=True)
        assert isinstance(outcome, WorkerLost) or outcome.model == NAME
        if moment == "drain":
            assert (await unloading).state == "available"

        assert (await client.request("model.chat", chat(), timeout_s=WAIT_S)).model == NAME
        assert len(await leases(client)) == 1
        await client.request("model.unload", ModelUnload(model=NAME), timeout_s=WAIT_S)
        await until(lambda: no_lease(client), "the end of every lease")
        assert read_lock(settings.path("locks"), "cpu") == (None, [])


async def in_flight(client: Client) -> bool:
    return bool((await client.request("model.show", ModelShow(model=NAME))).in_flight)


async def test_kill_9_of_the_service_leaves_no_runner_no_lock_and_no_lease(serve_broker: Any) -> None:
    """Its runners die with it, the kernel frees their locks, and its leases end with its process."""
    async with (
        serve_broker() as settings,
        resources(settings),
        Client(settings, name="test") as client,
        client.subscribe("bus.worker.joined") as joined,
    ):
        values = {f"OLYMPUS_BUS_{port.upper()}": str(getattr(settings.bus, port)) for port in PORTS}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.models",
            env=child_environment(None, {}, OLYMPUS_HOME=settings.home, OLYMPUS_MODELS_DEFAULT="none", **values),
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(WAIT_S):
                await anext(event async for event in joined if event.body["service"] == "model")
            pid = await load(client)
            (lease,) = await leases(client)
            assert lease.pid == process.pid
        finally:
            process.send_signal(signal.SIGKILL)
            await asyncio.wait_for(process.wait(), WAIT_S)
        await until(lambda: no_lease(client), "the end of its lease")
        await until(lambda: not is_alive(pid), "the end of its runner")
        assert read_lock(settings.path("locks"), "cpu") == (None, [])


PORTS = ("request_port", "publish_port", "subscribe_port", "sequenced_port")


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_load_that_waits_for_the_device_names_who_holds_it(serve_broker: Any) -> None:
    """The caller's deadline passes while another program has the lock of the device."""
    async with serve_broker() as settings, serving(settings) as (_, client):
        lock = DeviceLock(settings.path("locks"), "cpu")
        await lock.acquire(model="tiny", purpose="train", timeout_s=WAIT_S)
        try:
            error = await refused(DeadlineExceeded, client, "model.chat", chat(), timeout_s=2.0)
        finally:
            lock.release()
        assert f"tiny (pid {os.getpid()}, train)" in error.message
        assert (await client.request("model.chat", chat(), timeout_s=WAIT_S)).model == NAME


async def test_a_pin_is_kept_across_a_restart_and_brings_its_model_back(serve_broker: Any) -> None:
    """model.keep holds for the next service too: the model is loaded at its start, and again after a kill -9."""
    async with serve_broker() as settings:
        async with serving(settings) as (_, client):
            before = await client.request("model.show", ModelShow(model=NAME))
            kept = await client.request("model.keep", ModelKeep(model=NAME, is_pinned=True, priority=1))
            assert (kept.is_pinned, kept.priority, kept.keep_alive_s) == (True, 1, settings.models.keep_alive_s)
        async with (
            Client(settings, name="watcher") as watcher,
            watcher.subscribe("model.loaded") as loaded,
            serving(settings) as (_, client),
        ):
            await asyncio.wait_for(anext(loaded), WAIT_S)
            shown = await client.request("model.show", ModelShow(model=NAME))
            assert (shown.is_pinned, shown.priority) == (True, 1)
            pid = await load(client)
            os.kill(pid, signal.SIGKILL)
            await asyncio.wait_for(anext(loaded), WAIT_S)
            assert await load(client) != pid
            kept = await client.request("model.keep", ModelKeep(model=NAME, is_reset=True))
            assert (kept.is_pinned, kept.priority) == (False, before.priority)


async def test_a_preload_is_announced_and_its_first_use_is_counted_as_a_hit(serve_broker: Any) -> None:
    """Answered before it is loaded; figures and uses of it survive a restart of the service."""
    async with serve_broker() as settings:
        async with (
            serving(settings) as (_, client),
            client.subscribe("model.preloaded") as preloaded,
        ):
            answer = await client.request("model.preload", ModelPreload(models=[NAME, "nothing", NAME]))
            assert [one.is_started for one in answer.models] == [True, False, False]
            assert "there is no model 'nothing'" in answer.models[1].reason
            event = await asyncio.wait_for(anext(preloaded), WAIT_S)
            assert (event.body["model"], event.body["device"]) == (NAME, "cpu")
            generation = await client.request("model.chat", chat(), timeout_s=WAIT_S)
            assert generation.timings.load_s == 0
            await until(lambda: counted(client), "the answer is counted")
        async with serving(settings) as (_, client):
            (figures,) = (await client.request("model.stats", ModelStats(model=NAME))).models
            uses = (await client.request("model.usage", ModelUsage(record="twin"))).models
    assert (figures.loads, figures.preloads, figures.preload_hits, figures.requests, figures.errors) == (1, 1, 1, 1, 0)
    assert figures.completion_tokens == generation.usage.completion_tokens
    assert figures.first_token_s is not None
    assert figures.estimated_bytes > 0
    assert {one.model: one.uses for one in uses} == {NAME: 1, "twin": 1}


async def counted(client: Client) -> bool:
    return bool((await client.request("model.stats", ModelStats(model=NAME))).models[0].requests)


class Seer:
    """Predicts the twin whenever the demo model was used."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def record(self, model: str, at: float, caller: str = "") -> None:
        self.seen.append(model)

    def predict(self, now: float, horizon_s: float) -> list[Forecast]:
        chance = 0.9 if NAME in self.seen else 0.0
        return [Forecast(model="twin", probability=chance, value=chance, expected_at=now, why="it follows")]

    def to_bytes(self) -> bytes:
        return b""


async def test_a_predicted_model_is_loaded_before_it_is_asked_for(serve_broker: Any, monkeypatch: Any) -> None:
    """A use of one model makes another likely: it is loaded into free memory, and the reason says why."""
    monkeypatch.setattr("workers.models.loading.Predictor", Seer)
    async with (
        serve_broker() as settings,
        resources(settings),
        serving(settings, predict=True) as (_, client),
        client.subscribe("model.preloaded") as preloaded,
    ):
        await client.request("model.chat", chat(), timeout_s=WAIT_S)
        event = await asyncio.wait_for(anext(preloaded), WAIT_S)
        generation = await client.request("model.chat", chat("twin"), timeout_s=WAIT_S)
    assert (event.body["model"], generation.timings.load_s) == ("twin", 0)
    assert "it follows" in event.body["reason"]


async def test_a_swap_with_memory_for_both_answers_before_the_old_runner_is_gone(serve_broker: Any) -> None:
    """One place, memory for two: eviction and load overlap, and in the end one lease is held."""
    async with (
        serve_broker() as settings,
        resources(settings),
        serving(settings, max_loaded=1) as (_, client),
        client.subscribe("model.>") as events,
    ):
        await load(client)
        await client.request("model.chat", chat("twin"), timeout_s=WAIT_S)
        await until(lambda: one_lease(client), "one lease")
        seen = []
        while "model.evicted" not in seen:
            seen.append((await asyncio.wait_for(anext(events), WAIT_S)).subject)
    assert seen.count("model.loading") == 2
    assert seen.index("model.evicted") > len(seen) - 1 - seen[::-1].index("model.loading")


async def one_lease(client: Client) -> bool:
    return [lease.purpose for lease in await leases(client)] == ["twin"]


class Shelf:
    """The adapters that models are loaded with."""

    def __init__(self) -> None:
        self.files: tuple[AdapterFile, ...] = ()
        self.used: list[str] = []

    def of(self, model: str) -> InUse:
        return InUse(self.files)

    async def use(self, model: str, adapter: str) -> None:
        self.used.append(adapter)


async def test_adapters_come_with_the_load_and_change_while_it_serves(serve_broker: Any, tmp_path: Path) -> None:
    """Those of the moment are attached before the model serves, others later; one that does not fit changes nothing."""
    adapters = pytest.importorskip("tests.peft_adapter", reason="adapters are made with numpy")
    pytest.importorskip("gguf", reason="adapters for llama.cpp are written with gguf")
    from workers.models.adapters.convert import convert

    def made(seed: int) -> AdapterFile:
        folder = Path(adapters.write_adapter(tmp_path, seed=seed).path)
        target = tmp_path / f"{seed}.gguf"
        converted = convert(folder, SHIPPED_ROOT / f"{NAME}.gguf", target)
        return AdapterFile(name=f"a{seed}", path=str(target), sha256=converted.sha256)

    first, second = made(1), made(2)
    bad = AdapterFile(name="bad", path=str(tmp_path / "missing.gguf"), sha256="0" * 64)
    async with serve_broker() as settings, serving(settings) as (service, client):
        shelf = service._loading.adapters = Shelf()
        shelf.files = (first,)
        await service._loading.set_adapters(NAME, InUse((first,)))
        await load(client, adapter="a1")
        assert shelf.used == ["a1"]

        async def answer(adapter: str) -> str:
            request = Generate(prompt="Hello there", model=NAME, max_tokens=24, temperature=0.0, adapter=adapter)
            generation = await client.request("model.generate", request, timeout_s=WAIT_S)
            return str(generation.text)

        plain, with_first = await answer(""), await answer("a1")
        await service._loading.set_adapters(NAME, InUse((first, second)))
        assert len({plain, with_first, await answer("a2")}) == 3
        with pytest.raises(Unprocessable):
            await service._loading.set_adapters(NAME, InUse((first, bad)))
        assert await answer("a2") not in (plain, with_first)

        # Changed while it loads: caught up with as soon as it serves.
        await client.request("model.unload", ModelUnload(model=NAME), timeout_s=WAIT_S)
        lock = DeviceLock(settings.path("locks"), "cpu")
        await lock.acquire(model="a test", purpose="wait", timeout_s=WAIT_S)
        loading = asyncio.ensure_future(load(client))
        await until(lambda: read_lock(settings.path("locks"), "cpu")[1], "the runner waits for the lock")
        shelf.files = (second,)
        lock.release()
        await loading
        await until(lambda: is_refused(answer("a1")), "the first adapter is gone")
        assert await answer("a2") != plain


async def is_refused(answer: Coroutine[Any, Any, str]) -> bool:
    try:
        await answer
    except NotFound:
        return True
    return False
