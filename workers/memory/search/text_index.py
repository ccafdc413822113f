"""The full-text half of search: which chunks of a namespace hold which words of a query. SQL; knows no ranking."""

from __future__ import annotations

import math
import random
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec

from workers.memory.search.query import ROLES, Term

# Up to this many chunks the word of the namespace goes into every look-up. Past it that costs 0.4 to 1 ms per word where
# the namespace holds most of the chunks (100,000 measured), so there the others' chunks are read along and left out.
SMALL_STORE_CHUNKS: Final = 20_000

# Chunks looked at, at random, to see which share of the store a namespace is; and the share past which it is most.
SHARE_SAMPLE: Final = 128
LARGE_SHARE: Final = 0.5

# A small store says little of how rare a word is: it is taken to have at least so many chunks. Otherwise a word that all
# of a handful of memories hold would weigh nothing beside one that none holds.
LEAST_CHUNKS: Final = 1_000

# Counts of words in more chunks than this hardly change, and each takes some 0.1 ms; they are kept for so many seconds.
COMMON_WORD_CHUNKS: Final = 250
KEEP_COUNTS_S: Final = 60.0
KEPT_COUNTS_MAX: Final = 4_096


_decode_ids: Final = msgspec.json.Decoder(list[int]).decode


class Found(NamedTuple):
    """The chunks that hold words of a query.

    terms, weights: what was looked for, and the weight of each: how rare it is (the inverse document frequency of
    BM25, log(1 + (N - n + 0.5) / (n + 0.5)); Robertson and Zaragoza, 2009, section 3.4.1) for N chunks in the store.
    masks: chunk id -> bit i set where it holds term i. groups: mask -> chunks, newest first, among them all that have
    just this mask. missing: weight of the topics that none holds. speakers: words of the query that are somebody's name
    here.
    """

    terms: list[Term]
    weights: list[float]
    masks: dict[int, int]
    groups: dict[int, list[int]]
    missing: float
    speakers: list[str]

    def add(self, term: Term, weight: float, chunks: list[int]) -> set[int]:
        """One more term and the chunks that hold it, newest first. Answers those that hold others too."""
        # Thousands of chunks hold one word of a query, few hold two: only these are gone through one by one.
        bit = 1 << len(self.terms)
        self.terms.append(term)
        self.weights.append(weight)
        self.groups[bit] = chunks
        masks = dict.fromkeys(chunks, bit)
        several = masks.keys() & self.masks.keys()
        for chunk in several:
            masks[chunk] |= self.masks[chunk]
        self.masks.update(masks)
        return several


class _Counted(NamedTuple):
    text: int
    speaker: int
    until: float


