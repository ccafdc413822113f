"""Facts people and models want kept: the statements behind `memory.remember` to `memory.prompt`.

Each runs inside a transaction that its caller owns. The full-text index follows by triggers.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from schemas.bodies.memory import (
    AllFacts,
    Fact,
    FactPage,
    Find,
    Forget,
    Forgotten,
    Prompt,
    PromptAddition,
    Recall,
    Remember,
)
from schemas.errors import BadRequest, NotFound
from workers.memory import chunks
from workers.memory.items.chunking import cut
from workers.memory.outcome import Outcome, changed
from workers.memory.prompt import (
    BYTES_PER_TOKEN,
    BYTES_PER_TOKEN_MAX,
    LEFT_OUT_KEYS_MAX,
    PASSED_OVER_MAX,
    SHORTEST_LINE_BYTES,
    Candidates,
    PromptText,
    prompt_line,
)
from workers.memory.sessions import suggestions
from workers.memory.usefulness import USEFULNESS, provide_functions

# Keys that one `forget` names in its reply; `forgotten` counts them all.
FORGOTTEN_KEYS_MAX: Final = 1_000

# Facts deleted in one transaction, some 30 ms with all that search has of them, so that no write waits long behind it.
FORGET_ROWS: Final = 500

# Keys in `service_state` of what is being forgotten: this, and the id of the request in hexadecimal.
FORGETTING: Final = "forgetting/"

# Words of a query that are looked for; the rest of a longer text adds cost and nothing else.
QUERY_WORDS_MAX: Final = 32

# What a reply carries beside the texts of a fact. Generous.
FACT_OVERHEAD_BYTES: Final = 512


class _Forgetting(msgspec.Struct, frozen=True):
    """What is left of a `forget` that is too much for one transaction: the facts that are marked, by _MARK.

    category: None for everything. after: the key up to which it is done.
    """

    ns: str
    category: str | None
    after: str = ""


# A fact that is being forgotten is there no more for whoever asks; only its row waits to be deleted. No time is below
# zero, so one that is says so, and what it was can be told again: marking twice takes the mark away.
_MARK: Final = "updated_at = -1 - updated_at"
_IS_MARKED: Final = "updated_at < 0"
IS_KEPT: Final = "updated_at >= 0"

_COLUMNS: Final = "key, value, category, source, ns, created_at, updated_at, access_count, last_accessed_at"

# A word in a key says more about what a fact is than one in its value; the category least.
_RANK: Final = "bm25(facts_text, 4.0, 1.0, 0.5)"

# Everything but white space and ASCII punctuation; `_` stays, so that `first_name` is looked for as a phrase.
_WORD: Final = re.compile(r"[^\s\x00-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]+")


def remember(connection: sqlite3.Connection, request: Remember, now: float) -> Outcome:
    """Keep the fact; one with the same key is replaced and keeps its age and its access count."""
    finish_forgetting(connection, request.ns, request.key)
    connection.execute(
        "INSERT INTO facts (ns, key, value, category, source, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (ns, key) DO UPDATE SET value = excluded.value, category = excluded.category,"
        " source = excluded.source, updated_at = excluded.updated_at",
        (request.ns, request.key, request.value, request.category, request.source, now, now),
    )
    text = f"{request.key}: {request.value}"
    chunks.put(connection, ns=request.ns, kind="fact", source_id=request.key, pieces=cut(text), at=now)
    event = changed(request.ns, request.key, "remember")
    return Outcome(read_fact(connection, request.ns, request.key), [event])


def count_access(connection: sqlite3.Connection, request: Recall, now: float) -> None:
    """Note that the fact is about to be read."""
    connection.execute(
        "UPDATE facts SET access_count = access_count + 1, last_accessed_at = ? WHERE ns = ? AND key = ?",
        (now, request.ns, request.key),
    )


def read_fact(connection: sqlite3.Connection, ns: str, key: str) -> Fact:
    """The fact as it stands. Raises NotFound."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM facts WHERE ns = ? AND key = ? AND {IS_KEPT}", (ns, key)
    ).fetchone()
    if row is None:
        raise NotFound(f"nothing is known as {key!r} in namespace {ns!r}", ns=ns, key=key)
    return _fact(row)


def find(connection: sqlite3.Connection, request: Find, page_bytes: int) -> FactPage:
    """Facts with all words of the query; else with the last one begun; else with any of them. Best match first."""
    for match in _matches(request.query):
        rows = connection.execute(
            f"SELECT {_prefixed('facts')} FROM facts_text JOIN facts ON facts.id = facts_text.rowid"
            " WHERE facts_text MATCH ? AND facts.ns = ? AND (? IS NULL OR facts.category = ?)"
            f" AND facts.{IS_KEPT}"
            f" ORDER BY {_RANK}, facts.key LIMIT ?",
            (match, request.ns, request.category, request.category, request.limit),
        )
        facts, _ = _page(rows, request.limit, page_bytes)
        if facts:
            return FactPage(facts=facts)
    return FactPage(facts=[])


