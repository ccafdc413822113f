"""The resource service on a real bus: leases, their ends, locks, a service that is killed, and plain programs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from bus.client import Client, Subscription
from bus.device_lock import held
from bus.settings import Settings, child_environment
from schemas.bodies.resource import (
    DeviceStatus,
    LeaseAcquire,
    LeaseInfo,
    LeaseList,
    LeaseRelease,
    LeaseRenew,
)
from schemas.errors import BadRequest, Internal, NotFound, QuotaExceeded, Unprocessable
from tests.fake_nvml import Card, FakeNvml
from workers.resources.book import UnusableBook
from workers.resources.nvml import Nvml
from workers.resources.service import ResourceService

GIB = 1024**3
MIB = 1024**2
HOST = socket.gethostname()
ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "resources.md"
WAIT_S = 20.0


def with_resources(settings: Settings, **resources: Any) -> Settings:
    return msgspec.structs.replace(settings, resources=msgspec.structs.replace(settings.resources, **resources))


@asynccontextmanager
async def serving(settings: Settings, library: FakeNvml | None = None, **resources: Any) -> AsyncIterator[Client]:
    """The service in this process, with `settings.resources` changed, and a client."""
    changed = with_resources(settings, **{"devices": ("gpu0=10GiB", "cpu=8GiB"), **resources})
    service = ResourceService(changed, Nvml(lambda: library) if library is not None else None)
    await service.start()
    try:
        async with Client(changed, name="test") as client:
            yield client
    finally:
        await service.stop()


@contextmanager
def service_process(settings: Settings, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m workers.resources` on the bus of `settings`."""
    ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    overrides = {"home": settings.home, **{f"bus.{name}": str(getattr(settings.bus, name)) for name in ports}}
    overrides["resources.devices"] = "gpu0=10GiB,cpu=8GiB"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "workers.resources", *arguments],
        env=child_environment(None, overrides, PYTHONPATH=str(ROOT)),
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds leases."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


def proc(pid: int, name: str) -> str:
    """What the kernel says of a process."""
    return Path(f"/proc/{pid}/{name}").read_text()


