"""Folders for work that is not done yet: whose is removed, and whose is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bus import scratch as module
from bus.scratch import scratch


def test_folder_goes_with_its_block(tmp_path: Path) -> None:
    """Also when the block fails."""
    with pytest.raises(KeyError), scratch(tmp_path, ".work-") as folder:
        (folder / "part").write_text("x")
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_folder_of_a_living_owner_stays_and_that_of_a_dead_one_goes(tmp_path: Path) -> None:
    """Whoever holds its lock lives."""
    dead = tmp_path / ".work-dead"
    dead.mkdir()
    (dead / "owned").write_text("1")
    (tmp_path / ".other-dead").mkdir()
    with scratch(tmp_path, ".work-") as first, scratch(tmp_path, ".work-") as second:
        assert sorted(os.listdir(tmp_path)) == sorted([".other-dead", first.name, second.name])


@pytest.mark.parametrize("has_file", [False, True])
def test_folder_that_nobody_owns_yet_stays_for_a_while(tmp_path: Path, has_file: bool) -> None:
    """Its owner made it this moment; one that is old was left by somebody killed in that moment."""
    for name, age_s in ((".work-new", 0.0), (".work-old", module._BEGINNING_S + 1)):
        folder = tmp_path / name
        folder.mkdir()
        if has_file:
            (folder / "owned").touch()
        at = folder.stat().st_mtime - age_s
        os.utime(folder, (at, at))
    with scratch(tmp_path, ".work-") as mine:
        assert sorted(os.listdir(tmp_path)) == sorted([".work-new", mine.name])


def test_folder_that_its_owner_removes_meanwhile_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between seeing and looking."""
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / ".work-gone"])
    with scratch(tmp_path, ".work-") as mine:
        assert os.listdir(tmp_path) == [mine.name]
