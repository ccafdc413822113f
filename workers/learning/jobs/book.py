"""Jobs on disk: each with its log and its curve, the seconds of each day, and the schedule that was set.

It knows statements only; what a job is allowed to become is decided elsewhere.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from bus.records import Records
from schemas.bodies.learning_jobs import CurvePoint, JobInfo, JobState, LogEntry, ScheduleSet, TrainingStart

# States in which nothing is left to do, unless somebody resumes a stopped or failed job.
FINAL: Final[frozenset[JobState]] = frozenset({"promoted", "passed", "refused", "underpowered", "stopped", "failed"})

# Points kept of one curve: twice this many are thinned to it. More than a terminal or a picture is wide.
_POINTS: Final = 2_000

# Days of which the seconds are kept.
_DAYS: Final = 60


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it is kept. info: as others see it; its reason is why it waits or ended.

    is_trained: only evaluation and promotion are left. is_chosen: what to train with is decided. failures: tries in a row
    that came to nothing. budget_from_s: seconds that were spent when its budget began to count. rung: where the ladder for
    too little memory stands, as JSON. steps, best_step, took_s: of the finished training.
    """

    info: JobInfo
    request: TrainingStart
    dataset_sha256: str
    is_automatic: bool = False
    is_now: bool = False
    is_chosen: bool = False
    is_trained: bool = False
    failures: int = 0
    budget_from_s: float = 0.0
    base: str = ""
    base_sha256: str = ""
    model_sha256: str = ""
    adapter_sha256: str = ""
    previous: str = ""
    previous_path: str = ""
    rung: str = ""
    steps: int = 0
    best_step: int = 0

    @property
    def is_final(self) -> bool:
        """Nothing is left to do."""
        return self.info.state in FINAL


_decode = msgspec.json.Decoder(Kept).decode
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode
_decode_schedule = msgspec.json.Decoder(ScheduleSet).decode


