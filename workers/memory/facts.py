"""Facts people and models want kept: the statements behind `memory.remember` to `memory.prompt`.

Each runs inside a transaction that its caller owns. The full-text index follows by triggers.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final

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
from workers.memory.prompt import BYTES_PER_TOKEN_MAX, PromptText, usefulness
from workers.memory.sessions import suggestions

# Keys that one `forget` names in its reply; `forgotten` counts them all.
FORGOTTEN_KEYS_MAX: Final = 1_000

# Words of a query that are looked for; the rest of a longer text adds cost and nothing else.
QUERY_WORDS_MAX: Final = 32

# What a reply carries beside the texts of a fact. Generous.
FACT_OVERHEAD_BYTES: Final = 512

_COLUMNS: Final = "key, value, category, source, ns, created_at, updated_at, access_count, last_accessed_at"

# A word in a key says more about what a fact is than one in its value; the category least.
_RANK: Final = "bm25(facts_text, 4.0, 1.0, 0.5)"

# Everything but white space and ASCII punctuation; `_` stays, so that `first_name` is looked for as a phrase.
_WORD: Final = re.compile(r"[^\s\x00-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]+")


def remember(connection: sqlite3.Connection, request: Remember, now: float) -> Outcome:
    """Keep the fact; one with the same key is replaced and keeps its age and its access count."""
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
    row = connection.execute(f"SELECT {_COLUMNS} FROM facts WHERE ns = ? AND key = ?", (ns, key)).fetchone()
    if row is None:
        raise NotFound(f"nothing is known as {key!r} in namespace {ns!r}", ns=ns, key=key)
    return _fact(row)


def find(connection: sqlite3.Connection, request: Find, page_bytes: int) -> FactPage:
    """Facts with all words of the query; else with the last one begun; else with any of them. Best match first."""
    for match in _matches(request.query):
        rows = connection.execute(
            f"SELECT {_prefixed('facts')} FROM facts_text JOIN facts ON facts.id = facts_text.rowid"
            " WHERE facts_text MATCH ? AND facts.ns = ? AND (? IS NULL OR facts.category = ?)"
            f" ORDER BY {_RANK}, facts.key LIMIT ?",
            (match, request.ns, request.category, request.category, request.limit),
        )
        facts, _ = _page(rows, request.limit, page_bytes)
        if facts:
            return FactPage(facts=facts)
    return FactPage(facts=[])


def forget(connection: sqlite3.Connection, request: Forget) -> Outcome:
    """Delete one fact, a category or everything in the namespace. Raises BadRequest unless one of them is asked for."""
    where, values = _chosen(request)
    keys = [key for (key,) in connection.execute(f"SELECT key FROM facts WHERE {where} ORDER BY key", values)]
    suggestions.forget_facts(
        connection, request.ns, connection.execute(f"SELECT key, value FROM facts WHERE {where}", values)
    )
    connection.execute(f"DELETE FROM facts WHERE {where}", values)
    for key in keys:
        chunks.remove(connection, ns=request.ns, kind="fact", source_id=key)
    reply = Forgotten(forgotten=len(keys), keys=keys[:FORGOTTEN_KEYS_MAX])
    return Outcome(reply, [changed(request.ns, key, "forget") for key in keys])


def all_facts(connection: sqlite3.Connection, request: AllFacts, page_bytes: int) -> FactPage:
    """A page in key order: at most `limit` facts and, past its first fact, at most `page_bytes` of them."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM facts WHERE ns = ? AND key > ? AND (? IS NULL OR category = ?) ORDER BY key LIMIT ?",
        (request.ns, request.after or "", request.category, request.category, request.limit + 1),
    )
    facts, is_cut = _page(rows, request.limit, page_bytes)
    return FactPage(facts=facts, next_after=facts[-1].key if is_cut else None)


def prompt_addition(connection: sqlite3.Connection, request: Prompt, now: float) -> PromptAddition:
    """What is known, most useful first, as a text within the budget by the estimate."""
    text = PromptText(request.max_tokens)
    for key, value in _ranked(connection, request, now):
        text.offer(key, value)
    return text.addition()


def prompt_candidates(connection: sqlite3.Connection, request: Prompt, now: float) -> list[tuple[str, str]]:
    """Keys and values, most useful first; the value is empty where the text could not hold it in any tokenizer."""
    room_bytes = request.max_tokens * BYTES_PER_TOKEN_MAX
    candidates = []
    for key, value in _ranked(connection, request, now):
        size_bytes = len(value.encode())
        candidates.append((key, value if size_bytes <= room_bytes else ""))
        room_bytes -= min(size_bytes, room_bytes)
    return candidates


def _ranked(connection: sqlite3.Connection, request: Prompt, now: float) -> Iterator[tuple[str, str]]:
    """Keys and values of the wanted facts, most useful first."""
    rows = connection.execute(
        "SELECT id, key, category, updated_at, last_accessed_at, access_count FROM facts WHERE ns = ?", (request.ns,)
    )
    wanted = None if request.categories is None else frozenset(request.categories)
    ranked = []
    for fact_id, key, category, updated_at, last_accessed_at, access_count in rows:
        if wanted is None or category in wanted:
            score = usefulness(
                category=category,
                updated_at=updated_at,
                last_accessed_at=last_accessed_at,
                access_count=access_count,
                now=now,
            )
            ranked.append((-score, key, fact_id))
    # Values are read one by one: together they may be larger than what this process should hold.
    for _, key, fact_id in sorted(ranked):
        (value,) = connection.execute("SELECT value FROM facts WHERE id = ?", (fact_id,)).fetchone()
        yield key, value


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
        return "ns = ? AND key = ?", (request.ns, request.key)
    if request.category is not None:
        return "ns = ? AND category = ?", (request.ns, request.category)
    return "ns = ?", (request.ns,)


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
