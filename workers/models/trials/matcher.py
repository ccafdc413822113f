"""Searches answers for regular expressions in a process of its own, which can be killed: a pattern may never end.

Run by its path, with the standard library alone. One JSON list [pattern, answer] per line on standard input, one JSON
boolean per line on standard output.
"""

from __future__ import annotations

import json
import re
import signal
import sys

# Seconds after which the kernel ends a search, of which nobody else may know any more: whoever asked may be dead. Longer
# than anybody waits for one.
_LIMIT_S = 10


def main() -> None:
    """Answer until standard input ends."""
    for line in sys.stdin:
        pattern, answer = json.loads(line)
        signal.alarm(_LIMIT_S)
        sys.stdout.write("true\n" if re.search(pattern, answer) else "false\n")
        sys.stdout.flush()
        signal.alarm(0)


if __name__ == "__main__":
    main()
