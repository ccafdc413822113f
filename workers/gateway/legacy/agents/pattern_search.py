"""Asks the process that searches for clients' regular expressions: started when first needed, killed when it hangs.

A thread would not do: `re` holds the interpreter's lock while it searches, and nothing ends a thread. A check of the
pattern beforehand would not either: what is quadratic or worse cannot be told from its text without refusing good ones.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final, NamedTuple

from workers.gateway.legacy.agent import Refused

_PROGRAM: Final = Path(__file__).parent / "pattern_child.py"

# Seconds for one pattern and for all of a search. One that ends takes microseconds; a client waits 5 s at most.
EACH_S: Final = 0.1
ALL_S: Final = 1.0

# Seconds more until the process is killed: its start takes some 20 ms, on a busy machine more.
_SPARE_S: Final = 2.0

# Characters of a text that are searched, and of a pattern.
TEXT_CHARACTERS: Final = 16_384
PATTERN_CHARACTERS: Final = 4_096

# Bytes of a line that the process answers: a place for each pattern, at worst.
_LINE_BYTES: Final = 1024 * 1024


class Found(NamedTuple):
    """place: of the first pattern that is in the text, None for none; slow: places of those that took too long."""

    place: int | None
    slow: list[int]


class PatternSearch:
    """One search at a time. `close` ends the process, and nothing starts it again."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._is_closed = False

    async def first(self, patterns: list[str], text: str) -> Found:
        """Which pattern is found first in the text, whatever its case. Raises Refused when the process fails."""
        line = json.dumps([patterns, text[:TEXT_CHARACTERS], EACH_S, ALL_S]).encode() + b"\n"
        async with self._turn:
            try:
                async with asyncio.timeout(ALL_S + _SPARE_S):
                    answer = json.loads(await self._exchange(line))
            except BaseException as error:
                # Also when cancelled: what the process says to this search must not be taken for the next one's.
                await self._end()
                if isinstance(error, TimeoutError | OSError | ValueError):
                    raise Refused("the patterns could not be searched for in time") from error
                raise
        return Found(answer["found"], answer["slow"])

    async def close(self) -> None:
        """End the process."""
        self._is_closed = True
        async with self._turn:
            await self._end()

    async def _exchange(self, line: bytes) -> bytes:
        if self._is_closed:
            raise Refused("the agent is stopping")
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
        process.stdin.write(line)
        await process.stdin.drain()
        return await process.stdout.readline()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
