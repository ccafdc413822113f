"""The ledger: what is granted, what is refused in which words, who is asked to make room, and that every lease ends."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.bodies.resource import LeaseAcquire, LeaseRenew
from schemas.errors import BadRequest, Conflict, NotFound, QuotaExceeded, Unprocessable
from workers.resources.device import Device
from workers.resources.ledger import Granted, Lease, Ledger, Now, Refused

GIB = 1024**3
HOST = "here"


def gpu(name: str = "gpu0", total: int = 24, **more: Any) -> Device:
    return Device(device=name, name="card", source="nvml", total_bytes=total * GIB, **more)


def cpu(total: int = 32) -> Device:
    return Device(device="cpu", name="main memory", source="host", total_bytes=total * GIB, used_bytes=30 * GIB)


def now(at: float = 0.0) -> Now:
    return Now(at, 1_000_000 + at)


def ledger(*devices: Device, **quotas: int) -> Ledger:
    made = Ledger(HOST, {name: size * GIB for name, size in quotas.items()})
    made.see(devices or (gpu(), cpu()))
    return made


def acquire(book: Ledger, id: str, vram: float = 0, at: float = 0.0, **more: Any) -> Granted | Refused:
    request = LeaseAcquire(**{"service": "model", "vram_bytes": int(vram * GIB), **more})
    return book.acquire(request, id, now(at), None)


def granted(book: Ledger, id: str, vram: float = 0, at: float = 0.0, **more: Any) -> Lease:
    decision = acquire(book, id, vram, at, **more)
    assert isinstance(decision, Granted), decision
    return decision.lease


def refused(book: Ledger, id: str, vram: float = 0, at: float = 0.0, **more: Any) -> Refused:
    decision = acquire(book, id, vram, at, **more)
    assert isinstance(decision, Refused), decision
    return decision


# Room ----------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_every_number() -> None:
    """Wanted, free, shortfall and holders, in fields and in words."""
    book = ledger()
    granted(book, "a", 20, purpose="big-model")

    error = refused(book, "b", 10, service="train").error

    assert isinstance(error, QuotaExceeded)
    assert error.details["wanted_bytes"] == 10 * GIB
    assert error.details["free_bytes"] == 4 * GIB
    assert error.details["shortfall_bytes"] == 6 * GIB
    assert error.details["device"] == "gpu0"
    assert error.details["would_free"] == []
    assert "10.0 GiB wanted on gpu0, 4.0 GiB free of 24.0 GiB; held by: model (big-model) 20.0 GiB" in error.message


def test_what_no_device_could_ever_hold_is_refused_as_impossible() -> None:
    """Waiting would not help, so it is another error, with both numbers."""
    error = refused(ledger(), "a", 25).error

    assert isinstance(error, Unprocessable)
    assert (error.details["wanted_bytes"], error.details["total_bytes"]) == (25 * GIB, 24 * GIB)


def test_vram_and_main_memory_are_reserved_together_or_not_at_all() -> None:
    """A lease of both is refused when either is missing."""
    book = ledger(gpu(), cpu(8))
    granted(book, "a", 4, ram_bytes=6 * GIB)

    assert refused(book, "b", 4, ram_bytes=3 * GIB).error.details["device"] == "cpu"
    assert (book.free("gpu0"), book.free("cpu")) == (20 * GIB, 2 * GIB)


def test_without_a_device_the_emptiest_gpu_that_fits_is_taken() -> None:
    """And main memory for a lease without vram."""
    book = ledger(gpu("gpu0", 24), gpu("gpu1", 12), cpu())
    granted(book, "a", 20, device="gpu0")

    assert granted(book, "b", 4).device == "gpu1"
    assert granted(book, "c", 4).device == "gpu1"
    assert granted(book, "d", ram_bytes=GIB).device == "cpu"
    assert refused(book, "e", 20).error.details["device"] == "gpu0"


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"device": "gpu7", "vram_bytes": 1}, NotFound, "no device gpu7; there are gpu0, cpu"),
        ({"device": "cpu", "vram_bytes": 1}, BadRequest, "ram_bytes"),
        ({}, BadRequest, "a lease of nothing"),
    ],
)
def test_requests_without_sense_are_refused(request_: dict[str, Any], error: type[Exception], words: str) -> None:
    """Each says what would make sense."""
    with pytest.raises(error, match=words):
        acquire(ledger(), "a", **request_)


def test_without_a_gpu_the_way_to_one_is_named() -> None:
    """A machine without GPU answers with the setting, or with what became of its card."""
    with pytest.raises(NotFound, match=r"resources\.devices"):
        acquire(ledger(cpu()), "a", 1)
    with pytest.raises(NotFound, match="gpu0 is lost"):
        acquire(ledger(gpu(is_lost=True), cpu()), "a", 1)


def test_a_lost_device_gives_nothing() -> None:
    """What is leased on it stays listed until it ends; more is refused with what happened."""
    book = ledger()
    granted(book, "a", 4)
    book.see([gpu(is_lost=True, problem="GPU is lost"), cpu()])

    error = refused(book, "b", 1, device="gpu0").error
    assert isinstance(error, Unprocessable) and "GPU is lost" in error.message
    assert [lease.lease_id for lease in book.leases(device="gpu0")] == ["a"]


# Other programs --------------------------------------------------------------------------------------------------------


def test_what_other_programs_use_is_not_free() -> None:
    """Of what is in use, only what leases are known to use is theirs, by the driver's word or by the holder's."""
    book = ledger(gpu(used_bytes=10 * GIB), cpu())
    assert book.free("gpu0") == 14 * GIB

    lease = granted(book, "a", 8, host=HOST, pid=77)
    assert book.free("gpu0") == 6 * GIB
    book.see([gpu(used_bytes=18 * GIB, processes={77: 8 * GIB, 78: 10 * GIB}), cpu()])
    assert book.free("gpu0") == 6 * GIB
    book.see([gpu(used_bytes=18 * GIB), cpu()])
    assert book.free("gpu0") == 0
    book.renew(LeaseRenew(lease_id=lease.lease_id, vram_bytes=8 * GIB), now())
    assert book.free("gpu0") == 6 * GIB


def test_the_leases_of_one_process_share_what_it_uses() -> None:
    """One model is measured, the next one half loaded: what is not in use yet of both is not anybody's besides."""
    book = ledger(gpu(used_bytes=0), cpu())
    loaded = granted(book, "a", 10, host=HOST, pid=77)
    book.renew(LeaseRenew(lease_id=loaded.lease_id, vram_bytes=10 * GIB), now())
    granted(book, "b", 8, host=HOST, pid=77)
    book.see([gpu(used_bytes=15 * GIB, processes={77: 15 * GIB}), cpu()])
    assert book.free("gpu0") == 6 * GIB
    book.see([gpu(used_bytes=20 * GIB, processes={77: 15 * GIB}), cpu()])
    assert book.free("gpu0") == 1 * GIB


