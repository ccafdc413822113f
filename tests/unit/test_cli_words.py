"""Reading what people type: bodies, headers, durations, instants."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bus.cli.durations import duration, instant
from bus.cli.failures import UsageError
from bus.cli.request_body import read_body, read_headers
from schemas.bodies.memory import KvSet


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ([], {}),
        (['{"key": "a"}'], {"key": "a"}),
        (["[1, 2]"], [1, 2]),
        (["key=a", "value=1"], {"key": "a", "value": 1}),
        (["key=7", "value=7"], {"key": "7", "value": 7}),
        (["value=[1,2]", "key=a"], {"key": "a", "value": [1, 2]}),
        (["value=a=b"], {"value": "a=b"}),
        (["value.inner.x=1", "value.inner.y=two"], {"value": {"inner": {"x": 1, "y": "two"}}}),
    ],
)
def test_words_become_the_body_they_describe(words: list[str], body: Any) -> None:
    """JSON is taken as it is, pairs fill an object, and a declared text field keeps its digits as text."""
    assert read_body(words, KvSet) == body


def test_a_body_is_read_from_a_file_and_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`@file` and `-` name where the JSON is."""
    path = tmp_path / "body.json"
    path.write_text('{"key": "file"}')
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b'{"key": "stdin"}')))

    assert read_body([f"@{path}"]) == {"key": "file"}
    assert read_body(["-"]) == {"key": "stdin"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{oops"], "the body is not JSON"),
        (["key=a", "oops"], "'oops' is not key=value"),
        (["@/no/such/file"], "cannot read /no/such/file"),
        (["a=1", "a.b=2"], "a already has a value"),
    ],
)
def test_a_body_that_makes_no_sense_says_what_is_wrong(words: list[str], says: str) -> None:
    """Each mistake is a usage error that names the word."""
    with pytest.raises(UsageError, match=says):
        read_body(words)


def test_headers_are_pairs_of_a_name_and_a_plain_value() -> None:
    """Numbers and booleans are taken as such; structure stays text, as headers hold none."""
    assert read_headers([]) is None
    assert read_headers(["a=1", "b=text", "c=true", "d=[1]"]) == {"a": 1, "b": "text", "c": True, "d": "[1]"}
    with pytest.raises(UsageError, match="'x' is not name=value"):
        read_headers(["x"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("250ms", 0.25), ("1d", 86_400), ("3", 3)],
)
def test_durations_read_as_people_write_them(text: str, seconds: float) -> None:
    """Units add up; a bare number is seconds."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10 m", "-5", "0", "nan", "inf", "5x"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """The refusal shows what a duration looks like."""
    with pytest.raises(argparse.ArgumentTypeError):
        duration(text)


def test_an_instant_is_a_duration_ago_or_an_iso_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """`10m` counts back from now; an ISO time with a zone is absolute."""
    monkeypatch.setattr("bus.cli.durations.time.time", lambda: 1_000.0)

    assert instant("10m") == 400.0
    assert instant("2026-01-01T00:00:00+00:00") == 1_767_225_600.0
    with pytest.raises(argparse.ArgumentTypeError, match="neither a duration"):
        instant("yesterday")
