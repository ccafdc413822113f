"""Puts an example into the cluster of its fact, and so on one side of the split for good: SQL statements.

A cluster's side is decided when it is founded and never changes. Two clusters of one side that prove to be one fact are
joined; an example that ties a trained fact to a held-out one is kept out, because either place for it would leak.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from workers.learning.curation import likeness
from workers.learning.curation.likeness import Likeness

# Examples looked at under one key, the newest: more share only what says nothing.
_CANDIDATES: Final = 256

# Examples with one answer from which on that answer ("yes", a label) no longer tells that two questions are one.
_COMMON_ANSWER: Final = 50

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(Likeness).decode


class Place(NamedTuple):
    """Where an example belongs. conflict: why it may be on neither side, "" when it may."""

    cluster: str
    is_held: bool
    conflict: str


def is_held(cluster: str, share: float) -> bool:
    """True for the part `share` of all clusters that is never trained on: by hash alone, the same on every machine."""
    value = int.from_bytes(hashlib.sha256(f"olympus side {cluster}".encode()).digest()[:8], "big")
    return value < share * 2**64


def place(
    connection: sqlite3.Connection,
    number: int,
    row: Likeness,
    *,
    held_share: float,
    must_be_held: bool = False,
    evidence: Sequence[str] = (),
    own: str = "",
) -> Place:
    """The cluster of an example, founded or joined as need be.

    number: its own, not to be compared with itself. held_share: of the facts founded now. evidence: ids of what it was made
    of; examples made of the same are of one fact. own: the cluster that it has already and keeps.
    """
    found = _clusters_of(connection, number, row) | _of_evidence(connection, number, evidence)
    if own:
        found.add(own)
    if not found:
        return _found(connection, number, row, held_share=held_share, must_be_held=must_be_held)
    known = connection.execute(
        f"SELECT cluster, is_held FROM clusters WHERE cluster IN ({','.join('?' * len(found))}) ORDER BY founded, cluster",
        tuple(found),
    ).fetchall()
    sides = {bool(side) for _, side in known}
    if len(sides) > 1:
        held = own or next(cluster for cluster, side in known if side)
        return Place(held, bool(dict(known)[held]), "resembles examples on both sides of the split")
    cluster, side = known[0]
    if must_be_held and not side:
        return Place(cluster, False, "is to be kept from training, but its fact is among the trained ones")
    for joined, _ in known[1:]:
        connection.execute("UPDATE examples SET cluster = ? WHERE cluster = ?", (cluster, joined))
    return Place(cluster, bool(side), "")


def resembling(connection: sqlite3.Connection, rows: Iterable[Likeness]) -> set[str]:
    """The clusters of the facts that these questions are about, which need not be examples themselves."""
    found: set[str] = set()
    for row in rows:
        found |= _clusters_of(connection, 0, row)
    return found


def keep(connection: sqlite3.Connection, number: int, row: Likeness) -> None:
    """Let later examples be compared with this one."""
    connection.execute("INSERT OR REPLACE INTO example_likeness VALUES (?, ?)", (number, _encode(row)))
    kept, _ = likeness.keys(row)
    connection.executemany("INSERT OR IGNORE INTO example_keys VALUES (?, ?)", [(key, number) for key in kept])


def drop(connection: sqlite3.Connection, number: int) -> None:
    """Compare nothing with this example any more, and keep nothing of its words."""
    found = connection.execute("SELECT likeness FROM example_likeness WHERE number = ?", (number,)).fetchone()
    if found is not None:
        kept, _ = likeness.keys(_decode(found[0]))
        connection.executemany("DELETE FROM example_keys WHERE key = ? AND number = ?", [(key, number) for key in kept])
        connection.execute("DELETE FROM example_likeness WHERE number = ?", (number,))


def _clusters_of(connection: sqlite3.Connection, number: int, row: Likeness) -> set[str]:
    common = connection.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM examples WHERE answer = ? AND state != 'removed' LIMIT {_COMMON_ANSWER})",
        (row.answer,),
    ).fetchone()[0]
    answer_tells = common < _COMMON_ANSWER
    _, sought = likeness.keys(row, answer_tells=answer_tells)
    candidates: set[int] = set()
    for key in sought:
        candidates.update(
            candidate
            for (candidate,) in connection.execute(
                "SELECT number FROM example_keys WHERE key = ? ORDER BY number DESC LIMIT ?", (key, _CANDIDATES)
            )
        )
    candidates.discard(number)
    clusters: set[str] = set()
    for candidate in candidates:
        blob, cluster = connection.execute(
            "SELECT likeness, cluster FROM example_likeness JOIN examples USING (number) WHERE number = ?", (candidate,)
        ).fetchone()
        if cluster not in clusters and likeness.is_same_fact(row, _decode(blob), answer_tells=answer_tells):
            clusters.add(cluster)
    return clusters


def _of_evidence(connection: sqlite3.Connection, number: int, evidence: Sequence[str]) -> set[str]:
    # One evaluation has many questions, so only what was made of one exchange counts.
    return {
        cluster
        for one in evidence
        for (cluster,) in connection.execute(
            "SELECT cluster FROM example_evidence JOIN examples USING (number)"
            " WHERE id = ? AND number != ? AND kind IN ('feedback', 'exchange') AND state != 'removed'",
            (one, number),
        )
    }


def _found(
    connection: sqlite3.Connection, number: int, row: Likeness, *, held_share: float, must_be_held: bool
) -> Place:
    # By its words and not by chance: the same fact has the same side in every installation.
    cluster = likeness.digest("fact", row.question)[:24]
    held = must_be_held or is_held(cluster, held_share)
    connection.execute("INSERT OR IGNORE INTO clusters VALUES (?, ?, ?)", (cluster, held, number))
    # It was known before where all its examples were erased since; its side stays.
    side = bool(connection.execute("SELECT is_held FROM clusters WHERE cluster = ?", (cluster,)).fetchone()[0])
    conflict = (
        "is to be kept from training, but its fact is among the trained ones" if must_be_held and not side else ""
    )
    return Place(cluster, side, conflict)
