"""What a child process does so that it never outlives the service that started it, and that its stdout is for that alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import BinaryIO, Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when process `parent`, which started it, dies; end now if it has already.

    Source: prctl(2). Elsewhere than on Linux the end of the pipe has to do.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)


def take_stdout() -> BinaryIO:
    """The pipe or socket that stdout is. Whatever a library prints from now on goes to stderr."""
    to_service = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return to_service
