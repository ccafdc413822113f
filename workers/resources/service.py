"""The resource service: answers `gpu.status` and `resource.lease.*`, and ends leases whose time or whose holder is over."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from typing import Final

from bus.device_lock import read_lock
from bus.nvidia import has_driver
from bus.serving import serve_until_told
from bus.settings import SERVICE_NAME, Settings
from bus.sizes import parse_sizes
from bus.supervisor import process_stat
from bus.worker import Call, Worker
from schemas.bodies.resource import (
    DeviceStatus,
    GpuStatus,
    GpuStatusReply,
    LeaseAcquire,
    LeaseEvent,
    LeaseInfo,
    LeaseList,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    Leases,
)
from schemas.errors import BusError, Internal, Unprocessable, Unsupported
from schemas.metrics import LEASE_EVENTS
from workers.resources.book import Book
from workers.resources.device import Device
from workers.resources.figures import DeviceFigures
from workers.resources.inventory import Inventory
from workers.resources.ledger import Granted, Lease, Ledger, Now, Refused
from workers.resources.nvml import Nvml, Readings, Sampler

log = logging.getLogger("olympus.resources")

# A lease on a GPU waits this long for a look at the memory as it is now; a driver that hangs is not waited for.
_FRESH_S: Final = 1.0
# A driver that gave no reading for this long, or for three times `sample_s`, hangs.
_HANGS_S: Final = 10.0


class ResourceService:
    """The subjects `gpu.*` and `resource.*` on one worker.

    nvml: the driver to ask; by default NVIDIA's, where there is one and `resources.nvml` allows it.
    """

    def __init__(self, settings: Settings, nvml: Nvml | None = None) -> None:
        resources = settings.resources
        self._locks = settings.path("locks")
        self._host = socket.gethostname()
        self._sample_s = resources.sample_s
        self._inventory = Inventory(resources)
        self._ledger = Ledger(self._host, parse_sizes(resources.quotas, SERVICE_NAME))
        self._book = Book(settings.path("resources/leases.json"))
        if nvml is None and resources.nvml == "auto" and has_driver():
            nvml = Nvml()
        self._sampler = Sampler(nvml, resources.sample_s, self._on_readings) if nvml is not None else None
        self._holders: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._events: asyncio.Queue[tuple[str, LeaseEvent]] = asyncio.Queue()
        self._publisher: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        # Why the leases are not in their file, "" when they are.
        self._unkept = ""
        self.worker = Worker("resource", settings)
        self._figures = DeviceFigures(self.worker.figures, self._inventory.devices, self._ledger, self._locks)
        self._happened = self.worker.figures.counter(LEASE_EVENTS)
        for event in ("granted", "released", "expired", "preempting", "refused"):
            self._happened.add(event, by=0)
        self.worker.degraded_by(self._degraded)
        self.worker.handle("gpu.status", self.status)
        self.worker.handle("resource.lease.acquire", self.acquire)
        self.worker.handle("resource.lease.renew", self.renew)
        self.worker.handle("resource.lease.release", self.release)
        self.worker.handle("resource.lease.list", self.list)

    async def start(self) -> None:
        """Take up the leases that were kept, look at the devices, register. Raises UnusableBook."""
        kept = self._book.open()
        self._publisher = asyncio.get_running_loop().create_task(self._publish_events(), name="lease events")
        self._ledger.restore(kept, _now())
        if self._sampler is not None:
            await self._sampler.start()
        self._look()
        for lease in kept:
            if not self._watch(lease, is_known=True):
                self._end(lease, "released", "its process had ended when the resource service came back")
        self._set_timer()
        self._figures.look()
        self._looking = asyncio.get_running_loop().create_task(self._figures.look_forever(), name="device figures")
        await self.worker.start()

    async def stop(self) -> None:
        """Leave; the leases are kept for the service that comes after."""
        await self.worker.stop()
        if self._timer is not None:
            self._timer.cancel()
        for lease_id in list(self._holders):
            self._unwatch(lease_id)
        if self._sampler is not None:
            await self._sampler.stop()
        tasks = [task for task in (self._publisher, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._book.close()

    # Operations

    async def status(self, request: GpuStatus, call: Call) -> GpuStatusReply:
        """Devices, their memory, who holds locks and leases."""
        self._look()
        now = _now()
        return GpuStatusReply(
            devices=[self._device_status(device, now) for device in self._inventory.devices()], problem=self._problem()
        )

    async def acquire(self, request: LeaseAcquire, call: Call) -> LeaseInfo:
        """Reserve memory; the reply is sent when the lease is on disk."""
        if self._sampler is not None and request.vram_bytes:
            await self._sampler.refresh(_FRESH_S)
        self._look()
        lease_id = request.lease_id or call.id.hex()
        decision = self._ledger.acquire(request, lease_id, _now(), self._start_of(request))
        lease = self._granted(decision, f"{request.service} wants {request.purpose or 'memory'}", request.service)
        if isinstance(decision, Granted) and decision.is_changed:
            if not self._watch(lease, is_known=False):
                self._ledger.release(lease_id)
                raise Unprocessable(
                    f"process {request.pid} of this host, which is to hold the lease, is not running", pid=request.pid
                )
            self._keep_grant(lease)
            self._announce("granted", lease, f"{request.service} asked for it")
        self._set_timer()
        return lease.info(_now())

    async def renew(self, request: LeaseRenew, call: Call) -> LeaseInfo:
        """Hold a lease longer, or as large as was measured."""
        self._look()
        decision = self._ledger.renew(request, _now())
        self._set_timer()
        held = self._ledger.lease(request.lease_id)
        lease = self._granted(decision, "its lease is to be as large as was measured", held.service if held else None)
        if isinstance(decision, Granted) and decision.is_changed:
            self._keep()
        return lease.info(_now())

    async def release(self, request: LeaseRelease, call: Call) -> LeaseReleased:
        """Give a lease back."""
        lease = self._ledger.lease(request.lease_id)
        if lease is not None:
            self._end(lease, "released", "its holder gave it back")
        return LeaseReleased(lease_id=request.lease_id, was_held=lease is not None)

    async def list(self, request: LeaseList, call: Call) -> Leases:
        """Who holds which memory."""
        now = _now()
        held = self._ledger.leases(service=request.service, device=request.device)
        return Leases(leases=[lease.info(now) for lease in held], quotas=self._ledger.quotas)

    def _granted(self, decision: Granted | Refused, reason: str, wanted_by: str | None) -> Lease:
        """The lease; raises the refusal after those it concerns have been asked to make room."""
        if isinstance(decision, Granted):
            return decision.lease
        self._happened.add("refused")
        wanted = decision.error.details.get("wanted_bytes")
        for victim in decision.asked:
            self._announce("preempting", victim, reason, wanted_by=wanted_by, wanted_bytes=wanted)
        raise decision.error

    # Devices

    def _look(self) -> None:
        self._ledger.see(self._inventory.devices())

    def _on_readings(self, readings: Readings) -> None:
        before = self._inventory.problem
        lost = self._inventory.update(readings)
        if readings.problem and readings.problem != before:
            log.warning(readings.problem, extra={"action": "nvml.failed"})
        self._look()
        for device in lost:
            log.error("device lost", extra={"action": "device.lost", "device": device.device, "why": device.problem})
            for lease in self._ledger.leases(device=device.device):
                self._announce("preempting", lease, f"{device.device} is lost: {device.problem}")

    def _problem(self) -> str:
        if self._sampler is None:
            return ""
        silent_s = self._sampler.silent_s
        if not self._inventory.problem and silent_s > max(_HANGS_S, 3 * self._sample_s):
            return f"the NVIDIA driver has not answered for {silent_s:.0f} s"
        return self._inventory.problem

    def _degraded(self) -> dict[str, str]:
        reasons = {"nvml": self._problem(), "leases": self._unkept, **self._figures.problems(time.time())}
        return {name: reason for name, reason in reasons.items() if reason}

    def _device_status(self, device: Device, now: Now) -> DeviceStatus:
        problem = device.problem
        try:
            holder, waiting = read_lock(self._locks, device.device)
        except Unsupported as error:
            holder, waiting, problem = None, [], problem or error.message
        name = device.device
        return DeviceStatus(
            device=name,
            name=device.name,
            source=device.source,
            state="lost" if device.is_lost else "ok",
            total_bytes=device.total_bytes,
            used_bytes=device.used_bytes,
            reserved_bytes=self._ledger.reserved(name),
            free_bytes=self._ledger.free(name),
            temperature_c=device.temperature_c,
            utilisation=device.utilisation,
            problem=problem,
            lock=holder,
            waiting=waiting,
            leases=[lease.info(now) for lease in self._ledger.leases(device=name)],
        )

    # Holders: a process of this host that ends takes its leases with it

    def _start_of(self, request: LeaseAcquire) -> int | None:
        if request.pid is None or request.host != self._host:
            return None
        stat = process_stat(request.pid)
        return stat.start_ticks if stat is not None else None

    def _watch(self, lease: Lease, *, is_known: bool) -> bool:
        """Hear of the end of a lease's process; False when it has ended already.

        is_known: the lease was granted before, so that a process of the same pid may be another one by now.
        """
        if lease.pid is None or lease.host != self._host:
            return True
        try:
            descriptor = os.pidfd_open(lease.pid)
        except OSError as error:
            # Without pidfd (a kernel before 5.3, no descriptors left) the lease ends with its time.
            return error.errno != errno.ESRCH
        stat = process_stat(lease.pid)
        if stat is None or stat.state in "ZX" or (is_known and stat.start_ticks != lease.start_ticks):
            os.close(descriptor)
            return False
        self._holders[lease.lease_id] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._on_holder_end, lease)
        return True

    def _unwatch(self, lease_id: str) -> None:
        descriptor = self._holders.pop(lease_id, None)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _on_holder_end(self, lease: Lease) -> None:
        self._end(lease, "released", f"its process {lease.pid} ended")

    # The end of leases

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        end = self._ledger.next_end()
        if end is not None:
            wait_s = max(end - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._on_time)

    def _on_time(self) -> None:
        over = self._ledger.expire(_now())
        for lease in over:
            self._end(lease, "expired", f"it was not renewed for {lease.ttl_s:g} s")
        self._set_timer()

    def _end(self, lease: Lease, event: str, reason: str) -> None:
        self._ledger.release(lease.lease_id)
        self._unwatch(lease.lease_id)
        self._keep()
        self._announce(event, lease, reason)

    # The file

    def _keep_grant(self, lease: Lease) -> None:
        """Write the leases with a new one. Raises Internal, and takes it back, when that is not possible."""
        try:
            self._book.write(self._ledger.leases())
        except OSError as error:
            self._ledger.release(lease.lease_id)
            self._unwatch(lease.lease_id)
            self._unkept = f"leases cannot be written ({error.strerror or error}), so none is granted"
            raise Internal(f"the lease cannot be kept on disk: {error.strerror or error}") from error
        self._unkept = ""

    def _keep(self) -> None:
        """Write the leases; one that is written too many or too large ends by itself after a restart."""
        try:
            self._book.write(self._ledger.leases())
        except OSError as error:
            self._unkept = f"leases cannot be written ({error.strerror or error}), so none is granted"
            log.error("leases not written", extra={"action": "leases.unwritten", "error": str(error)})
        else:
            self._unkept = ""

    # Events

    def _announce(
        self, event: str, lease: Lease, reason: str, *, wanted_by: str | None = None, wanted_bytes: int | None = None
    ) -> None:
        body = LeaseEvent(lease=lease.info(_now()), reason=reason, wanted_by=wanted_by, wanted_bytes=wanted_bytes)
        self._events.put_nowait((f"resource.lease.{event}", body))
        self._happened.add(event)
        log.info(
            f"lease {event}",
            extra={
                "action": f"lease.{event}",
                "lease_id": lease.lease_id,
                "service": lease.service,
                "device": lease.device,
                "vram_bytes": lease.vram_bytes,
                "ram_bytes": lease.ram_bytes,
                "reason": reason,
            },
        )

    async def _publish_events(self) -> None:
        """In order; one that nobody can take is logged."""
        while True:
            subject, body = await self._events.get()
            try:
                await self.worker.publish(subject, body)
            except BusError as error:
                log.warning("event not published", extra={"action": "lease.unpublished", "error": str(error)})


def _now() -> Now:
    return Now(time.monotonic(), time.time())


async def serve(settings: Settings) -> None:
    """Run the service until SIGTERM or SIGINT. Raises UnusableBook."""
    await serve_until_told(ResourceService(settings), log)
