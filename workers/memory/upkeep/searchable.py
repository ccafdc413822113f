"""What search finds of an imported record: its chunks and tags, the same as where it was written first."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from workers.memory import chunks
from workers.memory.items.chunking import cut, titled
from workers.memory.sessions import suggestions, turns
from workers.memory.upkeep.kinds import Data, DocumentData, FactData, MemoryData, SessionData, SuggestionData, TurnData

# Chunks of a session taken away by one statement.
_REMOVED_AT_ONCE: Final = 1_000


def derived(data: Data) -> dict[str, Any]:
    """Columns that say again what others say, and are not exported."""
    if isinstance(data, DocumentData):
        return {"characters": len(data.content), "chunks": len(titled(cut(data.content), data.title))}
    if isinstance(data, SuggestionData):
        return {"fingerprint": bytes.fromhex(data.suggestion_id.removeprefix("sug-"))}
    return {}


def put(connection: sqlite3.Connection, ns: str, data: Data) -> None:
    """Make a record of a kind that search knows findable, in the place of what it was."""
    match data:
        case FactData():
            text = f"{data.key}: {data.value}"
            chunks.put(connection, ns=ns, kind="fact", source_id=data.key, pieces=cut(text), at=data.updated_at)
        case DocumentData():
            chunks.put(
                connection,
                ns=ns,
                kind="document",
                source_id=data.doc_id,
                pieces=titled(cut(data.content), data.title),
                stream=data.doc_id,
                at=data.at,
            )
        case MemoryData():
            _put_memory(connection, ns, data)


def forget_quotes(connection: sqlite3.Connection, ns: str, data: Data) -> None:
    """Take back what quotes the record as it was before an import replaced it."""
    match data:
        case DocumentData():
            suggestions.forget_source(connection, ns, "document", data.doc_id)
        case MemoryData():
            suggestions.forget_source(connection, ns, "memory", data.id)
        case SessionData():
            suggestions.forget_session(connection, ns, data.session_id)


def put_turn(connection: sqlite3.Connection, ns: str, session_id: str, turn: TurnData) -> None:
    """Make a turn findable, in the place of what it was."""
    chunks.put(
        connection,
        ns=ns,
        kind="turn",
        source_id=f"{session_id}/{turn.number}",
        pieces=cut(turn.content),
        stream=session_id,
        position=turn.number,
        speaker=turns.speaker_of(turn.role, turn.speaker, turn.metadata),
        at=turn.at,
    )


def remove_turns(connection: sqlite3.Connection, ns: str, session_id: str) -> None:
    """Take all turns of a session out of what search finds."""
    while chunks.remove_stream(connection, ns=ns, kind="turn", stream=session_id, limit=_REMOVED_AT_ONCE):
        pass


def _put_memory(connection: sqlite3.Connection, ns: str, memory: MemoryData) -> None:
    connection.execute("DELETE FROM memory_tags WHERE ns = ? AND id = ?", (ns, memory.id))
    connection.executemany(
        "INSERT INTO memory_tags (ns, tag, id) VALUES (?, ?, ?)",
        [(ns, tag, memory.id) for tag in dict.fromkeys(memory.tags)],
    )
    (sequence,) = connection.execute(
        "SELECT sequence FROM memories WHERE ns = ? AND id = ?", (ns, memory.id)
    ).fetchone()
    chunks.put(
        connection,
        ns=ns,
        kind="memory",
        source_id=memory.id,
        pieces=cut(memory.content),
        stream=memory.parent_id,
        position=sequence,
        speaker=memory.speaker,
        at=memory.at,
    )
