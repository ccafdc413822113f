"""Memories, their relations and groups, and their life cycle: one method per operation. Knows no bus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from sqlite3 import Connection
from typing import Final, TypeVar

import msgspec

from schemas.bodies import items as bodies
from schemas.errors import BadRequest, BusError
from workers.memory import applied
from workers.memory.chunks import Piece
from workers.memory.items import cycle, groups, reading, relations, removal, rows, writing
from workers.memory.items.drafts import Draft, Revision, draft, id_of, pieces_of, pieces_of_each
from workers.memory.items.once import Change, once_then_read
from workers.memory.outcome import Event, Outcome
from workers.memory.records import Records
from workers.memory.text import check_texts
from workers.memory.uses import noted_then_read

log = logging.getLogger("olympus.memory")

# Memories removed in one transaction by a sweep, so that no write waits long behind it.
SWEEP_MEMORIES: Final = 200

T = TypeVar("T")


class Memories:
    """The memories of one database.

    Every method takes the operation's request. Writes also take the request id: the same id again changes nothing and
    returns the reply it got; where that reply is a memory, the memory as it is by then. Raises the errors of
    `schemas.errors` that the operation names.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._ageing = asyncio.Lock()

    # One memory -------------------------------------------------------------------------------------------------

    async def add(self, request: bodies.MemoryAdd, request_id: bytes) -> bodies.MemoryAdded:
        """Keep a memory. Raises BadRequest, Conflict, TooLarge, Unprocessable."""
        check_texts(request)
        made = self._draft(request, await pieces_of(request.content), request.ns, id_of(request_id))
        return await self._records.write_once(
            "memory.add",
            request_id,
            bodies.MemoryAdded,
            lambda connection, now: writing.add(connection, request.ns, made, now),
        )

    async def add_many(self, request: bodies.MemoryAddMany, request_id: bytes) -> bodies.MemoriesAdded:
        """Keep several memories, all or none. Raises as `add`."""
        check_texts(request)
        _refuse_twice(request.items)
        pieces = await pieces_of_each([item.content for item in request.items])
        made = [
            self._draft(item, pieces[number], request.ns, id_of(request_id, number), path=f"items[{number}].")
            for number, item in enumerate(request.items)
        ]
        return await self._records.write_once(
            "memory.add_many",
            request_id,
            bodies.MemoriesAdded,
            lambda connection, now: writing.add_many(connection, request.ns, made, now),
        )

    async def get(self, request: bodies.MemoryGet, request_id: bytes) -> bodies.Memory:
        """One memory; with `touch` the access is counted first, as long as anything can be written. Raises NotFound."""
        check_texts(request)

        def read(connection: Connection, now: float) -> bodies.Memory:
            return rows.read(connection, request.ns, request.id, now)

        def touch(connection: Connection, now: float) -> Sequence[Event]:
            writing.touch(connection, request.ns, [request.id], now)
            return ()

        if request.touch:
            return await noted_then_read(self._records, "memory.get", request_id, touch, read)
        return await self._read_now(read)

    async def get_many(self, request: bodies.MemoryGetMany, request_id: bytes) -> bodies.Memories:
        """Several memories, each once; with `touch` the access of those in the reply is counted first, as in `get`."""
        check_texts(request)

        def read(connection: Connection, now: float) -> bodies.Memories:
            return reading.get_many(connection, request, now, self._records.page_bytes)

        def touch(connection: Connection, now: float) -> Sequence[Event]:
            writing.touch(connection, request.ns, [memory.id for memory in read(connection, now).memories], now)
            return ()

        if request.touch:
            return await noted_then_read(self._records, "memory.get_many", request_id, touch, read)
        return await self._read_now(read)

    async def update(self, request: bodies.MemoryUpdate, request_id: bytes) -> bodies.Memory:
        """Change fields. Raises BadRequest, NotFound, Conflict, TooLarge, Unprocessable."""
        check_texts(request)
        pieces = None if request.content is None else await pieces_of(request.content)
        revision = Revision(request, pieces)
        max_bytes = self._records.max_body_bytes
        return await self._changed(
            "memory.update",
            request_id,
            request,
            lambda connection, now: writing.update(connection, revision, now, max_bytes),
        )

    async def reinforce(self, request: bodies.MemoryReinforce, request_id: bytes) -> bodies.Memory:
        """Raise the importance. Raises NotFound."""
        check_texts(request)
        return await self._changed(
            "memory.reinforce",
            request_id,
            request,
            lambda connection, now: writing.reinforce(connection, request, now),
        )

    async def promote(self, request: bodies.MemoryPromote, request_id: bytes) -> bodies.Memory:
        """Change the tier. Raises NotFound."""
        check_texts(request)
        return await self._changed(
            "memory.promote",
            request_id,
            request,
            lambda connection, now: writing.promote(connection, request, now),
        )

    async def delete(self, request: bodies.MemoryDelete, request_id: bytes) -> bodies.MemoryDeleted:
        """Delete a memory, with `cascade` all below it. Raises NotFound."""
        check_texts(request)
        return await self._records.write_once(
            "memory.delete",
            request_id,
            bodies.MemoryDeleted,
            lambda connection, now: removal.delete(connection, request, now),
        )

    # Listings ---------------------------------------------------------------------------------------------------

    async def list(self, request: bodies.MemoryList) -> bodies.Memories:
        """A page in the order of adding."""
        check_texts(request)
        page_bytes = self._records.page_bytes
        return await self._read_now(lambda connection, now: reading.list_memories(connection, request, now, page_bytes))

    async def children(self, request: bodies.MemoryChildren) -> bodies.Memories:
        """A page of what lies under a memory; empty for an unknown one."""
        check_texts(request)
        page_bytes = self._records.page_bytes
        return await self._read_now(lambda connection, now: reading.children(connection, request, now, page_bytes))

    # Relations --------------------------------------------------------------------------------------------------

    async def link(self, request: bodies.MemoryLink, request_id: bytes) -> bodies.Linked:
        """Relate two memories."""
        check_texts(request)
        return await self._records.write_once(
            "memory.link", request_id, bodies.Linked, lambda connection, now: relations.link(connection, request, now)
        )

    async def unlink(self, request: bodies.MemoryUnlink, request_id: bytes) -> bodies.Unlinked:
        """Take relations back."""
        check_texts(request)
        return await self._records.write_once(
            "memory.unlink",
            request_id,
            bodies.Unlinked,
            lambda connection, now: relations.unlink(connection, request, now),
        )

    async def related(self, request: bodies.MemoryRelated) -> bodies.RelatedMemories:
        """A page of a memory's relations; empty for an unknown one."""
        check_texts(request)
        page_bytes = self._records.page_bytes
        return await self._read_now(lambda connection, now: relations.related(connection, request, now, page_bytes))

    # Groups -----------------------------------------------------------------------------------------------------

    async def group_create(self, request: bodies.GroupCreate, request_id: bytes) -> bodies.Group:
        """Make a group."""
        check_texts(request)
        return await self._records.write_once(
            "memory.group.create",
            request_id,
            bodies.Group,
            lambda connection, now: groups.create(connection, request, now),
        )

    async def group_add(self, request: bodies.GroupAdd, request_id: bytes) -> bodies.GroupChanged:
        """Put a memory in a group. Raises NotFound for an unknown group."""
        check_texts(request)
        return await self._records.write_once(
            "memory.group.add",
            request_id,
            bodies.GroupChanged,
            lambda connection, now: groups.add(connection, request, now),
        )

    async def group_remove(self, request: bodies.GroupRemove, request_id: bytes) -> bodies.GroupChanged:
        """Take a memory out of a group. Raises NotFound for an unknown group."""
        check_texts(request)
        return await self._records.write_once(
            "memory.group.remove",
            request_id,
            bodies.GroupChanged,
            lambda connection, now: groups.remove(connection, request, now),
        )

    async def group_delete(self, request: bodies.GroupDelete, request_id: bytes) -> bodies.GroupChanged:
        """Delete a group; its memories stay."""
        return await self._records.write_once(
            "memory.group.delete",
            request_id,
            bodies.GroupChanged,
            lambda connection, now: groups.delete(connection, request),
        )

    async def group_members(self, request: bodies.GroupMembers) -> bodies.Memories:
        """A page of a group's memories. Raises NotFound."""
        page_bytes = self._records.page_bytes
        return await self._read_now(lambda connection, now: groups.members(connection, request, now, page_bytes))

    async def group_list(self, request: bodies.GroupList) -> bodies.Groups:
        """A page of groups."""
        page_bytes = self._records.page_bytes
        return await self._read_now(lambda connection, now: groups.list_groups(connection, request, now, page_bytes))

    # Life cycle -------------------------------------------------------------------------------------------------

    async def decay(self, request: bodies.MemoryDecay, request_id: bytes) -> bodies.CycleReport:
        """Run the life cycle now; `dry_run` writes nothing. Passes already made are not made again."""
        if request.dry_run:
            return await self._age(request.ns, dry_run=True)
        operation = "memory.decay"
        stored = await self._records.read(lambda connection: applied.find_reply(connection, operation, request_id))
        if stored is not None:
            return msgspec.msgpack.decode(stored, type=bodies.CycleReport)
        report = await self._age(request.ns, dry_run=False)
        return await self._records.write_once(
            operation, request_id, bodies.CycleReport, lambda connection, now: Outcome(report, [])
        )

    async def cycle_forever(self, interval_s: float) -> None:
        """Run the life cycle at once and every `interval_s` seconds, until cancelled.

        A run that fails is logged; the next one makes up for it.
        """
        while True:
            try:
                report = await self._age(None, dry_run=False)
                if report.looked_at or report.expired:
                    log.info("memories aged", extra={"action": "memory.aged", **msgspec.structs.asdict(report)})
            except BusError as error:
                log.warning("ageing failed", extra={"action": "memory.aged.failed", "reason": error.message})
            await asyncio.sleep(interval_s)

    async def expire(self, now: float) -> None:
        """Remove what has expired at `now`, not what was deleted and is only hidden. Costs one read when nothing has."""
        await self._sweep(now, None, but_deleted=True)

    async def sweep(self, now: float) -> None:
        """Remove what has expired at `now`, and what was deleted. Costs one read when there is nothing."""
        await self._sweep(now, None)

    async def _age(self, ns: str | None, *, dry_run: bool) -> bodies.CycleReport:
        now = self._records.now()
        async with self._ageing:
            if dry_run:
                expired = await self._records.read(lambda connection: removal.count_expired(connection, ns, now))
            else:
                expired = await self._sweep(now, ns)
            taken: cycle.Taken = set()
            # What leaves the short tier is not looked at again as a medium one: no pass is due for it any more.
            reports = [await self._age_tier(tier, ns, now, taken, dry_run=dry_run) for tier in cycle.TIERS]
            return cycle.total(reports, expired=expired, dry_run=dry_run)

    async def _age_tier(
        self, tier: str, ns: str | None, now: float, taken: cycle.Taken, *, dry_run: bool
    ) -> bodies.CycleReport:
        """Batch by batch, so that other writes come in between."""
        max_bytes = self._records.max_body_bytes
        reports: list[bodies.CycleReport] = []
        after: int | None = 0
        while after is not None:
            batch = await self._records.read_whole(
                partial(cycle.plan, tier=tier, after=after, ns=ns, now=now, taken=taken, max_bytes=max_bytes)
            )
            after = batch.after
            if dry_run or not batch.ageings:
                reports.append(cycle.report(batch.ageings))
            else:
                reports.append(await self._records.write(partial(_apply, batch=batch, at=now, max_bytes=max_bytes)))
        return cycle.total(reports, expired=0, dry_run=dry_run)

    async def _sweep(self, now: float, ns: str | None, *, but_deleted: bool = False) -> int:
        expired = 0
        while await self._records.read(
            lambda connection: removal.has_expired(connection, ns, now, but_deleted=but_deleted)
        ):
            expired += await self._records.write(
                lambda connection, _: removal.expire(connection, ns, now, SWEEP_MEMORIES, but_deleted=but_deleted)
            )
        return expired

    # ------------------------------------------------------------------------------------------------------------

    def _draft(
        self, request: bodies.NewMemory, pieces: Sequence[Piece], ns: str, made_id: str, path: str = ""
    ) -> Draft:
        return draft(request, pieces, ns=ns, made_id=made_id, max_bytes=self._records.max_body_bytes, path=path)

    async def _changed(
        self,
        operation: str,
        request_id: bytes,
        request: bodies.MemoryUpdate | bodies.MemoryReinforce | bodies.MemoryPromote,
        change: Change,
    ) -> bodies.Memory:
        return await once_then_read(
            self._records,
            operation,
            request_id,
            change,
            lambda connection, now: rows.read(connection, request.ns, request.id, now),
        )

    async def _read_now(self, read: Callable[[Connection, float], T]) -> T:
        now = self._records.now()
        return await self._records.read_whole(lambda connection: read(connection, now))


def _apply(connection: Connection, _: float, *, batch: cycle.Batch, at: float, max_bytes: int) -> Outcome:
    return cycle.apply(connection, batch.ageings, at, max_bytes)


def _refuse_twice(items: Sequence[bodies.NewMemory]) -> None:
    """Raise BadRequest where two items have one id: which of them would be kept?"""
    places: dict[str, int] = {}
    for number, item in enumerate(items):
        if item.id is None:
            continue
        if item.id in places:
            raise BadRequest(
                f"items[{places[item.id]}] and items[{number}] have the same id {item.id!r}",
                field=f"items[{number}].id",
            )
        places[item.id] = number