class TextIndex:
    """Looks words up; remembers only how common the common ones are."""

    def __init__(self, budget: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """budget: postings read for one query, at most: the rarest words are read first."""
        self._budget = budget
        self._monotonic = monotonic
        self._counts: dict[str, _Counted] = {}
        self._shares: dict[str, tuple[float, float]] = {}

    def find(self, connection: sqlite3.Connection, ns: str, terms: Iterable[Term]) -> Found:
        """The chunks of `ns` with any of the terms. Chunks of other namespaces may be among them."""
        total = connection.execute("SELECT max(id) FROM chunks").fetchone()[0] or 0
        scope = f'scope:"{ns.encode().hex()}" AND '
        is_scoped = total <= SMALL_STORE_CHUNKS or self._share(connection, ns, total) < LARGE_SHARE
        counted = [(self._count(connection, term), term) for term in terms]
        speakers = [
            term.label
            for count, term in counted
            if count.speaker and term.label not in ROLES and _speaks(connection, scope, term)
        ]
        content = [(count.text, term) for count, term in counted if term.label not in speakers]
        if not any(count for count, _ in content):
            content = [(count.text, term) for count, term in counted]
        found = Found([], [], {}, {}, 0.0, speakers)
        missing = 0.0
        several: set[int] = set()
        left = self._budget
        for count, term in sorted(content, key=lambda entry: entry[0]):
            weight = math.log(1 + (max(total, LEAST_CHUNKS) - count + 0.5) / (count + 0.5))
            if not count:
                missing += weight * term.is_topic
                continue
            # In a scope the count is only an upper bound, and reading a few rows of a common word is cheap.
            if left <= 0 or (not is_scoped and count > left and found.terms):
                break
            chunks = _holding(connection, f"{scope if is_scoped else ''}text:{term.match}", left)
            if not chunks and is_scoped:
                missing += weight * term.is_topic
                continue
            left -= len(chunks)
            several |= found.add(term, weight, chunks)
        for chunk in sorted(several, reverse=True):
            found.groups.setdefault(found.masks[chunk], []).append(chunk)
        return found._replace(missing=missing)

    def _count(self, connection: sqlite3.Connection, term: Term) -> _Counted:
        """Chunks with the term in their text, and with it in their speaker's name."""
        if term.match.count(" "):
            rows = connection.execute(
                "SELECT count(*) FROM (SELECT 1 FROM chunks_text WHERE chunks_text MATCH ? LIMIT ?)",
                (f"text:{term.match}", self._budget),
            )
            return _Counted(rows.fetchone()[0], 0, 0.0)
        now = self._monotonic()
        known = self._counts.get(term.stem)
        if known is not None and now < known.until:
            return known
        by_column = dict(connection.execute("SELECT col, doc FROM chunks_words WHERE term = ?", (term.stem,)))
        count = _Counted(by_column.get("text", 0), by_column.get("speaker", 0), now + KEEP_COUNTS_S)
        if count.text + count.speaker > COMMON_WORD_CHUNKS:
            if len(self._counts) >= KEPT_COUNTS_MAX:
                self._counts.clear()
            self._counts[term.stem] = count
        return count

    def _share(self, connection: sqlite3.Connection, ns: str, total: int) -> float:
        """About which part of the store's chunks is in `ns`, 0 to 1."""
        now = self._monotonic()
        share, until = self._shares.get(ns, (0.0, 0.0))
        if now < until:
            return share
        sample = ", ".join(str(random.randint(1, total)) for _ in range(SHARE_SAMPLE))
        names = [name for (name,) in connection.execute(f"SELECT ns FROM chunks WHERE id IN ({sample})")]
        share = names.count(ns) / max(1, len(names))
        if len(self._shares) >= KEPT_COUNTS_MAX:
            self._shares.clear()
        self._shares[ns] = (share, now + KEEP_COUNTS_S)
        return share


def _holding(connection: sqlite3.Connection, match: str, limit: int) -> list[int]:
    """The newest chunks that match, newest first."""
    # As one value: half the time of thousands of rows.
    (chunks,) = connection.execute(
        "SELECT json_group_array(rowid) FROM"
        " (SELECT rowid FROM chunks_text WHERE chunks_text MATCH ? ORDER BY rowid DESC LIMIT ?)",
        (match, limit),
    ).fetchone()
    return _decode_ids(chunks)


def said_by(connection: sqlite3.Connection, ns: str, names: Iterable[str], limit: int) -> list[int]:
    """The newest chunks whose speaker has one of the words in the name."""
    match = " OR ".join(f'"{name}"' for name in names)
    rows = connection.execute(
        "SELECT rowid FROM chunks_text WHERE chunks_text MATCH ? ORDER BY rowid DESC LIMIT ?",
        (f'scope:"{ns.encode().hex()}" AND speaker:({match})', limit),
    )
    return [chunk for (chunk,) in rows]


def _speaks(connection: sqlite3.Connection, scope: str, term: Term) -> bool:
    match = f"{scope}speaker:{term.match}"
    return (
        connection.execute("SELECT 1 FROM chunks_text WHERE chunks_text MATCH ? LIMIT 1", (match,)).fetchone()
        is not None
    )
