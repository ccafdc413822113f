"""`olympus broker`: the broker alone, kept alive by a supervisor."""

from __future__ import annotations

import argparse

from bus.cli.arguments import settings_flags, settings_from
from bus.cli.worker import EXIT_CODES, supervise

HELP = "run the broker alone, supervised"

_EPILOG = f"""\
{EXIT_CODES}

examples:
  olympus broker
  olympus --set bus.request_port=7400 broker
  olympus broker --config config/olympus.yaml
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's examples."""
    parser.epilog = _EPILOG


def run(args: argparse.Namespace) -> int:
    """Supervise `python -m broker` until told to stop."""
    return supervise("broker", "broker", settings_from(args), settings_flags(args))
