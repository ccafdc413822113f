"""Statements on kept exchanges: takes in answers, settles outcomes, finds and forgets; knows no bus.

Everything here runs inside one transaction of `Records.run`, in its one thread.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from schemas.bodies.learning import AnswerEvent, Exchange, ExchangeDelete, ExchangeList
from schemas.bodies.model import ChatMessage
from workers.learning.exchanges import signals
from workers.learning.exchanges.confidence import Confidence
from workers.learning.exchanges.sessions import PAUSE_S, session_of, thread_before, thread_of
from workers.learning.exchanges.words import Frequencies, question_of, words_of

# Exchanges of a model from which what is usual is learned again at a start.
_RELEARNED: Final = 1_000

_COLUMNS: Final = (
    "reply_id, model, at, texts, adapter, user, session_id, mean_logprob, error, signals, outcome, outcome_from"
)


class Outcome(NamedTuple):
    """What an answer turned out to be worth. number: grows, and is never used again. at: when it became known.

    adapter: "" for the bare model. outcome: 0 bad to 1 good.
    """

    number: int
    at: float
    adapter: str
    outcome: float
    outcome_from: str
    reply_id: str
    model: str = ""


class _Texts(msgspec.Struct, array_like=True):
    messages: list[ChatMessage]
    prompt: str | None
    text: str


_decode_texts = msgspec.msgpack.Decoder(_Texts).decode


class Usuals:
    """What is usual for each model: how sure it is, and which words its questions have."""

    def __init__(self) -> None:
        self.confidence: defaultdict[str, Confidence] = defaultdict(Confidence)
        self.frequencies: defaultdict[str, Frequencies] = defaultdict(Frequencies)


def relearn(connection: sqlite3.Connection) -> Usuals:
    """What is usual, from what is kept."""
    usuals = Usuals()
    for (model,) in connection.execute("SELECT DISTINCT model FROM exchanges").fetchall():
        rows = connection.execute(
            "SELECT texts, mean_logprob, min_logprob FROM exchanges WHERE model = ? ORDER BY at DESC LIMIT ?",
            (model, _RELEARNED),
        ).fetchall()
        for data, mean, lowest in reversed(rows):
            texts = _decode_texts(data)
            usuals.frequencies[model].add(words_of(texts.messages, texts.prompt))
            if mean is not None:
                usuals.confidence[model].add(mean, lowest)
    return usuals


# Taking in ----------------------------------------------------------------------------------------------------------


def take_in(connection: sqlite3.Connection, usuals: Usuals, events: Iterable[AnswerEvent]) -> int:
    """Keep answers with what is noticed about them and about those before them; the number of new ones."""
    return sum(_take_one(connection, usuals, event) for event in events)


def _take_one(connection: sqlite3.Connection, usuals: Usuals, event: AnswerEvent) -> bool:
    previous = _previous(connection, event)
    noticed = _noticed(usuals, event)
    session_id = (
        previous.session_id if previous is not None and not event.conversation_id else _session(connection, event)
    )
    # Of an error nobody may know which adapter would have answered; it then counts for none.
    is_counted = not event.is_adapter_asked and not (event.error and event.adapter is None)
    added = connection.execute(
        "INSERT OR IGNORE INTO exchanges VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, '', ?)",
        (
            event.reply_id,
            event.model,
            event.at,
            msgspec.msgpack.encode(_Texts(event.messages, event.prompt, event.text)),
            event.adapter or None,
            is_counted,
            event.caller,
            session_id,
            thread_of(event.messages, event.text) if event.messages else "",
            event.mean_logprob,
            event.min_logprob,
            event.error,
            json.dumps(noticed),
            not signals.is_noteworthy(noticed),
        ),
    )
    if not added.rowcount:
        return False
    if event.error:
        settle(connection, event.reply_id, 0.0, "error", event.at)
    words = words_of(event.messages, event.prompt)
    if previous is not None:
        _look_back(connection, usuals, event, words, previous)
    usuals.frequencies[event.model].add(words)
    return True


def _noticed(usuals: Usuals, event: AnswerEvent) -> dict[str, float]:
    question = question_of(event.messages, event.prompt)
    # A tool call is an answer without text.
    has_calls = event.finish_reason == "tool_calls"
    found = signals.of_answer(event.text, event.finish_reason, event.error, has_calls=has_calls, is_cut=event.is_cut)
    found |= signals.of_exchange(question, event.text)
    if event.mean_logprob is not None:
        confidence = usuals.confidence[event.model]
        doubt = confidence.doubt(event.mean_logprob, event.min_logprob)
        confidence.add(event.mean_logprob, event.min_logprob)
        if doubt > 0.0:
            found["low_confidence"] = round(doubt, 3)
    return found


class _Previous(NamedTuple):
    reply_id: str
    session_id: str
    texts: _Texts
    signals: dict[str, float]


def _previous(connection: sqlite3.Connection, event: AnswerEvent) -> _Previous | None:
    """The exchange that this one goes on from: the answer it repeats, else the last one of its conversation or caller.

    Always of the same person: nobody's words speak against what another was answered.
    """
    thread = thread_before(event.messages)
    where, value = ("thread = ?", thread) if thread else ("session_id = ?", event.conversation_id or "")
    if not value:
        where, value = "user = ?", event.caller
    if not value:
        return None
    row = connection.execute(
        f"SELECT reply_id, session_id, texts, signals FROM exchanges WHERE {where} AND user = ? AND model = ?"
        " AND at BETWEEN ? AND ? ORDER BY at DESC LIMIT 1",
        (value, event.caller, event.model, event.at - PAUSE_S, event.at),
    ).fetchone()
    return _Previous(row[0], row[1], _decode_texts(row[2]), json.loads(row[3])) if row else None


def _session(connection: sqlite3.Connection, event: AnswerEvent) -> str:
    last = None
    if event.caller and not event.conversation_id:
        last = connection.execute(
            "SELECT session_id, at FROM exchanges WHERE user = ? AND at <= ? ORDER BY at DESC LIMIT 1",
            (event.caller, event.at),
        ).fetchone()
    return session_of(event, last)


def _look_back(
    connection: sqlite3.Connection, usuals: Usuals, event: AnswerEvent, words: Sequence[str], previous: _Previous
) -> None:
    """What this question says of the answer before it."""
    question = question_of(event.messages, event.prompt)
    before = question_of(previous.texts.messages, previous.texts.prompt)
    found = signals.of_next_message(question)
    # The very same question again is a program's or a button's, and says nothing by itself.
    if question.strip() != before.strip():
        earlier = words_of(previous.texts.messages, previous.texts.prompt)
        likeness = usuals.frequencies[event.model].likeness(earlier, words)
        if likeness >= signals.REPHRASED:
            found["rephrased"] = round(likeness, 3)
    if not found:
        return
    merged = previous.signals | found
    connection.execute(
        "UPDATE exchanges SET signals = ?, is_noticed = ? WHERE reply_id = ?",
        (json.dumps(merged), not signals.is_noteworthy(merged), previous.reply_id),
    )
    if "rephrased" in found:
        settle(connection, previous.reply_id, 0.0, "rephrased", event.at, only_if_open=True)


# Outcomes -----------------------------------------------------------------------------------------------------------


def settle(
    connection: sqlite3.Connection,
    reply_id: str,
    outcome: float,
    outcome_from: str,
    now: float,
    *,
    only_if_open: bool = False,
) -> None:
    """Note what an answer was worth. The first word is what the watch counts; later ones change the exchange alone."""
    row = connection.execute(
        "SELECT model, adapter, is_counted, outcome FROM exchanges WHERE reply_id = ?", (reply_id,)
    ).fetchone()
    if row is None or (only_if_open and row[3] is not None):
        return
    connection.execute(
        "UPDATE exchanges SET outcome = ?, outcome_from = ? WHERE reply_id = ?", (outcome, outcome_from, reply_id)
    )
    if row[2]:
        connection.execute(
            "INSERT OR IGNORE INTO outcomes (at, model, adapter, outcome, outcome_from, reply_id) VALUES (?, ?, ?, ?, ?, ?)",
            (now, row[0], row[1] or "", outcome, outcome_from, reply_id),
        )


def settle_silent(connection: sqlite3.Connection, before: float, now: float, limit: int) -> int:
    """Count answers older than `before` that nobody complained of as good; how many there were, `limit` at most."""
    rows = connection.execute(
        "SELECT reply_id FROM exchanges WHERE outcome IS NULL AND at <= ? ORDER BY at LIMIT ?", (before, limit)
    ).fetchall()
    for (reply_id,) in rows:
        settle(connection, reply_id, 1.0, "silence", now)
    return len(rows)


def outcomes(connection: sqlite3.Connection, where: str, values: Sequence[object], limit: int) -> list[Outcome]:
    """Outcomes that fulfil `where`, in the order of its last words."""
    rows = connection.execute(
        f"SELECT number, at, adapter, outcome, outcome_from, reply_id, model FROM outcomes WHERE {where} LIMIT ?",
        (*values, limit),
    )
    return [Outcome(*row) for row in rows]


# Finding and forgetting ---------------------------------------------------------------------------------------------


def exchange_of(row: Sequence[object]) -> Exchange:
    """A row of `_COLUMNS`."""
    reply_id, model, at, data, adapter, user, session_id, mean, error, noticed, outcome, outcome_from = row
    texts = _decode_texts(data)  # type: ignore[arg-type]
    return msgspec.convert(
        {
            "reply_id": reply_id,
            "model": model,
            "at": at,
            "messages": texts.messages,
            "prompt": texts.prompt,
            "text": texts.text,
            "adapter": adapter,
            "user": user,
            "session_id": session_id,
            "mean_logprob": mean,
            "error": error,
            "signals": json.loads(str(noticed)),
            "outcome": outcome,
            "outcome_from": outcome_from,
        },
        Exchange,
    )


def find(connection: sqlite3.Connection, reply_id: str) -> Exchange | None:
    """One kept exchange."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM exchanges WHERE reply_id = ?", (reply_id,)).fetchone()
    return exchange_of(row) if row else None


