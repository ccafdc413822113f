"""The mark of a home: made, kept, migrated, and refused where it is newer or damaged."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bus import state
from bus.cli.doctor import check_home
from bus.records import Records, UnusableRecords
from bus.state import UnusableHome
from bus.version import VERSION
from workers.models.records import model_records


@pytest.fixture(autouse=True)
def _entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process enters in a test is forgotten with it."""
    monkeypatch.setattr(state, "_entered", {})


def written(home: Path, **mark: object) -> Path:
    """A home with this mark."""
    home.mkdir(exist_ok=True)
    (home / state.MARK).write_text(json.dumps(mark))
    return home


def left(home: Path) -> None:
    """Let go of the lock that `enter` holds until the process ends."""
    os.close(state._entered.pop(home))


def test_new_home_gets_a_mark_for_its_user_alone(tmp_path: Path) -> None:
    """The first process that serves from it makes it."""
    home = tmp_path / "home"

    state.enter(home)

    assert state.read_mark(home) == state.Mark(state.FORMAT, VERSION)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    left(home)


def test_home_without_a_mark_is_the_oldest_and_is_migrated(tmp_path: Path) -> None:
    """What earlier versions left readable for others is closed, and what is in it stays."""
    home = tmp_path / "home"
    (home / "learning" / "jobs").mkdir(parents=True, mode=0o755)
    (home / "models.db").write_bytes(b"rows")
    (home / "models.db").chmod(0o644)

    assert state.check(home) == 1
    state.enter(home)

    assert state.read_mark(home) == state.Mark(state.FORMAT, VERSION)
    assert stat.S_IMODE((home / "models.db").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "learning").stat().st_mode) == 0o700
    assert (home / "models.db").read_bytes() == b"rows"
    left(home)


def test_what_a_person_prepares_before_the_first_start_is_no_old_home(tmp_path: Path) -> None:
    """Settings, keys and models may be there first."""
    (tmp_path / "olympus.yaml").write_text("")
    (tmp_path / "models").mkdir()

    assert state.check(tmp_path) == state.FORMAT


def test_newer_home_is_refused_with_the_version_that_wrote_it(tmp_path: Path) -> None:
    """Format 999 is left as it is, and the message says what to do."""
    home = written(tmp_path, format=999, version="9.9.9")

    with pytest.raises(UnusableHome, match=r"format 999, written by Olympus 9\.9\.9.*Start Olympus 9\.9\.9"):
        state.enter(home)

    assert json.loads((home / state.MARK).read_text()) == {"format": 999, "version": "9.9.9"}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 0, "version": ""}', '{"format": "x"}', "\udcff"])
def test_damaged_mark_is_refused(tmp_path: Path, content: str) -> None:
    """Nobody guesses which format it was."""
    (tmp_path / state.MARK).write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(UnusableHome, match="does not say which format"):
        state.enter(tmp_path)


def test_mark_of_another_version_and_the_same_format_is_brought_up_to_date(tmp_path: Path) -> None:
    """It names the program that served last."""
    home = written(tmp_path, format=state.FORMAT, version="0.0.1")

    state.enter(home)

    assert state.read_mark(home) == state.Mark(state.FORMAT, VERSION)
    left(home)


def test_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")

    with pytest.raises(UnusableHome, match=r"cannot be written.*OLYMPUS_HOME"):
        state.enter(tmp_path / "file" / "home")


def test_several_processes_serve_from_one_home_and_nobody_replaces_it_meanwhile(tmp_path: Path) -> None:
    """The lock is shared by who serves and kept from who restores."""
    home = tmp_path / "home"
    code = f"from pathlib import Path; from bus import state; state.enter(Path({str(home)!r})); print(1); input()"
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        for _ in range(3)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == b"1\n"

        with pytest.raises(UnusableHome, match="is in use"), state.alone(home):
            pytest.fail("it was had alone")
    finally:
        for other in others:
            other.communicate(b"\n", timeout=20)
    with state.alone(home):
        assert [other.returncode for other in others] == [0, 0, 0]


def test_old_home_in_use_is_not_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who holds the lock and knows only an older format must leave first."""
    monkeypatch.setattr(state, "_WAIT_S", 0.0)
    home = written(tmp_path, format=1, version="0.0.1")
    with (home / state.LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)

        with pytest.raises(UnusableHome, match="stop that first"):
            state.enter(home)


def test_home_that_is_being_replaced_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore has it alone."""
    monkeypatch.setattr(state, "_WAIT_S", 0.0)
    home = written(tmp_path, format=state.FORMAT, version=VERSION)

    with state.alone(home), pytest.raises(UnusableHome, match="is being replaced"):
        state.enter(home)


def test_home_put_there_while_waiting_is_the_one_that_is_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of the old folder says nothing about the new one."""
    home = written(tmp_path / "home", format=state.FORMAT, version=VERSION)
    locked, is_first = state._locked, True

    def replace_first(lock: int, how: int) -> bool:
        nonlocal is_first
        if is_first:
            is_first = False
            home.rename(tmp_path / "old")
            written(home, format=state.FORMAT, version=VERSION)
        return locked(lock, how)

    monkeypatch.setattr(state, "_locked", replace_first)
    state.enter(home)

    with pytest.raises(UnusableHome, match="is in use"), state.alone(home):
        pytest.fail("the new one was not locked")
    left(home)


async def test_records_of_a_newer_program_are_refused_and_older_ones_kept_before_they_change(tmp_path: Path) -> None:
    """A step that is not known here says so; a step that is new is taken after a copy was made."""
    schema = tmp_path / "schema"
    schema.mkdir()
    (schema / "0001_a.sql").write_text("CREATE TABLE a (x TEXT)")

    async def opened() -> None:
        records = Records(tmp_path / "some.db", schema, "rows")
        try:
            await records.open()
        finally:
            await records.close()

    await opened()
    (schema / "0002_b.sql").write_text("CREATE TABLE b (x TEXT)")
    await opened()

    assert (tmp_path / "some.db.v1-backup").exists()
    assert stat.S_IMODE((tmp_path / "some.db").stat().st_mode) == 0o600

    (schema / "0002_b.sql").unlink()
    with pytest.raises(UnusableRecords, match=r"newer Olympus \(0002_b\.sql"):
        await opened()


async def test_records_that_are_new_leave_no_copy(tmp_path: Path) -> None:
    """There is nothing to keep of an empty file."""
    records = model_records(tmp_path / "models.db")
    await records.open()
    await records.close()

    assert [name for name in os.listdir(tmp_path) if name.endswith("-backup")] == []


def test_doctor_says_that_a_home_is_newer(tmp_path: Path) -> None:
    """With the same words as the refusal, before anybody tries to start."""
    found = check_home(written(tmp_path, format=999, version="9.9.9"))

    assert found.state == "missing"
    assert "written by Olympus 9.9.9" in found.advice
