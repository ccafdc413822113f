"""Keeps the leases over a restart of the service, in one small file; and keeps a second service from keeping them too.

Written whole before a grant is told, so a service that is killed at any moment finds every lease that a caller may hold.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bus.private_file import write_private
from workers.resources.ledger import Lease


class UnusableBook(Exception):
    """The file of leases cannot be used; the message names it and says why."""


class Book:
    """`path` holds the leases as JSON; `path`.lock is locked by the service that keeps it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None

    def open(self) -> list[Lease]:
        """What an earlier process kept. Raises UnusableBook when another keeps it now, or it cannot be read."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return msgspec.json.decode(self._path.read_bytes(), type=list[Lease]) if self._path.exists() else []
        except BlockingIOError as error:
            self.close()
            raise UnusableBook(f"{self._path} is kept by another resource service; one house has one") from error
        except OSError as error:
            self.close()
            raise UnusableBook(f"{self._path}: {error.strerror or error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.close()
            raise UnusableBook(
                f"{self._path} does not hold leases: {error}. Move it away when no model is loaded; then nobody holds any"
            ) from error

    def write(self, leases: Sequence[Lease]) -> None:
        """Keep exactly these. Raises OSError."""
        write_private(self._path, msgspec.json.encode(leases))

    def close(self) -> None:
        """Let another service keep it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