def listed(connection: sqlite3.Connection, request: ExchangeList) -> tuple[list[Exchange], int]:
    """The newest first, and how many match."""
    where, values = ["1"], list[object]()
    for field in ("model", "user", "session_id"):
        value = getattr(request, field)
        if value is not None:
            where.append(f"{field} = ?")
            values.append(value)
    if request.signal is not None:
        where.append("EXISTS (SELECT 1 FROM json_each(signals) WHERE key = ?)")
        values.append(request.signal)
    matching = f"FROM exchanges WHERE {' AND '.join(where)}"
    (total,) = connection.execute(f"SELECT count(*) {matching}", values).fetchone()
    rows = connection.execute(
        f"SELECT {_COLUMNS} {matching} ORDER BY at DESC, reply_id LIMIT ?", (*values, request.limit)
    )
    return [exchange_of(row) for row in rows], total


def good(connection: sqlite3.Connection, model: str, limit: int) -> list[Exchange]:
    """Answers that somebody rated as good, the newest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM exchanges WHERE model = ? AND outcome_from = 'rating' AND outcome >= 0.5"
        " ORDER BY at DESC LIMIT ?",
        (model, limit),
    )
    return [exchange_of(row) for row in rows]


def unrated(connection: sqlite3.Connection, model: str, limit: int) -> list[Exchange]:
    """Answers about which nothing was noticed and nobody said anything in time, the newest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM exchanges WHERE model = ? AND outcome_from = 'silence' AND signals = '{{}}'"
        " ORDER BY at DESC LIMIT ?",
        (model, limit),
    )
    return [exchange_of(row) for row in rows]


