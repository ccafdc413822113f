"""`olympus config show`: the effective settings and where each value was written."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bus.cli import exits
from bus.cli.arguments import overrides_from, settings_from
from bus.cli.failures import UsageError
from bus.cli.output import print_json, table, write_line
from bus.redaction import shown
from bus.settings import Settings, every_key, read_origins

HELP = "Show the effective settings: defaults < file < environment < flags."

EXAMPLES = """\
examples:
  olympus config show
  olympus config show broker
  olympus --config config/olympus.yaml config show --json
  olympus --set bus.request_port=7400 config show bus
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus config`."""
    parser.epilog = EXAMPLES
    parser.add_argument("action", choices=("show",), metavar="show", help="print every key, its value and its origin")
    parser.add_argument("section", nargs="?", metavar="SECTION", help="only keys that start with this")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the settings."""
    settings = settings_from(args)
    origins = read_origins(args.config, overrides_from(args))
    keys = [key for key in every_key() if not args.section or f"{key.name}.".startswith(f"{args.section}.")]
    if not keys:
        raise UsageError(f"no setting starts with {args.section!r}")
    values = {key.name: displayed(key.name, value_of(settings, key.name)) for key in keys}
    if args.json:
        print_json({name: {"value": value, "origin": origins[name]} for name, value in values.items()}, indent=2)
    else:
        rows = [(name, _text(value), origins[name]) for name, value in values.items()]
        write_line("\n".join(table(("KEY", "VALUE", "FROM"), rows)))
    return exits.OK


def value_of(settings: Settings, name: str) -> Any:
    """The value of a dotted key."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def displayed(name: str, value: Any) -> Any:
    """`value`, unless it is a secret; without the password where it is an address."""
    return shown(name, value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
