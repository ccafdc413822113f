"""A program that a runner starts and that never outlives it (see `guard`), with its output in our log."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from bus.settings import child_environment

log = logging.getLogger("olympus.models.program")

# From asking a program to end to ending it by force; vLLM takes 1 to 3 s to free its device (measured on a CPU).
STOP_S: Final = 8.0
# Characters of one line of the program's output that are passed on.
MAX_LINE: Final = 2_000
# Lines passed on in a minute; what is more is counted. A start of vLLM writes some 110.
LINES_PER_MINUTE: Final = 400
# Lines kept to say why the program ended.
_KEPT_LINES: Final = 40
# Bytes of output that are read ahead.
_READ_BYTES: Final = 64 * 1024

_LEVELS: Final = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.ERROR}
_LEVEL: Final = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")
_ERROR: Final = re.compile(r"(\w*(?:Error|Exception)\b.*)")


class GuardedProgram:
    """A running program. `ended` is set when it has ended; then `exit_code` says how."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.ended = asyncio.Event()
        self._is_stopping = False
        self._process = process
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._minute = 0.0
        self._logged = 0
        self._dropped = 0
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @property
    def exit_code(self) -> int | None:
        """As a shell shows it; None while the program runs."""
        return self._process.returncode

    def reason(self) -> str:
        """The line of its output that says best why it ended: the last that names an error, else the last one."""
        found = [match[1] for line in self._lines if (match := _ERROR.search(line))]
        return (found or list(self._lines) or ["it wrote nothing"])[-1][:400]

    async def stop(self) -> None:
        """End the program and everything it started; returns when they are gone."""
        self._is_stopping = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S + 2):
                await self.ended.wait()
        except TimeoutError:
            # The guard itself hangs; the program dies with it.
            self._process.kill()
            await self.ended.wait()

    async def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while piece := await stream.read(_READ_BYTES):
            *lines, rest = (rest + piece).replace(b"\r", b"\n").split(b"\n")
            rest = rest[:MAX_LINE]
            for line in lines:
                self._pass_on(line)
        self._pass_on(rest)
        await self._process.wait()
        if not self._is_stopping:
            log.warning(
                "program ended", extra={"action": "program.ended", "program": self.name, "code": self.exit_code}
            )
        self.ended.set()

    def _pass_on(self, text: bytes) -> None:
        line = text[:MAX_LINE].decode("utf-8", "replace").rstrip()
        if not line:
            return
        self._lines.append(line)
        now = time.monotonic()
        if now - self._minute >= 60:
            if self._dropped:
                log.info(
                    "lines left out", extra={"action": "program.log", "program": self.name, "lines": self._dropped}
                )
            self._minute, self._logged, self._dropped = now, 0, 0
        if self._logged >= LINES_PER_MINUTE:
            self._dropped += 1
            return
        self._logged += 1
        found = _LEVEL.search(line[:80])
        log.log(_LEVELS[found[1]] if found else logging.DEBUG, "%s: %s", self.name, line)


async def start(name: str, command: Sequence[str], environment: Mapping[str, str]) -> GuardedProgram:
    """Start `command` with `environment` beside this process's own. Raises OSError when there is no such program.

    name: what the log calls it.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "workers.models.backends.guard",
        "--stop-s",
        str(STOP_S),
        "--",
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=child_environment(None, {}, **environment),
    )
    return GuardedProgram(name, process)
