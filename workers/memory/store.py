"""The memory itself: one method per operation, durable before it returns. Knows no bus."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from schemas.bodies import memory as bodies
from schemas.limits import MAX_BODY_BYTES
from workers.memory import applied, facts, kv
from workers.memory.clock import Now, SteadyClock
from workers.memory.database import Database, OnCommitted, Outcome, Write
from workers.memory.text import check_texts
from workers.memory.values import pack

# Entries removed in one transaction by a sweep, so that no write waits long behind it.
SWEEP_ENTRIES: Final = 500

# A page of a listing ends before its values pass this, bytes.
PAGE_BYTES: Final = 8 * 1024 * 1024


class MemoryStore:
    """Entries and facts on one database file. `open` makes one, `close` ends it.

    Every method takes the operation's request. Writes also take the request id: the same id again returns the reply it
    got and changes nothing. Raises the errors of `schemas.errors` that the operation names.
    """

    def __init__(self, database: Database, now: Now, max_body_bytes: int) -> None:
        self._database = database
        self._now = now
        self._max_body_bytes = max_body_bytes
        self._page_bytes = min(PAGE_BYTES, max_body_bytes // 2)

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        readers: int,
        on_committed: OnCommitted,
        max_body_bytes: int = MAX_BODY_BYTES,
        now: Now | None = None,
    ) -> Self:
        """The store at `path`, made or migrated as needed. Raises UnusableDatabase.

        `on_committed` hears what each committed batch changed. `now` gives epoch seconds and never goes back.
        """
        now = now or SteadyClock()
        database = await Database.open(path, readers=readers, now=now, on_committed=on_committed)
        store = cls(database, now, max_body_bytes)
        # With the wall clock set back since, what had expired at the last write must not come back.
        await store._sweep(max(now(), await database.read(applied.latest_applied_at)))
        return store

    async def close(self) -> None:
        """Finish what was handed in and close the file."""
        await self._database.close()

    # Key-value entries ------------------------------------------------------------------------------------------

    async def kv_get(self, request: bodies.KvGet) -> bodies.KvEntry:
        """One entry. Raises NotFound."""
        check_texts(request)
        now = self._now()
        return await self._database.read(lambda connection: kv.get_entry(connection, request, now))

    async def kv_set(self, request: bodies.KvSet, request_id: bytes) -> bodies.KvVersion:
        """Write an entry. Raises Conflict, BadRequest, TooLarge."""
        check_texts(request)
        beside_bytes = len(request.key.encode()) + len(request.ns) + kv.ENTRY_OVERHEAD_BYTES
        packed = pack(request.value, max_bytes=max(1, self._max_body_bytes - beside_bytes))
        reply: bodies.KvVersion = await self._write_once(
            "memory.kv.set",
            request_id,
            bodies.KvVersion,
            lambda connection, now: kv.set_entry(connection, request, packed, now),
        )
        return reply

    async def kv_delete(self, request: bodies.KvDelete, request_id: bytes) -> bodies.KvDeleted:
        """Delete an entry. Raises Conflict."""
        check_texts(request)
        reply: bodies.KvDeleted = await self._write_once(
            "memory.kv.delete",
            request_id,
            bodies.KvDeleted,
            lambda connection, now: kv.delete_entry(connection, request, now),
        )
        return reply

    async def kv_list(self, request: bodies.KvList) -> bodies.KvPage:
        """A page of entries by prefix, in key order."""
        check_texts(request)
        now = self._now()
        return await self._database.read(lambda connection: kv.list_entries(connection, request, now, self._page_bytes))

    # Facts ------------------------------------------------------------------------------------------------------

    async def remember(self, request: bodies.Remember, request_id: bytes) -> bodies.Fact:
        """Keep a fact."""
        check_texts(request)
        reply: bodies.Fact = await self._write_once(
            "memory.remember",
            request_id,
            bodies.Fact,
            lambda connection, now: facts.remember(connection, request, now),
        )
        return reply

    async def recall(self, request: bodies.Recall, request_id: bytes) -> bodies.Fact:
        """Read a fact and count that. Raises NotFound."""
        check_texts(request)
        reply: bodies.Fact = await self._database.write(partial(_recall, request=request, request_id=request_id))
        return reply

    async def find(self, request: bodies.Find) -> bodies.FactPage:
        """Facts by words, best match first."""
        check_texts(request)
        return await self._database.read(lambda connection: facts.find(connection, request, self._page_bytes))

    async def forget(self, request: bodies.Forget, request_id: bytes) -> bodies.Forgotten:
        """Delete one fact, a category or everything. Raises BadRequest unless exactly one of them is asked for."""
        check_texts(request)
        reply: bodies.Forgotten = await self._write_once(
            "memory.forget",
            request_id,
            bodies.Forgotten,
            lambda connection, now: facts.forget(connection, request),
        )
        return reply

    async def all(self, request: bodies.AllFacts) -> bodies.FactPage:
        """A page of facts in key order."""
        check_texts(request)
        return await self._database.read(lambda connection: facts.all_facts(connection, request, self._page_bytes))

    async def prompt(self, request: bodies.Prompt) -> bodies.PromptAddition:
        """What is known as a system-prompt addition within its budget."""
        check_texts(request)
        now = self._now()
        return await self._database.read(lambda connection: facts.prompt_addition(connection, request, now))

    # Upkeep -----------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Remove expired entries and outdated request ids. Costs one read when there are none."""
        await self._sweep(self._now())

    async def _sweep(self, now: float) -> None:
        while await self._database.read(lambda connection: kv.has_expired(connection, now)):
            await self._database.write(lambda connection, _: kv.expire_entries(connection, now, SWEEP_ENTRIES))
        while await self._database.read(lambda connection: applied.has_outdated(connection, now)):
            await self._database.write(lambda connection, _: applied.prune(connection, now))

    async def _write_once(self, operation: str, request_id: bytes, reply_type: type[Any], write: Write) -> Any:
        return await self._database.write(applied.once(operation, request_id, reply_type, write))


def _recall(connection: sqlite3.Connection, now: float, *, request: bodies.Recall, request_id: bytes) -> Outcome:
    # Only the id is kept: the reply may be long, recalls are many, and reading the fact again is harmless.
    operation = "memory.recall"
    if applied.find_reply(connection, operation, request_id) is None:
        facts.count_access(connection, request, now)
        applied.store_reply(connection, operation, request_id, b"", now)
    return Outcome(facts.read_fact(connection, request.ns, request.key), [])
