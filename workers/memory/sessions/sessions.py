"""Sessions: opened, used, ended by their user or by time, deleted. Knows no search and no bus."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import Callable
from typing import Any, Final

from schemas.bodies import sessions as bodies
from schemas.errors import Conflict, NotFound
from workers.memory.items.chunking import cut
from workers.memory.outcome import Event, Outcome, changed
from workers.memory.records import Records
from workers.memory.sessions import suggestions, turns
from workers.memory.sessions.tokens import MESSAGE_TOKENS, TokenCounter
from workers.memory.sessions.turns import PreparedTurn
from workers.memory.text import check_texts
from workers.memory.uses import noting_use
from workers.memory.values import pack, unpack

# Bytes of a session's, turn's or context's metadata: every listing carries it.
METADATA_BYTES: Final = 262_144

# Sessions ended, and turns or chunks removed, in one transaction, so that no write waits long behind it.
BATCH_ROWS: Final = 500

# Characters of new turns that are cut into chunks in the event loop; more goes to a thread.
CUT_HERE_CHARACTERS: Final = 65_536

# What a reply carries beside the metadata and the summary of a session, bytes. Generous.
SESSION_OVERHEAD_BYTES: Final = 2_048

_COLUMNS: Final = (
    "session_id, ns, user_id, type, state, turns, created_at, last_used_at, expires_at, ended_at, ttl_s, summary,"
    " metadata"
)

# A session whose time is over is expired for everybody, whether or not the sweep has seen it.
_STATE: Final = "CASE WHEN state = 'open' AND expires_at <= :now THEN 'expired' ELSE state END"

# The same as conditions; None asks for all there are.
_IS_IN: Final[dict[bodies.SessionState | None, str]] = {
    None: "state != 'deleting'",
    "open": "state = 'open' AND (expires_at IS NULL OR expires_at > :now)",
    "closed": "state = 'closed'",
    "expired": "(state = 'expired' OR (state = 'open' AND expires_at <= :now))",
}

OnTurns = Callable[[str, str], None]


class Sessions:
    """Sessions and their turns.

    Every method takes the operation's request; writes take the request id too and happen once for it. `on_turns` hears
    namespace and session of every append that is committed. Raises the errors of `schemas.errors` that a method names.
    """

    def __init__(self, records: Records, counter: TokenCounter, *, ttl_s: float, on_turns: OnTurns) -> None:
        self._records = records
        self._counter = counter
        self._ttl_s = ttl_s
        self._on_turns = on_turns

    async def create(self, request: bodies.SessionCreate, request_id: bytes) -> bodies.Session:
        """Open a session. Raises Conflict for an id that is in use."""
        check_texts(request)
        metadata = pack(request.metadata, max_bytes=METADATA_BYTES, field="metadata")
        session_id = request.session_id or f"ses-{uuid.UUID(bytes=request_id)}"
        return await self._records.write_once(
            "memory.session.create",
            request_id,
            bodies.Session,
            lambda connection, now: _create(connection, request, session_id, metadata, self._ttl_s, now),
        )

    async def get(self, request: bodies.SessionGet) -> bodies.Session:
        """One session, also one that ended. Raises NotFound."""
        check_texts(request)
        if request.touch:
            await self._touch(request.ns, request.session_id)
        now = self._records.now()
        return await self._records.read_here(lambda connection: read(connection, request.ns, request.session_id, now))

    async def append(self, request: bodies.SessionAppend, request_id: bytes) -> bodies.SessionAppended:
        """Add turns, all or none. Raises NotFound, and Conflict for a session that ended."""
        check_texts(request)
        prepared = await _prepare(request.turns)
        reply = await self._records.write_once(
            "memory.session.append",
            request_id,
            bodies.SessionAppended,
            lambda connection, now: _append(connection, request, prepared, now),
        )
        self._on_turns(request.ns, request.session_id)
        return reply

    async def history(self, request: bodies.SessionHistory) -> bodies.SessionTurns:
        """The newest turns within the limits, oldest first. Raises NotFound."""
        check_texts(request)
        if request.touch:
            await self._touch(request.ns, request.session_id)
        now = self._records.now()

        def find(connection: sqlite3.Connection) -> list[bodies.Turn]:
            read(connection, request.ns, request.session_id, now)
            return turns.newest(
                connection,
                request.ns,
                request.session_id,
                before=request.before,
                limit=request.limit,
                max_bytes=self._records.page_bytes,
            )

        return await self._fit(request, await self._records.read(find))

    async def update(self, request: bodies.SessionUpdate, request_id: bytes) -> bodies.Session:
        """Change what is given. Raises NotFound."""
        check_texts(request)
        if request.metadata is not None:
            pack(request.metadata, max_bytes=METADATA_BYTES, field="metadata")
        return await self._records.write_once(
            "memory.session.update",
            request_id,
            bodies.Session,
            lambda connection, now: _update(connection, request, now),
        )

    async def close(self, request: bodies.SessionClose, request_id: bytes) -> bodies.SessionClosed:
        """End a session, or delete it; answered when its last turn is gone. Raises NotFound."""
        check_texts(request)
        reply = await self._records.write_once(
            "memory.session.close",
            request_id,
            bodies.SessionClosed,
            lambda connection, now: _close(connection, request, now),
        )
        if reply.deleted:
            await self._remove(request.ns, request.session_id)
        return reply

    async def listing(self, request: bodies.SessionList) -> bodies.Sessions:
        """Sessions of a user or of all, the one used last first."""
        check_texts(request)
        now = self._records.now()
        return await self._records.read(lambda connection: _list(connection, request, now, self._records.page_bytes))

    async def expire(self, now: float) -> None:
        """End the sessions whose time is over. Costs one read when there are none."""
        while await self._records.read(lambda connection: _has_expired(connection, now)):
            await self._records.write(lambda connection, _: _expire(connection, now))

    async def sweep(self, now: float) -> None:
        """`expire`, and finish deletions that were cut off. Costs two reads when there is nothing."""
        await self.expire(now)
        for ns, session_id in await self._records.read(_deleting):
            await self._remove(ns, session_id)

    async def _touch(self, ns: str, session_id: str) -> None:
        with noting_use():
            await self._records.write(lambda connection, now: _touch(connection, ns, session_id, now))

    async def _remove(self, ns: str, session_id: str) -> None:
        while await self._records.write(lambda connection, _: _remove_some(connection, ns, session_id)):
            pass

    async def _fit(self, request: bodies.SessionHistory, found: list[bodies.Turn]) -> bodies.SessionTurns:
        """`found`, newest first, as the reply: without the oldest ones that do not fit the token budget."""
        kept, tokens = found, None
        if request.max_tokens is not None:
            counted = await self._counter.count([turn.content for turn in found], request.model)
            kept, tokens = [], 0
            for turn, cost in zip(found, counted.counts, strict=True):
                if tokens + cost + MESSAGE_TOKENS > request.max_tokens:
                    break
                tokens += cost + MESSAGE_TOKENS
                kept.append(turn)
        # A turn that does not fit alone is passed over, or paging back would never get past it.
        last = kept[-1].number if kept else found[0].number if found else 1
        return bodies.SessionTurns(
            session_id=request.session_id,
            turns=kept[::-1],
            next_before=last if last > 1 else None,
            tokens=tokens,
            left_out=len(found) - len(kept),
        )


def read(connection: sqlite3.Connection, ns: str, session_id: str, now: float) -> bodies.Session:
    """The session as it is at `now`. Raises NotFound."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM sessions WHERE ns = ? AND session_id = ? AND state != 'deleting'", (ns, session_id)
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no session {session_id!r} in namespace {ns!r}", ns=ns, session_id=session_id)
    return _session(row, now)