def forget(connection: sqlite3.Connection, request: Forget, request_id: bytes) -> Outcome:
    """Delete one fact, a category or everything in the namespace. Raises BadRequest unless one of them is asked for.

    More than FORGET_ROWS are only marked here, and gone for whoever asks; `forget_some` deletes them.
    """
    where, values = _chosen(request)
    (count,) = connection.execute(f"SELECT count(*) FROM facts WHERE {where}", values).fetchone()
    if count <= FORGET_ROWS:
        keys = _delete(connection, request.ns, where, values)
        return Outcome(Forgotten(forgotten=count, keys=keys), [changed(request.ns, key, "forget") for key in keys])
    named = connection.execute(
        f"SELECT key FROM facts WHERE {where} ORDER BY key LIMIT ?", (*values, FORGOTTEN_KEYS_MAX)
    ).fetchall()
    connection.execute(f"UPDATE facts SET {_MARK} WHERE {where}", values)
    _note(connection, request_id, _Forgetting(request.ns, request.category))
    return Outcome(Forgotten(forgotten=count, keys=[key for (key,) in named]), [])


def forget_some(connection: sqlite3.Connection, request_id: bytes) -> Outcome:
    """Delete the next FORGET_ROWS of what this request asked to forget; the reply is False when those were the last."""
    row = connection.execute("SELECT value FROM service_state WHERE key = ?", (_place(request_id),)).fetchone()
    if row is None:
        return Outcome(False, [])
    left = msgspec.msgpack.decode(row[0], type=_Forgetting)
    where = f"ns = ? AND key > ? AND {_IS_MARKED}"
    values: tuple[str, ...] = (left.ns, left.after)
    if left.category is not None:
        where, values = f"{where} AND category = ?", (*values, left.category)
    keys = _delete(connection, left.ns, where, values)
    is_over = len(keys) < FORGET_ROWS
    if is_over:
        connection.execute("DELETE FROM service_state WHERE key = ?", (_place(request_id),))
    else:
        _note(connection, request_id, msgspec.structs.replace(left, after=keys[-1]))
    return Outcome(not is_over, [changed(left.ns, key, "forget", request_id=request_id) for key in keys])


def finish_forgetting(connection: sqlite3.Connection, ns: str, key: str) -> None:
    """Delete one fact now that is being forgotten, before another is written under its key."""
    _delete(connection, ns, f"ns = ? AND key = ? AND {_IS_MARKED}", (ns, key))


def call_off_forgettings(connection: sqlite3.Connection) -> None:
    """Keep every fact that was being forgotten."""
    connection.execute(f"UPDATE main.facts SET {_MARK} WHERE {_IS_MARKED}")
    connection.execute("DELETE FROM main.service_state WHERE key GLOB ?", (f"{FORGETTING}*",))


def find_forgettings(connection: sqlite3.Connection) -> list[bytes]:
    """The requests of which something is left to forget."""
    rows = connection.execute("SELECT key FROM service_state WHERE key GLOB ?", (f"{FORGETTING}*",))
    return [bytes.fromhex(key.removeprefix(FORGETTING)) for (key,) in rows]


def _note(connection: sqlite3.Connection, request_id: bytes, left: _Forgetting) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO service_state (key, value) VALUES (?, ?)",
        (_place(request_id), msgspec.msgpack.encode(left)),
    )


def _place(request_id: bytes) -> str:
    return f"{FORGETTING}{request_id.hex()}"


def _delete(connection: sqlite3.Connection, ns: str, where: str, values: tuple[str, ...]) -> list[str]:
    """Delete the first FORGET_ROWS facts that fit, in the order of their keys, with what rests on them; their keys."""
    rows = connection.execute(f"SELECT key FROM facts WHERE {where} ORDER BY key LIMIT ?", (*values, FORGET_ROWS))
    keys = [key for (key,) in rows]
    if not keys:
        return []
    where, values = f"{where} AND key <= ?", (*values, keys[-1])
    suggestions.forget_facts(connection, ns, connection.execute(f"SELECT key, value FROM facts WHERE {where}", values))
    connection.execute(f"DELETE FROM facts WHERE {where}", values)
    for key in keys:
        chunks.remove(connection, ns=ns, kind="fact", source_id=key)
    return keys


