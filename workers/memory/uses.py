"""Notes the use of what is read, which must keep nobody from reading it while nothing can be written."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from schemas.errors import BusError
from workers.memory.items.once import Change, once_then_read
from workers.memory.records import Records
from workers.memory.sqlite_errors import stops_every_write

log = logging.getLogger("olympus.memory")

T = TypeVar("T")


@contextmanager
def noting_use() -> Iterator[None]:
    """Around a write that only notes a use: where file or disk take no writes, it is left out and its error goes no further.

    The service says so itself (`Database.problem`). Errors of any other kind are raised.
    """
    try:
        yield
    except BusError as error:
        _pass_over(error)


async def noted_then_read(
    records: Records, operation: str, request_id: bytes, note: Change, read: Callable[[sqlite3.Connection, float], T]
) -> T:
    """`once_then_read` for a change that only notes the use; where it cannot be noted, what `read` finds without that."""
    try:
        return await once_then_read(records, operation, request_id, note, read)
    except BusError as error:
        _pass_over(error)
    now = records.now()
    return await records.read_whole(lambda connection: read(connection, now))


def _pass_over(error: BusError) -> None:
    if not stops_every_write(error):
        raise error
    log.debug("use not noted", extra={"action": "memory.use.not_noted", "reason": error.message})
