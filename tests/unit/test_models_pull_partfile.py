"""A part and its note: what may be gone on with, and what may not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from workers.models.pull import partfile
from workers.models.pull.partfile import PartFile


def opened(folder: Path, identity: str = "one") -> PartFile:
    part = PartFile(folder, "m.gguf", identity)
    part.open()
    while part.take_up():
        pass
    return part


def change_note(folder: Path, **fields: object) -> None:
    path = folder / "m.gguf.state"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_was_written_is_gone_on_with(tmp_path: Path) -> None:
    """Bytes, digest and what the server said of the content are as they were."""
    part = opened(tmp_path)
    part.note(validator='"v"', total_bytes=9)
    part.append(b"12345")
    part.close()

    part = opened(tmp_path)
    assert (part.bytes, part.state.validator, part.state.total_bytes) == (5, '"v"', 9)
    part.append(b"6789")
    assert part.sha256() == hashlib.sha256(b"123456789").hexdigest()
    part.close()


def test_what_is_here_is_hashed_in_steps_and_leaving_in_between_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that leaves does not wait until a hundred gigabytes are read."""
    monkeypatch.setattr(partfile, "_STEP_BYTES", 4)
    monkeypatch.setattr(partfile, "_HASH_BYTES", 4)
    part = opened(tmp_path)
    part.append(b"123456789")
    part.close()

    part = PartFile(tmp_path, "m.gguf", "one")
    part.open()
    assert (part.take_up(), part.bytes) == (True, 4)
    part.close()
    assert json.loads((tmp_path / "m.gguf.state").read_text())["synced_bytes"] == 9
    part = opened(tmp_path)
    assert (part.bytes, part.sha256()) == (9, hashlib.sha256(b"123456789").hexdigest())
    part.close()


def test_a_full_disk_does_not_hide_why_a_pull_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note cannot be renewed then, and the older one is as true."""
    part = opened(tmp_path)
    part.append(b"12345")
    part.sync()
    part.append(b"6")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    part.close()
    monkeypatch.undo()
    part = opened(tmp_path)
    assert part.bytes == 6
    part.close()


def test_the_death_of_a_process_takes_nothing_away(tmp_path: Path) -> None:
    """What was written and not synced is there, as long as the machine runs on."""
    part = opened(tmp_path)
    part.append(b"12345")

    assert json.loads((tmp_path / "m.gguf.state").read_text())["synced_bytes"] == 0
    again = opened(tmp_path)
    assert again.bytes == 5
    again.close()
    part.close()


def test_after_a_crash_of_the_machine_only_what_was_synced_counts(tmp_path: Path) -> None:
    """The rest may be anything."""
    part = opened(tmp_path)
    part.append(b"12345")
    part.sync()
    part.append(b"garbage")
    change_note(tmp_path, boot="another")

    again = opened(tmp_path)
    assert again.bytes == 5
    assert again.path.read_bytes() == b"12345"
    again.close()
    part.close()


def test_the_part_of_another_content_is_thrown_away(tmp_path: Path) -> None:
    """So is one without a readable note."""
    part = opened(tmp_path)
    part.append(b"12345")
    part.close()

    part = opened(tmp_path, "two")
    assert part.bytes == 0
    part.append(b"12345")
    part.close()
    (tmp_path / "m.gguf.state").write_bytes(b"{")
    part = opened(tmp_path, "two")
    assert (part.bytes, part.path.stat().st_size) == (0, 0)
    part.close()


def test_a_whole_file_that_was_never_adopted_is_taken_up(tmp_path: Path) -> None:
    """A pull that ended between the last byte and its adoption has nothing to fetch."""
    part = opened(tmp_path)
    part.append(b"12345")
    part.close()
    part.path.rename(part.final_path)

    part = opened(tmp_path)
    assert part.bytes == 5
    assert not part.final_path.exists()
    part.close()
