"""Suggestions and the switches of the monitor: statements inside a transaction that the caller owns.

A suggestion whose source is gone stays as its fingerprint alone, without a word of it, so that it is not made again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

import msgspec

from schemas.bodies import sessions as bodies
from schemas.errors import NotFound
from workers.memory.outcome import Event, Outcome
from workers.memory.sessions.proactive_policy import Idea

# Stands in the switches for everybody.
EVERYBODY: Final = ""

# Where sessions are kept that name no namespace, and where facts are that name none.
SHARED_NS: Final = "session"
SHARED_FACTS_NS: Final = "user"

_COLUMNS: Final = (
    "suggestion_id, ns, kind, text, reason, evidence, confidence, made_at, user_id, session_id, dismissed_at,"
    " evidence_from"
)

# Leaves the fingerprint. 0x90 is an empty list in msgpack.
_FORGET: Final = (
    "UPDATE suggestions SET text = '', reason = '', evidence = x'90', evidence_from = NULL,"
    " dismissed_at = coalesce(dismissed_at, made_at)"
)

_decode_evidence: Final = msgspec.msgpack.Decoder(list[bodies.Evidence]).decode


def make(
    connection: sqlite3.Connection, session: bodies.Session, ideas: list[Idea], per_hour: int, now: float
) -> Outcome:
    """Keep the ideas that were never kept before, surest first, within what an hour of this session allows."""
    made_lately = connection.execute(
        "SELECT count(*) FROM suggestions WHERE ns = ? AND session_id = ? AND made_at > ?",
        (session.ns, session.session_id, now - 3600.0),
    ).fetchone()[0]
    made: list[bodies.Suggestion] = []
    for idea in sorted(ideas, key=lambda idea: -idea.confidence):
        if made_lately + len(made) >= per_hour:
            break
        if not _has_source(connection, session.ns, idea):
            # Deleted since the search that found it.
            continue
        suggestion = _insert(connection, session, idea, now)
        if suggestion is not None:
            made.append(suggestion)
    return Outcome(made, [Event("memory.suggestion.made", suggestion) for suggestion in made])


def list_made(
    connection: sqlite3.Connection, request: bodies.SuggestList, *, is_enabled: bool, may_touch: Callable[[str], bool]
) -> bodies.Suggestions:
    """Newest first, of those whose evidence lies in a namespace that `may_touch` allows."""
    # Only conditions that are asked for: SQLite finds no index for those that may not count.
    where = ["ns = :ns", "text != ''"]
    if request.session_id is not None:
        where.append("session_id = :session_id")
    if request.user_id is not None:
        # A session is of one user: the + keeps SQLite from the index by user.
        where.append("user_id = :user_id" if request.session_id is None else "+user_id = :user_id")
    if not request.include_dismissed:
        where.append("dismissed_at IS NULL")
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM suggestions WHERE {' AND '.join(where)} ORDER BY made_at DESC, suggestion_id",
        {
            "ns": request.ns,
            "user_id": request.user_id,
            "session_id": request.session_id,
        },
    )
    # Counted after it is known which are left out, or a page would be short.
    readable = (suggestion for suggestion in map(_suggestion, rows) if may_touch(suggestion.evidence_ns))
    return bodies.Suggestions(
        suggestions=list(islice(readable, request.limit)),
        is_on=is_enabled and is_switched_on(connection, request.ns, request.user_id),
    )


def dismiss(connection: sqlite3.Connection, request: bodies.SuggestDismiss, now: float) -> Outcome:
    """Take it off the list; it stays known, so it is not made again. Raises NotFound."""
    where = (request.ns, request.suggestion_id)
    row = connection.execute(
        "SELECT dismissed_at FROM suggestions WHERE ns = ? AND suggestion_id = ? AND text != ''", where
    ).fetchone()
    if row is None:
        raise NotFound(
            f"there is no suggestion {request.suggestion_id!r} in namespace {request.ns!r}",
            ns=request.ns,
            suggestion_id=request.suggestion_id,
        )
    connection.execute(
        "UPDATE suggestions SET dismissed_at = ? WHERE ns = ? AND suggestion_id = ? AND dismissed_at IS NULL",
        (now, *where),
    )
    return Outcome(bodies.SuggestionDismissed(suggestion_id=request.suggestion_id, dismissed=row[0] is None), [])


def switch(connection: sqlite3.Connection, request: bodies.SuggestSwitch, *, is_enabled: bool) -> Outcome:
    """Keep the switch; the reply says what holds now for whom it is about."""
    connection.execute(
        "INSERT INTO suggestion_switches (ns, user_id, is_on) VALUES (?, ?, ?)"
        " ON CONFLICT (ns, user_id) DO UPDATE SET is_on = excluded.is_on",
        (request.ns, request.user_id or EVERYBODY, request.is_on),
    )
    is_on = is_enabled and is_switched_on(connection, request.ns, request.user_id)
    return Outcome(bodies.SuggestSwitched(is_on=is_on, user_id=request.user_id), [])


def is_switched_on(connection: sqlite3.Connection, ns: str, user_id: str | None) -> bool:
    """False where the monitor was switched off for everybody or for this user; None asks about everybody."""
    row = connection.execute(
        "SELECT min(is_on) FROM suggestion_switches WHERE ns = ? AND user_id IN (?, ?)",
        (ns, EVERYBODY, user_id or EVERYBODY),
    ).fetchone()
    return row[0] is None or bool(row[0])


def forget_session(connection: sqlite3.Connection, ns: str, session_id: str) -> None:
    """Forget what was suggested in a session and what rests on it: who deletes a session wants its words gone."""
    where = (ns, session_id)
    connection.execute(f"{_FORGET}, session_id = NULL, user_id = NULL WHERE ns = ? AND session_id = ?", where)
    connection.execute(f"{_FORGET} WHERE ns = ? AND evidence_from = ?", where)


def forget_source(connection: sqlite3.Connection, ns: str, kind: str, source_id: str) -> None:
    """Forget the suggestions that quote a memory or document, which is gone or says something else now."""
    # By a session of the same namespace, or of the one that everybody shares.
    connection.execute(
        f"{_FORGET} WHERE ns IN (?, ?) AND evidence_from = ?", (ns, SHARED_NS, source_of(ns, kind, source_id))
    )


def forget_facts(connection: sqlite3.Connection, ns: str, facts: Iterable[tuple[str, str]]) -> None:
    """Forget the offers to remember what has just been forgotten. facts: keys and values, read only if needed."""
    session_ns = SHARED_NS if ns == SHARED_FACTS_NS else ns
    offers = connection.execute(
        "SELECT suggestion_id, text FROM suggestions WHERE ns = ? AND kind = 'remember' AND text != ''", (session_ns,)
    ).fetchall()
    if not offers:
        return
    offered: dict[str, list[str]] = {}
    for suggestion_id, text in offers:
        # Without the category, which may have been changed.
        offered.setdefault(text.rpartition(" (")[0].lower(), []).append(suggestion_id)
    for key, value in facts:
        for suggestion_id in offered.get(_offer(key, value).lower(), ()):
            connection.execute(f"{_FORGET} WHERE suggestion_id = ?", (suggestion_id,))


def offer_to_remember(key: str, value: str, category: str) -> str:
    """The text of a suggestion to remember a fact."""
    return f"{_offer(key, value)} ({category})?"


def source_of(ns: str, kind: str, source_id: str) -> str:
    """How a memory or document stands in `evidence_from`, where a session stands as its id."""
    return f"{kind} {ns}/{source_id}"


def evidence_ns(ns: str, kind: str | None, evidence_from: str | None) -> str:
    """Where the evidence is kept: turns beside the suggestion, anything else where `evidence_from` says.

    kind: of the evidence, None where there is none any more.
    """
    if kind is None or kind == "turn":
        return ns
    return (evidence_from or "").partition(" ")[2].partition("/")[0]


def _offer(key: str, value: str) -> str:
    return f'Remember "{key}: {value}"'


def _has_source(connection: sqlite3.Connection, session_ns: str, idea: Idea) -> bool:
    if idea.evidence[0].kind == "turn":
        found = connection.execute(
            "SELECT 1 FROM sessions WHERE ns = ? AND session_id = ? AND state != 'deleting'",
            (session_ns, idea.evidence_from),
        )
    else:
        kind, _, place = idea.evidence_from.partition(" ")
        ns, _, source_id = place.partition("/")
        found = connection.execute(
            "SELECT 1 FROM chunks WHERE ns = ? AND kind = ? AND source_id = ? LIMIT 1", (ns, kind, source_id)
        )
    return found.fetchone() is not None


def _insert(
    connection: sqlite3.Connection, session: bodies.Session, idea: Idea, now: float
) -> bodies.Suggestion | None:
    fingerprint = _fingerprint(session, idea)
    suggestion = bodies.Suggestion(
        suggestion_id=f"sug-{fingerprint.hex()}",
        ns=session.ns,
        kind=idea.kind,
        text=idea.text,
        reason=idea.reason,
        evidence=idea.evidence,
        confidence=idea.confidence,
        made_at=now,
        user_id=session.user_id,
        session_id=session.session_id,
        evidence_ns=evidence_ns(session.ns, idea.evidence[0].kind, idea.evidence_from),
    )
    cursor = connection.execute(
        "INSERT OR IGNORE INTO suggestions (suggestion_id, ns, user_id, session_id, kind, text, reason, confidence,"
        " evidence, evidence_from, fingerprint, made_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            suggestion.suggestion_id,
            session.ns,
            session.user_id,
            session.session_id,
            idea.kind,
            idea.text,
            idea.reason,
            idea.confidence,
            msgspec.msgpack.encode(idea.evidence),
            idea.evidence_from,
            fingerprint,
            now,
        ),
    )
    return suggestion if cursor.rowcount == 1 else None


def _fingerprint(session: bodies.Session, idea: Idea) -> bytes:
    """What makes two suggestions the same: to whom, of which kind, about what; not when, nor in which session."""
    same = "\0".join((session.ns, session.user_id, idea.kind, " ".join(idea.about.lower().split())))
    return hashlib.blake2b(same.encode("utf-8", "replace"), digest_size=16).digest()


def _suggestion(row: tuple[Any, ...]) -> bodies.Suggestion:
    suggestion_id, ns, kind, text, reason, packed, confidence, made_at, user_id, session_id, dismissed_at, source = row
    evidence = _decode_evidence(packed)
    return bodies.Suggestion(
        suggestion_id=suggestion_id,
        ns=ns,
        kind=kind,
        text=text,
        reason=reason,
        evidence=evidence,
        confidence=confidence,
        made_at=made_at,
        user_id=user_id,
        session_id=session_id,
        dismissed_at=dismissed_at,
        evidence_ns=evidence_ns(ns, evidence[0].kind if evidence else None, source),
    )
