"""How the bench talks to its processes: one JSON object per line on stdin and stdout."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

Fields = dict[str, Any]


def say(**fields: Any) -> None:
    """Answer the bench with one line."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def commands() -> Iterator[Fields]:
    """The bench's commands, until it closes stdin; for processes without an event loop."""
    for line in sys.stdin:
        yield json.loads(line)


async def obey(**cases: Callable[..., Awaitable[Fields]]) -> None:
    """Say ready, then carry out commands by their field `case` until the bench closes stdin.

    No thread waits on stdin while a case runs, so the process is measured as it would run alone.
    """
    say(ready=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        say(**await cases[command.pop("case")](**command))


async def until_told_to_end() -> None:
    """Say ready, then wait until the bench closes stdin."""
    say(ready=True)
    await asyncio.to_thread(sys.stdin.read)
