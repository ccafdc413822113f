"""One run of the life cycle over the table: what is to change is worked out by a reader, then written batch by batch.

The numbers are those of `lifecycle`. Nothing that callers wrote is changed: a summary goes beside the content, into
`metadata.summary`, and a consolidation is a memory of its own.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from schemas.bodies.items import CycleReport, NewMemory
from workers.memory.items import lifecycle, rows
from workers.memory.items.chunking import cut
from workers.memory.items.drafts import Draft, draft
from workers.memory.items.lifecycle import Aged
from workers.memory.items.removal import CONSOLIDATED_INTO
from workers.memory.items.summary import LOOKED_AT_CHARACTERS, share, summarise
from workers.memory.items.writing import write_all
from workers.memory.outcome import Event, Outcome, changed
from workers.memory.values import pack, unpack

# Memories aged in one transaction: some 5 ms of the writer's time.
BATCH_ROWS: Final = 256

# Characters looked at for summaries and consolidations after which a batch ends: some 50 ms of a reader's time.
BATCH_CHARACTERS: Final = 8 * LOOKED_AT_CHARACTERS

# Characters above which a memory that leaves its tier gets a summary, and of that summary at most.
SUMMARY_CHARACTERS: Final = 200

# Characters of a consolidation: one chunk of search.
CONSOLIDATION_CHARACTERS: Final = 1_000

# Memories that one consolidation is made of, at most; what is left over makes another one.
SOURCES_MAX: Final = 32

# Neighbours on each side, and relations, that are looked at when sources are gathered.
_NEAR: Final = 64

# The beginning of a content, and its bytes: a batch may come upon hundreds of millions of characters, and looks at few. As
# bytes, because SQLite's functions of texts end at a null.
_BEGINNING: Final = "substr(CAST(content AS BLOB), 1, ?)"
_BYTES_PER_CHARACTER: Final = 4
_BUT_CONTENT: Final = rows.COLUMNS.removesuffix("memories.content")

TIERS: Final = tuple(lifecycle.RATES)

# Namespace and id of what is consolidated in this run.
Taken = set[tuple[str, str]]


class Consolidation(NamedTuple):
    """A memory to be made of others: ids and versions of its sources, the one that leaves its tier first."""

    draft: Draft
    sources: Sequence[tuple[str, int]]


class Ageing(NamedTuple):
    """What is to become of one memory. `version` and `decayed_at`: as it was read; it is left alone if they changed."""

    sequence: int
    ns: str
    id: str
    tier: str
    importance: float
    version: int
    decayed_at: float
    aged: Aged
    summary: str | None
    consolidation: Consolidation | None


class Batch(NamedTuple):
    """Some of the memories of a tier. `after`: where the next batch goes on, None when this was the last."""

    ageings: Sequence[Ageing]
    after: int | None


class _Row(NamedTuple):
    sequence: int
    ns: str
    id: str
    type: str
    importance: float
    created_at: float
    decayed_at: float
    at: float
    version: int
    parent_id: str | None


def plan(
    connection: sqlite3.Connection,
    *,
    tier: str,
    after: int,
    ns: str | None,
    now: float,
    taken: Taken,
    max_bytes: int,
) -> Batch:
    """What becomes of the next memories of `tier` for which a pass is due. `taken` grows by what is consolidated."""
    found = connection.execute(
        "SELECT sequence, ns, id, type, importance, created_at, decayed_at, at, version, parent_id FROM memories"
        " WHERE tier = ? AND sequence > ? AND decayed_at < ? AND (? IS NULL OR ns = ?)"
        f" AND {rows.IS_LIVE} ORDER BY sequence LIMIT ?",
        (tier, after, lifecycle.latest_pass(now), ns, ns, now, BATCH_ROWS),
    )
    batch = [_Row(*row) for row in found.fetchall()]
    ageings: list[Ageing] = []
    characters = 0
    for row in batch:
        ageing, looked_at = _ageing(connection, tier, row, now, taken, max_bytes)
        ageings.append(ageing)
        characters += looked_at
        if characters >= BATCH_CHARACTERS:
            return Batch(ageings, row.sequence)
    return Batch(ageings, batch[-1].sequence if len(batch) == BATCH_ROWS else None)


def apply(connection: sqlite3.Connection, ageings: Sequence[Ageing], now: float, max_bytes: int) -> Outcome:
    """Write what was planned, but for memories that were changed since; the reply is a CycleReport."""
    events: list[Event] = []
    done: list[Ageing] = []
    for ageing in ageings:
        is_consolidated = ageing.consolidation is not None and _are_unchanged(connection, ageing, now)
        if ageing.consolidation is not None and not is_consolidated:
            continue  # a source went or changed in between: the next run looks again
        if not _age(connection, ageing, now):
            continue
        if ageing.consolidation is not None:
            events += _consolidate(connection, ageing.ns, ageing.consolidation, now)
        if ageing.summary is not None:
            _keep_summary(connection, ageing, max_bytes)
        if ageing.aged.tier != ageing.tier:
            events.append(changed(ageing.ns, ageing.id, "decay", ageing.version))
        done.append(ageing)
    return Outcome(report(done), events)


def report(ageings: Sequence[Ageing], *, expired: int = 0, dry_run: bool = False) -> CycleReport:
    """The figures of these changes."""
    return CycleReport(
        looked_at=len(ageings),
        decayed=sum(ageing.aged.importance != ageing.importance for ageing in ageings),
        promoted=sum(ageing.aged.tier != ageing.tier for ageing in ageings),
        consolidated=sum(ageing.consolidation is not None for ageing in ageings),
        summarised=sum(ageing.summary is not None for ageing in ageings),
        expired=expired,
        dry_run=dry_run,
    )


def total(reports: Sequence[CycleReport], *, expired: int, dry_run: bool) -> CycleReport:
    """The figures of a whole run."""
    return CycleReport(
        looked_at=sum(report.looked_at for report in reports),
        decayed=sum(report.decayed for report in reports),
        promoted=sum(report.promoted for report in reports),
        consolidated=sum(report.consolidated for report in reports),
        summarised=sum(report.summarised for report in reports),
        expired=expired,
        dry_run=dry_run,
    )


def _ageing(
    connection: sqlite3.Connection, tier: str, row: _Row, now: float, taken: Taken, max_bytes: int
) -> tuple[Ageing, int]:
    """What becomes of a memory, and how many characters were looked at for it."""
    aged = lifecycle.age(tier, row.importance, created_at=row.created_at, since=row.decayed_at, until=now)
    consolidation = None
    summary = None
    looked_at = 0
    if aged.left_short:
        consolidation, looked_at = _consolidation(connection, row, now, taken, max_bytes)
    if aged.tier != tier and consolidation is None:
        summary, looked_at = _summary(connection, row.sequence, max_bytes)
    ageing = Ageing(
        sequence=row.sequence,
        ns=row.ns,
        id=row.id,
        tier=tier,
        importance=row.importance,
        version=row.version,
        decayed_at=row.decayed_at,
        aged=aged,
        summary=summary,
        consolidation=consolidation,
    )
    return ageing, looked_at


def _summary(connection: sqlite3.Connection, sequence: int, max_bytes: int) -> tuple[str | None, int]:
    """What to keep as `metadata.summary`, and the characters looked at for it.

    None for a short memory, and for one whose writer has put a summary there.
    """
    *row, beginning, content_bytes = connection.execute(
        f"SELECT {_BUT_CONTENT} {_BEGINNING}, length(CAST(content AS BLOB)) FROM memories WHERE sequence = ?",
        (_BYTES_PER_CHARACTER * LOOKED_AT_CHARACTERS, sequence),
    ).fetchone()
    metadata = row[-1]
    content = _text(beginning, LOOKED_AT_CHARACTERS)
    size_bytes = rows.bytes_of((*row, "")) + content_bytes
    has_room = size_bytes + 4 * SUMMARY_CHARACTERS + rows.OVERHEAD_BYTES <= max_bytes
    if len(content) <= SUMMARY_CHARACTERS or not has_room or "summary" in unpack(metadata):
        return None, 0
    return summarise([content], SUMMARY_CHARACTERS) or None, len(content)


def _text(beginning: bytes, characters: int) -> str:
    """So many characters of a text, of which at least as many bytes are given as they may take."""
    return beginning.decode(errors="ignore")[:characters]


def _consolidation(
    connection: sqlite3.Connection, row: _Row, now: float, taken: Taken, max_bytes: int
) -> tuple[Consolidation | None, int]:
    """The consolidation that a memory becomes part of, None for none, and the characters looked at for it."""
    if not _is_free(connection, row.ns, row.id, row.type, taken):
        return None, 0
    related = [
        near
        for near in _related(connection, row, now)
        if near[0] != row.id and _is_free(connection, row.ns, near[0], near[2], taken)
    ]
    if len(related) < lifecycle.CONSOLIDATE_FROM:
        return None, 0
    sources = [(row.id, row.version), *((near_id, version) for near_id, version, _ in related[: SOURCES_MAX - 1])]
    taken.update((row.ns, source_id) for source_id, _ in sources)
    made, looked_at = _consolidated(connection, row, sources, now, max_bytes)
    return Consolidation(made, sources), looked_at


def _related(connection: sqlite3.Connection, row: _Row, now: float) -> list[tuple[str, int, str]]:
    """Id, version and type of the siblings, the nearest first, and of what the memory's relations lead to."""
    siblings: list[tuple[int, str, int, str]] = []
    if row.parent_id is not None:
        for beside, order in ((">", "ASC"), ("<", "DESC")):
            siblings += connection.execute(
                f"SELECT sequence, id, version, type FROM memories WHERE ns = ? AND parent_id = ? AND sequence {beside} ?"
                f" AND {rows.IS_LIVE} ORDER BY sequence {order} LIMIT ?",
                (row.ns, row.parent_id, row.sequence, now, _NEAR),
            )
    targets = connection.execute(
        "SELECT memories.sequence, memories.id, memories.version, memories.type FROM relations JOIN memories"
        " ON memories.ns = relations.ns AND memories.id = relations.target_id"
        f" WHERE relations.ns = ? AND relations.source_id = ? AND {rows.IS_LIVE}"
        " ORDER BY relations.strength DESC, relations.target_id LIMIT ?",
        (row.ns, row.id, now, _NEAR),
    )
    siblings.sort(key=lambda near: abs(near[0] - row.sequence))
    by_id = {near[1]: (near[1], near[2], near[3]) for near in (*siblings, *targets)}
    return list(by_id.values())


