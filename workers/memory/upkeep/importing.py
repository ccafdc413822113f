"""Writes records of an export back, field by field, with what search finds of them."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from schemas.bodies.upkeep import Imported, MemoryImport, NewRecord
from schemas.errors import BadRequest, BusError, Conflict, Unprocessable
from workers.memory import facts, kv
from workers.memory.items import floors, writing
from workers.memory.items.rows import IS_LIVE, encode_tags
from workers.memory.outcome import Event, Outcome, changed
from workers.memory.records import Records
from workers.memory.text import check_texts
from workers.memory.upkeep import searchable
from workers.memory.upkeep.kinds import (
    FLAGS,
    KINDS,
    LISTED,
    Data,
    FactData,
    Kind,
    MemoryData,
    Parts,
    TurnData,
    is_packed,
)
from workers.memory.values import pack

_OPERATION: Final = "memory.import"

# How a validation error names a field that is not there or not known.
_FIELD: Final = re.compile(r"(?:missing required|unknown) field `([^`]*)`")

# Fields that hold any value.
_OPEN: Final = frozenset({"value", "data"})

Mode = Literal["skip", "replace", "fail"]


class _Part(NamedTuple):
    """One row that belongs to a record, checked, and as it is stored."""

    data: Data
    row: tuple[Any, ...]


class _Prepared(NamedTuple):
    """A record whose fields have been checked. `head` is None where it only continues another one."""

    number: int
    kind: Kind
    ns: str
    key: tuple[Any, ...]
    head: Data | None
    row: tuple[Any, ...]
    parts: list[_Part]


async def import_records(records: Records, request: MemoryImport, request_id: bytes) -> Imported:
    """Write all records, or none. One that is there already, field by field the same, is skipped in every mode.

    Raises BadRequest, Conflict, TooLarge and, for a memory that would lie below itself, Unprocessable; their details
    name the `record`, counted from 0, and the `field`.
    """
    prepared = [prepare(number, record, records.max_body_bytes) for number, record in enumerate(request.records)]

    def write(connection: sqlite3.Connection, now: float) -> Outcome:
        events: list[Event] = []
        memories: list[_Prepared] = []
        for record in prepared:
            told = _write(connection, record, request.on_conflict, now)
            events += told
            if told and isinstance(record.head, MemoryData):
                memories.append(record)
        _refuse_circles(connection, memories, now)
        return Outcome(Imported(imported=len(events), skipped=len(prepared) - len(events)), events)

    return await records.write_once(_OPERATION, request_id, Imported, write)


# Checking ---------------------------------------------------------------------------------------------------------


def prepare(number: int, record: NewRecord, max_bytes: int) -> _Prepared:
    """Check the fields of a record, the `number`-th of its request. Raises BadRequest and TooLarge."""
    kind = KINDS[record.kind]
    fields = dict(record.data)
    try:
        parts = _parts_of(kind, fields, max_bytes)
        if kind.parts is not None and fields.pop("continues", False):
            key = _convert(fields, _key_type(kind))
            return _Prepared(number, kind, record.ns, _key(kind, key), None, (), parts)
        head = _convert(fields, kind.data)
        return _Prepared(
            number, kind, record.ns, _key(kind, head), head, _row(kind.name, kind.columns, head, max_bytes), parts
        )
    except BusError as error:
        raise _located(error, number, record.kind, record.ns) from error


def _parts_of(kind: Kind, fields: dict[str, Any], max_bytes: int) -> list[_Part]:
    """The parts, taken out of `fields`."""
    if kind.parts is None:
        return []
    name, columns = kind.parts.field, kind.parts.data.__struct_fields__
    given = fields.pop(name, [])
    if not isinstance(given, list):
        raise BadRequest(f"{name} is no list", field=name)
    parts = []
    for index, part in enumerate(given):
        data = _convert(part, kind.parts.data, path=f"{name}[{index}]")
        parts.append(_Part(data, _row(kind.parts.table, columns, data, max_bytes)))
    return parts


def _convert(fields: Any, kind: type[Any], path: str = "") -> Any:
    try:
        data = msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        text, _, at = str(error).partition(" - at `$")
        named = _FIELD.search(text)
        field = ".".join(part for part in (path, at.rstrip("`").lstrip("."), named[1] if named else "") if part)
        raise BadRequest(f"{text}{f' (field {field!r})' if field else ''}", field=field or "data") from error
    check_texts(data)
    for name in data.__struct_fields__:
        value = getattr(data, name)
        if isinstance(value, float) and not math.isfinite(value) and name not in _OPEN:
            raise BadRequest(f"{name} is {value}, not a number that can be stored", field=name)
    return data


def _key_type(kind: Kind) -> type[Any]:
    """A Struct of the key's fields alone, for records that continue another one."""
    types = {field.name: field.type for field in msgspec.structs.fields(kind.data)}
    return msgspec.defstruct("Key", [(name, types[name]) for name in kind.key], frozen=True, forbid_unknown_fields=True)


def _key(kind: Kind, data: Any) -> tuple[Any, ...]:
    return tuple(getattr(data, name) for name in kind.key)


