"""`olympus models`: which models there are, what is in memory, and how good and fast they are."""

from __future__ import annotations

import argparse

from bus.cli import models_files, models_loaded, models_trials
from bus.cli.action import add_actions, run_action

HELP = "Fetch models, look after them, say what is in memory, and measure and compare them."

EXAMPLES = """\
examples:
  olympus models list
  olympus models pull ollama:qwen3:4b
  olympus models ps
  olympus models keep olympus-demo --pin
  olympus models compare 'What is 7 + 5?' olympus-demo qwen3-4b

olympus models ACTION --help tells more about one action.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus models`."""
    parser.epilog = EXAMPLES
    add_actions(parser, (*models_files.ACTIONS, *models_loaded.ACTIONS, *models_trials.ACTIONS))


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return run_action(args)