def test_a_pid_of_another_machine_is_not_looked_up_here() -> None:
    """The same number there is another process."""
    book = ledger(gpu(used_bytes=8 * GIB, processes={77: 8 * GIB}), cpu())
    granted(book, "a", 8, host="elsewhere", pid=77)

    assert book.free("gpu0") == 8 * GIB


def test_the_spare_part_is_not_taken_off_twice() -> None:
    """The desktop's use comes out of what was set aside for it."""
    assert ledger(gpu(used_bytes=GIB, spare_bytes=GIB), cpu()).free("gpu0") == 24 * GIB


# Renewal, ends ---------------------------------------------------------------------------------------------------------


def test_a_renewal_lengthens_and_fits_the_lease_to_what_was_measured() -> None:
    """Smaller frees at once; larger has to fit; too large is refused, but the lease goes on as it was."""
    book = ledger(gpu(total=24, used_bytes=22 * GIB, processes={}), cpu())
    book.see([gpu(), cpu()])
    granted(book, "a", 10, ttl_s=10)
    granted(book, "b", 8)
    book.renew(LeaseRenew(lease_id="a", ttl_s=20, vram_bytes=6 * GIB), now(5))
    assert book.free("gpu0") == 10 * GIB
    # Grown to 12 GiB already, beside 8 that are not loaded yet.
    book.see([gpu(used_bytes=12 * GIB), cpu()])
    grown = book.renew(LeaseRenew(lease_id="a", ttl_s=20, vram_bytes=12 * GIB), now(6))
    assert isinstance(grown, Granted) and grown.is_changed and grown.lease.vram_bytes == 12 * GIB
    assert book.free("gpu0") == 4 * GIB

    decision = book.renew(LeaseRenew(lease_id="a", ttl_s=30, vram_bytes=17 * GIB), now(10))
    assert isinstance(decision, Refused)
    assert decision.error.details["shortfall_bytes"] == GIB
    lease = book.lease("a")
    assert lease is not None and (lease.vram_bytes, lease.ends_at) == (12 * GIB, 40)


def test_a_renewal_may_change_how_much_a_lease_matters() -> None:
    """What was pinned meanwhile is not asked back any more."""
    book = ledger()
    granted(book, "a", 20, priority=5)

    kept = book.renew(LeaseRenew(lease_id="a", priority=2, is_preemptible=False), now(1))
    same = book.renew(LeaseRenew(lease_id="a"), now(2))

    assert isinstance(kept, Granted) and kept.is_changed
    assert (kept.lease.priority, kept.lease.is_preemptible) == (2, False)
    assert isinstance(same, Granted) and not same.is_changed


