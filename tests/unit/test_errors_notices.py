"""Whom to bother about errors, how rarely, and in which words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.settings import SettingsError, load_settings
from schemas.bodies.control import DeadLetter, ErrorReport
from schemas.bodies.errors import ErrorGroup
from workers.errors import reading, wording
from workers.errors.notices import Notice, Notices

NASTY = "bad\r\nX-Evil: 1\x1b[2J <b>&é"


def group(named: str = "5f0c2b66a1d04e55", **more: Any) -> ErrorGroup:
    plain = {
        "fingerprint": named,
        "service": "memory",
        "severity": "error",
        "kind": "OSError",
        "message": "no room",
        "state": "open",
        "count": 1,
        "per_minute": 0.1,
        "first_at": 1.0,
        "last_at": 2.0,
    }
    return ErrorGroup(**{**plain, **more})


# When


@pytest.mark.parametrize(
    ("severity", "kind", "change", "is_wanted"),
    [
        ("error", "", "opened", True),
        ("critical", "", "reopened", True),
        ("error", "", "worse", True),
        ("warning", "", "opened", False),
        ("critical", "", "", False),
        ("error", reading.DEAD_LETTER, "", True),
    ],
)
def test_what_is_worth_telling(severity: Any, kind: str, change: Any, is_wanted: bool) -> None:
    """What is new, comes again or is worse, and every dead letter; bad enough."""
    assert Notices("error", 300).wants(severity, kind, change) is is_wanted


def test_a_group_is_told_once_in_a_while_and_then_what_came_since() -> None:
    """What waited is told when the time is over, without another error."""
    notices = Notices("error", 300)

    assert notices.on_change(group(), "opened", 0) == Notice("opened", group())
    assert notices.on_change(group(count=2), "", 10) is None
    assert notices.on_change(group(count=5), "reopened", 299) is None
    assert notices.due(299) == []
    assert notices.due(300) == [group().fingerprint]
    assert notices.on_due(group(count=7), group().fingerprint, 300) == Notice("again", group(count=7), 6)
    assert notices.due(1_000) == []
    assert notices.on_change(group(count=9), "reopened", 1_000) == Notice("reopened", group(count=9))


@pytest.mark.parametrize("now", [None, group(state="acknowledged"), group(state="muted")])
def test_what_waited_is_not_told_when_somebody_has_seen_it(now: ErrorGroup | None) -> None:
    """Nor when it is gone."""
    notices = Notices("error", 300)
    notices.on_change(group(), "opened", 0)
    notices.on_change(group(), "", 1)

    assert notices.on_due(now, group().fingerprint, 300) is None


def test_a_muted_group_is_not_told() -> None:
    """Of a dead letter neither."""
    assert Notices("error", 300).on_change(group(state="muted"), "", 0) is None


def test_past_the_cap_it_is_told_once_how_many_were_held_back() -> None:
    """A flood of kinds of errors is 20 notifications and one."""
    notices = Notices("error", 300, per_minute=20)

    told = [notices.on_change(group(f"{number:016x}"), "opened", number / 10) for number in range(100)]

    assert sum(notice is not None for notice in told) == 20
    assert notices.held_back(30) is None
    assert notices.held_back(61) == Notice("held back", None, 80)
    assert notices.held_back(62) is None


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 20)), max_size=200))
def test_never_more_than_the_cap_in_any_minute(steps: list[tuple[int, float]]) -> None:
    """Whatever comes when; and no group more often than once in `every_s`."""
    notices, now, told = Notices("error", 100, per_minute=5), 0.0, list[tuple[float, str]]()

    def note(notice: Notice | None) -> None:
        if notice is not None:
            told.append((now, notice.group.fingerprint if notice.group else ""))

    for number, after_s in steps:
        now += after_s
        note(notices.on_change(group(f"{number:016x}"), "opened", now))
        for named in notices.due(now):
            note(notices.on_due(group(named), named, now))
        note(notices.held_back(now))

    for at, named in told:
        assert sum(at <= other < at + 60 for other, _ in told) <= 5
        assert not named or sum(at <= other < at + 100 for other, same in told if same == named) == 1


# In which words


def test_the_json_of_a_webhook_is_the_group_with_a_headline() -> None:
    """Other programs read the same fields as from error.list."""
    what = wording.post(Notice("reopened", group(), 3), "json")

    body = msgspec.json.decode(what.body)
    assert body["headline"] == "error in memory came again: OSError; no room"
    assert (body["fingerprint"], body["count"], body["occasion"], body["more"]) == (
        group().fingerprint,
        1,
        "reopened",
        3,
    )


def test_slack_gets_a_text() -> None:
    """In which nothing of the error is markup."""
    what = wording.post(Notice("opened", group(message=NASTY)), "slack")

    assert "<b>" not in msgspec.json.decode(what.body)["text"]
    assert "&lt;b&gt;&amp;é" in msgspec.json.decode(what.body)["text"]


@pytest.mark.parametrize(
    "notice", [Notice("opened", group(message=NASTY, severity="critical")), Notice("held back", None, 4)]
)
def test_ntfy_gets_headers_that_hold_one_line(notice: Notice) -> None:
    """An error's text never ends a header."""
    what = wording.post(notice, "ntfy")

    assert all(value.isascii() and value.isprintable() for value in what.headers.values())
    assert what.headers["Priority"] == ("5" if notice.group else "4")