class Book:
    """The tables of `0004_jobs.sql`."""

    def __init__(self, records: Records) -> None:
        self._records = records

    # Jobs

    async def add(self, kept: Kept, entry: LogEntry) -> None:
        """Keep a new job with the first entry of its log."""

        def statements(connection: sqlite3.Connection) -> None:
            info = kept.info
            number = connection.execute(
                "INSERT INTO training_jobs (job_id, model, dataset, version, dataset_sha256, state, created_at, record)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    info.job_id,
                    info.model,
                    info.dataset,
                    info.version,
                    kept.dataset_sha256,
                    info.state,
                    info.created_at,
                    _text(kept),
                ),
            ).lastrowid
            assert number is not None
            _append(connection, number, [entry])

        await self._records.run(statements)

    async def save(
        self,
        kept: Kept,
        entries: Sequence[LogEntry] = (),
        points: Sequence[CurvePoint] = (),
        restart: int | None = None,
    ) -> None:
        """Keep a job as it is now, with new entries and points. restart: the step its curve goes on from."""

        def statements(connection: sqlite3.Connection) -> None:
            (number,) = connection.execute(
                "UPDATE training_jobs SET state = ?, record = ? WHERE job_id = ? RETURNING number",
                (kept.info.state, _text(kept), kept.info.job_id),
            ).fetchone()
            _append(connection, number, entries)
            if restart is not None:
                connection.execute("DELETE FROM training_curve WHERE job = ? AND step > ?", (number, restart))
            _draw(connection, number, points)

        await self._records.run(statements)

    async def get(self, job_id: str) -> Kept | None:
        """A job, None where there is none of that id."""

        def statements(connection: sqlite3.Connection) -> Kept | None:
            row = connection.execute("SELECT record FROM training_jobs WHERE job_id = ?", (job_id,)).fetchone()
            return _decode(row[0]) if row else None

        return await self._records.run(statements)

    async def newest(self, *, model: str | None = None, state: str | None = None, limit: int = 1_000) -> list[Kept]:
        """Jobs, the newest first."""

        def statements(connection: sqlite3.Connection) -> list[Kept]:
            rows = connection.execute(
                "SELECT record FROM training_jobs WHERE (?1 IS NULL OR model = ?1) AND (?2 IS NULL OR state = ?2)"
                " ORDER BY number DESC LIMIT ?3",
                (model, state, limit),
            ).fetchall()
            return [_decode(record) for (record,) in rows]

        return await self._records.run(statements)

    async def unfinished(self) -> list[Kept]:
        """Jobs that something is left to do for, the oldest first."""

        def statements(connection: sqlite3.Connection) -> list[Kept]:
            marks = ", ".join("?" * len(FINAL))
            rows = connection.execute(
                f"SELECT record FROM training_jobs WHERE state NOT IN ({marks}) ORDER BY number", sorted(FINAL)
            ).fetchall()
            return [_decode(record) for (record,) in rows]

        return await self._records.run(statements)

    async def ended_with(self, model: str, dataset_sha256: str) -> Kept | None:
        """The newest job that trained the model on this very content, None where none did."""

        def statements(connection: sqlite3.Connection) -> Kept | None:
            row = connection.execute(
                "SELECT record FROM training_jobs WHERE dataset_sha256 = ? AND model = ? ORDER BY number DESC LIMIT 1",
                (dataset_sha256, model),
            ).fetchone()
            return _decode(row[0]) if row else None

        return await self._records.run(statements)

    async def log(self, job_id: str, after: int, limit: int) -> list[LogEntry]:
        """Entries of a job's log numbered above `after`, in order."""

        def statements(connection: sqlite3.Connection) -> list[LogEntry]:
            rows = connection.execute(
                "SELECT l.number, at, event, message, fields FROM training_log l JOIN training_jobs j ON j.number = l.job"
                " WHERE j.job_id = ? AND l.number > ? ORDER BY l.number LIMIT ?",
                (job_id, after, limit),
            ).fetchall()
            return [
                LogEntry(number=number, at=at, event=event, message=message, fields=_decode_fields(fields))
                for number, at, event, message, fields in rows
            ]

        return await self._records.run(statements)

    async def curve(self, job_id: str) -> list[CurvePoint]:
        """The points that are kept, in order."""

        def statements(connection: sqlite3.Connection) -> list[CurvePoint]:
            rows = connection.execute(
                "SELECT step, at, loss, eval_loss, learning_rate FROM training_curve c"
                " JOIN training_jobs j ON j.number = c.job WHERE j.job_id = ? ORDER BY step",
                (job_id,),
            ).fetchall()
            return [
                CurvePoint(step=step, at=at, loss=loss, eval_loss=eval_loss, learning_rate=rate)
                for step, at, loss, eval_loss, rate in rows
            ]

        return await self._records.run(statements)

    # Days and schedule

    async def days(self) -> dict[str, float]:
        """Seconds of training by local day."""
        return await self._records.run(
            lambda connection: dict(connection.execute("SELECT day, spent_s FROM training_days").fetchall())
        )

    async def keep_days(self, spent: dict[str, float]) -> None:
        """Keep the seconds of these days."""

        def statements(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO training_days VALUES (?, ?)", list(spent.items()))
            connection.execute(
                "DELETE FROM training_days WHERE day NOT IN (SELECT day FROM training_days ORDER BY day DESC LIMIT ?)",
                (_DAYS,),
            )

        await self._records.run(statements)

    async def schedule(self) -> ScheduleSet:
        """What was set; a field that is None was not."""

        def statements(connection: sqlite3.Connection) -> ScheduleSet:
            row = connection.execute("SELECT record FROM training_schedule").fetchone()
            return _decode_schedule(row[0]) if row else ScheduleSet()

        return await self._records.run(statements)

    async def keep_schedule(self, schedule: ScheduleSet) -> None:
        """Keep what was set, in place of what was set before."""
        record = msgspec.json.encode(schedule).decode()
        await self._records.run(
            lambda connection: connection.execute("INSERT OR REPLACE INTO training_schedule VALUES (1, ?)", (record,))
        )


def _text(kept: Kept) -> str:
    return msgspec.json.encode(kept).decode()


def _append(connection: sqlite3.Connection, job: int, entries: Sequence[LogEntry]) -> None:
    """Entries get the next numbers; those they came with count for nothing."""
    (last,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM training_log WHERE job = ?", (job,)).fetchone()
    connection.executemany(
        "INSERT INTO training_log VALUES (?, ?, ?, ?, ?, ?)",
        [
            (job, number, entry.at, entry.event, entry.message, msgspec.json.encode(entry.fields).decode())
            for number, entry in enumerate(entries, last + 1)
        ],
    )


def _draw(connection: sqlite3.Connection, job: int, points: Sequence[CurvePoint]) -> None:
    """Add points; of too many every second goes, but for those with an evaluation, the first and the newest."""
    if not points:
        return
    connection.executemany(
        "INSERT INTO training_curve VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (job, step) DO UPDATE SET"
        " loss = COALESCE(excluded.loss, loss), eval_loss = COALESCE(excluded.eval_loss, eval_loss),"
        " learning_rate = COALESCE(excluded.learning_rate, learning_rate)",
        [(job, point.step, point.at, point.loss, point.eval_loss, point.learning_rate) for point in points],
    )
    steps = connection.execute(
        "SELECT step, eval_loss FROM training_curve WHERE job = ? ORDER BY step", (job,)
    ).fetchall()
    if len(steps) > 2 * _POINTS:
        surplus = [(job, step) for step, eval_loss in steps[1:-1:2] if eval_loss is None]
        connection.executemany("DELETE FROM training_curve WHERE job = ? AND step = ?", surplus)


def thinned(points: Sequence[CurvePoint], count: int) -> list[CurvePoint]:
    """At most `count` of the points, evenly over the curve, the first and the last among them."""
    if len(points) <= count:
        return list(points)
    if count < 2:
        return list(points[-1:])[:count]
    return [points[round(number * (len(points) - 1) / (count - 1))] for number in range(count)]
