"""The statements behind the SQLite tier, each inside a transaction that its caller owns. Times are epoch seconds."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from schemas.errors import Conflict
from workers.memory.hot.tier import MAX_VALUE_BYTES, NO_NUMBER, SPACES, Entry, Size, Space

# Version of the tables below. A file of another version is made anew: it is only a cache.
SCHEMA_VERSION: Final = 2

# Bytes of a row beside key and value, for the size cap: row, three indexes, page slack (measured 130 at 100,000 rows).
ROW_OVERHEAD_BYTES: Final = 130

# Part of the cap that eviction leaves, so that not every write past it evicts.
EVICT_TO: Final = 0.95

# Rows looked at in one step of a sweep or an eviction.
STEP_ROWS: Final = 500

# ids come from AUTOINCREMENT, never reused: a changed entry is another row, which the hand-over to Redis relies on.
# expires_at is infinite for an entry without an end. `joined` has its row while a Redis has everything, that server's
# process and the generation of our keys there. The index by use has the counters of sign-in last: a flood of
# cached values must not push them out.
_SCHEMA: Final = f"""
CREATE TABLE entries (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  space INTEGER NOT NULL,
  key BLOB NOT NULL,
  size INTEGER NOT NULL,
  used_at REAL NOT NULL,
  expires_at REAL NOT NULL,
  value BLOB NOT NULL,
  UNIQUE (space, key)
);
CREATE INDEX entries_by_expiry ON entries (expires_at);
CREATE INDEX entries_by_use ON entries (space = {SPACES.index("auth")}, used_at);
CREATE TABLE totals (space INTEGER PRIMARY KEY, keys INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals VALUES {", ".join(f"({number}, 0, 0)" for number in range(len(SPACES)))};
CREATE TRIGGER entries_added AFTER INSERT ON entries BEGIN
  UPDATE totals SET keys = keys + 1, bytes = bytes + new.size WHERE space = new.space;
END;
CREATE TRIGGER entries_removed AFTER DELETE ON entries BEGIN
  UPDATE totals SET keys = keys - 1, bytes = bytes - old.size WHERE space = old.space;
END;
CREATE TABLE families (prefix TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE joined (server TEXT NOT NULL, generation TEXT NOT NULL);
PRAGMA user_version = {SCHEMA_VERSION};
"""

_NUMBER: Final = {space: number for number, space in enumerate(SPACES)}


class Found(NamedTuple):
    """A live row. `value` is None where it is longer than was asked for."""

    id: int
    value: bytes | None
    used_at: float
    expires_at: float


class Row(NamedTuple):
    """A row on its way to another tier; `ttl_s` is None for one without an end."""

    id: int
    key: str
    value: bytes
    ttl_s: float | None


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file."""
    connection.executescript(_SCHEMA)


def find(connection: sqlite3.Connection, space: Space, key: bytes, now: float, *, max_bytes: int) -> Found | None:
    """The live entry; its value only when it has at most `max_bytes`."""
    row = connection.execute(
        "SELECT id, CASE WHEN length(value) <= ? THEN value END, used_at, expires_at FROM entries"
        " WHERE space = ? AND key = ? AND expires_at > ?",
        (max_bytes, _NUMBER[space], key, now),
    ).fetchone()
    return Found(*row) if row is not None else None


def entry(found: Found, now: float) -> Entry:
    """What a caller sees of a row read whole."""
    assert found.value is not None
    return Entry(found.value, None if found.expires_at == math.inf else found.expires_at - now)


def put(
    connection: sqlite3.Connection, space: Space, key: bytes, value: bytes, *, now: float, expires_at: float
) -> None:
    """Store the entry, whatever was there."""
    number = _NUMBER[space]
    connection.execute("DELETE FROM entries WHERE space = ? AND key = ?", (number, key))
    connection.execute(
        "INSERT INTO entries (space, key, size, used_at, expires_at, value) VALUES (?, ?, ?, ?, ?, ?)",
        (number, key, len(key) + len(value), now, expires_at, value),
    )


def remove(connection: sqlite3.Connection, space: Space, key: bytes, *, now: float) -> bool:
    """Remove the entry; True when it was live."""
    was_live = find(connection, space, key, now, max_bytes=0) is not None
    connection.execute("DELETE FROM entries WHERE space = ? AND key = ?", (_NUMBER[space], key))
    return was_live


def increment(connection: sqlite3.Connection, space: Space, key: bytes, *, now: float, expires_at: float) -> int:
    """Add one; `expires_at` holds for an entry that starts here. Raises Conflict for what is not a whole number."""
    found = find(connection, space, key, now, max_bytes=20)
    total = 1
    if found is not None:
        digits = found.value if found.value is not None else b""
        if not digits.removeprefix(b"-").isdigit():
            raise Conflict(NO_NUMBER, field="key")
        total, expires_at = int(digits) + 1, found.expires_at
    put(connection, space, key, b"%d" % total, now=now, expires_at=expires_at)
    return total


def touch(connection: sqlite3.Connection, space: Space, key: bytes, *, now: float, expires_at: float) -> bool:
    """Move the end of a live entry."""
    found = find(connection, space, key, now, max_bytes=MAX_VALUE_BYTES)
    if found is None or found.value is None:
        return False
    put(connection, space, key, found.value, now=now, expires_at=expires_at)
    return True


def measure(connection: sqlite3.Connection, space: Space, prefixes: Iterable[bytes], now: float) -> Size:
    """Live entries under the prefixes, which do not overlap."""
    keys = size_bytes = 0
    for prefix in prefixes:
        where, values = _under(space, prefix)
        row = connection.execute(
            f"SELECT count(*), total(size) FROM entries WHERE {where} AND expires_at > ?", (*values, now)
        ).fetchone()
        keys, size_bytes = keys + row[0], size_bytes + int(row[1])
    return Size(keys, size_bytes)


def remove_prefixes(connection: sqlite3.Connection, space: Space, prefixes: Iterable[bytes], now: float) -> int:
    """Remove what starts with any of the prefixes; the number of live entries among it."""
    removed = 0
    for prefix in prefixes:
        where, values = _under(space, prefix)
        removed += connection.execute(
            f"SELECT count(*) FROM entries WHERE {where} AND expires_at > ?", (*values, now)
        ).fetchone()[0]
        connection.execute(f"DELETE FROM entries WHERE {where}", values)
    return removed


def has_expired(connection: sqlite3.Connection, now: float) -> bool:
    """True when `sweep` would find something."""
    return connection.execute("SELECT 1 FROM entries WHERE expires_at <= ? LIMIT 1", (now,)).fetchone() is not None


def sweep(connection: sqlite3.Connection, now: float) -> int:
    """Remove up to STEP_ROWS expired entries; how many."""
    return connection.execute(
        "DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
        (now, STEP_ROWS),
    ).rowcount


def mark_used(connection: sqlite3.Connection, ids: Iterable[int], now: float) -> None:
    """Note that the rows were read."""
    connection.executemany("UPDATE entries SET used_at = ? WHERE id = ?", [(now, row_id) for row_id in ids])


def evict(connection: sqlite3.Connection, max_bytes: int) -> int:
    """Bring the tier under its cap, the longest unused entries first and those of sign-in last; how many went."""
    keys, size_bytes = connection.execute("SELECT total(keys), total(bytes) FROM totals").fetchone()
    held = size_bytes + keys * ROW_OVERHEAD_BYTES
    evicted = 0
    if held <= max_bytes:
        return 0
    while held > max_bytes * EVICT_TO:
        rows = connection.execute(
            f"SELECT id, size FROM entries ORDER BY space = {_NUMBER['auth']}, used_at LIMIT ?", (STEP_ROWS,)
        ).fetchall()
        gone: list[tuple[int]] = []
        for row_id, size in rows:
            if held <= max_bytes * EVICT_TO:
                break
            gone.append((row_id,))
            held -= size + ROW_OVERHEAD_BYTES
        if not gone:
            break
        connection.executemany("DELETE FROM entries WHERE id = ?", gone)
        evicted += len(gone)
    return evicted


def newest_id(connection: sqlite3.Connection) -> int:
    """The highest id ever given; 0 before the first."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entries'").fetchone()
    return row[0] if row is not None else 0


def rows_between(
    connection: sqlite3.Connection,
    space: Space,
    last_id: int,
    up_to: int,
    now: float,
    *,
    max_rows: int,
    max_bytes: int,
) -> list[Row]:
    """Live rows behind `last_id` up to `up_to`, in the order of their ids; `max_rows` and about `max_bytes` at most."""
    rows: list[Row] = []
    size_bytes = 0
    cursor = connection.execute(
        "SELECT id, key, value, expires_at, size FROM entries"
        " WHERE space = ? AND id > ? AND id <= ? AND expires_at > ? ORDER BY id LIMIT ?",
        (_NUMBER[space], last_id, up_to, now, max_rows),
    )
    for row_id, key, value, expires_at, size in cursor:
        rows.append(Row(row_id, key.decode(), value, None if expires_at == math.inf else expires_at - now))
        size_bytes += size
        if size_bytes >= max_bytes:
            break
    return rows


def remove_rows(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Remove these rows and no later ones of the same keys."""
    connection.executemany("DELETE FROM entries WHERE id = ?", [(row_id,) for row_id in ids])


def families(connection: sqlite3.Connection) -> list[str]:
    """Every family that was added."""
    return [prefix for (prefix,) in connection.execute("SELECT prefix FROM families")]


def add_family(connection: sqlite3.Connection, prefix: str) -> None:
    """Keep that keys with this first part were written."""
    connection.execute("INSERT OR IGNORE INTO families (prefix) VALUES (?)", (prefix,))


def begin_outage(connection: sqlite3.Connection) -> None:
    """Keep that no Redis has what is written from now on."""
    connection.execute("DELETE FROM joined")


def end_outage(connection: sqlite3.Connection, server: str, generation: str) -> None:
    """That process of a Redis has everything, under that generation."""
    connection.execute("DELETE FROM joined")
    connection.execute("INSERT INTO joined (server, generation) VALUES (?, ?)", (server, generation))


def generation_at(connection: sqlite3.Connection, server: str) -> str | None:
    """The generation under which that process has everything; None where it missed something."""
    row = connection.execute("SELECT generation FROM joined WHERE server = ?", (server,)).fetchone()
    return row[0] if row is not None else None


def _under(space: Space, prefix: bytes) -> tuple[str, tuple[int | bytes, ...]]:
    if not prefix:
        return "space = ?", (_NUMBER[space],)
    # UTF-8 has no byte 0xFF, so the last byte has a successor.
    return "space = ? AND key >= ? AND key < ?", (_NUMBER[space], prefix, prefix[:-1] + bytes([prefix[-1] + 1]))
