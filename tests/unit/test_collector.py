"""What a service spares the garbage collector."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from bus.collector import spare_what_stays

class Node:
    pass

kept = [Node() for _ in range(1000)]
spare_what_stays()
print(gc.get_freeze_count() > 1000, any(thing is kept for thing in gc.get_objects()))
before = Node()
before.self = before
del before
print(gc.collect())
"""


def test_what_stays_is_looked_through_no_more_and_what_comes_later_is() -> None:
    """In a process of its own: there is no way back from it."""
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout.split()
    assert said[:2] == ["True", "False"] and int(said[2]) >= 1
