"""Patterns of permissions, their file, the roles, and the commands that write them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.admission import Admission
from bus import permissions, z85
from bus.audit import Auditor, target_of
from bus.cli.app import main
from bus.curve import key_pair
from bus.keys import Keys, UnusableKey
from bus.permissions import BadPermissions, Permissions, of_role, parse, render
from bus.settings import load_settings
from schemas import catalog, subjects
from schemas.bodies.telling import AuditEvent

SUBJECTS = [
    f"{'.'.join(tokens)}{instance}"
    for length in (1, 2, 3)
    for tokens in itertools.product("ab", repeat=length)
    for instance in ("", "@x", "@y")
]
TOKENS = st.sampled_from(["a", "b", "*"])
PATTERNS = st.tuples(st.lists(TOKENS, min_size=1, max_size=3), st.booleans(), st.sampled_from(["", "@x", "@y"])).map(
    lambda parts: f"{'.'.join([*parts[0][: 2 if parts[1] else 3], *(['>'] if parts[1] else [])])}{parts[2]}"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own."""
    monkeypatch.setenv("OLYMPUS_HOME", str(tmp_path))
    return tmp_path


def keys_of(home: Path) -> Keys:
    """Those of the home."""
    return Keys(load_settings("/dev/null", {"home": str(home)}))


# Patterns -------------------------------------------------------------------------------------------------------


@given(PATTERNS, PATTERNS)
def test_pattern_covers_another_only_where_it_matches_all_that_does(pattern: str, other: str) -> None:
    """Held against matching every subject of up to three tokens."""
    under_other = {subject for subject in SUBJECTS if subjects.matches(other, subject)}
    under_both = {subject for subject in under_other if subjects.matches(pattern, subject)}

    if subjects.covers(pattern, other):
        assert under_both == under_other
    if under_both:
        assert subjects.overlaps(pattern, other)
        assert subjects.overlaps(other, pattern)
    assert subjects.covers(pattern, pattern) and subjects.covers(">", other)


@given(st.lists(st.tuples(st.booleans(), PATTERNS), max_size=4), PATTERNS)
def test_what_is_allowed_as_a_pattern_is_allowed_as_each_of_its_subjects(
    entries: list[tuple[bool, str]], asked: str
) -> None:
    """No registration or subscription gets more than single messages would; and what may be partly, is said to be so."""
    allowed = Permissions(serve=tuple(f"{'!' if is_out else ''}{pattern}" for is_out, pattern in entries))
    verdicts = [allowed.may("serve", subject) for subject in SUBJECTS if subjects.matches(asked, subject)]

    if allowed.may_all("serve", asked):
        assert all(verdicts)
    if any(verdicts):
        assert allowed.may_some("serve", asked)


def test_exception_wins_wherever_it_stands() -> None:
    """Also for an instance, and not for a longer subject that only begins alike."""
    allowed = Permissions(request=("!memory.delete", "memory.>"))

    assert allowed.may("request", "memory.kv.get") and allowed.may("request", "memory.deleted")
    assert not allowed.may("request", "memory.delete")
    assert not allowed.may("request", "memory.delete@pc2-17")
    assert not allowed.may("request", "memory")
    assert not allowed.may("request", "memorys.kv.get")
    assert not allowed.may("publish", "memory.kv.get")


# The file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("request >\nask >", "line 2: 'ask' is no action"),
        ("# nothing\n\npublish memory..x", r"line 3, publish: pattern 'memory\.\.x'"),
        ("serve me>mory", "line 1, serve: pattern"),
        ("serve !", "line 1, serve: pattern"),
        ("subscribe !audit.>", "only takes out"),
        ("request " + " ".join(f"a{n}" for n in range(3_000)), "3000 patterns, the most are 2000"),
    ],
)
def test_file_that_is_wrong_says_where(text: str, why: str) -> None:
    """Line and field, and what is allowed instead."""
    with pytest.raises(BadPermissions, match=why):
        parse(text)


def test_file_is_read_as_it_was_written() -> None:
    """Comments, several patterns on a line, actions left out."""
    allowed = Permissions(request=("memory.>", "!memory.restore"), subscribe=("auth.revoked",))

    assert parse(render("pc2", allowed)) == allowed
    assert parse("request memory.> !memory.restore # all but that\nsubscribe auth.revoked\n") == allowed
    assert parse("") == permissions.NOTHING


