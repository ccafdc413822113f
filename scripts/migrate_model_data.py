#!/usr/bin/env python3
"""Move what the replaced model agents kept into ModelManagerSuite: weights, names, measurements and routing.

    scripts/migrate_model_data.py OLD_PROJECT --dry-run      what would become of every row
    scripts/migrate_model_data.py OLD_PROJECT                move, then compare both sides

The old files are never written to; weights are linked where they lie on the same file system, else copied. A second run
changes nothing. Routing and rules are written to a file for you to take over. See docs/migration.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# The script reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bus.settings import Settings
from migrate_parts import command, evaluations, model_rules, model_weights
from migrate_parts.moving import Store
from migrate_parts.stores import UnusableStore


def stores(args: argparse.Namespace, settings: Settings) -> list[Store]:
    """Every store of models below the root of the old project."""
    return [*model_weights.stores(args.source, "copy" if args.copy else "link"), *evaluations.stores(args.source)]


def options(parser: argparse.ArgumentParser) -> None:
    """Arguments of this migration alone."""
    parser.add_argument("--copy", action="store_true", help="copy weights also where they could be linked")


def write_rules(args: argparse.Namespace, settings: Settings) -> Iterator[str]:
    """Write routing profiles and rules to a file of their own; what to tell about it."""
    try:
        text = model_rules.fragment(args.source, settings)
    except UnusableStore as error:
        yield f"no rules written: {error}"
        return
    if not text:
        return
    path = settings.path("migrations", "models.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    yield f"routing profiles and rules are in {path}: take them over into {settings.path(settings.models.rules)}"
    if why := model_rules.flaw(path):
        yield f"  they cannot be used as they are: {why}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run; see `command.main`."""
    return command.main("migrate_model_data", __doc__ or "", stores, argv, options=options, beside=write_rules)


if __name__ == "__main__":
    sys.exit(main())
