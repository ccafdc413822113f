"""What an error says on stderr, and which exit code it ends the command with."""

from __future__ import annotations

import json
import sys

from bus.cli import exits
from bus.cli.output import printable
from bus.client import BrokerUnreachable
from bus.settings import SettingsError
from bus.state import UnusableHome
from schemas.errors import BusError, DeadlineExceeded


class Unreachable(Exception):
    """No broker answers at the address the settings name."""


class UsageError(Exception):
    """Arguments that are each well-formed and make no sense together."""


def explain(error: Exception) -> int | None:
    """Print what went wrong and return the exit code; None for an error that is a fault in the program."""
    code, lines = told(error)
    for line in lines:
        say(line)
    return code


def told(error: Exception) -> tuple[int | None, list[str]]:
    """The exit code and the lines that say what went wrong; None and no line for a fault in the program."""
    if isinstance(error, BrokerUnreachable):
        return exits.UNREACHABLE, [error.message]
    if isinstance(error, BusError):
        details = [
            f"  {name}: {value if isinstance(value, str) else json.dumps(value, default=str)}"
            for name, value in error.details.items()
        ]
        code = exits.TIMED_OUT if isinstance(error, DeadlineExceeded) else exits.FAILED
        return code, [f"{error.code}: {error.message}", *details]
    if isinstance(error, SettingsError):
        return exits.CONFIGURATION, [f"settings: {error}"]
    if isinstance(error, UnusableHome):
        return exits.CONFIGURATION, [str(error)]
    if isinstance(error, UsageError):
        return exits.USAGE, [str(error)]
    if isinstance(error, Unreachable):
        return exits.UNREACHABLE, [str(error)]
    if isinstance(error, OSError) and error.filename is not None:
        # A disk that is full, a home that may not be written: nothing that a traceback would tell more about.
        return exits.FAILED, [f"{error.filename}: {error.strerror}"]
    return None, []


def say(text: str) -> None:
    """One line of talk on stderr; nothing in it drives a terminal."""
    print(printable(f"olympus: {text}" if not text.startswith(" ") else text), file=sys.stderr)