def test_permissions_go_with_the_key_they_are_of(home: Path) -> None:
    """A file for this user alone; trusted anew, a machine does not come back with what it once was allowed."""
    keys = keys_of(home)
    keys.trust("kiosk", key_pair().public)
    keys.allow("kiosk", Permissions(request=("memory.recall",)))
    path = home / "keys" / "trusted" / "kiosk.allowed"

    assert path.stat().st_mode & 0o777 == 0o600
    assert list(keys.trusted()) == ["kiosk"]
    keys.untrust("kiosk")
    assert not path.exists() and keys.permissions("kiosk") is None


@pytest.mark.parametrize("spoil", ["mode", "size", "folder", "link to nowhere"])
def test_permissions_that_others_could_have_written_allow_nothing(home: Path, spoil: str) -> None:
    """Refused by the reader, and for the broker a key that may do nothing."""
    keys, public = keys_of(home), key_pair().public
    keys.trust("kiosk", public)
    keys.allow("kiosk", Permissions(request=(">",)))
    path = home / "keys" / "trusted" / "kiosk.allowed"
    if spoil == "mode":
        path.chmod(0o666)
    elif spoil == "size":
        path.write_text("#" * (permissions.MAX_BYTES + 1))
    else:
        path.unlink()
        if spoil == "folder":
            path.mkdir()
        else:
            path.symlink_to(home / "gone.allowed")

    with pytest.raises(UnusableKey, match=r"kiosk\.allowed"):
        keys.permissions("kiosk")
    rights = Admission(load_settings("/dev/null", {"home": str(home)})).rights_of(public)
    assert not rights.may("request", "memory.recall")


def test_key_of_two_names_may_do_what_both_allow(home: Path) -> None:
    """A second name, put there by hand, opens nothing."""
    keys, public = keys_of(home), key_pair().public
    for name, pattern in (("one", "memory.>"), ("two", "*.recall")):
        keys.allow(name, Permissions(request=(pattern,)))
        keys.trust(name, public)
    keys.trust("three", public)

    rights = Admission(load_settings("/dev/null", {"home": str(home)})).rights_of(public)

    assert rights.name == "one+three+two"
    assert rights.may("request", "memory.recall")
    assert not rights.may("request", "memory.forget") and not rights.may("request", "model.recall")


# Roles ----------------------------------------------------------------------------------------------------------


def test_reader_may_ask_for_nothing_that_changes_anything() -> None:
    """Whatever operation is added: only those whose scope reads, and what the broker says of itself."""
    reader = of_role("reader")
    assert reader is not None
    allowed = {one for one in catalog.OPERATIONS.values() if reader.may("request", one.subject)}

    assert {"memory.recall", "model.list", "bus.ping"} <= {one.subject for one in allowed}
    assert all(one.scope.endswith(":read") or not one.scope for one in allowed)
    assert {one.audit for one in allowed} <= {"", "export"}
    assert not reader.publish and not reader.serve


@pytest.mark.parametrize("role", ["client", "reader"])
def test_client_and_reader_tell_nothing_and_hear_nothing_of_others(role: permissions.Role) -> None:
    """No event at all may be published; traces, the audit and people's texts stay where they are."""
    allowed = of_role(role)
    assert allowed is not None

    for event in catalog.EVENTS:
        assert not allowed.may("publish", event.pattern.replace("*", "x"))
    for subject in (
        *("bus.trace.request", "audit.sign_in"),
        *("model.answered", "learning.opportunity.found", "memory.suggestion.made"),
    ):
        assert not allowed.may("subscribe", subject)
    for subject in ("deadletter.show", "bus.trace.read", "audit.list"):
        assert not allowed.may("request", subject)
    assert allowed.may("subscribe", "memory.changed.kv")


def test_worker_serves_its_service_and_speaks_for_no_other() -> None:
    """The families of the memory service, its figures and errors; no other service's, and none of the broker's."""
    worker = of_role("worker", ["memory"])
    assert worker is not None

    for subject in (one.subject for one in catalog.OPERATIONS.values() if one.service == "memory"):
        assert worker.may("serve", subject)
    for subject in ("model.chat", "bus.ping", "deadletter.show", "audit.list"):
        assert not worker.may("serve", subject)
    for subject in ("memory.changed.kv", "auth.revoked", "metrics.memory", "error.memory.error", "audit.deletion"):
        assert worker.may("publish", subject)
    for subject in ("metrics.models", "error.models.error", "model.loaded", "bus.stats", "error.deadletter"):
        assert not worker.may("publish", subject)


