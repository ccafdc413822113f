"""The words of the model scheduler: what it is told (events) and what it wants done (effects).

Times are seconds of one steady clock, chosen by the caller. A runner is a process; the scheduler names it by a number,
a reservation of memory by another.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from schemas.errors import BusError


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that are not about one model. `when_full`: what becomes of requests there is no room for."""

    max_loaded: int
    spare_runners: int
    load_timeout_s: float
    when_full: Literal["wait", "refuse"] = "wait"


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is held in memory.

    memory_bytes: what its load is expected to take on its device, 0 when unknown; beside_bytes: in main memory, when that
    is not its device. device: None leaves the choice to whoever grants the memory. priority: 1 is evicted last, 5 first.
    keep_alive_s: seconds it may idle, below 0 for good; max_idle_s: seconds after which it leaves even so, 0 for never.
    A pinned model is loaded without being asked for, never evicted, and loaded again when its runner dies. One that is
    not swappable leaves by idling or on request only. A remote one takes no memory here and no place.
    """

    memory_bytes: int = 0
    beside_bytes: int = 0
    device: str | None = None
    priority: int = 3
    keep_alive_s: float = 300.0
    max_idle_s: float = 0.0
    is_pinned: bool = False
    is_swappable: bool = True
    is_remote: bool = False


class Likely(msgspec.Struct, frozen=True, kw_only=True):
    """A model that will probably be wanted.

    value: from 0 to 1, what having it in memory is worth; of two models the one of more value is kept. why: what that
    rests on, for a person.
    """

    model: str
    probability: float
    value: float
    terms: Terms
    why: str


# Stands for a device in a Room where the share of this service in all of them is what is short (resources.quotas).
QUOTA: Final = "all devices together"


class Room(msgspec.Struct, frozen=True):
    """Memory of one device, or QUOTA: all of it, what a reservation could still get, and what was asked for there."""

    device: str
    total_bytes: int
    free_bytes: int
    needed_bytes: int


# Events -------------------------------------------------------------------------------------------------------------


class Started(msgspec.Struct, frozen=True):
    """The service begins. `preload` is loaded although nobody asked, if given."""

    preload: str | None = None
    terms: Terms = Terms()


class Described(msgspec.Struct, frozen=True):
    """How a model is held from now on. A pinned one is loaded; of another one that is absent nothing is kept."""

    model: str
    terms: Terms


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants `model`: to use it, or (`is_load`) to have it loaded. `deadline` None is none.

    terms: may be None where the model is not absent. keep_alive_s: overrides that of the terms until the model leaves.
    """

    request: int
    model: str
    deadline: float | None = None
    terms: Terms | None = None
    is_load: bool = False
    context_tokens: int | None = None
    device: str | None = None
    keep_alive_s: float | None = None


