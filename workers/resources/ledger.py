"""Who holds how much memory of which device: the decisions alone, told everything and doing nothing.

    free       = total - reserved - others
    reserved   = what leases hold, whether it is in use yet or not
    others     = on a GPU: what is in use, less what the leases' holders use of their leases, less the spare part that
                 was taken off the total; in main memory nothing, where `resources.ram_share` leaves room for others

Invariants, held by property tests: the leases of a device never exceed its total; those of a service with a quota never
exceed it; every lease ends `ttl_s` seconds after it was last renewed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from bus.sizes import size_in_words
from schemas.bodies.resource import LeaseAcquire, LeaseInfo, LeaseRenew
from schemas.errors import BadRequest, BusError, Conflict, NotFound, QuotaExceeded, Unprocessable
from workers.resources.device import CPU, Device

# Callers ask again and again while they wait; a holder is asked to give back this often, ...
_ASK_AGAIN_S: Final = 10.0
# ... and counts as asked for this long after the last one wanted its memory.
_ASK_LASTS_S: Final = 30.0

# Leases named in an error; more would bury the message.
_NAMED_LEASES: Final = 16


class Now(NamedTuple):
    """One instant on two clocks: seconds of the monotonic one, which decides, and of the epoch, which is shown."""

    monotonic: float
    epoch: float


class Lease(msgspec.Struct, kw_only=True):
    """A reservation. ends_at, asked_at: monotonic seconds. asked_vram_bytes, asked_ram_bytes: as first asked for.

    measured_vram_bytes: what its holder found it to use, None before it has said so.
    """

    lease_id: str
    service: str
    device: str
    vram_bytes: int
    ram_bytes: int
    asked_vram_bytes: int
    asked_ram_bytes: int
    priority: int
    purpose: str
    is_preemptible: bool
    host: str
    pid: int | None
    start_ticks: int | None
    ttl_s: float
    granted_at: float
    ends_at: float
    measured_vram_bytes: int | None = None
    asked_at: float | None = None
    asked_since: float | None = None

    def bytes_on(self, device: str) -> int:
        """What it holds of one device."""
        if device == CPU:
            return self.ram_bytes
        return self.vram_bytes if device == self.device else 0

    def info(self, now: Now) -> LeaseInfo:
        """As callers see it."""
        is_asked = self.asked_at is not None and now.monotonic - self.asked_at < _ASK_LASTS_S
        return LeaseInfo(
            lease_id=self.lease_id,
            service=self.service,
            device=self.device,
            vram_bytes=self.vram_bytes,
            ram_bytes=self.ram_bytes,
            priority=self.priority,
            purpose=self.purpose,
            granted_at=self.granted_at,
            expires_at=now.epoch + self.ends_at - now.monotonic,
            is_preemptible=self.is_preemptible,
            preempt_asked_at=self.asked_since if is_asked else None,
            host=self.host,
            pid=self.pid,
        )


class Granted(NamedTuple):
    """is_changed: it was not held before, or not as large, or with another rank."""

    lease: Lease
    is_changed: bool


class Refused(NamedTuple):
    """error: for the caller. asked: leases whose holders are to be asked now to give them back."""

    error: BusError
    asked: list[Lease]


class _Need(NamedTuple):
    device: Device
    wanted_bytes: int


class Ledger:
    """All leases. host: name of the machine whose devices and processes these are. quotas: bytes by service."""

    def __init__(self, host: str, quotas: Mapping[str, int]) -> None:
        self._host = host
        self.quotas = dict(quotas)
        self._leases: dict[str, Lease] = {}
        self._devices: dict[str, Device] = {}

    def see(self, devices: Iterable[Device]) -> None:
        """Take in how the devices are now."""
        self._devices = {device.device: device for device in devices}

    # What there is

    def lease(self, lease_id: str) -> Lease | None:
        """The lease of this id, None when it is not held."""
        return self._leases.get(lease_id)

    def leases(self, *, service: str | None = None, device: str | None = None) -> list[Lease]:
        """In the order they were granted."""
        return [
            lease
            for lease in self._leases.values()
            if (service is None or lease.service == service)
            and (device is None or lease.device == device or lease.bytes_on(device) > 0)
        ]

    def reserved(self, device: str) -> int:
        """Bytes that leases hold of a device."""
        return sum(lease.bytes_on(device) for lease in self._leases.values())

    def free(self, device: str) -> int:
        """Bytes a lease can still get."""
        seen = self._devices.get(device)
        if seen is None or seen.is_lost:
            return 0
        return max(seen.total_bytes - self.reserved(device) - self._others(seen), 0)

    def next_end(self) -> float | None:
        """When the next lease ends unless it is renewed, monotonic seconds."""
        return min((lease.ends_at for lease in self._leases.values()), default=None)

    def _others(self, device: Device) -> int:
        if device.device == CPU or device.used_bytes is None:
            return 0
        by_holder: dict[int | None, list[Lease]] = {}
        for lease in self._leases.values():
            if lease.device == device.device:
                by_holder.setdefault(lease.pid if lease.host == self._host else None, []).append(lease)
        ours = sum(_used_of(leases, device.processes.get(pid or 0, 0)) for pid, leases in by_holder.items())
        return max(device.used_bytes - ours - device.spare_bytes, 0)

    # What may change

    def acquire(self, request: LeaseAcquire, lease_id: str, now: Now, start_ticks: int | None) -> Granted | Refused:
        """Reserve memory, or say why not. Raises BadRequest for a request that makes no sense, Conflict for an id that
        is another lease's, NotFound for a device that is not here."""
        held = self._leases.get(lease_id)
        if held is not None:
            return self._again(held, request, now)
        device = self._device_for(request)
        refused = self._check(request, device, request.vram_bytes, request.ram_bytes, now)
        if refused is not None:
            return refused
        lease = self._leases[lease_id] = Lease(
            lease_id=lease_id,
            service=request.service,
            device=device,
            vram_bytes=request.vram_bytes,
            ram_bytes=request.ram_bytes,
            asked_vram_bytes=request.vram_bytes,
            asked_ram_bytes=request.ram_bytes,
            priority=request.priority,
            purpose=request.purpose,
            is_preemptible=request.is_preemptible,
            host=request.host,
            pid=request.pid,
            start_ticks=start_ticks,
            ttl_s=request.ttl_s,
            granted_at=now.epoch,
            ends_at=now.monotonic + request.ttl_s,
        )
        return Granted(lease, True)

    def renew(self, request: LeaseRenew, now: Now) -> Granted | Refused:
        """Hold a lease longer; with sizes, as large as was measured.

        What it has grown by must be free like any other memory. When it is not, the lease is still held longer, as
        large as it was. Raises NotFound for a lease that is not held, BadRequest for vram_bytes of the main
        memory.
        """
        lease = self._leases.get(request.lease_id)
        if lease is None:
            raise NotFound(
                f"lease {request.lease_id} is not held: it was given back or it ended; acquire it again",
                lease_id=request.lease_id,
            )
        if request.vram_bytes and lease.device == CPU:
            raise BadRequest(f"lease {lease.lease_id} is of main memory and has no vram_bytes", field="vram_bytes")
        lease.ttl_s = request.ttl_s
        lease.ends_at = now.monotonic + request.ttl_s
        rank = lease.priority, lease.is_preemptible
        if request.priority is not None:
            lease.priority = request.priority
        if request.is_preemptible is not None:
            lease.is_preemptible = request.is_preemptible
        vram = lease.vram_bytes if request.vram_bytes is None else request.vram_bytes
        ram = lease.ram_bytes if request.ram_bytes is None else request.ram_bytes
        grown = max(vram - lease.vram_bytes, 0), max(ram - lease.ram_bytes, 0)
        if any(grown):
            # Its process uses what it asks for already; counted as another program's it would be wanted twice.
            before, lease.measured_vram_bytes = lease.measured_vram_bytes, vram
            refused = self._check(lease, lease.device, *grown, now, but=lease)
            if refused is not None:
                lease.measured_vram_bytes = before
                return refused
        is_changed = (lease.vram_bytes, lease.ram_bytes, *rank) != (vram, ram, lease.priority, lease.is_preemptible)
        lease.vram_bytes, lease.ram_bytes = vram, ram
        if request.vram_bytes is not None:
            lease.measured_vram_bytes = vram
        return Granted(lease, is_changed)

    def release(self, lease_id: str) -> Lease | None:
        """Give a lease back; None when it is not held."""
        return self._leases.pop(lease_id, None)

    def expire(self, now: Now) -> list[Lease]:
        """End the leases whose time is over."""
        over = [lease for lease in self._leases.values() if lease.ends_at <= now.monotonic]
        for lease in over:
            del self._leases[lease.lease_id]
        return over

    def restore(self, leases: Iterable[Lease], now: Now) -> None:
        """Take back what an earlier process kept; each gets its whole time, for its holder to renew it."""
        for lease in leases:
            lease.ends_at = now.monotonic + lease.ttl_s
            lease.asked_at = lease.asked_since = None
            self._leases[lease.lease_id] = lease

    # Decisions

    def _again(self, held: Lease, request: LeaseAcquire, now: Now) -> Granted:
        """The same request once more. Raises Conflict when it is another one under the same id."""
        is_same = (held.service, held.asked_vram_bytes, held.asked_ram_bytes) == (
            request.service,
            request.vram_bytes,
            request.ram_bytes,
        )
        if not is_same or request.device not in (None, held.device):
            raise Conflict(
                f"lease {held.lease_id} is held by {held.service} with {_size_of(held)} of {held.device}",
                lease_id=held.lease_id,
                service=held.service,
            )
        held.ends_at = max(held.ends_at, now.monotonic + request.ttl_s)
        return Granted(held, False)

    def _device_for(self, request: LeaseAcquire) -> str:
        if not request.vram_bytes and not request.ram_bytes:
            raise BadRequest("a lease of nothing: vram_bytes or ram_bytes must be above 0", field="vram_bytes")
        if request.device is not None:
            if request.device == CPU and request.vram_bytes:
                raise BadRequest("cpu has no vram_bytes; the main memory is asked for as ram_bytes", field="vram_bytes")
            self._known(request.device)
            return request.device
        return self._best_gpu(request) if request.vram_bytes else CPU

    def _known(self, device: str) -> Device:
        seen = self._devices.get(device)
        if seen is None:
            raise NotFound(f"there is no device {device}; there are {', '.join(self._devices)}", device=device)
        return seen

    def _best_gpu(self, request: LeaseAcquire) -> str:
        """The GPU with the most free memory; where none has enough, one that others could make room on."""
        gpus = [name for name, device in self._devices.items() if name != CPU and not device.is_lost]
        if not gpus:
            lost = [name for name, device in self._devices.items() if device.is_lost]
            why = f"{', '.join(lost)} is lost" if lost else "declare one in resources.devices, or install its driver"
            raise NotFound(f"there is no GPU for {size_in_words(request.vram_bytes)}: {why}", device="gpu")

        def rank(name: str) -> tuple[bool, bool, bool, int]:
            device, free = self._devices[name], self.free(name)
            could = free + sum(lease.bytes_on(name) for lease in self._yielding(name, request.priority, None))
            wanted = request.vram_bytes
            return free >= wanted, could >= wanted, device.total_bytes >= wanted, free

        return max(gpus, key=rank)

    def _check(
        self, wants: LeaseAcquire | Lease, device: str, vram: int, ram: int, now: Now, but: Lease | None = None
    ) -> Refused | None:
        """None when `vram` more bytes of `device` and `ram` more of the main memory can be had.

        but: a lease that is to grow, and that does not make room for itself.
        """
        needs = [_Need(self._known(name), size) for name, size in ((device, vram), (CPU, ram)) if size]
        for need in needs:
            if (error := self._impossible(need, but)) is not None:
                return Refused(error, [])
        if (error := self._over_quota(wants.service, vram + ram)) is not None:
            return Refused(error, [])
        lacking = [need for need in needs if self.free(need.device.device) < need.wanted_bytes]
        if not lacking:
            return None
        victims = self._victims(lacking, wants.priority, but)
        error = self._no_room(lacking[0], victims)
        if wants.pid is not None and all((one.host, one.pid) == (wants.host, wants.pid) for one in victims):
            # All of them are its own: it knows better which it can do without, and would give back twice as much.
            return Refused(error, [])
        return Refused(error, self._ask(victims, now))

    def _impossible(self, need: _Need, but: Lease | None) -> BusError | None:
        device, wanted = need
        if device.is_lost:
            return Unprocessable(f"{device.device} is lost: {device.problem}", device=device.device)
        whole = wanted + (but.bytes_on(device.device) if but is not None else 0)
        if whole <= device.total_bytes:
            return None
        return Unprocessable(
            f"{size_in_words(whole)} do not fit on {device.device}, which has {size_in_words(device.total_bytes)} in"
            " all for leases",
            device=device.device,
            wanted_bytes=whole,
            total_bytes=device.total_bytes,
        )

    def _over_quota(self, service: str, more: int) -> BusError | None:
        quota = self.quotas.get(service)
        held = sum(lease.vram_bytes + lease.ram_bytes for lease in self.leases(service=service))
        if quota is None or held + more <= quota:
            return None
        return QuotaExceeded(
            f"{service} holds {size_in_words(held)} and wants {size_in_words(more)} more; its quota is"
            f" {size_in_words(quota)} on all devices together (resources.quotas)",
            wanted_bytes=more,
            held_bytes=held,
            quota_bytes=quota,
            free_bytes=max(quota - held, 0),
            shortfall_bytes=held + more - quota,
            would_free=[],
        )

    def _no_room(self, need: _Need, victims: Sequence[Lease]) -> BusError:
        name, wanted, free = need.device.device, need.wanted_bytes, self.free(need.device.device)
        holders = [lease for lease in self.leases(device=name) if lease.bytes_on(name)]
        held = ", ".join(f"{_whose(lease)} {size_in_words(lease.bytes_on(name))}" for lease in holders[:_NAMED_LEASES])
        others = self._others(need.device)
        parts = [part for part in (held, f"other programs {size_in_words(others)}" if others else "") if part]
        asked = f"; asked to give back: {', '.join(_whose(lease) for lease in victims)}" if victims else ""
        return QuotaExceeded(
            f"{size_in_words(wanted)} wanted on {name}, {size_in_words(free)} free of"
            f" {size_in_words(need.device.total_bytes)}; held by: {', '.join(parts) or 'nobody'}{asked}",
            device=name,
            wanted_bytes=wanted,
            free_bytes=free,
            shortfall_bytes=wanted - free,
            others_bytes=others,
            would_free=[_told(lease, name) for lease in victims],
            held_by=[_told(lease, name) for lease in holders[:_NAMED_LEASES]],
        )

    def _yielding(self, device: str, priority: int, but: Lease | None) -> list[Lease]:
        """Leases on a device that must give way to `priority`, the least important first, the largest of those first."""
        able = [
            lease
            for lease in self._leases.values()
            if lease is not but and lease.is_preemptible and lease.priority > priority and lease.bytes_on(device)
        ]
        return sorted(able, key=lambda lease: (-lease.priority, -lease.bytes_on(device)))

    def _victims(self, lacking: Sequence[_Need], priority: int, but: Lease | None) -> list[Lease]:
        """Leases that together would make room; none when even all would not be enough."""
        chosen: list[Lease] = []
        for device, wanted in lacking:
            name = device.device
            missing = wanted - self.free(name) - sum(lease.bytes_on(name) for lease in chosen)
            for lease in self._yielding(name, priority, but):
                if missing > 0 and lease not in chosen:
                    chosen.append(lease)
                    missing -= lease.bytes_on(name)
            if missing > 0:
                return []
        # The last one may have been large enough to spare an earlier one.
        for lease in list(chosen):
            rest = [one for one in chosen if one is not lease]
            if all(
                sum(one.bytes_on(device.device) for one in rest) >= wanted - self.free(device.device)
                for device, wanted in lacking
            ):
                chosen = rest
        return chosen

    def _ask(self, victims: Sequence[Lease], now: Now) -> list[Lease]:
        """Note who is asked; returns those to be told, which those asked a moment ago are not again."""
        told = []
        for lease in victims:
            since = now.monotonic - lease.asked_at if lease.asked_at is not None else None
            if since is None or since >= _ASK_LASTS_S:
                lease.asked_since = now.epoch
            if since is None or since >= _ASK_AGAIN_S:
                lease.asked_at = now.monotonic
                told.append(lease)
        return told


def _used_of(leases: Sequence[Lease], told_bytes: int) -> int:
    """What of one holder's leases is in use, as far as it or the driver says; what it takes beyond them is nobody's."""
    measured = sum(lease.measured_vram_bytes or 0 for lease in leases)
    return max(min(told_bytes, sum(lease.vram_bytes for lease in leases)), measured)


def _size_of(lease: Lease) -> str:
    return size_in_words(lease.vram_bytes + lease.ram_bytes)


def _whose(lease: Lease) -> str:
    return f"{lease.service} ({lease.purpose})" if lease.purpose else lease.service


def _told(lease: Lease, device: str) -> dict[str, Any]:
    """A lease in an error's details."""
    return {
        "lease_id": lease.lease_id,
        "service": lease.service,
        "purpose": lease.purpose,
        "priority": lease.priority,
        "bytes": lease.bytes_on(device),
    }
