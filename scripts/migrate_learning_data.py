#!/usr/bin/env python3
"""Move what the replaced learning agents kept: cycles, jobs, opportunities, parameters and candidates.

    scripts/migrate_learning_data.py OLD_PROJECT --dry-run    what would become of every row
    scripts/migrate_learning_data.py OLD_PROJECT              move, then compare both sides

The old stores are never written to. A run that was cut off goes on where it stopped; a second run changes nothing.
See docs/migration.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# The script reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bus.settings import Settings
from migrate_parts import candidates, command, left_behind, opportunities, parameters, trainings
from migrate_parts.moving import Store


def stores(args: argparse.Namespace, settings: Settings) -> list[Store]:
    """Every store of learning below the root of the old project."""
    return [store for part in (trainings, opportunities, parameters, candidates) for store in part.stores(args.source)]


def notes(args: argparse.Namespace, settings: Settings) -> Iterator[str]:
    """What a person has to bring in, and what nobody reads any more."""
    return left_behind.notes(args.source)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; see `command.main`."""
    return command.main("migrate_learning_data", __doc__ or "", stores, argv, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
