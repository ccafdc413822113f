"""Experiences: what agents did, in which situation, and what came of it. Knows no bus."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from schemas.bodies.items import (
    AgentExperience,
    Experience,
    ExperienceGet,
    ExperienceList,
    ExperienceRecord,
    ExperienceStats,
    ExperienceTotals,
)
from schemas.bodies.items import Experiences as ExperiencePage
from schemas.errors import Conflict, NotFound
from workers.memory.items.drafts import check_size, time_of
from workers.memory.items.once import once_then_read
from workers.memory.items.rows import Page, encode_tags, tags_of
from workers.memory.outcome import Event, Outcome, changed
from workers.memory.records import Records
from workers.memory.text import check_texts
from workers.memory.uses import noted_then_read, noting_use
from workers.memory.values import pack, unpack

# Experiences removed in one transaction by a sweep.
SWEEP_EXPERIENCES: Final = 500

_COLUMNS: Final = (
    "exp_id, sequence, ns, agent, action, outcome, importance, access_count, at, created_at, reward, success, context,"
    " tags, expires_at, last_accessed_at"
)
_IS_LIVE: Final = "(expires_at IS NULL OR expires_at > ?)"

# What is best comes first, what is newest among equals.
_ORDER: Final = {
    "newest": "at DESC, sequence DESC",
    "importance": "importance DESC, coalesce(last_accessed_at, created_at) DESC, sequence DESC",
    "reward": "reward IS NULL, reward DESC, at DESC, sequence DESC",
}


class Experiences:
    """The experiences of one database. Writes happen once per request id, as those of `Memories` do."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def record(self, request: ExperienceRecord, request_id: bytes) -> Experience:
        """Keep an experience. Raises BadRequest, Conflict, TooLarge."""
        check_texts(request)
        max_bytes = self._records.max_body_bytes
        exp_id = request.exp_id or f"exp-{uuid.UUID(bytes=request_id)}"
        tags = encode_tags(list(dict.fromkeys(request.tags)))
        context = pack(request.context, max_bytes=max_bytes, field="context")
        texts = (request.ns, exp_id, request.agent, request.action, request.outcome, tags)
        check_size(texts, len(context), max_bytes)
        ready = _Ready(request, exp_id, tags, context)
        return await once_then_read(
            self._records,
            "memory.experience.record",
            request_id,
            lambda connection, now: _record(connection, ready, now),
            lambda connection, now: _read(connection, request.ns, exp_id, now),
        )

    async def get(self, request: ExperienceGet, request_id: bytes) -> Experience:
        """One experience; the access is counted first, as long as anything can be written. Raises NotFound."""
        check_texts(request)
        return await noted_then_read(
            self._records,
            "memory.experience.get",
            request_id,
            lambda connection, now: _touch(connection, request.ns, [request.exp_id], now),
            lambda connection, now: _read(connection, request.ns, request.exp_id, now),
        )

    async def list(self, request: ExperienceList, request_id: bytes) -> ExperiencePage:
        """A page; each experience in it gains an access after it was read."""
        check_texts(request)
        now = self._records.now()
        page_bytes = self._records.page_bytes
        page = await self._records.read_whole(lambda connection: _list(connection, request, now, page_bytes))
        ids = [experience.exp_id for experience in page.experiences]
        if ids:
            with noting_use():
                await self._records.write_once(
                    "memory.experience.list",
                    request_id,
                    int,
                    lambda connection, now: Outcome(len(ids), _touch(connection, request.ns, ids, now)),
                )
        return page

    async def stats(self, request: ExperienceStats) -> ExperienceTotals:
        """Figures by agent, the busiest first."""
        check_texts(request)
        now = self._records.now()
        return await self._records.read(lambda connection: _stats(connection, request, now))

    async def sweep(self, now: float) -> None:
        """Remove what has expired at `now`. Costs one read when nothing has."""
        while await self._records.read(lambda connection: _has_expired(connection, now)):
            await self._records.write(lambda connection, _: _expire(connection, now))


class _Ready(NamedTuple):
    request: ExperienceRecord
    exp_id: str
    tags: str
    context: bytes


def _record(connection: sqlite3.Connection, ready: _Ready, now: float) -> list[Event]:
    request = ready.request
    events = _expire_one(connection, request.ns, ready.exp_id, now)
    at = request.at if request.at is not None else time_of(request.context)
    try:
        connection.execute(
            "INSERT INTO experiences (ns, exp_id, agent, action, outcome, reward, success, importance, context, tags, at,"
            " created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                request.ns,
                ready.exp_id,
                request.agent,
                request.action,
                request.outcome,
                request.reward,
                request.success,
                request.importance,
                ready.context,
                ready.tags,
                now if at is None else at,
                now,
                None if request.ttl_s is None else now + request.ttl_s,
            ),
        )
    except sqlite3.IntegrityError as error:
        raise Conflict(
            f"experience {ready.exp_id!r} exists already in namespace {request.ns!r}",
            ns=request.ns,
            exp_id=ready.exp_id,
        ) from error
    return [*events, changed(request.ns, ready.exp_id, "record")]


