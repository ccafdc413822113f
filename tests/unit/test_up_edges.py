"""What `olympus up` says of the gateway's ports once everything is ready."""

from __future__ import annotations

from typing import Any

from bus.cli.up import edge_lines
from schemas.bodies.gateway import PortInfo


def port(owner: str, number: int, **more: Any) -> PortInfo:
    """A bound REST port of loopback, unless `more` says otherwise."""
    given = {"purpose": "rest", "protocol": "http", "host": "127.0.0.1", "state": "bound", **more}
    return PortInfo(owner=owner, port=number, **given)


def test_the_pages_that_are_open_are_named_and_a_wildcard_is_reached_over_loopback() -> None:
    """Only services have a page: not health ports, not the HTTP of a replaced agent, not what is taken."""
    ports = [
        port("memory", 7010),
        port("models", 7011, host="0.0.0.0"),
        port("learning", 7012, state="off"),
        port("memory", 7110, purpose="health"),
        port("ErrorBus", 9002),
    ]

    docs = "HTTP, for a browser: http://127.0.0.1:7010/docs http://127.0.0.1:7011/docs"
    assert edge_lines(ports, has_console=True) == ["Web console: http://127.0.0.1:7010/console", docs, ""]
    assert edge_lines(ports, has_console=False) == [docs, ""]


def test_what_another_program_has_is_named_with_whom_it_was_for() -> None:
    """An agent counts once, however many ports it has."""
    ports = [
        port("CacheManager", 7102, purpose="requests", protocol="zeromq"),
        port("CacheManager", 7103, purpose="requests", protocol="zeromq"),
        port("memory", 7010, state="taken"),
    ]

    assert edge_lines(ports, has_console=True) == [
        "Answered on their old ports: 1 agent",
        "Not opened, because another program has them: 127.0.0.1:7010 (memory)",
        "",
    ]


def test_nothing_is_said_without_a_gateway() -> None:
    """No port, no line."""
    assert edge_lines([], has_console=True) == []
