"""`olympus learn`: what there is to learn, from what, whether it helped, and what serves."""

from __future__ import annotations

import argparse

from bus.cli import learn_data, learn_found, learn_gate
from bus.cli.action import add_actions, run_action

HELP = "What there is to learn, from which examples, and whether it helped."

EXAMPLES = """\
examples:
  olympus learn feedback 9f0c2b... --fix 'Good morning to you, too!'
  olympus learn opportunities
  olympus learn import greetings.jsonl
  olympus learn build greetings
  olympus train start greetings --follow
  olympus learn why job-4f2a9c0d1e22
  olympus learn rollback olympus-demo

olympus learn ACTION --help tells more about one action.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus learn`."""
    parser.epilog = EXAMPLES
    add_actions(parser, (*learn_found.ACTIONS, *learn_data.ACTIONS, *learn_gate.ACTIONS))


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return run_action(args)
