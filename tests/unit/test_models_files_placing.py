"""What is written into a model root that other machines share: whose it is, and what is left of it after a crash."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.models.files import placing


def stage_of_dead_process(root: Path) -> Path:
    """A stage as a process leaves it that was killed."""
    code = f"from pathlib import Path; from workers.models.files import placing; print(placing.new_stage(Path({str(root)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    return Path(done.stdout.strip())


def test_what_dead_processes_of_this_host_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """Stages of living processes, of other hosts, and everybody's files stay."""
    dead = stage_of_dead_process(tmp_path)
    (dead / "half.gguf").write_bytes(b"half")
    host = dead.name.removeprefix(".olympus-").rsplit("-", 2)[0]
    living = tmp_path / f".olympus-{host}-{os.getppid()}-00000000"
    others = tmp_path / f".olympus-{host}.other-{dead.name.rsplit('-', 2)[1]}-00000000"
    kept = [living, others, tmp_path / ".olympus-notes", tmp_path / "model.gguf"]
    for path in kept:
        path.mkdir()

    assert placing.remove_stale_stages(tmp_path) == [dead.name]
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_folder_that_was_being_replaced_goes_back_to_its_place(tmp_path: Path) -> None:
    """A crash between the two renames loses no model."""
    stage = stage_of_dead_process(tmp_path)
    model, new = tmp_path / "model", stage / placing.NEW
    for folder, content in ((model, "old"), (new, "new")):
        folder.mkdir()
        (folder / "config.json").write_text(content)
    placing.place_over(new, model, stage)
    assert (model / "config.json").read_text() == "new"
    # As if the second rename had not been.
    (model / "config.json").unlink()
    model.rmdir()

    placing.remove_stale_stages(tmp_path)

    assert (model / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("has_links", [True, False])
def test_what_is_there_already_is_never_overwritten(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system has no hard links, and for folders."""
    if not has_links:

        def refuse(source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    for name in ("staged", "target"):
        (tmp_path / name).write_text(name)
        (tmp_path / f"{name} folder").mkdir()

    with pytest.raises(FileExistsError):
        placing.place_new(tmp_path / "staged", tmp_path / "target")
    with pytest.raises(FileExistsError):
        placing.place_new(tmp_path / "staged folder", tmp_path / "target folder")
    placing.place_new(tmp_path / "staged", tmp_path / "free")

    assert (tmp_path / "target").read_text() == "target"
    assert (tmp_path / "free").read_text() == "staged"
    assert not (tmp_path / "staged").exists()


def test_a_replacement_that_fails_puts_the_old_folder_back(tmp_path: Path) -> None:
    """Half of an exchange is never what remains."""
    stage = placing.new_stage(tmp_path)
    new, target = stage / placing.NEW, tmp_path / "model"
    new.mkdir()
    target.mkdir()
    (target / "config.json").write_text("old")
    rename = os.rename

    def failing(source: Path, goal: Path) -> None:
        if source == new:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, goal)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(OSError, match="Input/output"):
            placing.place_over(new, target, stage)

    assert (target / "config.json").read_text() == "old"