class Preload(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants `model` loaded ahead of need; Done when the load begins, else Refuse says why it does not."""

    request: int
    model: str
    terms: Terms


class Expected(msgspec.Struct, frozen=True):
    """Which models will be wanted within `horizon_s`, the likeliest first; it replaces what was said before."""

    models: tuple[Likely, ...]
    horizon_s: float


class Ended(msgspec.Struct, frozen=True):
    """A request is over: answered, failed, or taken back by its caller."""

    request: int


class Lost(msgspec.Struct, frozen=True):
    """The runner vanished under a forwarded request. `is_fresh`: nothing of an answer has reached the caller."""

    request: int
    is_fresh: bool
    error: BusError


class UnloadAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants `model` out of memory; `is_forced` does not wait for its answers."""

    request: int
    model: str
    is_forced: bool = False


class Reserved(msgspec.Struct, frozen=True):
    """Memory was reserved on `device`. `is_granted` False: nobody keeps the books, so nobody said no."""

    lease: int
    device: str
    is_granted: bool = True


class ReserveRefused(msgspec.Struct, frozen=True):
    """There is not enough memory.

    rooms: of the devices it could be on, where any one with enough would do. held_by: who has it, for a person.
    """

    lease: int
    rooms: tuple[Room, ...]
    held_by: str


class ReserveFailed(msgspec.Struct, frozen=True):
    """The reservation makes no sense (a device that is not there); waiting would not help."""

    lease: int
    error: BusError


class AskedBack(msgspec.Struct, frozen=True):
    """Somebody more important wants the memory of a reservation."""

    lease: int
    wanted_by: str


class Waiting(msgspec.Struct, frozen=True):
    """A runner waits for its turn to load; `reason` says for whom."""

    runner: int
    reason: str


class Loaded(msgspec.Struct, frozen=True):
    """A runner serves its model. The bytes are measured, as in Terms; 0 when nothing measures them."""

    runner: int
    context_tokens: int | None = None
    memory_bytes: int = 0
    beside_bytes: int = 0


class LoadFailed(msgspec.Struct, frozen=True):
    """A runner could not load its model and says why. `instead`: how it may be tried again, for the same requests."""

    runner: int
    error: BusError
    instead: Terms | None = None


class Busy(msgspec.Struct, frozen=True):
    """A runner's number of answers in flight changed."""

    runner: int
    in_flight: int


class Exited(msgspec.Struct, frozen=True):
    """A runner's process ended; `how` says it for a person ("exit code 0", "signal 9")."""

    runner: int
    how: str


class Leaving(msgspec.Struct, frozen=True):
    """The service ends and takes every runner along."""


class Tick(msgspec.Struct, frozen=True):
    """Time passed; due at `Scheduler.next_wakeup`."""


Event = (
    Started
    | Described
    | Arrived
    | Preload
    | Expected
    | Ended
    | Lost
    | UnloadAsked
    | Reserved
    | ReserveRefused
    | ReserveFailed
    | AskedBack
    | Waiting
    | Loaded
    | LoadFailed
    | Busy
    | Exited
    | Leaving
    | Tick
)


# Effects ------------------------------------------------------------------------------------------------------------


class Spawn(msgspec.Struct, frozen=True):
    """Start a runner process."""

    runner: int


class Reserve(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for memory under the number `lease`; answered by Reserved, ReserveRefused or ReserveFailed."""

    lease: int
    model: str
    device: str | None
    memory_bytes: int
    beside_bytes: int
    priority: int
    is_preemptible: bool


class Resize(msgspec.Struct, frozen=True):
    """A reservation is as large as was measured."""

    lease: int
    memory_bytes: int
    beside_bytes: int


class Rank(msgspec.Struct, frozen=True):
    """A reservation matters otherwise than when it was asked for, as in Reserve."""

    lease: int
    priority: int
    is_preemptible: bool


class Release(msgspec.Struct, frozen=True):
    """Give a reservation back, granted or still asked for."""

    lease: int


class Load(msgspec.Struct, frozen=True):
    """Tell a runner its model. `device` is the one its memory is on; `lease` None for a remote model."""

    runner: int
    model: str
    context_tokens: int | None
    device: str | None = None
    lease: int | None = None


class Drain(msgspec.Struct, frozen=True):
    """Tell a runner to take nothing new, finish, and end."""

    runner: int


class Kill(msgspec.Struct, frozen=True):
    """End a runner's process now."""

    runner: int


class Forward(msgspec.Struct, frozen=True):
    """Hand a request to the runner of its model. `waited_s` since it arrived, 0 when the model was loaded."""

    request: int
    runner: int
    waited_s: float


class Done(msgspec.Struct, frozen=True):
    """A load or unload is accomplished; a preload is under way."""

    request: int
    took_s: float


class Refuse(msgspec.Struct, frozen=True):
    """Answer a request with an error."""

    request: int
    error: BusError


# Why a model leaves memory: somebody asked, others need its room, nobody used it, its process died or hung.
Cause = Literal["", "asked", "room", "idle", "crash"]


class Announce(msgspec.Struct, frozen=True):
    """Publish the event `model.<what>`. cause: why a model that was in memory leaves it, "" for everything else."""

    what: Literal["loading", "loaded", "unloaded", "evicted", "failed", "preloaded"]
    model: str
    reason: str
    runner: int | None = None
    took_s: float | None = None
    device: str | None = None
    memory_bytes: int | None = None
    cause: Cause = ""


class Judged(msgspec.Struct, frozen=True):
    """A load ahead of need was right (somebody used the model), or lay unused for `idle_s` and left."""

    model: str
    is_hit: bool
    idle_s: float


Effect = Spawn | Reserve | Resize | Rank | Release | Load | Drain | Kill | Forward | Done | Refuse | Announce | Judged