def _is_free(connection: sqlite3.Connection, ns: str, memory_id: str, kind: str, taken: Taken) -> bool:
    """Whether a memory is neither a consolidation nor part of one."""
    if kind == "consolidated" or (ns, memory_id) in taken:
        return False
    found = connection.execute(
        "SELECT 1 FROM relations WHERE ns = ? AND source_id = ? AND kind = ? LIMIT 1",
        (ns, memory_id, CONSOLIDATED_INTO),
    )
    return found.fetchone() is None


def _consolidated(
    connection: sqlite3.Connection, row: _Row, sources: Sequence[tuple[str, int]], now: float, max_bytes: int
) -> tuple[Draft, int]:
    """The memory made of `sources`, which stands where the first of them stands, and the characters looked at for it."""
    characters = share(len(sources))
    texts: list[tuple[int, str]] = []
    tags: list[set[str]] = []
    for source_id, _ in sources:
        sequence, tags_text, beginning = connection.execute(
            f"SELECT sequence, tags, {_BEGINNING} FROM memories WHERE ns = ? AND id = ?",
            (_BYTES_PER_CHARACTER * characters, row.ns, source_id),
        ).fetchone()
        texts.append((sequence, _text(beginning, characters)))
        tags.append(set(rows.tags_of(tags_text)))
    content = summarise([text for _, text in sorted(texts)], CONSOLIDATION_CHARACTERS) or texts[0][1]
    request = NewMemory(
        content=content,
        type="consolidated",
        tier="medium",
        importance=lifecycle.CONSOLIDATED_IMPORTANCE,
        tags=sorted(set.intersection(*tags)),
        metadata={"consolidated_from": [source_id for source_id, _ in sources], "consolidation_date": now},
        parent_id=row.parent_id,
        at=row.at,
    )
    made = draft(request, cut(content), ns=row.ns, made_id=f"mem-{uuid.uuid4()}", max_bytes=max_bytes)
    return made, sum(len(text) for _, text in texts)


