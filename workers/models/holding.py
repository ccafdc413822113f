"""What the model scheduler keeps of requests, models and runners, and how it puts its refusals.

Plain state: it decides nothing and knows no clock. Times are seconds of the scheduler's clock.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

import msgspec

from schemas.errors import Conflict, Unprocessable
from workers.models import decisions as say


class Phase(StrEnum):
    """LOADING (told its model) -> LOADED (serves it) -> DRAINING (told to go, or killed)."""

    LOADING = "loading"
    LOADED = "loaded"
    DRAINING = "draining"


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A model that has a runner, as others see it."""

    phase: Phase
    runner: int
    device: str | None
    memory_bytes: int
    in_flight: int
    keep_alive_s: float


class Request(msgspec.Struct):
    """Somebody's wish. terms: how its model is held if it has to be loaded. runner: who has it now."""

    id: int
    model: str
    arrived_at: float
    give_up_at: float
    terms: say.Terms
    is_load: bool = False
    context_tokens: int | None = None
    device: str | None = None
    keep_alive_s: float | None = None
    attempts: int = 0
    runner: int | None = None

    @property
    def has_wish(self) -> bool:
        """It asks for a window or a device of its own."""
        return self.context_tokens is not None or self.device is not None


class Ahead(msgspec.Struct, frozen=True):
    """Why a model is loaded although nobody waits for it.

    "predicted" and "asked" (model.preload) give way to everything; "default" is tried once; "pinned" until it is there.
    """

    kind: Literal["default", "pinned", "asked", "predicted"]
    why: str
    value: float = 1.0
    horizon_s: float | None = None
    request: int | None = None

    @property
    def is_preload(self) -> bool:
        """It counts as a load ahead of need, and gives way to every other one."""
        return self.kind in ("asked", "predicted")


class Runner(msgspec.Struct):
    """A process with a model.

    told_at: when it was told to load. silent_since: when it lost a request, if it has said nothing since. leaving: what
    is announced at its end, and why; cause: the same in one word.
    """

    id: int
    model: str
    phase: Phase
    told_at: float
    terms: say.Terms
    device: str | None
    memory_bytes: int
    lease: int | None
    beside_bytes: int = 0
    context_tokens: int | None = None
    keep_alive_s: float | None = None
    loaded_at: float = 0.0
    last_used: float = 0.0
    in_flight: int = 0
    forwarded: set[int] = msgspec.field(default_factory=set)
    suspect_until: float | None = None
    silent_since: float | None = None
    kill_at: float | None = None
    waits_for: str = ""
    asked_back_by: str = ""
    asked_back_until: float = 0.0
    # Loaded ahead of need (why) and not used yet; of a predicted one, until when it may stay so.
    is_unused: bool = False
    why: str = ""
    unused_until: float | None = None
    leaving: tuple[Literal["unloaded", "evicted", "failed"], str] = ("failed", "")
    cause: say.Cause = ""

    def bytes_on(self, device: str) -> int:
        """What its end frees there. Beside a GPU it is in main memory."""
        if device == say.QUOTA:
            return self.memory_bytes + self.beside_bytes
        return self.memory_bytes if device == self.device else self.beside_bytes if device == "cpu" else 0

    @property
    def is_in_use(self) -> bool:
        """Answers are in flight, or were handed to it a moment ago."""
        return self.in_flight > 0 or bool(self.forwarded)

    @property
    def is_taking(self) -> bool:
        """Requests may be handed to it."""
        return self.phase is Phase.LOADED and self.suspect_until is None

    @property
    def may_go(self) -> bool:
        """Somebody else may have its memory."""
        is_free = self.is_taking and not self.is_in_use
        return is_free and self.terms.is_swappable and not self.terms.is_pinned and not self.terms.is_remote

    @property
    def keep_s(self) -> float:
        """Seconds it may idle, as its load asked or as its terms say; below 0 for good."""
        return self.terms.keep_alive_s if self.keep_alive_s is None else self.keep_alive_s

    @property
    def idle_limit(self) -> tuple[float, str] | None:
        """When it leaves for idling, and the reason; None for never, or not while it is in use."""
        if self.phase is not Phase.LOADED or self.is_in_use or self.terms.is_pinned:
            return None
        limits = []
        keep_s = self.keep_s
        is_expected = self.is_unused and self.unused_until is not None
        if keep_s >= 0 and not is_expected:
            # What is expected to be used later than that would be loaded again and again.
            limits.append((self.last_used + keep_s, f"idle for {keep_s:g} s"))
        if self.terms.max_idle_s > 0:
            limits.append(
                (self.last_used + self.terms.max_idle_s, f"idle for {self.terms.max_idle_s:g} s (max_idle_s)")
            )
        if self.is_unused and self.unused_until is not None:
            idle_s = self.unused_until - self.loaded_at
            limits.append((self.unused_until, f"loaded ahead of need, and nobody asked for it in {idle_s:g} s"))
        return min(limits, default=None)


