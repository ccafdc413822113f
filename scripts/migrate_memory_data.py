#!/usr/bin/env python3
"""Move what the replaced memory agents kept into MemoryHub: memories, twins, trust, documents and the rest.

    scripts/migrate_memory_data.py OLD_PROJECT --dry-run      what would become of every row
    scripts/migrate_memory_data.py OLD_PROJECT                move, then compare both sides

The old stores are never written to. A run that was cut off goes on where it stopped; a second run changes nothing.
See docs/migration.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# The script reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bus.settings import Settings
from migrate_parts import command, episodes, errors, hub, numbered, reasoning_files, redis_keys, trust, unified
from migrate_parts.moving import Store

_FILES = (unified, numbered, episodes, reasoning_files, trust, hub, errors)


def stores(args: argparse.Namespace, settings: Settings) -> list[Store]:
    """Every store of memory below the root of the old project, and its Redis where that is named."""
    found = [store for part in _FILES for store in part.stores(args.source)]
    return [*found, *(redis_keys.stores(args.redis) if args.redis else ())]


def options(parser: argparse.ArgumentParser) -> None:
    """Arguments of this migration alone."""
    parser.add_argument("--redis", metavar="URL", help="Redis of the old system, as redis://127.0.0.1:6379; only read")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; see `command.main`."""
    return command.main("migrate_memory_data", __doc__ or "", stores, argv, options=options)


if __name__ == "__main__":
    sys.exit(main())
