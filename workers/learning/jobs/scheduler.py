"""Which job runs when: a pure core, `handle(event, at) -> effects`, that knows no process, clock, disk or bus.

    Submitted --> queued --Run--> running --Ended(trained)--> queued, for the gate --Run--> running --Ended(done)--> gone
                    ^                |
                    |                +--Ended(stopped | refused | memory | lost | away)--+--> Finish(stopped | failed)
                    +---------------------------- Queue, with a reason -----------------+

What always holds, whatever the events:
- No device has two jobs, and no job runs twice.
- A training is halted as soon as the day's seconds are used up; none begins on a day without seconds left.
- Every job is queued with a reason, runs, or has left by exactly one Finish or Ended(done).
- A job that waits gains one level of priority every AGE_S: none waits for ever behind later ones.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal, NamedTuple

import msgspec

from workers.learning.jobs.decisions import (
    GATE,
    Asked,
    AskedBack,
    Began,
    Changed,
    Effect,
    Ended,
    Event,
    Finish,
    Freed,
    Halt,
    Instant,
    Job,
    Policy,
    Queue,
    Run,
    Submitted,
    Urgent,
    Withdrawn,
)
from workers.learning.jobs.windows import day_ends_at, local_day

# Seconds of waiting worth one level of priority: between the lowest and the highest lies one day.
AGE_S: Final = 6 * 3_600.0

# Models that are asked for so long, never idle in between, have people before them: training yields.
BUSY_S: Final = 60.0

# Tries in a row without a new checkpoint after which a job that ran out of memory, or whose process died, has failed.
FAILURES: Final = 3

# Seconds before the next try, doubled with each failure up to the second number. Memory that was refused is usually held
# by a model for minutes, and its release is heard of; a training that ran out of memory needs others to leave first.
_AGAIN: Final = {
    "refused": (5.0, 60.0),
    "memory": (60.0, 960.0),
    "lost": (10.0, 160.0),
    "away": (5.0, 300.0),
}

# Whoever asked for the memory back gets so many seconds to take it.
_YIELD_S: Final = 10.0

# Of a job that is to run again, by whether others hold the memory it needs.
_STATES: Final[dict[bool, Literal["queued", "waiting"]]] = {False: "queued", True: "waiting"}

# Days whose seconds are remembered here: today's, and those around it while a clock is set.
_DAYS: Final = 4


class Closed(NamedTuple):
    """Why no training may begin. opens_at: epoch seconds, where it is known."""

    reason: str
    opens_at: float | None = None


class _Entry:
    """A job with what became of it so far. devices: empty while it waits. halted: why it was told to stop."""

    def __init__(self, job: Job, reason: str) -> None:
        self.job = job
        self.reason = reason
        self.devices: tuple[str, ...] = ()
        self.is_training = False
        self.halted = ""
        self.withdrawn = ""
        self.asked_back = ""
        self.not_before = float("-inf")
        self.is_refused = False
        self.refusals = 0
        self.spent_s = 0.0

    @property
    def is_running(self) -> bool:
        return bool(self.devices)


class Scheduler:
    """The decision core. Feed it every event with an `at` whose steady part never goes back; carry out its effects.

    spent: seconds of training by local day, as they were when the service last ended.
    """

    def __init__(self, policy: Policy, spent: dict[str, float]) -> None:
        self._policy = policy
        self._spent = dict(spent)
        self._entries: dict[str, _Entry] = {}
        self._charged_at: float | None = None
        self._asked_at: float | None = None
        self._busy_since = 0.0
        self._effects: list[Effect] = []

    def handle(self, event: Event, at: Instant) -> list[Effect]:
        """Take one event; return what has to be done about it, in order."""
        self._effects = []
        self._charge(at)
        self._take(event, at)
        for entry in self._entries.values():
            if entry.is_running and not entry.halted and (reason := self._must_halt(entry, at)):
                entry.halted = reason
                self._effects.append(Halt(entry.job.job_id, reason))
        for entry in sorted(self._entries.values(), key=lambda one: _rank(one.job, at.wall)):
            if not entry.is_running and not self._hindrance(entry, at).reason:
                self._run(entry)
        return self._effects

    # What others ask

    def running(self) -> list[str]:
        """Jobs that run, the oldest first."""
        return [name for name, entry in self._entries.items() if entry.is_running]

    def queued(self, at: Instant) -> list[str]:
        """Jobs that wait, in the order in which they would run."""
        waiting = [entry.job for entry in self._entries.values() if not entry.is_running]
        return [job.job_id for job in sorted(waiting, key=lambda job: _rank(job, at.wall))]

    def reason(self, job_id: str, at: Instant) -> str:
        """Why a job waits, or is being stopped; "" for one that runs or is not known."""
        entry = self._entries.get(job_id)
        if entry is None:
            return ""
        if entry.is_running:
            return f"stops at a checkpoint: {entry.halted}" if entry.halted else ""
        hindrance = self._hindrance(entry, at).reason
        if entry.reason and entry.reason not in hindrance:
            return f"{entry.reason}; {hindrance}" if hindrance else entry.reason
        return hindrance

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of training by local day, of the last days."""
        return dict(self._spent)

    def spent_s(self, at: Instant) -> float:
        """Seconds of training today."""
        return self._spent.get(local_day(at.wall, self._policy.zone), 0.0)

    def closed(self, at: Instant) -> Closed:
        """Why a job that is not urgent could not begin now; an empty reason when it could."""
        return self._closed(at, is_now=False)

    def is_near(self, at: Instant) -> bool:
        """Whether a training runs or may begin any moment: worth holding its libraries in memory."""
        for entry in self._entries.values():
            if not entry.job.is_trained and (entry.is_running or not self._shut(at, is_now=entry.job.is_now).reason):
                return True
        return False

    # Events

    def _take(self, event: Event, at: Instant) -> None:
        match event:
            case Submitted(job, reason):
                new = self._entries.setdefault(job.job_id, _Entry(job, reason))
                if not new.is_running and not job.is_trained and self._is_used_up(new):
                    # The service was killed between its last second and its end.
                    self._finish(new, "stopped", "it has trained as long as it may")
            case Withdrawn(job_id, reason):
                self._on_withdrawn(job_id, reason)
            case Urgent(job_id):
                if entry := self._entries.get(job_id):
                    entry.job = msgspec.structs.replace(entry.job, is_now=True)
            case Changed(policy):
                self._policy = policy
            case Asked():
                self._on_asked(at)
            case AskedBack(job_id, reason):
                if (entry := self._entries.get(job_id)) and entry.is_running:
                    entry.asked_back = reason
            case Freed():
                self._try_refused_again()
            case Began(job_id):
                if (entry := self._entries.get(job_id)) and entry.is_running:
                    entry.is_training = True
            case Ended():
                self._on_ended(event, at)

    def _on_withdrawn(self, job_id: str, reason: str) -> None:
        entry = self._entries.get(job_id)
        if entry is None:
            return
        if entry.is_running:
            entry.withdrawn = reason or "stopped by request"
        else:
            self._finish(entry, "stopped", reason or "stopped by request")

    def _on_asked(self, at: Instant) -> None:
        if self._asked_at is None or at.steady - self._asked_at >= self._policy.idle_s:
            self._busy_since = at.steady
        self._asked_at = at.steady

    def _try_refused_again(self) -> None:
        for entry in self._entries.values():
            if entry.is_refused and not entry.is_running:
                entry.not_before = float("-inf")

    def _on_ended(self, event: Ended, at: Instant) -> None:
        entry = self._entries.get(event.job_id)
        if entry is None or not entry.is_running:
            return
        halted, asked_back = entry.halted, entry.asked_back
        entry.devices, entry.is_training, entry.halted, entry.asked_back = (), False, "", ""
        # What it held, an earlier job may have been waiting for.
        self._try_refused_again()
        failures = 0 if event.has_progress else entry.job.failures
        if event.how in ("memory", "lost"):
            failures += 1
        entry.job = msgspec.structs.replace(
            entry.job, failures=failures, is_trained=entry.job.is_trained or event.how == "trained"
        )
        if event.how == "done":
            del self._entries[entry.job.job_id]
        elif event.how == "failed":
            self._finish(entry, "failed", event.reason)
        elif entry.withdrawn:
            self._finish(entry, "stopped", entry.withdrawn)
        elif event.how == "stopped" and self._is_used_up(entry):
            self._finish(entry, "stopped", halted)
        elif failures >= FAILURES and event.how in ("memory", "lost"):
            self._finish(entry, "failed", f"{event.reason} ({failures} tries in a row)")
        else:
            self._queue(entry, event, halted, at)
            if asked_back:
                entry.not_before = max(entry.not_before, at.steady + _YIELD_S)

    def _queue(self, entry: _Entry, event: Ended, halted: str, at: Instant) -> None:
        entry.reason = event.reason if event.how != "stopped" else halted or event.reason
        entry.is_refused = event.how == "refused"
        entry.refusals = entry.refusals + 1 if event.how in ("refused", "away") else 0
        entry.not_before = float("-inf")
        if event.how in _AGAIN:
            first, longest = _AGAIN[event.how]
            doublings = max(entry.refusals, entry.job.failures) - 1
            entry.not_before = at.steady + min(first * 2.0 ** max(doublings, 0), longest)
        self._effects.append(Queue(entry.job.job_id, _STATES[entry.is_refused], entry.reason, entry.job.failures))

    def _finish(self, entry: _Entry, state: Literal["stopped", "failed"], reason: str) -> None:
        del self._entries[entry.job.job_id]
        self._effects.append(Finish(entry.job.job_id, state, reason))

    # Decisions

    def _charge(self, at: Instant) -> None:
        """Count the seconds since the last event for what trains."""
        since_s = max(at.steady - self._charged_at, 0.0) if self._charged_at is not None else 0.0
        self._charged_at = at.steady
        day = local_day(at.wall, self._policy.zone)
        for entry in self._entries.values():
            if entry.is_training:
                entry.spent_s += since_s
                self._spent[day] = self._spent.get(day, 0.0) + since_s
        while len(self._spent) > _DAYS:
            del self._spent[min(self._spent)]

    def _is_used_up(self, entry: _Entry) -> bool:
        left = entry.job.budget_left_s
        return left is not None and entry.spent_s >= left

    def _must_halt(self, entry: _Entry, at: Instant) -> str:
        """Why a running job has to stop; "" when it may go on."""
        if entry.withdrawn:
            return entry.withdrawn
        if self._policy.is_paused:
            return "training is paused"
        if entry.job.is_trained:
            return ""
        if entry.asked_back:
            return entry.asked_back
        if self._is_used_up(entry):
            return f"it has trained for {entry.spent_s:.0f} s, as long as it may"
        if reason := self._shut(at, is_now=entry.job.is_now).reason:
            return reason
        return "" if entry.job.is_now else self._busy(at)

    def _hindrance(self, entry: _Entry, at: Instant) -> Closed:
        """Why a waiting job cannot run; an empty reason when it can."""
        if self._policy.is_paused:
            return Closed("training is paused")
        if entry.not_before > at.steady:
            return Closed(f"{entry.reason}; the next try is in {entry.not_before - at.steady:.0f} s")
        if not entry.job.is_trained and (closed := self._closed(at, is_now=entry.job.is_now)).reason:
            return closed
        if not self._choices(entry.job):
            return Closed("the devices of this machine are not known yet")
        return Closed("" if self._free_devices(entry.job) else self._taken(entry.job))

    def _closed(self, at: Instant, *, is_now: bool) -> Closed:
        shut = self._shut(at, is_now=is_now)
        return Closed(self._not_idle(at)) if not shut.reason and not is_now else shut

    def _shut(self, at: Instant, *, is_now: bool) -> Closed:
        """What only time or a person opens: the pause, the day's seconds, the hours."""
        policy = self._policy
        if policy.is_paused:
            return Closed("training is paused")
        if policy.budget_s and self.spent_s(at) >= policy.budget_s:
            words = f"today's {policy.budget_s:g} s of training are used up"
            tomorrow = day_ends_at(at.wall, policy.zone)
            return Closed(words, tomorrow if is_now else policy.windows.opens_at(tomorrow, policy.zone))
        if not is_now and not policy.windows.is_open(at.wall, policy.zone):
            opens_at = policy.windows.opens_at(at.wall, policy.zone)
            return Closed(f"outside the hours of training{self._until(opens_at)}", opens_at)
        return Closed("")

    def _until(self, opens_at: float | None) -> str:
        if opens_at is None:
            return ""
        return f", which begin at {datetime.fromtimestamp(opens_at, self._policy.zone):%Y-%m-%d %H:%M}"

    def _not_idle(self, at: Instant) -> str:
        if self._asked_at is None or not self._policy.idle_s:
            return ""
        silent_s = at.steady - self._asked_at
        if silent_s >= self._policy.idle_s:
            return ""
        return (
            f"a model was asked {silent_s:.0f} s ago, training begins after {self._policy.idle_s:g} s without a request"
        )

    def _busy(self, at: Instant) -> str:
        if self._asked_at is None or not self._not_idle(at) or self._asked_at - self._busy_since < BUSY_S:
            return ""
        return f"models have been in use for {self._asked_at - self._busy_since:.0f} s"

    def _run(self, entry: _Entry) -> None:
        entry.devices = self._free_devices(entry.job)
        entry.reason = ""
        self._effects.append(Run(entry.job.job_id, entry.devices))

    def _free_devices(self, job: Job) -> tuple[str, ...]:
        taken = {device for entry in self._entries.values() for device in entry.devices}
        return next((devices for devices in self._choices(job) if taken.isdisjoint(devices)), ())

    def _choices(self, job: Job) -> list[tuple[str, ...]]:
        """The devices a job could take. Several processes take as many GPUs in a row; on the CPU they share it."""
        if job.is_trained:
            return [(GATE,)]
        return [_devices(first, job.processes) for first in ((job.device,) if job.device else self._policy.devices)]

    def _taken(self, job: Job) -> str:
        wanted = {device for devices in self._choices(job) for device in devices}
        holders = [
            f"job {name} {'is being evaluated' if GATE in wanted else 'has ' + ', '.join(entry.devices)}"
            for name, entry in self._entries.items()
            if not wanted.isdisjoint(entry.devices)
        ]
        return "; ".join(holders)


def _devices(first: str, processes: int) -> tuple[str, ...]:
    if first == "cpu":
        return ("cpu",)
    number = int(first.removeprefix("gpu"))
    return tuple(f"gpu{number + process}" for process in range(processes))


def _rank(job: Job, now: float) -> tuple[int, float, str]:
    """The lowest runs first."""
    levels = int(max(now - job.created_at, 0.0) // AGE_S)
    return job.priority - levels, job.created_at, job.job_id
