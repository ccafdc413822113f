"""Commands that have several actions, `olympus memory add`: each with its own options, help and examples."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bus.cli import exits


class Action(NamedTuple):
    """One action: its name, its line in the command's help, its arguments, what it does, and examples."""

    name: str
    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: str


def add_actions(parser: argparse.ArgumentParser, actions: Sequence[Action]) -> None:
    """Give `parser` its actions; the one chosen is run by `run_action`, which without one prints the help."""
    parsers = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
    parser.set_defaults(run_action=lambda args: _without_action(parser))
    for action in actions:
        examples = "".join(f"  {line}\n" for line in action.examples.strip().splitlines())
        below = parsers.add_parser(
            action.name,
            help=action.help,
            description=f"{action.help[0].upper()}{action.help[1:]}.",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        action.configure(below)
        below.set_defaults(run_action=action.run)


def configure_json(parser: argparse.ArgumentParser) -> None:
    """The option of actions that answer one document."""
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run_action(args: argparse.Namespace) -> int:
    """Do what was chosen and return its exit code."""
    run: Callable[[argparse.Namespace], int] = args.run_action
    return run(args)


def _without_action(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return exits.USAGE


def action_parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of the actions of a command; none for a command without."""
    return [
        below
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for below in action.choices.values()
    ]


def described_actions(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Name and help of each action of a command, in order; none for a command without."""
    return [
        (choice.dest, choice.help or "")
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for choice in action._choices_actions
    ]
