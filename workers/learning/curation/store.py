"""The examples in SQLite: written, read by page, erased; each function runs inside a transaction that its caller owns."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import msgspec

from schemas.bodies.learning_data import RowInfo, RowList, RowPage, RowRelease, RowRemove
from schemas.bodies.model import ChatMessage
from schemas.errors import Conflict, NotFound
from workers.learning.curation import clusters, likeness
from workers.learning.curation.drafts import UNTAUGHT, Draft, plain
from workers.learning.curation.guards import Claim
from workers.learning.curation.references import Reference

# Bytes of the texts in one page of a reply. A row may have a megabyte of them.
PAGE_BYTES: Final = 4 * 1_048_576

_COLUMNS: Final = (
    "number, row_id, model, kind, texts, user, session_id, memory_ids, evidence, opportunity_id, cluster, split, state,"
    " reason, created_at, sha256"
)

# Cause of quarantine: neither side of the split may have it.
SPLIT: Final = "split"

# In the place of a cause: a person said that the example may be used.
RELEASED: Final = "released"

# What stands for a secret in a text (see privacy.py).
SECRET_MARKS: Final = ("[token]", "[password]", "[password in a URL]", "[private key]")

_ERASED: Final[dict[str, Any]] = {"messages": None, "prompt": None, "answer": "", "rejected": None}


class New(msgspec.Struct, frozen=True, kw_only=True):
    """All there is to know of an example that is about to be kept."""

    row_id: str
    draft: Draft
    split: str
    cluster: str
    state: str
    cause: str
    reason: str
    created_at: float
    weight: float
    references: dict[Reference, str]


class Texts(msgspec.Struct, frozen=True):
    """What is kept of an example's texts, and its hashes."""

    json: str
    content: str
    context: str
    answer: str
    sha256: str
    likeness: likeness.Likeness


