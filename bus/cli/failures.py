"""What an error says on stderr, and which exit code it ends the command with."""

from __future__ import annotations

import json
import sys

from bus.cli import exits
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
    if isinstance(error, BrokerUnreachable):
        say(error.message)
        return exits.UNREACHABLE
    if isinstance(error, BusError):
        say(f"{error.code}: {error.message}")
        for name, value in error.details.items():
            say(f"  {name}: {value if isinstance(value, str) else json.dumps(value, default=str)}")
        return exits.TIMED_OUT if isinstance(error, DeadlineExceeded) else exits.FAILED
    if isinstance(error, SettingsError):
        say(f"settings: {error}")
        return exits.CONFIGURATION
    if isinstance(error, UnusableHome):
        say(str(error))
        return exits.CONFIGURATION
    if isinstance(error, UsageError):
        say(str(error))
        return exits.USAGE
    if isinstance(error, Unreachable):
        say(str(error))
        return exits.UNREACHABLE
    return None


def say(text: str) -> None:
    """One line of talk on stderr."""
    print(f"olympus: {text}" if not text.startswith(" ") else text, file=sys.stderr)
