"""`olympus bench`: run one of the clone's measuring scripts with this interpreter."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path

from bus.cli import clone, exits
from bus.cli.failures import UsageError, say
from bus.cli.output import print_json, table, write_line

HELP = "Measure the bus beside other brokers. Without NAME the benches are listed."

EXAMPLES = """\
examples:
  olympus bench
  olympus bench bus
  olympus bench bus --help
  olympus bench bus --json | tail -n 1
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus bench`."""
    parser.epilog = EXAMPLES
    parser.add_argument("--json", action="store_true", help="list the benches as one JSON document")
    parser.add_argument("name", nargs="?", metavar="NAME", help="which bench to run")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="arguments of the bench itself")


def run(args: argparse.Namespace) -> int:
    """List the benches, or run one and return its exit code."""
    benches = clone.benches()
    if not benches:
        raise UsageError("there are no benches here: they are run from a clone, by scripts/bench_*.py")
    if args.name is None:
        _list(benches, is_json=args.json)
        return exits.OK
    if args.name not in benches:
        raise UsageError(f"there is no bench '{args.name}'; there are {', '.join(benches)}")
    before = ["--json"] if args.json else []
    command = [sys.executable, str(benches[args.name]), *before, *args.rest]
    return subprocess.run(command, cwd=clone.ROOT, check=False).returncode


def _list(benches: dict[str, Path], *, is_json: bool) -> None:
    summaries = {name: _summary(path) for name, path in benches.items()}
    if is_json:
        print_json([{"name": name, "summary": summary} for name, summary in summaries.items()], indent=2)
        return
    write_line("\n".join(table(("BENCH", "WHAT IT MEASURES"), list(summaries.items()))))
    say("olympus bench NAME runs one; olympus bench NAME --help tells its options")


def _summary(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n\n")[0].replace("\n", " ")
