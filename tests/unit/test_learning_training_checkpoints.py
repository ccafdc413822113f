"""Checkpoints: whole or not there, torn ones recognised, and two that always stay."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import Conflict, NotFound
from workers.learning.training import checkpoints
from workers.learning.training.checkpoints import Checkpoint, Sealing


def seal(folder: Path, step: int, files: dict[str, bytes] | None = None) -> Checkpoint:
    """Write one as the trainer does."""
    sealing = Sealing(folder / checkpoints.name_of(step), job_id="job", step=step)
    try:
        for name, data in (files or {"weights": b"w" * 100, "rates": b"{}"}).items():
            sealing.write(name, data)
        return sealing.seal({"rung": 0})
    except BaseException:
        sealing.abandon()
        raise


def test_sealed_checkpoint_is_listed_and_verified(tmp_path: Path) -> None:
    """What was written is there, with its step, size and the hash of its manifest."""
    made = seal(tmp_path, 7)

    (found,) = checkpoints.list_checkpoints(tmp_path)

    assert found == made
    assert found.is_good
    assert checkpoints.verify(found.path) == found
    assert checkpoints.newest_good(tmp_path) == found
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_folder_that_is_not_there_has_no_checkpoints(tmp_path: Path) -> None:
    """A job that has not saved yet has nothing to go on from."""
    assert checkpoints.list_checkpoints(tmp_path / "none") == []
    assert checkpoints.newest_good(tmp_path / "none") is None


def test_any_change_of_any_file_is_noticed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A checkpoint with one bit flipped, a file cut, emptied or removed is passed over for the one before it."""

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        victim=st.sampled_from(["weights", "rates", "manifest.json"]),
        how=st.sampled_from(["flip", "cut", "empty", "remove", "grow"]),
        place=st.integers(min_value=0, max_value=10_000),
    )
    def damage(victim: str, how: str, place: int) -> None:
        folder = tmp_path_factory.mktemp("job")
        before = seal(folder, 1)
        after = seal(folder, 2)
        path = after.path / victim
        data = bytearray(path.read_bytes())
        if how == "remove":
            path.unlink()
        else:
            if how == "flip":
                data[place % len(data)] ^= 1 << (place % 8)
            changed = {"cut": data[: place % len(data)], "empty": b"", "grow": data + b"x", "flip": data}[how]
            path.write_bytes(changed)
        skipped: list[Checkpoint] = []

        found = checkpoints.newest_good(folder, skipped.append)

        if found is not None and found.name == after.name:
            # A manifest may change in what it says for people alone; every file is still as it was written.
            assert victim == "manifest.json"
            assert (after.path / "weights").read_bytes() == b"w" * 100
        else:
            assert found == before
            assert [one.name for one in skipped] == [after.name]
            assert skipped[0].problem

    damage()


