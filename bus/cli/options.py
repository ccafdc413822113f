"""`olympus options`: sampling options that every chat of this person begins with, checked as requests are."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import msgspec

from bus import sampling
from bus.cli import exits
from bus.cli.arguments import settings_from
from bus.cli.failures import UsageError
from bus.cli.output import fit, one_line, print_json, printable, table, terminal_width, to_json, write_line
from bus.preferences import load, preferences_file, save
from bus.project_file import ProjectError
from bus.settings import SettingsError

HELP = "Show or set the sampling options that your chats begin with: temperature, max_tokens and the like."

EXAMPLES = """\
examples:
  olympus options
  olympus options temperature
  olympus options temperature=0.2 max_tokens=500
  olympus options stop='["END", "STOP"]'
  olympus options temperature=
  olympus options reset

NAME= and reset take the model's own value again. In a chat, /options sets them for that chat alone.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus options`."""
    parser.epilog = EXAMPLES
    parser.add_argument("words", nargs="*", metavar="NAME=VALUE", help="NAME, NAME=VALUE, NAME= or reset [NAME ...]")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Show them, or write them into the preferences."""
    settings = settings_from(args)
    try:
        preferred = load(settings)
        if args.words:
            changed = changed_options(preferred.options, args.words)
            if changed is None:
                write_line(option_line(args.words[0], preferred.options))
                return exits.OK
            preferred = msgspec.structs.replace(preferred, options=changed)
            save(settings, preferred)
    except sampling.OptionError as error:
        raise UsageError(str(error)) from error
    except ProjectError as error:
        raise SettingsError(str(error)) from error
    if args.json:
        print_json(preferred.options, indent=2)
        return exits.OK
    width = terminal_width()
    origins = {f"options.{name}": str(preferences_file(settings)) for name in preferred.options}
    for line in option_lines(preferred.options, origins):
        write_line(fit(line, width))
    return exits.OK


def changed_options(now: Mapping[str, Any], words: list[str]) -> dict[str, Any] | None:
    """`now` after `NAME=VALUE ...`, `NAME=` (the model's own again) or `reset [NAME ...]`; None for a NAME alone.

    Raises OptionError.
    """
    first, *others = words
    if first == "reset":
        for name in others:
            sampling.allowed(name)
        return {name: value for name, value in now.items() if others and name not in others}
    if not others and "=" not in first:
        sampling.allowed(first)
        return None
    emptied = {word[:-1] for word in words if word.endswith("=") and word.count("=") == 1}
    for name in emptied:
        sampling.allowed(name)
    given = sampling.from_words(word for word in words if word[:-1] not in emptied)
    return sampling.checked({**{name: value for name, value in now.items() if name not in emptied}, **given})


def option_line(name: str, now: Mapping[str, Any]) -> str:
    """One option: what it is, and what it may be. Raises OptionError for one that there is not."""
    return f"{name}: {_value(now.get(name))}; it may be {sampling.allowed(name)}"


def option_lines(now: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """Every option; a dash where the model's own value holds. origins: who said so, by `options.NAME`."""
    rows = [
        (
            name,
            _value(now.get(name)),
            printable(origins.get(f"options.{name}", "")) if name in now else "",
            sampling.allowed(name),
        )
        for name in sampling.option_names()
    ]
    return table(("OPTION", "NOW", "FROM", "ALLOWED"), rows)


def _value(value: Any) -> str:
    return "-" if value is None else one_line(to_json(value), 60)
