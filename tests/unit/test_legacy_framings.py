"""Every framing in which old agents published errors, read by one rule."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import subjects
from workers.gateway.legacy.agents import framings

FLAT = {"timestamp": 5.0, "agent": "MemoryClient", "error_type": "timeout", "message": "no reply", "severity": "ERROR"}


def frame(prefix: str, value: Any) -> bytes:
    return prefix.encode() + json.dumps(value).encode()


@pytest.mark.parametrize(
    ("frames", "agent", "kind", "message", "severity"),
    [
        ([frame("ERROR:", FLAT)], "MemoryClient", "timeout", "no reply", "error"),
        ([b"ERROR", frame("", {"agent": "Auth", "type": "t", "message": "m"})], "Auth", "t", "m", "error"),
        ([b"ERROR:", frame("", FLAT)], "MemoryClient", "timeout", "no reply", "error"),
        (
            [
                frame(
                    "ERROR:",
                    {
                        "message_type": "critical_alert",
                        "source": "MainPC.Chat",
                        "error_data": {"error_type": "oom", "severity": "high", "details": {"gpu": 0}},
                    },
                )
            ],
            "Chat",
            "oom",
            '{"gpu": 0}',
            "error",
        ),
        (
            [frame("PC2_ERROR:NETWORK:", {"source": "Web", "error_data": {"error_type": "dns", "severity": "low"}})],
            "Web",
            "dns",
            "no message",
            "info",
        ),
        (
            [frame("CROSS_MACHINE_ERROR:PC2:", {"source": "Web", "error_data": {"severity": "critical"}})],
            "Web",
            "Error",
            "no message",
            "critical",
        ),
        ([frame("", {"topic": "x", "error_type": "z", "message": "m"})], "unknown", "z", "m", "error"),
        (
            [b"ERROR:LocalFineTunerAgent:model_loading: no file: x"],
            "LocalFineTunerAgent",
            "model_loading",
            "no file: x",
            "error",
        ),
        ([b"ERROR:{broken"], "unknown", "Error", "ERROR:{broken", "error"),
        ([b"\xff\xfe"], "unknown", "Error", "\ufffd\ufffd", "error"),
    ],
)
def test_each_framing_is_understood(frames: list[bytes], agent: str, kind: str, message: str, severity: str) -> None:
    """Agent, type, message and severity come out alike."""
    report = framings.parse(frames)
    assert (report.service, report.kind, report.message, report.severity) == (agent, kind, message, severity)


def test_what_else_was_said_is_kept_as_context() -> None:
    """Context stays itself; details, port and the machine stand beside it."""
    report = framings.from_fields({"source": "PC2.X", "context": {"a": 1}, "port": 5, "details": "d"})
    assert report.context == {"a": 1, "source_machine": "PC2", "details": "d", "port": 5}


def test_times_are_read_in_all_their_forms() -> None:
    """Epoch numbers and ISO text, with and without a zone."""
    assert framings.epoch(12.5) == 12.5
    assert framings.epoch("1970-01-01T00:00:10+00:00") == 10.0
    assert framings.epoch("1970-01-01T00:00:10Z") == 10.0
    assert framings.epoch("yesterday") > 1e9


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_no_bytes_break_the_reader(frames: list[bytes]) -> None:
    """Whatever comes is a report with a subject that may be published, or says nothing."""
    try:
        report = framings.parse(frames)
    except ValueError:
        return
    subjects.validate(framings.subject_of(report))
