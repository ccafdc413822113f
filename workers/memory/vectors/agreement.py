"""Whether the index holds exactly the vectors that the table `chunks` says it does, and how to make it so again.

A chunk bears in `vector_model` the encoder whose vector of it is in the index; NULL means that an order to embed it lies
in the outbox. Nothing here encodes: what is missing is ordered, and the pump carries it out.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from schemas.bodies.upkeep import Verified
from workers.memory.outcome import Outcome
from workers.memory.records import Records
from workers.memory.vectors.index import VectorIndex

log = logging.getLogger("olympus.memory")

# How far the work is: stage, done, total.
Report = Callable[[str, int, int], None]

# Chunks looked at or changed in one transaction: 10 ms, so that no write waits long behind it.
PAGE_CHUNKS: Final = 2_000

# Ids of each kind of difference in a report; the counts are complete.
REPORTED_IDS: Final = 100

# Key in `service_state`: the model that the orders in the outbox were written for.
MODEL_KEY: Final = "vectors.model"

# Past every id.
_END: Final = (1 << 63) - 1


class Counts(NamedTuple):
    """Chunks altogether, and those without a vector."""

    chunks: int
    waiting: int


class _Differences(NamedTuple):
    """Ids of one stretch. outdated: in the index, by another model. missing: not there. surplus: nobody's."""

    missing: list[int]
    surplus: list[int]
    outdated: list[int]


async def counts(records: Records) -> Counts:
    """How many chunks there are and wait."""
    return await records.read(_counts)


async def newest(records: Records) -> int:
    """The newest chunk's id; 0 where there is none."""
    return await records.read(_newest)


async def waiting_up_to(records: Records, newest: int) -> int:
    """How many chunks wait, of those up to `newest`."""
    return await records.read(lambda connection: _waiting_up_to(connection, newest))


async def adopt_model(records: Records, index: VectorIndex, model: str) -> None:
    """Order every chunk anew when the last run used another model, whose index is removed."""
    previous = await records.read(_read_model)
    if previous == model:
        return
    if previous is not None:
        log.info(
            "encoder changed, every chunk is encoded anew",
            extra={"action": "memory.vectors.model_changed", "model": model, "previous": previous},
        )
        await index.clear()
        await _order_all(records, lambda stage, done, total: None)
        await index.forget_model(previous)
    # Last, so that a crash on the way begins again.
    await records.write(lambda connection, now: _write_model(connection, model))


async def restore_lost(records: Records, index: VectorIndex, model: str) -> None:
    """Order what the index has lost: after a loss of power, of its files, or of the server's.

    Costs two counts and a look at the newest: where the last writes are lost, and removals with them, the counts may agree.
    """
    chunks, waiting = await counts(records)
    held = await index.count()
    if held >= chunks - waiting and await _has_newest(records, index):
        return
    log.warning(
        "vectors are missing and encoded again",
        extra={"action": "memory.vectors.lost", "vectors": held, "chunks": chunks - waiting},
    )
    await compare(records, index, model, is_repaired=True, report=lambda stage, done, total: None)


async def _has_newest(records: Records, index: VectorIndex) -> bool:
    wanted = await records.read(_read_newest)
    if not wanted:
        return True
    # Twice as many, because vectors of removed chunks may stand between them; with more of those the comparison decides.
    held = await index.ids(after=min(wanted) - 1, limit=2 * PAGE_CHUNKS)
    return set(held).issuperset(wanted)


async def order_everything(records: Records, index: VectorIndex, report: Report) -> None:
    """Empty the index and order every chunk."""
    await index.clear()
    await _order_all(records, report)


async def compare(records: Records, index: VectorIndex, model: str, *, is_repaired: bool, report: Report) -> Verified:
    """Every chunk against every vector. `is_repaired` orders what differs.

    Nobody may store vectors meanwhile; chunks may come and go.
    """
    missing: list[int] = []
    surplus: list[int] = []
    outdated: list[int] = []
    compared, repaired, vectors, after = 0, 0, 0, 0
    total = (await counts(records)).chunks
    while after < _END:
        report("compare", compared, total)
        held = await index.ids(after=after, limit=PAGE_CHUNKS)
        last = held[-1] if len(held) == PAGE_CHUNKS else _END
        chunks, last = await records.read(lambda connection: _read_chunks(connection, after, last))  # noqa: B023
        held = [id for id in held if id <= last]
        removed = await records.read(lambda connection: _read_removed(connection, after, last))  # noqa: B023
        differences = _differences(chunks, held, removed, model)
        if is_repaired and any(differences):
            await records.write(lambda connection, now: _order(connection, differences))  # noqa: B023
            repaired += sum(map(len, differences))
        missing += differences.missing
        surplus += differences.surplus
        outdated += differences.outdated
        compared, vectors, after = compared + len(chunks), vectors + len(held), last
    report("compare", compared, compared)
    waiting = (await counts(records)).waiting
    return Verified(
        agrees=not (missing or surplus or outdated or waiting),
        chunks=compared,
        vectors=vectors,
        waiting=waiting,
        missing=missing[:REPORTED_IDS],
        surplus=surplus[:REPORTED_IDS],
        outdated=outdated[:REPORTED_IDS],
        problems=_problems(missing, surplus, outdated, waiting),
        repaired=repaired,
    )