async def _prepare(new: list[bodies.NewTurn]) -> list[PreparedTurn]:
    if sum(len(turn.content) for turn in new) <= CUT_HERE_CHARACTERS:
        return _prepared(new)
    return await asyncio.to_thread(_prepared, new)


def _prepared(new: list[bodies.NewTurn]) -> list[PreparedTurn]:
    return [
        PreparedTurn(
            turn, cut(turn.content), pack(turn.metadata, max_bytes=METADATA_BYTES, field=f"turns[{number}].metadata")
        )
        for number, turn in enumerate(new)
    ]


def _create(
    connection: sqlite3.Connection,
    request: bodies.SessionCreate,
    session_id: str,
    metadata: bytes,
    default_ttl_s: float,
    now: float,
) -> Outcome:
    row = connection.execute(
        f"SELECT user_id, {_STATE} FROM sessions WHERE ns = :ns AND session_id = :id",
        {"ns": request.ns, "id": session_id, "now": now},
    ).fetchone()
    if row is not None:
        raise _taken(request, session_id, *row)
    ttl_s = request.ttl_s if request.ttl_s is not None else default_ttl_s
    connection.execute(
        "INSERT INTO sessions (ns, session_id, user_id, type, state, created_at, last_used_at, expires_at, ttl_s,"
        " metadata) VALUES (?, ?, ?, ?, 'open', ?, ?, ?, ?, ?)",
        (request.ns, session_id, request.user_id, request.type, now, now, now + ttl_s, ttl_s, metadata),
    )
    session = read(connection, request.ns, session_id, now)
    return Outcome(session, [_event("opened", session, now)])