def texts_of(draft: Draft) -> Texts:
    """The texts of a draft in the form they are kept in: canonical JSON, keys sorted, without spaces."""
    texts = plain(draft)
    canonical = json.dumps(texts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    alike = likeness.likeness_of(texts)
    return Texts(
        canonical,
        likeness.content_of(texts),
        likeness.context_of(texts),
        alike.answer,
        likeness.digest(canonical),
        alike,
    )


def next_number(connection: sqlite3.Connection) -> int:
    """The number the next example gets; none is used twice."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'examples'").fetchone()
    return int(row[0]) + 1 if row else 1


def insert(connection: sqlite3.Connection, number: int, new: New, texts: Texts) -> None:
    """Keep an example with all that belongs to it."""
    draft = new.draft
    connection.execute(
        "INSERT INTO examples (number, row_id, model, kind, texts, user, session_id, memory_ids, evidence,"
        " opportunity_id, source, cluster, split, state, cause, reason, created_at, content, context, answer, sha256)"
        f" VALUES ({','.join('?' * 21)})",
        (
            number,
            new.row_id,
            draft.model,
            draft.kind,
            texts.json,
            draft.user,
            draft.session_id,
            json.dumps(draft.memory_ids),
            json.dumps(draft.evidence),
            draft.opportunity_id,
            draft.source,
            new.cluster,
            new.split,
            new.state,
            new.cause,
            new.reason,
            new.created_at,
            texts.content,
            texts.context,
            texts.answer,
            texts.sha256,
        ),
    )
    support(connection, number, draft, new.weight)
    connection.executemany(
        "INSERT OR REPLACE INTO example_references VALUES (?, ?, ?, ?, ?)",
        [(*reference, number, state) for reference, state in new.references.items()],
    )


def support(connection: sqlite3.Connection, number: int, draft: Draft, weight: float) -> None:
    """Note who says so too, for what and from which evidence."""
    connection.execute("INSERT OR REPLACE INTO example_users VALUES (?, ?, ?)", (number, draft.user, weight))
    if draft.opportunity_id:
        connection.execute("INSERT OR IGNORE INTO example_opportunities VALUES (?, ?)", (draft.opportunity_id, number))
    connection.executemany(
        "INSERT OR IGNORE INTO example_evidence VALUES (?, ?)", [(one, number) for one in draft.evidence]
    )


def rewrite(connection: sqlite3.Connection, number: int, texts: Texts) -> None:
    """Put other texts in the place of an example's."""
    connection.execute(
        "UPDATE examples SET texts = ?, content = ?, context = ?, answer = ?, sha256 = ?, is_released = 0 WHERE number = ?",
        (texts.json, texts.content, texts.context, texts.answer, texts.sha256, number),
    )


def set_state(connection: sqlite3.Connection, number: int, state: str, cause: str, reason: str) -> None:
    """Say whether an example may be learned from, and why not."""
    connection.execute(
        "UPDATE examples SET state = ?, cause = ?, reason = ? WHERE number = ?", (state, cause, reason, number)
    )


def known(connection: sqlite3.Connection, model: str, content: str) -> tuple[int, str, str, str] | None:
    """Number, row id, split and state of the example with this content."""
    found = connection.execute(
        "SELECT number, row_id, split, state FROM examples WHERE model = ? AND content = ? AND state != 'removed'",
        (model, content),
    ).fetchone()
    return found if found is None else (int(found[0]), str(found[1]), str(found[2]), str(found[3]))


def claims(connection: sqlite3.Connection, model: str, context: str) -> list[tuple[Claim, str, str]]:
    """The answers to one question with state and cause of each. One that a person let through has the cause RELEASED."""
    rows = connection.execute(
        "SELECT number, texts, kind, state, cause, is_released FROM examples"
        " WHERE model = ? AND context = ? AND state != 'removed' ORDER BY number",
        (model, context),
    ).fetchall()
    found = []
    for number, kept, kind, state, cause, is_released in rows:
        weights = dict(
            connection.execute("SELECT user, weight FROM example_users WHERE number = ?", (number,)).fetchall()
        )
        if is_released:
            kind, weights, cause = "manual", {**weights, "": 1.0}, RELEASED
        found.append(
            (Claim(number=number, answer=json.loads(kept)["answer"], kind=kind, weights=weights), state, cause)
        )
    return found


def recent_rows(connection: sqlite3.Connection, user: str, since: float) -> tuple[int, bool]:
    """Examples one person gave since then, and whether anybody else ever gave one."""
    (count,) = connection.execute(
        "SELECT count(*) FROM examples WHERE user = ? AND created_at >= ?", (user, since)
    ).fetchone()
    other = connection.execute(
        "SELECT 1 FROM examples WHERE user < ? AND user != '' UNION ALL SELECT 1 FROM examples WHERE user > ? LIMIT 1",
        (user, user),
    ).fetchone()
    return int(count), other is not None


def bury(connection: sqlite3.Connection, hashes: Iterable[str], reason: str, now: float) -> None:
    """Let what has one of these hashes not be taken in again."""
    connection.executemany("INSERT OR IGNORE INTO tombstones VALUES (?, ?, ?)", [(one, reason, now) for one in hashes])


def tombstone(connection: sqlite3.Connection, content: str, user: str) -> str:
    """Why a content is not taken in again, from anybody or from this person; "" when it may be."""
    found = connection.execute(
        "SELECT reason FROM tombstones WHERE hash IN (?, ?)", (content, grave_of(content, user))
    ).fetchone()
    return str(found[0]) if found else ""


def grave_of(content: str, user: str) -> str:
    """Hash under which a content is buried for one person: others may still say the same."""
    return likeness.digest("of one person", content, user)


def grave_of_evidence(id: str) -> str:
    """Hash under which all that is made of one exchange or feedback is buried."""
    return likeness.digest("of evidence", id)


def buried_evidence(connection: sqlite3.Connection, ids: Iterable[str]) -> str:
    """Why nothing is made of some of this evidence any more; "" when it may be."""
    for one in ids:
        found = connection.execute("SELECT reason FROM tombstones WHERE hash = ?", (grave_of_evidence(one),)).fetchone()
        if found:
            return str(found[0])
    return ""


def erase(
    connection: sqlite3.Connection, numbers: Collection[int], *, cause: str, reason: str, now: float
) -> list[str]:
    """Delete the texts of examples and all that was made of them; datasets that hold them are stale from now on.

    cause: "removed" buries them for everybody, any other for the person they came from. Returns their row ids.
    """
    erased: list[str] = []
    for number in numbers:
        row = connection.execute(
            "SELECT row_id, content, user FROM examples WHERE number = ? AND state != 'removed'", (number,)
        ).fetchone()
        if row is None:
            continue
        row_id, content, user = row
        bury(connection, [content if cause == "removed" else grave_of(content, user)], reason, now)
        clusters.drop(connection, number)
        connection.execute(
            "UPDATE examples SET texts = NULL, state = 'removed', cause = ?, reason = ?, user = '', session_id = '',"
            " memory_ids = '[]', evidence = '[]', source = '', context = '', answer = '', sha256 = '' WHERE number = ?",
            (cause, reason, number),
        )
        for table in ("example_users", "example_opportunities", "example_evidence", "example_references"):
            connection.execute(f"DELETE FROM {table} WHERE number = ?", (number,))
        connection.execute("INSERT OR IGNORE INTO erased_rows VALUES (?)", (row_id,))
        erased.append(row_id)
    if erased:
        mark_stale(connection, numbers, f"examples in it were {'removed' if cause == 'removed' else 'forgotten'}")
    return erased


def untold(connection: sqlite3.Connection) -> list[str]:
    """Ids of erased rows of which copies may still be somewhere."""
    return [row_id for (row_id,) in connection.execute("SELECT row_id FROM erased_rows")]


def told(connection: sqlite3.Connection, row_ids: Iterable[str]) -> None:
    """Whoever had copies of these erased rows knows."""
    connection.executemany("DELETE FROM erased_rows WHERE row_id = ?", [(row_id,) for row_id in row_ids])


def mark_stale(connection: sqlite3.Connection, numbers: Collection[int], why: str) -> None:
    """Say of every version that holds one of these examples that it must be built anew."""
    for number in numbers:
        connection.execute(
            "UPDATE datasets SET is_stale = ? WHERE is_stale = '' AND (dataset, version) IN"
            " (SELECT dataset, version FROM dataset_rows WHERE number = ?)",
            (why, number),
        )


def of_reference(connection: sqlite3.Connection, reference: Reference) -> list[int]:
    """Examples that rest on it."""
    found = connection.execute(
        "SELECT number FROM example_references WHERE kind = ? AND ns = ? AND id = ?", tuple(reference)
    )
    return [number for (number,) in found]


def of_origin(connection: sqlite3.Connection, *, user: str, session_id: str, evidence: Sequence[str]) -> list[int]:
    """Examples of a person, of a session, or made of this evidence: of any of the three that is given."""
    numbers: dict[int, None] = {}
    asked = [("user", user), ("session_id", session_id)]
    for column, value in asked:
        if value:
            rows = connection.execute(
                f"SELECT number FROM examples WHERE {column} = ? AND state != 'removed'", (value,)
            )
            numbers.update((number, None) for (number,) in rows)
    for one in evidence:
        rows = connection.execute("SELECT number FROM example_evidence WHERE id = ?", (one,))
        numbers.update((number, None) for (number,) in rows)
    return list(numbers)


def references(
    connection: sqlite3.Connection, *, model: str | None = None, dataset: str | None = None, version: int = 0
) -> list[tuple[Reference, int, str]]:
    """References with the example's number and what was known of them: of all, of a model's, or of a version's examples."""
    where = ""
    if model is not None:
        where = " WHERE number IN (SELECT number FROM examples WHERE model = :model AND state = 'ready')"
    elif dataset is not None:
        where = " WHERE number IN (SELECT number FROM dataset_rows WHERE dataset = :dataset AND version = :version)"
    rows = connection.execute(
        f"SELECT kind, ns, id, number, state FROM example_references{where}",
        {"model": model, "dataset": dataset, "version": version},
    )
    return [(Reference(kind, ns, name), number, state) for kind, ns, name, number, state in rows]


def found_again(connection: sqlite3.Connection, present: Iterable[Reference]) -> None:
    """Note that MemoryHub knows these."""
    connection.executemany(
        "UPDATE example_references SET state = 'known' WHERE kind = ? AND ns = ? AND id = ?",
        [tuple(one) for one in present],
    )


def people(connection: sqlite3.Connection, model: str) -> list[str]:
    """Everybody whose examples may be learned by a model."""
    found = connection.execute("SELECT DISTINCT user FROM examples WHERE model = ? AND state = 'ready'", (model,))
    return [user for (user,) in found]


def known_evidence(connection: sqlite3.Connection, ids: Sequence[str]) -> set[str]:
    """Those of these ids that an example was made of."""
    return {
        one
        for one in ids
        if connection.execute("SELECT 1 FROM example_evidence WHERE id = ? LIMIT 1", (one,)).fetchone()
    }


def number_of(connection: sqlite3.Connection, row_id: str) -> int:
    """Raises NotFound."""
    row = connection.execute("SELECT number FROM examples WHERE row_id = ?", (row_id,)).fetchone()
    if row is None:
        raise NotFound(f"there is no row {row_id!r}", field="row_id")
    return int(row[0])


def read(connection: sqlite3.Connection, number: int) -> RowInfo:
    """One example."""
    return info_of(connection.execute(f"SELECT {_COLUMNS} FROM examples WHERE number = ?", (number,)).fetchone())


def texts(connection: sqlite3.Connection, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Texts of examples in this order; of erased ones none."""
    found = (
        connection.execute("SELECT texts FROM examples WHERE number = ?", (number,)).fetchone()[0] for number in numbers
    )
    return [json.loads(one) for one in found if one is not None]


def page(connection: sqlite3.Connection, request: RowList) -> RowPage:
    """The newest first. Raises NotFound for an `after` that is no row."""
    where, values = _where(request)
    (total,) = connection.execute(f"SELECT count(*) FROM examples{_joined(where)}", values).fetchone()
    if request.after:
        where.append("number < ?")
        values.append(number_of(connection, request.after))
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM examples{_joined(where)} ORDER BY number DESC LIMIT ?", (*values, request.limit + 1)
    )
    return cut(rows, request.limit, total)


def cut(rows: Iterable[tuple[Any, ...]], limit: int, total: int) -> RowPage:
    """The rows that fit a reply, one at least where there is one."""
    found: list[RowInfo] = []
    size = 0
    for row in rows:
        size += 4 * len(row[4] or "")
        if len(found) == limit or (found and size > PAGE_BYTES):
            return RowPage(rows=found, total=total, next=found[-1].row_id if found else "")
        found.append(info_of(row))
    return RowPage(rows=found, total=total)


def _where(request: RowList) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    for column in ("model", "state", "split", "kind", "user"):
        value = getattr(request, column)
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    if request.opportunity_id is not None:
        where.append("number IN (SELECT number FROM example_opportunities WHERE opportunity_id = ?)")
        values.append(request.opportunity_id)
    return where, values


def _joined(where: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(where)}" if where else ""


def info_of(row: tuple[Any, ...]) -> RowInfo:
    _, row_id, model, kind, kept, user, session_id, memory_ids, evidence, opportunity_id, *rest = row
    cluster, split, state, reason, created_at, sha256 = rest
    said = json.loads(kept) if kept is not None else _ERASED
    return RowInfo(
        row_id=row_id,
        model=model,
        kind=kind,
        messages=msgspec.convert(said["messages"] or [], list[ChatMessage]),
        prompt=said["prompt"],
        answer=said["answer"],
        rejected=said["rejected"],
        user=user,
        session_id=session_id,
        memory_ids=json.loads(memory_ids),
        evidence=json.loads(evidence),
        opportunity_id=opportunity_id,
        cluster=cluster,
        split=split,
        state=state,
        reason=reason,
        created_at=created_at,
        sha256=sha256,
    )


def count_ready(connection: sqlite3.Connection, opportunity_ids: Sequence[str]) -> dict[str, int]:
    """Ready rows of each opportunity."""
    return {
        one: connection.execute(
            "SELECT count(*) FROM example_opportunities JOIN examples USING (number)"
            " WHERE example_opportunities.opportunity_id = ? AND state = 'ready'",
            (one,),
        ).fetchone()[0]
        for one in opportunity_ids
    }


def forget(
    connection: sqlite3.Connection, *, user: str, session_id: str, evidence: Sequence[str], now: float
) -> list[str]:
    """Erase the examples of a person, of a session or made of this evidence; returns their row ids.

    What is being made of the evidence just now comes too late.
    """
    numbers = of_origin(connection, user=user, session_id=session_id, evidence=evidence)
    bury(connection, map(grave_of_evidence, evidence), "forgotten where it came from", now)
    if user:
        connection.execute("DELETE FROM example_users WHERE user = ?", (user,))
    return erase(connection, numbers, cause="forgotten", reason="forgotten where it came from", now=now)


def complain(connection: sqlite3.Connection, reply_id: str) -> None:
    """Keep out the rows that repeat this answer: somebody called it bad."""
    found = connection.execute(
        "SELECT number, kind FROM example_evidence JOIN examples USING (number) WHERE id = ? AND state = 'ready'",
        (reply_id,),
    ).fetchall()
    for number, kind in found:
        if kind in UNTAUGHT:
            set_state(connection, number, "quarantined", "complaint", "somebody called this answer bad")


def remove(connection: sqlite3.Connection, request: RowRemove, now: float) -> RowInfo:
    """Erase an example for everybody. Raises NotFound. Removing it again changes nothing."""
    number = number_of(connection, request.row_id)
    erase(connection, [number], cause="removed", reason=request.reason or "removed by hand", now=now)
    return read(connection, number)


def release(connection: sqlite3.Connection, request: RowRelease, why: str) -> RowInfo:
    """Let a quarantined example be used. Raises NotFound, Conflict."""
    number = number_of(connection, request.row_id)
    row = read(connection, number)
    if row.state != "quarantined":
        raise Conflict(f"row {row.row_id!r} is {row.state}, only a quarantined one can be released", field="row_id")
    (cause,) = connection.execute("SELECT cause FROM examples WHERE number = ?", (number,)).fetchone()
    if cause == SPLIT:
        raise Conflict(
            f"row {row.row_id!r} {row.reason}, and would spoil the test on either; edit it or remove it", field="row_id"
        )
    masked = next((mark for mark in SECRET_MARKS if mark in row.answer or mark in (row.rejected or "")), None)
    if masked is not None:
        raise Conflict(
            f"row {row.row_id!r} says {masked} where a secret was, which a model would learn to say; edit it or remove it",
            field="row_id",
        )
    set_state(connection, number, "ready", "", f"{why} (was: {row.reason})")
    connection.execute("UPDATE examples SET is_released = 1 WHERE number = ?", (number,))
    return read(connection, number)
