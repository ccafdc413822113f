"""Searches a text for regular expressions in a process of its own: a pattern of a client may never end.

Run by its path, with the standard library alone. Each line on standard input is a JSON list [patterns, text, seconds for
each, seconds for all]; each line on standard output is `{"found": place or null, "slow": [places]}`.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import time
from types import FrameType

# Bytes this process may take: a pattern can also ask for all memory there is.
_MEMORY_BYTES = 512 * 1024 * 1024


class _Late(Exception):
    """A search was not done in time."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Late


def _is_in(pattern: str, text: str, limit_s: float) -> bool:
    # The compiler and the matcher of `re` both look for signals, so that an alarm ends them.
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return re.search(pattern, text, re.IGNORECASE) is not None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _first(patterns: list[str], text: str, each_s: float, all_s: float) -> dict[str, object]:
    slow: list[int] = []
    until = time.monotonic() + all_s
    for place, pattern in enumerate(patterns):
        if time.monotonic() > until:
            break
        try:
            if _is_in(pattern, text, each_s):
                return {"found": place, "slow": slow}
        except (_Late, MemoryError):
            slow.append(place)
        except (re.error, RecursionError, OverflowError):
            # No pattern at all: it matches nothing.
            continue
    return {"found": None, "slow": slow}


def main() -> None:
    """Answer until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _stop)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_first(*json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