def _row(table: str, columns: Sequence[str], data: Data, max_bytes: int) -> tuple[Any, ...]:
    return tuple(_stored(table, column, getattr(data, column), max_bytes) for column in columns)


def _stored(table: str, column: str, value: Any, max_bytes: int) -> Any:
    if is_packed(table, column):
        return pack(value, max_bytes=max_bytes, field=column)
    if value is None:
        return None
    if column in LISTED:
        return encode_tags(value)
    return int(value) if column in FLAGS else value


def _located(error: BusError, number: int, kind: str, ns: str) -> BusError:
    details = {**error.details, "record": number, "kind": kind, "ns": ns}
    return type(error)(f"record {number} ({kind}): {error.message}", **details)


# Writing ----------------------------------------------------------------------------------------------------------


def _write(connection: sqlite3.Connection, record: _Prepared, mode: Mode, now: float) -> list[Event]:
    """Write one record; returns its event, nothing where nothing changed."""
    if record.head is None:
        is_changed = _continue(connection, record, mode)
    else:
        is_changed = _write_whole(connection, record, record.head, mode, now)
    if not is_changed:
        return []
    return [changed(record.ns, "/".join(map(str, record.key)), "import", getattr(record.head, "version", None))]


def _write_whole(connection: sqlite3.Connection, record: _Prepared, head: Data, mode: Mode, now: float) -> bool:
    kind = record.kind
    if isinstance(head, FactData):
        facts.finish_forgetting(connection, record.ns, head.key)
    existing = _find(connection, kind, record.ns, record.key)
    if existing is None:
        _check_free(connection, record)
        _insert(connection, record, head)
    elif _is_same(kind, existing, record.row):
        return _write_parts(connection, record, mode)
    elif mode == "replace" or _has_expired(kind, existing, now):
        _replace(connection, record, head, existing)
        if _says_else(kind, existing, record.row):
            searchable.forget_quotes(connection, record.ns, head)
    elif mode == "skip":
        return False
    else:
        raise _conflict(record, "is there already, and is not the same")
    searchable.put(connection, record.ns, head)
    _write_parts(connection, record, mode)
    return True


def _refuse_circles(connection: sqlite3.Connection, written: Sequence[_Prepared], now: float) -> None:
    """Raise Unprocessable where one of these memories, by what is stored in the end, lies below itself.

    Of the records of a circle the last one is named, which closes it. Every memory on the ways up is read once.
    """
    reaching_a_top: set[tuple[str, str]] = set()
    for record in reversed(written):
        (start,) = record.key
        # From each memory on the way up to its parent.
        way: dict[str, str | None] = {}
        lower: str | None = start
        while lower is not None and lower not in way and (record.ns, lower) not in reaching_a_top:
            upper = _parent_of(connection, record.ns, lower, now)
            way[lower] = upper
            lower = upper
        if lower is None or lower not in way:
            reaching_a_top.update((record.ns, memory_id) for memory_id in way)
        elif lower == start:
            _refuse_circle(connection, record, start, way[start] or start, now)
        # Else there is a circle further up, which is that of another record.


def _refuse_circle(
    connection: sqlite3.Connection, record: _Prepared, memory_id: str, parent_id: str, now: float
) -> None:
    try:
        writing.refuse_cycle(connection, record.ns, memory_id, parent_id, now)
    except Unprocessable as error:
        raise _located(error, record.number, record.kind.name, record.ns) from error


def _parent_of(connection: sqlite3.Connection, ns: str, memory_id: str, now: float) -> str | None:
    row = connection.execute(
        f"SELECT parent_id FROM memories WHERE ns = ? AND id = ? AND {IS_LIVE}", (ns, memory_id, now)
    ).fetchone()
    return row[0] if row is not None else None


def _continue(connection: sqlite3.Connection, record: _Prepared, mode: Mode) -> bool:
    if _find(connection, record.kind, record.ns, record.key) is not None:
        return _write_parts(connection, record, mode)
    raise BadRequest(
        f"record {record.number} continues a {record.kind.name} that is not there; the record before it is missing",
        record=record.number,
        field=record.kind.key[0],
    )


def _write_parts(connection: sqlite3.Connection, record: _Prepared, mode: Mode) -> bool:
    """Write the rows that are missing or, by the mode, differ; True when there were any."""
    parts = record.kind.parts
    if parts is None:
        return False
    is_changed = False
    for part in record.parts:
        is_changed |= _write_part(connection, record, parts, part, mode)
    if is_changed and record.kind.name == "session":
        connection.execute(
            "UPDATE sessions SET turns ="
            " (SELECT coalesce(max(number), 0) FROM turns WHERE ns = sessions.ns AND session_id = sessions.session_id)"
            " WHERE ns = ? AND session_id = ?",
            (record.ns, *record.key),
        )
    return is_changed


