"""`olympus worker NAME`: one worker process, kept alive by a supervisor."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from bus.cli import exits
from bus.cli.arguments import settings_flags, settings_from
from bus.cli.model_flags import add_model_flags
from bus.logs import configure_logging
from bus.settings import Settings
from bus.supervisor import Supervisor

HELP = "run one worker, supervised"

EXIT_CODES = f"""\
The process is started again when it dies, later and later while it keeps dying, until supervisor.give_up_after quick
deaths in a row.

exit codes:
    0  stopped by SIGTERM or Ctrl-C
  {exits.GAVE_UP:>3}  given up
  {exits.CONFIGURATION:>3}  the settings are wrong, or the home cannot be used"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments and examples."""
    known = known_workers()
    parser.add_argument("name", metavar="NAME", choices=known, help=f"one of: {', '.join(known)}")
    add_model_flags(parser)
    parser.epilog = f"""\
{EXIT_CODES}

examples:
  olympus worker memory
  olympus --set memory.readers=4 worker memory
  olympus worker models --model olympus-demo --max-tokens 64
  olympus worker models --config config/olympus.yaml
"""


def run(args: argparse.Namespace) -> int:
    """Supervise `python -m workers.NAME` until told to stop."""
    return supervise(args.name, f"workers.{args.name}", settings_from(args), settings_flags(args))


def supervise(name: str, module: str, settings: Settings, flags: Sequence[str]) -> int:
    """Run `python -m MODULE FLAGS` under a supervisor and return the exit status.

    -P keeps the current folder off the import path: a stray `broker.py` in it must not be run. faulthandler prints a
    traceback when native code crashes.
    """
    configure_logging(settings.log)
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", module, *flags]
    return Supervisor(name, command, settings.supervisor).run()


def known_workers() -> list[str]:
    """Names of the folders of `workers/` that can be run. Found by looking, so that no worker is imported here."""
    spec = importlib.util.find_spec("workers")
    roots = spec.submodule_search_locations if spec else None
    return sorted(path.parent.name for root in roots or () for path in Path(root).glob("*/__main__.py"))
