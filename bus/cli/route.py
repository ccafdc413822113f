"""`olympus route`: which model a profile or a task gets, and why; the same as `olympus models route`."""

from __future__ import annotations

import argparse

from bus.cli.models_loaded import configure_route, run_route

HELP = "Say which model answers for a profile or a kind of task, and why."

EXAMPLES = """\
examples:
  olympus route code
  olympus route --task summarise --need tools
  olympus route --list
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus route`."""
    parser.epilog = EXAMPLES
    configure_route(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the model service."""
    return run_route(args)
