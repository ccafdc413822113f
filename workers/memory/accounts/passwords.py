"""Passwords: hashed with argon2id (RFC 9106), a few at a time and outside the event loop, or refused for want of room.

One check takes 64 MiB and, here, 160 ms: unbounded, a handful of callers would take the machine's memory.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from schemas.errors import BadRequest
from workers.memory.accounts.queue import Queue

if TYPE_CHECKING:
    from argon2 import PasswordHasher


class Checked(NamedTuple):
    """`new_hash` is the same password under newer parameters, where its hash has older ones."""

    is_right: bool
    new_hash: str | None = None


class Passwords:
    """Checks and hashes passwords, `at_once` of them, with `waiting` more in the queue. `close` ends its threads."""

    def __init__(self, *, at_once: int, waiting: int) -> None:
        self._queue = Queue("sign-in", at_once=at_once, waiting=waiting)
        self._at_once = at_once
        self._pool: ThreadPoolExecutor | None = None
        self._hasher: PasswordHasher | None = None
        self._decoy = ""

    @asynccontextmanager
    async def turn(self, deadline_at: float) -> AsyncIterator[Turn]:
        """Wait for a turn to check or hash; `deadline_at` in epoch seconds, 0 for none.

        Raises Overloaded when too many wait, DeadlineExceeded when the turn does not come in time.
        """
        async with self._queue.turn(deadline_at):
            await self._run(self._prepare)
            yield Turn(self)

    def close(self) -> None:
        """End the threads; a check that runs is finished first."""
        if self._pool is not None:
            self._pool.shutdown()

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="passwords")
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _prepare(self) -> None:
        """Before the first turn, so that it does not tell by its time whether there is such a user."""
        if self._hasher is None:
            from argon2 import PasswordHasher

            hasher = PasswordHasher()
            self._decoy = hasher.hash("nobody has this password")
            self._hasher = hasher

    def _hash(self, password: str) -> str:
        assert self._hasher is not None
        return self._hasher.hash(password)

    def _check(self, password_hash: str | None, password: str) -> Checked:
        from argon2.exceptions import InvalidHashError, VerificationError

        assert self._hasher is not None
        try:
            self._hasher.verify(password_hash or self._decoy, password)
        except (VerificationError, InvalidHashError):
            return Checked(False)
        if password_hash is None:
            return Checked(False)
        is_old = self._hasher.check_needs_rehash(password_hash)
        return Checked(True, self._hasher.hash(password) if is_old else None)


class Turn:
    """The right to do one piece of costly work after the other."""

    def __init__(self, passwords: Passwords) -> None:
        self._passwords = passwords

    async def hash(self, password: str) -> str:
        """The hash to keep, with its parameters and salt. Raises BadRequest for text that is not Unicode."""
        hashed: str = await self._passwords._run(self._passwords._hash, normalised(password))
        return hashed

    async def check(self, password_hash: str | None, password: str) -> Checked:
        """Whether the password is the one behind the hash; None costs the same and never is."""
        checked: Checked = await self._passwords._run(self._passwords._check, password_hash, normalised(password))
        return checked


def normalised(password: str) -> str:
    """The same text for the same keys, whatever the keyboard composes (NFKC: NIST SP 800-63B, section 3.1.1.2)."""
    try:
        password.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("the password holds a lone surrogate, which is not Unicode text", field="password") from error
    return unicodedata.normalize("NFKC", password)
