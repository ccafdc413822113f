"""Memory for a training, reserved on the bus for as long as it runs: `resource.lease.*`.

Where nobody keeps the books of memory, everything is allowed. It knows neither trainer nor schedule.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from bus.client import Client
from schemas.bodies.resource import LeaseAcquire, LeaseInfo, LeaseRelease, LeaseRenew
from schemas.errors import BusError, NotFound, NoWorker, QuotaExceeded, Retryable, Unprocessable

log = logging.getLogger("olympus.learning.leases")

SERVICE: Final = "learning"

# Seconds until memory of a machine that lost its power is free again; three renewals fit in.
_TTL_S: Final = 30.0
_RENEW_S: Final = 10.0

# Answers come within a millisecond; a service that does not answer for so long is treated as one that is not there.
_ANSWER_S: Final = 2.0


class Wanted(NamedTuple):
    """Memory on each of some devices: `most` is as much as is of use, `least` what it takes at all; ram beside a GPU."""

    devices: tuple[str, ...]
    least_bytes: int
    most_bytes: int
    ram_bytes: int


class Held(Exception):
    """The memory is held by others; the message says by whom."""


class Leases:
    """Memory for the trainings of this service."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._is_alone = False

    def of(self, job_id: str, attempt: int, priority: int, on_lost: Callable[[str], None]) -> Lease:
        """A training's memory, not acquired yet."""
        return Lease(self._client, job_id, attempt, priority, on_lost, self._on_books)

    def _on_books(self, absence: str) -> None:
        """The books of memory answered (""), or did not."""
        if absence and not self._is_alone:
            log.warning(
                "nobody keeps the books of memory; training goes on without a lease",
                extra={"action": "learning.lease.alone", "error": absence},
            )
        self._is_alone = bool(absence)


class Lease:
    """One training's memory.

    on_lost: called with the reason when it is asked back or cannot be held any longer. on_books: called with "" when the
    books of memory answer, with the error when nobody keeps them.
    """

    def __init__(
        self,
        client: Client,
        job_id: str,
        attempt: int,
        priority: int,
        on_lost: Callable[[str], None],
        on_books: Callable[[str], None],
    ) -> None:
        self._client = client
        self._on_books = on_books
        self._purpose = f"training {job_id}"[:256]
        self._priority = priority
        self._on_lost = on_lost
        # An id of its own for each attempt: one of the last may still be in the books, with another size.
        self._prefix = f"learning-{hashlib.sha256(job_id.encode()).hexdigest()[:16]}-{attempt}"
        self._held: dict[str, LeaseAcquire] = {}
        self._renewing: asyncio.Task[None] | None = None

    async def acquire(self, wanted: Wanted) -> int | None:
        """Bytes that may be used on each device; None where nobody keeps the books. Raises Held, Unprocessable."""
        try:
            got = await self._acquire_all(wanted, wanted.most_bytes)
        except QuotaExceeded as error:
            free = error.details.get("free_bytes")
            if not isinstance(free, int) or free // len(wanted.devices) < wanted.least_bytes:
                raise Held(error.message) from error
            try:
                got = await self._acquire_all(wanted, min(free // len(wanted.devices), wanted.most_bytes))
            except QuotaExceeded as again:
                raise Held(again.message) from again
        except Unprocessable as error:
            # More than the device has in all.
            total = error.details.get("total_bytes")
            if not isinstance(total, int) or not wanted.least_bytes <= total < wanted.most_bytes:
                raise
            return await self.acquire(wanted._replace(most_bytes=total))
        except Retryable as error:
            await self.release()
            self._on_books(str(error))
            return None
        self._on_books("")
        self._renewing = asyncio.get_running_loop().create_task(self._keep_renewing(), name="training lease")
        return got

    async def release(self) -> None:
        """Give everything back; what cannot be given back runs out."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None
        held, self._held = self._held, {}
        for lease_id in held:
            try:
                await self._client.request(
                    "resource.lease.release", LeaseRelease(lease_id=lease_id), timeout_s=_ANSWER_S
                )
            except NoWorker:
                log.debug("nobody to give a lease back to", extra={"action": "learning.lease.left"})
            except BusError as error:
                log.info(
                    "lease not given back, it runs out", extra={"action": "learning.lease.left", "error": str(error)}
                )

    def owns(self, lease_id: str) -> bool:
        """Whether it is one of these."""
        return lease_id in self._held

    async def _acquire_all(self, wanted: Wanted, size_bytes: int) -> int:
        try:
            for number, device in enumerate(wanted.devices):
                lease_id = f"{self._prefix}-{number}-{size_bytes % 10**9}"
                is_cpu = device == "cpu"
                request = self._held[lease_id] = LeaseAcquire(
                    service=SERVICE,
                    vram_bytes=0 if is_cpu else size_bytes,
                    ram_bytes=size_bytes if is_cpu else wanted.ram_bytes,
                    device=device,
                    priority=self._priority,
                    ttl_s=_TTL_S,
                    purpose=self._purpose,
                    lease_id=lease_id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                )
                await self._client.request("resource.lease.acquire", request, timeout_s=_ANSWER_S)
        except (QuotaExceeded, Unprocessable):
            del self._held[lease_id]
            await self.release()
            raise
        return size_bytes

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            for request in list(self._held.values()):
                reason = await self._renew(request)
                if reason:
                    self._on_lost(reason)
                    return

    async def _renew(self, request: LeaseAcquire) -> str:
        """Hold it for longer; why it cannot be held, "" when it can."""
        try:
            renewed = await self._renewed(request)
        except (QuotaExceeded, Unprocessable) as error:
            return f"its lease of memory was lost: {error.message}"
        except BusError as error:
            # Books that are being restarted: the lease is known again when they are back, or it is not found then.
            log.info("lease not renewed", extra={"action": "learning.lease.unrenewed", "error": str(error)})
            return ""
        return "its memory is asked back by somebody more important" if renewed.preempt_asked_at is not None else ""

    async def _renewed(self, request: LeaseAcquire) -> LeaseInfo:
        """The lease; entered anew where the books do not know it any more."""
        assert request.lease_id is not None
        renew = LeaseRenew(lease_id=request.lease_id, ttl_s=_TTL_S)
        try:
            renewed: LeaseInfo = await self._client.request("resource.lease.renew", renew, timeout_s=_ANSWER_S)
        except NotFound:
            renewed = await self._client.request("resource.lease.acquire", request, timeout_s=_ANSWER_S)
        return renewed
