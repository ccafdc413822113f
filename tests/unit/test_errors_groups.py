"""Groups of errors: what they count, their states, and who goes when there are too many."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.bodies.control import ErrorReport
from schemas.bodies.errors import ErrorList
from schemas.errors import BadRequest, NotFound
from workers.errors.counts import Counts
from workers.errors.group import Group, Now
from workers.errors.groups import OTHER, SERVICES_MAX, Groups

AT = 1_800_000_000.0


def now(after_s: float = 0.0) -> Now:
    return Now(AT + after_s, 1_000.0 + after_s)


def report(message: str = "no row", **more: Any) -> ErrorReport:
    return ErrorReport(**{"service": "memory", "severity": "error", "kind": "KeyError", "message": message, **more})


def words(number: int) -> str:
    """A message of its own for each number."""
    return "".join(chr(97 + int(digit)) for digit in str(number)) + " failed"


def kept(groups: Groups) -> list[Group]:
    """The groups as they come back from a file."""
    return [msgspec.msgpack.decode(msgspec.msgpack.encode(group), type=Group) for group in groups]


# Counting


def test_like_errors_are_one_group_with_all_of_them_counted() -> None:
    """A report counts for as many failures as it says."""
    groups = Groups(100)

    changes = [groups.note(report(f"no row {number}", count=count), AT + number, now()).change for number, count in ((1, 1), (2, 5))]  # fmt: skip

    group = groups.list(ErrorList(), now(10)).groups[0]
    assert changes == ["opened", ""]
    assert (group.count, group.message, group.first_at, group.last_at) == (6, "no row 2", AT + 1, AT + 2)


def test_counts_stay_within_what_can_be_kept() -> None:
    """A stranger may say that a report stands for 2**53 failures, again and again."""
    groups = Groups(100)

    for _ in range(3):
        groups.note(report(count=2**53), AT, now())

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(next(iter(groups))), type=Group).count == 2**53
    assert groups.stats(3600, now()).count == 2**53


def test_a_group_is_as_bad_as_its_worst() -> None:
    """And says so when it becomes worse."""
    groups = Groups(100)

    changes = [groups.note(report(severity=severity), AT, now()).change for severity in ("warning", "info", "critical", "error")]  # fmt: skip

    assert changes == ["opened", "", "worse", ""]
    assert next(iter(groups)).severity == "critical"


@given(st.lists(st.tuples(st.floats(0, 400 * 86_400), st.integers(1, 1000)), max_size=60))
def test_counts_over_any_span_hold_what_was_counted_in_it(events: list[tuple[float, int]]) -> None:
    """At least those within the span, at most those within the span and one bucket more."""
    counts = Counts({}, {}, {})
    ordered = sorted(events)
    for after_s, count in ordered:
        counts.add(AT + after_s, count)
    end = ordered[-1][0] if ordered else 0.0

    for span_s, bucket_s in ((600.0, 60.0), (7_200.0, 60.0), (86_400.0, 3_600.0), (300 * 86_400.0, 86_400.0)):
        exact = sum(count for after_s, count in ordered if after_s > end - span_s)
        at_most = sum(count for after_s, count in ordered if after_s > end - span_s - bucket_s)
        assert exact <= counts.over(span_s, AT + end) <= at_most


def test_counts_stay_small_whatever_the_clock_does() -> None:
    """Years of events, forwards and backwards."""
    counts = Counts({}, {}, {})

    for jump in (0, 10**9, -(10**9), 5 * 10**8, 0):
        for minute in range(0, 60 * 24 * 30, 7):
            counts.add(AT + jump + minute * 60, 1)

    assert len(counts.minutes) <= 121
    assert len(counts.hours) <= 337
    assert len(counts.days) <= 3_661
    assert counts.over(600, AT + 60 * 24 * 30 * 60) > 0


def test_the_last_24_hours_end_with_this_one() -> None:
    """For a small graph."""
    counts = Counts({}, {}, {})
    counts.add(AT - 3_600, 2)
    counts.add(AT, 3)

    assert counts.last_hours(AT)[-2:] == [2, 3]
    assert len(counts.last_hours(AT)) == 24


# States


def test_an_acknowledged_group_reopens_when_it_comes_again() -> None:
    """It is gone from the list between the two."""
    groups = Groups(100)
    named = groups.note(report(), AT, now()).group.fingerprint

    assert groups.acknowledge(named[:6], "ada", "seen", now(1)) == 1
    assert groups.acknowledge(named, "ada", "", now(1)) == 0
    assert groups.list(ErrorList(), now(1)).groups == []

    assert groups.note(report(), AT + 2, now(2)).change == "reopened"
    group = groups.list(ErrorList(), now(2)).groups[0]
    assert (group.state, group.reopened_at, group.acknowledged_at, group.note) == ("open", AT + 2, None, "seen")


def test_a_muted_group_is_counted_and_neither_listed_nor_told_until_its_time() -> None:
    """Then it is open again."""
    groups = Groups(100)
    named = groups.note(report(), AT, now()).group.fingerprint
    groups.mute(named, 60, "", now())

    assert groups.note(report(severity="critical"), AT + 1, now(1)).change == ""
    assert groups.list(ErrorList(), now(59)).groups == []
    assert groups.list(ErrorList(state="muted"), now(59)).groups[0].count == 2
    assert groups.list(ErrorList(state="any"), now(59)).total == groups.list(ErrorList(state=None), now(59)).total == 1
    assert groups.list(ErrorList(), now(60)).groups[0].state == "open"


@pytest.mark.parametrize("jump_s", [-(10**6), -3_600, 3_600, 10**6])
def test_a_mute_does_not_follow_a_clock_that_is_set(jump_s: float) -> None:
    """Sixty seconds are sixty seconds."""
    groups = Groups(100)
    named = groups.note(report(), AT, now()).group.fingerprint
    groups.mute(named, 60, "", now())

    def after(seconds: float) -> Now:
        return Now(AT + jump_s + seconds, now(seconds).steady)

    assert groups.find(named).state(after(59)) == "muted"
    assert groups.find(named).told(after(50)).muted_until_at == AT + jump_s + 60
    assert groups.find(named).state(after(61)) == "open"


@pytest.mark.parametrize(("away_s", "state"), [(30, "muted"), (61, "open"), (-(10**6), "muted")])
def test_a_mute_goes_on_after_a_restart_for_what_is_left_of_it(away_s: float, state: str) -> None:
    """And, where the clock went back meanwhile, for no longer than was asked."""
    groups = Groups(100)
    groups.mute(groups.note(report(), AT, now()).group.fingerprint, 60, "", now())
    later = Now(AT + away_s, 5.0)

    again = Groups(100)
    again.restore(kept(groups), [], later)

    group = next(iter(again))
    assert group.state(later) == state
    assert group.state(Now(later.wall + 60, later.steady + 60)) == "open"


def test_all_of_a_service_is_acknowledged_at_once() -> None:
    """Others stay; a service without errors is said to be one."""
    groups = Groups(100)
    for number, service in enumerate(("memory", "memory", "model")):
        groups.note(report(words(number), service=service), AT, now())

    assert groups.acknowledge_all("memory", "", "", now()) == 2
    assert [group.service for group in groups.list(ErrorList(), now()).groups] == ["model"]
    with pytest.raises(NotFound, match="'nobody' has no group"):
        groups.acknowledge_all("nobody", "", "", now())


# Finding


def test_an_unknown_or_ambiguous_fingerprint_says_so() -> None:
    """With the fingerprints that fit."""
    groups = Groups(1_000)
    for number in range(200):
        groups.note(report(words(number)), AT, now())
    start = next(named[:1] for named in groups.names())

    with pytest.raises(BadRequest, match=r"groups: .* and .* more; give more digits"):
        groups.find(start)
    with pytest.raises(NotFound, match="begins with 'zzzz'"):
        groups.find("zzzz")


def test_a_list_is_filtered_and_goes_on_where_it_ended() -> None:
    """By service, severity, words and time; the newest first."""
    groups = Groups(100)
    for number in range(5):
        groups.note(report(words(number), severity="warning" if number else "critical"), AT + number, now())

    first = groups.list(ErrorList(limit=2), now())
    second = groups.list(ErrorList(limit=2, before_at=first.groups[-1].last_at), now())

    assert [group.last_at - AT for page in (first, second) for group in page.groups] == [4, 3, 2, 1]
    assert first.total == second.total == 5
    assert groups.list(ErrorList(severity="error"), now()).total == 1
    assert groups.list(ErrorList(text="KEYERROR"), now()).total == 5
    assert groups.list(ErrorList(since_at=AT + 3), now()).total == 2
    assert groups.list(ErrorList(service="model"), now()).total == 0


def test_groups_that_did_not_come_for_long_are_forgotten() -> None:
    """A store is told which."""
    groups = Groups(100)
    old = groups.note(report("old"), AT, now()).group.fingerprint
    groups.note(report("new"), AT + 100, now())

    assert groups.forget_unseen(50, now(100)) == 1
    assert groups.gone == {old}
    assert old not in groups.changed


# Too many


def test_a_flood_of_new_groups_does_not_push_out_those_that_come_often() -> None:
    """Neither of its own service nor of others."""
    groups = Groups(100)
    often = [groups.note(report("often", service=service), AT, now()).group.fingerprint for service in ("memory", "model") for _ in range(3)]  # fmt: skip
    once = groups.note(report("once", service="learning"), AT, now()).group.fingerprint

    for number in range(2_000):
        groups.note(report(words(number)), AT + number, now())

    assert len(groups) <= 27
    assert {*often, once} <= set(groups.names())


def test_a_flood_of_services_does_not_push_out_what_matters() -> None:
    """Names that nobody knew share one part of the room, and one name in the figures."""
    groups = Groups(100, known_services={"memory"})
    often = [groups.note(report("often"), AT, now()).group.fingerprint for _ in range(3)]
    marked = groups.note(report("marked"), AT, now()).group.fingerprint
    groups.mute(marked, 3600, "", now())

    reporters = {groups.note(report(service=f"s{number}"), AT + number, now()).reporter for number in range(3_000)}

    assert len(reporters) == SERVICES_MAX + 1
    assert OTHER in reporters
    assert len(groups) <= 100
    assert {*often, marked} <= set(groups.names())
    assert len(groups.stats(10**6, now(3_000)).services) <= SERVICES_MAX + 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("note"), st.integers(0, 40), st.sampled_from(["a", "b", "c"])),
            st.tuples(st.sampled_from(["ack", "mute", "unmute", "forget"]), st.integers(0, 40), st.just("")),
            st.tuples(st.just("restart"), st.just(0), st.just("")),
        ),
        max_size=150,
    ),
    st.integers(4, 30),
)
def test_whatever_happens_the_groups_stay_whole(steps: list[tuple[str, int, str]], most: int) -> None:
    """Bounded; what a store is told and what it holds agree; tallies count every report, also of groups that went."""
    groups, counted, stored = Groups(most), 0, dict[str, bytes]()

    def commit() -> None:
        for named in groups.gone:
            stored.pop(named, None)
        stored.update({named: msgspec.msgpack.encode(group) for named, group in groups.changed.items()})
        groups.gone, groups.changed = set(), {}

    for number, (step, index, service) in enumerate(steps):
        present = now(number)
        names = sorted(groups.names())
        if step == "note":
            groups.note(report(words(index), service=service), present.wall, present)
            counted += 1
        elif step == "restart":
            commit()
            again = Groups(most)
            again.restore([msgspec.msgpack.decode(body, type=Group) for body in stored.values()], list(groups._tallies.values()), present)  # fmt: skip
            assert again.states(present) == groups.states(present)
            groups = again
        elif names:
            named = names[index % len(names)]
            if step == "ack":
                groups.acknowledge(named, "", "", present)
            elif step == "forget":
                groups.forget(named)
            else:
                groups.mute(named, 20 if step == "mute" else 0, "", present)
        if number % 7 == 0:
            commit()
            assert set(stored) == set(groups.names())

    end = now(len(steps))
    assert len(groups) <= most
    assert sum(groups.states(end).values()) == len(groups) == groups.list(ErrorList(state=None, limit=1000), end).total
    assert groups.stats(86_400, end).count == counted
