"""Whether the index holds exactly the vectors that the table `chunks` says it does, and how to make it so again.

A chunk bears in `vector_model` the encoder whose vector of it is in the index; NULL means that an order to embed it lies
in the outbox, UNENCODABLE that it will never have one of this model. Nothing here encodes: what is missing is ordered,
and the pump carries it out.

Ids alone do not tell that an index is this database's: another one gives the same ids to other texts. So both bear a mark.

    database        index
    -               -               new, or from before there were marks: every id is compared
    any             -               the index was made or cleared: every id is compared
    D, n pages      D, n pages      as it should be
    D, n pages      D, fewer        the index lost its last writes, or was out of use: every id is compared
    D, n pages      D, more         the database is an older copy: every id is compared, and it becomes another database
    E, once D       D               it has become another one, and the index was not told: every id is compared
    -, or others    D               vectors of other texts: all of them go
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Self

import msgspec

from schemas.bodies.upkeep import Verified
from workers.memory.outcome import Outcome
from workers.memory.records import Records
from workers.memory.vectors.index import VectorIndex
from workers.memory.vectors.unavailable import IndexTaken

log = logging.getLogger("olympus.memory")

# How far the work is: stage, done, total.
Report = Callable[[str, int, int], None]

# Chunks looked at or changed in one transaction: 10 ms, so that no write waits long behind it.
PAGE_CHUNKS: Final = 2_000

# Ids of each kind of difference in a report; the counts are complete.
REPORTED_IDS: Final = 100

# Key in `service_state`: the model that the orders in the outbox were written for.
MODEL_KEY: Final = "vectors.model"

# Key in `service_state`: the database's mark, as an array.
MARK_KEY: Final = "vectors.mark"

# What `vector_model` holds of a chunk whose text the model cannot encode; no model is called so. With it goes a key in
# `service_state`, this and the chunk's id, because they can be counted there without reading all chunks.
UNENCODABLE: Final = "none"
_UNENCODABLE_KEY: Final = "vectors.unencodable/"
_UNENCODABLE_KEYS_END: Final = "vectors.unencodable0"

# Which keys those are, and whether a key's chunk still bears UNENCODABLE: one that is deleted or restored keeps its key
# until its order is carried out.
_IS_UNENCODABLE_KEY: Final = f"key >= '{_UNENCODABLE_KEY}' AND key < '{_UNENCODABLE_KEYS_END}'"
_IS_UNENCODABLE: Final = (
    f"EXISTS (SELECT 1 FROM main.chunks WHERE id = CAST(substr(key, {len(_UNENCODABLE_KEY) + 1}) AS INTEGER)"
    f" AND vector_model = '{UNENCODABLE}')"
)

# Bytes of a database's random id.
_DATABASE_ID_BYTES: Final = 16

# Past every id.
_END: Final = (1 << 63) - 1


class Counts(NamedTuple):
    """Chunks altogether, those whose vector is on its way, and those that the model cannot encode."""

    chunks: int
    waiting: int
    unencodable: int

    @property
    def vectors(self) -> int:
        """Vectors that the index should hold at least."""
        return self.chunks - self.waiting - self.unencodable


class Mark(NamedTuple):
    """What a database and its index both bear. database: random. pages: of orders, carried out and ticked off.

    previous: what the database was called before, until its index bears the new name; the index never bears it.
    """

    database: str
    pages: int
    previous: str | None = None

    @classmethod
    def of(cls, words: str) -> Self | None:
        """The mark that an index bears, None for none."""
        database, _, pages = words.partition(" ")
        return cls(database, int(pages)) if pages.isdecimal() else None

    def __str__(self) -> str:
        return f"{self.database} {self.pages}"


class _Differences(NamedTuple):
    """Ids of one stretch. outdated: by another model. missing: not in the index. surplus: nobody's."""

    missing: list[int]
    surplus: list[int]
    outdated: list[int]
    unencodable: list[int]


async def counts(records: Records) -> Counts:
    """How many chunks there are, wait, and cannot be encoded."""
    return await records.read(read_counts)


async def newest(records: Records) -> int:
    """The newest chunk's id; 0 where there is none."""
    return await records.read(_newest)


async def waiting_up_to(records: Records, newest: int) -> int:
    """How many chunks wait, of those up to `newest`."""
    return await records.read(lambda connection: _waiting_up_to(connection, newest))


async def adopt_model(records: Records, index: VectorIndex, model: str) -> None:
    """Order every chunk anew when the last run used another model, whose index is removed.

    Raises IndexTaken for an index on a server that another database fills.
    """
    previous = await records.read(_read_model)
    if previous == model:
        return
    if previous is not None:
        log.info(
            "encoder changed, every chunk is encoded anew",
            extra={"action": "memory.vectors.model_changed", "model": model, "previous": previous},
        )
        mine = await records.read(read_mark)
        if index.is_shared and _is_of_another(mine, Mark.of(await index.read_mark())):
            raise _taken()
        await index.clear()
        await _order_all(records, lambda stage, done, total: None)
        # Without a mark this database has never filled what is on the server.
        if mine is not None or not index.is_shared:
            await index.forget_model(previous)
    # Last, so that a crash on the way begins again.
    await records.write(lambda connection, now: _write_model(connection, model))


