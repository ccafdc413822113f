"""Records that no operation of ours holds and an agent's clients expect again: kept as key-value entries of memory.

They live in namespaces `legacy.<what>`, survive a restart, go into backups, and are what the migration scripts fill.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final

from schemas.bodies.memory import KvDelete, KvDeleted, KvGet, KvList, KvPage, KvSet
from schemas.errors import NotFound

if TYPE_CHECKING:
    from workers.gateway.legacy.house import House

# Entries read with one request.
_PAGE: Final = 200
# Keys read with one request.
_KEYS_PAGE: Final = 1_000

# Logs are listed by key, so the newest must sort first: microseconds counted down from here, the year 2255.
_FAR_US: Final = 9_007_199_254_740_992


class Kept:
    """One namespace of records, by key."""

    def __init__(self, house: House, name: str) -> None:
        self._house = house
        self.ns = f"legacy.{name}"

    async def get(self, key: str) -> Any:
        """The record; None where there is none."""
        try:
            return (await self._house.ask("memory.kv.get", KvGet(key=key, ns=self.ns))).value
        except NotFound:
            return None

    async def put(self, key: str, value: Any, ttl_s: float | None = None) -> None:
        """Write a record over what was there."""
        await self._house.ask("memory.kv.set", KvSet(key=key, value=value, ns=self.ns, ttl_s=ttl_s))

    async def drop(self, key: str) -> bool:
        """Delete a record; True where there was one."""
        reply: KvDeleted = await self._house.ask("memory.kv.delete", KvDelete(key=key, ns=self.ns))
        return reply.deleted

    async def free_key(self, wanted: str) -> str:
        """`wanted`, or with the first number behind it under which there is no record yet."""
        found, number = wanted, 1
        while await self.get(found) is not None:
            number += 1
            found = f"{wanted}-{number}"
        return found

    async def each(self, prefix: str = "") -> AsyncIterator[tuple[str, Any]]:
        """Records in the order of their keys."""
        after: str | None = None
        while True:
            page: KvPage = await self._house.ask(
                "memory.kv.list", KvList(prefix=prefix, ns=self.ns, limit=_PAGE, after=after)
            )
            for entry in page.entries:
                yield entry.key, entry.value
            after = page.next_after
            if after is None:
                return

    async def count(self) -> int:
        """How many records there are."""
        count, after = 0, None
        while True:
            page: KvPage = await self._house.ask(
                "memory.kv.list", KvList(ns=self.ns, limit=_KEYS_PAGE, after=after, keys_only=True)
            )
            count += len(page.entries)
            after = page.next_after
            if after is None:
                return count

    async def log(self, value: Any, *, at: float | None = None, prefix: str = "", id: str = "") -> str:
        """Add a record to a log; returns its key. `at`: epoch seconds, now by default."""
        key = log_key(time.time() if at is None else at, prefix=prefix, id=id)
        await self.put(key, value)
        return key

    async def newest(self, limit: int, *, prefix: str = "", match: Callable[[Any], bool] | None = None) -> list[Any]:
        """Records of a log, newest first, of those that match."""
        found: list[Any] = []
        if limit > 0:
            async for _, value in self.each(prefix):
                if match is None or match(value):
                    found.append(value)
                    if len(found) == limit:
                        break
        return found


def log_key(at: float, *, prefix: str = "", id: str = "") -> str:
    """The key of a log record of epoch second `at`: later ones sort first. The same `id` gives the same key."""
    return f"{prefix}{_FAR_US - int(at * 1e6):016d}-{id or uuid.uuid4().hex[:12]}"
