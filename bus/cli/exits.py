"""The exit codes of the `olympus` command, named in one place."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
TIMED_OUT: Final = 4
GAVE_UP: Final = 70
CONFIGURATION: Final = 78
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

MEANINGS: Final[dict[int, str]] = {
    OK: "done",
    FAILED: "the request failed, or a check did; the error code is printed",
    USAGE: "the command line is wrong",
    UNREACHABLE: "no broker answers at the configured address",
    TIMED_OUT: "no answer, or not enough events, within the time given",
    GAVE_UP: "a process kept dying and its supervisor gave up",
    CONFIGURATION: "the settings are wrong, or the home cannot be used",
    INTERRUPTED: "ended by Ctrl-C",
    BROKEN_PIPE: "whoever read the output stopped reading",
}


def table() -> str:
    """The codes and their meanings, one a line, for help texts."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())