async def settle(records: Records, index: VectorIndex, model: str) -> None:
    """See that the index is this database's, and order what it lacks. Nobody may store vectors meanwhile.

    Costs a look at both marks, some counts and a look at the newest, unless something is wrong. Raises IndexTaken for an
    index on a server that another database fills: one in files belongs to one service at a time, so it is emptied.
    """
    mine, theirs = await records.read(read_mark), Mark.of(await index.read_mark())
    is_copy = False
    if _is_of_another(mine, theirs):
        if index.is_shared:
            raise _taken()
        log.warning(
            "vectors of another database are removed, every chunk is encoded anew",
            extra={"action": "memory.vectors.foreign"},
        )
        await order_everything(records, index, lambda stage, done, total: None)
    elif mine is None or mine != theirs or await _has_lost(records, index):
        verified = await compare(records, index, model, is_repaired=True, report=lambda stage, done, total: None)
        if verified.repaired:
            log.warning(
                "vectors differ from the database and are put right",
                extra={
                    "action": "memory.vectors.lost",
                    "vectors": verified.vectors,
                    "chunks": verified.chunks,
                    "repaired": verified.repaired,
                },
            )
        is_copy = (
            mine is not None and theirs is not None and theirs.database == mine.database and theirs.pages > mine.pages
        )
    else:
        return
    # The newer state of which this database is an older copy may come back, and ids mean other texts by then.
    if mine is None or is_copy:
        name = secrets.token_hex(_DATABASE_ID_BYTES)
        mine = new = Mark(name, mine.pages, mine.database) if mine is not None else Mark(name, 0)
        await records.write(lambda connection, now: _write_mark(connection, new))
    await index.write_mark(str(mine))
    if mine.previous is not None:
        # Only now: had the process ended in between, the index would be another database's for ever.
        settled = mine._replace(previous=None)
        await records.write(lambda connection, now: _write_mark(connection, settled))


async def is_of_another(records: Records, index: VectorIndex) -> bool:
    """Whether the index was filled by another database."""
    return _is_of_another(await records.read(read_mark), Mark.of(await index.read_mark()))


def _is_of_another(mine: Mark | None, theirs: Mark | None) -> bool:
    return theirs is not None and (mine is None or theirs.database not in (mine.database, mine.previous))


def _taken() -> IndexTaken:
    return IndexTaken(
        "the vectors on the server are those of another database: give this one a memory.qdrant_prefix of its own, or"
        " replace them with `olympus memory rebuild`"
    )


async def _has_lost(records: Records, index: VectorIndex) -> bool:
    """Whether vectors are gone though the mark is there. With the last writes removals may be lost: counts may agree."""
    return await index.count() < (await counts(records)).vectors or not await _has_newest(records, index)


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
    is_foreign = await is_of_another(records, index)
    missing: list[int] = []
    surplus: list[int] = []
    outdated: list[int] = []
    unencodable: list[int] = []
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
        unencodable += differences.unencodable
        compared, vectors, after = compared + len(chunks), vectors + len(held), last
    report("compare", compared, compared)
    waiting = (await counts(records)).waiting
    return Verified(
        agrees=not (missing or surplus or outdated or unencodable or waiting or is_foreign),
        chunks=compared,
        vectors=vectors,
        waiting=waiting,
        missing=missing[:REPORTED_IDS],
        surplus=surplus[:REPORTED_IDS],
        outdated=outdated[:REPORTED_IDS],
        problems=_problems(_Differences(missing, surplus, outdated, unencodable), waiting, is_foreign=is_foreign),
        repaired=repaired,
        unencodable=unencodable[:REPORTED_IDS],
    )


def _problems(differences: _Differences, waiting: int, *, is_foreign: bool) -> list[str]:
    counted = (
        (len(differences.missing), "have no vector, although the table says so"),
        (len(differences.outdated), "have the vector of another model"),
        (len(differences.unencodable), "cannot be encoded by this model"),
        (waiting, "wait to be encoded"),
    )
    problems = [f"{count} chunks {what}" for count, what in counted if count]
    if differences.surplus:
        problems.append(f"{len(differences.surplus)} vectors belong to no chunk")
    if is_foreign:
        problems.append("the vectors are those of another database")
    return problems


