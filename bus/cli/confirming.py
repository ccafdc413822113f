"""Asks the person yes or no, on the terminal or in the chat that a sub-command runs under."""

from __future__ import annotations

import sys

from bus.cli.failures import UsageError
from bus.cli.hosting import hosted
from bus.cli.output import printable
from schemas.errors import BusError


def confirm(question: str) -> None:
    """Go on only after a yes; raises UsageError where nobody can be asked, Declined for anything else."""
    if hosted() is None and not sys.stdin.isatty():
        raise UsageError(f"{printable(question)}? There is no terminal to ask on; --yes says yes")
    if not says_yes(question):
        raise Declined("nothing was changed")


def says_yes(question: str) -> bool:
    """Whether the answer to `question`, which is asked without its question mark, is yes."""
    asked = f"{printable(question)}? [y/N] "
    host = hosted()
    if host is not None:
        answer = host.asked(asked)
    else:
        print(asked, end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
    return answer.strip().lower() in ("y", "yes")


class Declined(BusError):
    """The person said no. Never on the wire."""

    code = "cancelled"
