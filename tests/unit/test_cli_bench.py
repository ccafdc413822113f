"""How benches are found and run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bus.cli import app, clone, exits


@pytest.fixture
def a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with one bench that prints its arguments and ends with 5."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "bench_echo.py").write_text(
        '"""Prints its arguments.\n\nMore words.\n"""\nimport sys\nprint(sys.argv[1:], flush=True)\nsys.exit(5)\n'
    )
    monkeypatch.setattr(clone, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("a_clone")
def test_arguments_after_the_name_reach_the_bench_with_its_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    """Options of the bench are not taken for options of the command."""
    assert app.main(["bench", "echo", "--json", "--rounds", "3", "--help"]) == 5
    assert capfd.readouterr().out == "['--json', '--rounds', '3', '--help']\n"


@pytest.mark.usefixtures("a_clone")
def test_benches_are_listed_with_their_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a name the scripts of the clone are shown."""
    assert app.main(["bench", "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out) == [{"name": "echo", "summary": "Prints its arguments."}]


@pytest.mark.usefixtures("a_clone")
def test_an_unknown_bench_names_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error is a usage error."""
    assert app.main(["bench", "ehco"]) == exits.USAGE
    assert "there are echo" in capsys.readouterr().err


def test_without_a_clone_there_are_no_benches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An installation without scripts says so."""
    monkeypatch.setattr(clone, "ROOT", tmp_path)

    assert app.main(["bench"]) == exits.USAGE
    assert "run from a clone" in capsys.readouterr().err
