"""The durable log: read back what was written, survive torn ends, full disks and kills, forget what is too old."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import eventlog
from broker.eventlog import EventLog
from schemas.bodies.control import EventsRead


class Clock:
    """Time that only tests move."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Logs:
    """Opens logs in one folder and closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self._open: list[EventLog] = []

    def __call__(self, **changes: Any) -> EventLog:
        options = {"max_age_s": 1e9, "max_bytes": 1 << 30, "segment_bytes": 1 << 20, "sync_s": 0.0, **changes}
        log = EventLog(self.folder, clock=self.clock, **options)
        self.start = log.open()
        self._open.append(log)
        return log

    def close(self) -> None:
        """Close what is still open."""
        for log in self._open:
            log.close()


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[Logs]:
    """`open_log(segment_bytes=...)` opens the log of this test's folder."""
    logs = Logs(tmp_path / "events")
    yield logs
    logs.close()


def write(log: EventLog, first: int, count: int, body: bytes = b'{"a": 1}') -> None:
    """Some events, on disk when this returns."""
    for seq in range(first, first + count):
        log.append(seq, float(seq), "a.b", "test", f"id-{seq}", body)
    assert log.flush()


def read(log: EventLog, **query: Any) -> list[int]:
    """Their numbers."""
    return [event.seq for batch in log.read(EventsRead(**{"limit": 1_000_000, **query})) for event in batch]


def test_events_come_back_as_they_were_and_survive_a_reopening(open_log: Logs) -> None:
    """Body, subject, source, id and time, over many segments."""
    log = open_log(segment_bytes=500)
    write(log, 1, 100)
    log.close()

    again = open_log()

    assert read(again) == list(range(1, 101))
    ((event,),) = again.read(EventsRead(from_seq=7, to_seq=7))
    assert (event.at, event.subject, event.source, event.id, event.body) == (7.0, "a.b", "test", "id-7", {"a": 1})
    assert (again.oldest_seq, again.last_seq) == (1, 100)
    assert len(list(open_log.folder.glob("*.log"))) > 5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.none() | st.integers(0, 320),
    last=st.none() | st.integers(0, 320),
    since=st.none() | st.integers(0, 320),
    until=st.none() | st.integers(0, 320),
    limit=st.integers(1, 400),
)
def test_any_query_reads_what_a_plain_filter_would(
    query_log: EventLog, first: int | None, last: int | None, since: int | None, until: int | None, limit: int
) -> None:
    """Sequence and time bounds are inclusive, together and alone, through index and segments."""
    expected = [
        seq
        for seq in range(1, 301)
        if (first is None or seq >= first)
        and (last is None or seq <= last)
        and (since is None or seq >= since)
        and (until is None or seq <= until)
    ][:limit]

    assert read(query_log, from_seq=first, to_seq=last, since_at=since, until_at=until, limit=limit) == expected


@pytest.fixture
def query_log(open_log: Logs, monkeypatch: pytest.MonkeyPatch) -> EventLog:
    """300 events in a few segments with a fine index."""
    monkeypatch.setattr(eventlog, "_INDEX_STEP_BYTES", 200)
    log = open_log(segment_bytes=5_000)
    write(log, 1, 300)
    return log


@pytest.mark.parametrize("cut", [1, 3, 8, 20])
def test_torn_last_record_is_cut_off_and_writing_goes_on(open_log: Logs, cut: int) -> None:
    """As after a crash in the middle of a write."""
    log = open_log()
    write(log, 1, 10)
    log.close()
    (path,) = open_log.folder.glob("*.log")
    os.truncate(path, path.stat().st_size - cut)

    again = open_log()
    write(again, 11, 5)

    assert read(again) == [*range(1, 10), *range(11, 16)]


def test_noise_at_the_end_is_cut_off(open_log: Logs) -> None:
    """Zeros of a file system that lost its power, and anything else."""
    for noise in (bytes(100), b"\xff" * 100, b"\x05\x00\x00\x00abcdefghijk"):
        log = open_log()
        write(log, log.last_seq + 1, 5)
        log.close()
        with next(open_log.folder.glob("*.log")).open("ab") as file:
            file.write(noise)

    assert read(open_log()) == list(range(1, 16))


