"""`olympus keys`: making, trading and listing keys, and what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from bus import z85
from bus.cli.app import main
from bus.curve import fingerprint, key_pair


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own."""
    monkeypatch.setenv("OLYMPUS_HOME", str(tmp_path))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of one call."""
    assert main(["keys", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_made_key_is_exported_listed_and_not_lost_by_a_second_make(capsys: pytest.CaptureFixture[str]) -> None:
    """stdout has the key alone, to be pasted or piped; --replace is the only way to another one."""
    made, talk = said(capsys, "make")
    key = made.strip()
    assert len(key) == 40 and f"olympus keys trust NAME '{key}'" in talk
    assert said(capsys, "export")[0] == made
    assert key in said(capsys)[0]

    _, refusal = said(capsys, "make", code=2)
    assert "has a key already" in refusal and said(capsys, "export")[0] == made

    replaced, _ = said(capsys, "make", "--replace")
    assert replaced != made and said(capsys, "export")[0] == replaced


def test_trusted_machine_is_listed_with_its_fingerprint_until_untrusted(capsys: pytest.CaptureFixture[str]) -> None:
    """As a table and as JSON."""
    public = key_pair().public
    key = z85.encode(public)
    said(capsys, "make")
    _, talk = said(capsys, "trust", "pc2", "--", key)
    assert fingerprint(public) in talk

    listed = json.loads(said(capsys, "list", "--json")[0])
    expected = {"name": "pc2", "public_key": key, "fingerprint": fingerprint(public), "allowed": None, "problem": ""}
    assert listed["trusted"] == [expected]
    assert listed["public_key"] == said(capsys, "export")[0].strip()
    assert f"pc2             {key}" in said(capsys, "list")[0]

    said(capsys, "untrust", "pc2")
    assert json.loads(said(capsys, "list", "--json")[0])["trusted"] == []


def test_key_may_come_from_stdin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one machine's export is piped to the other."""
    key = z85.encode(key_pair().public)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{key}\n"))

    said(capsys, "trust", "pc2", "-")

    assert key in said(capsys, "list", "--json")[0]


def test_other_key_under_a_trusted_name_takes_replace(capsys: pytest.CaptureFixture[str]) -> None:
    """A slip must not put another machine in the place of the one that is trusted; the same key again is no slip."""
    first, second = (z85.encode(key_pair().public) for _ in range(2))
    said(capsys, "trust", "pc2", "--", first)
    said(capsys, "trust", "pc2", "--", first)

    _, refusal = said(capsys, "trust", "pc2", "--", second, code=2)
    assert "trusted by another key" in refusal and first in said(capsys, "list", "--json")[0]

    said(capsys, "trust", "--replace", "pc2", "--", second)
    assert second in said(capsys, "list", "--json")[0]


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("export",), 78, "olympus keys make"),
        (("trust", "pc2", "short"), 2, "no public key"),
        (("trust", "pc2", "0" * 40), 2, "nobody can own it"),
        (("untrust", "pc2"), 2, "not trusted here; trusted: nobody"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    arguments: tuple[str, ...], code: int, why: str, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    """And nothing is written."""
    _, talk = said(capsys, *arguments, code=code)

    assert why in talk
    assert not (home / "keys").exists()


@pytest.mark.parametrize("name", ["PC 2", "../../etc", "", "-x", "2pc", "a" * 33])
def test_name_that_could_be_no_file_of_its_own_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It becomes the name of a file."""
    with pytest.raises(SystemExit) as left:
        main(["keys", "trust", "--", name, "x"])

    assert left.value.code == 2 and "no name of a machine" in capsys.readouterr().err


def test_key_open_to_others_is_not_used(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    """It says what to do about it."""
    said(capsys, "make")
    (home / "keys" / "secret").chmod(0o644)

    _, talk = said(capsys, "export", code=78)

    assert "open to other users" in talk