def _are_unchanged(connection: sqlite3.Connection, ageing: Ageing, now: float) -> bool:
    assert ageing.consolidation is not None
    for source_id, version in ageing.consolidation.sources:
        found = rows.find(connection, ageing.ns, source_id, now)
        if found is None or found.version != version:
            return False
    return True


def _age(connection: sqlite3.Connection, ageing: Ageing, now: float) -> bool:
    """Write tier and importance; False for a memory that was changed since it was read."""
    cursor = connection.execute(
        "UPDATE memories SET tier = ?, importance = ?, decayed_at = ? WHERE sequence = ? AND version = ?"
        " AND decayed_at = ?",
        (ageing.aged.tier, ageing.aged.importance, now, ageing.sequence, ageing.version, ageing.decayed_at),
    )
    return cursor.rowcount > 0


def _consolidate(connection: sqlite3.Connection, ns: str, consolidation: Consolidation, now: float) -> list[Event]:
    _, events = write_all(connection, ns, [consolidation.draft], now, action="consolidate")
    connection.executemany(
        "INSERT INTO relations (ns, source_id, kind, target_id, strength, created_at) VALUES (?, ?, ?, ?, 1.0, ?)",
        [(ns, source_id, CONSOLIDATED_INTO, consolidation.draft.id, now) for source_id, _ in consolidation.sources],
    )
    return events


def _keep_summary(connection: sqlite3.Connection, ageing: Ageing, max_bytes: int) -> None:
    (metadata,) = connection.execute("SELECT metadata FROM memories WHERE sequence = ?", (ageing.sequence,)).fetchone()
    kept: dict[str, Any] = {**unpack(metadata), "summary": ageing.summary}
    connection.execute(
        "UPDATE memories SET metadata = ? WHERE sequence = ?",
        (pack(kept, max_bytes=max_bytes, field="metadata"), ageing.sequence),
    )
