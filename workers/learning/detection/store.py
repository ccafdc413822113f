"""Statements on opportunities and their evidence; knows no topics, no bus.

Everything here runs inside one transaction of `Records.run`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from schemas.bodies.learning import Evidence, OpportunityKind, OpportunityState
from workers.learning.detection.found import Found

# Pieces of evidence shown with an opportunity, the newest.
_SHOWN: Final = 50

# Kinds from the most telling to the least: an opportunity is called by its most telling evidence.
_TELLING: Final[tuple[OpportunityKind, ...]] = (
    "correction",
    "preference",
    "evaluation",
    "manual",
    "rating",
    "rephrasing",
    "error",
    "low_confidence",
    "drift",
)


class Row(msgspec.Struct, kw_only=True):
    """One opportunity as it is kept, in the order of its table's columns."""

    opportunity_id: str
    model: str
    kind: OpportunityKind
    family: str
    title: str
    topic: str
    state: OpportunityState
    created_at: float
    last_seen_at: float
    category: str = ""
    source: str = ""
    score: float | None = None
    reason: str = ""
    job_id: str = ""
    found_at: float | None = None
    is_told: bool = False


class Sums(msgspec.Struct, frozen=True):
    """Of the evidence of one opportunity. unanswered: pieces that wait for somebody to say what is right."""

    count: int = 0
    weight: float = 0.0
    unanswered: int = 0


_FIELDS: Final = Row.__struct_fields__


def put(connection: sqlite3.Connection, row: Row) -> None:
    """Write an opportunity, new or changed."""
    marks = ", ".join("?" * len(_FIELDS))
    changes = ", ".join(f"{name} = excluded.{name}" for name in _FIELDS[1:])
    connection.execute(
        f"INSERT INTO opportunities VALUES ({marks}) ON CONFLICT (opportunity_id) DO UPDATE SET {changes}",
        [getattr(row, name) for name in _FIELDS],
    )


def get(connection: sqlite3.Connection, name: str) -> Row | None:
    """By its id, or by a name it was told of under."""
    found = rows(
        connection,
        "opportunity_id = ? OR opportunity_id = (SELECT opportunity_id FROM opportunity_names WHERE name = ?)",
        (name, name),
    )
    return found[0] if found else None


def rows(connection: sqlite3.Connection, where: str, values: Sequence[object] = ()) -> list[Row]:
    """Opportunities that fulfil `where`."""
    found = connection.execute(f"SELECT * FROM opportunities WHERE {where}", values)
    return [msgspec.convert(dict(zip(_FIELDS, row, strict=True)), Row, strict=False) for row in found]


def add_name(connection: sqlite3.Connection, name: str, opportunity_id: str) -> None:
    """Let an opportunity be known under another name, too."""
    connection.execute("INSERT OR IGNORE INTO opportunity_names VALUES (?, ?)", (name, opportunity_id))


def add_evidence(connection: sqlite3.Connection, opportunity_id: str, found: Found) -> bool:
    """Add one piece; False when it was known already."""
    return bool(
        connection.execute(
            "INSERT OR IGNORE INTO evidence VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                opportunity_id,
                found.id,
                found.kind,
                found.at,
                found.note,
                found.weight,
                json.dumps(found.words, ensure_ascii=False),
                found.wants_answer,
                found.user,
            ),
        ).rowcount
    )


def owner_of(connection: sqlite3.Connection, id: str, kind: str) -> str:
    """The opportunity that a piece of evidence was counted towards, "" for none."""
    row = connection.execute(
        "SELECT opportunity_id FROM evidence WHERE id = ? AND kind = ? LIMIT 1", (id, kind)
    ).fetchone()
    return row[0] if row else ""


def evidence(connection: sqlite3.Connection, opportunity_id: str) -> list[Evidence]:
    """The newest pieces."""
    found = connection.execute(
        "SELECT kind, id, at, note FROM evidence WHERE opportunity_id = ? ORDER BY at DESC, id LIMIT ?",
        (opportunity_id, _SHOWN),
    )
    return [Evidence(kind=kind, id=id, at=at, note=note) for kind, id, at, note in found]


def sums(connection: sqlite3.Connection, opportunity_ids: Iterable[str]) -> dict[str, Sums]:
    """Of the evidence of each opportunity that has any."""
    found = {}
    for opportunity_id in opportunity_ids:
        row = connection.execute(
            "SELECT count(*), total(weight), total(wants_answer) FROM evidence WHERE opportunity_id = ?",
            (opportunity_id,),
        ).fetchone()
        found[opportunity_id] = Sums(row[0], row[1], int(row[2]))
    return found


