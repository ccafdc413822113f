"""Moves rows: reads, says what would become of each, writes in batches, goes on where it was cut off, compares.

A row becomes a record of memory (`memory.import`) or one request to another service. Both may be made twice: records
have ids of their own, and so have requests, or they are made only where they are missing. What cannot be moved is listed
with its reason and stops nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from bus.cli.progress import Progress
from bus.sync import SyncClient
from migrate_parts.comparing import Exported
from migrate_parts.stores import LOGS, UnusableStore
from schemas.bodies.base import Request
from schemas.bodies.upkeep import MemoryImport, NewRecord
from schemas.errors import BadRequest, BusError, Conflict, NotFound, TooLarge, Unprocessable
from workers.memory.upkeep.importing import prepare

# Records sent with one request, and characters of text in them from which they are enough.
_BATCH: Final = 500
_BATCH_CHARACTERS: Final = 4_000_000

_TIMEOUT_S: Final = 120.0

# Errors that are about the row and not about the system.
_ABOUT_THE_ROW: Final = (BadRequest, Conflict, TooLarge, Unprocessable, NotFound)


class Asked(NamedTuple):
    """A request that a row becomes.

    check: how to see that it is there: None where it is, else what differs. is_once: it would count twice, so it is made
    only where `check` does not find it; else the service must recognise it by an id in the body. timeout_s: seconds.
    is_there: whether it is there at all, whatever it holds by now; then it is only written over where that is wanted.
    """

    subject: str
    body: Request
    check: Callable[[SyncClient], str | None]
    is_once: bool = False
    timeout_s: float = _TIMEOUT_S
    is_there: Callable[[SyncClient], bool] | None = None


# What a row is turned into; a text is the reason why it is not.
Becomes = NewRecord | Asked | str


class Row(NamedTuple):
    """One row of an old store."""

    table: str
    key: str
    becomes: Becomes


def row(table: str, key: object, make: Callable[[], Becomes]) -> Row:
    """The row that `make` turns into something; what it cannot make sense of becomes the reason."""
    try:
        return Row(table, str(key), make())
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        return Row(table, str(key), f"cannot be read: {error}")


class Store(NamedTuple):
    """One old store: how many rows it has, and the rows, in an order in which they can be written.

    path: None for one that is no file; then nobody notes how far a run got.
    """

    name: str
    path: Path | None
    total: Callable[[], int]
    rows: Callable[[], Iterator[Row]]


class Reject(NamedTuple):
    """A row that was not moved, or does not look the same on both sides."""

    store: str
    table: str
    key: str
    reason: str


class Report:
    """What happened, counted by store and table. written: by this run; there: found there already."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.there: Counter[str] = Counter()
        self.agrees: Counter[str] = Counter()
        self.rejects: list[Reject] = []
        self.differs: list[Reject] = []
        self.unreadable: list[str] = []

    def as_json(self) -> dict[str, Any]:
        """Everything, for --json."""
        return {
            # Without zeros.
            **{name: dict(+getattr(self, name)) for name in ("read", "written", "there", "agrees")},
            "rejected": [reject._asdict() for reject in self.rejects],
            "differs": [reject._asdict() for reject in self.differs],
            "unreadable": self.unreadable,
        }


