"""Fetches one file into its part: goes on where it was cut off, and never mixes two contents."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from schemas.errors import Internal, Unprocessable
from workers.models.pull.partfile import PartFile
from workers.models.pull.plan import RemoteFile
from workers.models.pull.web import Trouble, Web, check_status

if TYPE_CHECKING:
    import httpx

P = ParamSpec("P")
T = TypeVar("T")

# What is gathered before it is written: a hop to the writing thread costs 50 to 100 microseconds.
_WRITE_BYTES: Final = 1024 * 1024

# Seconds after which it is written all the same, so that a slow line loses little when it is cut.
_WRITE_S: Final = 0.5

# Room left on the disk, bytes: other programs have to live.
SPARE_BYTES: Final = 64 * 1024 * 1024

# Numbers up to 2^63 and a little more: what a server sends is not trusted.
_RANGE: Final = re.compile(r"bytes (?:(\d{1,19})-\d{1,19}|\*)/(\d{1,19}|\*)", re.ASCII)
_LENGTH: Final = re.compile(r"\d{1,19}", re.ASCII)


class Download:
    """One file and its part. on_bytes: told how much of it is here. executor: where writing and hashing happen."""

    def __init__(
        self, web: Web, remote: RemoteFile, part: PartFile, *, executor: Executor, on_bytes: Callable[[int], None]
    ) -> None:
        self.transferred_bytes = 0
        self.attempt = 1
        self.total_bytes = remote.size_bytes
        self._web = web
        self._remote = remote
        self._part = part
        self._executor = executor
        self._on_bytes = on_bytes

    async def run(self) -> str:
        """Fetch all of it and return its sha256. The part stays open, and is kept when this raises.

        Raises Unprocessable for a wrong checksum (the part is then emptied), a wrong size and a full disk; NotFound,
        Forbidden, QuotaExceeded, Internal as the server has it; Unreachable.
        """
        had = self._part.bytes
        await self._fetch()
        expected = self._remote.sha256
        if expected is not None and had and self._part.sha256() != expected:
            # What was here before may have been spoilt; the whole file from one answer decides.
            await self._in_thread(self._part.restart)
            await self._fetch()
        digest = self._part.sha256()
        if expected is not None and digest != expected:
            await self._in_thread(self._part.restart)
            raise Unprocessable(
                f"{self._remote.name}: wrong checksum: its sha256 is {digest}, it should be {expected};"
                " what came was thrown away",
                sha256=digest,
                expected=expected,
            )
        return digest

    async def _fetch(self) -> None:
        try:
            async for attempt in self._web.patience.retrying(lambda: self._part.bytes):
                with attempt:
                    self.attempt = attempt.retry_state.attempt_number
                    await self._once()
        except Trouble as trouble:
            error = trouble.error
            kept = f"tried {self.attempt} times, {self._part.bytes} bytes are kept for the next pull"
            raise type(error)(f"{error.message}; {kept}", **error.details) from trouble

    async def _once(self) -> None:
        part, remote = self._part, self._remote
        self._on_bytes(part.bytes)
        if part.bytes and not self._may_go_on():
            await self._in_thread(part.restart)
        if remote.size_bytes is not None and part.bytes > remote.size_bytes:
            await self._in_thread(part.restart)
        if remote.is_fixed and part.bytes and part.bytes == remote.size_bytes:
            return
        headers = {}
        if part.bytes:
            headers["range"] = f"bytes={part.bytes}-"
            if part.state.validator and not remote.is_fixed:
                headers["if-range"] = part.state.validator
        async with self._web.get(remote.url, headers) as response:
            if await self._is_whole_already(response):
                return
            check_status(response, remote.name)
            await self._agree(response)
            await self._receive(response)
        total = part.state.total_bytes
        if total is not None and part.bytes < total:
            raise Trouble(Internal(f"{remote.name}: cut off at byte {part.bytes} of {total}"))

    def _may_go_on(self) -> bool:
        """Can the part be told from another content? By its digest, a URL that is fixed, or the server's validator."""
        return self._remote.is_fixed or self._remote.sha256 is not None or bool(self._part.state.validator)

    async def _is_whole_already(self, response: httpx.Response) -> bool:
        """A range behind the end (416): the part is the whole file, or it is of something that is no more."""
        if response.status_code != 416 or not self._part.bytes:
            return False
        _, total = _content_range(response)
        if total == self._part.bytes and _validator(response) in ("", self._part.state.validator):
            return True
        await self._in_thread(self._part.restart)
        raise Trouble(Internal(f"{self._remote.name}: the server has another content than what was fetched of it"))

    async def _agree(self, response: httpx.Response) -> None:
        """Make sure that what comes continues the part; begin anew where it does not."""
        part, remote = self._part, self._remote
        validator = _validator(response)
        if response.status_code == 206:
            start, total = _content_range(response)
            is_other = bool(validator and part.state.validator and validator != part.state.validator)
            if start != part.bytes or (is_other and not remote.is_fixed):
                await self._in_thread(part.restart)
                raise Trouble(Internal(f"{remote.name}: the server went on with another content or at another place"))
        else:
            total = _content_length(response)
            if part.bytes:
                await self._in_thread(part.restart)
        if remote.size_bytes is not None and total is not None and total != remote.size_bytes:
            raise Unprocessable(
                f"{remote.name}: the server announces {total} bytes, its index says {remote.size_bytes}",
                announced_bytes=total,
                expected_bytes=remote.size_bytes,
            )
        if total is None:
            total = remote.size_bytes
        self.total_bytes = total
        if total is not None:
            await self._in_thread(lambda: check_room(part, total - part.bytes))
        await self._in_thread(lambda: part.note(validator=validator, total_bytes=total))

    async def _receive(self, response: httpx.Response) -> None:
        gathered = bytearray()
        written_at = time.monotonic()
        try:
            async for piece in response.aiter_raw():
                gathered += piece
                self.transferred_bytes += len(piece)
                self._on_bytes(self._part.bytes + len(gathered))
                self._check_not_more(self._part.bytes + len(gathered))
                if len(gathered) >= _WRITE_BYTES or time.monotonic() - written_at >= _WRITE_S:
                    full, gathered = gathered, bytearray()
                    await self._write(full)
                    written_at = time.monotonic()
        finally:
            # Also what came before a cut, or before the caller went away.
            if gathered:
                await self._write(gathered)

    def _check_not_more(self, bytes_here: int) -> None:
        total = self._part.state.total_bytes
        if total is not None and bytes_here > total:
            raise Unprocessable(f"{self._remote.name}: the server sends more than the {total} bytes it should have")

    async def _write(self, data: bytearray) -> None:
        try:
            await self._in_thread(lambda: self._append(data))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(self._part.path.parent).free
            raise Unprocessable(
                f"{self._remote.name}: the disk is full after {self._part.bytes} bytes, {free} are free",
                free_bytes=free,
                done_bytes=self._part.bytes,
            ) from error

    def _append(self, data: bytearray) -> None:
        if self._part.state.total_bytes is None:
            # Nobody said where it ends: it may be never.
            check_room(self._part, len(data))
        self._part.append(data)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await in_thread(self._executor, work)


