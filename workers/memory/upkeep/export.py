"""Reads everything as records, page by page, from one state of the database.

The state is held by a connection of its own for as long as the export takes; meanwhile the write-ahead log cannot be
folded back into the file and grows with what is written.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, NamedTuple

from schemas.bodies.upkeep import Exported, ExportPart, ExportRecord, MemoryExport
from workers.memory.connection import Connection
from workers.memory.facts import IS_KEPT
from workers.memory.records import Records
from workers.memory.sessions.suggestions import evidence_ns
from workers.memory.sqlite_errors import explain
from workers.memory.upkeep.kinds import FLAGS, KINDS, LISTED, Kind, Parts, is_packed
from workers.memory.values import unpack

# One partial reply ends at this many records, and past its first before this many bytes of them.
PAGE_RECORDS: Final = 500
PAGE_BYTES: Final = 1024 * 1024

# Rows of one session or group in one record, at most; past its first they also end at a page's bytes. The next ones
# are in another record.
PART_ROWS: Final = 1_000

_READER_CACHE_KIB: Final = 2_048

Send = Callable[[ExportPart], Awaitable[None]]


class Sized(NamedTuple):
    """A record, and about how many bytes its columns take."""

    record: ExportRecord
    size_bytes: int


async def export(
    records: Records, request: MemoryExport, send: Send, may_touch: Callable[[str], bool] = lambda ns: True
) -> Exported:
    """Hand every record to `send`, in the order in which they can be imported; returns how many, by kind.

    Entries that have expired are left out. may_touch: of which namespaces the caller may read what a suggestion quotes;
    a suggestion that quotes from another is handed over like one that has been forgotten. Raises the errors of
    `sqlite_errors.explain`, and what `send` raises.
    """
    kinds = [kind for name, kind in KINDS.items() if request.kinds is None or name in request.kinds]
    path = records.database.path
    connection = Connection(path, cache_kib=_READER_CACHE_KIB, is_reader=True)
    counts: Counter[str] = Counter({kind.name: 0 for kind in kinds})
    try:
        await connection
        now = records.now()
        total = await connection.run(lambda raw: _begin(raw, kinds, request.ns, now))
        page_bytes = min(PAGE_BYTES, records.page_bytes)
        pages = await connection.run(lambda raw: _pages(raw, kinds, request.ns, now, page_bytes, may_touch))
        while page := await connection.run(lambda raw: next(pages, None)):
            counts.update(record.kind for record in page if not record.data.get("continues"))
            await send(ExportPart(records=page, done=counts.total(), total=total))
    except sqlite3.Error as error:
        raise explain(error, path) from error
    finally:
        await connection.close()
    return Exported(counts=dict(counts))


def _begin(connection: sqlite3.Connection, kinds: list[Kind], ns: str | None, now: float) -> int:
    """Fix the state that is read from here on; returns how many records it holds."""
    connection.execute("BEGIN")
    total = 0
    for kind in kinds:
        where, values = _where(kind, ns, now)
        total += connection.execute(f"SELECT count(*) FROM {kind.table} WHERE {where}", values).fetchone()[0]
    return total


def _pages(
    connection: sqlite3.Connection,
    kinds: list[Kind],
    ns: str | None,
    now: float,
    page_bytes: int,
    may_touch: Callable[[str], bool],
) -> Iterator[list[ExportRecord]]:
    page: list[ExportRecord] = []
    size_bytes = 0
    for kind in kinds:
        for record, record_bytes in _records(connection, kind, ns, now, page_bytes):
            if kind.name == "suggestion" and not may_touch(_quoted_ns(record)):
                record = _without_quote(record)
            if page and (len(page) == PAGE_RECORDS or size_bytes + record_bytes > page_bytes):
                yield page
                page, size_bytes = [], 0
            page.append(record)
            size_bytes += record_bytes
    if page:
        yield page


def _records(
    connection: sqlite3.Connection, kind: Kind, ns: str | None, now: float, page_bytes: int
) -> Iterator[Sized]:
    where, values = _where(kind, ns, now)
    rows = connection.execute(
        f"SELECT ns, {', '.join(kind.columns)} FROM {kind.table} WHERE {where} ORDER BY {kind.order}", values
    )
    for row_ns, *row in rows:
        data = _data(kind.name, kind.columns, row)
        size_bytes = _size(row)
        if kind.parts is None:
            yield Sized(ExportRecord(kind=kind.name, ns=row_ns, data=data), size_bytes)
            continue
        (key,) = kind.key
        slices = _slices(connection, kind, kind.parts, (row_ns, data[key]), page_bytes)
        first, first_bytes = next(slices, ([], 0))
        data[kind.parts.field] = first
        yield Sized(ExportRecord(kind=kind.name, ns=row_ns, data=data), size_bytes + first_bytes)
        for part, part_bytes in slices:
            further = {key: data[key], "continues": True, kind.parts.field: part}
            yield Sized(ExportRecord(kind=kind.name, ns=row_ns, data=further), part_bytes)


def _slices(
    connection: sqlite3.Connection, kind: Kind, parts: Parts, owner: tuple[str, Any], page_bytes: int
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    columns = parts.data.__struct_fields__
    rows = connection.execute(
        f"SELECT {', '.join(columns)} FROM {parts.table} WHERE ns = ? AND {kind.key[0]} = ? ORDER BY {parts.order}",
        owner,
    )
    part: list[dict[str, Any]] = []
    size_bytes = 0
    for row in rows:
        row_bytes = _size(row)
        if part and (len(part) == PART_ROWS or size_bytes + row_bytes > page_bytes):
            yield part, size_bytes
            part, size_bytes = [], 0
        part.append(_data(parts.table, columns, row))
        size_bytes += row_bytes
    if part:
        yield part, size_bytes


def _quoted_ns(suggestion: ExportRecord) -> str:
    data = suggestion.data
    return evidence_ns(suggestion.ns, data["evidence"][0]["kind"] if data["evidence"] else None, data["evidence_from"])


def _without_quote(suggestion: ExportRecord) -> ExportRecord:
    """As it stands once what it quotes has been forgotten."""
    data = suggestion.data
    gone_at = data["made_at"] if data["dismissed_at"] is None else data["dismissed_at"]
    unquoted = {"text": "", "reason": "", "evidence": [], "evidence_from": None, "dismissed_at": gone_at}
    return ExportRecord(kind=suggestion.kind, ns=suggestion.ns, data={**data, **unquoted})


def _where(kind: Kind, ns: str | None, now: float) -> tuple[str, list[Any]]:
    conditions, values = ["true"], list[Any]()
    if ns is not None:
        conditions.append("ns = ?")
        values.append(ns)
    if kind.expires:
        conditions.append("(expires_at IS NULL OR expires_at > ?)")
        values.append(now)
    if kind.name == "session":
        conditions.append("state <> 'deleting'")
    if kind.name == "fact":
        conditions.append(IS_KEPT)
    return " AND ".join(conditions), values


def _data(kind: str, columns: tuple[str, ...], row: Any) -> dict[str, Any]:
    return {column: _value(kind, column, stored) for column, stored in zip(columns, row, strict=True)}


def _value(kind: str, column: str, stored: Any) -> Any:
    if stored is None:
        return None
    if is_packed(kind, column):
        return unpack(stored)
    if column in LISTED:
        return json.loads(stored)
    return bool(stored) if column in FLAGS else stored


def _size(row: Any) -> int:
    return sum(len(value) if isinstance(value, str | bytes) else 8 for value in row) + 32 * len(row)
