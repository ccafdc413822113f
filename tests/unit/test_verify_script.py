"""The checklist of a running system: what becomes of a line, what it shows, and its command line."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from schemas.errors import NotFound

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def verify() -> Iterator[ModuleType]:
    """The script as a module, with its parts beside it."""
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield import_module("verify")
    finally:
        sys.path[:] = before


class Bus:
    """Answers as it was told, and keeps what it was asked."""

    def __init__(self, **replies: Any) -> None:
        self.replies = replies
        self.asked: list[str] = []

    def request(self, subject: str, body: Any, **options: Any) -> Any:
        """The reply, or the error, of a subject; its dots are written as underscores."""
        self.asked.append(subject)
        reply = self.replies.get(subject.replace(".", "_"), {})
        if isinstance(reply, Exception):
            raise reply
        return reply


Lines = Callable[..., list[Any]]


@pytest.fixture
def lines(verify: ModuleType, settings: Any) -> Lines:
    """What comes of checks, asked of a bus."""

    def run(bus: Bus, *checks: Callable[[Any], None]) -> list[Any]:
        checklist = verify.checklist
        group = checklist.Group("group", "", tuple(checklist.Check(check.__name__, check) for check in checks))
        return list(checklist.run([group], verify.Probe(settings, bus, timeout_s=0.5)))

    return run


def test_a_line_shows_what_was_sent_what_came_and_how_long_it_took(lines: Lines) -> None:
    """In one text an exchange."""

    def asks(probe: Any) -> None:
        probe.expect(probe.ask("a.get", {"key": 1})["value"] == 2, "not 2")

    (line, end) = lines(Bus(a_get={"value": 2}), asks)

    assert (line.verdict, line.reason) == ("PASS", "")
    (evidence,) = line.evidence
    assert evidence.startswith('a.get {"key":1} -> {"value":2} (')
    assert evidence.endswith(" ms)")
    assert end.verdict == "PASS"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"value": 3}, "not 2"),
        ({}, "the answer is not of its shape: KeyError: 'value'"),
        ([], "the answer is not of its shape: TypeError"),
        (NotFound("no such thing"), "not_found: no such thing"),
    ],
)
def test_a_line_fails_with_its_reason(lines: Lines, reply: Any, reason: str) -> None:
    """Another answer, another shape, an error: the next line is checked all the same."""

    def asks(probe: Any) -> None:
        probe.expect(probe.ask("a.get")["value"] == 2, "not 2")

    def well(probe: Any) -> None:
        probe.note("well")

    (failed, passed, _) = lines(Bus(a_get=reply), asks, well)

    assert (failed.verdict, passed.verdict) == ("FAIL", "PASS")
    assert failed.reason.startswith(reason)


def test_what_a_failed_line_wrote_is_taken_away(lines: Lines) -> None:
    """The last one first, and none of it is evidence."""

    def writes(probe: Any) -> None:
        probe.afterwards(lambda: probe.ask("a.delete"))
        probe.ask("a.set")
        probe.afterwards(lambda: probe.ask("b.delete"))
        probe.expect(False, "it broke")

    bus = Bus()
    (line, _) = lines(bus, writes)

    assert bus.asked == ["a.set", "b.delete", "a.delete"]
    assert line.verdict == "FAIL"
    assert len(line.evidence) == 1


def test_what_cannot_be_taken_away_fails_the_line(lines: Lines) -> None:
    """Or, where it was kept until the end, the last line."""

    def writes(probe: Any) -> None:
        probe.afterwards(lambda: probe.ask("a.delete"))

    def loads(probe: Any) -> None:
        probe.at_the_end(lambda: probe.ask("a.delete"))

    (written, loaded, end) = lines(Bus(a_delete=NotFound("gone")), writes, loads)

    assert (written.verdict, written.reason) == ("FAIL", "left behind: gone")
    assert (loaded.verdict, end.verdict, end.reason) == ("PASS", "FAIL", "gone")


def test_what_never_comes_is_waited_for_no_longer_than_allowed(lines: Lines) -> None:
    """Only the last look is evidence."""

    def waits(probe: Any) -> None:
        probe.until(lambda: probe.ask("a.list").get("found"), "it never came", within_s=0.12)

    (line, _) = lines(Bus(), waits)

    assert (line.verdict, line.reason) == ("FAIL", "it never came")
    assert len(line.evidence) == 1


def test_every_line_has_a_name_of_its_own(verify: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """And --list prints it, asking nothing."""
    assert verify.main(["--list", "--json"]) == 0

    listed = json.loads(capsys.readouterr().out)
    names = [(line["group"], line["name"]) for line in listed]
    assert len(names) == len(set(names)) > 80
    assert {group for group, _ in names} == {"bus", "memory", "models", "learning", "errors", "rest", "legacy"}


def test_every_replaced_agent_has_a_line(verify: ModuleType) -> None:
    """The checklist and the edge name the same agents; ErrorBus has lines among the errors."""
    from workers.gateway.legacy.agents.roster import roster

    assert {line.agent for line in verify.of_legacy.LINES} == {agent.name for agent in roster()} - {"ErrorBus"}


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--timeout", "0"], ["--timeout", "soon"], ["--unknown"]])
def test_wrong_arguments_end_it_with_2(verify: ModuleType, arguments: list[str]) -> None:
    """Before anything is asked."""
    with pytest.raises(SystemExit) as ended:
        verify.main(arguments)

    assert ended.value.code == 2


def test_wrong_settings_end_it_with_2(verify: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """With the name of the setting."""
    assert verify.main(["--set", "bus.request_port=no"]) == 2
    assert "bus.request_port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "is_here", "reached"),
    [
        ("127.0.0.1", True, "127.0.0.1"),
        ("127.0.0.1", False, ""),
        ("0.0.0.0", True, "127.0.0.1"),
        ("0.0.0.0", False, "elsewhere"),
        ("192.0.2.7", False, "192.0.2.7"),
    ],
)
def test_a_port_is_reached_where_it_is_bound(verify: ModuleType, host: str, is_here: bool, reached: str) -> None:
    """The loopback address of another machine is reached from nowhere else."""
    probe = import_module("verify_parts.probe")

    assert probe.reached_at(host, socket.gethostname() if is_here else "elsewhere") == reached


def test_a_plain_socket_gives_up_on_a_peer_that_says_nothing(verify: ModuleType) -> None:
    """Also on one that is not there, and on one that speaks something else."""
    plain = import_module("verify_parts.plain")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(plain.NoAnswer, match=r"no greeting in 0\.1 s"):
            plain.PlainSocket("REQ", "127.0.0.1", port, timeout_s=0.1).__enter__()
    with pytest.raises(plain.NoAnswer, match=str(port)):
        plain.PlainSocket("REQ", "127.0.0.1", port, timeout_s=0.1).__enter__()
