"""Files that are there only when they are whole and on disk, however many write them at once."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Put `content` at `path`, whose folder is there. mode: of the file, less what the umask takes. Raises OSError."""
    # A name of its own: of two who write at once each must finish its own file.
    aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # The file that was meant: a full disk names none, and nobody knows the other one.
            error.filename = str(path)
        raise
