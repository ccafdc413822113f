"""Files that hold secrets: of this user alone, and there only when they are whole and on disk."""

from __future__ import annotations

from pathlib import Path

from bus.whole_file import write_whole


def write_private(path: Path, content: bytes) -> None:
    """Put `content` at `path`, in a folder made for this user alone where there is none. Raises OSError."""
    _make_private(path.parent)
    write_whole(path, content, 0o600)


def _make_private(folder: Path) -> None:
    """Also those above it that are missing, which `parents=True` would make as the umask says: home may be among them."""
    if not folder.is_dir():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