def _problems(missing: Sequence[int], surplus: Sequence[int], outdated: Sequence[int], waiting: int) -> list[str]:
    counted = (
        (len(missing), "have no vector, although the table says so"),
        (len(outdated), "have the vector of another model"),
        (waiting, "wait to be encoded"),
    )
    problems = [f"{count} chunks {what}" for count, what in counted if count]
    return problems + ([f"{len(surplus)} vectors belong to no chunk"] if surplus else [])


def _differences(chunks: dict[int, str | None], held: Sequence[int], removed: set[int], model: str) -> _Differences:
    there = set(held)
    return _Differences(
        missing=[id for id, made_by in chunks.items() if made_by == model and id not in there],
        # A chunk that waits may be in the index already: the crash came before it was ticked off.
        surplus=[id for id in held if id not in chunks and id not in removed],
        outdated=[id for id, made_by in chunks.items() if made_by not in (None, model)],
    )


# Statements ---------------------------------------------------------------------------------------------------------


def _counts(connection: sqlite3.Connection) -> Counts:
    (chunks,) = connection.execute("SELECT count(*) FROM chunks").fetchone()
    (waiting,) = connection.execute("SELECT count(*) FROM chunks WHERE vector_model IS NULL").fetchone()
    return Counts(chunks, waiting)


def _newest(connection: sqlite3.Connection) -> int:
    (newest,) = connection.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()
    return int(newest)


def _waiting_up_to(connection: sqlite3.Connection, newest: int) -> int:
    (waiting,) = connection.execute(
        "SELECT count(*) FROM chunks WHERE vector_model IS NULL AND id <= ?", (newest,)
    ).fetchone()
    return int(waiting)


def _read_model(connection: sqlite3.Connection) -> str | None:
    row = connection.execute("SELECT value FROM service_state WHERE key = ?", (MODEL_KEY,)).fetchone()
    return None if row is None else msgspec.msgpack.decode(row[0], type=str)


def _write_model(connection: sqlite3.Connection, model: str) -> Outcome:
    connection.execute(
        "INSERT INTO service_state (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (MODEL_KEY, msgspec.msgpack.encode(model)),
    )
    return Outcome(None, [])


def _read_chunks(connection: sqlite3.Connection, after: int, last: int) -> tuple[dict[int, str | None], int]:
    """Chunks and their models with `after` < id <= `last`, and how far they go: there may be too many for one page."""
    rows = connection.execute(
        "SELECT id, vector_model FROM chunks WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", (after, last, PAGE_CHUNKS)
    ).fetchall()
    return dict(rows), rows[-1][0] if len(rows) == PAGE_CHUNKS else last


def _read_newest(connection: sqlite3.Connection) -> list[int]:
    """The newest chunks that have a vector."""
    rows = connection.execute(
        "SELECT id FROM chunks WHERE vector_model IS NOT NULL ORDER BY id DESC LIMIT ?", (PAGE_CHUNKS,)
    )
    return [id for (id,) in rows]


def _read_removed(connection: sqlite3.Connection, after: int, last: int) -> set[int]:
    rows = connection.execute(
        "SELECT chunk_id FROM outbox WHERE action = 'remove' AND chunk_id > ? AND chunk_id <= ?", (after, last)
    )
    return {id for (id,) in rows}


async def _order_all(records: Records, report: Report) -> None:
    """Order every chunk that has a vector; the others are ordered already."""
    total = (await counts(records)).chunks
    after = done = 0
    while True:
        report("order", done, total)
        ordered: list[int] = await records.write(lambda connection, now: _order_page(connection, after))  # noqa: B023
        if not ordered:
            return
        after, done = ordered[-1], done + len(ordered)


def _order_page(connection: sqlite3.Connection, after: int) -> Outcome:
    rows = connection.execute(
        "SELECT id FROM chunks WHERE id > ? AND vector_model IS NOT NULL ORDER BY id LIMIT ?", (after, PAGE_CHUNKS)
    ).fetchall()
    ids = [id for (id,) in rows]
    _order_embedding(connection, ids)
    return Outcome(ids, [])


def _order(connection: sqlite3.Connection, differences: _Differences) -> Outcome:
    # What was deleted since it was read has its own order to be removed.
    still = [
        id
        for id in (*differences.missing, *differences.outdated)
        if connection.execute("SELECT 1 FROM chunks WHERE id = ?", (id,)).fetchone()
    ]
    _order_embedding(connection, still)
    connection.executemany(
        "INSERT INTO outbox (chunk_id, action) VALUES (?, 'remove')", [(id,) for id in differences.surplus]
    )
    return Outcome(None, [])


def _order_embedding(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    rows = [(id,) for id in ids]
    connection.executemany("UPDATE chunks SET vector_model = NULL WHERE id = ?", rows)
    connection.executemany("INSERT INTO outbox (chunk_id, action) VALUES (?, 'embed')", rows)