class Mover:
    """One migration of some stores.

    mark: the file that says how far it got; with `is_again` that is not looked at. is_replacing: write over what differs.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        mark: Path,
        *,
        max_body_bytes: int,
        is_replacing: bool = False,
        is_again: bool = False,
        is_quiet: bool = False,
    ) -> None:
        self._stores = stores
        self._mark = mark
        self._max_body_bytes = max_body_bytes
        self._is_replacing = is_replacing
        self._is_again = is_again or is_replacing
        self._is_quiet = is_quiet
        # Store, table and key of what the services did not take in this run.
        self._refused: set[tuple[str, str, str]] = set()
        self.report = Report()

    # Passes

    def dry_run(self) -> None:
        """Read everything and check what each row would become; nothing is asked and nothing written."""
        for store in self._stores:
            for one in self._rows(store, "read"):
                self._count(self.report.read, store, one)
                self._check(store, one)

    def move(self, client: SyncClient) -> None:
        """Write what is not there. Raises BusError for what is not about a row: a later run goes on from here."""
        marks = self._read_marks()
        exported = Exported(client) if self._is_replacing else None
        for store in self._stores:
            stamp = _stamp(store)
            mark = {} if self._is_again or not stamp else marks.get(store.name) or {}
            is_known = mark.get("stamp") == stamp
            done = mark["rows"] if is_known else 0
            # Table and key of what was refused, which is tried again: the system may be another one by now.
            refused = {tuple(one) for one in mark["refused"]} if is_known else set()
            position = 0
            for batch in _batches(self._rows(store, "move")):
                fresh = [
                    one
                    for at, one in enumerate(batch, position + 1)
                    if self._is_fresh(store, one, at > done or one[:2] in refused)
                ]
                position += len(batch)
                self._write(client, store, fresh, exported)
                tried = {one[:2] for one in fresh}
                refused = (refused - tried) | {one for one in tried if (store.name, *one) in self._refused}
                if stamp and (fresh or position > done):
                    marks[store.name] = {"stamp": stamp, "rows": max(position, done), "refused": sorted(refused)}
                    self._write_marks(marks)

    def verify(self, client: SyncClient) -> None:
        """Compare every row that has become something with what is there now."""
        exported = Exported(client)
        for store in self._stores:
            for one in self._rows(store, "compare"):
                is_refused = (store.name, one.table, one.key) in self._refused
                if is_refused or isinstance(one.becomes, str) or self._flaw(one.becomes):
                    continue
                why = _difference(one.becomes, client, exported)
                if why is None:
                    self._count(self.report.agrees, store, one)
                else:
                    self.report.differs.append(Reject(store.name, one.table, one.key, why))

    # Rows

    def _rows(self, store: Store, stage: str) -> Iterator[Row]:
        try:
            with Progress(is_shown=not self._is_quiet) as progress:
                total = store.total()
                for done, one in enumerate(store.rows(), 1):
                    progress.show(f"{stage} {store.name}", done, max(total, done))
                    yield one
        except UnusableStore as error:
            if str(error) not in self.report.unreadable:
                self.report.unreadable.append(str(error))

    def _count(self, counter: Counter[str], store: Store, one: Row) -> None:
        counter[f"{store.name}:{one.table}"] += 1

    def _is_fresh(self, store: Store, one: Row, is_left: bool) -> bool:
        """Count a row; True where it is still to be written.

        What is wrong with those of before is told again: whoever looks at this run's rejects wants all of them.
        """
        self._count(self.report.read, store, one)
        is_good = self._check(store, one)
        if is_good and not is_left:
            self._count(self.report.there, store, one)
        return is_good and is_left

    def _check(self, store: Store, one: Row) -> bool:
        """False where a row cannot be moved; why is listed."""
        why = one.becomes if isinstance(one.becomes, str) else self._flaw(one.becomes)
        if why:
            self._reject(store, one, why)
        return not why

    def _flaw(self, becomes: NewRecord | Asked) -> str:
        """What is wrong with what a row would become, as far as can be said without asking."""
        try:
            if isinstance(becomes, Asked):
                msgspec.msgpack.encode(msgspec.convert(msgspec.to_builtins(becomes.body), type(becomes.body)))
            else:
                msgspec.convert({"kind": becomes.kind, "ns": becomes.ns, "data": {}}, NewRecord)
                prepare(0, becomes, self._max_body_bytes)
        except BusError as error:
            return error.message.removeprefix(f"record 0 ({getattr(becomes, 'kind', '')}): ")
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            return str(error)
        return ""

    def _reject(self, store: Store, one: Row, why: str) -> None:
        self.report.rejects.append(Reject(store.name, one.table, one.key, why))

    def _refuse(self, store: Store, one: Row, why: str) -> None:
        self._refused.add((store.name, one.table, one.key))
        self._reject(store, one, why)

    # Writing

    def _write(self, client: SyncClient, store: Store, rows: Sequence[Row], exported: Exported | None) -> None:
        # Rows keep their order: what was read before goes before.
        for table, group in itertools.groupby(rows, lambda one: (one.table, isinstance(one.becomes, NewRecord))):
            if table[1]:
                self._import(client, store, list(group), exported)
            else:
                for one in group:
                    self._ask(client, store, one)

    def _ask(self, client: SyncClient, store: Store, one: Row) -> None:
        asked = one.becomes
        assert isinstance(asked, Asked)
        try:
            is_kept = asked.is_there is not None and not self._is_replacing and asked.is_there(client)
            if is_kept or (asked.is_once and asked.check(client) is None):
                self._count(self.report.there, store, one)
                return
            client.request(asked.subject, asked.body, timeout_s=asked.timeout_s, id=_request_id(store, one))
        except _ABOUT_THE_ROW as error:
            self._refuse(store, one, error.message)
            return
        self._count(self.report.written, store, one)

    def _import(self, client: SyncClient, store: Store, rows: list[Row], exported: Exported | None) -> None:
        """All of one table, or without those that are refused one by one."""
        if exported is not None:
            # Only what differs is written over: the rest keeps its versions and what has been counted since.
            count, place = len(rows), f"{store.name}:{rows[0].table}"
            rows = [one for one in rows if _difference(one.becomes, client, exported) is not None]
            self.report.there[place] += count - len(rows)
        while rows:
            records = [one.becomes for one in rows if isinstance(one.becomes, NewRecord)]
            body = MemoryImport(records=records, on_conflict="replace" if self._is_replacing else "skip")
            try:
                reply = client.request("memory.import", body, timeout_s=_TIMEOUT_S)
            except _ABOUT_THE_ROW as error:
                number = error.details.get("record")
                if not isinstance(number, int) or not 0 <= number < len(rows):
                    if len(rows) > 1:
                        middle = len(rows) // 2
                        self._import(client, store, rows[:middle], None)
                        self._import(client, store, rows[middle:], None)
                        return
                    number = 0
                self._refuse(store, rows.pop(number), error.message)
                continue
            self.report.written[f"{store.name}:{rows[0].table}"] += reply.imported
            self.report.there[f"{store.name}:{rows[0].table}"] += reply.skipped
            return

    # How far it got

    def _read_marks(self) -> dict[str, Any]:
        try:
            marks = json.loads(self._mark.read_text())
            return marks if isinstance(marks, dict) else {}
        except (OSError, ValueError):
            return {}

    def _write_marks(self, marks: dict[str, Any]) -> None:
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        draft = self._mark.with_suffix(".new")
        draft.write_text(json.dumps(marks))
        draft.replace(self._mark)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """As many rows as one request takes."""
    batch: list[Row] = []
    characters = 0
    for one in rows:
        batch.append(one)
        if isinstance(one.becomes, NewRecord):
            characters += sum(len(value) for value in one.becomes.data.values() if isinstance(value, str))
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _difference(becomes: Becomes, client: SyncClient, exported: Exported) -> str | None:
    if isinstance(becomes, NewRecord):
        return exported.difference(becomes)
    assert isinstance(becomes, Asked)
    try:
        return becomes.check(client)
    except _ABOUT_THE_ROW as error:
        return error.message


def _request_id(store: Store, one: Row) -> bytes:
    """The same row is the same request, however often it is sent."""
    body = one.becomes.body if isinstance(one.becomes, Asked) else one.becomes
    return hashlib.sha256(f"{store.name}\0{one.table}\0{one.key}\0{body!r}".encode("utf-8", "replace")).digest()[:16]


def _stamp(store: Store) -> str:
    """Changes whenever the file does, or what SQLite keeps beside it; empty for what is no file."""
    if store.path is None:
        return ""
    parts = [store.path, *(store.path.with_name(store.path.name + suffix) for suffix in LOGS)]
    there = [part.stat() for part in parts if part.exists()]
    return f"{store.path.resolve()}:" + ":".join(f"{status.st_size}:{status.st_mtime_ns}" for status in there)
