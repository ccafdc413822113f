"""Files that hold secrets: of this user alone, and there only when they are whole and on disk."""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, content: bytes) -> None:
    """Put `content` at `path`, in a folder made for this user alone where there is none. Raises OSError."""
    _make_private(path.parent)
    aside = path.with_name(f".{path.name}.new")
    # A file left behind by a crash may have another mode.
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _make_private(folder: Path) -> None:
    """Also those above it that are missing, which `parents=True` would make as the umask says: home may be among them."""
    if not folder.is_dir():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
