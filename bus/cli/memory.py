"""`olympus memory`: keep, find and forget, and look after what is kept."""

from __future__ import annotations

import argparse

from bus.cli import memory_clear, memory_export, memory_items, memory_search, memory_upkeep
from bus.cli.action import add_actions, run_action

HELP = "Keep, find and forget memories, and look after all that the memory service holds."

EXAMPLES = """\
examples:
  olympus memory add 'Ada keeps bees' --tag bees
  olympus memory search 'who has bees' --explain
  olympus memory stats
  olympus memory backup --name before-the-move
  olympus memory export memory.jsonl

olympus memory ACTION --help tells more about one action.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus memory`."""
    parser.epilog = EXAMPLES
    add_actions(
        parser,
        (
            *memory_items.ACTIONS,
            *memory_search.ACTIONS,
            *memory_clear.ACTIONS,
            *memory_upkeep.ACTIONS,
            *memory_export.ACTIONS,
        ),
    )


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return run_action(args)
