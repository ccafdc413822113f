"""The frozen versions of datasets in SQLite; each function runs inside a transaction that its caller owns."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from schemas.bodies.learning_data import DatasetBuild, DatasetInfo, DatasetList, DatasetShow, RowInfo, RowPage
from schemas.errors import NotFound
from workers.learning.curation import store
from workers.learning.curation.selection import Candidate, Selection

_info = msgspec.json.Decoder(DatasetInfo).decode

# A row's columns as `store` reads them, with the split and the cluster it was frozen with.
_FROZEN: Final = (
    "examples.number, row_id, model, kind, texts, user, session_id, memory_ids, evidence, opportunity_id,"
    " dataset_rows.cluster, dataset_rows.split, state, reason, created_at, sha256"
)
_FROM: Final = (
    " FROM dataset_rows JOIN examples USING (number) WHERE dataset = ? AND version = ? AND state != 'removed'"
)


def candidates(connection: sqlite3.Connection, request: DatasetBuild, model: str) -> list[Candidate]:
    """Ready rows of the selection and earlier ones, the oldest first.

    Good exchanges and imports for retention are earlier data by nature; of the rest, what an earlier version froze and this
    selection does not ask for.
    """
    where, values = _selected(request)
    rows = connection.execute(
        "SELECT examples.number, sha256, user, kind, cluster, is_held, split IN ('replay', 'retention'),"
        f" {where}, EXISTS (SELECT 1 FROM dataset_rows WHERE dataset_rows.number = examples.number)"
        " FROM examples JOIN clusters USING (cluster) WHERE model = ? AND state = 'ready' ORDER BY examples.number",
        (*values, model),
    )
    found = []
    for number, sha256, user, kind, cluster, is_held, is_past, is_selected, was_frozen in rows:
        if is_past or is_selected or was_frozen:
            is_earlier = bool(is_past or not is_selected)
            found.append(Candidate(number, sha256, user, kind, cluster, bool(is_held), is_earlier))
    return found


def quarantined(connection: sqlite3.Connection, request: DatasetBuild, model: str) -> dict[str, int]:
    """Rows of the selection that are kept out, by cause."""
    where, values = _selected(request)
    rows = connection.execute(
        f"SELECT cause, count(*) FROM examples WHERE model = ? AND state = 'quarantined' AND {where} GROUP BY cause",
        (model, *values),
    )
    return dict(rows.fetchall())


def _selected(request: DatasetBuild) -> tuple[str, list[Any]]:
    where = ["1"]
    values: list[Any] = []
    if request.opportunities:
        marks = ",".join("?" * len(request.opportunities))
        where.append(f"examples.number IN (SELECT number FROM example_opportunities WHERE opportunity_id IN ({marks}))")
        values += request.opportunities
    if request.kinds:
        where.append(f"kind IN ({','.join('?' * len(request.kinds))})")
        values += request.kinds
    if request.since is not None:
        where.append("created_at >= ?")
        values.append(request.since)
    return f"({' AND '.join(where)})", values


def freeze(
    connection: sqlite3.Connection,
    request: DatasetBuild,
    *,
    model: str,
    model_sha256: str,
    sha256: str,
    selection: Selection,
    left_out: dict[str, int],
    now: float,
) -> DatasetInfo:
    """Keep a version, or give back the one that has this content and is not stale."""
    same = connection.execute(
        "SELECT version FROM datasets WHERE dataset = ? AND sha256 = ? AND is_stale = ''", (request.dataset, sha256)
    ).fetchone()
    if same is not None:
        return read(connection, request.dataset, same[0])
    (version,) = connection.execute(
        "INSERT INTO dataset_names VALUES (?, 1) ON CONFLICT (dataset) DO UPDATE SET highest = highest + 1 RETURNING highest",
        (request.dataset,),
    ).fetchone()
    info = DatasetInfo(
        dataset=request.dataset,
        version=version,
        model=model,
        model_sha256=model_sha256,
        sha256=sha256,
        created_at=now,
        rows=dict(Counter(row.split for row in selection.rows)),
        clusters=dict(Counter(split for split, _ in {(row.split, row.cluster) for row in selection.rows})),
        kinds=dict(Counter(row.kind for row in selection.rows)),
        quarantined=left_out,
        opportunities=list(request.opportunities),
        metric=request.metric,
        note=request.note,
    )
    connection.execute(
        "INSERT INTO datasets (dataset, version, model, sha256, created_at, info) VALUES (?, ?, ?, ?, ?, ?)",
        (request.dataset, version, model, sha256, now, msgspec.json.encode(info).decode()),
    )
    connection.executemany(
        "INSERT INTO dataset_rows VALUES (?, ?, ?, ?, ?, ?)",
        (
            (request.dataset, version, position, row.number, row.split, row.cluster)
            for position, row in enumerate(selection.rows)
        ),
    )
    return info


def read(connection: sqlite3.Connection, dataset: str, version: int | None = None) -> DatasetInfo:
    """A version, the newest by default. Raises NotFound naming what there is."""
    found = connection.execute(
        "SELECT info, is_stale FROM datasets WHERE dataset = ? AND (? IS NULL OR version = ?)"
        " ORDER BY version DESC LIMIT 1",
        (dataset, version, version),
    ).fetchone()
    if found is None:
        known = [
            row[0] for row in connection.execute("SELECT DISTINCT dataset FROM datasets ORDER BY dataset LIMIT 20")
        ]
        what = dataset if version is None else f"{dataset} version {version}"
        raise NotFound(f"there is no dataset {what}; there are: {', '.join(known) or 'none'}", field="dataset")
    info, is_stale = found
    return msgspec.structs.replace(_info(info), is_stale=is_stale)


def list_all(connection: sqlite3.Connection, request: DatasetList) -> list[DatasetInfo]:
    """The newest version of each, or every version of one; the newest first."""
    rows = connection.execute(
        "SELECT dataset, version FROM datasets AS one WHERE (:dataset IS NULL OR dataset = :dataset)"
        " AND (:model IS NULL OR model = :model) AND (:dataset IS NOT NULL OR version ="
        " (SELECT max(version) FROM datasets WHERE dataset = one.dataset)) ORDER BY created_at DESC, version DESC",
        {"dataset": request.dataset, "model": request.model},
    ).fetchall()
    return [read(connection, dataset, version) for dataset, version in rows]


def page(connection: sqlite3.Connection, request: DatasetShow, version: int) -> RowPage:
    """Rows of a version in their order; erased ones are not in it. Raises NotFound for an `after` that is no row of it."""
    values: list[Any] = [request.dataset, version]
    where = _FROM
    if request.split is not None:
        where += " AND dataset_rows.split = ?"
        values.append(request.split)
    (total,) = connection.execute(f"SELECT count(*){where}", values).fetchone()
    if request.after:
        number = store.number_of(connection, request.after)
        position = connection.execute(
            "SELECT position FROM dataset_rows WHERE dataset = ? AND version = ? AND number = ?",
            (request.dataset, version, number),
        ).fetchone()
        if position is None:
            raise NotFound(f"{request.dataset} version {version} holds no row {request.after!r}", field="after")
        where += " AND position > ?"
        values.append(position[0])
    rows = connection.execute(f"SELECT {_FROZEN}{where} ORDER BY position LIMIT ?", (*values, request.limit + 1))
    return store.cut(rows, request.limit, total)


def rows(connection: sqlite3.Connection, dataset: str, version: int, split: str) -> list[RowInfo]:
    """All rows of one split of a version."""
    found = connection.execute(
        f"SELECT {_FROZEN}{_FROM} AND dataset_rows.split = ? ORDER BY position", (dataset, version, split)
    )
    return [store.info_of(row) for row in found]


def numbers(connection: sqlite3.Connection, dataset: str, version: int, splits: Sequence[str] = ()) -> list[int]:
    """Numbers of the rows of a version in their order, of these splits or of all."""
    marks = f" AND split IN ({','.join('?' * len(splits))})" if splits else ""
    found = connection.execute(
        f"SELECT number FROM dataset_rows WHERE dataset = ? AND version = ?{marks} ORDER BY position",
        (dataset, version, *splits),
    )
    return [number for (number,) in found]


def versions(connection: sqlite3.Connection, dataset: str, version: int | None) -> list[int]:
    """The versions there are: all of them, or the one. Raises NotFound when there is none."""
    read(connection, dataset, version)
    found = connection.execute(
        "SELECT version FROM datasets WHERE dataset = ? AND (? IS NULL OR version = ?)", (dataset, version, version)
    )
    return [one for (one,) in found]


def delete(connection: sqlite3.Connection, dataset: str, found: Sequence[int]) -> None:
    """Delete versions; the rows stay in the store."""
    for version in found:
        for table in ("dataset_rows", "datasets"):
            connection.execute(f"DELETE FROM {table} WHERE dataset = ? AND version = ?", (dataset, version))
