"""Bodies of `gpu.*` and `resource.*`: devices, their memory, who holds it. Sizes are bytes, times seconds, instants epoch seconds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.bodies.base import Empty, Reply, Request
from schemas.bodies.model import Device, Priority

LeaseId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9-]+$(?!\n)")]
ServiceName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$(?!\n)")]
Bytes = Annotated[int, Meta(ge=0, le=2**53)]
LeaseTtl = Annotated[float, Meta(ge=1, le=86_400)]


class GpuStatus(Empty, frozen=True, kw_only=True):
    pass


class LockHolder(Reply, frozen=True, kw_only=True):
    """Who holds the lock of a device, as its lock file says."""

    pid: int
    host: str
    model: str
    purpose: str
    since: float


class LockWaiter(Reply, frozen=True, kw_only=True):
    """Who waits for it, first come first."""

    pid: int
    host: str
    model: str
    purpose: str
    since: float


class LeaseInfo(Reply, frozen=True, kw_only=True):
    """A reservation of memory. preempt_asked_at: since when its holder is asked to give it back, None when it is not."""

    lease_id: str
    service: str
    device: str
    vram_bytes: int
    ram_bytes: int
    priority: int
    purpose: str
    granted_at: float
    expires_at: float
    is_preemptible: bool
    preempt_asked_at: float | None = None
    host: str = ""
    pid: int | None = None


class DeviceStatus(Reply, frozen=True, kw_only=True):
    """One device; "cpu" is the main memory.

    source: "nvml", "declared" in the settings, or "host" for the main memory. total: after what is set aside.
    used_bytes: by any program, None where nothing measures it. reserved_bytes: by leases. free_bytes: what a lease can
    still get. state "lost": it was there and answers no more; `problem` says how it failed.
    """

    device: str
    name: str
    source: Literal["nvml", "declared", "host"]
    state: Literal["ok", "lost"]
    total_bytes: int
    used_bytes: int | None
    reserved_bytes: int
    free_bytes: int
    temperature_c: float | None = None
    utilisation: float | None = None
    problem: str = ""
    lock: LockHolder | None = None
    waiting: list[LockWaiter] = []
    leases: list[LeaseInfo] = []


class GpuStatusReply(Reply, frozen=True, kw_only=True):
    """problem: why NVML gives nothing, "" when it does or no GPU is expected."""

    devices: list[DeviceStatus]
    problem: str = ""


class LeaseAcquire(Request, frozen=True, kw_only=True):
    """Reserve memory. On a GPU `vram_bytes`, in the main memory `ram_bytes`; a lease may hold both.

    device None takes the GPU with the most free memory that has enough, for leases without vram_bytes "cpu". Over the
    device's free memory or the service's quota it is refused with what would free enough. priority 1 is the most
    important; leases of a lower one (a higher number) that are preemptible are asked back when that would be enough.
    lease_id makes asking twice harmless: the same id is the same lease.
    """

    service: ServiceName
    vram_bytes: Bytes = 0
    ram_bytes: Bytes = 0
    device: Device | None = None
    priority: Priority = 3
    ttl_s: LeaseTtl = 30.0
    purpose: Annotated[str, Meta(max_length=256)] = ""
    is_preemptible: bool = True
    lease_id: LeaseId | None = None
    host: Annotated[str, Meta(max_length=256)] = ""
    pid: Annotated[int, Meta(ge=1)] | None = None


class LeaseRenew(Request, frozen=True, kw_only=True):
    """Hold a lease for `ttl_s` seconds more; with sizes, as large as was measured; what is None stays as it is."""

    lease_id: LeaseId
    ttl_s: LeaseTtl = 30.0
    vram_bytes: Bytes | None = None
    ram_bytes: Bytes | None = None
    priority: Priority | None = None
    is_preemptible: bool | None = None


class LeaseRelease(Request, frozen=True, kw_only=True):
    lease_id: LeaseId


class LeaseReleased(Reply, frozen=True, kw_only=True):
    lease_id: str
    was_held: bool


class LeaseList(Request, frozen=True, kw_only=True):
    service: ServiceName | None = None
    device: Device | None = None


class Leases(Reply, frozen=True, kw_only=True):
    """quotas: bytes each service may hold together, by service; those without one may hold everything."""

    leases: list[LeaseInfo]
    quotas: dict[str, int] = {}


class LeaseEvent(Reply, frozen=True, kw_only=True):
    """Events `resource.lease.granted|released|expired|preempting`. reason: why. For `preempting`: who wants it."""

    lease: LeaseInfo
    reason: str
    wanted_by: str | None = None
    wanted_bytes: int | None = None
