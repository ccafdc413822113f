"""The audit log: every event `audit.*`, once and in order, in a file whose lines are chained by their hashes.

A line's hash is the SHA-256 of the hash before it and the line itself, so that a line that is changed, taken out or put in
breaks the chain behind it. Lines past their time go from the old end; the hash of the last one gone is kept, and the
chain begins there. What a chain cannot show is one that was rewritten whole, or cut off at its new end, by somebody who
may write the file: for that, keep the newest line's number and hash elsewhere and hand them to `audit.verify`.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from bus.metrics import Counter
from bus.reminder import Reminder
from bus.settings import Settings
from bus.subscription import ReceivedEvent
from bus.worker import Call, Worker
from schemas import metrics
from schemas.bodies.control import BrokerStats, BusStats, EventsPage, EventsRead, LoggedEvent
from schemas.bodies.telling import (
    AuditEntry,
    AuditEvent,
    AuditList,
    AuditPage,
    AuditVerdict,
    AuditVerify,
)
from schemas.errors import BusError, Internal, Unsupported

T = TypeVar("T")

log = logging.getLogger("olympus.errors")

PATTERN: Final = "audit.*"

# Seconds between commits, and until a file that failed is tried again.
COMMIT_S: Final = 0.25
RETRY_S: Final = 2.0

# Seconds between looks for lines past their time.
_SWEEP_S: Final = 600.0

# Lines kept, at most, some 400 bytes each: whoever may publish audit events could fill the disk.
_LINES_MAX: Final = 1_000_000

# Events that wait for the file, at most; past it reading stands still, and the broker's log keeps the rest.
_WAITING_MAX: Final = 5_000

# Events of one read of the broker's log.
_PAGE: Final = 5_000

# Lines checked at a time, between which others may use the file.
_CHECKED_AT_ONCE: Final = 2_000

# The form of the file; a larger number was written by a later Olympus.
VERSION: Final = 1
_SCHEMA: Final = """
create table lines (
    id integer primary key, at real not null, kind text not null, outcome text not null, body text not null, hash text not null
);
create index lines_by_kind on lines (kind, id);
create table anchor (one integer primary key check (one = 1), id integer not null, hash text not null, last_seq integer);
insert into anchor values (1, 0, '', null);
"""

_decode = msgspec.msgpack.Decoder(AuditEvent).decode
_decode_body = msgspec.json.Decoder(tuple[int, AuditEvent]).decode


class _Line(NamedTuple):
    """A line, and what it is found by beside its body."""

    id: int
    body: str
    hash: str
    at: float
    kind: str
    outcome: str


class AuditUnusable(Exception):
    """The file cannot be used now; says why."""


def hash_of(before: str, body: str) -> str:
    """The hash of a line: of the one before it, in hex, and of its own text."""
    return hashlib.sha256(f"{before}\n{body}".encode()).hexdigest()


def canonical(id: int, event: AuditEvent) -> str:
    """What is hashed of a line and kept: its number and every field by name, in their declared order."""
    return msgspec.json.encode([id, event]).decode()


class AuditLog:
    """Follows `audit.*`, keeps it, and serves audit.list and audit.verify. Call `handle` before the worker starts.

    degraded: what does not work at the moment, and why.
    """

    def __init__(self, settings: Settings, worker: Worker) -> None:
        self.path = settings.path(settings.errors.path).with_name("audit.db")
        self.degraded: dict[str, str] = {}
        self._keep_s = settings.errors.audit_keep_s
        self._client = worker.client
        self._worker = worker
        self._taken: Counter = worker.figures.counter(metrics.AUDIT_EVENTS)
        self._thread = ThreadPoolExecutor(1, "audit-store")
        self._connection: sqlite3.Connection | None = None
        self._waiting: list[tuple[int, AuditEvent]] = []
        self._last_seq: int | None = None
        # False where the broker keeps no events: then what comes while this service is away is lost.
        self._has_log = True
        self._may_follow = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._wake = asyncio.Event()
        self._is_closing = False
        self._broken_id: int | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._reminder = Reminder()

    def handle(self) -> None:
        """Serve the operations."""
        self._worker.handle("audit.list", self._list)
        self._worker.handle("audit.verify", self._verify)

    async def start(self) -> None:
        """Take up the file, check it, and follow; a file that cannot be used is tried again."""
        self._tasks = [
            asyncio.create_task(self._keep_writing(), name="audit writer"),
            asyncio.create_task(self._follow(), name="audit reader"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._on_end)

    async def stop(self) -> None:
        """Write what waits, once, and end."""
        self._is_closing = True
        self._wake.set()
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.degraded["audit log"] = f"it ended: {type(error).__name__}: {error}"
            log.critical("audit log ended", exc_info=error, extra={"action": "audit.ended"})

    # Taking in

    async def _follow(self) -> None:
        await self._may_follow.wait()
        while True:
            try:
                await self._check_numbers()
                subscription = (
                    self._client.subscribe(PATTERN, reader=self._read_log, after_seq=self._last_seq or 0)
                    if self._has_log
                    else self._client.subscribe(PATTERN)
                )
                async with subscription as events:
                    self.degraded.pop("audit events", None)
                    async for event in events:
                        await self._take(event, partial(_decode, event.raw))
            except Unsupported:
                self._has_log = False
                continue
            except (BusError, OSError) as error:
                self.degraded["audit events"] = str(error)
                log.warning("not following the audit", extra={"action": "audit.not_following", "error": str(error)})
            await asyncio.sleep(RETRY_S)

    async def _check_numbers(self) -> None:
        """Begin anew where the broker does."""
        stats: BrokerStats = await self._client.request("bus.stats", BusStats())
        if stats.last_seq < (self._last_seq or 0):
            log.warning("the broker counts its events anew", extra={"action": "audit.renumbered"})
            self._last_seq = 0

    async def _read_log(self, pattern: str, first_seq: int, last_seq: int | None) -> list[LoggedEvent]:
        """Take what was published between two numbers, a page at a time; nothing is left for the subscription."""
        next_seq: int | None = first_seq
        while next_seq is not None:
            query = EventsRead(subject=pattern, from_seq=next_seq, to_seq=last_seq, limit=_PAGE)
            async with self._client.stream("bus.events.read", query) as batches:
                async for batch in batches:
                    for event in batch.events:
                        await self._take(event, partial(msgspec.convert, event.body, AuditEvent))
                page: EventsPage = batches.final
            next_seq = page.next_seq
        return []

    async def _take(self, event: ReceivedEvent | LoggedEvent, told: Callable[[], AuditEvent]) -> None:
        if event.seq <= (self._last_seq or 0):
            return
        await self._has_room.wait()
        self._waiting.append((event.seq, _kept(event, told)))
        self._last_seq = event.seq
        if len(self._waiting) >= _WAITING_MAX:
            self._has_room.clear()
            self._wake.set()

    async def _keep_writing(self) -> None:
        swept_at = float("-inf")
        while True:
            is_last = self._is_closing
            try:
                if self._connection is None:
                    await self._open()
                if self._waiting:
                    await self._write()
                if time.monotonic() - swept_at > _SWEEP_S:
                    swept_at = time.monotonic()
                    await self._run(self._sweep)
            except AuditUnusable as error:
                self.degraded["audit log"] = str(error)
                if self._reminder.is_due(str(error), time.monotonic()):
                    log.error("audit log not usable", extra={"action": "audit.file_failed", "error": str(error)})
            if is_last:
                return
            try:
                await asyncio.wait_for(self._wake.wait(), RETRY_S if self._connection is None else COMMIT_S)
            except TimeoutError:
                continue
            self._wake.clear()

    async def _open(self) -> None:
        last_seq = await self._run(self._open_file)
        if self._last_seq is None:
            self._last_seq = last_seq
        verdict = await self._check(AuditVerify())
        self.degraded.pop("audit log", None)
        self._reminder.clear()
        if not verdict.is_whole:
            self._note_broken(verdict)
        self._may_follow.set()

    async def _write(self) -> None:
        taken, self._waiting = self._waiting, []
        try:
            await self._run(lambda: self._append(taken))
        except AuditUnusable:
            self._waiting = taken + self._waiting
            raise
        for _, event in taken:
            self._taken.add(event.kind, "ok" if event.outcome == "ok" else "failed", by=event.count)
        self._has_room.set()

    # Answering

    async def _list(self, request: AuditList, call: Call) -> AuditPage:
        entries, total = await self._answer(lambda: self._find(request))
        return AuditPage(entries=entries, total=total, is_whole=self._broken_id is None)

    async def _verify(self, request: AuditVerify, call: Call) -> AuditVerdict:
        try:
            verdict = await self._check(request)
        except AuditUnusable as error:
            raise Internal(str(error)) from error
        if not verdict.is_whole:
            self._note_broken(verdict)
        return verdict

    def _note_broken(self, verdict: AuditVerdict) -> None:
        self._broken_id = verdict.broken_id
        self.degraded["audit chain"] = verdict.reason
        log.error(
            "audit chain broken", extra={"action": "audit.broken", "id": verdict.broken_id, "why": verdict.reason}
        )

    async def _answer(self, work: Callable[[], T]) -> T:
        try:
            if self._waiting and self._connection is not None:
                await self._write()
            return await self._run(work)
        except AuditUnusable as error:
            raise Internal(str(error)) from error

    async def _check(self, request: AuditVerify) -> AuditVerdict:
        """Every line against the one before it, a few at a time."""
        first = await self._run(self._anchor)
        chain = _Chain(first, request)
        while lines := await self._run(lambda: self._lines_after(chain.id)):
            if not chain.goes_on(lines):
                break
        return chain.verdict()

    # In the thread

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            # Opened anew the next time: a file that was replaced or repaired is then seen.
            self._close()
            raise AuditUnusable(
                f"{self.path} cannot be used ({error}); what happens meanwhile is kept in the broker's event log"
            ) from error

    def _open_file(self) -> int | None:
        self._close()
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            version = connection.execute("pragma user_version").fetchone()[0]
            if version > VERSION:
                raise AuditUnusable(
                    f"{self.path} was written by a later version of Olympus (form {version}, this one reads {VERSION})"
                )
            if not version:
                connection.executescript(f"begin;{_SCHEMA}pragma user_version = {VERSION};commit;")
            last_seq: int | None = connection.execute("select last_seq from anchor").fetchone()[0]
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return last_seq

    def _append(self, taken: list[tuple[int, AuditEvent]]) -> None:
        connection = self._opened()
        connection.execute("begin immediate")
        try:
            id, before = self._newest(connection)
            rows = []
            for _, event in taken:
                id += 1
                body = canonical(id, event)
                before = hash_of(before, body)
                rows.append((id, event.at, event.kind, event.outcome, body, before))
            connection.executemany("insert into lines values (?, ?, ?, ?, ?, ?)", rows)
            connection.execute("update anchor set last_seq = ?", (taken[-1][0],))
            connection.execute("commit")
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback")
            raise

    def _sweep(self) -> None:
        """Let go of lines past their time, by the newest line's clock where the system's is ahead of it."""
        connection = self._opened()
        newest = connection.execute("select id, at from lines order by id desc limit 1").fetchone()
        if newest is None:
            return
        id, at = newest
        oldest_at = min(time.time(), at) - self._keep_s
        kept = connection.execute("select min(id) from lines where at >= ?", (oldest_at,)).fetchone()[0]
        gone = max((kept if kept is not None else id + 1) - 1, id - _LINES_MAX)
        last = connection.execute(
            "select id, hash from lines where id <= ? order by id desc limit 1", (gone,)
        ).fetchone()
        if last is None:
            return
        connection.execute("begin immediate")
        connection.execute("update anchor set id = ?, hash = ?", last)
        connection.execute("delete from lines where id <= ?", (last[0],))
        connection.execute("commit")

    def _find(self, request: AuditList) -> tuple[list[AuditEntry], int]:
        connection = self._opened()
        where = ["id < ?"]
        values: list[Any] = [request.before_id if request.before_id is not None else 2**62]
        for condition, value in (
            ("kind = ?", request.kind),
            ("outcome = ?", request.outcome),
            ("at >= ?", request.since_at),
            ("at <= ?", request.until_at),
        ):
            if value is not None:
                where.append(condition)
                values.append(value)
        asked = f"select id, body, hash from lines where {' and '.join(where)} order by id desc"
        found = []
        with closing(connection.execute(asked, values)) as rows:
            for id, body, hash in rows:
                entry = _entry(id, body, hash)
                if _fits(entry, request):
                    found.append(entry)
                    if len(found) == request.limit:
                        break
        return found, connection.execute("select count(*) from lines").fetchone()[0]

    def _anchor(self) -> tuple[int, str]:
        found: tuple[int, str] = self._opened().execute("select id, hash from anchor").fetchone()
        return found

    def _lines_after(self, id: int) -> list[_Line]:
        rows = self._opened().execute(
            "select id, body, hash, at, kind, outcome from lines where id > ? order by id limit ?",
            (id, _CHECKED_AT_ONCE),
        )
        return [_Line(*row) for row in rows]

    def _newest(self, connection: sqlite3.Connection) -> tuple[int, str]:
        found: tuple[int, str] | None = connection.execute(
            "select id, hash from lines order by id desc limit 1"
        ).fetchone()
        return found if found is not None else self._anchor()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise OSError("it is not open")
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Chain:
    """The lines checked so far. id, hash: of the last good one."""

    def __init__(self, anchor: tuple[int, str], request: AuditVerify) -> None:
        self.id, self.hash = anchor
        self._begin = self.id
        self._noted_id, self._noted_hash = request.id, request.hash
        self._was_noted_seen = False
        self._broken_id: int | None = None
        self._reason = ""

    def goes_on(self, lines: list[_Line]) -> bool:
        """Check more; False where the chain breaks."""
        for line in lines:
            reason = self._why_not(line)
            if reason:
                self._broken_id, self._reason = line.id, f"line {line.id}: {reason}"
                return False
            self.id, self.hash = line.id, line.hash
            if line.id == self._noted_id:
                self._was_noted_seen = True
        return True

    def verdict(self) -> AuditVerdict:
        """What came out."""
        broken_id, reason = self._broken_id, self._reason
        if broken_id is None and self._noted_id is not None and not self._was_noted_seen:
            broken_id = self._noted_id
            gone = "is past its time" if self._noted_id <= self._begin else "is not there any more"
            reason = f"line {self._noted_id}, whose hash was noted, {gone}"
        return AuditVerdict(
            is_whole=broken_id is None,
            broken_id=broken_id,
            reason=reason,
            checked=self.id - self._begin,
            last_id=self.id,
            last_hash=self.hash,
        )

    def _why_not(self, line: _Line) -> str:
        if line.id != self.id + 1:
            return f"the {line.id - self.id - 1} lines before it are gone"
        if hash_of(self.hash, line.body) != line.hash:
            return "it was changed, or the line before it was"
        try:
            id, event = _decode_body(line.body)
        except (msgspec.MsgspecError, TypeError):
            return "it cannot be read"
        if id != line.id:
            return "its number was changed"
        if (event.at, event.kind, event.outcome) != (line.at, line.kind, line.outcome):
            # No hash is over them: by another time or kind it would be swept or never found.
            return "the time, kind or outcome that it is found by was changed"
        if line.id == self._noted_id and self._noted_hash and line.hash != self._noted_hash:
            return "its hash is not the one that was noted: the log was rewritten"
        return ""


def _kept(event: ReceivedEvent | LoggedEvent, read: Callable[[], AuditEvent]) -> AuditEvent:
    """The event as it is kept: whose machine it came from is what the broker says, and nothing in it is too long."""
    try:
        told = read()
    except (msgspec.MsgspecError, RecursionError):
        told = AuditEvent(kind="refusal", actor="(unreadable)", action=event.subject, outcome="bad_request")
    machine = event.source.rpartition("@")[2] if "@" in event.source else ""
    cut = {name: value[:_TEXT_MAX] for name, value in msgspec.structs.asdict(told).items() if isinstance(value, str)}
    del cut["kind"]
    return msgspec.structs.replace(told, **{**cut, "host": machine or cut["host"]}, at=event.at)


# Characters of one field.
_TEXT_MAX: Final = 512


def _entry(id: int, body: str, hash: str) -> AuditEntry:
    try:
        event = _decode_body(body)[1]
    except (msgspec.MsgspecError, TypeError):
        event = AuditEvent(kind="refusal", actor="(changed)", action="(changed)", reason="this line was changed")
    return AuditEntry(**msgspec.structs.asdict(event), id=id, hash=str(hash))


def _fits(entry: AuditEntry, request: AuditList) -> bool:
    return fnmatch.fnmatchcase(entry.actor, request.actor) and fnmatch.fnmatchcase(entry.action, request.action)
