"""The chunks that search finds: written with what they are cut from, in the same transaction, with the order to embed.

Knows no encoder and no vector index; both follow the table `outbox`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """One chunk of a source: its text and the characters of the source it covers."""

    text: str
    start: int
    end: int


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
    """Make `pieces` what search finds of a source, in the place of what it had.

    Chunks of one `stream` are neighbours, in the order of `position`; several pieces of one source share its place
    and follow each other. `at`: epoch seconds.
    """
    remove(connection, ns=ns, kind=kind, source_id=source_id)
    for number, piece in enumerate(pieces):
        cursor = connection.execute(
            'INSERT INTO chunks (ns, kind, source_id, stream, position, start, "end", text, speaker, at)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                ns,
                kind,
                source_id,
                stream,
                position + number / len(pieces),
                piece.start,
                piece.end,
                piece.text,
                speaker,
                at,
            ),
        )
        connection.execute("INSERT INTO outbox (chunk_id, action) VALUES (?, 'embed')", (cursor.lastrowid,))


def remove(connection: sqlite3.Connection, *, ns: str, kind: str, source_id: str) -> None:
    """Take a source out of what search finds."""
    where = (ns, kind, source_id)
    connection.execute(
        "INSERT INTO outbox (chunk_id, action)"
        " SELECT id, 'remove' FROM chunks WHERE ns = ? AND kind = ? AND source_id = ? ORDER BY start",
        where,
    )
    connection.execute("DELETE FROM chunks WHERE ns = ? AND kind = ? AND source_id = ?", where)