async def in_thread(executor: Executor, work: Callable[[], T]) -> T:
    """What `work` answers, done in a thread; a caller that is cancelled meanwhile still waits for its end."""
    running = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        # The part is used by one thread at a time.
        with contextlib.suppress(Exception):
            await running
        raise


def check_room(part: PartFile, more_bytes: int) -> None:
    """Raises Unprocessable with both numbers when the disk has not so much left."""
    free = shutil.disk_usage(part.path.parent).free
    if more_bytes > 0 and more_bytes + SPARE_BYTES > free:
        raise Unprocessable(
            f"{part.final_path.name} needs {more_bytes} more bytes, the disk of {part.path.parent} has {free} free, of"
            f" which {SPARE_BYTES} stay free",
            needed_bytes=more_bytes,
            free_bytes=free,
        )


def _content_range(response: httpx.Response) -> tuple[int | None, int | None]:
    """First byte and whole size as a Content-Range says (RFC 9110, section 14.4); None for what it does not."""
    match = _RANGE.fullmatch(response.headers.get("content-range", "").strip())
    if match is None:
        return None, None
    start, total = match.groups()
    return int(start) if start else None, int(total) if total != "*" else None


def _content_length(response: httpx.Response) -> int | None:
    value = response.headers.get("content-length", "")
    return int(value) if _LENGTH.fullmatch(value) else None


def _validator(response: httpx.Response) -> str:
    """What tells this content from a later one in an If-Range: a strong ETag, or a date (RFC 9110, section 13.1.5)."""
    etag = str(response.headers.get("etag", ""))
    return etag if etag.startswith('"') else str(response.headers.get("last-modified", ""))
