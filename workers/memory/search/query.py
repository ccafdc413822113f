"""What a query asks for: its words, phrases, names, times, and the kind of answer. Knows no store."""

from __future__ import annotations

import re
import sqlite3
import threading
from typing import Final, NamedTuple

import msgspec

from workers.memory.search.times import Span, find_times

# Different words of a query that are looked for; the rest of a longer text adds cost and nothing else.
TERMS_MAX: Final = 32

# Function words of English, bare parts of contractions included: they stand in every text and tell none from another.
STOP_WORDS: Final = frozenset(
    "a about an and any are as at be been being both but by can could d did do does doing for from had has have having"
    " he her hers him his how i if in into is it its ll m me might my of on or our ours re s she should so t than that"
    " the their theirs them then there these they this those to too us ve was we were what when where which while who"
    " whom whose why will with would you your yours".split()
)

# Words that ask for whatever there is and not for a topic: "what happened last week?"
GENERIC_WORDS: Final = frozenset(
    "all anything discuss discussed everything happen happened happening happens hear heard know latest mention mentioned"
    " new news remember said say says something talk talked talking tell thing things think thought told".split()
)

# Names of speakers whose words are remembered; cutting one takes 80 microseconds.
KEPT_NAMES: Final = 4_096

# Words whose stems are remembered; cutting a query takes 60 microseconds, and 6 where its words are known.
KEPT_STEMS: Final = 16_384

# Speakers that are roles, not names: "user" and "system" in a query mean the things.
ROLES: Final = frozenset("agent ai assistant bot developer function human model system tool user".split())

_QUOTED: Final = re.compile(r'"([^"]{2,200})"|\u201c([^\u201d]{2,200})\u201d')
_ASKS_WHEN: Final = re.compile(
    r"\bwhen\b|\bhow (?:long|old|recently)\b|\b(?:what|which) (?:day|date|week|month|year|season|time)\b", re.IGNORECASE
)
_WORD: Final = re.compile(r"\w+")
_ASCII_WORD: Final = re.compile(r"[a-z0-9]+")


class Word(NamedTuple):
    """One word of a text: as written (lower case, without accents), and its stem."""

    plain: str
    stem: str


class Term(NamedTuple):
    """Something to look for in the full-text index: `match` is a quoted FTS5 string, `label` what a person reads.

    is_name: it seems to name somebody or something. is_topic: it says what the query is about, unlike the words of a
    time and words such as "happened".
    """

    label: str
    match: str
    stem: str
    is_name: bool
    is_topic: bool


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A query, understood. terms: what to look for."""

    text: str
    terms: list[Term]
    phrases: list[str]
    times: list[Span]
    asks_when: bool


class Tokenizer:
    """Cuts text into words exactly as the full-text index does, because SQLite itself does it. Any thread may ask."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._lock = threading.Lock()
        self._names: dict[str, frozenset[str]] = {}
        self._stems: dict[str, str] = {}
        for name, tokenizer in (("plain", "unicode61"), ("stems", "porter unicode61")):
            self._connection.executescript(
                f"CREATE VIRTUAL TABLE {name} USING fts5 (text, tokenize = '{tokenizer} remove_diacritics 2');"
                f"CREATE VIRTUAL TABLE {name}_words USING fts5vocab ({name}, instance);"
            )

    def words(self, text: str) -> list[Word]:
        """The words of `text` in order."""
        with self._lock:
            if not text.isascii():
                return list(map(Word, self._cut("plain", text), self._cut("stems", text)))
            # Where words begin and end in plain ASCII is known without SQLite.
            plain = _ASCII_WORD.findall(text.lower())
            unknown = [word for word in dict.fromkeys(plain) if word not in self._stems]
            if unknown:
                stems = zip(unknown, self._cut("stems", " ".join(unknown)), strict=True)
                self._stems.update(stems)
            words = [Word(word, self._stems[word]) for word in plain]
            if len(self._stems) > KEPT_STEMS:
                self._stems.clear()
        return words

    def _cut(self, table: str, text: str) -> list[str]:
        execute = self._connection.execute
        execute("BEGIN")
        try:
            execute(f"INSERT INTO {table} (rowid, text) VALUES (1, ?)", (text,))
            return [term for (term,) in execute(f"SELECT term FROM {table}_words ORDER BY offset")]
        finally:
            execute("ROLLBACK")

    def name_words(self, speaker: str) -> frozenset[str]:
        """The words by which a query may name the speaker; none of a role."""
        words = self._names.get(speaker)
        if words is None:
            words = frozenset(word.plain for word in self.words(speaker)) - ROLES
            if len(self._names) >= KEPT_NAMES:
                self._names.clear()
            self._names[speaker] = words
        return words


def understand(text: str, reference: float, tokenizer: Tokenizer) -> Query:
    """`text`, asked at `reference` (epoch seconds), understood. A text without any word gives no terms."""
    words = tokenizer.words(text)
    times = find_times(text, reference)
    # The stop words stay where there is nothing else to look for.
    content = [word for word in words if word.plain not in STOP_WORDS]
    terms = {}
    names = _names(text)
    topics = _topics(text, times, content, tokenizer)
    for word in content or words:
        if word.stem not in terms:
            terms[word.stem] = Term(word.plain, f'"{word.plain}"', word.stem, word.plain in names, word.stem in topics)
    phrases = [phrase for phrase in (" ".join((one or two).split()) for one, two in _QUOTED.findall(text)) if phrase]
    for phrase in phrases:
        cut = tokenizer.words(phrase)
        if len(cut) > 1:
            match = '"' + " ".join(word.plain for word in cut) + '"'
            terms[match] = Term(f'"{phrase}"', match, match, False, True)
    return Query(
        text=text,
        terms=list(terms.values())[:TERMS_MAX],
        phrases=phrases,
        times=times,
        asks_when=bool(_ASKS_WHEN.search(text)),
    )


def _topics(text: str, times: list[Span], content: list[Word], tokenizer: Tokenizer) -> frozenset[str]:
    """The stems of the words that are left without the times and without words that name no topic."""
    for span in times:
        text = text[: span.start] + " " * (span.end - span.start) + text[span.end :]
    left = {word.stem for word in tokenizer.words(text)} if times else {word.stem for word in content}
    return frozenset(word.stem for word in content if word.plain not in GENERIC_WORDS and word.stem in left)


def _names(text: str) -> frozenset[str]:
    """Words written with a capital that do not begin a sentence: most of them name something."""
    found = set()
    for match in _WORD.finditer(text):
        before = text[: match.start()].rstrip(" \"'(\u201c")
        begins_sentence = not before or before[-1] in ".!?:;\n"
        if match[0][0].isupper() and not begins_sentence and len(match[0]) > 1:
            found.add(match[0].lower())
    return frozenset(found)
