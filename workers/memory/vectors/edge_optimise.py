"""Builds the graph over the points of an embedded index: `python -m workers.memory.vectors.edge_optimise FOLDER --parent PID`.

A process of its own on a copy of the index, because the engine holds Python's interpreter for as long as it takes: 27 s
for 100,000 points.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Final

from bus.parent import die_with_parent

# Whatever else runs on this machine is more urgent, the threads that encode (bulk.py) included.
_NICENESS: Final = 19


def main(argv: Sequence[str] | None = None) -> None:
    """Optimise the index in FOLDER, which nobody else has open."""
    parser = argparse.ArgumentParser(prog="python -m workers.memory.vectors.edge_optimise", description=__doc__)
    parser.add_argument("folder", help="folder of the copy")
    parser.add_argument("--parent", type=int, required=True, help="process id of the memory service")
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    os.nice(_NICENESS)
    from qdrant_edge import EdgeShard

    shard = EdgeShard.load(args.folder)
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main()