async def joined(client: Client) -> None:
    """Wait until somebody serves `gpu.status`."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await client.request("gpu.status", timeout_s=1.0)
                return
            except Exception:  # noqa: BLE001 - not there yet
                await asyncio.sleep(0.02)


async def acquire(client: Client, **request: Any) -> LeaseInfo:
    body = LeaseAcquire(**{"service": "model", "vram_bytes": GIB, **request})
    lease: LeaseInfo = await client.request("resource.lease.acquire", body, timeout_s=WAIT_S)
    return lease


async def release(client: Client, lease_id: str) -> bool:
    answer = await client.request("resource.lease.release", LeaseRelease(lease_id=lease_id), timeout_s=WAIT_S)
    return bool(answer.was_held)


async def devices(client: Client) -> dict[str, DeviceStatus]:
    reply = await client.request("gpu.status", timeout_s=WAIT_S)
    return {device.device: device for device in reply.devices}


async def event(events: Subscription) -> tuple[str, str, str]:
    """The next event of a lease: what, whose, why."""
    message = await asyncio.wait_for(anext(events), WAIT_S)
    return message.subject.rpartition(".")[2], message.body["lease"]["lease_id"], message.body["reason"]


# Leases ------------------------------------------------------------------------------------------------------------------


async def test_a_lease_is_granted_renewed_listed_and_given_back(serve_broker: Any) -> None:
    """Each step is told; the request's id is the lease's when none is named."""
    async with (
        serve_broker() as settings,
        serving(settings, quotas=("model=9GiB",)) as client,
        client.subscribe("resource.lease.*") as events,
    ):
        lease = await acquire(client, vram_bytes=6 * GIB, purpose="chat-7b", ttl_s=60)
        assert (lease.device, len(lease.lease_id)) == ("gpu0", 32)
        assert (await event(events))[:2] == ("granted", lease.lease_id)

        renewed = await client.request(
            "resource.lease.renew", LeaseRenew(lease_id=lease.lease_id, vram_bytes=5 * GIB, ttl_s=300)
        )
        assert renewed.vram_bytes == 5 * GIB and renewed.expires_at > lease.expires_at + 200
        listed = await client.request("resource.lease.list", LeaseList(service="model"))
        assert [one.lease_id for one in listed.leases] == [lease.lease_id]
        assert listed.quotas == {"model": 9 * GIB}
        gpu = (await devices(client))["gpu0"]
        assert (gpu.reserved_bytes, gpu.free_bytes) == (5 * GIB, 5 * GIB)
        assert [one.purpose for one in gpu.leases] == ["chat-7b"]

        assert await release(client, lease.lease_id) is True
        assert await release(client, lease.lease_id) is False
        assert await event(events) == ("released", lease.lease_id, "its holder gave it back")
        with pytest.raises(NotFound):
            await client.request("resource.lease.renew", LeaseRenew(lease_id=lease.lease_id))


async def test_a_lease_ends_when_it_is_not_renewed(serve_broker: Any) -> None:
    """One second is the shortest time to live."""
    async with (
        serve_broker() as settings,
        serving(settings) as client,
        client.subscribe("resource.lease.expired") as events,
    ):
        await acquire(client, lease_id="short", ttl_s=1)
        assert await event(events) == ("expired", "short", "it was not renewed for 1 s")
        assert (await devices(client))["gpu0"].free_bytes == 10 * GIB


async def test_the_end_of_its_process_frees_a_lease_at_once(serve_broker: Any) -> None:
    """Long before its time; and a process that has ended already gets none."""
    async with (
        serve_broker() as settings,
        serving(settings) as client,
        client.subscribe("resource.lease.released") as events,
    ):
        with sleeper() as process:
            await acquire(client, lease_id="held", pid=process.pid, host=HOST, ttl_s=3600)
            process.kill()
            process.wait(WAIT_S)
        assert await event(events) == ("released", "held", f"its process {process.pid} ended")
        with pytest.raises(Unprocessable, match="is not running"):
            await acquire(client, pid=process.pid, host=HOST)
        assert (await devices(client))["gpu0"].leases == []


async def test_the_more_important_ask_for_room_and_get_it(serve_broker: Any) -> None:
    """The refusal says who was asked; the event says for whom; once it is given back, the same request is granted."""
    async with (
        serve_broker() as settings,
        serving(settings) as client,
        client.subscribe("resource.lease.preempting") as events,
    ):
        await acquire(client, vram_bytes=8 * GIB, lease_id="idle", priority=5, purpose="old-model")
        with pytest.raises(QuotaExceeded, match=r"asked to give back: model \(old-model\)") as caught:
            await acquire(client, vram_bytes=6 * GIB, service="train", priority=2, lease_id="new")
        assert caught.value.details["would_free"][0]["lease_id"] == "idle"
        message = await asyncio.wait_for(anext(events), WAIT_S)
        assert (message.body["lease"]["lease_id"], message.body["wanted_by"]) == ("idle", "train")
        assert message.body["wanted_bytes"] == 6 * GIB

        await release(client, "idle")
        granted = await acquire(client, vram_bytes=6 * GIB, service="train", priority=2, lease_id="new")
        again = await acquire(client, vram_bytes=6 * GIB, service="train", priority=2, lease_id="new")
        assert (granted.lease_id, again.granted_at) == ("new", granted.granted_at)


@pytest.mark.parametrize(
    "request_",
    [
        {"vram_bytes": -1},
        {"ttl_s": 0},
        {"ttl_s": float("nan")},
        {"priority": 6},
        {"device": "gpu"},
        {"lease_id": "a b"},
    ],
)
async def test_bad_requests_are_refused_by_field(serve_broker: Any, request_: dict[str, Any]) -> None:
    """Nothing of them reaches the ledger."""
    async with serve_broker() as settings, serving(settings) as client:
        body = {"service": "model", "vram_bytes": 1, **request_}
        with pytest.raises(BadRequest):
            await client.request("resource.lease.acquire", body, timeout_s=WAIT_S)
        assert (await client.request("resource.lease.list")).leases == []


async def test_many_callers_at_once_never_get_more_than_there_is(serve_broker: Any) -> None:
    """Forty callers for ten places."""
    async with serve_broker() as settings, serving(settings) as client:
        outcomes = await asyncio.gather(*(acquire(client) for _ in range(40)), return_exceptions=True)
        assert sum(isinstance(one, LeaseInfo) for one in outcomes) == 10
        assert sum(isinstance(one, QuotaExceeded) for one in outcomes) == 30
        gpu = (await devices(client))["gpu0"]
        assert (gpu.reserved_bytes, gpu.free_bytes) == (10 * GIB, 0)


# Devices -----------------------------------------------------------------------------------------------------------------


async def test_status_shows_the_lock_of_a_device_and_who_waits(serve_broker: Any) -> None:
    """Also a lock that a program took which knows nothing of the bus."""
    async with serve_broker() as settings, serving(settings) as client:
        with held(settings.path("locks"), "gpu0", model="adapter-3", purpose="train", timeout_s=1):
            lock = (await devices(client))["gpu0"].lock
        assert lock is not None
        assert (lock.pid, lock.host, lock.model, lock.purpose) == (os.getpid(), HOST, "adapter-3", "train")
        assert (await devices(client))["gpu0"].lock is None


async def test_a_card_is_measured_before_each_grant_and_its_loss_is_told(serve_broker: Any) -> None:
    """Other programs' memory is not leased; holders on a lost card are asked to give up, and nobody else gets in."""
    library = FakeNvml(Card("u", total=10 * GIB))
    async with (
        serve_broker() as settings,
        serving(settings, library, devices=(), spare_vram="0B", sample_s=3600) as client,
        client.subscribe("resource.lease.preempting") as events,
    ):
        await acquire(client, vram_bytes=2 * GIB, lease_id="mine")
        library.cards[0].used = 7 * GIB
        with pytest.raises(QuotaExceeded, match=r"free of 10\.0 GiB; held by: model 2\.0 GiB, other programs 7\.0 GiB"):
            await acquire(client, vram_bytes=2 * GIB)
        library.cards[0].failing = "GPU is lost"
        with pytest.raises(NotFound, match="gpu0 is lost"):
            await acquire(client)
        assert await event(events) == ("preempting", "mine", "gpu0 is lost: GPU is lost")
        gpu = (await devices(client))["gpu0"]
        assert (gpu.state, gpu.problem, gpu.free_bytes) == ("lost", "GPU is lost", 0)
        assert [lease.lease_id for lease in gpu.leases] == ["mine"]


