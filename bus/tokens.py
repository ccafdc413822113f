"""The token a process sends with its own requests: the one it was given, or the secret that its home folder holds.

The memory service writes OLYMPUS_HOME/auth/local-admin anew at each start. Whoever can read that file owns this
machine's Olympus, so it stands for an admin: the services of one home, and its owner, need no sign-in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bus.settings import Settings

# Others may neither read nor write it.
_FORBIDDEN_MODE: Final = 0o077


def local_token_path(settings: Settings) -> Path:
    """Where the secret of this home lies."""
    return settings.path("auth", "local-admin")


def token_source(settings: Settings) -> Callable[[], str] | None:
    """What gives the token of each request, "" for none; None where no request needs one."""
    if settings.bus.token:
        return lambda: settings.bus.token
    return LocalToken(settings).read if settings.auth.required else None


class LocalToken:
    """The secret of this home, read again whenever its file changes."""

    def __init__(self, settings: Settings) -> None:
        self._path = local_token_path(settings)
        self._seen: tuple[int, int, int] | None = None
        self._token = ""

    def read(self) -> str:
        """The secret; "" where there is none, where it is not ours to read, or where others could have written it."""
        try:
            status = os.stat(self._path)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                is_ours = status.st_uid in (os.geteuid(), 0) and not status.st_mode & _FORBIDDEN_MODE
                self._token = self._path.read_text(encoding="ascii").strip() if is_ours else ""
                self._seen = seen
        except (OSError, UnicodeDecodeError):
            self._seen, self._token = None, ""
        return self._token
