"""What the model service tells the keeper of the books, with a stand-in for the bus."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from bus.settings import Settings
from schemas.bodies.resource import (
    DeviceStatus,
    GpuStatusReply,
    LeaseAcquire,
    LeaseInfo,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
)
from schemas.errors import BusError, DeadlineExceeded, NotFound, NoWorker, QuotaExceeded
from workers.models import leasing
from workers.models.decisions import QUOTA, Reserve, Reserved, ReserveRefused, Room
from workers.models.leasing import Leasing

WAIT_S = 5.0


class Books:
    """Answers requests as `resource` does, keeps what was asked, and fails or waits when told."""

    def __init__(self, *, gpus: int = 0) -> None:
        self.settings = Settings()
        self.gpus = gpus
        self.asked: list[Any] = []
        self.held: dict[str, LeaseAcquire] = {}
        self.is_asked_back = False
        self.failure: BusError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def request(self, subject: str, body: Any, *, timeout_s: float) -> Any:
        self.asked.append(body)
        await self.gate.wait()
        if isinstance(self.failure, NoWorker | QuotaExceeded):
            raise self.failure
        answer = self._answer(body)
        if self.failure is not None:
            raise self.failure
        return answer

    def _answer(self, body: Any) -> Any:
        match body:
            case LeaseAcquire():
                self.held[body.lease_id or ""] = body
                return self._info(body.lease_id or "")
            case LeaseRenew():
                if body.lease_id not in self.held:
                    raise NotFound("not held")
                return self._info(body.lease_id)
            case LeaseRelease():
                return LeaseReleased(lease_id=body.lease_id, was_held=self.held.pop(body.lease_id, None) is not None)
        return GpuStatusReply(
            devices=[
                DeviceStatus(
                    device=f"gpu{number}",
                    name="card",
                    source="declared",
                    state="ok",
                    total_bytes=100,
                    used_bytes=None,
                    reserved_bytes=0,
                    free_bytes=100,
                )
                for number in range(self.gpus)
            ]
        )

    def _info(self, lease_id: str) -> LeaseInfo:
        asked = self.held[lease_id]
        return LeaseInfo(
            lease_id=lease_id,
            service="model",
            device=asked.device or "gpu1",
            vram_bytes=asked.vram_bytes,
            ram_bytes=asked.ram_bytes,
            priority=asked.priority,
            purpose=asked.purpose,
            granted_at=0.0,
            expires_at=30.0,
            is_preemptible=True,
            preempt_asked_at=1.0 if self.is_asked_back else None,
        )

    def of(self, kind: Any) -> list[Any]:
        return [one for one in self.asked if isinstance(one, kind)]


WANTED = Reserve(lease=1, model="m", device=None, memory_bytes=40, beside_bytes=7, priority=3, is_preemptible=True)


def of_books(books: Books, told: list[tuple[int, str]] | None = None) -> Leasing:
    said = told if told is not None else []
    made = Leasing(books, lambda number, who: said.append((number, who)))  # type: ignore[arg-type]
    made.gpus = tuple(f"gpu{number}" for number in range(books.gpus))
    return made


async def settled(made: Leasing) -> None:
    """Until nothing is under way."""
    async with asyncio.timeout(WAIT_S):
        while work := {*made._renewing, *made._releasing}:
            await asyncio.wait(work)


async def test_sizes_are_told_once_they_are_measured_and_not_before() -> None:
    """A renewal during the load must not make what is only reserved count as used."""
    books = Books(gpus=2)
    made = of_books(books)
    assert await made.acquire(WANTED) == Reserved(1, "gpu1")
    made.rank(1, 5, is_preemptible=True)
    await settled(made)
    made.resize(1, 44, 8)
    await settled(made)
    assert [(one.vram_bytes, one.ram_bytes) for one in books.of(LeaseRenew)] == [(None, None), (44, 8)]


async def test_a_lease_that_was_lost_is_entered_again_where_the_model_is() -> None:
    """The first time any GPU will do, later only the one on which the model was loaded, with its measured size."""
    books = Books(gpus=2)
    made = of_books(books)
    await made.acquire(WANTED)
    made.resize(1, 44, 8)
    await settled(made)
    books.held.clear()
    made.rank(1, 3, is_preemptible=True)
    await settled(made)
    assert [(one.device, one.vram_bytes) for one in books.of(LeaseAcquire)] == [(None, 40), ("gpu1", 44)]
    assert [type(one) for one in books.asked[-3:]] == [LeaseRenew, LeaseAcquire, LeaseRenew]
    assert books.of(LeaseRenew)[-1].vram_bytes == 44


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_lease_that_is_released_while_it_is_renewed_is_not_entered_again(is_lost: bool) -> None:
    """Neither when the books had lost it, nor when it is being entered for the first time."""
    books = Books()
    made = of_books(books)
    if not is_lost:
        books.failure = NoWorker("nobody there")
    await made.acquire(WANTED)
    books.failure = None
    books.held.clear()
    books.gate.clear()
    made.rank(1, 5, is_preemptible=True)
    await asyncio.sleep(0)
    made.release(1)
    books.gate.set()
    await settled(made)
    assert books.held == {}


async def test_a_grant_whose_answer_came_too_late_is_given_back_like_any_other() -> None:
    """The request timed out and was granted all the same: the end of the model ends it."""
    books = Books()
    books.failure = DeadlineExceeded("slow")
    made = of_books(books)
    assert await made.acquire(WANTED) == Reserved(1, "cpu", is_granted=False)
    assert len(books.held) == 1
    books.failure = None
    made.release(1)
    await settled(made)
    assert books.held == {}


async def test_each_renewal_says_again_that_memory_is_wanted_back() -> None:
    """For as long as the books say so; the scheduler forgets it otherwise."""
    books, told = Books(), []
    made = of_books(books, told)
    await made.acquire(WANTED)
    books.is_asked_back = True
    for _ in range(2):
        made.rank(1, 5, is_preemptible=True)
        await settled(made)
    books.is_asked_back = False
    made.rank(1, 5, is_preemptible=True)
    await settled(made)
    assert told == [(1, "somebody more important")] * 2


async def test_a_used_up_quota_is_room_that_any_model_can_make() -> None:
    """On whichever device it is, and with both its parts."""
    books = Books(gpus=1)
    books.failure = QuotaExceeded("quota", quota_bytes=60, free_bytes=5, held_bytes=55)
    made = of_books(books)
    assert await made.acquire(WANTED) == ReserveRefused(1, (Room(QUOTA, 60, 5, 47),), "model: 55 bytes")


async def test_models_wait_for_news_of_gpus_where_there_should_be_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resource service starts beside this one and answers later; without GPUs nobody waits."""
    monkeypatch.setattr(leasing, "_GPUS_AGAIN_S", 0.001)
    for is_expected in (False, True):
        books = Books(gpus=1)
        declared = msgspec.structs.replace(
            books.settings.resources, nvml="off", devices=("gpu0=1GiB",) if is_expected else ()
        )
        books.settings = msgspec.structs.replace(books.settings, resources=declared)
        books.failure = NoWorker("not yet")
        made = of_books(books)
        made.gpus = ()
        made._listen = asyncio.Event().wait  # type: ignore[assignment,method-assign]
        await made.start()
        try:
            known = asyncio.ensure_future(made.gpus_known())
            await asyncio.wait({known}, timeout=0.02)
            assert known.done() is not is_expected
            books.failure = None
            await asyncio.wait_for(known, WAIT_S)
            assert made.gpus == (("gpu0",) if is_expected else ())
        finally:
            await made.stop(WAIT_S)