def _differences(chunks: dict[int, str | None], held: Sequence[int], removed: set[int], model: str) -> _Differences:
    there = set(held)
    return _Differences(
        missing=[id for id, made_by in chunks.items() if made_by == model and id not in there],
        # A chunk that waits may be in the index already: the crash came before it was ticked off.
        surplus=[id for id in held if id not in chunks and id not in removed],
        outdated=[id for id, made_by in chunks.items() if made_by not in (None, UNENCODABLE, model)],
        unencodable=[id for id, made_by in chunks.items() if made_by == UNENCODABLE],
    )


# Statements ---------------------------------------------------------------------------------------------------------


def read_counts(connection: sqlite3.Connection) -> Counts:
    """How many chunks there are, wait, and cannot be encoded."""
    (chunks,) = connection.execute("SELECT count(*) FROM chunks").fetchone()
    (waiting,) = connection.execute("SELECT count(*) FROM chunks WHERE vector_model IS NULL").fetchone()
    return Counts(chunks, waiting, count_unencodable(connection))


def count_unencodable(connection: sqlite3.Connection) -> int:
    """How many chunks the model cannot encode."""
    (count,) = connection.execute(
        f"SELECT count(*) FROM main.service_state WHERE {_IS_UNENCODABLE_KEY} AND {_IS_UNENCODABLE}"
    ).fetchone()
    return int(count)


def note_unencodable(connection: sqlite3.Connection, id: int, model: str) -> None:
    """Keep that `model` cannot encode a chunk, which bears UNENCODABLE."""
    _write_state(connection, f"{_UNENCODABLE_KEY}{id}", model)


def forget_unencodable(connection: sqlite3.Connection, ids: Iterable[int]) -> None:
    """Chunks that are gone or get another chance."""
    if connection.execute(f"SELECT 1 FROM service_state WHERE {_IS_UNENCODABLE_KEY} LIMIT 1").fetchone():
        connection.executemany("DELETE FROM service_state WHERE key = ?", [(f"{_UNENCODABLE_KEY}{id}",) for id in ids])


def forget_stray_unencodable(connection: sqlite3.Connection) -> None:
    """Chunks that are not there, or not as UNENCODABLE: after a database took the place of another."""
    connection.execute(f"DELETE FROM main.service_state WHERE {_IS_UNENCODABLE_KEY} AND NOT {_IS_UNENCODABLE}")


def count_page(connection: sqlite3.Connection) -> Mark | None:
    """One more page is ticked off: the mark that the index has to bear. None before `settle` has made one."""
    mark = read_mark(connection)
    if mark is None:
        return None
    mark = mark._replace(pages=mark.pages + 1)
    _write_state(connection, MARK_KEY, mark)
    return mark


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
    _write_state(connection, MODEL_KEY, model)
    return Outcome(None, [])


def read_mark(connection: sqlite3.Connection) -> Mark | None:
    """What the database bears, None before its first index was settled."""
    row = connection.execute("SELECT value FROM service_state WHERE key = ?", (MARK_KEY,)).fetchone()
    return None if row is None else msgspec.msgpack.decode(row[0], type=Mark)


def _write_mark(connection: sqlite3.Connection, mark: Mark) -> Outcome:
    _write_state(connection, MARK_KEY, mark)
    return Outcome(None, [])


def _write_state(connection: sqlite3.Connection, key: str, value: str | Mark) -> None:
    connection.execute(
        "INSERT INTO service_state (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, msgspec.msgpack.encode(value)),
    )


def _read_chunks(connection: sqlite3.Connection, after: int, last: int) -> tuple[dict[int, str | None], int]:
    """Chunks and their models with `after` < id <= `last`, and how far they go: there may be too many for one page."""
    rows = connection.execute(
        "SELECT id, vector_model FROM chunks WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", (after, last, PAGE_CHUNKS)
    ).fetchall()
    return dict(rows), rows[-1][0] if len(rows) == PAGE_CHUNKS else last


def _read_newest(connection: sqlite3.Connection) -> list[int]:
    """The newest chunks that have a vector."""
    rows = connection.execute(
        "SELECT id FROM chunks WHERE vector_model <> ? ORDER BY id DESC LIMIT ?", (UNENCODABLE, PAGE_CHUNKS)
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
        for id in (*differences.missing, *differences.outdated, *differences.unencodable)
        if connection.execute("SELECT 1 FROM chunks WHERE id = ?", (id,)).fetchone()
    ]
    _order_embedding(connection, still)
    connection.executemany(
        "INSERT INTO outbox (chunk_id, action) VALUES (?, 'remove')", [(id,) for id in differences.surplus]
    )
    return Outcome(None, [])


def _order_embedding(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    rows = [(id,) for id in ids]
    forget_unencodable(connection, ids)
    connection.executemany("UPDATE chunks SET vector_model = NULL WHERE id = ?", rows)
    connection.executemany("INSERT INTO outbox (chunk_id, action) VALUES (?, 'embed')", rows)