def _write_part(connection: sqlite3.Connection, record: _Prepared, parts: Parts, part: _Part, mode: Mode) -> bool:
    columns = parts.data.__struct_fields__
    (owner,) = record.kind.key
    where = (record.ns, *record.key, part.row[0])
    existing = connection.execute(
        f"SELECT {', '.join(columns)} FROM {parts.table} WHERE ns = ? AND {owner} = ? AND {columns[0]} = ?", where
    ).fetchone()
    if existing == part.row or (existing is not None and mode == "skip"):
        return False
    if existing is not None and mode == "fail":
        raise _conflict(record, f"has another {columns[0]} {part.row[0]} already")
    if existing is not None:
        connection.execute(f"DELETE FROM {parts.table} WHERE ns = ? AND {owner} = ? AND {columns[0]} = ?", where)
    connection.execute(
        f"INSERT INTO {parts.table} (ns, {owner}, {', '.join(columns)}) VALUES (?, ?{', ?' * len(columns)})",
        (record.ns, *record.key, *part.row),
    )
    if isinstance(part.data, TurnData):
        searchable.put_turn(connection, record.ns, record.key[0], part.data)
    return True


def _find(connection: sqlite3.Connection, kind: Kind, ns: str, key: tuple[Any, ...]) -> tuple[Any, ...] | None:
    where = " AND ".join(f"{column} = ?" for column in kind.key)
    row: tuple[Any, ...] | None = connection.execute(
        f"SELECT {', '.join(kind.columns)} FROM {kind.table} WHERE ns = ? AND {where}", (ns, *key)
    ).fetchone()
    return row


def _is_same(kind: Kind, existing: tuple[Any, ...], row: tuple[Any, ...]) -> bool:
    """True for the same content; a version may have been raised by an earlier import of the same record."""
    if "version" not in kind.columns:
        return existing == row
    at = kind.columns.index("version")
    same_beside = existing[:at] + existing[at + 1 :] == row[:at] + row[at + 1 :]
    return same_beside and bool(existing[at] >= row[at])


def _says_else(kind: Kind, existing: tuple[Any, ...], row: tuple[Any, ...]) -> bool:
    """False where only what stands beside the content is new. A session loses its turns in any case."""
    if "content" not in kind.columns:
        return True
    at = kind.columns.index("content")
    return bool(existing[at] != row[at])


def _has_expired(kind: Kind, existing: tuple[Any, ...], now: float) -> bool:
    if not kind.expires:
        return False
    expires_at = existing[kind.columns.index("expires_at")]
    return expires_at is not None and expires_at <= now


def _check_free(connection: sqlite3.Connection, record: _Prepared) -> None:
    """Numbers of groups and ids of suggestions are given out over all namespaces."""
    kind = record.kind
    if kind.name not in ("group", "suggestion"):
        return
    taken = connection.execute(f"SELECT ns FROM {kind.table} WHERE {kind.key[0]} = ?", record.key).fetchone()
    if taken is not None:
        raise _conflict(record, f"is a {kind.name} of namespace {taken[0]!r} already")


def _insert(connection: sqlite3.Connection, record: _Prepared, head: Data) -> None:
    kind, row = record.kind, record.row
    if "version" in kind.columns:
        row = _with_version(kind, row, _floor(connection, kind.name, record.ns) + 1)
    derived = searchable.derived(head)
    columns = ("ns", *kind.columns, *derived)
    connection.execute(
        f"INSERT INTO {kind.table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
        (record.ns, *row, *derived.values()),
    )


def _replace(connection: sqlite3.Connection, record: _Prepared, head: Data, existing: tuple[Any, ...]) -> None:
    kind, row = record.kind, record.row
    if "version" in kind.columns:
        row = _with_version(kind, row, existing[kind.columns.index("version")] + 1)
    derived = searchable.derived(head)
    names = ", ".join(f"{column} = ?" for column in (*kind.columns, *derived))
    where = " AND ".join(f"{column} = ?" for column in kind.key)
    connection.execute(
        f"UPDATE {kind.table} SET {names} WHERE ns = ? AND {where}",
        (*row, *derived.values(), record.ns, *record.key),
    )
    if kind.parts is not None:
        (owner,) = kind.key
        if kind.name == "session":
            searchable.remove_turns(connection, record.ns, record.key[0])
            # Counted again with the turns that the record brings; it may bring none.
            connection.execute(
                "UPDATE sessions SET turns = 0 WHERE ns = ? AND session_id = ?", (record.ns, record.key[0])
            )
        connection.execute(f"DELETE FROM {kind.parts.table} WHERE ns = ? AND {owner} = ?", (record.ns, *record.key))


def _floor(connection: sqlite3.Connection, kind: str, ns: str) -> int:
    """A version once seen in the namespace must never fit another content."""
    match kind:
        case "kv":
            return kv.floor(connection, ns)
        case "memory" | "document" | "context":
            return floors.floor(connection, ns, kind)
    return 0


def _with_version(kind: Kind, row: tuple[Any, ...], lowest: int) -> tuple[Any, ...]:
    at = kind.columns.index("version")
    return (*row[:at], max(row[at], lowest), *row[at + 1 :])


def _conflict(record: _Prepared, why: str) -> Conflict:
    name = "/".join(map(str, record.key))
    return Conflict(
        f"record {record.number}: {record.kind.name} {name!r} in namespace {record.ns!r} {why}",
        record=record.number,
        field=record.kind.key[0],
        kind=record.kind.name,
        ns=record.ns,
    )
