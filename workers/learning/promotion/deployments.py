"""What is kept of promotion: adapters found equal to PEFT, deployments, and how far each is watched. Statements only."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from schemas.bodies.learning_gate import Deployment
from workers.learning.promotion.watching import Progress

Step = Literal["", "promoting", "rolling_back"]
WatchState = Literal["watching", "kept", "rolled_back"]

# Adapters that get requests; the others had them.
LIVE: Final = ("canary", "champion")

_decode_progress = msgspec.json.Decoder(Progress).decode


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A job's adapter in the running model, found equal to PEFT: a row of `prepared`. Differences in nats per token."""

    job_id: str
    model: str
    adapter: str
    adapter_version: int
    sha256: str
    probes: int
    difference: float
    bare_difference: float
    tolerance: float
    words: str

    @property
    def exact_name(self) -> str:
        return f"{self.adapter}:{self.adapter_version}"


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `deployments`, less its number."""

    deployment_id: str
    model: str
    adapter: str
    adapter_version: int
    sha256: str
    job_id: str
    dataset: str
    version: int
    state: Literal["canary", "champion", "retired", "rolled_back"]
    share: float
    previous: str
    promoted_at: float
    ended_at: float | None
    reason: str
    path: str
    verdict: str
    is_forced: bool
    step: Step = ""
    untold: str = ""

    @property
    def exact_name(self) -> str:
        return f"{self.adapter}:{self.adapter_version}"

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    def shown(self) -> Deployment:
        """As others see it."""
        values = msgspec.structs.asdict(self)
        return Deployment(**{name: values[name] for name in Deployment.__struct_fields__})


_PREPARED: Final = Prepared.__struct_fields__
_DEPLOYED: Final = Deployed.__struct_fields__


def prepared(connection: sqlite3.Connection, job_id: str) -> Prepared | None:
    """What is known of a job's adapter."""
    row = connection.execute(f"SELECT {', '.join(_PREPARED)} FROM prepared WHERE job_id = ?", (job_id,)).fetchone()
    return Prepared(**dict(zip(_PREPARED, row, strict=True))) if row is not None else None


def keep_prepared(connection: sqlite3.Connection, one: Prepared) -> None:
    """Keep it, in place of what was known of its job."""
    _insert(connection, "prepared", one)


def drop_prepared(connection: sqlite3.Connection, job_id: str) -> None:
    """Forget it."""
    connection.execute("DELETE FROM prepared WHERE job_id = ?", (job_id,))


def jobs_with(connection: sqlite3.Connection, model: str, adapter: str) -> list[str]:
    """Jobs whose adapter this is; training that begins alike ends alike."""
    rows = connection.execute("SELECT job_id FROM prepared WHERE model = ? AND adapter = ?", (model, adapter))
    return [job_id for (job_id,) in rows]


def deployments(
    connection: sqlite3.Connection, *, model: str | None = None, job_id: str | None = None, limit: int = -1
) -> list[Deployed]:
    """Those of a model or a job, the newest first."""
    rows = connection.execute(
        f"SELECT {', '.join(_DEPLOYED)} FROM deployments"
        " WHERE (?1 IS NULL OR model = ?1) AND (?2 IS NULL OR job_id = ?2) ORDER BY number DESC LIMIT ?3",
        (model, job_id, limit),
    )
    return [_deployed(row) for row in rows]


def unfinished(connection: sqlite3.Connection) -> list[Deployed]:
    """Those that get requests, and those of which something is still to be done or told; the oldest first."""
    rows = connection.execute(
        f"SELECT {', '.join(_DEPLOYED)} FROM deployments"
        " WHERE state IN ('canary', 'champion') OR step != '' OR untold != '' ORDER BY number"
    )
    return [_deployed(row) for row in rows]


def keep(connection: sqlite3.Connection, *changed: Deployed) -> None:
    """Write new deployments, and what changed of known ones."""
    for one in changed:
        columns = ", ".join(f"{name} = excluded.{name}" for name in _DEPLOYED)
        connection.execute(
            f"INSERT INTO deployments ({', '.join(_DEPLOYED)}) VALUES ({', '.join('?' * len(_DEPLOYED))})"
            f" ON CONFLICT (deployment_id) DO UPDATE SET {columns}",
            msgspec.structs.astuple(one),
        )


def drop(connection: sqlite3.Connection, deployment_id: str) -> None:
    """Forget a deployment that never was."""
    connection.execute("DELETE FROM deployments WHERE deployment_id = ?", (deployment_id,))


def watch_of(connection: sqlite3.Connection, deployment_id: str) -> tuple[WatchState, Progress] | None:
    """How far a deployment is watched."""
    row = connection.execute("SELECT state, progress FROM watches WHERE deployment_id = ?", (deployment_id,)).fetchone()
    return (row[0], _decode_progress(row[1])) if row is not None else None


def keep_watch(connection: sqlite3.Connection, deployment_id: str, state: WatchState, progress: Progress) -> None:
    """Write how far it is."""
    connection.execute(
        "INSERT OR REPLACE INTO watches (deployment_id, state, progress) VALUES (?, ?, ?)",
        (deployment_id, state, msgspec.json.encode(progress)),
    )


def end_watch(connection: sqlite3.Connection, deployment_id: str, state: WatchState, words: str) -> None:
    """Watch it no longer; nothing for one that is not watched."""
    found = watch_of(connection, deployment_id)
    if found is not None and found[0] == "watching":
        keep_watch(connection, deployment_id, state, msgspec.structs.replace(found[1], words=words))


def watched(connection: sqlite3.Connection, model: str | None) -> list[Deployed]:
    """Deployments that are or were watched: of each model the newest, and those still watched; the newest first."""
    rows = connection.execute(
        f"SELECT {', '.join(f'd.{name}' for name in _DEPLOYED)} FROM deployments d JOIN watches w USING (deployment_id)"
        " WHERE (?1 IS NULL OR d.model = ?1) AND (w.state = 'watching' OR d.number ="
        " (SELECT max(number) FROM deployments JOIN watches USING (deployment_id) WHERE model = d.model))"
        " ORDER BY d.number DESC",
        (model,),
    )
    return [_deployed(row) for row in rows]


def _deployed(row: Sequence[Any]) -> Deployed:
    values = dict(zip(_DEPLOYED, row, strict=True))
    return Deployed(**{**values, "is_forced": bool(values["is_forced"])})


def _insert(connection: sqlite3.Connection, table: str, one: msgspec.Struct) -> None:
    names = one.__struct_fields__
    connection.execute(
        f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
        msgspec.structs.astuple(one),
    )
