"""The turns of sessions and their chunks: statements inside a transaction that the caller owns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from schemas.bodies.sessions import NewTurn, Turn
from workers.memory import chunks
from workers.memory.chunks import Piece
from workers.memory.values import unpack

# Roles of machinery: nobody asks what they said. Under any other role somebody speaks.
SPEECHLESS_ROLES: Final = frozenset({"system", "developer", "tool", "function"})

# What a reply carries beside the texts and the metadata of a turn, bytes. Generous.
TURN_OVERHEAD_BYTES: Final = 256

_COLUMNS: Final = "number, role, content, speaker, at, metadata"

_Row = tuple[int, str, str, str | None, float, bytes]


class PreparedTurn:
    """A turn made ready outside the transaction: cut into pieces, its metadata packed."""

    __slots__ = ("metadata", "pieces", "turn")

    def __init__(self, turn: NewTurn, pieces: Sequence[Piece], metadata: bytes) -> None:
        self.turn = turn
        self.pieces = pieces
        self.metadata = metadata


def speaker_of(role: str, speaker: str | None, metadata: dict[str, Any]) -> str | None:
    """Who is speaking: the name that is given, else a role in which somebody speaks."""
    named = speaker or metadata.get("speaker")
    if isinstance(named, str) and named:
        return named
    return None if role.lower() in SPEECHLESS_ROLES else role


def insert(
    connection: sqlite3.Connection, ns: str, session_id: str, first: int, turns: Sequence[PreparedTurn], now: float
) -> None:
    """Write turns from number `first` on, and what search finds of them."""
    for number, prepared in enumerate(turns, first):
        turn = prepared.turn
        at = now if turn.at is None else turn.at
        connection.execute(
            "INSERT INTO turns (ns, session_id, number, role, content, speaker, at, metadata)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (ns, session_id, number, turn.role, turn.content, turn.speaker, at, prepared.metadata),
        )
        chunks.put(
            connection,
            ns=ns,
            kind="turn",
            source_id=f"{session_id}/{number}",
            pieces=prepared.pieces,
            stream=session_id,
            position=number,
            speaker=speaker_of(turn.role, turn.speaker, turn.metadata),
            at=at,
        )


def newest(
    connection: sqlite3.Connection, ns: str, session_id: str, *, before: int | None, limit: int, max_bytes: int
) -> list[Turn]:
    """Up to `limit` turns, and `max_bytes` of them past the first, newest first; `before`: only lower numbers."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM turns WHERE ns = ? AND session_id = ? AND number < ? ORDER BY number DESC LIMIT ?",
        (ns, session_id, before if before is not None else 1 << 62, limit),
    )
    return _within(rows, max_bytes)


def between(
    connection: sqlite3.Connection, ns: str, session_id: str, first: int, last: int, *, max_characters: int
) -> list[Turn]:
    """The turns numbered `first` to `last`, both included, in their order; of each no more than `max_characters`."""
    # Cut as bytes, of which a character has four at most: for SQLite a text ends at a null character.
    columns = _COLUMNS.replace("content", "substr(CAST(content AS BLOB), 1, ?)")
    rows = connection.execute(
        f"SELECT {columns} FROM turns WHERE ns = ? AND session_id = ? AND number BETWEEN ? AND ? ORDER BY number",
        (4 * max_characters, ns, session_id, first, last),
    )
    return [
        _turn((number, role, content.decode(errors="ignore")[:max_characters], speaker, at, metadata))
        for number, role, content, speaker, at, metadata in rows
    ]


def remove_some(connection: sqlite3.Connection, ns: str, session_id: str, limit: int) -> int:
    """Delete up to `limit` turns and up to as many chunks of a session; 0 when nothing is left of it."""
    removed = chunks.remove_stream(connection, ns=ns, kind="turn", stream=session_id, limit=limit)
    cursor = connection.execute(
        "DELETE FROM turns WHERE rowid IN (SELECT rowid FROM turns WHERE ns = ? AND session_id = ? LIMIT ?)",
        (ns, session_id, limit),
    )
    return removed + cursor.rowcount


def _within(rows: Iterable[_Row], max_bytes: int) -> list[Turn]:
    turns: list[Turn] = []
    size_bytes = 0
    for row in rows:
        size_bytes += TURN_OVERHEAD_BYTES + len(row[2].encode()) + len(row[5])
        if turns and size_bytes > max_bytes:
            break
        turns.append(_turn(row))
    return turns


def _turn(row: _Row) -> Turn:
    number, role, content, speaker, at, metadata = row
    return Turn(number=number, role=role, content=content, speaker=speaker, at=at, metadata=unpack(metadata))