def test_damaged_record_costs_no_record_before_it_and_no_other_segment(open_log: Logs) -> None:
    """A flipped byte is found by its checksum; the log opens, serves the rest and takes new events."""
    log = open_log(segment_bytes=1_000)
    write(log, 1, 100)
    log.close()
    paths = sorted(open_log.folder.glob("*.log"))
    data = bytearray(paths[1].read_bytes())
    data[len(data) // 2] ^= 0xFF
    paths[1].write_bytes(data)
    first, last = int(paths[1].stem), int(paths[2].stem)

    again = open_log(segment_bytes=1_000)
    write(again, 101, 3)
    got = read(again)

    assert set(range(1, first)) | set(range(last, 104)) <= set(got)
    assert got == sorted(got)


def test_numbers_are_never_given_twice(open_log: Logs) -> None:
    """After a kill the next life starts beyond everything the last may have used; after a clean end right behind it."""
    first = open_log()
    assert open_log.start == 0
    first.reserve(5)
    after_kill = open_log()
    assert open_log.start >= 1_000_000
    after_kill.close(open_log.start + 3)

    open_log()

    assert open_log.start == 1_000_003 or open_log.start > 1_000_003


def test_old_segments_go_by_bytes_and_by_age(open_log: Logs) -> None:
    """Whole files, oldest first; what is left is still in order."""
    log = open_log(segment_bytes=1_000, max_bytes=5_000)
    for start in range(1, 400, 20):
        write(log, start, 20)
    assert log.size_bytes <= 6_000
    assert read(log)[-1] == 400
    assert read(log) == list(range(log.oldest_seq, 401))
    log.close()

    aged = open_log(segment_bytes=1_000, max_age_s=100.0)
    open_log.clock.now = 450.0
    write(aged, 401, 1)
    assert 320 <= aged.oldest_seq <= 360
    open_log.clock.now = 10_000.0
    aged.append(402, 10_000.0, "a.b", "s", "i", b"1")
    aged.flush()
    aged.append(403, 10_000.0, "a.b", "s", "i", b"1")
    aged.flush()
    assert set(read(aged)) <= {401, 402, 403}
    assert 403 in read(aged)


@pytest.mark.parametrize("partial", [0, 1, 30])
def test_full_disk_is_told_and_writing_resumes_when_there_is_room(
    open_log: Logs, monkeypatch: pytest.MonkeyPatch, partial: int
) -> None:
    """Events meanwhile are lost and counted; half a record that was written is no harm to what follows."""
    log = open_log()
    write(log, 1, 3)
    real = os.write
    is_full = threading.Event()
    is_full.set()
    (folder,) = {open_log.folder}

    def scarce(file: int, data: Any) -> int:
        if is_full.is_set() and Path(os.readlink(f"/proc/self/fd/{file}")).parent == folder:
            if partial and len(data) > partial:
                return real(file, data[:partial])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", scarce)
    log.append(4, 4.0, "a.b", "s", "i", b"1")
    log.flush()
    assert "No space left on device" in (log.failure or "")
    assert log.lost == 1
    assert read(log) == [1, 2, 3]

    is_full.clear()
    write(log, 5, 2)

    assert log.failure is None
    assert read(log) == [1, 2, 3, 5, 6]
    log.close()
    assert read(open_log()) == [1, 2, 3, 5, 6]


def test_disk_that_fails_in_every_way_never_ends_the_writer(open_log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when cutting, deleting or reserving fails too."""

    def broken(*arguments: Any, **named: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    log = open_log(segment_bytes=200, max_bytes=300)
    write(log, 1, 3)
    with monkeypatch.context() as patch:
        for name in ("fdatasync", "ftruncate"):
            patch.setattr(os, name, broken)
        patch.setattr(Path, "unlink", broken)
        patch.setattr(Path, "replace", broken)
        for seq in range(4, 9):
            log.append(seq, float(seq), "a.b", "s", "i", b"1")
            log.flush()
        log.reserve(10**9)
        assert log.failure

    write(log, 9, 2)

    assert read(log)[-2:] == [9, 10]
    assert log.failure is None


def test_folder_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path) -> None:
    """Better no broker than one that forgets."""
    (tmp_path / "events").write_text("a file")
    log = EventLog(tmp_path / "events", max_age_s=1.0, max_bytes=1, segment_bytes=1, sync_s=0.0)
    with pytest.raises(OSError, match="exists"):
        log.open()


def test_reading_while_writing_sees_whole_events(open_log: Logs) -> None:
    """A reader in another thread never sees half a record."""
    log = open_log(segment_bytes=20_000)
    stop = threading.Event()
    seen: list[list[int]] = []

    def read_all() -> None:
        while not stop.is_set():
            seen.append(read(log))

    reader = threading.Thread(target=read_all)
    reader.start()
    for start in range(1, 2_000, 100):
        write(log, start, 100, bytes(50))
    stop.set()
    reader.join(10)

    assert seen
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in seen)
    assert read(log) == list(range(1, 2_001))