def all_facts(connection: sqlite3.Connection, request: AllFacts, page_bytes: int) -> FactPage:
    """A page in key order: at most `limit` facts and, past its first fact, at most `page_bytes` of them."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM facts WHERE ns = ? AND key > ? AND (? IS NULL OR category = ?) AND {IS_KEPT}"
        " ORDER BY key LIMIT ?",
        (request.ns, request.after or "", request.category, request.category, request.limit + 1),
    )
    facts, is_cut = _page(rows, request.limit, page_bytes)
    return FactPage(facts=facts, next_after=facts[-1].key if is_cut else None)


def prompt_addition(connection: sqlite3.Connection, request: Prompt, now: float) -> PromptAddition:
    """What is known, most useful first, as a text within the budget by the estimate."""
    text = PromptText(request.max_tokens)
    ranked = _ranked(connection, request, now, request.max_tokens * BYTES_PER_TOKEN)
    unread = iter(ranked.facts)
    while not text.is_full and (fact := next(unread, None)) is not None:
        text.offer(fact.key, _value(connection, fact))
    text.leave_out([fact.key for fact in unread], ranked.others)
    return text.addition()


def prompt_candidates(connection: sqlite3.Connection, request: Prompt, now: float) -> Candidates:
    """What the text could hold in some tokenizer."""
    room_bytes = request.max_tokens * BYTES_PER_TOKEN_MAX
    ranked = _ranked(connection, request, now, room_bytes)
    passed_over = 0
    read: list[tuple[str, str]] = []
    for fact in ranked.facts:
        if room_bytes < SHORTEST_LINE_BYTES or passed_over == PASSED_OVER_MAX:
            break
        value = _value(connection, fact)
        size_bytes = len(f"\n{prompt_line(fact.key, value)}".encode())
        fits = size_bytes <= room_bytes
        room_bytes -= size_bytes if fits else 0
        passed_over += not fits
        read.append((fact.key, value if fits else ""))
    return Candidates(read, [fact.key for fact in ranked.facts[len(read) :]], ranked.others)


class _Known(NamedTuple):
    id: int
    key: str


class _Ranked(NamedTuple):
    """Facts, most useful first, and how many others there are."""

    facts: list[_Known]
    others: int


def _ranked(connection: sqlite3.Connection, request: Prompt, now: float, room_bytes: int) -> _Ranked:
    """As many of the wanted facts as a text of `room_bytes` can hold, pass over and name."""
    provide_functions(connection)
    where, values = f"ns = ? AND {IS_KEPT}", [request.ns]
    if request.categories is not None:
        where += " AND category IN (SELECT value FROM json_each(?))"
        values.append(json.dumps(request.categories))
    limit = room_bytes // SHORTEST_LINE_BYTES + max(PASSED_OVER_MAX, LEFT_OUT_KEYS_MAX)
    rows = connection.execute(
        f"SELECT id, key FROM facts WHERE {where} ORDER BY {USEFULNESS} DESC, key LIMIT ?", (*values, now, limit)
    )
    facts = [_Known(*row) for row in rows]
    if len(facts) < limit:
        return _Ranked(facts, 0)
    (count,) = connection.execute(f"SELECT count(*) FROM facts WHERE {where}", values).fetchone()
    return _Ranked(facts, count - len(facts))


def _value(connection: sqlite3.Connection, fact: _Known) -> str:
    """One value: all of them together may be larger than what this process should hold."""
    (value,) = connection.execute("SELECT value FROM facts WHERE id = ?", (fact.id,)).fetchone()
    return str(value)


def _matches(query: str) -> Iterator[str]:
    """FTS5 expressions for `query`, strictest first. Its words are quoted, so nothing in it is read as syntax."""
    words = [f'"{word}"' for word in _WORD.findall(query) if any(map(str.isalnum, word))][:QUERY_WORDS_MAX]
    if not words:
        return
    begun = [*words[:-1], f"{words[-1]} *"]
    yield " AND ".join(words)
    yield " AND ".join(begun)
    if len(words) > 1:
        yield " OR ".join(begun)


def _chosen(request: Forget) -> tuple[str, tuple[str, ...]]:
    choices = [
        name
        for name, is_given in (
            ("key", request.key is not None),
            ("category", request.category is not None),
            ("everything", request.everything),
        )
        if is_given
    ]
    if len(choices) != 1:
        given = " and ".join(choices) or "none of them"
        raise BadRequest(
            f"forget takes exactly one of key, category and everything; the request has {given}",
            field=choices[-1] if choices else "key",
        )
    if request.key is not None:
        return f"ns = ? AND key = ? AND {IS_KEPT}", (request.ns, request.key)
    if request.category is not None:
        return f"ns = ? AND category = ? AND {IS_KEPT}", (request.ns, request.category)
    return f"ns = ? AND {IS_KEPT}", (request.ns,)


_Row = tuple[str, str, str, str, str, float, float, int, float | None]


def _page(rows: Iterable[_Row], limit: int, page_bytes: int) -> tuple[list[Fact], bool]:
    """The facts that fit, and whether some did not."""
    facts: list[Fact] = []
    size_bytes = 0
    for row in rows:
        size_bytes += FACT_OVERHEAD_BYTES + len(row[0].encode()) + len(row[1].encode())
        if len(facts) == limit or (facts and size_bytes > page_bytes):
            return facts, True
        facts.append(_fact(row))
    return facts, False


def _fact(row: _Row) -> Fact:
    key, value, category, source, ns, created_at, updated_at, access_count, last_accessed_at = row
    return Fact(
        key=key,
        value=value,
        category=category,
        source=source,
        ns=ns,
        created_at=created_at,
        updated_at=updated_at,
        access_count=access_count,
        last_accessed_at=last_accessed_at,
    )


def _prefixed(table: str) -> str:
    return ", ".join(f"{table}.{column}" for column in _COLUMNS.split(", "))
