"""BM25 alone, as SQLite's FTS5 gives it: over the bare texts, in three forms, of which the best is the one to beat."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from bench_recall_parts.collection import Conversation
from workers.memory.search.query import STOP_WORDS

# Form -> its tokenizer, and whether function words of the question are left out.
FORMS: Final = {
    "BM25 plain": ("unicode61", False),
    "BM25 porter": ("porter unicode61", False),
    "BM25 porter, no function words": ("porter unicode61", True),
}

Find = Callable[[str], list[str]]


def bm25(conversation: Conversation, form: str, count: int) -> Find:
    """question -> ids of the `count` best turns."""
    tokenizer, skips_function_words = FORMS[form]
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE VIRTUAL TABLE texts USING fts5 (text, tokenize = '{tokenizer} remove_diacritics 2')")
    connection.executemany(
        "INSERT INTO texts (rowid, text) VALUES (?, ?)",
        ((number, turn.content) for number, turn in enumerate(conversation.turns)),
    )

    def find(question: str) -> list[str]:
        words: Sequence[str] = re.findall(r"\w+", question.lower())
        if skips_function_words:
            words = [word for word in words if word not in STOP_WORDS] or words
        match = " OR ".join(f'"{word}"' for word in words)
        rows = connection.execute(
            "SELECT rowid FROM texts WHERE texts MATCH ? ORDER BY rank LIMIT ?", (match, count)
        ).fetchall()
        return [conversation.turns[number].id for (number,) in rows]

    return find
