"""The full-text half of search: which chunks of a namespace hold which words of a query. SQL; knows no ranking."""

from __future__ import annotations

import math
import random
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
from pyroaring import BitMap64

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

# Words in more chunks than this count as common: their counts hardly change, and each takes some 0.1 ms; to read which
# chunks hold them takes 0.1 ms a thousand. Both are kept for so many seconds.
COMMON_WORD_CHUNKS: Final = 250
KEEP_S: Final = 60.0
KEPT_COUNTS_MAX: Final = 4_096

# What is kept of who holds common words takes so many bytes at most; all of 100,000 memories takes 5 MB.
KEPT_BYTES_MAX: Final = 20_000_000

# Where only some chunks may be hits, so many times as many entries are read: most of them are of others.
CHOSEN_BUDGETS: Final = 100


_decode_ids: Final = msgspec.json.Decoder(list[int]).decode


class Found:
    """The chunks that hold words of a query.

    terms, weights, holders: what was looked for, the weight of each, and the chunks that hold it. The weight is how rare
    it is (the inverse document frequency of BM25, log(1 + (N - n + 0.5) / (n + 0.5)); Robertson and Zaragoza, 2009,
    section 3.4.1) for N chunks in the store.
    missing: weight of the topics that none holds. speakers: words of the query that are somebody's name here.
    """

    def __init__(self, speakers: Sequence[str] = ()) -> None:
        self.terms: list[Term] = []
        self.weights: list[float] = []
        self.holders: list[BitMap64] = []
        self.missing = 0.0
        self.speakers = list(speakers)
        self._any = BitMap64()
        self._several = BitMap64()
        self._masks: dict[int, int] = {}

    def add(self, term: Term, weight: float, holders: BitMap64) -> None:
        """One more term and the chunks that hold it."""
        self._several |= self._any & holders
        self._any |= holders
        self._masks.clear()
        self.terms.append(term)
        self.weights.append(weight)
        self.holders.append(holders)

    def mask(self, chunk: int) -> int:
        """Bit i set where the chunk holds term i."""
        mask = self._masks.get(chunk)
        if mask is None:
            mask = 0
            if chunk in self._any:
                for bit, holders in enumerate(self.holders):
                    if chunk in holders:
                        mask |= 1 << bit
            self._masks[chunk] = mask
        return mask

    def masks(self, chunks: Iterable[int]) -> dict[int, int]:
        """`mask` of each of `chunks` that holds a term."""
        return self._masks_among(BitMap64(chunks))

    def groups(self) -> dict[int, Iterable[int]]:
        """Mask -> the chunks that hold just these terms, newest first."""
        # Thousands of chunks hold one word of a query, few hold two: only these are gone through one by one.
        groups: dict[int, Iterable[int]] = {
            1 << bit: _newest_first(holders, but=self._several) for bit, holders in enumerate(self.holders)
        }
        masks = self._masks_among(self._several)
        self._masks.update(masks)
        together: dict[int, list[int]] = {}
        for chunk in sorted(masks, reverse=True):
            together.setdefault(masks[chunk], []).append(chunk)
        return groups | together

    def chunks(self) -> set[int]:
        """Every chunk that holds a term."""
        return set(self._any)

    def _masks_among(self, chunks: BitMap64) -> dict[int, int]:
        masks: dict[int, int] = {}
        for bit, holders in enumerate(self.holders):
            for chunk in chunks & holders:
                masks[chunk] = masks.get(chunk, 0) | 1 << bit
        return masks


def _newest_first(chunks: BitMap64, *, but: BitMap64) -> Iterator[int]:
    yield from reversed((chunks - but).to_array())


class _Counted(NamedTuple):
    text: int
    speaker: int
    until: float


class _Kept(NamedTuple):
    """Holders of a common word among the chunks up to the id `upto`."""

    holders: BitMap64
    upto: int
    until: float


