"""The durable event log: append-only segment files, written and read in a thread of their own.

    segment   <first sequence number, 20 digits>.log, records back to back
    record    size u32 | crc32 u32 | msgpack [seq, at, subject, source, id, body]       size and crc of the msgpack part

A torn record at the end (a crash, a full disk) is cut off when the log is opened. Whole segments go when they are too
old or the log is too large.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct
from typing import Final

import msgspec

from schemas import subjects
from schemas.bodies.control import EventsRead, LoggedEvent
from schemas.values import decode_any

log = logging.getLogger("olympus.broker")

_HEADER: Final = Struct("<II")

# One index entry for about this many bytes of a segment, so that a read starts near its first event.
_INDEX_STEP_BYTES: Final = 64 * 1024

# Sequence numbers reserved at a time: after a crash the next start skips at most this many, and never reuses one.
_RESERVE: Final = 1_000_000

# Events waiting to be written, bytes; past it (a disk that hangs) further ones are not logged, counted and reported.
_PENDING_MAX_BYTES: Final = 64 * 1024 * 1024


class _Record(msgspec.Struct, array_like=True, gc=False):
    seq: int
    at: float
    subject: str
    source: str
    id: str
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


class _Segment:
    """One file with a sparse index of (sequence number, time, offset)."""

    __slots__ = ("_indexed_bytes", "first_seq", "index", "last_at", "last_seq", "path", "size_bytes")

    def __init__(self, path: Path, first_seq: int) -> None:
        self.path = path
        self.first_seq = first_seq
        self.last_seq = first_seq - 1
        self.last_at = 0.0
        self.size_bytes = 0
        self.index: list[tuple[int, float, int]] = []
        self._indexed_bytes = -_INDEX_STEP_BYTES

    def note(self, seq: int, at: float, size_bytes: int) -> None:
        """Account for one record appended at the present end."""
        if self.size_bytes - self._indexed_bytes >= _INDEX_STEP_BYTES:
            self.index.append((seq, at, self.size_bytes))
            self._indexed_bytes = self.size_bytes
        self.last_seq = seq
        self.last_at = max(self.last_at, at)
        self.size_bytes += size_bytes


class EventLog:
    """Append without waiting, read in batches, retention by age and bytes.

    Raises OSError from `open` when the folder cannot be used. Once open it never raises for a failing disk: `failure`
    then says what is wrong, events meanwhile are counted in `lost`, and writing goes on when the disk takes it again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_age_s: float,
        max_bytes: int,
        segment_bytes: int,
        sync_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._sync_s = sync_s
        self._clock = clock
        self._segments: list[_Segment] = []
        self._file: int | None = None
        self._pending: list[_Record] = []
        self._pending_bytes = 0
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._is_closing = False
        # Events taken in, and those written or given up, since the start.
        self._appended = 0
        self._settled = 0
        self._thread: threading.Thread | None = None
        self._reserved = 0
        self.failure: str | None = None
        self.lost = 0

    @property
    def last_seq(self) -> int:
        """Sequence number of the newest event on disk, 0 when there is none."""
        return self._segments[-1].last_seq if self._segments else 0

    @property
    def oldest_seq(self) -> int:
        """Sequence number of the oldest event kept, 0 when there is none."""
        return next((segment.index[0][0] for segment in list(self._segments) if segment.index), 0)

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size_bytes for segment in list(self._segments))

    def open(self) -> int:
        """Recover the segments and start the writer; returns a sequence number no event has been given yet, less one."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        paths = sorted(path for path in self._folder.glob("*.log") if path.stem.isdigit())
        self._segments = [_closed(path, after) for path, after in itertools.pairwise(paths)]
        if paths:
            self._segments.append(self._recover(paths[-1]))
        start = max(self.last_seq, self._read_reservation())
        self.reserve(start)
        self._thread = threading.Thread(target=self._write_forever, name="event-log", daemon=True)
        self._thread.start()
        return start

    def reserve(self, seq: int) -> None:
        """Make sure that a later start counts on from beyond `seq`. Cheap: it writes once in a million events."""
        if seq < self._reserved:
            return
        self._reserved = seq + _RESERVE
        try:
            self._write_reservation(self._reserved)
        except OSError as error:
            self.failure = f"cannot reserve sequence numbers in {self._folder}: {error}"

    def append(self, seq: int, at: float, subject: str, source: str, id: str, body: bytes) -> None:
        """Queue one event for the writer; returns at once."""
        with self._wake:
            if self._pending_bytes > _PENDING_MAX_BYTES:
                self.lost += 1
                return
            if not self._pending:
                self._wake.notify_all()
            self._pending.append(_Record(seq, at, subject, source, id, body))
            self._pending_bytes += len(body) + 128
            self._appended += 1

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything appended so far is on disk; False when that takes too long. Not for the event loop."""
        with self._wake:
            target = self._appended
            return self._wake.wait_for(lambda: self._settled >= target, timeout_s)

    def close(self, last_seq: int | None = None) -> None:
        """Write what waits and stop; `last_seq`, when given, is where the next start goes on counting."""
        with self._wake:
            self._is_closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if last_seq is not None:
            # Where this fails, the next start skips numbers.
            with contextlib.suppress(OSError):
                self._write_reservation(last_seq)

    def read(self, query: EventsRead, batch: int = 200) -> Iterator[list[LoggedEvent]]:
        """Matching events in order, in batches. Not for the event loop: it reads files."""
        self.flush()
        left = query.limit
        events: list[LoggedEvent] = []
        for record in self._scan(query):
            if not subjects.matches(query.subject, record.subject):
                continue
            events.append(
                LoggedEvent(
                    seq=record.seq,
                    at=record.at,
                    subject=record.subject,
                    source=record.source,
                    id=record.id,
                    body=decode_any(record.body),
                )
            )
            left -= 1
            if len(events) >= batch or not left:
                yield events
                events = []
            if not left:
                return
        if events:
            yield events

    # Reading

    def _scan(self, query: EventsRead) -> Iterator[_Record]:
        first = query.from_seq or 0
        since = query.since_at or 0.0
        for segment in list(self._segments):
            if segment.last_seq < first or segment.last_at < since:
                continue
            for _, record in _records(segment.path, self._offset(segment, first, since), segment.size_bytes):
                if query.to_seq is not None and record.seq > query.to_seq:
                    return
                if record.seq < first or record.at < since:
                    continue
                if query.until_at is not None and record.at > query.until_at:
                    continue
                yield record

    @staticmethod
    def _offset(segment: _Segment, first: int, since: float) -> int:
        """Where to start reading a segment: the last indexed record before both bounds."""
        index = list(segment.index)
        by_seq = bisect_right(index, first, key=lambda entry: entry[0]) - 1
        if not since:
            return index[max(by_seq, 0)][2] if index else 0
        # Times may step back with the clock, so only a run of entries that all lie before `since` may be skipped.
        before = 0
        while before < len(index) and index[before][1] < since:
            before += 1
        position = max(min(before - 1, by_seq if first else before - 1), 0)
        return index[position][2] if index else 0

    # Writing, in the thread

    def _write_forever(self) -> None:
        while True:
            with self._wake:
                # A minute without events still has to look for segments that grew too old.
                self._wake.wait_for(lambda: self._pending or self._is_closing, timeout=60.0)
                records, self._pending, self._pending_bytes = self._pending, [], 0
                is_closing = self._is_closing
            if records:
                self._write_all(records)
            try:
                self._retain()
            except OSError as error:
                self.failure = f"cannot delete old events in {self._folder}: {error.strerror or error}"
            with self._wake:
                self._settled += len(records)
                self._wake.notify_all()
            if is_closing and not self._pending:
                self._close_file()
                return
            if records and self._sync_s and not is_closing:
                # Let more events gather, so that a burst costs one sync and not one each.
                time.sleep(self._sync_s)

    def _write_all(self, records: list[_Record]) -> None:
        left = list(records)
        try:
            self._write(left)
        except OSError as error:
            self.lost += len(left)
            reason = f"cannot write events to {self._folder}: {error.strerror or error}"
            if self.failure is None:
                log.error("event log fails", extra={"action": "eventlog.failed", "reason": reason})
            self.failure = reason
            self._close_file()
        else:
            if self.failure is not None:
                log.info("event log writes again", extra={"action": "eventlog.recovered", "lost": self.lost})
            self.failure = None

    def _write(self, records: list[_Record]) -> None:
        """Write and sync; `records` keeps what is not on disk when an OSError ends it early."""
        while records:
            start = 0
            segment = self._current(records[start].seq)
            parts: list[bytes] = []
            notes: list[tuple[int, float, int]] = []
            room = self._segment_bytes - segment.size_bytes
            position = start
            while position < len(records) and (room > 0 or position == start):
                record = records[position]
                payload = _encode(record)
                parts += (_HEADER.pack(len(payload), zlib.crc32(payload)), payload)
                notes.append((record.seq, record.at, _HEADER.size + len(payload)))
                room -= notes[-1][2]
                position += 1
            assert self._file is not None
            _write_fully(self._file, b"".join(parts))
            os.fdatasync(self._file)
            for note in notes:
                segment.note(*note)
            del records[:position]

    def _current(self, seq: int) -> _Segment:
        if self._file is not None and self._segments[-1].size_bytes < self._segment_bytes:
            return self._segments[-1]
        self._close_file()
        if not self._segments or self._segments[-1].size_bytes >= self._segment_bytes:
            self._segments.append(_Segment(self._folder / f"{seq:020d}.log", seq))
        path = self._segments[-1].path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if os.fstat(self._file).st_size != self._segments[-1].size_bytes:
            # A failed write left a part of a record behind.
            os.ftruncate(self._file, self._segments[-1].size_bytes)
        return self._segments[-1]

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)

    def _retain(self) -> None:
        now = self._clock()
        while len(self._segments) > 1:
            oldest = self._segments[0]
            if self.size_bytes <= self._max_bytes and now - oldest.last_at <= self._max_age_s:
                return
            oldest.path.unlink(missing_ok=True)
            del self._segments[0]
        if self._segments and self._segments[0].size_bytes and now - self._segments[0].last_at > self._max_age_s:
            self._close_file()
            self._segments[0].path.unlink(missing_ok=True)
            del self._segments[0]

    # Opening

    def _recover(self, path: Path) -> _Segment:
        segment = _Segment(path, int(path.stem))
        for size_bytes, record in _records(path, 0, path.stat().st_size):
            segment.note(record.seq, record.at, size_bytes)
        if segment.size_bytes < path.stat().st_size:
            os.truncate(path, segment.size_bytes)
        return segment

    def _read_reservation(self) -> int:
        try:
            return int((self._folder / "sequence").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _write_reservation(self, seq: int) -> None:
        aside = self._folder / "sequence.new"
        with aside.open("w") as file:
            file.write(f"{seq}\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._folder / "sequence")


def _closed(path: Path, following: Path) -> _Segment:
    """A segment that another follows. It is not read at the start, which would take seconds per gigabyte; reads that need
    it begin at its first record. It ends where the following one begins, in number and in time."""
    segment = _Segment(path, int(path.stem))
    segment.index.append((segment.first_seq, 0.0, 0))
    segment.last_seq = int(following.stem) - 1
    first = next(_records(following, 0, following.stat().st_size), None)
    segment.last_at = first[1].at if first else path.stat().st_mtime
    segment.size_bytes = path.stat().st_size
    return segment


def _records(path: Path, offset: int, end: int) -> Iterator[tuple[int, _Record]]:
    """Whole, undamaged records from `offset` to `end`, each with its size; stops at the first that is not."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        while offset + _HEADER.size <= end:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size:
                return
            size, crc = _HEADER.unpack(head)
            if offset + _HEADER.size + size > end:
                return
            payload = file.read(size)
            if len(payload) < size or zlib.crc32(payload) != crc:
                return
            try:
                record = _decode(payload)
            except msgspec.MsgspecError:
                return
            yield _HEADER.size + size, record
            offset += _HEADER.size + size


def _write_fully(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
