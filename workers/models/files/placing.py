"""Puts files into a model root and takes them out again, so that nobody ever sees half a model there. Blocks on the disk.

Work in progress lies in a hidden folder of the root, so that the last step is a rename. Its name says whose it is:

    .olympus-HOST-PID-RANDOM    new         what is to be placed
                                before      a folder that is being replaced, until its successor is in its place
                                target      where that was

Other machines may share the root: what belongs to another host, or to a process that lives, is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

# The host's name with what separates the pieces taken out.
_HOST: Final = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "host"

# Names within a stage.
NEW: Final = "new"
BEFORE: Final = "before"
_TARGET: Final = "target"

_STAGE: Final = re.compile(r"\.olympus-(?P<host>[A-Za-z0-9._]+)-(?P<pid>\d{1,10})-[0-9a-f]{8}")


def new_stage(root: Path) -> Path:
    """A new hidden folder in `root`, of this process. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    stage = root / f".olympus-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    stage.mkdir()
    return stage


def remove_stale_stages(root: Path) -> list[str]:
    """Remove what processes of this host left in `root` when they died; the names. Call before staging anything."""
    removed = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(root)):
            stage = _STAGE.fullmatch(name)
            if stage is not None and stage["host"] == _HOST and not _is_alive(int(stage["pid"])):
                _put_back(root / name)
                shutil.rmtree(root / name, ignore_errors=True)
                removed.append(name)
    return removed


def _put_back(stage: Path) -> None:
    """A folder that was to be replaced goes back to its place, if the process died before its successor was there."""
    with contextlib.suppress(OSError):
        target = Path(os.fsdecode((stage / _TARGET).read_bytes()))
        if not os.path.lexists(target):
            os.rename(stage / BEFORE, target)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        # Nothing is staged yet, so it is of an earlier process with this number.
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def hard_link(source: Path, target: Path) -> bool:
    """Make `target` another name of the file `source`; False where the file systems cannot."""
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise
    return True


def place_new(staged: Path, target: Path) -> None:
    """Give the file or folder its place. Raises FileExistsError when something is there, also if it came just now."""
    if staged.is_dir():
        # A rename of a folder onto an empty one would succeed.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(staged, target)
    elif hard_link(staged, target):
        staged.unlink()
    else:
        # Without hard links nothing is both exclusive and atomic; the moment in between is all that is left.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(staged, target)


def place_over(staged: Path, target: Path, stage: Path) -> None:
    """Give the file or folder its place; what was there is gone, a folder into `stage`. A file is replaced in one step."""
    if not staged.is_dir():
        os.replace(staged, target)
        return
    is_there = os.path.lexists(target)
    if is_there:
        (stage / _TARGET).write_bytes(os.fsencode(target))
        os.rename(target, stage / BEFORE)
    try:
        os.rename(staged, target)
    except OSError:
        if is_there:
            os.rename(stage / BEFORE, target)
        raise


def remove_files(files: Sequence[Path]) -> int:
    """Unlink files, the first one first, because a model is there as long as its first part is; bytes set free."""
    freed = 0
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            freed += _freed_by(path)
            path.unlink()
    return freed


def remove_folder(folder: Path, stage: Path) -> int:
    """Take a folder out in one step, by way of `stage`, then remove what is in it; bytes set free."""
    gone = stage / folder.name
    os.rename(folder, gone)
    freed = sum(_freed_by(Path(parent) / name) for parent, _, names in os.walk(gone) for name in names)
    shutil.rmtree(gone)
    return freed


def _freed_by(path: Path) -> int:
    """Bytes that the removal of this name sets free: none while the file has another name."""
    status = path.lstat()
    return status.st_size if status.st_nlink == 1 else 0


def sync_folder(folder: Path) -> None:
    """Have the names of a folder on disk. File systems that cannot are believed to do it by themselves."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Have a file's content on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Room on the file system of `folder`."""
    return shutil.disk_usage(folder).free


def total_bytes(paths: Iterable[Path]) -> int:
    """Bytes of files as they are now."""
    return sum(path.stat().st_size for path in paths)