def _taken(request: bodies.SessionCreate, session_id: str, user_id: str, state: str) -> Conflict:
    if user_id != request.user_id:
        # Whose it is and how it fares is no business of another user's.
        return Conflict(f"session id {session_id!r} is taken: choose another or leave it out", session_id=session_id)
    advice = {
        "open": "it is open: append to it, or close it first",
        "deleting": "it is being deleted: try again in a moment",
    }.get(state, f"it is {state}: append with reopen to go on with it, or delete it first")
    return Conflict(f"session {session_id!r} exists, {advice}", session_id=session_id, state=state)


def _append(
    connection: sqlite3.Connection, request: bodies.SessionAppend, prepared: list[PreparedTurn], now: float
) -> Outcome:
    session = read(connection, request.ns, request.session_id, now)
    events = []
    if session.state != "open":
        if not request.reopen:
            raise Conflict(
                f"session {request.session_id!r} is {session.state}: append with reopen to go on with it",
                session_id=request.session_id,
                state=session.state,
            )
        events = _reopen(connection, session, now)
    first, last = session.turns + 1, session.turns + len(prepared)
    turns.insert(connection, request.ns, request.session_id, first, prepared, now)
    expires_at = None if session.ttl_s is None else now + session.ttl_s
    connection.execute(
        "UPDATE sessions SET turns = ?, last_used_at = ?, expires_at = ? WHERE ns = ? AND session_id = ?",
        (last, now, expires_at, request.ns, request.session_id),
    )
    reply = bodies.SessionAppended(
        session_id=request.session_id, first_number=first, last_number=last, expires_at=expires_at
    )
    return Outcome(reply, [*events, changed(request.ns, request.session_id, "append", last)])


def _reopen(connection: sqlite3.Connection, session: bodies.Session, now: float) -> list[Event]:
    """Open it again. Where its time was over and no sweep has said so, that is said now."""
    where = (session.ns, session.session_id)
    was_open = connection.execute(
        "SELECT 1 FROM sessions WHERE ns = ? AND session_id = ? AND state = 'open'", where
    ).fetchone()
    connection.execute("UPDATE sessions SET state = 'open', ended_at = NULL WHERE ns = ? AND session_id = ?", where)
    events = [_event("expired", session, now)] if was_open else []
    return [*events, _event("opened", session, now, state="open")]


def _touch(connection: sqlite3.Connection, ns: str, session_id: str, now: float) -> Outcome:
    connection.execute(
        "UPDATE sessions SET last_used_at = :now, expires_at = :now + ttl_s"
        " WHERE ns = :ns AND session_id = :id AND state = 'open' AND (expires_at IS NULL OR expires_at > :now)",
        {"now": now, "ns": ns, "id": session_id},
    )
    return Outcome(None, [])


def _update(connection: sqlite3.Connection, request: bodies.SessionUpdate, now: float) -> Outcome:
    session = read(connection, request.ns, request.session_id, now)
    metadata = session.metadata
    if request.metadata is not None:
        metadata = {**metadata, **request.metadata} if request.merge_metadata else request.metadata
    is_renewed = request.ttl_s is not None and session.state == "open"
    ttl_s = request.ttl_s if request.ttl_s is not None else session.ttl_s
    connection.execute(
        "UPDATE sessions SET metadata = ?, summary = ?, ttl_s = ?, expires_at = coalesce(?, expires_at) WHERE ns = ? AND session_id = ?",
        (
            pack(metadata, max_bytes=METADATA_BYTES, field="metadata"),
            session.summary if request.summary is None else request.summary,
            ttl_s,
            now + (ttl_s or 0.0) if is_renewed else None,
            request.ns,
            request.session_id,
        ),
    )
    reply = read(connection, request.ns, request.session_id, now)
    return Outcome(reply, [changed(request.ns, request.session_id, "update")])


