"""`olympus train`: adapters in training."""

from __future__ import annotations

import argparse

from bus.cli import train_jobs
from bus.cli.action import add_actions, run_action

HELP = "Train adapters, stop and resume them, and see how they do."

EXAMPLES = """\
examples:
  olympus train start greetings --follow
  olympus train list
  olympus train status job-4f2a9c0d1e22 --follow
  olympus train stop job-4f2a9c0d1e22
  olympus train resume job-4f2a9c0d1e22

olympus train ACTION --help tells more about one action; olympus learn is about what is learned and whether it helped.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus train`."""
    parser.epilog = EXAMPLES
    add_actions(parser, train_jobs.ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return run_action(args)
