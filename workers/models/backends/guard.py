"""Runs a program and ends it, with everything it started, when whoever started this is gone: `python -m MODULE --stop-s 8 -- PROGRAM ...`

    runner --stdin--> guard --> program --> the processes it starts
                                |______ one process group ______|

The end of stdin is the sign: it comes however the runner ends, kill -9 included. A program of many processes does not
notice by itself that only its first one was killed, and goes on holding the memory of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Final

from bus.parent import die_with_parent

# Between two looks at a program that was asked to end.
_LOOK_S: Final = 0.05


def run(command: list[str], stop_s: float) -> int:
    """Run `command` until it ends or stdin does; its exit code, negative for the signal that ended it.

    stop_s: from asking it to end to ending it by force.
    """
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - this process has one thread yet
    )
    signal.signal(signal.SIGTERM, lambda *_: _signal(child.pid, signal.SIGTERM))
    threading.Thread(target=_end_with_stdin, args=(child, stop_s), daemon=True).start()
    try:
        return child.wait()
    finally:
        _signal(child.pid, signal.SIGKILL)


def _end_with_stdin(child: subprocess.Popen[bytes], stop_s: float) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    _signal(child.pid, signal.SIGTERM)
    limit = time.monotonic() + stop_s
    while child.poll() is None and time.monotonic() < limit:
        time.sleep(_LOOK_S)
    _signal(child.pid, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--stop-s", type=float, required=True)
    parser.add_argument("program", nargs="+")
    told = parser.parse_args()
    sys.exit(run(told.program, told.stop_s) & 0xFF)