# What is read


@pytest.mark.parametrize(
    ("subject", "body", "service", "severity", "message"),
    [
        ("error.stove.warning", "too hot", "stove", "warning", "too hot"),
        ("error.stove.warning", b"\xff\xfe", "stove", "warning", "��"),
        ("error.stove.warning", None, "stove", "warning", "(no text)"),
        ("error.stove", 7, "stove", "error", "7"),
        ("error.stove.left.critical", {"msg": "out"}, "stove", "critical", "out"),
        ("error.stove.error", {"severity": "CRITICAL", "service": "oven", "reason": "x"}, "oven", "critical", "x"),
        ("error.stove.error", {"severity": 5, "message": ["a"]}, "stove", "error", "{'severity': 5, 'message': ['a']}"),
        ("error.deadletter", {"no": "letter"}, "broker", "error", "{'no': 'letter'}"),
    ],
)
def test_what_is_no_report_becomes_one(subject: str, body: Any, service: str, severity: str, message: str) -> None:
    """With what can be read of it."""
    report = reading.read(subject, 5.0, lambda: body)

    assert report is not None
    assert (report.service, report.severity, report.message, report.at) == (service, severity, message, 5.0)


def test_a_dead_letter_is_a_report_of_its_own_kind() -> None:
    """Of the service that could not finish the request."""
    letter = DeadLetter(id="ab" * 16, subject="memory.kv.get", reason="worker_lost", message="gone", attempts=3, at=1.0, service="memory")  # fmt: skip

    report = reading.read("error.deadletter", 5.0, lambda: msgspec.to_builtins(letter))

    assert report is not None
    assert (report.service, report.kind, report.subject, report.request_id) == ("memory", reading.DEAD_LETTER, "memory.kv.get", "ab" * 16)  # fmt: skip


def test_its_own_events_are_not_counted() -> None:
    """A group that opens is no error."""
    assert reading.read("error.opened", 1.0, dict) is None
    assert reading.read("error.reopened", 1.0, lambda: b"x") is None


def test_what_strangers_publish_is_kept_without_its_secrets() -> None:
    """It is shown to people and posted to webhooks; programs that are not ours hide nothing themselves."""
    body = {"message": "no entry with password=hunter2", "traceback": "http://me:hunter2@pc2/", "password": "hunter2"}
    told: dict[str, Any] = {"service": "door", "severity": "error", "kind": "", "message": "shut", "context": {}}
    told["context"] = {"door": {"api_key": "hunter2", "number": 3}}

    made = reading.read("error.door.error", 1.0, lambda: body)
    declared = reading.read("error.door.error", 1.0, lambda: told)

    assert made is not None and declared is not None
    assert made.message == "no entry with password=(hidden)"
    assert declared.context == {"door": {"api_key": "(hidden)", "number": 3}}
    assert "hunter2" not in f"{made} {declared}"


def test_what_is_kept_of_a_report_is_bounded() -> None:
    """Long texts are cut, a context that is too long or cannot be sent on is left out."""
    report = ErrorReport(service="s", severity="error", kind="k" * 9_999, message="m" * 99_999, traceback="t" * 99_999)

    for context in ({"x": "y" * 99_999}, {"x": 2**70}):
        cut = reading.trimmed(msgspec.structs.replace(report, context=context, pid=2**70, at=float("inf")), 1.0)
        assert (cut.pid, cut.at) == (0, 1.0)
        assert set(cut.context) == {"omitted"}
        assert len(msgspec.msgpack.encode(cut)) < 30_000


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["service", "severity", "message", "kind", "count", "at", "context"]) | st.text(),
            inner,
            max_size=5,
        )
    ),
    max_leaves=8,
)


@given(st.sampled_from(["error.a.error", "error.a", "error.deadletter", "error.a.b.c.d"]), ANYTHING)
def test_any_body_makes_a_report_that_can_be_kept(subject: str, body: Any) -> None:
    """Whatever somebody publishes below error."""
    report = reading.read(subject, 1.0, lambda: body)

    assert report is not None
    assert 1 <= len(report.service) <= 64
    assert len(msgspec.msgpack.encode(report)) < 200_000


@pytest.mark.parametrize("address", ["http://pc2/hunter2-ä", "ftp://pc2/hunter2", "http://me:hunter2@pc2/x"])
def test_an_address_that_cannot_be_posted_to_is_refused_unseen(address: str) -> None:
    """At the start, and not at the first error; it may hold a secret, so that it is not said."""
    with pytest.raises(SettingsError, match=r"errors\.webhooks holds what is no address") as refused:
        load_settings(overrides={"errors.webhooks": address})

    assert "hunter2" not in str(refused.value)