class Hold(msgspec.Struct):
    """Memory asked for, on the way to a load. `exits`: how many processes had ended when it was asked for."""

    lease: int
    exits: int
    state: Literal["asked", "granted", "refused"] = "asked"
    device: str | None = None
    is_granted: bool = False
    rooms: tuple[say.Room, ...] = ()
    held_by: str = ""
    retry_at: float = 0.0


class Model(msgspec.Struct):
    """A name that is wanted, loaded, or remembered for its deaths. waiting: for a load; unloading: for its end."""

    name: str
    terms: say.Terms
    runner: Runner | None = None
    waiting: list[Request] = []
    unloading: list[Request] = []
    ahead: Ahead | None = None
    hold: Hold | None = None
    quick_deaths: int = 0
    quarantined_until: float = 0.0
    not_ahead_before: float = 0.0
    last_death: str = ""

    @property
    def wish(self) -> Request | None:
        """Of those who wait, the first one who asks for a window or a device of its own: the load is as it says."""
        return next((one for one in self.waiting if one.has_wish), None)

    @property
    def terms_as_wished(self) -> say.Terms:
        """Those of the latest request, with place and size as the first wish has them."""
        if self.wish is None:
            return self.terms
        of_wish = self.wish.terms
        return msgspec.structs.replace(
            self.terms, device=of_wish.device, memory_bytes=of_wish.memory_bytes, beside_bytes=of_wish.beside_bytes
        )

    @property
    def is_forgettable(self) -> bool:
        """Nothing has to be remembered of it."""
        has_part = self.runner or self.waiting or self.unloading or self.ahead or self.hold
        return not has_part and not self.terms.is_pinned and not self.quick_deaths and not self.not_ahead_before


PINNED: Final = Ahead("pinned", "pinned, ahead of need")


def differs(request: Request, runner: Runner) -> bool:
    """The request asks for another window or device than the model is loaded with, as far as that is known."""
    is_known = runner.phase is not Phase.LOADING or runner.context_tokens is not None
    is_other_window = is_known and request.context_tokens not in (None, runner.context_tokens)
    return is_other_window or (request.device is not None and request.device != runner.device)


def loaded_otherwise(request: Request, runner: Runner) -> Conflict:
    """Why a request that differs cannot be served."""
    asked = {"context_tokens": request.context_tokens, "device": request.device}
    there = {"context_tokens": runner.context_tokens, "device": runner.device}
    other = [name for name, value in asked.items() if value is not None and value != there[name]]
    words = " and ".join(f"{name} {there[name]} ({asked[name]} was asked for)" for name in other)
    how = "being loaded" if runner.phase is Phase.LOADING else "loaded"
    return Conflict(f"{runner.model} is {how} with {words}; unload it first", model=runner.model, **there)


def waiting_for(runner: Runner) -> str:
    """For whom its load waits, as the end of a sentence."""
    return f"; {runner.waits_for}" if runner.waits_for else ""


def too_big(model: Model, rooms: tuple[say.Room, ...]) -> Unprocessable:
    """No device could ever hold it."""
    largest = max(rooms, key=lambda room: room.total_bytes)
    return Unprocessable(
        f"{model.name} takes {largest.needed_bytes} bytes, and there are {largest.total_bytes} in all on {largest.device}",
        model=model.name,
        needed_bytes=largest.needed_bytes,
        limit_bytes=largest.total_bytes,
    )


def quarantined(model: Model, now: float) -> Unprocessable:
    """It died too often, too quickly."""
    return Unprocessable(
        f"{model.name} is not loaded any more: {model.quick_deaths} times in a row {model.last_death};"
        f" model.load tries again, and requests do in {model.quarantined_until - now:.0f} s",
        model=model.name,
        retry_in_s=round(model.quarantined_until - now, 1),
    )
