"""Whether a command runs under a chat. Apart from `bus.cli.host`, so that commands which need no event loop import none."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bus.cli.host import Host

# The chat of the running sub-command; set by `bus.cli.host.run_hosted`.
HOST: Final[ContextVar[Host | None]] = ContextVar("host", default=None)


def hosted() -> Host | None:
    """The chat that this sub-command runs under; None for a command of its own."""
    return HOST.get()