def _read(connection: sqlite3.Connection, ns: str, exp_id: str, now: float) -> Experience:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM experiences WHERE ns = ? AND exp_id = ? AND {_IS_LIVE}", (ns, exp_id, now)
    ).fetchone()
    if row is None:
        raise NotFound(f"no experience {exp_id!r} in namespace {ns!r}", ns=ns, exp_id=exp_id)
    return _experience(row)


def _touch(connection: sqlite3.Connection, ns: str, ids: Iterable[str], now: float) -> list[Event]:
    connection.executemany(
        "UPDATE experiences SET access_count = access_count + 1, last_accessed_at = ?"
        f" WHERE ns = ? AND exp_id = ? AND {_IS_LIVE}",
        [(now, ns, exp_id, now) for exp_id in ids],
    )
    return []


def _list(connection: sqlite3.Connection, request: ExperienceList, now: float, page_bytes: int) -> ExperiencePage:
    where = ["ns = ?", _IS_LIVE]
    values: list[Any] = [request.ns, now]
    wanted = (
        ("agent = ?", request.agent),
        ("success = ?", request.success),
        ("at >= ?", request.since),
        ("at < ?", request.until),
    )
    for condition, value in wanted:
        if value is not None:
            where.append(condition)
            values.append(value)
    # Only what is shown is read whole: SQLite would sort all of them in memory, with their contexts.
    found = connection.execute(
        f"SELECT sequence, tags FROM experiences WHERE {' AND '.join(where)} ORDER BY {_ORDER[request.sort]}", values
    )
    page: Page[Experience] = Page(request.limit, page_bytes)
    skipped = 0
    for sequence, tags in found:
        if request.tag is not None and request.tag not in tags_of(tags):
            continue
        if skipped < request.offset:
            skipped += 1
            continue
        row = connection.execute(f"SELECT {_COLUMNS} FROM experiences WHERE sequence = ?", (sequence,)).fetchone()
        size_bytes = _bytes_of(row)
        if not page.has_room_for(size_bytes):
            return ExperiencePage(experiences=page.items, has_more=True)
        page.add(_experience(row), size_bytes)
    return ExperiencePage(experiences=page.items)


def _stats(connection: sqlite3.Connection, request: ExperienceStats, now: float) -> ExperienceTotals:
    found = connection.execute(
        "SELECT agent, count(*), max(at), avg(reward), avg(success) FROM experiences"
        f" WHERE ns = ? AND {_IS_LIVE} AND (? IS NULL OR agent = ?) GROUP BY agent ORDER BY count(*) DESC, agent",
        (request.ns, now, request.agent, request.agent),
    )
    agents = [
        AgentExperience(agent=agent, count=count, last_at=last_at, mean_reward=mean_reward, success_rate=success_rate)
        for agent, count, last_at, mean_reward, success_rate in found
    ]
    return ExperienceTotals(count=sum(agent.count for agent in agents), agents=agents)


def _has_expired(connection: sqlite3.Connection, now: float) -> bool:
    found = connection.execute("SELECT 1 FROM experiences WHERE expires_at <= ? LIMIT 1", (now,))
    return found.fetchone() is not None


def _expire(connection: sqlite3.Connection, now: float) -> Outcome:
    found = connection.execute(
        "DELETE FROM experiences WHERE sequence IN"
        " (SELECT sequence FROM experiences WHERE expires_at <= ? ORDER BY expires_at LIMIT ?) RETURNING ns, exp_id",
        (now, SWEEP_EXPERIENCES),
    ).fetchall()
    return Outcome(len(found), [changed(ns, exp_id, "expire") for ns, exp_id in found])


def _expire_one(connection: sqlite3.Connection, ns: str, exp_id: str, now: float) -> list[Event]:
    cursor = connection.execute(
        "DELETE FROM experiences WHERE ns = ? AND exp_id = ? AND expires_at <= ?", (ns, exp_id, now)
    )
    return [changed(ns, exp_id, "expire")] if cursor.rowcount else []


def _bytes_of(row: tuple[Any, ...]) -> int:
    return 512 + sum(len(value.encode()) for value in row if isinstance(value, str)) + len(row[12])


def _experience(row: tuple[Any, ...]) -> Experience:
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
    success = fields["success"]
    return Experience(
        **{
            **fields,
            "success": None if success is None else bool(success),
            "context": unpack(fields["context"]),
            "tags": tags_of(fields["tags"]),
        }
    )
