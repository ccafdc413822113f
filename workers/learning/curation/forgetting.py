"""Erases examples whose origin was forgotten in MemoryHub: told by its events, and asked again before anything is trained."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final, NamedTuple

from bus.client import Client
from bus.records import Records
from schemas.errors import BusError
from workers.learning.curation import store
from workers.learning.curation.references import MemoryHub, Reference, gone

log = logging.getLogger("olympus.learning")

# Seconds before a broken subscription is tried again.
_LISTEN_AGAIN_S: Final = 1.0

_WHY: Final = "forgotten in MemoryHub"


class Asked(NamedTuple):
    """What asking MemoryHub about some examples showed: numbers of the erased ones and of those it could not tell of."""

    erased: frozenset[int]
    unsure: frozenset[int]


class Forgetting:
    """Follows what MemoryHub deletes. on_erased: called when examples were erased."""

    def __init__(
        self,
        records: Records,
        client: Client,
        hub: MemoryHub,
        on_erased: Callable[[], Awaitable[object]],
    ) -> None:
        self._records = records
        self._on_erased = on_erased
        self._client = client
        self._hub = hub

    async def watch_forever(self) -> None:
        """Erase what is forgotten, until cancelled; what was missed meanwhile is asked for."""
        while True:
            try:
                async with self._client.subscribe("memory.changed.*", "memory.session.closed") as events:
                    await self.ask()
                    async for event in events:
                        if event.missed is not None:
                            await self.ask()
                        reference = gone(event.subject, event.body)
                        if reference is not None:
                            await self.forget([reference])
            except (BusError, ConnectionError) as error:
                log.info(
                    "events of MemoryHub lost for a moment",
                    extra={"action": "learning.memory.deaf", "reason": str(error)},
                )
            await asyncio.sleep(_LISTEN_AGAIN_S)

    async def forget(self, references: Collection[Reference]) -> None:
        """Erase the examples that rest on one of these."""
        erased = await self._records.run(partial(_forget, references=references, now=time.time()))
        if erased:
            await self._on_erased()

    async def ask(self, *, model: str | None = None, dataset: str | None = None, version: int = 0) -> Asked:
        """Ask MemoryHub about the origin of all examples, of a model's or of a version's; erase those whose origin is gone.

        A session it never had cannot be forgotten there. Of one nobody asked for in time nothing can be said.
        """
        known = await self._records.run(partial(store.references, model=model, dataset=dataset, version=version))
        if not known:
            return Asked(frozenset(), frozenset())
        presence = await self._hub.presence({reference for reference, _, _ in known})
        doomed: set[int] = set()
        unsure: set[int] = set()
        for reference, number, state in known:
            if reference in presence.unasked:
                unsure.add(number)
            elif reference in presence.missing and (state == "known" or reference.kind != "session"):
                doomed.add(number)
            elif reference in presence.missing and state == "unasked":
                unsure.add(number)
        present = {one for one, _, state in known if state != "known"} - presence.missing - presence.unasked
        erased = await self._records.run(partial(_settle, doomed=doomed, present=present, now=time.time()))
        if erased:
            await self._on_erased()
        return Asked(frozenset(doomed), frozenset(unsure - doomed))


def _forget(connection: sqlite3.Connection, references: Collection[Reference], now: float) -> list[str]:
    numbers = {number for reference in references for number in store.of_reference(connection, reference)}
    return store.erase(connection, numbers, cause="forgotten", reason=_WHY, now=now)


def _settle(
    connection: sqlite3.Connection, doomed: Collection[int], present: Collection[Reference], now: float
) -> list[str]:
    store.found_again(connection, present)
    return store.erase(connection, doomed, cause="forgotten", reason=_WHY, now=now)