def test_a_lease_that_is_not_renewed_ends() -> None:
    """Then its memory is free, and renewing it says what to do."""
    book = ledger()
    granted(book, "a", 20, ttl_s=5)
    assert book.next_end() == 5

    assert book.expire(now(4.9)) == []
    assert [lease.lease_id for lease in book.expire(now(5))] == ["a"]
    assert book.free("gpu0") == 24 * GIB
    with pytest.raises(NotFound, match="acquire it again"):
        book.renew(LeaseRenew(lease_id="a"), now(6))


def test_asking_twice_is_one_lease() -> None:
    """The same id and request: the same lease. Another request under that id: a conflict."""
    book = ledger()
    first = granted(book, "a", 10, ttl_s=5)
    book.renew(LeaseRenew(lease_id="a", vram_bytes=9 * GIB, ttl_s=5), now(1))

    again = acquire(book, "a", 10, at=2, ttl_s=5)
    assert isinstance(again, Granted) and again.lease is first and not again.is_changed
    assert first.ends_at == 7
    with pytest.raises(Conflict, match="held by model"):
        acquire(book, "a", 11)
    with pytest.raises(Conflict):
        acquire(book, "a", 10, service="other")


def test_leases_survive_a_restart_with_their_whole_time() -> None:
    """What was kept counts as before, so nothing is granted twice while its holder has not been heard yet."""
    book = ledger()
    lease = granted(book, "a", 20, ttl_s=30)
    kept = msgspec.json.decode(msgspec.json.encode([lease]), type=list[Lease])

    after = ledger()
    after.restore(kept, now(500))

    assert isinstance(refused(after, "b", 10, at=500).error, QuotaExceeded)
    assert after.next_end() == 530


# Quotas, preemption ------------------------------------------------------------------------------------------------------


def test_a_quota_holds_over_all_devices() -> None:
    """Video and main memory count together, for one service; others are not concerned."""
    book = ledger(model=20)
    granted(book, "a", 12, ram_bytes=4 * GIB)

    error = refused(book, "b", 5).error
    assert error.details["quota_bytes"] == 20 * GIB
    assert error.details["shortfall_bytes"] == GIB
    assert "resources.quotas" in error.message
    assert granted(book, "c", 12, service="train")
    assert granted(book, "d", 0, ram_bytes=4 * GIB)


def test_those_less_important_are_asked_when_that_is_enough() -> None:
    """As few as possible, the least important first; not the equally important, nor those that may not be asked."""
    book = ledger()
    granted(book, "equal", 4, priority=2)
    granted(book, "fixed", 4, priority=5, is_preemptible=False)
    granted(book, "small", 2, priority=5)
    granted(book, "large", 12, priority=4)

    decision = refused(book, "new", 10, priority=2)
    assert [lease.lease_id for lease in decision.asked] == ["large"]
    assert decision.error.details["would_free"][0]["lease_id"] == "large"
    assert "asked to give back: model" in decision.error.message
    large = book.lease("large")
    assert large is not None and large.info(now(1)).preempt_asked_at == 1_000_000


def test_who_could_make_room_by_itself_is_not_asked_for_it() -> None:
    """A service that is refused knows what of its own it can do without; asked besides, it would give back twice."""
    book = ledger()
    granted(book, "mine", 20, priority=5, host=HOST, pid=7)
    decision = refused(book, "new", 10, priority=1, host=HOST, pid=7)
    assert decision.asked == []
    assert [one["lease_id"] for one in decision.error.details["would_free"]] == ["mine"]
    assert [one.lease_id for one in refused(book, "other", 10, priority=1, host=HOST, pid=8).asked] == ["mine"]


def test_nobody_is_asked_when_it_would_not_be_enough() -> None:
    """Giving memory back for nothing would be a loss for all."""
    book = ledger()
    granted(book, "a", 20, priority=1)
    granted(book, "b", 4, priority=5)

    decision = refused(book, "new", 10, priority=2)
    assert decision.asked == []
    assert decision.error.details["would_free"] == []


def test_a_holder_is_not_asked_again_and_again() -> None:
    """Callers that try every second are one burst; a later one is told anew, and silence ends the asking."""
    book = ledger()
    lease = granted(book, "a", 20, priority=5, ttl_s=1000)

    assert [len(refused(book, "n", 10, at=at).asked) for at in (0, 1, 9, 10, 11)] == [1, 0, 0, 1, 0]
    assert lease.info(now(39)).preempt_asked_at == 1_000_000
    assert lease.info(now(41)).preempt_asked_at is None
    assert [len(refused(book, "n", 10, at=100).asked)] == [1]
    assert lease.info(now(101)).preempt_asked_at == 1_000_100


