"""Memory of devices, reserved on the bus: `resource.lease.*` as the model service uses it.

A lease is held until it is released, and renewed in the background. Where nobody keeps the books of memory, everything
is allowed, and what is held is entered as soon as somebody does. It knows no model and no process, only numbers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from bus.client import Client
from bus.nvidia import expects_gpus
from schemas.bodies.resource import (
    DeviceStatus,
    GpuStatus,
    GpuStatusReply,
    LeaseAcquire,
    LeaseEvent,
    LeaseInfo,
    LeaseRelease,
    LeaseRenew,
)
from schemas.errors import (
    BusError,
    DeadlineExceeded,
    Internal,
    NotFound,
    NoWorker,
    QuotaExceeded,
    Unprocessable,
    WorkerLost,
)
from workers.models.decisions import QUOTA, Reserve, Reserved, ReserveFailed, ReserveRefused, Room

log = logging.getLogger("olympus.models.leases")

SERVICE: Final = "model"

# A lease ends this long after the last renewal: the time memory stays reserved for a machine that lost its power.
# Three renewals fit in.
TTL_S: Final = 30.0
RENEW_S: Final = 10.0

# Answers come within a millisecond; a service that does not answer for so long is treated as one that is not there.
_ANSWER_S: Final = 2.0

# So long after a lost connection the events are listened to again.
_LISTEN_AGAIN_S: Final = 1.0

# Services start side by side, and the driver's first answer takes seconds: where there are GPUs, models wait this long
# to hear of them before they settle in main memory; and so long passes between two questions.
GPUS_WITHIN_S: Final = 15.0
_GPUS_AGAIN_S: Final = 0.2


class _Lease(msgspec.Struct):
    """is_entered: the books know it, or may know it after an answer that did not come. asked_by: who wants it back."""

    id: str
    wanted: Reserve
    device: str
    memory_bytes: int
    beside_bytes: int
    is_entered: bool = False
    is_measured: bool = False
    is_refused: bool = False
    asked_by: str = "somebody more important"


class Leasing:
    """The leases of this process. `on_asked_back` is called with a lease's number and who wants its memory."""

    def __init__(self, client: Client, on_asked_back: Callable[[int, str], None]) -> None:
        self.gpus: tuple[str, ...] = ()
        self._client = client
        self._on_asked_back = on_asked_back
        self._prefix = f"model-{secrets.token_hex(8)}"
        self._leases: dict[int, _Lease] = {}
        self._releasing: set[asyncio.Task[None]] = set()
        self._renewing: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._are_gpus_known = asyncio.Event()
        self._is_alone = False
        self._is_answered = True

    async def start(self) -> None:
        """Learn which GPUs there are, if somebody knows, and begin to renew and listen."""
        loop = asyncio.get_running_loop()
        if await self._look_for_gpus() or not expects_gpus(self._client.settings.resources):
            self._are_gpus_known.set()
        else:
            self._tasks.append(loop.create_task(self._wait_for_gpus(), name="first look at GPUs"))
        self._tasks += [
            loop.create_task(self._keep_renewing(), name="lease renewal"),
            loop.create_task(self._listen(), name="lease events"),
        ]

    @property
    def problem(self) -> str:
        """Why nothing is known of the devices' memory, "" while somebody tells."""
        if self._is_answered:
            return ""
        return "the resource service does not answer; until it does, models.max_loaded alone limits what is loaded"

    async def gpus_known(self) -> None:
        """Wait until `gpus` says which there are, or nobody told of them for GPUS_WITHIN_S."""
        await self._are_gpus_known.wait()

    async def stop(self, limit_s: float) -> None:
        """Give back what is still held, within `limit_s`; what is not given back runs out by itself."""
        tasks = [*self._tasks, *self._renewing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for number in list(self._leases):
            self.release(number)
        if self._releasing:
            await asyncio.wait(set(self._releasing), timeout=limit_s)

    async def acquire(self, wanted: Reserve) -> Reserved | ReserveRefused | ReserveFailed:
        """Reserve memory, after everything that is being given back just now."""
        if self._releasing:
            await asyncio.wait(set(self._releasing))
        device = wanted.device or (self.gpus[0] if self.gpus else "cpu")
        lease = _Lease(f"{self._prefix}-{wanted.lease}", wanted, device, wanted.memory_bytes, wanted.beside_bytes)
        try:
            granted = await self._enter(lease, wanted.device)
        except (QuotaExceeded, Unprocessable) as error:
            return await self._refusal(lease, error)
        except (NoWorker, DeadlineExceeded, WorkerLost, Internal) as error:
            self._on_alone(error)
            self._leases[wanted.lease] = lease
            return Reserved(wanted.lease, device, is_granted=False)
        except BusError as error:
            return ReserveFailed(wanted.lease, error)
        self._is_alone = False
        self._leases[wanted.lease] = lease
        return Reserved(wanted.lease, granted.device)

    def resize(self, number: int, memory_bytes: int, beside_bytes: int) -> None:
        """The memory is in use, and as large as was measured."""
        lease = self._leases.get(number)
        if lease is not None:
            lease.memory_bytes, lease.beside_bytes, lease.is_measured = memory_bytes, beside_bytes, True
            self._run(self._renew(number, lease))

    def rank(self, number: int, priority: int, *, is_preemptible: bool) -> None:
        """The memory matters otherwise than when it was asked for."""
        lease = self._leases.get(number)
        if lease is not None:
            lease.wanted = msgspec.structs.replace(lease.wanted, priority=priority, is_preemptible=is_preemptible)
            self._run(self._renew(number, lease))

    def release(self, number: int) -> None:
        """Give memory back; nothing happens when it is not held."""
        lease = self._leases.pop(number, None)
        if lease is not None and lease.is_entered:
            task = asyncio.get_running_loop().create_task(self._give_back(lease))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    def _run(self, renewal: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(renewal)
        self._renewing.add(task)
        task.add_done_callback(self._renewing.discard)

    # Requests

    async def _enter(self, lease: _Lease, device: str | None) -> LeaseInfo:
        """Have it in the books, on `device` or (None) on the GPU they choose."""
        vram, ram = _split(lease)
        lease.is_entered = True
        try:
            granted: LeaseInfo = await self._client.request(
                "resource.lease.acquire",
                LeaseAcquire(
                    service=SERVICE,
                    vram_bytes=vram,
                    ram_bytes=ram,
                    device=device if vram else "cpu",
                    priority=lease.wanted.priority,
                    ttl_s=TTL_S,
                    purpose=lease.wanted.model,
                    is_preemptible=lease.wanted.is_preemptible,
                    lease_id=lease.id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                ),
                timeout_s=_ANSWER_S,
            )
        except (DeadlineExceeded, WorkerLost, Internal):
            # It may have been granted all the same.
            raise
        except BusError:
            lease.is_entered = False
            raise
        lease.device = granted.device
        return granted

    async def _give_back(self, lease: _Lease) -> None:
        try:
            await self._client.request("resource.lease.release", LeaseRelease(lease_id=lease.id), timeout_s=_ANSWER_S)
        except NoWorker:
            # Said once already; and where the whole house stops, the books are often closed before the last model left.
            log.debug("nobody to give a lease back to", extra={"action": "model.lease.left", "lease_id": lease.id})
        except BusError as error:
            log.info("lease not given back, it runs out", extra={"action": "model.lease.left", "error": str(error)})

    async def _renew(self, number: int, lease: _Lease) -> None:
        """Hold it for longer, as large as it is; enter it anew where it is not known any more, or never was."""
        try:
            renewed = await self._renewed(lease) if lease.is_entered else None
            if renewed is None:
                renewed = await self._enter(lease, lease.device)
                if self._leases.get(number) is not lease:
                    # It was released while it was being entered.
                    await self._give_back(lease)
                    return
                if lease.is_measured:
                    renewed = await self._renewed(lease)
            self._is_alone = lease.is_refused = False
            if renewed is not None and renewed.preempt_asked_at is not None:
                self._on_asked_back(number, lease.asked_by)
        except (NoWorker, DeadlineExceeded, WorkerLost, Internal) as error:
            self._on_alone(error)
        except BusError as error:
            if lease.is_refused:
                return
            lease.is_refused = True
            log.warning(
                "memory in use could not be reserved",
                extra={"action": "model.lease.refused", "model": lease.wanted.model, "error": str(error)},
            )

    async def _renewed(self, lease: _Lease) -> LeaseInfo | None:
        """The lease, held for longer; None when the books do not know it."""
        # Before its size is measured it is not told: what is not in use yet would count as in use.
        vram, ram = _split(lease) if lease.is_measured else (None, None)
        try:
            renewed: LeaseInfo = await self._client.request(
                "resource.lease.renew",
                LeaseRenew(
                    lease_id=lease.id,
                    ttl_s=TTL_S,
                    vram_bytes=vram,
                    ram_bytes=ram,
                    priority=lease.wanted.priority,
                    is_preemptible=lease.wanted.is_preemptible,
                ),
                timeout_s=_ANSWER_S,
            )
        except NotFound:
            lease.is_entered = False
            return None
        return renewed

    def _on_alone(self, error: BusError) -> None:
        if not self._is_alone:
            self._is_alone = True
            log.warning(
                "nobody keeps the books of memory; models.max_loaded alone limits what is loaded",
                extra={"action": "model.lease.alone", "error": str(error)},
            )

    async def _refusal(self, lease: _Lease, error: BusError) -> ReserveRefused | ReserveFailed:
        """What there is of what was refused, so that the scheduler can tell whether evictions would help."""
        if "quota_bytes" in error.details:
            quota, free, held = (int(error.details[key]) for key in ("quota_bytes", "free_bytes", "held_bytes"))
            room = Room(QUOTA, quota, free, sum(_split(lease)))
            return ReserveRefused(lease.wanted.lease, (room,), f"{SERVICE}: {held} bytes")
        try:
            status: GpuStatusReply = await self._client.request("gpu.status", GpuStatus(), timeout_s=_ANSWER_S)
        except BusError:
            return ReserveFailed(lease.wanted.lease, error)
        rooms = rooms_for(lease.wanted.device, *_split(lease), status.devices)
        if not rooms:
            return ReserveFailed(lease.wanted.lease, error)
        return ReserveRefused(lease.wanted.lease, rooms, holders(status.devices, {room.device for room in rooms}))

    # Upkeep

    async def _wait_for_gpus(self) -> None:
        try:
            async with asyncio.timeout(GPUS_WITHIN_S):
                are_known = False
                while not are_known:
                    await asyncio.sleep(_GPUS_AGAIN_S)
                    are_known = await self._look_for_gpus()
        except TimeoutError:
            log.warning(
                "nobody tells of the GPUs of this machine; models that name none are loaded into main memory",
                extra={"action": "model.gpus.unknown", "limit_s": GPUS_WITHIN_S},
            )
        finally:
            self._are_gpus_known.set()

    async def _look_for_gpus(self) -> bool:
        """Learn which GPUs there are; False when nobody says."""
        try:
            status: GpuStatusReply = await self._client.request("gpu.status", GpuStatus(), timeout_s=_ANSWER_S)
        except BusError:
            # Said once, when memory is needed.
            self._is_answered = False
            return False
        self._is_answered = True
        self.gpus = tuple(one.device for one in status.devices if one.device != "cpu" and one.state == "ok")
        return True

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            await self._look_for_gpus()
            await asyncio.gather(*(self._renew(number, lease) for number, lease in self._leases.items()))

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.subscribe("resource.lease.preempting") as events:
                    async for event in events:
                        self._on_preempting(msgspec.convert(event.body, LeaseEvent))
            except (BusError, ConnectionError, msgspec.ValidationError) as error:
                log.info("lease events lost for a moment", extra={"action": "model.lease.deaf", "error": str(error)})
            await asyncio.sleep(_LISTEN_AGAIN_S)

    def _on_preempting(self, event: LeaseEvent) -> None:
        for number, lease in self._leases.items():
            if lease.id == event.lease.lease_id:
                lease.asked_by = event.wanted_by or event.reason
                self._on_asked_back(number, lease.asked_by)
                return


def _split(lease: _Lease) -> tuple[int, int]:
    """Bytes on a GPU and in main memory."""
    return (0, max(lease.memory_bytes, 1)) if lease.device == "cpu" else (lease.memory_bytes, lease.beside_bytes)


def rooms_for(wanted: str | None, vram: int, ram: int, devices: list[DeviceStatus]) -> tuple[Room, ...]:
    """The memory that is short: of each GPU that would do, or, where one of those has enough, the main memory.

    wanted: the device asked for, None for any GPU. vram, ram: bytes asked for.
    """

    def room(device: DeviceStatus, needed: int) -> Room:
        return Room(device.device, device.total_bytes, device.free_bytes, needed)

    there = [one for one in devices if one.state == "ok"]
    gpus = [one for one in there if one.device != "cpu" and wanted in (None, one.device)]
    rooms = [room(one, vram) for one in gpus] if vram else []
    if any(one.free_bytes >= vram for one in rooms) or not vram:
        rooms = [room(one, ram) for one in there if one.device == "cpu"]
    return tuple(rooms)


def holders(devices: list[DeviceStatus], names: set[str]) -> str:
    """Who holds memory there, for a person."""
    held: dict[str, int] = {}
    for device in devices:
        for lease in device.leases if device.device in names else ():
            who = f"{lease.service} ({lease.purpose})" if lease.purpose else lease.service
            held[who] = held.get(who, 0) + lease.vram_bytes + lease.ram_bytes
    return ", ".join(f"{who}: {size} bytes" for who, size in sorted(held.items()))
