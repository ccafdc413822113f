"""Says whether anybody has a database open, and keeps others away from it. Knows nothing of what is in it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# Where SQLite locks a database file on Unix: whoever has it open with a write-ahead log holds these bytes shared
# (https://sqlite.org/src/file/src/os.h, PENDING_BYTE + 2 and SHARED_SIZE).
_SHARED_FIRST: Final = 0x4000_0000 + 2
_SHARED_BYTES: Final = 510


class InUse(Exception):
    """Another process has the database open."""


@contextmanager
def alone_with(database: Path) -> Iterator[None]:
    """Nobody else has the file open, and nobody opens it within the block. Raises InUse, OSError."""
    with database.open("rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_BYTES, _SHARED_FIRST)
        except OSError as error:
            raise InUse(str(database)) from error
        yield
