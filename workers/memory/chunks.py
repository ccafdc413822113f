"""The chunks that search finds: written with what they are cut from, in the same transaction, with the order to embed.

Knows no encoder and no vector index; both follow the table `outbox`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

# Chunks that one INSERT statement writes; what is left over goes in one by one. A statement of many rows costs a third
# of as many statements.
_ROWS_AT_ONCE: Final = 16

_COLUMNS: Final = 'ns, kind, source_id, stream, position, start, "end", text, speaker, at'
_SLOTS: Final = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Piece(NamedTuple):
    """One chunk of a source: its text and the characters of the source it covers."""

    text: str
    start: int
    end: int


class Source(NamedTuple):
    """What chunks are cut from, and where it stands.

    Chunks of one `stream` are neighbours, in the order of `position`; several pieces of one source share its place and
    follow each other. A memory stands at its sequence and a turn at its number, by which search finds them again
    (filters.SOURCES). `at`: epoch seconds.
    """

    ns: str
    kind: str
    source_id: str
    pieces: Sequence[Piece]
    at: float
    stream: str | None = None
    position: float = 0.0
    speaker: str | None = None


def whole(text: str) -> list[Piece]:
    """A source that is one chunk."""
    return [Piece(text, 0, len(text))]


def put(
    connection: sqlite3.Connection,
    *,
    ns: str,
    kind: str,
    source_id: str,
    pieces: Sequence[Piece],
    at: float,
    stream: str | None = None,
    position: float = 0.0,
    speaker: str | None = None,
) -> None:
    """Make `pieces` what search finds of a source, in the place of what it had. The fields are those of `Source`."""
    remove(connection, ns=ns, kind=kind, source_id=source_id)
    put_new(connection, [Source(ns, kind, source_id, pieces, at, stream, position, speaker)])


def put_new(connection: sqlite3.Connection, sources: Sequence[Source]) -> None:
    """Make the pieces of `sources`, which had none, what search finds of them."""
    rows = [row for source in sources for row in _rows(source)]
    if len(rows) == 1:
        chunk_id = connection.execute(f"INSERT INTO chunks ({_COLUMNS}) VALUES {_SLOTS}", rows[0]).lastrowid
        connection.execute("INSERT INTO outbox (chunk_id, action) VALUES (?, 'embed')", (chunk_id,))
    elif rows:
        _insert_many(connection, rows)


def remove(connection: sqlite3.Connection, *, ns: str, kind: str, source_id: str) -> None:
    """Take a source out of what search finds."""
    where = (ns, kind, source_id)
    connection.execute(
        "INSERT INTO outbox (chunk_id, action)"
        " SELECT id, 'remove' FROM chunks WHERE ns = ? AND kind = ? AND source_id = ? ORDER BY start",
        where,
    )
    connection.execute("DELETE FROM chunks WHERE ns = ? AND kind = ? AND source_id = ?", where)


def pieces_of(connection: sqlite3.Connection, *, ns: str, kind: str, source_id: str) -> list[Piece]:
    """The pieces of a source as they are stored, in order."""
    rows = connection.execute(
        'SELECT text, start, "end" FROM chunks WHERE ns = ? AND kind = ? AND source_id = ? ORDER BY start',
        (ns, kind, source_id),
    )
    return [Piece(*row) for row in rows]


def remove_stream(connection: sqlite3.Connection, *, ns: str, kind: str, stream: str, limit: int) -> int:
    """Take up to `limit` chunks of a stream out of what search finds, the first first; returns how many went."""
    ids = connection.execute(
        "SELECT id FROM chunks WHERE ns = ? AND stream = ? AND kind = ? ORDER BY position LIMIT ?",
        (ns, stream, kind, limit),
    ).fetchall()
    connection.executemany("INSERT INTO outbox (chunk_id, action) VALUES (?, 'remove')", ids)
    connection.executemany("DELETE FROM chunks WHERE id = ?", ids)
    return len(ids)


def _insert_many(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    # Only new chunks are above: an id is never used again.
    (highest,) = connection.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()
    in_whole = len(rows) - len(rows) % _ROWS_AT_ONCE
    many = f"INSERT INTO chunks ({_COLUMNS}) VALUES {', '.join([_SLOTS] * _ROWS_AT_ONCE)}"
    for first in range(0, in_whole, _ROWS_AT_ONCE):
        connection.execute(many, [value for row in rows[first : first + _ROWS_AT_ONCE] for value in row])
    connection.executemany(f"INSERT INTO chunks ({_COLUMNS}) VALUES {_SLOTS}", rows[in_whole:])
    connection.execute("INSERT INTO outbox (chunk_id, action) SELECT id, 'embed' FROM chunks WHERE id > ?", (highest,))


def _rows(source: Source) -> list[tuple[Any, ...]]:
    return [
        (
            source.ns,
            source.kind,
            source.source_id,
            source.stream,
            source.position + number / len(source.pieces),
            piece.start,
            piece.end,
            piece.text,
            source.speaker,
            source.at,
        )
        for number, piece in enumerate(source.pieces)
    ]