def unnoticed(connection: sqlite3.Connection, limit: int) -> list[Exchange]:
    """Exchanges about which something was noticed that is no evidence yet, the oldest first."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM exchanges WHERE is_noticed = 0 ORDER BY at LIMIT ?", (limit,))
    return [exchange_of(row) for row in rows]


def mark_noticed(connection: sqlite3.Connection, exchanges: Iterable[Exchange]) -> None:
    """What was noticed about these has become evidence; what was noticed meanwhile has not."""
    connection.executemany(
        "UPDATE exchanges SET is_noticed = 1 WHERE reply_id = ? AND signals = ?",
        [(one.reply_id, json.dumps(one.signals)) for one in exchanges],
    )


def matching(connection: sqlite3.Connection, request: ExchangeDelete) -> list[str]:
    """Ids of the exchanges that a request to delete means."""
    fields = {name: getattr(request, name) for name in ("reply_id", "user", "session_id")}
    given = {name: value for name, value in fields.items() if value is not None}
    where = " AND ".join(f"{name} = ?" for name in given)
    return [row[0] for row in connection.execute(f"SELECT reply_id FROM exchanges WHERE {where}", (*given.values(),))]


def delete(connection: sqlite3.Connection, reply_ids: Iterable[str]) -> None:
    """Forget exchanges with their outcomes."""
    ids = [(reply_id,) for reply_id in reply_ids]
    connection.executemany("DELETE FROM exchanges WHERE reply_id = ?", ids)
    connection.executemany("DELETE FROM outcomes WHERE reply_id = ?", ids)


def prune(connection: sqlite3.Connection, *, before: float, keep: int, outcomes_before: float) -> int:
    """Delete what is too old or too much; the number of exchanges that went."""
    gone = connection.execute("DELETE FROM exchanges WHERE at < ?", (before,)).rowcount
    gone += connection.execute(
        "DELETE FROM exchanges WHERE at <= (SELECT at FROM exchanges ORDER BY at DESC LIMIT 1 OFFSET ?)", (keep,)
    ).rowcount
    connection.execute("DELETE FROM outcomes WHERE at < ?", (outcomes_before,))
    return gone
