"""Clean-up deletes what is old in Olympus' own folders, and nothing else whatever lies there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from schemas.bodies.upkeep import CleanedUp, Cleanup, CleanupTarget
from workers.memory.upkeep.cleanup import DAY_S, PLACES, Cleaner

NOW = time.time()


def put(path: Path, *, age_s: float, content: str = "12345") -> Path:
    """A file last written `age_s` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (NOW - age_s, NOW - age_s))
    return path


def age(path: Path, age_s: float) -> None:
    """Make a folder look untouched for `age_s` seconds."""
    os.utime(path, (NOW - age_s, NOW - age_s))


def cleaner(home: Path) -> Cleaner:
    """A cleaner of `home`."""
    return Cleaner(home, lambda: NOW)


@pytest.mark.parametrize(("target", "days"), [("temp", 1), ("logs", 7), ("cache", 1)])
async def test_only_what_is_older_than_its_folders_age_goes(tmp_path: Path, target: CleanupTarget, days: float) -> None:
    """Each folder has an age of its own; deeper folders too, and those that are empty as long go with it."""
    top = tmp_path / PLACES[target].folder
    old = [put(top / name, age_s=(days + 0.1) * DAY_S) for name in ("old", "deep/er/old")]
    new = [put(top / name, age_s=(days - 0.1) * DAY_S) for name in ("new", "deep/new")]
    (top / "empty").mkdir()
    age(top / "empty", (days + 1) * DAY_S)

    cleaned = await cleaner(tmp_path).clean(target, Cleanup())

    assert cleaned == CleanedUp(files_removed=2, bytes_freed=10)
    assert not any(path.exists() for path in (*old, top / "empty"))
    assert all(path.exists() for path in new)
    assert (top / "deep" / "er").exists()


async def test_a_dry_run_only_counts(tmp_path: Path) -> None:
    """The figures are those of the real run, and every file is still there."""
    old = put(tmp_path / "tmp" / "old", age_s=2 * DAY_S)

    cleaned = await cleaner(tmp_path).clean("temp", Cleanup(dry_run=True))

    assert cleaned == CleanedUp(files_removed=1, bytes_freed=5)
    assert old.exists()


async def test_the_age_can_be_given(tmp_path: Path) -> None:
    """`older_than_s` takes the place of the usual age."""
    put(tmp_path / "logs" / "a", age_s=60)

    assert (await cleaner(tmp_path).clean("logs", Cleanup(older_than_s=30))).files_removed == 1


async def test_links_lead_nowhere(tmp_path: Path) -> None:
    """An old link goes, what it points to stays; a folder behind a link is not entered."""
    outside = put(tmp_path / "outside" / "precious", age_s=100 * DAY_S)
    home = tmp_path / "home"
    put(home / "tmp" / "old", age_s=2 * DAY_S)
    (home / "tmp" / "file").symlink_to(outside)
    (home / "tmp" / "folder").symlink_to(outside.parent)
    for name in ("file", "folder"):
        os.utime(home / "tmp" / name, (0, 0), follow_symlinks=False)

    cleaned = await cleaner(home).clean("temp", Cleanup())

    assert outside.exists()
    assert cleaned.bytes_freed == 5
    assert not (home / "tmp" / "file").is_symlink()


async def test_a_folder_that_is_a_link_itself_is_left_alone(tmp_path: Path) -> None:
    """Whoever put the cache elsewhere has other things there."""
    outside = put(tmp_path / "outside" / "precious", age_s=100 * DAY_S)
    home = tmp_path / "home"
    home.mkdir()
    (home / "cache").symlink_to(outside.parent)

    cleaned = await cleaner(home).clean("cache", Cleanup())

    assert outside.exists()
    assert cleaned.files_removed == 0
    assert "is a link" in cleaned.errors[0]


async def test_the_encoder_stays(tmp_path: Path) -> None:
    """Its weights are old files in use, and would have to be downloaded again."""
    weights = put(tmp_path / "cache" / "encoder" / "model" / "weights", age_s=100 * DAY_S)
    other = put(tmp_path / "cache" / "encoder-old" / "weights", age_s=100 * DAY_S)

    await cleaner(tmp_path).clean("cache", Cleanup(older_than_s=0))

    assert weights.exists()
    assert not other.exists()


async def test_nothing_beside_the_three_folders_is_touched(tmp_path: Path) -> None:
    """The memory itself, backups and models are as old as they like."""
    kept = [put(tmp_path / name, age_s=1000 * DAY_S) for name in ("memory/memory.db", "models/m.gguf", "olympus.yaml")]
    put(tmp_path / "tmp" / "a", age_s=2 * DAY_S)
    put(tmp_path / "logs" / "a", age_s=8 * DAY_S)
    put(tmp_path / "cache" / "a", age_s=2 * DAY_S)

    cleaned = await cleaner(tmp_path).clean_all(Cleanup())

    assert [part.files_removed for part in (cleaned.temp_files, cleaned.logs, cleaned.cache)] == [1, 1, 1]
    assert all(path.exists() for path in kept)


async def test_folders_that_do_not_exist_are_clean(tmp_path: Path) -> None:
    """A new home has none of them."""
    cleaned = await cleaner(tmp_path / "new").clean_all(Cleanup())

    assert cleaned.temp_files == cleaned.logs == cleaned.cache == CleanedUp(files_removed=0, bytes_freed=0)


async def test_what_cannot_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest goes all the same."""
    put(tmp_path / "tmp" / "a", age_s=2 * DAY_S)
    put(tmp_path / "tmp" / "b", age_s=2 * DAY_S)
    unlink = os.unlink

    def refuse(name: str, *, dir_fd: int | None = None) -> None:
        if name == "a":
            raise PermissionError(1, "Operation not permitted", name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)

    cleaned = await cleaner(tmp_path).clean("temp", Cleanup())

    assert cleaned.files_removed == 1
    assert cleaned.errors == [f"{tmp_path / 'tmp' / 'a'}: Operation not permitted"]
