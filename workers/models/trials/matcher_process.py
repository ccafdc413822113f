"""Asks the matcher process: started when first needed, killed when a search takes too long; knows no suite."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

from schemas.errors import Unprocessable

_PROGRAM: Final = Path(__file__).parent / "matcher.py"

# Seconds a search may take: one that ends takes milliseconds.
_LIMIT_S: Final = 2.0

# Seconds more for the first search of a process: the interpreter starts in some 20 ms, on a busy machine in more.
_START_S: Final = 2.0

# Bytes of a line that the process answers.
_LINE_BYTES: Final = 1_024


class MatcherProcess:
    """One search at a time. `stop` ends the process; a later search starts another.

    limit_s: seconds a search may take.
    """

    def __init__(self, limit_s: float = _LIMIT_S) -> None:
        self.limit_s = limit_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def is_in(self, pattern: str, answer: str) -> bool:
        """True when the pattern is found in the answer. Raises Unprocessable when the search does not end in time."""
        async with self._turn:
            try:
                async with asyncio.timeout(self.limit_s + (0 if self._process else _START_S)):
                    return await self._search(pattern, answer)
            except TimeoutError as error:
                await self._end()
                raise Unprocessable(f"pattern {pattern!r} was not done after {self.limit_s:g} s") from error
            except asyncio.CancelledError:
                # What the process answers to this search must not be taken for the next one's.
                await self._end()
                raise

    async def stop(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _search(self, pattern: str, answer: str) -> bool:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-IS",
                str(_PROGRAM),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=_LINE_BYTES,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([pattern, answer]).encode() + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
        except ConnectionError:
            line = b""
        if not line:
            await self._end()
            raise Unprocessable(f"pattern {pattern!r} cannot be searched for: the matcher process ended")
        return line == b"true\n"

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