async def test_a_driver_that_cannot_be_asked_is_a_problem_and_no_end(serve_broker: Any) -> None:
    """Main memory is leased all the same."""
    library = FakeNvml()
    library.failing = "Driver Not Loaded"
    async with serve_broker() as settings, serving(settings, library, devices=("cpu=4GiB",)) as client:
        status = await client.request("gpu.status", timeout_s=WAIT_S)
        assert status.problem == "NVML cannot be initialised: Driver Not Loaded"
        assert (await acquire(client, vram_bytes=0, ram_bytes=GIB)).device == "cpu"


# Restarts ----------------------------------------------------------------------------------------------------------------


async def test_a_killed_service_comes_back_with_every_lease(serve_broker: Any) -> None:
    """kill -9 right after a grant: the memory stays taken, but that of a process that died meanwhile is free."""
    async with serve_broker() as settings, Client(settings, name="test") as client:
        with sleeper() as living, sleeper() as dying:
            with service_process(settings) as service:
                await joined(client)
                await acquire(client, lease_id="living", vram_bytes=4 * GIB, pid=living.pid, host=HOST, ttl_s=3600)
                await acquire(client, lease_id="dying", vram_bytes=4 * GIB, pid=dying.pid, host=HOST, ttl_s=3600)
                await client.request("resource.lease.renew", LeaseRenew(lease_id="living", vram_bytes=3 * GIB))
                service.send_signal(signal.SIGKILL)
                service.wait(WAIT_S)
            dying.kill()
            dying.wait(WAIT_S)
            with service_process(settings):
                await joined(client)
                gpu = (await devices(client))["gpu0"]
                assert [(one.lease_id, one.vram_bytes) for one in gpu.leases] == [("living", 3 * GIB)]
                again = await acquire(client, lease_id="living", vram_bytes=4 * GIB, pid=living.pid, host=HOST)
                assert again.vram_bytes == 3 * GIB
                with pytest.raises(QuotaExceeded):
                    await acquire(client, vram_bytes=8 * GIB)