# Commands -------------------------------------------------------------------------------------------------------


def test_commands_trust_with_a_role_change_and_show_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """trust, allow and list, as a table and as JSON."""
    key = z85.encode(key_pair().public)
    assert main(["keys", "trust", "kiosk", "--role", "client", "--", key]) == 0
    assert keys_of(home).permissions("kiosk") == of_role("client")
    capsys.readouterr()

    assert (
        main(["keys", "allow", "kiosk", "--allow-request", "memory.>", "!memory.restore", "--allow-subscribe", ""]) == 0
    )
    assert main(["keys", "list"]) == 0
    table = capsys.readouterr().out
    assert main(["keys", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["trusted"][0]

    assert "request" in table and "memory.> !memory.restore" in table
    assert listed["allowed"] == {
        "request": ["memory.>", "!memory.restore"], "publish": [], "subscribe": [], "serve": [],
    }  # fmt: skip
    assert main(["keys", "allow", "kiosk", "--role", "all"]) == 0
    assert keys_of(home).permissions("kiosk") is None


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["allow", "nobody", "--role", "all"], "nobody is not trusted here"),
        (["allow", "kiosk"], "say what is allowed"),
        (["allow", "kiosk", "--role", "worker"], "needs --service"),
        (["allow", "kiosk", "--service", "memory"], "goes with --role worker"),
        (["allow", "kiosk", "--allow-serve", "memory..x"], "serve: pattern"),
        (["allow", "kiosk", "--allow-serve", "!memory.x"], "only takes out"),
    ],
)
def test_commands_refuse_what_makes_no_permission(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    """Nothing is changed then, and the error says what would do."""
    keys = keys_of(home)
    keys.allow("kiosk", Permissions(request=("memory.recall",)))
    keys.trust("kiosk", key_pair().public)

    assert main(["keys", *arguments]) == 2
    assert why in capsys.readouterr().err
    assert keys.permissions("kiosk") == Permissions(request=("memory.recall",))


def test_key_is_trusted_by_one_name_only(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second name would be a second set of permissions."""
    key = z85.encode(key_pair().public)
    assert main(["keys", "trust", "one", "--", key]) == 0
    assert main(["keys", "trust", "two", "--", key]) == 2
    assert "one is trusted by that key" in capsys.readouterr().err


# What is told for the audit log ---------------------------------------------------------------------------------


def test_refusals_of_a_kind_are_told_at_once_and_then_summed_up() -> None:
    """Their counts add up to all of them, also when the process leaves, and invented names stay bounded."""
    now, told = [0.0], list[AuditEvent]()
    auditor = Auditor("bus", lambda subject, event: told.append(event), clock=lambda: now[0], wall=lambda: now[0])
    for _ in range(1_000):
        auditor.tell_damped("refusal", actor="kiosk", action="request a", outcome="forbidden")
    assert len(told) == 1

    now[0] = 61.0
    auditor.tell_due()
    assert [event.count for event in told] == [1, 999]
    for number in range(3_000):
        auditor.tell_damped("refusal", actor="kiosk", action=f"request {number}", outcome="forbidden")
    auditor.tell_due(is_last=True)

    assert sum(event.count for event in told) == 4_000
    assert len(told) < 1_100


def test_target_of_a_request_holds_names_and_no_content() -> None:
    """Of every audited operation: no field that holds texts or secrets is among those that are written down."""
    from bus.audit import _TARGET_FIELDS

    content = {"password", "new_password", "token", "refresh_token", "content", "value", "query", "messages", "prompt"}
    assert not content & set(_TARGET_FIELDS)
    operation = catalog.OPERATIONS["auth.user.add"]
    request = operation.request(user_id="ada", password="correct horse", admin=True)
    assert target_of(request) == "user_id=ada admin=True"
    many = catalog.OPERATIONS["memory.get_many"].request(ids=[f"id{n}" for n in range(50)])
    assert len(target_of(many)) <= 200 and "(50)" in target_of(many)
