"""A hidden folder for work that gets its name when it is done; what killed processes left of such work is removed first.

Knows nothing of the work.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# Holds a byte, and the lock of the living owner.
_OWNED: Final = "owned"

# Between making a folder and owning it pass some microseconds, seconds on a busy machine.
_BEGINNING_S: Final = 60.0


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder of this user alone in `parent`, removed with the block. Raises OSError.

    Folders there that begin with `prefix` and have no living owner are removed first.
    """
    for left in parent.glob(f"{prefix}*"):
        if not _is_owned(left):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        lock = os.open(made / _OWNED, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.write(lock, b"1")
            yield made
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _is_owned(folder: Path) -> bool:
    """True while its owner lives, or may be about to own it."""
    is_new = True
    try:
        is_new = time.time() - folder.stat().st_mtime < _BEGINNING_S
        lock = os.open(folder / _OWNED, os.O_RDWR)
    except FileNotFoundError:
        # Not owned yet, or removed this moment by its owner.
        return is_new
    except OSError:
        # Of another user.
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return is_new and os.fstat(lock).st_size == 0
    finally:
        os.close(lock)