async def test_a_second_service_and_a_broken_file_are_refused_in_words(serve_broker: Any) -> None:
    """Two of them would grant the same memory twice; a file that is no file of leases may hide some."""
    async with serve_broker() as settings, serving(settings):
        with pytest.raises(UnusableBook, match="kept by another resource service"):
            await ResourceService(with_resources(settings)).start()
        with service_process(settings) as second:
            assert second.wait(WAIT_S) == 78
    settings.path("resources/leases.json").write_text("{")
    with pytest.raises(UnusableBook, match=r"leases\.json does not hold leases"):
        await ResourceService(settings).start()


async def test_a_grant_that_cannot_be_kept_is_no_grant(serve_broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart nobody would know of it."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    async with serve_broker() as settings, serving(settings) as client:
        with monkeypatch.context() as patch:
            patch.setattr("workers.resources.book.write_private", full)
            with pytest.raises(Internal, match="No space left"):
                await acquire(client, lease_id="a")
        assert (await client.request("resource.lease.list")).leases == []
        assert (await acquire(client, lease_id="a")).lease_id == "a"


async def test_the_service_is_small_and_leaves_when_told(serve_broker: Any) -> None:
    """Under 40 MiB without a GPU, with nothing imported that it does not need; SIGTERM ends it with status 0."""
    async with serve_broker() as settings, Client(settings, name="test") as client:
        with service_process(settings) as service:
            await joined(client)
            maps, status = (proc(service.pid, name) for name in ("maps", "status"))
            assert not any(name in maps for name in ("numpy", "torch", "pynvml", "nvidia"))
            assert int(status.partition("VmRSS:")[2].split()[0]) * 1024 < 40 * MIB
            assert int(status.partition("Threads:")[2].split()[0]) == 1
            service.terminate()
            assert await asyncio.to_thread(service.wait, WAIT_S) == 0


# Plain programs ------------------------------------------------------------------------------------------------------------


async def test_a_program_with_stock_zeromq_takes_part(serve_broker: Any) -> None:
    """JSON over a REQ socket: acquire, be refused with numbers, release."""
    async with serve_broker() as settings, serving(settings):
        context = zmq.asyncio.Context()
        try:
            with context.socket(zmq.REQ) as plain:
                plain.linger = 0
                plain.connect(f"tcp://127.0.0.1:{settings.bus.request_port}")

                async def ask(subject: str, **body: Any) -> tuple[bytes, dict[str, Any]]:
                    await plain.send_multipart([subject.encode(), msgspec.json.encode(body)])
                    status, answer = await asyncio.wait_for(plain.recv_multipart(), WAIT_S)
                    return status, msgspec.json.decode(answer)

                status, lease = await ask(
                    "resource.lease.acquire", service="game", vram_bytes=6 * GIB, lease_id="game-1", ttl_s=60
                )
                assert (status, lease["device"]) == (b"ok", "gpu0")
                status, error = await ask("resource.lease.acquire", service="game", vram_bytes=6 * GIB)
                assert (status, error["code"]) == (b"error", "quota_exceeded")
                assert error["details"]["shortfall_bytes"] == 2 * GIB
                assert (await ask("resource.lease.release", lease_id="game-1"))[1]["was_held"] is True
        finally:
            context.term()


async def test_the_programs_in_the_document_run_as_they_are(serve_broker: Any, tmp_path: Path) -> None:
    """docs/resources.md: a lease with stock ZeroMQ, and the lock helper."""
    lease_program, lock_program = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)

    async def run(code: str, argument: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", code, argument),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
        return output.decode()

    async with serve_broker() as settings, serving(settings) as client:
        port = str(settings.bus.request_port)
        assert await run(lease_program, port) == "granted gpu0\n"
        await acquire(client, vram_bytes=9 * GIB, service="model", purpose="chat-7b")
        assert "2.0 GiB wanted on gpu0, 1.0 GiB free of 10.0 GiB; held by: model (chat-7b)" in await run(
            lease_program, port
        )
        assert re.fullmatch(r"load of my-model by \d+, 0 waiting\n", await run(lock_program, str(tmp_path / "locks")))
