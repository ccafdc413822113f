"""Key-value entries and facts: one method per operation, durable before it returns. Knows no bus."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Final

from schemas.bodies import memory as bodies
from workers.memory import applied, facts, kv
from workers.memory.outcome import Event, Outcome
from workers.memory.prompt import HEADING, fitting_addition, prompt_line
from workers.memory.records import Records
from workers.memory.sessions.tokens import ESTIMATE, Estimator, TokenCounter
from workers.memory.text import check_texts
from workers.memory.uses import noted_then_read
from workers.memory.values import pack

# Entries removed in one transaction by a sweep, so that no write waits long behind it.
SWEEP_ENTRIES: Final = 500


class MemoryStore:
    """Entries and facts.

    Every method takes the operation's request. Writes also take the request id: the same id again returns the reply it
    got and changes nothing. Raises the errors of `schemas.errors` that the operation names.
    """

    def __init__(self, records: Records, counter: TokenCounter | None = None) -> None:
        self._records = records
        self._counter = counter or Estimator()

    # Key-value entries ------------------------------------------------------------------------------------------

    async def kv_get(self, request: bodies.KvGet) -> bodies.KvEntry:
        """One entry. Raises NotFound."""
        check_texts(request)
        now = self._records.now()
        return await self._records.read_here(lambda connection: kv.get_entry(connection, request, now))

    async def kv_set(self, request: bodies.KvSet, request_id: bytes) -> bodies.KvVersion:
        """Write an entry. Raises Conflict, BadRequest, TooLarge."""
        check_texts(request)
        beside_bytes = len(request.key.encode()) + len(request.ns) + kv.ENTRY_OVERHEAD_BYTES
        packed = pack(request.value, max_bytes=max(1, self._records.max_body_bytes - beside_bytes))
        return await self._records.write_once(
            "memory.kv.set",
            request_id,
            bodies.KvVersion,
            lambda connection, now: kv.set_entry(connection, request, packed, now),
        )

    async def kv_delete(self, request: bodies.KvDelete, request_id: bytes) -> bodies.KvDeleted:
        """Delete an entry. Raises Conflict."""
        check_texts(request)
        return await self._records.write_once(
            "memory.kv.delete",
            request_id,
            bodies.KvDeleted,
            lambda connection, now: kv.delete_entry(connection, request, now),
        )

    async def kv_list(self, request: bodies.KvList) -> bodies.KvPage:
        """A page of entries by prefix, in key order."""
        check_texts(request)
        now = self._records.now()
        return await self._records.read(
            lambda connection: kv.list_entries(connection, request, now, self._records.page_bytes)
        )

    # Facts ------------------------------------------------------------------------------------------------------

    async def remember(self, request: bodies.Remember, request_id: bytes) -> bodies.Fact:
        """Keep a fact."""
        check_texts(request)
        return await self._records.write_once(
            "memory.remember",
            request_id,
            bodies.Fact,
            lambda connection, now: facts.remember(connection, request, now),
        )

    async def recall(self, request: bodies.Recall, request_id: bytes) -> bodies.Fact:
        """Read a fact and count that, as long as anything can be written. Raises NotFound."""
        check_texts(request)

        def count(connection: sqlite3.Connection, now: float) -> Sequence[Event]:
            facts.count_access(connection, request, now)
            return ()

        return await noted_then_read(
            self._records,
            "memory.recall",
            request_id,
            count,
            lambda connection, _: facts.read_fact(connection, request.ns, request.key),
        )

    async def find(self, request: bodies.Find) -> bodies.FactPage:
        """Facts by words, best match first."""
        check_texts(request)
        return await self._records.read(lambda connection: facts.find(connection, request, self._records.page_bytes))

    async def forget(self, request: bodies.Forget, request_id: bytes) -> bodies.Forgotten:
        """Delete one fact, a category or everything; answered when the last of them is gone.

        Raises BadRequest unless exactly one of them is asked for.
        """
        check_texts(request)
        reply = await self._records.write_once(
            "memory.forget",
            request_id,
            bodies.Forgotten,
            lambda connection, _: facts.forget(connection, request, request_id),
        )
        if reply.forgotten > facts.FORGET_ROWS:
            await self._forget_rest(request_id)
        return reply

    async def all(self, request: bodies.AllFacts) -> bodies.FactPage:
        """A page of facts in key order."""
        check_texts(request)
        return await self._records.read(
            lambda connection: facts.all_facts(connection, request, self._records.page_bytes)
        )

    async def prompt(self, request: bodies.Prompt) -> bodies.PromptAddition:
        """What is known as a system-prompt addition within its budget."""
        check_texts(request)
        now = self._records.now()
        if request.model is not None:
            candidates = await self._records.read_whole(
                lambda connection: facts.prompt_candidates(connection, request, now)
            )
            lines = [f"\n{prompt_line(key, value)}" for key, value in candidates.facts if value]
            counted = await self._counter.count([HEADING, *lines], request.model)
            if counted.by != ESTIMATE:
                costs = dict(zip([HEADING, *lines], counted.counts, strict=True))
                recount = partial(self._recount, request.model, counted.by)
                return await fitting_addition(request.max_tokens, candidates, costs, counted.by, recount)
        return await self._records.read_whole(lambda connection: facts.prompt_addition(connection, request, now))

    async def _recount(self, model: str, by: str, text: str) -> int | None:
        """Tokens of `text`, None where `by` does not count any more."""
        counted = await self._counter.count([text], model)
        return counted.counts[0] if counted.by == by else None

    # Upkeep -----------------------------------------------------------------------------------------------------

    async def expire(self, now: float) -> None:
        """Remove entries expired at `now` and outdated request ids. Costs two reads when there are none."""
        while await self._records.read(lambda connection: kv.has_expired(connection, now)):
            await self._records.write(lambda connection, _: kv.expire_entries(connection, now, SWEEP_ENTRIES))
        while await self._records.read(lambda connection: applied.has_outdated(connection, now)):
            await self._records.write(lambda connection, _: Outcome(applied.prune(connection, now), []))

    async def sweep(self, now: float) -> None:
        """`expire`, and finish what was not forgotten to the end. Costs three reads when there is nothing."""
        await self.expire(now)
        for request_id in await self._records.read(facts.find_forgettings):
            await self._forget_rest(request_id)

    async def _forget_rest(self, request_id: bytes) -> None:
        while await self._records.write(lambda connection, _: facts.forget_some(connection, request_id)):
            pass