def _close(connection: sqlite3.Connection, request: bodies.SessionClose, now: float) -> Outcome:
    session = read(connection, request.ns, request.session_id, now)
    where = (request.ns, request.session_id)
    reply = bodies.SessionClosed(session_id=session.session_id, deleted=request.delete, turns=session.turns)
    if request.delete:
        # Gone for every reader from here on; the turns follow in batches.
        connection.execute("UPDATE sessions SET state = 'deleting' WHERE ns = ? AND session_id = ?", where)
        suggestions.forget_session(connection, *where)
        return Outcome(reply, [_event("closed", session, now, state="deleted")])
    if session.state != "open":
        return Outcome(reply, [])
    connection.execute(
        "UPDATE sessions SET state = 'closed', ended_at = ? WHERE ns = ? AND session_id = ?", (now, *where)
    )
    return Outcome(reply, [_event("closed", session, now, state="closed")])


def _has_expired(connection: sqlite3.Connection, now: float) -> bool:
    row = connection.execute(
        "SELECT 1 FROM sessions WHERE state = 'open' AND expires_at <= ? LIMIT 1", (now,)
    ).fetchone()
    return row is not None


def _expire(connection: sqlite3.Connection, now: float) -> Outcome:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM sessions WHERE state = 'open' AND expires_at <= ? ORDER BY expires_at LIMIT ?",
        (now, BATCH_ROWS),
    ).fetchall()
    expired = [_session(row, now) for row in rows]
    connection.executemany(
        "UPDATE sessions SET state = 'expired', ended_at = expires_at WHERE ns = ? AND session_id = ?",
        [(session.ns, session.session_id) for session in expired],
    )
    return Outcome(len(expired), [_event("expired", session, now) for session in expired])


def _deleting(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT ns, session_id FROM sessions WHERE state = 'deleting' LIMIT 100").fetchall()


def _remove_some(connection: sqlite3.Connection, ns: str, session_id: str) -> Outcome:
    """One batch of a deletion; the reply is False when it was the last."""
    is_deleting = connection.execute(
        "SELECT 1 FROM sessions WHERE ns = ? AND session_id = ? AND state = 'deleting'", (ns, session_id)
    ).fetchone()
    if not is_deleting:
        return Outcome(False, [])
    if turns.remove_some(connection, ns, session_id, BATCH_ROWS):
        return Outcome(True, [])
    connection.execute("DELETE FROM sessions WHERE ns = ? AND session_id = ?", (ns, session_id))
    return Outcome(False, [])


def _list(connection: sqlite3.Connection, request: bodies.SessionList, now: float, page_bytes: int) -> bodies.Sessions:
    # Only conditions that are asked for: SQLite finds no index for those that may not count.
    chosen = _IS_IN[request.state]
    if request.user_id is not None:
        # Few sessions of all in a state are this user's: the + keeps SQLite from the index by state.
        chosen = f"user_id = :user_id AND +{chosen}"
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM sessions WHERE ns = :ns AND {chosen}"
        " ORDER BY last_used_at DESC, session_id LIMIT :limit OFFSET :offset",
        {
            "ns": request.ns,
            "user_id": request.user_id,
            "now": now,
            "limit": request.limit + 1,
            "offset": request.offset,
        },
    )
    found: list[bodies.Session] = []
    size_bytes = 0
    for row in rows:
        size_bytes += SESSION_OVERHEAD_BYTES + 4 * len(row[11]) + len(row[12])
        if len(found) == request.limit or (found and size_bytes > page_bytes):
            return bodies.Sessions(sessions=found, has_more=True)
        found.append(_session(row, now))
    return bodies.Sessions(sessions=found)


def _event(verb: str, session: bodies.Session, now: float, *, state: str | None = None) -> Event:
    body = bodies.SessionEvent(
        session_id=session.session_id,
        ns=session.ns,
        user_id=session.user_id,
        state=state or session.state,
        turns=session.turns,
        at=now,
    )
    return Event(f"memory.session.{verb}", body)


def _session(row: tuple[Any, ...], now: float) -> bodies.Session:
    session_id, ns, user_id, kind, state, count, created_at, last_used_at, expires_at, ended_at, ttl_s, *rest = row
    # One without an end may come with an import.
    if state == "open" and expires_at is not None and expires_at <= now:
        state, ended_at = "expired", expires_at
    summary, metadata = rest
    return bodies.Session(
        session_id=session_id,
        ns=ns,
        user_id=user_id,
        type=kind,
        state=state,
        turns=count,
        created_at=created_at,
        last_used_at=last_used_at,
        expires_at=expires_at if state == "open" else None,
        ended_at=ended_at,
        ttl_s=ttl_s,
        summary=summary,
        metadata=unpack(metadata),
    )