@pytest.mark.parametrize("dies_at", ["write", "fsync", "rename", "second rename"])
def test_writer_that_dies_leaves_no_checkpoint_and_the_one_before_stands(
    dies_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever call the writer ends, nothing of it has a checkpoint's name, and the next save clears it away."""
    before = seal(tmp_path, 1)

    class Killed(BaseException):
        pass

    renames = 0
    true_rename = Path.rename

    def fail(*_: Any) -> None:
        raise Killed

    def rename(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == (2 if dies_at == "second rename" else 1):
            raise Killed
        return true_rename(self, target)

    # A killed process cleans up nothing.
    monkeypatch.setattr(Sealing, "abandon", lambda self: None)
    if dies_at == "write":
        monkeypatch.setattr(checkpoints, "_write_synced", fail)
    elif dies_at == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(Killed):
        seal(tmp_path, 2)
    monkeypatch.undo()

    assert checkpoints.list_checkpoints(tmp_path) == [before]
    assert checkpoints.newest_good(tmp_path) == before
    checkpoints.prune(tmp_path, kept=2, limit_bytes=None)
    assert [path.name for path in tmp_path.iterdir()] == [before.name]


def test_directory_without_manifest_is_torn_and_says_so(tmp_path: Path) -> None:
    """A directory that other tools wrote half is not gone on from."""
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003" / "weights").write_bytes(b"half")

    (found,) = checkpoints.list_checkpoints(tmp_path)

    assert not found.is_good
    assert "manifest.json" in found.problem
    assert checkpoints.newest_good(tmp_path) is None


def test_manifest_cannot_point_outside_its_directory(tmp_path: Path) -> None:
    """A manifest that names another place is no checkpoint's."""
    made = seal(tmp_path, 4)
    manifest = made.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"weights"', '"../weights"'))

    assert "no file beside it" in checkpoints.verify(made.path).problem


def test_same_step_can_be_saved_again(tmp_path: Path) -> None:
    """A step that is taken again after a kill replaces its checkpoint."""
    seal(tmp_path, 5, {"weights": b"old"})

    made = seal(tmp_path, 5, {"weights": b"new"})

    assert checkpoints.newest_good(tmp_path) == made
    assert (made.path / "weights").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


@given(
    sizes=st.lists(st.integers(min_value=1, max_value=100), max_size=8),
    good=st.lists(st.booleans(), min_size=8, max_size=8),
    kept=st.integers(min_value=0, max_value=6),
    limit=st.none() | st.integers(min_value=1, max_value=300),
)
def test_two_good_ones_always_stay_and_nothing_else_beyond_the_rules(
    sizes: list[int], good: list[bool], kept: int, limit: int | None
) -> None:
    """The newest stay, at most as many and as large as allowed, and never fewer than two good ones."""
    found = [
        Checkpoint(
            name=checkpoints.name_of(step),
            path=Path(checkpoints.name_of(step)),
            step=step,
            size_bytes=size,
            created_at=0.0,
            sha256="",
            problem="" if good[step] else "torn",
        )
        for step, size in enumerate(sizes)
    ]

    gone = checkpoints.surplus(found, kept=kept, limit_bytes=limit)

    whole = [one for one in found if one.is_good]
    staying = [one for one in whole if one not in gone]
    assert staying == whole[len(whole) - len(staying) :]
    assert len(staying) >= min(2, len(whole))
    assert len(staying) <= max(kept, 2)
    if limit is not None and len(staying) > 2:
        assert sum(one.size_bytes for one in staying) <= limit
    newest = max((one.step for one in whole), default=-1)
    assert all(one in gone for one in found if not one.is_good and one.step < newest)
    assert not any(one in gone for one in found if not one.is_good and one.step > newest)


def test_prune_keeps_by_count(tmp_path: Path) -> None:
    """After a save the oldest beyond the count goes, whole."""
    for step in (1, 2, 3):
        seal(tmp_path, step)

    gone = checkpoints.prune(tmp_path, kept=2, limit_bytes=None)

    assert [one.step for one in gone] == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_newest_good_checkpoint_is_not_deleted_by_accident(tmp_path: Path) -> None:
    """Only who says so deletes the last way back; an older one goes at once, an unknown one is named."""
    old, new = seal(tmp_path, 1), seal(tmp_path, 2)

    with pytest.raises(Conflict, match="step-00000002"):
        checkpoints.delete(tmp_path, new.name)
    with pytest.raises(NotFound, match="step-00000009"):
        checkpoints.delete(tmp_path, "step-00000009")
    assert checkpoints.delete(tmp_path, old.name) == old
    assert checkpoints.delete(tmp_path, new.name, even_last=True) == new
    assert list(tmp_path.iterdir()) == []
    checkpoints.discard(tmp_path)
    assert not tmp_path.exists()


def test_full_disk_leaves_nothing_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails takes away what it had written."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write_synced", full)
    with pytest.raises(OSError, match="No space"):
        seal(tmp_path, 1)

    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)