class TextIndex:
    """Looks words up; remembers how common the common ones are, and who holds them. Any thread may ask."""

    def __init__(self, budget: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """budget: entries read for one query, at most: the rarest words are read first."""
        self._budget = budget
        self._monotonic = monotonic
        self._counts: dict[str, _Counted] = {}
        self._shares: dict[str, tuple[float, float]] = {}
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._kept_bytes = 0
        self._age = 0
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Everything may have changed."""
        with self._lock:
            self._age += 1
            self._kept.clear()
            self._kept_bytes = 0
        self._counts.clear()
        self._shares.clear()

    def find(
        self,
        connection: sqlite3.Connection,
        ns: str,
        terms: Iterable[Term],
        chosen: ChosenIds | None = None,
    ) -> Found:
        """The chunks of `ns` with any of the terms, of `chosen` where there are such. Chunks of other namespaces may be
        among them.
        """
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
        found = Found(speakers)
        left = self._budget if chosen is None else self._budget * CHOSEN_BUDGETS
        for count, term in sorted(content, key=lambda entry: entry[0]):
            weight = math.log(1 + (max(total, LEAST_CHUNKS) - count + 0.5) / (count + 0.5))
            if not count:
                found.missing += weight * term.is_topic
                continue
            # In a scope the count is only an upper bound, and reading a few rows of a common word is cheap.
            if left <= 0 or (not is_scoped and count > left and found.terms):
                break
            match = f"{scope if is_scoped else ''}text:{term.match}"
            if chosen is not None:
                holders = BitMap64(chosen.holding(connection, match))
                left -= count
            else:
                holders = self._holders(connection, match, left, count, total)
                left -= len(holders)
            if not holders and (is_scoped or chosen is not None):
                found.missing += weight * term.is_topic
                continue
            found.add(term, weight, holders)
        return found

    def _holders(self, connection: sqlite3.Connection, match: str, limit: int, count: int, total: int) -> BitMap64:
        """The newest chunks that match. count: chunks that hold the word, at most. total: the highest id of a chunk."""
        if count <= COMMON_WORD_CHUNKS:
            return _newest(connection, match, limit, count)
        now = self._monotonic()
        with self._lock:
            kept, age = self._kept.get(match), self._age
            if kept is not None and now < kept.until and kept.upto >= total:
                self._kept.move_to_end(match)
                return kept.holders
        if kept is not None and now < kept.until:
            # An id is never given twice, so what came since has higher ones. What has gone since stays until it is old:
            # whoever reads the chunks does not find it.
            newer = _newer(connection, match, kept.upto, self._budget)
            holders = _last(kept.holders | newer, self._budget) if newer else kept.holders
            until = kept.until
        else:
            holders, until = _newest(connection, match, self._budget, count), now + KEEP_S
        # What was committed since `total` was read may be among them.
        upto = max(total, holders.max()) if holders else total
        with self._lock:
            if age == self._age:
                self._keep(match, _Kept(holders, upto, until))
        return holders

    def _keep(self, match: str, kept: _Kept) -> None:
        before = self._kept.pop(match, None)
        self._kept[match] = kept
        self._kept_bytes += _bytes(kept.holders) - (_bytes(before.holders) if before is not None else 0)
        while self._kept_bytes > KEPT_BYTES_MAX:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= _bytes(oldest.holders)

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
        count = _Counted(by_column.get("text", 0), by_column.get("speaker", 0), now + KEEP_S)
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
        self._shares[ns] = (share, now + KEEP_S)
        return share


class ChosenIds:
    """Chunks that alone may be hits, by id."""

    def __init__(self, chunks: Iterable[int]) -> None:
        self._chunks = msgspec.json.encode(list(chunks)).decode()

    def holding(self, connection: sqlite3.Connection, match: str) -> list[int]:
        """Those of them that match."""
        # With the plus SQLite walks the entries of the word and looks each up in the set: 0.1 ms a thousand. Without, it
        # asks the full-text index for each of the set: 30 microseconds each.
        return _ids(
            connection,
            "chunks_text WHERE chunks_text MATCH ? AND +rowid IN (SELECT value FROM json_each(?))",
            (match, self._chunks),
        )


def _newest(connection: sqlite3.Connection, match: str, limit: int, count: int) -> BitMap64:
    """The newest chunks that match. count: how many that are, about."""
    if count >= limit:
        return _newer(connection, match, 0, limit)
    # The index is kept in ascending order: to read it backwards takes half as long again.
    return _last(BitMap64(_ids(connection, "chunks_text WHERE chunks_text MATCH ?", (match,))), limit)


def _newer(connection: sqlite3.Connection, match: str, after: int, limit: int) -> BitMap64:
    """The newest chunks that match, of those with ids above `after`."""
    chunks = _ids(
        connection,
        "(SELECT rowid FROM chunks_text WHERE chunks_text MATCH ? AND rowid > ? ORDER BY rowid DESC LIMIT ?)",
        (match, after, limit),
    )
    # In ascending order a bitmap is made of them in a fifth of the time.
    chunks.reverse()
    return BitMap64(chunks)


def _last(chunks: BitMap64, count: int) -> BitMap64:
    return chunks if len(chunks) <= count else chunks[len(chunks) - count :]


def _bytes(chunks: BitMap64) -> int:
    """About what a bitmap takes: two bytes an id, and more for itself and for each 65,536 ids that it has some of."""
    blocks = min(len(chunks), (chunks.max() >> 16) - (chunks.min() >> 16) + 1) if chunks else 0
    return 400 + 100 * blocks + 2 * len(chunks)


def _ids(connection: sqlite3.Connection, source: str, values: Sequence[object]) -> list[int]:
    """Each `rowid` of what stands after FROM."""
    # As one value: half the time of thousands of rows.
    (chunks,) = connection.execute(f"SELECT json_group_array(rowid) FROM {source}", values).fetchone()
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