def test_room_on_two_devices_is_asked_of_the_same_lease() -> None:
    """One that holds both kinds of memory is enough, and is asked once."""
    book = ledger(gpu(), cpu(16))
    granted(book, "both", 20, ram_bytes=14 * GIB, priority=5)

    decision = refused(book, "new", 10, ram_bytes=8 * GIB, priority=3)
    assert [lease.lease_id for lease in decision.asked] == ["both"]


def test_the_gpu_where_others_can_make_room_is_preferred() -> None:
    """Where none has room, the request is about one that could have, not about the one with a little more free."""
    book = ledger(gpu("gpu0"), gpu("gpu1"), cpu())
    granted(book, "fixed", 18, device="gpu0", is_preemptible=False)
    granted(book, "yields", 20, device="gpu1", priority=5)

    assert [lease.lease_id for lease in refused(book, "new", 12, priority=1).asked] == ["yields"]


# Properties ------------------------------------------------------------------------------------------------------------

SIZES = st.integers(0, 30).map(lambda gib: gib * GIB)


class AnyUse(RuleBasedStateMachine):
    """Whatever is asked in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0
        self.devices = [gpu("gpu0", 24), gpu("gpu1", 8), cpu(16)]
        self.book = ledger(*self.devices, model=20)
        self.ends: dict[str, float] = {}

    @rule(
        id=st.sampled_from("abcdefgh"),
        service=st.sampled_from(["model", "train"]),
        vram=SIZES,
        ram=SIZES,
        device=st.sampled_from([None, "gpu0", "gpu1", "cpu"]),
        priority=st.integers(1, 5),
        preemptible=st.booleans(),
        ttl_s=st.floats(1, 60),
    )
    def ask(
        self,
        id: str,
        service: str,
        vram: int,
        ram: int,
        device: str | None,
        priority: int,
        preemptible: bool,
        ttl_s: float,
    ) -> None:
        request = LeaseAcquire(
            service=service,
            vram_bytes=vram,
            ram_bytes=ram,
            device=device,
            priority=priority,
            is_preemptible=preemptible,
            ttl_s=ttl_s,
        )
        try:
            decision = self.book.acquire(request, id, now(self.at), None)
        except (BadRequest, Conflict):
            return
        if isinstance(decision, Granted):
            self.ends[id] = max(self.ends.get(id, 0), self.at + ttl_s)
        else:
            assert all(lease.priority > priority and lease.is_preemptible for lease in decision.asked)
            assert decision.error.details.get("shortfall_bytes", 1) > 0

    @rule(id=st.sampled_from("abcdefgh"), vram=st.none() | SIZES, ram=st.none() | SIZES, ttl_s=st.floats(1, 60))
    def renew(self, id: str, vram: int | None, ram: int | None, ttl_s: float) -> None:
        try:
            self.book.renew(LeaseRenew(lease_id=id, ttl_s=ttl_s, vram_bytes=vram, ram_bytes=ram), now(self.at))
        except NotFound:
            assert id not in self.ends
            return
        except BadRequest:
            return
        self.ends[id] = self.at + ttl_s

    @rule(id=st.sampled_from("abcdefgh"))
    def release(self, id: str) -> None:
        assert (self.book.release(id) is not None) == (self.ends.pop(id, None) is not None)

    @rule(seconds=st.floats(0, 40))
    def time_goes_on(self, seconds: float) -> None:
        self.at += seconds
        over = {lease.lease_id for lease in self.book.expire(now(self.at))}
        assert over == {id for id, end in self.ends.items() if end <= self.at}
        self.ends = {id: end for id, end in self.ends.items() if id not in over}

    @precondition(lambda self: self.ends)
    @rule(used=SIZES, is_lost=st.booleans())
    def devices_change(self, used: int, is_lost: bool) -> None:
        changed = msgspec.structs.replace(self.devices[0], used_bytes=used, is_lost=is_lost)
        self.book.see([changed, *self.devices[1:]])

    @invariant()
    def nothing_is_over(self) -> None:
        for device in self.devices:
            assert self.book.reserved(device.device) <= device.total_bytes
        held = sum(lease.vram_bytes + lease.ram_bytes for lease in self.book.leases(service="model"))
        assert held <= 20 * GIB

    @invariant()
    def every_lease_has_its_end(self) -> None:
        assert {lease.lease_id: lease.ends_at for lease in self.book.leases()} == pytest.approx(self.ends)


TestAnyUse = AnyUse.TestCase