def most_telling(connection: sqlite3.Connection, opportunity_id: str) -> tuple[OpportunityKind, str] | None:
    """Kind and note of the evidence that an opportunity is called by; None where there is none."""
    found = connection.execute(
        "SELECT kind, note, at FROM evidence WHERE opportunity_id = ? ORDER BY at LIMIT 10000", (opportunity_id,)
    ).fetchall()
    if not found:
        return None
    kind, note, _ = min(found, key=lambda row: (_TELLING.index(row[0]), row[2]))
    return kind, note


def is_more_telling(kind: OpportunityKind, other: OpportunityKind) -> bool:
    """True where an opportunity of `other` is to be called by `kind` from now on."""
    return _TELLING.index(kind) < _TELLING.index(other)


def answered(connection: sqlite3.Connection, ids: Iterable[str]) -> None:
    """Somebody said what is right for these pieces of evidence."""
    connection.executemany("UPDATE evidence SET wants_answer = 0 WHERE id = ?", [(id,) for id in ids])


def unanswered(connection: sqlite3.Connection, limit: int) -> list[tuple[str, str]]:
    """(opportunity, evidence) of open opportunities for which nobody knows an answer yet, and no teacher was asked."""
    return connection.execute(
        "SELECT e.opportunity_id, e.id FROM evidence e JOIN opportunities o USING (opportunity_id)"
        " WHERE e.wants_answer AND o.state = 'open' AND o.found_at IS NOT NULL"
        " AND e.id NOT IN (SELECT reply_id FROM teacher_questions) ORDER BY e.weight DESC, e.at DESC LIMIT ?",
        (limit,),
    ).fetchall()


def forget(connection: sqlite3.Connection, ids: Sequence[str], user: str = "") -> list[str]:
    """Delete pieces of evidence, also all on questions of `user`; the opportunities that had them."""
    touched = set[str]()
    of_user = connection.execute("SELECT DISTINCT id FROM evidence WHERE user = ? AND user != ''", (user,)).fetchall()
    for id in (*ids, *(id for (id,) in of_user)):
        for (opportunity_id,) in connection.execute("SELECT opportunity_id FROM evidence WHERE id = ?", (id,)):
            touched.add(opportunity_id)
        connection.execute("DELETE FROM evidence WHERE id = ?", (id,))
        connection.execute("DELETE FROM signal_judgements WHERE reply_id = ?", (id,))
        connection.execute("DELETE FROM teacher_questions WHERE reply_id = ?", (id,))
    return sorted(touched)


def fade(connection: sqlite3.Connection, before: float) -> list[str]:
    """Delete the evidence from before then; the opportunities that had some. Those in training keep theirs."""
    kept = "SELECT opportunity_id FROM opportunities WHERE state = 'training'"
    old = f" FROM evidence WHERE at < ? AND opportunity_id NOT IN ({kept})"
    touched = [id for (id,) in connection.execute(f"SELECT DISTINCT opportunity_id{old}", (before,))]
    connection.execute(f"DELETE{old}", (before,))
    return touched


def words_of(connection: sqlite3.Connection, opportunity_id: str) -> list[list[str]]:
    """The words of each question that is evidence."""
    found = connection.execute("SELECT words FROM evidence WHERE opportunity_id = ?", (opportunity_id,))
    return [json.loads(words) for (words,) in found]


def delete(connection: sqlite3.Connection, opportunity_id: str) -> None:
    """Forget an opportunity."""
    connection.execute("DELETE FROM opportunities WHERE opportunity_id = ?", (opportunity_id,))


def costs(connection: sqlite3.Connection) -> dict[str, float]:
    """Seconds of training per example that jobs of each model took."""
    return dict(connection.execute("SELECT model, s_per_example FROM training_costs"))


def note_cost(connection: sqlite3.Connection, model: str, s_per_example: float) -> None:
    """Count one job: the mean over all jobs, of which ten at most weigh on it."""
    connection.execute(
        "INSERT INTO training_costs VALUES (?, ?, 1) ON CONFLICT (model) DO UPDATE SET"
        " s_per_example = s_per_example + (excluded.s_per_example - s_per_example) / min(jobs + 1, 10), jobs = jobs + 1",
        (model, s_per_example),
    )


def look(connection: sqlite3.Connection, name: str) -> str | None:
    """What was noted when `name` was looked at; None when it was not."""
    row = connection.execute("SELECT state FROM looked_at WHERE name = ?", (name,)).fetchone()
    return str(row[0]) if row else None


def looked(connection: sqlite3.Connection, name: str, now: float, state: str = "") -> None:
    """Note that `name` was looked at."""
    connection.execute("INSERT OR REPLACE INTO looked_at VALUES (?, ?, ?)", (name, now, state))
