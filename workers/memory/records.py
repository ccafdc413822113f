"""What every part of the memory works on: reads, durable writes, and writes that happen once per request id."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from bus.metrics import Figures
from schemas.limits import MAX_BODY_BYTES
from workers.memory import applied
from workers.memory.batch import Once
from workers.memory.clock import Now, SteadyClock
from workers.memory.database import MAX_BATCH, Database, OnCommitted
from workers.memory.outcome import Write

T = TypeVar("T")

# A page of a listing ends before its values pass this, bytes.
PAGE_BYTES: Final = 8 * 1024 * 1024


class Records:
    """The database as the parts of the memory see it.

    now: epoch seconds, never going back. max_body_bytes: of the largest message. page_bytes: where a listing's page
    ends.
    """

    def __init__(self, database: Database, now: Now, max_body_bytes: int) -> None:
        self.database = database
        self.now = now
        self.max_body_bytes = max_body_bytes
        self.page_bytes = min(PAGE_BYTES, max_body_bytes // 2)

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        readers: int,
        on_committed: OnCommitted,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_batch: int = MAX_BATCH,
        now: Now | None = None,
        figures: Figures | None = None,
    ) -> Self:
        """The records at `path`, made or migrated as needed. Raises UnusableDatabase.

        `on_committed` hears the events of each committed batch. `now` gives epoch seconds and never goes back.
        Commits are counted in `figures`.
        """
        now = now or SteadyClock()
        database = await Database.open(
            path, readers=readers, now=now, on_committed=on_committed, max_batch=max_batch, figures=figures
        )
        return cls(database, now, max_body_bytes)

    async def newest_time(self) -> float:
        """Now, or the time of the last write where the clock was set back since: what had expired must not come back."""
        return max(self.now(), await self.read(applied.latest_applied_at))

    async def close(self) -> None:
        """Finish what was handed in and close the file."""
        await self.database.close()

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` reads of everything committed so far. Raises the errors of `sqlite_errors.explain`."""
        return await self.database.read(function)

    async def read_whole(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """`read` of one state of the database, for a function whose statements must fit together."""
        return await self.database.read(partial(_in_one_state, function))

    async def read_here(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """`read` of one row, done in the event loop: see `Database.read_here`."""
        return await self.database.read_here(function)

    async def write(self, write: Write) -> Any:
        """The reply of `write` once it is on disk; what it raised where it failed, and then nothing of it is stored."""
        return await self.database.write(write)

    async def write_once(self, operation: str, request_id: bytes, reply_type: type[T], write: Write) -> T:
        """The reply of `write`, made to happen once per request id: again, it answers the same and changes nothing."""
        reply: T = await self.database.write(write, Once(operation, request_id, reply_type))
        return reply


def _in_one_state(function: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
    connection.execute("BEGIN")
    try:
        return function(connection)
    finally:
        # A failing disk may have ended it already.
        if connection.in_transaction:
            connection.execute("COMMIT")
