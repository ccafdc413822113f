"""The supervisor's decisions, on a clock made of plain numbers."""

from __future__ import annotations

import itertools
import os
import signal

from bus.settings import EX_CONFIG, SupervisorSettings
from bus.supervisor import Decision, RestartPolicy, Verdict, describe_status, process_stat

SETTINGS = SupervisorSettings(backoff_s=0.2, backoff_max_s=1.0, quick_death_s=5.0, give_up_after=4)
FULL = 1.0 - 1e-12


def deaths(policy: RestartPolicy, *lives_s: float, status: int = 1) -> list[Decision]:
    """What the policy decides after each of several lives, started one second after the last death."""
    now = 1000.0
    decisions = []
    for lived_s in lives_s:
        policy.started(now)
        now += lived_s
        decisions.append(policy.died(now, status))
        now += 1.0
    return decisions


def test_wait_doubles_with_each_quick_death_up_to_its_limit() -> None:
    """A process that cannot live is started less and less often."""
    patient = SupervisorSettings(backoff_s=0.2, backoff_max_s=1.0, quick_death_s=5.0, give_up_after=100)

    waits = [round(decision.wait_s, 6) for decision in deaths(RestartPolicy(patient, lambda: FULL), *[0.1] * 6)]

    assert waits == [0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


def test_wait_is_spread_by_jitter() -> None:
    """Services felled by one cause do not come back in step; none waits less than half."""
    dice = itertools.cycle([0.0, 0.5])

    first, second = deaths(RestartPolicy(SETTINGS, lambda: next(dice)), 0.1, 0.1)

    assert (round(first.wait_s, 6), round(second.wait_s, 6)) == (0.1, 0.3)


def test_gives_up_after_the_set_number_of_quick_deaths_in_a_row() -> None:
    """The last of them is not followed by a start."""
    decisions = deaths(RestartPolicy(SETTINGS), 0.1, 0.1, 0.1, 4.9)

    assert [decision.verdict for decision in decisions] == [Verdict.RESTART] * 3 + [Verdict.GIVE_UP]
    assert decisions[-1].quick_deaths == 4


def test_long_life_forgets_the_quick_deaths_before_it() -> None:
    """Only an unbroken row of quick deaths counts, and the wait starts small again."""
    decisions = deaths(RestartPolicy(SETTINGS, lambda: FULL), 0.1, 0.1, 0.1, 5.0, 0.1, 0.1)

    assert [decision.verdict for decision in decisions] == [Verdict.RESTART] * 6
    assert [round(decision.wait_s, 6) for decision in decisions[3:]] == [0.2, 0.2, 0.4]
    assert [decision.quick_deaths for decision in decisions] == [1, 2, 3, 0, 1, 2]


def test_process_that_lives_long_each_time_is_started_for_ever() -> None:
    """A death a day is no reason to stop the house."""
    decisions = deaths(RestartPolicy(SETTINGS), *[86_400.0] * 1000)

    assert {decision.verdict for decision in decisions} == {Verdict.RESTART}


def test_many_quick_deaths_do_not_overflow_the_wait() -> None:
    """The wait stays at its limit however large the exponent has become."""
    endless = SupervisorSettings(backoff_s=0.2, backoff_max_s=1.0, give_up_after=1000)

    decisions = deaths(RestartPolicy(endless, lambda: FULL), *[0.0] * 999)

    assert round(decisions[-1].wait_s, 6) == 1.0


def test_configuration_error_is_never_restarted() -> None:
    """EX_CONFIG from the child ends the supervisor at once, even after a long life."""
    (decision,) = deaths(RestartPolicy(SETTINGS), 500.0, status=EX_CONFIG)

    assert decision.verdict is Verdict.MISCONFIGURED


def test_status_zero_is_a_death_too() -> None:
    """A service that leaves without being asked is started again."""
    (decision,) = deaths(RestartPolicy(SETTINGS), 0.1, status=0)

    assert decision.verdict is Verdict.RESTART


def test_status_is_described_by_number_or_signal_name() -> None:
    """A person reads SIGSEGV, not -11."""
    assert describe_status(3) == "left with status 3"
    assert describe_status(-signal.SIGSEGV) == "was killed by SIGSEGV"
    assert describe_status(-63) == "was killed by signal 63"


def test_process_stat_reads_this_process() -> None:
    """Parent and group agree with what the system calls say; a process that is not there has none."""
    stat = process_stat(os.getpid())

    assert stat is not None
    assert (stat.parent, stat.group) == (os.getppid(), os.getpgrp())
    assert process_stat(2**22 + 1) is None
