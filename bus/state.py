"""Which format a home has, and that processes serve from it: the mark `state.json` and the lock beside it.

    state.json    {"format": 2, "version": "0.1.0"}     version: of the program that served from it last
    state.lock    locked by every process that serves from this home together, and alone by who puts another state there

The format is that of the home as a whole: which files there are and who may read them. What is in a database has numbered
migrations of its own, which its service takes; this module knows nothing of them.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from bus.private_file import write_private
from bus.version import VERSION

MARK: Final = "state.json"
LOCK: Final = "state.lock"

# 1 had no mark. 2 has it, and nothing in it may be read by other users.
FORMAT: Final = 2

# Present in a home that nobody has served from yet: what a person writes before the first start.
_BEFORE_FIRST_START: Final = {
    *(LOCK, "olympus.yaml", "keys", "models", "models.toml", "suites"),
    *("chat", "chat.yaml", "projects", "templates"),
}

# Processes that start together wait for the one that migrates, seconds; a step takes milliseconds.
_WAIT_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.02


class UnusableHome(Exception):
    """Nobody may serve from this home as it is; the message says why, and what to do."""


class Mark(msgspec.Struct, frozen=True):
    """The content of `state.json`."""

    format: Annotated[int, Meta(ge=1)]
    version: str


_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC

# Held until this process ends, by home.
_entered: dict[Path, int] = {}


def enter(home: Path) -> None:
    """Serve from `home` until this process ends: make it where there is none, bring it to FORMAT where it is older.

    Raises UnusableHome for a newer one, a damaged mark, a folder that cannot be written, and while it is replaced.
    """
    while home not in _entered:
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(home / LOCK, _LOCK_FLAGS, 0o600)
        except OSError as error:
            raise UnusableHome(
                f"{home} cannot be written ({error.strerror}): give this user write access to it, or name another folder"
                " with OLYMPUS_HOME"
            ) from error
        try:
            _enter(home, lock)
            if os.path.samestat(os.fstat(lock), os.stat(home / LOCK)):
                _entered[home] = lock
                return
        except FileNotFoundError:
            # While this process waited for the lock another home was put there, with a lock of its own.
            continue
        except OSError as error:
            raise UnusableHome(f"{home} cannot be used: {error.strerror} ({error.filename or home / MARK})") from error
        finally:
            if home not in _entered:
                os.close(lock)


def check(home: Path) -> int:
    """The format of `home`; FORMAT for one that is not there or holds nothing yet. Raises UnusableHome for a newer one."""
    mark = read_mark(home)
    if mark is None:
        return FORMAT if _is_new(home) else 1
    if mark.format > FORMAT:
        raise UnusableHome(
            f"{home} has format {mark.format}, written by Olympus {mark.version}; this is Olympus {VERSION}, which knows"
            f" formats up to {FORMAT}. Start Olympus {mark.version} or a newer one; or put a backup in its place that was"
            " made before the upgrade (olympus restore FILE --replace); or name another folder with OLYMPUS_HOME."
            " Nothing was changed"
        )
    return mark.format


def read_mark(home: Path) -> Mark | None:
    """The mark of `home`, None where there is none. Raises UnusableHome for one that cannot be read."""
    path = home / MARK
    try:
        return msgspec.json.decode(path.read_bytes(), type=Mark)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableHome(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnusableHome(
            f"{path} does not say which format this home has ({error}). Where no newer Olympus than {VERSION} was ever"
            " started here, remove that file: the home is then taken as the oldest and brought up to date. Otherwise"
            " start the newest one, or restore a backup (olympus restore FILE --replace)"
        ) from error


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Nobody serves from `home`, and nobody begins to within the block. Raises UnusableHome, OSError."""
    if not home.exists():
        yield
        return
    lock = os.open(home / LOCK, _LOCK_FLAGS, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnusableHome(
                f"{home} is in use: stop what serves from it first (Ctrl-C where `olympus up` runs, or the service of"
                " systemd or the container)"
            ) from error
        yield
    finally:
        os.close(lock)


def _enter(home: Path, lock: int) -> None:
    deadline = time.monotonic() + _WAIT_S
    while check(home) < FORMAT or read_mark(home) is None:
        # Whoever is first migrates alone; the others find it done.
        if _locked(lock, fcntl.LOCK_EX):
            _migrate(home)
        elif time.monotonic() > deadline:
            raise UnusableHome(
                f"{home} has to be brought to format {FORMAT} and is in use, by an older Olympus: stop that first"
            )
        else:
            time.sleep(_LOOK_EVERY_S)
    while not _locked(lock, fcntl.LOCK_SH):
        if time.monotonic() > deadline:
            raise UnusableHome(f"{home} is being replaced (olympus restore): start again when that is done")
        time.sleep(_LOOK_EVERY_S)
    # Read again: until the lock was had, another state may have been put there.
    check(home)
    mark = read_mark(home)
    if mark is not None and mark.version != VERSION:
        _write_mark(home)


def _migrate(home: Path) -> None:
    for number, step in enumerate(_STEPS[check(home) - 1 :], start=check(home) + 1):
        step(home)
        write_private(home / MARK, msgspec.json.encode(Mark(number, VERSION)))
    if read_mark(home) is None:
        _write_mark(home)


def _close_to_others(home: Path) -> None:
    """Until format 1 these were made with whatever rights the user's umask left to others."""
    for name in ("models.db", "learning.db"):
        for path in home.glob(f"{name}*"):
            path.chmod(0o600)
    for name in ("adapters", "learning"):
        if (home / name).is_dir():
            (home / name).chmod(0o700)


# The step at index N brings format N + 1 to N + 2. Each may be repeated.
_STEPS: Final[tuple[Callable[[Path], None], ...]] = (_close_to_others,)


def _is_new(home: Path) -> bool:
    try:
        return set(os.listdir(home)) <= _BEFORE_FIRST_START
    except FileNotFoundError:
        return True
    except OSError as error:
        raise UnusableHome(f"{home} cannot be read: {error.strerror}") from error


def _write_mark(home: Path) -> None:
    # A name of this process's own beside it: several may write the same at once.
    aside = home / f".{MARK}.{os.getpid()}"
    write_private(aside, msgspec.json.encode(Mark(FORMAT, VERSION)))
    aside.replace(home / MARK)


def _locked(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
