"""Asks the finders: a child process started when rows come in, ended when none came for a while, killed when it hangs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from schemas.errors import DeadlineExceeded, Unprocessable

_PROGRAM: Final = Path(__file__).parent / "finders.py"

# Seconds for the texts of one call: 4 MiB at most, of which 0.6 MB a second are searched on a busy machine.
_LIMIT_S: Final = 60.0

# Seconds more for the first call of a process: its imports take 0.15 s, on a busy machine more.
_START_S: Final = 10.0

# Seconds without a row after which the process ends: it holds 31 MiB.
_IDLE_S: Final = 30.0

# Characters of the texts of one call.
_CALL_CHARACTERS: Final = 4 * 1_048_576

# Bytes of a line that the process answers: findings are short, but a text may be full of them.
_LINE_BYTES: Final = 64 * 1_048_576


class Found(NamedTuple):
    """One finding of one text, by characters. is_secret: it opens something, as against naming somebody."""

    kind: str
    is_secret: bool
    start: int
    end: int


class FinderProcess:
    """One call at a time. `stop` ends the process; a later call starts another.

    limit_s: seconds one call may take; start_s: more for the first one. idle_s: after which an unused process ends.
    """

    def __init__(
        self,
        *,
        program: Path = _PROGRAM,
        limit_s: float = _LIMIT_S,
        start_s: float = _START_S,
        idle_s: float = _IDLE_S,
    ) -> None:
        self._program = program
        self._limit_s = limit_s
        self._start_s = start_s
        self._idle_s = idle_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    async def find(self, texts: Sequence[str]) -> list[list[Found]]:
        """The findings of each text. Raises Unprocessable when the process cannot work, DeadlineExceeded when it hangs."""
        found: list[list[Found]] = []
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            try:
                for part in _parts(texts):
                    found += await self._ask(part)
            finally:
                self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._end_soon)
        return found

    async def stop(self) -> None:
        """End the process."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        async with self._turn:
            await self._end()

    async def _ask(self, texts: Sequence[str]) -> list[list[Found]]:
        try:
            async with asyncio.timeout(self._limit_s + (0 if self._process else self._start_s)):
                line = await self._answer(json.dumps(texts).encode() + b"\n")
        except TimeoutError as error:
            await self._end()
            raise DeadlineExceeded(
                f"the search for secrets in {len(texts)} texts took over {self._limit_s:g} s"
            ) from error
        except asyncio.CancelledError:
            # What the process answers to this call must not be taken for the next one's.
            await self._end()
            raise
        return [[Found(*finding) for finding in findings] for findings in json.loads(line)]

    async def _answer(self, line: bytes) -> bytes:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(self._program),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=_LINE_BYTES,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write(line)
            await process.stdin.drain()
            answer = await process.stdout.readline()
        except ConnectionError:
            answer = b""
        if not answer:
            # Of what it wrote only a missing package is told: anything else could quote the texts.
            missing = [
                one for one in (await process.stderr.read()).decode(errors="replace").splitlines() if "No module" in one
            ]
            await self._end()
            why = f": {missing[-1]}; install '.[learning]'" if missing else ""
            raise Unprocessable(f"the process that searches for secrets ended{why}")
        return answer

    def _end_soon(self) -> None:
        self._ending = asyncio.ensure_future(self.stop())

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()


def _parts(texts: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = []
    room = 0
    for text in texts:
        if len(text) > room:
            parts.append([])
            room = _CALL_CHARACTERS
        parts[-1].append(text)
        room -= len(text)
    return parts
