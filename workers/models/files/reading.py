"""Reads whole files in steps, off the event loop: to hash them, and to write a copy on the way."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from schemas.bodies.model_files import FileProgress

P = ParamSpec("P")
T = TypeVar("T")

Report = Callable[[FileProgress], Awaitable[None]]

# Bytes of one step: between two a cancel is heard and progress told. A disk of 100 MB/s takes a third of a second.
STEP_BYTES: Final = 32 * 1024 * 1024
_CHUNK_BYTES: Final = 1024 * 1024


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` answers, in a thread. A cancel is raised when the thread has ended, so that nothing goes on behind
    it.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class Progress:
    """Tells how far work on `total_bytes` is. report None tells nobody."""

    def __init__(self, step: str, total_bytes: int, report: Report | None) -> None:
        self._step = step
        self._total_bytes = total_bytes
        self._report = report
        self._done_bytes = 0
        self._began = time.monotonic()

    async def add(self, count: int) -> None:
        """Count bytes that are done, and tell."""
        self._done_bytes += count
        if self._report is None:
            return
        rate = self._done_bytes / max(time.monotonic() - self._began, 1e-6)
        left = max(self._total_bytes - self._done_bytes, 0)
        await self._report(
            FileProgress(
                step=self._step,
                done_bytes=self._done_bytes,
                total_bytes=self._total_bytes,
                rate_bytes_per_s=rate,
                eta_s=left / rate if rate > 0 else None,
            )
        )


async def hash_file(path: Path, progress: Progress, *, copy_to: Path | None = None, max_rate: float = 0.0) -> str:
    """SHA-256 of the file in hexadecimal digits; what was read is written to the new file `copy_to` and is on disk.

    max_rate: bytes per second at most, 0 for as fast as it goes. Raises OSError.
    """
    reader = _Reader()
    try:
        await in_thread(reader.open, path, copy_to)
        while True:
            began = time.monotonic()
            count = await in_thread(reader.step)
            if not count:
                return reader.sha256
            await progress.add(count)
            if max_rate:
                await asyncio.sleep(count / max_rate - (time.monotonic() - began))
    finally:
        reader.close()


def digest_of(hashes: Sequence[tuple[str, str]]) -> str:
    """One SHA-256 for a model: of its single file, or over the lines "HASH  NAME" of its (name, hash) pairs by name.

    The lines are those of sha256sum: `sha256sum FILES | sha256sum` in the folder of a model gives the same.
    """
    if len(hashes) == 1:
        return hashes[0][1]
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(hashes))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


class _Reader:
    """One file being read; blocks on the disk."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._file: FileIO | None = None
        self._copy: FileIO | None = None

    def open(self, path: Path, copy_to: Path | None) -> None:
        """Open the files. Apart from the making, so that a caller who is cancelled meanwhile has what is to be closed."""
        self._file = path.open("rb", buffering=0)
        if copy_to is not None:
            self._copy = copy_to.open("xb", buffering=0)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def step(self) -> int:
        """Read on; how much was read, 0 at the end."""
        assert self._file is not None
        done = 0
        while done < STEP_BYTES:
            count = self._file.readinto(self._buffer) or 0
            if not count:
                if not done and self._copy is not None:
                    os.fsync(self._copy.fileno())
                break
            self._hash.update(self._buffer[:count])
            if self._copy is not None:
                self._write(self._buffer[:count])
            done += count
        return done

    def _write(self, data: memoryview) -> None:
        assert self._copy is not None
        while data:
            data = data[self._copy.write(data) :]

    def close(self) -> None:
        for file in (self._file, self._copy):
            if file is not None:
                file.close()
